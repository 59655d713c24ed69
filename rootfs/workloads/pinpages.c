// SPDX-License-Identifier: GPL-2.0-only
/*
 * pinpages - foreign references to pages while the engine runs.
 *
 * Two processes hold the same data. In one of them somebody else gets a
 * reference to every page: a pipe (vmsplice), the registered buffer of an
 * io_uring (a long-term FOLL_PIN), or a read from a device with O_DIRECT that is
 * held up, since userfaultfd does not bring the last page it needs. The engine
 * settles. Then data goes through the reference: what the process writes to its
 * memory must come out of the pipe; what is read into the registered buffer, or
 * from the device, must appear in its memory. An engine that merged such a page
 * loses the data.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define PIPE_PAGES	16	/* slots of a pipe */

enum { S_DUP = 1, S_NEW };
enum mode { MODE_VMSPLICE, MODE_IO_URING, MODE_DIRECT };

static struct {
	enum mode mode;
	size_t pages;
	uint64_t seed, settle_s;
	bool wait, madvise;
	const char *device;
} opt = { .pages = 64, .seed = 1, .settle_s = 120, .wait = true };

static char *region;
static struct content *shadow;

static void region_make(void)
{
	size_t i;

	/* The page behind is for direct_pin(). */
	region = mmap(NULL, (opt.pages + 1) * PAGE_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (region == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	if (opt.madvise && madvise(region, opt.pages * PAGE_BYTES, MADV_MERGEABLE))
		die(EXIT_ENV, "MADV_MERGEABLE: %s", strerror(errno));
	shadow = untracked_alloc(opt.pages * sizeof(*shadow));
	for (i = 0; i < opt.pages; i++)
		shadow[i].key = content_key(opt.seed, S_DUP, i, 0);
	region_fill(region, shadow, opt.pages);
}

static void new_contents(void)
{
	size_t i;

	for (i = 0; i < opt.pages; i++)
		shadow[i].key = content_key(opt.seed, S_NEW, i, 0);
}

static bool settle(bool pinned)
{
	uint64_t ms = opt.settle_s * 1000;

	if (!opt.wait || (pinned ? engine_settle_pinned(ms) : engine_settle(ms)))
		return true;
	fprintf(stderr, "%s: the engine did not settle within %" PRIu64 " s\n",
		prog_name, opt.settle_s);
	return false;
}

/* How many of the region's pages are merged now; -1 if not known. */
static int64_t merged_now(void)
{
	uint64_t start = (uint64_t)(uintptr_t)region;
	struct pagestat st = { 0 };
	int64_t n = -1;

	if (!pagestat_add(0, start, start + opt.pages * PAGE_BYTES, &st))
		n = (int64_t)st.merged_ptes;
	pagestat_free(&st);
	return n;
}

/* ---- vmsplice ---------------------------------------------------------- */

static int (*pipes)[2];

static void pipes_pin(void)
{
	size_t i, n = (opt.pages + PIPE_PAGES - 1) / PIPE_PAGES;

	pipes = xcalloc(n, sizeof(*pipes));
	for (i = 0; i < n; i++) {
		size_t left = opt.pages - i * PIPE_PAGES;
		struct iovec iov = {
			region + i * PIPE_PAGES * PAGE_BYTES,
			(left < PIPE_PAGES ? left : PIPE_PAGES) * PAGE_BYTES,
		};

		if (pipe(pipes[i]))
			die(EXIT_ENV, "pipe: %s", strerror(errno));
		if (vmsplice(pipes[i][1], &iov, 1, 0) != (ssize_t)iov.iov_len)
			die(EXIT_ENV, "vmsplice: %s", strerror(errno));
		close(pipes[i][1]);
	}
}

/* The memory gets new contents, which must come out of the pipes. */
static uint64_t pipes_check(void)
{
	char page[PAGE_BYTES];
	uint64_t wrong = 0;
	size_t i;

	new_contents();
	region_fill(region, shadow, opt.pages);
	for (i = 0; i < opt.pages; i++) {
		size_t got = 0;

		while (got < PAGE_BYTES) {
			ssize_t n = read(pipes[i / PIPE_PAGES][0], page + got, PAGE_BYTES - got);

			if (n <= 0)
				die(EXIT_WRONG, "the pipe ended at page %zu", i);
			got += (size_t)n;
		}
		wrong += region_check(page, &shadow[i], 1, "out of the pipe");
	}
	for (i = 0; i < (opt.pages + PIPE_PAGES - 1) / PIPE_PAGES; i++)
		close(pipes[i][0]);
	free(pipes);
	return wrong;
}

/* ---- io_uring ------------------------------------------------------------ */

static struct ring ring;

static void ring_pin(void)
{
	int err = ring_open(&ring, region, opt.pages * PAGE_BYTES);

	if (err)
		die(EXIT_ENV, "io_uring: %s", strerror(-err));
}

/* New contents are read through the pinned buffer and must appear here. */
static uint64_t ring_check(void)
{
	char page[PAGE_BYTES];
	int file = memfd_create("new", MFD_CLOEXEC), err = 0;
	uint64_t wrong;
	size_t i;

	if (file < 0)
		die(EXIT_ENV, "memfd_create: %s", strerror(errno));
	new_contents();
	for (i = 0; i < opt.pages; i++) {
		page_fill(page, &shadow[i]);
		if (pwrite(file, page, PAGE_BYTES, (off_t)(i * PAGE_BYTES)) != (ssize_t)PAGE_BYTES)
			die(EXIT_ENV, "memfd: %s", strerror(errno));
	}
	for (i = 0; i < opt.pages && !err; i++)
		err = ring_move(&ring, IORING_OP_READ_FIXED, file, i * PAGE_BYTES, PAGE_BYTES);
	if (err)
		die(EXIT_ENV, "io_uring: read: %s", strerror(-err));
	wrong = region_check(region, shadow, opt.pages, "through the pinned buffer");
	close(file);
	ring_close(&ring);
	return wrong;
}

/* ---- O_DIRECT -------------------------------------------------------------- */

static struct {
	int device, uffd;
	pthread_t thread;
	ssize_t got;
} direct;

static void *direct_read(void *unused __unused)
{
	direct.got = pread(direct.device, region, (opt.pages + 1) * PAGE_BYTES, 0);
	return NULL;
}

/*
 * The device has the contents that are to come. The read pins one page after
 * another, and then waits for the last, which is not there.
 */
static void direct_pin(void)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)region + opt.pages * PAGE_BYTES, PAGE_BYTES },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = { .api = UFFD_API };
	struct uffd_msg msg;
	char page[PAGE_BYTES];
	size_t i;
	int fd = open(opt.device, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		die(EXIT_ENV, "%s: %s", opt.device, strerror(errno));
	for (i = 0; i <= opt.pages; i++) {
		struct content c = { .key = content_key(opt.seed, S_NEW, i, 0) };

		page_fill(page, &c);
		if (pwrite(fd, page, PAGE_BYTES, (off_t)(i * PAGE_BYTES)) != (ssize_t)PAGE_BYTES)
			die(EXIT_ENV, "%s: %s", opt.device, strerror(errno));
	}
	if (fsync(fd) || close(fd))
		die(EXIT_ENV, "%s: %s", opt.device, strerror(errno));

	direct.device = open(opt.device, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (direct.device < 0)
		die(EXIT_ENV, "%s: O_DIRECT: %s", opt.device, strerror(errno));
	direct.uffd = (int)syscall(__NR_userfaultfd, O_CLOEXEC);
	if (direct.uffd < 0 || ioctl(direct.uffd, UFFDIO_API, &api) ||
	    ioctl(direct.uffd, UFFDIO_REGISTER, &reg))
		die(EXIT_ENV, "userfaultfd: %s", strerror(errno));
	if (pthread_create(&direct.thread, NULL, direct_read, NULL))
		die(EXIT_ENV, "no thread");
	/* It says when the read has come to wait. */
	if (read(direct.uffd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg))
		die(EXIT_ENV, "userfaultfd: %s", strerror(errno));
}

static uint64_t direct_check(void)
{
	struct uffdio_zeropage zero = {
		.range = { (uintptr_t)region + opt.pages * PAGE_BYTES, PAGE_BYTES },
	};
	uint64_t wrong;

	if (ioctl(direct.uffd, UFFDIO_ZEROPAGE, &zero) || pthread_join(direct.thread, NULL))
		die(EXIT_ENV, "the read does not go on");
	if (direct.got != (ssize_t)((opt.pages + 1) * PAGE_BYTES))
		die(EXIT_ENV, "read only %zd bytes", direct.got);
	new_contents();
	wrong = region_check(region, shadow, opt.pages, "read with O_DIRECT");
	close(direct.uffd);
	close(direct.device);
	return wrong;
}

/* ---- the course of things ------------------------------------------------- */

/* The other process with the same data: verifies when told to, then ends. */
static void twin_order(void *ctx __unused, const struct order *o, struct reply *r)
{
	if (o->op == 1)
		region_make();
	else
		r->wrong = region_check(region, shadow, opt.pages, "in the other process");
}

static const struct {
	const char *name;
	void (*pin)(void);
	uint64_t (*check)(void);
} modes[] = {
	[MODE_VMSPLICE] = { "vmsplice", pipes_pin, pipes_check },
	[MODE_IO_URING] = { "io_uring", ring_pin, ring_check },
	[MODE_DIRECT] = { "direct", direct_pin, direct_check },
};

static void __noreturn usage(void)
{
	printf("usage: pinpages [options]\n"
		"\n"
		"Pages with a foreign reference must not be merged: data has to go through.\n"
		"\n"
		"  --mode vmsplice|io_uring|direct  who holds the reference (vmsplice)\n"
		"  --device FILE         what is overwritten and read with O_DIRECT\n"
		"  --pages N             pages (64); for direct at most 255\n"
		"  --seed S              of the contents (1)\n"
		"  --madvise             MADV_MERGEABLE, as stock KSM needs\n"
		"  --no-wait             do not wait for the engine\n"
		"  --settle-timeout S    seconds for each wait (120)\n"
		"\n"
		"Exit status: 0, 1 a wrong byte or a merged page, 2 usage, 3 not possible here.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "mode", required_argument, NULL, 'm' },
		{ "device", required_argument, NULL, 'd' },
		{ "pages", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ "madvise", no_argument, NULL, 'M' },
		{ "no-wait", no_argument, NULL, 'W' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	size_t i;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'm':
			for (i = 0; i < ARRAY_SIZE(modes); i++)
				if (!strcmp(optarg, modes[i].name))
					break;
			if (i == ARRAY_SIZE(modes))
				die(EXIT_USAGE, "--mode: \"%s\" is not vmsplice, io_uring or direct", optarg);
			opt.mode = (enum mode)i;
			break;
		case 'd':
			opt.device = optarg;
			break;
		case 'n':
			opt.pages = parse_number("--pages", optarg, 1, 4096);
			break;
		case 's':
			opt.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
			break;
		case 'M':
			opt.madvise = true;
			break;
		case 'W':
			opt.wait = false;
			break;
		case 'S':
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	if (opt.mode == MODE_DIRECT && (!opt.device || opt.pages > 255))
		bad_usage("--mode direct needs --device, and at most 255 pages");
}

int main(int argc, char **argv)
{
	struct order make = { .op = 1 }, verify = { .op = 2 };
	struct worker twin = { 0 };
	int64_t merged_pinned;
	bool settled = true;
	uint64_t wrong;

	prog_start("pinpages");
	parse(argc, argv);
	/* Forked first: a fork would share the pages, and pinned ones are copied. */
	worker_start(&twin, 0, twin_order, NULL);
	/* Pinned before anybody else holds the same data. */
	region_make();
	modes[opt.mode].pin();
	wrong = worker_all(&twin, 1, &make);
	settled &= settle(true);
	merged_pinned = merged_now();
	wrong += modes[opt.mode].check();
	wrong += worker_all(&twin, 1, &verify);
	/* Free of pins, the pages may merge like any other: nothing may break. */
	settled &= settle(false);
	wrong += region_check(region, shadow, opt.pages, "after unpinning");
	wrong += worker_all(&twin, 1, &verify);
	worker_end(&twin);
	printf("{\"tool\": \"pinpages\", \"engine\": \"%s\", \"ok\": %s, \"settled\": %s, \"pages\": %zu, \"merged_while_pinned\": %" PRId64
	       ", \"wrong\": %" PRIu64 ", \"counters\": ",
	       engine_name(), !wrong && merged_pinned <= 0 && settled ? "true" : "false",
	       settled ? "true" : "false", opt.pages, merged_pinned, wrong);
	json_counters(stdout);
	puts("}");
	if (wrong || merged_pinned > 0)
		return EXIT_WRONG;
	return settled ? 0 : EXIT_ENV;
}

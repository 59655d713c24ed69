// SPDX-License-Identifier: GPL-2.0-only
/*
 * births - the ways in which an anonymous page can come to be.
 *
 * Two processes make the same pages in one of these ways, while the engine
 * only takes pages in. How many came in is counted; then the engine works,
 * and each page of the one has to be merged with its like of the other.
 * One line of JSON tells both.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define PROCS		2

enum { S_FINAL = 1, S_FORMER };
enum { DO_PREPARE = 1, DO_BIRTH, DO_VERIFY };

static struct {
	size_t pages;
	uint64_t seed, settle_s;
	const char *reclaim;
} opt = { .pages = 64, .seed = 1, .settle_s = 120 };

/* A worker's own state. */
static char *region;
static struct content *shadow;
static int file = -1;
static pid_t child;		/* holds the pages in the worker's place */

/* How the engine gets to see them: one step before the count, and the births. */
struct way {
	const char *name, *what;
	void (*prepare)(void);
	void (*birth)(void);
	void (*birth_main)(void);	/* in the main process, once */
	bool pins;			/* leaves pages pinned that cannot merge */
};

static size_t bytes(void)
{
	return opt.pages * PAGE_BYTES;
}

static char *at(size_t page)
{
	return region + page * PAGE_BYTES;
}

static void contents(unsigned int kind)
{
	size_t i;

	for (i = 0; i < opt.pages; i++)
		shadow[i].key = content_key(opt.seed, kind, i, 0);
}

static void map_anonymous(void)
{
	region = mmap(NULL, bytes(), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (region == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
}

static void fill(void)
{
	region_fill(region, shadow, opt.pages);
}

/* One page after another with its contents, in memory the engine does not see. */
static char *contents_page(size_t page)
{
	static char *buffer;

	if (!buffer)
		buffer = untracked_alloc(PAGE_BYTES);
	page_fill(buffer, &shadow[page]);
	return buffer;
}

static void make_file(void)
{
	size_t i;

	file = memfd_create("births", MFD_CLOEXEC);
	if (file < 0)
		die(EXIT_ENV, "memfd_create: %s", strerror(errno));
	for (i = 0; i < opt.pages; i++) {
		if (write(file, contents_page(i), PAGE_BYTES) != (ssize_t)PAGE_BYTES)
			die(EXIT_ENV, "memfd: %s", strerror(errno));
	}
}

static void read_all(void)
{
	size_t i;

	for (i = 0; i < opt.pages; i++)
		*(volatile char *)at(i);
}

/* A child that only waits, and ends with its parent; returns in the parent. */
static void fork_holder(void)
{
	child = fork();
	if (child < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
}

/* ---- the ways ------------------------------------------------------------ */

static void populate(void)
{
	if (madvise(region, bytes(), MADV_POPULATE_WRITE))
		die(EXIT_ENV, "MADV_POPULATE_WRITE: %s", strerror(errno));
	fill();
}

static void lock(void)
{
	if (mlock(region, bytes()))
		die(EXIT_ENV, "mlock: %s", strerror(errno));
	fill();
}

static void prepare_file(void)
{
	map_anonymous();
	make_file();
}

/* The kernel is the first to write to the memory. */
static void read_into(void)
{
	if (pread(file, region, bytes(), 0) != (ssize_t)bytes())
		die(EXIT_ENV, "read: %s", strerror(errno));
}

/* Another process is. */
static void write_from_child(void)
{
	pid_t parent = getpid(), writer = fork();
	int status;
	size_t i;

	if (writer < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (!writer) {
		for (i = 0; i < opt.pages; i++) {
			struct iovec from = { contents_page(i), PAGE_BYTES };
			struct iovec to = { at(i), PAGE_BYTES };

			if (process_vm_writev(parent, &from, 1, &to, 1, 0) != (ssize_t)PAGE_BYTES)
				_exit(1);
		}
		_exit(0);
	}
	if (waitpid(writer, &status, 0) != writer || status)
		die(EXIT_ENV, "process_vm_writev failed");
}

static void prepare_read(void)
{
	map_anonymous();
	read_all();
}

static void map_file(void)
{
	make_file();
	region = mmap(NULL, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	if (region == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
}

static void map_file_and_read(void)
{
	map_file();
	read_all();
}

static void prepare_fork(void)
{
	map_anonymous();
	contents(S_FORMER);
	fill();
	contents(S_FINAL);
	fork_holder();
}

/* What is pinned cannot be shared with a child: fork() copies it. */
static void prepare_pin(void)
{
	struct io_uring_params p = { 0 };
	struct iovec iov;
	int ring;

	map_anonymous();
	fill();
	iov = (struct iovec){ region, bytes() };
	ring = (int)syscall(__NR_io_uring_setup, 4, &p);
	if (ring < 0 ||
	    syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, &iov, 1))
		die(EXIT_ENV, "io_uring: %s", strerror(errno));
}

/* Pages that were written to the swap device stay in memory until they are reclaimed. */
static bool out_of_memory(void)
{
	static unsigned char *there;
	size_t i;

	if (!there)
		there = untracked_alloc(opt.pages);
	if (mincore(region, bytes(), there))
		die(EXIT_ENV, "mincore: %s", strerror(errno));
	for (i = 0; i < opt.pages; i++) {
		if (there[i] & 1)
			return false;
	}
	return true;
}

static void reclaim(void)
{
	int fd = opt.reclaim ? open(opt.reclaim, O_WRONLY | O_CLOEXEC) : -1;

	if (fd < 0)
		die(EXIT_ENV, "this way needs --reclaim FILE, memory.reclaim of its cgroup; see --help");
	/* That less was found than asked for is no error here. */
	if (write(fd, "16M", 3) < 0 && errno != EAGAIN)
		die(EXIT_ENV, "%s: %s", opt.reclaim, strerror(errno));
	close(fd);
}

static void swap_out(void)
{
	unsigned int tries;

	map_anonymous();
	fill();
	for (tries = 0; tries < 100; tries++) {
		struct pagestat st = { 0 };
		uint64_t start = (uint64_t)(uintptr_t)region, swapped;

		if (madvise(region, bytes(), MADV_PAGEOUT))
			die(EXIT_ENV, "MADV_PAGEOUT: %s", strerror(errno));
		if (pagestat_add(0, start, start + bytes(), &st))
			die(EXIT_ENV, "no page map");
		swapped = st.swapped;
		pagestat_free(&st);
		if (swapped == opt.pages && out_of_memory())
			return;
		if (swapped == opt.pages)
			reclaim();
		sleep_ms(100);
	}
	die(EXIT_ENV, "the pages do not leave for swap; is there a swap device? See --help");
}

/* Of the one device that there is: its name is the machine's. */
static void swap_off(void)
{
	char line[256], device[128];
	FILE *f = fopen("/proc/swaps", "re");

	if (!f || !fgets(line, sizeof(line), f) || fscanf(f, "%127s", device) != 1)
		die(EXIT_ENV, "/proc/swaps: no swap device");
	fclose(f);
	if (swapoff(device))
		die(EXIT_ENV, "swapoff %s: %s", device, strerror(errno));
}

static int uffd;

static void prepare_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	map_anonymous();
	uffd = (int)syscall(__NR_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		die(EXIT_ENV, "userfaultfd: %s", strerror(errno));
	reg.range.start = (uintptr_t)region;
	reg.range.len = bytes();
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		die(EXIT_ENV, "UFFDIO_REGISTER: %s", strerror(errno));
}

static void uffd_copy(void)
{
	size_t i;

	for (i = 0; i < opt.pages; i++) {
		struct uffdio_copy copy = {
			.dst = (uintptr_t)at(i),
			.src = (uintptr_t)contents_page(i),
			.len = PAGE_BYTES,
		};

		if (ioctl(uffd, UFFDIO_COPY, &copy))
			die(EXIT_ENV, "UFFDIO_COPY: %s", strerror(errno));
	}
	close(uffd);
}

static const struct way ways[] = {
	{ .name = "write", .what = "a first write",
	  .prepare = map_anonymous, .birth = fill },
	{ .name = "populate", .what = "MADV_POPULATE_WRITE: get_user_pages",
	  .prepare = map_anonymous, .birth = populate },
	{ .name = "mlock", .what = "mlock: get_user_pages",
	  .prepare = map_anonymous, .birth = lock },
	{ .name = "read", .what = "read(2) into untouched memory: the kernel's own fault",
	  .prepare = prepare_file, .birth = read_into },
	{ .name = "vm-write", .what = "process_vm_writev by another process",
	  .prepare = map_anonymous, .birth = write_from_child },
	{ .name = "zero", .what = "a write to the zero page",
	  .prepare = prepare_read, .birth = fill },
	{ .name = "file", .what = "a first write to a private file page",
	  .prepare = map_file, .birth = fill },
	{ .name = "file-read", .what = "a write to a private file page that was read",
	  .prepare = map_file_and_read, .birth = fill },
	{ .name = "fork", .what = "a write to a page shared by fork",
	  .prepare = prepare_fork, .birth = fill },
	{ .name = "fork-pinned", .what = "fork of a pinned page",
	  .prepare = prepare_pin, .birth = fork_holder, .pins = true },
	{ .name = "swap", .what = "swap-in by a read (see below)",
	  .prepare = swap_out, .birth = read_all },
	{ .name = "swap-write", .what = "swap-in by a write (see below)",
	  .prepare = swap_out, .birth = fill },
	{ .name = "swapoff", .what = "swapoff, which brings all pages back (see below)",
	  .prepare = swap_out, .birth_main = swap_off },
	{ .name = "uffd", .what = "UFFDIO_COPY",
	  .prepare = prepare_uffd, .birth = uffd_copy },
};

/* ---- the course of things ------------------------------------------------- */

static void serve(void *ctx, const struct order *o, struct reply *r)
{
	const struct way *way = ctx;

	switch (o->op) {
	case DO_PREPARE:
		shadow = untracked_alloc(opt.pages * sizeof(*shadow));
		contents(S_FINAL);
		/* What is needed later is not to be born later. */
		contents_page(0);
		way->prepare();
		break;
	case DO_BIRTH:
		if (way->birth)
			way->birth();
		break;
	default:
		r->wrong = region_check(region, shadow, opt.pages, way->name);
	}
	r->value[0] = (uintptr_t)region;
	/* A pinned page stays where it is; its copy is the child's. */
	r->value[1] = (uint64_t)(way->birth == fork_holder && child ? child : getpid());
}

static int64_t tracked(void)
{
	static const char * const names[] = {
		"pages_new", "pages_unshared", "pages_volatile", "pages_shared",
	};
	int64_t sum = 0, value;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		if (!counter_read(names[i], &value))
			die(EXIT_ENV, "there is no PKSM here");
		sum += value;
	}
	return sum;
}

static void set_run(const char *value)
{
	int err = control_write("run", value);

	if (err)
		die(EXIT_ENV, "run: %s", strerror(-err));
}

static void page_map(const struct worker *w, struct pagestat *st)
{
	unsigned int i;

	for (i = 0; i < PROCS; i++) {
		uint64_t start = w[i].last.value[0];
		int err = pagestat_add((pid_t)w[i].last.value[1], start, start + bytes(), st);

		if (err)
			die(EXIT_ENV, "page map: %s", strerror(-err));
	}
	pagestat_finish(st);
}

static int run(const struct way *way)
{
	struct order prepare = { .op = DO_PREPARE }, birth = { .op = DO_BIRTH };
	struct order verify = { .op = DO_VERIFY };
	struct worker w[PROCS] = { 0 };
	struct pagestat st = { 0 };
	int64_t before, after;
	unsigned int i;
	uint64_t wrong;
	bool settled;

	set_run("0");
	for (i = 0; i < PROCS; i++)
		worker_start(w, i, serve, (void *)way);
	wrong = worker_all(w, PROCS, &prepare);
	/* What has ended before is not to go meanwhile. */
	lru_drain();
	before = tracked();
	wrong += worker_all(w, PROCS, &birth);
	if (way->birth_main)
		way->birth_main();
	after = tracked();
	set_run("1");
	settled = way->pins ? engine_settle_pinned(opt.settle_s * 1000) :
			      engine_settle(opt.settle_s * 1000);
	page_map(w, &st);
	wrong += worker_all(w, PROCS, &verify);
	for (i = 0; i < PROCS; i++)
		worker_end(&w[i]);
	printf("{\"tool\": \"births\", \"ok\": %s, \"settled\": %s, \"way\": \"%s\", \"pages\": %zu, \"entered\": %" PRId64
	       ", \"merged_ptes\": %" PRIu64 ", \"merged_pages\": %" PRIu64 ", \"wrong\": %" PRIu64 "}\n",
	       !wrong && settled ? "true" : "false", settled ? "true" : "false", way->name,
	       PROCS * opt.pages, after - before, st.merged_ptes, st.merged_pages, wrong);
	pagestat_free(&st);
	if (wrong)
		return EXIT_WRONG;
	return settled ? 0 : EXIT_ENV;
}

static void __noreturn usage(void)
{
	size_t i;

	printf("usage: births [options] WAY\n"
		"\n"
		"Two processes make the same pages in the same way; how many enter the engine, and\n"
		"do they merge?\n"
		"\n"
		"  --pages N           pages in each process (64)\n"
		"  --seed S            of the contents (1)\n"
		"  --settle-timeout S  seconds to wait for the engine (120)\n"
		"  --reclaim FILE      memory.reclaim of its cgroup, for the ways by swap\n"
		"\n"
		"WAY:\n");
	for (i = 0; i < ARRAY_SIZE(ways); i++)
		printf("  %-18s  %s\n", ways[i].name, ways[i].what);
	printf("\n"
		"The ways by swap (swap, swap-write, swapoff) need a swap device, as with\n"
		"./linux-um run --swap 64M, and a memory cgroup, from which the pages are reclaimed\n"
		"before they come back:\n"
		"\n"
		"  cd /sys/fs/cgroup && echo +memory > cgroup.subtree_control && mkdir births\n"
		"  echo $$ > births/cgroup.procs\n"
		"  births --reclaim births/memory.reclaim swap\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 no settling or not possible here.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pages", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "reclaim", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	size_t i;
	int c;

	prog_start("births");
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'n')
			opt.pages = parse_number("--pages", optarg, 1, 4096);
		else if (c == 's')
			opt.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
		else if (c == 'S')
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
		else if (c == 'r')
			opt.reclaim = optarg;
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	if (optind == argc)
		bad_usage("no WAY given");
	no_more_arguments(optind + 1, argc, argv);
	for (i = 0; i < ARRAY_SIZE(ways); i++) {
		if (!strcmp(argv[optind], ways[i].name))
			return run(&ways[i]);
	}
	bad_usage("no way \"%s\"", argv[optind]);
}

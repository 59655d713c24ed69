// SPDX-License-Identifier: GPL-2.0-only
/*
 * directio - O_DIRECT from and into pages that are merged, or about to be.
 *
 * Two processes hold the same data. One of them has the kernel read a file
 * straight into its pages, or write them to the file, while they wait for the
 * engine or when they have been merged. What was written must be what was in
 * memory then; what was read must be in this process' memory, and in nobody
 * else's. With "gone", memory is given up while it is being written, so that the
 * last reference to each page is dropped by the interrupt that ends the write.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/aio_abi.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

enum { S_DUP = 1, S_FILE };
enum { DO_MAKE = 1, DO_VERIFY };

static struct {
	const char *way, *file;
	uint64_t pages, seed, settle_s, rounds;
	bool settle_first, madvise;
} opt = { .pages = 64, .seed = 1, .settle_s = 120, .rounds = 1 };

static char *region;
static struct content *shadow;
static aio_context_t aio;
static int file;

static char *at(uint64_t page)
{
	return region + page * PAGE_BYTES;
}

static void region_make(void)
{
	uint64_t i;

	if (!region) {
		region = mmap(NULL, opt.pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (region == MAP_FAILED)
			die(EXIT_ENV, "mmap: %s", strerror(errno));
		if (opt.madvise && madvise(region, opt.pages * PAGE_BYTES, MADV_MERGEABLE))
			die(EXIT_ENV, "MADV_MERGEABLE: %s", strerror(errno));
		shadow = untracked_alloc(opt.pages * sizeof(*shadow));
	}
	for (i = 0; i < opt.pages; i++)
		shadow[i] = (struct content){ .key = content_key(opt.seed, S_DUP, i, 0) };
	region_fill(region, shadow, opt.pages);
}

/* ---- the file ---------------------------------------------------------- */

/* A page at a time, past the page cache; bookkeeping memory is the buffer. */
static void file_page(uint64_t page, void *buffer, bool write)
{
	off_t where = (off_t)(page * PAGE_BYTES);
	ssize_t n = write ? pwrite(file, buffer, PAGE_BYTES, where) :
			    pread(file, buffer, PAGE_BYTES, where);

	if (n != (ssize_t)PAGE_BYTES)
		die(EXIT_ENV, "%s: page %" PRIu64 ": %s", opt.file, page, n < 0 ? strerror(errno) : "short");
}

static void file_fill(void)
{
	char *buffer = untracked_alloc(PAGE_BYTES);
	uint64_t i;

	for (i = 0; i < opt.pages; i++) {
		struct content c = { .key = content_key(opt.seed, S_FILE, i, 0) };

		page_fill(buffer, &c);
		file_page(i, buffer, true);
	}
	munmap(buffer, PAGE_BYTES);
}

static uint64_t file_check(const struct content *expected, const char *when)
{
	char *buffer = untracked_alloc(PAGE_BYTES);
	uint64_t wrong = 0, i;

	for (i = 0; i < opt.pages; i++) {
		struct content c = expected[i];

		file_page(i, buffer, false);
		wrong += region_check(buffer, &c, 1, when);
	}
	munmap(buffer, PAGE_BYTES);
	return wrong;
}

/* ---- asynchronous, so that the process can do something meanwhile ----------- */

/* All pages at once. */
static void submit(int opcode)
{
	static struct iocb *requests, **list;
	uint64_t i, n;
	long done;

	if (!requests) {
		requests = untracked_alloc(opt.pages * sizeof(*requests));
		list = untracked_alloc(opt.pages * sizeof(*list));
	}
	for (i = 0; i < opt.pages; i++) {
		requests[i] = (struct iocb){
			.aio_lio_opcode = (uint16_t)opcode,
			.aio_fildes = (uint32_t)file,
			.aio_buf = (uint64_t)(uintptr_t)at(i),
			.aio_nbytes = PAGE_BYTES,
			.aio_offset = (int64_t)(i * PAGE_BYTES),
		};
		list[i] = &requests[i];
	}
	for (n = 0; n < opt.pages; n += (uint64_t)done) {
		done = syscall(__NR_io_submit, aio, opt.pages - n, list + n);
		if (done <= 0)
			die(EXIT_ENV, "io_submit: %s", strerror(errno));
	}
}

/* Waits for at least @min of @max ends; returns how many there were. */
static uint64_t reap(uint64_t min, uint64_t max)
{
	static struct io_event *events;
	uint64_t i;
	long n;

	if (!events)
		events = untracked_alloc(opt.pages * sizeof(*events));
	n = syscall(__NR_io_getevents, aio, min, max, events, NULL);
	if (n < (long)min)
		die(EXIT_ENV, "io_getevents: %s", strerror(errno));
	for (i = 0; i < (uint64_t)n; i++) {
		if (events[i].res != (int64_t)PAGE_BYTES)
			die(EXIT_ENV, "direct I/O: %s", strerror((int)-events[i].res));
	}
	return (uint64_t)n;
}

static void all_pages(int opcode)
{
	submit(opcode);
	reap(opt.pages, opt.pages);
}

/* ---- the ways ------------------------------------------------------------ */

static uint64_t way_write(void)
{
	all_pages(IOCB_CMD_PWRITE);
	return file_check(shadow, "in the file") +
	       region_check(region, shadow, opt.pages, "after being written");
}

static uint64_t way_read(void)
{
	uint64_t i;

	all_pages(IOCB_CMD_PREAD);
	for (i = 0; i < opt.pages; i++)
		shadow[i].key = content_key(opt.seed, S_FILE, i, 0);
	return region_check(region, shadow, opt.pages, "after being read");
}

/* How many writes were not over yet when their memory had gone. */
static uint64_t in_flight;

static uint64_t way_gone(void)
{
	uint64_t wrong = 0, round, n;

	for (round = 0; round < opt.rounds; round++) {
		if (round)
			region_make();
		submit(IOCB_CMD_PWRITE);
		if (madvise(region, opt.pages * PAGE_BYTES, MADV_DONTNEED))
			die(EXIT_ENV, "MADV_DONTNEED: %s", strerror(errno));
		n = reap(0, opt.pages);
		in_flight += opt.pages - n;
		if (n < opt.pages)
			reap(opt.pages - n, opt.pages - n);
		wrong += file_check(shadow, "in the file, its memory gone");
	}
	memset(shadow, 0, opt.pages * sizeof(*shadow));
	return wrong;
}

static const struct {
	const char *name;
	uint64_t (*run)(void);
} ways[] = { { "write", way_write }, { "read", way_read }, { "gone", way_gone } };

/* ---- the course of things -------------------------------------------------- */

static void twin_order(void *ctx __unused, const struct order *o, struct reply *r)
{
	if (o->op == DO_MAKE)
		region_make();
	else
		r->wrong = region_check(region, shadow, opt.pages, "in the other process");
}

static void settle(void)
{
	if (!engine_settle(opt.settle_s * 1000))
		die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s", opt.settle_s);
}

static uint64_t merged_now(void)
{
	uint64_t start = (uint64_t)(uintptr_t)region, n;
	struct pagestat st = { 0 };

	if (pagestat_add(0, start, start + opt.pages * PAGE_BYTES, &st))
		die(EXIT_ENV, "no page map");
	n = st.merged_ptes;
	pagestat_free(&st);
	return n;
}

static void __noreturn usage(void)
{
	printf("usage: directio [options] write|read|gone\n"
		"\n"
		"O_DIRECT from or into pages that another process has as well; with gone, memory\n"
		"is given up while it is being written.\n"
		"\n"
		"  --file FILE         a file or block device, written to (needed)\n"
		"  --merged            let the engine merge them first\n"
		"  --pages N           pages (64)\n"
		"  --rounds N          of gone (1)\n"
		"  --seed S            of the contents (1)\n"
		"  --madvise           MADV_MERGEABLE, as stock KSM needs\n"
		"  --settle-timeout S  seconds for each wait (120)\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

static size_t parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "file", required_argument, NULL, 'f' },
		{ "merged", no_argument, NULL, 'm' },
		{ "pages", required_argument, NULL, 'n' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "seed", required_argument, NULL, 's' },
		{ "madvise", no_argument, NULL, 'M' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	size_t i;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'f')
			opt.file = optarg;
		else if (c == 'm')
			opt.settle_first = true;
		else if (c == 'n')
			opt.pages = parse_number("--pages", optarg, 1, 1024);
		else if (c == 'r')
			opt.rounds = parse_number("--rounds", optarg, 1, 100000);
		else if (c == 's')
			opt.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
		else if (c == 'M')
			opt.madvise = true;
		else if (c == 'S')
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	if (optind == argc)
		bad_usage("say write, read or gone");
	no_more_arguments(optind + 1, argc, argv);
	if (!opt.file)
		bad_usage("no --file given");
	for (i = 0; i < ARRAY_SIZE(ways); i++)
		if (!strcmp(argv[optind], ways[i].name))
			return i;
	die(EXIT_USAGE, "no way \"%s\"; see --help", argv[optind]);
}

int main(int argc, char **argv)
{
	struct order make = { .op = DO_MAKE }, verify = { .op = DO_VERIFY };
	uint64_t wrong, merged, merged_end;
	struct worker twin = { 0 };
	size_t way;

	prog_start("directio");
	way = parse(argc, argv);
	worker_start(&twin, 0, twin_order, NULL);
	file = open(opt.file, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
	if (file < 0)
		die(EXIT_ENV, "%s: %s", opt.file, strerror(errno));
	if (syscall(__NR_io_setup, opt.pages, &aio))
		die(EXIT_ENV, "io_setup: %s", strerror(errno));
	file_fill();
	region_make();
	wrong = worker_all(&twin, 1, &make);
	if (opt.settle_first)
		settle();
	merged = merged_now();
	wrong += ways[way].run();
	wrong += worker_all(&twin, 1, &verify);
	settle();
	merged_end = merged_now();
	wrong += region_check(region, shadow, opt.pages, "at the end");
	wrong += worker_all(&twin, 1, &verify);
	worker_end(&twin);
	printf("{\"tool\": \"directio\", \"engine\": \"%s\", \"ok\": %s, \"pages\": %" PRIu64
	       ", \"merged\": %" PRIu64 ", \"merged_end\": %" PRIu64 ", \"in_flight\": %" PRIu64
	       ", \"wrong\": %" PRIu64 "}\n",
	       engine_name(), wrong ? "false" : "true", opt.pages, merged, merged_end, in_flight, wrong);
	return wrong ? EXIT_WRONG : 0;
}

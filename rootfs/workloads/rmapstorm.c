// SPDX-License-Identifier: GPL-2.0-only
/*
 * rmapstorm - how long does rmap take to find all mappings of a merged page?
 *
 * "sharers": one content in very many pages, and another in two. "vmas": pages
 * of mappings that were split into very many VMAs, and of some that were not.
 * Marking a page idle by /sys/kernel/mm/page_idle/bitmap is one walk over all
 * its mappings and little else; so its time is taken, for one and for the other.
 * One line of JSON. Times mean something in real time only, and there compared
 * with each other.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define MAX_PROCS	16
#define PROBES		32	/* pages that are timed, at most */
#define REPEATS		15	/* the shortest time counts */
#define FEW		16	/* pages of what the storm is compared with */

enum { DO_FILL = 1, DO_SPLIT, DO_VERIFY };
enum { SAME = 1, DUP, OTHER };

static struct {
	unsigned int procs;
	size_t pages;
	uint64_t settle_s;
} opt = { .procs = 4, .pages = 5000, .settle_s = 300 };

static struct worker *workers;

/* ---- a worker ------------------------------------------------------------- */

/* Two regions: the large one, and a few pages to compare with. */
static char *region, *few;

static struct content content_of(uint32_t sort, size_t page)
{
	struct content c = { .key = content_key(sort, sort == SAME ? 0 : page, 0, 0) };

	return c;
}

/* In an anon_vma of its own: nothing that it could be joined with is beside it. */
static char *map_pages(size_t pages)
{
	char *p = mmap(NULL, (pages + 2) * PAGE_BYTES, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return p;
	p += PAGE_BYTES;
	if (mprotect(p, pages * PAGE_BYTES, PROT_READ | PROT_WRITE))
		return MAP_FAILED;
	madvise(p, pages * PAGE_BYTES, MADV_MERGEABLE);
	return p;
}

/* The value says whether the few pages are wanted as well. */
static int do_fill(uint32_t sort, bool with_few)
{
	struct content c;
	size_t i;

	region = map_pages(opt.pages);
	if (region == MAP_FAILED)
		return -errno;
	for (i = 0; i < opt.pages; i++) {
		c = content_of(sort, i);
		page_fill(region + i * PAGE_BYTES, &c);
	}
	if (!with_few)
		return 0;
	few = map_pages(FEW);
	if (few == MAP_FAILED)
		return -errno;
	for (i = 0; i < FEW; i++) {
		c = content_of(OTHER, i);
		page_fill(few + i * PAGE_BYTES, &c);
	}
	return 0;
}

/* Every second page gets advice of no consequence, and so a VMA of its own. */
static int do_split(void)
{
	size_t i;

	for (i = 0; i < opt.pages; i += 2)
		if (madvise(region + i * PAGE_BYTES, PAGE_BYTES, MADV_RANDOM))
			return -errno;
	return 0;
}

static uint64_t do_verify(uint32_t sort)
{
	uint64_t wrong = 0;
	struct content c;
	size_t i;

	for (i = 0; i < opt.pages; i++) {
		c = content_of(sort, i);
		wrong += region_check(region + i * PAGE_BYTES, &c, 1, "in the large region");
	}
	for (i = 0; few && i < FEW; i++) {
		c = content_of(OTHER, i);
		wrong += region_check(few + i * PAGE_BYTES, &c, 1, "in the small region");
	}
	return wrong;
}

static void serve(void *ctx __unused, const struct order *o, struct reply *r)
{
	if (o->op == DO_FILL)
		r->status = do_fill(o->arg, o->value);
	else if (o->op == DO_SPLIT)
		r->status = do_split();
	else
		r->wrong = do_verify(o->arg);
	r->value[0] = (uint64_t)(uintptr_t)region;
	r->value[1] = (uint64_t)(uintptr_t)few;
}

/* ---- the page map ----------------------------------------------------------- */

static uint64_t read_u64(int fd, uint64_t index)
{
	uint64_t value;

	if (pread(fd, &value, 8, (off_t)(index * 8)) != 8)
		die(EXIT_ENV, "page map: %s", strerror(errno));
	return value;
}

static int open_or_die(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	if (fd < 0)
		die(EXIT_ENV, "%s: %s", path, strerror(errno));
	return fd;
}

/* Page frame behind an address of worker @i; 0 if there is none. */
static uint64_t pfn_of(unsigned int i, uint64_t addr)
{
	char path[64];
	uint64_t entry;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", workers[i].pid);
	fd = open_or_die(path, O_RDONLY);
	entry = read_u64(fd, addr / PAGE_BYTES);
	close(fd);
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

static uint64_t mapcount(uint64_t pfn)
{
	static int fd = -1;

	if (fd < 0)
		fd = open_or_die("/proc/kpagecount", O_RDONLY);
	return read_u64(fd, pfn);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

#define NO_WALK		UINT64_MAX

/*
 * The shortest time that a walk over all mappings of a page took. NO_WALK for one that
 * cannot be marked: the last word of the bitmap is not written where memory ends within it.
 */
static uint64_t walk_ns(uint64_t pfn)
{
	uint64_t bit = 1ULL << pfn % 64, best = UINT64_MAX, start, took;
	static int fd = -1;
	ssize_t written;
	int i;

	if (fd < 0)
		fd = open_or_die("/sys/kernel/mm/page_idle/bitmap", O_RDWR);
	for (i = 0; i < REPEATS; i++) {
		start = now_ns();
		written = pwrite(fd, &bit, 8, (off_t)(pfn / 64 * 8));
		if (!written)
			return NO_WALK;
		if (written != 8)
			die(EXIT_ENV, "page_idle: %s", strerror(errno));
		took = now_ns() - start;
		if (took < best)
			best = took;
	}
	/* One that is off the LRU is not walked. */
	if (!(read_u64(fd, pfn / 64) & bit))
		die(EXIT_ENV, "page frame 0x%" PRIx64 " cannot be marked idle", pfn);
	return best;
}

struct probe {
	uint64_t walk_ns;	/* the longest of the shortest times */
	uint64_t mapcount;	/* the highest */
	uint64_t pages;
};

static struct probe probe(unsigned int i, uint64_t base, size_t pages)
{
	size_t step = pages > PROBES ? pages / PROBES : 1, k;
	struct probe p = { 0 };
	uint64_t ns;

	/* For one that cannot be marked the one behind it. */
	for (k = 0; k < pages; k += ns == NO_WALK ? 1 : step) {
		uint64_t pfn = pfn_of(i, base + k * PAGE_BYTES);

		if (!pfn)
			die(EXIT_ENV, "process %u has no page %zu", i, k);
		ns = walk_ns(pfn);
		if (ns == NO_WALK)
			continue;
		if (ns > p.walk_ns)
			p.walk_ns = ns;
		p.pages++;
	}
	if (!p.pages)
		die(EXIT_ENV, "no page frame can be marked idle");
	/* All of them, since the fullest may be anywhere. */
	for (k = 0; k < pages; k++) {
		uint64_t count = mapcount(pfn_of(i, base + k * PAGE_BYTES));

		if (count > p.mapcount)
			p.mapcount = count;
	}
	return p;
}

/* ---- the scenarios ------------------------------------------------------------ */

static void order(unsigned int i, uint32_t op, uint32_t arg, uint64_t value)
{
	struct order o = { .op = op, .arg = arg, .value = value };

	worker_send(&workers[i], &o);
	worker_receive(&workers[i]);
	if (workers[i].last.status)
		die(EXIT_ENV, "process %u, order %u: %s", i, op,
		    strerror(-workers[i].last.status));
}

static void set_run(const char *value)
{
	int err = control_write("run", value);

	if (err)
		die(EXIT_ENV, "run=%s: %s", value, strerror(-err));
}

/*
 * One after another, so that there is never more than one region not merged; and
 * no page is looked at while it is filled.
 */
static void fill(uint32_t sort)
{
	char none[1] = "";
	unsigned int i;

	for (i = 0; i < opt.procs; i++) {
		set_run("0");
		order(i, DO_FILL, sort, i < 2);
		set_run("1");
		script_op("settle", none, opt.settle_s);
	}
}

static void __noreturn usage(void)
{
	printf("usage: rmapstorm [options] sharers|vmas\n"
		"\n"
		"  sharers             all pages of all processes have the same content\n"
		"  vmas                all processes have the same pages, each in a VMA of its own\n"
		"\n"
		"  --procs N           processes (4)\n"
		"  --pages N           pages of each (5000)\n"
		"  --settle-timeout S  seconds for each wait (300)\n"
		"\n"
		"Prints one line of JSON: the highest map count and the longest walk of the many,\n"
		"and of a few pages that two processes have as well.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

static bool parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "pages", required_argument, NULL, 'n' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			opt.procs = parse_number("--procs", optarg, 2, MAX_PROCS);
			break;
		case 'n':
			opt.pages = parse_number("--pages", optarg, 1, 1 << 17);
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
	if (optind == argc)
		bad_usage("say sharers or vmas");
	no_more_arguments(optind + 1, argc, argv);
	if (strcmp(argv[optind], "sharers") && strcmp(argv[optind], "vmas"))
		bad_usage("\"%s\" is neither sharers nor vmas", argv[optind]);
	return *argv[optind] == 'v';
}

int main(int argc, char **argv)
{
	struct probe many, pair;
	uint64_t wrong = 0;
	unsigned int i;
	uint32_t sort;
	bool vmas;

	prog_start("rmapstorm");
	vmas = parse(argc, argv);
	sort = vmas ? DUP : SAME;
	workers = xcalloc(opt.procs, sizeof(*workers));
	for (i = 0; i < opt.procs; i++)
		worker_start(workers, i, serve, NULL);
	fill(sort);
	for (i = 0; vmas && i < opt.procs; i++)
		order(i, DO_SPLIT, 0, 0);
	many = probe(0, workers[0].last.value[0], opt.pages);
	pair = probe(0, workers[0].last.value[1], FEW);
	printf("{\"tool\": \"rmapstorm\", \"engine\": \"%s\", \"many\": {\"walk_ns\": %" PRIu64
	       ", \"mapcount\": %" PRIu64 ", \"probed\": %" PRIu64 "}, \"pair\": {\"walk_ns\": %" PRIu64
	       ", \"mapcount\": %" PRIu64 ", \"probed\": %" PRIu64 "}, \"counters\": ",
	       engine_name(), many.walk_ns, many.mapcount, many.pages, pair.walk_ns,
	       pair.mapcount, pair.pages);
	json_counters(stdout);
	for (i = 0; i < opt.procs; i++) {
		order(i, DO_VERIFY, sort, 0);
		wrong += workers[i].last.wrong;
		worker_end(&workers[i]);
	}
	printf(", \"wrong\": %" PRIu64 ", \"ok\": %s}\n", wrong, wrong ? "false" : "true");
	free(workers);
	return wrong ? EXIT_WRONG : 0;
}

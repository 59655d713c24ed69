// SPDX-License-Identifier: GPL-2.0-only
/*
 * hammer - processes that never stop writing to pages that are worth merging.
 *
 * All pages of all processes hold the same most of the time. Each process changes
 * a word of one of its pages for a moment, sees that the page holds that and
 * nothing else, and changes it back. A write that goes to a page that was merged
 * meanwhile is lost, or is seen by others: that a PTE was write-protected must have
 * reached every CPU before the page is compared. One line of JSON.
 *
 * They may also take each other's pages from each other while they write, or have their
 * own put together to huge ones and split again: what holds for merging holds for that.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define MAX_PROCS	64
#define WORDS		(PAGE_BYTES / sizeof(uint64_t))
#define EVICT_EVERY	64	/* writes */
#define RESHAPE_EVERY	512

static struct {
	uint64_t procs, pages, seconds, seed;
	bool receive, evict, huge;
} opt = { .procs = 4, .pages = 8, .seconds = 10, .seed = 1 };

/* Of each process, for all to see. */
struct tally {
	uint64_t writes;
	uint64_t wrong;		/* pages that did not hold what they had to */
	uint64_t evictions;	/* calls that took pages from others */
	uint64_t collapses, splits;
	pid_t pid;		/* 0 until it has begun */
};

static struct tally *tallies;

/* How many words of a page are not @base, but for word @but, which is @value. */
static unsigned int differing(const uint64_t *page, const uint64_t *base, size_t but,
			      uint64_t value)
{
	unsigned int n = 0;
	size_t i;

	for (i = 0; i < WORDS; i++)
		n += page[i] != (i == but ? value : base[i]);
	return n;
}

/* Stores a word, or has the kernel do it, in read(2) from a pipe. */
static void put(volatile uint64_t *to, uint64_t value, const int *ends)
{
	if (!opt.receive)
		*to = value;
	else if (write(ends[1], &value, sizeof(value)) != (ssize_t)sizeof(value) ||
		 read(ends[0], (void *)to, sizeof(value)) != (ssize_t)sizeof(value))
		die(EXIT_ENV, "pipe: %s", strerror(errno));
}

/* Another process loses some pages, to swap; whether it had them is no matter. */
static void evict_other(unsigned int me, volatile uint64_t *region, uint64_t random)
{
	unsigned int other = (me + 1 + random % (opt.procs - 1)) % opt.procs;
	struct iovec pages = { (void *)region, opt.pages * PAGE_BYTES };
	static int pidfds[MAX_PROCS];

	if (!pidfds[other] && tallies[other].pid)
		pidfds[other] = (int)syscall(SYS_pidfd_open, tallies[other].pid, 0);
	if (pidfds[other] <= 0)
		return;		/* it has not begun, or has ended */
	if (syscall(SYS_process_madvise, pidfds[other], &pages, 1, MADV_PAGEOUT, 0) >= 0)
		tallies[me].evictions++;
	else if (errno != ESRCH && errno != EAGAIN)
		die(EXIT_ENV, "process_madvise: %s", strerror(errno));
}

/* The region becomes a huge page again, or is split at one of its pages. */
static void reshape(unsigned int me, volatile uint64_t *region, uint64_t random,
		    const uint64_t *base)
{
	char *page = (char *)region + random / 8 % opt.pages * PAGE_BYTES;

	switch (random % 4) {
	case 0:
		tallies[me].collapses += !madvise((void *)region, opt.pages * PAGE_BYTES,
						  MADV_COLLAPSE);
		return;
	case 1:
		if (mprotect(page, PAGE_BYTES, PROT_READ) ||
		    mprotect(page, PAGE_BYTES, PROT_READ | PROT_WRITE))
			die(EXIT_ENV, "mprotect: %s", strerror(errno));
		break;
	default:
		if (madvise(page, PAGE_BYTES, MADV_DONTNEED))
			die(EXIT_ENV, "MADV_DONTNEED: %s", strerror(errno));
		memcpy(page, base, PAGE_BYTES);
	}
	tallies[me].splits++;
}

static void __noreturn hammer(unsigned int me, volatile uint64_t *region, const uint64_t *base)
{
	uint64_t end = now_ms() + opt.seconds * 1000, random = mix64(opt.seed + me), n;
	int ends[2];

	tallies[me].pid = getpid();
	if (pipe(ends))
		die(EXIT_ENV, "pipe: %s", strerror(errno));
	for (n = 0; n % 256 || now_ms() < end; n++) {
		volatile uint64_t *page;
		size_t word;
		uint64_t value;

		random = mix64(random);
		if (opt.evict && !(n % EVICT_EVERY))
			evict_other(me, region, random);
		if (opt.huge && !(n % RESHAPE_EVERY))
			reshape(me, region, random, base);
		page = region + random % opt.pages * WORDS;
		word = random / opt.pages % WORDS;
		value = random | 1;
		put(&page[word], value, ends);
		tallies[me].writes++;
		if (differing((const uint64_t *)page, base, word, value)) {
			if (!tallies[me].wrong++)
				fprintf(stderr, "%s: process %u, page %" PRIu64 ": wrong bytes\n",
					prog_name, me, random % opt.pages);
			/* What others have written is none of the next step's. */
			memcpy((void *)page, base, PAGE_BYTES);
		}
		put(&page[word], base[word], ends);
	}
	_exit(0);
}

/* At the same address in each process, where it begins at a multiple of @align. */
static uint64_t *place(size_t align)
{
	size_t size = opt.pages * PAGE_BYTES;
	char *start = mmap(NULL, size + align, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (start == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	if (align)
		start += -(uintptr_t)start % align;
	if (align && madvise(start, size, MADV_HUGEPAGE))
		die(EXIT_ENV, "MADV_HUGEPAGE: %s", strerror(errno));
	return (uint64_t *)start;
}

static void __noreturn usage(void)
{
	printf("usage: hammer [--procs N] [--pages N] [--seconds S] [--seed S] [--receive]\n"
		"              [--evict] [--huge]\n"
		"\n"
		"N processes (4) with N equal pages each (8) change a word of a page and change\n"
		"it back, for S seconds (10), and see each time that nothing else has changed.\n"
		"--receive: the word is changed by read(2). --evict: they page each other out all the\n"
		"time. --huge: in huge pages, which they split, and have put together again.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "pages", required_argument, NULL, 'n' },
		{ "seconds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'S' },
		{ "receive", no_argument, NULL, 'r' },
		{ "evict", no_argument, NULL, 'e' },
		{ "huge", no_argument, NULL, 'H' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	uint64_t writes = 0, wrong = 0, evictions = 0, collapses = 0, splits = 0, *region;
	uint64_t base[WORDS];
	pid_t pids[MAX_PROCS];
	unsigned int i;
	size_t n;
	int c;

	prog_start("hammer");
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'p')
			opt.procs = parse_number("--procs", optarg, 1, MAX_PROCS);
		else if (c == 'n')
			opt.pages = parse_number("--pages", optarg, 1, 1 << 20);
		else if (c == 's')
			opt.seconds = parse_number("--seconds", optarg, 1, 100000);
		else if (c == 'S')
			opt.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
		else if (c == 'r')
			opt.receive = true;
		else if (c == 'e')
			opt.evict = true;
		else if (c == 'H')
			opt.huge = true;
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	no_more_arguments(optind, argc, argv);
	if (opt.evict && opt.procs < 2)
		bad_usage("--evict needs two processes");
	for (n = 0; n < WORDS; n++)
		base[n] = mix64(opt.seed + n);
	tallies = untracked_alloc(opt.procs * sizeof(*tallies));
	for (i = 0; i < opt.procs; i++) {
		fflush(NULL);
		pids[i] = fork();
		if (pids[i] < 0)
			die(EXIT_ENV, "fork: %s", strerror(errno));
		if (pids[i])
			continue;
		region = place(opt.huge ? HUGE_BYTES : 0);
		/* Where there is an engine at all. */
		if (madvise(region, opt.pages * PAGE_BYTES, MADV_MERGEABLE) &&
		    engine_kind() != ENGINE_NONE)
			die(EXIT_ENV, "madvise: %s", strerror(errno));
		for (n = 0; n < opt.pages; n++)
			memcpy(region + n * WORDS, base, PAGE_BYTES);
		hammer(i, region, base);
	}
	for (i = 0; i < opt.procs; i++) {
		int status;

		if (waitpid(pids[i], &status, 0) != pids[i] || status)
			die(EXIT_WRONG, "process %u ended badly: wait status 0x%x", i, status);
		writes += tallies[i].writes;
		wrong += tallies[i].wrong;
		evictions += tallies[i].evictions;
		collapses += tallies[i].collapses;
		splits += tallies[i].splits;
	}
	printf("{\"tool\": \"hammer\", \"engine\": \"%s\", \"ok\": %s, \"writes\": %" PRIu64
	       ", \"wrong\": %" PRIu64 ", \"evictions\": %" PRIu64 ", \"collapses\": %" PRIu64
	       ", \"splits\": %" PRIu64 ", \"counters\": ",
	       engine_name(), wrong ? "false" : "true", writes, wrong, evictions, collapses, splits);
	json_counters(stdout);
	puts("}");
	return wrong ? EXIT_WRONG : 0;
}

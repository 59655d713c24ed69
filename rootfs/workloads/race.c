// SPDX-License-Identifier: GPL-2.0-only
/*
 * race - threads that fault on the same page at the same time.
 *
 * All threads write to a page at once, each to a place of its own. Where memory
 * is short, as in a memory cgroup at its limit, a fault sleeps while it gets its
 * page; meanwhile another thread's fault may have made one, and one of the two
 * has lost: its page is freed again before it was ever mapped. Each thread's
 * bytes are checked. One line of JSON tells how many faults there were beyond
 * those that made a page.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common.h"

#define MAX_THREADS	16

static struct {
	uint64_t threads, pages, rounds;
} opt = { .threads = 4, .pages = 2048, .rounds = 1 };

static char *region;
static pthread_barrier_t barrier;
static pthread_t threads[MAX_THREADS];
static uint64_t round_now;

static uint64_t *slot(uint64_t page, uint64_t thread)
{
	return (uint64_t *)(region + page * PAGE_BYTES) + thread * 32;
}

static void *run(void *arg)
{
	uint64_t me = (uint64_t)(uintptr_t)arg, i;

	for (i = 0; i < opt.pages; i++) {
		pthread_barrier_wait(&barrier);
		*slot(i, me) = content_key(me, i, round_now, 0);
	}
	return NULL;
}

static uint64_t verify(void)
{
	uint64_t wrong = 0, i, t;

	for (i = 0; i < opt.pages; i++) {
		for (t = 0; t < opt.threads; t++) {
			if (*slot(i, t) == content_key(t, i, round_now, 0))
				continue;
			if (!wrong++)
				fprintf(stderr, "%s: page %" PRIu64 ": thread %" PRIu64 "'s bytes are lost\n",
					prog_name, i, t);
		}
	}
	return wrong;
}

static uint64_t faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (uint64_t)(usage.ru_minflt + usage.ru_majflt);
}

static void __noreturn usage(void)
{
	printf("usage: race [--threads N] [--pages N] [--rounds N]\n"
		"\n"
		"N threads (4) write to each of N pages (2048) at the same time.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "threads", required_argument, NULL, 't' },
		{ "pages", required_argument, NULL, 'n' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	uint64_t t, before, extra = 0, wrong = 0;
	int c;

	prog_start("race");
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 't')
			opt.threads = parse_number("--threads", optarg, 2, MAX_THREADS);
		else if (c == 'n')
			opt.pages = parse_number("--pages", optarg, 1, 1 << 20);
		else if (c == 'r')
			opt.rounds = parse_number("--rounds", optarg, 1, 1000);
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	no_more_arguments(optind, argc, argv);
	region = mmap(NULL, opt.pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (region == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	for (round_now = 0; round_now < opt.rounds; round_now++) {
		pthread_barrier_init(&barrier, NULL, (unsigned int)opt.threads);
		before = faults();
		for (t = 0; t < opt.threads; t++) {
			if (pthread_create(&threads[t], NULL, run, (void *)(uintptr_t)t))
				die(EXIT_ENV, "pthread_create failed");
		}
		for (t = 0; t < opt.threads; t++)
			pthread_join(threads[t], NULL);
		extra += faults() - before;
		wrong += verify();
		pthread_barrier_destroy(&barrier);
		if (madvise(region, opt.pages * PAGE_BYTES, MADV_DONTNEED))
			die(EXIT_ENV, "madvise: %s", strerror(errno));
	}
	extra -= opt.pages * opt.rounds;
	printf("{\"tool\": \"race\", \"ok\": %s, \"pages\": %" PRIu64 ", \"extra_faults\": %" PRId64
	       ", \"wrong\": %" PRIu64 "}\n",
	       wrong ? "false" : "true", opt.pages * opt.rounds, (int64_t)extra, wrong);
	return wrong ? EXIT_WRONG : 0;
}

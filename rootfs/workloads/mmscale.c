// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmscale - processes, each on a CPU of its own, that get pages and give them back.
 *
 * Each maps and populates a number of pages inside of the kernel, unmaps them, and
 * begins again, until the time is up. What they have in common is the kernel's own:
 * the zones, the free lists, the engine. One line of JSON tells how many pages that
 * were in all, and how long it took.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define MAX_WORKERS	64

static struct {
	unsigned int workers, millisecs;
	size_t pages;
} opt = { .workers = 1, .millisecs = 500, .pages = 1024 };

/* For all to see. */
struct shared {
	volatile int ready, go, stop;
	uint64_t rounds[MAX_WORKERS];
};

static void __noreturn work(unsigned int index, struct shared *shared)
{
	size_t bytes = opt.pages * PAGE_BYTES;
	cpu_set_t cpus;
	void *p;

	CPU_ZERO(&cpus);
	CPU_SET(index, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		_exit(EXIT_ENV);
	__atomic_add_fetch(&shared->ready, 1, __ATOMIC_SEQ_CST);
	while (!shared->go)
		sched_yield();
	while (!shared->stop) {
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (p == MAP_FAILED || munmap(p, bytes))
			_exit(EXIT_ENV);
		shared->rounds[index]++;
	}
	_exit(0);
}

static void __noreturn usage(void)
{
	printf("usage: mmscale [--workers N] [--pages N] [--millisecs N]\n"
		"\n"
		"Has N processes (1), each on a CPU of its own, populate and unmap N pages (1024)\n"
		"over and over, for a time (500). Prints one line of JSON: pages, microseconds.\n"
		"\n"
		"Exit status: 0, 2 usage, 3 not possible here.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "workers", required_argument, NULL, 'w' },
		{ "pages", required_argument, NULL, 'n' },
		{ "millisecs", required_argument, NULL, 't' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'w':
			opt.workers = parse_number("--workers", optarg, 1, MAX_WORKERS);
			break;
		case 'n':
			opt.pages = parse_number("--pages", optarg, 1, 1 << 20);
			break;
		case 't':
			opt.millisecs = parse_number("--millisecs", optarg, 1, 1000000);
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
}

int main(int argc, char **argv)
{
	uint64_t begin, usecs, rounds = 0;
	struct shared *shared;
	unsigned int i;
	int status;

	prog_start("mmscale");
	parse(argc, argv);
	if ((long)opt.workers > sysconf(_SC_NPROCESSORS_ONLN))
		die(EXIT_ENV, "--workers %u: there are %ld CPUs", opt.workers,
		    sysconf(_SC_NPROCESSORS_ONLN));
	shared = untracked_alloc(sizeof(*shared));
	for (i = 0; i < opt.workers; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die(EXIT_ENV, "fork: %s", strerror(errno));
		if (!pid)
			work(i, shared);
	}
	while (shared->ready < (int)opt.workers) {
		if (waitpid(-1, &status, WNOHANG) > 0)
			die(EXIT_ENV, "a process could not have a CPU of its own");
		sleep_ms(1);
	}
	begin = now_us();
	shared->go = 1;
	sleep_ms(opt.millisecs);
	shared->stop = 1;
	usecs = now_us() - begin;
	for (i = 0; i < opt.workers; i++)
		if (waitpid(-1, &status, 0) < 0 || status)
			die(EXIT_ENV, "a process could not map its pages");
	for (i = 0; i < opt.workers; i++)
		rounds += shared->rounds[i];
	printf("{\"workers\": %u, \"pages\": %" PRIu64 ", \"usecs\": %" PRIu64 "}\n",
	       opt.workers, rounds * opt.pages, usecs);
	return 0;
}

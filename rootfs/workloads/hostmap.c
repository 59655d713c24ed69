// SPDX-License-Identifier: GPL-2.0-only
/*
 * hostmap - is what a process has before it what its page tables say?
 *
 * A process of User-Mode Linux sees what the host has mapped for it, and is told of a
 * change of its page tables later. It must not see what has gone meanwhile, and what the
 * kernel does to a word of it must be done at once, as it would be on a PC. One line of
 * JSON tells how much was wrong.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define GIB		(1UL << 30)
#define TOUCHED		16U	/* pages that a range has, at most */
#define MAX_PROCESSES	8
#define MET		300000U	/* how often the kernel adds to what changes meanwhile */
#define CONTENDED	2000U	/* how often who takes turns has to wait for one */

static struct {
	uint64_t processes;
} opt;

/*
 * Of processes, not of threads: of the threads of a process one alone is in userspace at
 * a time, on User-Mode Linux.
 */
static struct {
	uint32_t word, added;	/* what has been added to it, by those who did */
	uint32_t nobody;	/* a futex that nobody waits for */
	bool kernel_done;
	uint32_t contended, turns, guarded;	/* counts; the last is not by atomic operations */
	pthread_mutex_t pi_mutex;
	pthread_barrier_t barrier;
} *shared;

/*
 * A range of @bytes, with a page table of its own, is replaced by another that has one
 * page: the others are gone. Returns how many of them are still seen.
 */
static uint64_t replaced(size_t bytes)
{
	size_t step = bytes / TOUCHED, at;
	uint64_t seen = 0;
	char *area, *old, *new;

	area = mmap(NULL, 5 * bytes, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (area == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	old = (char *)(((uintptr_t)area + bytes - 1) & ~(bytes - 1));
	new = old + 2 * bytes;
	for (at = 0; at < bytes; at += step)
		memset(old + at, 0xaa, PAGE_BYTES);
	*new = 1;
	if (mremap(new, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, old) != old)
		die(EXIT_ENV, "mremap: %s", strerror(errno));
	for (at = step; at < bytes; at += step)
		seen += old[at] != 0;
	seen += *old != 1;
	munmap(area, 5 * bytes);
	return seen;
}

/* As long as the kernel does. */
static void add_by_oneself(void)
{
	uint32_t mine = 0;

	while (!__atomic_load_n(&shared->kernel_done, __ATOMIC_RELAXED)) {
		__atomic_fetch_add(&shared->word, 1, __ATOMIC_SEQ_CST);
		mine++;
	}
	__atomic_fetch_add(&shared->added, mine, __ATOMIC_SEQ_CST);
}

/* Until others have been at it MET times meanwhile. */
static void add_by_the_kernel(void)
{
	uint32_t mine = 0, met = 0, before, after = 0;

	while (met < MET) {
		before = after;
		if (syscall(SYS_futex, &shared->nobody, FUTEX_WAKE_OP, 0, 0, &shared->word,
			    FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0)) < 0)
			die(EXIT_ENV, "FUTEX_WAKE_OP: %s", strerror(errno));
		mine++;
		after = __atomic_load_n(&shared->word, __ATOMIC_RELAXED);
		met += after != before + 1;
	}
	__atomic_fetch_add(&shared->added, mine, __ATOMIC_SEQ_CST);
	__atomic_store_n(&shared->kernel_done, true, __ATOMIC_RELAXED);
}

/* Until somebody else has had it CONTENDED times when one of them wanted it. */
static void add_guarded(void)
{
	volatile int *owner = &shared->pi_mutex.__data.__lock;
	uint32_t mine = 0;
	int err;

	while (__atomic_load_n(&shared->contended, __ATOMIC_RELAXED) < CONTENDED) {
		if (*owner)
			__atomic_fetch_add(&shared->contended, 1, __ATOMIC_RELAXED);
		err = pthread_mutex_lock(&shared->pi_mutex);
		if (err)
			die(EXIT_WRONG, "FUTEX_LOCK_PI: %s", strerror(err));
		shared->guarded++;
		pthread_mutex_unlock(&shared->pi_mutex);
		mine++;
	}
	__atomic_fetch_add(&shared->turns, mine, __ATOMIC_SEQ_CST);
}

static void pin(uint64_t cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		die(EXIT_ENV, "no CPU %" PRIu64 ": %s", cpu, strerror(errno));
}

static void together(void (*first)(void), void (*others)(void))
{
	pthread_barrierattr_t attr;
	uint64_t i;
	int status;

	pthread_barrierattr_init(&attr);
	pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_barrier_init(&shared->barrier, &attr, (unsigned int)opt.processes);
	for (i = 0; i < opt.processes; i++) {
		pid_t child = fork();

		if (child < 0)
			die(EXIT_ENV, "fork: %s", strerror(errno));
		if (!child) {
			/* They wait for each other, and one may have given up. */
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			pin(i);
			pthread_barrier_wait(&shared->barrier);
			(i ? others : first)();
			_exit(0);
		}
	}
	for (i = 0; i < opt.processes; i++) {
		if (wait(&status) < 0)
			die(EXIT_ENV, "wait: %s", strerror(errno));
		if (WIFSIGNALED(status))
			die(EXIT_WRONG, "a process was ended by signal %d", WTERMSIG(status));
		if (WEXITSTATUS(status))
			exit(WEXITSTATUS(status));
	}
	pthread_barrier_destroy(&shared->barrier);
}

static void __noreturn usage(void)
{
	printf("usage: hostmap [--processes N]\n"
		"\n"
		"Replaces ranges that are mapped by others. Or lets N processes, on as many CPUs,\n"
		"and the kernel change one word at the same time.\n"
		"\n"
		"Exit status: 0, 1 something is wrong, 2 usage, 3 not possible here.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "processes", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	uint64_t small = 0, large = 0, unguarded = 0;
	uint32_t lost = 0;
	pthread_mutexattr_t attr;
	bool wrong;
	int c;

	prog_start("hostmap");
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'p')
			opt.processes = parse_number("--processes", optarg, 2, MAX_PROCESSES);
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	no_more_arguments(optind, argc, argv);

	if (opt.processes) {
		shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (shared == MAP_FAILED)
			die(EXIT_ENV, "mmap: %s", strerror(errno));
		together(add_by_the_kernel, add_by_oneself);
		lost = shared->added - shared->word;
		pthread_mutexattr_init(&attr);
		pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
		pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
		if (pthread_mutex_init(&shared->pi_mutex, &attr))
			die(EXIT_ENV, "no mutex with priority inheritance");
		together(add_guarded, add_guarded);
		unguarded = shared->turns - shared->guarded;
	} else {
		small = replaced(HUGE_BYTES);
		large = replaced(GIB);
	}
	wrong = small || large || lost || unguarded;
	printf("{\"tool\": \"hostmap\", \"ok\": %s, \"of_a_table\": %" PRIu64
	       ", \"of_a_table_of_tables\": %" PRIu64 ", \"lost\": %" PRIu32
	       ", \"unguarded\": %" PRIu64 "}\n",
	       wrong ? "false" : "true", small, large, lost, unguarded);
	return wrong ? EXIT_WRONG : 0;
}

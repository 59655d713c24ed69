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
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

#define GIB		(1UL << 30)
#define TOUCHED		16U	/* pages that a range has, at most */
#define MAX_THREADS	8
#define ADDED		50000U	/* by the kernel, and by each who takes turns */

static struct {
	uint64_t threads;
} opt;

static uint32_t word, added;	/* what threads have added to it, by their own count */
static bool kernel_done;
static unsigned int guarded;
static pthread_mutex_t pi_mutex;
static pthread_barrier_t barrier;

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
static void *add_by_oneself(void *arg __unused)
{
	uint32_t mine = 0;

	pthread_barrier_wait(&barrier);
	while (!__atomic_load_n(&kernel_done, __ATOMIC_RELAXED)) {
		__atomic_fetch_add(&word, 1, __ATOMIC_SEQ_CST);
		mine++;
	}
	__atomic_fetch_add(&added, mine, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *add_by_the_kernel(void *arg __unused)
{
	static uint32_t nobody;
	unsigned int i;

	pthread_barrier_wait(&barrier);
	for (i = 0; i < ADDED; i++)
		if (syscall(SYS_futex, &nobody, FUTEX_WAKE_OP, 0, 0, &word,
			    FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0)) < 0)
			die(EXIT_ENV, "FUTEX_WAKE_OP: %s", strerror(errno));
	__atomic_fetch_add(&added, ADDED, __ATOMIC_SEQ_CST);
	__atomic_store_n(&kernel_done, true, __ATOMIC_RELAXED);
	return NULL;
}

static void *add_guarded(void *arg __unused)
{
	unsigned int i;
	int err;

	pthread_barrier_wait(&barrier);
	for (i = 0; i < ADDED; i++) {
		err = pthread_mutex_lock(&pi_mutex);
		if (err)
			die(EXIT_WRONG, "FUTEX_LOCK_PI: %s", strerror(err));
		guarded++;
		pthread_mutex_unlock(&pi_mutex);
	}
	return NULL;
}

static void together(void *(*first)(void *), void *(*others)(void *))
{
	pthread_t threads[MAX_THREADS];
	uint64_t t;

	pthread_barrier_init(&barrier, NULL, (unsigned int)opt.threads);
	for (t = 0; t < opt.threads; t++)
		if (pthread_create(&threads[t], NULL, t ? others : first, NULL))
			die(EXIT_ENV, "pthread_create failed");
	for (t = 0; t < opt.threads; t++)
		pthread_join(threads[t], NULL);
	pthread_barrier_destroy(&barrier);
}

static void __noreturn usage(void)
{
	printf("usage: hostmap [--threads N]\n"
		"\n"
		"Replaces ranges that are mapped by others. Or lets N threads, on as many CPUs,\n"
		"and the kernel change one word at the same time.\n"
		"\n"
		"Exit status: 0, 1 something is wrong, 2 usage, 3 not possible here.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "threads", required_argument, NULL, 't' },
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
		if (c == 't')
			opt.threads = parse_number("--threads", optarg, 2, MAX_THREADS);
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	no_more_arguments(optind, argc, argv);

	if (opt.threads) {
		together(add_by_the_kernel, add_by_oneself);
		lost = added - word;
		pthread_mutexattr_init(&attr);
		pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
		if (pthread_mutex_init(&pi_mutex, &attr))
			die(EXIT_ENV, "no mutex with priority inheritance");
		together(add_guarded, add_guarded);
		unguarded = opt.threads * ADDED - guarded;
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

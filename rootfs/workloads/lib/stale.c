// SPDX-License-Identifier: GPL-2.0-only
/*
 * Does a CPU go on writing to what mprotect() has made read-only? See common.h.
 *
 * A thread writes to one word again and again, so that its CPU has no reason to look
 * at the page table another time. The fault that must come ends it.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "../common.h"

#define WARM_MS		20U	/* so long the thread writes before anything is done */
#define LOOK_MS		50U	/* and so long it is looked whether it still does */

static sigjmp_buf out;
static volatile bool stopped;

static void faulted(int signal __unused)
{
	siglongjmp(out, 1);
}

static void *write_on(void *arg)
{
	volatile uint64_t *word = arg;

	if (!sigsetjmp(out, 1))
		while (!stopped)
			++*word;
	return NULL;
}

int stale_writes(void *start, size_t bytes, size_t at, uint64_t timeout_ms)
{
	struct sigaction on_fault = { .sa_handler = faulted }, before;
	volatile uint64_t *word = (uint64_t *)((char *)start + at);
	uint64_t was = *word, seen;
	pthread_t thread;
	int found = 0, err;

	if (sigaction(SIGSEGV, &on_fault, &before))
		return -errno;
	stopped = false;
	err = pthread_create(&thread, NULL, write_on, (void *)(uintptr_t)word);
	if (err)
		return -err;
	sleep_ms(WARM_MS);
	if (!hold_wait(timeout_ms)) {
		found = -ETIMEDOUT;
	} else if (mprotect(start, bytes, PROT_READ)) {
		found = -errno;
	} else {
		seen = *word;
		sleep_ms(LOOK_MS);
		found = *word != seen;
	}
	stopped = true;
	pthread_join(thread, NULL);
	sigaction(SIGSEGV, &before, NULL);
	if (mprotect(start, bytes, PROT_READ | PROT_WRITE))
		return -errno;
	*word = was;
	return found;
}

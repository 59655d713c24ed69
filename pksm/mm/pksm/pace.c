// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: how much of a CPU pksmd may use.
 *
 * pksmd may work for pksm_max_cpu per cent of the time. Time is cut into windows;
 * once the CPU time that was used since the beginning of one exceeds what is
 * allowed for it, pksmd sleeps until as much time has passed as that work is worth.
 * The end of the sleep is the beginning of the next window, so that nothing is saved
 * up while there is nothing to do, and work that took longer than it should is paid
 * for at once.
 */
#include <linux/math64.h>

#include "internal.h"

unsigned int pksm_max_cpu = 50;

/* What pksmd has used since boot, in nanoseconds. */
u64 pksm_cpu_nsecs;

/* Not to sleep after each little bit of work, nor to work for long on end. */
#define PKSM_WINDOW_NSECS	(50 * NSEC_PER_MSEC)

/* Of pksmd alone. */
static u64 pksm_window_begin;
static u64 pksm_window_used;
static u64 pksm_work_begin;

/**
 * pksm_pace_start - a window begins
 *
 * Context: pksmd.
 */
void pksm_pace_start(void)
{
	pksm_window_begin = ktime_get_ns();
	pksm_window_used = 0;
}

/**
 * pksm_pace_work - work begins
 *
 * Context: pksmd.
 */
void pksm_pace_work(void)
{
	pksm_work_begin = pksm_cpu_clock();
}

/**
 * pksm_pace_done - work ends: is it time to sleep?
 *
 * Context: pksmd.
 * Return: How long, in nanoseconds; 0 for not at all. After a sleep that was not for
 * this, a new window has to be begun.
 */
u64 pksm_pace_done(void)
{
	u64 used = pksm_cpu_clock() - pksm_work_begin;
	unsigned int max = READ_ONCE(pksm_max_cpu);
	u64 passed, worth;

	WRITE_ONCE(pksm_cpu_nsecs, pksm_cpu_nsecs + used);
	pksm_window_used += used;
	worth = div_u64(pksm_window_used * 100, max);
	if (max >= 100 || worth < PKSM_WINDOW_NSECS)
		return 0;
	passed = ktime_get_ns() - pksm_window_begin;
	if (worth > passed)
		return worth - passed;
	pksm_pace_start();
	return 0;
}

#ifdef CONFIG_PKSM_KUNIT_TEST
#include "tests/pace_test.h"
#endif

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

/* Who has slept off a debt may wake up by so much too late, and not lose it. */
#define PKSM_LATE_NSECS		(PKSM_WINDOW_NSECS / 5)

/* Of pksmd alone. */
static bool pksm_window_paid;	/* it has slept off what was used in this window */
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
	pksm_window_paid = false;
}

/* How much time the work of this window is worth, in nanoseconds. */
static u64 pksm_pace_worth(unsigned int max)
{
	return div_u64(pksm_window_used * 100, max);
}

/**
 * pksm_pace_slept - pksmd has slept, since there was nothing to do
 *
 * A new window begins, unless what was done in this one is worth more time than has
 * passed: little bits of work with little sleeps in between are no way around the limit.
 *
 * Context: pksmd.
 */
void pksm_pace_slept(void)
{
	u64 worth = pksm_pace_worth(READ_ONCE(pksm_max_cpu));

	if (ktime_get_ns() - pksm_window_begin >= worth)
		pksm_pace_start();
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
 * Return: How long, in nanoseconds; 0 for not at all.
 */
u64 pksm_pace_done(void)
{
	u64 used = pksm_cpu_clock() - pksm_work_begin;
	unsigned int max = READ_ONCE(pksm_max_cpu);
	bool paid = pksm_window_paid;
	u64 passed, worth;

	WRITE_ONCE(pksm_cpu_nsecs, pksm_cpu_nsecs + used);
	pksm_window_used += used;
	worth = pksm_pace_worth(max);
	if (worth < PKSM_WINDOW_NSECS)
		return 0;
	passed = ktime_get_ns() - pksm_window_begin;
	/* What was allowed is not paid for when less is. */
	if (worth > passed && max < 100) {
		pksm_window_paid = true;
		return worth - passed;
	}
	pksm_pace_start();
	if (paid && passed >= worth && passed - worth < PKSM_LATE_NSECS)
		pksm_window_begin -= passed - worth;
	return 0;
}

#ifdef CONFIG_PKSM_KUNIT_TEST
#include "tests/pace_test.h"
#endif

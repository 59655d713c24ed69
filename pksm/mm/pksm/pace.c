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
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/sched.h>
#include <linux/sched/cputime.h>

#include "internal.h"

unsigned int pksm_max_cpu = 50;

/* Not to sleep after each little bit of work, nor to work for long on end. */
#define PKSM_WINDOW_NSECS	(50 * NSEC_PER_MSEC)

/* Of pksmd alone. */
static u64 pksm_window_begin;
static u64 pksm_window_cpu;

/**
 * pksm_pace_start - a window begins
 *
 * Context: pksmd.
 */
void pksm_pace_start(void)
{
	pksm_window_begin = ktime_get_ns();
	pksm_window_cpu = task_sched_runtime(current);
}

/**
 * pksm_pace_debt - is it time to sleep?
 *
 * Context: pksmd.
 * Return: How long, in nanoseconds; 0 for not at all. After a sleep a new window has
 * to be begun.
 */
u64 pksm_pace_debt(void)
{
	unsigned int max = READ_ONCE(pksm_max_cpu);
	u64 used = task_sched_runtime(current) - pksm_window_cpu;
	u64 passed = ktime_get_ns() - pksm_window_begin;
	u64 worth = div_u64(used * 100, max);

	if (max >= 100 || worth < PKSM_WINDOW_NSECS)
		return 0;
	if (worth > passed)
		return worth - passed;
	pksm_pace_start();
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PKSM: unit tests of the limit of CPU time. Included by pace.c.
 *
 * Here the thread of the test is pksmd, with windows that began when the test says.
 * pksmd itself waits for pksm_mutex meanwhile.
 */
#include "pksm_test.h"

/**
 * struct pksm_test_pace - the settings and the window that the engine had
 * @begin: when its window began
 * @used: the CPU time of pksmd in it
 * @work: when its work began
 * @total: the CPU time of pksmd since boot
 * @max: what it was allowed
 */
struct pksm_test_pace {
	u64 begin;
	u64 used;
	u64 work;
	u64 total;
	unsigned int max;
};

static struct pksm_test_pace pksm_test_save_pace(void)
{
	return (struct pksm_test_pace) {
		.begin = pksm_window_begin,
		.used = pksm_window_used,
		.work = pksm_work_begin,
		.total = pksm_cpu_nsecs,
		.max = pksm_max_cpu,
	};
}

static void pksm_test_restore_pace(struct pksm_test_pace pace)
{
	pksm_window_begin = pace.begin;
	pksm_window_used = pace.used;
	pksm_work_begin = pace.work;
	WRITE_ONCE(pksm_cpu_nsecs, pace.total);
	WRITE_ONCE(pksm_max_cpu, pace.max);
}

/* A window that began some time ago, and in which some of it was used. */
static void pksm_test_window(unsigned int max, u64 used, u64 passed)
{
	WRITE_ONCE(pksm_max_cpu, max);
	pksm_window_begin = ktime_get_ns() - passed;
	pksm_window_used = used;
	pksm_work_begin = pksm_cpu_clock();
}

/**
 * pksm_test_pace_debt - who has used more than allowed sleeps for just that
 * @test: the test
 */
void pksm_test_pace_debt(struct kunit *test)
{
	static const unsigned int limits[] = { 1, 7, 20, 50, 99 };
	struct pksm_test_pace old;
	unsigned int i;

	pksm_test_begin(test);
	old = pksm_test_save_pace();
	for (i = 0; i < ARRAY_SIZE(limits); i++) {
		const u64 used = 3 * NSEC_PER_SEC, passed = 3 * NSEC_PER_SEC;
		u64 begin;
		s64 debt, least, most;

		pksm_test_window(limits[i], used, passed);
		begin = pksm_window_begin;
		debt = pksm_pace_done();
		/* The test itself took time, of the clock and of the CPU. */
		least = div_u64(used * 100, limits[i]) -
			(ktime_get_ns() - begin);
		most = div_u64(pksm_window_used * 100, limits[i]) - passed;
		KUNIT_EXPECT_GE(test, debt, max_t(s64, least, 0));
		KUNIT_EXPECT_LE(test, debt, max_t(s64, most, 0));
		KUNIT_EXPECT_GE(test, pksm_window_used, used);
	}
	pksm_test_restore_pace(old);
	pksm_test_end(test);
}

/**
 * pksm_test_pace_none - and who has not goes on
 * @test: the test
 */
void pksm_test_pace_none(struct kunit *test)
{
	const u64 second = NSEC_PER_SEC;
	struct pksm_test_pace old;
	u64 now;

	pksm_test_begin(test);
	old = pksm_test_save_pace();
	/* With the whole CPU there is nothing to pay. */
	pksm_test_window(100, 100 * second, second);
	KUNIT_EXPECT_EQ(test, pksm_pace_done(), 0);
	/* Nor later, when less is allowed. */
	WRITE_ONCE(pksm_max_cpu, 1);
	KUNIT_EXPECT_EQ(test, pksm_pace_done(), 0);

	/* A sleep ends a window only when it was long enough for what was done. */
	pksm_test_window(1, second, second);
	pksm_pace_slept();
	KUNIT_EXPECT_EQ(test, pksm_window_used, second);
	pksm_test_window(1, second, 101 * second);
	pksm_pace_slept();
	KUNIT_EXPECT_EQ(test, pksm_window_used, 0);

	/* Not for a little bit, unless that is worth a lot. */
	pksm_test_window(50, 0, 0);
	KUNIT_EXPECT_EQ(test, pksm_pace_done(), 0);
	pksm_test_window(1, PKSM_WINDOW_NSECS, 0);
	KUNIT_EXPECT_GT(test, pksm_pace_done(), 0);

	/* What has not been used is not saved up: a new window begins. */
	now = ktime_get_ns();
	pksm_test_window(50, second, 1000 * second);
	KUNIT_EXPECT_EQ(test, pksm_pace_done(), 0);
	KUNIT_EXPECT_GE(test, pksm_window_begin, now);
	KUNIT_EXPECT_EQ(test, pksm_window_used, 0);
	pksm_work_begin = pksm_cpu_clock() - 1000 * second;
	KUNIT_EXPECT_GT(test, pksm_pace_done(), second);
	pksm_test_restore_pace(old);
	pksm_test_end(test);
}

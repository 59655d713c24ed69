/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PKSM: unit tests of the queues. Included by queue.c.
 *
 * The records here are mostly dead ones: a queue does not tell them from others
 * before they are worked off, and then they are dropped without their page being
 * looked at.
 */
#include "pksm_test.h"

/* The queues of the engine, while a test has them. */
static struct pksm_queue pksm_test_hidden[PKSM_NR_LEVELS];

/**
 * pksm_test_hide_queues - give a test queues of its own, which are empty
 */
void pksm_test_hide_queues(void)
{
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	memcpy(pksm_test_hidden, pksm_queues, sizeof(pksm_queues));
	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		pksm_queues[level].filling = PKSM_END;
		pksm_queues[level].ripening = PKSM_END;
		pksm_queues[level].ripe = PKSM_END;
	}
}

/* Drop the dead of a chain, put the others into the queues. Returns their number. */
static unsigned int pksm_test_show_chain(u32 pfn)
{
	unsigned int alive = 0;

	while (pfn != PKSM_END) {
		struct pksm_rmap_item *item = pksm_item(pfn);
		u32 next = item->next;

		if (pksm_queue_settle(item)) {
			u32 state = READ_ONCE(item->state);

			pksm_queue_add(pfn, item, pksm_level(state),
				       pksm_age(state));
			alive++;
		}
		pfn = next;
	}
	return alive;
}

/**
 * pksm_test_show_queues - give the engine its queues back
 *
 * Return: How many records were left in those of the test, and are not dead.
 */
unsigned int pksm_test_show_queues(void)
{
	struct pksm_queue *left = pksm_test_hidden;
	unsigned int alive = 0;
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	for (level = 0; level < PKSM_NR_LEVELS; level++)
		swap(pksm_queues[level], left[level]);
	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		alive += pksm_test_show_chain(left[level].filling);
		alive += pksm_test_show_chain(left[level].ripening);
		alive += pksm_test_show_chain(left[level].ripe);
	}
	return alive;
}

/**
 * pksm_test_let_ripen - let the time of every queue come, once
 */
void pksm_test_let_ripen(void)
{
	bool turned;
	u32 level;

	for (level = 0; level < PKSM_NR_LEVELS; level++)
		pksm_queues[level].due = jiffies;
	pksm_queue_ripe(&turned);
}

#define PKSM_TEST_NOTHING	PKSM_TEST_PAGES
#define PKSM_TEST_STRANGER	(PKSM_TEST_PAGES + 1)

/* Which page of the test lies there? */
static unsigned int pksm_test_which(struct kunit *test, unsigned long pfn)
{
	unsigned int nr;

	for (nr = 0; nr < PKSM_TEST_PAGES; nr++) {
		if (pksm_test_pfn(test, nr) == pfn)
			return nr;
	}
	return PKSM_TEST_STRANGER;
}

/* Take the first ripe record, and drop it if it is dead. Returns whose it is. */
static unsigned int pksm_test_pop(struct kunit *test)
{
	struct pksm_rmap_item *item;
	unsigned long pfn;

	if (pksm_queue_pop(&pfn, &item) == PKSM_NR_LEVELS)
		return PKSM_TEST_NOTHING;
	pksm_queue_settle(item);
	return pksm_test_which(test, pfn);
}

/* Let the record of a page wait that is dead. */
static void pksm_test_wait(struct kunit *test, unsigned int nr, u32 level)
{
	struct pksm_test_env *env = test->priv;

	pksm_queue_add(pksm_test_pfn(test, nr), env->item[nr], level, 0);
}

/* A settle time in which no test comes to its end, and the one before. */
static unsigned int pksm_test_slow(void)
{
	unsigned int old = pksm_settle_millisecs;

	WRITE_ONCE(pksm_settle_millisecs, 1000 * MSEC_PER_SEC);
	return old;
}

/**
 * pksm_test_queue_interval - levels double the settle time, within bounds
 * @test: the test
 */
void pksm_test_queue_interval(struct kunit *test)
{
	static const unsigned int settle[] = { 0, 1, 10, 200, 1000, 3600000 };
	const unsigned long most = PKSM_MAX_INTERVAL * HZ;
	unsigned int i, old;
	u32 level;

	pksm_test_begin(test);
	old = pksm_settle_millisecs;
	for (i = 0; i < ARRAY_SIZE(settle); i++) {
		WRITE_ONCE(pksm_settle_millisecs, settle[i]);
		KUNIT_EXPECT_EQ(test, pksm_interval(0),
				min(msecs_to_jiffies(settle[i]), most));
		/* Who was put back waits, even if new pages do not. */
		KUNIT_EXPECT_GE(test, pksm_interval(1), 1);
		KUNIT_EXPECT_GE(test, pksm_interval(1),
				min(2 * pksm_interval(0), most));
		for (level = 2; level < PKSM_NR_LEVELS; level++)
			KUNIT_EXPECT_EQ_MSG(test, pksm_interval(level),
					    min(2 * pksm_interval(level - 1),
						most),
					    "level %u of %u ms", level,
					    settle[i]);
	}
	WRITE_ONCE(pksm_settle_millisecs, 100);
	KUNIT_EXPECT_EQ(test, pksm_interval(1),
			2 * PKSM_BACKOFF * pksm_interval(0));
	WRITE_ONCE(pksm_settle_millisecs, old);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_age_level - who has changed more often waits longer
 * @test: the test
 */
void pksm_test_queue_age_level(struct kunit *test)
{
	u32 age;

	KUNIT_EXPECT_GT(test, pksm_age_level(0), 0);
	for (age = 1; age <= PKSM_MAX_AGE; age++)
		KUNIT_EXPECT_GT(test, pksm_age_level(age),
				pksm_age_level(age - 1));
	KUNIT_EXPECT_LT(test, pksm_age_level(PKSM_MAX_AGE), PKSM_NR_LEVELS);
	KUNIT_EXPECT_EQ(test, pksm_age_level(PKSM_MAX_AGE + 1),
			pksm_age_level(PKSM_MAX_AGE));
}

/**
 * pksm_test_queue_turn - a page waits for one interval to two
 * @test: the test
 */
void pksm_test_queue_turn(struct kunit *test)
{
	unsigned int old;
	bool turned;

	pksm_test_begin(test);
	old = pksm_test_slow();
	KUNIT_EXPECT_FALSE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_FALSE(test, turned);

	/* The first starts the clock, and the second comes too late for it. */
	pksm_test_wait(test, 0, 0);
	pksm_test_wait(test, 1, 0);
	KUNIT_EXPECT_FALSE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_FALSE(test, turned);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), PKSM_TEST_NOTHING);

	pksm_queues[0].due = jiffies;
	KUNIT_EXPECT_TRUE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_TRUE(test, turned);
	KUNIT_EXPECT_TRUE(test, time_after(pksm_queues[0].due,
					   jiffies + pksm_interval(0) / 2));
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), PKSM_TEST_NOTHING);
	KUNIT_EXPECT_FALSE(test, pksm_queue_ripe(&turned));

	/* The third comes while the second waits. */
	pksm_test_wait(test, 2, 0);
	pksm_queues[0].due = jiffies;
	KUNIT_EXPECT_TRUE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 1);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), PKSM_TEST_NOTHING);
	pksm_queues[0].due = jiffies;
	KUNIT_EXPECT_TRUE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 2);
	KUNIT_EXPECT_FALSE(test, pksm_queue_ripe(&turned));
	WRITE_ONCE(pksm_settle_millisecs, old);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_ripe_first - a queue does not turn before its ripe pages are gone
 * @test: the test
 */
void pksm_test_queue_ripe_first(struct kunit *test)
{
	bool turned;

	pksm_test_begin(test);
	pksm_test_wait(test, 0, 0);
	pksm_test_wait(test, 1, 0);
	pksm_test_let_ripen();
	pksm_queues[0].due = jiffies;
	KUNIT_EXPECT_TRUE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_FALSE(test, turned);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 0);
	KUNIT_EXPECT_TRUE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_TRUE(test, turned);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 1);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_levels - each level has its own time, and low ones go first
 * @test: the test
 */
void pksm_test_queue_levels(struct kunit *test)
{
	static const u32 levels[] = { PKSM_NR_LEVELS - 1, 5, 0, 1 };
	unsigned int nr, old;
	bool turned;

	pksm_test_begin(test);
	old = pksm_test_slow();
	for (nr = 0; nr < ARRAY_SIZE(levels); nr++)
		pksm_test_wait(test, nr, levels[nr]);

	pksm_queues[5].due = jiffies;
	KUNIT_EXPECT_TRUE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 1);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), PKSM_TEST_NOTHING);

	pksm_test_let_ripen();
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 2);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 3);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), PKSM_TEST_NOTHING);
	WRITE_ONCE(pksm_settle_millisecs, old);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_timeout - pksmd may sleep until the next queue has its turn
 * @test: the test
 */
void pksm_test_queue_timeout(struct kunit *test)
{
	unsigned int old;

	pksm_test_begin(test);
	old = pksm_test_slow();
	KUNIT_EXPECT_EQ(test, pksm_queue_timeout(), MAX_SCHEDULE_TIMEOUT);
	pksm_test_wait(test, 0, 1);
	KUNIT_EXPECT_LE(test, pksm_queue_timeout(), pksm_interval(1));
	KUNIT_EXPECT_GT(test, pksm_queue_timeout(), pksm_interval(1) * 3 / 4);
	pksm_test_wait(test, 1, 0);
	KUNIT_EXPECT_LE(test, pksm_queue_timeout(), pksm_interval(0));
	KUNIT_EXPECT_GT(test, pksm_queue_timeout(), pksm_interval(0) / 2);
	/* Late already: but never 0, which would not be a sleep. */
	pksm_queues[0].due = jiffies - 100;
	KUNIT_EXPECT_EQ(test, pksm_queue_timeout(), 1);
	/* What is ripe does not wait any more. */
	pksm_test_let_ripen();
	KUNIT_EXPECT_EQ(test, pksm_queue_timeout(), MAX_SCHEDULE_TIMEOUT);
	WRITE_ONCE(pksm_settle_millisecs, old);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_restart - a new settle time holds for those that wait already
 * @test: the test
 */
void pksm_test_queue_restart(struct kunit *test)
{
	unsigned int old;

	pksm_test_begin(test);
	old = pksm_test_slow();
	pksm_test_wait(test, 0, 0);
	WRITE_ONCE(pksm_settle_millisecs, 0);
	pksm_queue_restart();
	KUNIT_EXPECT_EQ(test, pksm_queue_timeout(), 1);
	pksm_test_slow();
	pksm_queue_restart();
	KUNIT_EXPECT_GT(test, pksm_queue_timeout(), pksm_interval(0) / 2);
	WRITE_ONCE(pksm_settle_millisecs, old);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_collect - what the fault path hands in is taken over whole
 * @test: the test
 */
void pksm_test_queue_collect(struct kunit *test)
{
	unsigned int nr, seen = 0, popped, old;

	pksm_test_begin(test);
	old = pksm_test_slow();
	/* Into an empty chain, into another, and in front of what is there. */
	for (nr = 0; nr < PKSM_TEST_PAGES; nr++) {
		pksm_test_born(test, nr);
		if (nr == 0 || nr == 2 || nr == 5)
			pksm_queue_collect();
	}
	pksm_queue_collect();
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_intake_pending());
	for (nr = 0; nr < PKSM_TEST_PAGES; nr++)
		pksm_test_gone(test, nr);

	pksm_test_let_ripen();
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), PKSM_TEST_NOTHING);
	pksm_test_let_ripen();
	/* A chain that came back to itself would go on for ever. */
	for (nr = 1; nr < 2 * PKSM_TEST_PAGES; nr++) {
		popped = pksm_test_pop(test);
		if (popped == PKSM_TEST_NOTHING)
			break;
		KUNIT_EXPECT_FALSE(test, seen & BIT(popped));
		seen |= BIT(popped);
	}
	if (pksm_test_alone())
		KUNIT_EXPECT_EQ(test, seen, GENMASK(PKSM_TEST_PAGES - 1, 1));
	WRITE_ONCE(pksm_settle_millisecs, old);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_budget - no more records are looked at than allowed
 * @test: the test
 */
void pksm_test_queue_budget(struct kunit *test)
{
	unsigned int nr, left, budget;
	bool turned;

	pksm_test_begin(test);
	for (nr = 0; nr < PKSM_TEST_PAGES; nr++)
		pksm_test_wait(test, nr, nr % 2);
	pksm_test_let_ripen();
	for (left = 2; left; left--) {
		for (budget = 0; budget < 2; budget++) {
			pksm_queue_run(budget);
			KUNIT_EXPECT_EQ(test, pksm_queue_ripe(&turned),
					left > 1 || !budget);
		}
	}
	pksm_test_end(test);
}

/**
 * pksm_test_queue_busy - a page that cannot be had goes a level up, and no further
 * @test: the test
 */
void pksm_test_queue_busy(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	unsigned long scanned;
	u32 tries, state;

	pksm_test_begin(test);
	scanned = pksm_nr_event(PKSM_EVENT_SCANNED);
	pksm_test_born(test, 0);
	pksm_queue_collect();
	KUNIT_EXPECT_TRUE(test, trylock_page(env->page[0]));
	for (tries = 1; tries < PKSM_NR_LEVELS + 3; tries++) {
		pksm_test_let_ripen();
		pksm_queue_run(1);
		state = pksm_test_state(test, 0);
		KUNIT_EXPECT_EQ(test, pksm_where(state), PKSM_LIST);
		KUNIT_EXPECT_EQ(test, pksm_level(state),
				min(tries, PKSM_NR_LEVELS - 1));
		KUNIT_EXPECT_EQ(test, pksm_age(state), 0);
	}
	unlock_page(env->page[0]);
	KUNIT_EXPECT_EQ(test, page_count(env->page[0]), 1);
	KUNIT_EXPECT_EQ(test, pksm_nr_event(PKSM_EVENT_SCANNED), scanned);
	pksm_test_gone(test, 0);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_changed - a page that had changed waits as is due to its age
 * @test: the test
 */
void pksm_test_queue_changed(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	u32 age, state;

	pksm_test_begin(test);
	pksm_test_born(test, 0);
	pksm_queue_collect();
	for (age = 1; age < PKSM_MAX_AGE + 4; age++) {
		pksm_test_let_ripen();
		KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 0);
		pksm_queue_changed(pksm_test_pfn(test, 0), env->item[0], age);
		state = pksm_test_state(test, 0);
		KUNIT_EXPECT_EQ(test, pksm_age(state), min(age, PKSM_MAX_AGE));
		KUNIT_EXPECT_EQ(test, pksm_level(state), pksm_age_level(age));
	}
	/* Popped, and given up: nothing has it any more. */
	pksm_test_let_ripen();
	KUNIT_EXPECT_EQ(test, pksm_test_pop(test), 0);
	pksm_queue_drop(env->page[0], env->item[0]);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), 0);
	KUNIT_EXPECT_FALSE(test, PagePKSM(env->page[0]));

	/* What is dead has no age. */
	pksm_queue_changed(pksm_test_pfn(test, 1), env->item[1], 2);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 1), PKSM_LIST);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_broken_off - the new list leads to the level of the page
 * @test: the test
 */
void pksm_test_queue_broken_off(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	unsigned int old;
	bool turned;
	u32 level;

	pksm_test_begin(test);
	old = pksm_test_slow();
	__pksm_add_broken_off(env->page[0], env->item[0]);
	level = pksm_level(pksm_test_state(test, 0));
	pksm_queue_collect();
	/* If it were looked at, it would be busy, and go up. */
	KUNIT_EXPECT_TRUE(test, trylock_page(env->page[0]));
	pksm_test_let_ripen();
	pksm_queue_run(UINT_MAX);
	KUNIT_EXPECT_EQ(test, pksm_level(pksm_test_state(test, 0)), level);
	KUNIT_EXPECT_FALSE(test, pksm_queue_ripe(&turned));
	KUNIT_EXPECT_GT(test, pksm_queue_timeout(), pksm_interval(level) / 2);
	pksm_test_let_ripen();
	pksm_queue_run(UINT_MAX);
	KUNIT_EXPECT_EQ(test, pksm_level(pksm_test_state(test, 0)), level + 1);
	unlock_page(env->page[0]);
	pksm_test_gone(test, 0);
	WRITE_ONCE(pksm_settle_millisecs, old);
	pksm_test_end(test);
}

/**
 * pksm_test_queue_forget_all - no page is tracked afterwards
 * @test: the test
 */
void pksm_test_queue_forget_all(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	unsigned int nr;

	if (!pksm_test_alone())
		kunit_skip(test, "would forget the pages of others");
	pksm_test_begin(test);
	/* One is ripe, one ripens, one has just come, and two are dead. */
	for (nr = 0; nr < 3; nr++) {
		pksm_test_born(test, nr);
		if (nr < 2)
			pksm_queue_collect();
		if (nr == 0)
			pksm_test_let_ripen();
	}
	pksm_test_wait(test, 3, PKSM_NR_LEVELS - 1);
	pksm_test_born(test, 4);
	pksm_test_gone(test, 4);
	pksm_queue_forget_all();
	for (nr = 0; nr < PKSM_TEST_PAGES; nr++) {
		KUNIT_EXPECT_EQ(test, pksm_test_state(test, nr), 0);
		KUNIT_EXPECT_FALSE(test, PagePKSM(env->page[nr]));
		KUNIT_EXPECT_EQ(test, page_count(env->page[nr]), 1);
	}
	KUNIT_EXPECT_EQ(test, pksm_queue_timeout(), MAX_SCHEDULE_TIMEOUT);
	pksm_test_end(test);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: unit tests of the life of a record, and of the counters that go with it.
 */
#include <linux/irqflags.h>
#include <linux/string.h>

#include "pksm_test.h"

/* What a record may be, and as what its page is counted. */
static const struct pksm_test_kind {
	const char *name;
	u32 state;
	enum pksm_class class;
} pksm_test_kinds[] = {
	{ "untracked", PKSM_NONE, PKSM_CLASS_UNTRACKED },
	{ "dead in a list", PKSM_LIST, PKSM_CLASS_UNTRACKED },
	{ "dead in the index", PKSM_INDEX, PKSM_CLASS_UNTRACKED },
	{ "in work", PKSM_LIVE, PKSM_CLASS_NEW },
	{ "new", PKSM_LIVE | PKSM_LIST, PKSM_CLASS_NEW },
	{ "put back", PKSM_LIVE | PKSM_LIST | 1 << PKSM_LEVEL_SHIFT,
	  PKSM_CLASS_VOLATILE },
	{ "put back often", PKSM_LIVE | PKSM_LIST |
	  (PKSM_NR_LEVELS - 1) << PKSM_LEVEL_SHIFT, PKSM_CLASS_VOLATILE },
	{ "hashed", PKSM_LIVE | PKSM_INDEX, PKSM_CLASS_UNSHARED },
	{ "hashed, every bit of it", PKSM_LIVE | PKSM_INDEX |
	  GENMASK(31, PKSM_HASH_SHIFT), PKSM_CLASS_UNSHARED },
	{ "watched", PKSM_LIVE | PKSM_INDEX | PKSM_WATCHED,
	  PKSM_CLASS_WATCHED },
	{ "written to", PKSM_LIVE | PKSM_INDEX | PKSM_WATCHED | PKSM_REBORN,
	  PKSM_CLASS_VOLATILE },
	{ "born again in the index", PKSM_LIVE | PKSM_INDEX | PKSM_REBORN,
	  PKSM_CLASS_NEW },
	{ "stable", PKSM_LIVE | PKSM_STABLE, PKSM_CLASS_SHARED },
	{ "stable, linked in a list", PKSM_LIVE | PKSM_STABLE | PKSM_LIST,
	  PKSM_CLASS_SHARED },
	{ "stable, linked in the index", PKSM_LIVE | PKSM_STABLE | PKSM_INDEX |
	  PKSM_REBORN, PKSM_CLASS_SHARED },
};

/* What pksm_item_set() does to the counters. Nobody else changes this CPU's. */
static bool pksm_test_set(struct pksm_rmap_item *item, u32 old, u32 new,
			  long *change)
{
	enum pksm_class class;
	unsigned long flags;
	bool done;

	local_irq_save(flags);
	for (class = 0; class < NR_PKSM_CLASSES; class++)
		change[class] = -this_cpu_read(pksm_cpu.nr[class]);
	done = pksm_item_set(item, old, new);
	for (class = 0; class < NR_PKSM_CLASSES; class++)
		change[class] += this_cpu_read(pksm_cpu.nr[class]);
	local_irq_restore(flags);
	return done;
}

/* One transition, of a record that belongs to no page. */
static void pksm_test_transition(struct kunit *test,
				 const struct pksm_test_kind *from,
				 const struct pksm_test_kind *to)
{
	struct pksm_rmap_item item = { .state = from->state, .next = PKSM_END };
	long change[NR_PKSM_CLASSES];
	enum pksm_class class;

	KUNIT_EXPECT_TRUE(test, pksm_test_set(&item, from->state, to->state,
					      change));
	KUNIT_EXPECT_EQ(test, item.state, to->state);
	KUNIT_EXPECT_EQ(test, item.next, PKSM_END);
	for (class = PKSM_CLASS_NEW; class < NR_PKSM_CLASSES; class++)
		KUNIT_EXPECT_EQ_MSG(test, change[class],
				    (class == to->class) -
				    (class == from->class),
				    "from '%s' to '%s': class %d",
				    from->name, to->name, class);
	/* As it was before. */
	pksm_item_set(&item, to->state, from->state);
}

/**
 * pksm_test_state_classes - a page is counted as what its record says
 * @test: the test
 */
void pksm_test_state_classes(struct kunit *test)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pksm_test_kinds); i++) {
		pksm_test_transition(test, &pksm_test_kinds[0],
				     &pksm_test_kinds[i]);
		pksm_test_transition(test, &pksm_test_kinds[i],
				     &pksm_test_kinds[0]);
	}
}

/**
 * pksm_test_state_transitions - every transition moves one page, or none
 * @test: the test
 */
void pksm_test_state_transitions(struct kunit *test)
{
	unsigned int i, j;

	for (i = 0; i < ARRAY_SIZE(pksm_test_kinds); i++) {
		for (j = 0; j < ARRAY_SIZE(pksm_test_kinds); j++)
			pksm_test_transition(test, &pksm_test_kinds[i],
					     &pksm_test_kinds[j]);
	}
}

/**
 * pksm_test_state_lost_race - somebody else was first: nothing happens
 * @test: the test
 */
void pksm_test_state_lost_race(struct kunit *test)
{
	struct pksm_rmap_item item = { .state = PKSM_LIST, .next = 7 };
	long change[NR_PKSM_CLASSES];
	enum pksm_class class;

	KUNIT_EXPECT_FALSE(test, pksm_test_set(&item, PKSM_LIVE | PKSM_LIST,
					       PKSM_LIVE, change));
	KUNIT_EXPECT_EQ(test, item.state, PKSM_LIST);
	KUNIT_EXPECT_EQ(test, item.next, 7);
	for (class = PKSM_CLASS_NEW; class < NR_PKSM_CLASSES; class++)
		KUNIT_EXPECT_EQ(test, change[class], 0);
}

#define PKSM_TEST_ALIVE_IN_LIST	(PKSM_LIVE | PKSM_LIST)
#define pksm_test_life_of(_state)					\
	((_state) & (PKSM_LIVE | PKSM_STABLE | PKSM_WHERE_MASK))

/**
 * pksm_test_state_birth - a page is born, and goes before it is looked at
 * @test: the test
 */
void pksm_test_state_birth(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	u32 state;

	pksm_test_begin(test);
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_intake_pending());
	pksm_test_born(test, 0);
	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(state),
			PKSM_TEST_ALIVE_IN_LIST);
	KUNIT_EXPECT_EQ(test, pksm_level(state), 0);
	KUNIT_EXPECT_EQ(test, pksm_age(state), 0);
	KUNIT_EXPECT_TRUE(test, PagePKSM(env->page[0]));
	KUNIT_EXPECT_TRUE(test, pksm_intake_pending());

	pksm_test_gone(test, 0);
	KUNIT_EXPECT_FALSE(test, PagePKSM(env->page[0]));
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(pksm_test_state(test, 0)),
			PKSM_LIST);

	/* pksmd drops it when it gets there. */
	pksm_queue_collect();
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_intake_pending());
	pksm_test_let_ripen();
	pksm_queue_run(UINT_MAX);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), 0);
	pksm_test_end(test);
}

/**
 * pksm_test_state_real_free - the page allocator tells the engine
 * @test: the test
 */
void pksm_test_state_real_free(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	struct page *page = env->page[0];
	u32 state;

	pksm_test_begin(test);
	pksm_test_born(test, 0);
	env->page[0] = NULL;
	__free_page(page);
	/* Another CPU may have taken the page since, and made it another's. */
	state = pksm_test_state(test, 0);
	if (pksm_test_alone())
		KUNIT_EXPECT_EQ(test, pksm_test_life_of(state), PKSM_LIST);
	pksm_test_end(test);
}

/**
 * pksm_test_state_rebirth_in_list - a page that comes back is not linked twice
 * @test: the test
 */
void pksm_test_state_rebirth_in_list(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	u32 state;

	pksm_test_begin(test);
	pksm_test_born(test, 0);
	pksm_queue_collect();
	pksm_test_gone(test, 0);
	pksm_test_born(test, 0);
	/* It is where it was, and new. */
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_intake_pending());
	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(state),
			PKSM_TEST_ALIVE_IN_LIST);
	pksm_test_gone(test, 0);
	pksm_test_let_ripen();
	pksm_queue_run(1);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), 0);

	/* Of its former life nothing is left, neither level nor age. */
	SetPagePKSM(env->page[1]);
	pksm_item_set(env->item[1], 0, PKSM_LIVE);
	pksm_queue_add(pksm_test_pfn(test, 1), env->item[1], 3, PKSM_MAX_AGE);
	pksm_test_gone(test, 1);
	pksm_test_born(test, 1);
	state = pksm_test_state(test, 1);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(state),
			PKSM_TEST_ALIVE_IN_LIST);
	KUNIT_EXPECT_EQ(test, pksm_level(state), 0);
	KUNIT_EXPECT_EQ(test, pksm_age(state), 0);
	pksm_test_gone(test, 1);
	pksm_test_end(test);
}

/**
 * pksm_test_state_rebirth_in_index - nobody takes it for the page that was hashed
 * @test: the test
 */
void pksm_test_state_rebirth_in_index(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	const u64 hash = PKSM_TEST_HASH;
	unsigned long pfn = pksm_test_pfn(test, 0);
	u32 state;

	pksm_test_begin(test);
	pksm_unstable_insert(pfn, env->item[0], hash, 2);
	pksm_test_gone(test, 0);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(pksm_test_state(test, 0)),
			PKSM_INDEX);
	pksm_test_born(test, 0);
	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(state), PKSM_LIVE | PKSM_INDEX);
	KUNIT_EXPECT_TRUE(test, state & PKSM_REBORN);
	KUNIT_EXPECT_EQ(test, pksm_age(state), 0);
	KUNIT_EXPECT_FALSE(test, pksm_unstable_holds(state, hash));
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_intake_pending());

	/* It dies and is born once more before anybody comes by. */
	pksm_test_gone(test, 0);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(pksm_test_state(test, 0)),
			PKSM_INDEX);
	pksm_test_born(test, 0);

	/* Whoever meets it puts it where new pages wait. */
	KUNIT_EXPECT_NE(test, pksm_unstable_next(hash, PKSM_END), pfn);
	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(state),
			PKSM_TEST_ALIVE_IN_LIST);
	KUNIT_EXPECT_EQ(test, pksm_level(state), 0);
	pksm_test_gone(test, 0);
	pksm_test_end(test);
}

/**
 * pksm_test_state_broken_off - the copy of a merged page waits longer
 * @test: the test
 */
void pksm_test_state_broken_off(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	unsigned int nr;
	u32 state;

	pksm_test_begin(test);
	/* The record of the second is linked still. */
	pksm_queue_add(pksm_test_pfn(test, 1), env->item[1], 0, 0);
	for (nr = 0; nr < 2; nr++) {
		__pksm_add_broken_off(env->page[nr], env->item[nr]);
		state = pksm_test_state(test, nr);
		KUNIT_EXPECT_EQ(test, pksm_test_life_of(state),
				PKSM_TEST_ALIVE_IN_LIST);
		KUNIT_EXPECT_GT(test, pksm_level(state), 0);
		KUNIT_EXPECT_GT(test, pksm_age(state), 0);
		KUNIT_EXPECT_TRUE(test, PagePKSM(env->page[nr]));
		pksm_test_gone(test, nr);
	}
	pksm_test_end(test);
}

/**
 * pksm_test_state_forget - a page that is given up is dead to the engine
 * @test: the test
 */
void pksm_test_state_forget(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;

	pksm_test_begin(test);
	pksm_test_born(test, 0);
	pksm_forget(env->page[0], env->item[0]);
	KUNIT_EXPECT_FALSE(test, PagePKSM(env->page[0]));
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(pksm_test_state(test, 0)),
			PKSM_LIST);
	/* It may be taken in again, and is where it was. */
	pksm_add_moved_page(env->page[0], env->item[0], false, 0);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(pksm_test_state(test, 0)),
			PKSM_TEST_ALIVE_IN_LIST);
	pksm_queue_collect();
	pksm_test_let_ripen();
	pksm_test_gone(test, 0);
	pksm_queue_run(UINT_MAX);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), 0);
	pksm_test_end(test);
}

/**
 * pksm_test_state_watched - a write to a watched page is told, once
 * @test: the test
 */
void pksm_test_state_watched(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	const u64 hash = PKSM_TEST_HASH;
	unsigned long pfn = pksm_test_pfn(test, 0);
	u32 state;

	pksm_test_begin(test);
	SetPagePKSM(env->page[0]);
	pksm_unstable_insert(pfn, env->item[0], hash, 1);
	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_FALSE(test, __pksm_page_watched(env->page[0]));
	__pksm_page_written(env->page[0]);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), state);

	pksm_item_set(env->item[0], state, state | PKSM_WATCHED);
	KUNIT_EXPECT_TRUE(test, __pksm_page_watched(env->page[0]));
	KUNIT_EXPECT_TRUE(test, pksm_unstable_holds(pksm_test_state(test, 0),
						    hash));
	__pksm_page_written(env->page[0]);
	KUNIT_EXPECT_FALSE(test, __pksm_page_watched(env->page[0]));
	KUNIT_EXPECT_FALSE(test, pksm_unstable_holds(pksm_test_state(test, 0),
						     hash));
	KUNIT_EXPECT_TRUE(test, PagePKSM(env->page[0]));
	state = pksm_test_state(test, 0);
	__pksm_page_written(env->page[0]);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), state);

	/* It goes back to a queue, as old as it was. */
	KUNIT_EXPECT_TRUE(test, pksm_unstable_dead());
	pksm_unstable_reap();
	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_EQ(test, pksm_test_life_of(state),
			PKSM_TEST_ALIVE_IN_LIST);
	KUNIT_EXPECT_EQ(test, pksm_age(state), 1);
	KUNIT_EXPECT_EQ(test, pksm_level(state), pksm_age_level(1));
	pksm_test_gone(test, 0);
	pksm_test_end(test);
}

/**
 * pksm_test_state_stable_moves_in - migration brings a merged page
 * @test: the test
 */
void pksm_test_state_stable_moves_in(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	const u64 hash = PKSM_TEST_HASH;
	unsigned int nr;

	pksm_test_begin(test);
	/* The records of the second and third are linked from a former life. */
	pksm_queue_add(pksm_test_pfn(test, 1), env->item[1], 0, 0);
	pksm_unstable_insert(pksm_test_pfn(test, 2), env->item[2], hash, 0);
	pksm_test_gone(test, 2);
	for (nr = 0; nr < 3; nr++)
		pksm_add_moved_page(env->page[nr], env->item[nr], true, 0);
	/* It is not new. */
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_intake_pending());
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), PKSM_LIVE | PKSM_STABLE);

	/* Whoever meets the others leaves them alone. */
	pksm_test_let_ripen();
	pksm_queue_run(UINT_MAX);
	pksm_unstable_reap();
	for (nr = 0; nr < 3; nr++) {
		KUNIT_EXPECT_EQ_MSG(test, pksm_test_state(test, nr),
				    PKSM_LIVE | PKSM_STABLE, "page %u", nr);
		KUNIT_EXPECT_TRUE(test, PagePKSM(env->page[nr]));
		pksm_test_gone(test, nr);
		KUNIT_EXPECT_EQ(test, pksm_test_state(test, nr), 0);
	}
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_dead_nodes_pending());
	pksm_test_end(test);
}

/**
 * pksm_test_state_get_tracked - a reference on a page that is tracked, or none
 * @test: the test
 */
void pksm_test_state_get_tracked(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	unsigned long pfn = pksm_test_pfn(test, 0);
	struct folio *folio;

	pksm_test_begin(test);
	KUNIT_EXPECT_PTR_EQ(test, pksm_get_tracked(pfn), NULL);
	KUNIT_EXPECT_EQ(test, page_count(env->page[0]), 1);
	pksm_test_born(test, 0);
	folio = pksm_get_tracked(pfn);
	KUNIT_EXPECT_PTR_EQ(test, folio, page_folio(env->page[0]));
	KUNIT_EXPECT_EQ(test, page_count(env->page[0]), 2);
	if (folio)
		folio_put(folio);
	pksm_test_gone(test, 0);
	KUNIT_EXPECT_PTR_EQ(test, pksm_get_tracked(pfn), NULL);
	KUNIT_EXPECT_EQ(test, page_count(env->page[0]), 1);
	pksm_test_end(test);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: unit tests of the unstable index.
 *
 * The index is that of the engine, and may hold pages of others: those are passed
 * over.
 */
#include <linux/string.h>

#include "pksm_test.h"

/* === what a record keeps of a hash === */

/**
 * pksm_test_hash_alike - a record keeps the high bits of a hash
 * @test: the test
 */
void pksm_test_hash_alike(struct kunit *test)
{
	unsigned int bit;

	for (bit = 0; bit < 64; bit++)
		KUNIT_EXPECT_EQ_MSG(test,
				    pksm_hash_alike(PKSM_TEST_HASH,
						    PKSM_TEST_HASH ^
						    BIT_ULL(bit)),
				    bit < 64 - PKSM_HASH_BITS, "bit %u", bit);
	KUNIT_EXPECT_TRUE(test, pksm_hash_alike(PKSM_TEST_HASH,
						PKSM_TEST_HASH));
}

/* === the unstable index === */

static void pksm_test_insert(struct kunit *test, unsigned int nr, u64 hash)
{
	struct pksm_test_env *env = test->priv;

	pksm_unstable_insert(pksm_test_pfn(test, nr), env->item[nr], hash, 0);
}

/* The bit of a page of the test; 0 for the page of somebody else. */
static unsigned int pksm_test_bit(struct kunit *test, unsigned long pfn)
{
	unsigned int nr;

	for (nr = 0; nr < PKSM_TEST_PAGES; nr++) {
		if (pksm_test_pfn(test, nr) == pfn)
			return BIT(nr);
	}
	return 0;
}

/* The pages of the test that are found by a hash, each of them once. */
static unsigned int pksm_test_find(struct kunit *test, u64 hash)
{
	unsigned long pfn = PKSM_END;
	unsigned int found = 0, bit;

	while ((pfn = pksm_unstable_next(hash, pfn)) != PKSM_END) {
		bit = pksm_test_bit(test, pfn);
		KUNIT_EXPECT_FALSE(test, found & bit);
		if (found & bit)
			break;
		found |= bit;
	}
	return found;
}

/**
 * pksm_test_unstable_find - a page is found by its hash, and by no other
 * @test: the test
 */
void pksm_test_unstable_find(struct kunit *test)
{
	u32 state;

	pksm_test_begin(test);
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH), 0);
	pksm_test_insert(test, 0, PKSM_TEST_HASH);
	pksm_test_insert(test, 1, PKSM_TEST_HASH_NEAR);
	pksm_test_insert(test, 2, PKSM_TEST_HASH_FAR);
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH), BIT(0));
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH_ALIKE),
			BIT(0));
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH_NEAR),
			BIT(1));
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH_FAR), BIT(2));

	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_TRUE(test, state & PKSM_LIVE);
	KUNIT_EXPECT_EQ(test, pksm_where(state), PKSM_INDEX);
	KUNIT_EXPECT_FALSE(test, state & (PKSM_REBORN | PKSM_WATCHED));
	pksm_test_gone(test, 0);
	pksm_test_gone(test, 1);
	pksm_test_gone(test, 2);
	pksm_test_end(test);
}

/**
 * pksm_test_unstable_unlink - a page goes, whatever its place in the bucket
 * @test: the test
 */
void pksm_test_unstable_unlink(struct kunit *test)
{
	static const unsigned int order[] = { 2, 4, 0, 1, 3 };
	struct pksm_test_env *env = test->priv;
	unsigned int i, nr, left = 0;

	pksm_test_begin(test);
	for (nr = 0; nr < ARRAY_SIZE(order); nr++) {
		pksm_test_insert(test, nr, PKSM_TEST_HASH);
		left |= BIT(nr);
	}
	/* From the middle, from the one end and from the other. */
	for (i = 0; i < ARRAY_SIZE(order); i++) {
		nr = order[i];
		pksm_unstable_unlink(pksm_test_pfn(test, nr), env->item[nr]);
		/* Its state is the business of whoever took it out. */
		pksm_item_set(env->item[nr], pksm_test_state(test, nr),
			      PKSM_NONE);
		left &= ~BIT(nr);
		KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH),
				left);
	}
	pksm_test_end(test);
}

/**
 * pksm_test_unstable_equal_hashes - no page locks another with its hash out
 * @test: the test
 */
void pksm_test_unstable_equal_hashes(struct kunit *test)
{
	unsigned int nr;

	pksm_test_begin(test);
	for (nr = 0; nr < 3; nr++)
		pksm_test_insert(test, nr, PKSM_TEST_HASH);
	pksm_test_insert(test, 3, PKSM_TEST_HASH_NEAR);
	pksm_test_insert(test, 4, PKSM_TEST_HASH_ALIKE);
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH),
			BIT(0) | BIT(1) | BIT(2) | BIT(4));
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH_NEAR),
			BIT(3));
	for (nr = 0; nr < 5; nr++)
		pksm_test_gone(test, nr);
	pksm_test_end(test);
}

/**
 * pksm_test_unstable_walk_drops_dead - a walk passes over what is dead, and drops it
 * @test: the test
 */
void pksm_test_unstable_walk_drops_dead(struct kunit *test)
{
	unsigned int nr;

	pksm_test_begin(test);
	for (nr = 0; nr < 6; nr++)
		pksm_test_insert(test, nr, PKSM_TEST_HASH);
	/* Both ends, and two in the middle that are neighbours. */
	pksm_test_gone(test, 0);
	pksm_test_gone(test, 2);
	pksm_test_gone(test, 3);
	pksm_test_gone(test, 5);
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH),
			BIT(1) | BIT(4));
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 2), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 3), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 5), 0);
	pksm_test_gone(test, 1);
	pksm_test_gone(test, 4);
	pksm_test_end(test);
}

/**
 * pksm_test_unstable_reap - what died is found by the marks that it left
 * @test: the test
 */
void pksm_test_unstable_reap(struct kunit *test)
{
	u32 state;

	pksm_test_begin(test);
	pksm_test_insert(test, 0, PKSM_TEST_HASH);
	pksm_test_insert(test, 1, PKSM_TEST_HASH);
	pksm_test_insert(test, 2, PKSM_TEST_HASH_FAR);
	pksm_test_insert(test, 3, PKSM_TEST_HASH_FAR);
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_unstable_dead());
	pksm_test_gone(test, 0);
	pksm_test_gone(test, 3);
	KUNIT_EXPECT_TRUE(test, pksm_unstable_dead());
	pksm_unstable_reap();
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_unstable_dead());
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 3), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH), BIT(1));
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH_FAR), BIT(2));

	/* The same bucket once more. */
	pksm_test_gone(test, 1);
	KUNIT_EXPECT_TRUE(test, pksm_unstable_dead());
	pksm_unstable_reap();
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 1), 0);

	/* A mark without a death does no harm; only the first wakes pksmd. */
	state = pksm_test_state(test, 2);
	if (pksm_test_alone())
		KUNIT_EXPECT_TRUE(test, pksm_unstable_note_dead(state));
	KUNIT_EXPECT_FALSE(test, pksm_unstable_note_dead(state));
	pksm_unstable_reap();
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 2), state);
	pksm_test_gone(test, 2);
	pksm_test_end(test);
}

/**
 * pksm_test_unstable_reap_reborn - who was born again goes where new pages wait
 * @test: the test
 */
void pksm_test_unstable_reap_reborn(struct kunit *test)
{
	u32 state;

	pksm_test_begin(test);
	pksm_test_insert(test, 0, PKSM_TEST_HASH);
	pksm_test_insert(test, 1, PKSM_TEST_HASH);
	pksm_test_gone(test, 0);
	pksm_test_gone(test, 1);
	pksm_test_born(test, 0);
	pksm_unstable_reap();
	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_TRUE(test, state & PKSM_LIVE);
	KUNIT_EXPECT_EQ(test, pksm_where(state), PKSM_LIST);
	KUNIT_EXPECT_EQ(test, pksm_level(state), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 1), 0);

	/* It waits in a queue, and comes out of it. */
	pksm_test_gone(test, 0);
	pksm_test_let_ripen();
	pksm_queue_run(1);
	KUNIT_EXPECT_EQ(test, pksm_test_state(test, 0), 0);
	pksm_test_end(test);
}

/* The pages of the test that a pass would look at. */
static unsigned int pksm_test_unwatched(struct kunit *test)
{
	unsigned int found = 0, nr;

	for (nr = 0; nr < PKSM_TEST_PAGES; nr++) {
		if (pksm_unstable_unwatched(pksm_test_state(test, nr)))
			found |= BIT(nr);
	}
	return found;
}

/**
 * pksm_test_unstable_unwatched - a pass looks at each page that is not watched
 * @test: the test
 */
void pksm_test_unstable_unwatched(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	unsigned int nr;
	u32 state;

	pksm_test_begin(test);
	for (nr = 0; nr < 3; nr++)
		pksm_test_insert(test, nr, PKSM_TEST_HASH);
	pksm_test_insert(test, 3, PKSM_TEST_HASH_NEAR);
	pksm_test_insert(test, 4, PKSM_TEST_HASH_FAR);
	KUNIT_EXPECT_EQ(test, pksm_test_unwatched(test), GENMASK(4, 0));
	state = pksm_test_state(test, 1);
	pksm_item_set(env->item[1], state, state | PKSM_WATCHED);
	KUNIT_EXPECT_EQ(test, pksm_test_unwatched(test),
			GENMASK(4, 0) & ~BIT(1));
	/* Others still find it. */
	KUNIT_EXPECT_EQ(test, pksm_test_find(test, PKSM_TEST_HASH),
			GENMASK(2, 0));
	pksm_test_gone(test, 3);
	KUNIT_EXPECT_EQ(test, pksm_test_unwatched(test),
			BIT(0) | BIT(2) | BIT(4));
	pksm_test_gone(test, 0);
	pksm_test_gone(test, 1);
	pksm_test_gone(test, 2);
	pksm_test_gone(test, 4);
	pksm_test_end(test);
}

/**
 * pksm_test_unstable_holds - is a page still in the index as what it was hashed?
 * @test: the test
 */
void pksm_test_unstable_holds(struct kunit *test)
{
	u32 state;

	pksm_test_begin(test);
	pksm_test_insert(test, 0, PKSM_TEST_HASH);
	state = pksm_test_state(test, 0);
	KUNIT_EXPECT_TRUE(test, pksm_unstable_holds(state, PKSM_TEST_HASH));
	KUNIT_EXPECT_TRUE(test, pksm_unstable_holds(state | PKSM_WATCHED,
						    PKSM_TEST_HASH));
	KUNIT_EXPECT_FALSE(test, pksm_unstable_holds(state,
						     PKSM_TEST_HASH_NEAR));
	KUNIT_EXPECT_FALSE(test, pksm_unstable_holds(state | PKSM_REBORN,
						     PKSM_TEST_HASH));
	pksm_test_gone(test, 0);
	KUNIT_EXPECT_FALSE(test, pksm_unstable_holds(pksm_test_state(test, 0),
						     PKSM_TEST_HASH));
	pksm_test_end(test);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: unit tests of sets of buckets.
 */
#include <linux/string.h>

#include "pksm_test.h"

/* Of pksm_test_visit(): it has no argument for them. */
static struct pksm_marks pksm_test_marked;
static unsigned int pksm_test_visits[BIT(13)];
static unsigned long pksm_test_more = ULONG_MAX;

static void pksm_test_visit(unsigned long bucket)
{
	pksm_test_visits[bucket]++;
	/* While the set is emptied, somebody adds to it. */
	if (pksm_test_more != ULONG_MAX) {
		pksm_mark(&pksm_test_marked, pksm_test_more);
		pksm_test_more = ULONG_MAX;
	}
}

static unsigned int pksm_test_empty(unsigned int bits)
{
	unsigned int i, sum = 0;

	memset(pksm_test_visits, 0, sizeof(pksm_test_visits));
	pksm_marks_for_each(&pksm_test_marked, bits, pksm_test_visit);
	for (i = 0; i < ARRAY_SIZE(pksm_test_visits); i++)
		sum += pksm_test_visits[i];
	return sum;
}

static void pksm_test_marks_of_size(struct kunit *test, unsigned int bits)
{
	const unsigned long last = BIT(bits) - 1;
	const unsigned long buckets[] = { last / 2, 0, last, last / 3 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(buckets); i++)
		KUNIT_EXPECT_EQ(test, pksm_mark(&pksm_test_marked, buckets[i]),
				i == 0);
	KUNIT_EXPECT_FALSE(test, pksm_mark(&pksm_test_marked, last));
	KUNIT_EXPECT_TRUE(test, pksm_test_marked.any);
	KUNIT_EXPECT_EQ(test, pksm_test_empty(bits), ARRAY_SIZE(buckets));
	for (i = 0; i < ARRAY_SIZE(buckets); i++)
		KUNIT_EXPECT_EQ(test, pksm_test_visits[buckets[i]], 1);
	KUNIT_EXPECT_FALSE(test, pksm_test_marked.any);
	KUNIT_EXPECT_EQ(test, pksm_test_empty(bits), 0);

	/* What comes meanwhile is seen now or next time, whether it is passed. */
	for (i = 0; i < ARRAY_SIZE(buckets); i++) {
		unsigned int visits;

		KUNIT_EXPECT_TRUE(test, pksm_mark(&pksm_test_marked, last / 2));
		pksm_test_more = buckets[i];
		visits = pksm_test_empty(bits);
		KUNIT_EXPECT_EQ(test, visits + pksm_test_empty(bits), 2);
		KUNIT_EXPECT_EQ(test, pksm_test_empty(bits), 0);
	}
}

/**
 * pksm_test_marks - each bucket that was marked is visited once
 * @test: the test
 */
void pksm_test_marks(struct kunit *test)
{
	/* A part of a word, a word, a few words, more than 64 words. */
	static const unsigned int bits[] = { 4, 6, 8, 13 };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bits); i++) {
		KUNIT_ASSERT_EQ(test, pksm_marks_alloc(&pksm_test_marked,
						       bits[i]), 0);
		mutex_lock(&pksm_mutex);
		pksm_test_marks_of_size(test, bits[i]);
		mutex_unlock(&pksm_mutex);
		pksm_marks_free(&pksm_test_marked);
	}
}

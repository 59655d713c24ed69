// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: sets of buckets, filled in any context and emptied by pksmd.
 *
 * Who frees, writes to or unmaps a page marks the bucket of its record or node.
 * A second bitmap has a bit for each word of the first, and one flag tells whether
 * there is anything at all, so that finding the marks costs as much as there are.
 *
 * A mark is set from the bottom up: bucket, word, flag. pksmd takes them from the
 * top down, so that a mark which comes meanwhile is either taken along or leaves
 * the flag set.
 */
#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/bitops.h>
#include <linux/sched.h>

#include "internal.h"
#include "fail.h"

/**
 * pksm_marks_alloc - make an empty set
 * @marks: the set
 * @bits: log2 of the number of buckets
 *
 * Context: Process context. May sleep.
 * Return: 0 or -ENOMEM.
 */
int pksm_marks_alloc(struct pksm_marks *marks, unsigned int bits)
{
	unsigned long words = BITS_TO_LONGS(1UL << bits);

	marks->buckets = pksm_should_fail(PKSM_FAIL_MARKS) ?
			 NULL : kvcalloc(words, sizeof(long), GFP_KERNEL);
	marks->words = pksm_should_fail(PKSM_FAIL_MARK_WORDS) ?
		       NULL : kvcalloc(BITS_TO_LONGS(words), sizeof(long),
				       GFP_KERNEL);
	if (marks->buckets && marks->words)
		return 0;
	pksm_marks_free(marks);
	return -ENOMEM;
}

#ifdef CONFIG_PKSM_BENCH
/**
 * pksm_marks_bytes - how much memory does a set take?
 * @nr_buckets: how many buckets it is of
 *
 * Return: Bytes.
 */
unsigned long pksm_marks_bytes(unsigned long nr_buckets)
{
	unsigned long words = BITS_TO_LONGS(nr_buckets);

	return (words + BITS_TO_LONGS(words)) * sizeof(long);
}
#endif

/**
 * pksm_marks_free - free the memory of a set
 * @marks: the set
 *
 * Context: Process context. May sleep.
 */
void pksm_marks_free(struct pksm_marks *marks)
{
	kvfree(marks->buckets);
	kvfree(marks->words);
	marks->buckets = NULL;
	marks->words = NULL;
}

/**
 * pksm_mark - add a bucket
 * @marks: the set
 * @bucket: number of the bucket
 *
 * Context: Any, after what there is to see in the bucket was made visible. Takes
 * no lock and never sleeps.
 * Return: true when the set was empty; all memory accesses before the call are
 * then ordered before those behind it.
 */
bool pksm_mark(struct pksm_marks *marks, unsigned long bucket)
{
	if (test_and_set_bit(bucket, marks->buckets) ||
	    test_and_set_bit(bucket / BITS_PER_LONG, marks->words))
		return false;
	return !xchg(&marks->any, true);
}

/**
 * pksm_marks_for_each - empty the set
 * @marks: the set
 * @bits: log2 of the number of buckets
 * @fn: called with each bucket that was in it
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_marks_for_each(struct pksm_marks *marks, unsigned int bits,
			 void (*fn)(unsigned long bucket))
{
	unsigned long nr_words = BITS_TO_LONGS(1UL << bits);
	unsigned long i, nr, bit, words, buckets;

	lockdep_assert_held(&pksm_mutex);
	if (!xchg(&marks->any, false))
		return;
	for (i = 0; i < BITS_TO_LONGS(nr_words); i++) {
		if (!READ_ONCE(marks->words[i]))
			continue;
		words = xchg(&marks->words[i], 0);
		for_each_set_bit(nr, &words, BITS_PER_LONG) {
			unsigned long word = i * BITS_PER_LONG + nr;

			buckets = xchg(&marks->buckets[word], 0);
			for_each_set_bit(bit, &buckets, BITS_PER_LONG)
				fn(word * BITS_PER_LONG + bit);
			cond_resched();
		}
	}
}

/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MM_PKSM_TEST_H
#define _MM_PKSM_TEST_H
/*
 * What the unit tests of PKSM share.
 *
 * Tests of functions that all of mm/pksm sees are in the *_test.c here. Those
 * that need the statics of a file are in the *_test.h, each of which that file
 * includes at its end. pksm_test.c makes one suite of them.
 *
 * The engine may be running. Its structures are looked at, and records put into
 * them, between pksm_test_begin() and pksm_test_end() only: that holds pksm_mutex
 * and keeps the pages that wait out of reach. In between nothing is asserted, only
 * expected, since a failed assertion ends the thread that holds the mutex. Every
 * record that a test brings to life dies in it, so that the counters are left as
 * they were found.
 */
#include <kunit/test.h>

#include "../internal.h"

/* Pages of each test, not mapped anywhere, and with records that are not linked. */
#define PKSM_TEST_PAGES		6

/* Hashes, of which the first two may be taken for one another. */
#define PKSM_TEST_HASH		0x0123456789abcdefULL
#define PKSM_TEST_HASH_ALIKE	(PKSM_TEST_HASH ^ 1)
/* In the same bucket, as long as there are fewer buckets than hashes. */
#define PKSM_TEST_HASH_NEAR	(PKSM_TEST_HASH ^ BIT_ULL(63))
#define PKSM_TEST_HASH_FAR	(~PKSM_TEST_HASH)

/**
 * struct pksm_test_env - what each test is given, in test->priv
 * @page: pages of the test's own
 * @item: their records
 * @anon_vma: what pksm_test_born() lets them belong to
 */
struct pksm_test_env {
	struct page *page[PKSM_TEST_PAGES];
	struct pksm_rmap_item *item[PKSM_TEST_PAGES];
	struct anon_vma anon_vma;
};

/* pksm_test.c */
void pksm_test_begin(struct kunit *test);
void pksm_test_end(struct kunit *test);
bool pksm_test_alone(void);
unsigned long pksm_test_pfn(struct kunit *test, unsigned int nr);
u32 pksm_test_state(struct kunit *test, unsigned int nr);
void pksm_test_born(struct kunit *test, unsigned int nr);
void pksm_test_gone(struct kunit *test, unsigned int nr);

/* state_test.c */
void pksm_test_state_classes(struct kunit *test);
void pksm_test_state_transitions(struct kunit *test);
void pksm_test_state_lost_race(struct kunit *test);
void pksm_test_state_birth(struct kunit *test);
void pksm_test_state_real_free(struct kunit *test);
void pksm_test_state_rebirth_in_list(struct kunit *test);
void pksm_test_state_rebirth_in_index(struct kunit *test);
void pksm_test_state_broken_off(struct kunit *test);
void pksm_test_state_forget(struct kunit *test);
void pksm_test_state_watched(struct kunit *test);
void pksm_test_state_stable_moves_in(struct kunit *test);
void pksm_test_state_get_tracked(struct kunit *test);

/* hash_test.h */
void pksm_test_hash_every_byte(struct kunit *test);
void pksm_test_hash_zero(struct kunit *test);
void pksm_test_hash_keyed(struct kunit *test);
void pksm_test_hash_spread(struct kunit *test);
void pksm_test_pages_equal(struct kunit *test);

/* index_test.c */
void pksm_test_hash_alike(struct kunit *test);
void pksm_test_unstable_find(struct kunit *test);
void pksm_test_unstable_unlink(struct kunit *test);
void pksm_test_unstable_equal_hashes(struct kunit *test);
void pksm_test_unstable_walk_drops_dead(struct kunit *test);
void pksm_test_unstable_reap(struct kunit *test);
void pksm_test_unstable_reap_reborn(struct kunit *test);
void pksm_test_unstable_unwatched(struct kunit *test);
void pksm_test_unstable_holds(struct kunit *test);

/* marks_test.c */
void pksm_test_marks(struct kunit *test);

/* stable_test.c */
void pksm_test_stable_find(struct kunit *test);
void pksm_test_stable_equal_hashes(struct kunit *test);
void pksm_test_stable_for_each(struct kunit *test);
void pksm_test_stable_stale(struct kunit *test);
void pksm_test_node_counts(struct kunit *test);

/* queue_test.h */
void pksm_test_hide_queues(void);
unsigned int pksm_test_show_queues(void);
void pksm_test_let_ripen(void);
void pksm_test_queue_interval(struct kunit *test);
void pksm_test_queue_age_level(struct kunit *test);
void pksm_test_queue_turn(struct kunit *test);
void pksm_test_queue_ripe_first(struct kunit *test);
void pksm_test_queue_levels(struct kunit *test);
void pksm_test_queue_timeout(struct kunit *test);
void pksm_test_queue_restart(struct kunit *test);
void pksm_test_queue_collect(struct kunit *test);
void pksm_test_queue_budget(struct kunit *test);
void pksm_test_queue_busy(struct kunit *test);
void pksm_test_queue_changed(struct kunit *test);
void pksm_test_queue_broken_off(struct kunit *test);
void pksm_test_queue_forget_all(struct kunit *test);

/* domain_test.h */
void pksm_test_domain_bijection(struct kunit *test);
void pksm_test_domain_no_collisions(struct kunit *test);
void pksm_test_domain_of_mm(struct kunit *test);

/* pace_test.h */
void pksm_test_pace_debt(struct kunit *test);
void pksm_test_pace_none(struct kunit *test);

/* sysfs_test.h */
void pksm_test_sysfs_one_line(struct kunit *test);
void pksm_test_sysfs_refuses(struct kunit *test);
void pksm_test_sysfs_accepts(struct kunit *test);

#endif /* _MM_PKSM_TEST_H */

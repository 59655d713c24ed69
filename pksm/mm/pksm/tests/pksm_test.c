// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: the unit tests.
 */
#include <linux/gfp.h>
#include <linux/kernel.h>

#include "pksm_test.h"

static long pksm_test_counts[NR_PKSM_CLASSES];

static long pksm_test_count(enum pksm_class class)
{
	long sum = 0;
	int cpu;

	/* Unlike pksm_nr_class(), with the sign that it has. */
	for_each_possible_cpu(cpu)
		sum += per_cpu(pksm_cpu.nr[class], cpu);
	return sum;
}

/**
 * pksm_test_alone - may counters of the whole system be compared?
 *
 * Return: true while there are no processes, that is, when the tests run at boot.
 */
bool pksm_test_alone(void)
{
	return system_state < SYSTEM_RUNNING;
}

/**
 * pksm_test_begin - keep the engine still
 * @test: the test
 *
 * From here to pksm_test_end() pksm_mutex is held and the queues are empty.
 */
void pksm_test_begin(struct kunit *test)
{
	enum pksm_class class;

	mutex_lock(&pksm_mutex);
	pksm_unstable_reap();
	pksm_queue_collect();
	pksm_test_hide_queues();
	for (class = 0; class < NR_PKSM_CLASSES; class++)
		pksm_test_counts[class] = pksm_test_count(class);
}

/**
 * pksm_test_end - let the engine go on
 * @test: the test
 *
 * Records that are dead may be left in the index and in the queues.
 */
void pksm_test_end(struct kunit *test)
{
	unsigned int alive, nr;
	enum pksm_class class;

	pksm_unstable_reap();
	pksm_queue_collect();
	alive = pksm_test_show_queues();
	for (nr = 0; nr < PKSM_TEST_PAGES; nr++)
		KUNIT_EXPECT_EQ_MSG(test, pksm_test_state(test, nr), 0,
				    "the record of page %u is left", nr);
	if (pksm_test_alone()) {
		KUNIT_EXPECT_EQ(test, alive, 0);
		for (class = PKSM_CLASS_NEW; class < NR_PKSM_CLASSES; class++)
			KUNIT_EXPECT_EQ_MSG(test, pksm_test_count(class),
					    pksm_test_counts[class],
					    "class %d", class);
	}
	mutex_unlock(&pksm_mutex);
}

/**
 * pksm_test_pfn - where a page of the test lies
 * @test: the test
 * @nr: which page
 *
 * Return: Its page frame number.
 */
unsigned long pksm_test_pfn(struct kunit *test, unsigned int nr)
{
	struct pksm_test_env *env = test->priv;

	return page_to_pfn(env->page[nr]);
}

/**
 * pksm_test_state - the state of a record
 * @test: the test
 * @nr: of which page
 *
 * Return: The state; 0 when it is neither alive nor linked.
 */
u32 pksm_test_state(struct kunit *test, unsigned int nr)
{
	struct pksm_test_env *env = test->priv;

	/* A dead record that is linked to nothing may keep other bits. */
	if (!(READ_ONCE(env->item[nr]->state) & (PKSM_LIVE | PKSM_WHERE_MASK)))
		return 0;
	return READ_ONCE(env->item[nr]->state);
}

/**
 * pksm_test_born - let a page be born, as the fault path does
 * @test: the test
 * @nr: which page
 */
void pksm_test_born(struct kunit *test, unsigned int nr)
{
	struct pksm_test_env *env = test->priv;

	pksm_add_new_anon_page(env->page[nr], env->item[nr], &env->anon_vma);
}

/**
 * pksm_test_gone - let a page be freed, as far as the engine is concerned
 * @test: the test
 * @nr: which page
 */
void pksm_test_gone(struct kunit *test, unsigned int nr)
{
	struct pksm_test_env *env = test->priv;

	pksm_del_anon_page(env->page[nr]);
}

/* A page whose record is of no interest to anybody. Others are put into @others. */
static struct page *pksm_test_alloc_page(struct list_head *others)
{
	struct page *page;

	while ((page = alloc_page(GFP_KERNEL))) {
		struct pksm_rmap_item *item = __pksm_rmap_item(page);

		if (item && !READ_ONCE(item->state))
			break;
		list_add(&page->lru, others);
	}
	return page;
}

static int pksm_test_init(struct kunit *test)
{
	struct pksm_test_env *env = kunit_kzalloc(test, sizeof(*env), GFP_KERNEL);
	struct page *page, *next;
	LIST_HEAD(others);
	unsigned int nr;

	/* Records of others would be taken out of the queues, and be lost. */
	if (!pksm_test_alone())
		kunit_skip(test, "only at boot, when there are no processes");
	KUNIT_ASSERT_NOT_NULL(test, env);
	test->priv = env;
	env->anon_vma.root = &env->anon_vma;
	for (nr = 0; nr < PKSM_TEST_PAGES; nr++) {
		env->page[nr] = pksm_test_alloc_page(&others);
		if (!env->page[nr])
			break;
		env->item[nr] = __pksm_rmap_item(env->page[nr]);
		env->page[nr]->mapping = (struct address_space *)
			((unsigned long)&env->anon_vma | PKSM_MAPPING_ANON);
	}
	list_for_each_entry_safe(page, next, &others, lru)
		__free_page(page);
	KUNIT_ASSERT_EQ(test, nr, PKSM_TEST_PAGES);
	return 0;
}

static void pksm_test_exit(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	unsigned int nr;

	for (nr = 0; env && nr < PKSM_TEST_PAGES; nr++) {
		if (!env->page[nr])
			continue;
		KUNIT_EXPECT_FALSE(test, PagePKSM(env->page[nr]));
		env->page[nr]->mapping = NULL;
		__free_page(env->page[nr]);
	}
}

/* The engine makes its indexes when it is first started. */
static int pksm_test_suite_init(struct kunit_suite *suite)
{
	int err;

	mutex_lock(&pksm_mutex);
	err = pksm_index_alloc();
	mutex_unlock(&pksm_mutex);
	return err;
}

static struct kunit_case pksm_test_cases[] = {
	KUNIT_CASE(pksm_test_state_classes),
	KUNIT_CASE(pksm_test_state_transitions),
	KUNIT_CASE(pksm_test_state_lost_race),
	KUNIT_CASE(pksm_test_state_birth),
	KUNIT_CASE(pksm_test_state_real_free),
	KUNIT_CASE(pksm_test_state_rebirth_in_list),
	KUNIT_CASE(pksm_test_state_rebirth_in_index),
	KUNIT_CASE(pksm_test_state_broken_off),
	KUNIT_CASE(pksm_test_state_forget),
	KUNIT_CASE(pksm_test_state_watched),
	KUNIT_CASE(pksm_test_state_stable_moves_in),
	KUNIT_CASE(pksm_test_state_get_tracked),
	KUNIT_CASE(pksm_test_hash_every_byte),
	KUNIT_CASE(pksm_test_hash_zero),
	KUNIT_CASE(pksm_test_hash_keyed),
	KUNIT_CASE(pksm_test_hash_spread),
	KUNIT_CASE(pksm_test_pages_equal),
	KUNIT_CASE(pksm_test_hash_alike),
	KUNIT_CASE(pksm_test_unstable_find),
	KUNIT_CASE(pksm_test_unstable_unlink),
	KUNIT_CASE(pksm_test_unstable_equal_hashes),
	KUNIT_CASE(pksm_test_unstable_walk_drops_dead),
	KUNIT_CASE(pksm_test_unstable_reap),
	KUNIT_CASE(pksm_test_unstable_reap_reborn),
	KUNIT_CASE(pksm_test_unstable_unwatched),
	KUNIT_CASE(pksm_test_unstable_holds),
	KUNIT_CASE(pksm_test_marks),
	KUNIT_CASE(pksm_test_stable_find),
	KUNIT_CASE(pksm_test_stable_equal_hashes),
	KUNIT_CASE(pksm_test_stable_for_each),
	KUNIT_CASE(pksm_test_stable_stale),
	KUNIT_CASE(pksm_test_node_counts),
	KUNIT_CASE(pksm_test_queue_interval),
	KUNIT_CASE(pksm_test_queue_age_level),
	KUNIT_CASE(pksm_test_queue_turn),
	KUNIT_CASE(pksm_test_queue_ripe_first),
	KUNIT_CASE(pksm_test_queue_levels),
	KUNIT_CASE(pksm_test_queue_timeout),
	KUNIT_CASE(pksm_test_queue_restart),
	KUNIT_CASE(pksm_test_queue_collect),
	KUNIT_CASE(pksm_test_queue_budget),
	KUNIT_CASE(pksm_test_queue_busy),
	KUNIT_CASE(pksm_test_queue_changed),
	KUNIT_CASE(pksm_test_queue_broken_off),
	KUNIT_CASE(pksm_test_queue_forget_all),
	KUNIT_CASE(pksm_test_domain_bijection),
	KUNIT_CASE(pksm_test_domain_no_collisions),
	KUNIT_CASE(pksm_test_domain_of_mm),
	KUNIT_CASE(pksm_test_pace_debt),
	KUNIT_CASE(pksm_test_pace_none),
	KUNIT_CASE(pksm_test_sysfs_one_line),
	KUNIT_CASE(pksm_test_sysfs_refuses),
	KUNIT_CASE(pksm_test_sysfs_accepts),
	{ }
};

static struct kunit_suite pksm_test_suite = {
	.name = "pksm",
	.suite_init = pksm_test_suite_init,
	.init = pksm_test_init,
	.exit = pksm_test_exit,
	.test_cases = pksm_test_cases,
};

kunit_test_suite(pksm_test_suite);

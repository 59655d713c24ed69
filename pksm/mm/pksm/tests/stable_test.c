// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: unit tests of the stable index and of the records in it.
 *
 * The index is that of the engine, and may hold nodes of others: those are passed
 * over.
 */
#include <linux/string.h>

#include "pksm_test.h"

#define PKSM_TEST_NODES		4

/* Nodes without a page. They stay out of reach of all but index.c. */
static struct pksm_stable_node *pksm_test_nodes;

static void pksm_test_begin_nodes(struct kunit *test)
{
	pksm_test_nodes = kunit_kcalloc(test, PKSM_TEST_NODES,
					sizeof(*pksm_test_nodes), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, pksm_test_nodes);
	pksm_test_begin(test);
}

static void pksm_test_insert_node(unsigned int nr, u64 hash)
{
	pksm_test_nodes[nr].hash = hash;
	pksm_stable_insert(&pksm_test_nodes[nr]);
}

/* The bit of a node of the test; 0 for the node of somebody else. */
static unsigned int pksm_test_node_bit(const struct pksm_stable_node *node)
{
	if (node < pksm_test_nodes || node >= pksm_test_nodes + PKSM_TEST_NODES)
		return 0;
	return BIT(node - pksm_test_nodes);
}

static unsigned int pksm_test_find_nodes(struct kunit *test, u64 hash)
{
	struct pksm_stable_node *node = NULL;
	unsigned int found = 0, bit;

	while ((node = pksm_stable_next(hash, node))) {
		bit = pksm_test_node_bit(node);
		KUNIT_EXPECT_FALSE(test, found & bit);
		if (found & bit)
			break;
		found |= bit;
	}
	return found;
}

/**
 * pksm_test_stable_find - a node is found by its whole hash
 * @test: the test
 */
void pksm_test_stable_find(struct kunit *test)
{
	unsigned int bit;

	pksm_test_begin_nodes(test);
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH), 0);
	pksm_test_insert_node(0, PKSM_TEST_HASH);
	pksm_test_insert_node(1, PKSM_TEST_HASH_ALIKE);
	pksm_test_insert_node(2, PKSM_TEST_HASH_FAR);
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH),
			BIT(0));
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH_ALIKE),
			BIT(1));
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH_FAR),
			BIT(2));
	for (bit = 1; bit < 64; bit++)
		KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH
							   ^ BIT_ULL(bit)), 0);
	pksm_stable_remove(&pksm_test_nodes[0]);
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH), 0);
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH_ALIKE),
			BIT(1));
	pksm_stable_remove(&pksm_test_nodes[1]);
	pksm_stable_remove(&pksm_test_nodes[2]);
	pksm_test_end(test);
}

/**
 * pksm_test_stable_equal_hashes - several nodes may have the same hash
 * @test: the test
 */
void pksm_test_stable_equal_hashes(struct kunit *test)
{
	pksm_test_begin_nodes(test);
	pksm_test_insert_node(0, PKSM_TEST_HASH);
	pksm_test_insert_node(1, PKSM_TEST_HASH);
	pksm_test_insert_node(2, PKSM_TEST_HASH_ALIKE);
	pksm_test_insert_node(3, PKSM_TEST_HASH);
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH),
			BIT(0) | BIT(1) | BIT(3));
	pksm_stable_remove(&pksm_test_nodes[1]);
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH),
			BIT(0) | BIT(3));
	pksm_stable_remove(&pksm_test_nodes[3]);
	pksm_stable_remove(&pksm_test_nodes[0]);
	KUNIT_EXPECT_EQ(test, pksm_test_find_nodes(test, PKSM_TEST_HASH), 0);
	pksm_stable_remove(&pksm_test_nodes[2]);
	pksm_test_end(test);
}

static unsigned int pksm_test_visited, pksm_test_revisited;

static void pksm_test_visit_node(struct pksm_stable_node *node)
{
	unsigned int bit = pksm_test_node_bit(node);

	pksm_test_revisited |= pksm_test_visited & bit;
	pksm_test_visited |= bit;
}

static void pksm_test_remove_node(struct pksm_stable_node *node)
{
	if (!pksm_test_node_bit(node))
		return;
	pksm_test_visit_node(node);
	pksm_stable_remove(node);
	/* Whoever looks at it again falls. */
	memset(&node->link, 0xff, sizeof(node->link));
}

/**
 * pksm_test_stable_for_each - each node is visited once, and may go meanwhile
 * @test: the test
 */
void pksm_test_stable_for_each(struct kunit *test)
{
	pksm_test_begin_nodes(test);
	pksm_test_insert_node(0, 0);
	pksm_test_insert_node(1, U64_MAX);
	pksm_test_insert_node(2, PKSM_TEST_HASH);
	pksm_test_insert_node(3, PKSM_TEST_HASH);
	pksm_test_visited = 0;
	pksm_test_revisited = 0;
	pksm_stable_for_each(pksm_test_visit_node);
	KUNIT_EXPECT_EQ(test, pksm_test_visited, GENMASK(3, 0));
	KUNIT_EXPECT_EQ(test, pksm_test_revisited, 0);
	pksm_test_visited = 0;
	pksm_stable_for_each(pksm_test_remove_node);
	KUNIT_EXPECT_EQ(test, pksm_test_visited, GENMASK(3, 0));
	pksm_test_visited = 0;
	pksm_stable_for_each(pksm_test_visit_node);
	KUNIT_EXPECT_EQ(test, pksm_test_visited, 0);
	pksm_test_end(test);
}

static void pksm_test_visit_stale(struct pksm_stable_node *node)
{
	/* A mark of the engine's own must not be lost. */
	if (!pksm_test_node_bit(node))
		pksm_stable_note_stale(node);
	pksm_test_visit_node(node);
}

/**
 * pksm_test_stable_stale - a node that has lost a mapping is found by its mark
 * @test: the test
 */
void pksm_test_stable_stale(struct kunit *test)
{
	pksm_test_begin_nodes(test);
	pksm_test_insert_node(0, PKSM_TEST_HASH);
	pksm_test_insert_node(1, PKSM_TEST_HASH_FAR);
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_stable_stale());
	pksm_stable_note_stale(&pksm_test_nodes[0]);
	KUNIT_EXPECT_FALSE(test, pksm_stable_note_stale(&pksm_test_nodes[0]));
	KUNIT_EXPECT_TRUE(test, pksm_stable_stale());
	pksm_test_visited = 0;
	pksm_stable_visit_stale(pksm_test_visit_stale);
	KUNIT_EXPECT_TRUE(test, pksm_test_visited & BIT(0));
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() &&
			   pksm_test_visited & BIT(1));
	KUNIT_EXPECT_FALSE(test, pksm_test_alone() && pksm_stable_stale());
	if (pksm_test_alone())
		KUNIT_EXPECT_TRUE(test, pksm_stable_note_stale(&pksm_test_nodes[1]));
	pksm_stable_visit_stale(pksm_test_visit_stale);
	pksm_stable_remove(&pksm_test_nodes[0]);
	pksm_stable_remove(&pksm_test_nodes[1]);
	pksm_test_end(test);
}

/**
 * pksm_test_node_counts - nodes and sharers are counted as they come and go
 * @test: the test
 */
void pksm_test_node_counts(struct kunit *test)
{
	unsigned long nodes, sharers;
	struct pksm_stable_node *node;
	struct pksm_sharer *sharer;

	pksm_test_begin(test);
	nodes = pksm_nr_nodes;
	sharers = pksm_nr_sharers;
	node = pksm_node_alloc();
	sharer = pksm_sharer_alloc();
	KUNIT_EXPECT_EQ(test, pksm_nr_nodes, nodes + !!node);
	KUNIT_EXPECT_EQ(test, pksm_nr_sharers, sharers + !!sharer);
	KUNIT_EXPECT_TRUE(test, node && !memchr_inv(node, 0, sizeof(*node)));
	KUNIT_EXPECT_TRUE(test, sharer &&
			  !memchr_inv(sharer, 0, sizeof(*sharer)));
	if (node)
		pksm_node_free(node);
	if (sharer)
		pksm_sharer_free(sharer);
	KUNIT_EXPECT_EQ(test, pksm_nr_nodes, nodes);
	KUNIT_EXPECT_EQ(test, pksm_nr_sharers, sharers);
	pksm_test_end(test);
}

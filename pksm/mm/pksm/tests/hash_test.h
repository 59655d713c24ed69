/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PKSM: unit tests of the hash, and of the comparison. Included by hash.c.
 */
#include <linux/slab.h>

#include "pksm_test.h"

static void pksm_test_fill(struct page *page, u8 seed)
{
	u8 *addr = kmap_local_page(page);
	unsigned int i;

	for (i = 0; i < PAGE_SIZE; i++)
		addr[i] = (i * 37 + (i >> 8) + seed) & 0xff;
	kunmap_local(addr);
}

static void pksm_test_flip(struct page *page, unsigned int at, u8 bits)
{
	u8 *addr = kmap_local_page(page);

	addr[at] ^= bits;
	kunmap_local(addr);
}

/**
 * pksm_test_hash_every_byte - each byte of a page counts
 * @test: the test
 */
void pksm_test_hash_every_byte(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	struct page *page = env->page[0];
	unsigned int at;
	u64 hash;

	pksm_test_fill(page, 1);
	hash = pksm_hash_page(page);
	for (at = 0; at < PAGE_SIZE; at++) {
		pksm_test_flip(page, at, BIT(at % 8));
		if (pksm_hash_page(page) == hash)
			KUNIT_FAIL(test, "byte %u does not count", at);
		pksm_test_flip(page, at, BIT(at % 8));
	}
	KUNIT_EXPECT_EQ(test, pksm_hash_page(page), hash);

	pksm_test_fill(env->page[1], 1);
	KUNIT_EXPECT_EQ(test, pksm_hash_page(env->page[1]), hash);
}

/**
 * pksm_test_hash_zero - the hash of zeroes is that of a page of zeroes
 * @test: the test
 */
void pksm_test_hash_zero(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	struct page *page = env->page[0];

	clear_highpage(page);
	KUNIT_EXPECT_EQ(test, pksm_hash_page(page), pksm_zero_hash(page));
	KUNIT_EXPECT_EQ(test, pksm_hash_page(ZERO_PAGE(0)),
			pksm_zero_hash(ZERO_PAGE(0)));
	pksm_test_flip(page, PAGE_SIZE - 1, 1);
	KUNIT_EXPECT_NE(test, pksm_hash_page(page), pksm_zero_hash(page));
}

/* A key of the test's own, which is not to be all zeroes. Never NULL. */
static u64 *pksm_test_key(struct kunit *test)
{
	u64 *key = kunit_kmalloc(test, sizeof(pksm_hash_key), GFP_KERNEL);
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, key);
	for (i = 0; i < ARRAY_SIZE(pksm_hash_key); i++)
		key[i] = (i + 1) * 0x9e3779b97f4a7c15ULL;
	return key;
}

static u64 pksm_test_hash(struct page *page, const u64 *key)
{
	const u64 *addr = kmap_local_page(page);
	u64 hash = pksm_hash_words(addr, key);

	kunmap_local(addr);
	return hash;
}

/**
 * pksm_test_hash_keyed - each word of the key counts
 * @test: the test
 */
void pksm_test_hash_keyed(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	struct page *page = env->page[0];
	u64 *key = pksm_test_key(test);
	unsigned int at;
	u64 hash;

	pksm_test_fill(page, 1);
	hash = pksm_test_hash(page, key);
	/* The last but adds a carry, mostly none. */
	for (at = 0; at < ARRAY_SIZE(pksm_hash_key) - 1; at++) {
		key[at] ^= BIT_ULL(at % 64);
		if (pksm_test_hash(page, key) == hash)
			KUNIT_FAIL(test, "word %u of the key does not count",
				   at);
		key[at] ^= BIT_ULL(at % 64);
	}
	KUNIT_EXPECT_EQ(test, pksm_test_hash(page, key), hash);
	KUNIT_EXPECT_NE(test, pksm_hash_page(page) ^ pksm_nid_key(page), hash);
}

/* How many of 64 hashes of pages that differ in one bit have a bit set. */
static unsigned int pksm_test_count(struct page *page, const u64 *key,
				    unsigned int bit)
{
	unsigned int at, count = 0;

	for (at = 0; at < 64; at++) {
		pksm_test_flip(page, at * (PAGE_SIZE / 64), BIT(at % 8));
		count += (pksm_test_hash(page, key) >> bit) & 1;
		pksm_test_flip(page, at * (PAGE_SIZE / 64), BIT(at % 8));
	}
	return count;
}

/**
 * pksm_test_hash_spread - each bit of the hash depends on the page, and on where
 * @test: the test
 */
void pksm_test_hash_spread(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	struct page *page = env->page[0];
	u64 *key = pksm_test_key(test);
	unsigned int bit, count;
	u64 *addr, hash;

	clear_highpage(page);
	for (bit = 0; bit < 64; bit++) {
		count = pksm_test_count(page, key, bit);
		KUNIT_EXPECT_GT_MSG(test, count, 8, "bit %u", bit);
		KUNIT_EXPECT_LT_MSG(test, count, 56, "bit %u", bit);
	}

	pksm_test_fill(page, 1);
	hash = pksm_test_hash(page, key);
	addr = kmap_local_page(page);
	swap(addr[0], addr[1]);
	kunmap_local(addr);
	KUNIT_EXPECT_NE(test, pksm_test_hash(page, key), hash);
	addr = kmap_local_page(page);
	swap(addr[0], addr[1]);
	swap(addr[2], addr[8]);
	swap(addr[3], addr[9]);
	kunmap_local(addr);
	KUNIT_EXPECT_NE(test, pksm_test_hash(page, key), hash);
}

/**
 * pksm_test_pages_equal - a comparison sees each byte, and reads ahead
 * @test: the test
 */
void pksm_test_pages_equal(struct kunit *test)
{
	struct pksm_test_env *env = test->priv;
	struct page *page = env->page[0], *other = env->page[1];
	unsigned int at;

	pksm_test_fill(page, 1);
	pksm_test_fill(other, 1);
	pksm_test_begin(test);
	pksm_read_ahead_rest();
	KUNIT_EXPECT_TRUE(test, pksm_pages_equal(page, other));
	KUNIT_EXPECT_PTR_EQ(test, pksm_ahead, pksm_ahead_end);
	for (at = 0; at < PAGE_SIZE; at++) {
		pksm_test_flip(other, at, BIT(at % 8));
		if (pksm_pages_equal(page, other))
			KUNIT_FAIL(test, "byte %u is not compared", at);
		pksm_test_flip(other, at, BIT(at % 8));
	}

	/* All of it while two equal pages are compared, else what is left. */
	pksm_read_ahead(env->page[2]);
	KUNIT_EXPECT_TRUE(test, pksm_pages_equal(page, other));
	KUNIT_EXPECT_PTR_EQ(test, pksm_ahead, pksm_ahead_end);
	pksm_read_ahead(env->page[2]);
	pksm_test_flip(other, 0, 1);
	KUNIT_EXPECT_FALSE(test, pksm_pages_equal(page, other));
	KUNIT_EXPECT_PTR_NE(test, pksm_ahead, pksm_ahead_end);
	pksm_read_ahead_rest();
	KUNIT_EXPECT_PTR_EQ(test, pksm_ahead, pksm_ahead_end);
	pksm_test_end(test);
}

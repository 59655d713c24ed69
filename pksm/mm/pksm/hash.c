// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: reading pages, to hash them and to compare them.
 *
 * The hash
 * --------
 *
 * It is NH, the universal hash of UMAC (Black, Halevi, Krawczyk, Krovetz and Rogaway,
 * 1999), with words of 64 bits: to each word of the page one of the key is added, and
 * the products of every two neighbours are summed up. The sum of 128 bits is brought
 * down to 64 by multiplications with another part of the key (Dietzfelbinger's
 * multiply-shift for pairs), so that each bit of the result depends on all of it.
 *
 * The key is as long as a page, a secret of this boot. Whatever two pages somebody
 * chooses who knows nothing of it, they have the same hash for two keys in 2^64 at
 * most: 2^-64 by NH, and as much by what follows it. So nobody can make pages to fill
 * a bucket of an index with. And it takes one multiplication for 16 bytes, a third of
 * the time of xxh64.
 *
 * Reading ahead
 * -------------
 *
 * A page that has settled is in no cache, and most of the time that it takes to read
 * it is spent waiting for memory. So the page that will be read next is prefetched,
 * line by line while two others are compared, or all of it once it is clear that
 * nothing is. A prefetch of memory that has gone meanwhile does nothing.
 */
#include <linux/cache.h>
#include <linux/highmem.h>
#include <linux/prefetch.h>
#include <linux/random.h>

#include "internal.h"

#define PKSM_WORDS		(PAGE_SIZE / sizeof(u64))

/* How many words are dealt with in one go: a line of most caches. */
#define PKSM_STRIDE		8U

static_assert(PKSM_WORDS % PKSM_STRIDE == 0);

/* For NH, and for what brings its sum down to 64 bits. Of no meaning before the start. */
static u64 pksm_hash_key[PKSM_WORDS + 6];

static u64 pksm_hash_of_zero;

/* What is still to be prefetched of the next page; guarded by pksm_mutex. */
static const char *pksm_ahead;
static const char *pksm_ahead_end;

/* A known key, of 64 bits at most, for a kernel that is debugged (splitmix64). */
static void pksm_hash_known_key(u64 seed)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pksm_hash_key); i++) {
		u64 z = seed += 0x9e3779b97f4a7c15ULL;

		z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
		z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
		pksm_hash_key[i] = z ^ z >> 31;
	}
}

/**
 * pksm_hash_init - choose the key of the hash
 * @seed: what it is made from; 0 for a secret
 *
 * Context: Process context, pksm_mutex held, before anything is hashed.
 */
void pksm_hash_init(u64 seed)
{
	lockdep_assert_held(&pksm_mutex);
	if (seed)
		pksm_hash_known_key(seed);
	else
		get_random_bytes(pksm_hash_key, sizeof(pksm_hash_key));
	pksm_hash_of_zero = pksm_hash_page(ZERO_PAGE(0)) ^
			    pksm_nid_key(ZERO_PAGE(0));
}

/* Always inline: who calls it says whether KCSAN watches. */
static __always_inline u128 pksm_hash_pair(const u64 *word, const u64 *key)
{
	return (u128)(word[0] + key[0]) * (word[1] + key[1]);
}

static __always_inline u64 pksm_hash_finish(u128 sum, const u64 *key)
{
	u128 low = (u128)key[0] << 64 | key[1];
	u128 high = (u128)key[2] << 64 | key[3];
	u128 add = (u128)key[4] << 64 | key[5];

	return (low * (u64)sum + high * (u64)(sum >> 64) + add) >> 64;
}

/* A page may be written to meanwhile: then the hash is of no use, and no harm. */
static u64 __no_kcsan pksm_hash_words(const u64 *word, const u64 *key)
{
	u128 even = 0, odd = 0;
	unsigned int i;

	for (i = 0; i < PKSM_WORDS; i += PKSM_STRIDE) {
		even += pksm_hash_pair(word, key);
		odd += pksm_hash_pair(word + 2, key + 2);
		even += pksm_hash_pair(word + 4, key + 4);
		odd += pksm_hash_pair(word + 6, key + 6);
		word += PKSM_STRIDE;
		key += PKSM_STRIDE;
	}
	return pksm_hash_finish(even + odd, key);
}

/**
 * pksm_hash_page - read a page once
 * @page: the page; it may change meanwhile
 *
 * Context: Any.
 * Return: The keyed hash of all of it, and of its node where that keeps pages apart.
 */
u64 pksm_hash_page(struct page *page)
{
	const u64 *addr = kmap_local_page(page);
	u64 hash = pksm_hash_words(addr, pksm_hash_key);

	kunmap_local(addr);
	return hash ^ pksm_nid_key(page);
}

/**
 * pksm_zero_hash - the hash of a page, were it all zeroes
 * @page: the page
 *
 * Context: Any.
 * Return: What pksm_hash_page() would say of it.
 */
u64 pksm_zero_hash(const struct page *page)
{
	return pksm_hash_of_zero ^ pksm_nid_key(page);
}

/**
 * pksm_read_ahead - a page will be read soon
 * @page: the page, of which no reference need be held
 *
 * Context: pksm_mutex held.
 */
void pksm_read_ahead(struct page *page)
{
	lockdep_assert_held(&pksm_mutex);
	pksm_ahead = page_address(page);
	pksm_ahead_end = pksm_ahead + PAGE_SIZE;
}

/* As much as is compared in one go, or a line where that is more. */
static void pksm_read_ahead_stride(void)
{
	const char *end = pksm_ahead + PKSM_STRIDE * sizeof(u64);

	if (pksm_ahead == pksm_ahead_end)
		return;
	do {
		prefetch(pksm_ahead);
		pksm_ahead += L1_CACHE_BYTES;
	} while (pksm_ahead < end);
}

/**
 * pksm_read_ahead_rest - prefetch what is left of the page that will be read
 *
 * Context: pksm_mutex held.
 */
void pksm_read_ahead_rest(void)
{
	lockdep_assert_held(&pksm_mutex);
	while (pksm_ahead != pksm_ahead_end)
		pksm_read_ahead_stride();
}

/**
 * pksm_pages_equal - compare two pages
 * @page1: a page, of which a reference is held
 * @page2: another
 *
 * What is compared of a page that can change is of no use, but as a hint.
 *
 * Context: Any, pksm_mutex held.
 * Return: true when they have the same contents. Memory tags, where there are such,
 * count as contents.
 */
bool __no_kcsan pksm_pages_equal(struct page *page1, struct page *page2)
{
	const u64 *addr1 = kmap_local_page(page1), *one = addr1;
	const u64 *addr2 = kmap_local_page(page2), *other = addr2;
	u64 differs = 0;
	unsigned int i;

	lockdep_assert_held(&pksm_mutex);
	for (i = 0; !differs && i < PKSM_WORDS; i += PKSM_STRIDE) {
		pksm_read_ahead_stride();
		differs = (one[0] ^ other[0]) | (one[1] ^ other[1]) |
			  (one[2] ^ other[2]) | (one[3] ^ other[3]) |
			  (one[4] ^ other[4]) | (one[5] ^ other[5]) |
			  (one[6] ^ other[6]) | (one[7] ^ other[7]);
		one += PKSM_STRIDE;
		other += PKSM_STRIDE;
	}
	kunmap_local(addr2);
	kunmap_local(addr1);
	return !differs && (!IS_ENABLED(CONFIG_ARM64_MTE) ||
			    pages_identical(page1, page2));
}

#ifdef CONFIG_PKSM_KUNIT_TEST
#include "tests/hash_test.h"
#endif

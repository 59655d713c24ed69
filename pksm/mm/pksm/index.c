// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: the two indexes, both hash tables of fixed size.
 *
 * The unstable index holds pages that were hashed and found unique. A bucket is
 * a chain of records, linked by page frame number. The pages are not protected:
 * one may have changed since, so that an entry is a hint and no more.
 *
 * The stable index holds the stable nodes. A stable page never changes, so that
 * an entry is as good as the page, as long as the page exists.
 *
 * The hash is a 64-bit xxHash of the whole page, keyed by a secret of this boot.
 * A record keeps 27 bits of it; pages with equal bits may lie in one bucket in
 * any number. The tables are allocated when the engine is first started: for N
 * pages of memory at most 2 N bytes for the unstable and N bytes for the stable
 * index, and N / 16 bytes to mark buckets.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/bitmap.h>
#include <linux/highmem.h>
#include <linux/log2.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>
#include <linux/xxhash.h>

#include "internal.h"

static u32 *pksm_unstable;		/* first page frame number by bucket */
static unsigned int pksm_unstable_bits;

/* Where records have died: a bit for each bucket, a bit for each word of those. */
static unsigned long *pksm_dead_buckets;
static unsigned long *pksm_dead_words;
static bool pksm_dead_any;

static struct hlist_head *pksm_stable;
static unsigned int pksm_stable_bits;
static u64 pksm_secret;
static u64 pksm_hash_of_zero;

/**
 * pksm_index_alloc - make the indexes
 *
 * Context: Process context, pksm_mutex held. May sleep.
 * Return: 0, also when they exist; -ENOMEM.
 */
int pksm_index_alloc(void)
{
	unsigned int bits = ilog2(totalram_pages());
	unsigned long *buckets, *words;
	struct hlist_head *stable;
	u32 *unstable;

	lockdep_assert_held(&pksm_mutex);
	if (pksm_unstable)
		return 0;

	bits = clamp(bits - 1, 8U, (unsigned int)PKSM_HASH_BITS);
	unstable = vmalloc(sizeof(*unstable) << bits);
	stable = vzalloc(sizeof(*stable) << (bits - 2));
	buckets = bitmap_zalloc(1UL << bits, GFP_KERNEL);
	words = bitmap_zalloc(BITS_TO_LONGS(1UL << bits), GFP_KERNEL);
	if (!unstable || !stable || !buckets || !words) {
		vfree(unstable);
		vfree(stable);
		bitmap_free(buckets);
		bitmap_free(words);
		return -ENOMEM;
	}
	memset(unstable, 0xff, sizeof(*unstable) << bits);
	static_assert(PKSM_END == 0xffffffff);

	pksm_secret = get_random_u64();
	pksm_hash_of_zero = pksm_hash_page(ZERO_PAGE(0));
	pksm_unstable_bits = bits;
	pksm_stable_bits = bits - 2;
	pksm_dead_buckets = buckets;
	pksm_dead_words = words;
	pksm_stable = stable;
	pksm_unstable = unstable;
	return 0;
}

/**
 * pksm_hash_page - read a page once
 * @page: the page; it may change meanwhile
 *
 * Return: The keyed hash of all of it.
 */
u64 pksm_hash_page(struct page *page)
{
	void *addr = kmap_local_page(page);
	u64 hash = xxh64(addr, PAGE_SIZE, pksm_secret);

	kunmap_local(addr);
	return hash;
}

/**
 * pksm_zero_hash - the hash of a page of zeroes
 *
 * Return: The keyed hash.
 */
u64 pksm_zero_hash(void)
{
	return pksm_hash_of_zero;
}

/* === the unstable index === */

static u32 pksm_tag(u64 hash)
{
	return hash >> (64 - PKSM_HASH_BITS);
}

/**
 * pksm_hash_alike - may two hashes be told apart by what a record keeps?
 * @hash1: a hash
 * @hash2: another
 *
 * Return: true when they have the same bits in a record.
 */
bool pksm_hash_alike(u64 hash1, u64 hash2)
{
	return pksm_tag(hash1) == pksm_tag(hash2);
}

static u32 *pksm_bucket(u32 tag)
{
	return &pksm_unstable[tag & ((1U << pksm_unstable_bits) - 1)];
}

/* Is the page in the index the one that was hashed? */
static bool pksm_indexed(u32 state)
{
	return (state & (PKSM_LIVE | PKSM_WHERE_MASK | PKSM_REBORN)) ==
	       (PKSM_LIVE | PKSM_INDEX);
}

/**
 * pksm_unstable_insert - add a page
 * @pfn: its page frame number
 * @item: its record, not linked; a reference on the page is held
 * @hash: its hash
 */
void pksm_unstable_insert(unsigned long pfn, struct pksm_rmap_item *item,
			  u64 hash)
{
	u32 *bucket = pksm_bucket(pksm_tag(hash));
	u32 old;

	lockdep_assert_held(&pksm_mutex);
	WRITE_ONCE(item->next, *bucket);
	*bucket = pfn;
	do {
		old = READ_ONCE(item->state);
		VM_WARN_ON_ONCE(old & PKSM_STABLE);
	} while (!pksm_item_set(item, old, PKSM_LIVE | PKSM_INDEX |
				(pksm_tag(hash) << PKSM_HASH_SHIFT)));
}

/*
 * A record that is no longer in its bucket: it becomes free, or, if its page
 * was born again, it goes where new pages go. Never both: once a record is not
 * linked, the fault path may link it.
 */
static void pksm_unlinked(unsigned long pfn, struct pksm_rmap_item *item)
{
	u32 old;

	do {
		old = READ_ONCE(item->state);
		if ((old & (PKSM_LIVE | PKSM_STABLE | PKSM_REBORN)) ==
		    (PKSM_LIVE | PKSM_REBORN)) {
			pksm_queue_add(pfn, item, 0);
			return;
		}
	} while (!pksm_item_set(item, old, old & (PKSM_LIVE | PKSM_STABLE)));
}

/**
 * pksm_unstable_remove - take a page out
 * @pfn: its page frame number
 * @item: its record, in the index
 *
 * The record of a page that was born again goes on to the queue of new pages;
 * any other is left alive or dead, but not linked.
 */
void pksm_unstable_remove(unsigned long pfn, struct pksm_rmap_item *item)
{
	u32 *link = pksm_bucket(READ_ONCE(item->state) >> PKSM_HASH_SHIFT);

	lockdep_assert_held(&pksm_mutex);
	while (*link != pfn) {
		if (WARN_ON_ONCE(*link == PKSM_END))
			return;
		link = &pksm_item(*link)->next;
	}
	*link = item->next;
	pksm_unlinked(pfn, item);
}

/**
 * pksm_unstable_next - look for pages that may be equal
 * @hash: the hash looked for
 * @pfn: what the last call returned, still in the index; PKSM_END to begin
 *
 * Takes dead records out on its way.
 *
 * Return: The page frame number of a page whose hash may be @hash, or PKSM_END.
 */
unsigned long pksm_unstable_next(u64 hash, unsigned long pfn)
{
	u32 *link = pksm_bucket(pksm_tag(hash));

	lockdep_assert_held(&pksm_mutex);
	if (pfn != PKSM_END)
		link = &pksm_item(pfn)->next;
	while (*link != PKSM_END) {
		struct pksm_rmap_item *item = pksm_item(*link);
		u32 state = READ_ONCE(item->state);

		VM_WARN_ON_ONCE(pksm_where(state) != PKSM_INDEX);
		if (!pksm_indexed(state)) {
			unsigned long dead = *link;

			*link = item->next;
			pksm_unlinked(dead, item);
			continue;
		}
		if (state >> PKSM_HASH_SHIFT == pksm_tag(hash))
			return *link;
		link = &item->next;
	}
	return PKSM_END;
}

/**
 * pksm_unstable_note_dead - a page of the index was freed
 * @state: the state its record had
 *
 * Marks the bucket, so that pksmd finds it, and the word in which that mark is.
 * pksmd clears the marks in the opposite order before it looks, so that none is
 * lost.
 *
 * Context: Any, after the record was marked dead with full ordering. Takes no
 * lock and never sleeps.
 * Return: true when nobody else has marked anything before; all memory accesses
 * before the call are then ordered before those behind it.
 */
bool pksm_unstable_note_dead(u32 state)
{
	unsigned long bucket = pksm_bucket(state >> PKSM_HASH_SHIFT) -
			       pksm_unstable;

	if (test_and_set_bit(bucket, pksm_dead_buckets) ||
	    test_and_set_bit(bucket / BITS_PER_LONG, pksm_dead_words))
		return false;
	return !xchg(&pksm_dead_any, true);
}

/**
 * pksm_unstable_dead - was a page of the index freed?
 *
 * Return: true when pksm_unstable_reap() has something to do.
 */
bool pksm_unstable_dead(void)
{
	return READ_ONCE(pksm_dead_any);
}

/* Take the records out of a bucket whose pages are gone. */
static void pksm_reap_bucket(u32 *link)
{
	while (*link != PKSM_END) {
		unsigned long pfn = *link;
		struct pksm_rmap_item *item = pksm_item(pfn);

		if (pksm_indexed(READ_ONCE(item->state))) {
			link = &item->next;
			continue;
		}
		*link = item->next;
		pksm_unlinked(pfn, item);
	}
}

/* Reap the buckets that are marked in one word. */
static void pksm_reap_word(unsigned long nr)
{
	unsigned long word = xchg(&pksm_dead_buckets[nr], 0);
	unsigned long bit;

	for_each_set_bit(bit, &word, BITS_PER_LONG)
		pksm_reap_bucket(&pksm_unstable[nr * BITS_PER_LONG + bit]);
	cond_resched();
}

/**
 * pksm_unstable_reap - take out the records whose pages were freed
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 */
void pksm_unstable_reap(void)
{
	unsigned long words = BITS_TO_LONGS(1UL << pksm_unstable_bits);
	unsigned long i, bit;

	lockdep_assert_held(&pksm_mutex);
	if (!pksm_unstable || !xchg(&pksm_dead_any, false))
		return;
	for (i = 0; i < BITS_TO_LONGS(words); i++) {
		unsigned long word;

		if (!READ_ONCE(pksm_dead_words[i]))
			continue;
		word = xchg(&pksm_dead_words[i], 0);
		for_each_set_bit(bit, &word, BITS_PER_LONG)
			pksm_reap_word(i * BITS_PER_LONG + bit);
	}
}

/**
 * pksm_unstable_empty - put every page of the index back into the queue
 *
 * Context: Process context, pksm_mutex held, intake off. May sleep.
 */
void pksm_unstable_empty(void)
{
	unsigned long i;

	lockdep_assert_held(&pksm_mutex);
	if (!pksm_unstable)
		return;
	for (i = 0; i < 1UL << pksm_unstable_bits; i++) {
		while (pksm_unstable[i] != PKSM_END) {
			unsigned long pfn = pksm_unstable[i];
			struct pksm_rmap_item *item = pksm_item(pfn);

			pksm_unstable[i] = item->next;
			pksm_queue_add(pfn, item, 0);
			cond_resched();
		}
	}
}

/* === the stable index === */

static struct hlist_head *pksm_stable_bucket(u64 hash)
{
	return &pksm_stable[hash >> (64 - pksm_stable_bits)];
}

/**
 * pksm_stable_insert - add a node
 * @node: the node, with its hash
 */
void pksm_stable_insert(struct pksm_stable_node *node)
{
	lockdep_assert_held(&pksm_mutex);
	hlist_add_head(&node->link, pksm_stable_bucket(node->hash));
}

/**
 * pksm_stable_remove - take a node out
 * @node: a node in the index
 */
void pksm_stable_remove(struct pksm_stable_node *node)
{
	lockdep_assert_held(&pksm_mutex);
	hlist_del(&node->link);
}

/**
 * pksm_stable_next - look for stable pages by hash
 * @hash: the hash looked for
 * @node: what the last call returned, or NULL to begin
 *
 * Return: A node whose page has that hash, or NULL. Its page may be gone.
 */
struct pksm_stable_node *pksm_stable_next(u64 hash,
					  struct pksm_stable_node *node)
{
	lockdep_assert_held(&pksm_mutex);
	if (node)
		node = hlist_entry_safe(node->link.next,
					struct pksm_stable_node, link);
	else
		node = hlist_entry_safe(pksm_stable_bucket(hash)->first,
					struct pksm_stable_node, link);
	while (node && READ_ONCE(node->hash) != hash)
		node = hlist_entry_safe(node->link.next,
					struct pksm_stable_node, link);
	return node;
}

/**
 * pksm_stable_for_each - do something with every stable node
 * @fn: called with each node, which it may take out and free
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_stable_for_each(void (*fn)(struct pksm_stable_node *node))
{
	struct pksm_stable_node *node;
	struct hlist_node *next;
	unsigned long i;

	lockdep_assert_held(&pksm_mutex);
	if (!pksm_stable)
		return;
	for (i = 0; i < 1UL << pksm_stable_bits; i++) {
		hlist_for_each_entry_safe(node, next, &pksm_stable[i], link)
			fn(node);
		cond_resched();
	}
}

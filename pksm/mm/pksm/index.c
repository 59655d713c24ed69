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
 * The hash is one of 64 bits, see hash.c. A record keeps 24 bits of it; pages with
 * equal bits may lie in one bucket in any number. The tables are allocated when the
 * engine is first started: for N pages of memory at most 2 N bytes for the unstable and
 * N bytes for the stable index, and N / 12 bytes to mark buckets. Beyond 128 GiB of
 * memory the unstable index does not grow any more, and its buckets hold more than two
 * pages each.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/log2.h>
#include <linux/sched.h>
#include <linux/vmalloc.h>

#include "internal.h"
#include "fail.h"

static u32 *pksm_unstable;		/* first page frame number by bucket */
static unsigned int pksm_unstable_bits;

/* Where records have died, or are of pages that were written to. */
static struct pksm_marks pksm_dead;

static struct hlist_head *pksm_stable;
static unsigned int pksm_stable_bits;

/* Two nodes have had the same hash, since max_page_sharing was reached. */
bool pksm_stable_repeats;

/* Where mappings of merged pages have gone. */
static struct pksm_marks pksm_stale;

/* What the key of the hash is made from in a kernel that is debugged; 0: a secret. */
static u64 pksm_known_secret;

#ifdef CONFIG_PKSM_DEBUG
/*
 * pksm_secret=NUMBER: pages have the same hashes at each boot, and meet each other in the
 * same buckets, so that a test can be repeated exactly.
 */
static int __init pksm_secret_setup(char *value)
{
	return value ? kstrtou64(value, 0, &pksm_known_secret) : -EINVAL;
}
early_param("pksm_secret", pksm_secret_setup);
#endif

/**
 * pksm_index_alloc - make the indexes
 *
 * Context: Process context, pksm_mutex held. May sleep.
 * Return: 0, also when they exist; -ENOMEM.
 */
int pksm_index_alloc(void)
{
	unsigned int bits = ilog2(totalram_pages());
	struct pksm_marks dead = { }, stale = { };
	struct hlist_head *stable;
	u32 *unstable;

	lockdep_assert_held(&pksm_mutex);
	if (pksm_unstable)
		return 0;

	bits = clamp(bits - 1, 8U, (unsigned int)PKSM_HASH_BITS);
	unstable = pksm_should_fail(PKSM_FAIL_UNSTABLE) ?
		   NULL : vmalloc(sizeof(*unstable) << bits);
	stable = pksm_should_fail(PKSM_FAIL_STABLE) ?
		 NULL : vzalloc(sizeof(*stable) << (bits - 2));
	if (!unstable || !stable || pksm_marks_alloc(&dead, bits) ||
	    pksm_marks_alloc(&stale, bits - 2)) {
		vfree(unstable);
		vfree(stable);
		pksm_marks_free(&dead);
		return -ENOMEM;
	}
	memset(unstable, 0xff, sizeof(*unstable) << bits);
	static_assert(PKSM_END == 0xffffffff);

	pksm_hash_init(pksm_known_secret);
	pksm_unstable_bits = bits;
	pksm_stable_bits = bits - 2;
	pksm_dead = dead;
	pksm_stale = stale;
	pksm_stable = stable;
	pksm_unstable = unstable;
	return 0;
}

/**
 * pksm_nr_buckets - size of the unstable index
 *
 * Return: The number of its buckets; 0 before it was made.
 */
unsigned long pksm_nr_buckets(void)
{
	return pksm_unstable ? 1UL << pksm_unstable_bits : 0;
}

#ifdef CONFIG_PKSM_BENCH
/**
 * pksm_index_bytes - how much memory do both indexes take?
 *
 * Return: Bytes, of the buckets and of the marks that belong to them.
 */
unsigned long pksm_index_bytes(void)
{
	unsigned long unstable = 1UL << pksm_unstable_bits;
	unsigned long stable = 1UL << pksm_stable_bits;

	if (!pksm_nr_buckets())
		return 0;
	return unstable * sizeof(*pksm_unstable) +
	       stable * sizeof(*pksm_stable) + pksm_marks_bytes(unstable) +
	       pksm_marks_bytes(stable);
}
#endif

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

/* Is the page in the index the one that was hashed, as far as anybody knows? */
static bool pksm_indexed(u32 state)
{
	return (state & (PKSM_LIVE | PKSM_WHERE_MASK | PKSM_REBORN)) ==
	       (PKSM_LIVE | PKSM_INDEX);
}

static void pksm_unstable_link(unsigned long pfn, struct pksm_rmap_item *item,
			       u64 hash, u32 bits)
{
	u32 *bucket = pksm_bucket(pksm_tag(hash));
	u32 old;

	lockdep_assert_held(&pksm_mutex);
	WRITE_ONCE(item->next, *bucket);
	*bucket = pfn;
	do {
		old = READ_ONCE(item->state);
		VM_WARN_ON_ONCE(old & PKSM_STABLE);
	} while (!pksm_item_set(item, old, PKSM_LIVE | PKSM_INDEX | bits |
				(pksm_tag(hash) << PKSM_HASH_SHIFT)));
}

/**
 * pksm_unstable_insert - add a page
 * @pfn: its page frame number
 * @item: its record, not linked; a reference on the page is held
 * @hash: its hash
 * @age: its age, at most PKSM_MAX_AGE
 */
void pksm_unstable_insert(unsigned long pfn, struct pksm_rmap_item *item,
			  u64 hash, u32 age)
{
	pksm_unstable_link(pfn, item, hash, age << PKSM_AGE_SHIFT);
	pksm_rescan_want();
}

/**
 * pksm_unstable_insert_watched - add a page that needs no second look
 * @pfn: as for pksm_unstable_insert()
 * @item: as for pksm_unstable_insert()
 * @hash: its hash
 * @age: its age, at most PKSM_MAX_AGE
 */
void pksm_unstable_insert_watched(unsigned long pfn,
				  struct pksm_rmap_item *item, u64 hash,
				  u32 age)
{
	pksm_unstable_link(pfn, item, hash, PKSM_WATCHED |
					    (age << PKSM_AGE_SHIFT));
}

/*
 * A record that is no longer in its bucket, and of whose page no reference is held:
 * it becomes free, or, if its page was born again or written to, it goes where
 * such pages go. Never both: once a record is not linked, the fault path may link
 * it.
 */
static void pksm_unlinked(unsigned long pfn, struct pksm_rmap_item *item)
{
	u32 old, age;

	do {
		old = READ_ONCE(item->state);
		age = pksm_age(old);
		if ((old & (PKSM_LIVE | PKSM_STABLE | PKSM_REBORN)) ==
		    (PKSM_LIVE | PKSM_REBORN)) {
			pksm_queue_add(pfn, item,
				       age || (old & PKSM_WATCHED) ?
				       pksm_age_level(age) : 0, age);
			return;
		}
	} while (!pksm_item_set(item, old, old & (PKSM_LIVE | PKSM_STABLE)));
}

/**
 * pksm_unstable_unlink - take a page out of its bucket
 * @pfn: its page frame number
 * @item: its record, in the index
 *
 * The state of the record is left to the caller, who holds a reference on the
 * page, so that nobody but a write to it can have changed it meanwhile.
 */
void pksm_unstable_unlink(unsigned long pfn, struct pksm_rmap_item *item)
{
	u32 *link = pksm_bucket(READ_ONCE(item->state) >> PKSM_HASH_SHIFT);

	lockdep_assert_held(&pksm_mutex);
	while (*link != pfn) {
		if (WARN_ON_ONCE(*link == PKSM_END))
			return;
		link = &pksm_item(*link)->next;
	}
	*link = item->next;
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
 * pksm_unstable_unwatched - is a page in the index, and not watched yet?
 * @state: the state of its record, seen under pksm_mutex
 *
 * Return: true when it is.
 */
bool pksm_unstable_unwatched(u32 state)
{
	return pksm_indexed(state) && !(state & PKSM_WATCHED);
}

/**
 * pksm_unstable_peek - look for pages that may be equal
 * @hash: the hash looked for
 * @pfn: what the last call returned, still in the index; PKSM_END to begin
 *
 * Unlike pksm_unstable_next() it leaves the bucket as it is.
 *
 * Return: The page frame number of a page whose hash may be @hash, or PKSM_END.
 */
unsigned long pksm_unstable_peek(u64 hash, unsigned long pfn)
{
	u32 next;

	lockdep_assert_held(&pksm_mutex);
	next = pfn == PKSM_END ? *pksm_bucket(pksm_tag(hash)) :
				 pksm_item(pfn)->next;
	while (next != PKSM_END) {
		struct pksm_rmap_item *item = pksm_item(next);

		if (pksm_unstable_holds(READ_ONCE(item->state), hash))
			break;
		next = item->next;
	}
	return next;
}

/**
 * pksm_unstable_holds - is a page in the index by a certain hash?
 * @state: the state of its record
 * @hash: the hash
 *
 * Return: true when it is, as far as a record tells.
 */
bool pksm_unstable_holds(u32 state, u64 hash)
{
	return pksm_indexed(state) &&
	       state >> PKSM_HASH_SHIFT == pksm_tag(hash);
}

/**
 * pksm_unstable_note_dead - a page of the index was freed, or written to
 * @state: the state its record had
 *
 * Context: Any, after the record was marked with full ordering. Takes no lock and
 * never sleeps.
 * Return: true when nobody else has noted anything before; all memory accesses
 * before the call are then ordered before those behind it.
 */
bool pksm_unstable_note_dead(u32 state)
{
	return pksm_mark(&pksm_dead, pksm_bucket(state >> PKSM_HASH_SHIFT) -
				     pksm_unstable);
}

/**
 * pksm_unstable_dead - was a page of the index freed, or written to?
 *
 * Return: true when pksm_unstable_reap() has something to do.
 */
bool pksm_unstable_dead(void)
{
	return READ_ONCE(pksm_dead.any);
}

/* Take the records out of a bucket whose pages are not what was hashed. */
static void pksm_reap_bucket(unsigned long bucket)
{
	u32 *link = &pksm_unstable[bucket];

	while (*link != PKSM_END) {
		unsigned long pfn = *link;
		struct pksm_rmap_item *item = pksm_item(pfn);

		if (pksm_indexed(READ_ONCE(item->state))) {
			link = &item->next;
			cond_resched();
			continue;
		}
		*link = item->next;
		pksm_unlinked(pfn, item);
	}
}

/**
 * pksm_unstable_reap - take out the records that were noted
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_unstable_reap(void)
{
	lockdep_assert_held(&pksm_mutex);
	if (pksm_unstable)
		pksm_marks_for_each(&pksm_dead, pksm_unstable_bits,
				    pksm_reap_bucket);
}

#ifdef CONFIG_MEMORY_HOTREMOVE
/**
 * pksm_unstable_purge - take every record of a range of page frames out of the index
 * @start: the first page frame number; none of the pages is in use any more, but for
 *	those that have gone bad
 * @end: the one behind the last
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_unstable_purge(unsigned long start, unsigned long end)
{
	unsigned long bucket;

	lockdep_assert_held(&pksm_mutex);
	for (bucket = 0; bucket < pksm_nr_buckets(); bucket++) {
		u32 *link = &pksm_unstable[bucket];

		while (*link != PKSM_END) {
			unsigned long pfn = *link;
			struct pksm_rmap_item *item = pksm_item(pfn);

			if (pfn < start || pfn >= end) {
				link = &item->next;
				continue;
			}
			*link = item->next;
			pksm_forget_offline(pfn, item);
			pksm_unlinked(pfn, item);
		}
		cond_resched();
	}
}
#endif

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
			pksm_queue_add(pfn, item, 0, 0);
			cond_resched();
		}
	}
}

#ifdef CONFIG_PKSM_DEBUG
/**
 * pksm_unstable_for_each - visit every record of the unstable index
 * @fn: called with each, the number of its bucket, and whether it is the bucket that
 *	it should be in; returns false to end
 *
 * Context: Process context, pksm_mutex held.
 * Return: false when @fn has ended it.
 */
bool pksm_unstable_for_each(bool (*fn)(unsigned long pfn, unsigned long bucket,
				       bool right))
{
	unsigned long bucket;
	u32 pfn;

	lockdep_assert_held(&pksm_mutex);
	for (bucket = 0; bucket < pksm_nr_buckets(); bucket++) {
		for (pfn = pksm_unstable[bucket]; pfn != PKSM_END;
		     pfn = pksm_item(pfn)->next) {
			u32 state = READ_ONCE(pksm_item(pfn)->state);

			if (!fn(pfn, bucket,
				pksm_bucket(state >> PKSM_HASH_SHIFT) ==
				&pksm_unstable[bucket]))
				return false;
		}
	}
	return true;
}
#endif

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
	if (!pksm_stable_repeats && pksm_stable_next(node->hash, NULL))
		WRITE_ONCE(pksm_stable_repeats, true);
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
 * pksm_stable_note_stale - a mapping of a stable page has gone
 * @node: its node
 *
 * Context: Any in which @node cannot be freed. Takes no lock and never sleeps.
 * Return: true when nobody else has noted anything before.
 */
bool pksm_stable_note_stale(struct pksm_stable_node *node)
{
	return pksm_mark(&pksm_stale, pksm_stable_bucket(node->hash) -
				      pksm_stable);
}

/**
 * pksm_stable_stale - has a mapping of a stable page gone?
 *
 * Return: true when pksm_stable_visit_stale() has something to do.
 */
bool pksm_stable_stale(void)
{
	return READ_ONCE(pksm_stale.any);
}

/* What pksm_stable_visit_stale() was asked to do; pksm_mutex is held. */
static void (*pksm_stale_fn)(struct pksm_stable_node *node);

static void pksm_stale_bucket(unsigned long bucket)
{
	struct pksm_stable_node *node;
	struct hlist_node *next;

	hlist_for_each_entry_safe(node, next, &pksm_stable[bucket], link)
		pksm_stale_fn(node);
}

/**
 * pksm_stable_visit_stale - visit where mappings of stable pages have gone
 * @fn: called with each node that was noted, and with some that were not
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_stable_visit_stale(void (*fn)(struct pksm_stable_node *node))
{
	lockdep_assert_held(&pksm_mutex);
	if (!pksm_stable)
		return;
	pksm_stale_fn = fn;
	pksm_marks_for_each(&pksm_stale, pksm_stable_bits, pksm_stale_bucket);
}

/**
 * pksm_stable_for_some - do something with the stable nodes of some buckets
 * @bucket: the first bucket; the one to go on with is written back
 * @budget: how many buckets
 * @fn: called with each node, which it may take out and free
 *
 * Context: Process context, pksm_mutex held. May sleep.
 * Return: true as long as there are more buckets.
 */
bool pksm_stable_for_some(unsigned long *bucket, unsigned int budget,
			  void (*fn)(struct pksm_stable_node *node))
{
	struct pksm_stable_node *node;
	struct hlist_node *next;

	lockdep_assert_held(&pksm_mutex);
	if (!pksm_stable)
		return false;
	for (; budget && *bucket < 1UL << pksm_stable_bits; budget--, ++*bucket) {
		hlist_for_each_entry_safe(node, next, &pksm_stable[*bucket], link) {
			fn(node);
			cond_resched();
		}
		cond_resched();
	}
	return *bucket < 1UL << pksm_stable_bits;
}

/**
 * pksm_stable_for_each - do something with every stable node
 * @fn: called with each node, which it may take out and free
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_stable_for_each(void (*fn)(struct pksm_stable_node *node))
{
	unsigned long bucket = 0;

	pksm_stable_for_some(&bucket, UINT_MAX, fn);
}

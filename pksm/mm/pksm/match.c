// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: looking for the equal of a page that has settled.
 *
 * First the zero page, then the stable index, then the unstable index. A hash
 * only says where to look; whether two pages are equal is decided in merge.c.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/highmem.h>
#include <linux/pagemap.h>

#include <trace/events/pksm.h>

#include "internal.h"
#include "hold.h"

/* Without memory for the engine's records a page waits for 26 seconds at most. */
#define PKSM_NOMEM_LEVEL	6U

/*
 * How many stable pages that are mapped as often as they may be are passed over.
 * With more of them, one that has room again may be missed for a new one.
 */
#define PKSM_MAX_FULL		16U

/**
 * pksm_pages_similar - compare a few cache lines of two pages
 * @page1: a page, of which a reference is held
 * @page2: another
 *
 * Saves freezing a page for nothing when only the bits of the hash that a record
 * keeps are equal.
 *
 * Context: Any.
 * Return: false when they are not equal.
 */
bool pksm_pages_similar(struct page *page1, struct page *page2)
{
	const size_t step = PAGE_SIZE / 4 + 128;
	char *addr1, *addr2;
	bool similar = true;
	size_t at;

	if (PageHWPoison(page1) || PageHWPoison(page2))
		return false;
	addr1 = kmap_local_page(page1);
	addr2 = kmap_local_page(page2);
	for (at = 0; similar && at < PAGE_SIZE; at += step)
		similar = !memcmp(addr1 + at, addr2 + at, 64);
	kunmap_local(addr2);
	kunmap_local(addr1);
	return similar;
}

/**
 * pksm_node_full - would a page be mapped too often with the mappings of another?
 * @kfolio: the page, of which a reference is held
 * @folio: the other
 *
 * Return: true when it would; it may be otherwise a moment later.
 */
bool pksm_node_full(struct folio *kfolio, struct folio *folio)
{
	return folio_mapcount(kfolio) + folio_mapcount(folio) >
	       READ_ONCE(pksm_max_page_sharing);
}

/*
 * There may be several stable pages with equal contents, since each of them has
 * only so many mappings. The newest comes first in its bucket.
 */
static enum pksm_result pksm_try_stable(struct folio *folio,
					const struct pksm_key *key,
					bool *differed)
{
	enum pksm_result result = PKSM_DIFFERS;
	struct pksm_stable_node *node = NULL;
	unsigned int full = 0;

	while ((node = pksm_stable_next(key->hash, node))) {
		struct folio *kfolio;

		pksm_hold(PKSM_AT_LOOKUP, READ_ONCE(node->pfn));
		kfolio = pksm_node_get_folio(node);
		if (!kfolio)
			continue;
		pksm_hold(PKSM_AT_FOUND, folio_pfn(kfolio));
		if (!folio_trylock(kfolio)) {
			folio_put(kfolio);
			result = PKSM_BUSY;
			continue;
		}
		if (pksm_folio_node(kfolio) == node &&
		    !folio_test_hwpoison(kfolio)) {
			/* Migration may have brought it away from its equals. */
			if (pksm_node_full(kfolio, folio) ||
			    pksm_node_crowded(node, kfolio) ||
			    pksm_kept_apart(kfolio, folio)) {
				full++;
			} else {
				result = pksm_merge_with_stable(folio, kfolio,
								node,
								key->domain);
				*differed |= result == PKSM_DIFFERS;
			}
			/* The next one shall find it before those that are full. */
			if (result == PKSM_MERGED && full) {
				pksm_stable_remove(node);
				pksm_stable_insert(node);
			}
		}
		folio_unlock(kfolio);
		folio_put(kfolio);
		if (result != PKSM_DIFFERS || full == PKSM_MAX_FULL)
			break;
	}
	return result;
}

/*
 * A page of the index was not equal after all. One that has changed since it was
 * hashed, or has come to another domain, goes back to the queue. Returns true when
 * it has not.
 */
static bool pksm_recheck(struct folio *kfolio, struct pksm_rmap_item *kitem,
			 const struct pksm_key *key)
{
	struct page *kpage = folio_page(kfolio, 0);
	u64 hash, domain;

	pksm_count_event(PKSM_EVENT_SCANNED);
	hash = pksm_hash_page(kpage);
	trace_pksm_hash(page_to_pfn(kpage), hash);
	pksm_folio_survey(kfolio, &domain);
	if (pksm_hash_alike(pksm_page_key(kpage, hash, domain), key->hash))
		return true;
	pksm_clean(kfolio);
	pksm_unstable_unlink(page_to_pfn(kpage), kitem);
	pksm_queue_changed(page_to_pfn(kpage), kitem,
			   pksm_age(READ_ONCE(kitem->state)) + 1);
	return false;
}

/*
 * A page of the index that cannot be merged: nobody is to meet it again soon. It is
 * given up, unless it is a relative by fork that keeps it from it, and may go.
 */
static void pksm_expel(struct folio *kfolio, struct pksm_rmap_item *kitem)
{
	struct page *kpage = folio_page(kfolio, 0);
	u32 age = min(pksm_age(READ_ONCE(kitem->state)) + 1, PKSM_MAX_AGE);
	u64 domain;

	pksm_unstable_unlink(page_to_pfn(kpage), kitem);
	if (!folio_test_anon(kfolio) || folio_test_ksm(kfolio) ||
	    pksm_folio_survey(kfolio, &domain) == PKSM_UNFIT)
		pksm_queue_drop(kpage, kitem);
	else
		pksm_queue_add(page_to_pfn(kpage), kitem, pksm_age_level(age),
			       age);
}

/*
 * A page of the index is equal, but somebody holds it, perhaps for long. Were it left
 * there, all its equals would wait for it, and never meet each other. It is tried again
 * a level behind the page that has met it: two that are both held put each other off
 * ever longer, and at the last level it stays. Returns false then.
 */
static bool pksm_step_aside(struct folio *kfolio, struct pksm_rmap_item *kitem,
			    u32 level)
{
	unsigned long pfn = folio_pfn(kfolio);
	u32 age = pksm_age(READ_ONCE(kitem->state));

	if (level >= PKSM_NR_LEVELS)
		return false;
	level = min(level + 1, PKSM_NR_LEVELS - 1);
	if (level == pksm_age_level(age))
		level++;	/* that would say that it was written to */
	pksm_unstable_unlink(pfn, kitem);
	pksm_queue_add(pfn, kitem, level, age);
	return true;
}

/* Only many equal pages are worth splitting a large folio: this is one of them. */
static enum pksm_result pksm_try_large(struct folio *folio, struct folio *kfolio,
				       unsigned long pfn)
{
	if (pksm_pages_similar(folio_page(folio, 0), pfn_to_page(pfn)))
		pksm_large_wanted(kfolio, pfn);
	return PKSM_DIFFERS;
}

/* Both pages are locked. */
static enum pksm_result pksm_try_candidate(struct folio *folio,
					   struct folio *kfolio,
					   struct pksm_rmap_item *kitem,
					   const struct pksm_key *key,
					   bool *differed)
{
	enum pksm_result result = pksm_folio_fit(kfolio);

	if (pksm_kept_apart(kfolio, folio) ||
	    (result == PKSM_MERGED && pksm_node_full(kfolio, folio)))
		return PKSM_DIFFERS;
	if (result == PKSM_UNFIT)
		result = PKSM_UNFIT_PARTNER;
	else if (!pksm_pages_similar(folio_page(folio, 0),
				     folio_page(kfolio, 0)))
		result = PKSM_DIFFERS;
	else if (result == PKSM_BUSY)
		result = PKSM_BUSY_PARTNER;
	else
		result = pksm_merge_with_unstable(folio, kfolio, kitem, key);

	if (result == PKSM_BUSY_PARTNER)
		return pksm_step_aside(kfolio, kitem, key->level) ?
		       PKSM_DIFFERS : PKSM_BUSY;
	if (result == PKSM_UNFIT_PARTNER) {
		pksm_expel(kfolio, kitem);
		return PKSM_DIFFERS;
	}
	if (result == PKSM_DIFFERS && pksm_recheck(kfolio, kitem, key))
		*differed = true;
	return result;
}

static enum pksm_result pksm_try_unstable(struct folio *folio,
					  const struct pksm_key *key,
					  bool *differed)
{
	enum pksm_result result = PKSM_DIFFERS;
	unsigned int tries = PKSM_MAX_CANDIDATES;
	unsigned long pfn, next;

	for (pfn = pksm_unstable_next(key->hash, PKSM_END);
	     pfn != PKSM_END && tries; pfn = next, tries--) {
		struct pksm_rmap_item *kitem = pksm_item(pfn);
		enum pksm_result one = PKSM_BUSY;
		struct folio *kfolio;

		cond_resched();
		/* Look ahead: this record may leave the bucket. */
		next = pksm_unstable_next(key->hash, pfn);
		pksm_hold(PKSM_AT_LOOKUP, pfn);
		kfolio = pksm_get_tracked(pfn);
		if (!kfolio)
			continue;
		pksm_hold(PKSM_AT_FOUND, pfn);
		/* Another page, if it was freed just now: not hashed yet. */
		if (READ_ONCE(kitem->state) & PKSM_REBORN) {
			folio_put(kfolio);
			continue;
		}
		if (folio_test_large(kfolio)) {
			one = pksm_try_large(folio, kfolio, pfn);
		} else if (folio_trylock(kfolio)) {
			one = pksm_try_candidate(folio, kfolio, kitem, key,
						 differed);
			folio_unlock(kfolio);
		}
		folio_put(kfolio);
		if (one != PKSM_DIFFERS && one != PKSM_BUSY)
			return one;
		if (one == PKSM_BUSY)
			result = PKSM_BUSY;
	}
	return result;
}

/*
 * A page that keeps changing need not be read to find that out. Returns true when
 * it was written to while it waited.
 */
static bool pksm_try_clean(struct folio *folio, struct pksm_rmap_item *item)
{
	return (READ_ONCE(item->state) & PKSM_CLEANED) && pksm_clean(folio);
}

/* Read the page, and try everything that may be its equal. */
static enum pksm_result pksm_try(struct folio *folio,
				 struct pksm_rmap_item *item,
				 struct pksm_key *key, bool *hashed)
{
	struct page *page = folio_page(folio, 0);
	enum pksm_result result;
	bool differed = false;
	u64 hash;

	result = pksm_folio_fit(folio);
	if (result == PKSM_MERGED)
		result = pksm_folio_survey(folio, &key->domain);
	if (result != PKSM_MERGED)
		return result;
	if (pksm_try_clean(folio, item))
		return PKSM_CHANGED;

	pksm_count_event(PKSM_EVENT_SCANNED);
	hash = pksm_hash_page(page);
	trace_pksm_hash(page_to_pfn(page), hash);
	key->hash = pksm_page_key(page, hash, key->domain);
	*hashed = true;
	pksm_hold(PKSM_AT_HASHED, page_to_pfn(page));
	if (hash == pksm_zero_hash(page) && READ_ONCE(pksm_use_zero_pages)) {
		result = pksm_merge_with_zero(folio);
		if (result != PKSM_DIFFERS)
			return result;
		differed = true;
	}
	/* Nobody looks for such a page. When it is written to it is one's own. */
	if (key->domain == PKSM_NO_DOMAIN)
		return PKSM_DIFFERS;
	result = pksm_try_stable(folio, key, &differed);
	if (result == PKSM_DIFFERS)
		result = pksm_try_unstable(folio, key, &differed);
	if (result != PKSM_DIFFERS || !differed)
		return result;

	/* Not equal in spite of equal hashes: has it changed meanwhile? */
	pksm_count_event(PKSM_EVENT_SCANNED);
	return pksm_hash_alike(pksm_hash_page(page), hash) ? PKSM_DIFFERS :
							     PKSM_CHANGED;
}

/**
 * pksm_consider - deal with a page that has settled
 * @pfn: its page frame number
 * @item: its record, popped from its queue and still marked PKSM_LIST
 *
 * Reads the page, and merges it, or puts its record into the unstable index, or
 * back into a queue, or gives the page up.
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 * Return: How many pages it was.
 */
unsigned int pksm_consider(unsigned long pfn, struct pksm_rmap_item *item)
{
	u32 age = pksm_age(READ_ONCE(item->state));
	u32 level = pksm_level(READ_ONCE(item->state)) + 1;
	enum pksm_result result = PKSM_BUSY;
	struct folio *folio;
	struct pksm_key key = { .level = level };
	bool hashed = false;
	bool locked;

	lockdep_assert_held(&pksm_mutex);

	folio = pksm_get_tracked(pfn);
	if (!folio) {
		/* Being freed, or its reference count is frozen. */
		if (level == pksm_age_level(age))
			level++;	/* that would say that it was written to */
		pksm_queue_add(pfn, item, min(level, PKSM_NR_LEVELS - 1), age);
		return 1;
	}
	if (READ_ONCE(item->state) & PKSM_STABLE) {
		/* It was freed just now, and a stable page moved here. */
		pksm_queue_settle(item);
		folio_put(folio);
		return 1;
	}
	if (folio_test_large(folio)) {
		unsigned int nr = folio_nr_pages(folio);

		VM_WARN_ON_ONCE_FOLIO(folio_pfn(folio) != pfn, folio);
		pksm_consider_large(folio, item);
		folio_put(folio);
		return nr;
	}
	locked = folio_trylock(folio);
	if (locked)
		result = pksm_try(folio, item, &key, &hashed);

	/*
	 * Enough tries: from now on others must find this page, and if it has
	 * not changed, it is not tried again before it is.
	 */
	if (result == PKSM_BUSY && hashed && level == PKSM_NR_LEVELS)
		result = PKSM_DIFFERS;
	/* Somebody holds it still, who may never give it back to a page table. */
	if (result == PKSM_BUSY && level == PKSM_NR_LEVELS && locked &&
	    !folio_mapped(folio))
		result = PKSM_UNFIT;

	switch (result) {
	case PKSM_MERGED:
	case PKSM_UNFIT:
		pksm_queue_drop(folio_page(folio, 0), item);
		break;
	case PKSM_DIFFERS:
		pksm_unstable_insert(pfn, item, key.hash, age);
		break;
	case PKSM_CHANGED:
		pksm_clean(folio);
		pksm_queue_changed(pfn, item, age + 1);
		break;
	case PKSM_NOMEM:
		/* That is not the page's fault. */
		pksm_queue_add(pfn, item, min(level, PKSM_NOMEM_LEVEL), age);
		break;
	default:
		pksm_queue_add(pfn, item, min(level, PKSM_NR_LEVELS - 1), age);
		break;
	}
	if (locked)
		folio_unlock(folio);
	folio_put(folio);
	return 1;
}

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

#include "internal.h"

/*
 * How many pages of the unstable index are tried. There may be any number with
 * equal contents, as long as something keeps them from being merged.
 */
#define PKSM_MAX_CANDIDATES	8U

/*
 * Compare a few cache lines, to save freezing a page for nothing when only the
 * bits of the hash that a record keeps are equal.
 */
static bool pksm_pages_similar(struct page *page1, struct page *page2)
{
	const size_t step = PAGE_SIZE / 4 + 128;
	char *addr1 = kmap_local_page(page1);
	char *addr2 = kmap_local_page(page2);
	bool similar = true;
	size_t at;

	for (at = 0; similar && at < PAGE_SIZE; at += step)
		similar = !memcmp(addr1 + at, addr2 + at, 64);
	kunmap_local(addr2);
	kunmap_local(addr1);
	return similar;
}

static enum pksm_result pksm_try_stable(struct folio *folio,
					const struct pksm_key *key,
					bool *differed)
{
	enum pksm_result result = PKSM_DIFFERS;
	struct pksm_stable_node *node = NULL;

	while ((node = pksm_stable_next(key->hash, node))) {
		struct folio *kfolio = pksm_node_get_folio(node);

		if (!kfolio)
			continue;
		if (!folio_trylock(kfolio)) {
			folio_put(kfolio);
			result = PKSM_BUSY;
			continue;
		}
		if (pksm_folio_node(kfolio) == node &&
		    !folio_test_hwpoison(kfolio))
			result = pksm_merge_with_stable(folio, kfolio, node,
							key->domain);
		folio_unlock(kfolio);
		folio_put(kfolio);
		if (result != PKSM_DIFFERS)
			break;
		*differed = true;
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
	u64 hash;

	pksm_count_event(PKSM_EVENT_SCANNED);
	hash = pksm_hash_page(kpage) ^ pksm_folio_domain(kfolio);
	if (pksm_hash_alike(hash, key->hash))
		return true;
	pksm_unstable_remove(page_to_pfn(kpage), kitem);
	pksm_queue_add(page_to_pfn(kpage), kitem, 1);
	return false;
}

/* A page of the index that can never be merged: nobody is to meet it again. */
static void pksm_expel(struct folio *kfolio, struct pksm_rmap_item *kitem)
{
	struct page *kpage = folio_page(kfolio, 0);

	pksm_unstable_remove(page_to_pfn(kpage), kitem);
	pksm_forget(kpage, kitem);
}

/* Both pages are locked. */
static enum pksm_result pksm_try_candidate(struct folio *folio,
					   struct folio *kfolio,
					   struct pksm_rmap_item *kitem,
					   const struct pksm_key *key,
					   bool *differed)
{
	enum pksm_result result = pksm_folio_fit(kfolio);

	if (result == PKSM_UNFIT)
		result = PKSM_UNFIT_PARTNER;
	else if (!pksm_pages_similar(folio_page(folio, 0),
				     folio_page(kfolio, 0)))
		result = PKSM_DIFFERS;
	else if (result == PKSM_MERGED)
		result = pksm_merge_with_unstable(folio, kfolio, kitem, key);

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
		struct folio *kfolio = pksm_get_tracked(pfn);
		enum pksm_result one = PKSM_BUSY;

		cond_resched();
		/* Look ahead: this record may leave the bucket. */
		next = pksm_unstable_next(key->hash, pfn);
		if (!kfolio)
			continue;
		/* Another page, if it was freed just now: not hashed yet. */
		if (READ_ONCE(kitem->state) & PKSM_REBORN) {
			folio_put(kfolio);
			continue;
		}
		if (folio_trylock(kfolio)) {
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

/* Read the page, and try everything that may be its equal. */
static enum pksm_result pksm_try(struct folio *folio, struct pksm_key *key,
				 bool *hashed)
{
	struct page *page = folio_page(folio, 0);
	enum pksm_result result;
	bool differed = false;
	u64 hash;

	result = pksm_folio_fit(folio);
	if (result != PKSM_MERGED)
		return result;

	pksm_count_event(PKSM_EVENT_SCANNED);
	hash = pksm_hash_page(page);
	key->domain = pksm_folio_domain(folio);
	key->hash = hash ^ key->domain;
	*hashed = key->domain != PKSM_NO_DOMAIN;
	if (hash == pksm_zero_hash() && READ_ONCE(pksm_use_zero_pages)) {
		result = pksm_merge_with_zero(folio);
		if (result != PKSM_DIFFERS)
			return result;
		differed = true;
	}
	if (key->domain == PKSM_NO_DOMAIN)
		return PKSM_BUSY;
	result = pksm_try_stable(folio, key, &differed);
	if (result == PKSM_DIFFERS)
		result = pksm_try_unstable(folio, key, &differed);
	if (result != PKSM_DIFFERS || !differed)
		return result;

	/* Not equal in spite of equal hashes: has it changed meanwhile? */
	pksm_count_event(PKSM_EVENT_SCANNED);
	return pksm_hash_alike(pksm_hash_page(page), hash) ? PKSM_DIFFERS :
							     PKSM_BUSY;
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
 */
void pksm_consider(unsigned long pfn, struct pksm_rmap_item *item)
{
	u32 level = pksm_level(READ_ONCE(item->state)) + 1;
	enum pksm_result result = PKSM_BUSY;
	struct folio *folio;
	struct pksm_key key = { };
	bool hashed = false;

	lockdep_assert_held(&pksm_mutex);

	folio = pksm_get_tracked(pfn);
	if (!folio) {
		/* Being freed, or its reference count is frozen. */
		pksm_queue_add(pfn, item, min(level, PKSM_NR_LEVELS - 1));
		return;
	}
	if (READ_ONCE(item->state) & PKSM_STABLE) {
		/* It was freed just now, and a stable page moved here. */
		pksm_queue_settle(item);
		folio_put(folio);
		return;
	}
	if (folio_trylock(folio)) {
		result = pksm_try(folio, &key, &hashed);
		folio_unlock(folio);
	}

	/* Enough tries: from now on others must find this page. */
	if (result != PKSM_MERGED && result != PKSM_UNFIT &&
	    level >= PKSM_NR_LEVELS)
		result = hashed ? PKSM_DIFFERS : PKSM_UNFIT;

	switch (result) {
	case PKSM_MERGED:
	case PKSM_UNFIT:
		pksm_queue_drop(folio_page(folio, 0), item);
		break;
	case PKSM_DIFFERS:
		pksm_unstable_insert(pfn, item, key.hash);
		break;
	default:
		pksm_queue_add(pfn, item, level);
		break;
	}
	folio_put(folio);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: large folios.
 *
 * A large folio is worth more than a few pages saved, so it is split for many equal
 * pages only. It enters by the record of its first page, which stays in the queues:
 * whenever its time comes, each page of the folio is read and looked for. Those that
 * have an equal (elsewhere, in the same folio, or the zero page) are counted, and
 * when they are enough the folio is split; its pages are then pages like any other.
 *
 * When they are not, the other records join the unstable index, so that the pages
 * are found by those that come later, of other large folios for instance. Each of
 * these is noted in the record of the page that it found, and when these notes have
 * become enough, the folio's turn comes early.
 *
 * Its PTEs, or its PMD, are not write-protected, so nobody tells of writes. It is
 * read again in intervals that double, therefore, up to the longest there is.
 *
 * khugepaged makes a large folio even of pages that were all but one the zero page
 * before. Such a folio enters with the highest age, and is split for more than half of
 * its pages only, and not for zeroes, nor for equals in other large folios: each would
 * undo what the other has done, for ever.
 *
 * In the record of a page of a large folio, other than the first, PKSM_WATCHED means
 * only that a pass over the index is to leave it alone; and an age of 1 that it has
 * an equal. Its page has PG_pksm. When the folio is freed, so are they; when somebody
 * splits it, each of them is told that its page was written to, and goes to a queue.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>

#include <trace/events/pksm.h>

#include "internal.h"

/* How many pages of a folio must have an equal for it to be split, in per cent. */
#define PKSM_SPLIT_PERCENT	50U

/* After it was read, a folio waits for 13 to 26 seconds by default, then longer. */
#define PKSM_LARGE_LEVEL	6U

/* How many pages of the unstable index are compared with one. */
#define PKSM_LARGE_CANDIDATES	4U

/* One that khugepaged has made needs one page more: so many it does not make again. */
static bool pksm_enough(struct folio *folio, unsigned int nr, bool fresh)
{
	return (nr + fresh) * 100 > folio_nr_pages(folio) * PKSM_SPLIT_PERCENT;
}

/* Take a record out of the index, if it is there; a dead one may be in a queue. */
static void pksm_large_unlink(unsigned long pfn, struct pksm_rmap_item *item)
{
	u32 old = READ_ONCE(item->state);

	if (pksm_where(old) != PKSM_INDEX)
		return;
	pksm_unstable_unlink(pfn, item);
	while (!pksm_item_set(item, old, (old & PKSM_LIVE) | PKSM_NONE))
		old = READ_ONCE(item->state);
	cond_resched();
}

/* A record that waits in a queue, dead, is left alone until next time. */
static void pksm_large_insert(struct page *page, u64 hash, bool matched)
{
	struct pksm_rmap_item *item = __pksm_rmap_item(page);

	if (pksm_where(READ_ONCE(item->state)) != PKSM_NONE)
		return;
	pksm_unstable_insert_watched(page_to_pfn(page), item, hash, matched);
	SetPagePKSM(page);
}

/* Nobody needs to find this page: it is known again when the folio is split. */
static void pksm_large_leave_out(struct page *page)
{
	if (PagePKSM(page))
		pksm_forget(page, __pksm_rmap_item(page));
}

/*
 * Is there an equal of this page, with which it could be merged? A page of another
 * large folio may do for one that is fresh: that one may be split then as well.
 * @nr: how many may be equal, in the index, up to a few.
 */
static bool pksm_large_match(struct folio *folio, struct page *page, u64 hash,
			     bool fresh, unsigned int *nr)
{
	struct pksm_stable_node *node = NULL;
	unsigned long pfn = PKSM_END;
	bool matched = false;

	while (!matched && (node = pksm_stable_next(hash, node)))
		matched = pksm_node_alive(node);
	for (*nr = 0; *nr < PKSM_LARGE_CANDIDATES; ++*nr) {
		struct folio *other;

		pfn = pksm_unstable_next(hash, pfn);
		if (pfn == PKSM_END)
			break;
		other = pksm_get_tracked(pfn);
		if (!other)
			continue;
		if (pksm_pages_similar(page, pfn_to_page(pfn))) {
			bool large = other != folio && folio_test_large(other);

			if (large)
				pksm_large_wanted(other, pfn);
			matched |= other == folio ||
				   (pksm_no_foreign_reference(other) &&
				    (fresh || !large));
		}
		folio_put(other);
	}
	return matched;
}

/*
 * Read a page, and put its record into the index, but for that of the first page,
 * of one more of many that are equal, and of a page of zeroes, which nobody looks
 * for. Returns whether it has an equal.
 */
static bool pksm_large_read_page(struct folio *folio, unsigned long i,
				 u64 domain, bool fresh)
{
	struct page *page = folio_page(folio, i);
	u64 hash = pksm_hash_page(page);
	unsigned int nr;
	bool matched;

	pksm_count_event(PKSM_EVENT_SCANNED);
	trace_pksm_hash(page_to_pfn(page), hash);
	if (hash == pksm_zero_hash() && READ_ONCE(pksm_use_zero_pages)) {
		if (i)
			pksm_large_leave_out(page);
		return fresh;
	}
	matched = pksm_large_match(folio, page, hash ^ domain, fresh, &nr);
	if (i && nr < PKSM_LARGE_CANDIDATES)
		pksm_large_insert(page, hash ^ domain, matched);
	else if (i)
		pksm_large_leave_out(page);
	return matched;
}

/* Read all pages. Returns how many of them have an equal. */
static unsigned int pksm_large_read(struct folio *folio, u64 domain, bool fresh)
{
	unsigned long i, nr = folio_nr_pages(folio);
	unsigned int nr_matched = 0;

	/* First of all, so that none is found by what it was before. */
	for (i = 1; i < nr; i++)
		pksm_large_unlink(folio_pfn(folio) + i,
				  __pksm_rmap_item(folio_page(folio, i)));
	for (i = 0; i < nr; i++) {
		nr_matched += pksm_large_read_page(folio, i, domain, fresh);
		cond_resched();
	}
	return nr_matched;
}

/**
 * pksm_large_wanted - somebody is equal to a page of a large folio
 * @folio: the folio, of which a reference is held
 * @pfn: the page; not the first of the folio
 *
 * Context: pksmd, pksm_mutex held.
 */
void pksm_large_wanted(struct folio *folio, unsigned long pfn)
{
	struct pksm_rmap_item *item = pksm_item(pfn);
	unsigned long i, nr = folio_nr_pages(folio);
	u32 old = READ_ONCE(item->state);
	unsigned int wanted = 0;

	lockdep_assert_held(&pksm_mutex);
	if (pksm_where(old) != PKSM_INDEX || (old & PKSM_REBORN) ||
	    pksm_age(old))
		return;
	while (!pksm_item_set(item, old, old | (1U << PKSM_AGE_SHIFT)))
		old = READ_ONCE(item->state);
	for (i = 1; i < nr; i++) {
		item = __pksm_rmap_item(folio_page(folio, i));
		old = READ_ONCE(item->state);
		wanted += pksm_where(old) == PKSM_INDEX && pksm_age(old);
	}
	item = __pksm_rmap_item(folio_page(folio, 0));
	if (pksm_enough(folio, wanted, !pksm_age(READ_ONCE(item->state))))
		pksm_queue_hurry(item);
}

/**
 * pksm_large_forget - stop tracking all pages of a large folio but the first
 * @folio: the folio, of which a reference is held
 *
 * Context: Process context, pksm_mutex held.
 */
void pksm_large_forget(struct folio *folio)
{
	unsigned long i, nr = folio_nr_pages(folio);

	lockdep_assert_held(&pksm_mutex);
	for (i = 1; i < nr; i++) {
		struct page *page = folio_page(folio, i);
		struct pksm_rmap_item *item = __pksm_rmap_item(page);

		pksm_large_unlink(page_to_pfn(page), item);
		if (PagePKSM(page))
			pksm_forget(page, item);
	}
}

/* Returns true when the folio is split now. */
static bool pksm_large_try(struct folio *folio, u64 domain, bool fresh)
{
	unsigned long nr = folio_nr_pages(folio), pfn = folio_pfn(folio);
	unsigned int matched;
	int err;

	matched = pksm_large_read(folio, domain, fresh);
	if (!pksm_enough(folio, matched, fresh))
		return false;
	err = split_folio(folio);
	trace_pksm_split(pfn, nr, matched, err);
	return !err;
}

/**
 * pksm_consider_large - deal with a large folio whose time has come
 * @folio: the folio, of which a reference is held
 * @item: the record of its first page, popped from its queue and still marked
 *	PKSM_LIST
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 */
void pksm_consider_large(struct folio *folio, struct pksm_rmap_item *item)
{
	u32 age = pksm_age(READ_ONCE(item->state));
	u32 level = pksm_level(READ_ONCE(item->state)) + 1;
	unsigned long pfn = folio_pfn(folio);
	enum pksm_result result;
	bool split = false;
	u64 domain;

	lockdep_assert_held(&pksm_mutex);
	if (folio_trylock(folio)) {
		result = folio_test_hwpoison(folio) ||
			 folio_test_has_hwpoisoned(folio) ?
			 PKSM_UNFIT : pksm_folio_survey(folio, &domain);
		if (result == PKSM_UNFIT) {
			pksm_large_forget(folio);
			pksm_queue_drop(folio_page(folio, 0), item);
			folio_unlock(folio);
			return;
		}
		if (result == PKSM_MERGED && domain != PKSM_NO_DOMAIN &&
		    !folio_test_swapcache(folio)) {
			split = pksm_large_try(folio, domain, !age);
			level = max(level, PKSM_LARGE_LEVEL);
		}
		folio_unlock(folio);
	}
	pksm_queue_add(pfn, item,
		       split ? 0 : min(level, PKSM_NR_LEVELS - 1),
		       split ? 0 : age);
}

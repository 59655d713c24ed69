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
 * A folio that was not split is read once more some time later, and watched from then
 * on (see watch.c): its mappings are write-protected, and the record of its first page
 * joins the index as well. It need not be read again before it is written to, and then
 * it waits for longer each time. One that cannot be watched, since somebody holds a
 * reference on it, is tried again in intervals that double, up to the longest there is;
 * it is not read for that.
 *
 * khugepaged makes a large folio even of pages that were all but one the zero page
 * before. Such a folio enters with the highest age, which no other reaches, and is split
 * for more than half of its pages only, and not for zeroes, nor for equals in other large
 * folios: each would undo what the other has done, for ever.
 *
 * In the record of a page of a large folio, other than the first, PKSM_WATCHED means
 * only that a pass over the index is to leave it alone; and an age of 1 that it has
 * an equal. Its page has PG_pksm. When the folio is freed, so are they; when somebody
 * splits it, each of them is told that its page was written to, and goes to a queue.
 * In that of the first page both mean what they mean for others; when it is found by an
 * equal that makes them enough, it is told of a write, so that its turn comes.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/swap.h>

#include <trace/events/pksm.h>

#include "fail.h"
#include "hold.h"
#include "internal.h"

/* How many pages of a folio must have an equal for it to be split, in per cent. */
#define PKSM_SPLIT_PERCENT	50U

/*
 * How long a folio waits that was read, by its age: 26, 102, 410 and 820 seconds by
 * default, each of them at least once and at most twice. None is what pksm_age_level()
 * says for that age, so that one which comes from there can be told.
 */
static const u8 pksm_large_levels[PKSM_MAX_AGE + 1] = { 7, 9, 11, 12 };

/* How many pages of the unstable index are compared with one. */
#define PKSM_LARGE_CANDIDATES	4U

/* One that khugepaged has made needs one page more: so many it does not make again. */
static bool pksm_enough(struct folio *folio, unsigned int nr, bool fresh)
{
	return (nr + fresh) * 100 > folio_nr_pages(folio) * PKSM_SPLIT_PERCENT;
}

/* Was the folio made by a fault, rather than by khugepaged? */
static bool pksm_large_fresh(u32 state)
{
	return pksm_age(state) < PKSM_MAX_AGE;
}

static bool pksm_large_made_by_fault(struct folio *folio)
{
	struct pksm_rmap_item *first = __pksm_rmap_item(folio_page(folio, 0));

	return pksm_large_fresh(READ_ONCE(first->state));
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
		matched = pksm_node_alive(node) &&
			  !pksm_node_kept_apart(node, folio);
	for (*nr = 0; *nr < PKSM_LARGE_CANDIDATES; ++*nr) {
		struct folio *other;

		/* The first page may be in a bucket, and stays there for now. */
		pfn = pksm_unstable_peek(hash, pfn);
		if (pfn == PKSM_END)
			break;
		if (pfn == page_to_pfn(page))
			continue;
		other = pksm_get_tracked(pfn);
		if (!other)
			continue;
		if (!pksm_kept_apart(other, folio) &&
		    pksm_pages_similar(page, pfn_to_page(pfn))) {
			bool large = other != folio && folio_test_large(other);

			/* Not one that is not split for pages like these. */
			if (large && pksm_large_made_by_fault(other))
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
	if (!i)
		pksm_hold(PKSM_AT_LARGE, page_to_pfn(page));
	if (hash == pksm_zero_hash(page) && READ_ONCE(pksm_use_zero_pages)) {
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

/* How many pages of a folio are known to have an equal, without the first. */
static unsigned int pksm_large_nr_wanted(struct folio *folio)
{
	unsigned long i, nr = folio_nr_pages(folio);
	unsigned int wanted = 0;

	for (i = 1; i < nr; i++) {
		u32 state = READ_ONCE(__pksm_rmap_item(folio_page(folio, i))->state);

		wanted += pksm_where(state) == PKSM_INDEX && pksm_age(state);
	}
	return wanted;
}

/**
 * pksm_large_wanted - somebody is equal to a page of a large folio
 * @folio: the folio, of which a reference is held
 * @pfn: the page
 *
 * Context: pksmd, pksm_mutex held.
 */
void pksm_large_wanted(struct folio *folio, unsigned long pfn)
{
	struct pksm_rmap_item *first = __pksm_rmap_item(folio_page(folio, 0));
	struct pksm_rmap_item *item = pksm_item(pfn);
	u32 old = READ_ONCE(item->state);
	unsigned int wanted;

	lockdep_assert_held(&pksm_mutex);
	if (pksm_where(old) != PKSM_INDEX || (old & PKSM_REBORN))
		return;
	/* Of the first page there is no note; whoever has one was counted before. */
	if (item != first && pksm_age(old))
		return;
	wanted = pksm_large_nr_wanted(folio) + 1;
	while (item != first &&
	       !pksm_item_set(item, old, old | (1U << PKSM_AGE_SHIFT)))
		old = READ_ONCE(item->state);
	if (!pksm_enough(folio, wanted,
			 pksm_large_fresh(READ_ONCE(first->state))))
		return;
	/* It is in the one or in the other; whoever calls may be in its bucket. */
	pksm_queue_hurry(first);
	old = READ_ONCE(first->state);
	while (pksm_large_fresh(old) && pksm_where(old) == PKSM_INDEX &&
	       !pksm_item_set(first, old, old & ~PKSM_AGE_MASK))
		old = READ_ONCE(first->state);
	__pksm_page_written(folio_page(folio, 0));
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

/* What became of a large folio that was read. */
enum pksm_large_result {
	PKSM_LARGE_WAITS,
	PKSM_LARGE_WATCHED,
	PKSM_LARGE_SPLIT,
};

/* Returns whether the folio is split now. */
static bool pksm_large_split(struct folio *folio, unsigned int matched)
{
	unsigned long nr = folio_nr_pages(folio), pfn = folio_pfn(folio);
	int err;

	err = pksm_should_fail(PKSM_FAIL_SPLIT) ? -ENOMEM : split_folio(folio);
	trace_pksm_split(pfn, nr, matched, err);
	if (!err)
		WRITE_ONCE(pksm_folios_split, pksm_folios_split + 1);
	return !err;
}

/*
 * Put the record of the first page into the index, and write-protect the folio, in
 * this order: a write from now on is told, or the pages are read after it.
 */
static bool pksm_large_watch(struct folio *folio, struct pksm_rmap_item *item,
			     u64 domain, u32 age)
{
	struct page *page = folio_page(folio, 0);
	u64 hash;

	if (!pksm_no_foreign_reference(folio))
		return false;
	pksm_count_event(PKSM_EVENT_SCANNED);
	hash = pksm_hash_page(page);
	trace_pksm_hash(page_to_pfn(page), hash);
	pksm_unstable_insert_watched(page_to_pfn(page), item,
				     pksm_page_key(page, hash, domain), age);
	/* It may have been written to before it was watched. */
	if (pksm_watch(folio) && pksm_hash_alike(pksm_hash_page(page), hash))
		return true;
	pksm_unstable_unlink(page_to_pfn(page), item);
	return false;
}

/*
 * With the record of the first page not linked. Unless the result is
 * PKSM_LARGE_WATCHED it is not linked afterwards.
 */
static enum pksm_large_result pksm_large_try(struct folio *folio,
					     struct pksm_rmap_item *item,
					     u64 domain, u32 level)
{
	bool watch = level;
	bool last = level == PKSM_NR_LEVELS - 1;
	u32 age = pksm_age(READ_ONCE(item->state));
	bool fresh = pksm_large_fresh(READ_ONCE(item->state));
	unsigned long pfn = folio_pfn(folio);
	unsigned int matched;
	bool split;

	if (watch)
		watch = pksm_large_watch(folio, item, domain, age);
	if (domain == PKSM_NO_DOMAIN) {
		/* Nobody looks for its pages. */
		pksm_large_forget(folio);
	} else {
		matched = pksm_large_read(folio, domain, fresh);
		if (pksm_enough(folio, matched, fresh)) {
			split = pksm_large_split(folio, matched);
			/* It may be held just now: it is split another time. */
			if (split || !last) {
				if (watch)
					pksm_unstable_unlink(pfn, item);
				return split ? PKSM_LARGE_SPLIT :
					       PKSM_LARGE_WAITS;
			}
		}
	}
	return watch ? PKSM_LARGE_WATCHED : PKSM_LARGE_WAITS;
}

/*
 * It was written to, and is in no hurry: it waits, longer each time. But it does not
 * become as old as one that khugepaged has made.
 */
static void pksm_large_changed(struct folio *folio, struct pksm_rmap_item *item)
{
	u32 age = pksm_age(READ_ONCE(item->state));

	pksm_queue_add(folio_pfn(folio), item, pksm_large_levels[age],
		       age + 1 < PKSM_MAX_AGE ? age + 1 : age);
}

/* It waits, since it could not be had, or not be watched: longer each time. */
static void pksm_large_again(struct folio *folio, struct pksm_rmap_item *item,
			     u32 level, u32 age)
{
	level = max(level + 1, (u32)pksm_large_levels[0]);
	if (level == pksm_age_level(age))
		level++;
	pksm_queue_add(folio_pfn(folio), item,
		       min(level, PKSM_NR_LEVELS - 1), age);
}

/* As pksm_folio_fit() for a page: a swap entry that nobody else needs is freed. */
static bool pksm_large_out_of_swap(struct folio *folio)
{
	return !folio_test_writeback(folio) &&
	       (!folio_test_swapcache(folio) || folio_free_swap(folio));
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
	enum pksm_large_result became = PKSM_LARGE_WAITS;
	u32 state = READ_ONCE(item->state);
	u32 age = pksm_age(state), level = pksm_level(state);
	unsigned long pfn = folio_pfn(folio);
	enum pksm_result result;
	u64 domain;

	lockdep_assert_held(&pksm_mutex);
	/* Not one that is new, nor one that has waited here. */
	if (level && level == pksm_age_level(age) &&
	    !pksm_enough(folio, pksm_large_nr_wanted(folio) + 1,
			 pksm_large_fresh(state))) {
		pksm_large_changed(folio, item);
		return;
	}
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
		/* One that is held for long is read once, not again and again. */
		if (result == PKSM_MERGED && pksm_large_out_of_swap(folio) &&
		    (!level || pksm_no_foreign_reference(folio)))
			became = pksm_large_try(folio, item, domain, level);
		folio_unlock(folio);
	}
	switch (became) {
	case PKSM_LARGE_WATCHED:
		break;
	case PKSM_LARGE_SPLIT:
		pksm_queue_add(pfn, item, 0, 0);
		break;
	case PKSM_LARGE_WAITS:
		pksm_large_again(folio, item, level, age);
		break;
	}
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: a second look at pages that found no partner.
 *
 * A page of the unstable index may change, and its hash is then good for nothing:
 * nobody who becomes its equal will find it. So, pksm_rescan_seconds after the
 * first such page came, pksmd passes over the page frames, whose records lie side by
 * side, and so do, mostly, the pages of a process: the index would lead to and fro in all
 * of memory. Each page of the index that is not watched yet becomes so and is read again.
 * If it is what it was, that was the last time; if it has changed, it goes back to a
 * queue, for a time that grows with its age.
 *
 * So each page is read twice, and its intervals grow, from then on for as long as
 * it keeps changing. When nothing but watched pages is left there are no passes.
 *
 * A page that cannot be watched just now, since somebody holds a reference on it,
 * stays in the index, where others may find it, and is not read. A pass that finds
 * nothing else is followed by another after twice the time, up to 64 times. Two equal
 * pages may both be in the index, when neither could be had for long: the second that
 * is watched goes back to a queue, to be merged with the first.
 *
 * All of it is guarded by pksm_mutex.
 */
#include <linux/jiffies.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/swap.h>

#include <trace/events/pksm.h>

#include "internal.h"

unsigned int pksm_rescan_seconds = 20;

/* Page frames in one step: with most of them there is nothing to do. */
#define PKSM_RESCAN_STEP	4096U

/* Passes that have found nothing more to look at, or the end of memory. */
unsigned long pksm_full_scans;

static unsigned long pksm_rescan_pfn;
static unsigned long pksm_rescan_due;	/* in jiffies: when the pass begins */
static bool pksm_rescan_wanted;
static unsigned int pksm_rescan_backoff;	/* how often the interval was doubled */
static unsigned long pksm_rescan_done;	/* pages that this pass has dealt with */

#define PKSM_MAX_RESCAN_BACKOFF	6U

static unsigned long pksm_rescan_interval(void)
{
	return (unsigned long)pksm_rescan_seconds * HZ << pksm_rescan_backoff;
}

static void pksm_rescan_again(void)
{
	pksm_rescan_wanted = true;
	pksm_rescan_due = jiffies + pksm_rescan_interval();
}

/**
 * pksm_rescan_want - there is a new page that is not watched
 *
 * Context: pksm_mutex held.
 */
void pksm_rescan_want(void)
{
	lockdep_assert_held(&pksm_mutex);
	if (pksm_rescan_wanted && !pksm_rescan_backoff)
		return;
	pksm_rescan_backoff = 0;
	pksm_rescan_again();
}

/**
 * pksm_rescan_restart - begin to wait again, and then at the first page frame
 *
 * Context: pksm_mutex held.
 */
void pksm_rescan_restart(void)
{
	lockdep_assert_held(&pksm_mutex);
	pksm_rescan_pfn = 0;
	pksm_rescan_backoff = 0;
	pksm_rescan_due = jiffies + pksm_rescan_interval();
}

/**
 * pksm_rescan_timeout - when is there a page to look at?
 *
 * Return: 0 when pksm_rescan() has something to do; else the time until it has, in
 * jiffies; MAX_SCHEDULE_TIMEOUT for never.
 */
unsigned long pksm_rescan_timeout(void)
{
	lockdep_assert_held(&pksm_mutex);
	if (!pksm_rescan_wanted || !pksm_rescan_seconds)
		return MAX_SCHEDULE_TIMEOUT;
	if (pksm_rescan_pfn || time_after_eq(jiffies, pksm_rescan_due))
		return 0;
	return pksm_rescan_due - jiffies;
}

static void pksm_rescan_set(struct pksm_rmap_item *item, u32 clear, u32 set)
{
	u32 old;

	do {
		old = READ_ONCE(item->state);
	} while (!pksm_item_set(item, old, (old & ~clear) | set));
}

/*
 * It could not be watched after all. A write that came meanwhile was told, and then
 * the record is about to be taken out of the index.
 */
static void pksm_rescan_unwatch(struct pksm_rmap_item *item)
{
	u32 old;

	do {
		old = READ_ONCE(item->state);
		if (old & PKSM_REBORN)
			return;
	} while (!pksm_item_set(item, old, old & ~PKSM_WATCHED));
}

/*
 * Is there another page in the index with which this one can be merged, as far as
 * can be told? If that is wrong the page will be back, for nothing.
 */
static bool pksm_rescan_has_equal(struct folio *folio, u64 hash)
{
	unsigned int tries = PKSM_MAX_CANDIDATES;
	unsigned long pfn = PKSM_END;
	bool equal = false;

	while (!equal && tries--) {
		struct folio *other;

		pfn = pksm_unstable_peek(hash, pfn);
		if (pfn == PKSM_END)
			break;
		if (pfn == folio_pfn(folio))
			continue;
		other = pksm_get_tracked(pfn);
		if (!other)
			continue;
		equal = !folio_test_large(other) &&
			pksm_no_foreign_reference(other) &&
			!pksm_node_full(other, folio) &&
			!pksm_kept_apart(other, folio) &&
			pksm_pages_similar(folio_page(folio, 0),
					   folio_page(other, 0)) &&
			pksm_pages_equal(folio_page(folio, 0),
					 folio_page(other, 0));
		folio_put(other);
	}
	return equal;
}

/* The page is locked, and a reference on it is held. */
static void pksm_rescan_folio(struct folio *folio, struct pksm_rmap_item *item)
{
	unsigned long pfn = folio_pfn(folio);
	u32 age = pksm_age(READ_ONCE(item->state));
	enum pksm_result result;
	u64 domain, hash;

	/* A page that is held for long is to cost nothing. */
	if (!folio_test_swapcache(folio) && !folio_test_hwpoison(folio) &&
	    !pksm_no_foreign_reference(folio))
		return;
	result = pksm_folio_fit(folio);
	if (result == PKSM_MERGED)
		result = pksm_folio_survey(folio, &domain);
	if (result == PKSM_UNFIT) {
		pksm_unstable_unlink(pfn, item);
		pksm_queue_drop(folio_page(folio, 0), item);
		pksm_rescan_done++;
		return;
	}
	if (result != PKSM_MERGED || !pksm_no_foreign_reference(folio))
		return;

	/* It is on its way while the page tables are looked for. */
	pksm_read_ahead(folio_page(folio, 0));
	pksm_read_ahead_rest();

	/* In this order: a write from now on is told, or its page is read after. */
	pksm_rescan_set(item, 0, PKSM_WATCHED);
	if (!pksm_watch(folio)) {
		pksm_rescan_unwatch(item);
		return;
	}
	pksm_rescan_done++;
	pksm_count_event(PKSM_EVENT_SCANNED);
	hash = pksm_hash_page(folio_page(folio, 0));
	trace_pksm_hash(pfn, hash);
	hash = pksm_page_key(folio_page(folio, 0), hash, domain);
	if (pksm_unstable_holds(READ_ONCE(item->state), hash)) {
		trace_pksm_rescan(pfn, true, age);
		/* At once; but later each time, and not again and again. */
		if (domain != PKSM_NO_DOMAIN && age < PKSM_MAX_AGE &&
		    pksm_rescan_has_equal(folio, hash)) {
			pksm_unstable_unlink(pfn, item);
			pksm_queue_add(pfn, item,
				       age ? pksm_age_level(age) : 0,
				       age + 1);
			return;
		}
		if (age)
			pksm_rescan_set(item, PKSM_AGE_MASK,
					(age - 1) << PKSM_AGE_SHIFT);
		return;
	}
	trace_pksm_rescan(pfn, false, age + 1);
	pksm_clean(folio);
	pksm_unstable_unlink(pfn, item);
	pksm_queue_changed(pfn, item, age + 1);
}

/* A page that cannot be had just now is left to the next pass. */
static void pksm_rescan_page(unsigned long pfn)
{
	struct pksm_rmap_item *item = pksm_item(pfn);
	struct folio *folio = pksm_get_tracked(pfn);
	u32 state;

	if (!folio)
		return;
	/* Of large ones none is in the index without being watched: see large.c. */
	if (!folio_test_large(folio) && folio_trylock(folio)) {
		/* It may be another page by now: then it will be reaped. */
		state = READ_ONCE(item->state);
		if (!(state & (PKSM_REBORN | PKSM_STABLE)))
			pksm_rescan_folio(folio, item);
		folio_unlock(folio);
	}
	folio_put(folio);
}

/**
 * pksm_rescan - go on with the pass, or begin it
 * @budget: how many pages to look at
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 */
void pksm_rescan(unsigned int budget)
{
	unsigned long end = pksm_end_pfn();
	unsigned int step;

	lockdep_assert_held(&pksm_mutex);
	/* Pages in the LRU batches have one reference more. */
	if (!pksm_rescan_pfn) {
		lru_add_drain_all();
		pksm_rescan_done = 0;
	}
	for (step = 0; step < PKSM_RESCAN_STEP && budget; step++) {
		unsigned long pfn = pksm_rescan_pfn;
		struct pksm_rmap_item *item;
		struct page *page;

		if (pfn >= end)
			break;
		page = pksm_next_frame(&pksm_rescan_pfn);
		item = page ? __pksm_rmap_item(page) : NULL;
		if (!item || !pksm_unstable_unwatched(READ_ONCE(item->state)))
			continue;
		pksm_rescan_page(pfn);
		budget--;
		cond_resched();
	}
	if (pksm_rescan_pfn < end && pksm_nr_class(PKSM_CLASS_UNSHARED))
		return;

	pksm_rescan_pfn = 0;
	WRITE_ONCE(pksm_full_scans, pksm_full_scans + 1);
	pksm_rescan_wanted = false;
	if (pksm_rescan_done)
		pksm_rescan_backoff = 0;
	else if (pksm_rescan_backoff < PKSM_MAX_RESCAN_BACKOFF)
		pksm_rescan_backoff++;
	/* Those that came behind the pass, or could not be had. */
	if (pksm_nr_class(PKSM_CLASS_UNSHARED))
		pksm_rescan_again();
	else
		pksm_rescan_backoff = 0;
}

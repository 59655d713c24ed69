// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: taking in the pages that were there before.
 *
 * The fault path hands pages in only while the engine runs. When it is started,
 * pksmd goes over the page frames once, in small steps, and takes in each
 * anonymous page that is not tracked, whoever it belongs to. No address space is
 * walked; a frame that holds anything else costs one look at its struct page.
 *
 * A page that is locked, frozen or off its LRU list just now is missed; so a pass
 * that missed any is followed by another a second later, a few times.
 *
 * All of it is guarded by pksm_mutex.
 */
#include <linux/jiffies.h>
#include <linux/memory_hotplug.h>
#include <linux/mmzone.h>
#include <linux/pageblock-flags.h>
#include <linux/sched.h>
#include <linux/swap.h>

#include "internal.h"

/* Page frames looked at in one step. */
#define PKSM_SWEEP_STEP		4096U

#define PKSM_SWEEP_PASSES	4U

/* What a page frame that is not there says of those behind it, in page frames. */
#ifdef CONFIG_SPARSEMEM
#define PKSM_HOLE		min(pageblock_nr_pages, PAGES_PER_SUBSECTION)
#else
#define PKSM_HOLE		pageblock_nr_pages
#endif

static unsigned long pksm_sweep_pfn;
static unsigned int pksm_sweep_passes;	/* how many may still follow */
static unsigned long pksm_sweep_missed;
static unsigned long pksm_sweep_due;	/* in jiffies: when the pass begins */

/**
 * pksm_end_pfn - where do the page frames end?
 *
 * Not every architecture keeps max_pfn right when memory is added. The node of a device
 * ends with the device's memory, which may be at the end of all addresses.
 *
 * Context: Any. More of them may come and go at any time.
 * Return: The page frame number behind the last of a page that may be tracked.
 */
unsigned long pksm_end_pfn(void)
{
	unsigned long end = 0;
	struct zone *zone;

	for_each_populated_zone(zone) {
		if (!zone_is_zone_device(zone))
			end = max(end, zone_end_pfn(zone));
	}
	return end;
}

/**
 * pksm_next_frame - step over the page frames
 * @pfn: the page frame number; afterwards the one to go on with
 *
 * Context: pksm_mutex held: until it is released the record of the page stays.
 * Return: The page, or NULL when there is none.
 */
struct page *pksm_next_frame(unsigned long *pfn)
{
	struct page *page;

	lockdep_assert_held(&pksm_mutex);
	page = pfn_to_online_page(*pfn);
	*pfn = page ? *pfn + 1 : ALIGN(*pfn + 1, PKSM_HOLE);
	return page;
}

/**
 * pksm_sweep_start - take in the pages that are there, from now on
 *
 * Context: pksm_mutex held, intake on.
 */
void pksm_sweep_start(void)
{
	lockdep_assert_held(&pksm_mutex);
	pksm_sweep_pfn = 0;
	pksm_sweep_missed = 0;
	pksm_sweep_passes = PKSM_SWEEP_PASSES;
	pksm_sweep_due = jiffies;
}

/**
 * pksm_sweep_stop - take in no more of them
 */
void pksm_sweep_stop(void)
{
	lockdep_assert_held(&pksm_mutex);
	pksm_sweep_passes = 0;
}

/**
 * pksm_sweep_timeout - when are there page frames to look at?
 *
 * Return: 0 when pksm_sweep() has something to do; else the time until it has, in
 * jiffies; MAX_SCHEDULE_TIMEOUT for never.
 */
unsigned long pksm_sweep_timeout(void)
{
	lockdep_assert_held(&pksm_mutex);
	if (!pksm_sweep_passes)
		return MAX_SCHEDULE_TIMEOUT;
	if (pksm_sweep_pfn || time_after_eq(jiffies, pksm_sweep_due))
		return 0;
	return pksm_sweep_due - jiffies;
}

/* Something that only looks like an anonymous page is found out further down. */
static bool pksm_sweep_wants(struct page *page)
{
	return !PageTail(page) && PageAnon(page) && !PagePKSM(page) &&
	       !page_has_type(page) && !PageHWPoison(page);
}

/*
 * Returns false when the page may be one to take in, and could not be.
 *
 * A page off the LRU may be one that is just being born: its flags are still
 * private, and not even its lock may be taken. The hook will see to it.
 */
static bool pksm_sweep_page(struct page *page)
{
	struct folio *folio = (struct folio *)page;
	struct pksm_rmap_item *item;
	bool done = false;

	/* Who frees a page changes its flags in ways that only an owner may: it is a hint. */
	if (!data_race(pksm_sweep_wants(page)))
		return true;
	/* About to be freed, or frozen for a moment by migration or reclaim. */
	if (!folio_try_get(folio))
		return false;
	if (!folio_test_lru(folio) || !folio_trylock(folio))
		goto out;
	done = true;
	if (pksm_sweep_wants(page) && !folio_test_ksm(folio)) {
		item = __pksm_rmap_item(page);
		if (item)
			pksm_add_moved_page(page, item, false, 0);
	}
	folio_unlock(folio);
out:
	folio_put(folio);
	return done;
}

/**
 * pksm_sweep - go over some page frames
 *
 * Context: pksmd, pksm_mutex held, intake on. May sleep.
 */
void pksm_sweep(void)
{
	unsigned long end = pksm_end_pfn();
	unsigned int step;

	lockdep_assert_held(&pksm_mutex);
	/* Pages in the batches of the LRU are not on it yet. */
	if (!pksm_sweep_pfn)
		lru_add_drain_all();

	for (step = 0; step < PKSM_SWEEP_STEP; step++) {
		struct page *page;

		if (pksm_sweep_pfn >= end)
			break;
		page = pksm_next_frame(&pksm_sweep_pfn);
		if (page && !pksm_sweep_page(page))
			pksm_sweep_missed++;
	}
	if (pksm_sweep_pfn < end)
		return;

	pksm_sweep_passes--;
	if (!pksm_sweep_missed)
		pksm_sweep_passes = 0;
	pksm_sweep_pfn = 0;
	pksm_sweep_missed = 0;
	pksm_sweep_due = jiffies + HZ;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: is everything as it has to be?
 *
 * Goes over the queues, both indexes, the stable nodes and the record of every page
 * frame, and stops at the first thing that cannot be. Faults and frees go on
 * meanwhile on other CPUs, and change records and counters; what is found wrong is
 * looked for again, therefore, and only believed when it stays.
 *
 * Invariants:
 *
 * - A record that is marked PKSM_LIST is in exactly one queue or new list, one that
 *   is marked PKSM_INDEX in exactly one bucket, that of its hash; no other record is
 *   in either.
 * - A record is alive if and only if its page has PG_pksm.
 * - The counters of the classes are the numbers of records of that class.
 * - A stable node is in the bucket of its hash; its page is a merged page which says
 *   that this is its node, and whose record is marked PKSM_STABLE; as many pages are.
 * - A node has as many sharers as it says, and all nodes as many as are counted.
 * - pages_sharing, which rmap counts, is what the map counts of all merged pages say.
 */
#include <linux/memblock.h>
#include <linux/memory_hotplug.h>
#include <linux/pagemap.h>
#include <linux/sched.h>

#include "../internal.h"
#include "internal.h"

#define PKSM_CHECK_TRIES	3

/* All of it is guarded by pksm_mutex. */
static struct {
	const char *wrong;
	unsigned long where;
	unsigned long listed, indexed, nodes, dead_nodes, sharers, sharing;
} pksm_found;

/* The first contradiction is what is reported. */
static bool pksm_expect(bool fine, const char *wrong, unsigned long where)
{
	if (fine || pksm_found.wrong)
		return fine;
	pksm_found.wrong = wrong;
	pksm_found.where = where;
	return false;
}

static bool pksm_check_listed(unsigned long pfn, u32 level)
{
	struct pksm_rmap_item *item = pksm_item(pfn);

	/* A chain that has become a ring has more members than there are pages. */
	return pksm_expect(item, "a queue has a page that does not exist",
			   pfn) &&
	       pksm_expect(pksm_where(READ_ONCE(item->state)) == PKSM_LIST,
			   "a record in a queue is not marked so", pfn) &&
	       pksm_expect(++pksm_found.listed <= max_pfn,
			   "a queue has no end", pfn);
}

static bool pksm_check_indexed(unsigned long pfn, unsigned long bucket,
			       bool right)
{
	u32 state = READ_ONCE(pksm_item(pfn)->state);

	return pksm_expect(pksm_where(state) == PKSM_INDEX,
			   "a record in the unstable index is not marked so",
			   pfn) &&
	       pksm_expect(right, "a record is in another bucket than its hash",
			   pfn) &&
	       pksm_expect(++pksm_found.indexed <= max_pfn,
			   "a bucket has no end", pfn);
}

static void pksm_check_node(struct pksm_stable_node *node)
{
	unsigned long pfn = READ_ONCE(node->pfn);
	struct pksm_rmap_item *item = pksm_item(pfn);
	struct pksm_sharer *sharer;
	struct folio *folio;
	u32 nr = 0;

	pksm_found.nodes++;
	hlist_for_each_entry(sharer, &node->sharers, link) {
		nr++;
		if (!pksm_expect(nr <= node->nr_sharers,
				 "a node has more sharers than it says", pfn))
			break;
		pksm_expect(sharer->anon_vma, "a sharer names no anon_vma",
			    pfn);
	}
	pksm_found.sharers += nr;
	pksm_expect(nr == node->nr_sharers,
		    "a node has not as many sharers as it says", pfn);
	pksm_expect(node->anon_vma, "a node names no anon_vma", pfn);
	if (!pksm_expect(item, "a node is of a page that does not exist", pfn))
		return;
	/* It waits for pksmd, and its hash is overwritten already. */
	folio = (struct folio *)pfn_to_page(pfn);
	if (!pksm_node_alive(node)) {
		pksm_found.dead_nodes++;
		return;
	}
	pksm_found.sharing += max(folio_mapcount(folio) - 1, 0);
	pksm_expect((READ_ONCE(item->state) & (PKSM_LIVE | PKSM_STABLE)) ==
		    (PKSM_LIVE | PKSM_STABLE),
		    "the record of a stable page is not marked so", pfn);
}

/* Every record, whether or not anything leads to it. */
static void pksm_check_records(void)
{
	unsigned long nr[NR_PKSM_CLASSES] = { }, listed = 0, indexed = 0;
	unsigned long pfn, end = pksm_end_pfn();
	int class;

	for (pfn = 0; pfn < end; pfn++) {
		struct page *page = pfn_to_online_page(pfn);
		struct pksm_rmap_item *item = page ? __pksm_rmap_item(page) : NULL;
		u32 state;

		if (!item)
			continue;
		state = READ_ONCE(item->state);
		nr[pksm_classify(state)]++;
		listed += pksm_where(state) == PKSM_LIST;
		indexed += pksm_where(state) == PKSM_INDEX;
		pksm_expect(!!(state & PKSM_LIVE) == !!PagePKSM(page),
			    "a record and PG_pksm contradict each other", pfn);
		pksm_expect(!(state & PKSM_STABLE) || (state & PKSM_LIVE),
			    "a dead record is marked as of a stable page", pfn);
		if (!(pfn % 4096))
			cond_resched();
	}
	pksm_expect(listed == pksm_found.listed,
		    "not every record that is marked as queued is", listed);
	pksm_expect(indexed == pksm_found.indexed,
		    "not every record that is marked as indexed is", indexed);
	for (class = PKSM_CLASS_NEW; class < NR_PKSM_CLASSES; class++)
		pksm_expect(nr[class] == pksm_nr_class(class),
			    "a counter is not the number of such pages", class);
	pksm_expect(nr[PKSM_CLASS_SHARED] ==
		    pksm_found.nodes - pksm_found.dead_nodes,
		    "there are not as many nodes as stable pages",
		    nr[PKSM_CLASS_SHARED]);
}

static void pksm_check_once(void)
{
	memset(&pksm_found, 0, sizeof(pksm_found));
	if (!pksm_queue_for_each(pksm_check_listed) ||
	    !pksm_unstable_for_each(pksm_check_indexed))
		return;
	pksm_stable_for_each(pksm_check_node);
	pksm_expect(pksm_found.nodes == pksm_nr_nodes,
		    "not every node is in the stable index", pksm_nr_nodes);
	pksm_expect(pksm_found.sharers == pksm_nr_sharers,
		    "not every sharer is of a node", pksm_nr_sharers);
	pksm_expect(pksm_found.sharing == pksm_nr_sharing(),
		    "pages_sharing is not what the map counts say",
		    pksm_found.sharing);
	pksm_check_records();
}

/**
 * pksm_check - look for a contradiction in everything the engine keeps
 * @where: set to a page frame number, or to the number that is wrong, when there is
 *	one
 *
 * Context: Process context, pksm_mutex held. May sleep.
 * Return: What is wrong; NULL when nothing is.
 */
const char *pksm_check(unsigned long *where)
{
	int try;

	lockdep_assert_held(&pksm_mutex);
	for (try = 0; try < PKSM_CHECK_TRIES; try++) {
		pksm_check_once();
		if (!pksm_found.wrong)
			return NULL;
		schedule_timeout_uninterruptible(1);
	}
	*where = pksm_found.where;
	return pksm_found.wrong;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: dropping sharers that have no PTE left.
 *
 * A sharer names a place where a merged page is mapped. Its process may exit, unmap
 * the place or write to it, and the sharer is then of no use; but rmap walks still
 * visit it. Whoever takes a PTE of a merged page away notes its node, and pksmd
 * looks for such sharers a second later, where a node has more of them than there
 * are mappings. A walk of the list costs as much as one rmap walk.
 *
 * A page that is mapped by fork has more mappings than sharers, so that a stale one
 * may stay until the mappings have become fewer: their number still bounds the list.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/jiffies.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/slab.h>
#include <linux/sort.h>

#include <trace/events/pksm.h>

#include "../internal.h"
#include "internal.h"
#include "fail.h"

/* While pages are merged a list may be this much longer than it should. */
#define PKSM_PRUNE_SLACK	8

/* How long stale sharers gather, in jiffies. */
#define PKSM_PRUNE_DELAY	HZ

static unsigned long pksm_prune_due;	/* in jiffies */
static bool pksm_prune_noticed;

/* Is there a PTE for the page in this anon_vma, at this offset? */
static bool pksm_shares(struct anon_vma *anon_vma, pgoff_t index,
			struct folio *folio)
{
	struct anon_vma_chain *avc;
	bool shares = false;

	anon_vma_lock_read(anon_vma);
	anon_rmap_tree_foreach(avc, anon_vma, index, index) {
		shares = pksm_shares_one(avc->vma, folio, index);
		if (shares)
			break;
		cond_resched();
	}
	anon_vma_unlock_read(anon_vma);
	return shares;
}

/**
 * pksm_sharer_drop - free a sharer of a node
 * @node: the node; if its page is there still, it is locked
 * @sharer: the sharer
 */
void pksm_sharer_drop(struct pksm_stable_node *node, struct pksm_sharer *sharer)
{
	lockdep_assert_held(&pksm_mutex);
	hlist_del(&sharer->link);
	node->nr_sharers--;
	VM_WARN_ON_ONCE(atomic_read(&sharer->anon_vma->refcount) <= 0);
	put_anon_vma(sharer->anon_vma);
	pksm_sharer_free(sharer);
}

static int pksm_sharer_cmp(const void *a, const void *b)
{
	const struct pksm_sharer *sharer1 = *(const struct pksm_sharer **)a;
	const struct pksm_sharer *sharer2 = *(const struct pksm_sharer **)b;

	if (sharer1->anon_vma != sharer2->anon_vma)
		return sharer1->anon_vma < sharer2->anon_vma ? -1 : 1;
	if (sharer1->index != sharer2->index)
		return sharer1->index < sharer2->index ? -1 : 1;
	return 0;
}

/*
 * Drop sharers that name the same place as another: the place was written to,
 * and absorbed again. Without memory to sort them they stay, and pksm_prune() comes
 * back to them.
 */
static void pksm_drop_repeated(struct pksm_stable_node *node)
{
	struct pksm_sharer **array, *sharer;
	u32 nr = node->nr_sharers, i = 0;

	array = pksm_should_fail(PKSM_FAIL_SORT) ?
		NULL : kvmalloc_array(nr, sizeof(*array), PKSM_GFP);
	if (!array) {
		pksm_stable_note_stale(node);
		return;
	}
	hlist_for_each_entry(sharer, &node->sharers, link)
		array[i++] = sharer;
	sort(array, nr, sizeof(*array), pksm_sharer_cmp, NULL);
	for (i = 1; i < nr; i++) {
		if (!pksm_sharer_cmp(&array[i - 1], &array[i]))
			pksm_sharer_drop(node, array[i - 1]);
	}
	kvfree(array);
}

/* Drop the sharers without a PTE, and those that say what another says. */
static void pksm_prune_list(struct pksm_stable_node *node, struct folio *folio)
{
	u32 before = node->nr_sharers;
	struct pksm_sharer *sharer;
	struct hlist_node *next;

	/* A swap entry needs the sharer to be found again after swap-in. */
	if (folio_test_swapcache(folio))
		return;
	hlist_for_each_entry_safe(sharer, next, &node->sharers, link) {
		if (!pksm_shares(sharer->anon_vma, sharer->index, folio))
			pksm_sharer_drop(node, sharer);
		cond_resched();
	}
	if (node->nr_sharers > folio_mapcount(folio))
		pksm_drop_repeated(node);
	if (node->nr_sharers != before)
		trace_pksm_prune(folio_pfn(folio), before, node->nr_sharers);
}

/**
 * pksm_prune_node - keep the list of a page short that has just absorbed another
 * @node: the node
 * @folio: its page, locked
 *
 * The list is walked when it is twice as long as there are mappings, so that
 * a sharer costs a constant number of steps over its life.
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_prune_node(struct pksm_stable_node *node, struct folio *folio)
{
	lockdep_assert_held(&pksm_mutex);
	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);

	if (node->nr_sharers > 2 * folio_mapcount(folio) + PKSM_PRUNE_SLACK)
		pksm_prune_list(node, folio);
}

/**
 * pksm_node_crowded - is the list of a page too long for another sharer?
 * @node: the node
 * @folio: its page, locked
 *
 * While a page is in the swap cache, the sharers that are there only for what is in
 * swap are not told from those that have gone: none is dropped then, and who comes and
 * goes must not make the list grow.
 *
 * Context: Process context, pksm_mutex held. May sleep.
 * Return: Whether it is.
 */
bool pksm_node_crowded(struct pksm_stable_node *node, struct folio *folio)
{
	u32 limit = 2 * READ_ONCE(pksm_max_page_sharing);

	if (likely(node->nr_sharers < limit))
		return false;
	pksm_prune_node(node, folio);
	return node->nr_sharers >= limit;
}

static void pksm_prune_stale(struct pksm_stable_node *node)
{
	struct folio *folio = pksm_node_get_folio(node);

	if (!folio)
		return;		/* queued by the free path, or about to be */
	/* Broken memory is never freed, and nobody is to find it again. */
	if (folio_test_hwpoison(folio) && !folio_mapped(folio)) {
		folio_put(folio);
		pksm_node_detach(node);
		return;
	}
	/* The page's own place, which is no sharer, may be mapped as well. */
	if (node->nr_sharers >= folio_mapcount(folio) && node->nr_sharers) {
		if (folio_trylock(folio)) {
			if (pksm_folio_node(folio) == node)
				pksm_prune_list(node, folio);
			folio_unlock(folio);
		} else {
			pksm_stable_note_stale(node);
		}
	}
	folio_put(folio);
	cond_resched();
}

/**
 * pksm_prune_pending - are there mappings that went, and pksmd does not know?
 *
 * Return: true when there are.
 */
bool pksm_prune_pending(void)
{
	return pksm_stable_stale() && !READ_ONCE(pksm_prune_noticed);
}

/**
 * pksm_prune_timeout - when are there sharers to look at?
 *
 * Return: 0 when pksm_prune() has something to do; else the time until it has, in
 * jiffies; MAX_SCHEDULE_TIMEOUT for never.
 */
unsigned long pksm_prune_timeout(void)
{
	lockdep_assert_held(&pksm_mutex);
	if (!pksm_stable_stale())
		return MAX_SCHEDULE_TIMEOUT;
	if (!pksm_prune_noticed) {
		WRITE_ONCE(pksm_prune_noticed, true);
		pksm_prune_due = jiffies + PKSM_PRUNE_DELAY;
	}
	if (time_after_eq(jiffies, pksm_prune_due))
		return 0;
	return pksm_prune_due - jiffies;
}

/**
 * pksm_prune - drop sharers that have no PTE left
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 */
void pksm_prune(void)
{
	lockdep_assert_held(&pksm_mutex);
	WRITE_ONCE(pksm_prune_noticed, false);
	pksm_stable_visit_stale(pksm_prune_stale);
}

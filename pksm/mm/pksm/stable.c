// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: stable pages and those who share them.
 *
 * A node holds no reference on its page. When the page is freed, by whatever
 * path, the free hook queues the node, and pksmd frees it.
 *
 * What becomes of sharers whose PTEs have gone is in prune.c.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/ksm.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

#include "../internal.h"
#include "internal.h"
#include "fail.h"

unsigned long pksm_nr_nodes;
unsigned long pksm_nr_sharers;

static struct kmem_cache *pksm_node_cache;
static struct kmem_cache *pksm_sharer_cache;

/**
 * pksm_stable_init - make the slab caches
 *
 * Return: 0 or -ENOMEM.
 */
int __init pksm_stable_init(void)
{
	pksm_node_cache = pksm_should_fail(PKSM_FAIL_NODE_CACHE) ?
			  NULL : KMEM_CACHE(pksm_stable_node, 0);
	pksm_sharer_cache = pksm_should_fail(PKSM_FAIL_SHARER_CACHE) ?
			    NULL : KMEM_CACHE(pksm_sharer, 0);
	if (pksm_node_cache && pksm_sharer_cache)
		return 0;
	kmem_cache_destroy(pksm_node_cache);
	kmem_cache_destroy(pksm_sharer_cache);
	return -ENOMEM;
}

/**
 * pksm_node_alloc - allocate a stable node
 *
 * Context: Process context, pksm_mutex held. May sleep.
 * Return: A node of zeroes, or NULL.
 */
struct pksm_stable_node *pksm_node_alloc(void)
{
	struct pksm_stable_node *node;

	lockdep_assert_held(&pksm_mutex);
	node = pksm_should_fail(PKSM_FAIL_NODE) ?
	       NULL : kmem_cache_zalloc(pksm_node_cache, PKSM_GFP);
	if (node)
		WRITE_ONCE(pksm_nr_nodes, pksm_nr_nodes + 1);
	return node;
}

/**
 * pksm_node_free - free a stable node that nothing points to
 * @node: the node, without sharers
 */
void pksm_node_free(struct pksm_stable_node *node)
{
	lockdep_assert_held(&pksm_mutex);
	kmem_cache_free(pksm_node_cache, node);
	WRITE_ONCE(pksm_nr_nodes, pksm_nr_nodes - 1);
}

/**
 * pksm_sharer_alloc - allocate a sharer
 *
 * Context: Process context, pksm_mutex held. May sleep.
 * Return: A sharer of zeroes, or NULL.
 */
struct pksm_sharer *pksm_sharer_alloc(void)
{
	struct pksm_sharer *sharer;

	lockdep_assert_held(&pksm_mutex);
	sharer = pksm_should_fail(PKSM_FAIL_SHARER) ?
		 NULL : kmem_cache_zalloc(pksm_sharer_cache, PKSM_GFP);
	if (sharer)
		WRITE_ONCE(pksm_nr_sharers, pksm_nr_sharers + 1);
	return sharer;
}

/**
 * pksm_sharer_free - free a sharer that is in no list
 * @sharer: the sharer; its reference on an anon_vma, if any, has been put
 */
void pksm_sharer_free(struct pksm_sharer *sharer)
{
	lockdep_assert_held(&pksm_mutex);
	kmem_cache_free(pksm_sharer_cache, sharer);
	WRITE_ONCE(pksm_nr_sharers, pksm_nr_sharers - 1);
}

/**
 * pksm_folio_node - the stable node of a folio
 * @folio: any folio
 *
 * Context: Any. The node is safe to use while the folio is locked, or while
 * pksm_mutex is held.
 * Return: The node; NULL when this is no stable page, or has lost its node.
 */
struct pksm_stable_node *pksm_folio_node(const struct folio *folio)
{
	unsigned long mapping = (unsigned long)READ_ONCE(folio->mapping);

	if ((mapping & PKSM_MAPPING_FLAGS) != PKSM_MAPPING_KSM)
		return NULL;
	return (struct pksm_stable_node *)(mapping & ~PKSM_MAPPING_FLAGS);
}

/**
 * pksm_node_get_folio - take a reference on a stable page
 * @node: its node
 *
 * Context: pksm_mutex held.
 * Return: The folio, or NULL when it was freed.
 */
struct folio *pksm_node_get_folio(struct pksm_stable_node *node)
{
	struct folio *folio;
	u32 pfn;

	lockdep_assert_held(&pksm_mutex);
again:
	pfn = READ_ONCE(node->pfn);
	folio = (struct folio *)pfn_to_page(pfn);
	if (pksm_folio_node(folio) != node)
		goto gone;
	/*
	 * No references usually means that the page is free. But migration of
	 * a page in the swap cache freezes the count for a moment; while it
	 * does, the folio is in the swap cache, and it is not the free path.
	 */
	while (!folio_try_get(folio)) {
		if (!folio_test_swapcache(folio))
			goto gone;
		cpu_relax();
	}
	if (pksm_folio_node(folio) == node)
		return folio;
	folio_put(folio);
gone:
	/* Pairs with the barrier in folio_migrate_ksm(). */
	smp_rmb();
	if (READ_ONCE(node->pfn) != pfn)
		goto again;
	return NULL;
}

/* === reaping === */

/**
 * pksm_shares_one - does a VMA map a stable page?
 * @vma: the VMA
 * @folio: the page
 * @index: page offset of the sharer
 *
 * Context: The anon_vma lock is held. Does not sleep.
 * Return: true when there is a PTE for the page.
 */
bool pksm_shares_one(struct vm_area_struct *vma, struct folio *folio,
		     pgoff_t index)
{
	unsigned long addr = pksm_anon_address(vma, index);
	/* mremap() and mprotect() clear a PTE for a moment, under its lock. */
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, PVMW_SYNC);

	if (addr == -EFAULT || !page_vma_mapped_walk(&pvmw))
		return false;
	page_vma_mapped_walk_done(&pvmw);
	return true;
}

static void pksm_node_destroy(struct pksm_stable_node *node)
{
	struct pksm_sharer *sharer;
	struct hlist_node *next;

	pksm_stable_remove(node);
	hlist_for_each_entry_safe(sharer, next, &node->sharers, link) {
		pksm_sharer_drop(node, sharer);
		cond_resched();
	}
	VM_WARN_ON_ONCE(atomic_read(&node->anon_vma->refcount) <= 0);
	put_anon_vma(node->anon_vma);
	pksm_node_free(node);
}

/**
 * pksm_reap_dead_nodes - free the nodes whose pages were freed
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_reap_dead_nodes(void)
{
	int cpu;

	lockdep_assert_held(&pksm_mutex);
	for_each_possible_cpu(cpu) {
		struct pksm_cpu *pc = per_cpu_ptr(&pksm_cpu, cpu);
		struct llist_node *list = llist_del_all(&pc->dead_nodes);
		struct pksm_stable_node *node, *next;

		llist_for_each_entry_safe(node, next, list, dead)
			pksm_node_destroy(node);
	}
}

/**
 * pksm_dead_nodes_pending - is there a node to free?
 *
 * Return: true when there is.
 */
bool pksm_dead_nodes_pending(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		if (!llist_empty(per_cpu_ptr(&pksm_cpu.dead_nodes, cpu)))
			return true;
	}
	return false;
}

/**
 * pksm_node_detach - leave a stable page without a node, if nothing is mapped of it
 * @node: its node, which is gone afterwards
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_node_detach(struct pksm_stable_node *node)
{
	struct folio *folio = pksm_node_get_folio(node);

	if (!folio)
		return;		/* queued by the free path, or about to be */
	folio_lock(folio);
	if (pksm_folio_node(folio) == node && !folio_mapped(folio)) {
		WRITE_ONCE(folio->mapping,
			   (struct address_space *)PKSM_MAPPING_KSM);
		pksm_forget(folio_page(folio, 0),
			    __pksm_rmap_item(folio_page(folio, 0)));
		pksm_node_destroy(node);
	}
	folio_unlock(folio);
	folio_put(folio);
}

/**
 * pksm_detach_unmapped - drop the nodes of pages that live in the swap cache only
 *
 * Swapping such a page in makes an ordinary page of it.
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_detach_unmapped(void)
{
	pksm_stable_for_each(pksm_node_detach);
}

#ifdef CONFIG_MEMORY_HOTREMOVE
/* Of pksm_detach_range(), for pksm_detach_in_range(); guarded by pksm_mutex. */
static unsigned long pksm_detach_start, pksm_detach_end;

static void pksm_detach_in_range(struct pksm_stable_node *node)
{
	unsigned long pfn = READ_ONCE(node->pfn);

	if (pfn >= pksm_detach_start && pfn < pksm_detach_end)
		pksm_node_detach(node);
}

/**
 * pksm_detach_range - drop the nodes of pages that have gone bad, and then offline
 * @start: the first page frame number
 * @end: the one behind the last
 *
 * Context: Process context, pksm_mutex held. May sleep.
 */
void pksm_detach_range(unsigned long start, unsigned long end)
{
	lockdep_assert_held(&pksm_mutex);
	pksm_detach_start = start;
	pksm_detach_end = end;
	pksm_stable_for_each(pksm_detach_in_range);
}
#endif

/**
 * pksm_node_kept_apart - is a page of a node of memory whose pages it does not merge with?
 * @node: a stable node, whose page may be another one a moment later
 * @folio: the page
 *
 * Context: Any.
 * Return: true when it is; see pksm_kept_apart().
 */
bool pksm_node_kept_apart(const struct pksm_stable_node *node,
			  const struct folio *folio)
{
	struct page *page = pfn_to_page(READ_ONCE(node->pfn));

	return pksm_kept_apart((struct folio *)page, folio);
}

/**
 * pksm_node_alive - is the page of a node still there?
 * @node: the node
 *
 * Takes no reference, which could keep the page from being migrated.
 *
 * Context: pksm_mutex held.
 * Return: false when it was freed: then @node->hash means nothing.
 */
bool pksm_node_alive(struct pksm_stable_node *node)
{
	struct page *page = pfn_to_page(READ_ONCE(node->pfn));

	return pksm_folio_node((struct folio *)page) == node;
}

/**
 * pksm_general_profit - what merging saves, less what it costs
 *
 * Context: Any. Takes no lock and never sleeps.
 * Return: The number of bytes: a page for each PTE beyond the first and for each of
 * the zero page, less the records of merged pages.
 */
long pksm_general_profit(void)
{
	long saved = pksm_nr_sharing() + atomic_long_read(&ksm_zero_pages);

	return saved * (long)PAGE_SIZE -
	       (long)(READ_ONCE(pksm_nr_sharers) * sizeof(struct pksm_sharer)) -
	       (long)(READ_ONCE(pksm_nr_nodes) * sizeof(struct pksm_stable_node));
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: what the rest of mm asks of merged pages.
 *
 * A stable page is a KSM page for the rest of mm: folio->mapping points to its
 * node, and rmap walks come here. The node, and each of its sharers, names an
 * anon_vma and a page offset; every PTE of the page is in some VMA of one of
 * these anon_vmas, at that offset. mremap keeps the offset, and fork adds the
 * child's VMA to the parent's anon_vma, so neither needs to be told to the engine.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/ksm.h>
#include <linux/memcontrol.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>
#include <linux/uaccess.h>

#include "../internal.h"
#include "internal.h"
#include "fail.h"
#include "hold.h"

/* PTEs that PKSM pointed at the zero page; mm counts them down by ksm.h. */
atomic_long_t ksm_zero_pages = ATOMIC_LONG_INIT(0);

/*
 * Visit every VMA in which a sharer's PTEs may be. Returns false when the walk
 * is over.
 */
static bool pksm_walk_sharer(struct folio *folio, struct anon_vma *anon_vma,
			     pgoff_t index, struct rmap_walk_control *rwc)
{
	struct anon_vma_chain *avc;
	bool go_on = true;

	if (!anon_vma_trylock_read(anon_vma)) {
		if (rwc->try_lock) {
			rwc->contended = true;
			return false;
		}
		anon_vma_lock_read(anon_vma);
	}
	anon_rmap_tree_foreach(avc, anon_vma, index, index) {
		struct vm_area_struct *vma = avc->vma;
		unsigned long addr = pksm_anon_address(vma, index);

		cond_resched();
		VM_WARN_ON_ONCE(addr == -EFAULT);
		if (rwc->invalid_vma && rwc->invalid_vma(vma, rwc->arg))
			continue;
		if (!rwc->rmap_one(folio, vma, addr, rwc->arg) ||
		    (rwc->done && rwc->done(folio))) {
			go_on = false;
			break;
		}
	}
	anon_vma_unlock_read(anon_vma);
	return go_on;
}

/**
 * rmap_walk_ksm - visit every VMA that may map a stable page
 * @folio: the stable page, locked
 * @rwc: what to do, as for rmap_walk()
 *
 * A VMA may be visited more than once, which every rmap_one() has to bear.
 *
 * Context: Process context. May sleep unless @rwc->try_lock.
 */
void rmap_walk_ksm(struct folio *folio, struct rmap_walk_control *rwc)
{
	struct pksm_stable_node *node;
	struct pksm_sharer *sharer;

	VM_WARN_ON_ONCE_FOLIO(!folio_test_ksm(folio), folio);
	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);

	node = pksm_folio_node(folio);
	if (!node || !pksm_walk_sharer(folio, node->anon_vma, folio->index, rwc))
		return;
	hlist_for_each_entry(sharer, &node->sharers, link) {
		if (!pksm_walk_sharer(folio, sharer->anon_vma, sharer->index,
				      rwc))
			return;
	}
}

/**
 * ksm_might_need_to_copy - make a page from the swap cache fit to be mapped
 * @folio: what the swap cache has, locked
 * @vma: where it is to be mapped
 * @addr: the address
 *
 * A page that belongs to another anon_vma cannot be mapped here, as rmap would
 * not find it: it takes a copy. A stable page can: each of its swap entries has
 * its sharer still.
 *
 * Context: Process context, mmap_lock held. May sleep.
 * Return: @folio itself, or a locked copy, NULL when there is no memory for one,
 * or ERR_PTR(-EHWPOISON) when the page cannot be read.
 */
struct folio *ksm_might_need_to_copy(struct folio *folio,
				     struct vm_area_struct *vma,
				     unsigned long addr)
{
	struct page *page = folio_page(folio, 0);
	struct anon_vma *anon_vma = folio_anon_vma(folio);
	struct folio *copy;

	if (folio_test_large(folio))
		return folio;
	if (folio_test_ksm(folio)) {
		/* Its owner may have forbidden it while it was swapped out. */
		if (pksm_folio_node(folio) && pksm_vma_mergeable(vma) &&
		    READ_ONCE(pksm_run) != PKSM_RUN_UNMERGE)
			return folio;
	} else if (!anon_vma ||
		   (folio->index == pksm_anon_index(vma, addr) &&
		    anon_vma->root == vma->anon_vma->root)) {
		return folio;
	}
	if (PageHWPoison(page))
		return ERR_PTR(-EHWPOISON);
	/* do_swap_page() reports this one. */
	if (!folio_test_uptodate(folio))
		return folio;

	copy = pksm_should_fail(PKSM_FAIL_COPY) ?
	       NULL : pksm_alloc_page(vma, addr);
	if (!copy)
		return NULL;
	if (pksm_should_fail(PKSM_FAIL_CHARGE) ||
	    mem_cgroup_charge(copy, vma->vm_mm, GFP_KERNEL)) {
		folio_put(copy);
		return NULL;
	}
	if (copy_mc_user_highpage(folio_page(copy, 0), page, addr, vma)) {
		folio_put(copy);
		return ERR_PTR(-EHWPOISON);
	}
	folio_set_dirty(copy);
	__folio_mark_uptodate(copy);
	__folio_set_locked(copy);
#ifdef CONFIG_SWAP
	count_vm_event(KSM_SWPIN_COPY);
#endif
	return copy;
}

#ifdef CONFIG_MIGRATION
/**
 * folio_migrate_ksm - a page moves to another frame
 * @newfolio: where to, locked; not yet mapped
 * @folio: where from, locked; not mapped any more
 *
 * Called for every page that migrates. A stable page takes its node along; any
 * other anonymous page is new where it comes to.
 *
 * Context: Process context.
 */
void folio_migrate_ksm(struct folio *newfolio, struct folio *folio)
{
	struct page *page = folio_page(folio, 0);
	struct page *newpage = folio_page(newfolio, 0);
	struct pksm_rmap_item *newitem;
	struct pksm_stable_node *node;
	u32 age = 0;

	if (folio_test_hugetlb(folio) || !folio_test_anon(newfolio))
		return;
	/* One that is not tracked: the sweep may have passed its new frame. */
	if (!PagePKSM(page) && folio_test_ksm(folio))
		return;
	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);
	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(newfolio), newfolio);

	node = pksm_folio_node(folio);
	if (!node) {
		/* The memory of a device passes no hook when it is freed. */
		if (folio_is_zone_device(newfolio))
			return;
		/* Whether khugepaged has made it stays of interest. */
		if (folio_test_large(folio) && PagePKSM(page))
			age = pksm_age(READ_ONCE(__pksm_rmap_item(page)->state));
		/* The gate is closed for good when all RCU readers are done. */
		rcu_read_lock();
		newitem = NULL;
		if (static_branch_unlikely(&pksm_intake_key))
			newitem = __pksm_rmap_item(newpage);
		if (newitem)
			pksm_add_moved_page(newpage, newitem, false, age);
		rcu_read_unlock();
		return;
	}

	pksm_hold(PKSM_AT_MIGRATE, folio_pfn(folio));
	newitem = __pksm_rmap_item(newpage);
	VM_WARN_ON_ONCE_FOLIO(node->pfn != folio_pfn(folio), folio);
	WRITE_ONCE(node->pfn, folio_pfn(newfolio));
	pksm_forget(page, __pksm_rmap_item(page));
	/*
	 * pksm_set_run() has seen to it that every page has a record; of memory that
	 * came later it may be that none has. The node is never freed then, which
	 * newfolio->mapping points to already.
	 */
	if (!WARN_ON_ONCE(!newitem))
		pksm_add_moved_page(newpage, newitem, true, 0);
	/*
	 * The new folio has had the mapping for a while. That the node points
	 * to it must be seen before the old folio loses the mapping, or the
	 * swap cache flag: see pksm_node_get_folio().
	 */
	smp_wmb();
	WRITE_ONCE(folio->mapping, (struct address_space *)PKSM_MAPPING_KSM);
}
#endif

#ifdef CONFIG_MEMORY_FAILURE
static void pksm_collect_procs(struct anon_vma *anon_vma, pgoff_t index,
			       struct page *page, struct list_head *to_kill,
			       int force_early)
{
	struct task_struct *tsk;

	anon_vma_lock_read(anon_vma);
	rcu_read_lock();
	for_each_process(tsk) {
		struct task_struct *t = task_early_kill(tsk, force_early);
		struct anon_vma_chain *avc;

		if (!t)
			continue;
		anon_rmap_tree_foreach(avc, anon_vma, index, index) {
			struct vm_area_struct *vma = avc->vma;

			/* A child may have a page of its own there. */
			if (vma->vm_mm == t->mm &&
			    pksm_shares_one(vma, page_folio(page), index))
				add_to_kill_ksm(t, page, vma, to_kill,
						pksm_anon_address(vma, index));
		}
	}
	rcu_read_unlock();
	anon_vma_unlock_read(anon_vma);
}

/**
 * collect_procs_ksm - find the processes that map a poisoned stable page
 * @folio: the stable page, locked
 * @page: the poisoned page
 * @to_kill: list they are added to
 * @force_early: as for collect_procs()
 *
 * Context: Process context. May sleep.
 */
void collect_procs_ksm(pksm_const struct folio *folio,
		       pksm_const struct page *page,
		       struct list_head *to_kill, int force_early)
{
	struct pksm_stable_node *node = pksm_folio_node(folio);
	struct pksm_sharer *sharer;

	if (!node)
		return;
	pksm_collect_procs(node->anon_vma, folio->index, (struct page *)page,
			   to_kill, force_early);
	hlist_for_each_entry(sharer, &node->sharers, link)
		pksm_collect_procs(sharer->anon_vma, sharer->index,
				   (struct page *)page, to_kill, force_early);
}

/**
 * __pksm_page_lost - the memory of a page has gone bad, and nothing maps it any more
 * @folio: the page, tracked, of order 0 and locked
 *
 * It may never be freed. A node is given up by pksm_prune(); a page that waits to be
 * read is found unfit then, and one that was read is sent to wait.
 *
 * Context: Process context. Takes no lock and does not sleep.
 */
void __pksm_page_lost(struct folio *folio)
{
	struct pksm_stable_node *node = pksm_folio_node(folio);
	struct pksm_rmap_item *item = __pksm_rmap_item(folio_page(folio, 0));
	u32 old;

	if (node) {
		if (pksm_stable_note_stale(node))
			pksm_kick();
		return;
	}
	if (WARN_ON_ONCE(!item))
		return;
	do {
		old = READ_ONCE(item->state);
		if (pksm_where(old) != PKSM_INDEX || !(old & PKSM_LIVE))
			return;
	} while (!pksm_item_set(item, old, old | PKSM_REBORN));
	if (pksm_unstable_note_dead(old))
		pksm_kick();
}
#endif

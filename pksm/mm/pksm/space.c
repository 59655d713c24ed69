// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: going over address spaces.
 *
 * The engine does so when it was asked to, never to look for something to do: when
 * a process says that a range may be merged, the pages that are there already are
 * taken in; and what concerns all processes, such as unmerging everything, visits
 * them one after another.
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pagewalk.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>

#include "internal.h"
#include "hold.h"

/* === one address space === */

/* The page table lock is held: the folio stays mapped, and so in use. */
static void pksm_intake_folio(struct folio *folio)
{
	struct page *page = folio_page(folio, 0);
	struct pksm_rmap_item *item;

	if (!folio_test_anon(folio) || folio_test_ksm(folio) || PagePKSM(page))
		return;
	/* Who holds the lock is about to swap it, to move it, or to copy it. */
	if (!folio_trylock(folio))
		return;
	/* The gate is closed for good when all RCU readers are done. */
	rcu_read_lock();
	item = static_branch_unlikely(&pksm_intake_key) ?
	       __pksm_rmap_item(page) : NULL;
	if (item && !PagePKSM(page))
		pksm_add_moved_page(page, item, false, 0);
	rcu_read_unlock();
	folio_unlock(folio);
}

static int pksm_intake_pmd(pmd_t *pmd, unsigned long addr, unsigned long next,
			   struct mm_walk *walk)
{
	spinlock_t *ptl = pmd_trans_huge_lock(pmd, walk->vma);
	struct page *page;
	pmd_t entry;

	if (ptl) {
		page = pmd_present(*pmd) ?
		       vm_normal_page_pmd(walk->vma, addr, *pmd) : NULL;
		if (page)
			pksm_intake_folio(page_folio(page));
		spin_unlock(ptl);
	}
	entry = pmdp_get_lockless(pmd);
	if (!pmd_present(entry) || pmd_leaf(entry))
		walk->action = ACTION_CONTINUE;
	cond_resched();
	return 0;
}

/* The page table lock is held. */
static int pksm_intake_pte(pte_t *pte, unsigned long addr, unsigned long next,
			   struct mm_walk *walk)
{
	pte_t entry = ptep_get(pte);
	struct page *page;

	if (!pte_present(entry))
		return 0;
	page = vm_normal_page(walk->vma, addr, entry);
	if (page)
		pksm_intake_folio(page_folio(page));
	return 0;
}

static const struct mm_walk_ops pksm_intake_ops = {
	.pmd_entry = pksm_intake_pmd,
	.pte_entry = pksm_intake_pte,
	.walk_lock = PGWALK_WRLOCK,
};

/**
 * pksm_intake_range - take in the pages that a range has already
 * @vma: the VMA
 * @start: first address
 * @end: address behind the last
 *
 * A page that is locked just now is missed: it enters when it is swapped in, or has
 * been migrated.
 *
 * Context: Process context, mmap_lock held for writing. May sleep.
 */
void pksm_intake_range(struct vm_area_struct *vma, unsigned long start,
		       unsigned long end)
{
	if (vma->anon_vma && static_branch_unlikely(&pksm_intake_key))
		walk_page_range_vma(vma, start, end, &pksm_intake_ops, NULL);
}

/* === all of them === */

/* The next process from a number on that has an address space. */
static struct mm_struct *pksm_next_mm(pid_t *nr)
{
	struct task_struct *leader, *thread;
	struct mm_struct *mm = NULL;
	struct pid *pid;

	rcu_read_lock();
	while (!mm && (pid = find_ge_pid(*nr, &init_pid_ns))) {
		*nr = pid_nr(pid) + 1;
		leader = pid_task(pid, PIDTYPE_TGID);
		if (!leader)
			continue;
		/* The first thread may have exited before the others. */
		for_each_thread(leader, thread) {
			mm = get_task_mm(thread);
			if (mm)
				break;
		}
	}
	rcu_read_unlock();
	return mm;
}

/**
 * pksm_visit_mms - do something with every address space
 * @fn: called with each; an error ends it
 *
 * A process that is forked meanwhile may be missed, or not.
 *
 * Context: Process context. May sleep.
 * Return: 0, or the error of @fn.
 */
int pksm_visit_mms(int (*fn)(struct mm_struct *mm))
{
	struct mm_struct *mm;
	pid_t nr = 1;
	int err = 0;

	while (!err && (mm = pksm_next_mm(&nr))) {
		pksm_hold(PKSM_AT_VISIT, nr - 1);
		err = fn(mm);
		mmput(mm);
		cond_resched();
	}
	return err;
}

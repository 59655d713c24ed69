// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: what /proc/PID/ksm_stat and ksm_merging_pages say of a process.
 *
 * Nothing is counted for a process while pages are merged, forked and freed: its
 * page tables are looked at when somebody asks, so that the numbers are exact.
 */
#include <linux/ksm.h>
#include <linux/mmap_lock.h>
#include <linux/pagewalk.h>
#include <linux/swap.h>
#include <linux/swapops.h>

#include "internal.h"

/* Large folios are never merged. Their pages are not counted. */
static int pksm_stat_pmd(pmd_t *pmd, unsigned long addr, unsigned long next,
			 struct mm_walk *walk)
{
	pmd_t entry = pmdp_get_lockless(pmd);

	if (!pmd_present(entry) || pmd_leaf(entry))
		walk->action = ACTION_CONTINUE;
	cond_resched();
	return 0;
}

static int pksm_stat_pte(pte_t *pte, unsigned long addr, unsigned long next,
			 struct mm_walk *walk)
{
	struct ksm_mm_stat *stat = walk->private;
	struct page *page;
	pte_t entry = ptep_get(pte);

	if (pte_present(entry))
		page = vm_normal_page(walk->vma, addr, entry);
	else
		/* It is on its way to another frame. */
		page = pksm_migrating_page(entry);
	if (!page || PageCompound(page))
		return 0;
	if (folio_test_ksm(page_folio(page)))
		stat->merging_pages++;
	if (PagePKSM(page))
		stat->rmap_items++;
	return 0;
}

static const struct mm_walk_ops pksm_stat_ops = {
	.pmd_entry = pksm_stat_pmd,
	.pte_entry = pksm_stat_pte,
	.walk_lock = PGWALK_RDLOCK,
};

/**
 * ksm_mm_stat - what merging is to a process
 * @mm: its address space
 * @stat: the numbers: PTEs of pages that the engine has a record of, PTEs of the
 *	zero page that it made, PTEs of merged pages, and what all that saves, in
 *	bytes: the pages that the process need not have, less one sharer for each
 *
 * All numbers but that of the zero pages are 0 when the caller is killed.
 *
 * Context: Process context. Takes mmap_lock, may sleep.
 */
void ksm_mm_stat(struct mm_struct *mm, struct ksm_mm_stat *stat)
{
	struct vm_area_struct *vma;

	memset(stat, 0, sizeof(*stat));
	if (!mmap_read_lock_killable(mm)) {
		VMA_ITERATOR(vmi, mm, 0);
		for_each_vma(vmi, vma) {
			if (vma->anon_vma)
				walk_page_range_vma(vma, vma->vm_start,
						    vma->vm_end, &pksm_stat_ops,
						    stat);
		}
		mmap_read_unlock(mm);
	}
	stat->zero_pages = mm_ksm_zero_pages(mm);
	stat->process_profit =
		(long)(stat->merging_pages + stat->zero_pages) * PAGE_SIZE -
		(long)(stat->merging_pages * sizeof(struct pksm_sharer));
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: madvise(MADV_MERGEABLE, MADV_UNMERGEABLE) and prctl(PR_SET_MEMORY_MERGE).
 *
 * Nobody has to ask PKSM to merge, so the flags that these calls set have no
 * effect of their own; they are kept as KSM keeps them, for whoever reads them.
 * Asking to unmerge breaks what is merged.
 */
#include <linux/dax.h>
#include <linux/export.h>
#include <linux/fs.h>
#include <linux/ksm.h>
#include <linux/mman.h>

#include "internal.h"

/**
 * pksm_vma_compatible - may pages of a VMA be merged?
 * @vma: the VMA
 *
 * Context: The VMA cannot change: mmap_lock or its anon_vma lock is held.
 * Return: true when they may.
 */
bool pksm_vma_compatible(struct vm_area_struct *vma)
{
	vm_flags_t never = VM_SHARED | VM_MAYSHARE | VM_PFNMAP | VM_IO |
			   VM_DONTEXPAND | VM_HUGETLB | VM_MIXEDMAP |
			   VM_DROPPABLE;

#ifdef VM_SAO
	never |= VM_SAO;
#endif
#ifdef VM_SPARC_ADI
	never |= VM_SPARC_ADI;
#endif
	return !(vma->vm_flags & never) && !vma_is_dax(vma);
}

/**
 * ksm_madvise - MADV_MERGEABLE and MADV_UNMERGEABLE
 * @vma: the VMA
 * @start: first address of the range
 * @end: address behind the last
 * @advice: which of the two
 * @vm_flags: the flags that the caller will give to the range
 *
 * Context: Process context, mmap_lock held for writing. May sleep.
 * Return: 0, or the error of pksm_unmerge_range(); then @vm_flags is unchanged.
 */
int ksm_madvise(struct vm_area_struct *vma, unsigned long start,
		unsigned long end, int advice, unsigned long *vm_flags)
{
	int err;

	switch (advice) {
	case MADV_MERGEABLE:
		if (pksm_vma_compatible(vma))
			*vm_flags |= VM_MERGEABLE;
		return 0;
	case MADV_UNMERGEABLE:
		if (vma->anon_vma) {
			err = pksm_unmerge_range(vma, start, end, true);
			if (err)
				return err;
		}
		*vm_flags &= ~VM_MERGEABLE;
		return 0;
	default:
		return 0;
	}
}
EXPORT_SYMBOL_GPL(ksm_madvise);

/**
 * ksm_add_vma - mark a new VMA of a process that asked to be merged
 * @vma: the VMA
 *
 * Context: mmap_lock held for writing.
 */
void ksm_add_vma(struct vm_area_struct *vma)
{
	if (pksm_mm_merge_any(vma->vm_mm) && pksm_vma_compatible(vma))
		vm_flags_set(vma, VM_MERGEABLE);
}

static void pksm_mark_vmas(struct mm_struct *mm)
{
	struct vm_area_struct *vma;

	VMA_ITERATOR(vmi, mm, 0);
	for_each_vma(vmi, vma)
		ksm_add_vma(vma);
}

/**
 * ksm_enable_merge_any - prctl(PR_SET_MEMORY_MERGE, 1)
 * @mm: the address space
 *
 * Context: Process context, mmap_lock held for writing.
 * Return: 0.
 */
int ksm_enable_merge_any(struct mm_struct *mm)
{
	mmap_assert_write_locked(mm);
	pksm_mm_set_merge_any(mm);
	pksm_mark_vmas(mm);
	return 0;
}

/**
 * ksm_disable - break all merged pages of a process, and all marks
 * @mm: the address space
 *
 * Context: Process context, mmap_lock held for writing. May sleep.
 * Return: 0, or the error of pksm_unmerge_range().
 */
int ksm_disable(struct mm_struct *mm)
{
	struct vm_area_struct *vma;
	int err;

	mmap_assert_write_locked(mm);
	VMA_ITERATOR(vmi, mm, 0);
	for_each_vma(vmi, vma) {
		if (vma->anon_vma) {
			err = pksm_unmerge_range(vma, vma->vm_start,
						 vma->vm_end, true);
			if (err)
				return err;
		}
		vm_flags_clear(vma, VM_MERGEABLE);
	}
	pksm_mm_clear_merge_any(mm);
	return 0;
}

/**
 * ksm_disable_merge_any - prctl(PR_SET_MEMORY_MERGE, 0)
 * @mm: the address space
 *
 * Context: Process context, mmap_lock held for writing. May sleep.
 * Return: 0, or the error of pksm_unmerge_range(): then the marks are as they
 * were.
 */
int ksm_disable_merge_any(struct mm_struct *mm)
{
	int err;

	if (!pksm_mm_merge_any(mm))
		return 0;
	err = ksm_disable(mm);
	if (err)
		pksm_mark_vmas(mm);
	return err;
}

#ifdef CONFIG_PROC_FS
/**
 * ksm_process_profit - what merging saves a process
 * @mm: its address space
 *
 * Context: Process context. Takes mmap_lock, may sleep.
 * Return: Bytes: the pages it need not have, less one sharer for each.
 */
long ksm_process_profit(struct mm_struct *mm)
{
	unsigned long merging = pksm_mm_merging_pages(mm);

	return (long)(merging + mm_ksm_zero_pages(mm)) * PAGE_SIZE -
	       (long)(merging * sizeof(struct pksm_sharer));
}
#endif

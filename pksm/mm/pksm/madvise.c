// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: madvise(MADV_MERGEABLE, MADV_UNMERGEABLE) and prctl(PR_SET_MEMORY_MERGE).
 *
 * The flag VM_MERGEABLE of a VMA alone decides whether the engine takes in and
 * merges what it maps; smaps shows it as "mg". With scope "madvise" it is set by
 * whoever asks for it, exactly as KSM does. With scope "all" every VMA that can be
 * merged has it from the beginning, unless its process has opted out by
 * prctl(PR_SET_MEMORY_MERGE, 0), which its children and the programs it executes
 * inherit; MADV_UNMERGEABLE takes it from a range.
 *
 * A change of the scope visits every process, and changes nothing where its owner
 * has spoken. VM_MERGE_ADVISED says that madvise() has, for or against: what scope
 * "all" gave to everybody is told apart by it from what somebody asked for, and what
 * nobody gave yet from what somebody has forbidden. prctl() speaks for the whole
 * process, and about what madvise() has said before as well.
 */
#include <linux/dax.h>
#include <linux/export.h>
#include <linux/fs.h>
#include <linux/ksm.h>
#include <linux/mman.h>

#include "internal.h"

/* How often all processes are visited before a change of the scope gives up. */
#define PKSM_SCOPE_ROUNDS	200

/* Guarded by pksm_mutex; read without it by whoever makes a VMA. */
enum pksm_scope pksm_scope = PKSM_SCOPE_ALL;

static bool pksm_flags_compatible(vm_flags_t flags)
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
	return !(flags & never);
}

/**
 * pksm_vma_compatible - can pages of a VMA be merged?
 * @vma: the VMA
 *
 * Context: The VMA cannot change: mmap_lock or its anon_vma lock is held.
 * Return: true when they can, whether or not anybody wants it.
 */
bool pksm_vma_compatible(struct vm_area_struct *vma)
{
	return pksm_flags_compatible(vma->vm_flags) && !vma_is_dax(vma);
}

/* Is what this process maps merged unless a madvise() says otherwise? */
static bool pksm_mm_wanted(struct mm_struct *mm)
{
	return pksm_mm_merge_any(mm) ||
	       (READ_ONCE(pksm_scope) == PKSM_SCOPE_ALL &&
		!READ_ONCE(mm->pksm_opted_out));
}

/**
 * ksm_vma_flags - the flags of a VMA that is about to be made
 * @mm: its address space
 * @file: what it maps, or NULL
 * @vma_flags: the flags it is to have
 *
 * So that it can be joined with its neighbours, which have VM_MERGEABLE already. A
 * file may change the flags when it is mapped: see pksm_file_fit().
 *
 * Context: mmap_lock held for writing, or @mm not visible to anybody else.
 * Return: @vma_flags, with VM_MERGEABLE where it is due.
 */
pksm_vma_flags_t ksm_vma_flags(struct mm_struct *mm, const struct file *file,
			       pksm_vma_flags_t vma_flags)
{
	if (pksm_file_fit(file) && pksm_mm_wanted(mm) &&
	    pksm_flags_compatible(pksm_vma_flags_word(vma_flags)))
		vma_flags = pksm_vma_flags_add(vma_flags);
	return vma_flags;
}

/**
 * ksm_madvise - MADV_MERGEABLE and MADV_UNMERGEABLE
 * @vma: the VMA
 * @start: first address of the range
 * @end: address behind the last
 * @advice: which of the two
 * @vm_flags: the flags that the caller will give to the range
 *
 * pksmd merges nothing here before the flags are what they will be, since that needs
 * the mmap_lock.
 *
 * Context: Process context, mmap_lock held for writing. May sleep.
 * Return: 0, or the error of pksm_unmerge_range(); then @vm_flags is unchanged.
 */
int ksm_madvise(struct vm_area_struct *vma, unsigned long start,
		unsigned long end, int advice, unsigned long *vm_flags)
{
	int err;

	if (!pksm_vma_compatible(vma))
		return 0;
	switch (advice) {
	case MADV_MERGEABLE:
		if (!(*vm_flags & VM_MERGEABLE))
			pksm_intake_range(vma, start, end);
		*vm_flags |= VM_MERGEABLE | VM_MERGE_ADVISED;
		return 0;
	case MADV_UNMERGEABLE:
		if ((*vm_flags & VM_MERGEABLE) && vma->anon_vma) {
			err = pksm_unmerge_range(vma, start, end, true);
			if (err)
				return err;
		}
		*vm_flags &= ~VM_MERGEABLE;
		*vm_flags |= VM_MERGE_ADVISED;
		return 0;
	default:
		return 0;
	}
}
EXPORT_SYMBOL_GPL(ksm_madvise);

static bool pksm_vma_marked(struct vm_area_struct *vma, vm_flags_t keep)
{
	return (vma->vm_flags & VM_MERGEABLE) && !(vma->vm_flags & keep);
}

/* Let a VMA be merged, with the pages it has. */
static void pksm_mark_vma(struct vm_area_struct *vma)
{
	if ((vma->vm_flags & VM_MERGEABLE) || !pksm_vma_compatible(vma))
		return;
	vm_flags_set(vma, VM_MERGEABLE);
	pksm_intake_range(vma, vma->vm_start, vma->vm_end);
}

static void pksm_forget_advice(struct vm_area_struct *vma)
{
	if (vma->vm_flags & VM_MERGE_ADVISED)
		vm_flags_clear(vma, VM_MERGE_ADVISED);
}

/*
 * Let no VMA be merged but those with a flag of @keep, and unmerge them. After an
 * error the marks are as they were.
 */
static int pksm_unmark_vmas(struct mm_struct *mm, vm_flags_t keep)
{
	struct vm_area_struct *vma;
	int err;

	VMA_ITERATOR(vmi, mm, 0);
	for_each_vma(vmi, vma) {
		if (!pksm_vma_marked(vma, keep) || !vma->anon_vma)
			continue;
		err = pksm_unmerge_range(vma, vma->vm_start, vma->vm_end, true);
		if (err)
			return err;
	}
	/* What pksmd merges it merges with mmap_lock held, so there is nothing new. */
	vma_iter_set(&vmi, 0);
	for_each_vma(vmi, vma) {
		if (pksm_vma_marked(vma, keep))
			vm_flags_clear(vma, VM_MERGEABLE);
	}
	return 0;
}

#ifdef PKSM_IS_TOLD_OF_VMAS
/**
 * ksm_add_vma - a VMA was made
 * @vma: the VMA, new or grown
 *
 * Context: mmap_lock held for writing.
 */
void ksm_add_vma(struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_MERGEABLE) && pksm_mm_wanted(vma->vm_mm) &&
	    pksm_vma_compatible(vma))
		vm_flags_set(vma, VM_MERGEABLE);
}
#endif

/**
 * ksm_enable_merge_any - prctl(PR_SET_MEMORY_MERGE, 1)
 * @mm: the address space
 *
 * Context: Process context, mmap_lock held for writing. May sleep.
 * Return: 0.
 */
int ksm_enable_merge_any(struct mm_struct *mm)
{
	struct vm_area_struct *vma;

	mmap_assert_write_locked(mm);
	WRITE_ONCE(mm->pksm_opted_out, false);
	if (pksm_mm_merge_any(mm))
		return 0;
	pksm_mm_set_merge_any(mm);
	VMA_ITERATOR(vmi, mm, 0);
	for_each_vma(vmi, vma) {
		pksm_forget_advice(vma);
		pksm_mark_vma(vma);
	}
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
	err = pksm_unmark_vmas(mm, VM_NONE);
	if (err)
		return err;
	VMA_ITERATOR(vmi, mm, 0);
	for_each_vma(vmi, vma)
		pksm_forget_advice(vma);
	pksm_mm_clear_merge_any(mm);
	return 0;
}

/**
 * ksm_disable_merge_any - prctl(PR_SET_MEMORY_MERGE, 0)
 * @mm: the address space
 *
 * With scope "madvise" that is nothing to a process which has not asked by prctl()
 * before, as for KSM: what madvise() was asked for stays.
 *
 * Context: Process context, mmap_lock held for writing. May sleep.
 * Return: 0, or the error of pksm_unmerge_range(): then the marks are as they
 * were.
 */
int ksm_disable_merge_any(struct mm_struct *mm)
{
	/* Where all is merged unasked it says no to what was asked for as well. */
	bool wanted = pksm_mm_merge_any(mm) ||
		      READ_ONCE(pksm_scope) == PKSM_SCOPE_ALL;
	int err = 0;

	mmap_assert_write_locked(mm);
	if (wanted)
		err = ksm_disable(mm);
	if (!err)
		WRITE_ONCE(mm->pksm_opted_out, true);
	return err;
}

/* === the scope === */

/* Guarded by pksm_mutex: how many processes had something to change. */
static unsigned long pksm_nr_unmarked;

/* Can anything in an address space be merged that has no flag of @keep? */
static bool pksm_mm_marked_but(struct mm_struct *mm, vm_flags_t keep)
{
	struct vm_area_struct *vma;

	VMA_ITERATOR(vmi, mm, 0);
	for_each_vma(vmi, vma) {
		if (pksm_vma_marked(vma, keep))
			return true;
	}
	return false;
}

/**
 * pksm_mm_marked - may anything in an address space be merged?
 * @mm: the address space
 *
 * Asked by <linux/ksm.h> of later kernels, not by that of 6.12.
 *
 * Context: Process context, mmap_lock held.
 * Return: true when a VMA has VM_MERGEABLE.
 */
bool pksm_mm_marked(struct mm_struct *mm)
{
	return pksm_mm_marked_but(mm, VM_NONE);
}

static int pksm_widen_mm(struct mm_struct *mm)
{
	struct vm_area_struct *vma;

	/* Not to be killed halfway, when nothing could be done about the other half. */
	mmap_write_lock(mm);
	VMA_ITERATOR(vmi, mm, 0);
	for_each_vma(vmi, vma) {
		if (!READ_ONCE(mm->pksm_opted_out) && !(vma->vm_flags & VM_MERGE_ADVISED))
			pksm_mark_vma(vma);
	}
	mmap_write_unlock(mm);
	return 0;
}

static int pksm_narrow_mm(struct mm_struct *mm)
{
	int err = 0;

	if (mmap_write_lock_killable(mm))
		return -EINTR;
	if (!pksm_mm_merge_any(mm) && pksm_mm_marked_but(mm, VM_MERGE_ADVISED)) {
		pksm_nr_unmarked++;
		err = pksm_unmark_vmas(mm, VM_MERGE_ADVISED);
	}
	mmap_write_unlock(mm);
	return err;
}

/**
 * pksm_scope_apply - make every VMA what it has to be in a scope
 * @scope: the scope
 *
 * A process that forks meanwhile hands its flags to a child that may have been
 * passed already; so all are visited again until there is nothing to do.
 *
 * Context: Process context, pksm_mutex held. May sleep.
 * Return: 0, and nothing else with PKSM_SCOPE_ALL; -EINTR on a signal; -EBUSY when
 * processes were forked faster than they could be visited; or another error of
 * pksm_unmerge_range(). Then a part of the processes was visited.
 */
int pksm_scope_apply(enum pksm_scope scope)
{
	int round, err;

	lockdep_assert_held(&pksm_mutex);
	WRITE_ONCE(pksm_scope, scope);
	if (scope == PKSM_SCOPE_ALL)
		return pksm_visit_mms(pksm_widen_mm);
	for (round = 0; round < PKSM_SCOPE_ROUNDS; round++) {
		pksm_nr_unmarked = 0;
		err = pksm_visit_mms(pksm_narrow_mm);
		if (err || !pksm_nr_unmarked)
			return err == -ERESTARTSYS ? -EINTR : err;
	}
	return -EBUSY;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: giving every process its own copy back.
 *
 * Breaking is left to the page fault: FAULT_FLAG_UNSHARE makes a private copy of
 * a merged page, or of a zero page that PKSM installed, without writing to it.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/ksm.h>
#include <linux/oom.h>
#include <linux/pagewalk.h>
#include <linux/sched/signal.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/userfaultfd_k.h>

#include <trace/events/pksm.h>

#include "internal.h"
#include "fail.h"

/* How often all processes are visited before run=2 gives up. */
#define PKSM_UNMERGE_ROUNDS	200

/*
 * Is a folio merged, or just about to be?
 *
 * A page that is to become stable is write-protected first, one process after
 * another, and becomes it when the other page was found equal: whoever forbids
 * merging in between must not be left with it. A copy is made of it as of a merged
 * page, since its lock is held.
 */
static bool pksm_folio_merged(const struct folio *folio)
{
	/* Pairs with pksm_turning_end(): what it has become is read after that. */
	const struct folio *turning = smp_load_acquire(&pksm_turning);

	return folio == turning || folio_test_ksm(folio);
}

/*
 * Does this PTE map a page that PKSM merged, or is just about to merge?
 *
 * It cannot come to be about to be merged from now on, where mmap_lock is held for
 * writing: see pksm_vma_fit(). So it is named in pksm_turning already; or it was, and
 * what has become of it is seen after that.
 */
static bool pksm_pte_merged(struct vm_area_struct *vma, unsigned long addr,
			    pte_t pte)
{
	struct page *page;

	if (pte_present(pte)) {
		page = vm_normal_page(vma, addr, pte);
	} else {
		/* The fault will wait until it has moved. */
		page = pksm_migrating_page(pte);
	}
	return page && pksm_folio_merged(page_folio(page));
}

/**
 * struct pksm_search - look for merged pages in a VMA
 * @addr: the address of the first
 * @no_zero: zero pages that PKSM installed are none of them
 * @write: a copy is mapped writable
 */
struct pksm_search {
	unsigned long addr;
	bool no_zero;
	bool write;
};

/* Large pages are never merged: neither look into them nor split them. */
static int pksm_search_pmd(pmd_t *pmd, unsigned long addr, unsigned long next,
			   struct mm_walk *walk)
{
	pmd_t entry = pmdp_get_lockless(pmd);

	if (!pmd_present(entry) || pmd_leaf(entry))
		walk->action = ACTION_CONTINUE;
	cond_resched();
	return 0;
}

/* Does this PTE map a zero page that PKSM installed? */
static bool pksm_pte_zero(pte_t pte)
{
	return pte_present(pte) && is_ksm_zero_pte(pte);
}

static int pksm_search_pte(pte_t *pte, unsigned long addr, unsigned long next,
			   struct mm_walk *walk)
{
	struct pksm_search *search = walk->private;
	pte_t entry = ptep_get(pte);

	if (!pksm_pte_merged(walk->vma, addr, entry) &&
	    (search->no_zero || !pksm_pte_zero(entry)))
		return 0;
	search->addr = addr;
	return 1;
}

static const struct mm_walk_ops pksm_search_ops = {
	.pmd_entry = pksm_search_pmd,
	.pte_entry = pksm_search_pte,
	.walk_lock = PGWALK_RDLOCK,
};

static const struct mm_walk_ops pksm_search_locked_ops = {
	.pmd_entry = pksm_search_pmd,
	.pte_entry = pksm_search_pte,
	.walk_lock = PGWALK_WRLOCK,
};

/* Break what a search finds in a range. Returns what pksm_unmerge_range() does. */
static int pksm_break_found(struct vm_area_struct *vma, unsigned long start,
			    unsigned long end, const struct mm_walk_ops *ops,
			    struct pksm_search *search)
{
	unsigned int flags = FAULT_FLAG_REMOTE;
	unsigned long last = end;
	vm_fault_t fault;
	int err;

	flags |= search->write ? FAULT_FLAG_WRITE : FAULT_FLAG_UNSHARE;
	while (start < end) {
		if (signal_pending(current))
			return -ERESTARTSYS;
		err = walk_page_range_vma(vma, start, end, ops, search);
		if (err < 0)
			return err;
		if (!err)
			return 0;
		/*
		 * The fault may back out, so the same page is looked at again;
		 * or pksmd has not yet frozen one that it is about to merge,
		 * and may need this CPU to see that it must not.
		 * SIGBUS means that truncation has just unmapped it.
		 */
		start = search->addr;
		if (start == last)
			schedule_timeout_killable(1);
		last = start;
		fault = pksm_should_fail(PKSM_FAIL_UNSHARE) ?
			VM_FAULT_OOM : handle_mm_fault(vma, start, flags, NULL);
		trace_pksm_unmerge(vma->vm_mm, start,
				   (__force unsigned int)fault);
		if (fault & VM_FAULT_OOM)
			return -ENOMEM;
		if (fault & (VM_FAULT_SIGBUS | VM_FAULT_SIGSEGV |
			     VM_FAULT_HWPOISON))
			start += PAGE_SIZE;
	}
	return 0;
}

/**
 * pksm_unmerge_range - break every merged page of a range
 * @vma: the VMA
 * @start: first address
 * @end: address behind the last
 * @lock_vma: lock the VMA against faults that do not take mmap_lock
 *
 * Context: Process context, mmap_lock held: for writing if @lock_vma.
 * Return: 0, -ERESTARTSYS on a signal, -ENOMEM when a copy could not be had, for
 * instance since the memory cgroup is at its limit; what was broken stays so.
 */
int pksm_unmerge_range(struct vm_area_struct *vma, unsigned long start,
		       unsigned long end, bool lock_vma)
{
	struct pksm_search search = { };

	return pksm_break_found(vma, start, end,
				lock_vma ? &pksm_search_locked_ops :
					   &pksm_search_ops, &search);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/**
 * __pksm_collapse_begin - of pksm_collapse_begin()
 * @vma: the VMA
 * @start: first address, of a huge page
 * @end: address behind the last
 *
 * Where only what is mapped writable somewhere is collapsed, the copies are; elsewhere
 * they are where the owner may write, and does not want to be told of that. A copy that
 * cannot be had is no matter: who collapses will find what is in the way.
 *
 * Context: Process context, mmap_lock held for reading. May sleep.
 */
void __pksm_collapse_begin(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end)
{
	struct pksm_search search = {
		.no_zero = true,
		.write = (vma->vm_flags & VM_WRITE) && !pksm_vma_uffd(vma),
	};

	if (!vma_is_anonymous(vma))
		return;
	if (!search.write && !PKSM_COLLAPSES_READ_ONLY)
		return;
	pksm_break_found(vma, start, end, &pksm_search_ops, &search);
	/* Who is in a batch of the LRU lists cannot be isolated. */
	if (search.addr)
		lru_add_drain_all();
}
#endif

/**
 * pksm_move_error - why a page may not be moved that is not its owner's alone
 * @vma: the VMA that has it, whose owner did not ask for merging, perhaps
 * @folio: the page, mapped there; or NULL when it is in swap, where merged pages are
 *	not told from others that are shared
 *
 * Context: The page table lock is held, if there is a @folio.
 * Return: -EMLINK when merging may be why: see pksm_unmerge_page(); else -EBUSY.
 */
int pksm_move_error(struct vm_area_struct *vma, struct folio *folio)
{
	if (!static_branch_unlikely(&pksm_count_key))
		return -EBUSY;
	if (!folio)
		return vma->vm_flags & VM_MERGEABLE ? -EMLINK : -EBUSY;
	if (pksm_folio_merged(folio))
		return -EMLINK;
	/* It was, before it was swapped out; or was frozen for nothing. */
	if (!folio_test_large(folio) && PagePKSM(&folio->page) &&
	    folio_mapcount(folio) == 1)
		return -EMLINK;
	return -EBUSY;
}

/**
 * pksm_unmerge_page - break a merged page that is in the way of its owner
 * @vma: the VMA
 * @addr: where it has a page of which pksm_move_error() says -EMLINK
 *
 * Context: Process context, the VMA's lock held for reading; or, where VMAs have none,
 * mmap_lock. May sleep.
 * Return: 0: look again; -EAGAIN while somebody waits for mmap_lock, and perhaps for the
 * caller; -ENOMEM when a copy could not be had; -EBUSY when the page cannot be copied.
 */
int pksm_unmerge_page(struct vm_area_struct *vma, unsigned long addr)
{
	struct mm_struct *mm = vma->vm_mm;
	vm_fault_t fault;

	/* The page may have gone: other faults than for a copy want that lock. */
	if (IS_ENABLED(CONFIG_PER_VMA_LOCK) && !mmap_read_trylock(mm))
		return -EAGAIN;
	fault = pksm_should_fail(PKSM_FAIL_MOVE) ?
		VM_FAULT_OOM :
		handle_mm_fault(vma, addr, FAULT_FLAG_UNSHARE |
				FAULT_FLAG_REMOTE, NULL);
	if (IS_ENABLED(CONFIG_PER_VMA_LOCK))
		mmap_read_unlock(mm);

	trace_pksm_unmerge(mm, addr, (__force unsigned int)fault);
	if (fault & VM_FAULT_OOM)
		return -ENOMEM;
	return fault & VM_FAULT_ERROR ? -EBUSY : 0;
}

/* Guarded by pksm_mutex: how often a process had anything to break. */
static unsigned long pksm_nr_unmerged;

static int pksm_unmerge_mm(struct mm_struct *mm)
{
	struct pksm_search search = { };
	struct vm_area_struct *vma;
	int err;

	err = mmap_read_lock_killable(mm);
	if (err)
		return -ERESTARTSYS;
	VMA_ITERATOR(vmi, mm, 0);
	for_each_vma(vmi, vma) {
		if (!vma->anon_vma)
			continue;
		err = walk_page_range_vma(vma, vma->vm_start, vma->vm_end,
					  &pksm_search_ops, &search);
		if (err < 0)
			break;
		if (!err)
			continue;
		pksm_nr_unmerged++;
		err = pksm_unmerge_range(vma, vma->vm_start, vma->vm_end, false);
		if (err)
			break;
	}
	mmap_read_unlock(mm);
	return err;
}

/**
 * pksm_unmerge_all - break every merged page of the system
 *
 * A process that forks meanwhile hands merged pages to a child that was passed
 * already; so all are visited again until none has any left. A process that is
 * just exiting cannot be visited: it is waited for.
 *
 * Context: Process context, pksm_mutex held, intake off. May sleep.
 * Return: 0, -ERESTARTSYS on a signal, -ENOMEM when a copy could not be had,
 * -EBUSY when pages are left, which no process that can be found maps, or which
 * cannot be copied.
 */
int pksm_unmerge_all(void)
{
	int round, err;

	lockdep_assert_held(&pksm_mutex);
	for (round = 0; round < PKSM_UNMERGE_ROUNDS; round++) {
		pksm_nr_unmerged = 0;
		/* Should it come to that, this task is to blame. */
		set_current_oom_origin();
		err = pksm_visit_mms(pksm_unmerge_mm);
		clear_current_oom_origin();
		if (err)
			return err;
		pksm_detach_unmapped();
		pksm_reap_dead_nodes();
		if (pksm_nr_unmerged)
			continue;
		if (!pksm_nr_class(PKSM_CLASS_SHARED))
			return 0;
		schedule_timeout_killable(1);
		if (fatal_signal_pending(current))
			return -ERESTARTSYS;
	}
	return -EBUSY;
}

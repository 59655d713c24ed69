/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MM_PKSM_COMPAT_H
#define _MM_PKSM_COMPAT_H
/*
 * Everything in which the kernels that PKSM is built for differ, each with
 * its reason. They are told by what the headers define.
 */
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/sched/coredump.h>
#include <linux/sched/cputime.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/userfaultfd_k.h>
/* New in the same kernel as this one: 7.2. */
#ifdef UFFD_FEATURE_RWP
#include <linux/sched/exec_state.h>
#endif

/* The low bits of folio->mapping were renamed and moved after 6.12. */
#ifdef FOLIO_MAPPING_KSM
#define PKSM_MAPPING_ANON	FOLIO_MAPPING_ANON
#define PKSM_MAPPING_KSM	FOLIO_MAPPING_KSM
#define PKSM_MAPPING_FLAGS	FOLIO_MAPPING_FLAGS
#else
#define PKSM_MAPPING_ANON	PAGE_MAPPING_ANON
#define PKSM_MAPPING_KSM	PAGE_MAPPING_KSM
#define PKSM_MAPPING_FLAGS	PAGE_MAPPING_FLAGS
#endif

/*
 * The flags of a VMA, to which ksm_vma_flags() may add one, became an opaque
 * bitmap in 7.1.
 */
#ifdef NUM_VMA_FLAG_BITS
#define pksm_vma_flags_t	vma_flags_t

static inline vm_flags_t pksm_vma_flags_word(pksm_vma_flags_t flags)
{
	return vma_flags_to_legacy(flags);
}

static inline pksm_vma_flags_t pksm_vma_flags_add(pksm_vma_flags_t flags)
{
	vma_flags_set(&flags, VMA_MERGEABLE_BIT);
	return flags;
}
#else
#define pksm_vma_flags_t	vm_flags_t

static inline vm_flags_t pksm_vma_flags_word(pksm_vma_flags_t flags)
{
	return flags;
}

static inline pksm_vma_flags_t pksm_vma_flags_add(pksm_vma_flags_t flags)
{
	return flags | VM_MERGEABLE;
}
#endif

/*
 * 6.12 tells of each VMA when it was made, by ksm_add_vma(). Later kernels ask for
 * its flags instead, by ksm_vma_flags(): also where a file is mapped, which by then
 * has had its say.
 */
#ifdef FOLIO_MAPPING_KSM
static inline bool pksm_file_fit(const struct file *file)
{
	return !file_is_dax(file);
}
#else
#define PKSM_IS_TOLD_OF_VMAS

static inline bool pksm_file_fit(const struct file *file)
{
	return !file;
}
#endif

/*
 * The VMAs of an anon_vma are looked for by another function since 7.1; and since
 * 7.3 the page offset of an anonymous page is a matter of its own: in a private
 * mapping of a file it is no longer that of the file. Macros, as not everybody
 * who includes this includes mm/internal.h.
 *
 * And 6.12 collapses only what is mapped writable somewhere; 7.3 does not ask.
 */
#ifdef anon_rmap_tree_foreach
#define PKSM_COLLAPSES_READ_ONLY	true
#define pksm_anon_address(vma, index)	vma_anon_address(vma, index, 1)
#define pksm_anon_index(vma, addr)	linear_anon_page_index(vma, addr)
#else
#define PKSM_COLLAPSES_READ_ONLY	false
#define anon_rmap_tree_foreach(avc, anon_vma, first, last)		\
	anon_vma_interval_tree_foreach(avc, &(anon_vma)->rb_root, first, last)
#define pksm_anon_address(vma, index)	vma_address(vma, index, 1)
#define pksm_anon_index(vma, addr)	linear_page_index(vma, addr)
#endif

/* What a PTE that is not present stands for has other names since 6.19. */
static inline struct page *pksm_migrating_page(pte_t pte)
{
#ifdef _LINUX_LEAFOPS_H
	softleaf_t entry = softleaf_from_pte(pte);

	return softleaf_is_migration(entry) ? softleaf_to_page(entry) : NULL;
#else
	swp_entry_t entry;

	if (pte_none(pte) || pte_present(pte))
		return NULL;
	entry = pte_to_swp_entry(pte);
	return is_migration_entry(entry) ? pfn_swap_entry_to_page(entry) : NULL;
#endif
}

/*
 * The bit that userfaultfd sets in a PTE says since 7.2 that reads are told as
 * well, and has lost that part of its name.
 */
static inline bool pksm_pte_uffd(pte_t pte)
{
#ifdef UFFD_FEATURE_RWP
	return pte_uffd(pte);
#else
	return pte_uffd_wp(pte);
#endif
}

/* Does the owner want to be told when its pages are accessed? */
static inline bool pksm_vma_uffd(struct vm_area_struct *vma)
{
#ifdef UFFD_FEATURE_RWP
	return userfaultfd_protected(vma);
#else
	return userfaultfd_wp(vma);
#endif
}

/* A page of order 0. That it is no huge page had to be said in 6.12. */
static inline struct folio *pksm_alloc_page(struct vm_area_struct *vma,
					    unsigned long addr)
{
#ifdef FOLIO_MAPPING_KSM
	return vma_alloc_folio(GFP_HIGHUSER_MOVABLE, 0, vma, addr);
#else
	return vma_alloc_folio(GFP_HIGHUSER_MOVABLE, 0, vma, addr, false);
#endif
}

/* collect_procs_ksm() was given its pages as const after 6.12. */
#ifdef FOLIO_MAPPING_KSM
#define pksm_const	const
#else
#define pksm_const
#endif

/*
 * Whether other processes of its user may read a process went from its address
 * space to what its threads have in common, in 7.2.
 */
static inline bool pksm_readable(struct mm_struct *mm, struct task_struct *owner)
{
#ifdef _LINUX_SCHED_EXEC_STATE_H
	const struct task_exec_state *state = rcu_dereference(owner->exec_state);

	return state && READ_ONCE(state->dumpable) == TASK_DUMPABLE_OWNER;
#else
	return get_dumpable(mm) == SUID_DUMP_USER;
#endif
}

#ifdef CONFIG_PKSM_KUNIT_TEST
/* The same, made so for an address space that this task owns. */
static inline void pksm_test_set_readable(struct mm_struct *mm, bool readable)
{
#ifdef _LINUX_SCHED_EXEC_STATE_H
	struct task_exec_state *state;

	/* That of all kernel threads, which nobody reads: see the tests. */
	state = rcu_dereference_protected(current->exec_state, true);

	WRITE_ONCE(state->dumpable, readable ? TASK_DUMPABLE_OWNER :
					       TASK_DUMPABLE_OFF);
#else
	set_dumpable(mm, readable ? SUID_DUMP_USER : SUID_DUMP_DISABLE);
#endif
}
#endif

/* mm->flags became an opaque bitmap, with functions of its own, in 6.18. */
static inline bool pksm_mm_merge_any(struct mm_struct *mm)
{
#ifdef NUM_MM_FLAG_BITS
	return mm_flags_test(MMF_VM_MERGE_ANY, mm);
#else
	return test_bit(MMF_VM_MERGE_ANY, &mm->flags);
#endif
}

static inline void pksm_mm_set_merge_any(struct mm_struct *mm)
{
#ifdef NUM_MM_FLAG_BITS
	mm_flags_set(MMF_VM_MERGE_ANY, mm);
#else
	set_bit(MMF_VM_MERGE_ANY, &mm->flags);
#endif
}

static inline void pksm_mm_clear_merge_any(struct mm_struct *mm)
{
#ifdef NUM_MM_FLAG_BITS
	mm_flags_clear(MMF_VM_MERGE_ANY, mm);
#else
	clear_bit(MMF_VM_MERGE_ANY, &mm->flags);
#endif
}

/*
 * CPU time of this task, in nanoseconds. UML has no sched_clock(), and counts CPU time
 * in jiffies; there, take the time that passes: too much when the task is preempted.
 */
static inline u64 pksm_cpu_clock(void)
{
	return IS_ENABLED(CONFIG_UML) ? ktime_get_ns() :
					task_sched_runtime(current);
}

#endif /* _MM_PKSM_COMPAT_H */

/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MM_PKSM_COMPAT_H
#define _MM_PKSM_COMPAT_H
/*
 * Everything in which the kernels that PKSM is built for differ, each with
 * its reason. They are told by what the headers define.
 */
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/page-flags.h>
#include <linux/sched/coredump.h>
#include <linux/sched/cputime.h>

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

/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pksm

#if !defined(_TRACE_PKSM_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_PKSM_H

#include <linux/tracepoint.h>

/* How pksmd ended with a page; see enum pksm_result in mm/pksm/internal.h. */
#define show_pksm_result(result)			\
	__print_symbolic(result,			\
			 { 0, "merged" },		\
			 { 1, "differs" },		\
			 { 2, "busy" },			\
			 { 3, "changed" },		\
			 { 4, "unfit" },		\
			 { 5, "busy-partner" },		\
			 { 6, "unfit-partner" },	\
			 { 7, "no-memory" })

/**
 * pksm_intake - a page enters
 * @pfn: its page frame number
 * @age: 0 for a new page; more for one that was broken off a merged page
 * @stable: it is a merged page that was migrated here
 *
 * Context: Any.
 */
TRACE_EVENT(pksm_intake,

	TP_PROTO(unsigned long pfn, unsigned int age, bool stable),

	TP_ARGS(pfn, age, stable),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, age)
		__field(bool, stable)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->age = age;
		__entry->stable = stable;
	),

	TP_printk("pfn=0x%lx age=%u stable=%d", __entry->pfn, __entry->age,
		  __entry->stable)
);

DECLARE_EVENT_CLASS(pksm_page,

	TP_PROTO(unsigned long pfn),

	TP_ARGS(pfn),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
	),

	TP_printk("pfn=0x%lx", __entry->pfn)
);

/**
 * pksm_delete - a page is freed
 * @pfn: its page frame number
 *
 * Context: Any.
 */
DEFINE_EVENT(pksm_page, pksm_delete,
	TP_PROTO(unsigned long pfn),
	TP_ARGS(pfn)
);

/**
 * pksm_break - a merged page is copied for a write
 * @pfn: page frame number of the merged page
 *
 * Context: Page table lock held.
 */
DEFINE_EVENT(pksm_page, pksm_break,
	TP_PROTO(unsigned long pfn),
	TP_ARGS(pfn)
);

/**
 * pksm_write - a page that is watched is written to
 * @pfn: its page frame number
 *
 * Context: Page table lock held.
 */
DEFINE_EVENT(pksm_page, pksm_write,
	TP_PROTO(unsigned long pfn),
	TP_ARGS(pfn)
);

/**
 * pksm_hash - a page was read
 * @pfn: its page frame number
 * @hash: the keyed hash of its contents
 *
 * Context: Process context, pksm_mutex held.
 */
TRACE_EVENT(pksm_hash,

	TP_PROTO(unsigned long pfn, u64 hash),

	TP_ARGS(pfn, hash),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(u64, hash)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->hash = hash;
	),

	TP_printk("pfn=0x%lx hash=0x%016llx", __entry->pfn, __entry->hash)
);

/**
 * pksm_merge - pksmd has tried to absorb a page into another
 * @pfn: page frame number of the page
 * @into: that of the other: merged before, found in the index, or the zero page
 * @result: an enum pksm_result
 * @nr: how many PTEs were replaced
 *
 * Context: Process context, pksm_mutex held.
 */
TRACE_EVENT(pksm_merge,

	TP_PROTO(unsigned long pfn, unsigned long into, int result,
		 unsigned int nr),

	TP_ARGS(pfn, into, result, nr),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned long, into)
		__field(int, result)
		__field(unsigned int, nr)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->into = into;
		__entry->result = result;
		__entry->nr = nr;
	),

	TP_printk("pfn=0x%lx into=0x%lx result=%s ptes=%u", __entry->pfn,
		  __entry->into,
		  show_pksm_result(__entry->result), __entry->nr)
);

/**
 * pksm_rescan - pksmd took a second look at a page that had found no partner
 * @pfn: its page frame number
 * @watched: it is write-protected and has not changed
 * @age: how often it had changed before
 *
 * Context: Process context, pksm_mutex held.
 */
TRACE_EVENT(pksm_rescan,

	TP_PROTO(unsigned long pfn, bool watched, unsigned int age),

	TP_ARGS(pfn, watched, age),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, age)
		__field(bool, watched)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->age = age;
		__entry->watched = watched;
	),

	TP_printk("pfn=0x%lx watched=%d age=%u", __entry->pfn,
		  __entry->watched, __entry->age)
);

/**
 * pksm_prune - pksmd dropped sharers of a merged page that have no PTE
 * @pfn: its page frame number
 * @before: how many sharers there were
 * @after: how many there are
 *
 * Context: Process context, pksm_mutex and folio lock held.
 */
TRACE_EVENT(pksm_prune,

	TP_PROTO(unsigned long pfn, unsigned int before, unsigned int after),

	TP_ARGS(pfn, before, after),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, before)
		__field(unsigned int, after)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->before = before;
		__entry->after = after;
	),

	TP_printk("pfn=0x%lx before=%u after=%u", __entry->pfn,
		  __entry->before, __entry->after)
);

/**
 * pksm_split - a large folio has enough pages that others are equal to
 * @pfn: page frame number of its first page
 * @nr: how many pages it has
 * @matched: how many of them have an equal
 * @err: 0 when it was split, or why it could not be
 *
 * Context: Process context, pksm_mutex held.
 */
TRACE_EVENT(pksm_split,

	TP_PROTO(unsigned long pfn, unsigned int nr, unsigned int matched,
		 int err),

	TP_ARGS(pfn, nr, matched, err),

	TP_STRUCT__entry(
		__field(unsigned long, pfn)
		__field(unsigned int, nr)
		__field(unsigned int, matched)
		__field(int, err)
	),

	TP_fast_assign(
		__entry->pfn = pfn;
		__entry->nr = nr;
		__entry->matched = matched;
		__entry->err = err;
	),

	TP_printk("pfn=0x%lx nr=%u matched=%u err=%d", __entry->pfn,
		  __entry->nr, __entry->matched, __entry->err)
);

/**
 * pksm_unmerge - a process gets its own copy of a merged page, or of a zero page
 * @mm: its address space
 * @addr: where
 * @fault: what the page fault returned
 *
 * Context: Process context, mmap_lock held.
 */
TRACE_EVENT(pksm_unmerge,

	TP_PROTO(void *mm, unsigned long addr, unsigned int fault),

	TP_ARGS(mm, addr, fault),

	TP_STRUCT__entry(
		__field(void *, mm)
		__field(unsigned long, addr)
		__field(unsigned int, fault)
	),

	TP_fast_assign(
		__entry->mm = mm;
		__entry->addr = addr;
		__entry->fault = fault;
	),

	TP_printk("mm=%p addr=0x%lx fault=0x%x", __entry->mm, __entry->addr,
		  __entry->fault)
);

#endif /* _TRACE_PKSM_H */

#include <trace/define_trace.h>

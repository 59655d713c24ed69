/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MM_PKSM_HOLD_H
#define _MM_PKSM_HOLD_H
/*
 * Moments at which a test may hold the engine; see hold.c.
 */
#include <linux/jump_label.h>
#include <linux/types.h>

/**
 * enum pksm_point - a moment
 * @PKSM_AT_NONE: none
 * @PKSM_AT_HASHED: a page was read, and is locked (its page frame number)
 * @PKSM_AT_LOOKUP: a page or a stable page of the same hash is in the index; it may be
 *	freed, and another page in its place (its page frame number)
 * @PKSM_AT_FOUND: a page or a stable page of the same hash was found, and a reference
 *	on it taken; it is not locked yet (its page frame number)
 * @PKSM_AT_FROZEN: the PTEs of a page that is to become stable are write-protected, and
 *	it was not compared yet; both pages are locked (its page frame number)
 * @PKSM_AT_CLEARED: a PTE of a page is cleared, and its TLB entry flushed; its page table
 *	and the page are locked: for a second at most (its page frame number)
 * @PKSM_AT_VISIT: an address space is about to be visited, as by run=2 (the number of
 *	its process)
 * @PKSM_AT_MIGRATE: a stable page moves, and migration entries stand for it; it is
 *	locked (its old page frame number)
 * @PKSM_AT_LARGE: the first page of a large folio was read, which is locked, and watched
 *	if it is to be (its page frame number)
 * @PKSM_AT_UNFLUSHED: the PTEs of a large folio are write-protected, and the TLB was not
 *	flushed yet; it is locked (its page frame number)
 * @PKSM_NR_POINTS: how many there are
 */
enum pksm_point {
	PKSM_AT_NONE,
	PKSM_AT_HASHED,
	PKSM_AT_LOOKUP,
	PKSM_AT_FOUND,
	PKSM_AT_FROZEN,
	PKSM_AT_CLEARED,
	PKSM_AT_VISIT,
	PKSM_AT_MIGRATE,
	PKSM_AT_LARGE,
	PKSM_AT_UNFLUSHED,
	PKSM_NR_POINTS,
};

#ifdef CONFIG_PKSM_DEBUG
DECLARE_STATIC_KEY_FALSE(pksm_hold_key);
extern const struct file_operations pksm_hold_fops;

void __pksm_hold(enum pksm_point point, unsigned long value);
void __pksm_hold_spinning(enum pksm_point point, unsigned long value);

/**
 * pksm_hold - a task has come to a moment at which it may be held
 * @point: which
 * @value: what with; see enum pksm_point
 *
 * Context: Process context. May sleep.
 */
static inline void pksm_hold(enum pksm_point point, unsigned long value)
{
	if (static_branch_unlikely(&pksm_hold_key))
		__pksm_hold(point, value);
}

/**
 * pksm_hold_spinning - a task that must not sleep has come to such a moment
 * @point: which
 * @value: what with; see enum pksm_point
 *
 * Context: Any but interrupts. Spins for a second at most.
 */
static inline void pksm_hold_spinning(enum pksm_point point,
				      unsigned long value)
{
	if (static_branch_unlikely(&pksm_hold_key))
		__pksm_hold_spinning(point, value);
}
#else
static inline void pksm_hold(enum pksm_point point, unsigned long value)
{
}

static inline void pksm_hold_spinning(enum pksm_point point,
				      unsigned long value)
{
}
#endif

#endif /* _MM_PKSM_HOLD_H */

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: where pages enter and leave.
 *
 * The hooks of the fault path and of the free path, the record of a page and
 * the counters that go with its state. Nothing here allocates, sleeps or takes
 * a lock.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/memory_hotplug.h>
#include <linux/page_ext.h>

#include <trace/events/pksm.h>

#include "../internal.h"
#include "internal.h"

DEFINE_STATIC_KEY_FALSE(pksm_intake_key);

DEFINE_PER_CPU(struct pksm_cpu, pksm_cpu) = {
	.new_head = PKSM_END,
};

static bool __init pksm_page_ext_need(void)
{
	return true;
}

struct page_ext_operations pksm_page_ext_ops __refdata = {
	.size = sizeof(struct pksm_rmap_item),
	.need = pksm_page_ext_need,
};

/* === records === */

/**
 * __pksm_rmap_item - find the record of a page
 * @page: any page
 *
 * It stays where it is as long as the page is in use, or the record is linked to
 * anything: see hotplug.c.
 *
 * Context: Any.
 * Return: The record, or NULL where there is none: page_ext is not there yet,
 * or the page frame number does not fit a record.
 */
struct pksm_rmap_item *__pksm_rmap_item(struct page *page)
{
	struct pksm_rmap_item *item;
	struct page_ext *page_ext;

	if (unlikely(page_to_pfn(page) >= PKSM_END))
		return NULL;
	page_ext = page_ext_get(page);
	if (unlikely(!page_ext))
		return NULL;
	item = page_ext_data(page_ext, &pksm_page_ext_ops);
	page_ext_put(page_ext);
	return item;
}

/**
 * pksm_item - find the record of a page frame
 * @pfn: a page frame number that the engine stored, or any other
 *
 * Context: Any.
 * Return: The record, or NULL where there is none.
 */
struct pksm_rmap_item *pksm_item(unsigned long pfn)
{
	return pfn_valid(pfn) ? __pksm_rmap_item(pfn_to_page(pfn)) : NULL;
}

/* Is the next write to this page to be told, and was not yet? */
static bool pksm_state_watched(u32 state)
{
	return (state & (PKSM_LIVE | PKSM_STABLE | PKSM_WHERE_MASK |
			 PKSM_REBORN | PKSM_WATCHED)) ==
	       (PKSM_LIVE | PKSM_INDEX | PKSM_WATCHED);
}

/**
 * pksm_classify - the class of a page
 * @state: the state of its record
 *
 * Return: In which counter it is.
 */
enum pksm_class pksm_classify(u32 state)
{
	if (!(state & PKSM_LIVE))
		return PKSM_CLASS_UNTRACKED;
	if (state & PKSM_STABLE)
		return PKSM_CLASS_SHARED;
	switch (pksm_where(state)) {
	case PKSM_INDEX:
		switch (state & (PKSM_REBORN | PKSM_WATCHED)) {
		case 0:
			return PKSM_CLASS_UNSHARED;
		case PKSM_WATCHED:
			return PKSM_CLASS_WATCHED;
		case PKSM_REBORN | PKSM_WATCHED:
			return PKSM_CLASS_VOLATILE;
		default:
			return PKSM_CLASS_NEW;
		}
	case PKSM_LIST:
		return pksm_level(state) ? PKSM_CLASS_VOLATILE : PKSM_CLASS_NEW;
	default:
		return PKSM_CLASS_NEW;
	}
}

/*
 * An operation on a per-CPU variable is not cheap everywhere, and nobody wants to
 * know how many pages are not tracked.
 */
static __always_inline void pksm_class_inc(enum pksm_class class)
{
	if (class != PKSM_CLASS_UNTRACKED)
		this_cpu_inc(pksm_cpu.nr[class]);
}

static __always_inline void pksm_class_dec(enum pksm_class class)
{
	if (class != PKSM_CLASS_UNTRACKED)
		this_cpu_dec(pksm_cpu.nr[class]);
}

/* Was it born, and nothing happened to it since? Most of what comes and goes. */
static __always_inline bool pksm_state_newborn(u32 state)
{
	return (state & (PKSM_LIVE | PKSM_STABLE | PKSM_WHERE_MASK |
			 PKSM_LEVEL_MASK)) == (PKSM_LIVE | PKSM_LIST);
}

/* The bits that go when a page goes. */
static u32 pksm_life(u32 state)
{
	return PKSM_LIVE | PKSM_STABLE | PKSM_AGE_MASK |
	       (pksm_where(state) == PKSM_INDEX ? PKSM_REBORN | PKSM_WATCHED :
						  PKSM_CLEANED);
}

/**
 * pksm_item_set - change the state of a record, and the counters with it
 * @item: the record
 * @old: the state it is believed to have
 * @new: the state it shall have
 *
 * Context: Any.
 * Return: true when the state was @old and is now @new, false when somebody
 * else changed it first.
 */
bool pksm_item_set(struct pksm_rmap_item *item, u32 old, u32 new)
{
	enum pksm_class from, to;

	if (cmpxchg(&item->state, old, new) != old)
		return false;
	from = pksm_classify(old);
	to = pksm_classify(new);
	if (from != to) {
		pksm_class_dec(from);
		pksm_class_inc(to);
	}
	return true;
}

static_assert(PKSM_PAGE_SCANNED + PKSM_EVENT_SCANNED == PKSM_PAGE_SCANNED);
static_assert(PKSM_PAGE_SCANNED + PKSM_EVENT_MERGED == PKSM_PAGE_MERGED);
static_assert(PKSM_PAGE_SCANNED + PKSM_EVENT_BROKEN == PKSM_PAGE_BROKEN);

/**
 * pksm_count_event - count something that happened, here and in /proc/vmstat
 * @event: what
 *
 * Context: Any.
 */
void pksm_count_event(enum pksm_event event)
{
	this_cpu_inc(pksm_cpu.events[event]);
	count_vm_event(PKSM_PAGE_SCANNED + event);
}

/**
 * pksm_nr_class - number of tracked pages of a class
 * @class: which
 *
 * Return: The number of pages. A page that changes its class while the CPUs
 * are summed up may be missed or counted twice, but never for longer.
 */
long pksm_nr_class(enum pksm_class class)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(pksm_cpu.nr[class], cpu));
	return max(sum, 0L);
}

/**
 * pksm_nr_event - how often something happened since boot
 * @event: what
 *
 * Return: The number of events.
 */
unsigned long pksm_nr_event(enum pksm_event event)
{
	unsigned long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(pksm_cpu.events[event], cpu));
	return sum;
}

/* === the fault path === */

/*
 * Push a record on this CPU's new list. Only pksmd ever takes records off, and
 * takes all of them with one xchg(), so a plain cmpxchg() loop is free of the
 * ABA problem; and being moved to another CPU midway does no harm.
 */
static void pksm_push_new(unsigned long pfn, struct pksm_rmap_item *item)
{
	u32 *head = raw_cpu_ptr(&pksm_cpu.new_head);
	u32 old = READ_ONCE(*head);

	do {
		WRITE_ONCE(item->next, old);
	} while (!try_cmpxchg(head, &old, (u32)pfn));
}

/*
 * Bring a record to life, as old as @age. Returns true when it is linked to
 * nothing, so that nobody would ever find it.
 */
static __always_inline bool pksm_revive(struct pksm_rmap_item *item, bool stable,
					u32 age)
{
	u32 level = age ? pksm_age_level(age) << PKSM_LEVEL_SHIFT : 0;
	u32 old = READ_ONCE(item->state), new;

	do {
		VM_WARN_ON_ONCE(old & PKSM_LIVE);
		new = PKSM_LIVE | (age << PKSM_AGE_SHIFT);
		switch (pksm_where(old)) {
		case PKSM_LIST:		/* still queued from its former life */
			new |= PKSM_LIST | level;
			break;
		case PKSM_INDEX:	/* still in the bucket of that life */
			new |= (old & ~pksm_life(old)) | PKSM_REBORN;
			break;
		default:
			new |= stable ? PKSM_NONE : PKSM_LIST | level;
			break;
		}
		if (stable)
			new |= PKSM_STABLE;
	} while (!try_cmpxchg(&item->state, &old, new));
	pksm_class_inc(pksm_state_newborn(new) ? PKSM_CLASS_NEW :
						 pksm_classify(new));

	return pksm_where(old) == PKSM_NONE && !stable;
}

/* Without a call, as it is most of what the engine adds to a fault. */
static __always_inline void pksm_add_newborn(struct page *page,
					     struct pksm_rmap_item *item,
					     u32 age)
{
	bool push;

	VM_WARN_ON_ONCE_PAGE(PagePKSM(page), page);
	VM_WARN_ON_ONCE_PAGE(!PageAnon(page), page);

	trace_pksm_intake(page_to_pfn(page), age, false);
	/* The mark comes last: whoever sees it finds the record alive. */
	push = pksm_revive(item, false, age);
	__SetPagePKSM(page);
	/* One that is linked was announced by whoever linked it, or left it there. */
	if (push) {
		pksm_push_new(page_to_pfn(page), item);
		pksm_kick();
	}
}

/**
 * pksm_add_new_anon_page - take a new anonymous page in
 * @page: the page, or the first of a large folio: new, not yet on the LRU and not
 *	yet in a page table, so that nobody else writes its flags
 * @rmap_item: its record, from pksm_rmap_item()
 * @anon_vma: that of its VMA; the engine finds it again through the folio
 *
 * The hook of the fault path. The page's contents are of no interest yet: all
 * that happens here is that the record joins the new list.
 *
 * Context: Process context, page table lock held. Takes no lock, allocates
 * nothing and never sleeps.
 */
void pksm_add_new_anon_page(struct page *page,
			    struct pksm_rmap_item *rmap_item,
			    struct anon_vma *anon_vma)
{
	VM_WARN_ON_ONCE_PAGE(folio_anon_vma(page_folio(page)) != anon_vma &&
			     folio_anon_vma(page_folio(page)) != anon_vma->root,
			     page);
	pksm_add_newborn(page, rmap_item, 0);
}

/**
 * __pksm_add_broken_off - take the copy of a merged page in
 * @page: the copy, see pksm_add_new_anon_page()
 * @rmap_item: its record, from pksm_rmap_item()
 *
 * It was written to, and may be again: it waits longer than a new page.
 *
 * Context: Process context, page table lock held. Never sleeps.
 */
void __pksm_add_broken_off(struct page *page, struct pksm_rmap_item *rmap_item)
{
	pksm_add_newborn(page, rmap_item, 1);
}

/**
 * pksm_add_moved_page - take a page in that others may know already
 * @page: the page, anonymous and locked; migration copied another to it, it comes
 *	back from swap, or it was there before the engine was started
 * @item: its record
 * @stable: migration copied a stable page to it
 * @age: its age, at most PKSM_MAX_AGE
 *
 * Context: Process context. Takes no lock and never sleeps.
 */
void pksm_add_moved_page(struct page *page, struct pksm_rmap_item *item,
			 bool stable, u32 age)
{
	bool push;

	VM_WARN_ON_ONCE_PAGE(PagePKSM(page), page);
	trace_pksm_intake(page_to_pfn(page), age, stable);
	push = pksm_revive(item, stable, age);
	SetPagePKSM(page);
	if (push) {
		pksm_push_new(page_to_pfn(page), item);
		pksm_kick();
	}
}

/**
 * __pksm_add_swapped_in - take a folio in that comes back from swap
 * @folio: see pksm_add_swapped_in()
 *
 * A page that was tracked before it was swapped out, and was not freed
 * meanwhile, still is, unless the engine gave it up for being in the swap
 * cache.
 *
 * Context: Process context, page table lock held. Never sleeps.
 */
void __pksm_add_swapped_in(struct folio *folio)
{
	struct page *page = folio_page(folio, 0);
	struct pksm_rmap_item *item;

	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);
	if (folio_test_ksm(folio)) {
		/* From now on it is seen again whose mappings have gone. */
		if (!folio_test_swapcache(folio))
			__pksm_page_unmapped(folio);
		return;
	}
	if (PagePKSM(page)) {
		/* It may be mapped writable now, and nobody would be told. */
		__pksm_page_written(page);
		return;
	}
	/* Pairs with the full barrier of pksm_item_set() in pksm_forget(). */
	smp_rmb();
	item = __pksm_rmap_item(page);
	if (item)
		pksm_add_moved_page(page, item, false, 0);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/**
 * __pksm_add_split_off - a page of a large folio that is tracked becomes its own
 * @page: the page, the first of its folio now, with its reference count frozen
 *
 * Context: Interrupts are off. Takes no lock and never sleeps.
 */
void __pksm_add_split_off(struct page *page)
{
	struct pksm_rmap_item *item = __pksm_rmap_item(page);

	u32 old = READ_ONCE(item->state);

	if (old & PKSM_LIVE) {
		/* It has not changed: that is not what its age says there. */
		while (!pksm_item_set(item, old, old & ~PKSM_AGE_MASK))
			old = READ_ONCE(item->state);
		__SetPagePKSM(page);
		/* It is in the index, and not really watched: see large.c. */
		__pksm_page_written(page);
	} else if (static_branch_likely(&pksm_intake_key)) {
		pksm_add_newborn(page, item, 0);
	}
}

/**
 * __pksm_add_collapsed - take a large folio in that khugepaged has made
 * @folio: see pksm_add_collapsed_folio()
 * @rmap_item: the record of its first page, from pksm_rmap_item()
 *
 * Context: Process context, page table lock held. Never sleeps.
 */
void __pksm_add_collapsed(struct folio *folio, struct pksm_rmap_item *rmap_item)
{
	pksm_add_newborn(folio_page(folio, 0), rmap_item, PKSM_MAX_AGE);
}
#endif

/* === the free path === */

/* What has died is linked to something by which pksmd may have to find it. */
static noinline void pksm_announce_dead(struct page *page, u32 old)
{
	struct pksm_stable_node *node;

	if (old & PKSM_STABLE) {
		node = pksm_folio_node(page_folio(page));
		if (node) {
			llist_add(&node->dead,
				  raw_cpu_ptr(&pksm_cpu.dead_nodes));
			pksm_kick();
		}
	} else if (pksm_where(old) == PKSM_INDEX && !(old & PKSM_REBORN)) {
		/* A record that was reborn has been announced before. */
		if (pksm_unstable_note_dead(old))
			pksm_kick();
	} else if (pksm_where(old) == PKSM_LIST &&
		   pksm_level(old) >= PKSM_LATE_LEVEL) {
		this_cpu_inc(pksm_cpu.stranded);
		smp_mb();	/* for pksm_kick(): others have a cmpxchg() or xchg() */
		pksm_kick();
	}
}

/* Without a call, as it is most of what the engine adds to a free. */
static __always_inline void pksm_del_page(struct page *page)
{
	struct pksm_rmap_item *item = __pksm_rmap_item(page);
	u32 old, new;

	trace_pksm_delete(page_to_pfn(page));
	__ClearPagePKSM(page);
	if (WARN_ON_ONCE(!item))
		return;

	old = READ_ONCE(item->state);
	do {
		VM_WARN_ON_ONCE_PAGE(!(old & PKSM_LIVE), page);
		new = old & ~pksm_life(old);
	} while (!try_cmpxchg(&item->state, &old, new));

	/* pksmd comes upon it soon. */
	if (likely(pksm_state_newborn(old))) {
		pksm_class_dec(PKSM_CLASS_NEW);
		return;
	}
	pksm_class_dec(pksm_classify(old));
	pksm_announce_dead(page, old);
}

static noinline void pksm_del_tail_pages(struct page *page)
{
	unsigned long i, nr = compound_nr(page);

	for (i = 1; i < nr; i++) {
		if (PagePKSM(page + i))
			pksm_del_page(page + i);
	}
}

/**
 * pksm_del_anon_page - forget a page that is being freed
 * @page: the page, or the first of a large folio, with PG_pksm set and no reference
 *	left; page->mapping is still there
 *
 * The hook of the free path. The record dies at once; whatever it is linked
 * to is left to pksmd.
 *
 * Context: Any, hard interrupts included. Takes no lock and never sleeps.
 */
void pksm_del_anon_page(struct page *page)
{
	pksm_del_page(page);
	if (unlikely(PageHead(page)))
		pksm_del_tail_pages(page);
}

/* === writes, and the end of mappings === */

/**
 * __pksm_page_written - a page that may be watched is about to be written to
 * @page: the page, tracked
 *
 * Context: Page table lock held, of a page table that maps the page or is just
 * about to. Takes no lock and never sleeps.
 */
void __pksm_page_written(struct page *page)
{
	struct pksm_rmap_item *item = __pksm_rmap_item(page);
	u32 old;

	if (WARN_ON_ONCE(!item))
		return;
	do {
		old = READ_ONCE(item->state);
		if (!pksm_state_watched(old))
			return;
	} while (!pksm_item_set(item, old, old | PKSM_REBORN));
	trace_pksm_write(page_to_pfn(page));
	if (pksm_unstable_note_dead(old))
		pksm_kick();
}

/**
 * __pksm_page_watched - may a page not be mapped writable without a fault?
 * @page: the page, tracked
 *
 * Context: Page table lock held, of a page table that maps the page.
 * Return: true when the engine wants to be told of the next write.
 */
bool __pksm_page_watched(struct page *page)
{
	struct pksm_rmap_item *item = __pksm_rmap_item(page);

	return item && pksm_state_watched(READ_ONCE(item->state));
}

/**
 * __pksm_page_broken - a merged page was copied for a write
 * @folio: the merged page
 *
 * Context: Any.
 */
void __pksm_page_broken(struct folio *folio)
{
	trace_pksm_break(folio_pfn(folio));
	pksm_count_event(PKSM_EVENT_BROKEN);
}

/**
 * __pksm_page_unmapped - a PTE of a merged page goes
 * @folio: the page, of which this PTE is still counted as a mapping
 *
 * Whoever described that PTE may describe none now: pksmd is to look.
 *
 * Context: Page table lock held, which keeps the node in place. Takes no lock
 * and never sleeps.
 */
void __pksm_page_unmapped(struct folio *folio)
{
	struct pksm_stable_node *node = pksm_folio_node(folio);

	if (node && pksm_stable_note_stale(node))
		pksm_kick();
}

/* === pksmd's side === */

/**
 * pksm_forget - stop tracking a page that is still in use
 * @page: the page, of which a reference is held
 * @item: its record; what it is linked to, it stays linked to, dead
 *
 * Context: Any.
 */
void pksm_forget(struct page *page, struct pksm_rmap_item *item)
{
	u32 old;

	do {
		old = READ_ONCE(item->state);
	} while (!pksm_item_set(item, old, old & ~pksm_life(old)));
	/* Last: whoever sees the page without it may take the page in again. */
	ClearPagePKSM(page);
}

#ifdef CONFIG_MEMORY_HOTREMOVE
/**
 * pksm_forget_offline - stop tracking a page of memory that has gone offline
 * @pfn: its page frame number
 * @item: its record
 *
 * Only a page that has gone bad is still tracked by then.
 *
 * Context: Process context, pksm_mutex held.
 */
void pksm_forget_offline(unsigned long pfn, struct pksm_rmap_item *item)
{
	struct page *page = pfn_to_page(pfn);

	lockdep_assert_held(&pksm_mutex);
	if (!(READ_ONCE(item->state) & PKSM_LIVE))
		return;
	VM_WARN_ON_ONCE_PAGE(!PageHWPoison(page), page);
	pksm_forget(page, item);
}
#endif

/**
 * pksm_get_tracked - take a reference on a page if it is still tracked
 * @pfn: page frame number
 *
 * Afterwards its record is alive and stays so; whether it is the page that was
 * there when @pfn was stored, the record's state tells.
 *
 * Context: Any.
 * Return: The folio, or NULL when it is free, about to be freed, or has its
 * reference count frozen.
 */
struct folio *pksm_get_tracked(unsigned long pfn)
{
	struct page *page = pfn_to_online_page(pfn);
	struct folio *folio;

	if (!page)
		return NULL;
	folio = page_folio(page);
	if (!folio_try_get(folio))
		return NULL;
	/* It may have become a part of another folio just before that. */
	if (unlikely(page_folio(page) != folio || !PagePKSM(page))) {
		folio_put(folio);
		return NULL;
	}
	/* Pairs with the full barrier of pksm_item_set(): see the mark's use. */
	smp_rmb();
	return folio;
}

/**
 * pksm_nr_stranded - how many records have died where they would wait for long?
 *
 * Return: Their number since pksm_reset_stranded().
 */
unsigned long pksm_nr_stranded(void)
{
	unsigned long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(pksm_cpu.stranded, cpu));
	return sum;
}

/**
 * pksm_reset_stranded - count them from here on
 *
 * Context: pksm_mutex held. One that dies just now may be missed: there will be
 * others.
 */
void pksm_reset_stranded(void)
{
	int cpu;

	lockdep_assert_held(&pksm_mutex);
	for_each_possible_cpu(cpu)
		WRITE_ONCE(per_cpu(pksm_cpu.stranded, cpu), 0);
}

/**
 * pksm_intake_pending - has the fault path left anything?
 *
 * Return: true when a new list holds something.
 */
bool pksm_intake_pending(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		struct pksm_cpu *pc = per_cpu_ptr(&pksm_cpu, cpu);

		if (READ_ONCE(pc->new_head) != PKSM_END)
			return true;
	}
	return false;
}

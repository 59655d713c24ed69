// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: pages that wait to be hashed.
 *
 * One queue for each level. A new page waits in level 0 for pksm_settle_millisecs;
 * a page that changed, or could not be had, is put back one level higher, where
 * the wait is twice as long. Each queue is two chains: pages are added to
 * @filling; when the interval of the queue is over, @ripening becomes @ripe and
 * is worked off, and @filling becomes @ripening. So a page waits between one and
 * two intervals (exactly one where the queue was empty), and nothing needs a time
 * stamp.
 *
 * All of it is guarded by pksm_mutex.
 */
#include <linux/jiffies.h>
#include <linux/sched.h>

#include "internal.h"

unsigned int pksm_settle_millisecs = 200;

/**
 * struct pksm_queue - one level
 * @filling: chain of the pages that came since the last turn
 * @ripening: chain of the pages that came before it
 * @ripe: chain of the pages that have waited long enough
 * @due: time of the next turn, in jiffies; means something only while @filling
 *	or @ripening is not empty
 */
struct pksm_queue {
	u32 filling;
	u32 ripening;
	u32 ripe;
	unsigned long due;
};

static struct pksm_queue pksm_queues[PKSM_NR_LEVELS] = {
	[0 ... PKSM_NR_LEVELS - 1] = {
		.filling = PKSM_END,
		.ripening = PKSM_END,
		.ripe = PKSM_END,
	},
};

static_assert(PKSM_NR_LEVELS - 1 <= PKSM_LEVEL_MASK >> PKSM_LEVEL_SHIFT);

static unsigned long pksm_interval(u32 level)
{
	return msecs_to_jiffies(pksm_settle_millisecs) << level;
}

static bool pksm_queue_waits(const struct pksm_queue *queue)
{
	return queue->filling != PKSM_END || queue->ripening != PKSM_END;
}

/* The chain that a page joins now; starts the clock of an empty queue. */
static u32 *pksm_queue_tail(u32 level)
{
	struct pksm_queue *queue = &pksm_queues[level];

	if (!pksm_queue_waits(queue)) {
		queue->due = jiffies + pksm_interval(level);
		return &queue->ripening;
	}
	return &queue->filling;
}

/**
 * pksm_queue_add - let a page wait
 * @pfn: its page frame number
 * @item: its record, in no chain any more. Its state must still say that it is
 *	linked, or else a reference on the page must be held: otherwise the
 *	fault path might link it at the same time.
 * @level: how many times it has been put back, at most PKSM_NR_LEVELS - 1
 */
void pksm_queue_add(unsigned long pfn, struct pksm_rmap_item *item, u32 level)
{
	u32 *chain, old, new;

	lockdep_assert_held(&pksm_mutex);
	do {
		old = READ_ONCE(item->state);
		new = (old & (PKSM_LIVE | PKSM_STABLE)) | PKSM_LIST |
		      (level << PKSM_LEVEL_SHIFT);
	} while (!pksm_item_set(item, old, new));

	chain = pksm_queue_tail(level);
	WRITE_ONCE(item->next, *chain);
	*chain = pfn;
}

/**
 * pksm_queue_collect - take over what the fault path left on the new lists
 */
void pksm_queue_collect(void)
{
	int cpu;

	lockdep_assert_held(&pksm_mutex);
	for_each_possible_cpu(cpu) {
		struct pksm_cpu *pc = per_cpu_ptr(&pksm_cpu, cpu);
		struct pksm_rmap_item *item;
		u32 first, pfn, *chain;

		if (READ_ONCE(pc->new_head) == PKSM_END)
			continue;
		first = xchg(&pc->new_head, PKSM_END);
		if (first == PKSM_END)
			continue;
		chain = pksm_queue_tail(0);
		if (*chain == PKSM_END) {
			*chain = first;
			continue;
		}
		/* Splice: find the end of what came. */
		pfn = first;
		item = pksm_item(pfn);
		while (item->next != PKSM_END) {
			pfn = item->next;
			item = pksm_item(pfn);
			cond_resched();
		}
		WRITE_ONCE(item->next, *chain);
		*chain = first;
	}
}

/* Turn every queue whose time has come. Returns true when a page got ripe. */
static bool pksm_queue_turn(void)
{
	bool turned = false;
	u32 level;

	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		struct pksm_queue *queue = &pksm_queues[level];

		if (queue->ripe != PKSM_END || !pksm_queue_waits(queue) ||
		    time_before(jiffies, queue->due))
			continue;
		queue->ripe = queue->ripening;
		queue->ripening = queue->filling;
		queue->filling = PKSM_END;
		queue->due = jiffies + pksm_interval(level);
		turned |= queue->ripe != PKSM_END;
	}
	return turned;
}

/* Take the first ripe record off its chain. Returns false when there is none. */
static bool pksm_queue_pop(unsigned long *pfn, struct pksm_rmap_item **item)
{
	u32 level;

	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		struct pksm_queue *queue = &pksm_queues[level];

		if (queue->ripe == PKSM_END)
			continue;
		*pfn = queue->ripe;
		*item = pksm_item(*pfn);
		queue->ripe = (*item)->next;
		return true;
	}
	return false;
}

/**
 * pksm_queue_settle - is there a page behind a record that was popped?
 * @item: the record, still marked PKSM_LIST
 *
 * Return: true when there is; the mark stays. Otherwise (the page is gone, or a
 * stable page moved there, see PKSM_STABLE) the record is not linked any more.
 */
bool pksm_queue_settle(struct pksm_rmap_item *item)
{
	u32 old;

	do {
		old = READ_ONCE(item->state);
		VM_WARN_ON_ONCE(pksm_where(old) != PKSM_LIST);
		if ((old & (PKSM_LIVE | PKSM_STABLE)) == PKSM_LIVE)
			return true;
	} while (!pksm_item_set(item, old, (old & (PKSM_LIVE | PKSM_STABLE)) |
					   PKSM_NONE));
	return false;
}

/**
 * pksm_queue_ripe - has a page waited long enough?
 * @turned: set when there is one that had not when this was called last
 *
 * Return: true when pksm_queue_run() has something to do.
 */
bool pksm_queue_ripe(bool *turned)
{
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	*turned = pksm_queue_turn();
	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		if (pksm_queues[level].ripe != PKSM_END)
			return true;
	}
	return false;
}

/**
 * pksm_queue_run - work off ripe pages
 * @budget: how many records to look at, at most
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 */
void pksm_queue_run(unsigned int budget)
{
	struct pksm_rmap_item *item;
	unsigned long pfn;

	lockdep_assert_held(&pksm_mutex);
	while (budget--) {
		if (!pksm_queue_pop(&pfn, &item))
			break;
		if (pksm_queue_settle(item))
			pksm_consider(pfn, item);
		cond_resched();
	}
}

/**
 * pksm_queue_timeout - how long pksmd may sleep
 *
 * Return: Time until the next queue has its turn, in jiffies, at least 1;
 * MAX_SCHEDULE_TIMEOUT when nothing waits.
 */
unsigned long pksm_queue_timeout(void)
{
	unsigned long timeout = MAX_SCHEDULE_TIMEOUT;
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		struct pksm_queue *queue = &pksm_queues[level];

		if (!pksm_queue_waits(queue))
			continue;
		if (time_before_eq(queue->due, jiffies + 1))
			return 1;
		timeout = min(timeout, queue->due - jiffies);
	}
	return timeout;
}

/**
 * pksm_queue_restart - begin to wait again, after the interval was changed
 */
void pksm_queue_restart(void)
{
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	for (level = 0; level < PKSM_NR_LEVELS; level++)
		pksm_queues[level].due = jiffies + pksm_interval(level);
}

/**
 * pksm_queue_drop - stop tracking a page that was popped
 * @page: the page, of which a reference is held
 * @item: its record, still marked PKSM_LIST
 */
void pksm_queue_drop(struct page *page, struct pksm_rmap_item *item)
{
	u32 old;

	lockdep_assert_held(&pksm_mutex);
	do {
		old = READ_ONCE(item->state);
	} while (!pksm_item_set(item, old, PKSM_LIVE | PKSM_NONE));
	pksm_forget(page, item);
}

/* Stop tracking the page of a record that was popped, if there is one. */
static void pksm_forget_popped(unsigned long pfn, struct pksm_rmap_item *item)
{
	struct folio *folio;

	while (pksm_queue_settle(item)) {
		folio = pksm_get_tracked(pfn);
		if (folio) {
			/* Not if a stable page has just moved there. */
			if (pksm_queue_settle(item))
				pksm_queue_drop(folio_page(folio, 0), item);
			folio_put(folio);
			return;
		}
		/* About to be freed, or frozen for a moment. */
		cond_resched();
	}
}

static void pksm_chain_forget(u32 *chain)
{
	while (*chain != PKSM_END) {
		unsigned long pfn = *chain;
		struct pksm_rmap_item *item = pksm_item(pfn);

		*chain = item->next;
		pksm_forget_popped(pfn, item);
		cond_resched();
	}
}

/**
 * pksm_queue_forget_all - stop tracking every page that waits
 *
 * Context: Process context, pksm_mutex held, intake off. May sleep.
 */
void pksm_queue_forget_all(void)
{
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	pksm_queue_collect();
	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		pksm_chain_forget(&pksm_queues[level].filling);
		pksm_chain_forget(&pksm_queues[level].ripening);
		pksm_chain_forget(&pksm_queues[level].ripe);
	}
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: pages that wait to be hashed.
 *
 * One queue for each level. A new page waits in level 0 for pksm_settle_millisecs,
 * which is short: most pages are written once, and then not for long. A page that was
 * looked at in vain waits for longer. One that could not be had is put back one level
 * higher, where the wait is twice as long, and one that had changed as much higher as
 * is due to its age.
 * Each queue is two chains: pages are added to
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

unsigned int pksm_settle_millisecs = 50;

/**
 * struct pksm_queue - one level
 * @filling: chain of the pages that came since the last turn
 * @ripening: chain of the pages that came before it
 * @ripe: chain of the pages that have waited long enough
 * @due: time of the next turn, in jiffies; means something only while @filling
 *	or @ripening is not empty
 * @turns: how many turns there have been
 */
struct pksm_queue {
	u32 filling;
	u32 ripening;
	u32 ripe;
	unsigned long due;
	unsigned long turns;
};

static struct pksm_queue pksm_queues[PKSM_NR_LEVELS] = {
	[0 ... PKSM_NR_LEVELS - 1] = {
		.filling = PKSM_END,
		.ripening = PKSM_END,
		.ripe = PKSM_END,
	},
};

static_assert(PKSM_NR_LEVELS - 1 <= PKSM_LEVEL_MASK >> PKSM_LEVEL_SHIFT);

/*
 * What was put back waits for as many settle times, and then doubled by its level; a
 * little even with a settle time of 0.
 */
#define PKSM_BACKOFF			4U
#define PKSM_MIN_BACKOFF_MILLISECS	10U

/* No page waits longer than that, in seconds. */
#define PKSM_MAX_INTERVAL		3600UL

static unsigned long pksm_interval(u32 level)
{
	const unsigned long most = PKSM_MAX_INTERVAL * HZ;
	unsigned int msecs = pksm_settle_millisecs;

	if (level)
		msecs = max(msecs * PKSM_BACKOFF, PKSM_MIN_BACKOFF_MILLISECS);
	return min(min(msecs_to_jiffies(msecs), most) << level, most);
}

/**
 * pksm_age_level - how long a page of an age has to wait
 * @age: how often it had changed after it was hashed, at most PKSM_MAX_AGE
 *
 * With a settle time of 50 ms these are 0.4, 1.6, 12.8 and 102 seconds, each of
 * them at least once and at most twice.
 *
 * Return: The level of the queue for it.
 */
u32 pksm_age_level(u32 age)
{
	static const u8 levels[PKSM_MAX_AGE + 1] = { 1, 3, 6, 9 };

	return levels[min(age, PKSM_MAX_AGE)];
}

/* Records in queues from PKSM_LATE_LEVEL on. */
static unsigned long pksm_nr_late;

/* When a few stranded records are looked for, in jiffies. */
#define PKSM_STRANDED_DELAY	(20 * HZ)

static unsigned long pksm_stranded_due;
static bool pksm_stranded_noticed;

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

static void pksm_queue_link(unsigned long pfn, struct pksm_rmap_item *item,
			    u32 level, u32 bits)
{
	u32 *chain, old, new;

	lockdep_assert_held(&pksm_mutex);
	do {
		old = READ_ONCE(item->state);
		new = (old & (PKSM_LIVE | PKSM_STABLE)) | PKSM_LIST;
		if (new & PKSM_LIVE)
			new |= bits;
	} while (!pksm_item_set(item, old, new));

	chain = pksm_queue_tail(level);
	WRITE_ONCE(item->next, *chain);
	*chain = pfn;
	pksm_nr_late += level >= PKSM_LATE_LEVEL;
}

/**
 * pksm_queue_add - let a page wait
 * @pfn: its page frame number
 * @item: its record, in no chain any more. Its state must still say that it is
 *	linked, or else a reference on the page must be held: otherwise the
 *	fault path might link it at the same time.
 * @level: which queue, at most PKSM_NR_LEVELS - 1
 * @age: its age, at most PKSM_MAX_AGE
 */
void pksm_queue_add(unsigned long pfn, struct pksm_rmap_item *item, u32 level,
		    u32 age)
{
	pksm_queue_link(pfn, item, level, (level << PKSM_LEVEL_SHIFT) |
					  (age << PKSM_AGE_SHIFT));
}

/**
 * pksm_queue_changed - let a page wait that has changed
 * @pfn: as for pksm_queue_add()
 * @item: as for pksm_queue_add(); the PTEs of the page were cleaned just now
 * @age: what its age would be if there were no limit to it
 */
void pksm_queue_changed(unsigned long pfn, struct pksm_rmap_item *item, u32 age)
{
	u32 level;

	age = min(age, PKSM_MAX_AGE);
	level = pksm_age_level(age);
	pksm_queue_link(pfn, item, level, (level << PKSM_LEVEL_SHIFT) |
					  (age << PKSM_AGE_SHIFT) |
					  PKSM_CLEANED);
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
		queue->turns++;
		turned |= queue->ripe != PKSM_END;
	}
	return turned;
}

/*
 * Take the first ripe record off its chain. Returns the level of its queue, or
 * PKSM_NR_LEVELS when there is none.
 */
static u32 pksm_queue_pop(unsigned long *pfn, struct pksm_rmap_item **item)
{
	u32 level;

	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		struct pksm_queue *queue = &pksm_queues[level];

		if (queue->ripe == PKSM_END)
			continue;
		*pfn = queue->ripe;
		*item = pksm_item(*pfn);
		queue->ripe = (*item)->next;
		pksm_nr_late -= level >= PKSM_LATE_LEVEL;
		break;
	}
	return level;
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

/* The next page of a queue, if it will be read: it comes after the one just popped. */
static void pksm_queue_announce(u32 level)
{
	u32 pfn = pksm_queues[level].ripe;
	u32 state;

	if (pfn == PKSM_END)
		return;
	state = READ_ONCE(pksm_item(pfn)->state);
	if ((state & (PKSM_LIVE | PKSM_STABLE | PKSM_CLEANED)) == PKSM_LIVE)
		pksm_read_ahead(pfn_to_page(pfn));
}

/**
 * pksm_queue_run - work off ripe pages
 * @budget: how many pages to look at, at most; one large folio may be more
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 */
void pksm_queue_run(unsigned int budget)
{
	struct pksm_rmap_item *item;
	unsigned long pfn;
	u32 level, state;

	lockdep_assert_held(&pksm_mutex);
	while (budget--) {
		level = pksm_queue_pop(&pfn, &item);
		if (level == PKSM_NR_LEVELS)
			break;
		cond_resched();
		if (!pksm_queue_settle(item))
			continue;
		/* The fault path has one list for all that it hands in. */
		state = READ_ONCE(item->state);
		if (pksm_level(state) > level) {
			pksm_queue_add(pfn, item, pksm_level(state),
				       pksm_age(state));
			continue;
		}
		pksm_queue_announce(level);
		budget -= min(budget, pksm_consider(pfn, item) - 1);
		pksm_read_ahead_rest();
	}
}

/**
 * pksm_queue_note - note what is waiting
 * @mark: the note; only the lower levels are in it
 */
void pksm_queue_note(struct pksm_queue_mark *mark)
{
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	for (level = 0; level < PKSM_NR_NOTED_LEVELS; level++) {
		const struct pksm_queue *queue = &pksm_queues[level];

		/* After how many turns will the last of them be ripe? */
		mark->turns[level] = queue->turns +
				     (queue->filling != PKSM_END ? 2 :
				      queue->ripening != PKSM_END ? 1 : 0);
	}
}

/**
 * pksm_queue_passed - has all been looked at that was waiting?
 * @mark: what pksm_queue_note() noted, after which nothing was given up
 *
 * Return: true when each page has been taken out of its queue since.
 */
bool pksm_queue_passed(const struct pksm_queue_mark *mark)
{
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	for (level = 0; level < PKSM_NR_NOTED_LEVELS; level++) {
		const struct pksm_queue *queue = &pksm_queues[level];
		long ahead = queue->turns - mark->turns[level];

		/* It may have been emptied otherwise, and does not turn then. */
		if (!pksm_queue_waits(queue) && queue->ripe == PKSM_END)
			continue;

		/* A queue does not turn while something is ripe. */
		if (ahead < 0 || (!ahead && queue->ripe != PKSM_END))
			return false;
	}
	return true;
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
 * pksm_queue_stranded_pending - are there stranded records, and pksmd does not know?
 *
 * Return: true when there are.
 */
bool pksm_queue_stranded_pending(void)
{
	return !READ_ONCE(pksm_stranded_noticed) && pksm_nr_stranded();
}

/**
 * pksm_queue_stranded_timeout - when are there stranded records to look for?
 *
 * The frame of a page that had to wait for long may be given to a new page, whose
 * record is then where it should not be. At once when they are many among those that
 * wait, so that a walk costs each of them a few steps; later when they are few.
 *
 * Return: 0 when pksm_queue_untangle() has something to do; else the time until it
 * has, in jiffies; MAX_SCHEDULE_TIMEOUT for never.
 */
unsigned long pksm_queue_stranded_timeout(void)
{
	unsigned long nr = pksm_nr_stranded();

	lockdep_assert_held(&pksm_mutex);
	if (!nr)
		return MAX_SCHEDULE_TIMEOUT;
	if (!pksm_stranded_noticed) {
		WRITE_ONCE(pksm_stranded_noticed, true);
		pksm_stranded_due = jiffies + PKSM_STRANDED_DELAY;
	}
	if (nr > pksm_nr_late / 8 || time_after_eq(jiffies, pksm_stranded_due))
		return 0;
	return pksm_stranded_due - jiffies;
}

static void pksm_chain_untangle(u32 *link, u32 level)
{
	while (*link != PKSM_END) {
		unsigned long pfn = *link;
		struct pksm_rmap_item *item = pksm_item(pfn);
		u32 state = READ_ONCE(item->state);

		if ((state & PKSM_LIVE) && pksm_level(state) == level) {
			link = &item->next;
			cond_resched();
			continue;
		}
		*link = item->next;
		pksm_nr_late--;
		if (pksm_queue_settle(item)) {
			state = READ_ONCE(item->state);
			pksm_queue_add(pfn, item, pksm_level(state),
				       pksm_age(state));
		}
		cond_resched();
	}
}

/**
 * pksm_queue_untangle - take out of the late queues what does not belong there
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 */
void pksm_queue_untangle(void)
{
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	WRITE_ONCE(pksm_stranded_noticed, false);
	pksm_reset_stranded();
	for (level = PKSM_LATE_LEVEL; level < PKSM_NR_LEVELS; level++) {
		struct pksm_queue *queue = &pksm_queues[level];

		pksm_chain_untangle(&queue->filling, level);
		pksm_chain_untangle(&queue->ripening, level);
		pksm_chain_untangle(&queue->ripe, level);
	}
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

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/**
 * pksm_queue_hurry - let the turn of a page come early
 * @item: its record
 *
 * It is moved by pksm_queue_untangle(), as a page that was born in the frame of one
 * that had to wait for long.
 *
 * Context: pksm_mutex held, and a reference on the page.
 */
void pksm_queue_hurry(struct pksm_rmap_item *item)
{
	u32 old;

	lockdep_assert_held(&pksm_mutex);
	do {
		old = READ_ONCE(item->state);
		if (pksm_where(old) != PKSM_LIST ||
		    pksm_level(old) < PKSM_LATE_LEVEL)
			return;
	} while (!pksm_item_set(item, old, (old & ~PKSM_LEVEL_MASK) |
					   (1U << PKSM_LEVEL_SHIFT)));
	this_cpu_inc(pksm_cpu.stranded);
}
#endif

#ifdef CONFIG_PKSM_DEBUG
/**
 * pksm_queue_for_each - visit every record that waits
 * @fn: called with each, and with the level of its queue; returns false to end
 *
 * The new lists of the fault path are visited as level 0.
 *
 * Context: Process context, pksm_mutex held.
 * Return: false when @fn has ended it.
 */
bool pksm_queue_for_each(bool (*fn)(unsigned long pfn, u32 level))
{
	u32 level, pfn, chain;
	int cpu;

	lockdep_assert_held(&pksm_mutex);
	for_each_possible_cpu(cpu) {
		pfn = READ_ONCE(per_cpu(pksm_cpu.new_head, cpu));
		for (; pfn != PKSM_END; pfn = pksm_item(pfn)->next) {
			if (!fn(pfn, 0))
				return false;
		}
	}
	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		const u32 chains[] = {
			pksm_queues[level].filling,
			pksm_queues[level].ripening,
			pksm_queues[level].ripe,
		};

		for (chain = 0; chain < ARRAY_SIZE(chains); chain++) {
			pfn = chains[chain];
			for (; pfn != PKSM_END; pfn = pksm_item(pfn)->next) {
				if (!fn(pfn, level))
					return false;
			}
		}
	}
	return true;
}
#endif

/* Stop tracking the page of a record that was popped, if there is one. */
static void pksm_forget_popped(unsigned long pfn, struct pksm_rmap_item *item)
{
	struct folio *folio;

	while (pksm_queue_settle(item)) {
		folio = pksm_get_tracked(pfn);
		if (folio) {
			if (folio_test_large(folio) && folio_pfn(folio) == pfn)
				pksm_large_forget(folio);
			/* Not if a stable page has just moved there. */
			if (pksm_queue_settle(item))
				pksm_queue_drop(pfn_to_page(pfn), item);
			folio_put(folio);
			return;
		}
		/* Gone bad, and offline by now: it is never freed. */
		if (IS_ENABLED(CONFIG_MEMORY_HOTREMOVE) &&
		    !pfn_to_online_page(pfn)) {
			pksm_forget_offline(pfn, item);
			continue;
		}
		/* About to be freed, or frozen for a moment. */
		schedule_timeout_uninterruptible(1);
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
	pksm_nr_late = 0;
}

#ifdef CONFIG_MEMORY_HOTREMOVE
static void pksm_chain_purge(u32 *link, u32 level, unsigned long start,
			     unsigned long end)
{
	while (*link != PKSM_END) {
		struct pksm_rmap_item *item = pksm_item(*link);

		if (*link < start || *link >= end) {
			link = &item->next;
		} else {
			unsigned long pfn = *link;

			*link = item->next;
			pksm_nr_late -= level >= PKSM_LATE_LEVEL;
			pksm_forget_offline(pfn, item);
			WARN_ON_ONCE(pksm_queue_settle(item));
		}
		cond_resched();
	}
}

/**
 * pksm_queue_purge - take every record of a range of page frames out of the queues
 * @start: the first page frame number; none of the pages is in use any more, but for
 *	those that have gone bad
 * @end: the one behind the last
 *
 * Context: Process context, pksm_mutex held, the new lists collected. May sleep.
 */
void pksm_queue_purge(unsigned long start, unsigned long end)
{
	u32 level;

	lockdep_assert_held(&pksm_mutex);
	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		struct pksm_queue *queue = &pksm_queues[level];

		pksm_chain_purge(&queue->filling, level, start, end);
		pksm_chain_purge(&queue->ripening, level, start, end);
		pksm_chain_purge(&queue->ripe, level, start, end);
	}
}
#endif

#ifdef CONFIG_PKSM_KUNIT_TEST
#include "tests/queue_test.h"
#endif

/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MM_PKSM_INTERNAL_H
#define _MM_PKSM_INTERNAL_H
/*
 * What the files of mm/pksm share.
 *
 * The engine in one page
 * ----------------------
 *
 * A record of 8 bytes, struct pksm_rmap_item, lies in the page_ext of every
 * page. It is never allocated: the fault path finds it by the page frame
 * number, marks it alive and links it to a per-CPU list. pksmd takes those
 * lists, lets the pages settle for a while, reads each page once to hash it,
 * and either finds an equal page or links the record into the bucket of its
 * hash, the unstable index. Merging makes one of two equal pages a stable page
 * (a KSM page for the rest of mm), described by a struct pksm_stable_node in
 * the stable index; the other is absorbed and freed.
 *
 * A page that stays unmatched for pksm_rescan_seconds or so is write-protected
 * and read once more. If it still is what it was, it is *watched* from then on:
 * it need not be read again, since the next write to it is a page fault, which
 * says so. Once every page is merged or watched, pksmd has nothing to wait for.
 * Large folios are another matter: see large.c.
 *
 * Life of a record
 * ----------------
 *
 * A record is *alive* from when its page is taken in (mostly by the fault that
 * made it) to the free of that page. It is *linked* from the time it joins a list
 * or a bucket to the time pksmd takes it out. The two do not end together: the
 * free path may run in any context, so it only clears PKSM_LIVE; and the page may
 * be born again before pksmd has come by, in which case the fault path finds a
 * record that is linked already and only sets PKSM_LIVE again, together with
 * PKSM_REBORN where the record lies in a bucket by the hash of the page's former
 * life. A write to a watched page sets PKSM_REBORN as well and keeps
 * PKSM_WATCHED: the same page, with new contents.
 *
 *	where	LIVE	meaning
 *	NONE	0	not tracked
 *	NONE	1	pksmd is working on the page
 *	LIST	1	new, or waiting for another try
 *	LIST	0	freed; pksmd drops the record when it gets there
 *	INDEX	1	hashed, unique so far (REBORN: the hash is outdated)
 *	INDEX	0	freed; pksmd takes it out of its bucket
 *
 * PKSM_AGE counts how often a page was found changed after it had been hashed,
 * and decides how long it waits before it is tried again; it goes down when the
 * page is found unchanged.
 *
 * PKSM_STABLE marks a merged page. pksmd links none of them, but migration may
 * move a merged page to a frame whose record is still linked from a former
 * life; whoever meets it there takes it out and leaves the mark.
 *
 * @state is changed by cmpxchg only, since the fault path, the free path and
 * pksmd all write it. @next belongs to the fault path while the record is not
 * linked and to pksmd while it is. A reference on the page (taken with
 * folio_try_get(), then PagePKSM() tested again) keeps the free path out, and
 * migration, which wants to be the only one to have it: as long as it is held,
 * nobody but the holder of pksm_mutex changes @state, with one exception: a write
 * to a watched page may set PKSM_REBORN at any time.
 *
 * Lock order
 * ----------
 *
 *	cpu_hotplug_lock		(to open and to shut the gate; offlining)
 *	  mem_hotplug_lock		(offlining)
 *	    pksm_mutex
 *	      mmap_lock			(in unmerging and for a change of scope)
 *	        folio lock		(in merging by trylock only)
 *	          anon_vma->root->rwsem
 *	            mmap_lock		(in merging, by trylock only)
 *	              page table lock
 *
 * Whoever merges a page holds the mmap_lock of each address space whose PTEs it
 * changes, so that the flags of a VMA, VM_MERGEABLE among them, do not change
 * under it, and that madvise() has the last word.
 *
 * pksm_mutex guards the queues, both indexes and the stable nodes. A node's
 * list of sharers is also read by rmap walks, which hold the folio lock of the
 * stable page instead: it is changed with both locks held. The exception is a
 * node whose page is gone, which no rmap walk can reach.
 */
#include <linux/bits.h>
#include <linux/hash.h>
#include <linux/irq_work.h>
#include <linux/llist.h>
#include <linux/list.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/pksm.h>
#include <linux/rmap.h>
#include <linux/types.h>

#include "compat.h"

/*
 * struct pksm_rmap_item, @state. Enumerators rather than macros, so that a
 * debugger knows them.
 */
enum pksm_state {
	PKSM_LIVE		= BIT(0),
	PKSM_STABLE		= BIT(1),	/* a merged page */
	PKSM_WHERE_MASK		= GENMASK(3, 2),
	PKSM_NONE		= 0,
	PKSM_LIST		= BIT(2),	/* a new list or a queue */
	PKSM_INDEX		= BIT(3),	/* a bucket of the unstable index */
	PKSM_REBORN		= BIT(4),	/* INDEX: the hash is outdated */
	PKSM_WATCHED		= BIT(5),	/* INDEX: a write will be told */
	PKSM_AGE_MASK		= GENMASK(7, 6), /* how often it had changed */
	PKSM_LEVEL_MASK		= GENMASK(11, 8), /* LIST: which queue it is for */
	PKSM_CLEANED		= BIT(12),	/* LIST: a dirty PTE means a write */
};

enum pksm_state_layout {
	PKSM_AGE_SHIFT		= 6,
	PKSM_LEVEL_SHIFT	= 8,
	PKSM_HASH_SHIFT		= 8,		/* INDEX: 24 bits of the hash */
	PKSM_HASH_BITS		= 24,
};

#define PKSM_MAX_AGE		3U

/* The end of every chain of page frame numbers. */
#define PKSM_END		U32_MAX

/**
 * struct pksm_rmap_item - what the engine knows of a page that is not merged
 * @state: PKSM_LIVE, where it is, its age, and its level or hash (see above)
 * @next: page frame number of the next record in its chain, or PKSM_END
 *
 * It needs neither an anon_vma nor an index: the folio has them.
 */
struct pksm_rmap_item {
	u32 state;
	u32 next;
};

static_assert(sizeof(struct pksm_rmap_item) == 8);

/**
 * struct pksm_sharer - one page that was absorbed by a stable page
 * @link: in the stable node's list
 * @anon_vma: where the PTEs are that mapped it; a reference is held
 * @index: their page offset in it
 */
struct pksm_sharer {
	struct hlist_node link;
	struct anon_vma *anon_vma;
	pgoff_t index;
};

static_assert(sizeof(struct pksm_sharer) <= 32);

/**
 * struct pksm_stable_node - a stable page
 * @link: in the bucket of the stable index
 * @sharers: the pages it absorbed; see the lock order for who may look
 * @anon_vma: that of the page before it became stable; a reference is held.
 *	Its page offset is still in folio->index.
 * @pfn: the page; changed by migration, under the folio lock
 * @nr_sharers: length of @sharers
 * @hash: the whole keyed hash
 * @dead: links it to the list of nodes whose page was freed, in place of @hash
 */
struct pksm_stable_node {
	struct hlist_node link;
	struct hlist_head sharers;
	struct anon_vma *anon_vma;
	u32 pfn;
	u32 nr_sharers;
	union {
		u64 hash;
		struct llist_node dead;
	};
};

static_assert(sizeof(struct pksm_stable_node) <= 48);

/*
 * Classes of tracked pages. Every tracked page (every page with PG_pksm) is in
 * exactly one; a record changes class in the cmpxchg that changes its state.
 */
enum pksm_class {
	PKSM_CLASS_UNTRACKED,	/* not counted: everything that is not alive */
	PKSM_CLASS_NEW,		/* born, not hashed yet */
	PKSM_CLASS_UNSHARED,	/* hashed, unique so far */
	PKSM_CLASS_WATCHED,	/* the same, and write-protected */
	PKSM_CLASS_VOLATILE,	/* changed or busy, waits for another try */
	PKSM_CLASS_SHARED,	/* stable pages */
	NR_PKSM_CLASSES,
};

/* Events since boot, in the order of vm_event_item.h. */
enum pksm_event {
	PKSM_EVENT_SCANNED,	/* pages hashed */
	PKSM_EVENT_MERGED,	/* pages absorbed */
	PKSM_EVENT_BROKEN,	/* copy-on-write breaks of stable pages */
	NR_PKSM_EVENTS,
};

/**
 * struct pksm_cpu - what fault and free paths write, each on its own CPU
 * @new_head: the new list, a chain of page frame numbers
 * @nr: pages by class; single CPUs may be negative, the sum is exact
 * @events: see enum pksm_event
 * @dead_nodes: stable nodes whose page was freed
 * @stranded: records that have died in a queue where they would wait for long
 */
struct pksm_cpu {
	u32 new_head;
	long nr[NR_PKSM_CLASSES];
	unsigned long events[NR_PKSM_EVENTS];
	struct llist_head dead_nodes;
	unsigned long stranded;
};

DECLARE_PER_CPU(struct pksm_cpu, pksm_cpu);

/**
 * struct pksm_key - by what a page is looked for
 * @hash: the hash of its contents, with its domain mixed in
 * @domain: its domain
 * @level: of the queue that it would wait in if it were busy
 */
struct pksm_key {
	u64 hash;
	u64 domain;
	u32 level;
};

/* What became of a page that pksmd took out of its queue. */
enum pksm_result {
	PKSM_MERGED,	/* absorbed: nothing maps the page any more */
	PKSM_DIFFERS,	/* not equal to the other page */
	PKSM_BUSY,	/* locked or referenced: try again later */
	PKSM_CHANGED,	/* was written to while it waited */
	PKSM_UNFIT,	/* nothing that could ever be merged */
	PKSM_BUSY_PARTNER,	/* the other page is locked or referenced */
	PKSM_UNFIT_PARTNER,	/* the other page never can be */
	PKSM_NOMEM,	/* no memory for the engine's own records */
};

/* /sys/kernel/mm/pksm/run */
enum pksm_run {
	PKSM_RUN_STOP,
	PKSM_RUN_MERGE,
	PKSM_RUN_UNMERGE,
};

/* /sys/kernel/mm/pksm/scope */
enum pksm_scope {
	PKSM_SCOPE_ALL,		/* every VMA, unless its owner does not want it */
	PKSM_SCOPE_MADVISE,	/* what madvise() and prctl() were asked for */
	NR_PKSM_SCOPES,
};

/* /sys/kernel/mm/pksm/domain */
enum pksm_domain_kind {
	PKSM_DOMAIN_USER,
	PKSM_DOMAIN_MEMCG,
	PKSM_DOMAIN_PROCESS,
	PKSM_DOMAIN_GLOBAL,
	NR_PKSM_DOMAIN_KINDS,
};

/* The domain of what nobody owns: nothing is merged there. */
#define PKSM_NO_DOMAIN		U64_MAX

/* By what a page is looked for. Where nobody does, it is to share no bucket either. */
static inline u64 pksm_page_key(struct page *page, u64 hash, u64 domain)
{
	if (domain == PKSM_NO_DOMAIN)
		return hash ^ hash_64(page_to_pfn(page), 64);
	return hash ^ domain;
}

/* core.c */
extern struct mutex pksm_mutex;
extern enum pksm_run pksm_run;
extern bool pksm_use_zero_pages;
extern struct task_struct *pksmd_task;

int pksm_set_run(enum pksm_run run);
int pksm_set_domain(enum pksm_domain_kind kind);
int pksm_set_across_nodes(bool across);
int pksm_set_scope(enum pksm_scope scope);
void pksm_wake_daemon(void);
void __pksm_kick(void);

extern bool pksm_idle;

/*
 * There is something for pksmd. It costs a read while pksmd is awake, or has been just
 * now. In any context, after what there is to do was made visible, with a full memory
 * barrier between the two.
 */
static inline void pksm_kick(void)
{
	if (unlikely(READ_ONCE(pksm_idle)))
		__pksm_kick();
}

/* intake.c */
struct pksm_rmap_item *pksm_item(unsigned long pfn);
bool pksm_item_set(struct pksm_rmap_item *item, u32 old, u32 new);
void pksm_add_moved_page(struct page *page, struct pksm_rmap_item *item,
			 bool stable, u32 age);
void pksm_forget(struct page *page, struct pksm_rmap_item *item);
void pksm_forget_offline(unsigned long pfn, struct pksm_rmap_item *item);
struct folio *pksm_get_tracked(unsigned long pfn);
bool pksm_intake_pending(void);
unsigned long pksm_nr_stranded(void);
void pksm_reset_stranded(void);
void pksm_count_event(enum pksm_event event);
enum pksm_class pksm_classify(u32 state);
long pksm_nr_class(enum pksm_class class);
unsigned long pksm_nr_event(enum pksm_event event);

/* queue.c */
#define PKSM_NR_LEVELS		13U

/* From this one on a page that is born meanwhile had better not wait. */
#define PKSM_LATE_LEVEL		3U

/* Levels in which a page waits for some seconds at most, by default. */
#define PKSM_NR_NOTED_LEVELS	4U

/**
 * struct pksm_queue_mark - how far the queues are
 * @turns: of the lower levels, after how many turns all will be ripe that waits now
 */
struct pksm_queue_mark {
	unsigned long turns[PKSM_NR_NOTED_LEVELS];
};

extern unsigned int pksm_settle_millisecs;

u32 pksm_age_level(u32 age);
void pksm_queue_add(unsigned long pfn, struct pksm_rmap_item *item, u32 level,
		    u32 age);
void pksm_queue_changed(unsigned long pfn, struct pksm_rmap_item *item,
			u32 age);
void pksm_queue_collect(void);
bool pksm_queue_settle(struct pksm_rmap_item *item);
void pksm_queue_drop(struct page *page, struct pksm_rmap_item *item);
void pksm_queue_hurry(struct pksm_rmap_item *item);
void pksm_queue_run(unsigned int budget);
bool pksm_queue_ripe(bool *turned);
void pksm_queue_note(struct pksm_queue_mark *mark);
bool pksm_queue_passed(const struct pksm_queue_mark *mark);
unsigned long pksm_queue_timeout(void);
bool pksm_queue_stranded_pending(void);
unsigned long pksm_queue_stranded_timeout(void);
void pksm_queue_untangle(void);
void pksm_queue_restart(void);
void pksm_queue_forget_all(void);
void pksm_queue_purge(unsigned long start, unsigned long end);
bool pksm_queue_for_each(bool (*fn)(unsigned long pfn, u32 level));

/* hash.c */
void pksm_hash_init(u64 seed);
u64 pksm_hash_page(struct page *page);
u64 pksm_zero_hash(const struct page *page);
bool pksm_pages_equal(struct page *page1, struct page *page2);
void pksm_read_ahead(struct page *page);
void pksm_read_ahead_rest(void);

/* index.c */
int pksm_index_alloc(void);
bool pksm_hash_alike(u64 hash1, u64 hash2);
unsigned long pksm_nr_buckets(void);
unsigned long pksm_index_bytes(void);
void pksm_unstable_insert(unsigned long pfn, struct pksm_rmap_item *item,
			  u64 hash, u32 age);
void pksm_unstable_insert_watched(unsigned long pfn,
				  struct pksm_rmap_item *item, u64 hash,
				  u32 age);
void pksm_unstable_unlink(unsigned long pfn, struct pksm_rmap_item *item);
unsigned long pksm_unstable_next(u64 hash, unsigned long pfn);
bool pksm_unstable_unwatched(u32 state);
unsigned long pksm_unstable_peek(u64 hash, unsigned long pfn);
bool pksm_unstable_holds(u32 state, u64 hash);
bool pksm_unstable_note_dead(u32 state);
bool pksm_unstable_dead(void);
void pksm_unstable_reap(void);
void pksm_unstable_purge(unsigned long start, unsigned long end);
void pksm_unstable_empty(void);
bool pksm_unstable_for_each(bool (*fn)(unsigned long pfn, unsigned long bucket,
				       bool right));

extern bool pksm_stable_repeats;

void pksm_stable_insert(struct pksm_stable_node *node);
void pksm_stable_remove(struct pksm_stable_node *node);
struct pksm_stable_node *pksm_stable_next(u64 hash,
					  struct pksm_stable_node *node);
bool pksm_stable_for_some(unsigned long *bucket, unsigned int budget,
			  void (*fn)(struct pksm_stable_node *node));
void pksm_stable_for_each(void (*fn)(struct pksm_stable_node *node));
bool pksm_stable_note_stale(struct pksm_stable_node *node);
bool pksm_stable_stale(void);
void pksm_stable_visit_stale(void (*fn)(struct pksm_stable_node *node));

/* marks.c */

/**
 * struct pksm_marks - a set of buckets that may be added to in any context
 * @buckets: a bit for each bucket
 * @words: a bit for each word of @buckets that is not 0
 * @any: there is a bucket in the set
 */
struct pksm_marks {
	unsigned long *buckets;
	unsigned long *words;
	bool any;
};

int pksm_marks_alloc(struct pksm_marks *marks, unsigned int bits);
void pksm_marks_free(struct pksm_marks *marks);
unsigned long pksm_marks_bytes(unsigned long nr_buckets);
bool pksm_mark(struct pksm_marks *marks, unsigned long bucket);
void pksm_marks_for_each(struct pksm_marks *marks, unsigned int bits,
			 void (*fn)(unsigned long bucket));

/* domain.c */
extern enum pksm_domain_kind pksm_domain_kind;
extern bool pksm_across_nodes;

u64 pksm_nid_key(const struct page *page);
bool pksm_kept_apart(const struct folio *one, const struct folio *other);
bool pksm_node_kept_apart(const struct pksm_stable_node *node,
			  const struct folio *folio);
u64 pksm_mm_domain(struct mm_struct *mm);
enum pksm_result pksm_folio_survey(struct folio *folio, u64 *domain);

/* merge.c */
extern unsigned int pksm_max_page_sharing;

enum pksm_result pksm_folio_fit(struct folio *folio);
bool pksm_no_foreign_reference(struct folio *folio);
enum pksm_result pksm_merge_with_zero(struct folio *folio);
enum pksm_result pksm_merge_with_stable(struct folio *folio,
					struct folio *kfolio,
					struct pksm_stable_node *node,
					u64 domain);
enum pksm_result pksm_merge_with_unstable(struct folio *folio,
					  struct folio *kfolio,
					  struct pksm_rmap_item *kitem,
					  const struct pksm_key *key);

/* match.c */

/*
 * How many pages of the unstable index are tried. There may be any number with
 * equal contents, as long as something keeps them from being merged.
 */
#define PKSM_MAX_CANDIDATES	8U

bool pksm_pages_similar(struct page *page1, struct page *page2);
bool pksm_node_full(struct folio *kfolio, struct folio *folio);
unsigned int pksm_consider(unsigned long pfn, struct pksm_rmap_item *item);

/* large.c */
#ifdef CONFIG_TRANSPARENT_HUGEPAGE
void pksm_large_wanted(struct folio *folio, unsigned long pfn);
void pksm_large_forget(struct folio *folio);
void pksm_consider_large(struct folio *folio, struct pksm_rmap_item *item);
#else
static inline void pksm_large_wanted(struct folio *folio, unsigned long pfn)
{
}

static inline void pksm_large_forget(struct folio *folio)
{
}

static inline void pksm_consider_large(struct folio *folio,
				       struct pksm_rmap_item *item)
{
}
#endif

/* watch.c */
bool pksm_watch(struct folio *folio);
bool pksm_clean(struct folio *folio);

/* rescan.c */
extern unsigned int pksm_rescan_seconds;
extern unsigned long pksm_full_scans;

void pksm_rescan_want(void);
void pksm_rescan_restart(void);
unsigned long pksm_rescan_timeout(void);
void pksm_rescan(unsigned int budget);

/* pace.c */
extern unsigned int pksm_max_cpu;

extern u64 pksm_cpu_nsecs;

void pksm_pace_start(void);
void pksm_pace_slept(void);
void pksm_pace_work(void);
u64 pksm_pace_done(void);

/* Nothing is worth a struggle for memory: a page can be merged later. */
#define PKSM_GFP	(GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)

/* stable.c */
extern unsigned long pksm_nr_nodes;
extern unsigned long pksm_nr_sharers;

int pksm_stable_init(void);
struct pksm_stable_node *pksm_node_alloc(void);
void pksm_node_free(struct pksm_stable_node *node);
struct pksm_sharer *pksm_sharer_alloc(void);
void pksm_sharer_free(struct pksm_sharer *sharer);
struct pksm_stable_node *pksm_folio_node(const struct folio *folio);
struct folio *pksm_node_get_folio(struct pksm_stable_node *node);
bool pksm_shares_one(struct vm_area_struct *vma, struct folio *folio,
		     pgoff_t index);
void pksm_reap_dead_nodes(void);
bool pksm_dead_nodes_pending(void);
void pksm_node_detach(struct pksm_stable_node *node);
void pksm_detach_unmapped(void);
#ifdef CONFIG_MEMORY_HOTREMOVE
void pksm_detach_range(unsigned long start, unsigned long end);
#endif
bool pksm_node_alive(struct pksm_stable_node *node);
long pksm_general_profit(void);

/* mappings.c */
void pksm_turning_begin(struct folio *folio);
void pksm_turn(struct folio *folio, struct address_space *mapping);
void pksm_turning_end(void);

/* check.c */
const char *pksm_check(unsigned long *where);

/* prune.c */
void pksm_prune_node(struct pksm_stable_node *node, struct folio *folio);
bool pksm_node_crowded(struct pksm_stable_node *node, struct folio *folio);
bool pksm_prune_pending(void);
unsigned long pksm_prune_timeout(void);
void pksm_prune(void);
void pksm_sharer_drop(struct pksm_stable_node *node,
		      struct pksm_sharer *sharer);

/* sweep.c */
unsigned long pksm_end_pfn(void);
struct page *pksm_next_frame(unsigned long *pfn);
void pksm_sweep_start(void);
void pksm_sweep_stop(void);
unsigned long pksm_sweep_timeout(void);
void pksm_sweep(void);

/* space.c */
void pksm_intake_range(struct vm_area_struct *vma, unsigned long start,
		       unsigned long end);
int pksm_visit_mms(int (*fn)(struct mm_struct *mm));

/* unmerge.c */
int pksm_unmerge_range(struct vm_area_struct *vma, unsigned long start,
		       unsigned long end, bool lock_vma);
int pksm_unmerge_all(void);

/* sysfs.c */
extern unsigned long pksm_folios_split;

/* The files that are the same in /sys/kernel/mm/ksm. */
extern struct kobj_attribute pksm_run_attr;
extern struct kobj_attribute pksm_pages_scanned_attr;
extern struct kobj_attribute pksm_pages_shared_attr;
extern struct kobj_attribute pksm_pages_sharing_attr;
extern struct kobj_attribute pksm_pages_unshared_attr;
extern struct kobj_attribute pksm_pages_volatile_attr;
extern struct kobj_attribute pksm_general_profit_attr;

/* ksm_compat.c */
#ifdef CONFIG_PKSM_KSM_COMPAT
void pksm_scan_step(void);
void pksm_scan_forget(void);
#else
static inline void pksm_scan_step(void)
{
}

static inline void pksm_scan_forget(void)
{
}
#endif

/* madvise.c */
extern enum pksm_scope pksm_scope;

bool pksm_vma_compatible(struct vm_area_struct *vma);
int pksm_scope_apply(enum pksm_scope scope);
bool pksm_mm_marked(struct mm_struct *mm);

static inline u32 pksm_where(u32 state)
{
	return state & PKSM_WHERE_MASK;
}

static inline u32 pksm_level(u32 state)
{
	return (state & PKSM_LEVEL_MASK) >> PKSM_LEVEL_SHIFT;
}

static inline u32 pksm_age(u32 state)
{
	return (state & PKSM_AGE_MASK) >> PKSM_AGE_SHIFT;
}

/* May the engine merge what this VMA maps? */
static inline bool pksm_vma_mergeable(struct vm_area_struct *vma)
{
	return (vma->vm_flags & VM_MERGEABLE) && pksm_vma_compatible(vma);
}

#endif /* _MM_PKSM_INTERNAL_H */

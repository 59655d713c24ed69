// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: the files of /sys/kernel/mm/ksm.
 *
 * Every file that KSM has, so that whatever reads or writes them works unchanged:
 * with KSM's formats, KSM's errors and, as far as that makes sense, KSM's
 * defaults. There are three kinds:
 *
 * - those that mean here what they mean there (run, use_zero_pages,
 *   max_page_sharing, the counters): two names for one thing, together with the
 *   file of /sys/kernel/mm/pksm. KSM's defaults do not count for them.
 *   merge_across_nodes is there under KSM's name only;
 *
 * - those that have a meaning here, but another: full_scans, advisor_max_cpu,
 *   stable_node_chains and stable_node_dups. See there;
 *
 * - those that tune a scanner, which this engine does not have (pages_to_scan,
 *   sleep_millisecs, smart_scan and so on): what is written is checked as KSM
 *   checks it, kept, and read back.
 *
 * As for KSM, a control of the last kind is one word, written by one store.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/ksm.h>
#include <linux/ktime.h>
#include <linux/sysfs.h>

#include "internal.h"
#include "fail.h"

#define KSM_ATTR_RO(_name) \
	static struct kobj_attribute _name##_attr = __ATTR_RO(_name)
#define KSM_ATTR(_name) \
	static struct kobj_attribute _name##_attr = __ATTR_RW(_name)

/* A number that is kept. */
#define KSM_KEPT_ATTR(_name, _default, _max)				\
static unsigned long pksm_##_name = _default;				\
									\
static ssize_t _name##_show(struct kobject *kobj,			\
			    struct kobj_attribute *attr, char *buf)	\
{									\
	return sysfs_emit(buf, "%lu\n", READ_ONCE(pksm_##_name));	\
}									\
									\
static ssize_t _name##_store(struct kobject *kobj,			\
			     struct kobj_attribute *attr,		\
			     const char *buf, size_t count)		\
{									\
	unsigned long value;						\
									\
	if (kstrtoul(buf, 10, &value) || value > (_max))		\
		return -EINVAL;						\
	WRITE_ONCE(pksm_##_name, value);				\
	return count;							\
}									\
KSM_ATTR(_name)

/* === full_scans === */

/*
 * Programs wait for KSM to have looked at everything by polling full_scans until
 * it has grown by two: at least one of the two scans then began after they started
 * to wait. They must find the same here, where nothing is scanned: between two
 * increments lies a moment from which on all that was waiting has been looked at.
 *
 * So a "scan" is, in this order: the pages that were there before the engine was
 * started have all been met by the sweep (once: those that it has to try again it
 * passes over); then, a note is made of how far the queues are; then, all that was
 * waiting before that note has been taken out of them. Where nothing waits all of
 * that takes no time.
 *
 * What is born meanwhile does not prolong a scan, so that it ends in spite of any
 * amount of new pages. Nor does a page that changes all the time, or is pinned: it
 * is put back into a queue behind the note, and belongs to the next scan. From a
 * certain level on it is passed over (as KSM does under smart_scan), since it would
 * take minutes until its turn.
 *
 * A scan is made when somebody asks for full_scans, and is not without that: pksmd
 * sleeps when there is nothing to do, and the counter stands still. The first read
 * after a while therefore says what it was, and pksmd begins; somebody who polls
 * sees it grow as fast as pages are looked at.
 *
 * A page that was read, is not watched yet and changes thereafter is not waiting
 * for anything: it is found again by the next pass over the index (see rescan.c),
 * which may be rescan_seconds away. KSM would look at it in its next scan.
 */
enum pksm_scan {
	PKSM_SCAN_NONE,		/* nobody has asked */
	PKSM_SCAN_SWEEP,	/* pages from before the start are taken in */
	PKSM_SCAN_QUEUES,	/* what was waiting is looked at */
};

/* Guarded by pksm_mutex. */
static enum pksm_scan pksm_scan;
static struct pksm_queue_mark pksm_scan_mark;

/* Written by readers of the file, and by pksmd when it begins. */
static bool pksm_scan_wanted;

/* Written by pksmd. */
static unsigned long pksm_scans;

/**
 * pksm_scan_step - see what has become of the scan, begin one if it is wanted
 *
 * Context: pksmd, pksm_mutex held, at the end of a round in which the engine runs.
 */
void pksm_scan_step(void)
{
	lockdep_assert_held(&pksm_mutex);
	switch (pksm_scan) {
	case PKSM_SCAN_NONE:
		if (!READ_ONCE(pksm_scan_wanted))
			return;
		/* Before anything is looked at: who asks from now on means the next. */
		WRITE_ONCE(pksm_scan_wanted, false);
		pksm_scan = PKSM_SCAN_SWEEP;
		fallthrough;
	case PKSM_SCAN_SWEEP:
		/* There may be other passes of the sweep to come. */
		if (!pksm_sweep_timeout())
			return;
		/* Pages that were born in the meantime are all to be in line. */
		pksm_unstable_reap();
		pksm_queue_collect();
		if (pksm_nr_stranded())
			pksm_queue_untangle();
		pksm_queue_note(&pksm_scan_mark);
		pksm_scan = PKSM_SCAN_QUEUES;
		fallthrough;
	case PKSM_SCAN_QUEUES:
		if (!pksm_queue_passed(&pksm_scan_mark))
			return;
		WRITE_ONCE(pksm_scans, pksm_scans + 1);
		pksm_scan = PKSM_SCAN_NONE;
		/* Somebody waits for the next: do not go to sleep over it. */
		if (READ_ONCE(pksm_scan_wanted))
			pksm_wake_daemon();
	}
}

/**
 * pksm_scan_forget - every page was given up: no scan was made of them
 *
 * Context: pksm_mutex held.
 */
void pksm_scan_forget(void)
{
	lockdep_assert_held(&pksm_mutex);
	pksm_scan = PKSM_SCAN_NONE;
	WRITE_ONCE(pksm_scan_wanted, false);
}

static ssize_t full_scans_show(struct kobject *kobj,
			       struct kobj_attribute *attr, char *buf)
{
	unsigned long scans = READ_ONCE(pksm_scans);

	if (READ_ONCE(pksm_run) == PKSM_RUN_MERGE &&
	    !READ_ONCE(pksm_scan_wanted)) {
		WRITE_ONCE(pksm_scan_wanted, true);
		pksm_wake_daemon();
	}
	return sysfs_emit(buf, "%lu\n", scans);
}
KSM_ATTR_RO(full_scans);

/* === controls that are the engine's === */

static ssize_t use_zero_pages_show(struct kobject *kobj,
				   struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_use_zero_pages));
}

static ssize_t use_zero_pages_store(struct kobject *kobj,
				    struct kobj_attribute *attr,
				    const char *buf, size_t count)
{
	bool value;

	if (kstrtobool(buf, &value))
		return -EINVAL;
	WRITE_ONCE(pksm_use_zero_pages, value);
	return count;
}
KSM_ATTR(use_zero_pages);

static ssize_t max_page_sharing_show(struct kobject *kobj,
				     struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_max_page_sharing));
}

/*
 * KSM refuses with EBUSY while any page is merged, since the shape of its tree
 * depends on the number. Programs write the file before they start KSM, when
 * nothing is merged, and do not expect that error. Here the engine may run from
 * boot, so that they would always meet it, and nothing but the decision to merge
 * one more page depends on the number: it may change at any time. A page that has
 * more mappings already keeps them.
 */
static ssize_t max_page_sharing_store(struct kobject *kobj,
				      struct kobj_attribute *attr,
				      const char *buf, size_t count)
{
	int max, err;

	err = kstrtoint(buf, 10, &max);
	if (err)
		return err;
	if (max < 2)
		return -EINVAL;
	WRITE_ONCE(pksm_max_page_sharing, max);
	return count;
}
KSM_ATTR(max_page_sharing);

/* === the advisor === */

/*
 * KSM's advisor finds the pages_to_scan with which a scan takes
 * advisor_target_scan_time, and no more than advisor_max_cpu per cent of a CPU. Here
 * there is nothing to find, but the limit is the engine's max_cpu for as long as
 * the advisor is on. When it is switched off again, max_cpu is what it was, unless
 * somebody has written to it since.
 */
static DEFINE_MUTEX(pksm_advisor_mutex);

/* Guarded by pksm_advisor_mutex; read without it. */
static bool pksm_advisor_on;
static unsigned int pksm_advisor_max_cpu = 70;
static unsigned int pksm_advisor_applied;	/* what max_cpu was set to */
static unsigned int pksm_advisor_before;	/* what it was before that */

/* To begin with pages_to_scan, when it is switched on. */
KSM_KEPT_ATTR(advisor_min_pages_to_scan, 500, ULONG_MAX);

#define KSM_DEFAULT_PAGES_TO_SCAN	100

/* No meaning here, but the advisor sets it. */
static unsigned int pksm_pages_to_scan = KSM_DEFAULT_PAGES_TO_SCAN;

static void pksm_advisor_apply(void)
{
	pksm_advisor_applied = clamp(pksm_advisor_max_cpu, 1U, 100U);
	WRITE_ONCE(pksm_max_cpu, pksm_advisor_applied);
	pksm_wake_daemon();
}

static void pksm_advisor_switch(bool on)
{
	if (on == pksm_advisor_on)
		return;
	WRITE_ONCE(pksm_advisor_on, on);
	if (on) {
		WRITE_ONCE(pksm_pages_to_scan,
			   READ_ONCE(pksm_advisor_min_pages_to_scan));
		pksm_advisor_before = READ_ONCE(pksm_max_cpu);
		pksm_advisor_apply();
	} else {
		WRITE_ONCE(pksm_pages_to_scan, KSM_DEFAULT_PAGES_TO_SCAN);
		if (READ_ONCE(pksm_max_cpu) == pksm_advisor_applied)
			WRITE_ONCE(pksm_max_cpu, pksm_advisor_before);
		pksm_wake_daemon();
	}
}

static ssize_t advisor_mode_show(struct kobject *kobj,
				 struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", READ_ONCE(pksm_advisor_on) ?
				       "none [scan-time]" : "[none] scan-time");
}

static ssize_t advisor_mode_store(struct kobject *kobj,
				  struct kobj_attribute *attr, const char *buf,
				  size_t count)
{
	bool on;

	if (sysfs_streq("scan-time", buf))
		on = true;
	else if (sysfs_streq("none", buf))
		on = false;
	else
		return -EINVAL;
	mutex_lock(&pksm_advisor_mutex);
	pksm_advisor_switch(on);
	mutex_unlock(&pksm_advisor_mutex);
	return count;
}
KSM_ATTR(advisor_mode);

static ssize_t advisor_max_cpu_show(struct kobject *kobj,
				    struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_advisor_max_cpu));
}

static ssize_t advisor_max_cpu_store(struct kobject *kobj,
				     struct kobj_attribute *attr,
				     const char *buf, size_t count)
{
	unsigned long value;

	if (kstrtoul(buf, 10, &value))
		return -EINVAL;
	mutex_lock(&pksm_advisor_mutex);
	/* KSM takes any number, and keeps its low 32 bits. */
	WRITE_ONCE(pksm_advisor_max_cpu, value);
	if (pksm_advisor_on)
		pksm_advisor_apply();
	mutex_unlock(&pksm_advisor_mutex);
	return count;
}
KSM_ATTR(advisor_max_cpu);

static ssize_t pages_to_scan_show(struct kobject *kobj,
				  struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_pages_to_scan));
}

static ssize_t pages_to_scan_store(struct kobject *kobj,
				   struct kobj_attribute *attr,
				   const char *buf, size_t count)
{
	unsigned int nr_pages;

	if (READ_ONCE(pksm_advisor_on) || kstrtouint(buf, 10, &nr_pages))
		return -EINVAL;
	WRITE_ONCE(pksm_pages_to_scan, nr_pages);
	return count;
}
KSM_ATTR(pages_to_scan);

/* === controls of a scanner === */

KSM_KEPT_ATTR(sleep_millisecs, 20, UINT_MAX);
KSM_KEPT_ATTR(stable_node_chains_prune_millisecs, 2000, UINT_MAX);
KSM_KEPT_ATTR(advisor_max_pages_to_scan, 30000, ULONG_MAX);

static bool pksm_smart_scan = true;

static ssize_t smart_scan_show(struct kobject *kobj,
			       struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_smart_scan));
}

static ssize_t smart_scan_store(struct kobject *kobj,
				struct kobj_attribute *attr,
				const char *buf, size_t count)
{
	bool value;

	if (kstrtobool(buf, &value))
		return -EINVAL;
	WRITE_ONCE(pksm_smart_scan, value);
	return count;
}
KSM_ATTR(smart_scan);

static unsigned long pksm_target_scan_time = 200;

static ssize_t advisor_target_scan_time_show(struct kobject *kobj,
					     struct kobj_attribute *attr,
					     char *buf)
{
	return sysfs_emit(buf, "%lu\n", READ_ONCE(pksm_target_scan_time));
}

static ssize_t advisor_target_scan_time_store(struct kobject *kobj,
					      struct kobj_attribute *attr,
					      const char *buf, size_t count)
{
	unsigned long value;

	if (kstrtoul(buf, 10, &value) || !value)
		return -EINVAL;
	WRITE_ONCE(pksm_target_scan_time, value);
	return count;
}
KSM_ATTR(advisor_target_scan_time);

#ifdef CONFIG_NUMA
static ssize_t merge_across_nodes_show(struct kobject *kobj,
				       struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_across_nodes));
}

/*
 * KSM refuses a change with EBUSY while pages are merged; here they are unmerged, as
 * for a change of the domain.
 */
static ssize_t merge_across_nodes_store(struct kobject *kobj,
					struct kobj_attribute *attr,
					const char *buf, size_t count)
{
	unsigned long knob;
	int err;

	err = kstrtoul(buf, 10, &knob);
	if (err)
		return err;
	if (knob > 1)
		return -EINVAL;
	err = pksm_set_across_nodes(knob);
	return err ?: count;
}
KSM_ATTR(merge_across_nodes);
#endif

/* === counters === */

#define KSM_COUNTER_ATTR(_name, _format, _value)			\
static ssize_t _name##_show(struct kobject *kobj,			\
			    struct kobj_attribute *attr, char *buf)	\
{									\
	return sysfs_emit(buf, _format "\n", _value);			\
}									\
KSM_ATTR_RO(_name)

KSM_COUNTER_ATTR(ksm_zero_pages, "%ld", atomic_long_read(&ksm_zero_pages));

/* KSM counts the pages that smart_scan spared it. There is no such thing here. */
KSM_COUNTER_ATTR(pages_skipped, "%u", 0);

/*
 * In KSM a chain ties together the merged pages that have the same contents, since
 * one of them has as many mappings as max_page_sharing allows. They are just
 * neighbours in the index here, and nobody counts them but for these two files:
 * which costs a walk over the index, and only if there ever were any. Everybody may
 * read them. So that nobody can keep pksmd from its work by it, what was counted is
 * good for nine times as long as it took to count, and pksm_mutex is released now and
 * then meanwhile.
 */
#define PKSM_SUM_BUCKETS	1024U

/* Taken before pksm_mutex. */
static DEFINE_MUTEX(pksm_sum_mutex);

/* Guarded by pksm_sum_mutex. */
static unsigned long pksm_sum_chains;
static unsigned long pksm_sum_dups;
static u64 pksm_sum_until;	/* in nanoseconds of ktime_get_ns() */

static void pksm_count_chain(struct pksm_stable_node *node)
{
	struct pksm_stable_node *other = NULL;
	u64 hash = READ_ONCE(node->hash);
	unsigned long nr = 0;

	/* The page is gone, and @hash with it: then this was something else. */
	if (!pksm_node_alive(node))
		return;
	while ((other = pksm_stable_next(hash, other))) {
		if (!pksm_node_alive(other))
			continue;
		/* The first of them counts for all. */
		if (!nr++ && other != node)
			return;
	}
	if (nr > 1) {
		pksm_sum_chains++;
		pksm_sum_dups += nr;
	}
}

static int pksm_sum_up(void)
{
	u64 begin = ktime_get_ns(), end;
	unsigned long bucket = 0;
	bool more = true;

	if (begin < pksm_sum_until)
		return 0;
	pksm_sum_until = 0;
	pksm_sum_chains = 0;
	pksm_sum_dups = 0;
	while (more) {
		if (mutex_lock_interruptible(&pksm_mutex))
			return -EINTR;
		more = pksm_stable_for_some(&bucket, PKSM_SUM_BUCKETS,
					    pksm_count_chain);
		mutex_unlock(&pksm_mutex);
	}
	end = ktime_get_ns();
	pksm_sum_until = end + 9 * (end - begin);
	return 0;
}

static int pksm_count_chains(unsigned long *chains, unsigned long *dups)
{
	int err;

	*chains = 0;
	*dups = 0;
	if (!READ_ONCE(pksm_stable_repeats))
		return 0;
	if (mutex_lock_interruptible(&pksm_sum_mutex))
		return -EINTR;
	err = pksm_sum_up();
	*chains = pksm_sum_chains;
	*dups = pksm_sum_dups;
	mutex_unlock(&pksm_sum_mutex);
	return err;
}

static ssize_t stable_node_chains_show(struct kobject *kobj,
				       struct kobj_attribute *attr, char *buf)
{
	unsigned long chains, dups;
	int err = pksm_count_chains(&chains, &dups);

	return err ? err : sysfs_emit(buf, "%lu\n", chains);
}
KSM_ATTR_RO(stable_node_chains);

static ssize_t stable_node_dups_show(struct kobject *kobj,
				     struct kobj_attribute *attr, char *buf)
{
	unsigned long chains, dups;
	int err = pksm_count_chains(&chains, &dups);

	return err ? err : sysfs_emit(buf, "%lu\n", dups);
}
KSM_ATTR_RO(stable_node_dups);

static struct attribute *pksm_ksm_attrs[] = {
	&sleep_millisecs_attr.attr,
	&pages_to_scan_attr.attr,
	&pksm_run_attr.attr,
	&pksm_pages_scanned_attr.attr,
	&pksm_pages_shared_attr.attr,
	&pksm_pages_sharing_attr.attr,
	&pksm_pages_unshared_attr.attr,
	&pksm_pages_volatile_attr.attr,
	&pages_skipped_attr.attr,
	&ksm_zero_pages_attr.attr,
	&full_scans_attr.attr,
#ifdef CONFIG_NUMA
	&merge_across_nodes_attr.attr,
#endif
	&max_page_sharing_attr.attr,
	&stable_node_chains_attr.attr,
	&stable_node_dups_attr.attr,
	&stable_node_chains_prune_millisecs_attr.attr,
	&use_zero_pages_attr.attr,
	&pksm_general_profit_attr.attr,
	&smart_scan_attr.attr,
	&advisor_mode_attr.attr,
	&advisor_max_cpu_attr.attr,
	&advisor_min_pages_to_scan_attr.attr,
	&advisor_max_pages_to_scan_attr.attr,
	&advisor_target_scan_time_attr.attr,
	NULL,
};

static const struct attribute_group pksm_ksm_attr_group = {
	.name = "ksm",
	.attrs = pksm_ksm_attrs,
};

static int __init pksm_ksm_compat_init(void)
{
	int err = pksm_should_fail(PKSM_FAIL_KSM_SYSFS) ?
		  -ENOMEM : sysfs_create_group(mm_kobj, &pksm_ksm_attr_group);

	if (err)
		pr_err("cannot make the files of KSM in sysfs: error %d\n", err);
	return err;
}
late_initcall(pksm_ksm_compat_init);

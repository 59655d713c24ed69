// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: /sys/kernel/mm/pksm.
 *
 * One value a file. The controls come first, then the counters; what each of
 * them means is in Documentation/ABI/testing/sysfs-kernel-mm-pksm.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/init.h>
#include <linux/kobject.h>
#include <linux/ksm.h>
#include <linux/math64.h>
#include <linux/sysfs.h>

#include "internal.h"
#include "fail.h"

/* An hour: enough for anybody, and far from overflowing when shifted. */
#define PKSM_MAX_SETTLE_MILLISECS	3600000U

/* A day. */
#define PKSM_MAX_RESCAN_SECONDS		86400U

#define PKSM_ATTR_RO(_name) \
	static struct kobj_attribute _name##_attr = __ATTR_RO(_name)
#define PKSM_ATTR(_name) \
	static struct kobj_attribute _name##_attr = __ATTR_RW(_name)

/* Those that /sys/kernel/mm/ksm has as well: see ksm_compat.c. */
#define PKSM_COMMON_ATTR_RO(_name) \
	struct kobj_attribute pksm_##_name##_attr = __ATTR_RO(_name)
#define PKSM_COMMON_ATTR(_name) \
	struct kobj_attribute pksm_##_name##_attr = __ATTR_RW(_name)

/* === controls === */

static ssize_t run_show(struct kobject *kobj, struct kobj_attribute *attr,
			char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_run));
}

static ssize_t run_store(struct kobject *kobj, struct kobj_attribute *attr,
			 const char *buf, size_t count)
{
	unsigned int run;
	int err;

	if (kstrtouint(buf, 10, &run) || run > PKSM_RUN_UNMERGE)
		return -EINVAL;
	err = pksm_set_run(run);
	return err ? err : count;
}
PKSM_COMMON_ATTR(run);

static ssize_t settle_millisecs_show(struct kobject *kobj,
				     struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_settle_millisecs));
}

static ssize_t settle_millisecs_store(struct kobject *kobj,
				      struct kobj_attribute *attr,
				      const char *buf, size_t count)
{
	unsigned int msecs;

	if (kstrtouint(buf, 10, &msecs) || msecs > PKSM_MAX_SETTLE_MILLISECS)
		return -EINVAL;
	if (mutex_lock_interruptible(&pksm_mutex))
		return -EINTR;
	WRITE_ONCE(pksm_settle_millisecs, msecs);
	pksm_queue_restart();
	mutex_unlock(&pksm_mutex);
	pksm_wake_daemon();
	return count;
}
PKSM_ATTR(settle_millisecs);

static const char * const pksm_domain_names[NR_PKSM_DOMAIN_KINDS] = {
	[PKSM_DOMAIN_USER] = "user",
	[PKSM_DOMAIN_MEMCG] = "memcg",
	[PKSM_DOMAIN_PROCESS] = "process",
	[PKSM_DOMAIN_GLOBAL] = "global",
};

static ssize_t domain_show(struct kobject *kobj, struct kobj_attribute *attr,
			   char *buf)
{
	enum pksm_domain_kind kind = READ_ONCE(pksm_domain_kind);

	return sysfs_emit(buf, "%s\n", pksm_domain_names[kind]);
}

static ssize_t domain_store(struct kobject *kobj, struct kobj_attribute *attr,
			    const char *buf, size_t count)
{
	int kind = sysfs_match_string(pksm_domain_names, buf);
	int err;

	if (kind < 0)
		return kind;
	err = pksm_set_domain(kind);
	return err ? err : count;
}
PKSM_ATTR(domain);

static const char * const pksm_scope_names[NR_PKSM_SCOPES] = {
	[PKSM_SCOPE_ALL] = "all",
	[PKSM_SCOPE_MADVISE] = "madvise",
};

static ssize_t scope_show(struct kobject *kobj, struct kobj_attribute *attr,
			  char *buf)
{
	return sysfs_emit(buf, "%s\n",
			  pksm_scope_names[READ_ONCE(pksm_scope)]);
}

static ssize_t scope_store(struct kobject *kobj, struct kobj_attribute *attr,
			   const char *buf, size_t count)
{
	int scope = sysfs_match_string(pksm_scope_names, buf);
	int err;

	if (scope < 0)
		return scope;
	err = pksm_set_scope(scope);
	return err ? err : count;
}
PKSM_ATTR(scope);

static ssize_t rescan_seconds_show(struct kobject *kobj,
				   struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_rescan_seconds));
}

static ssize_t rescan_seconds_store(struct kobject *kobj,
				    struct kobj_attribute *attr,
				    const char *buf, size_t count)
{
	unsigned int seconds;

	if (kstrtouint(buf, 10, &seconds) || seconds > PKSM_MAX_RESCAN_SECONDS)
		return -EINVAL;
	if (mutex_lock_interruptible(&pksm_mutex))
		return -EINTR;
	WRITE_ONCE(pksm_rescan_seconds, seconds);
	pksm_rescan_restart();
	mutex_unlock(&pksm_mutex);
	pksm_wake_daemon();
	return count;
}
PKSM_ATTR(rescan_seconds);

static ssize_t max_cpu_show(struct kobject *kobj, struct kobj_attribute *attr,
			    char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_max_cpu));
}

static ssize_t max_cpu_store(struct kobject *kobj, struct kobj_attribute *attr,
			     const char *buf, size_t count)
{
	unsigned int percent;

	if (kstrtouint(buf, 10, &percent) || !percent || percent > 100)
		return -EINVAL;
	WRITE_ONCE(pksm_max_cpu, percent);
	pksm_wake_daemon();
	return count;
}
PKSM_ATTR(max_cpu);

static ssize_t max_page_sharing_show(struct kobject *kobj,
				     struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_max_page_sharing));
}

static ssize_t max_page_sharing_store(struct kobject *kobj,
				      struct kobj_attribute *attr,
				      const char *buf, size_t count)
{
	unsigned int max;

	/* With less than two there would be nothing to merge. */
	if (kstrtouint(buf, 10, &max) || max < 2 || max > INT_MAX)
		return -EINVAL;
	WRITE_ONCE(pksm_max_page_sharing, max);
	return count;
}
PKSM_ATTR(max_page_sharing);

static ssize_t use_zero_pages_show(struct kobject *kobj,
				   struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%u\n", READ_ONCE(pksm_use_zero_pages));
}

static ssize_t use_zero_pages_store(struct kobject *kobj,
				    struct kobj_attribute *attr,
				    const char *buf, size_t count)
{
	unsigned int use;

	if (kstrtouint(buf, 10, &use) || use > 1)
		return -EINVAL;
	WRITE_ONCE(pksm_use_zero_pages, use);
	return count;
}
PKSM_ATTR(use_zero_pages);

/* === counters === */

#define PKSM_CLASS_ATTR(_attr, _name, _class)				\
static ssize_t _name##_show(struct kobject *kobj,			\
			    struct kobj_attribute *attr, char *buf)	\
{									\
	return sysfs_emit(buf, "%ld\n", pksm_nr_class(_class));		\
}									\
_attr(_name)

PKSM_CLASS_ATTR(PKSM_ATTR_RO, pages_new, PKSM_CLASS_NEW);
PKSM_CLASS_ATTR(PKSM_COMMON_ATTR_RO, pages_volatile, PKSM_CLASS_VOLATILE);
PKSM_CLASS_ATTR(PKSM_COMMON_ATTR_RO, pages_shared, PKSM_CLASS_SHARED);

static ssize_t pages_unshared_show(struct kobject *kobj,
				   struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%ld\n", pksm_nr_class(PKSM_CLASS_UNSHARED) +
					pksm_nr_class(PKSM_CLASS_WATCHED));
}
PKSM_COMMON_ATTR_RO(pages_unshared);

#define PKSM_EVENT_ATTR(_attr, _name, _event)				\
static ssize_t _name##_show(struct kobject *kobj,			\
			    struct kobj_attribute *attr, char *buf)	\
{									\
	return sysfs_emit(buf, "%lu\n", pksm_nr_event(_event));		\
}									\
_attr(_name)

PKSM_EVENT_ATTR(PKSM_COMMON_ATTR_RO, pages_scanned, PKSM_EVENT_SCANNED);
PKSM_EVENT_ATTR(PKSM_ATTR_RO, pages_merged, PKSM_EVENT_MERGED);
PKSM_EVENT_ATTR(PKSM_ATTR_RO, pages_broken, PKSM_EVENT_BROKEN);

static ssize_t pages_sharing_show(struct kobject *kobj,
				  struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", pksm_nr_sharing());
}
PKSM_COMMON_ATTR_RO(pages_sharing);

static ssize_t zero_pages_show(struct kobject *kobj,
			       struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%ld\n", atomic_long_read(&ksm_zero_pages));
}
PKSM_ATTR_RO(zero_pages);

static ssize_t rmap_items_show(struct kobject *kobj,
			       struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", READ_ONCE(pksm_nr_sharers));
}
PKSM_ATTR_RO(rmap_items);

static ssize_t full_scans_show(struct kobject *kobj,
			       struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", READ_ONCE(pksm_full_scans));
}
PKSM_ATTR_RO(full_scans);

/* Large folios that were split for their pages' equals; written under pksm_mutex. */
unsigned long pksm_folios_split;

static ssize_t folios_split_show(struct kobject *kobj,
				 struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", READ_ONCE(pksm_folios_split));
}
PKSM_ATTR_RO(folios_split);

static ssize_t stable_items_show(struct kobject *kobj,
				 struct kobj_attribute *attr, char *buf)
{
	unsigned long items;

	if (mutex_lock_interruptible(&pksm_mutex))
		return -EINTR;
	items = pksm_nr_nodes + pksm_nr_sharers;
	mutex_unlock(&pksm_mutex);
	return sysfs_emit(buf, "%lu\n", items);
}
PKSM_ATTR_RO(stable_items);

static ssize_t stable_nodes_show(struct kobject *kobj,
				 struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%lu\n", READ_ONCE(pksm_nr_nodes));
}
PKSM_ATTR_RO(stable_nodes);

static ssize_t general_profit_show(struct kobject *kobj,
				   struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%ld\n", pksm_general_profit());
}
PKSM_COMMON_ATTR_RO(general_profit);

static ssize_t cpu_usecs_show(struct kobject *kobj,
			      struct kobj_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%llu\n", div_u64(READ_ONCE(pksm_cpu_nsecs),
						 NSEC_PER_USEC));
}
PKSM_ATTR_RO(cpu_usecs);

static struct attribute *pksm_attrs[] = {
	&pksm_run_attr.attr,
	&scope_attr.attr,
	&domain_attr.attr,
	&settle_millisecs_attr.attr,
	&rescan_seconds_attr.attr,
	&max_cpu_attr.attr,
	&max_page_sharing_attr.attr,
	&use_zero_pages_attr.attr,
	&pages_new_attr.attr,
	&pksm_pages_unshared_attr.attr,
	&pksm_pages_volatile_attr.attr,
	&pksm_pages_shared_attr.attr,
	&pksm_pages_sharing_attr.attr,
	&zero_pages_attr.attr,
	&pksm_pages_scanned_attr.attr,
	&pages_merged_attr.attr,
	&pages_broken_attr.attr,
	&full_scans_attr.attr,
	&folios_split_attr.attr,
	&rmap_items_attr.attr,
	&stable_nodes_attr.attr,
	&stable_items_attr.attr,
	&pksm_general_profit_attr.attr,
	&cpu_usecs_attr.attr,
	NULL,
};

static const struct attribute_group pksm_attr_group = {
	.name = "pksm",
	.attrs = pksm_attrs,
};

static int __init pksm_sysfs_init(void)
{
	int err = pksm_should_fail(PKSM_FAIL_SYSFS) ?
		  -ENOMEM : sysfs_create_group(mm_kobj, &pksm_attr_group);

	if (err)
		pr_err("cannot make the files in sysfs: error %d\n", err);
	return err;
}
late_initcall(pksm_sysfs_init);

#ifdef CONFIG_PKSM_KUNIT_TEST
#include "tests/sysfs_test.h"
#endif

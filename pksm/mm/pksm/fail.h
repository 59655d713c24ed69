/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _MM_PKSM_FAIL_H
#define _MM_PKSM_FAIL_H
/*
 * What a test may let fail; see fail.c.
 */
#include <linux/jump_label.h>
#include <linux/types.h>

/**
 * enum pksm_fail_site - a call that can fail for lack of memory, each of them once
 * @PKSM_FAIL_NODE_CACHE: the slab cache of the stable nodes, at boot
 * @PKSM_FAIL_SHARER_CACHE: that of the sharers, at boot
 * @PKSM_FAIL_DAEMON: pksmd, at boot
 * @PKSM_FAIL_SYSFS: the files in /sys/kernel/mm/pksm, at boot
 * @PKSM_FAIL_KSM_SYSFS: those in /sys/kernel/mm/ksm, at boot
 * @PKSM_FAIL_UNSTABLE: the buckets of the unstable index
 * @PKSM_FAIL_STABLE: those of the stable index
 * @PKSM_FAIL_MARKS: a set of buckets; each index has one
 * @PKSM_FAIL_MARK_WORDS: the words of it that are not 0
 * @PKSM_FAIL_NODE: a stable node
 * @PKSM_FAIL_SHARER: a sharer
 * @PKSM_FAIL_SORT: an array to sort sharers in
 * @PKSM_FAIL_COPY: the copy of a page that is swapped in
 * @PKSM_FAIL_CHARGE: charging that copy to a memory cgroup
 * @PKSM_FAIL_UNSHARE: the copy of a merged page, when it is unmerged
 * @PKSM_FAIL_MOVE: the same, when it is in the way of its owner
 * @PKSM_FAIL_SPLIT: splitting a large folio
 * @PKSM_NR_FAIL_SITES: how many there are
 */
enum pksm_fail_site {
	PKSM_FAIL_NODE_CACHE,
	PKSM_FAIL_SHARER_CACHE,
	PKSM_FAIL_DAEMON,
	PKSM_FAIL_SYSFS,
	PKSM_FAIL_KSM_SYSFS,
	PKSM_FAIL_UNSTABLE,
	PKSM_FAIL_STABLE,
	PKSM_FAIL_MARKS,
	PKSM_FAIL_MARK_WORDS,
	PKSM_FAIL_NODE,
	PKSM_FAIL_SHARER,
	PKSM_FAIL_SORT,
	PKSM_FAIL_COPY,
	PKSM_FAIL_CHARGE,
	PKSM_FAIL_UNSHARE,
	PKSM_FAIL_MOVE,
	PKSM_FAIL_SPLIT,
	PKSM_NR_FAIL_SITES,
};

#ifdef CONFIG_PKSM_DEBUG
DECLARE_STATIC_KEY_FALSE(pksm_fail_key);
extern const struct file_operations pksm_fail_fops;

bool __pksm_should_fail(enum pksm_fail_site site);

/**
 * pksm_should_fail - is a call to fail, instead of being made?
 * @site: which call
 *
 * Context: Process context. Does not sleep.
 * Return: true when it is.
 */
static inline bool pksm_should_fail(enum pksm_fail_site site)
{
	return static_branch_unlikely(&pksm_fail_key) &&
	       __pksm_should_fail(site);
}
#else
static inline bool pksm_should_fail(enum pksm_fail_site site)
{
	return false;
}
#endif

#endif /* _MM_PKSM_FAIL_H */

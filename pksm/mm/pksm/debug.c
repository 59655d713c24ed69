// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: /sys/kernel/debug/pksm.
 *
 * index	how full the two indexes are, and how long their chains
 * ages		how often the pages that wait or were hashed had changed before, and in
 *		which queue they wait
 * check	"fine", or the first thing that is found wrong
 * hold		hold the engine at a dangerous moment: see hold.c
 * fail		let it run out of memory: see fail.c
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/log2.h>
#include <linux/seq_file.h>

#include "internal.h"
#include "fail.h"
#include "hold.h"

/* Chains of 0, 1, 2-3, 4-7, ... members. */
#define PKSM_NR_LENGTHS		16

/* All of it is guarded by pksm_mutex. */
static unsigned long pksm_lengths[PKSM_NR_LENGTHS];
static unsigned long pksm_length, pksm_longest, pksm_entries, pksm_used;
static unsigned long pksm_bucket_now;
static unsigned long pksm_waiting[PKSM_NR_LEVELS][PKSM_MAX_AGE + 1];
static unsigned long pksm_hashed[2][PKSM_MAX_AGE + 1];

static void pksm_length_done(void)
{
	if (!pksm_length)
		return;
	pksm_used++;
	pksm_longest = max(pksm_longest, pksm_length);
	pksm_lengths[min(ilog2(pksm_length) + 1, PKSM_NR_LENGTHS - 1)]++;
	pksm_length = 0;
}

static bool pksm_measure(unsigned long pfn, unsigned long bucket, bool right)
{
	if (bucket != pksm_bucket_now)
		pksm_length_done();
	pksm_bucket_now = bucket;
	pksm_length++;
	pksm_entries++;
	return true;
}

static int index_show(struct seq_file *m, void *unused)
{
	unsigned long buckets;
	int i;

	if (mutex_lock_interruptible(&pksm_mutex))
		return -EINTR;
	memset(pksm_lengths, 0, sizeof(pksm_lengths));
	pksm_longest = 0;
	pksm_entries = 0;
	pksm_used = 0;
	buckets = pksm_nr_buckets();
	pksm_unstable_for_each(pksm_measure);
	pksm_length_done();
	seq_printf(m, "unstable_buckets %lu\n", buckets);
	seq_printf(m, "unstable_entries %lu\n", pksm_entries);
	seq_printf(m, "unstable_longest %lu\n", pksm_longest);
	seq_printf(m, "unstable_length_0 %lu\n", buckets - pksm_used);
	for (i = 1; i < PKSM_NR_LENGTHS; i++) {
		if (pksm_lengths[i])
			seq_printf(m, "unstable_length_%lu %lu\n",
				   1UL << (i - 1), pksm_lengths[i]);
	}
	seq_printf(m, "stable_nodes %lu\n", pksm_nr_nodes);
	seq_printf(m, "stable_sharers %lu\n", pksm_nr_sharers);
	mutex_unlock(&pksm_mutex);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(index);

static bool pksm_age_waiting(unsigned long pfn, u32 level)
{
	u32 state = READ_ONCE(pksm_item(pfn)->state);

	if (state & PKSM_LIVE)
		pksm_waiting[level][pksm_age(state)]++;
	return true;
}

static bool pksm_age_hashed(unsigned long pfn, unsigned long bucket, bool right)
{
	u32 state = READ_ONCE(pksm_item(pfn)->state);

	if (state & PKSM_LIVE)
		pksm_hashed[!!(state & PKSM_WATCHED)][pksm_age(state)]++;
	return true;
}

static void pksm_show_ages(struct seq_file *m, const unsigned long *nr)
{
	u32 age;

	for (age = 0; age <= PKSM_MAX_AGE; age++)
		seq_printf(m, " %lu", nr[age]);
	seq_putc(m, '\n');
}

static int ages_show(struct seq_file *m, void *unused)
{
	u32 level;

	if (mutex_lock_interruptible(&pksm_mutex))
		return -EINTR;
	memset(pksm_waiting, 0, sizeof(pksm_waiting));
	memset(pksm_hashed, 0, sizeof(pksm_hashed));
	pksm_queue_for_each(pksm_age_waiting);
	pksm_unstable_for_each(pksm_age_hashed);
	for (level = 0; level < PKSM_NR_LEVELS; level++) {
		seq_printf(m, "level_%u", level);
		pksm_show_ages(m, pksm_waiting[level]);
	}
	seq_puts(m, "hashed");
	pksm_show_ages(m, pksm_hashed[0]);
	seq_puts(m, "watched");
	pksm_show_ages(m, pksm_hashed[1]);
	mutex_unlock(&pksm_mutex);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(ages);

static int check_show(struct seq_file *m, void *unused)
{
	unsigned long where = 0;
	const char *wrong;

	if (mutex_lock_interruptible(&pksm_mutex))
		return -EINTR;
	wrong = pksm_check(&where);
	mutex_unlock(&pksm_mutex);
	if (wrong)
		seq_printf(m, "%s: 0x%lx\n", wrong, where);
	else
		seq_puts(m, "fine\n");
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(check);

static int __init pksm_debug_init(void)
{
	struct dentry *dir = debugfs_create_dir("pksm", NULL);

	debugfs_create_file("index", 0400, dir, NULL, &index_fops);
	debugfs_create_file("ages", 0400, dir, NULL, &ages_fops);
	debugfs_create_file("check", 0400, dir, NULL, &check_fops);
	debugfs_create_file("hold", 0600, dir, NULL, &pksm_hold_fops);
	debugfs_create_file("fail", 0600, dir, NULL, &pksm_fail_fops);
	return 0;
}
late_initcall(pksm_debug_init);

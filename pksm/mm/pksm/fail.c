// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: /sys/kernel/debug/pksm/fail, which lets the engine run out of memory.
 *
 * Each call of the engine that can fail for lack of memory has a name. One that is
 * armed fails, as if there were none, instead of being made.
 *
 *	echo node every 3 > fail	every third stable node cannot be had
 *	echo node percent 5 > fail	each with a probability of 5 per cent
 *	echo node off > fail		none any more
 *	echo all percent 5 > fail	the same for every name
 *	cat fail			how often each was reached, and how often it
 *					failed, while anything was armed; how it is armed
 *
 * What is called at boot is armed by the boot parameter pksm_fail=NAME,every,N, which
 * takes the same words with commas in place of blanks.
 *
 * What is random begins anew whenever the file is written to: the same calls fail, as
 * long as they come in the same order.
 */
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/prandom.h>
#include <linux/seq_file.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "internal.h"
#include "fail.h"

DEFINE_STATIC_KEY_FALSE(pksm_fail_key);

static const char *const pksm_fail_names[PKSM_NR_FAIL_SITES] = {
	[PKSM_FAIL_NODE_CACHE]		= "node_cache",
	[PKSM_FAIL_SHARER_CACHE]	= "sharer_cache",
	[PKSM_FAIL_DAEMON]		= "daemon",
	[PKSM_FAIL_SYSFS]		= "sysfs",
	[PKSM_FAIL_KSM_SYSFS]		= "ksm_sysfs",
	[PKSM_FAIL_UNSTABLE]		= "unstable",
	[PKSM_FAIL_STABLE]		= "stable",
	[PKSM_FAIL_MARKS]		= "marks",
	[PKSM_FAIL_MARK_WORDS]		= "mark_words",
	[PKSM_FAIL_NODE]		= "node",
	[PKSM_FAIL_SHARER]		= "sharer",
	[PKSM_FAIL_SORT]		= "sort",
	[PKSM_FAIL_COPY]		= "copy",
	[PKSM_FAIL_CHARGE]		= "charge",
	[PKSM_FAIL_UNSHARE]		= "unshare",
	[PKSM_FAIL_MOVE]		= "move",
	[PKSM_FAIL_SPLIT]		= "split",
};

enum pksm_fail_how {
	PKSM_FAIL_NEVER,
	PKSM_FAIL_EVERY,
	PKSM_FAIL_PERCENT,
	PKSM_NR_FAIL_HOWS,
};

static const char *const pksm_fail_hows[PKSM_NR_FAIL_HOWS] = {
	[PKSM_FAIL_NEVER]	= "off",
	[PKSM_FAIL_EVERY]	= "every",
	[PKSM_FAIL_PERCENT]	= "percent",
};

/**
 * struct pksm_failing - what is wanted of a call, and what has come of it
 * @how: when it is to fail
 * @number: every how many times, or with what probability
 * @turn: how often it was reached since it was armed
 * @reached: the same since boot
 * @failed: how often it failed since boot
 */
struct pksm_failing {
	enum pksm_fail_how how;
	unsigned int number;
	unsigned int turn;
	unsigned long reached;
	unsigned long failed;
};

/* Those who arm, one at a time. Taken before pksm_fail_lock. */
static DEFINE_MUTEX(pksm_fail_mutex);

/* Guards all that follow. */
static DEFINE_SPINLOCK(pksm_fail_lock);
static struct pksm_failing pksm_failing[PKSM_NR_FAIL_SITES];
static struct rnd_state pksm_fail_random;

static bool pksm_fail_now(struct pksm_failing *failing)
{
	lockdep_assert_held(&pksm_fail_lock);
	switch (failing->how) {
	case PKSM_FAIL_EVERY:
		return ++failing->turn % failing->number == 0;
	case PKSM_FAIL_PERCENT:
		return prandom_u32_state(&pksm_fail_random) % 100 <
		       failing->number;
	default:
		return false;
	}
}

/**
 * __pksm_should_fail - see pksm_should_fail()
 * @site: which call
 *
 * Context: Process context. Does not sleep.
 * Return: true when it is to fail.
 */
bool __pksm_should_fail(enum pksm_fail_site site)
{
	struct pksm_failing *failing = &pksm_failing[site];
	bool fail;

	spin_lock(&pksm_fail_lock);
	fail = pksm_fail_now(failing);
	failing->reached++;
	failing->failed += fail;
	spin_unlock(&pksm_fail_lock);
	return fail;
}

/* With all of them from @first to @last. Returns whether any is armed then. */
static bool pksm_fail_set(int first, int last, enum pksm_fail_how how,
			  unsigned int number)
{
	bool armed = false;
	int i;

	spin_lock(&pksm_fail_lock);
	for (i = first; i <= last; i++) {
		pksm_failing[i].how = how;
		pksm_failing[i].number = number;
		pksm_failing[i].turn = 0;
	}
	for (i = 0; i < PKSM_NR_FAIL_SITES; i++)
		armed |= pksm_failing[i].how != PKSM_FAIL_NEVER;
	prandom_seed_state(&pksm_fail_random, 1);
	spin_unlock(&pksm_fail_lock);
	return armed;
}

/* NAME off, NAME every N, NAME percent N. */
static int pksm_fail_arm(char *text, const char *between)
{
	int first = 0, last = PKSM_NR_FAIL_SITES - 1, how, err;
	char *name = strsep(&text, between);
	char *word = strsep(&text, between);
	unsigned int number = 0;
	bool counted;

	if (strcmp(name, "all")) {
		first = match_string(pksm_fail_names, PKSM_NR_FAIL_SITES, name);
		last = first;
	}
	if (first < 0 || !word)
		return -EINVAL;
	how = match_string(pksm_fail_hows, PKSM_NR_FAIL_HOWS, word);
	counted = how != PKSM_FAIL_NEVER;
	if (how < 0 || counted != !!text)
		return -EINVAL;
	if (counted) {
		err = kstrtouint(text, 0, &number);
		if (err)
			return err;
		if (!number || (how == PKSM_FAIL_PERCENT && number > 100))
			return -EINVAL;
	}

	mutex_lock(&pksm_fail_mutex);
	if (pksm_fail_set(first, last, how, number))
		static_branch_enable(&pksm_fail_key);
	else
		static_branch_disable(&pksm_fail_key);
	mutex_unlock(&pksm_fail_mutex);
	return 0;
}

static int fail_show(struct seq_file *m, void *unused)
{
	int i;

	for (i = 0; i < PKSM_NR_FAIL_SITES; i++) {
		struct pksm_failing now;

		spin_lock(&pksm_fail_lock);
		now = pksm_failing[i];
		spin_unlock(&pksm_fail_lock);

		seq_printf(m, "%s reached %lu failed %lu %s", pksm_fail_names[i],
			   now.reached, now.failed, pksm_fail_hows[now.how]);
		if (now.how != PKSM_FAIL_NEVER)
			seq_printf(m, " %u", now.number);
		seq_putc(m, '\n');
	}
	return 0;
}

static ssize_t fail_write(struct file *file, const char __user *from,
			  size_t count, loff_t *pos)
{
	char text[48];
	int err;

	if (!count || count >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, count))
		return -EFAULT;
	text[count] = 0;
	err = pksm_fail_arm(strim(text), " ");
	return err ? err : count;
}

static int fail_open(struct inode *inode, struct file *file)
{
	return single_open(file, fail_show, NULL);
}

/* Of debug.c's directory. */
const struct file_operations pksm_fail_fops = {
	.owner		= THIS_MODULE,
	.open		= fail_open,
	.read		= seq_read,
	.write		= fail_write,
	.llseek		= seq_lseek,
	.release	= single_release,
};

static int __init pksm_fail_setup(char *text)
{
	return text ? pksm_fail_arm(text, ",") : -EINVAL;
}
early_param("pksm_fail", pksm_fail_setup);

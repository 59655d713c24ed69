// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: /sys/kernel/debug/pksm/hold, which makes a race happen every time.
 *
 * The dangerous moments of the engine have names. Writing one to the file arms it:
 * the next task that comes there waits, with whatever it has taken and seen, until it
 * is let go. Meanwhile a test does what must not hurt.
 *
 *	echo found > hold		hold the next that comes by
 *	echo found 0x1234 > hold	the next that comes by with this page frame
 *	echo step > hold		let it go, and hold the next
 *	echo off > hold			let it go, and hold nobody
 *	cat hold			what is armed, and who waits, with what
 *
 * There is one moment at a time that is armed, and one task that waits. At a moment
 * at which it must not sleep it spins, and after a second goes on by itself, and nothing
 * is armed any more: whoever is to act meanwhile needs another CPU.
 *
 * A task that waits keeps its locks: pksm_mutex for one, so that most files of the
 * engine cannot be written to. This file takes no lock but its own.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "internal.h"
#include "hold.h"

DEFINE_STATIC_KEY_FALSE(pksm_hold_key);

static const char *const pksm_point_names[PKSM_NR_POINTS] = {
	[PKSM_AT_NONE]		= "off",
	[PKSM_AT_HASHED]	= "hashed",
	[PKSM_AT_LOOKUP]	= "lookup",
	[PKSM_AT_FOUND]		= "found",
	[PKSM_AT_FROZEN]	= "frozen",
	[PKSM_AT_CLEARED]	= "cleared",
	[PKSM_AT_VISIT]		= "visit",
	[PKSM_AT_MIGRATE]	= "migrate",
	[PKSM_AT_LARGE]		= "large",
	[PKSM_AT_UNFLUSHED]	= "unflushed",
};

/* For how long a task that must not sleep is held, in milliseconds. */
#define PKSM_SPIN_MSECS		1000U

/* Those who write to the file, one at a time. Taken before pksm_hold_lock. */
static DEFINE_MUTEX(pksm_arm_mutex);

/* Guards all that follow. Under it is taken the queue's own lock. */
static DEFINE_SPINLOCK(pksm_hold_lock);
static DECLARE_WAIT_QUEUE_HEAD(pksm_hold_queue);
static enum pksm_point pksm_hold_point;
static unsigned long pksm_hold_value;
static unsigned long pksm_hold_turn;
static bool pksm_held;
static unsigned long pksm_held_value;
static pid_t pksm_held_pid;
static char pksm_held_comm[TASK_COMM_LEN];

/* Returns whether the task is to wait, until the turn is not @turn any more. */
static bool pksm_hold_begin(enum pksm_point point, unsigned long value,
			    unsigned long *turn)
{
	bool held;

	spin_lock(&pksm_hold_lock);
	held = pksm_hold_point == point && !pksm_held &&
	       (!pksm_hold_value || pksm_hold_value == value);
	if (held) {
		pksm_held = true;
		pksm_held_value = value;
		pksm_held_pid = task_pid_nr(current);
		strscpy(pksm_held_comm, current->comm, sizeof(pksm_held_comm));
		*turn = pksm_hold_turn;
	}
	spin_unlock(&pksm_hold_lock);
	return held;
}

static void pksm_hold_end(unsigned long turn, bool disarm)
{
	spin_lock(&pksm_hold_lock);
	/* Killed, or the time is up: nobody has let it go. */
	if (pksm_hold_turn == turn) {
		pksm_held = false;
		if (disarm)
			pksm_hold_point = PKSM_AT_NONE;
	}
	spin_unlock(&pksm_hold_lock);
}

/**
 * __pksm_hold - see pksm_hold()
 * @point: where the task has come to
 * @value: what with; see enum pksm_point
 *
 * Context: Process context. May sleep, for as long as the user likes; a fatal signal
 * ends it.
 */
void __pksm_hold(enum pksm_point point, unsigned long value)
{
	unsigned long turn;

	might_sleep();
	if (!pksm_hold_begin(point, value, &turn))
		return;
	wait_event_killable(pksm_hold_queue, READ_ONCE(pksm_hold_turn) != turn);
	pksm_hold_end(turn, false);
}

/**
 * __pksm_hold_spinning - see pksm_hold_spinning()
 * @point: where the task has come to
 * @value: what with; see enum pksm_point
 *
 * Context: Any but interrupts: pksm_hold_lock is taken with them enabled. Spins for
 * PKSM_SPIN_MSECS at most.
 */
void __pksm_hold_spinning(enum pksm_point point, unsigned long value)
{
	unsigned int left = PKSM_SPIN_MSECS;
	unsigned long turn;

	if (!pksm_hold_begin(point, value, &turn))
		return;
	while (left-- && READ_ONCE(pksm_hold_turn) == turn)
		mdelay(1);
	/* It has locks that the next to come would keep as long. */
	pksm_hold_end(turn, true);
}

static void pksm_let_go(void)
{
	lockdep_assert_held(&pksm_hold_lock);
	pksm_held = false;
	WRITE_ONCE(pksm_hold_turn, pksm_hold_turn + 1);
	wake_up_all(&pksm_hold_queue);
}

static int hold_show(struct seq_file *m, void *unused)
{
	char comm[TASK_COMM_LEN];
	enum pksm_point point;
	unsigned long value;
	pid_t pid = 0;

	spin_lock(&pksm_hold_lock);
	point = pksm_hold_point;
	value = pksm_hold_value;
	if (pksm_held) {
		pid = pksm_held_pid;
		memcpy(comm, pksm_held_comm, sizeof(comm));
	}
	if (pid)
		value = pksm_held_value;
	spin_unlock(&pksm_hold_lock);

	seq_printf(m, "%s", pksm_point_names[point]);
	if (value || pid)
		seq_printf(m, " 0x%lx", value);
	if (pid)
		seq_printf(m, " held %d %s", pid, comm);
	seq_putc(m, '\n');
	return 0;
}

static void pksm_arm(enum pksm_point point, unsigned long value)
{
	mutex_lock(&pksm_arm_mutex);
	if (point != PKSM_AT_NONE)
		static_branch_enable(&pksm_hold_key);
	spin_lock(&pksm_hold_lock);
	pksm_hold_point = point;
	pksm_hold_value = value;
	pksm_let_go();
	spin_unlock(&pksm_hold_lock);
	if (point == PKSM_AT_NONE)
		static_branch_disable(&pksm_hold_key);
	mutex_unlock(&pksm_arm_mutex);
}

static ssize_t hold_write(struct file *file, const char __user *from,
			  size_t count, loff_t *pos)
{
	unsigned long value = 0;
	char text[48], *name, *rest = text;
	int point, err;

	if (!count || count >= sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, from, count))
		return -EFAULT;
	text[count] = 0;
	rest = strim(text);
	name = strsep(&rest, " ");
	if (rest) {
		err = kstrtoul(rest, 0, &value);
		if (err)
			return err;
	}
	if (!strcmp(name, "step") && !rest) {
		spin_lock(&pksm_hold_lock);
		pksm_let_go();
		spin_unlock(&pksm_hold_lock);
		return count;
	}
	point = match_string(pksm_point_names, PKSM_NR_POINTS, name);
	if (point < 0 || (point == PKSM_AT_NONE && rest))
		return -EINVAL;
	pksm_arm(point, value);
	return count;
}

static int hold_open(struct inode *inode, struct file *file)
{
	return single_open(file, hold_show, NULL);
}

/* Of debug.c's directory. */
const struct file_operations pksm_hold_fops = {
	.owner		= THIS_MODULE,
	.open		= hold_open,
	.read		= seq_read,
	.write		= hold_write,
	.llseek		= seq_lseek,
	.release	= single_release,
};

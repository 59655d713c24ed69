// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: the daemon, and the switch that starts and stops it.
 *
 * pksmd sleeps until a fault or a free leaves something for it, then until the
 * pages it took over have settled, and so on. When nothing waits any more it sleeps
 * without a time limit. What it does in between is paid for in pace.c.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/cpu.h>
#include <linux/err.h>
#include <linux/freezer.h>
#include <linux/hrtimer.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/memblock.h>
#include <linux/memcontrol.h>
#include <linux/sched.h>
#include <linux/swap.h>

#include "internal.h"
#include "fail.h"

#define CREATE_TRACE_POINTS
#include <trace/events/pksm.h>

/* show_pksm_result() has their names. */
static_assert(PKSM_MERGED == 0 && PKSM_NOMEM == 7);

/* Pages between two chances for others to take pksm_mutex. */
#define PKSM_BATCH	64U

/* The same of those that are looked at once more, which takes longer. */
#define PKSM_RESCAN_BATCH	32U

/* The queues, both indexes and the stable nodes; see internal.h. */
DEFINE_MUTEX(pksm_mutex);

/* Guarded by pksm_mutex; read without it where a moment's delay is no harm. */
enum pksm_run pksm_run;
bool pksm_use_zero_pages = true;

struct task_struct *pksmd_task;

/*
 * How long pksmd lets things gather, in jiffies, after it found some. It can be
 * woken by faults and frees only after that, so they do it at most so often.
 */
#define PKSM_GATHER	max(HZ / 20, 1)

/*
 * pksmd sleeps, and whoever leaves it something to do is to wake it. Faults and frees
 * read it: it has nothing beside it that is written more often.
 */
bool pksm_idle __read_mostly;

/* A control was changed: pksmd must not go to sleep on what it knew before. */
static bool pksm_poked;

static void pksm_wake_work(struct irq_work *work)
{
	pksm_wake_daemon();
}

static DEFINE_IRQ_WORK(pksm_wake, pksm_wake_work);

/**
 * pksm_wake_daemon - let pksmd look around
 *
 * Context: Any in which tasks may be woken.
 */
void pksm_wake_daemon(void)
{
	/* Pairs with the barrier in pksm_do_round(). */
	smp_store_release(&pksm_poked, true);
	if (pksmd_task)
		wake_up_process(pksmd_task);
}

/**
 * __pksm_kick - wake pksmd, which sleeps
 *
 * Context: Any.
 */
void __pksm_kick(void)
{
	irq_work_queue(&pksm_wake);
}

static bool pksm_work_pending(void)
{
	return pksm_intake_pending() || pksm_unstable_dead() ||
	       pksm_dead_nodes_pending() || pksm_prune_pending() ||
	       pksm_queue_stranded_pending();
}

/* A step of pksmd's that has its own time. Returns how long until the next. */
static unsigned long pksm_do_step(unsigned long (*when)(void), void (*step)(void))
{
	unsigned long timeout = when();

	if (!timeout)
		step();
	return timeout;
}

static void pksm_rescan_step(void)
{
	pksm_rescan(PKSM_RESCAN_BATCH);
}

/* One round. Returns how long to sleep after it, in jiffies; 0: not at all. */
static unsigned long pksm_do_round(void)
{
	unsigned long timeout = MAX_SCHEDULE_TIMEOUT;
	bool turned = false;

	mutex_lock(&pksm_mutex);
	/* What was changed before pksmd was poked is seen from here on. */
	smp_store_mb(pksm_poked, false);
	pksm_reap_dead_nodes();
	pksm_unstable_reap();
	pksm_queue_collect();
	if (pksm_run == PKSM_RUN_MERGE) {
		if (pksm_queue_ripe(&turned)) {
			/* Pages in the LRU batches have one reference more. */
			if (turned)
				lru_add_drain_all();
			pksm_queue_run(PKSM_BATCH);
			timeout = 0;
		} else {
			timeout = pksm_queue_timeout();
		}
		timeout = min(timeout, pksm_do_step(pksm_sweep_timeout,
						    pksm_sweep));
		timeout = min(timeout, pksm_do_step(pksm_rescan_timeout,
						    pksm_rescan_step));
		pksm_scan_step();
	}
	timeout = min(timeout, pksm_do_step(pksm_queue_stranded_timeout,
					    pksm_queue_untangle));
	timeout = min(timeout, pksm_do_step(pksm_prune_timeout, pksm_prune));
	mutex_unlock(&pksm_mutex);
	return timeout;
}

static void pksm_sleep(unsigned long timeout, bool idle)
{
	set_current_state(TASK_INTERRUPTIBLE | TASK_FREEZABLE);
	WRITE_ONCE(pksm_idle, idle);
	/* Pairs with the barrier before pksm_kick(). */
	smp_mb();
	if (!kthread_should_stop() && !READ_ONCE(pksm_poked) &&
	    !(idle && pksm_work_pending()))
		schedule_timeout(timeout);
	__set_current_state(TASK_RUNNING);
	WRITE_ONCE(pksm_idle, false);
}

/* Sleep off a debt of CPU time: only another limit ends that. */
static void pksm_pay(u64 debt)
{
	ktime_t until = ktime_add_ns(ktime_get(), debt);
	unsigned int max = READ_ONCE(pksm_max_cpu);

	do {
		set_current_state(TASK_INTERRUPTIBLE | TASK_FREEZABLE);
		if (kthread_should_stop() || READ_ONCE(pksm_max_cpu) != max)
			break;
		/* Whoever wakes pksmd has it look around after that. */
	} while (schedule_hrtimeout_range(&until, NSEC_PER_MSEC / 4,
					  HRTIMER_MODE_ABS));
	__set_current_state(TASK_RUNNING);
}

static int pksmd(void *unused)
{
	set_user_nice(current, 5);
	set_freezable();
	pksm_pace_start();
	while (!kthread_should_stop()) {
		bool found = pksm_work_pending();
		unsigned long timeout;
		u64 debt;

		pksm_pace_work();
		timeout = pksm_do_round();
		debt = pksm_pace_done();

		try_to_freeze();
		if (debt) {
			pksm_pay(debt);
		} else if (!timeout) {
			cond_resched();
		} else {
			pksm_sleep(found ? min(timeout, PKSM_GATHER) : timeout,
				   !found);
			pksm_pace_slept();
		}
	}
	return 0;
}

/*
 * To open or to shut the gate needs the lock of CPU hotplug, which is held already
 * where memory goes offline, and pksm_mutex is waited for: see hotplug.c. Returns 0,
 * -ENODEV without a daemon, or -EINTR.
 */
static int pksm_lock_gate(void)
{
	if (!pksmd_task)
		return -ENODEV;
	cpus_read_lock();
	if (!mutex_lock_interruptible(&pksm_mutex))
		return 0;
	cpus_read_unlock();
	return -EINTR;
}

/* The daemon is to look at what has changed. */
static void pksm_unlock_gate(void)
{
	mutex_unlock(&pksm_mutex);
	cpus_read_unlock();
	pksm_wake_daemon();
}

/* Guarded by pksm_mutex: is the gate to be open, but for a change of what is merged? */
static bool pksm_intake_wanted;

/* Open the gate of the fault path, and take in what was born while it was shut. */
static void pksm_intake_on(void)
{
	if (static_key_enabled(&pksm_intake_key.key))
		return;
	static_branch_enable_cpuslocked(&pksm_count_key);
	static_branch_enable_cpuslocked(&pksm_intake_key);
	/* There are no processes before that. */
	if (system_state < SYSTEM_RUNNING)
		return;
	/* Faults that found the gate shut: their pages must be there to be found. */
	synchronize_rcu();
	pksm_sweep_start();
}

/* Close the gate of the fault path, and wait for those who have passed it. */
static void pksm_intake_off(void)
{
	static_branch_disable_cpuslocked(&pksm_intake_key);
	/* They are RCU readers: by a page table lock, or in folio_migrate_ksm(). */
	synchronize_rcu();
}

static void pksm_forget_everything(void)
{
	pksm_scan_forget();
	pksm_unstable_reap();
	pksm_unstable_empty();
	pksm_queue_forget_all();
	pksm_rescan_restart();
}

/*
 * Forget every page, and give each process its own copy of what was merged. That may
 * take long, and is done without the lock of CPU hotplug: only pksm_mutex is held when
 * this returns.
 */
static int pksm_stop_and_unmerge(enum pksm_run run)
{
	int err;

	pksm_intake_off();
	cpus_read_unlock();
	pksm_sweep_stop();
	WRITE_ONCE(pksm_run, run);
	pksm_forget_everything();
	err = pksm_unmerge_all();
	if (err)
		WRITE_ONCE(pksm_run, PKSM_RUN_STOP);
	return err;
}

/**
 * pksm_set_run - start, stop, or stop and unmerge everything
 * @run: what to do
 *
 * Context: Process context. Takes pksm_mutex, may sleep.
 * Return: 0; -ENOMEM without memory for the indexes; -ENODEV without a daemon;
 * -EOPNOTSUPP with memory beyond 16 TiB; -EINTR; or the error of
 * pksm_unmerge_all(), after which the engine is stopped.
 */
int pksm_set_run(enum pksm_run run)
{
	int err = 0;

	err = pksm_lock_gate();
	if (err)
		return err;
	if (run == pksm_run)
		goto out;

	switch (run) {
	case PKSM_RUN_MERGE:
		/* A record has 32 bits for a page frame number. */
		if (max_pfn > PKSM_END) {
			err = -EOPNOTSUPP;
			break;
		}
		err = pksm_index_alloc();
		if (err)
			break;
		WRITE_ONCE(pksm_run, run);
		pksm_intake_wanted = true;
		pksm_intake_on();
		break;
	case PKSM_RUN_STOP:
		/* Pages born meanwhile wait on the new lists for a new start. */
		WRITE_ONCE(pksm_run, run);
		break;
	case PKSM_RUN_UNMERGE:
		pksm_intake_wanted = false;
		err = pksm_stop_and_unmerge(run);
		mutex_unlock(&pksm_mutex);
		pksm_wake_daemon();
		return err;
	}
out:
	pksm_unlock_gate();
	return err;
}

/*
 * What decides which pages are equal is about to change: nothing may be merged, nor
 * be in an index. Returns 0, or an error, with everything as it was, or stopped; with
 * pksm_mutex held, and nothing else.
 */
static int pksm_begin_change(void)
{
	int err;

	lockdep_assert_held(&pksm_mutex);
	err = pksm_stop_and_unmerge(pksm_run);
	/* Not to be restarted: the engine would look stopped from the outset. */
	return err == -ERESTARTSYS ? -EINTR : err;
}

/* Take everything in again, if there is to be an intake. Releases pksm_mutex. */
static void pksm_end_change(void)
{
	mutex_unlock(&pksm_mutex);
	/* In this order. Somebody else may have started or stopped the engine by then. */
	cpus_read_lock();
	mutex_lock(&pksm_mutex);
	if (pksm_intake_wanted)
		pksm_intake_on();
	pksm_unlock_gate();
}

/**
 * pksm_set_domain - set whose pages may be merged with whose
 * @kind: what makes a domain
 *
 * What is merged may not be so in the new domains: everything is unmerged first,
 * and then taken in again.
 *
 * Context: Process context. Takes pksm_mutex, may sleep.
 * Return: 0; -ENODEV without a daemon; -EOPNOTSUPP for a kind that this system
 * does not have; -EINTR on a signal; or another error of pksm_unmerge_all(). After
 * an error the domain is what it was, and the engine may be stopped.
 */
int pksm_set_domain(enum pksm_domain_kind kind)
{
	int err;

	if (kind == PKSM_DOMAIN_MEMCG && mem_cgroup_disabled())
		return -EOPNOTSUPP;
	err = pksm_lock_gate();
	if (err)
		return err;
	if (kind == pksm_domain_kind) {
		pksm_unlock_gate();
		return 0;
	}
	err = pksm_begin_change();
	if (!err)
		WRITE_ONCE(pksm_domain_kind, kind);
	pksm_end_change();
	return err;
}

/**
 * pksm_set_across_nodes - set whether pages of different nodes may be merged
 * @across: whether they may
 *
 * Everything is unmerged first, and then taken in again.
 *
 * Context: Process context. Takes pksm_mutex, may sleep.
 * Return: 0; -ENODEV without a daemon; -EINTR on a signal; or another error of
 * pksm_unmerge_all(). After an error it is what it was, and the engine may be stopped.
 */
int pksm_set_across_nodes(bool across)
{
	int err;

	err = pksm_lock_gate();
	if (err)
		return err;
	if (across == pksm_across_nodes) {
		pksm_unlock_gate();
		return 0;
	}
	err = pksm_begin_change();
	if (!err)
		WRITE_ONCE(pksm_across_nodes, across);
	pksm_end_change();
	return err;
}

/**
 * pksm_set_scope - set what is merged without anybody asking for it
 * @scope: what
 *
 * Context: Process context. Takes pksm_mutex, may sleep.
 * Return: 0; -ENODEV without a daemon; -EINTR on a signal; or another error of
 * pksm_scope_apply(). After an error the scope is what it was.
 */
int pksm_set_scope(enum pksm_scope scope)
{
	enum pksm_scope old;
	int err = 0;

	if (!pksmd_task)
		return -ENODEV;
	if (mutex_lock_interruptible(&pksm_mutex))
		return -EINTR;
	old = pksm_scope;
	if (scope != old) {
		err = pksm_scope_apply(scope);
		/* It was to be narrowed; to widen it cannot fail. */
		if (err)
			pksm_scope_apply(old);
	}
	mutex_unlock(&pksm_mutex);
	pksm_wake_daemon();
	return err;
}

static bool pksm_on_at_boot __initdata = IS_ENABLED(CONFIG_PKSM_DEFAULT_ON);

static int __init pksm_setup(char *str)
{
	return kstrtobool(str, &pksm_on_at_boot);
}
early_param("pksm", pksm_setup);

static int __init pksm_init(void)
{
	struct task_struct *task;
	int err;

	err = pksm_stable_init();
	if (err)
		return err;
	task = pksm_should_fail(PKSM_FAIL_DAEMON) ?
	       ERR_PTR(-ENOMEM) : kthread_run(pksmd, NULL, "pksmd");
	if (IS_ERR(task)) {
		pr_err("cannot start pksmd: %pe\n", task);
		return PTR_ERR(task);
	}
	pksmd_task = task;
	if (!pksm_on_at_boot)
		return 0;
	err = pksm_set_run(PKSM_RUN_MERGE);
	if (err)
		pr_err("cannot run: error %d\n", err);
	return err;
}
subsys_initcall(pksm_init);

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: memory that goes offline.
 *
 * Its pages have been migrated or freed by then, and their records are dead, but for
 * memory that has gone bad, which stays where it is and counts as in use. A record
 * stays linked until pksmd comes by, and its page_ext is about to be freed; a node
 * points to a struct page that is. So all of them are taken out here, before that: the
 * notifier of page_ext has a lower priority.
 *
 * Until then whoever holds pksm_mutex may go over the chains, and look at the struct
 * page of a stable node: neither goes away before this has been called. Memory that
 * comes online brings records that are linked to nothing.
 */
#include <linux/init.h>
#include <linux/memory.h>

#include "internal.h"

/* Before page_ext, which is the last to need its own. */
#define PKSM_CALLBACK_PRI	(DEFAULT_CALLBACK_PRI + 1)

static int pksm_memory_callback(struct notifier_block *self,
				unsigned long action, void *arg)
{
	const struct memory_notify *mn = arg;

	if (action != MEM_OFFLINE)
		return NOTIFY_OK;
	mutex_lock(&pksm_mutex);
	pksm_detach_range(mn->start_pfn, mn->start_pfn + mn->nr_pages);
	/* What is purged here may go to a queue. */
	pksm_unstable_purge(mn->start_pfn, mn->start_pfn + mn->nr_pages);
	pksm_queue_collect();
	pksm_queue_purge(mn->start_pfn, mn->start_pfn + mn->nr_pages);
	pksm_reap_dead_nodes();
	mutex_unlock(&pksm_mutex);
	return NOTIFY_OK;
}

static int __init pksm_hotplug_init(void)
{
	return hotplug_memory_notifier(pksm_memory_callback, PKSM_CALLBACK_PRI);
}
subsys_initcall(pksm_hotplug_init);

// SPDX-License-Identifier: GPL-2.0-only
/* Which node memory is of, and is to be of; see common.h. */
#include <errno.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../common.h"

int run_on_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set) ? -errno : 0;
}

int node_bind(void *start, size_t bytes, int node, unsigned int flags)
{
	unsigned long mask = 1UL << node;

	return syscall(SYS_mbind, start, bytes, MPOL_BIND, &mask, NODES + 1, flags) ?
	       -errno : 0;
}

int node_move(void *start, size_t n, int node, unsigned int flags)
{
	void **pages = untracked_alloc(n * sizeof(*pages));
	int *nodes = untracked_alloc(n * sizeof(*nodes));
	int *status = untracked_alloc(n * sizeof(*status));
	int err = 0;
	size_t i;

	for (i = 0; i < n; i++) {
		pages[i] = (char *)start + i * PAGE_BYTES;
		nodes[i] = node;
	}
	/* What is positive is a number of pages that were busy. */
	if (syscall(SYS_move_pages, 0, n, pages, nodes, status, flags) < 0)
		err = -errno;
	munmap(pages, n * sizeof(*pages));
	munmap(nodes, n * sizeof(*nodes));
	munmap(status, n * sizeof(*status));
	return err;
}

int node_migrate(int from, int to)
{
	unsigned long old = 1UL << from, new = 1UL << to;

	return syscall(SYS_migrate_pages, 0, NODES + 1, &old, &new) < 0 ? -errno : 0;
}

int node_count(pid_t pid, uint64_t start, size_t n, uint64_t *counts)
{
	void **pages = untracked_alloc(n * sizeof(*pages));
	int *status = untracked_alloc(n * sizeof(*status));
	int err = 0;
	size_t i;

	for (i = 0; i < n; i++)
		pages[i] = (void *)(uintptr_t)(start + i * PAGE_BYTES);
	if (syscall(SYS_move_pages, pid, n, pages, NULL, status, 0))
		err = errno == ENOSYS ? 0 : -errno;
	else
		for (i = 0; i < n; i++)
			if (status[i] >= 0 && status[i] < (int)NODES)
				counts[status[i]]++;
	munmap(pages, n * sizeof(*pages));
	munmap(status, n * sizeof(*status));
	return err;
}

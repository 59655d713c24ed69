/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The operations of pageops: a worker process maps a region, does to a range of
 * its pages what it is told to, and knows what each of them has to hold.
 */
#ifndef WORKLOADS_OPS_H
#define WORKLOADS_OPS_H

#include "common.h"

enum op {
	OP_MAP, OP_UNMAP, OP_FILL, OP_VERIFY, OP_WRITE, OP_POKE, OP_TOUCH,
	OP_MADVISE, OP_MLOCK, OP_MUNLOCK, OP_MREMAP, OP_MPROTECT, OP_FORK,
	OP_RANGE, OP_MERGE, OP_PIN, OP_UNPIN, OP_SELF, OP_BEAR, OP_BURY,
	OP_RECEIVE, OP_UFFD_WP, OP_CPU, OP_BIND, OP_MOVE, OP_MIGRATE, OP_LOOK,
	OP_DEVICE, OP_USER, OP_STALE, OP_UFFD_RWP, OP_GROUP, OP_EXEC, OP_BEAT,
	OP_STAY, OP_EXIT,
};

/* Set before the first worker is started. */
struct ops_options {
	size_t pages;		/* of each region */
	uint64_t seed;		/* of the contents */
	bool huge;		/* regions are laid out, and marked, for huge pages */
};

extern struct ops_options ops;

/* Of a worker that writes all the time, for all to see. */
struct beat {
	uint64_t begun;		/* so often it has begun */
	uint64_t strokes;	/* so often it has written since */
	uint64_t ended;		/* so often it was told to end */
};

extern volatile struct beat *ops_beats;

/*
 * Added to an operation that is not to begin before the worker is let go. It is in user
 * space until then, and makes no system call: where its page table is locked, nobody
 * could even give it an order.
 */
#define OP_LATER	0x100U

/* How many orders a worker has got, may begin with, has begun, and ended, for all to see. */
struct progress {
	uint64_t got;
	uint64_t free;
	uint64_t begun;
	uint64_t ended;
};

extern volatile struct progress *ops_progress;

/*
 * A worker's function: carries out @o, with what belongs to it in its fields.
 * The region's address comes back in value[0] of @r.
 */
void ops_order(void *ctx, const struct order *o, struct reply *r);

#endif /* WORKLOADS_OPS_H */

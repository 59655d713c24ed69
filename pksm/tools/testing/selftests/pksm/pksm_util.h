/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PKSM_UTIL_H
#define PKSM_UTIL_H
/*
 * What the tests of PKSM are made of: regions of pages whose contents are known,
 * the processes that have them, and the files of the engine.
 *
 * Nobody sleeps for something to happen: wait_for() looks until it has. That
 * something does not happen is seen after later_pages_merged().
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PKSM_DIR	"/sys/kernel/mm/pksm"

/* How long the engine may take for anything, in seconds. */
#define PATIENCE	60

/* Pages of each process of a pair. */
#define PAGES		64

extern size_t page_size;

/* === the files of the engine === */

/* The text of a file, without the newline. Ends the tests when there is none. */
const char *read_text(const char *name);
long long read_number(const char *name);
/* Returns 0 or an errno. */
int write_text(const char *name, const char *text);
int write_number(const char *name, long long number);
/*
 * A number of /proc/PID/ksm_stat; -1 where there is none of that name. Data and stack
 * of the process are counted too, which may be merged at any time: see
 * merge_only_region().
 */
long long stat_of(pid_t pid, const char *name);
/* Returns false when it has not become true in time. */
bool wait_for(bool (*condition)(void *arg), void *arg);

/* === regions === */

/**
 * struct region - pages of one process
 * @at: where they are
 * @pages: how many
 */
struct region {
	char *at;
	size_t pages;
};

struct region map_region(size_t pages);
void unmap_region(struct region region);
/* Give each page contents of its own, the same for the same @seed; 0: zeroes. */
void fill_region(struct region region, uint64_t seed);
/* How many pages are not what fill_region() has made of them. */
size_t count_wrong(struct region region, uint64_t seed);
/* A seed that nobody has used so far. */
uint64_t new_seed(void);

/* The frame of a page; 0 when it is not present. @pid: whose, 0 for this process. */
uint64_t frame_of(pid_t pid, const void *at);
/* How many pages of @pid, at the same addresses, are in the same frames as ours. */
size_t count_common(pid_t pid, struct region region);

/* Wait for pages to be merged that were written to only just now. */
bool later_pages_merged(void);

/* === processes === */

/* What a process may be asked to do. */
enum order {
	ORDER_FILL,		/* fill_region() by the argument */
	ORDER_WRONG,		/* count_wrong() by the argument */
	ORDER_WRITE,		/* change the page of that number */
	ORDER_MADVISE,		/* madvise() by that advice */
	ORDER_PRCTL,		/* PR_SET_MEMORY_MERGE to the argument */
	ORDER_SETUID,		/* become that user */
	ORDER_EXIT,
};

/**
 * struct worker - a process with a region of its own
 * @pid: the process
 * @region: its region, at the address where this process has one as well
 * @orders: where it reads orders from
 * @answers: where it writes answers to
 */
struct worker {
	pid_t pid;
	struct region region;
	int orders;
	int answers;
};

/*
 * A process that maps a region of its own where this one has @region. With
 * @inherit it keeps the pages of @region instead.
 */
struct worker start_worker(struct region region, bool inherit);
/* Returns what the order returned; a negative errno when it failed. */
long order(struct worker *worker, enum order order, uint64_t argument);
/* Nothing but the region of a worker is merged from now on. Returns 0 or an errno. */
int merge_only_region(struct worker *worker);
void end_worker(struct worker *worker);

/* === two processes with equal pages === */

/**
 * struct pair - this process and another, with equal pages at the same addresses
 * @region: the pages
 * @worker: the other process
 * @seed: what they were filled by
 */
struct pair {
	struct region region;
	struct worker worker;
	uint64_t seed;
};

/* A pair with contents that nothing else has. */
struct pair make_pair(void);
/* Other such contents. */
void fill_pair(struct pair *pair);
/* How many of their pages are in the same frames just now. */
size_t common(struct pair *pair);
/* Wait until all of them are. */
bool merged(struct pair *pair);
/* Is every byte what fill_pair() has made of it? */
bool intact(struct pair *pair);
void end_pair(struct pair *pair);

#endif /* PKSM_UTIL_H */

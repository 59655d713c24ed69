/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the workloads share: page contents that can be recomputed from a
 * small descriptor, the counters of the engine, waiting until it settled,
 * the page map, worker processes, and one line of JSON as the result.
 *
 * Exit status of every workload:
 *	0  all is well
 *	1  a wrong byte, or something that was asserted does not hold
 *	2  usage
 *	3  the environment cannot run this (no engine, no permission, time-out)
 */
#ifndef WORKLOADS_COMMON_H
#define WORKLOADS_COMMON_H

#include <linux/io_uring.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define EXIT_WRONG	1
#define EXIT_USAGE	2
#define EXIT_ENV	3

#define PAGE_BYTES	4096UL
#define HUGE_BYTES	(2UL << 20)

/* Newer than the headers of many a distribution. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE	67
#define PR_GET_MEMORY_MERGE	68
#endif
#define PAGES_PER_MIB	256UL
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

#define __printf(a, b)	__attribute__((format(printf, a, b)))
#define __noreturn	__attribute__((noreturn))
#define __unused	__attribute__((unused))

/* ---- messages and arguments --------------------------------------- */

extern const char *prog_name;	/* set by prog_start() */

void prog_start(const char *name);
void __noreturn __printf(2, 3) die(int status, const char *fmt, ...);
/* Say what is wrong with the arguments, and where it is said how they are to be. */
void __noreturn __printf(1, 2) bad_usage(const char *fmt, ...);
/* The same where getopt_long() has said what is wrong. */
void __noreturn bad_option(void);
/* Ends in bad_usage() when there is an argument number @first. */
void no_more_arguments(int first, int argc, char **argv);
/* Parses a decimal number in [@min, @max]; ends with EXIT_USAGE otherwise. */
uint64_t parse_number(const char *what, const char *arg, uint64_t min,
		      uint64_t max);
uint64_t now_ms(void);
uint64_t now_us(void);
void sleep_ms(unsigned int ms);
void *xcalloc(size_t n, size_t size);
/* Writes @text to a file of the kernel. Returns 0 or a negative errno. */
int file_write(const char *path, const char *text);
/*
 * Zeroed memory that no page merger takes for anonymous: a shared mapping.
 * Bookkeeping lies here, so that it is not counted with what is measured.
 * Freed by munmap().
 */
void *untracked_alloc(size_t bytes);
/* A stream that writes to such memory; @text is what was written so far. */
FILE *untracked_stream(char **text);
/* As qsort(), but in place: glibc's takes anonymous memory. */
void sort_in_place(void *base, size_t n, size_t size,
		   int (*cmp)(const void *, const void *));

/* ---- contents ------------------------------------------------------ */

/**
 * struct content - what a page holds, in 16 bytes
 * @key: 0 for a page of zeros, else the seed of its 512 words
 * @off: where the one byte lies that departs from it
 * @flip: what that byte is XORed with; 0 for no such byte
 * @maybe_zero: the kernel may have replaced the page by zeros (MADV_FREE)
 */
struct content {
	uint64_t key;
	uint16_t off;
	uint8_t flip;
	uint8_t maybe_zero;
};

uint64_t mix64(uint64_t x);
/* A key that is never 0, from up to four numbers. */
uint64_t content_key(uint64_t a, uint64_t b, uint64_t c, uint64_t d);
void page_fill(void *page, const struct content *c);
/*
 * The same, but @page is written to for a moment only, so that hardly ever somebody
 * reads it half full: it is made up in @room, which is to be untracked memory.
 */
void page_put(void *page, const struct content *c, void *room);
/* Such room, which is in memory already: no page_put() takes a page frame for it. */
void *room_alloc(void);

/* The first wrong byte of a page. */
struct mismatch {
	uint64_t addr;
	uint32_t page;
	uint16_t off;
	uint8_t expected;
	uint8_t got;
};

/* True if the page holds what @c says; else fills in all of @m but .page. */
bool page_check(const void *page, const struct content *c, struct mismatch *m);
/*
 * Checks @n pages, reports the first wrong one on stderr, returns how many
 * are wrong. A maybe_zero page that is found to be zero has become so for
 * good; one that still has its content may yet lose it.
 */
uint64_t region_check(const void *base, struct content *c, size_t n,
		      const char *when);
void region_fill(void *base, const struct content *c, size_t n);

/* Numbers below @n in another order: which, the key that it was made of says. */
struct scatter {
	size_t n, step, first;
};

struct scatter scatter_make(size_t n, uint64_t seed, uint64_t kind, uint64_t salt);
/* Where number @i comes; no two come to the same place. */
size_t scatter_place(const struct scatter *s, size_t i);

/* How far a set of contents can be merged. */
struct savings {
	uint64_t pages;		/* all of them */
	uint64_t zero;		/* pages of zeros */
	uint64_t shared;	/* distinct contents, other than zeros, held twice or more */
	uint64_t sharing;	/* pages of these contents beyond the first of each */
	uint64_t unique;	/* pages nobody else holds the content of */
};

/* Sorts @c. */
void content_savings(struct content *c, size_t n, struct savings *s);

/* ---- the engine ---------------------------------------------------- */

enum engine { ENGINE_NONE, ENGINE_PKSM, ENGINE_KSM };

enum engine engine_kind(void);
const char *engine_name(void);
/* Reads a counter or control; false if there is no such file. */
bool counter_read(const char *name, int64_t *value);
/* Writes a control; 0 or a negative errno. */
int control_write(const char *name, const char *value);
/* All counters as a JSON object. */
void json_counters(FILE *f);

/*
 * Waits until the engine has seen everything: pages_new and pages_volatile
 * are 0 twice in a row (PKSM), or four full scans have passed or nothing is
 * left to scan (stock KSM).
 * Returns false after @timeout_ms. Without an engine returns true at once.
 */
bool engine_settle(uint64_t timeout_ms);

/*
 * The same where some pages can never be merged as long as something holds
 * them: they stay volatile. Waits until no page is new, then for a number of
 * retries of the rest.
 */
bool engine_settle_pinned(uint64_t timeout_ms);

/* A condition on a counter: NAME OP NUMBER, with OP of == != >= <= > <. */
struct condition {
	char name[64];
	char op[3];
	int64_t number;
};

bool condition_parse(const char *text, struct condition *c);
/* 1 holds, 0 does not, -1 no such counter */
int condition_holds(const struct condition *c);
bool condition_wait(const struct condition *c, size_t n, uint64_t timeout_ms);

/*
 * Operations of the small languages that no worker carries out: settle,
 * wait=CONDITION, set=CONTROL:VALUE, sleep=MS, compact, drain, hold=POINT, held. @arg
 * is written to; a wait ends after @settle_s seconds. False if @name is none of them.
 */
bool script_op(const char *name, char *arg, uint64_t settle_s);

/*
 * Empties the batches in which each CPU gathers pages for the LRU: a page that nobody
 * maps any more is freed when it is in none.
 */
void lru_drain(void);

/*
 * Holds the engine at a moment: what is written to /sys/kernel/debug/pksm/hold. Ends
 * the program where there is no such file, or such a moment.
 */
void hold_set(const char *text);
/* Waits until a task has come there; false after @timeout_ms. */
bool hold_wait(uint64_t timeout_ms);
/* What with: mostly a page frame number; false when nobody is held. */
bool hold_held(uint64_t *value);

/* ---- the page map --------------------------------------------------- */

/*
 * Where a PTE points comes from the page map, and whether the page there is a
 * merged one from /proc/kpageflags. smaps says how many of them a VMA has, and is
 * asked as well.
 */
struct pageset {
	uint64_t *pfn;		/* one for each PTE, unsorted */
	size_t n, room;
};

struct pagestat {
	uint64_t pages;		/* in the range */
	uint64_t present;
	uint64_t swapped;
	uint64_t merged_ptes;	/* that map a merged page, by kpageflags */
	uint64_t smaps_ptes;	/* the same, by smaps */
	uint64_t zero;		/* PTEs that map the zero page */
	uint64_t anon;		/* PTEs that map any other anonymous page */
	uint64_t large;		/* of these, pages of a large folio */
	uint64_t soft_dirty;	/* written to since /proc/PID/clear_refs was, or so it is said */
	uint64_t uffd_wp;	/* write-protected by userfaultfd */
	uint64_t file;		/* PTEs that map a page of a file or of shmem */
	/* set by pagestat_finish(): */
	uint64_t merged_pages;
	uint64_t pfn_sum;	/* of the pages that more than one PTE maps */
	uint64_t mapcount_wrong; /* map count is not the number of PTEs seen */
	uint64_t wrong_pfn;	/* the first of these: */
	uint64_t wrong_count;	/* its map count */
	uint64_t wrong_ptes;	/* its PTEs */
	struct pageset pfns;	/* behind all anonymous PTEs */
	struct pageset merged;	/* behind those of merged pages */
};

/*
 * Adds [@start, @end) of process @pid (0: this one) to @st. Returns 0 or a
 * negative errno.
 */
int pagestat_add(pid_t pid, uint64_t start, uint64_t end, struct pagestat *st);
/* Works out what needs all PTEs. */
void pagestat_finish(struct pagestat *st);
void pagestat_free(struct pagestat *st);
/*
 * The page frame of the first page in [@start, @end) of process @pid, or whether @pfn is
 * that of any of them. False when there is none.
 */
bool pfn_first(pid_t pid, uint64_t start, uint64_t end, uint64_t *pfn);
bool pfn_among(pid_t pid, uint64_t start, uint64_t end, uint64_t pfn);

/* ---- reclaim --------------------------------------------------------- */

/*
 * Reclaims all it can from the memory cgroup in the directory @group, again and
 * again, until @out says that everything is out. A merged page leaves memory only
 * if rmap finds each of its PTEs. Returns 0, -EBUSY when something stays, or
 * another negative errno.
 */
int reclaim_all(const char *group, bool (*out)(void));
/*
 * Makes a range read-only while the engine is held, beside a thread that writes to the
 * word at @at of it, and writable again. Returns 1 when the thread has written to it
 * afterwards, 0 when it has not, and a negative errno, -ETIMEDOUT when nobody was held.
 */
int stale_writes(void *start, size_t bytes, size_t at, uint64_t timeout_ms);

/* ---- references that somebody else holds ------------------------------ */

/* A page that a pipe has got by vmsplice(), and what it held then. */
struct pin {
	int fd;
	struct content content;
};

/* Returns 0 or a negative errno. */
int pin_page(struct pin *pin, void *page, const struct content *c);
/* The same by a child, which has the page as well, and has gone when this returns. */
int pin_page_by_child(struct pin *pin, void *page, const struct content *c);
/*
 * The same by a child that does so when the engine is held, at the latest after
 * @timeout_ms. Whether it came to that, pin_check() sees.
 */
int pin_page_when_held(struct pin *pin, void *page, const struct content *c,
		       uint64_t timeout_ms);
/*
 * Takes the page out of its pipe, which ends the reference. Returns the number
 * of wrong pages: it must hold @expected, or what it held first if that is NULL.
 */
uint64_t pin_check(struct pin *pin, const struct content *expected);

/*
 * An io_uring with a registered buffer: it has pinned the pages, for long and for
 * writing, until it is closed. None of it is left to a child but the descriptor.
 */
struct ring {
	int fd;
	char *sq, *cq, *start;
	size_t sq_bytes, cq_bytes, sqe_bytes;
	struct io_uring_sqe *sqe;
	struct io_uring_params params;
};

/* Returns 0 or a negative errno. */
int ring_open(struct ring *ring, void *start, size_t bytes);
void ring_close(struct ring *ring);
/*
 * Moves @bytes at @off of the buffer from or to the same place of @fd, by
 * IORING_OP_READ_FIXED or WRITE_FIXED. Returns 0 or a negative errno.
 */
int ring_move(struct ring *ring, int opcode, int fd, uint64_t off, uint32_t bytes);

/* ---- writes by others -------------------------------------------------- */

/*
 * XORs byte @off of each page of another process' region with @flip, by @how:
 * "remote" (process_vm_writev), "ptrace" or "memfile" (/proc/PID/mem). The process
 * must be a child for ptrace. Returns 0 or a negative errno.
 */
int foreign_flip(pid_t pid, uint64_t base, size_t pages, size_t off, uint8_t flip,
		 const char *how);

/*
 * Moves pages of this process by UFFDIO_MOVE to a place that is mapped and empty.
 * Returns 0 or a negative errno: -EBUSY for a page that others have as well.
 */
int uffd_move(void *to, void *from, size_t bytes);

/*
 * Has userfaultfd write-protect memory of this process; a write to it makes it
 * writable again without asking anybody. Returns a descriptor that keeps it so, or a
 * negative errno.
 */
int uffd_protect(void *start, size_t bytes);

/*
 * Has userfaultfd keep everybody from memory of this process, readers as well, who
 * then wait for as long as the descriptor is open. Returns that, or a negative errno.
 */
int uffd_shut(void *start, size_t bytes);

/*
 * The kernel's test_hmm, which plays a device with memory of its own: its descriptor,
 * and moving pages there, or letting it alone have them where they are, until they are
 * touched. @copy, as large, gets their contents. Both return a negative errno; -ENOENT says that not all has moved.
 */
int device_open(void);
int device_take(int fd, void *start, size_t pages, void *copy, bool exclusive);

/* ---- nodes of memory ---------------------------------------------------- */

#define NODES	2UL

/* What this process does from now on, it does on this CPU. 0 or a negative errno. */
int run_on_cpu(int cpu);
/*
 * Pages of this process that come from now on are of node @node. With MPOL_MF_MOVE
 * or MPOL_MF_MOVE_ALL in @flags so are those that are there. 0 or a negative errno.
 */
int node_bind(void *start, size_t bytes, int node, unsigned int flags);
/* Moves @n pages of this process to a node, by move_pages(2); @flags as above. */
int node_move(void *start, size_t n, int node, unsigned int flags);
/* Moves all of this process from one node to another, by migrate_pages(2). */
int node_migrate(int from, int to);
/*
 * Adds to @counts, for each node, how many of @n pages of a process are there; none
 * where the kernel knows of no nodes. Returns 0 or a negative errno.
 */
int node_count(pid_t pid, uint64_t start, size_t n, uint64_t *counts);

/* ---- worker processes ----------------------------------------------- */

struct order {
	uint32_t op;
	uint32_t arg;
	uint64_t value;
	char text[48];
};

struct reply {
	int32_t status;		/* 0, an exit status, or a negative errno */
	uint32_t pad;
	uint64_t wrong;		/* pages */
	uint64_t value[4];
};

struct worker {
	pid_t pid;		/* 0 once it has gone */
	int order_fd;
	int reply_fd;
	struct reply last;
};

typedef void (*worker_fn)(void *ctx, const struct order *o, struct reply *r);

/* Starts process @index of @w; it serves orders with @fn until end of file. */
void worker_start(struct worker *w, unsigned int index, worker_fn fn,
		  void *ctx);
/* Gives one order to one worker, or to all of @n at the same time. */
void worker_send(struct worker *w, const struct order *o);
void worker_receive(struct worker *w);
uint64_t worker_all(struct worker *w, unsigned int n, const struct order *o);
void worker_end(struct worker *w);
/* Waits until it has ended, by whatever; false after @timeout_ms. */
bool worker_gone(struct worker *w, uint64_t timeout_ms, int *status);

#endif /* WORKLOADS_COMMON_H */

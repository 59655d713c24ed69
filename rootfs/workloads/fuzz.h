/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The parts of fuzzmm: lists of operations (lib/fuzz_list.c), the model of every
 * byte (lib/fuzz_model.c), what a process does to its own memory (lib/fuzz_memory.c,
 * lib/fuzz_pins.c, lib/fuzz_uffd.c) and to what all share (lib/fuzz_shared.c), who it
 * is (lib/fuzz_who.c), and what is done from outside (lib/fuzz_outside.c).
 *
 * Each process has an arena of pages at the same address. For each page the model,
 * which lies in memory that all processes share, knows the 4096 bytes it must hold.
 * One operation is carried out at a time, by one process, so that nobody needs locks.
 * An operation that does not apply, to pages that are not mapped for one, is left out:
 * any part of a list is a list.
 */
#ifndef WORKLOADS_FUZZ_H
#define WORKLOADS_FUZZ_H

#include "common.h"

#define FUZZ_WRONG	3	/* exit status: a wrong byte */
#define FUZZ_ENV	1	/* exit status: the guest cannot run this */

#define FUZZ_MAX_PROCS	16
#define FUZZ_MAX_PAGES	2048
#define FUZZ_MAX_PINS	4
#define FUZZ_MAX_WP	2	/* userfaultfds of a process that write-protect */
#define FUZZ_SHARED	16	/* pages that all processes share */
#define FUZZ_LAST	8	/* operations on a page that are remembered */
#define FUZZ_HISTORY	64	/* contents of a pinned page that are */
#define FUZZ_BASE	0x2000000000UL

enum fuzz_kind {
	FUZZ_MAP, FUZZ_UNMAP, FUZZ_DUP, FUZZ_ZERO, FUZZ_UNIQUE, FUZZ_NEAR, FUZZ_POKE,
	FUZZ_RECEIVE, FUZZ_SEND, FUZZ_VERIFY, FUZZ_FORK, FUZZ_EXIT, FUZZ_SPAWN,
	FUZZ_MOVE, FUZZ_DONTUNMAP, FUZZ_GROW, FUZZ_SHRINK, FUZZ_PROTECT,
	FUZZ_MERGEABLE, FUZZ_UNMERGEABLE, FUZZ_DONTNEED, FUZZ_FREE, FUZZ_PAGEOUT,
	FUZZ_COLD, FUZZ_WILLNEED, FUZZ_POPULATE_READ, FUZZ_POPULATE_WRITE,
	FUZZ_DONTFORK, FUZZ_DOFORK, FUZZ_WIPEONFORK, FUZZ_KEEPONFORK, FUZZ_COLLAPSE,
	FUZZ_HUGEPAGE, FUZZ_NOHUGEPAGE, FUZZ_FLAG, FUZZ_DONTNEED_LOCKED, FUZZ_GUARD,
	FUZZ_UNGUARD, FUZZ_LOCK, FUZZ_UNLOCK, FUZZ_PIN, FUZZ_PIN_LONG, FUZZ_UNPIN,
	FUZZ_UFFD_COPY, FUZZ_UFFD_ZERO, FUZZ_UFFD_MOVE, FUZZ_UFFD_WP, FUZZ_SHARE_DUP,
	FUZZ_SHARE_POKE, FUZZ_SHARE_VERIFY, FUZZ_SHARE_ADVISE, FUZZ_REMOTE, FUZZ_PTRACE,
	FUZZ_MEMFILE, FUZZ_ADVISE_OTHER, FUZZ_MERGE, FUZZ_USER, FUZZ_JOIN, FUZZ_SET,
	FUZZ_RECLAIM, FUZZ_SWAPOFF, FUZZ_COMPACT, FUZZ_DROP, FUZZ_SLEEP, FUZZ_CHECK,
	FUZZ_AUDIT, FUZZ_VERIFY_ALL,
	FUZZ_KINDS
};

/* What the pages that an operation applies to must be; and who carries it out. */
enum {
	NEED_MAPPED = 1, NEED_FREE = 2, NEED_READ = 4, NEED_WRITE = 8, NEED_ANON = 16,
	NEED_UNLOCKED = 32,
	NEED_SURE = 64,		/* MADV_FREE has not left open what is there */
	OF_PROCESS = 256,	/* carried out by a process */
	OF_OUTSIDE = 512,	/* by the first process, but on the pages of another */
	ON_SHARED = 1024,	/* about the pages that all share, by their numbers */
};

struct fuzz_op {
	uint32_t number;	/* in the list, from 0 */
	uint8_t kind;
	uint8_t proc;
	uint16_t page;
	uint16_t pages;
	uint16_t pad;
	uint32_t arg;
};

struct fuzz_kind_info {
	const char *name;
	unsigned int weight;	/* how often it comes, among all others */
	unsigned int most;	/* pages at a time; 0: it is not about pages */
	unsigned int args;	/* the argument is below this; 0: there is none */
	unsigned int needs;
	const char *what;
};

extern const struct fuzz_kind_info fuzz_kinds[FUZZ_KINDS];

/* ---- lists of operations -------------------------------------------- */

struct fuzz_sizes {
	unsigned int procs;
	unsigned int pages;	/* of each arena */
};

extern struct fuzz_sizes fuzz_sizes;

/* Names, divided by commas, are all that may come, or what may not. */
void fuzz_choose(const char *names, bool without);
/* Operation @number of a seed. */
void fuzz_make(uint64_t seed, uint32_t number, struct fuzz_op *op);
void fuzz_print(FILE *f, const struct fuzz_op *op);
/* Reads a list, which may set fuzz_sizes. Ends the program when it is none. */
struct fuzz_op *fuzz_read(const char *path, uint32_t *n);
/* The control and the value that argument @arg of "set" stands for. */
void fuzz_setting(uint32_t arg, const char **control, const char **value);

/* ---- the model --------------------------------------------------------- */

struct fuzz_slot {
	uint8_t mapped, read, write, locked;
	uint8_t maybe_zero;	/* MADV_FREE: the content, or zeros, until it is written */
	uint8_t wipe, dont_fork;
	uint8_t guard;		/* nobody gets at it (MADV_GUARD_INSTALL) */
	uint8_t file;		/* it is a private copy of a file's page */
	uint16_t file_page;
	uint16_t nr_last;
	uint32_t last[FUZZ_LAST];
};

/* A page that a pipe or an io_uring holds: what may come out of it. */
struct fuzz_pin {
	int fd;			/* 0: not in use */
	int16_t page;		/* -1: the process has it no more */
	bool exact;		/* only what was written last */
	bool is_long;		/* the io_uring's: it is that of the process for ever */
	uint32_t arg;		/* of the operation */
	uint16_t nr;
	uint64_t history[FUZZ_HISTORY];
};

struct fuzz_proc {
	bool alive;
	pid_t pid;
	struct fuzz_slot slots[FUZZ_MAX_PAGES];
	struct fuzz_pin pins[FUZZ_MAX_PINS];
};

struct fuzz_wrong {
	bool found;
	unsigned int proc, page, off;
	uint8_t expected, got;
	char when[40];
};

/* Shared by all processes. */
struct fuzz_model {
	struct fuzz_wrong wrong;
	bool exact_pins;
	uint8_t shared[FUZZ_SHARED][PAGE_BYTES];
	struct fuzz_proc procs[FUZZ_MAX_PROCS];
};

extern struct fuzz_model *fuzz;

/* Makes the model, the file that private mappings are of, and the shared pages. */
void fuzz_model_make(void);
int fuzz_file(void);
uint8_t *fuzz_bytes(unsigned int proc, unsigned int page);
uint8_t *fuzz_page(unsigned int page);
/* How many pages from op->page on are as the operation needs them. */
unsigned int fuzz_applies(const struct fuzz_op *op);
/* Notes that the operation has to do with the page. */
void fuzz_note(const struct fuzz_op *op, unsigned int proc, unsigned int page);
/* To be called when a page of the model has got another content. */
void fuzz_changed(unsigned int proc, unsigned int page);
void fuzz_set_zero(unsigned int proc, unsigned int page);
/* What a page holds after it was thrown away: zeros, or what its file has. */
void fuzz_set_fresh(unsigned int proc, unsigned int page);
void fuzz_forget(unsigned int proc, unsigned int page);
/* A page of @proc goes to another place of its arena. */
void fuzz_moved(unsigned int proc, unsigned int from, unsigned int to);
/* @child gets what a fork of @proc leaves it. */
void fuzz_forked(unsigned int proc, unsigned int child);
/* Pins of the page are of another from now on, or of none (-1). */
void fuzz_pins_follow(unsigned int proc, unsigned int page, int to);
/* Can the process itself read the page? */
bool fuzz_readable(const struct fuzz_slot *s);
/* From now on pages may be copied although a pipe holds them. */
void fuzz_pins_may_part(unsigned int proc);
/* The content that a write of this kind gives to a page. */
void fuzz_content(enum fuzz_kind kind, uint32_t arg, unsigned int i, uint8_t *to);
uint64_t fuzz_hash(const void *page);
/*
 * Compares a page of this process, at @at, with the model. A page that was to be freed
 * may be zero, but for the byte at @poked unless that is negative; *@sum gets it.
 */
bool fuzz_verify(unsigned int proc, unsigned int page, const uint8_t *at, int poked,
		 const char *when, uint64_t *sum);

/* ---- operations ----------------------------------------------------------- */

struct fuzz_result {
	int32_t err;		/* 0 or an errno */
	uint32_t pages;		/* that it was about */
	int32_t pid;		/* of a new process; of one that has ended: */
	int32_t ended;		/* 1, with its wait status in err */
	uint64_t sum;		/* what else was seen */
};

/* Carries out an operation on the own memory of process @proc. */
void fuzz_memory(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r);
int fuzz_pin(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r);
void fuzz_unpin(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r);
/* In a child: these are its parent's. */
void fuzz_pins_close(unsigned int proc);
int fuzz_uffd(unsigned int proc, const struct fuzz_op *op, unsigned int *n);
void fuzz_uffd_close(void);

/* The pages that all processes share. False when a byte is wrong, or one is merged. */
void fuzz_shared_make(void);
void fuzz_shared(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r);
bool fuzz_shared_verify(unsigned int proc);
bool fuzz_shared_unmerged(void);

/* Who a process is: its user, and its memory cgroup. Both return 0 or an errno. */
void fuzz_group(const char *dir);
const char *fuzz_group_of(unsigned int number);
int fuzz_join(pid_t pid, unsigned int number);
int fuzz_user(unsigned int number);

/* Carries out an operation that no process of the arena does. */
void fuzz_outside(const struct fuzz_op *op, struct fuzz_result *r);
void fuzz_complain(const char *what);

/* ---- looking at a run (lib/fuzz_look.c) ------------------------------------- */

/* Each operation is to be written to @path, with what came of it. */
void fuzz_trace(const char *path);
/* What the page map has of a page, PROCESS:PAGE, is to be said whenever it changes. */
void fuzz_spy(const char *which);
void fuzz_look(const struct fuzz_op *op, const struct fuzz_result *r);

#endif /* WORKLOADS_FUZZ_H */

// SPDX-License-Identifier: GPL-2.0-only
/*
 * pageops - a small language of things done to anonymous pages.
 *
 * Each argument is one operation, carried out in turn by one or by all of
 * the worker processes on a region of their own, whose expected contents
 * are kept aside. Tests are written in it. One line of JSON tells the
 * counters and the page map wherever "stat" was asked for.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE	67
#endif

#define MAX_PROCS	64
#define REPLACE_WRONG	99	/* a forked child's way to say: wrong byte */

enum { S_DUP = 1, S_UNIQUE, S_WRITE };

static struct {
	unsigned int procs;
	size_t pages;
	uint64_t seed, settle_s;
} opt = { .procs = 2, .pages = 64, .seed = 1, .settle_s = 120 };

/* A worker's own state; a copy in each process. */
static struct {
	unsigned int index;
	char *base;
	size_t first, last;	/* the pages that operations apply to */
	struct content *shadow;
	uint64_t generation;
} me;

enum op {
	OP_MAP, OP_UNMAP, OP_FILL, OP_VERIFY, OP_WRITE, OP_POKE, OP_TOUCH,
	OP_MADVISE, OP_MLOCK, OP_MUNLOCK, OP_MREMAP, OP_MPROTECT, OP_FORK,
	OP_RANGE, OP_MERGE,
};

static char *at(size_t page)
{
	return me.base + page * PAGE_BYTES;
}

static size_t bytes(void)
{
	return (me.last - me.first) * PAGE_BYTES;
}

/* ---- the operations of a worker --------------------------------------- */

static int do_map(void)
{
	me.base = mmap(NULL, opt.pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (me.base == MAP_FAILED)
		return -errno;
	memset(me.shadow, 0, opt.pages * sizeof(*me.shadow));
	me.first = 0;
	me.last = opt.pages;
	return 0;
}

static int do_fill(const char *how)
{
	const char *arg = strchr(how, ':');
	uint64_t number = arg ? strtoull(arg + 1, NULL, 10) : 0;
	char kind[16];
	size_t i;

	snprintf(kind, sizeof(kind), "%.*s",
		 arg ? (int)(arg - how) : (int)sizeof(kind), how);

	me.generation++;
	for (i = me.first; i < me.last; i++) {
		struct content c = { 0 };

		if (!strcmp(kind, "dup"))
			c.key = content_key(opt.seed, S_DUP, i, number);
		else if (!strcmp(kind, "same"))
			c.key = content_key(opt.seed, S_DUP, 1ULL << 40, number);
		else if (!strcmp(kind, "unique"))
			c.key = content_key(opt.seed, S_UNIQUE, me.index,
					    i + (me.generation << 32));
		else if (!strcmp(kind, "near"))
			c = (struct content){ content_key(opt.seed, S_DUP, i, 0),
					      number % PAGE_BYTES, me.index + 1, 0 };
		else if (!strcmp(kind, "nearzero"))
			c = (struct content){ 0, number % PAGE_BYTES, me.index + 1, 0 };
		else if (strcmp(kind, "zero"))
			return -EINVAL;
		me.shadow[i] = c;
		page_fill(at(i), &c);
	}
	return 0;
}

/* Whole new pages, a given per cent of them, all over the range. */
static int do_write(uint64_t percent)
{
	size_t i;

	me.generation++;
	for (i = me.first; i < me.last; i++) {
		if ((i - me.first) * percent / 100 == (i - me.first + 1) * percent / 100)
			continue;
		me.shadow[i] = (struct content){
			content_key(opt.seed, S_WRITE, me.index, i + (me.generation << 32)),
			0, 0, 0 };
		page_fill(at(i), &me.shadow[i]);
	}
	return 0;
}

/* One byte of each page; pages that already differ in one byte stay. */
static int do_poke(uint64_t off)
{
	size_t i;

	for (i = me.first; i < me.last; i++) {
		struct content *c = &me.shadow[i];

		if (c->maybe_zero || (c->flip && c->off != off))
			return -EINVAL;
		c->off = (uint16_t)off;
		c->flip ^= 0xa5;
		at(i)[off] ^= (char)0xa5;
	}
	return 0;
}

static int do_touch(const char *how)
{
	static const struct content zeros;
	struct mismatch unused;
	size_t i;

	for (i = me.first; i < me.last; i++) {
		if (!strcmp(how, "read"))
			(void)*(volatile char *)at(i);
		else if (!strcmp(how, "write"))	/* what is there already */
			*(volatile char *)at(i) = *(volatile char *)at(i);
		else
			return -EINVAL;
		/* A write ends what MADV_FREE left open. */
		if (!strcmp(how, "write") && me.shadow[i].maybe_zero) {
			if (page_check(at(i), &zeros, &unused))
				me.shadow[i] = zeros;
			me.shadow[i].maybe_zero = 0;
		}
	}
	return 0;
}

static int do_madvise(const char *name)
{
	static const struct {
		const char *name;
		int advice;
	} advices[] = {
		{ "dontneed", MADV_DONTNEED }, { "free", MADV_FREE },
		{ "pageout", MADV_PAGEOUT }, { "cold", MADV_COLD },
		{ "mergeable", MADV_MERGEABLE }, { "unmergeable", MADV_UNMERGEABLE },
		{ "populate_read", MADV_POPULATE_READ },
		{ "populate_write", MADV_POPULATE_WRITE },
		{ "willneed", MADV_WILLNEED },
	};
	size_t i, a;

	for (a = 0; a < ARRAY_SIZE(advices); a++)
		if (!strcmp(advices[a].name, name))
			break;
	if (a == ARRAY_SIZE(advices))
		return -EINVAL;
	if (madvise(at(me.first), bytes(), advices[a].advice))
		return -errno;
	for (i = me.first; i < me.last; i++) {
		if (advices[a].advice == MADV_DONTNEED)
			memset(&me.shadow[i], 0, sizeof(me.shadow[i]));
		else if (advices[a].advice == MADV_FREE)
			me.shadow[i].maybe_zero = 1;
	}
	return 0;
}

static int do_mremap(void)
{
	size_t size = opt.pages * PAGE_BYTES;
	char *place, *new;

	place = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (place == MAP_FAILED)
		return -errno;
	new = mremap(me.base, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (new == MAP_FAILED)
		return -errno;
	me.base = new;
	return 0;
}

static int do_mprotect(const char *how)
{
	int prot;

	if (!strcmp(how, "none"))
		prot = PROT_NONE;
	else if (!strcmp(how, "ro"))
		prot = PROT_READ;
	else if (!strcmp(how, "rw"))
		prot = PROT_READ | PROT_WRITE;
	else
		return -EINVAL;
	return mprotect(at(me.first), bytes(), prot) ? -errno : 0;
}

/* A child verifies, with "write" also rewrites everything, verifies, ends. */
static int do_fork(const char *how, struct reply *r)
{
	int status = 0;
	pid_t pid;

	if (*how && strcmp(how, "write"))
		return -EINVAL;
	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		struct content *mine = untracked_alloc(opt.pages * sizeof(*mine));
		uint64_t wrong;

		/* The shadow is shared memory: the parent's must not change. */
		memcpy(mine, me.shadow, opt.pages * sizeof(*mine));
		me.shadow = mine;
		wrong = region_check(me.base, mine, opt.pages, "in a forked child");
		if (*how) {
			me.index += 1000;
			me.first = 0;
			me.last = opt.pages;
			do_write(100);
			wrong += region_check(me.base, mine, opt.pages,
					      "in a forked child that wrote");
		}
		_exit(wrong ? REPLACE_WRONG : 0);
	}
	if (waitpid(pid, &status, 0) != pid)
		return -errno;
	if (!WIFEXITED(status) || (WEXITSTATUS(status) && WEXITSTATUS(status) != REPLACE_WRONG)) {
		fprintf(stderr, "%s: forked child ended with wait status 0x%x\n",
			prog_name, status);
		r->wrong++;
	} else if (WEXITSTATUS(status)) {
		r->wrong++;
	}
	r->wrong += region_check(me.base, me.shadow, opt.pages, "after a fork");
	return 0;
}

static void worker_order(void *ctx __unused, const struct order *o, struct reply *r)
{
	switch ((enum op)o->op) {
	case OP_MAP:
		me.index = o->arg;
		if (!me.shadow)
			me.shadow = untracked_alloc(opt.pages * sizeof(*me.shadow));
		r->status = do_map();
		break;
	case OP_UNMAP:
		r->status = munmap(me.base, opt.pages * PAGE_BYTES) ? -errno : 0;
		break;
	case OP_FILL:
		r->status = do_fill(o->text);
		break;
	case OP_VERIFY:
		r->wrong = region_check(at(me.first), me.shadow + me.first,
					me.last - me.first, "at verify");
		break;
	case OP_WRITE:
		r->status = do_write(o->value);
		break;
	case OP_POKE:
		r->status = do_poke(o->value);
		break;
	case OP_TOUCH:
		r->status = do_touch(o->text);
		break;
	case OP_MADVISE:
		r->status = do_madvise(o->text);
		break;
	case OP_MLOCK:
		r->status = mlock(at(me.first), bytes()) ? -errno : 0;
		break;
	case OP_MUNLOCK:
		r->status = munlock(at(me.first), bytes()) ? -errno : 0;
		break;
	case OP_MREMAP:
		r->status = do_mremap();
		break;
	case OP_MPROTECT:
		r->status = do_mprotect(o->text);
		break;
	case OP_FORK:
		r->status = do_fork(o->text, r);
		break;
	case OP_MERGE:
		r->status = prctl(PR_SET_MEMORY_MERGE, (unsigned long)o->value, 0, 0, 0) ?
			    -errno : 0;
		break;
	case OP_RANGE:
		me.first = o->value >> 32;
		me.last = o->value & 0xffffffff;
		break;
	default:
		r->status = -EINVAL;
	}
	r->value[0] = (uint64_t)(uintptr_t)me.base;
}

/* ---- the parent -------------------------------------------------------- */

static struct worker *workers;
static uint64_t *bases;
static FILE *stats;
static uint64_t total_wrong;

static void take_stat(const char *name)
{
	struct pagestat st = { 0 };
	unsigned int i;
	int err = 0;

	for (i = 0; i < opt.procs && !err; i++)
		if (workers[i].pid && bases[i])
			err = pagestat_add(workers[i].pid, bases[i],
					   bases[i] + opt.pages * PAGE_BYTES, &st);
	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	pagestat_finish(&st);
	fprintf(stats,
		"%s{\"name\": \"%s\", \"present\": %" PRIu64 ", \"swapped\": %" PRIu64
		", \"anon\": %" PRIu64 ", \"zero\": %" PRIu64 ", \"merged_ptes\": %" PRIu64
		", \"merged_pages\": %" PRIu64 ", \"merged_pfn_sum\": %" PRIu64
		", \"mapcount_other\": %" PRIu64 ", \"counters\": ",
		ftell(stats) ? ", " : "", name, st.present, st.swapped, st.anon, st.zero,
		st.merged_ptes, st.merged_pages, st.pfn_sum, st.mapcount_wrong);
	json_counters(stats);
	fputc('}', stats);
	fflush(stats);
	pagestat_free(&st);
}

/* Operations that the parent carries out; false if @name is none of them. */
static bool parent_op(const char *name, const char *arg)
{
	struct condition cond;

	if (!strcmp(name, "settle")) {
		if (!engine_settle(opt.settle_s * 1000))
			die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s",
			    opt.settle_s);
	} else if (!strcmp(name, "stat")) {
		take_stat(arg);
	} else if (!strcmp(name, "set")) {
		char control[64], *value;
		int err;

		snprintf(control, sizeof(control), "%s", arg);
		value = strchr(control, ':');
		if (!value)
			die(EXIT_USAGE, "set: \"%s\" is not CONTROL:VALUE", arg);
		*value++ = 0;
		err = control_write(control, value);
		if (err)
			die(EXIT_ENV, "set %s to %s: %s", control, value, strerror(-err));
	} else if (!strcmp(name, "wait")) {
		if (!condition_parse(arg, &cond))
			die(EXIT_USAGE, "wait: \"%s\" is not NAME OP NUMBER", arg);
		if (!condition_wait(&cond, 1, opt.settle_s * 1000))
			die(EXIT_ENV, "%s did not come within %" PRIu64 " s", arg, opt.settle_s);
	} else if (!strcmp(name, "sleep")) {
		sleep_ms((unsigned int)parse_number("sleep", arg, 0, 3600000));
	} else if (!strcmp(name, "file")) {
		/* file=PATH:TEXT writes TEXT to a file of the guest's kernel. */
		const char *text = strchr(arg, ':');
		char path[256];
		FILE *f;

		if (!text)
			die(EXIT_USAGE, "file: \"%s\" is not PATH:TEXT", arg);
		snprintf(path, sizeof(path), "%.*s", (int)(text - arg), arg);
		f = fopen(path, "we");
		/* memory.reclaim says EAGAIN when it got less than asked for. */
		if (!f || fputs(text + 1, f) < 0 || (fclose(f) && errno != EAGAIN))
			die(EXIT_ENV, "%s: %s", path, strerror(errno));
	} else {
		return false;
	}
	return true;
}

static const struct {
	const char *name;
	enum op op;
	bool number;		/* the argument is one */
} worker_ops[] = {
	{ "map", OP_MAP, false }, { "unmap", OP_UNMAP, false },
	{ "fill", OP_FILL, false }, { "verify", OP_VERIFY, false },
	{ "write", OP_WRITE, true }, { "poke", OP_POKE, true },
	{ "touch", OP_TOUCH, false }, { "madvise", OP_MADVISE, false },
	{ "mlock", OP_MLOCK, false }, { "munlock", OP_MUNLOCK, false },
	{ "mremap", OP_MREMAP, false }, { "mprotect", OP_MPROTECT, false },
	{ "fork", OP_FORK, false }, { "range", OP_RANGE, false },
	{ "merge", OP_MERGE, true },
};

static void worker_op(unsigned int only, const char *name, const char *arg, const char *word)
{
	bool one = only < opt.procs;
	struct order o = { 0 };
	unsigned int i;
	size_t k;

	for (k = 0; k < ARRAY_SIZE(worker_ops); k++)
		if (!strcmp(worker_ops[k].name, name))
			break;
	if (k == ARRAY_SIZE(worker_ops))
		die(EXIT_USAGE, "\"%s\": no such operation", word);
	o.op = worker_ops[k].op;
	if (strlen(arg) >= sizeof(o.text))
		die(EXIT_USAGE, "\"%s\": too long", word);
	strcpy(o.text, arg);
	if (o.op == OP_RANGE) {
		unsigned int first = 0, last = opt.pages;
		char tail;

		if (strcmp(arg, "all") &&
		    (sscanf(arg, "%u-%u%c", &first, &last, &tail) != 2 || first >= last ||
		     last > opt.pages))
			die(EXIT_USAGE, "\"%s\": not all, nor FIRST-END within %zu pages", word, opt.pages);
		o.value = (uint64_t)first << 32 | last;
	} else if (worker_ops[k].number) {
		o.value = parse_number(name, arg, 0, o.op == OP_WRITE ? 100 : PAGE_BYTES - 1);
	}
	for (i = 0; i < opt.procs; i++) {
		if (!workers[i].pid || (one && i != only))
			continue;
		o.arg = i;
		worker_send(&workers[i], &o);
	}
	for (i = 0; i < opt.procs; i++) {
		if (!workers[i].pid || (one && i != only))
			continue;
		worker_receive(&workers[i]);
		total_wrong += workers[i].last.wrong;
		bases[i] = o.op == OP_UNMAP ? 0 : workers[i].last.value[0];
		if (workers[i].last.status == -EINVAL)
			die(EXIT_USAGE, "process %u, %s: invalid argument", i, word);
		if (workers[i].last.status)
			die(EXIT_ENV, "process %u, %s: %s", i, word,
			    strerror(-workers[i].last.status));
	}
}

static void run_op(const char *word)
{
	unsigned int only = MAX_PROCS, i;
	const char *body = word;
	char name[64], *arg;

	if (*word == '@') {
		char index[8];
		size_t n = strcspn(word + 1, ":");

		if (!word[1 + n] || n >= sizeof(index))
			die(EXIT_USAGE, "\"%s\" is not @PROCESS:OPERATION", word);
		memcpy(index, word + 1, n);
		index[n] = 0;
		only = (unsigned int)parse_number("@", index, 0, opt.procs - 1);
		body = word + 2 + n;
	}
	if ((size_t)snprintf(name, sizeof(name), "%s", body) >= sizeof(name) &&
	    strncmp(name, "file=", 5))
		die(EXIT_USAGE, "\"%s\": too long", word);
	arg = strchr(name, '=');
	if (arg)
		*arg++ = 0;
	body = strchr(body, '=') ? strchr(body, '=') + 1 : "";

	if (!strcmp(name, "exit")) {
		for (i = 0; i < opt.procs; i++) {
			if (workers[i].pid && (only == MAX_PROCS || i == only)) {
				worker_end(&workers[i]);
				bases[i] = 0;
			}
		}
	} else if (!parent_op(name, body)) {
		worker_op(only, name, body, word);
	}
}

static void __noreturn usage(int status)
{
	fprintf(status ? stderr : stdout,
		"usage: pageops [--procs N] [--pages N] [--seed S] [--settle-timeout SECONDS] OPERATION...\n"
		"\n"
		"Each of N processes maps a region; then the operations follow, in every process\n"
		"or, as @K:OPERATION, in process K alone:\n"
		"  fill=dup[:N] same[:N] zero unique near[:BYTE] nearzero[:BYTE]\n"
		"  write=PERCENT   poke=BYTE   touch=read|write   verify   range=FIRST-END|all\n"
		"  map  unmap  mlock  munlock  mremap  mprotect=none|ro|rw  fork[=write]  exit\n"
		"  merge=0|1 (the prctl)\n"
		"  madvise=dontneed|free|pageout|cold|mergeable|unmergeable|willneed|\n"
		"          populate_read|populate_write\n"
		"and, in the parent:\n"
		"  settle   stat=NAME   set=CONTROL:VALUE   wait=CONDITION   sleep=MS   file=PATH:TEXT\n"
		"\n"
		"dup: page i is the same in every process; same: all pages are; near: dup but for\n"
		"one byte. Prints one line of JSON with what each stat saw.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 refused by the kernel or time-out.\n");
	exit(status);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "pages", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	char *text;
	unsigned int i;
	int c;

	prog_start("pageops");
	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			opt.procs = parse_number("--procs", optarg, 1, MAX_PROCS - 1);
			break;
		case 'n':
			opt.pages = parse_number("--pages", optarg, 1, 1 << 20);
			break;
		case 's':
			opt.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
			break;
		case 'S':
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
			break;
		case 'h':
			usage(0);
		default:
			usage(EXIT_USAGE);
		}
	}
	if (optind == argc)
		usage(EXIT_USAGE);
	stats = untracked_stream(&text);
	workers = xcalloc(opt.procs, sizeof(*workers));
	bases = xcalloc(opt.procs, sizeof(*bases));
	for (i = 0; i < opt.procs; i++)
		worker_start(workers, i, worker_order, NULL);
	run_op("map");
	/* Once for nothing: what this needs is there before the first that counts. */
	run_op("stat=warmup");
	fflush(stats);
	rewind(stats);
	memset(text, 0, strlen(text));
	for (; optind < argc; optind++)
		run_op(argv[optind]);
	run_op("exit");
	fclose(stats);
	printf("{\"tool\": \"pageops\", \"engine\": \"%s\", \"ok\": %s, \"wrong\": %" PRIu64
	       ", \"stats\": [%s]}\n",
	       engine_name(), total_wrong ? "false" : "true", total_wrong, text);
	free(workers);
	free(bases);
	return total_wrong ? EXIT_WRONG : 0;
}

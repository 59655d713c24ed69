// SPDX-License-Identifier: GPL-2.0-only
/*
 * churn - allocate, fill, rewrite, move, discard and free in a loop under
 * the engine, and verify always. Several processes, each with a number of
 * regions and the contents they should have. One line of JSON.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define REGIONS		8
#define MAX_PROCS	64
#define COMMON_CONTENTS	64	/* contents that all processes draw from */

enum { S_COMMON = 1, S_OWN, S_RANDOM };
enum { DO_ROUND = 1, DO_VERIFY, DO_FREE };
enum {
	A_FILL, A_REWRITE, A_POKE, A_DONTNEED, A_FREE, A_PAGEOUT, A_MOVE, A_UNMAP,
	A_FORK, A_VERIFY, ACTIONS
};

static const char *const action_names[ACTIONS] = {
	"fill", "rewrite", "poke", "dontneed", "free", "pageout", "move", "unmap",
	"fork", "verify",
};

static struct {
	unsigned int procs, mib, pause_ms;
	uint64_t seed, settle_s, rounds, seconds;
	bool wait, madvise;
	size_t pages;		/* of a region */
} opt = {
	.procs = 3, .mib = 4, .pause_ms = 5, .seed = 1, .settle_s = 120,
	.rounds = 100, .wait = true,
};

struct region {
	char *base;		/* NULL: not mapped */
	struct content *shadow;
};

struct process {
	unsigned int index;
	uint64_t random, serial;
	struct region region[REGIONS];
};

/* How often each was done, by all of them. */
static uint64_t *done;

static uint64_t pick(struct process *p, uint64_t below)
{
	p->random = mix64(p->random);
	return p->random % below;
}

/* Of ten pages: five from the common pool, one of zeros, four of its own. */
static struct content some_content(struct process *p)
{
	struct content c = { 0 };
	uint64_t kind = pick(p, 10);

	if (kind < 5)
		c.key = content_key(opt.seed, S_COMMON, pick(p, COMMON_CONTENTS), 0);
	else if (kind > 5)
		c.key = content_key(opt.seed, S_OWN, p->index, p->serial++);
	return c;
}

static char *page_of(const struct region *r, size_t i)
{
	return r->base + i * PAGE_BYTES;
}

static void fill_some(struct process *p, struct region *r, unsigned int percent)
{
	size_t i;

	for (i = 0; i < opt.pages; i++) {
		if (pick(p, 100) >= percent)
			continue;
		r->shadow[i] = some_content(p);
		page_fill(page_of(r, i), &r->shadow[i]);
	}
}

static void poke_some(struct process *p, struct region *r)
{
	size_t i;

	for (i = 0; i < opt.pages; i++) {
		struct content *c = &r->shadow[i];

		if (c->maybe_zero || pick(p, 8))
			continue;
		if (!c->flip)
			c->off = pick(p, PAGE_BYTES);
		c->flip ^= 1 + pick(p, 255);
		/* Written as a whole: the flip may have returned to 0. */
		page_fill(page_of(r, i), c);
	}
}

/* A part of the region, from a page on. */
static void advise_part(struct process *p, struct region *r, int advice)
{
	size_t first = pick(p, opt.pages), n = 1 + pick(p, opt.pages - first), i;

	if (madvise(page_of(r, first), n * PAGE_BYTES, advice)) {
		/* MADV_PAGEOUT and MADV_FREE need swap; without it nothing happens. */
		if (advice == MADV_DONTNEED)
			die(EXIT_ENV, "MADV_DONTNEED: %s", strerror(errno));
		return;
	}
	for (i = first; i < first + n; i++) {
		if (advice == MADV_DONTNEED)
			memset(&r->shadow[i], 0, sizeof(r->shadow[i]));
		else if (advice == MADV_FREE)
			r->shadow[i].maybe_zero = 1;
	}
}

static void move(struct region *r)
{
	size_t size = opt.pages * PAGE_BYTES;
	char *place, *new;

	place = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (place == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	new = mremap(r->base, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (new == MAP_FAILED)
		die(EXIT_ENV, "mremap: %s", strerror(errno));
	r->base = new;
}

/* A child that verifies, writes, verifies, while the parent writes as well. */
static uint64_t fork_and_write(struct process *p, struct region *r)
{
	struct content *mine = untracked_alloc(opt.pages * sizeof(*mine));
	int status = 0;
	pid_t pid;

	/* Before the fork: the parent changes its own while the child reads. */
	memcpy(mine, r->shadow, opt.pages * sizeof(*mine));
	pid = fork();
	if (pid < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (!pid) {
		uint64_t wrong;

		r->shadow = mine;
		wrong = region_check(r->base, mine, opt.pages, "in a forked child");
		p->index += 1000;
		fill_some(p, r, 30);
		wrong += region_check(r->base, mine, opt.pages, "in a forked child that wrote");
		sleep_ms(opt.pause_ms);
		wrong += region_check(r->base, mine, opt.pages, "in a forked child that slept");
		_exit(wrong ? EXIT_WRONG : 0);
	}
	munmap(mine, opt.pages * sizeof(*mine));
	fill_some(p, r, 30);
	if (waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "%s: forked child ended with wait status 0x%x\n",
			prog_name, status);
		return 1;
	}
	return region_check(r->base, r->shadow, opt.pages, "after a fork");
}

static uint64_t one_round(struct process *p)
{
	struct region *r = &p->region[pick(p, REGIONS)];
	unsigned int action = pick(p, ACTIONS);
	bool fresh = false;
	uint64_t wrong = 0;

	if (!r->base) {
		r->base = mmap(NULL, opt.pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (r->base == MAP_FAILED)
			die(EXIT_ENV, "mmap: %s", strerror(errno));
		if (opt.madvise && madvise(r->base, opt.pages * PAGE_BYTES, MADV_MERGEABLE))
			die(EXIT_ENV, "MADV_MERGEABLE: %s", strerror(errno));
		r->shadow = untracked_alloc(opt.pages * sizeof(*r->shadow));
		action = A_FILL;
		fresh = true;
	}
	/*
	 * Never act on what is wrong already: it would be hidden. New memory is
	 * written before it is read, since reading alone maps the zero page.
	 */
	if (!fresh)
		wrong = region_check(r->base, r->shadow, opt.pages, "before a round");
	__atomic_fetch_add(&done[action], 1, __ATOMIC_RELAXED);
	switch (action) {
	case A_FILL:
		fill_some(p, r, 100);
		break;
	case A_REWRITE:
		fill_some(p, r, 20);
		break;
	case A_POKE:
		poke_some(p, r);
		break;
	case A_DONTNEED:
		advise_part(p, r, MADV_DONTNEED);
		break;
	case A_FREE:
		advise_part(p, r, MADV_FREE);
		break;
	case A_PAGEOUT:
		advise_part(p, r, MADV_PAGEOUT);
		break;
	case A_MOVE:
		move(r);
		break;
	case A_UNMAP:
		munmap(r->base, opt.pages * PAGE_BYTES);
		munmap(r->shadow, opt.pages * sizeof(*r->shadow));
		r->base = NULL;
		return wrong;
	case A_FORK:
		wrong += fork_and_write(p, r);
		break;
	}
	return wrong + region_check(r->base, r->shadow, opt.pages, "after a round");
}

static uint64_t verify_all(struct process *p)
{
	uint64_t wrong = 0;
	unsigned int i;

	for (i = 0; i < REGIONS; i++)
		if (p->region[i].base)
			wrong += region_check(p->region[i].base, p->region[i].shadow,
					      opt.pages, "at the end");
	return wrong;
}

static void process_order(void *ctx, const struct order *o, struct reply *r)
{
	struct process *p = ctx;
	uint64_t i, end;

	switch (o->op) {
	case DO_ROUND:
		p->index = o->arg;
		p->random = content_key(opt.seed, S_RANDOM, p->index, 0);
		end = now_ms() + opt.seconds * 1000;
		for (i = 0; opt.seconds ? now_ms() < end : i < opt.rounds; i++) {
			r->wrong += one_round(p);
			if (r->wrong)
				break;
			if (opt.pause_ms)
				sleep_ms(opt.pause_ms);
		}
		r->value[0] = i;
		break;
	case DO_VERIFY:
		r->wrong = verify_all(p);
		break;
	case DO_FREE:
		for (i = 0; i < REGIONS; i++)
			if (p->region[i].base)
				munmap(p->region[i].base, opt.pages * PAGE_BYTES);
		break;
	default:
		r->status = -EINVAL;
	}
}

static void __noreturn usage(void)
{
	printf("usage: churn [options]\n"
		"\n"
		"Processes that allocate, fill, rewrite, move, discard, page out, fork and free at\n"
		"random under the engine and verify every byte before and after each step.\n"
		"\n"
		"  --procs N           processes (3)\n"
		"  --mib M             MiB in each, at most (4)\n"
		"  --rounds R          steps of each process (100)\n"
		"  --seconds S         go on for this long instead of --rounds\n"
		"  --pause-ms MS       sleep between steps, which lets the engine run (5)\n"
		"  --seed S            of contents and steps (1)\n"
		"  --madvise           MADV_MERGEABLE, as stock KSM needs\n"
		"  --no-wait           do not wait for the engine at the end\n"
		"  --settle-timeout S  seconds for that wait (120)\n"
		"\n"
		"Under time travel only sleeping makes time pass: --seconds needs --pause-ms there.\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 no settling or no memory.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "mib", required_argument, NULL, 'm' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "seconds", required_argument, NULL, 't' },
		{ "pause-ms", required_argument, NULL, 'P' },
		{ "seed", required_argument, NULL, 's' },
		{ "madvise", no_argument, NULL, 'M' },
		{ "no-wait", no_argument, NULL, 'W' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			opt.procs = parse_number("--procs", optarg, 1, MAX_PROCS);
			break;
		case 'm':
			opt.mib = parse_number("--mib", optarg, 1, 1024);
			break;
		case 'r':
			opt.rounds = parse_number("--rounds", optarg, 1, UINT32_MAX);
			break;
		case 't':
			opt.seconds = parse_number("--seconds", optarg, 1, 1000000);
			break;
		case 'P':
			opt.pause_ms = parse_number("--pause-ms", optarg, 0, 60000);
			break;
		case 's':
			opt.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
			break;
		case 'M':
			opt.madvise = true;
			break;
		case 'W':
			opt.wait = false;
			break;
		case 'S':
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	opt.pages = opt.mib * PAGES_PER_MIB / REGIONS;
}

static uint64_t order_all(struct worker *workers, unsigned int op)
{
	uint64_t wrong = 0;
	unsigned int i;

	for (i = 0; i < opt.procs; i++) {
		struct order o = { .op = op, .arg = i };

		worker_send(&workers[i], &o);
	}
	for (i = 0; i < opt.procs; i++) {
		worker_receive(&workers[i]);
		wrong += workers[i].last.wrong;
	}
	return wrong;
}

static bool settle(void)
{
	if (!opt.wait || engine_settle(opt.settle_s * 1000))
		return true;
	fprintf(stderr, "%s: the engine did not settle within %" PRIu64 " s\n",
		prog_name, opt.settle_s);
	return false;
}

int main(int argc, char **argv)
{
	uint64_t wrong, rounds = 0, start;
	struct process state = { 0 };
	struct worker *workers;
	bool settled;
	unsigned int i;

	prog_start("churn");
	parse(argc, argv);
	workers = xcalloc(opt.procs, sizeof(*workers));
	done = untracked_alloc(ACTIONS * sizeof(*done));
	start = now_ms();
	printf("{\"tool\": \"churn\", \"engine\": \"%s\", \"before\": ", engine_name());
	json_counters(stdout);
	for (i = 0; i < opt.procs; i++)
		worker_start(workers, i, process_order, &state);
	wrong = order_all(workers, DO_ROUND);
	for (i = 0; i < opt.procs; i++)
		rounds += workers[i].last.value[0];
	printf(", \"churned\": ");
	json_counters(stdout);
	settled = settle();
	wrong += order_all(workers, DO_VERIFY);
	printf(", \"settled_counters\": ");
	json_counters(stdout);
	order_all(workers, DO_FREE);
	for (i = 0; i < opt.procs; i++)
		worker_end(&workers[i]);
	settled &= settle();
	printf(", \"after\": ");
	json_counters(stdout);
	printf(", \"steps\": {");
	for (i = 0; i < ACTIONS; i++)
		printf("%s\"%s\": %" PRIu64, i ? ", " : "", action_names[i], done[i]);
	printf("}, \"ok\": %s, \"settled\": %s, \"procs\": %u, \"rounds\": %" PRIu64
	       ", \"wrong\": %" PRIu64 ", \"ms\": %" PRIu64 "}\n",
	       !wrong && settled ? "true" : "false", settled ? "true" : "false",
	       opt.procs, rounds, wrong, now_ms() - start);
	free(workers);
	if (wrong)
		return EXIT_WRONG;
	return settled ? 0 : EXIT_ENV;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * forkdup - a tree of forks over merged pages.
 *
 * The root fills a region in which every content occurs twice, and forks;
 * each process forks again down to a depth. In each phase every process
 * rewrites a part of its pages, some with contents that its siblings write
 * as well and some with contents of its own; the engine settles; every
 * process verifies every byte. One line of JSON tells the counters.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define MAX_PHASES	16
#define MAX_NODES	512

enum { S_FIRST = 1, S_COMMON, S_OWN };

static struct {
	unsigned int depth, fanout, mib, phases;
	uint64_t seed, settle_s;
	bool wait, madvise;
	size_t pages;
} opt = {
	.depth = 2, .fanout = 2, .mib = 2, .phases = 2, .seed = 1,
	.settle_s = 120, .wait = true,
};

/* What a process reports at the end of a part of a phase. */
struct report {
	int32_t node;
	uint32_t phase;
	uint64_t wrong;
};

struct gate {
	int fd[2];	/* the root closes [1]: everybody may go on */
};

static struct gate rewrite_gate[MAX_PHASES], verify_gate[MAX_PHASES], exit_gate;
static int report_fd[2];
static char *base;
static struct content *shadow;

static void gate_open(struct gate *g)
{
	close(g->fd[1]);
}

static void gate_wait(const struct gate *g)
{
	char c;

	while (read(g->fd[0], &c, 1) < 0 && errno == EINTR)
		;
}

static void for_each_gate(void (*fn)(struct gate *))
{
	unsigned int i;

	for (i = 0; i < opt.phases; i++) {
		fn(&rewrite_gate[i]);
		fn(&verify_gate[i]);
	}
	fn(&exit_gate);
}

static void gate_make(struct gate *g)
{
	if (pipe(g->fd))
		die(EXIT_ENV, "pipe: %s", strerror(errno));
}

static void report(int node, unsigned int phase, uint64_t wrong)
{
	struct report r = { node, phase, wrong };

	if (write(report_fd[1], &r, sizeof(r)) != (ssize_t)sizeof(r))
		_exit(EXIT_ENV);
}

/* Every third page: a third of these alike in all siblings, the others not. */
static void rewrite(unsigned int node, unsigned int phase)
{
	size_t i;

	for (i = phase % 3; i < opt.pages; i += 3) {
		struct content c = { 0 };

		if (i / 3 % 3 == 0)
			c.key = content_key(opt.seed, S_COMMON, phase, i);
		else if (i / 3 % 3 == 1)
			c.key = content_key(opt.seed, S_OWN, node, i + ((uint64_t)phase << 32));
		else if (shadow[i].flip)
			continue;
		else
			c = (struct content){ shadow[i].key, i % PAGE_BYTES,
					      node % 255 + 1, 0 };
		if (c.flip)
			base[i * PAGE_BYTES + c.off] ^= (char)c.flip;
		else
			page_fill(base + i * PAGE_BYTES, &c);
		shadow[i] = c;
	}
}

static void phases_of(unsigned int node)
{
	unsigned int phase;

	for (phase = 0; phase < opt.phases; phase++) {
		gate_wait(&rewrite_gate[phase]);
		rewrite(node, phase);
		report((int)node, phase, region_check(base, shadow, opt.pages, "after rewriting"));
		gate_wait(&verify_gate[phase]);
		report((int)node, phase, region_check(base, shadow, opt.pages, "after settling"));
	}
	gate_wait(&exit_gate);
}

/* Each node's own copy of the bookkeeping: it lies in shared memory. */
static void shadow_unshare(void)
{
	struct content *mine = untracked_alloc(opt.pages * sizeof(*mine));

	memcpy(mine, shadow, opt.pages * sizeof(*mine));
	shadow = mine;
}

static void close_gate_end(struct gate *g)
{
	close(g->fd[1]);
}

/*
 * Makes the children of a node, numbered as in a heap. Each makes its own,
 * reports, and goes through the phases. Returns in the parent.
 */
static void grow(unsigned int node, unsigned int level, pid_t *child)
{
	unsigned int i;

	for (i = 0; i < opt.fanout && level < opt.depth; i++) {
		unsigned int number = node * opt.fanout + i + 1, j;
		pid_t pid[64];
		int status, bad = 0;

		fflush(NULL);
		child[i] = fork();
		if (child[i] < 0)
			die(EXIT_ENV, "fork: %s", strerror(errno));
		if (child[i])
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!level)
			for_each_gate(close_gate_end);
		shadow_unshare();
		/* Before the forks below, so that grandchildren inherit this. */
		base[(number % opt.pages) * PAGE_BYTES] ^= 0x11;
		if (shadow[number % opt.pages].flip)
			_exit(EXIT_ENV);
		shadow[number % opt.pages].flip = 0x11;
		grow(number, level + 1, pid);
		report((int)number, 0, region_check(base, shadow, opt.pages, "after the fork"));
		phases_of(number);
		for (j = 0; j < opt.fanout && level + 1 < opt.depth; j++)
			if (waitpid(pid[j], &status, 0) != pid[j] || status)
				bad = EXIT_ENV;
		_exit(bad);
	}
}

static uint64_t collect(unsigned int nodes)
{
	struct report r;
	uint64_t wrong = 0;
	unsigned int i;

	for (i = 0; i < nodes; i++) {
		if (read(report_fd[0], &r, sizeof(r)) != (ssize_t)sizeof(r))
			die(EXIT_WRONG, "a process of the tree has gone");
		wrong += r.wrong;
	}
	return wrong;
}

static FILE *stages;

static void stage(const char *name, unsigned int phase, uint64_t wrong)
{
	fprintf(stages,
		"%s{\"name\": \"%s\", \"phase\": %u, \"wrong\": %" PRIu64 ", \"counters\": ",
		ftell(stages) ? ", " : "", name, phase, wrong);
	json_counters(stages);
	fputc('}', stages);
	fflush(stages);
}

static bool settle(void)
{
	if (!opt.wait || engine_settle(opt.settle_s * 1000))
		return true;
	fprintf(stderr, "%s: the engine did not settle within %" PRIu64 " s\n",
		prog_name, opt.settle_s);
	return false;
}

static void root_fill(void)
{
	size_t i;

	base = mmap(NULL, opt.pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		die(EXIT_ENV, "no memory: %s", strerror(errno));
	if (opt.madvise && madvise(base, opt.pages * PAGE_BYTES, MADV_MERGEABLE))
		die(EXIT_ENV, "MADV_MERGEABLE: %s", strerror(errno));
	shadow = untracked_alloc(opt.pages * sizeof(*shadow));
	for (i = 0; i < opt.pages; i++)
		shadow[i].key = content_key(opt.seed, S_FIRST, i % (opt.pages / 2), 0);
	region_fill(base, shadow, opt.pages);
}

static void __noreturn usage(void)
{
	printf("usage: forkdup [options]\n"
		"\n"
		"A tree of forks over merged pages; every process rewrites some of its pages with\n"
		"contents that others write as well or that are its own, and verifies every byte.\n"
		"\n"
		"  --depth D           levels below the root (2)\n"
		"  --fanout F          children of each process (2)\n"
		"  --mib M             MiB in each process (2)\n"
		"  --phases P          rounds of rewriting, settling, verifying (2)\n"
		"  --seed S            of the contents (1)\n"
		"  --madvise           MADV_MERGEABLE, as stock KSM needs\n"
		"  --no-wait           do not wait for the engine\n"
		"  --settle-timeout S  seconds for each wait (120)\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 no settling or no memory.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "depth", required_argument, NULL, 'd' },
		{ "fanout", required_argument, NULL, 'f' },
		{ "mib", required_argument, NULL, 'm' },
		{ "phases", required_argument, NULL, 'p' },
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
		case 'd':
			opt.depth = parse_number("--depth", optarg, 1, 8);
			break;
		case 'f':
			opt.fanout = parse_number("--fanout", optarg, 1, 64);
			break;
		case 'm':
			opt.mib = parse_number("--mib", optarg, 1, 1024);
			break;
		case 'p':
			opt.phases = parse_number("--phases", optarg, 0, MAX_PHASES);
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
	/* Whole pages of the root alone are marked by number: one page a node. */
	opt.pages = opt.mib * PAGES_PER_MIB;
}

static unsigned int count_nodes(void)
{
	uint64_t nodes = 0, level = 1;
	unsigned int i;

	for (i = 0; i < opt.depth; i++) {
		level *= opt.fanout;
		nodes += level;
		if (nodes > MAX_NODES || nodes >= opt.pages)
			die(EXIT_USAGE, "more than %zu processes",
			    opt.pages < MAX_NODES ? opt.pages : MAX_NODES);
	}
	return nodes;
}

int main(int argc, char **argv)
{
	unsigned int nodes, phase, i;
	uint64_t wrong, total = 0;
	bool settled = true;
	char *text;
	pid_t child[64];
	int status;

	prog_start("forkdup");
	parse(argc, argv);
	nodes = count_nodes();
	stages = untracked_stream(&text);
	if (pipe(report_fd))
		die(EXIT_ENV, "pipe: %s", strerror(errno));
	for_each_gate(gate_make);

	settled &= settle();
	stage("start", 0, 0);
	root_fill();
	settled &= settle();
	wrong = region_check(base, shadow, opt.pages, "before the fork");
	stage("merged", 0, wrong);
	total += wrong;

	grow(0, 0, child);
	wrong = collect(nodes);
	stage("forked", 0, wrong);
	total += wrong;

	for (phase = 0; phase < opt.phases; phase++) {
		gate_open(&rewrite_gate[phase]);
		wrong = collect(nodes);
		stage("rewritten", phase, wrong);
		total += wrong;
		settled &= settle();
		gate_open(&verify_gate[phase]);
		wrong = collect(nodes) + region_check(base, shadow, opt.pages, "in the root");
		stage("settled", phase, wrong);
		total += wrong;
	}
	gate_open(&exit_gate);
	for (i = 0; i < opt.fanout; i++)
		if (waitpid(child[i], &status, 0) != child[i] || status)
			die(EXIT_WRONG, "process %d ended with wait status 0x%x", child[i], status);
	wrong = region_check(base, shadow, opt.pages, "after the children's exit");
	total += wrong;
	munmap(base, opt.pages * PAGE_BYTES);
	settled &= settle();
	stage("exited", opt.phases, wrong);

	fclose(stages);
	printf("{\"tool\": \"forkdup\", \"engine\": \"%s\", \"ok\": %s, \"settled\": %s"
	       ", \"processes\": %u, \"pages\": %zu, \"wrong\": %" PRIu64
	       ", \"stages\": [%s]}\n",
	       engine_name(), !total && settled ? "true" : "false", settled ? "true" : "false",
	       nodes + 1, opt.pages, total, text);
	if (total)
		return EXIT_WRONG;
	return settled ? 0 : EXIT_ENV;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * spy - can a process learn by the time of its writes what another has in memory?
 *
 * A victim fills pages. A spy fills twice as many: every second one is a right
 * guess of a page of the victim's, and the others are like no page there is. When
 * the engine has settled, the spy writes to each of them, in random order, and takes
 * the time. A page that was merged has to be copied first, and takes longer.
 *
 * The victim and the spy may be of different users, and in different memory cgroups.
 * Prints the times of right and wrong guesses as one line of JSON: what can be told
 * from them is for the reader to say. They mean something in real time only.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <x86intrin.h>

#include "common.h"

enum { VICTIM, SPY, NR_ROLES };
enum { DO_JOIN = 1, DO_FILL, DO_WRITE, DO_VERIFY };
enum { SECRET = 1, OTHER };

static struct {
	uint64_t pages, settle_s, rounds;
	unsigned int user[NR_ROLES];
	const char *group[NR_ROLES];
} opt = { .pages = 256, .settle_s = 120, .rounds = 1 };

/* What a process has; a copy in each. */
static struct {
	char *base;
	size_t pages;
	struct content *shadow;
} me;

/* Cycles by page of the spy's, and the order in which it writes. */
static uint64_t *cycles;
static uint32_t *turn;

static bool right_guess(size_t i)
{
	return i % 2;
}

static int join(unsigned int role)
{
	char path[256];
	int fd;

	if (opt.group[role]) {
		snprintf(path, sizeof(path), "%s/cgroup.procs", opt.group[role]);
		fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, "0", 1) != 1)
			return -errno;
		close(fd);
	}
	if (opt.user[role] &&
	    (setresgid(opt.user[role], opt.user[role], opt.user[role]) ||
	     setresuid(opt.user[role], opt.user[role], opt.user[role]) ||
	     /* It has not seen anything yet that it may not see. */
	     prctl(PR_SET_DUMPABLE, 1)))
		return -errno;
	return 0;
}

static int fill(unsigned int role, uint64_t round)
{
	size_t i;

	me.pages = role == SPY ? 2 * opt.pages : opt.pages;
	me.base = mmap(NULL, me.pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (me.base == MAP_FAILED)
		return -errno;
	madvise(me.base, me.pages * PAGE_BYTES, MADV_MERGEABLE);
	me.shadow = untracked_alloc(me.pages * sizeof(*me.shadow));
	for (i = 0; i < me.pages; i++)
		me.shadow[i].key = role == VICTIM ? content_key(1, SECRET, i, round) :
				   right_guess(i) ? content_key(1, SECRET, i / 2, round) :
						    content_key(1, OTHER, i, round);
	region_fill(me.base, me.shadow, me.pages);
	return 0;
}

static void take_times(void)
{
	uint64_t begin;
	size_t i, page;

	for (i = 0; i < me.pages; i++) {
		unsigned int unused;

		page = turn[i];
		_mm_lfence();
		begin = __rdtsc();
		((volatile char *)me.base)[page * PAGE_BYTES] ^= 0x55;
		cycles[page] = __rdtscp(&unused) - begin;
		me.shadow[page].flip = 0x55;
	}
}

static void serve(void *ctx __unused, const struct order *o, struct reply *r)
{
	switch (o->op) {
	case DO_JOIN:
		r->status = join(o->arg);
		break;
	case DO_FILL:
		r->status = fill(o->arg, o->value);
		break;
	case DO_WRITE:
		take_times();
		break;
	case DO_VERIFY:
		r->wrong = region_check(me.base, me.shadow, me.pages, "at the end");
		munmap(me.base, me.pages * PAGE_BYTES);
		munmap(me.shadow, me.pages * sizeof(*me.shadow));
		break;
	}
	r->value[0] = (uint64_t)(uintptr_t)me.base;
}

static struct worker workers[NR_ROLES];

static void order(unsigned int role, uint32_t op, uint64_t value)
{
	const struct order o = { .op = op, .arg = role, .value = value };

	worker_send(&workers[role], &o);
	worker_receive(&workers[role]);
	if (workers[role].last.status)
		die(EXIT_ENV, "%s: order %u: %s", role == SPY ? "spy" : "victim", op,
		    strerror(-workers[role].last.status));
}

static void shuffle(uint64_t round)
{
	uint32_t n = 2 * opt.pages, i, j, t;

	for (i = 0; i < n; i++)
		turn[i] = i;
	for (i = n - 1; i; i--) {
		j = mix64(round << 32 | i) % (i + 1);
		t = turn[i];
		turn[i] = turn[j];
		turn[j] = t;
	}
}

static uint64_t merged_of_spy(void)
{
	uint64_t start = workers[SPY].last.value[0];
	struct pagestat st = { 0 };
	uint64_t merged;
	int err = pagestat_add(workers[SPY].pid, start, start + 2 * opt.pages * PAGE_BYTES, &st);

	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	merged = st.merged_ptes;
	pagestat_free(&st);
	return merged;
}

static void print_times(FILE *out, bool right)
{
	size_t i;

	for (i = right; i < 2 * opt.pages; i += 2)
		fprintf(out, "%s%" PRIu64, ftell(out) ? ", " : "", cycles[i]);
	fflush(out);
}

static void __noreturn usage(void)
{
	printf("usage: spy [options]\n"
		"\n"
		"Takes the time of writes to guesses, right and wrong, of what a victim has.\n"
		"\n"
		"  --pages N            pages of the victim's (256)\n"
		"  --rounds N           how often, each time with other contents (1)\n"
		"  --victim UID[:DIR]   user of the victim, and memory cgroup\n"
		"  --spy UID[:DIR]      the same of the spy\n"
		"  --settle-timeout S   seconds for each wait (120)\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

static void parse_role(const char *what, char *arg, unsigned int role)
{
	char *dir = strchr(arg, ':');

	if (dir) {
		*dir = 0;
		opt.group[role] = dir + 1;
	}
	opt.user[role] = parse_number(what, arg, 0, 1 << 30);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pages", required_argument, NULL, 'n' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "victim", required_argument, NULL, 'v' },
		{ "spy", required_argument, NULL, 's' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'n')
			opt.pages = parse_number("--pages", optarg, 1, 1 << 14);
		else if (c == 'r')
			opt.rounds = parse_number("--rounds", optarg, 1, 1000);
		else if (c == 'v')
			parse_role("--victim", optarg, VICTIM);
		else if (c == 's')
			parse_role("--spy", optarg, SPY);
		else if (c == 'S')
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	no_more_arguments(optind, argc, argv);
}

int main(int argc, char **argv)
{
	uint64_t merged = 0, wrong = 0, round;
	char *right_text, *wrong_text;
	FILE *right, *other;
	unsigned int i;

	prog_start("spy");
	parse(argc, argv);
	cycles = untracked_alloc(2 * opt.pages * sizeof(*cycles));
	turn = untracked_alloc(2 * opt.pages * sizeof(*turn));
	right = untracked_stream(&right_text);
	other = untracked_stream(&wrong_text);
	for (i = 0; i < NR_ROLES; i++) {
		worker_start(workers, i, serve, NULL);
		order(i, DO_JOIN, 0);
	}
	for (round = 0; round < opt.rounds; round++) {
		shuffle(round);
		for (i = 0; i < NR_ROLES; i++)
			order(i, DO_FILL, round);
		if (!engine_settle(opt.settle_s * 1000))
			die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s", opt.settle_s);
		merged += merged_of_spy();
		order(SPY, DO_WRITE, 0);
		print_times(right, true);
		print_times(other, false);
		for (i = 0; i < NR_ROLES; i++) {
			order(i, DO_VERIFY, 0);
			wrong += workers[i].last.wrong;
		}
	}
	for (i = 0; i < NR_ROLES; i++)
		worker_end(&workers[i]);
	printf("{\"tool\": \"spy\", \"engine\": \"%s\", \"ok\": %s, \"merged_ptes\": %" PRIu64
	       ", \"right\": [%s], \"wrong\": [%s]}\n", engine_name(), wrong ? "false" : "true",
	       merged, right_text, wrong_text);
	return wrong ? EXIT_WRONG : 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmrace - address spaces that come and go while merged pages are taken apart.
 *
 * Workers hold the same data, merged. Then they are killed, fork, exit, fault
 * pages in or have them migrated, while somebody writes 2 to the engine's run,
 * or advises MADV_UNMERGEABLE. Whoever is left verifies every byte. One line of
 * JSON tells how often the two really met.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define MAX_PROCS	16

enum { DO_FILL = 1, DO_VERIFY, DO_FORKS, DO_UNMERGE, DO_LOCK };

static struct {
	unsigned int procs, rounds;
	size_t pages;
	uint64_t settle_s;
	const char *group;
} opt = { .procs = 4, .rounds = 10, .pages = 1024, .settle_s = 120 };

/* A worker's own. */
static char *region;
static struct content *shadow;

static struct worker *workers;
static uint64_t wrong;

/* Of the process that unmerges, for all to see. */
static volatile struct {
	int begun, ended, err;
	uint64_t usecs;
} *unmerger;

static size_t bytes(void)
{
	return opt.pages * PAGE_BYTES;
}

/* ---- what a worker does ---------------------------------------------------- */

static int do_fill(uint32_t sort)
{
	size_t i;

	if (!region) {
		region = mmap(NULL, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0);
		if (region == MAP_FAILED)
			return -errno;
		shadow = untracked_alloc(opt.pages * sizeof(*shadow));
	}
	/* It may have been unmergeable before. */
	if (madvise(region, bytes(), MADV_MERGEABLE))
		return -errno;
	for (i = 0; i < opt.pages; i++)
		shadow[i].key = content_key(1, i, sort, 0);
	region_fill(region, shadow, opt.pages);
	return 0;
}

/* Children that look at every page, and end. */
static uint64_t do_forks(unsigned int n)
{
	uint64_t bad = 0;
	int status;

	while (n--) {
		pid_t pid = fork();

		if (pid < 0)
			continue;	/* no memory for it just now */
		if (!pid)
			_exit(region_check(region, shadow, opt.pages, "in a child") ? 1 : 0);
		bad += waitpid(pid, &status, 0) != pid || status;
	}
	return bad;
}

/* An area that can never be populated, one that is, and all of it locked. */
static int do_lock(void)
{
	void *none = mmap(NULL, bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (none == MAP_FAILED || mlockall(MCL_CURRENT | MCL_FUTURE))
		return -errno;
	none = mmap(NULL, bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return none == MAP_FAILED ? -errno : 0;
}

static void serve(void *ctx __unused, const struct order *o, struct reply *r)
{
	switch (o->op) {
	case DO_FILL:
		r->status = do_fill(o->arg);
		break;
	case DO_VERIFY:
		r->wrong = region_check(region, shadow, opt.pages, "at verify");
		break;
	case DO_FORKS:
		r->wrong = do_forks(o->arg);
		break;
	case DO_UNMERGE:
		r->status = madvise(region, bytes(), MADV_UNMERGEABLE) ? -errno : 0;
		break;
	case DO_LOCK:
		r->status = do_lock();
		break;
	default:
		r->status = -EINVAL;
	}
	r->value[0] = (uint64_t)(uintptr_t)region;
}

/* ---- what the first process does ------------------------------------------- */

static void some(unsigned int first, unsigned int end, uint32_t op, uint32_t arg)
{
	struct order o = { .op = op, .arg = arg };
	unsigned int i;

	wrong += worker_all(workers + first, end - first, &o);
	for (i = first; i < end; i++)
		if (workers[i].pid && workers[i].last.status)
			die(EXIT_ENV, "process %d, order %u: %s", workers[i].pid, op,
			    strerror(-workers[i].last.status));
}

static void all(uint32_t op)
{
	some(0, opt.procs, op, 0);
}

static void settle(void)
{
	char none[1] = "";

	script_op("settle", none, opt.settle_s);
}

static void set_run(const char *value)
{
	int err = control_write("run", value);

	if (err)
		die(EXIT_ENV, "run=%s: %s", value, strerror(-err));
}

static uint64_t merged_ptes(unsigned int i)
{
	uint64_t base = workers[i].last.value[0];
	struct pagestat st = { 0 };
	uint64_t merged;
	int err = pagestat_add(workers[i].pid, base, base + bytes(), &st);

	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	merged = st.merged_ptes;
	pagestat_free(&st);
	return merged;
}

/*
 * Fills, and sees to it that there is something to take apart. A page that is looked
 * at before it is filled again counts as one that changes, and waits the longer each
 * time, for minutes at last: so nothing is looked at until all is written.
 */
static void fill_and_merge(unsigned int first, unsigned int end, uint32_t sort)
{
	unsigned int i;

	set_run("0");
	some(first, end, DO_FILL, sort);
	set_run("1");
	settle();
	for (i = first; i < end; i++)
		if (merged_ptes(i) < opt.pages * 9 / 10)
			die(EXIT_ENV, "process %u has only %" PRIu64 " of %zu pages merged", i,
			    merged_ptes(i), opt.pages);
}

static void start_workers(void)
{
	unsigned int i;

	for (i = 0; i < opt.procs; i++)
		worker_start(workers, i, serve, NULL);
}

static void end_workers(void)
{
	unsigned int i;

	for (i = 0; i < opt.procs; i++)
		worker_end(&workers[i]);
}

/* Another process writes 2 to run. It says when it begins, and how it ended. */
static pid_t start_unmerging(void)
{
	uint64_t start;
	pid_t pid;

	unmerger->begun = 0;
	unmerger->ended = 0;
	pid = fork();
	if (pid < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (pid)
		return pid;
	start = now_us();
	unmerger->begun = 1;
	unmerger->err = -control_write("run", "2");
	unmerger->usecs = now_us() - start;
	unmerger->ended = 1;
	_exit(0);
}

static void await_unmerging(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || status)
		die(EXIT_WRONG, "the process that unmerges ended badly: 0x%x", status);
	if (unmerger->err)
		die(EXIT_WRONG, "run=2: %s", strerror(unmerger->err));
}

static void await_begin(void)
{
	while (!unmerger->begun)
		sleep_ms(1);
}

/* Nothing that was merged is left, in no process and in no record. */
static void expect_nothing_merged(void)
{
	static const char *const gauges[] = { "pages_shared", "pages_sharing", "stable_nodes" };
	unsigned int i;
	int64_t value;

	for (i = 0; i < opt.procs; i++)
		if (workers[i].pid && merged_ptes(i))
			die(EXIT_WRONG, "process %u has %" PRIu64 " merged pages", i, merged_ptes(i));
	for (i = 0; i < ARRAY_SIZE(gauges); i++)
		if (counter_read(gauges[i], &value) && value)
			die(EXIT_WRONG, "%s is %" PRId64, gauges[i], value);
}

/* ---- the scenarios: each returns how often what it is about came about -------- */

/* A process is killed while its pages are unmerged: its last user is then the engine. */
static uint64_t race_kill(void)
{
	uint64_t usecs = 20000, hits = 0, random = 1;
	unsigned int round;

	for (round = 0; round < opt.rounds; round++) {
		unsigned int victim;
		uint64_t part;
		pid_t pid;

		start_workers();
		fill_and_merge(0, opt.procs, 0);
		random = mix64(random);
		part = random % 1000;
		victim = (unsigned int)(part * opt.procs / 1000);
		pid = start_unmerging();
		await_begin();
		usleep((useconds_t)(usecs * part / 1000));
		kill(workers[victim].pid, SIGKILL);
		hits += !unmerger->ended;
		waitpid(workers[victim].pid, NULL, 0);
		workers[victim].pid = 0;
		await_unmerging(pid);
		usecs = unmerger->usecs;
		all(DO_VERIFY);
		end_workers();
		set_run("1");
	}
	return hits;
}

/* Other processes end while the engine unmerges: nobody waits for it. */
static uint64_t race_exits(void)
{
	uint64_t exits = 0;
	pid_t pid;

	start_workers();
	fill_and_merge(0, opt.procs, 0);
	pid = start_unmerging();
	await_begin();
	while (!unmerger->ended) {
		pid_t child = fork();

		if (child < 0)
			die(EXIT_ENV, "fork: %s", strerror(errno));
		if (!child)
			_exit(0);
		waitpid(child, NULL, 0);
		exits += !unmerger->ended;
	}
	await_unmerging(pid);
	all(DO_VERIFY);
	end_workers();
	set_run("1");
	return exits;
}

/* Everything is locked, also what is to come, and an area cannot be populated. */
static uint64_t race_locked(void)
{
	uint64_t ended = 0;
	unsigned int round;

	for (round = 0; round < opt.rounds; round++) {
		struct order unmerge = { .op = DO_UNMERGE };

		start_workers();
		all(DO_LOCK);
		fill_and_merge(0, opt.procs, 0);
		worker_send(&workers[0], &unmerge);
		worker_receive(&workers[0]);
		if (workers[0].last.status || merged_ptes(0))
			die(EXIT_WRONG, "MADV_UNMERGEABLE left merged pages: status %d",
			    workers[0].last.status);
		all(DO_VERIFY);
		kill(workers[1].pid, SIGKILL);
		waitpid(workers[1].pid, NULL, 0);
		workers[1].pid = 0;
		end_workers();
		ended += opt.procs;
	}
	return ended;
}

/* Children come into being, with merged pages, while all are unmerged. */
static uint64_t race_forks(void)
{
	struct order forks = { .op = DO_FORKS, .arg = 6 };
	uint64_t hits = 0;
	unsigned int round, i;

	start_workers();
	for (round = 0; round < opt.rounds; round++) {
		pid_t pid;

		fill_and_merge(0, opt.procs, 0);
		pid = start_unmerging();
		await_begin();
		for (i = 0; i < opt.procs; i++)
			worker_send(&workers[i], &forks);
		hits += !unmerger->ended;
		for (i = 0; i < opt.procs; i++) {
			worker_receive(&workers[i]);
			wrong += workers[i].last.wrong;
		}
		await_unmerging(pid);
		expect_nothing_merged();
		all(DO_VERIFY);
		set_run("1");
	}
	end_workers();
	return hits;
}

static uint64_t in_memory(void)
{
	struct pagestat st = { 0 };
	uint64_t present;
	unsigned int i;

	for (i = 0; i < opt.procs; i++) {
		uint64_t base = workers[i].last.value[0];

		if (pagestat_add(workers[i].pid, base, base + bytes(), &st))
			die(EXIT_ENV, "page map of process %u", i);
	}
	present = st.present;
	pagestat_free(&st);
	return present;
}

static bool most_is_out(void)
{
	return in_memory() < opt.pages * opt.procs / 10;
}

/* Merged pages come back from swap while all are unmerged. */
static uint64_t race_refault(void)
{
	struct order verify = { .op = DO_VERIFY };
	uint64_t out = 0;
	unsigned int round, i;

	start_workers();
	for (round = 0; round < opt.rounds; round++) {
		int err;

		fill_and_merge(0, opt.procs, 0);
		err = reclaim_all(opt.group, most_is_out);
		if (err)
			die(EXIT_ENV, "%s: %s", opt.group, strerror(-err));
		out += opt.pages * opt.procs - in_memory();
		for (i = 0; i < opt.procs; i++)
			worker_send(&workers[i], &verify);
		set_run("2");
		for (i = 0; i < opt.procs; i++) {
			worker_receive(&workers[i]);
			wrong += workers[i].last.wrong;
		}
		expect_nothing_merged();
		set_run("1");
	}
	end_workers();
	return out;
}

static uint64_t mem_free(void)
{
	unsigned long long kib = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f) && sscanf(line, "MemFree: %llu kB", &kib) != 1)
		;
	if (f)
		fclose(f);
	return kib * 1024;
}

static uint64_t migrated(void)
{
	unsigned long long n = 0;
	char line[128];
	FILE *f = fopen("/proc/vmstat", "re");

	while (f && fgets(line, sizeof(line), f) && sscanf(line, "pgmigrate_success %llu", &n) != 1)
		;
	if (f)
		fclose(f);
	return n;
}

#define SPARE	(24UL << 20)	/* memory that the filler leaves */

/* Merged pages are on the move while processes ask for their own copies. */
static uint64_t race_migrate(void)
{
	unsigned int half = opt.procs / 2, round, i;
	uint64_t before = migrated();
	char none[1] = "";

	for (round = 0; round < opt.rounds; round++) {
		uint64_t room;
		char *filler;
		pid_t pid;

		start_workers();
		fill_and_merge(0, half, 0);
		/* Half of the pages lie where there is soon something to move. */
		room = mem_free() - SPARE;
		filler = mmap(NULL, room, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (filler == MAP_FAILED)
			die(EXIT_ENV, "filler: %s", strerror(errno));
		fill_and_merge(half, opt.procs, 1);
		munmap(filler, room);
		pid = fork();
		if (!pid) {
			script_op("compact", none, 0);
			_exit(0);
		}
		all(DO_UNMERGE);
		for (i = 0; i < opt.procs; i++)
			if (merged_ptes(i))
				die(EXIT_WRONG, "round %u: process %u has %" PRIu64
				    " merged pages after MADV_UNMERGEABLE", round, i, merged_ptes(i));
		waitpid(pid, NULL, 0);
		for (i = 0; i < opt.procs; i++)
			if (merged_ptes(i))
				die(EXIT_WRONG, "round %u: process %u has %" PRIu64
				    " merged pages once they had moved", round, i, merged_ptes(i));
		all(DO_VERIFY);
		end_workers();
	}
	return migrated() - before;
}

static const struct {
	const char *name, *text;
	uint64_t (*run)(void);
} scenarios[] = {
	{ "kill", "a process is killed while run=2 unmerges it", race_kill },
	{ "exits", "processes end while run=2 is at work", race_exits },
	{ "locked", "processes that have called mlockall() end", race_locked },
	{ "forks", "processes fork while run=2 is at work", race_forks },
	{ "refault", "pages come back from swap while run=2 is at work (--group)", race_refault },
	{ "migrate", "MADV_UNMERGEABLE while compaction moves merged pages", race_migrate },
};

static void __noreturn usage(void)
{
	size_t i;

	printf("usage: mmrace [options] SCENARIO\n\n");
	for (i = 0; i < ARRAY_SIZE(scenarios); i++)
		printf("  %-8s %s\n", scenarios[i].name, scenarios[i].text);
	printf("\n"
		"  --procs N            processes with the same data (4)\n"
		"  --pages N            of each (1024)\n"
		"  --rounds N           how often (10)\n"
		"  --group DIR          the memory cgroup that this runs in\n"
		"  --settle-timeout S   seconds for each wait (120)\n"
		"\n"
		"Prints one line of JSON; \"met\" is how often the two met.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte or something left merged, 2 usage,\n"
		"3 not possible here.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "pages", required_argument, NULL, 'n' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "group", required_argument, NULL, 'g' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	uint64_t met;
	size_t i;
	int c;

	prog_start("mmrace");
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			opt.procs = parse_number("--procs", optarg, 4, MAX_PROCS);
			break;
		case 'n':
			opt.pages = parse_number("--pages", optarg, 1, 1 << 16);
			break;
		case 'r':
			opt.rounds = parse_number("--rounds", optarg, 1, 100000);
			break;
		case 'g':
			opt.group = optarg;
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
	if (optind == argc)
		bad_usage("no SCENARIO given");
	no_more_arguments(optind + 1, argc, argv);
	for (i = 0; i < ARRAY_SIZE(scenarios); i++)
		if (!strcmp(scenarios[i].name, argv[optind]))
			break;
	if (i == ARRAY_SIZE(scenarios))
		bad_usage("no scenario \"%s\"", argv[optind]);
	if (scenarios[i].run == race_refault && !opt.group)
		die(EXIT_USAGE, "refault needs --group");
	unmerger = untracked_alloc(sizeof(*unmerger));
	workers = xcalloc(opt.procs, sizeof(*workers));
	met = scenarios[i].run();
	printf("{\"tool\": \"mmrace\", \"engine\": \"%s\", \"ok\": %s, \"scenario\": \"%s\""
	       ", \"wrong\": %" PRIu64 ", \"met\": %" PRIu64 ", \"unmerge_usecs\": %" PRIu64
	       ", \"counters\": ", engine_name(), wrong ? "false" : "true", scenarios[i].name,
	       wrong, met, unmerger->usecs);
	json_counters(stdout);
	puts("}");
	return wrong ? EXIT_WRONG : 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * memdup - processes that hold the same data.
 *
 * N processes fill M MiB each with a known mix of duplicate, zero, near
 * duplicate and unique pages; the engine settles; every byte is verified;
 * some pages are rewritten and every byte of every process is verified
 * again, since rewriting one copy must not change another; the engine
 * settles and all is verified a last time. One line of JSON tells the
 * counters after each stage next to what the contents allow to be merged.
 *
 * Duplicate number j has the same content in every process and at a
 * different place in each; the duplicates of one process all differ.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common.h"

#define MAX_PROCS	256	/* near duplicates differ by one byte of 1..255 */
#define FIRST_USER	1000
#define ODD_USER	999
#define FLIP_MASK	0xff

enum touch { TOUCH_WRITE, TOUCH_READ, TOUCH_GUP };
enum stream { S_DUP = 1, S_NEAR, S_NEAR_OFF, S_UNIQUE, S_REWRITE, S_PLACE };
enum { DO_FILL = 1, DO_VERIFY, DO_REWRITE };

static struct {
	unsigned int users, procs, mib, dup, zero, unique, near, rewrite, rewriters;
	uint64_t seed, settle_s;
	int near_off;		/* -1: anywhere */
	bool near_zero, brk, madvise, wait, hold, guarded, stopped;
	const char *odd_id;
	enum touch touch;
	size_t pages;
	size_t n_dup, n_zero, n_near;
} opt = {
	.procs = 2, .mib = 4, .rewrite = 10, .rewriters = 1, .seed = 1,
	.settle_s = 120, .near_off = -1, .wait = true,
};

struct process {
	unsigned int index;
	char *base;
	struct content *shadow;
};

/* ---- what each page holds ------------------------------------------- */

/* A place in [0, pages) for page @i, one to one, another map for each @salt. */
static size_t scatter(size_t i, uint64_t salt)
{
	struct scatter s = scatter_make(opt.pages, opt.seed, S_PLACE, salt);

	return scatter_place(&s, i);
}

static struct content content_filled(unsigned int proc, size_t i)
{
	size_t j = scatter(i, proc);
	struct content c = { 0 };

	if (j < opt.n_dup) {
		c.key = content_key(opt.seed, S_DUP, j, 0);
		return c;
	}
	j -= opt.n_dup;
	if (j < opt.n_zero)
		return c;
	j -= opt.n_zero;
	if (j < opt.n_near) {
		/* The same page but for one byte, which has another value each time. */
		if (opt.near_zero)
			c.off = (j / FLIP_MASK * opt.procs + proc) % PAGE_BYTES;
		else
			c.key = content_key(opt.seed, S_NEAR, j, 0);
		if (opt.near_off >= 0)
			c.off = (uint16_t)opt.near_off;
		else if (!opt.near_zero)
			c.off = content_key(opt.seed, S_NEAR_OFF, j, proc) % PAGE_BYTES;
		c.flip = opt.near_zero ? j % FLIP_MASK + 1 : proc + 1;
		return c;
	}
	c.key = content_key(opt.seed, S_UNIQUE, proc, j);
	return c;
}

static bool is_rewritten(unsigned int proc, size_t i)
{
	if (proc >= opt.rewriters || opt.pages == 1)
		return proc < opt.rewriters && opt.rewrite;
	return scatter(i, 1000 + proc) < opt.pages * opt.rewrite / 100;
}

/* A third gets one other byte, a third other unique content, a third zeros. */
static struct content content_rewritten(unsigned int proc, size_t i)
{
	struct content c = content_filled(proc, i);
	uint64_t pick = content_key(opt.seed, S_REWRITE, proc, i);

	switch (pick % 3) {
	case 0:
		if (!c.flip) {
			c.off = (pick >> 8) % PAGE_BYTES;
			c.flip = 0x5a;
			break;
		}
		/* fallthrough */
	case 1:
		memset(&c, 0, sizeof(c));
		c.key = content_key(opt.seed, S_REWRITE, proc, i + (1UL << 40));
		break;
	default:
		memset(&c, 0, sizeof(c));
	}
	return c;
}

/* ---- in each process ------------------------------------------------- */

static int process_fill(struct process *p)
{
	size_t i, bytes = opt.pages * PAGE_BYTES;
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;

	p->shadow = untracked_alloc(opt.pages * sizeof(*p->shadow));
	if (opt.brk) {
		char *top = sbrk(0);

		if (sbrk((intptr_t)(-(uintptr_t)top & (PAGE_BYTES - 1))) == (void *)-1)
			return -errno;
		p->base = sbrk((intptr_t)bytes);
		if (p->base == (void *)-1)
			return -errno;
	} else {
		if (opt.touch == TOUCH_GUP && !opt.madvise)
			flags |= MAP_POPULATE;
		p->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
		if (p->base == MAP_FAILED)
			return -errno;
	}
	if (opt.madvise && madvise(p->base, bytes, MADV_MERGEABLE))
		return -errno;
	if (opt.touch == TOUCH_GUP && (opt.madvise || opt.brk) &&
	    madvise(p->base, bytes, MADV_POPULATE_WRITE))
		return -errno;
	if (opt.touch == TOUCH_READ)
		for (i = 0; i < opt.pages; i++)
			if (*(volatile char *)(p->base + i * PAGE_BYTES))
				return -EIO;
	for (i = 0; i < opt.pages; i++)
		p->shadow[i] = content_filled(p->index, i);
	region_fill(p->base, p->shadow, opt.pages);
	return 0;
}

static uint64_t process_rewrite(struct process *p)
{
	uint64_t n = 0;
	size_t i;

	for (i = 0; i < opt.pages; i++) {
		struct content old = p->shadow[i];
		char *page = p->base + i * PAGE_BYTES;

		if (!is_rewritten(p->index, i))
			continue;
		p->shadow[i] = content_rewritten(p->index, i);
		n++;
		/* One byte where one byte is enough: the smallest write there is. */
		if (p->shadow[i].key == old.key && !old.flip && p->shadow[i].flip)
			page[p->shadow[i].off] ^= (char)p->shadow[i].flip;
		else
			page_fill(page, &p->shadow[i]);
	}
	return n;
}

static bool is_id(const char *name)
{
	return !strcmp(name, "euid") || !strcmp(name, "suid") || !strcmp(name, "egid") ||
	       !strcmp(name, "sgid");
}

/* ODD_USER where @name is the id that is to be another, else @id. */
static unsigned int odd_or(const char *name, unsigned int id)
{
	return opt.odd_id && !strcmp(opt.odd_id, name) ? ODD_USER : id;
}

/* Become a user for good, but for one id. Returns -1 and sets errno on an error. */
static int become(unsigned int user)
{
	if (setresgid(FIRST_USER, odd_or("egid", FIRST_USER), odd_or("sgid", FIRST_USER)))
		return -1;
	return setresuid(user, odd_or("euid", user), odd_or("suid", user));
}

static void process_order(void *ctx, const struct order *o, struct reply *r)
{
	struct process *p = ctx;

	switch (o->op) {
	case DO_FILL:
		p->index = o->arg;
		/* Like a process that was started by the user, not one that changed to it. */
		if (opt.users && (become(FIRST_USER + o->arg % opt.users) ||
				  (!opt.guarded && prctl(PR_SET_DUMPABLE, 1)))) {
			r->status = -errno;
			break;
		}
		r->status = process_fill(p);
		r->value[0] = (uint64_t)(uintptr_t)p->base;
		break;
	case DO_VERIFY:
		r->wrong = region_check(p->base, p->shadow, opt.pages, o->text);
		break;
	case DO_REWRITE:
		r->value[0] = process_rewrite(p);
		break;
	default:
		r->status = -EINVAL;
	}
}

/* ---- in the parent --------------------------------------------------- */

static struct worker *workers;
static uint64_t *bases;
static FILE *stages;
static uint64_t total_wrong;
static bool all_settled = true;

/* What can be merged, of all pages or only of those that were never rewritten. */
static void expect(struct savings *s, bool rewritten, bool untouched_only)
{
	size_t bytes = opt.procs * opt.pages * sizeof(struct content);
	struct content *c;
	unsigned int proc;
	size_t i, n = 0;

	c = untracked_alloc(bytes);
	for (proc = 0; proc < opt.procs; proc++) {
		for (i = 0; i < opt.pages; i++) {
			if (!rewritten || !is_rewritten(proc, i))
				c[n++] = content_filled(proc, i);
			else if (!untouched_only)
				c[n++] = content_rewritten(proc, i);
		}
	}
	content_savings(c, n, s);
	munmap(c, bytes);
}

static void json_savings(const char *name, const struct savings *s)
{
	fprintf(stages,
		", \"%s\": {\"pages\": %" PRIu64 ", \"zero\": %" PRIu64 ", \"shared\": %" PRIu64
		", \"sharing\": %" PRIu64 ", \"unique\": %" PRIu64 "}",
		name, s->pages, s->zero, s->shared, s->sharing, s->unique);
}

static void json_pagestat(void)
{
	struct pagestat st = { 0 };
	unsigned int i;

	for (i = 0; i < opt.procs; i++)
		if (pagestat_add(workers[i].pid, bases[i],
				 bases[i] + opt.pages * PAGE_BYTES, &st)) {
			pagestat_free(&st);
			return;
		}
	pagestat_finish(&st);
	fprintf(stages,
		", \"map\": {\"present\": %" PRIu64 ", \"swapped\": %" PRIu64 ", \"anon\": %" PRIu64
		", \"zero\": %" PRIu64 ", \"merged_ptes\": %" PRIu64
		", \"merged_pages\": %" PRIu64 "}",
		st.present, st.swapped, st.anon, st.zero, st.merged_ptes, st.merged_pages);
	pagestat_free(&st);
}

enum { STAGE_BARE, STAGE_FILLED, STAGE_REWRITTEN };

static void stage(const char *name, int what, uint64_t wrong, uint64_t start)
{
	struct savings s;

	total_wrong += wrong;
	fprintf(stages, "%s{\"name\": \"%s\", \"ms\": %" PRIu64 ", \"wrong\": %" PRIu64,
		ftell(stages) ? ", " : "", name, now_ms() - start, wrong);
	if (what != STAGE_BARE) {
		expect(&s, what == STAGE_REWRITTEN, false);
		json_savings("expected", &s);
		if (what == STAGE_REWRITTEN) {
			expect(&s, true, true);
			json_savings("expected_untouched", &s);
		}
		json_pagestat();
	}
	fprintf(stages, ", \"counters\": ");
	json_counters(stages);
	fputc('}', stages);
	fflush(stages);
}

static void settle(void)
{
	if (opt.wait && !engine_settle(opt.settle_s * 1000)) {
		fprintf(stderr, "%s: the engine did not settle within %" PRIu64 " s\n",
			prog_name, opt.settle_s);
		all_settled = false;
	}
}

/* Lets the engine go on, or stops it, if it is not to look at pages that are being filled. */
static void engine_run(const char *value)
{
	int err = opt.stopped ? control_write("run", value) : 0;

	if (err)
		die(EXIT_ENV, "run cannot be set to %s: %s", value, strerror(-err));
}

static uint64_t order_all(unsigned int op, unsigned int procs, const char *text)
{
	struct order o = { .op = op };
	uint64_t wrong;
	unsigned int i;

	snprintf(o.text, sizeof(o.text), "%s", text);
	wrong = worker_all(workers, procs, &o);
	for (i = 0; i < procs; i++)
		if (workers[i].last.status)
			die(EXIT_ENV, "process %u, %s: %s", i, text,
			    strerror(-workers[i].last.status));
	return wrong;
}

static void run_stages(void)
{
	struct process self = { 0 };
	uint64_t t = now_ms();
	unsigned int i;

	settle();
	stage("start", STAGE_BARE, 0, t);

	engine_run("0");
	t = now_ms();
	for (i = 0; i < opt.procs; i++)
		worker_start(workers, i, process_order, &self);
	for (i = 0; i < opt.procs; i++) {
		struct order o = { .op = DO_FILL, .arg = i };

		worker_send(&workers[i], &o);
	}
	for (i = 0; i < opt.procs; i++) {
		worker_receive(&workers[i]);
		if (workers[i].last.status)
			die(EXIT_ENV, "process %u cannot fill its memory: %s", i,
			    strerror(-workers[i].last.status));
		bases[i] = workers[i].last.value[0];
	}
	stage("filled", STAGE_BARE, 0, t);

	t = now_ms();
	engine_run("1");
	settle();
	stage("settled", STAGE_FILLED, 0, t);

	t = now_ms();
	stage("verified", STAGE_BARE, order_all(DO_VERIFY, opt.procs, "after settling"), t);

	if (opt.rewrite) {
		t = now_ms();
		order_all(DO_REWRITE, opt.rewriters, "rewriting");
		stage("rewritten", STAGE_REWRITTEN,
		      order_all(DO_VERIFY, opt.procs, "after rewriting"), t);
		t = now_ms();
		settle();
		stage("resettled", STAGE_REWRITTEN,
		      order_all(DO_VERIFY, opt.procs, "after settling again"), t);
	}
	if (opt.hold) {
		fprintf(stderr, "%s: holding until end of file on standard input\n", prog_name);
		while (getchar() != EOF)
			;
		t = now_ms();
		stage("held", STAGE_BARE, order_all(DO_VERIFY, opt.procs, "after holding"), t);
	}

	t = now_ms();
	for (i = 0; i < opt.procs; i++)
		worker_end(&workers[i]);
	settle();
	stage("exited", STAGE_BARE, 0, t);
}

static void __noreturn usage(void)
{
	printf("usage: memdup [options]\n"
		"\n"
		"Processes that hold the same data: fill, settle, verify, rewrite, verify,\n"
		"settle, verify; one line of JSON with counters and expectations per stage.\n"
		"\n"
		"  --procs N           processes (2)\n"
		"  --users N           users that they belong to in turn (all to the caller)\n"
		"  --guarded           ... and who may not read them by ptrace, as after setuid()\n"
		"  --odd-id ID         ... and one of whose ids is another: euid, suid, egid or sgid\n"
		"  --mib M             MiB in each (4)\n"
		"  --dup PCT           pages whose content every process holds\n"
		"  --zero PCT          pages of zeros\n"
		"  --near PCT          duplicates but for one byte\n"
		"  --unique PCT        pages nobody else holds\n"
		"                      The four add up to 100; those not given fill up: first\n"
		"                      unique, else dup. With none given: dup 60 zero 20 unique 20.\n"
		"  --near-offset BYTE  where near duplicates differ (default: anywhere)\n"
		"  --near-zero         near duplicates of the page of zeros\n"
		"  --seed S            of all contents (1)\n"
		"  --rewrite PCT       pages to rewrite (10)\n"
		"  --rewriters N|all   processes that rewrite (1)\n"
		"  --alloc mmap|brk    where the memory comes from (mmap)\n"
		"  --touch write|read|gup  first touch: a write, a read, or MAP_POPULATE (write)\n"
		"  --madvise           MADV_MERGEABLE, as stock KSM needs\n"
		"  --stopped           stop the engine while the processes fill their memory\n"
		"  --no-wait           do not wait for the engine\n"
		"  --settle-timeout S  seconds for each wait (120)\n"
		"  --hold              wait for end of file on standard input before exit\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 no settling or no memory.\n");
	exit(0);
}

static void shares(int dup, int zero, int near, int unique)
{
	int given = (dup > 0 ? dup : 0) + (zero > 0 ? zero : 0) +
		    (near > 0 ? near : 0) + (unique > 0 ? unique : 0);

	if (dup < 0 && zero < 0 && near < 0 && unique < 0) {
		dup = 60;
		zero = 20;
		unique = 20;
		given = 100;
	} else if (given < 100 && unique < 0) {
		unique = 100 - given;
		given = 100;
	} else if (given < 100 && dup < 0) {
		dup = 100 - given;
		given = 100;
	}
	if (given != 100)
		die(EXIT_USAGE, "--dup, --zero, --near and --unique add up to %d, not 100", given);
	opt.dup = dup > 0 ? dup : 0;
	opt.zero = zero > 0 ? zero : 0;
	opt.near = near > 0 ? near : 0;
	opt.unique = unique > 0 ? unique : 0;

	opt.pages = opt.mib * PAGES_PER_MIB;
	opt.n_dup = opt.pages * opt.dup / 100;
	opt.n_zero = opt.pages * opt.zero / 100;
	opt.n_near = opt.pages * opt.near / 100;
	/* Rounding must not make unique pages where none were asked for. */
	if (!opt.unique) {
		size_t rest = opt.pages - opt.n_dup - opt.n_zero - opt.n_near;

		if (opt.dup)
			opt.n_dup += rest;
		else if (opt.near)
			opt.n_near += rest;
		else
			opt.n_zero += rest;
	}
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "users", required_argument, NULL, 'U' },
		{ "guarded", no_argument, NULL, 'G' },
		{ "odd-id", required_argument, NULL, 'I' },
		{ "mib", required_argument, NULL, 'm' },
		{ "dup", required_argument, NULL, 'd' },
		{ "zero", required_argument, NULL, 'z' },
		{ "near", required_argument, NULL, 'n' },
		{ "unique", required_argument, NULL, 'u' },
		{ "near-offset", required_argument, NULL, 'O' },
		{ "near-zero", no_argument, NULL, 'Z' },
		{ "seed", required_argument, NULL, 's' },
		{ "rewrite", required_argument, NULL, 'r' },
		{ "rewriters", required_argument, NULL, 'R' },
		{ "alloc", required_argument, NULL, 'a' },
		{ "touch", required_argument, NULL, 't' },
		{ "madvise", no_argument, NULL, 'M' },
		{ "stopped", no_argument, NULL, 'T' },
		{ "no-wait", no_argument, NULL, 'W' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "hold", no_argument, NULL, 'H' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int dup = -1, zero = -1, near = -1, unique = -1, c;
	bool all_rewrite = false;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			opt.procs = parse_number("--procs", optarg, 1, MAX_PROCS - 1);
			break;
		case 'U':
			opt.users = parse_number("--users", optarg, 1, MAX_PROCS - 1);
			break;
		case 'G':
			opt.guarded = true;
			break;
		case 'I':
			if (!is_id(optarg))
				die(EXIT_USAGE, "--odd-id: '%s' is not euid, suid, egid or sgid",
				    optarg);
			opt.odd_id = optarg;
			break;
		case 'm':
			opt.mib = parse_number("--mib", optarg, 1, 1 << 20);
			break;
		case 'd':
			dup = (int)parse_number("--dup", optarg, 0, 100);
			break;
		case 'z':
			zero = (int)parse_number("--zero", optarg, 0, 100);
			break;
		case 'n':
			near = (int)parse_number("--near", optarg, 0, 100);
			break;
		case 'u':
			unique = (int)parse_number("--unique", optarg, 0, 100);
			break;
		case 'O':
			opt.near_off = (int)parse_number("--near-offset", optarg, 0,
							 PAGE_BYTES - 1);
			break;
		case 'Z':
			opt.near_zero = true;
			break;
		case 's':
			opt.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
			break;
		case 'r':
			opt.rewrite = parse_number("--rewrite", optarg, 0, 100);
			break;
		case 'R':
			all_rewrite = !strcmp(optarg, "all");
			if (!all_rewrite)
				opt.rewriters = parse_number("--rewriters", optarg, 1,
							     MAX_PROCS);
			break;
		case 'a':
			opt.brk = !strcmp(optarg, "brk");
			if (!opt.brk && strcmp(optarg, "mmap"))
				die(EXIT_USAGE, "--alloc: \"%s\" is neither mmap nor brk", optarg);
			break;
		case 't':
			if (!strcmp(optarg, "write"))
				opt.touch = TOUCH_WRITE;
			else if (!strcmp(optarg, "read"))
				opt.touch = TOUCH_READ;
			else if (!strcmp(optarg, "gup"))
				opt.touch = TOUCH_GUP;
			else
				die(EXIT_USAGE, "--touch: \"%s\" is not write, read or gup", optarg);
			break;
		case 'M':
			opt.madvise = true;
			break;
		case 'T':
			opt.stopped = true;
			break;
		case 'W':
			opt.wait = false;
			break;
		case 'S':
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
			break;
		case 'H':
			opt.hold = true;
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	if (all_rewrite)
		opt.rewriters = opt.procs;
	if (opt.rewriters > opt.procs)
		die(EXIT_USAGE, "--rewriters %u of %u processes", opt.rewriters, opt.procs);
	shares(dup, zero, near, unique);
}

int main(int argc, char **argv)
{
	char *text;
	bool ok;

	prog_start("memdup");
	parse(argc, argv);
	stages = untracked_stream(&text);
	workers = xcalloc(opt.procs, sizeof(*workers));
	bases = xcalloc(opt.procs, sizeof(*bases));

	run_stages();

	fclose(stages);
	ok = !total_wrong && all_settled;
	printf("{\"tool\": \"memdup\", \"engine\": \"%s\", \"ok\": %s, \"settled\": %s"
	       ", \"procs\": %u, \"mib\": %u, \"seed\": %" PRIu64
	       ", \"pages\": %zu, \"wrong\": %" PRIu64 ", \"stages\": [%s]}\n",
	       engine_name(), ok ? "true" : "false", all_settled ? "true" : "false",
	       opt.procs, opt.mib, opt.seed, opt.procs * opt.pages, total_wrong, text);
	free(workers);
	free(bases);
	if (total_wrong)
		return EXIT_WRONG;
	return all_settled ? 0 : EXIT_ENV;
}

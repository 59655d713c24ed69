// SPDX-License-Identifier: GPL-2.0-only
/*
 * poison - a page of memory that several processes have goes bad.
 *
 * N processes fill a region with the same contents, one page of which is then said
 * to be broken, by MADV_HWPOISON in one of them. Who reads a page that is lost gets
 * SIGBUS and counts it; all else must read as it was written. One line of JSON tells
 * how many pages each process has lost, the counters before and after, and how many
 * pages of all were those of large folios, once filled and when one was poisoned.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common.h"

#define MAX_PROCS	16

enum { DO_FILL = 1, DO_POISON, DO_VERIFY };

static struct {
	unsigned int procs;
	size_t pages, page;
	uint64_t settle_s;
	bool unique, huge;
} opt = { .procs = 3, .pages = 64, .page = 5, .settle_s = 120 };

static char *region;
static sigjmp_buf out_of_it;

static void on_sigbus(int sig __unused)
{
	siglongjmp(out_of_it, 1);
}

static struct content content_of(size_t page, unsigned int index)
{
	struct content c = { .key = content_key(7, page, opt.unique ? index + 1 : 0, 0) };

	return c;
}

static int fill(unsigned int index)
{
	size_t bytes = opt.pages * PAGE_BYTES, i;
	struct sigaction sa = { .sa_handler = on_sigbus };
	char *start;

	start = mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (start == MAP_FAILED)
		return -errno;
	region = start + (opt.huge ? -(uintptr_t)start % HUGE_BYTES : 0);
	madvise(region, bytes, MADV_MERGEABLE);
	if (opt.huge && madvise(region, bytes, MADV_HUGEPAGE))
		return -errno;
	for (i = 0; i < opt.pages; i++) {
		struct content c = content_of(i, index);

		page_fill(region + i * PAGE_BYTES, &c);
	}
	return sigaction(SIGBUS, &sa, NULL) ? -errno : 0;
}

/* How many pages of all processes are those of large folios. */
static uint64_t count_large(const struct worker *workers, const uint64_t *bases)
{
	struct pagestat st = { };
	uint64_t large;
	unsigned int i;
	int err = 0;

	for (i = 0; i < opt.procs && !err; i++)
		err = pagestat_add(workers[i].pid, bases[i], bases[i] + opt.pages * PAGE_BYTES,
				   &st);
	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	large = st.large;
	pagestat_free(&st);
	return large;
}

/* Whoever asks for it may be told by a signal at once. */
static int poison(void)
{
	if (sigsetjmp(out_of_it, 1))
		return 0;
	return madvise(region + opt.page * PAGE_BYTES, PAGE_BYTES, MADV_HWPOISON) ? -errno : 0;
}

static void verify(unsigned int index, struct reply *r)
{
	struct mismatch m;
	volatile size_t i;

	for (i = 0; i < opt.pages; i++) {
		struct content c = content_of(i, index);

		if (sigsetjmp(out_of_it, 1))
			r->value[0]++;
		else if (!page_check(region + i * PAGE_BYTES, &c, &m))
			r->wrong++;
	}
}

static void serve(void *ctx __unused, const struct order *o, struct reply *r)
{
	if (o->op == DO_FILL) {
		r->status = fill(o->arg);
		r->value[0] = (uint64_t)(uintptr_t)region;
	} else if (o->op == DO_POISON) {
		r->status = poison();
	} else {
		verify(o->arg, r);
	}
}

/* Each worker in turn, with its number. Returns the number of wrong pages. */
static uint64_t all(struct worker *workers, uint32_t op, uint64_t *values)
{
	uint64_t wrong = 0;
	unsigned int i;

	for (i = 0; i < opt.procs; i++) {
		struct order o = { .op = op, .arg = i };

		worker_send(&workers[i], &o);
		worker_receive(&workers[i]);
		if (workers[i].last.status)
			die(EXIT_ENV, "process %u: %s", i, strerror(-workers[i].last.status));
		wrong += workers[i].last.wrong;
		values[i] = workers[i].last.value[0];
	}
	return wrong;
}

static void __noreturn usage(void)
{
	printf("usage: poison [--procs N] [--pages N] [--page K] [--unique] [--huge]\n"
		"              [--settle-timeout SECONDS]\n"
		"\n"
		"Page K of each process holds the same (--unique: not the same), and the engine\n"
		"has settled when that of the first process is poisoned. Needs root, and\n"
		"CONFIG_MEMORY_FAILURE.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 refused by the kernel or time-out.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "pages", required_argument, NULL, 'n' },
		{ "page", required_argument, NULL, 'k' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "unique", no_argument, NULL, 'u' },
		{ "huge", no_argument, NULL, 'H' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			opt.procs = parse_number("--procs", optarg, 1, MAX_PROCS);
			break;
		case 'n':
			opt.pages = parse_number("--pages", optarg, 1, 1 << 16);
			break;
		case 'k':
			opt.page = parse_number("--page", optarg, 0, 1 << 16);
			break;
		case 'S':
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
			break;
		case 'u':
			opt.unique = true;
			break;
		case 'H':
			opt.huge = true;
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	if (opt.page >= opt.pages)
		bad_usage("--page is not one of the pages");
}

static void settle(void)
{
	if (!engine_settle(opt.settle_s * 1000))
		die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s", opt.settle_s);
}

int main(int argc, char **argv)
{
	struct worker workers[MAX_PROCS] = { };
	struct order o = { .op = DO_POISON };
	uint64_t bases[MAX_PROCS], lost[MAX_PROCS], filled, large, wrong;
	unsigned int i;

	prog_start("poison");
	parse(argc, argv);
	for (i = 0; i < opt.procs; i++)
		worker_start(workers, i, serve, NULL);
	wrong = all(workers, DO_FILL, bases);
	filled = count_large(workers, bases);
	settle();
	large = count_large(workers, bases);
	printf("{\"tool\": \"poison\", \"engine\": \"%s\", \"before\": ", engine_name());
	json_counters(stdout);
	printf(", \"filled_large\": %" PRIu64 ", \"large\": %" PRIu64, filled, large);
	worker_send(&workers[0], &o);
	worker_receive(&workers[0]);
	if (workers[0].last.status)
		die(EXIT_ENV, "MADV_HWPOISON: %s", strerror(-workers[0].last.status));
	wrong += all(workers, DO_VERIFY, lost);
	settle();
	wrong += all(workers, DO_VERIFY, lost);
	printf(", \"after\": ");
	json_counters(stdout);
	printf(", \"lost\": [");
	for (i = 0; i < opt.procs; i++)
		printf("%s%" PRIu64, i ? ", " : "", lost[i]);
	for (i = 0; i < opt.procs; i++)
		worker_end(&workers[i]);
	printf("], \"wrong\": %" PRIu64 ", \"ok\": %s}\n", wrong, wrong ? "false" : "true");
	return wrong ? EXIT_WRONG : 0;
}

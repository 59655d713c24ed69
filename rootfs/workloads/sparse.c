// SPDX-License-Identifier: GPL-2.0-only
/*
 * sparse - a huge mapping of which little is touched.
 *
 * A few pages lie far apart in a mapping many times larger than memory, or, for
 * comparison, side by side. Each content is there twice. What the engine's
 * daemon spends on them, and how long it takes to unmerge everything, must not
 * depend on the emptiness in between. One line of JSON tells both.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"

#define PAGES_PER_GIB	(PAGES_PER_MIB * 1024)

static struct {
	uint64_t gib, pages, settle_s, idle_ms;
	bool dense, madvise;
} opt = { .gib = 128, .pages = 64, .settle_s = 300, .idle_ms = 5000 };

static char *region;
static struct content *shadow;

static char *at(uint64_t i)
{
	uint64_t step = opt.dense ? 1 : opt.gib * PAGES_PER_GIB / opt.pages;

	return region + i * step * PAGE_BYTES;
}

static void fill(void)
{
	size_t bytes = (opt.dense ? opt.pages : opt.gib * PAGES_PER_GIB) * PAGE_BYTES;
	uint64_t i;

	region = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (region == MAP_FAILED)
		die(EXIT_ENV, "%" PRIu64 " GiB of addresses: %s", opt.gib, strerror(errno));
	if (opt.madvise && madvise(region, bytes, MADV_MERGEABLE))
		die(EXIT_ENV, "MADV_MERGEABLE: %s", strerror(errno));
	shadow = untracked_alloc(opt.pages * sizeof(*shadow));
	for (i = 0; i < opt.pages; i++) {
		shadow[i].key = content_key(1, i / 2, 0, 0);
		page_fill(at(i), &shadow[i]);
	}
}

static uint64_t verify(const char *when)
{
	uint64_t wrong = 0, i;

	for (i = 0; i < opt.pages; i++)
		wrong += region_check(at(i), &shadow[i], 1, when);
	return wrong;
}

/* Merged PTEs of the whole mapping, which smaps counts; the page map of one page will do. */
static uint64_t merged(void)
{
	uint64_t start = (uint64_t)(uintptr_t)region, n;
	struct pagestat st = { 0 };

	if (pagestat_add(0, start, start + PAGE_BYTES, &st))
		die(EXIT_ENV, "no page map");
	n = st.smaps_ptes;
	pagestat_free(&st);
	return n;
}

/* Microseconds of CPU time of PKSM's daemon; stock KSM's is found by its name. */
static int64_t daemon_usecs(void)
{
	static long daemon;
	unsigned long user, sys;
	char path[64], name[32] = "";
	int64_t usecs;
	long pid;
	FILE *f;

	if (counter_read("cpu_usecs", &usecs))
		return usecs;
	for (pid = daemon ? daemon : 2; pid < 1000; pid++) {
		snprintf(path, sizeof(path), "/proc/%ld/stat", pid);
		f = fopen(path, "re");
		if (!f)
			continue;
		if (fscanf(f, "%*d (%31[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",
			   name, &user, &sys) == 3 && !strcmp(name, "ksmd")) {
			fclose(f);
			daemon = pid;
			return (int64_t)(user + sys) * 1000000 / sysconf(_SC_CLK_TCK);
		}
		fclose(f);
	}
	die(EXIT_ENV, "there is no daemon");
}

static void __noreturn usage(void)
{
	printf("usage: sparse [options]\n"
		"\n"
		"Touches a few pages of a huge mapping: what does the emptiness cost?\n"
		"\n"
		"  --gib N             size of the mapping (128)\n"
		"  --pages N           pages that are touched; each content is there twice (64)\n"
		"  --dense             a mapping of just these pages, for comparison\n"
		"  --idle-ms N         how long to wait when all is merged (5000)\n"
		"  --madvise           MADV_MERGEABLE, as stock KSM needs\n"
		"  --settle-timeout S  seconds to wait for the engine (300)\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "gib", required_argument, NULL, 'g' },
		{ "pages", required_argument, NULL, 'n' },
		{ "dense", no_argument, NULL, 'd' },
		{ "idle-ms", required_argument, NULL, 'i' },
		{ "madvise", no_argument, NULL, 'M' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'g')
			opt.gib = parse_number("--gib", optarg, 1, 1 << 20);
		else if (c == 'n')
			opt.pages = parse_number("--pages", optarg, 2, 4096);
		else if (c == 'd')
			opt.dense = true;
		else if (c == 'i')
			opt.idle_ms = parse_number("--idle-ms", optarg, 0, 1000000);
		else if (c == 'M')
			opt.madvise = true;
		else if (c == 'S')
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	no_more_arguments(optind, argc, argv);
	if (opt.pages % 2)
		bad_usage("--pages must be even");
}

int main(int argc, char **argv)
{
	uint64_t found, left, wrong, start, unmerge_ms;
	int64_t before, settled, idle;
	int64_t scans_before = 0, scans = 0;
	int err;

	prog_start("sparse");
	parse(argc, argv);
	before = daemon_usecs();
	fill();
	if (!engine_settle(opt.settle_s * 1000))
		die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s", opt.settle_s);
	settled = daemon_usecs();
	counter_read("pages_scanned", &scans_before);
	sleep_ms((unsigned int)opt.idle_ms);
	counter_read("pages_scanned", &scans);
	idle = daemon_usecs();
	found = merged();
	wrong = verify("when merged");
	start = now_ms();
	err = control_write("run", "2");
	unmerge_ms = now_ms() - start;
	if (err)
		die(EXIT_ENV, "run=2: %s", strerror(-err));
	left = merged();
	wrong += verify("when unmerged");
	control_write("run", "1");
	printf("{\"tool\": \"sparse\", \"engine\": \"%s\", \"ok\": %s, \"pages\": %" PRIu64
	       ", \"merged\": %" PRIu64 ", \"left\": %" PRIu64 ", \"usecs\": %" PRId64
	       ", \"idle_usecs\": %" PRId64 ", \"idle_scanned\": %" PRId64
	       ", \"unmerge_ms\": %" PRIu64 ", \"wrong\": %" PRIu64 "}\n",
	       engine_name(), wrong ? "false" : "true", opt.pages, found, left, settled - before,
	       idle - settled, scans - scans_before, unmerge_ms, wrong);
	return wrong ? EXIT_WRONG : 0;
}

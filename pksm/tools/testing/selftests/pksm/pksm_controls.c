// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: tests of its controls and counters.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest.h"
#include "pksm_tests.h"
#include "pksm_util.h"

/* === the controls === */

void test_run_2_unmerges_everything(void)
{
	struct pair pair = make_pair();

	CHECK(merged(&pair));
	CHECK(write_text("run", "2") == 0);
	CHECK(read_number("run") == 2);
	CHECK(common(&pair) == 0);
	CHECK(read_number("pages_shared") == 0);
	CHECK(read_number("pages_sharing") == 0);
	CHECK(read_number("zero_pages") == 0);
	CHECK(intact(&pair));
	CHECK(write_text("run", "1") == 0);
	CHECK(merged(&pair));
	CHECK(intact(&pair));
	end_pair(&pair);
}

void test_run_0_keeps_what_is_merged(void)
{
	struct pair pair = make_pair();

	CHECK(merged(&pair));
	CHECK(write_text("run", "0") == 0);
	CHECK(common(&pair) == PAGES);
	order(&pair.worker, ORDER_WRITE, 1);
	order(&pair.worker, ORDER_WRITE, 1);
	CHECK(common(&pair) == PAGES - 1);
	CHECK(intact(&pair));
	/* The page that was broken off meanwhile is not lost. */
	CHECK(write_text("run", "1") == 0);
	CHECK(merged(&pair));
	end_pair(&pair);
}

void test_controls_refuse_nonsense(void)
{
	static const struct {
		const char *name;
		const char *bad[8];
	} nonsense[] = {
		{ "run", { "3", "-1", "x", "1x", "4294967296" } },
		{ "scope", { "some", "al", "1" } },
		{ "domain", { "somebody", "use", "0" } },
		{ "settle_millisecs", { "-1", "x", "1.5", "3600001" } },
		{ "rescan_seconds", { "-1", "x", "1.5", "86401" } },
		{ "max_cpu", { "0", "101", "-1", "x" } },
		{ "max_page_sharing", { "0", "1", "-2", "x", "4294967298" } },
		{ "use_zero_pages", { "2", "-1", "x" } },
	};
	char before[64];
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(nonsense); i++) {
		const char *name = nonsense[i].name;

		snprintf(before, sizeof(before), "%s", read_text(name));
		for (j = 0; nonsense[i].bad[j]; j++) {
			int err = write_text(name, nonsense[i].bad[j]);

			if (err == EINVAL && !strcmp(before, read_text(name)))
				continue;
			ksft_print_msg("%s: '%s' gives error %d and %s\n", name,
				       nonsense[i].bad[j], err, read_text(name));
			failed = true;
		}
	}
}

void test_controls_read_back(void)
{
	static const char * const values[][2] = {
		{ "run", "0" }, { "run", "1" },
		{ "scope", "madvise" }, { "scope", "all" },
		{ "domain", "memcg" }, { "domain", "process" },
		{ "domain", "global" }, { "domain", "user" },
		{ "settle_millisecs", "0" }, { "settle_millisecs", "1234" },
		{ "rescan_seconds", "0" }, { "rescan_seconds", "86400" },
		{ "max_cpu", "1" }, { "max_cpu", "100" },
		{ "max_page_sharing", "2" }, { "max_page_sharing", "1000" },
		{ "use_zero_pages", "0" }, { "use_zero_pages", "1" },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(values); i++) {
		int err = write_text(values[i][0], values[i][1]);

		/* There need not be memory cgroups. */
		if (err == EOPNOTSUPP && !strcmp(values[i][1], "memcg"))
			continue;
		if (!err && !strcmp(read_text(values[i][0]), values[i][1]))
			continue;
		ksft_print_msg("%s: '%s' gives error %d and %s\n", values[i][0],
			       values[i][1], err, read_text(values[i][0]));
		failed = true;
	}
}

void test_only_root_writes(void)
{
	static const char * const names[] = {
		"run", "scope", "domain", "settle_millisecs", "rescan_seconds",
		"max_cpu", "max_page_sharing", "use_zero_pages",
	};
	pid_t child;
	int status;
	size_t i;

	fflush(stdout);
	child = fork();
	if (child < 0)
		ksft_exit_fail_perror("fork");
	if (!child) {
		if (setuid(NOBODY))
			_exit(1);
		for (i = 0; i < ARRAY_SIZE(names); i++) {
			char path[256];

			snprintf(path, sizeof(path), PKSM_DIR "/%s",
				 names[i]);
			if (open(path, O_RDONLY) < 0)
				_exit(2);
			if (open(path, O_WRONLY) >= 0 || errno != EACCES)
				_exit(3);
		}
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(status == 0);
}

/* === the counters === */

static bool counters_fell(void *arg)
{
	long long *peak = arg;

	return read_number("pages_shared") <= peak[0] - PAGES &&
	       read_number("pages_sharing") <= peak[1] - 2 * PAGES;
}

void test_counters_obey_their_laws(void)
{
	static const char * const counters[] = {
		"pages_new", "pages_unshared", "pages_volatile", "pages_shared",
		"pages_sharing", "zero_pages", "pages_scanned", "pages_merged",
		"pages_broken", "full_scans", "folios_split", "rmap_items",
		"stable_nodes", "stable_items", "cpu_usecs",
	};
	long long absorbed = read_number("pages_merged"), peak[2];
	struct pair pair = make_pair();
	struct pair third = { .region = pair.region, .seed = pair.seed };
	size_t i;

	third.worker = start_worker(third.region, false);
	CHECK(merge_only_region(&third.worker) == 0);
	order(&third.worker, ORDER_FILL, third.seed);
	CHECK(merged(&pair));
	CHECK(merged(&third));

	for (i = 0; i < ARRAY_SIZE(counters); i++) {
		if (read_number(counters[i]) >= 0)
			continue;
		ksft_print_msg("%s is negative\n", counters[i]);
		failed = true;
	}
	peak[0] = read_number("pages_shared");
	peak[1] = read_number("pages_sharing");
	CHECK(peak[0] >= PAGES);
	CHECK(peak[1] >= 2 * PAGES);
	CHECK(read_number("stable_nodes") >= PAGES);
	CHECK(read_number("rmap_items") >= 2 * PAGES);
	CHECK(read_number("pages_merged") >= absorbed + 2 * PAGES);
	CHECK(read_number("pages_scanned") >= read_number("pages_merged"));
	CHECK(read_number("general_profit") > 0);
	CHECK(stat_of(third.worker.pid, "ksm_merging_pages") == PAGES);

	/* What nobody maps any more is not counted any more. */
	CHECK(order(&third.worker, ORDER_MADVISE, MADV_DONTNEED) == 0);
	CHECK(stat_of(third.worker.pid, "ksm_merging_pages") == 0);
	end_worker(&third.worker);
	end_pair(&pair);
	CHECK(wait_for(counters_fell, peak));
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: what a user sees of it.
 *
 * Processes write pages with contents that are known, the engine merges them, and
 * /proc/PID/pagemap says which frames they are in. It takes root, and a system on
 * which nobody else changes the settings of PKSM; they are as before afterwards.
 *
 *	pksm_tests [TEST...]
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kselftest.h"
#include "pksm_tests.h"
#include "pksm_util.h"

#define GROUP		"/sys/fs/cgroup/pksm_tests"

bool failed;
const char *skipped;

/* === settings === */

/* What the tests need; and what was there before. */
static struct setting {
	const char *name;
	const char *wanted;
	char before[32];
} settings[] = {
	{ .name = "run", .wanted = "1" },
	{ .name = "scope", .wanted = "all" },
	{ .name = "domain", .wanted = "user" },
	{ .name = "settle_millisecs", .wanted = "20" },
	{ .name = "rescan_seconds", .wanted = "20" },
	{ .name = "max_cpu", .wanted = "100" },
	{ .name = "max_page_sharing", .wanted = "256" },
	{ .name = "use_zero_pages", .wanted = "1" },
};

static pid_t main_pid;

static void save_settings(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(settings); i++)
		snprintf(settings[i].before, sizeof(settings[i].before), "%s",
			 read_text(settings[i].name));
}

static void restore_settings(void)
{
	size_t i;

	for (i = 0; getpid() == main_pid && i < ARRAY_SIZE(settings); i++)
		write_text(settings[i].name, settings[i].before);
}

static void make_settings(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		if (write_text(settings[i].name, settings[i].wanted))
			ksft_exit_fail_perror(settings[i].name);
	}
}

/* === merging, and writing === */

static void test_equal_pages_merge_unasked(void)
{
	struct pair pair = make_pair();

	CHECK(merged(&pair));
	CHECK(intact(&pair));
	CHECK(common(&pair) == PAGES);
	end_pair(&pair);
}

static void test_different_pages_stay_apart(void)
{
	struct pair pair = make_pair();

	/* In one byte of each page, the last of them in the last byte. */
	pair.region.at[PAGES * page_size - 1] ^= 1;
	CHECK(later_pages_merged());
	CHECK(common(&pair) == PAGES - 1);
	CHECK(count_wrong(pair.region, pair.seed) == 1);
	CHECK(order(&pair.worker, ORDER_WRONG, pair.seed) == 0);
	end_pair(&pair);
}

static void test_a_write_breaks_one_copy(void)
{
	struct pair pair = make_pair();
	long long broken;

	CHECK(merged(&pair));
	broken = read_number("pages_broken");
	order(&pair.worker, ORDER_WRITE, 3);
	CHECK(common(&pair) == PAGES - 1);
	CHECK(count_wrong(pair.region, pair.seed) == 0);
	CHECK(order(&pair.worker, ORDER_WRONG, pair.seed) == 1);
	pair.region.at[5 * page_size] ^= 1;
	CHECK(common(&pair) == PAGES - 2);
	CHECK(count_wrong(pair.region, pair.seed) == 1);
	CHECK(order(&pair.worker, ORDER_WRONG, pair.seed) == 1);
	CHECK(read_number("pages_broken") >= broken + 2);

	/* What is equal again is merged again. */
	order(&pair.worker, ORDER_WRITE, 3);
	pair.region.at[5 * page_size] ^= 1;
	CHECK(merged(&pair));
	CHECK(intact(&pair));
	end_pair(&pair);
}

static void test_fork_shares_what_is_merged(void)
{
	struct pair pair = make_pair();
	struct worker child;

	CHECK(merged(&pair));
	child = start_worker(pair.region, true);
	CHECK(count_common(child.pid, pair.region) == PAGES);
	order(&child, ORDER_WRITE, 0);
	CHECK(order(&child, ORDER_WRONG, pair.seed) == 1);
	CHECK(count_common(child.pid, pair.region) == PAGES - 1);
	CHECK(intact(&pair));
	end_worker(&child);
	CHECK(common(&pair) == PAGES);
	CHECK(intact(&pair));
	end_pair(&pair);
}

/* === pages of zeroes === */

static uint64_t zero_frame;

static bool all_zero_frame(void *arg)
{
	struct worker *worker = arg;
	size_t page;

	for (page = 0; page < worker->region.pages; page++) {
		if (frame_of(worker->pid,
			     worker->region.at + page * page_size) != zero_frame)
			return false;
	}
	return true;
}

static bool one_frame(void *arg)
{
	struct worker *worker = arg;
	uint64_t frame = frame_of(worker->pid, worker->region.at);
	size_t page;

	for (page = 1; page < worker->region.pages; page++) {
		if (frame_of(worker->pid,
			     worker->region.at + page * page_size) != frame)
			return false;
	}
	return true;
}

static void test_zeroes_become_the_zero_page(void)
{
	struct region region = map_region(PAGES), untouched = map_region(1);
	struct worker worker = start_worker(region, false);

	/* A read of what was never written to. */
	CHECK(count_wrong(untouched, 0) == 0);
	zero_frame = frame_of(0, untouched.at);
	CHECK(zero_frame != 0);

	CHECK(merge_only_region(&worker) == 0);
	order(&worker, ORDER_FILL, new_seed());
	order(&worker, ORDER_FILL, 0);
	CHECK(wait_for(all_zero_frame, &worker));
	CHECK(stat_of(worker.pid, "ksm_zero_pages") == PAGES);
	CHECK(read_number("zero_pages") >= PAGES);
	order(&worker, ORDER_WRITE, 2);
	CHECK(frame_of(worker.pid, region.at + 2 * page_size) != zero_frame);
	CHECK(order(&worker, ORDER_WRONG, 0) == 1);
	CHECK(stat_of(worker.pid, "ksm_zero_pages") == PAGES - 1);
	CHECK(order(&worker, ORDER_MADVISE, MADV_DONTNEED) == 0);
	CHECK(stat_of(worker.pid, "ksm_zero_pages") == 0);

	/* Or a page like others, where that is not wanted. */
	CHECK(write_text("use_zero_pages", "0") == 0);
	order(&worker, ORDER_FILL, new_seed());
	order(&worker, ORDER_FILL, 0);
	CHECK(wait_for(one_frame, &worker));
	CHECK(frame_of(worker.pid, region.at) != zero_frame);
	CHECK(order(&worker, ORDER_WRONG, 0) == 0);
	CHECK(stat_of(worker.pid, "ksm_zero_pages") == 0);
	end_worker(&worker);
	unmap_region(region);
	unmap_region(untouched);
}

/* === not to be merged === */

static void test_madvise_unmergeable_opts_out(void)
{
	struct pair pair = make_pair();

	CHECK(merged(&pair));
	CHECK(order(&pair.worker, ORDER_MADVISE, MADV_UNMERGEABLE) == 0);
	CHECK(common(&pair) == 0);
	CHECK(intact(&pair));
	CHECK(later_pages_merged());
	CHECK(common(&pair) == 0);
	fill_pair(&pair);
	CHECK(later_pages_merged());
	CHECK(common(&pair) == 0);
	CHECK(order(&pair.worker, ORDER_MADVISE, MADV_MERGEABLE) == 0);
	CHECK(merged(&pair));
	CHECK(intact(&pair));
	end_pair(&pair);
}

static void test_prctl_opts_out(void)
{
	struct pair pair = make_pair();

	CHECK(merged(&pair));
	CHECK(order(&pair.worker, ORDER_PRCTL, 0) == 0);
	CHECK(common(&pair) == 0);
	CHECK(intact(&pair));
	fill_pair(&pair);
	CHECK(later_pages_merged());
	CHECK(common(&pair) == 0);
	CHECK(order(&pair.worker, ORDER_PRCTL, 1) == 0);
	CHECK(merged(&pair));
	CHECK(intact(&pair));
	end_pair(&pair);
}

static void test_scope_madvise_wants_to_be_asked(void)
{
	struct pair pair = make_pair();

	CHECK(merged(&pair));
	CHECK(write_text("scope", "madvise") == 0);
	CHECK(common(&pair) == 0);
	CHECK(intact(&pair));
	end_pair(&pair);
	pair = make_pair();
	CHECK(later_pages_merged());
	CHECK(common(&pair) == 0);

	/* Both have to ask. */
	CHECK(order(&pair.worker, ORDER_MADVISE, MADV_MERGEABLE) == 0);
	CHECK(later_pages_merged());
	CHECK(common(&pair) == 0);
	CHECK(madvise(pair.region.at, PAGES * page_size, MADV_MERGEABLE) == 0);
	CHECK(merged(&pair));
	CHECK(intact(&pair));
	end_pair(&pair);
}

static void test_users_stay_apart(void)
{
	struct pair pair = make_pair();

	CHECK(order(&pair.worker, ORDER_SETUID, NOBODY) == 0);
	fill_pair(&pair);
	CHECK(later_pages_merged());
	CHECK(common(&pair) == 0);
	CHECK(intact(&pair));
	CHECK(write_text("domain", "global") == 0);
	CHECK(merged(&pair));
	CHECK(intact(&pair));
	CHECK(write_text("domain", "user") == 0);
	CHECK(common(&pair) == 0);
	CHECK(intact(&pair));
	end_pair(&pair);
}

/* === swap === */

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	ssize_t done;

	if (fd < 0)
		return -1;
	done = write(fd, text, strlen(text));
	close(fd);
	return done < 0 ? -1 : 0;
}

/* Move this process to a memory cgroup of its own. */
static bool enter_group(void)
{
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	mkdir(GROUP, 0755);
	return !access(GROUP "/memory.reclaim", W_OK) &&
	       !write_file(GROUP "/cgroup.procs", "0");
}

static void leave_group(void)
{
	write_file("/sys/fs/cgroup/cgroup.procs", "0");
	rmdir(GROUP);
}

static bool has_swap(void)
{
	FILE *file = fopen("/proc/swaps", "r");
	char line[256];
	int lines = 0;

	while (file && fgets(line, sizeof(line), file))
		lines++;
	if (file)
		fclose(file);
	return lines > 1;
}

static bool some_swapped_out(void *arg)
{
	struct pair *pair = arg;
	size_t page, out = 0;

	write_file(GROUP "/memory.reclaim", "16M");
	for (page = 0; page < PAGES; page++)
		out += !frame_of(0, pair->region.at + page * page_size);
	return out > PAGES / 2;
}

static void test_merged_pages_are_swapped(void)
{
	struct pair pair;

	if (!has_swap()) {
		skipped = "there is no swap";
		return;
	}
	if (!enter_group()) {
		leave_group();
		skipped = "there is no memory.reclaim";
		return;
	}
	pair = make_pair();
	CHECK(merged(&pair));
	CHECK(wait_for(some_swapped_out, &pair));
	CHECK(intact(&pair));
	CHECK(merged(&pair));
	CHECK(intact(&pair));
	end_pair(&pair);
	leave_group();
}

/* === */

#define TEST(name) { #name, test_##name }

static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	TEST(equal_pages_merge_unasked),
	TEST(different_pages_stay_apart),
	TEST(a_write_breaks_one_copy),
	TEST(fork_shares_what_is_merged),
	TEST(zeroes_become_the_zero_page),
	TEST(madvise_unmergeable_opts_out),
	TEST(prctl_opts_out),
	TEST(scope_madvise_wants_to_be_asked),
	TEST(users_stay_apart),
	TEST(run_2_unmerges_everything),
	TEST(run_0_keeps_what_is_merged),
	TEST(controls_refuse_nonsense),
	TEST(controls_read_back),
	TEST(only_root_writes),
	TEST(counters_obey_their_laws),
	TEST(merged_pages_are_swapped),
};

static bool is_chosen(const char *name, int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++) {
		if (!strcmp(name, argv[i]))
			return true;
	}
	return argc < 2;
}

static void run_test(size_t nr)
{
	const char *name = tests[nr].name;

	failed = false;
	skipped = NULL;
	make_settings();
	tests[nr].run();
	if (skipped && !failed)
		ksft_test_result_code(KSFT_SKIP, name, "%s", skipped);
	else
		ksft_test_result(!failed, "%s\n", name);
}

int main(int argc, char **argv)
{
	unsigned int plan = 0;
	size_t i;

	ksft_print_header();
	if (access(PKSM_DIR, F_OK))
		ksft_exit_skip("there is no " PKSM_DIR ": not PKSM\n");
	if (geteuid())
		ksft_exit_skip("only root may do this\n");
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		plan += is_chosen(tests[i].name, argc, argv);
	if (!plan)
		ksft_exit_fail_msg("there is no test %s\n", argv[1]);
	page_size = sysconf(_SC_PAGESIZE);
	main_pid = getpid();
	save_settings();
	atexit(restore_settings);

	ksft_set_plan(plan);
	for (i = 0; i < ARRAY_SIZE(tests); i++) {
		if (is_chosen(tests[i].name, argc, argv))
			run_test(i);
	}
	ksft_finished();
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: what its tests are made of. See pksm_util.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../kselftest.h"
#include "pksm_util.h"

/* Between two looks, in microseconds. */
#define LOOK_AGAIN	10000

#define PAGEMAP_PRESENT	0x8000000000000000ULL
#define PAGEMAP_FRAME	0x007fffffffffffffULL

size_t page_size;

/* === the files of the engine === */

const char *read_text(const char *name)
{
	static char text[256];
	char path[256];
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), "%s%s%s", *name == '/' ? "" : PKSM_DIR,
		 *name == '/' ? "" : "/", name);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		ksft_exit_fail_perror(path);
	length = read(fd, text, sizeof(text) - 1);
	if (length < 0)
		ksft_exit_fail_perror(path);
	close(fd);
	text[length] = 0;
	text[strcspn(text, "\n")] = 0;
	return text;
}

long long read_number(const char *name)
{
	return strtoll(read_text(name), NULL, 10);
}

int write_text(const char *name, const char *text)
{
	char path[256];
	int fd, err = 0;

	snprintf(path, sizeof(path), PKSM_DIR "/%s", name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return errno;
	if (write(fd, text, strlen(text)) < 0)
		err = errno;
	close(fd);
	return err;
}

int write_number(const char *name, long long number)
{
	char text[32];

	snprintf(text, sizeof(text), "%lld", number);
	return write_text(name, text);
}

long long stat_of(pid_t pid, const char *name)
{
	static char path[64], line[128];
	long long number = -1;
	size_t length = strlen(name);
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/ksm_stat", pid);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file)) {
		if (!strncmp(line, name, length) && line[length] == ' ')
			number = strtoll(line + length, NULL, 10);
	}
	if (file)
		fclose(file);
	return number;
}

bool wait_for(bool (*condition)(void *arg), void *arg)
{
	struct timespec now, end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += PATIENCE;
	while (!condition(arg)) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec > end.tv_sec)
			return condition(arg);
		usleep(LOOK_AGAIN);
	}
	return true;
}

/* === regions === */

static struct region map_region_at(void *at, size_t pages)
{
	struct region region = { .pages = pages };

	region.at = mmap(at, pages * page_size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0),
			 -1, 0);
	if (region.at == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	/* What may not be huge is of order 0; where nothing may be, it is anyway. */
	madvise(region.at, pages * page_size, MADV_NOHUGEPAGE);
	return region;
}

struct region map_region(size_t pages)
{
	return map_region_at(NULL, pages);
}

void unmap_region(struct region region)
{
	munmap(region.at, region.pages * page_size);
}

/* A word of a page (splitmix64). */
static uint64_t word_of(uint64_t seed, size_t page, size_t word)
{
	uint64_t x = seed + (page * 4096 + word + 1) * 0x9e3779b97f4a7c15ULL;

	if (!seed)
		return 0;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

void fill_region(struct region region, uint64_t seed)
{
	size_t page, word;

	for (page = 0; page < region.pages; page++) {
		uint64_t *words = (uint64_t *)(region.at + page * page_size);

		for (word = 0; word < page_size / sizeof(*words); word++)
			words[word] = word_of(seed, page, word);
	}
}

size_t count_wrong(struct region region, uint64_t seed)
{
	size_t page, word, wrong = 0;

	for (page = 0; page < region.pages; page++) {
		uint64_t *words = (uint64_t *)(region.at + page * page_size);

		for (word = 0; word < page_size / sizeof(*words); word++) {
			if (words[word] != word_of(seed, page, word)) {
				wrong++;
				break;
			}
		}
	}
	return wrong;
}

uint64_t new_seed(void)
{
	static uint64_t last;

	/* So that tests which run at the same time have nothing in common. */
	if (!last)
		last = (uint64_t)getpid() << 32;
	return ++last;
}

uint64_t frame_of(pid_t pid, const void *at)
{
	char path[64] = "/proc/self/pagemap";
	uint64_t entry = 0;
	int fd;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		ksft_exit_fail_perror(path);
	if (pread(fd, &entry, sizeof(entry),
		  (uintptr_t)at / page_size * sizeof(entry)) != sizeof(entry))
		ksft_exit_fail_perror(path);
	close(fd);
	return entry & PAGEMAP_PRESENT ? entry & PAGEMAP_FRAME : 0;
}

size_t count_common(pid_t pid, struct region region)
{
	size_t page, common = 0;

	for (page = 0; page < region.pages; page++) {
		const char *at = region.at + page * page_size;
		uint64_t frame = frame_of(0, at);

		common += frame && frame == frame_of(pid, at);
	}
	return common;
}

/* Are both halves of a region in the same frames? */
static bool halves_merged(void *arg)
{
	struct region *region = arg;
	size_t half = region->pages / 2, page;

	for (page = 0; page < half; page++) {
		const char *at = region->at + page * page_size;

		if (frame_of(0, at) != frame_of(0, at + half * page_size))
			return false;
	}
	return true;
}

static bool fill_and_merge(struct region both)
{
	struct region first = { both.at, 1 };
	struct region second = { both.at + page_size, 1 };
	uint64_t seed = new_seed();

	fill_region(first, seed);
	fill_region(second, seed);
	return wait_for(halves_merged, &both);
}

static bool pair_merged(void)
{
	struct region both = map_region(2);
	bool merged;

	madvise(both.at, 2 * page_size, MADV_MERGEABLE);
	/* What is broken off by a write waits longer the next time. */
	merged = fill_and_merge(both) && fill_and_merge(both);
	unmap_region(both);
	return merged;
}

/*
 * The engine looks at the pages that have settled together in no particular order.
 * The second pair settles when the first has been merged, and with it is done what
 * came before the first.
 */
bool later_pages_merged(void)
{
	return pair_merged() && pair_merged();
}

/* === processes === */

struct message {
	enum order order;
	uint64_t argument;
};

static long obey(struct region region, struct message *message)
{
	size_t size = region.pages * page_size;
	long done = 0;

	switch (message->order) {
	case ORDER_FILL:
		fill_region(region, message->argument);
		break;
	case ORDER_WRONG:
		return count_wrong(region, message->argument);
	case ORDER_WRITE:
		region.at[message->argument * page_size] ^= 1;
		break;
	case ORDER_MADVISE:
		done = madvise(region.at, size, message->argument);
		break;
	case ORDER_PRCTL:
		done = prctl(PR_SET_MEMORY_MERGE, message->argument, 0, 0, 0);
		break;
	case ORDER_SETUID:
		done = setuid(message->argument);
		break;
	case ORDER_EXIT:
		_exit(0);
	}
	return done < 0 ? -errno : done;
}

struct worker start_worker(struct region region, bool inherit)
{
	struct worker worker = { .region = region };
	int orders[2], answers[2];
	struct message message;
	long answer;

	if (pipe(orders) || pipe(answers))
		ksft_exit_fail_perror("pipe");
	fflush(stdout);
	worker.pid = fork();
	if (worker.pid < 0)
		ksft_exit_fail_perror("fork");
	if (worker.pid) {
		close(orders[0]);
		close(answers[1]);
		worker.orders = orders[1];
		worker.answers = answers[0];
		return worker;
	}

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(orders[1]);
	close(answers[0]);
	if (!inherit) {
		unmap_region(region);
		map_region_at(region.at, region.pages);
	}
	while (read(orders[0], &message, sizeof(message)) == sizeof(message)) {
		answer = obey(region, &message);
		if (write(answers[1], &answer, sizeof(answer)) != sizeof(answer))
			break;
	}
	_exit(1);
}

long order(struct worker *worker, enum order order, uint64_t argument)
{
	struct message message = { order, argument };
	long answer;

	if (write(worker->orders, &message, sizeof(message)) != sizeof(message))
		ksft_exit_fail_perror("cannot write to a worker");
	if (read(worker->answers, &answer, sizeof(answer)) != sizeof(answer))
		ksft_exit_fail_perror("cannot read from a worker");
	return answer;
}

int merge_only_region(struct worker *worker)
{
	long done = order(worker, ORDER_PRCTL, 0);

	if (!done)
		done = order(worker, ORDER_MADVISE, MADV_MERGEABLE);
	return -done;
}

void end_worker(struct worker *worker)
{
	struct message message = { .order = ORDER_EXIT };
	int status;

	if (write(worker->orders, &message, sizeof(message)) != sizeof(message))
		ksft_print_msg("worker %d is gone\n", worker->pid);
	close(worker->orders);
	close(worker->answers);
	waitpid(worker->pid, &status, 0);
}

/* === two processes with equal pages === */

static bool all_common(void *arg)
{
	struct pair *pair = arg;

	return count_common(pair->worker.pid, pair->region) == PAGES;
}

size_t common(struct pair *pair)
{
	return count_common(pair->worker.pid, pair->region);
}

void fill_pair(struct pair *pair)
{
	pair->seed = new_seed();
	fill_region(pair->region, pair->seed);
	order(&pair->worker, ORDER_FILL, pair->seed);
}

struct pair make_pair(void)
{
	struct pair pair = { .region = map_region(PAGES) };

	pair.worker = start_worker(pair.region, false);
	fill_pair(&pair);
	return pair;
}

bool merged(struct pair *pair)
{
	return wait_for(all_common, pair);
}

bool intact(struct pair *pair)
{
	return !count_wrong(pair->region, pair->seed) &&
	       !order(&pair->worker, ORDER_WRONG, pair->seed);
}

void end_pair(struct pair *pair)
{
	end_worker(&pair->worker);
	unmap_region(pair->region);
}

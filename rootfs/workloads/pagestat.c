// SPDX-License-Identifier: GPL-2.0-only
/*
 * pagestat - what the page map says about merging, independently of the
 * engine's own counters: /proc/PID/pagemap and smaps, /proc/kpageflags and
 * /proc/kpagecount. Needs root.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common.h"

/* How often everything is looked at until the engine stands still meanwhile. */
#define MOST_LOOKS	20
#define EXIT_RESTLESS	4

static void __noreturn usage(void)
{
	printf("usage: pagestat --pid PID [--range START-END] | --all\n"
		"\n"
		"Prints one line of JSON: pages present, swapped, anonymous, behind the zero\n"
		"page, PTEs of merged pages (merged_ptes by kpageflags, smaps_ptes by smaps), merged\n"
		"pages (merged_pages), anonymous pages whose map count is not the number of PTEs\n"
		"found (mapcount_wrong, which only --all can judge), by how many pages RssAnon and\n"
		"VmSwap of a process's status differ from its page map (rss_wrong), the sums of\n"
		"what /proc/PID/ksm_stat says (ksm_zero_pages, ksm_merging_pages), and the engine's\n"
		"counters. With --all these are of one moment: should the engine merge anything\n"
		"meanwhile, or a process not be at rest, all is looked at again (looks).\n"
		"\n"
		"  --pid PID          one process; 0 is pagestat itself\n"
		"  --range START-END  only these addresses (hexadecimal, as in /proc/PID/maps)\n"
		"  --all              every process\n"
		"\n"
		"Exit status: 0, 1 a map count or RSS is wrong, 2 usage, 3 not readable, 4 the engine\n"
		"has not stood still during any of %d looks.\n", MOST_LOOKS);
	exit(0);
}

/* What the kernel counts as anonymous memory of a process, in pages; 0 if it has none. */
static uint64_t counted_pages(pid_t pid)
{
	unsigned long long kib, sum = 0;
	char path[64], line[256];
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	status = fopen(path, "re");
	if (!status)
		return 0;
	while (fgets(line, sizeof(line), status))
		if (sscanf(line, "RssAnon: %llu kB", &kib) == 1 ||
		    sscanf(line, "VmSwap: %llu kB", &kib) == 1)
			sum += kib;
	fclose(status);
	return sum * 1024 / PAGE_BYTES;
}

/* What the processes say of themselves, summed up. */
static struct {
	uint64_t rss_wrong, ksm_zero_pages, ksm_merging_pages;
	bool quiet;
} said;

static void add_ksm_stat(pid_t pid)
{
	char path[64], line[256];
	long long n;
	FILE *stat;

	snprintf(path, sizeof(path), "/proc/%d/ksm_stat", pid);
	stat = fopen(path, "re");
	while (stat && fgets(line, sizeof(line), stat)) {
		if (sscanf(line, "ksm_zero_pages %lld", &n) == 1)
			said.ksm_zero_pages += n;
		else if (sscanf(line, "ksm_merging_pages %lld", &n) == 1)
			said.ksm_merging_pages += n;
	}
	if (stat)
		fclose(stat);
}

static int add_process(pid_t pid, struct pagestat *st)
{
	uint64_t before = st->anon + st->merged_ptes + st->swapped, seen, counted;
	unsigned long long start, end;
	char path[64], line[512];
	int err = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	maps = fopen(path, "re");
	if (!maps)
		return -errno;
	while (!err && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%llx-%llx", &start, &end) != 2)
			continue;
		/* The vsyscall page is nobody's. */
		if (start >> 63)
			continue;
		err = pagestat_add(pid, start, end, st);
	}
	fclose(maps);
	add_ksm_stat(pid);
	if (err || pid == getpid())	/* its own change as it looks */
		return err;
	seen = st->anon + st->merged_ptes + st->swapped - before;
	counted = counted_pages(pid);
	if (seen != counted && !said.quiet)
		fprintf(stderr, "%s: process %d has %" PRIu64 " anonymous pages, and counts %" PRIu64 "\n",
			prog_name, pid, seen, counted);
	said.rss_wrong += seen > counted ? seen - counted : counted - seen;
	return 0;
}

static unsigned int add_all(struct pagestat *st)
{
	unsigned int processes = 0;
	struct dirent *d;
	DIR *proc;
	int err;

	proc = opendir("/proc");
	if (!proc)
		die(EXIT_ENV, "/proc: %s", strerror(errno));
	while ((d = readdir(proc))) {
		pid_t pid = atoi(d->d_name);

		if (pid <= 0)
			continue;
		err = add_process(pid, st);
		if (err == -ENOENT || err == -ESRCH)
			continue;
		if (err)
			die(EXIT_ENV, "process %d: %s", pid, strerror(-err));
		processes++;
	}
	closedir(proc);
	return processes;
}

/*
 * What changes with every merge and with every end of one. A page may be merged and
 * gone again between two looks: that is why merges are counted as well.
 */
static const char *const moving[] = {
	"pages_merged", "pages_shared", "pages_sharing", "pages_broken", "zero_pages",
};

struct moment {
	int64_t value[ARRAY_SIZE(moving)];
};

static struct moment moment_now(void)
{
	struct moment now = { 0 };
	size_t i;

	/* Stock KSM has not got all of them. */
	for (i = 0; i < ARRAY_SIZE(moving); i++)
		counter_read(moving[i], &now.value[i]);
	return now;
}

/*
 * Look at every process while the engine stands still. @counters is what the engine
 * says of the same time, as JSON. A process may make a page, or lose one, while it is
 * looked at: what is really wrong is so each time. Return: the number of looks, 0 if
 * the engine never stood still.
 */
static unsigned int look_at_all(struct pagestat *st, unsigned int *processes, char **counters)
{
	struct moment before, after;
	unsigned int looks;
	bool still;
	size_t len;
	FILE *text;

	for (looks = 1; looks <= MOST_LOOKS; looks++) {
		before = moment_now();
		memset(&said, 0, sizeof(said));
		said.quiet = looks < MOST_LOOKS;
		*processes = add_all(st);
		pagestat_finish(st);
		text = open_memstream(counters, &len);
		if (!text)
			die(EXIT_ENV, "%s", strerror(errno));
		json_counters(text);
		fclose(text);
		after = moment_now();
		still = !memcmp(&before, &after, sizeof(before));
		if (still && (looks == MOST_LOOKS || (!st->mapcount_wrong && !said.rss_wrong)))
			return looks;
		pagestat_free(st);
		free(*counters);
		sleep_ms(20);
	}
	return 0;
}

/* Says who maps the page frame @pfn: once more over all page maps. */
static void say_mappers(uint64_t pfn)
{
	char path[64], line[512];
	uint64_t entry, flags = 0;
	struct dirent *d;
	DIR *proc;
	int fd;

	fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && pread(fd, &flags, sizeof(flags), (off_t)(pfn * 8)) > 0)
		fprintf(stderr, "%s: page 0x%" PRIx64 " has kpageflags 0x%" PRIx64 "\n",
			prog_name, pfn, flags);
	proc = opendir("/proc");
	while (proc && (d = readdir(proc))) {
		unsigned long long start, end, addr;
		int pagemap;
		FILE *maps;

		snprintf(path, sizeof(path), "/proc/%.16s/maps", d->d_name);
		maps = atoi(d->d_name) > 0 ? fopen(path, "re") : NULL;
		if (!maps)
			continue;
		snprintf(path, sizeof(path), "/proc/%.16s/pagemap", d->d_name);
		pagemap = open(path, O_RDONLY | O_CLOEXEC);
		while (fgets(line, sizeof(line), maps)) {
			if (sscanf(line, "%llx-%llx", &start, &end) != 2 || start >> 63)
				continue;
			for (addr = start; addr < end; addr += PAGE_BYTES)
				if (pread(pagemap, &entry, 8, (off_t)(addr / PAGE_BYTES * 8)) == 8 &&
				    entry >> 63 && (entry & ((1ULL << 55) - 1)) == pfn)
					fprintf(stderr, "%s: it is at 0x%llx of process %s: %s",
						prog_name, addr, d->d_name, line);
		}
		fclose(maps);
		close(pagemap);
	}
	if (proc)
		closedir(proc);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pid", required_argument, NULL, 'p' },
		{ "range", required_argument, NULL, 'r' },
		{ "all", no_argument, NULL, 'a' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	unsigned long long start = 0, end = 0;
	struct pagestat st = { 0 };
	unsigned int processes = 1, looks = 1;
	char *counters = NULL;
	bool all = false, range = false;
	pid_t pid = -1;
	int c, err;
	char tail;

	prog_start("pagestat");
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			pid = (pid_t)parse_number("--pid", optarg, 0, 1 << 22);
			if (!pid)
				pid = getpid();
			break;
		case 'r':
			if (sscanf(optarg, "%llx-%llx%c", &start, &end, &tail) != 2 ||
			    start >= end)
				die(EXIT_USAGE, "--range: \"%s\" is not START-END", optarg);
			range = true;
			break;
		case 'a':
			all = true;
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	if (all == (pid >= 0))
		bad_usage("give either --pid or --all");
	if (all && range)
		bad_usage("--range is for --pid");

	if (all) {
		/* What it does to its own memory meanwhile is not to be merged. */
		prctl(PR_SET_MEMORY_MERGE, 0UL, 0, 0, 0);
		looks = look_at_all(&st, &processes, &counters);
		if (!looks)
			die(EXIT_RESTLESS, "the engine does not stand still");
	} else {
		err = range ? pagestat_add(pid, start, end, &st) : add_process(pid, &st);
		if (err)
			die(EXIT_ENV, "process %d: %s", pid, strerror(-err));
		pagestat_finish(&st);
	}
	printf("{\"tool\": \"pagestat\", \"processes\": %u, \"pages\": %" PRIu64
	       ", \"present\": %" PRIu64 ", \"swapped\": %" PRIu64 ", \"anon\": %" PRIu64
	       ", \"file\": %" PRIu64 ", \"zero\": %" PRIu64 ", \"merged_ptes\": %" PRIu64
	       ", \"smaps_ptes\": %" PRIu64 ", \"merged_pages\": %" PRIu64
	       ", \"mapcount_wrong\": %" PRIu64
	       ", \"rss_wrong\": %" PRIu64 ", \"ksm_zero_pages\": %" PRIu64
	       ", \"ksm_merging_pages\": %" PRIu64 ", \"looks\": %u, \"counters\": %s}\n",
	       processes, st.pages, st.present, st.swapped, st.anon, st.file, st.zero,
	       st.merged_ptes, st.smaps_ptes, st.merged_pages, st.mapcount_wrong, said.rss_wrong,
	       said.ksm_zero_pages, said.ksm_merging_pages, looks, counters ? counters : "{}");
	if (all && st.mapcount_wrong) {
		say_mappers(st.wrong_pfn);
		die(EXIT_WRONG, "%" PRIu64 " pages have a wrong map count; the first, 0x%" PRIx64
		    ", has %" PRIu64 " PTEs and counts %" PRIu64,
		    st.mapcount_wrong, st.wrong_pfn, st.wrong_ptes, st.wrong_count);
	}
	if (said.rss_wrong)
		die(EXIT_WRONG, "RSS is wrong by %" PRIu64 " pages", said.rss_wrong);
	pagestat_free(&st);
	free(counters);
	return 0;
}

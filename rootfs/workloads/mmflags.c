// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmflags - what fork, exec and madvise do to the flags of an address space.
 *
 * "inherit" sets PR_SET_MEMORY_MERGE and tells what the process itself, a child,
 * and a program executed then have of it, and whether a mapping made then is
 * marked as mergeable. "keep" advises mappings with flags in the upper half of
 * vm_flags, and tells whether they have these still. "zero" forks with zero pages
 * of which the child gets a half. "chunks" maps a file piece by piece, and tells how
 * many mappings that makes. One line of JSON.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE		0x08
#endif
#ifndef __NR_mseal
#define __NR_mseal		462
#endif

#define SETTLE_MS	120000
#define REGION		(16 * PAGE_BYTES)
#define ZERO_PAGES	256UL

static char *map_some(int flags, size_t size)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	return p;
}

/* Does the mapping at @addr have that flag, as smaps abbreviates it? */
static bool has_flag(const void *addr, const char *flag)
{
	unsigned long long first, last;
	bool inside = false, found = false;
	char line[512], word[8];
	FILE *smaps = fopen("/proc/self/smaps", "re");

	if (!smaps)
		die(EXIT_ENV, "smaps: %s", strerror(errno));
	snprintf(word, sizeof(word), " %s ", flag);
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%llx-%llx ", &first, &last) == 2)
			inside = first <= (uintptr_t)addr && (uintptr_t)addr < last;
		else if (inside && !strncmp(line, "VmFlags:", 8))
			found = strstr(line, word);
	}
	fclose(smaps);
	return found;
}

/* A line of /proc/self/ksm_stat. */
static int64_t ksm_stat(const char *name)
{
	char line[128], key[64];
	long long value;
	FILE *f = fopen("/proc/self/ksm_stat", "re");

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%63s %lld", key, &value) == 2 && !strcmp(key, name)) {
			fclose(f);
			return value;
		}
	}
	die(EXIT_ENV, "ksm_stat has no %s", name);
}

/* ---- inherit ---------------------------------------------------------------- */

static void report(const char *who, const char *tail)
{
	char *new = map_some(MAP_PRIVATE, REGION);

	*new = 1;
	printf("\"%s\": {\"setting\": %d, \"mergeable\": %s}%s", who,
	       prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0), has_flag(new, "mg") ? "true" : "false", tail);
	fflush(stdout);
}

static void wait_for(pid_t pid)
{
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		die(EXIT_WRONG, "a child ended badly");
}

static int inherit(const char *value)
{
	pid_t pid;

	if (prctl(PR_SET_MEMORY_MERGE, parse_number("inherit", value, 0, 1), 0, 0, 0))
		die(EXIT_ENV, "PR_SET_MEMORY_MERGE: %s", strerror(errno));
	printf("{\"tool\": \"mmflags\", \"ok\": true, ");
	report("self", ", ");
	pid = fork();
	if (!pid) {
		report("fork", ", ");
		execl("/proc/self/exe", "mmflags", "report", "exec after fork", ", ", NULL);
		_exit(EXIT_ENV);
	}
	wait_for(pid);
	execl("/proc/self/exe", "mmflags", "report", "exec", "}\n", NULL);
	die(EXIT_ENV, "exec: %s", strerror(errno));
}

/* ---- keep -------------------------------------------------------------------- */

static void advise(char *p, int advice)
{
	if (madvise(p, REGION, advice))
		die(EXIT_ENV, "madvise %d: %s", advice, strerror(errno));
}

static int keep(void)
{
	char *sealed = map_some(MAP_PRIVATE, REGION), *droppable = map_some(MAP_DROPPABLE, REGION);
	bool was_sealed, was_droppable;

	if (syscall(__NR_mseal, sealed, REGION, 0))
		die(EXIT_ENV, "mseal: %s", strerror(errno));
	was_sealed = munmap(sealed, REGION) && errno == EPERM;
	was_droppable = has_flag(droppable, "dp");
	advise(sealed, MADV_MERGEABLE);
	advise(sealed, MADV_UNMERGEABLE);
	advise(droppable, MADV_UNMERGEABLE);
	printf("{\"tool\": \"mmflags\", \"ok\": true, \"was_sealed\": %d, \"was_droppable\": %d, "
	       "\"sealed\": %d, \"droppable\": %d}\n", was_sealed, was_droppable,
	       munmap(sealed, REGION) && errno == EPERM, has_flag(droppable, "dp"));
	return 0;
}

/* ---- zero --------------------------------------------------------------------- */

static int zero(void)
{
	char *given = map_some(MAP_PRIVATE, ZERO_PAGES * PAGE_BYTES);
	char *kept = map_some(MAP_PRIVATE, ZERO_PAGES * PAGE_BYTES);
	int64_t before, parent, child;
	int64_t *said = untracked_alloc(sizeof(*said));
	pid_t pid;
	size_t i;

	if (madvise(kept, ZERO_PAGES * PAGE_BYTES, MADV_DONTFORK))
		die(EXIT_ENV, "MADV_DONTFORK: %s", strerror(errno));
	madvise(given, ZERO_PAGES * PAGE_BYTES, MADV_MERGEABLE);
	madvise(kept, ZERO_PAGES * PAGE_BYTES, MADV_MERGEABLE);
	before = ksm_stat("ksm_zero_pages");
	for (i = 0; i < ZERO_PAGES * PAGE_BYTES; i += PAGE_BYTES)
		given[i] = kept[i] = 0;
	if (!engine_settle(SETTLE_MS))
		die(EXIT_ENV, "the engine did not settle");
	parent = ksm_stat("ksm_zero_pages");
	pid = fork();
	if (!pid) {
		*said = ksm_stat("ksm_zero_pages");
		_exit(0);
	}
	wait_for(pid);
	child = *said;
	printf("{\"tool\": \"mmflags\", \"ok\": true, \"pages\": %lu, \"before\": %" PRId64
	       ", \"parent\": %" PRId64 ", \"child\": %" PRId64 ", \"after\": %" PRId64 "}\n",
	       ZERO_PAGES, before, parent, child, ksm_stat("ksm_zero_pages"));
	return 0;
}

/* ---- chunks ------------------------------------------------------------------- */

static int chunks(void)
{
	char *all = mmap(NULL, REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	unsigned long long first;
	unsigned int mappings = 0;
	char line[512];
	size_t at;
	FILE *maps;

	if (all == MAP_FAILED || fd < 0)
		die(EXIT_ENV, "no memory, or not this program: %s", strerror(errno));
	for (at = 0; at < REGION; at += PAGE_BYTES)
		if (mmap(all + at, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
			 fd, (off_t)at) == MAP_FAILED)
			die(EXIT_ENV, "mmap: %s", strerror(errno));
	maps = fopen("/proc/self/maps", "re");
	while (maps && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%llx-", &first) == 1 && first >= (uintptr_t)all &&
		    first < (uintptr_t)all + REGION)
			mappings++;
	printf("{\"tool\": \"mmflags\", \"ok\": true, \"mappings\": %u, \"mergeable\": %s}\n",
	       mappings, has_flag(all, "mg") ? "true" : "false");
	return 0;
}

int main(int argc, char **argv)
{
	prog_start("mmflags");
	if (argc == 2 && !strcmp(argv[1], "chunks"))
		return chunks();
	if (argc == 4 && !strcmp(argv[1], "report")) {
		report(argv[2], argv[3]);
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "inherit"))
		return inherit(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "keep"))
		return keep();
	if (argc == 2 && !strcmp(argv[1], "zero"))
		return zero();
	if (argc == 2 && !strcmp(argv[1], "--help")) {
		puts("usage: mmflags inherit 0|1 | keep | zero | chunks");
		return 0;
	}
	bad_usage("give inherit 0, inherit 1, keep, zero or chunks");
}

// SPDX-License-Identifier: GPL-2.0-only
/* Looking at a run of fuzzmm, operation by operation; see fuzz.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "../fuzz.h"

#define PAGEMAP_PRESENT(entry)	((entry) >> 63)
#define PAGEMAP_PFN(entry)	((entry) & ((1ULL << 55) - 1))

static FILE *trace;
static bool spies;
static unsigned int spied_proc, spied_page;

void fuzz_trace(const char *path)
{
	trace = fopen(path, "we");
	if (!trace)
		die(FUZZ_ENV, "%s: %s", path, strerror(errno));
}

void fuzz_spy(const char *which)
{
	char tail[2];

	if (sscanf(which, "%u:%u%1s", &spied_proc, &spied_page, tail) != 2 ||
	    spied_proc >= FUZZ_MAX_PROCS || spied_page >= FUZZ_MAX_PAGES)
		bad_usage("--spy: \"%s\" is not PROCESS:PAGE", which);
	spies = true;
}

static void say_trace(const struct fuzz_op *op, const struct fuzz_result *r)
{
	int64_t merged = 0, broken = 0;

	counter_read("pages_merged", &merged);
	counter_read("pages_broken", &broken);
	fprintf(trace, "%6" PRIu32 " %3d %3u %16" PRIx64 " %6" PRId64 " %6" PRId64 " ",
		op->number, r->err, r->pages, r->sum, merged, broken);
	fuzz_print(trace, op);
	fflush(trace);
}

/* Entry @number of a file that has one of 64 bits for each page; 0 if it has not. */
static uint64_t entry_of(const char *path, uint64_t number)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry), (off_t)(number * 8)) != (ssize_t)sizeof(entry))
		entry = 0;
	close(fd);
	return entry;
}

static void say_spied(const struct fuzz_op *op)
{
	uint64_t page = (uintptr_t)fuzz_page(spied_page) / PAGE_BYTES, entry = 0, flags = 0;
	const struct fuzz_proc *p = &fuzz->procs[spied_proc];
	static uint64_t last_entry, last_flags;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", p->pid);
	if (p->alive)
		entry = entry_of(path, page);
	if (PAGEMAP_PRESENT(entry))
		flags = entry_of("/proc/kpageflags", PAGEMAP_PFN(entry));
	if (entry == last_entry && flags == last_flags)
		return;
	last_entry = entry;
	last_flags = flags;
	fprintf(stderr, "%s: pagemap 0x%" PRIx64 " kpageflags 0x%" PRIx64 " after %" PRIu32 " ",
		prog_name, entry, flags, op->number);
	fuzz_print(stderr, op);
}

void fuzz_look(const struct fuzz_op *op, const struct fuzz_result *r)
{
	if (trace)
		say_trace(op, r);
	if (spies)
		say_spied(op);
}

// SPDX-License-Identifier: GPL-2.0-only
/* Lists of operations for fuzzmm: made of a seed, printed, read; see fuzz.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../fuzz.h"

struct fuzz_sizes fuzz_sizes = { .procs = 4, .pages = 96 };

#define RW	(NEED_MAPPED | NEED_READ | NEED_WRITE)
#define READ	(NEED_MAPPED | NEED_READ)
#define ANON	(NEED_MAPPED | NEED_ANON)
#define OWN	OF_PROCESS
#define SHARED	(OF_PROCESS | ON_SHARED)

const struct fuzz_kind_info fuzz_kinds[FUZZ_KINDS] = {
	[FUZZ_MAP] = { "map", 90, 48, 4, OWN | NEED_FREE, "0, 1 anonymous, 2 populated, 3 of a file" },
	[FUZZ_UNMAP] = { "unmap", 12, 10, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_DUP] = { "dup", 130, 16, 12, OWN | RW, "pages that others have, too" },
	[FUZZ_ZERO] = { "zero", 45, 8, 0, OWN | RW, "" },
	[FUZZ_UNIQUE] = { "unique", 30, 4, 1U << 30, OWN | RW, "" },
	[FUZZ_NEAR] = { "near", 20, 4, 48, OWN | RW, "dup but for a byte" },
	[FUZZ_POKE] = { "poke", 90, 3, 1U << 20, OWN | RW, "offset + 4096 * value" },
	[FUZZ_RECEIVE] = { "receive", 25, 2, 1U << 24, OWN | RW | NEED_SURE, "by read(2)" },
	[FUZZ_SEND] = { "send", 15, 2, 0, OWN | READ | NEED_SURE, "by write(2)" },
	[FUZZ_VERIFY] = { "verify", 140, 16, 0, OWN | READ, "" },
	[FUZZ_FORK] = { "fork", 12, 0, FUZZ_MAX_PROCS, OWN, "takes the place of that process" },
	[FUZZ_EXIT] = { "exit", 3, 0, 2, OWN, "1: verifies before" },
	[FUZZ_SPAWN] = { "spawn", 20, 0, 0, 0, "a new process where there is none" },
	[FUZZ_MOVE] = { "move", 18, 8, FUZZ_MAX_PAGES, OWN | NEED_MAPPED, "to that page" },
	[FUZZ_DONTUNMAP] = { "dontunmap", 4, 4, FUZZ_MAX_PAGES, OWN | ANON | NEED_UNLOCKED,
			     "move, and leave an empty place" },
	[FUZZ_GROW] = { "grow", 6, 4, 8, OWN | ANON, "by so many pages" },
	[FUZZ_SHRINK] = { "shrink", 3, 6, 0, OWN | NEED_MAPPED, "to the first page" },
	[FUZZ_PROTECT] = { "protect", 30, 8, 12, OWN | NEED_MAPPED, "0 none, 1 or 2 ro, else rw" },
	[FUZZ_MERGEABLE] = { "mergeable", 8, 32, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_UNMERGEABLE] = { "unmergeable", 9, 32, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_DONTNEED] = { "dontneed", 18, 6, 0, OWN | NEED_MAPPED | NEED_UNLOCKED, "" },
	[FUZZ_FREE] = { "free", 12, 6, 0, OWN | ANON | NEED_UNLOCKED, "MADV_FREE" },
	[FUZZ_PAGEOUT] = { "pageout", 15, 24, 0, OWN | NEED_MAPPED | NEED_UNLOCKED, "" },
	[FUZZ_COLD] = { "cold", 6, 24, 0, OWN | NEED_MAPPED | NEED_UNLOCKED, "" },
	[FUZZ_WILLNEED] = { "willneed", 6, 24, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_POPULATE_READ] = { "populate_read", 6, 24, 0, OWN | READ, "" },
	[FUZZ_POPULATE_WRITE] = { "populate_write", 8, 8, 0, OWN | RW, "" },
	[FUZZ_DONTFORK] = { "dontfork", 2, 4, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_DOFORK] = { "dofork", 4, 24, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_WIPEONFORK] = { "wipeonfork", 3, 6, 0, OWN | ANON, "" },
	[FUZZ_KEEPONFORK] = { "keeponfork", 4, 24, 0, OWN | ANON, "" },
	[FUZZ_COLLAPSE] = { "collapse", 4, FUZZ_MAX_PAGES, 0, OWN | ANON, "" },
	[FUZZ_HUGEPAGE] = { "hugepage", 3, FUZZ_MAX_PAGES, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_NOHUGEPAGE] = { "nohugepage", 2, 32, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_FLAG] = { "flag", 5, 12, 5, OWN | NEED_MAPPED,
			"MADV_NORMAL, RANDOM, SEQUENTIAL, DONTDUMP, DODUMP" },
	[FUZZ_DONTNEED_LOCKED] = { "dontneed_locked", 5, 4, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_GUARD] = { "guard", 4, 4, 0, OWN | ANON | NEED_UNLOCKED, "MADV_GUARD_INSTALL" },
	[FUZZ_UNGUARD] = { "unguard", 6, 24, 0, OWN | ANON | NEED_UNLOCKED, "" },
	[FUZZ_LOCK] = { "lock", 6, 8, 2, OWN | READ, "1: on fault" },
	[FUZZ_UNLOCK] = { "unlock", 12, 32, 0, OWN | NEED_MAPPED, "" },
	[FUZZ_PIN] = { "pin", 9, 1, 1U << 20, OWN | RW | NEED_SURE, "by vmsplice(2)" },
	[FUZZ_PIN_LONG] = { "pin_long", 6, 1, 1U << 20, OWN | RW | NEED_SURE,
			    "for io_uring(7)" },
	[FUZZ_UNPIN] = { "unpin", 24, 0, FUZZ_MAX_PINS, OWN, "and look at what it holds" },
	[FUZZ_UFFD_COPY] = { "uffd_copy", 7, 4, 12, OWN | RW | NEED_ANON | NEED_UNLOCKED, "" },
	[FUZZ_UFFD_ZERO] = { "uffd_zero", 5, 4, 0, OWN | RW | NEED_ANON | NEED_UNLOCKED, "" },
	[FUZZ_UFFD_MOVE] = { "uffd_move", 5, 1, FUZZ_MAX_PAGES,
			     OWN | RW | NEED_ANON | NEED_UNLOCKED | NEED_SURE, "to that page" },
	[FUZZ_UFFD_WP] = { "uffd_wp", 6, 8, FUZZ_MAX_WP, OWN | RW | NEED_ANON,
			   "write-protect, until the next by that descriptor" },
	[FUZZ_SHARE_DUP] = { "share_dup", 10, 4, 12, SHARED, "as dup, to memory of all" },
	[FUZZ_SHARE_POKE] = { "share_poke", 10, 2, 1U << 20, SHARED, "" },
	[FUZZ_SHARE_VERIFY] = { "share_verify", 10, 0, 0, SHARED, "" },
	[FUZZ_SHARE_ADVISE] = { "share_advise", 8, 4, 5, SHARED,
				"MADV_REMOVE, DONTNEED, PAGEOUT, WILLNEED, MERGEABLE" },
	[FUZZ_REMOTE] = { "remote", 10, 1, 1U << 20, OF_OUTSIDE | RW | NEED_SURE,
			  "a poke by process_vm_writev(2)" },
	[FUZZ_PTRACE] = { "ptrace", 5, 1, 1U << 20, OF_OUTSIDE | NEED_MAPPED | NEED_SURE, "" },
	[FUZZ_MEMFILE] = { "memfile", 6, 1, 1U << 20, OF_OUTSIDE | NEED_MAPPED | NEED_SURE,
			   "by /proc/PID/mem" },
	[FUZZ_ADVISE_OTHER] = { "advise_other", 10, 24, 4, OF_OUTSIDE | NEED_MAPPED | NEED_UNLOCKED,
				"process_madvise(2): COLD, PAGEOUT, WILLNEED, COLLAPSE" },
	[FUZZ_MERGE] = { "merge", 5, 0, 3, OWN, "prctl(PR_SET_MEMORY_MERGE), 0 or else 1" },
	[FUZZ_USER] = { "user", 5, 0, 4, OWN, "root or another; 3: nobody may look at it" },
	[FUZZ_JOIN] = { "join", 4, 0, 2, OF_OUTSIDE, "that memory cgroup" },
	[FUZZ_SET] = { "set", 22, 0, 1U << 16, 0, "a control of the engine" },
	[FUZZ_RECLAIM] = { "reclaim", 6, 0, 32, 0, "so many times 32 KiB from one of the groups" },
	[FUZZ_SWAPOFF] = { "swapoff", 1, 0, 0, 0, "and on again" },
	[FUZZ_COMPACT] = { "compact", 3, 0, 0, 0, "" },
	[FUZZ_DROP] = { "drop", 2, 0, 0, 0, "drop_caches" },
	[FUZZ_SLEEP] = { "sleep", 60, 0, 120, 0, "milliseconds, in which pksmd works" },
	[FUZZ_CHECK] = { "check", 4, 0, 0, 0, "of the engine itself, and of its counters" },
	[FUZZ_AUDIT] = { "audit", 1, 0, 0, 0, "pagestat --all" },
	[FUZZ_VERIFY_ALL] = { "verify_all", 3, 0, 0, 0, "" },
};

/* Controls, and what they may be set to: the usual more often. */
static const struct {
	const char *control, *value;
} settings[] = {
	{ "run", "1" }, { "run", "1" }, { "run", "1" }, { "run", "0" }, { "run", "2" },
	{ "run", "1" }, { "scope", "all" }, { "scope", "all" }, { "scope", "madvise" },
	{ "domain", "user" }, { "domain", "user" }, { "domain", "process" },
	{ "domain", "memcg" }, { "domain", "global" }, { "max_page_sharing", "2" },
	{ "max_page_sharing", "3" }, { "max_page_sharing", "8" },
	{ "max_page_sharing", "256" }, { "use_zero_pages", "1" }, { "use_zero_pages", "1" },
	{ "use_zero_pages", "0" }, { "settle_millisecs", "0" }, { "settle_millisecs", "10" },
	{ "settle_millisecs", "50" }, { "rescan_seconds", "1" }, { "rescan_seconds", "20" },
	{ "max_cpu", "100" }, { "max_cpu", "5" },
};

static bool left_out[FUZZ_KINDS];

void fuzz_setting(uint32_t arg, const char **control, const char **value)
{
	*control = settings[arg % ARRAY_SIZE(settings)].control;
	*value = settings[arg % ARRAY_SIZE(settings)].value;
}

static enum fuzz_kind kind_of(const char *name)
{
	unsigned int k;

	for (k = 0; k < FUZZ_KINDS && strcmp(name, fuzz_kinds[k].name); k++)
		;
	return k;
}

void fuzz_choose(const char *names, bool without)
{
	char *copy = strdup(names), *next = copy, *name;
	bool named[FUZZ_KINDS] = { false };
	unsigned int k, left = 0;

	while ((name = strsep(&next, ","))) {
		k = kind_of(name);
		if (k == FUZZ_KINDS)
			bad_usage("there is no operation \"%s\"", name);
		named[k] = true;
	}
	free(copy);
	for (k = 0; k < FUZZ_KINDS; k++) {
		left_out[k] |= named[k] == without;
		left += !left_out[k];
	}
	if (!left)
		bad_usage("no operation is left");
}

void fuzz_make(uint64_t seed, uint32_t number, struct fuzz_op *op)
{
	uint64_t random = content_key(seed, number, 0x66757a7a, 0);
	unsigned int k, sum = 0, pick;
	const struct fuzz_kind_info *info;

	for (k = 0; k < FUZZ_KINDS; k++)
		sum += left_out[k] ? 0 : fuzz_kinds[k].weight;
	pick = random % sum;
	for (k = 0; left_out[k] || pick >= fuzz_kinds[k].weight; k++)
		pick -= left_out[k] ? 0 : fuzz_kinds[k].weight;
	info = &fuzz_kinds[k];

	*op = (struct fuzz_op){ .number = number, .kind = k };
	random = mix64(random);
	if (info->needs & (OF_PROCESS | OF_OUTSIDE) || k == FUZZ_SPAWN)
		op->proc = random % fuzz_sizes.procs;
	if (info->most) {
		unsigned int most = random >> 48 & 7 ? (info->most + 3) / 4 : info->most;

		/* What is for ranges of any length is for long ones as well. */
		if (k == FUZZ_MAP || most == FUZZ_MAX_PAGES)
			most = info->most;
		op->page = (random >> 8) % fuzz_sizes.pages;
		op->pages = 1 + (random >> 32) % most;
		if (op->pages > fuzz_sizes.pages - op->page)
			op->pages = fuzz_sizes.pages - op->page;
	}
	if (info->args)
		op->arg = mix64(random) % info->args;
	if (k == FUZZ_FORK)
		op->arg %= fuzz_sizes.procs;
	else if (info->args == FUZZ_MAX_PAGES)
		op->arg %= fuzz_sizes.pages;
	else if (k == FUZZ_SET)
		op->arg %= ARRAY_SIZE(settings);
}

void fuzz_print(FILE *f, const struct fuzz_op *op)
{
	const struct fuzz_kind_info *info = &fuzz_kinds[op->kind];
	const char *control, *value;

	fputs(info->name, f);
	if (op->kind == FUZZ_SET) {
		fuzz_setting(op->arg, &control, &value);
		fprintf(f, " %s=%s\n", control, value);
		return;
	}
	if (info->needs & (OF_PROCESS | OF_OUTSIDE) || op->kind == FUZZ_SPAWN)
		fprintf(f, " %u", op->proc);
	if (info->most)
		fprintf(f, " %u+%u", op->page, op->pages);
	if (info->args)
		fprintf(f, " %" PRIu32, op->arg);
	fputc('\n', f);
}

static bool parse_setting(const char *text, struct fuzz_op *op)
{
	size_t n = strcspn(text, "=");

	for (op->arg = 0; op->arg < ARRAY_SIZE(settings); op->arg++)
		if (strlen(settings[op->arg].control) == n &&
		    !strncmp(settings[op->arg].control, text, n) && text[n] == '=' &&
		    !strcmp(settings[op->arg].value, text + n + 1))
			return true;
	return false;
}

/* The numbers behind the name, as fuzz_print() writes them. */
static bool parse_numbers(const char *text, struct fuzz_op *op)
{
	const struct fuzz_kind_info *info = &fuzz_kinds[op->kind];
	unsigned int proc = 0, page = 0, pages = 0;
	int n = 0;

	if (info->needs & (OF_PROCESS | OF_OUTSIDE) || op->kind == FUZZ_SPAWN) {
		if (sscanf(text, " %u%n", &proc, &n) != 1 || proc >= fuzz_sizes.procs)
			return false;
		text += n;
	}
	if (info->most) {
		if (sscanf(text, " %u+%u%n", &page, &pages, &n) != 2 ||
		    page >= fuzz_sizes.pages || !pages || pages > fuzz_sizes.pages - page)
			return false;
		text += n;
	}
	if (info->args) {
		if (sscanf(text, " %" SCNu32 "%n", &op->arg, &n) != 1 || op->arg >= info->args)
			return false;
		text += n;
	}
	if ((op->kind == FUZZ_FORK && op->arg >= fuzz_sizes.procs) ||
	    (info->args == FUZZ_MAX_PAGES && op->arg >= fuzz_sizes.pages))
		return false;
	op->proc = proc;
	op->page = page;
	op->pages = pages;
	return !text[strspn(text, " \n")];
}

static bool parse_sizes(const char *text)
{
	unsigned int procs, pages;
	char tail[2];

	if (sscanf(text, " %u %u %1s", &procs, &pages, tail) != 2 || !procs || !pages ||
	    procs > FUZZ_MAX_PROCS || pages > FUZZ_MAX_PAGES)
		return false;
	fuzz_sizes = (struct fuzz_sizes){ procs, pages };
	return true;
}

struct fuzz_op *fuzz_read(const char *path, uint32_t *n)
{
	FILE *f = strcmp(path, "-") ? fopen(path, "re") : stdin;
	struct fuzz_op *list = NULL;
	uint32_t room = 0, line = 0;
	char text[256], name[32];
	int skip;

	if (!f)
		die(EXIT_USAGE, "%s: %s", path, strerror(errno));
	for (*n = 0; fgets(text, sizeof(text), f);) {
		struct fuzz_op op = { .number = *n };
		bool fine;

		line++;
		if (sscanf(text, " %31s%n", name, &skip) != 1 || *name == '#')
			continue;
		op.kind = kind_of(name);
		text[strcspn(text, "\n")] = 0;
		if (!strcmp(name, "sizes") && !*n) {
			if (!parse_sizes(text + skip))
				die(EXIT_USAGE, "%s:%u: not \"sizes PROCESSES PAGES\"", path, line);
			continue;
		}
		if (op.kind == FUZZ_KINDS)
			die(EXIT_USAGE, "%s:%u: there is no operation \"%s\"", path, line, name);
		fine = op.kind == FUZZ_SET ?
			parse_setting(text + skip + strspn(text + skip, " "), &op) :
			parse_numbers(text + skip, &op);
		if (!fine)
			die(EXIT_USAGE, "%s:%u: \"%s\": not what %s takes", path, line, text, name);
		if (*n == room) {
			size_t old = room * sizeof(*list);
			struct fuzz_op *more;

			room = room ? 2 * room : 4096;
			more = untracked_alloc(room * sizeof(*list));
			if (list) {
				memcpy(more, list, old);
				munmap(list, old);
			}
			list = more;
		}
		list[(*n)++] = op;
	}
	if (f != stdin)
		fclose(f);
	if (!*n)
		die(EXIT_USAGE, "%s: there is no operation in it", path);
	return list;
}

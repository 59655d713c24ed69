// SPDX-License-Identifier: GPL-2.0-only
/*
 * holdpages - processes with a few pages of known contents, and where they lie.
 *
 * Made for looking at from outside: each process has a name of its own
 * (hold0, hold1, ...) and five pages. After the engine has settled, and
 * whenever a line of standard input asks for it, one line of JSON tells
 * the address of each page, its page frame and what /proc/kpagecount and
 * /proc/kpageflags say of that. It ends at end of file on standard input,
 * after every process has found its pages as it left them.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common.h"

#define MAX_PROCS	16
#define PM_PRESENT	(1ULL << 63)
#define PM_PFN_MASK	((1ULL << 55) - 1)
#define SETTLE_MS	120000

enum page { SAME, PAIR, ZERO, UNIQUE, UNTOUCHED, NR_PAGES };
enum { DO_MAP = 1, DO_WRITE, DO_DROP, DO_VERIFY };

static const char *const page_name[NR_PAGES] = { "same", "pair", "zero", "unique", "untouched" };

static unsigned int nr_procs = 3;
static struct worker *workers;
static uint64_t *bases;

/* A process's own. */
static struct {
	char *base;
	struct content *shadow;
} me;

/* "same" is alike in all processes, "pair" in 0 and 1 alone. */
static struct content content_of(enum page page, unsigned int proc)
{
	struct content c = { 0 };

	if (page == SAME)
		c.key = content_key(1, 0, 0, 0);
	else if (page == PAIR)
		c.key = content_key(2, proc > 1 ? proc : 0, 0, 0);
	else if (page == UNIQUE)
		c.key = content_key(3, proc, 0, 0);
	return c;
}

static int do_map(unsigned int proc)
{
	char name[16];
	int page;

	snprintf(name, sizeof(name), "hold%u", proc);
	prctl(PR_SET_NAME, name);
	me.shadow = untracked_alloc(NR_PAGES * sizeof(*me.shadow));
	me.base = mmap(NULL, NR_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (me.base == MAP_FAILED)
		return -errno;
	for (page = 0; page < UNTOUCHED; page++) {
		me.shadow[page] = content_of(page, proc);
		page_fill(me.base + page * PAGE_BYTES, &me.shadow[page]);
	}
	return 0;
}

/* The last byte changes, nothing else is touched. */
static void do_write(unsigned int page)
{
	struct content *c = &me.shadow[page];

	c->off = PAGE_BYTES - 1;
	c->flip ^= 0xff;
	me.base[page * PAGE_BYTES + c->off] ^= (char)0xff;
}

static void serve(void *ctx __unused, const struct order *o, struct reply *r)
{
	char *page = me.base + o->arg * PAGE_BYTES;

	switch (o->op) {
	case DO_MAP:
		r->status = do_map(o->arg);
		r->value[0] = (uint64_t)(uintptr_t)me.base;
		break;
	case DO_WRITE:
		do_write(o->arg);
		break;
	case DO_DROP:
		r->status = madvise(page, PAGE_BYTES, MADV_DONTNEED) ? -errno : 0;
		memset(&me.shadow[o->arg], 0, sizeof(*me.shadow));
		break;
	case DO_VERIFY:
		/* The untouched page stays so. */
		r->wrong = region_check(me.base, me.shadow, UNTOUCHED, "at the end");
		break;
	}
}

static void give_order(unsigned int proc, unsigned int op, unsigned int arg)
{
	struct order o = { .op = op, .arg = arg };

	worker_send(&workers[proc], &o);
	worker_receive(&workers[proc]);
	if (workers[proc].last.status)
		die(EXIT_ENV, "hold%u: %s", proc, strerror(-workers[proc].last.status));
}

static uint64_t entry_of(const char *path, uint64_t number)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t value = 0;

	if (fd < 0 || pread(fd, &value, 8, (off_t)(number * 8)) != 8)
		die(EXIT_ENV, "%s: %s", path, strerror(errno));
	close(fd);
	return value;
}

static void show(void)
{
	const char *comma = "";
	unsigned int proc;
	int page;

	printf("{\"tool\": \"holdpages\", \"ok\": true, \"pages\": [");
	for (proc = 0; proc < nr_procs; proc++) {
		char path[64];

		if (!workers[proc].pid)
			continue;
		snprintf(path, sizeof(path), "/proc/%d/pagemap", workers[proc].pid);
		for (page = 0; page < NR_PAGES; page++, comma = ", ") {
			uint64_t addr = bases[proc] + page * PAGE_BYTES;
			uint64_t entry = entry_of(path, addr / PAGE_BYTES);
			uint64_t pfn = entry & PM_PFN_MASK;

			printf("%s{\"process\": %u, \"pid\": %d, \"page\": \"%s\", \"address\": %" PRIu64,
			       comma, proc, workers[proc].pid, page_name[page], addr);
			if (entry & PM_PRESENT)
				printf(", \"pfn\": %" PRIu64 ", \"count\": %" PRIu64 ", \"flags\": %" PRIu64,
				       pfn, entry_of("/proc/kpagecount", pfn),
				       entry_of("/proc/kpageflags", pfn));
			putchar('}');
		}
	}
	printf("]}\n");
	fflush(stdout);
}

static void settle(void)
{
	if (!engine_settle(SETTLE_MS))
		die(EXIT_ENV, "the engine did not settle");
}

/* One line of standard input. */
static void obey(const char *line)
{
	unsigned int proc, page;
	char verb[16], what[16];

	if (!strcmp(line, "settle\n")) {
		settle();
	} else if (sscanf(line, "%15s %u %15s", verb, &proc, what) == 3 && proc < nr_procs &&
		   workers[proc].pid) {
		for (page = 0; page < UNTOUCHED && strcmp(what, page_name[page]); page++)
			;
		if (page == UNTOUCHED || (strcmp(verb, "write") && strcmp(verb, "drop")))
			die(EXIT_USAGE, "no such order: %s", line);
		give_order(proc, *verb == 'w' ? DO_WRITE : DO_DROP, page);
	} else if (sscanf(line, "%15s %u", verb, &proc) == 2 && !strcmp(verb, "end") &&
		   proc < nr_procs) {
		worker_end(&workers[proc]);
	} else if (strcmp(line, "show\n")) {
		die(EXIT_USAGE, "no such order: %s", line);
	}
	show();
}

static void __noreturn usage(void)
{
	printf("usage: holdpages [--procs N]\n"
		"\n"
		"N processes (3), called hold0, hold1..., have a page each that is the same in all\n"
		"of them, the same in hold0 and hold1 alone, zero, unique, and untouched. Once the\n"
		"engine has settled, one line of JSON tells where they are. Then each line of\n"
		"standard input is obeyed, and such a line follows:\n"
		"  show   settle   write PROCESS PAGE   drop PROCESS PAGE   end PROCESS\n"
		"where PAGE is same, pair, zero or unique. write changes one byte; drop is\n"
		"MADV_DONTNEED. At end of file every page is verified.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 no settling or no page map.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	uint64_t wrong = 0;
	unsigned int proc;
	char line[64];
	int c;

	prog_start("holdpages");
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'p')
			nr_procs = parse_number("--procs", optarg, 1, MAX_PROCS);
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	no_more_arguments(optind, argc, argv);
	workers = xcalloc(nr_procs, sizeof(*workers));
	bases = xcalloc(nr_procs, sizeof(*bases));
	for (proc = 0; proc < nr_procs; proc++) {
		worker_start(workers, proc, serve, NULL);
		give_order(proc, DO_MAP, proc);
		bases[proc] = workers[proc].last.value[0];
	}
	settle();
	show();
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	for (proc = 0; proc < nr_procs; proc++) {
		if (!workers[proc].pid)
			continue;
		give_order(proc, DO_VERIFY, 0);
		wrong += workers[proc].last.wrong;
		worker_end(&workers[proc]);
	}
	return wrong ? EXIT_WRONG : 0;
}

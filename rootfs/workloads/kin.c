// SPDX-License-Identifier: GPL-2.0-only
/*
 * kin - families of processes, whose pages are merged across and within them.
 *
 * Like pageops, with one operation after another in the arguments; but here
 * processes begin and fork when they are told to, live as long as they are told
 * to, and move, split, lock and pin what they have. Made to ask whether rmap
 * finds every PTE of every merged page: "evict" has all of them leave memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define MAX_KIN		16	/* named a to p */
#define PIPE_PAGES	16	/* slots of a pipe */

#define FLIP		0x5a	/* what a poke XORs a byte with */

enum { S_DUP = 1, S_UNIQUE };

enum op {
	OP_MAP, OP_FORK, OP_FILL, OP_POKE, OP_TOUCH, OP_VERIFY, OP_MOVE, OP_SWAP,
	OP_SPLIT, OP_ADVISE, OP_LOCK, OP_UNLOCK, OP_PIN, OP_UNPIN, OP_UNMAP, OP_EXIT,
	OP_EXPECT, OP_UFFD, OP_PROTECT,
};

static struct {
	size_t pages;
	uint64_t settle_s;
} opt = { .pages = 64, .settle_s = 120 };

/* A process's own; a child has a copy. */
static struct {
	unsigned int index;
	char *base;
	struct content *shadow;
	void *room;	/* for the contents of a page that is to be written */
	uint64_t generation;
	int (*pipes)[2];
} me;

/* What the first process knows of each. */
static struct kin {
	struct worker worker;
	int far_order, far_reply;	/* the ends that the process itself has */
	uint64_t base;
} kin[MAX_KIN];

static size_t bytes(void)
{
	return opt.pages * PAGE_BYTES;
}

static char *page_at(size_t i)
{
	return me.base + i * PAGE_BYTES;
}

static void serve(unsigned int index);

/* ---- what a process does ------------------------------------------------ */

static int do_map(uint64_t addr)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (addr ? MAP_FIXED_NOREPLACE : 0);

	me.base = mmap((void *)(uintptr_t)addr, bytes(), PROT_READ | PROT_WRITE, flags, -1, 0);
	if (me.base == MAP_FAILED)
		return -errno;
	me.shadow = untracked_alloc(opt.pages * sizeof(*me.shadow));
	me.room = room_alloc();
	return 0;
}

static int do_fork(unsigned int index)
{
	struct content *mine;
	pid_t pid = fork();

	if (pid < 0)
		return -errno;
	if (pid)
		return pid;
	/* Both are shared memory: the parent's must not change. */
	mine = untracked_alloc(opt.pages * sizeof(*mine));
	memcpy(mine, me.shadow, opt.pages * sizeof(*mine));
	me.shadow = mine;
	me.room = room_alloc();
	serve(index);
	_exit(0);
}

static int do_fill(const char *how)
{
	const char *arg = strchr(how, ':');
	uint64_t number = arg ? strtoull(arg + 1, NULL, 10) : 0;
	size_t i;

	me.generation++;
	for (i = 0; i < opt.pages; i++) {
		struct content c = { 0 };

		if (!strncmp(how, "dup", 3))
			c.key = content_key(S_DUP, i, number, 0);
		else if (!strncmp(how, "same", 4))
			c.key = content_key(S_DUP, 1ULL << 40, number, 0);
		else if (!strcmp(how, "unique"))
			c.key = content_key(S_UNIQUE, me.index, i, me.generation);
		else if (!strcmp(how, "thin"))	/* a page of its own, easy to compress */
			c = (struct content){ 0, (uint16_t)(i % PAGE_BYTES), FLIP, 0 };
		else if (strcmp(how, "zero"))
			return -EINVAL;
		me.shadow[i] = c;
		page_put(page_at(i), &c, me.room);
	}
	return 0;
}

/*
 * One byte of each page; pages that already differ in one byte stay. With @mine it
 * is written here, otherwise another process is about to do that.
 */
static int do_poke(size_t off, bool mine)
{
	size_t i;

	for (i = 0; i < opt.pages; i++) {
		if (me.shadow[i].flip && me.shadow[i].off != off)
			return -EINVAL;
		me.shadow[i].off = (uint16_t)off;
		me.shadow[i].flip ^= FLIP;
		if (mine)
			page_at(i)[off] ^= FLIP;
	}
	return 0;
}

static int move_to(char *from, size_t size, uint64_t addr, char **to)
{
	char *place = mmap((void *)(uintptr_t)addr, size, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | (addr ? MAP_FIXED_NOREPLACE : 0), -1, 0);

	if (place == MAP_FAILED)
		return -errno;
	*to = mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	return *to == MAP_FAILED ? -errno : 0;
}

static int do_protect(const char *how)
{
	if (strcmp(how, "ro") && strcmp(how, "rw"))
		return -EINVAL;
	return mprotect(me.base, bytes(), PROT_READ | (strcmp(how, "ro") ? PROT_WRITE : 0)) ?
	       -errno : 0;
}

/* Each page is handed over to another mapping, which becomes the region. */
static int do_uffd(void)
{
	char *to = mmap(NULL, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err;

	if (to == MAP_FAILED)
		return -errno;
	err = uffd_move(to, me.base, bytes());
	munmap(err ? to : me.base, bytes());
	if (!err)
		me.base = to;
	return err;
}

/* The halves of the region change places: each address gets another's page. */
static int do_swap(void)
{
	size_t half = opt.pages / 2, size = half * PAGE_BYTES, i;
	char *low = me.base, *high = me.base + size, *aside;
	int err = move_to(low, size, 0, &aside);

	if (err)
		return err;
	if (mremap(high, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, low) == MAP_FAILED ||
	    mremap(aside, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, high) == MAP_FAILED)
		return -errno;
	for (i = 0; i < half; i++) {
		struct content c = me.shadow[i];

		me.shadow[i] = me.shadow[half + i];
		me.shadow[half + i] = c;
	}
	return 0;
}

/* Every second page gets advice of no consequence, and so a VMA of its own. */
static int do_split(void)
{
	size_t i;

	for (i = 0; i < opt.pages; i += 2)
		if (madvise(page_at(i), PAGE_BYTES, MADV_RANDOM))
			return -errno;
	return 0;
}

static int do_advise(const char *name)
{
	static const struct {
		const char *name;
		int advice;
	} advices[] = {
		{ "mergeable", MADV_MERGEABLE }, { "unmergeable", MADV_UNMERGEABLE },
		{ "dontneed", MADV_DONTNEED }, { "pageout", MADV_PAGEOUT },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(advices); i++)
		if (!strcmp(advices[i].name, name))
			break;
	if (i == ARRAY_SIZE(advices))
		return -EINVAL;
	if (madvise(me.base, bytes(), advices[i].advice))
		return -errno;
	if (advices[i].advice == MADV_DONTNEED)
		memset(me.shadow, 0, opt.pages * sizeof(*me.shadow));
	return 0;
}

static int do_pin(void)
{
	size_t n = (opt.pages + PIPE_PAGES - 1) / PIPE_PAGES, i;

	me.pipes = xcalloc(n, sizeof(*me.pipes));
	for (i = 0; i < n; i++) {
		size_t left = opt.pages - i * PIPE_PAGES;
		struct iovec iov = { page_at(i * PIPE_PAGES),
				     (left < PIPE_PAGES ? left : PIPE_PAGES) * PAGE_BYTES };

		if (pipe(me.pipes[i]) ||
		    vmsplice(me.pipes[i][1], &iov, 1, 0) != (ssize_t)iov.iov_len)
			return -errno;
	}
	return 0;
}

static void do_unpin(void)
{
	size_t n = (opt.pages + PIPE_PAGES - 1) / PIPE_PAGES, i;

	for (i = 0; me.pipes && i < n; i++) {
		close(me.pipes[i][0]);
		close(me.pipes[i][1]);
	}
	free(me.pipes);
	me.pipes = NULL;
}

static void carry_out(const struct order *o, struct reply *r)
{
	size_t i;

	switch ((enum op)o->op) {
	case OP_MAP:
		r->status = do_map(o->value);
		break;
	case OP_FORK:
		r->status = do_fork(o->arg);
		break;
	case OP_FILL:
		r->status = do_fill(o->text);
		break;
	case OP_POKE:
		r->status = do_poke(o->value, true);
		break;
	case OP_EXPECT:
		r->status = do_poke(o->value, false);
		break;
	case OP_TOUCH:
		for (i = 0; i < opt.pages; i++)
			(void)*(volatile char *)page_at(i);
		break;
	case OP_VERIFY:
		r->wrong = region_check(me.base, me.shadow, opt.pages, "at verify");
		break;
	case OP_MOVE:
		r->status = move_to(me.base, bytes(), o->value, &me.base);
		break;
	case OP_UFFD:
		r->status = do_uffd();
		break;
	case OP_PROTECT:
		r->status = do_protect(o->text);
		break;
	case OP_SWAP:
		r->status = do_swap();
		break;
	case OP_SPLIT:
		r->status = do_split();
		break;
	case OP_ADVISE:
		r->status = do_advise(o->text);
		break;
	case OP_LOCK:
		r->status = mlock(me.base, bytes()) ? -errno : 0;
		break;
	case OP_UNLOCK:
		r->status = munlock(me.base, bytes()) ? -errno : 0;
		break;
	case OP_PIN:
		r->status = do_pin();
		break;
	case OP_UNPIN:
		do_unpin();
		break;
	case OP_UNMAP:
		r->status = munmap(me.base, bytes()) ? -errno : 0;
		me.base = NULL;
		break;
	case OP_EXIT:
		break;
	}
	r->value[0] = (uint64_t)(uintptr_t)me.base;
}

/* A process reads its orders, to the one that ends it. */
static void serve(unsigned int index)
{
	struct order o;
	struct reply r;

	me.index = index;
	/* Nobody here waits for a child: it is to be gone at once. */
	signal(SIGCHLD, SIG_IGN);
	do {
		if (read(kin[index].far_order, &o, sizeof(o)) != (ssize_t)sizeof(o))
			_exit(EXIT_ENV);
		memset(&r, 0, sizeof(r));
		carry_out(&o, &r);
		if (write(kin[index].far_reply, &r, sizeof(r)) != (ssize_t)sizeof(r))
			_exit(EXIT_ENV);
	} while (o.op != OP_EXIT);
}

/* ---- the first process --------------------------------------------------- */

static FILE *stats;
static uint64_t total_wrong;

/* Whatever happens, none of them is left behind. */
static void end_all(void)
{
	unsigned int i;

	for (i = 0; i < MAX_KIN; i++)
		if (kin[i].worker.pid)
			kill(kin[i].worker.pid, SIGKILL);
}

static void prepare(void)
{
	unsigned int i;

	for (i = 0; i < MAX_KIN; i++) {
		int orders[2], replies[2];

		if (pipe2(orders, O_CLOEXEC) || pipe2(replies, O_CLOEXEC))
			die(EXIT_ENV, "pipe: %s", strerror(errno));
		kin[i].far_order = orders[0];
		kin[i].worker.order_fd = orders[1];
		kin[i].worker.reply_fd = replies[0];
		kin[i].far_reply = replies[1];
	}
	/* The child of one that has ended becomes a child of this one. */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		die(EXIT_ENV, "prctl: %s", strerror(errno));
}

static const char *whose(unsigned int i)
{
	static char name[2];

	name[0] = (char)('a' + i);
	return name;
}

static void order(unsigned int who, struct order *o, const char *word)
{
	struct worker *w = &kin[who].worker;

	if (!w->pid)
		die(EXIT_USAGE, "\"%s\": there is no process %s", word, whose(who));
	worker_send(w, o);
	worker_receive(w);
	total_wrong += w->last.wrong;
	kin[who].base = w->last.value[0];
	if (w->last.status == -EINVAL)
		die(EXIT_USAGE, "\"%s\": invalid argument", word);
	if (w->last.status < 0)
		die(EXIT_ENV, "\"%s\": %s", word, strerror(-w->last.status));
}

static void start(unsigned int who)
{
	fflush(NULL);
	kin[who].worker.pid = fork();
	if (kin[who].worker.pid < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (!kin[who].worker.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(who);
		_exit(0);
	}
}

/* Until nothing of it is left, whoever its parent is. */
static void wait_gone(unsigned int who)
{
	pid_t pid = kin[who].worker.pid;

	while (waitpid(pid, NULL, WNOHANG) != pid && !kill(pid, 0))
		sleep_ms(1);
	kin[who].worker.pid = 0;
	kin[who].base = 0;
}

static int look(unsigned int i, struct pagestat *st)
{
	if (!kin[i].worker.pid || !kin[i].base)
		return 0;
	return pagestat_add(kin[i].worker.pid, kin[i].base, kin[i].base + bytes(), st);
}

static uint64_t mlocked_kib(void)
{
	unsigned long long kib = 0;
	char line[128];
	FILE *f;

	/* Other CPUs may have unlocked pages in their batches, and counts in their pockets. */
	file_write("/proc/sys/vm/drop_caches", "1");
	file_write("/proc/sys/vm/stat_refresh", "1");
	f = fopen("/proc/meminfo", "re");
	if (!f)
		die(EXIT_ENV, "/proc/meminfo: %s", strerror(errno));
	while (fgets(line, sizeof(line), f) && sscanf(line, "Mlocked: %llu kB", &kib) != 1)
		;
	fclose(f);
	return kib;
}

static void take_stat(const char *name)
{
	struct pagestat all = { 0 };
	unsigned int i;
	int err = 0;

	fprintf(stats, "%s{\"name\": \"%s\"", ftell(stats) ? ", " : "", name);
	for (i = 0; i < MAX_KIN && !err; i++) {
		struct pagestat st = { 0 };

		err = look(i, &st);
		if (!err)
			err = look(i, &all);
		if (st.pages)
			fprintf(stats, ", \"%s\": {\"present\": %" PRIu64 ", \"swapped\": %" PRIu64
				", \"merged_ptes\": %" PRIu64 ", \"anon\": %" PRIu64 ", \"zero\": %" PRIu64
				"}", whose(i), st.present, st.swapped, st.merged_ptes, st.anon, st.zero);
		pagestat_free(&st);
	}
	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	pagestat_finish(&all);
	fprintf(stats, ", \"present\": %" PRIu64 ", \"swapped\": %" PRIu64 ", \"merged_ptes\": %" PRIu64
		", \"merged_pages\": %" PRIu64 ", \"anon\": %" PRIu64 ", \"pfn_sum\": %" PRIu64
		", \"mlocked_kib\": %" PRIu64 ", \"counters\": ", all.present, all.swapped,
		all.merged_ptes, all.merged_pages, all.anon, all.pfn_sum, mlocked_kib());
	json_counters(stats);
	fputc('}', stats);
	fflush(stats);
	pagestat_free(&all);
}

static uint64_t in_memory(void)
{
	struct pagestat st = { 0 };
	uint64_t present;
	unsigned int i;
	int err = 0;

	for (i = 0; i < MAX_KIN && !err; i++)
		err = look(i, &st);
	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	present = st.present;
	pagestat_free(&st);
	return present;
}

static bool all_out(void)
{
	return !in_memory();
}

static void evict(const char *group, bool must)
{
	int err = reclaim_all(group, all_out);

	if (err == -EBUSY && !must)
		return;
	if (err == -EBUSY)
		die(EXIT_WRONG, "%" PRIu64 " PTEs stay in memory, whatever is reclaimed", in_memory());
	if (err)
		die(EXIT_ENV, "%s: %s", group, strerror(-err));
}

/* Operations of the first process; false if @name is none of them. */
static bool own_op(const char *name, char *arg)
{
	if (!strcmp(name, "stat"))
		take_stat(arg);
	else if (!strcmp(name, "evict") || !strcmp(name, "reclaim"))
		evict(arg, *name == 'e');
	else
		return script_op(name, arg, opt.settle_s);
	return true;
}

enum argument { NO_ARG, TEXT, NUMBER, ADDRESS, PROCESS };

static const struct {
	const char *name;
	enum op op;
	enum argument argument;
} ops[] = {
	{ "new", OP_MAP, ADDRESS }, { "fork", OP_FORK, PROCESS }, { "fill", OP_FILL, TEXT },
	{ "poke", OP_POKE, NUMBER }, { "touch", OP_TOUCH, NO_ARG }, { "verify", OP_VERIFY, NO_ARG },
	{ "move", OP_MOVE, ADDRESS }, { "swap", OP_SWAP, NO_ARG }, { "split", OP_SPLIT, NO_ARG },
	{ "advise", OP_ADVISE, TEXT }, { "mlock", OP_LOCK, NO_ARG },
	{ "munlock", OP_UNLOCK, NO_ARG }, { "pin", OP_PIN, NO_ARG }, { "unpin", OP_UNPIN, NO_ARG },
	{ "unmap", OP_UNMAP, NO_ARG }, { "exit", OP_EXIT, NO_ARG },
	{ "remote", OP_EXPECT, NUMBER }, { "ptrace", OP_EXPECT, NUMBER },
	{ "memfile", OP_EXPECT, NUMBER }, { "uffdmove", OP_UFFD, NO_ARG },
	{ "protect", OP_PROTECT, TEXT },
};

static void kin_op(unsigned int who, const char *name, const char *arg, const char *word)
{
	struct order o = { 0 };
	unsigned int child = 0;
	size_t k;
	int err;

	for (k = 0; k < ARRAY_SIZE(ops); k++)
		if (!strcmp(ops[k].name, name))
			break;
	if (k == ARRAY_SIZE(ops))
		die(EXIT_USAGE, "\"%s\": no such operation", word);
	if (strlen(arg) >= sizeof(o.text))
		die(EXIT_USAGE, "\"%s\": too long", word);
	o.op = ops[k].op;
	strcpy(o.text, arg);
	if (ops[k].argument == NUMBER) {
		o.value = parse_number(name, arg, 0, PAGE_BYTES - 1);
	} else if (ops[k].argument == ADDRESS) {
		o.value = strtoull(arg, NULL, 16);
	} else if (ops[k].argument == PROCESS) {
		child = (unsigned int)(arg[0] - 'a');
		if (child >= MAX_KIN || arg[1] || kin[child].worker.pid)
			die(EXIT_USAGE, "\"%s\": not the name of a new process", word);
		o.arg = child;
	}
	if (o.op == OP_MAP && kin[who].worker.pid)
		die(EXIT_USAGE, "\"%s\": there is a process %s", word, whose(who));
	if (o.op == OP_MAP)
		start(who);
	order(who, &o, word);
	if (o.op == OP_FORK) {
		kin[child].worker.pid = kin[who].worker.last.status;
		kin[child].base = kin[who].base;
	} else if (o.op == OP_EXIT) {
		wait_gone(who);
	} else if (o.op == OP_EXPECT) {
		err = foreign_flip(kin[who].worker.pid, kin[who].base, opt.pages, o.value, FLIP,
				   name);
		if (err)
			die(EXIT_ENV, "\"%s\": %s", word, strerror(-err));
	}
}

static void run_op(const char *word)
{
	char text[300], *name = text, *arg;
	unsigned int i;

	if ((size_t)snprintf(text, sizeof(text), "%s", word) >= sizeof(text))
		die(EXIT_USAGE, "\"%s\": too long", word);
	arg = text + strcspn(text, "=");
	if (*arg)
		*arg++ = 0;
	if (name[0] && name[1] == ':') {
		i = (unsigned int)(name[0] - 'a');
		if (i >= MAX_KIN)
			die(EXIT_USAGE, "\"%s\": processes are called a to p", word);
		kin_op(i, name + 2, arg, word);
	} else if (!own_op(name, arg)) {
		/* Everybody. */
		for (i = 0; i < MAX_KIN; i++)
			if (kin[i].worker.pid)
				kin_op(i, name, arg, word);
	}
}

static void __noreturn usage(void)
{
	printf("usage: kin [--pages N] [--settle-timeout SECONDS] OPERATION...\n"
		"\n"
		"Processes are called a to p. X:OPERATION is for process X, OPERATION for all:\n"
		"  X:new[=ADDRESS]  begins and maps a region      X:fork=Y   has a child\n"
		"  fill=dup[:N]|same[:N]|unique|thin|zero  poke=BYTE  touch  verify  unmap  exit\n"
		"  move[=ADDRESS]  uffdmove (by UFFDIO_MOVE)  swap (the halves of the region)  split (into a VMA for each page)\n"
		"  advise=mergeable|unmergeable|dontneed|pageout  protect=ro|rw  mlock  munlock\n"
		"  pin  unpin (references of pipes)\n"
		"  remote=BYTE  ptrace=BYTE  memfile=BYTE (a poke, by the first process: with\n"
		"  process_vm_writev(), as a debugger, and by /proc/PID/mem)\n"
		"and, in no process:\n"
		"  settle  stat=NAME  set=CONTROL:VALUE  wait=CONDITION  sleep=MS  compact  drain\n"
		"  hold=POINT (of the engine)  held  hold=step|off\n"
		"  evict=GROUP (reclaim from a memory cgroup until nothing is left in memory)\n"
		"  reclaim=GROUP (the same, and something may be left)\n"
		"\n"
		"Addresses are hexadecimal. Prints one line of JSON with what each stat saw.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte or a page that cannot be evicted, 2 usage,\n"
		"3 refused by the kernel or time-out.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pages", required_argument, NULL, 'n' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	char *text;
	int c;

	prog_start("kin");
	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		switch (c) {
		case 'n':
			opt.pages = parse_number("--pages", optarg, 2, 1 << 16);
			break;
		case 'S':
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	if (optind == argc)
		bad_usage("no OPERATION given");
	prepare();
	if (atexit(end_all))
		die(EXIT_ENV, "atexit failed");
	stats = untracked_stream(&text);
	for (; optind < argc; optind++)
		run_op(argv[optind]);
	for (c = 0; c < MAX_KIN; c++) {
		struct order o = { .op = OP_EXIT };

		if (!kin[c].worker.pid)
			continue;
		order((unsigned int)c, &o, "exit");
		wait_gone((unsigned int)c);
	}
	fclose(stats);
	printf("{\"tool\": \"kin\", \"engine\": \"%s\", \"ok\": %s, \"wrong\": %" PRIu64
	       ", \"stats\": [%s]}\n",
	       engine_name(), total_wrong ? "false" : "true", total_wrong, text);
	return total_wrong ? EXIT_WRONG : 0;
}

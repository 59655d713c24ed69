// SPDX-License-Identifier: GPL-2.0-only
/*
 * pageops - a small language of things done to anonymous pages.
 *
 * Each argument is one operation, carried out in turn by one or by all of
 * the worker processes on a region of their own, whose expected contents
 * are kept aside. Tests are written in it. One line of JSON tells the
 * counters and the page map wherever "stat" was asked for.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ops.h"

#define MAX_PROCS	64
#define VMSTAT_BYTES	16384
#define END_MS		30000U	/* so long a process may take to end */
#define BEAT_MS		20U	/* and so long it is looked whether one writes, or goes on */

static struct {
	unsigned int procs;
	uint64_t settle_s;
} opt = { .procs = 2, .settle_s = 120 };

static struct worker *workers;
static uint64_t *bases;
static const char **background;	/* what each does that nobody waits for */
static uint64_t *told;		/* how many orders each was given */
static FILE *stats;
static uint64_t total_wrong;
/* The error that the operation is to end with, and whether it did. */
static int wanted_error;
static bool wanted_error_came;

/* Ends the program unless @err is what was wanted. */
static void refused(int err, const char *word)
{
	wanted_error_came = wanted_error && err == wanted_error;
	if (!wanted_error_came)
		die(EXIT_ENV, "%s: %s", word, strerror(err));
}

/* A line of /proc/vmstat; 0 where there is none of that name. */
static uint64_t vmstat(const char *name)
{
	size_t len = strlen(name), n = 0;
	static char *text;
	const char *line;
	ssize_t got;
	int fd;

	if (!text)
		text = untracked_alloc(VMSTAT_BYTES);
	fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && (got = read(fd, text + n, VMSTAT_BYTES - 1 - n)) > 0)
		n += (size_t)got;
	if (fd >= 0)
		close(fd);
	text[n] = 0;
	for (line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, name, len) && line[len] == ' ')
			return strtoull(line + len, NULL, 10);
	}
	return 0;
}

static void take_stat(const char *name)
{
	uint64_t nodes[NODES] = { 0 };
	struct pagestat st = { 0 };
	unsigned int i;
	int err = 0;

	for (i = 0; i < opt.procs && !err; i++) {
		if (!workers[i].pid || !bases[i])
			continue;
		err = pagestat_add(workers[i].pid, bases[i],
				   bases[i] + ops.pages * PAGE_BYTES, &st);
		if (!err)
			err = node_count(workers[i].pid, bases[i], ops.pages, nodes);
	}
	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	pagestat_finish(&st);
	fprintf(stats,
		"%s{\"name\": \"%s\", \"present\": %" PRIu64 ", \"swapped\": %" PRIu64
		", \"anon\": %" PRIu64 ", \"large\": %" PRIu64 ", \"soft_dirty\": %" PRIu64
		", \"uffd_wp\": %" PRIu64 ", \"zero\": %" PRIu64 ", \"merged_ptes\": %" PRIu64
		", \"merged_pages\": %" PRIu64 ", \"merged_pfn_sum\": %" PRIu64
		", \"mapcount_other\": %" PRIu64 ", \"node0\": %" PRIu64
		", \"node1\": %" PRIu64 ", \"numa_hint_faults\": %" PRIu64
		", \"numa_pages_migrated\": %" PRIu64 ", \"counters\": ",
		ftell(stats) ? ", " : "", name, st.present, st.swapped, st.anon,
		st.large, st.soft_dirty, st.uffd_wp, st.zero,
		st.merged_ptes, st.merged_pages, st.pfn_sum, st.mapcount_wrong,
		nodes[0], nodes[1], vmstat("numa_hint_faults"), vmstat("numa_pages_migrated"));
	json_counters(stats);
	fputc('}', stats);
	fflush(stats);
	pagestat_free(&st);
}

/* Where some pages cannot be merged for now: until all were tried, and @ms more. */
static void settle_pinned(unsigned int ms)
{
	const struct condition none_new = { "pages_new", "==", 0 };

	if (!condition_wait(&none_new, 1, opt.settle_s * 1000))
		die(EXIT_ENV, "pages were still new after %" PRIu64 " s", opt.settle_s);
	sleep_ms(ms);
}

static uint64_t end_of(unsigned int i)
{
	return bases[i] + ops.pages * PAGE_BYTES;
}

/* POINT, POINT:NUMBER, POINT:@K for the number of process K, POINT:#K for its first page. */
static void hold(const char *arg)
{
	const char *value = strchr(arg, ':');
	char text[64];

	if (!value) {
		hold_set(arg);
		return;
	}
	if (value[1] == '#') {
		unsigned int i = (unsigned int)parse_number("hold", value + 2, 0, opt.procs - 1);
		uint64_t pfn;

		if (!pfn_first(workers[i].pid, bases[i], end_of(i), &pfn))
			die(EXIT_ENV, "process %u has no page", i);
		snprintf(text, sizeof(text), "%.*s 0x%" PRIx64, (int)(value - arg), arg, pfn);
	} else if (value[1] == '@')
		snprintf(text, sizeof(text), "%.*s %d", (int)(value - arg), arg,
			 workers[parse_number("hold", value + 2, 0, opt.procs - 1)].pid);
	else
		snprintf(text, sizeof(text), "%.*s %s", (int)(value - arg), arg, value + 1);
	hold_set(text);
}

/* What a worker says to what it was told to do. */
static void hear(unsigned int i, const char *word)
{
	worker_receive(&workers[i]);
	total_wrong += workers[i].last.wrong;
	bases[i] = workers[i].last.value[0];
	if (workers[i].last.status == -EINVAL && wanted_error != EINVAL)
		die(EXIT_USAGE, "process %u, %s: invalid argument", i, word);
	if (workers[i].last.status)
		refused(-workers[i].last.status, word);
}

static void tell(unsigned int i, const struct order *o)
{
	told[i]++;
	worker_send(&workers[i], o);
}

/* Waits until a process has ended, which has been asked to in one way or another. */
static void reap(unsigned int i, int wanted)
{
	int status = 0;

	if (!worker_gone(&workers[i], END_MS, &status))
		die(EXIT_WRONG, "process %u does not end", i);
	if (status != wanted)
		die(EXIT_WRONG, "process %u ended badly: wait status 0x%x", i, status);
	bases[i] = 0;
}

/* Does a process end in the background, and with which status? */
static bool leaves(unsigned int i, int *status)
{
	const char *word = background[i];

	if (!word)
		return false;
	word += strspn(word, "&");
	if (*word == '@')
		word = strchr(word, ':') + 1;
	*status = strcmp(word, "kill") ? 0 : SIGKILL;
	return *status || !strcmp(word, "exit");
}

/* Waits for what a worker was told to do in the background, if anything. */
static void join(unsigned int i)
{
	const char *word = background[i];
	int status;
	bool end = leaves(i, &status);

	background[i] = NULL;
	if (end)
		reap(i, status);
	else if (word)
		hear(i, word);
}

/* Has a process done what it was told to do in the background? */
static bool has_done(unsigned int i)
{
	siginfo_t info = { 0 };
	int unused;

	if (!leaves(i, &unused))
		return ops_progress[i].ended == told[i];
	/* It stays for join() to reap. */
	if (waitid(P_PID, (id_t)workers[i].pid, &info, WEXITED | WNOHANG | WNOWAIT))
		die(EXIT_ENV, "waitid: %s", strerror(errno));
	return info.si_pid;
}

static bool has_got(unsigned int i)
{
	return ops_progress[i].got == told[i];
}

static bool has_begun(unsigned int i)
{
	return ops_progress[i].begun == told[i];
}

/* Waits until a process has come so far with what it does in the background. */
static void background_wait(unsigned int i, bool (*so_far)(unsigned int i), const char *what)
{
	uint64_t last = now_ms() + END_MS;

	if (!background[i])
		die(EXIT_USAGE, "process %u does nothing in the background", i);
	while (!so_far(i)) {
		if (now_ms() > last)
			die(EXIT_ENV, "%s: process %u does not %s", background[i], i, what);
		sleep_ms(1);
	}
}

/* And the engine has been held all the time. */
static void still_held(void)
{
	uint64_t unused;

	if (!hold_held(&unused))
		die(EXIT_ENV, "nobody is held any more: the test tested nothing");
}

/* A process has done what it was told, while the engine was held. */
static void done(unsigned int i, const char *name __unused)
{
	background_wait(i, has_done, "end");
	still_held();
}

static bool user_mode_linux(void)
{
	char line[256];
	bool found = false;
	FILE *f = fopen("/proc/cpuinfo", "re");

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, "User Mode Linux");
	if (f)
		fclose(f);
	return found;
}

/*
 * A process begins with what it was told to do, and has to wait for who is held. Under
 * UML nobody comes to user space whose page table is locked: there it is about to begin.
 */
static void blocked(unsigned int i, const char *name __unused)
{
	ops_progress[i].free = told[i];
	if (!user_mode_linux())
		background_wait(i, has_begun, "begin");
	sleep_ms(BEAT_MS);
	if (has_done(i))
		die(EXIT_ENV, "%s does not wait for who is held: the test tested nothing",
		    background[i]);
	still_held();
}

/*
 * By what it is told ("exit", "exec"), by SIGKILL from here ("kill") or from the kernel
 * ("killed"): a process ends, and nothing that is held may keep it from that.
 */
static void end_process(unsigned int i, const char *how)
{
	const struct order o = { .op = OP_EXEC };
	bool by_signal = *how == 'k';

	if (by_signal)
		background[i] = NULL;
	else
		join(i);
	if (!workers[i].pid)
		return;		/* it was on its way already */
	if (!strcmp(how, "exec"))
		tell(i, &o);
	if (!strcmp(how, "kill") && kill(workers[i].pid, SIGKILL))
		die(EXIT_ENV, "kill: %s", strerror(errno));
	reap(i, by_signal ? SIGKILL : 0);
}

/* The page that the engine is held with is one of this process: has it come to that? */
static void reborn(unsigned int i, const char *name __unused)
{
	uint64_t pfn;

	if (!hold_held(&pfn))
		die(EXIT_ENV, "nobody is held");
	if (!pfn_among(workers[i].pid, bases[i], end_of(i), pfn))
		die(EXIT_ENV, "page frame 0x%" PRIx64 " is none of process %u's: the test tested nothing",
		    pfn, i);
}

/* Wait until a process that is to write all the time does. */
static void beating(unsigned int i, const char *name __unused)
{
	volatile struct beat *beat = &ops_beats[i];
	uint64_t end = now_ms() + opt.settle_s * 1000;

	while (beat->begun == beat->ended || !beat->strokes) {
		if (now_ms() > end)
			die(EXIT_ENV, "process %u does not write", i);
		sleep_ms(1);
	}
}

/* A process that has written all the time must not be able to just now. */
static void kept(unsigned int i, const char *name __unused)
{
	uint64_t before = ops_beats[i].strokes, after;

	sleep_ms(BEAT_MS);
	after = ops_beats[i].strokes;
	still_held();
	ops_beats[i].ended++;
	/* The last one may not have been counted yet. */
	if (after > before + 1) {
		fprintf(stderr, "%s: process %u wrote %" PRIu64 " times to a page it has no PTE for\n",
			prog_name, i, after - before);
		total_wrong++;
	}
}

static const struct {
	const char *name;
	void (*run)(unsigned int i, const char *name);
} process_ops[] = {
	{ "exit", end_process }, { "exec", end_process }, { "kill", end_process },
	{ "killed", end_process }, { "reborn", reborn }, { "beating", beating },
	{ "kept", kept }, { "blocked", blocked }, { "done", done },
};

/* Operations that the parent carries out for processes; false if @name is none of them. */
static bool process_op(unsigned int only, const char *name)
{
	unsigned int i;
	size_t k;

	for (k = 0; k < ARRAY_SIZE(process_ops); k++)
		if (!strcmp(process_ops[k].name, name))
			break;
	if (k == ARRAY_SIZE(process_ops))
		return false;
	for (i = 0; i < opt.procs; i++)
		if (workers[i].pid && (only == MAX_PROCS || i == only))
			process_ops[k].run(i, name);
	return true;
}

/* Operations that the parent carries out; false if @name is none of them. */
static bool parent_op(const char *name, const char *arg)
{
	struct condition cond;

	if (!strcmp(name, "settle")) {
		if (*arg)
			settle_pinned((unsigned int)parse_number("settle", arg, 0, 3600000));
		else if (!engine_settle(opt.settle_s * 1000))
			die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s",
			    opt.settle_s);
	} else if (!strcmp(name, "stat")) {
		take_stat(arg);
	} else if (!strcmp(name, "set")) {
		char control[64], *value;
		int err;

		snprintf(control, sizeof(control), "%s", arg);
		value = strchr(control, ':');
		if (!value)
			die(EXIT_USAGE, "set: \"%s\" is not CONTROL:VALUE", arg);
		*value++ = 0;
		err = control_write(control, value);
		if (err)
			refused(-err, control);
	} else if (!strcmp(name, "wait")) {
		if (!condition_parse(arg, &cond))
			die(EXIT_USAGE, "wait: \"%s\" is not NAME OP NUMBER", arg);
		if (!condition_wait(&cond, 1, opt.settle_s * 1000))
			die(EXIT_ENV, "%s did not come within %" PRIu64 " s", arg, opt.settle_s);
	} else if (!strcmp(name, "hold")) {
		hold(arg);
	} else if (!strcmp(name, "held")) {
		if (!hold_wait(opt.settle_s * 1000))
			die(EXIT_ENV, "nobody came to where the engine is to be held");
	} else if (!strcmp(name, "join")) {
		for (unsigned int i = 0; i < opt.procs; i++)
			join(i);
	} else if (!strcmp(name, "sleep")) {
		sleep_ms((unsigned int)parse_number("sleep", arg, 0, 100000000));
	} else if (!strcmp(name, "drain")) {
		lru_drain();
	} else if (!strcmp(name, "stay")) {
		if (mlockall(MCL_CURRENT | MCL_FUTURE))
			die(EXIT_ENV, "mlockall: %s", strerror(errno));
	} else if (!strcmp(name, "file")) {
		/* file=PATH:TEXT writes TEXT to a file of the guest's kernel. */
		const char *text = strchr(arg, ':');
		char path[256];
		FILE *f;

		if (!text)
			die(EXIT_USAGE, "file: \"%s\" is not PATH:TEXT", arg);
		snprintf(path, sizeof(path), "%.*s", (int)(text - arg), arg);
		f = fopen(path, "we");
		/* memory.reclaim says EAGAIN when it got less than asked for. */
		if (!f || fputs(text + 1, f) < 0 || (fclose(f) && errno != EAGAIN))
			die(EXIT_ENV, "%s: %s", path, strerror(errno));
	} else {
		return false;
	}
	return true;
}

static const struct {
	const char *name;
	enum op op;
	bool number;		/* the argument is one */
} worker_ops[] = {
	{ "map", OP_MAP, false }, { "unmap", OP_UNMAP, false },
	{ "fill", OP_FILL, false }, { "verify", OP_VERIFY, false },
	{ "write", OP_WRITE, true }, { "poke", OP_POKE, true },
	{ "touch", OP_TOUCH, false }, { "madvise", OP_MADVISE, false },
	{ "mlock", OP_MLOCK, false }, { "munlock", OP_MUNLOCK, false },
	{ "mremap", OP_MREMAP, false }, { "mprotect", OP_MPROTECT, false },
	{ "fork", OP_FORK, false }, { "range", OP_RANGE, false },
	{ "pin", OP_PIN, false }, { "unpin", OP_UNPIN, false },
	{ "self", OP_SELF, false }, { "merge", OP_MERGE, true },
	{ "receive", OP_RECEIVE, true },
	{ "uffd_wp", OP_UFFD_WP, false }, { "device", OP_DEVICE, false },
	{ "cpu", OP_CPU, true }, { "look", OP_LOOK, true },
	{ "bind", OP_BIND, false }, { "move", OP_MOVE, false },
	{ "migrate", OP_MIGRATE, false }, { "user", OP_USER, true },
	{ "bear", OP_BEAR, false }, { "bury", OP_BURY, false },
	{ "stale", OP_STALE, true }, { "uffd_rwp", OP_UFFD_RWP, false },
	{ "group", OP_GROUP, true }, { "beat", OP_BEAT, false },
	{ "stay", OP_STAY, false }, { "exit", OP_EXIT, false },
};

static void worker_op(unsigned int only, const char *name, const char *arg, const char *word)
{
	bool one = only < opt.procs, later;
	struct order o = { 0 };
	unsigned int i;
	size_t k;

	for (k = 0; k < ARRAY_SIZE(worker_ops); k++)
		if (!strcmp(worker_ops[k].name, name))
			break;
	if (k == ARRAY_SIZE(worker_ops))
		die(EXIT_USAGE, "\"%s\": no such operation", word);
	later = !strncmp(word, "&&", 2);
	o.op = worker_ops[k].op;
	if (strlen(arg) >= sizeof(o.text))
		die(EXIT_USAGE, "\"%s\": too long", word);
	strcpy(o.text, arg);
	if (o.op == OP_RANGE) {
		unsigned int first = 0, last = ops.pages;
		char tail;

		if (strcmp(arg, "all") &&
		    (sscanf(arg, "%u-%u%c", &first, &last, &tail) != 2 || first >= last ||
		     last > ops.pages))
			die(EXIT_USAGE, "\"%s\": not all, nor FIRST-END within %zu pages", word, ops.pages);
		o.value = (uint64_t)first << 32 | last;
	} else if (worker_ops[k].number) {
		o.value = parse_number(name, arg, 0, o.op == OP_WRITE ? 100 :
				       o.op == OP_LOOK ? 100000 : PAGE_BYTES - 1);
	}
	for (i = 0; i < opt.procs; i++) {
		if (!workers[i].pid || (one && i != only))
			continue;
		o.arg = i;
		join(i);
		if (later)
			o.op |= OP_LATER;
		tell(i, &o);
	}
	for (i = 0; i < opt.procs; i++) {
		if (!workers[i].pid || (one && i != only))
			continue;
		if (*word == '&')
			background[i] = word;
		else
			hear(i, word);
		if (later)
			background_wait(i, has_got, "get that");
	}
}

static void run_op(const char *word);

/* ERROR:OPERATION, which has to fail in that way. */
static void run_failing(const char *arg, const char *word)
{
	static const struct {
		const char *name;
		int err;
	} errors[] = { { "ENOMEM:", ENOMEM }, { "EAGAIN:", EAGAIN },
			{ "EFAULT:", EFAULT }, { "EINVAL:", EINVAL } };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(errors); i++)
		if (!strncmp(errors[i].name, arg, strlen(errors[i].name)))
			break;
	if (i == ARRAY_SIZE(errors))
		die(EXIT_USAGE, "\"%s\" is not fails=ERROR:OPERATION", word);
	wanted_error = errors[i].err;
	wanted_error_came = false;
	run_op(arg + strlen(errors[i].name));
	if (!wanted_error_came)
		die(EXIT_WRONG, "%s: it did not fail", word);
	wanted_error = 0;
}

static void run_op(const char *word)
{
	unsigned int only = MAX_PROCS;
	const char *body = word;
	char name[64], *arg;

	if (!strncmp(word, "fails=", 6)) {
		run_failing(word + 6, word);
		return;
	}
	body += strspn(body, "&");
	if (*body == '@') {
		char index[8];
		size_t n = strcspn(body + 1, ":");

		if (!body[1 + n] || n >= sizeof(index))
			die(EXIT_USAGE, "\"%s\" is not @PROCESS:OPERATION", word);
		memcpy(index, body + 1, n);
		index[n] = 0;
		only = (unsigned int)parse_number("@", index, 0, opt.procs - 1);
		body += 2 + n;
	}
	if ((size_t)snprintf(name, sizeof(name), "%s", body) >= sizeof(name) &&
	    strncmp(name, "file=", 5))
		die(EXIT_USAGE, "\"%s\": too long", word);
	arg = strchr(name, '=');
	if (arg)
		*arg++ = 0;
	body = strchr(body, '=') ? strchr(body, '=') + 1 : "";

	/* Who ends is waited for, but in the background. */
	if (*word == '&' && !strcmp(name, "kill") && only != MAX_PROCS) {
		background[only] = word;
		if (kill(workers[only].pid, SIGKILL))
			die(EXIT_ENV, "kill: %s", strerror(errno));
		return;
	}
	if ((*word != '&' || strcmp(name, "exit")) && process_op(only, name))
		return;
	/* All of them stay: who waits for a page on the move can do nothing. */
	if (!parent_op(name, body) || !strcmp(name, "stay"))
		worker_op(only, name, body, word);
}

static void __noreturn usage(void)
{
	printf("usage: pageops [--procs N] [--pages N] [--seed S] [--settle-timeout SECONDS] [--fifo] [--huge]\n"
		"               OPERATION...\n"
		"\n"
		"Each of N processes maps a region; then the operations follow, in every process\n"
		"or, as @K:OPERATION, in process K alone:\n"
		"  fill=dup[:N] same[:N] zero unique near[:BYTE] nearzero[:BYTE]\n"
		"  write=PERCENT   poke=BYTE   receive=BYTE (by read(2))   touch=read|write   verify\n"
		"  range=FIRST-END|all\n"
		"  map[=hugetlb|hugetlb-shared]  unmap  mlock  munlock  mremap  mprotect=none|ro|rw  fork[=write]\n"
		"  exit  exec (and ends)  kill  killed (waits until the kernel has done it)\n"
		"  merge=0|1 (the prctl)   user=ID, group=ID (becomes a process of that)\n"
		"  self=PATH:TEXT (writes to a file that means the writer)\n"
		"  bear (a child that stays, with a lower number than all)   bury (it verifies)\n"
		"  pin[=child|held] (by a pipe; of a child that goes; of one that stays, when the\n"
		"           engine is held)\n"
		"  unpin[=old] (and see that what is written, or was there, comes out)\n"
		"  madvise=dontneed|free|pageout|cold|mergeable|unmergeable|willneed|\n"
		"          populate_read|populate_write|hugepage|nohugepage|collapse|soft_offline\n"
		"  cpu=NUMBER   look=MS (reads the pages all the time)   migrate=FROM-TO (all it has)\n"
		"  bind=NODE[:move|:all]   move=NODE[:all] (also what others have as well)\n"
		"  uffd_wp (write-protects by userfaultfd, until it is written to)\n"
		"  uffd_rwp[=off] (no access to it by anybody, by userfaultfd; from Linux 7.3 on)\n"
		"  device[=exclusive] (gives it to the kernel's test_hmm, until it is touched)\n"
		"and, in the parent:\n"
		"  settle[=MS]   stat=NAME   set=CONTROL:VALUE   wait=CONDITION   sleep=MS   drain\n"
		"  file=PATH:TEXT   fails=ERROR:OPERATION   stay (all but regions, in memory)\n"
		"  stale=SECONDS (makes it all read-only when the engine is held, and writes on)\n"
		"  hold=POINT[:NUMBER|:@K|:#K] (of the engine; #K: the first page of process K)\n"
		"  held   hold=step|off   @K:reborn (what it is held with is a page of K's)\n"
		"  @K:beat (writes to its first page until)  @K:kept (it must not be able to)\n"
		"  @K:beating (wait until it does)\n"
		"\n"
		"&@K:OPERATION or &OPERATION is not waited for but by the next of that process, or\n"
		"by join. While the engine is held:\n"
		"  @K:done (wait until it has ended)   @K:blocked (it begins, and must not end)\n"
		"&&@K:OPERATION begins with that only: who is told before needs no system call then.\n"
		"--huge: regions are laid out for huge pages, which they ask for.\n"
		"--fifo: as real-time tasks, which may use some of the memory reserves.\n"
		"settle=MS: where pages are pinned; only until all were tried, and MS more.\n"
		"\n"
		"dup: page i is the same in every process; same: all pages are; near: dup but for\n"
		"one byte. Prints one line of JSON with what each stat saw.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 refused by the kernel or time-out.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "pages", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "fifo", no_argument, NULL, 'F' },
		{ "huge", no_argument, NULL, 'H' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	char *text;
	unsigned int i;
	int c;

	prog_start("pageops");
	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			opt.procs = parse_number("--procs", optarg, 1, MAX_PROCS - 1);
			break;
		case 'n':
			ops.pages = parse_number("--pages", optarg, 1, 1 << 20);
			break;
		case 's':
			ops.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
			break;
		case 'S':
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
			break;
		case 'F':	/* a real-time task may use some of the memory reserves */
			if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 }))
				die(EXIT_ENV, "SCHED_FIFO: %s", strerror(errno));
			break;
		case 'H':
			ops.huge = true;
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	if (optind == argc)
		bad_usage("no OPERATION given");
	stats = untracked_stream(&text);
	workers = xcalloc(opt.procs, sizeof(*workers));
	bases = xcalloc(opt.procs, sizeof(*bases));
	background = xcalloc(opt.procs, sizeof(*background));
	told = xcalloc(opt.procs, sizeof(*told));
	ops_beats = untracked_alloc(opt.procs * sizeof(*ops_beats));
	ops_progress = untracked_alloc(opt.procs * sizeof(*ops_progress));
	for (i = 0; i < opt.procs; i++)
		worker_start(workers, i, ops_order, NULL);
	run_op("map");
	/* Once for nothing: what this needs is there before the first that counts. */
	run_op("stat=warmup");
	fflush(stats);
	rewind(stats);
	memset(text, 0, strlen(text));
	for (; optind < argc; optind++)
		run_op(argv[optind]);
	run_op("join");
	run_op("exit");
	fclose(stats);
	printf("{\"tool\": \"pageops\", \"engine\": \"%s\", \"ok\": %s, \"wrong\": %" PRIu64
	       ", \"stats\": [%s]}\n",
	       engine_name(), total_wrong ? "false" : "true", total_wrong, text);
	free(workers);
	free(bases);
	free(background);
	free(told);
	return total_wrong ? EXIT_WRONG : 0;
}

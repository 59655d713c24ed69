// SPDX-License-Identifier: GPL-2.0-only
/*
 * fuzzmm - random operations on the memory of some processes, against a model of
 * every byte.
 *
 * The first process deals the operations out, one at a time, to processes that serve
 * them, and that fork each other. One line of JSON tells what was done; its digest is
 * of every operation and of what came of it. See fuzz.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

/* The clock begins at a multiple of this, so that all timers of the kernel do. */
#define ALIGN_SECONDS	60
#define PROGRESS_EVERY	100

static struct {
	uint64_t seed;
	uint32_t ops;
	const char *script, *progress;
	bool print, hold;
} opt = { .seed = 1, .ops = 5000 };

static struct fuzz_op *script;
static int orders[FUZZ_MAX_PROCS][2];
/* All that is said to the first process, also that somebody has ended. */
static int replies[2];
static int progress_fd = -1;
static uint64_t digest;
static struct {
	uint64_t done, refused, left_out, pages;
} stats[FUZZ_KINDS], total;

static void op_at(uint32_t i, struct fuzz_op *op)
{
	if (script)
		*op = script[i];
	else
		fuzz_make(opt.seed, i, op);
}

/* ---- processes --------------------------------------------------------- */

static void __noreturn serve(unsigned int proc);

/* The child's parent is that of this process: it looks after all. */
static void do_fork(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r)
{
	unsigned int child = op->arg;
	long pid;

	fuzz_forked(proc, child);
	pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, NULL, NULL, NULL, NULL);
	if (pid < 0) {
		r->err = errno;
		return;
	}
	if (!pid) {
		fuzz_pins_close(proc);
		fuzz_uffd_close();
		serve(child);
	}
	r->pid = (int32_t)pid;
	r->pages = 1;
}

static void __noreturn serve(unsigned int proc)
{
	struct fuzz_result r;
	struct fuzz_op op;
	ssize_t n;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGCHLD, SIG_DFL);
	for (;;) {
		n = read(orders[proc][0], &op, sizeof(op));
		if (n < 0 && errno == EINTR)
			continue;
		if (n != (ssize_t)sizeof(op))
			_exit(FUZZ_ENV);
		memset(&r, 0, sizeof(r));
		if (op.kind == FUZZ_FORK)
			do_fork(proc, &op, &r);
		else if (op.kind != FUZZ_EXIT || op.arg)
			fuzz_memory(proc, &op, &r);
		if (op.kind == FUZZ_EXIT && !fuzz->wrong.found)
			_exit(0);
		if (write(replies[1], &r, sizeof(r)) != (ssize_t)sizeof(r))
			_exit(FUZZ_ENV);
	}
}

/* Whoever ends is heard of in the same way as what others have done. */
static void on_child(int sig __unused)
{
	int saved = errno, status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct fuzz_result r = { .pid = pid, .ended = 1, .err = status };

		if (write(replies[1], &r, sizeof(r)) != (ssize_t)sizeof(r))
			_exit(FUZZ_ENV);
	}
	errno = saved;
}

static void children(int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(how, &set, NULL);
}

static void spawn(unsigned int proc)
{
	struct fuzz_proc *p = &fuzz->procs[proc];
	pid_t pid;

	memset(p, 0, sizeof(*p));
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die(FUZZ_ENV, "fork: %s", strerror(errno));
	if (!pid) {
		if (fuzz_user(proc % 2))
			_exit(FUZZ_ENV);
		serve(proc);
	}
	p->pid = pid;
	p->alive = true;
	fuzz_join(pid, proc / 2);
}

static unsigned int number_alive(void)
{
	unsigned int i, n = 0;

	for (i = 0; i < fuzz_sizes.procs; i++)
		n += fuzz->procs[i].alive;
	return n;
}

static void hear(struct fuzz_result *r)
{
	ssize_t n;

	do {
		children(SIG_UNBLOCK);
		n = read(replies[0], r, sizeof(*r));
		children(SIG_BLOCK);
	} while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof(*r))
		die(FUZZ_ENV, "nobody answers");
}

/* Lets process @proc carry out @op. */
static void give(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r)
{
	struct fuzz_proc *p = &fuzz->procs[proc];

	if (write(orders[proc][1], op, sizeof(*op)) != (ssize_t)sizeof(*op))
		die(FUZZ_ENV, "process %u takes no orders", proc);
	hear(r);
	if (!r->ended)
		return;
	p->alive = false;
	if (op->kind != FUZZ_EXIT || r->err || r->pid != p->pid) {
		fprintf(stderr, "%s: process %u ended with wait status 0x%x\n", prog_name, proc,
			(unsigned int)r->err);
		if (!fuzz->wrong.found)
			fuzz->wrong = (struct fuzz_wrong){
				.found = true, .proc = proc, .page = fuzz_sizes.pages,
				.when = "when a process ended",
			};
	}
	*r = (struct fuzz_result){ .pages = 1 };
}

static void give_fork(const struct fuzz_op *op, struct fuzz_result *r)
{
	struct fuzz_op end = { .number = op->number, .kind = FUZZ_EXIT, .arg = 1 };

	if (op->arg == op->proc)
		return;
	if (fuzz->procs[op->arg].alive)
		give(op->arg, &end, r);
	if (fuzz->wrong.found)
		return;
	give(op->proc, op, r);
	if (r->err || r->ended || !r->pid)
		return;
	fuzz->procs[op->arg].pid = r->pid;
	fuzz->procs[op->arg].alive = true;
	r->pid = 0;
}

static void carry_out(const struct fuzz_op *op, struct fuzz_result *r)
{
	unsigned int i;

	memset(r, 0, sizeof(*r));
	if (op->kind == FUZZ_SPAWN) {
		r->pages = !fuzz->procs[op->proc].alive;
		if (r->pages)
			spawn(op->proc);
	} else if (op->kind == FUZZ_VERIFY_ALL) {
		for (i = 0; i < fuzz_sizes.procs && !fuzz->wrong.found; i++)
			if (fuzz->procs[i].alive)
				give(i, op, r);
	} else if (!(fuzz_kinds[op->kind].needs & OF_PROCESS)) {
		fuzz_outside(op, r);
	} else if (!fuzz->procs[op->proc].alive ||
		   (op->kind == FUZZ_EXIT && number_alive() == 1)) {
		return;
	} else if (op->kind == FUZZ_FORK) {
		give_fork(op, r);
	} else {
		give(op->proc, op, r);
	}
}

/* ---- results -------------------------------------------------------------- */

static void account(const struct fuzz_op *op, const struct fuzz_result *r)
{
	digest = mix64(digest ^ op->number ^ (uint64_t)op->kind << 32);
	/*
	 * How many pages reclaim gets hold of depends on which page frames there are, which
	 * varies, and so does whether pages that were given up (MADV_FREE) are zeros when they
	 * are read, the sum of most operations. pagestat may find no moment at which all is at
	 * rest.
	 */
	if (op->kind != FUZZ_RECLAIM && op->kind != FUZZ_AUDIT)
		digest = mix64(digest ^ (uint64_t)(uint32_t)r->err ^ (uint64_t)r->pages << 32);
	if (op->kind == FUZZ_UNPIN)
		digest = mix64(digest ^ r->sum);
	if (r->err)
		stats[op->kind].refused++;
	else if (!r->pages)
		stats[op->kind].left_out++;
	else
		stats[op->kind].done++;
	stats[op->kind].pages += r->pages;
}

static void say_progress(uint32_t i)
{
	char text[24];
	int n;

	if (progress_fd < 0)
		return;
	n = snprintf(text, sizeof(text), "%10" PRIu32 "\n", i);
	if (pwrite(progress_fd, text, (size_t)n, 0) != n)
		die(FUZZ_ENV, "%s: %s", opt.progress, strerror(errno));
}

static void say_wrong(uint32_t number)
{
	const struct fuzz_wrong *w = &fuzz->wrong;
	const struct fuzz_slot *s;
	struct fuzz_op op;
	unsigned int i;

	op_at(number, &op);
	if (w->page >= fuzz_sizes.pages) {
		fprintf(stderr, "%s: wrong %s: at operation %" PRIu32 ": ", prog_name, w->when, number);
		fuzz_print(stderr, &op);
		return;
	}
	fprintf(stderr,
		"%s: wrong byte %s: process %u (pid %d) page %u address 0x%lx offset %u: expected 0x%02x, got 0x%02x; at operation %" PRIu32 ": ",
		prog_name, w->when, w->proc, fuzz->procs[w->proc].pid, w->page,
		(unsigned long)(uintptr_t)fuzz_page(w->page) + w->off, w->off, w->expected,
		w->got, number);
	fuzz_print(stderr, &op);
	fprintf(stderr, "%s: the last operations on that page:\n", prog_name);
	s = &fuzz->procs[w->proc].slots[w->page];
	for (i = s->nr_last < FUZZ_LAST ? 0 : s->nr_last - FUZZ_LAST; i < s->nr_last; i++) {
		op_at(s->last[i % FUZZ_LAST], &op);
		fprintf(stderr, "%10" PRIu32 " ", op.number);
		fuzz_print(stderr, &op);
	}
}

static void say_result(uint32_t done, uint64_t ms)
{
	const struct fuzz_wrong *w = &fuzz->wrong;
	const char *comma = "";
	unsigned int k;

	for (k = 0; k < FUZZ_KINDS; k++) {
		total.done += stats[k].done;
		total.refused += stats[k].refused;
		total.left_out += stats[k].left_out;
	}
	printf("{\"tool\": \"fuzzmm\", \"engine\": \"%s\", \"ok\": %s, \"seed\": %" PRIu64
	       ", \"procs\": %u, \"pages\": %u, \"ops\": %" PRIu32 ", \"done\": %" PRIu64
	       ", \"refused\": %" PRIu64 ", \"left_out\": %" PRIu64 ", \"digest\": \"%016" PRIx64
	       "\", \"ms\": %" PRIu64 ", \"wrong\": ",
	       engine_name(), w->found ? "false" : "true", opt.seed, fuzz_sizes.procs,
	       fuzz_sizes.pages, done, total.done, total.refused, total.left_out, digest, ms);
	if (w->found)
		printf("{\"operation\": %" PRIu32 ", \"when\": \"%s\", \"process\": %u, \"page\": %u, \"offset\": %u}",
		       done - 1, w->when, w->proc, w->page, w->off);
	else
		printf("null");
	printf(", \"by_kind\": {");
	for (k = 0; k < FUZZ_KINDS; k++, comma = ", ")
		printf("%s\"%s\": [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "]", comma,
		       fuzz_kinds[k].name, stats[k].done, stats[k].refused, stats[k].left_out,
		       stats[k].pages);
	printf("}, \"counters\": ");
	json_counters(stdout);
	printf("}\n");
	fflush(stdout);
}

/* ---- the run ----------------------------------------------------------------- */

/* To the nanosecond. */
static void align(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += ALIGN_SECONDS - t.tv_sec % ALIGN_SECONDS;
	t.tv_nsec = 0;
	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* Nothing is to be left of what the engine knew before, nor of when that was. */
static void begin(void)
{
	static const char *const controls[][2] = {
		{ "run", "1" }, { "max_cpu", "100" }, { "settle_millisecs", "5" },
		{ "rescan_seconds", "20" },
	};
	size_t i;

	if (fuzz->exact_pins) {
		control_write("run", "2");
		align();
		/* A page that still is in such a batch is in use. */
		lru_drain();
	}
	for (i = 0; i < ARRAY_SIZE(controls); i++)
		control_write(controls[i][0], controls[i][1]);
}

static void run(void)
{
	const struct fuzz_op all = { .number = opt.ops, .kind = FUZZ_VERIFY_ALL };
	struct fuzz_result r;
	struct fuzz_op op;
	uint64_t start;
	uint32_t i;

	begin();
	start = now_ms();
	for (i = 0; i < fuzz_sizes.procs; i++)
		spawn(i);
	for (i = 0; i < opt.ops && !fuzz->wrong.found; i++) {
		if (i % PROGRESS_EVERY == 0)
			say_progress(i);
		op_at(i, &op);
		carry_out(&op, &r);
		account(&op, &r);
		fuzz_look(&op, &r);
	}
	if (!fuzz->wrong.found) {
		carry_out(&all, &r);
		account(&all, &r);
	}
	if (fuzz->wrong.found)
		say_wrong(i ? i - 1 : 0);
	say_result(i, now_ms() - start);
}

/* The others verify once more and end. */
static void finish(void)
{
	struct fuzz_op end = { .number = opt.ops, .kind = FUZZ_EXIT, .arg = 1 };
	struct fuzz_result r;
	unsigned int i;
	char unused;

	if (fuzz->wrong.found)
		return;
	while (opt.hold && read(STDIN_FILENO, &unused, 1) > 0)
		;
	for (i = 0; i < fuzz_sizes.procs && !fuzz->wrong.found; i++)
		if (fuzz->procs[i].alive)
			give(i, &end, &r);
	if (fuzz->wrong.found)
		say_wrong(opt.ops - 1);
}

/* Under time travel nobody works while nobody sleeps, and a run repeats another. */
static bool time_travels(void)
{
	char text[4096] = "";
	FILE *f = fopen("/proc/cmdline", "re");
	bool travels;

	travels = f && fgets(text, sizeof(text), f) && strstr(text, "time-travel");
	if (f)
		fclose(f);
	return travels;
}

static void __noreturn usage(void)
{
	unsigned int k;

	printf("usage: fuzzmm [options]\n"
		"\n"
		"Random operations on the memory of some processes under the engine, against a\n"
		"model of every byte. Under time travel the same seed is the same run, bit for bit.\n"
		"\n"
		"  --seed N           of the operations (1)\n"
		"  --ops N            how many (5000)\n"
		"  --procs N          processes (4)\n"
		"  --pages N          of each (96)\n"
		"  --only LIST        only these operations, divided by commas\n"
		"  --without LIST     all but these\n"
		"  --from-script FILE carry out the operations in FILE; -: from standard input\n"
		"  --print-script     print the operations of the seed, and do nothing\n"
		"  --group DIR        a memory cgroup to be in, and to reclaim from; or two of them\n"
		"  --progress FILE    write the number of the operation there, now and then\n"
		"  --trace FILE       write each operation there: its number, errno, pages, what it saw,\n"
		"                     pages merged and broken off until then\n"
		"  --spy PROCESS:PAGE say what the page map and kpageflags have of that page, when it\n"
		"                     changes\n"
		"  --hold             end only when standard input does, and verify once more\n"
		"\n"
		"  fuzzmm --seed 7 --ops 20000\n"
		"  fuzzmm --only map,dup,poke,verify,fork,sleep --procs 2 --pages 16\n"
		"  fuzzmm --seed 7 --ops 300 --print-script >list; fuzzmm --from-script list\n"
		"\n"
		"Each line of a list is an operation, its process, FIRST+NUMBER of the pages, and an\n"
		"argument, as far as it has them; those that do not apply are left out. Lines that\n"
		"begin with # are remarks; \"sizes PROCESSES PAGES\" may come first. Operations:\n");
	for (k = 0; k < FUZZ_KINDS; k++)
		printf("  %-15s%s%s%s %s\n", fuzz_kinds[k].name,
		       fuzz_kinds[k].needs & (OF_PROCESS | OF_OUTSIDE) || k == FUZZ_SPAWN ? " P" : "",
		       fuzz_kinds[k].most ? " PAGE+N" : "",
		       k == FUZZ_SET ? " CONTROL=VALUE" : fuzz_kinds[k].args ? " ARG" : "",
		       fuzz_kinds[k].what);
	printf("\n"
		"Exit status: 0; 3 a wrong byte, or a contradiction in what the kernel says of\n"
		"itself; 1 the guest cannot run this; 2 usage.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "ops", required_argument, NULL, 'n' },
		{ "procs", required_argument, NULL, 'p' },
		{ "pages", required_argument, NULL, 'P' },
		{ "only", required_argument, NULL, 'o' },
		{ "without", required_argument, NULL, 'w' },
		{ "from-script", required_argument, NULL, 'f' },
		{ "print-script", no_argument, NULL, 'S' },
		{ "group", required_argument, NULL, 'g' },
		{ "progress", required_argument, NULL, 'r' },
		{ "trace", required_argument, NULL, 't' },
		{ "spy", required_argument, NULL, 'y' },
		{ "hold", no_argument, NULL, 'H' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's':
			opt.seed = parse_number("--seed", optarg, 0, UINT64_MAX);
			break;
		case 'n':
			opt.ops = parse_number("--ops", optarg, 1, 100000000);
			break;
		case 'p':
			fuzz_sizes.procs = parse_number("--procs", optarg, 1, FUZZ_MAX_PROCS);
			break;
		case 'P':
			fuzz_sizes.pages = parse_number("--pages", optarg, 1, FUZZ_MAX_PAGES);
			break;
		case 'o':
		case 'w':
			fuzz_choose(optarg, c == 'w');
			break;
		case 'f':
			opt.script = optarg;
			break;
		case 'S':
			opt.print = true;
			break;
		case 'g':
			fuzz_group(optarg);
			break;
		case 'r':
			opt.progress = optarg;
			break;
		case 't':
			fuzz_trace(optarg);
			break;
		case 'y':
			fuzz_spy(optarg);
			break;
		case 'H':
			opt.hold = true;
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	if (opt.script)
		script = fuzz_read(opt.script, &opt.ops);
}

static void print_script(void)
{
	struct fuzz_op op;
	uint32_t i;

	printf("sizes %u %u\n", fuzz_sizes.procs, fuzz_sizes.pages);
	for (i = 0; i < opt.ops; i++) {
		op_at(i, &op);
		fuzz_print(stdout, &op);
	}
}

static void prepare(void)
{
	struct sigaction action = { .sa_handler = on_child, .sa_flags = SA_NOCLDSTOP };
	unsigned int i;
	int err;

	fuzz_model_make();
	fuzz->exact_pins = time_travels();
	children(SIG_BLOCK);
	if (sigaction(SIGCHLD, &action, NULL) || pipe2(replies, O_CLOEXEC))
		die(FUZZ_ENV, "pipe: %s", strerror(errno));
	for (i = 0; i < fuzz_sizes.procs; i++)
		if (pipe2(orders[i], O_CLOEXEC))
			die(FUZZ_ENV, "pipe: %s", strerror(errno));
	if (opt.progress) {
		progress_fd = open(opt.progress, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		if (progress_fd < 0)
			die(FUZZ_ENV, "%s: %s", opt.progress, strerror(errno));
	}
	err = fuzz_group_of(0) ? fuzz_join(0, 0) : 0;
	if (err)
		die(FUZZ_ENV, "%s: %s", fuzz_group_of(0), strerror(err));
}

int main(int argc, char **argv)
{
	prog_start("fuzzmm");
	parse(argc, argv);
	if (opt.print) {
		print_script();
		return 0;
	}
	prepare();
	run();
	finish();
	return fuzz->wrong.found ? FUZZ_WRONG : 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * hoard - processes that hold much memory and do nothing, for who measures engines.
 *
 * The pages are filled inside of the kernel, by read(2), and afterwards their owners
 * sleep: no page is mapped anew on the host, and all CPU time that the kernel uses is
 * the engine's, but for that of this program's polls, which it counts. Pages are
 * verified through /proc/PID/mem, and merged ones broken off by process_vm_writev(),
 * for the same reason. Each line of standard input is an order, and is answered by a line
 * of JSON.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "common.h"

#define MAX_PROCS	256
#define CHUNK		256UL	/* pages that are filled or read at a time */
#define MAX_IOV		512UL	/* writes by one call */
#define STEADY_SHARE	1000	/* by a part in so many that what is saved may change */

enum { S_DUP = 1, S_UNIQUE, S_PLACE };
enum { DO_FILL = 1, DO_DROP, DO_CHANGE };

static struct {
	unsigned int procs, copies, dup, zero;
	size_t pages;		/* of each process */
	uint64_t seed, unique_seed;
	bool madvise;
} opt = { .procs = 8, .dup = 100, .pages = 512, .seed = 1, .unique_seed = 1 };

static struct worker *workers;
static char **bases;
static size_t n_dup, n_zero;

/* ---- what each page holds ------------------------------------------------- */

/* Equal pages lie at another place in each process. */
static struct scatter places_of(unsigned int proc)
{
	return scatter_make(opt.pages, opt.seed, S_PLACE, proc);
}

static struct content content_of(unsigned int proc, const struct scatter *p, size_t i)
{
	size_t number = scatter_place(p, i);
	struct content c = { 0 };

	if (number < n_dup)
		c.key = content_key(opt.seed, S_DUP, number, proc / opt.copies);
	else if (number >= n_dup + n_zero)
		c.key = content_key(opt.unique_seed, S_UNIQUE, number, proc);
	return c;
}

/* How many PTEs less there are pages for once all that is alike is one. */
static uint64_t expected_sharing(void)
{
	uint64_t groups = (opt.procs + opt.copies - 1) / opt.copies;

	return (opt.procs - groups) * n_dup;
}

/* ---- a process -------------------------------------------------------------- */

static char *region, *chunk;
static int chunk_fd = -1;

/* One for all, since they are filled one after the other. */
static void make_chunk(void)
{
	chunk_fd = memfd_create("chunk", MFD_CLOEXEC);
	if (chunk_fd < 0 || ftruncate(chunk_fd, (off_t)(CHUNK * PAGE_BYTES)))
		die(EXIT_ENV, "memfd: %s", strerror(errno));
	chunk = mmap(NULL, CHUNK * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, chunk_fd, 0);
	if (chunk == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
}

static int do_fill(unsigned int proc)
{
	struct scatter p = places_of(proc);
	size_t i, k, n;

	if (!region) {
		region = mmap(NULL, opt.pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (region == MAP_FAILED)
			return -errno;
		if (opt.madvise && madvise(region, opt.pages * PAGE_BYTES, MADV_MERGEABLE))
			return -errno;
	}
	for (i = 0; i < opt.pages; i += n) {
		n = opt.pages - i < CHUNK ? opt.pages - i : CHUNK;
		for (k = 0; k < n; k++) {
			struct content c = content_of(proc, &p, i + k);

			page_fill(chunk + k * PAGE_BYTES, &c);
		}
		if (pread(chunk_fd, region + i * PAGE_BYTES, n * PAGE_BYTES, 0) !=
		    (ssize_t)(n * PAGE_BYTES))
			return errno ? -errno : -EIO;
	}
	return 0;
}

/*
 * Changes each page every @period ms, and gives it back what it had in the end. It never
 * has the same contents twice meanwhile: whoever looks at it as often as it changes, or
 * half as often, is to find that it does.
 */
static int do_change(uint32_t period, uint64_t ms)
{
	uint64_t *had = malloc(opt.pages * sizeof(*had)), round, end = now_ms() + ms, next = now_ms();
	size_t i;

	if (!had)
		return -ENOMEM;
	for (i = 0; i < opt.pages; i++)
		memcpy(&had[i], region + i * PAGE_BYTES, sizeof(*had));
	for (round = 1; now_ms() < end; round++) {
		for (i = 0; i < opt.pages; i++) {
			uint64_t now = had[i] + round;

			memcpy(region + i * PAGE_BYTES, &now, sizeof(now));
		}
		next += period;
		if (next > now_ms())
			sleep_ms((unsigned int)(next - now_ms()));
	}
	for (i = 0; i < opt.pages; i++)
		memcpy(region + i * PAGE_BYTES, &had[i], sizeof(*had));
	free(had);
	return 0;
}

static void serve(void *ctx __unused, const struct order *o, struct reply *r)
{
	if (o->op == DO_FILL)
		r->status = do_fill(o->arg);
	else if (o->op == DO_DROP)
		r->status = madvise(region, opt.pages * PAGE_BYTES, MADV_DONTNEED) ? -errno : 0;
	else
		r->status = do_change(o->arg, o->value);
	r->value[0] = (uint64_t)(uintptr_t)region;
}

/* ---- orders ------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int64_t counter(const char *name)
{
	int64_t value = 0;

	counter_read(name, &value);
	return value;
}

static int64_t zero_pages(void)
{
	return counter(engine_kind() == ENGINE_KSM ? "ksm_zero_pages" : "zero_pages");
}

static uint64_t last_write_ns;

/* All at once would be as fast on one CPU; so each has its pages in one piece. */
static void fill(void)
{
	unsigned int i;

	for (i = 0; i < opt.procs; i++) {
		struct order o = { .op = DO_FILL, .arg = i };

		worker_send(&workers[i], &o);
		worker_receive(&workers[i]);
		if (workers[i].last.status)
			die(EXIT_ENV, "process %u: %s", i, strerror(-workers[i].last.status));
		bases[i] = (char *)(uintptr_t)workers[i].last.value[0];
	}
	last_write_ns = now_ns();
	printf("{\"pages\": %zu, \"dup\": %zu, \"zero\": %zu, \"expected_sharing\": %" PRIu64 "}\n",
	       opt.procs * opt.pages, opt.procs * n_dup, opt.procs * n_zero, expected_sharing());
}

static void drop(void)
{
	struct order o = { .op = DO_DROP };

	worker_all(workers, opt.procs, &o);
	printf("{\"ok\": true}\n");
}

static void change(unsigned int period, unsigned int ms)
{
	struct order o = { .op = DO_CHANGE, .arg = period, .value = ms };
	unsigned int i;

	worker_all(workers, opt.procs, &o);
	for (i = 0; i < opt.procs; i++) {
		if (workers[i].last.status)
			die(EXIT_ENV, "process %u: %s", i, strerror(-workers[i].last.status));
	}
	printf("{\"ok\": true}\n");
}

/*
 * Until a condition holds: how long since the last write, and after how many polls.
 * Then the engine is stopped, if it is to be: not to go on until the host asks for it.
 */
static void wait_for(const char *text, unsigned int interval, unsigned int seconds, bool stop)
{
	uint64_t end = now_ns() + seconds * 1000000000ULL, now;
	struct condition c;
	uint64_t polls = 0;
	bool holds;

	if (!condition_parse(text, &c))
		die(EXIT_USAGE, "no condition: %s", text);
	do {
		if (polls++)
			sleep_ms(interval);
		holds = condition_holds(&c) == 1;
		now = now_ns();
	} while (!holds && now < end);
	if (stop)
		control_write("run", "0");
	printf("{\"ok\": %s, \"polls\": %" PRIu64 ", \"ns\": %" PRIu64 ", \"at_ns\": %" PRIu64 "}\n",
	       holds ? "true" : "false", polls, now - last_write_ns, now);
}

/* What polling costs, for it to be taken off. */
static void poll(const char *name, unsigned int times)
{
	unsigned int i;

	for (i = 0; i < times; i++) {
		sleep_ms(1);
		counter(name);
	}
	printf("{\"polls\": %u}\n", times);
}

static bool nearly(int64_t a, int64_t b)
{
	return llabs(a - b) <= llabs(a) / STEADY_SHARE;
}

/*
 * What is saved, in pages, and when: a sample every @interval ms, for @ms; or until it has
 * stayed nearly the same for @steady ms, unless that is 0.
 */
static void sample(unsigned int interval, unsigned int steady, unsigned int ms)
{
	uint64_t start = now_ms(), next = start, since = start;
	int64_t level = 0;

	printf("{\"samples\": [");
	for (;;) {
		int64_t more = counter("pages_sharing"), zero = zero_pages();

		printf("[%" PRIu64 ", %" PRId64 ", %" PRId64 "]", now_ns() / 1000000, more, zero);
		if (!nearly(level, more + zero)) {
			level = more + zero;
			since = now_ms();
		}
		next += interval;
		if (next >= start + ms || (steady && now_ms() >= since + steady))
			break;
		printf(", ");
		if (next > now_ms())
			sleep_ms((unsigned int)(next - now_ms()));
	}
	printf("], \"steady\": %s}\n", steady && now_ms() >= since + steady ? "true" : "false");
}

/* Here, so that an order that comes with it begins at the same moment. */
static void run(const char *value)
{
	if (control_write("run", value))
		die(EXIT_ENV, "run: %s", strerror(errno));
	printf("{\"ok\": true}\n");
}

/* Every page of every process. To read them through /proc leaves them merged. */
static void verify(void)
{
	uint64_t wrong = 0;
	unsigned int proc;
	size_t i, k, n;

	for (proc = 0; proc < opt.procs; proc++) {
		struct scatter p = places_of(proc);
		char path[64];
		int fd;

		snprintf(path, sizeof(path), "/proc/%d/mem", workers[proc].pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		for (i = 0; i < opt.pages; i += n) {
			n = opt.pages - i < CHUNK ? opt.pages - i : CHUNK;
			if (fd < 0 || pread(fd, chunk, n * PAGE_BYTES,
					    (off_t)(uintptr_t)bases[proc] +
					    (off_t)(i * PAGE_BYTES)) != (ssize_t)(n * PAGE_BYTES))
				die(EXIT_ENV, "%s: %s", path, strerror(errno));
			for (k = 0; k < n; k++) {
				struct content c = content_of(proc, &p, i + k);

				wrong += region_check(chunk + k * PAGE_BYTES, &c, 1, "in a hoard");
			}
		}
		close(fd);
	}
	printf("{\"wrong\": %" PRIu64 "}\n", wrong);
	if (wrong)
		exit(EXIT_WRONG);
}

/*
 * Writes to each page what is its first byte anyway: that breaks off merged pages.
 * The times are those of calls for MAX_IOV pages each.
 */
static void break_off(unsigned int proc)
{
	struct iovec from[MAX_IOV], to[MAX_IOV];
	struct scatter p = places_of(proc);
	char bytes[MAX_IOV], page[PAGE_BYTES];
	const char *comma = "";
	size_t i, k;

	printf("{\"pages_per_call\": %lu, \"ns\": [", MAX_IOV);
	for (i = 0; i + MAX_IOV <= opt.pages; i += MAX_IOV) {
		uint64_t start;

		for (k = 0; k < MAX_IOV; k++) {
			struct content c = content_of(proc, &p, i + k);

			page_fill(page, &c);
			bytes[k] = page[0];
			from[k] = (struct iovec){ &bytes[k], 1 };
			to[k] = (struct iovec){ bases[proc] + (i + k) * PAGE_BYTES, 1 };
		}
		start = now_ns();
		if (process_vm_writev(workers[proc].pid, from, MAX_IOV, to, MAX_IOV, 0) !=
		    (ssize_t)MAX_IOV)
			die(EXIT_ENV, "process_vm_writev: %s", strerror(errno));
		printf("%s%" PRIu64, comma, now_ns() - start);
		comma = ", ";
	}
	printf("]}\n");
}

/* Nobody is born or dies for this, as would be for a program that sleeps. */
static void pause_ms(unsigned int ms)
{
	sleep_ms(ms);
	printf("{\"ok\": true}\n");
}

static void obey(const char *line)
{
	unsigned int one, two, three;
	char text[96];

	if (!strcmp(line, "fill\n"))
		fill();
	else if (!strcmp(line, "drop\n"))
		drop();
	else if (!strcmp(line, "verify\n"))
		verify();
	else if (sscanf(line, "change %u %u", &one, &two) == 2)
		change(one, two);
	else if (sscanf(line, "wait %95s %u %u", text, &one, &two) == 3)
		wait_for(text, one, two, false);
	else if (sscanf(line, "until %95s %u %u", text, &one, &two) == 3)
		wait_for(text, one, two, true);
	else if (sscanf(line, "poll %95s %u", text, &one) == 2)
		poll(text, one);
	else if (sscanf(line, "sample %u %u", &one, &two) == 2 && one)
		sample(one, 0, two);
	else if (sscanf(line, "steady %u %u %u", &one, &two, &three) == 3 && one)
		sample(one, two, three);
	else if (sscanf(line, "run %95s", text) == 1)
		run(text);
	else if (sscanf(line, "sleep %u", &one) == 1)
		pause_ms(one);
	else if (sscanf(line, "break %u", &one) == 1 && one < opt.procs)
		break_off(one);
	else
		die(EXIT_USAGE, "no such order: %s", line);
	fflush(stdout);
}

static void __noreturn usage(void)
{
	printf("usage: hoard [options]\n"
		"\n"
		"  --procs N   processes (8)\n"
		"  --pages N   pages of each (512)\n"
		"  --copies N  how many of the processes have the same duplicates (all)\n"
		"  --dup P     per cent of the pages that are the same in these (100)\n"
		"  --zero P    per cent that are zeroes (0); the rest is unique\n"
		"  --seed N    another seed, other contents (1)\n"
		"  --unique-seed N  the same for what is unique: two hoards have to differ (1)\n"
		"  --madvise   madvise(MADV_MERGEABLE), as stock KSM wants it\n"
		"\n"
		"Lines of standard input are obeyed, and answered by JSON:\n"
		"  fill                  fill all pages\n"
		"  wait COND MS S        wait until a counter of the engine is as in full_scans>=2,\n"
		"                        looking every MS ms, for at most S seconds\n"
		"  until COND MS S       the same, and stop the engine then\n"
		"  poll COUNTER N        read a counter N times, to see what that costs\n"
		"  sample MS ALL         what is saved, every MS ms, for ALL ms\n"
		"  steady MS FOR ALL     the same, until nothing has changed FOR so many ms\n"
		"  run VALUE             what the engine is to do: 0, 1, 2\n"
		"  change MS ALL         change each page every MS ms, for ALL ms\n"
		"  sleep MS              do nothing\n"
		"  break PROCESS         write to each page of one process\n"
		"  drop                  give all pages back\n"
		"  verify                see that all pages are as they were filled\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "procs", required_argument, NULL, 'p' },
		{ "pages", required_argument, NULL, 'n' },
		{ "copies", required_argument, NULL, 'c' },
		{ "dup", required_argument, NULL, 'd' },
		{ "zero", required_argument, NULL, 'z' },
		{ "seed", required_argument, NULL, 's' },
		{ "unique-seed", required_argument, NULL, 'u' },
		{ "madvise", no_argument, NULL, 'm' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'p':
			opt.procs = parse_number("--procs", optarg, 1, MAX_PROCS);
			break;
		case 'n':
			opt.pages = parse_number("--pages", optarg, 2, 1 << 20);
			break;
		case 'c':
			opt.copies = parse_number("--copies", optarg, 1, MAX_PROCS);
			break;
		case 'd':
			opt.dup = parse_number("--dup", optarg, 0, 100);
			break;
		case 'z':
			opt.zero = parse_number("--zero", optarg, 0, 100);
			break;
		case 's':
			opt.seed = parse_number("--seed", optarg, 0, UINT32_MAX);
			break;
		case 'u':
			opt.unique_seed = parse_number("--unique-seed", optarg, 0, UINT32_MAX);
			break;
		case 'm':
			opt.madvise = true;
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	if (opt.dup + opt.zero > 100)
		bad_usage("--dup and --zero are more than 100 together");
	if (!opt.copies)
		opt.copies = opt.procs;
	n_dup = opt.pages * opt.dup / 100;
	n_zero = opt.pages * opt.zero / 100;
}

int main(int argc, char **argv)
{
	char line[128];
	unsigned int i;

	prog_start("hoard");
	parse(argc, argv);
	workers = xcalloc(opt.procs, sizeof(*workers));
	bases = xcalloc(opt.procs, sizeof(*bases));
	make_chunk();
	for (i = 0; i < opt.procs; i++)
		worker_start(workers, i, serve, NULL);
	/* An engine that never sleeps is not to keep this from looking at it. */
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 });
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	for (i = 0; i < opt.procs; i++)
		worker_end(&workers[i]);
	return 0;
}

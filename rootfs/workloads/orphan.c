// SPDX-License-Identifier: GPL-2.0-only
/*
 * orphan - an address space that outlives its process.
 *
 * Somebody reads from a process by process_vm_readv(), into memory whose pages
 * only userfaultfd can bring; so he is held up, and holds the other's address
 * space. That process is killed and gone: its pages, which a twin has as well,
 * now belong to an address space without an owner. One line of JSON says so; the
 * next line on standard input, or its end, lets the reader go on.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

enum { DO_FILL = 1, DO_VERIFY };
enum { OWNER, TWIN, PROCS };

static struct {
	size_t pages;
	uint64_t settle_s;
	bool merge;
} opt = { .pages = 64, .settle_s = 120 };

static char *region;
static struct content *shadow;
static struct worker workers[PROCS];
static uint64_t bases[PROCS];
static int blocked[2], go[2];

static size_t bytes(void)
{
	return opt.pages * PAGE_BYTES;
}

static struct content content_of(size_t page)
{
	struct content c = { .key = content_key(1, page, 0, 0) };

	return c;
}

static void serve(void *ctx __unused, const struct order *o, struct reply *r)
{
	size_t i;

	if (o->op == DO_FILL) {
		region = mmap(NULL, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0);
		if (region == MAP_FAILED) {
			r->status = -errno;
			return;
		}
		madvise(region, bytes(), MADV_MERGEABLE);
		shadow = untracked_alloc(opt.pages * sizeof(*shadow));
		for (i = 0; i < opt.pages; i++)
			shadow[i] = content_of(i);
		region_fill(region, shadow, opt.pages);
		r->value[0] = (uint64_t)(uintptr_t)region;
	} else {
		r->wrong = region_check(region, shadow, opt.pages, "in the twin");
	}
}

/* ---- the reader ------------------------------------------------------------- */

/* Says when the reader has come to wait; brings the page when it is told to. */
static void __noreturn help(int uffd, void *page)
{
	struct uffdio_zeropage zero = { .range = { (uintptr_t)page, PAGE_BYTES } };
	struct uffd_msg msg;
	char byte = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(uffd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg) ||
	    write(blocked[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1 ||
	    ioctl(uffd, UFFDIO_ZEROPAGE, &zero))
		_exit(EXIT_ENV);
	_exit(0);
}

static void __noreturn read_from(pid_t owner, uint64_t base)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct content want = content_of(0);
	struct iovec local, remote = { (void *)(uintptr_t)base, PAGE_BYTES };
	char *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	int uffd = (int)syscall(__NR_userfaultfd, O_CLOEXEC);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	reg.range.start = (uintptr_t)page;
	reg.range.len = PAGE_BYTES;
	if (page == MAP_FAILED || uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		die(EXIT_ENV, "userfaultfd: %s", strerror(errno));
	if (!fork())
		help(uffd, page);
	local.iov_base = page;
	local.iov_len = PAGE_BYTES;
	if (process_vm_readv(owner, &local, 1, &remote, 1, 0) != (ssize_t)PAGE_BYTES)
		die(EXIT_WRONG, "process_vm_readv: %s", strerror(errno));
	_exit(region_check(page, &want, 1, "read from the address space without an owner") ?
	      EXIT_WRONG : 0);
}

/* ---- the course of things ----------------------------------------------------- */

static void set_run(const char *value)
{
	int err = control_write("run", value);

	if (err)
		die(EXIT_ENV, "run=%s: %s", value, strerror(-err));
}

static uint64_t twins_merged(void)
{
	struct pagestat st = { 0 };
	uint64_t merged;
	int err = pagestat_add(workers[TWIN].pid, bases[TWIN], bases[TWIN] + bytes(), &st);

	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	merged = st.merged_ptes;
	pagestat_free(&st);
	return merged;
}

/* Pages without an owner may be tried again and again: nobody waits for the last. */
static void settle(void)
{
	if (!engine_settle_pinned(opt.settle_s * 1000))
		die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s", opt.settle_s);
}

static FILE *stats;

static void take_stat(const char *name)
{
	fprintf(stats, "%s{\"name\": \"%s\", \"merged_ptes\": %" PRIu64 ", \"counters\": ",
		ftell(stats) ? ", " : "", name, twins_merged());
	json_counters(stats);
	fputc('}', stats);
	fflush(stats);
}

static void __noreturn usage(void)
{
	printf("usage: orphan [options]\n"
		"\n"
		"An address space outlives its process, until a line on standard input, or its end.\n"
		"\n"
		"  --merge              its pages are merged with a twin's before its process ends\n"
		"  --pages N            pages (64)\n"
		"  --settle-timeout S   seconds for each wait (120)\n"
		"\n"
		"Says so on standard error. Prints one line of JSON in the end; merged_ptes is of\n"
		"the twin.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "merge", no_argument, NULL, 'm' },
		{ "pages", required_argument, NULL, 'n' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'm':
			opt.merge = true;
			break;
		case 'n':
			opt.pages = parse_number("--pages", optarg, 1, 1 << 16);
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
	no_more_arguments(optind, argc, argv);
}

int main(int argc, char **argv)
{
	struct order fill = { .op = DO_FILL }, verify = { .op = DO_VERIFY };
	char *text, byte = 0;
	uint64_t wrong = 0;
	int status = 0;
	pid_t reader;

	prog_start("orphan");
	parse(argc, argv);
	stats = untracked_stream(&text);
	if (pipe(blocked) || pipe(go))
		die(EXIT_ENV, "pipe: %s", strerror(errno));
	if (!opt.merge)
		set_run("0");
	worker_start(workers, OWNER, serve, NULL);
	worker_start(workers, TWIN, serve, NULL);
	worker_all(workers, PROCS, &fill);
	if (workers[OWNER].last.status || workers[TWIN].last.status)
		die(EXIT_ENV, "no memory");
	bases[OWNER] = workers[OWNER].last.value[0];
	bases[TWIN] = workers[TWIN].last.value[0];
	if (opt.merge)
		settle();

	reader = fork();
	if (reader < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (!reader)
		read_from(workers[OWNER].pid, bases[OWNER]);
	if (read(blocked[0], &byte, 1) != 1)
		die(EXIT_ENV, "the reader did not come to wait");
	kill(workers[OWNER].pid, SIGKILL);
	waitpid(workers[OWNER].pid, NULL, 0);
	workers[OWNER].pid = 0;
	if (!opt.merge)
		set_run("1");
	settle();
	take_stat("orphaned");
	fprintf(stderr, "%s: an address space has no owner\n", prog_name);
	if (read(STDIN_FILENO, &byte, 1) < 0)
		die(EXIT_ENV, "standard input: %s", strerror(errno));

	wrong += worker_all(workers + TWIN, 1, &verify);
	take_stat("before");
	if (write(go[1], &byte, 1) != 1 || waitpid(reader, &status, 0) != reader)
		die(EXIT_ENV, "the reader: %s", strerror(errno));
	if (status)
		die(EXIT_WRONG, "the reader ended badly: 0x%x", status);
	settle();
	wrong += worker_all(workers + TWIN, 1, &verify);
	take_stat("gone");
	worker_end(&workers[TWIN]);
	fclose(stats);
	printf("{\"tool\": \"orphan\", \"engine\": \"%s\", \"ok\": %s, \"wrong\": %" PRIu64
	       ", \"stats\": [%s]}\n", engine_name(), wrong ? "false" : "true", wrong, text);
	return wrong ? EXIT_WRONG : 0;
}

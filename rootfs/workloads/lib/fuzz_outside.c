// SPDX-License-Identifier: GPL-2.0-only
/* What fuzzmm does to its processes from outside, and to the whole machine; see fuzz.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../fuzz.h"

#define CHECK_FILE	"/sys/kernel/debug/pksm/check"
#define RECLAIM_KIB	32
/* Exit status of pagestat when something is wrong with a map count, or with RSS. */
#define PAGESTAT_WRONG	1
/* And when the engine has not stood still during any of its looks. */
#define PAGESTAT_RESTLESS	4

static int do_foreign(const struct fuzz_op *op)
{
	const char *how = op->kind == FUZZ_REMOTE ? "remote" :
			  op->kind == FUZZ_PTRACE ? "ptrace" : "memfile";
	const struct fuzz_proc *p = &fuzz->procs[op->proc];
	unsigned int off = op->arg % PAGE_BYTES;
	uint8_t flip = 1 + op->arg / PAGE_BYTES % 255;
	int err;

	err = foreign_flip(p->pid, (uintptr_t)fuzz_page(op->page), 1, off, flip, how);
	if (err)
		return -err;
	fuzz_bytes(op->proc, op->page)[off] ^= flip;
	fuzz_changed(op->proc, op->page);
	return 0;
}

static void all_pins_may_part(void)
{
	unsigned int i;

	for (i = 0; i < fuzz_sizes.procs; i++)
		fuzz_pins_may_part(i);
}

static int do_reclaim(uint32_t arg)
{
	const char *group = fuzz_group_of(arg);
	char path[256], size[32];

	if (!group)
		return ENOENT;
	all_pins_may_part();
	snprintf(path, sizeof(path), "%s/memory.reclaim", group);
	snprintf(size, sizeof(size), "%uK", (arg + 1) * RECLAIM_KIB);
	return -file_write(path, size);
}

static int do_advise_other(const struct fuzz_op *op, unsigned int n)
{
	static const int advices[] = { MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_COLLAPSE };
	struct iovec iov = { fuzz_page(op->page), n * PAGE_BYTES };
	int fd = (int)syscall(SYS_pidfd_open, fuzz->procs[op->proc].pid, 0), err = 0;

	if (fd < 0)
		return errno;
	fuzz_pins_may_part(op->proc);
	if (syscall(SYS_process_madvise, fd, &iov, 1, advices[op->arg], 0) != (long)iov.iov_len)
		err = errno;
	close(fd);
	return err;
}

/* All that is swapped out comes back. */
static int do_swapoff(void)
{
	char line[256], device[128];
	FILE *f = fopen("/proc/swaps", "re");
	bool found;

	if (!f)
		return errno;
	found = fgets(line, sizeof(line), f) && fgets(line, sizeof(line), f) &&
		sscanf(line, "%127s", device) == 1;
	fclose(f);
	if (!found)
		return ENOENT;
	all_pins_may_part();
	if (swapoff(device) || swapon(device, 0))
		return errno;
	return 0;
}

void fuzz_complain(const char *what)
{
	struct fuzz_wrong *w = &fuzz->wrong;

	if (w->found)
		return;
	*w = (struct fuzz_wrong){ .found = true, .page = fuzz_sizes.pages };
	snprintf(w->when, sizeof(w->when), "%s", what);
}

/* What the engine finds wrong with itself, and counters that cannot be. */
static void do_check(void)
{
	static const char *const counters[] = {
		"pages_new", "pages_unshared", "pages_volatile", "pages_shared",
		"pages_sharing", "zero_pages", "rmap_items", "stable_nodes",
	};
	char text[256] = "";
	int64_t value;
	ssize_t n;
	int fd, err;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(counters); i++) {
		if (!counter_read(counters[i], &value) || value >= 0)
			continue;
		fprintf(stderr, "%s: %s is %" PRId64 "\n", prog_name, counters[i], value);
		fuzz_complain("a counter is negative");
	}
	if (!fuzz_shared_unmerged())
		fuzz_complain("in shared memory, or it is merged");
	fd = open(CHECK_FILE, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	err = n < 0 ? errno : 0;
	if (fd >= 0)
		close(fd);
	/* A kernel without CONFIG_PKSM_DEBUG has none; and memory may be short. */
	if ((fd < 0 && err == ENOENT) || err == ENOMEM || !strcmp(text, "fine\n"))
		return;
	if (n <= 0)
		snprintf(text, sizeof(text), "%s\n", err ? strerror(err) : "it says nothing");
	fprintf(stderr, "%s: the engine's own check: %s", prog_name, text);
	fuzz_complain("by the engine's own check");
}

/* Map counts, RSS, and smaps, of all processes. */
static int do_audit(void)
{
	int status = 0, null;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		return errno;
	if (!pid) {
		null = open("/dev/null", O_WRONLY | O_CLOEXEC);
		dup2(null, STDOUT_FILENO);
		execlp("pagestat", "pagestat", "--all", NULL);
		_exit(errno == ENOMEM ? PAGESTAT_RESTLESS : 127);
	}
	if (waitpid(pid, &status, 0) != pid)
		return errno;
	/* It may not have found a moment at which nothing changed, or have been short of memory. */
	if (!WIFEXITED(status) || WEXITSTATUS(status) == PAGESTAT_RESTLESS)
		return EAGAIN;
	if (!WEXITSTATUS(status))
		return 0;
	if (WEXITSTATUS(status) != PAGESTAT_WRONG)
		fprintf(stderr, "%s: pagestat --all: status %d\n", prog_name, WEXITSTATUS(status));
	fuzz_complain("by pagestat --all");
	return EAGAIN;
}

/* On the pages of a process that has them, or on the process itself. */
static void on_process(const struct fuzz_op *op, struct fuzz_result *r)
{
	unsigned int n = fuzz_applies(op), i;

	r->pages = fuzz_kinds[op->kind].most ? n : 1;
	if (!fuzz->procs[op->proc].alive)
		r->pages = 0;
	if (!r->pages)
		return;
	for (i = 0; i < n; i++)
		fuzz_note(op, op->proc, op->page + i);
	if (op->kind == FUZZ_JOIN)
		r->err = fuzz_join(fuzz->procs[op->proc].pid, op->arg);
	else if (op->kind == FUZZ_ADVISE_OTHER)
		r->err = do_advise_other(op, n);
	else
		r->err = do_foreign(op);
}

void fuzz_outside(const struct fuzz_op *op, struct fuzz_result *r)
{
	const char *control, *value;

	if (fuzz_kinds[op->kind].needs & OF_OUTSIDE) {
		on_process(op, r);
		return;
	}
	r->pages = 1;
	switch ((enum fuzz_kind)op->kind) {
	case FUZZ_SET:
		fuzz_setting(op->arg, &control, &value);
		r->err = -control_write(control, value);
		break;
	case FUZZ_RECLAIM:
		r->err = do_reclaim(op->arg);
		break;
	case FUZZ_SWAPOFF:
		r->err = do_swapoff();
		break;
	case FUZZ_COMPACT:
		r->err = -file_write("/proc/sys/vm/compact_memory", "1");
		break;
	case FUZZ_DROP:
		r->err = -file_write("/proc/sys/vm/drop_caches", "3");
		break;
	case FUZZ_SLEEP:
		sleep_ms(1 + op->arg);
		break;
	case FUZZ_CHECK:
		do_check();
		break;
	case FUZZ_AUDIT:
		r->err = do_audit();
		break;
	default:
		r->err = EINVAL;
	}
}

// SPDX-License-Identifier: GPL-2.0-only
/* Pages that a pipe holds a reference to; see common.h. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common.h"

/* Each pin is an open file; the usual limit is 1024. */
static void raise_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* Returns 0 or a negative errno. */
static int give(int fd, void *page)
{
	struct iovec iov = { page, PAGE_BYTES };

	if (vmsplice(fd, &iov, 1, 0) != (ssize_t)PAGE_BYTES)
		return errno ? -errno : -EIO;
	return 0;
}

/* Returns 0 or a negative errno. */
static int give_by_child(int fd, void *page)
{
	pid_t pid = fork();
	int status;

	if (pid < 0)
		return -errno;
	if (!pid)
		_exit(-give(fd, page));
	if (waitpid(pid, &status, 0) != pid)
		return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}

/* For how long the child that is born now waits for the engine to be held. */
static uint64_t patience_ms;

/* The child stays as long as its parent, which does not wait for it. */
static int give_when_held(int fd, void *page)
{
	pid_t parent = getpid(), pid = fork();

	if (pid)
		return pid < 0 ? -errno : 0;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || !hold_wait(patience_ms) || give(fd, page))
		_exit(EXIT_ENV);
	close(fd);
	for (;;)
		sigwaitinfo(&(sigset_t){ 0 }, NULL);
}

static int pin_by(int (*how)(int fd, void *page), struct pin *pin, void *page,
		  const struct content *c)
{
	static bool raised;
	int ends[2], err;

	if (!raised)
		raise_limit();
	raised = true;
	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	err = how(ends[1], page);
	close(ends[1]);
	if (err) {
		close(ends[0]);
		return err;
	}
	pin->fd = ends[0];
	pin->content = *c;
	return 0;
}

int pin_page(struct pin *pin, void *page, const struct content *c)
{
	return pin_by(give, pin, page, c);
}

int pin_page_by_child(struct pin *pin, void *page, const struct content *c)
{
	return pin_by(give_by_child, pin, page, c);
}

int pin_page_when_held(struct pin *pin, void *page, const struct content *c,
		       uint64_t timeout_ms)
{
	patience_ms = timeout_ms;
	return pin_by(give_when_held, pin, page, c);
}

uint64_t pin_check(struct pin *pin, const struct content *expected)
{
	struct content c = expected ? *expected : pin->content;
	uint64_t page[PAGE_BYTES / 8];
	size_t got = 0;
	ssize_t n;

	while (got < PAGE_BYTES) {
		n = read(pin->fd, (char *)page + got, PAGE_BYTES - got);
		/* It has never had one: its child has found nobody held. */
		if (!n && !got)
			die(EXIT_ENV, "a pipe was given no page");
		if (n <= 0)
			die(EXIT_WRONG, "a pipe has lost its page");
		got += (size_t)n;
	}
	close(pin->fd);
	return region_check(page, &c, 1, "out of the pipe");
}

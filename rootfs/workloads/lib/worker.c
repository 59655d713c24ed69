// SPDX-License-Identifier: GPL-2.0-only
/* Worker processes that serve orders; see common.h. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common.h"

static bool read_all(int fd, void *buf, size_t n)
{
	char *p = buf;
	ssize_t got;

	for (; n; p += got, n -= (size_t)got) {
		got = read(fd, p, n);
		if (got < 0 && errno == EINTR)
			got = 0;
		else if (got <= 0)
			return false;
	}
	return true;
}

static void __noreturn worker_serve(int orders, int replies, worker_fn fn,
				    void *ctx)
{
	struct order o;
	struct reply r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (read_all(orders, &o, sizeof(o))) {
		memset(&r, 0, sizeof(r));
		fn(ctx, &o, &r);
		if (write(replies, &r, sizeof(r)) != (ssize_t)sizeof(r))
			_exit(EXIT_ENV);
	}
	_exit(0);
}

void worker_start(struct worker *w, unsigned int index, worker_fn fn,
		  void *ctx)
{
	int orders[2], replies[2];
	unsigned int i;

	if (pipe2(orders, O_CLOEXEC) || pipe2(replies, O_CLOEXEC))
		die(EXIT_ENV, "pipe: %s", strerror(errno));
	fflush(NULL);
	w[index].pid = fork();
	if (w[index].pid < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (!w[index].pid) {
		/* Else an older worker would never see its end of file. */
		for (i = 0; i < index; i++) {
			close(w[i].order_fd);
			close(w[i].reply_fd);
		}
		close(orders[1]);
		close(replies[0]);
		worker_serve(orders[0], replies[1], fn, ctx);
	}
	close(orders[0]);
	close(replies[1]);
	w[index].order_fd = orders[1];
	w[index].reply_fd = replies[0];
}

void worker_send(struct worker *w, const struct order *o)
{
	if (write(w->order_fd, o, sizeof(*o)) != (ssize_t)sizeof(*o))
		die(EXIT_WRONG, "process %d has gone", w->pid);
}

void worker_receive(struct worker *w)
{
	int status = 0;

	if (read_all(w->reply_fd, &w->last, sizeof(w->last)))
		return;
	waitpid(w->pid, &status, 0);
	if (WIFSIGNALED(status))
		die(EXIT_WRONG, "process %d died of signal %d", w->pid,
		    WTERMSIG(status));
	die(WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_WRONG,
	    "process %d ended with status %d", w->pid, WEXITSTATUS(status));
}

uint64_t worker_all(struct worker *w, unsigned int n, const struct order *o)
{
	uint64_t wrong = 0;
	unsigned int i;

	for (i = 0; i < n; i++)
		if (w[i].pid)
			worker_send(&w[i], o);
	for (i = 0; i < n; i++) {
		if (!w[i].pid)
			continue;
		worker_receive(&w[i]);
		wrong += w[i].last.wrong;
	}
	return wrong;
}

bool worker_gone(struct worker *w, uint64_t timeout_ms, int *status)
{
	uint64_t end = now_ms() + timeout_ms;
	pid_t pid;

	close(w->order_fd);
	close(w->reply_fd);
	for (;;) {
		pid = waitpid(w->pid, status, WNOHANG);
		if (pid || now_ms() >= end)
			break;
		sleep_ms(1);
	}
	if (pid == w->pid)
		w->pid = 0;
	return !w->pid;
}

void worker_end(struct worker *w)
{
	int status = 0;

	if (!w->pid)
		return;
	close(w->order_fd);
	close(w->reply_fd);
	if (waitpid(w->pid, &status, 0) < 0 || status)
		die(EXIT_WRONG, "process %d ended badly: wait status 0x%x",
		    w->pid, status);
	w->pid = 0;
}

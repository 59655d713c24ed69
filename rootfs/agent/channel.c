// SPDX-License-Identifier: GPL-2.0-only
/*
 * Channels: the programs the host asked for, and their streams.
 *
 * A program gets three pipes, or a pty as its controlling terminal, and is the
 * leader of a session of its own. Its end is its exit, not the closing of its
 * pipes: what is still in them is sent, then EXIT; a daemon it left behind does
 * not hold the channel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"

#define MAX_STRINGS	2048
/* Bytes for the name of a program, with its directory. */
#define NAME_ROOM	1024

struct channel channels[MAX_CHANNELS];

/* Pointers into the EXEC frame; given back after each start. */
static char *vector[MAX_STRINGS] __attribute__((aligned(PAGE)));

/**
 * struct start - what a new program needs
 * @argv:	ends with NULL
 * @envp:	ends with NULL
 * @cwd:	directory to start in, may be empty
 * @fd:		its descriptors 0, 1 and 2
 * @pty:	descriptor 0 is to be the controlling terminal
 * @error:	errno of the failed step, set by the child (which shares our
 *		memory until it has executed the program)
 */
struct start {
	char **argv;
	char **envp;
	const char *cwd;
	int fd[3];
	bool pty;
	volatile int error;
};

struct channel *channel_find(uint32_t id)
{
	int i;

	for (i = 0; id != 0 && i < MAX_CHANNELS; i++)
		if (channels[i].id == id)
			return &channels[i];
	return NULL;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_pair(int pair[2])
{
	close_fd(&pair[0]);
	close_fd(&pair[1]);
}

/* Return: the directories in which a program without a slash is looked for. */
static const char *search_path(char **envp)
{
	static const char path_is[] = "PATH=";
	const char *path = "/bin";
	char **e;

	for (e = envp; *e; e++)
		if (!strncmp(*e, path_is, sizeof(path_is) - 1))
			path = *e + sizeof(path_is) - 1;
	return path;
}

/*
 * Make the next name under which a program may be found, from the first of the
 * directories @path. Return: whether there is one; @path is moved on.
 */
static bool next_name(const char **path, const char *program, char *file, size_t room)
{
	size_t name = strlen(program);

	while (**path) {
		const char *dir = *path;
		size_t len = strcspn(dir, ":");

		*path += len + (dir[len] == ':');
		if (len == 0 || len + name + 2 > room)
			continue;
		memcpy(file, dir, len);
		file[len] = '/';
		memcpy(file + len + 1, program, name + 1);
		return true;
	}
	return false;
}

/* In the child: try the program in each directory of PATH. */
static int exec_path(char **argv, char **envp)
{
	const char *path = search_path(envp);
	int error = ENOENT;
	char file[NAME_ROOM];

	if (strchr(argv[0], '/')) {
		execve(argv[0], argv, envp);
		return errno;
	}
	while (next_name(&path, argv[0], file, sizeof(file))) {
		execve(file, argv, envp);
		if (errno != ENOENT && errno != ENOTDIR)
			error = errno;
	}
	return error;
}

/* The child of vfork(): only system calls, and nothing of the parent changed. */
static void __attribute__((noreturn)) child(struct start *s)
{
	sigset_t none;
	int i;

	setsid();
	for (i = 0; i < 3; i++)
		if (dup2(s->fd[i], i) < 0)
			goto failed;
	if (s->pty)
		ioctl(0, TIOCSCTTY, 0);
	if (s->cwd[0] && chdir(s->cwd) < 0)
		goto failed;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	s->error = exec_path(s->argv, s->envp);
	_exit(127);
failed:
	s->error = errno;
	_exit(127);
}

static pid_t __attribute__((noinline)) launch(struct start *s)
{
	pid_t pid = vfork();

	if (pid == 0)
		child(s);
	return pid;
}

static int open_pty(struct start *s, struct channel *c, const uint8_t *size)
{
	struct winsize ws = {
		.ws_row = get_u16(size),
		.ws_col = get_u16(size + 2),
	};
	char name[] = "/dev/pts/\0\0\0\0\0\0\0\0\0\0\0";
	char *end = name + strlen(name);
	unsigned int number;
	unsigned int scale = 1;
	int unlock = 0;
	int slave;

	c->out = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (c->out < 0)
		return -1;
	if (ioctl(c->out, TIOCSPTLCK, &unlock) < 0 ||
	    ioctl(c->out, TIOCGPTN, &number) < 0)
		return -1;
	while (number / scale >= 10)
		scale *= 10;
	for (; scale > 0; scale /= 10)
		*end++ = (char)('0' + number / scale % 10);
	slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0)
		return -1;
	ioctl(slave, TIOCSWINSZ, &ws);
	c->in = fcntl(c->out, F_DUPFD_CLOEXEC, 3);
	c->hold = slave;
	c->pty = true;
	s->pty = true;
	s->fd[0] = slave;
	s->fd[1] = slave;
	s->fd[2] = slave;
	return 0;
}

static int open_pipes(struct start *s, struct channel *c)
{
	int in[2] = { -1, -1 };
	int out[2] = { -1, -1 };
	int err[2] = { -1, -1 };

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 ||
	    pipe2(err, O_CLOEXEC) < 0) {
		close_pair(in);
		close_pair(out);
		close_pair(err);
		return -1;
	}
	/* Our ends never block; the program's own ends are ordinary. */
	fcntl(in[1], F_SETFL, O_NONBLOCK);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	s->fd[0] = in[0];
	s->fd[1] = out[1];
	s->fd[2] = err[1];
	c->in = in[1];
	c->out = out[0];
	c->err = err[0];
	return 0;
}

static void channel_close(struct channel *c)
{
	close_fd(&c->in);
	close_fd(&c->out);
	close_fd(&c->err);
	close_fd(&c->hold);
	if (c->pending)
		munmap(c->pending, STDIN_WINDOW);
	memset(c, 0, sizeof(*c));
}

static void send_error_text(uint32_t id, const char *text)
{
	line_send(FROM_STDERR, id, text, strlen(text));
}

/* End a channel that never ran: say @why on its stderr. */
static void refuse(struct channel *c, const char *name, int error, const char *why,
		   const char *file, const char *mend)
{
	uint32_t id = c->id;

	channel_close(c);
	send_error_text(id, name);
	send_error_text(id, ": ");
	send_error_text(id, why);
	send_error_text(id, file);
	send_error_text(id, mend);
	send_error_text(id, "\n");
	line_send_u32(FROM_EXIT, id, error == ENOENT ? 127 : 126);
}

/* The first file that execve() may have meant, if it lacks its loader; see missing_loader(). */
static enum program_kind find_missing_loader(const struct start *s, char *loader, size_t room)
{
	int dir = open(s->cwd[0] ? s->cwd : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	enum program_kind kind = PROGRAM_OTHER;
	const char *path = search_path(s->envp);
	char file[NAME_ROOM];

	if (strchr(s->argv[0], '/'))
		kind = missing_loader(dir, s->argv[0], loader, room);
	else
		while (kind == PROGRAM_OTHER &&
		       next_name(&path, s->argv[0], file, sizeof(file)))
			kind = missing_loader(dir, file, loader, room);
	close_fd(&dir);
	return kind;
}

/* End the channel of a program that could not be executed. */
static void refuse_program(struct channel *c, const struct start *s, int error)
{
	enum program_kind kind = PROGRAM_OTHER;
	char loader[NAME_ROOM];

	if (error == ENOENT)
		kind = find_missing_loader(s, loader, sizeof(loader));
	if (kind == PROGRAM_DYNAMIC)
		refuse(c, s->argv[0], error,
		       "a dynamically linked program, and the guest has no loader ", loader,
		       "; link it with -static");
	else if (kind == PROGRAM_SCRIPT)
		refuse(c, s->argv[0], error, "a script, and the guest has no interpreter ", loader,
		       "; the guest has /bin/sh");
	else
		refuse(c, s->argv[0], error, strerror(error), "", "");
}

/* Cut the strings of an EXEC frame into argv and envp. */
static bool parse_exec(struct start *s, uint8_t *payload, size_t len)
{
	size_t argc, envc, i, n = 0;
	char *p = (char *)payload + 9;
	char *end = (char *)payload + len;

	if (len < 10 || end[-1] != '\0')
		return false;
	argc = get_u16(payload + 5);
	envc = get_u16(payload + 7);
	if (argc == 0 || argc + envc + 2 > MAX_STRINGS)
		return false;
	s->cwd = p;
	p += strlen(p) + 1;
	for (i = 0; i < argc + envc; i++) {
		if (p >= end)
			return false;
		if (i == argc)
			vector[n++] = NULL;
		vector[n++] = p;
		p += strlen(p) + 1;
	}
	if (envc == 0)
		vector[n++] = NULL;
	vector[n] = NULL;
	s->argv = vector;
	s->envp = vector + argc + 1;
	return true;
}

void channel_exec(uint32_t id, uint8_t *payload, size_t len)
{
	struct start s = { .fd = { -1, -1, -1 } };
	struct channel *c = NULL;
	int i, error;

	for (i = 0; i < MAX_CHANNELS && !c; i++)
		if (channels[i].id == 0)
			c = &channels[i];
	if (id == 0 || channel_find(id) || !c || !parse_exec(&s, payload, len)) {
		line_error(id, "EXEC refused: malformed, or too many channels");
		line_send_u32(FROM_EXIT, id, 126);
		return;
	}
	c->id = id;
	c->in = -1;
	c->out = -1;
	c->err = -1;
	c->hold = -1;
	if (((payload[0] & EXEC_PTY) ? open_pty(&s, c, payload + 1)
				     : open_pipes(&s, c)) < 0) {
		error = errno == ENOENT ? EIO : errno;
		refuse(c, s.argv[0], error, strerror(error), "", "");
		return;
	}
	c->pid = launch(&s);
	error = c->pid < 0 ? errno : s.error;
	if (!s.pty)
		for (i = 0; i < 3; i++)
			close_fd(&s.fd[i]);
	if (error) {
		if (c->pid > 0)
			waitpid(c->pid, NULL, 0);
		refuse_program(c, &s, error);
	}
	madvise(vector, sizeof(vector), MADV_DONTNEED);
}

/* Throw away input that nobody will read, and tell the host to go on. */
static void drop_input(struct channel *c)
{
	if (c->fill > c->head)
		line_send_u32(FROM_CREDIT, c->id, (uint32_t)(c->fill - c->head));
	c->head = 0;
	c->fill = 0;
	close_fd(&c->in);
}

void channel_input(struct channel *c, const uint8_t *data, size_t len)
{
	if (c->in < 0) {
		line_send_u32(FROM_CREDIT, c->id, (uint32_t)len);
		return;
	}
	if (!c->pending) {
		c->pending = mmap(NULL, STDIN_WINDOW, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (c->pending == MAP_FAILED) {
			c->pending = NULL;
			line_error(c->id, "no memory for input");
			return;
		}
	}
	if (c->head > 0) {
		memmove(c->pending, c->pending + c->head, c->fill - c->head);
		c->fill -= c->head;
		c->head = 0;
	}
	if (len > STDIN_WINDOW - c->fill) {
		line_error(c->id, "more input than the window allows");
		return;
	}
	memcpy(c->pending + c->fill, data, len);
	c->fill += len;
	channel_feed(c);
}

void channel_eof(struct channel *c)
{
	c->eof = true;
	channel_feed(c);
}

/* Write pending input as far as the program takes it. */
void channel_feed(struct channel *c)
{
	struct termios t;
	size_t before = c->head;
	char end = 4;	/* Ctrl-D */

	while (c->in >= 0 && c->head < c->fill) {
		ssize_t n = write(c->in, c->pending + c->head,
				  c->fill - c->head);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			drop_input(c);
			return;
		}
		c->head += (size_t)n;
	}
	if (c->head > before)
		line_send_u32(FROM_CREDIT, c->id, (uint32_t)(c->head - before));
	if (c->in < 0 || c->head < c->fill || !c->eof)
		return;
	if (c->pty) {
		if (tcgetattr(c->in, &t) == 0 && t.c_cc[VEOF])
			end = (char)t.c_cc[VEOF];
		if (write(c->in, &end, 1) < 0 && errno == EAGAIN)
			return;
	}
	close_fd(&c->in);
}

/* Send one piece of output; close the stream at its end. */
void channel_output(struct channel *c, int *fd, uint8_t type)
{
	ssize_t n = line_copy(type, c->id, *fd);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		close_fd(fd);
}

void channel_winsize(struct channel *c, const uint8_t *payload, size_t len)
{
	struct winsize ws = { 0 };

	if (len < 4 || !c->pty || c->out < 0)
		return;
	ws.ws_row = get_u16(payload);
	ws.ws_col = get_u16(payload + 2);
	ioctl(c->out, TIOCSWINSZ, &ws);
}

/* Send all that is left in a stream of a program that has ended. */
static void drain(struct channel *c, int *fd, uint8_t type)
{
	while (*fd >= 0 && line_copy(type, c->id, *fd) > 0)
		;
}

static void channel_end(struct channel *c)
{
	uint32_t id = c->id;
	int status = c->status;

	drain(c, &c->out, FROM_STDOUT);
	drain(c, &c->err, FROM_STDERR);
	channel_close(c);
	line_send_u32(FROM_EXIT, id, (uint32_t)status);
}

/* Collect every child that has ended, ours and the orphans we inherited. */
void channel_reap(void)
{
	int status, i;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (i = 0; i < MAX_CHANNELS; i++) {
			struct channel *c = &channels[i];

			if (c->id == 0 || c->pid != pid)
				continue;
			c->pid = 0;
			c->status = WIFSIGNALED(status) ?
				    128 + WTERMSIG(status) : WEXITSTATUS(status);
			channel_end(c);
		}
	}
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PID 1 of the guest: sets the machine up, then serves the host's frames.
 *
 * With no program running it is the only process, asleep in ppoll(), so the
 * counters of an idle guest are about this one process alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

/* Exit status of the machine when nobody ended it in an orderly way. */
#define DID_NOT_FINISH	"97"

static volatile sig_atomic_t child_ended;
static volatile sig_atomic_t asked_to_stop;

uint16_t get_u16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

uint32_t get_u32(const uint8_t *p)
{
	return (uint32_t)get_u16(p) | (uint32_t)get_u16(p + 2) << 16;
}

void put_u32(uint8_t *p, uint32_t value)
{
	p[0] = (uint8_t)value;
	p[1] = (uint8_t)(value >> 8);
	p[2] = (uint8_t)(value >> 16);
	p[3] = (uint8_t)(value >> 24);
}

static void on_signal(int sig)
{
	if (sig == SIGCHLD)
		child_ended = 1;
	else
		asked_to_stop = 1;
}

/* Write to an existing file. Return: 0 or an errno. */
static int write_file(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;
	int error = 0;

	if (fd < 0)
		return errno;
	n = write(fd, data, len);
	if (n < 0)
		error = errno;
	else if ((size_t)n != len)
		error = EIO;
	close(fd);
	return error;
}

static void __attribute__((noreturn)) power_off(const char *status)
{
	kill(-1, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
	sync();
	write_file("/proc/exitcode", status, strlen(status));
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void mount_one(const char *type, const char *dir, const char *data)
{
	mkdir(dir, 0755);
	mount(type, dir, type, MS_NOSUID, data);
}

static void set_up_system(void)
{
	static const char host[] = "pksm";

	mount_one("proc", "/proc", NULL);
	write_file("/proc/exitcode", DID_NOT_FINISH, strlen(DID_NOT_FINISH));
	mount_one("sysfs", "/sys", NULL);
	mount_one("devtmpfs", "/dev", NULL);
	mount_one("devpts", "/dev/pts", "mode=620,ptmxmode=666");
	mount_one("tmpfs", "/dev/shm", NULL);
	mount_one("tmpfs", "/tmp", "mode=1777");
	mount_one("debugfs", "/sys/kernel/debug", NULL);
	mount_one("tracefs", "/sys/kernel/tracing", NULL);
	mount_one("cgroup2", "/sys/fs/cgroup", NULL);
	sethostname(host, sizeof(host) - 1);
	umask(022);
}

static void set_up_signals(void)
{
	static const int caught[] = { SIGCHLD, SIGUSR1, SIGUSR2, SIGTERM };
	struct sigaction sa = { .sa_handler = on_signal };
	sigset_t mask;
	size_t i;

	sigemptyset(&mask);
	for (i = 0; i < sizeof(caught) / sizeof(caught[0]); i++) {
		sigaddset(&mask, caught[i]);
		sigaction(caught[i], &sa, NULL);
	}
	/* They arrive in ppoll() only. */
	sigprocmask(SIG_BLOCK, &mask, NULL);
	signal(SIGPIPE, SIG_IGN);
}

static void say_hello(void)
{
	struct utsname u;
	uint8_t text[sizeof(u)];
	size_t len = 4;

	put_u32(text, PROTOCOL_VERSION);
	if (uname(&u) == 0) {
		memcpy(text + len, u.release, strlen(u.release));
		len += strlen(u.release);
		text[len++] = ' ';
		memcpy(text + len, u.version, strlen(u.version));
		len += strlen(u.version);
	}
	line_send(FROM_HELLO, 0, text, len);
}

static int do_read(uint32_t id, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int error = 0;
	ssize_t n;

	if (fd < 0)
		return errno;
	do {
		n = line_copy(FROM_STDOUT, id, fd);
	} while (n > 0 || (n < 0 && errno == EINTR));
	if (n < 0)
		error = errno;
	close(fd);
	return error;
}

/* Make a directory and those above it. */
static void make_dirs(char *path)
{
	char *p;

	for (p = path + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		mkdir(path, 0755);
		*p = '/';
	}
	mkdir(path, 0755);
}

static int do_mount(char *source, char *target)
{
	int error;

	if (!source[0] || target[0] != '/')
		return EINVAL;
	make_dirs(target);
	/* A directory of UML's host, or the name of a share of QEMU's. */
	if (source[0] == '/')
		error = mount("none", target, "hostfs", 0, source);
	else
		error = mount(source, target, "9p", 0,
			      "trans=virtio,version=9p2000.L,msize=262144");
	return error < 0 ? errno : 0;
}

static bool is_text(const uint8_t *payload, size_t len)
{
	return len > 0 && payload[len - 1] == '\0';
}

/* The frames that the agent answers by itself. */
static void handle_file(uint8_t type, uint32_t id, uint8_t *payload, size_t len)
{
	char *text = (char *)payload;
	size_t first = strnlen(text, len);
	int error = EINVAL;

	if (type == TO_READ && is_text(payload, len))
		error = do_read(id, text);
	else if (type == TO_WRITE && first < len)
		error = write_file(text, text + first + 1, len - first - 1);
	else if (type == TO_MOUNT && first + 1 < len && is_text(payload, len))
		error = do_mount(text, text + first + 1);
	else if (type == TO_SURVEY && is_text(payload, len))
		error = survey(id, text, len);
	line_send_u32(FROM_EXIT, id, (uint32_t)error);
}

static void handle_shutdown(const uint8_t *payload, size_t len)
{
	char status[4];
	unsigned int n = len > 0 ? payload[0] : 0;

	status[0] = (char)('0' + n / 100);
	status[1] = (char)('0' + n / 10 % 10);
	status[2] = (char)('0' + n % 10);
	status[3] = '\0';
	/* A leading zero would make it octal. */
	power_off(n >= 100 ? status : n >= 10 ? status + 1 : status + 2);
}

static void handle_frame(uint8_t type, uint32_t id, uint8_t *payload, size_t len)
{
	struct channel *c = channel_find(id);

	switch (type) {
	case TO_EXEC:
		channel_exec(id, payload, len);
		break;
	case TO_READ:
	case TO_WRITE:
	case TO_MOUNT:
	case TO_SURVEY:
		handle_file(type, id, payload, len);
		break;
	case TO_SHUTDOWN:
		handle_shutdown(payload, len);
		break;
	case TO_STDIN:
		if (c)
			channel_input(c, payload, len);
		break;
	case TO_STDIN_EOF:
		if (c)
			channel_eof(c);
		break;
	case TO_SIGNAL:
		if (c && c->pid > 0 && len > 0)
			kill(-c->pid, payload[0]);
		break;
	case TO_WINSIZE:
		if (c)
			channel_winsize(c, payload, len);
		break;
	default:
		line_error(id, "unknown frame");
	}
}

static nfds_t fill_poll(struct pollfd *p)
{
	nfds_t n = 0;
	int i;

	p[n++] = (struct pollfd){ .fd = line_fd(), .events = POLLIN };
	for (i = 0; i < MAX_CHANNELS; i++) {
		struct channel *c = &channels[i];

		if (c->id == 0)
			continue;
		if (c->out >= 0)
			p[n++] = (struct pollfd){ .fd = c->out, .events = POLLIN };
		if (c->err >= 0)
			p[n++] = (struct pollfd){ .fd = c->err, .events = POLLIN };
		if (c->in >= 0 && (c->head < c->fill || c->eof))
			p[n++] = (struct pollfd){ .fd = c->in, .events = POLLOUT };
	}
	return n;
}

/* Serve whatever poll found; the table has the order fill_poll() gave it. */
static void serve_channels(const struct pollfd *p, nfds_t count)
{
	nfds_t k;
	int i;

	for (k = 1; k < count; k++) {
		if (!p[k].revents)
			continue;
		for (i = 0; i < MAX_CHANNELS; i++) {
			struct channel *c = &channels[i];

			if (c->id == 0)
				continue;
			if (p[k].fd == c->out)
				channel_output(c, &c->out, FROM_STDOUT);
			else if (p[k].fd == c->err)
				channel_output(c, &c->err, FROM_STDERR);
			else if (p[k].fd == c->in)
				channel_feed(c);
			else
				continue;
			break;
		}
	}
}

static void serve_line(void)
{
	uint8_t type, *payload;
	uint32_t id;
	size_t len;

	if (!line_receive())
		power_off(DID_NOT_FINISH);
	while (line_next(&type, &id, &payload, &len))
		handle_frame(type, id, payload, len);
}

int main(void)
{
	struct pollfd p[1 + 3 * MAX_CHANNELS];
	sigset_t none;
	nfds_t count;

	set_up_system();
	set_up_signals();
	line_open();
	if (line_fd() < 0)
		power_off(DID_NOT_FINISH);
	say_hello();
	sigemptyset(&none);
	for (;;) {
		count = fill_poll(p);
		if (ppoll(p, count, NULL, &none) > 0) {
			if (p[0].revents)
				serve_line();
			serve_channels(p, count);
		}
		if (asked_to_stop)
			power_off("0");
		if (child_ended) {
			child_ended = 0;
			channel_reap();
		}
	}
}

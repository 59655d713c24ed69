// SPDX-License-Identifier: GPL-2.0-only
/*
 * The line to the host, frames both ways: /dev/ttyS0 in raw mode, or the port of
 * virtio-serial that the kernel's command line names by line=/dev/NAME.
 *
 * Writing waits, and that is the flow control: while the host does not read, the
 * agent does not either, and the pipes of the programs fill up. A port can be opened
 * only once, so there is one descriptor for both ways, and it does not block.
 *
 * The two buffers are shared memory, which is not anonymous memory: however much
 * the host asks for, the agent's part in it gives the engine nothing to do.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"

#define LINE_DEVICE	"/dev/ttyS0"

/* How long a port may take until it is there, and has its other end. */
#define LINE_WAIT_MS	10000
#define LINE_LOOK_MS	10

static int line = -1;

#define BUFFER		(FRAME_MAX + PAGE)

static uint8_t *in_buf;
static uint8_t *out_buf;
static size_t in_head;
static size_t in_fill;
/* Bytes read and not yet reported by TAKEN. */
static size_t in_taken;

/* Map memory that is nobody's to merge. Return: NULL when there is none. */
void *shared_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Open @device, which the kernel may still be about to make. */
static int open_soon(const char *device)
{
	int waited, fd;

	for (waited = 0; ; waited += LINE_LOOK_MS) {
		fd = open(device, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0 || waited >= LINE_WAIT_MS)
			return fd;
		poll(NULL, 0, LINE_LOOK_MS);
	}
}

/* A port says that it has been hung up as long as its other end is not there. */
static void wait_connected(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int waited;

	for (waited = 0; waited < LINE_WAIT_MS; waited += LINE_LOOK_MS) {
		if (poll(&p, 1, 0) >= 0 && !(p.revents & POLLHUP))
			return;
		poll(NULL, 0, LINE_LOOK_MS);
	}
}

/* Afterwards line_fd() is negative when there is no line. */
void line_open(void)
{
	const char *device = getenv("line");
	struct termios raw;

	in_buf = shared_memory(BUFFER);
	out_buf = shared_memory(BUFFER);
	if (!in_buf || !out_buf)
		return;
	line = open_soon(device ? device : LINE_DEVICE);
	if (line < 0)
		return;
	if (tcgetattr(line, &raw) == 0) {
		cfmakeraw(&raw);
		raw.c_cflag |= CLOCAL | CREAD;
		tcsetattr(line, TCSANOW, &raw);
	} else {
		wait_connected(line);
	}
}

int line_fd(void)
{
	return line;
}

/* Take in what the host sent. Return: false when the host has hung up. */
bool line_receive(void)
{
	ssize_t n;

	if (in_head > 0) {
		memmove(in_buf, in_buf + in_head, in_fill - in_head);
		in_fill -= in_head;
		in_head = 0;
	}
	n = read(line, in_buf + in_fill, BUFFER - in_fill);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	in_fill += (size_t)n;
	in_taken += (size_t)n;
	if (in_taken >= LINE_STEP) {
		line_send_u32(FROM_TAKEN, 0, (uint32_t)in_taken);
		in_taken = 0;
	}
	return n > 0;
}

/*
 * Find the next complete frame in what line_receive() took in. @payload stays
 * valid until the next line_receive().
 */
bool line_next(uint8_t *type, uint32_t *id, uint8_t **payload, size_t *len)
{
	uint8_t *p = in_buf + in_head;
	size_t have = in_fill - in_head;
	size_t want;

	if (have < FRAME_HEADER)
		return false;
	want = get_u32(p + 5);
	if (want > FRAME_MAX) {
		/* The stream is out of step, and nothing can put it right. */
		line_error(0, "frame too long");
		in_head = in_fill;
		return false;
	}
	if (have < FRAME_HEADER + want)
		return false;
	*type = p[0];
	*id = get_u32(p + 1);
	*payload = p + FRAME_HEADER;
	*len = want;
	in_head += FRAME_HEADER + want;
	return true;
}

static void send_buffer(uint8_t type, uint32_t id, size_t len)
{
	size_t done = 0;

	out_buf[0] = type;
	put_u32(out_buf + 1, id);
	put_u32(out_buf + 5, (uint32_t)len);
	len += FRAME_HEADER;
	while (done < len) {
		struct pollfd p = { .fd = line, .events = POLLOUT };
		ssize_t n = write(line, out_buf + done, len - done);

		if (n > 0)
			done += (size_t)n;
		else if (n < 0 && errno != EAGAIN && errno != EINTR)
			return;	/* hung up; line_receive() will say so */
		else if (poll(&p, 1, -1) > 0 && (p.revents & (POLLHUP | POLLERR)))
			return;	/* so has a port, which takes nothing more */
	}
}

void line_send(uint8_t type, uint32_t id, const void *payload, size_t len)
{
	if (len > FRAME_MAX)
		len = FRAME_MAX;
	memcpy(out_buf + FRAME_HEADER, payload, len);
	send_buffer(type, id, len);
}

void line_send_u32(uint8_t type, uint32_t id, uint32_t value)
{
	uint8_t bytes[4];

	put_u32(bytes, value);
	line_send(type, id, bytes, sizeof(bytes));
}

void line_error(uint32_t id, const char *text)
{
	line_send(FROM_ERROR, id, text, strlen(text));
}

/*
 * Move one piece from @fd into a frame. Return: as read(2); on error errno is
 * read(2)'s.
 */
ssize_t line_copy(uint8_t type, uint32_t id, int fd)
{
	ssize_t n = read(fd, out_buf + FRAME_HEADER, OUTPUT_PIECE);

	if (n > 0)
		send_buffer(type, id, (size_t)n);
	return n;
}

/*
 * Send what a SURVEY says of one file: @fd, the file @name of directory @dir,
 * or the file @dir when @name is empty. Return: as read(2).
 */
ssize_t line_file(uint32_t id, int fd, uint32_t mode, const char *dir,
		  const char *name)
{
	uint8_t *p = out_buf + FRAME_HEADER;
	size_t dir_len = strlen(dir);
	size_t name_len = strlen(name);
	ssize_t n;

	if (4 + dir_len + 1 + name_len + 1 + SURVEY_PIECE > FRAME_MAX) {
		errno = ENAMETOOLONG;
		return -1;
	}
	put_u32(p, mode);
	p += 4;
	memcpy(p, dir, dir_len);
	p += dir_len;
	if (name_len > 0)
		*p++ = '/';
	memcpy(p, name, name_len);
	p += name_len;
	*p++ = '\0';
	n = read(fd, p, SURVEY_PIECE);
	if (n >= 0)
		send_buffer(FROM_STDOUT, id,
			    (size_t)(p - out_buf) - FRAME_HEADER + (size_t)n);
	return n;
}

// SPDX-License-Identifier: GPL-2.0-only
/* Pages of fuzzmm that a pipe holds, too, or an io_uring; see fuzz.h. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../fuzz.h"

/* What is read into a page that is held for long. */
#define READ_BYTES	64U

/* Of this process, by the number of the pin. */
static struct ring rings[FUZZ_MAX_PINS];

static void poke(unsigned int proc, unsigned int page, unsigned int off, uint8_t value)
{
	*(volatile uint8_t *)(fuzz_page(page) + off) = value;
	fuzz_bytes(proc, page)[off] = value;
	fuzz_changed(proc, page);
}

/* A pipe gets the page by vmsplice(2). Returns 0 or an errno, and the end to read from. */
static int pin_by_pipe(void *page, int *fd)
{
	struct iovec iov = { page, PAGE_BYTES };
	int ends[2], err = 0;

	if (pipe2(ends, O_CLOEXEC))
		return errno;
	if (vmsplice(ends[1], &iov, 1, 0) != (ssize_t)PAGE_BYTES)
		err = errno ? errno : EIO;
	close(ends[1]);
	if (err)
		close(ends[0]);
	*fd = ends[0];
	return err;
}

static int pin_for_long(void *page, struct ring *ring, int *fd)
{
	int err = -ring_open(ring, page, PAGE_BYTES);

	*fd = ring->fd;
	return err;
}

/*
 * Until the process forks or its pages are evicted, the page that the pipe has stays
 * that of the process: it is written to before, so that nobody shares it, and nobody
 * may merge it afterwards. Not so where pksmd works at the same time. The page that
 * an io_uring has pinned stays that of the process whatever happens.
 */
int fuzz_pin(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r)
{
	struct fuzz_pin *pin = fuzz->procs[proc].pins, *end = pin + FUZZ_MAX_PINS;
	unsigned int off = op->arg % PAGE_BYTES;
	bool is_long = op->kind == FUZZ_PIN_LONG;
	uint8_t value = op->arg / PAGE_BYTES;
	int fd = 0, err;

	while (pin < end && pin->fd)
		pin++;
	r->pages = 0;
	if (pin == end)
		return 0;
	/* Every other time it is pinned as it is, merged perhaps. */
	if (value % 2)
		poke(proc, op->page, off, value);
	err = is_long ? pin_for_long(fuzz_page(op->page), &rings[pin - fuzz->procs[proc].pins], &fd) :
			pin_by_pipe(fuzz_page(op->page), &fd);
	if (err)
		return err;
	pin->page = (int16_t)op->page;
	pin->exact = is_long || (value % 2 && fuzz->exact_pins);
	pin->is_long = is_long;
	pin->arg = op->arg;
	pin->history[0] = fuzz_hash(fuzz_bytes(proc, op->page));
	pin->nr = 1;
	pin->fd = fd;
	r->pages = 1;
	if (value % 2)
		poke(proc, op->page, off, (uint8_t)(value + 1));
	return 0;
}

static size_t read_page(int fd, void *page)
{
	size_t got = 0;
	ssize_t n = 1;

	while (got < PAGE_BYTES && n > 0) {
		n = read(fd, (char *)page + got, PAGE_BYTES - got);
		got += n > 0 ? (size_t)n : 0;
	}
	return got;
}

/* Reads into the page, where the process must see it, if it still has that page. */
static int read_into(unsigned int proc, struct fuzz_pin *pin, struct ring *ring, const int *ends)
{
	unsigned int off = pin->arg % (PAGE_BYTES - READ_BYTES);
	uint8_t text[READ_BYTES];
	int err;

	memset(text, (int)(pin->arg / PAGE_BYTES) + 2, sizeof(text));
	if (write(ends[1], text, sizeof(text)) != (ssize_t)sizeof(text))
		return errno ? errno : EIO;
	err = -ring_move(ring, IORING_OP_READ_FIXED, ends[0], off, READ_BYTES);
	if (!err && pin->page >= 0) {
		memcpy(fuzz_bytes(proc, (unsigned int)pin->page) + off, text, sizeof(text));
		fuzz_changed(proc, (unsigned int)pin->page);
	}
	return err;
}

static int out_of_ring(unsigned int proc, struct fuzz_pin *pin, struct ring *ring, void *page)
{
	int ends[2], err;

	if (pipe2(ends, O_CLOEXEC))
		return errno;
	err = -ring_move(ring, IORING_OP_WRITE_FIXED, ends[1], 0, PAGE_BYTES);
	if (!err && read_page(ends[0], page) != PAGE_BYTES)
		err = EIO;
	if (!err)
		err = read_into(proc, pin, ring, ends);
	close(ends[0]);
	close(ends[1]);
	return err;
}

/* What may have been there: the number of it, from 1, or 0. */
static unsigned int recognise(const struct fuzz_pin *pin, const void *page)
{
	uint64_t hash = fuzz_hash(page);
	unsigned int i;

	for (i = 0; i < pin->nr && i < FUZZ_HISTORY; i++)
		if (pin->history[i] == hash)
			return i + 1;
	return 0;
}

void fuzz_unpin(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r)
{
	struct fuzz_pin *pin = &fuzz->procs[proc].pins[op->arg], was = *pin;
	struct ring *ring = &rings[op->arg];
	struct fuzz_wrong *w = &fuzz->wrong;
	uint64_t page[PAGE_BYTES / 8];

	if (!was.fd)
		return;
	r->pages = 1;
	pin->fd = 0;
	if (was.is_long) {
		r->err = out_of_ring(proc, &was, ring, page);
		ring_close(ring);
		if (r->err)
			return;
	} else {
		read_page(was.fd, page);
		close(was.fd);
	}
	r->sum = recognise(&was, page);
	if (was.page >= 0)
		fuzz_note(op, proc, (unsigned int)was.page);
	if (!r->sum && was.nr <= FUZZ_HISTORY && !w->found)
		*w = (struct fuzz_wrong){
			.found = true, .proc = proc, .when = "out of what holds it",
			.page = was.page >= 0 ? (unsigned int)was.page : fuzz_sizes.pages,
		};
}

void fuzz_pins_close(unsigned int proc)
{
	unsigned int i;

	for (i = 0; i < FUZZ_MAX_PINS; i++)
		if (fuzz->procs[proc].pins[i].fd)
			close(fuzz->procs[proc].pins[i].fd);
	memset(rings, 0, sizeof(rings));
}

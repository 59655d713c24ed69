// SPDX-License-Identifier: GPL-2.0-only
/* Pages of fuzzmm that a pipe holds, too; see fuzz.h. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../fuzz.h"

static void poke(unsigned int proc, unsigned int page, unsigned int off, uint8_t value)
{
	*(volatile uint8_t *)(fuzz_page(page) + off) = value;
	fuzz_bytes(proc, page)[off] = value;
	fuzz_changed(proc, page);
}

/*
 * Until the process forks or its pages are evicted, the page that the pipe has stays
 * that of the process: it is written to before, so that nobody shares it, and nobody
 * may merge it afterwards. Not so where pksmd works at the same time.
 */
int fuzz_pin(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r)
{
	struct fuzz_pin *pin = fuzz->procs[proc].pins, *end = pin + FUZZ_MAX_PINS;
	struct iovec iov = { fuzz_page(op->page), PAGE_BYTES };
	unsigned int off = op->arg % PAGE_BYTES;
	uint8_t value = op->arg / PAGE_BYTES;
	int ends[2], err = 0;

	while (pin < end && pin->fd)
		pin++;
	r->pages = 0;
	if (pin == end)
		return 0;
	if (pipe2(ends, O_CLOEXEC))
		return errno;
	/* Every other time it is pinned as it is, merged perhaps. */
	if (value % 2)
		poke(proc, op->page, off, value);
	if (vmsplice(ends[1], &iov, 1, 0) != (ssize_t)PAGE_BYTES)
		err = errno ? errno : EIO;
	close(ends[1]);
	if (err) {
		close(ends[0]);
		return err;
	}
	pin->page = (int16_t)op->page;
	pin->exact = value % 2 && fuzz->exact_pins;
	pin->history[0] = fuzz_hash(fuzz_bytes(proc, op->page));
	pin->nr = 1;
	pin->fd = ends[0];
	r->pages = 1;
	if (value % 2)
		poke(proc, op->page, off, (uint8_t)(value + 1));
	return 0;
}

void fuzz_unpin(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r)
{
	struct fuzz_pin *pin = &fuzz->procs[proc].pins[op->arg];
	uint64_t page[PAGE_BYTES / 8], hash;
	struct fuzz_wrong *w = &fuzz->wrong;
	size_t got = 0;
	unsigned int i;
	ssize_t n = 1;

	if (!pin->fd)
		return;
	r->pages = 1;
	while (got < PAGE_BYTES && n > 0) {
		n = read(pin->fd, (char *)page + got, PAGE_BYTES - got);
		got += n > 0 ? (size_t)n : 0;
	}
	close(pin->fd);
	pin->fd = 0;
	hash = fuzz_hash(page);
	for (i = 0; i < pin->nr && i < FUZZ_HISTORY; i++)
		if (pin->history[i] == hash)
			break;
	if (pin->page >= 0)
		fuzz_note(op, proc, (unsigned int)pin->page);
	if (i < pin->nr && i < FUZZ_HISTORY)
		r->sum = i + 1;
	else if (pin->nr > FUZZ_HISTORY)
		return;
	else if (!w->found)
		*w = (struct fuzz_wrong){
			.found = true, .proc = proc, .when = "out of the pipe that holds it",
			.page = pin->page >= 0 ? (unsigned int)pin->page : fuzz_sizes.pages,
		};
}

void fuzz_pins_close(unsigned int proc)
{
	unsigned int i;

	for (i = 0; i < FUZZ_MAX_PINS; i++)
		if (fuzz->procs[proc].pins[i].fd)
			close(fuzz->procs[proc].pins[i].fd);
}

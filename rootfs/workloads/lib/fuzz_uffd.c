// SPDX-License-Identifier: GPL-2.0-only
/* What fuzzmm does by userfaultfd; see fuzz.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../fuzz.h"

/* Of this process; 0: none. */
static int protecting[FUZZ_MAX_WP];

/* Userfaultfd brings pages, or zeros, to where there is nothing. */
static int bring(unsigned int proc, const struct fuzz_op *op, unsigned int n)
{
	size_t size = n * PAGE_BYTES;
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)fuzz_page(op->page), size },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_copy copy = { .dst = reg.range.start, .len = size };
	struct uffdio_zeropage zero = { .range = reg.range };
	int uffd, err = 0;
	unsigned int i;

	if (madvise(fuzz_page(op->page), size, MADV_DONTNEED))
		return errno;
	for (i = 0; i < n; i++)
		fuzz_set_fresh(proc, op->page + i);
	uffd = (int)syscall(__NR_userfaultfd, O_CLOEXEC);
	if (uffd < 0)
		return errno;
	if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		err = errno;
	} else if (op->kind == FUZZ_UFFD_ZERO) {
		err = ioctl(uffd, UFFDIO_ZEROPAGE, &zero) ? errno : 0;
	} else {
		for (i = 0; i < n; i++)
			fuzz_content(FUZZ_DUP, op->arg, i, fuzz_bytes(proc, op->page + i));
		copy.src = (uintptr_t)fuzz_bytes(proc, op->page);
		err = ioctl(uffd, UFFDIO_COPY, &copy) ? errno : 0;
		for (i = 0; i < n; i++)
			if (err && (copy.copy < 0 || i >= (size_t)copy.copy / PAGE_BYTES))
				fuzz_set_fresh(proc, op->page + i);
	}
	close(uffd);
	return err;
}

static int move(unsigned int proc, const struct fuzz_op *op, unsigned int *n)
{
	const struct fuzz_op target = {
		.kind = op->kind, .proc = proc, .page = op->arg, .pages = 1,
	};
	int err;

	*n = 0;
	if (op->arg == op->page || !fuzz_applies(&target))
		return 0;
	if (madvise(fuzz_page(op->arg), PAGE_BYTES, MADV_DONTNEED))
		return errno;
	fuzz_set_fresh(proc, op->arg);
	err = -uffd_move(fuzz_page(op->arg), fuzz_page(op->page), PAGE_BYTES);
	if (err)
		return err;
	*n = 1;
	/* The page goes, what is said of both places stays. */
	memcpy(fuzz_bytes(proc, op->arg), fuzz_bytes(proc, op->page), PAGE_BYTES);
	fuzz_pins_follow(proc, op->page, op->arg);
	fuzz_set_zero(proc, op->page);
	return 0;
}

/* The first write ends it, and nobody has to be asked: no byte changes by it. */
static int protect(const struct fuzz_op *op, unsigned int n)
{
	int *fd = &protecting[op->arg], got;

	if (*fd)
		close(*fd);
	*fd = 0;
	got = uffd_protect(fuzz_page(op->page), n * PAGE_BYTES);
	if (got < 0)
		return -got;
	*fd = got;
	return 0;
}

int fuzz_uffd(unsigned int proc, const struct fuzz_op *op, unsigned int *n)
{
	switch (op->kind) {
	case FUZZ_UFFD_MOVE:
		return move(proc, op, n);
	case FUZZ_UFFD_WP:
		return protect(op, *n);
	default:
		return bring(proc, op, *n);
	}
}

void fuzz_uffd_close(void)
{
	unsigned int i;

	for (i = 0; i < FUZZ_MAX_WP; i++)
		if (protecting[i])
			close(protecting[i]);
	memset(protecting, 0, sizeof(protecting));
}

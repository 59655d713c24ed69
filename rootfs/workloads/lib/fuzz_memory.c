// SPDX-License-Identifier: GPL-2.0-only
/* What a process of fuzzmm does to its own memory, and to the model; see fuzz.h. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../fuzz.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

/* Of this process, and of the operation it carries out. */
static unsigned int me;
static struct fuzz_slot *slots;

static uint8_t *bytes_at(unsigned int page)
{
	return fuzz_bytes(me, page);
}

static int result(bool failed)
{
	return failed ? errno : 0;
}

static int do_map(const struct fuzz_op *op, unsigned int n)
{
	int flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | MAP_NORESERVE;
	bool file = op->arg == 3;
	unsigned int i;
	void *at;

	flags |= file ? 0 : MAP_ANONYMOUS;
	flags |= op->arg == 2 ? MAP_POPULATE : 0;
	at = mmap(fuzz_page(op->page), n * PAGE_BYTES, PROT_READ | PROT_WRITE, flags,
		  file ? fuzz_file() : -1, file ? (off_t)(op->page * PAGE_BYTES) : 0);
	if (at == MAP_FAILED)
		return errno;
	for (i = op->page; i < op->page + n; i++) {
		slots[i].mapped = 1;
		slots[i].read = 1;
		slots[i].write = 1;
		slots[i].file = file;
		slots[i].file_page = i;
		fuzz_set_fresh(me, i);
	}
	return 0;
}

static int do_unmap(unsigned int page, unsigned int n)
{
	unsigned int i;

	if (munmap(fuzz_page(page), n * PAGE_BYTES))
		return errno;
	for (i = page; i < page + n; i++)
		fuzz_forget(me, i);
	return 0;
}

/* Whole pages. */
static void do_fill(const struct fuzz_op *op, unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++) {
		unsigned int page = op->page + i;

		fuzz_content(op->kind, op->arg, i, bytes_at(page));
		memcpy(fuzz_page(page), bytes_at(page), PAGE_BYTES);
		slots[page].maybe_zero = 0;
		fuzz_changed(me, page);
	}
}

/* One byte of each page. */
static void do_poke(const struct fuzz_op *op, unsigned int n, uint64_t *sum)
{
	unsigned int i, off = op->arg % PAGE_BYTES;
	uint8_t value = op->arg / PAGE_BYTES;

	for (i = op->page; i < op->page + n; i++) {
		*(volatile uint8_t *)(fuzz_page(i) + off) = value;
		bytes_at(i)[off] = value;
		fuzz_changed(me, i);
		if (!slots[i].maybe_zero)
			continue;
		/* Which of the two was it? It is written, and stays from now on. */
		fuzz_verify(me, i, fuzz_page(i), (int)off, "after a poke", sum);
		slots[i].maybe_zero = 0;
	}
}

/* The kernel writes, over the border of two pages as well. */
static int do_receive(const struct fuzz_op *op, unsigned int n)
{
	unsigned int off = op->arg % PAGE_BYTES, i;
	size_t len = 1 + (op->arg / PAGE_BYTES) % (n * PAGE_BYTES - off);
	uint8_t data[2 * PAGE_BYTES];
	int ends[2], err = 0;
	ssize_t got = 0;

	for (i = 0; i < len; i++)
		data[i] = (uint8_t)(op->arg + i / 7);
	if (pipe2(ends, O_CLOEXEC))
		return errno;
	if (write(ends[1], data, len) != (ssize_t)len)
		err = errno;
	if (!err)
		got = read(ends[0], fuzz_page(op->page) + off, len);
	if (!err && got < 0)
		err = errno;
	if (got > 0) {
		/* The pages of an arena lie one behind the other in the model, too. */
		memcpy(bytes_at(op->page) + off, data, (size_t)got);
		for (i = 0; i < n; i++)
			fuzz_changed(me, op->page + i);
	}
	close(ends[0]);
	close(ends[1]);
	return err;
}

static int do_send(const struct fuzz_op *op, unsigned int n, uint64_t *sum)
{
	uint8_t data[2 * PAGE_BYTES];
	int ends[2], err = 0;
	unsigned int i;

	if (pipe2(ends, O_CLOEXEC))
		return errno;
	if (write(ends[1], fuzz_page(op->page), n * PAGE_BYTES) != (ssize_t)(n * PAGE_BYTES) ||
	    read(ends[0], data, n * PAGE_BYTES) != (ssize_t)(n * PAGE_BYTES))
		err = errno;
	for (i = 0; i < n && !err; i++)
		fuzz_verify(me, op->page + i, data + i * PAGE_BYTES, -1, "as write(2) sees it", sum);
	close(ends[0]);
	close(ends[1]);
	return err;
}

static void do_verify(unsigned int page, unsigned int n, const char *when, uint64_t *sum)
{
	unsigned int i;

	for (i = page; i < page + n; i++)
		if (fuzz_readable(&slots[i]) &&
		    !fuzz_verify(me, i, fuzz_page(i), -1, when, sum))
			return;
}

/* How many pages can go to @to, which becomes empty before; 0 when they overlap. */
static unsigned int make_room(const struct fuzz_op *op, unsigned int n, unsigned int to)
{
	unsigned int i;

	if (n > fuzz_sizes.pages - to)
		n = fuzz_sizes.pages - to;
	if (op->page < to + n && to < op->page + n)
		return 0;
	for (i = to; i < to + n; i++)
		if (slots[i].mapped && do_unmap(i, 1))
			return 0;
	return n;
}

static int do_move(const struct fuzz_op *op, unsigned int *n)
{
	unsigned int to = op->arg, i, flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	*n = make_room(op, *n, to);
	if (!*n)
		return 0;
#ifdef MREMAP_DONTUNMAP
	if (op->kind == FUZZ_DONTUNMAP)
		flags |= MREMAP_DONTUNMAP;
#endif
	if (mremap(fuzz_page(op->page), *n * PAGE_BYTES, *n * PAGE_BYTES, (int)flags,
		   fuzz_page(to)) == MAP_FAILED)
		return errno;
	for (i = 0; i < *n; i++) {
		struct fuzz_slot old = slots[op->page + i];

		fuzz_moved(me, op->page + i, to + i);
		if (op->kind != FUZZ_DONTUNMAP)
			continue;
		old.locked = 0;
		old.maybe_zero = 0;
		old.guard = 0;
		slots[op->page + i] = old;
		fuzz_set_fresh(me, op->page + i);
	}
	return 0;
}

static int do_grow(const struct fuzz_op *op, unsigned int n)
{
	unsigned int more = 1 + op->arg, end = op->page + n, i;
	struct fuzz_slot last = slots[end - 1];

	for (i = end; i < end + more; i++)
		if (i >= fuzz_sizes.pages || slots[i].mapped)
			return 0;
	if (mremap(fuzz_page(op->page), n * PAGE_BYTES, (n + more) * PAGE_BYTES, 0) == MAP_FAILED)
		return errno;
	for (i = end; i < end + more; i++) {
		slots[i] = last;
		slots[i].nr_last = 0;
		slots[i].guard = 0;
		fuzz_set_fresh(me, i);
	}
	return 0;
}

static int do_shrink(const struct fuzz_op *op, unsigned int n)
{
	unsigned int i;

	if (n < 2)
		return 0;
	if (mremap(fuzz_page(op->page), n * PAGE_BYTES, PAGE_BYTES, 0) == MAP_FAILED)
		return errno;
	for (i = op->page + 1; i < op->page + n; i++)
		fuzz_forget(me, i);
	return 0;
}

static int do_protect(const struct fuzz_op *op, unsigned int n)
{
	int prot = op->arg == 0 ? PROT_NONE : op->arg < 3 ? PROT_READ : PROT_READ | PROT_WRITE;
	unsigned int i;

	if (mprotect(fuzz_page(op->page), n * PAGE_BYTES, prot))
		return errno;
	for (i = op->page; i < op->page + n; i++) {
		slots[i].read = !!(prot & PROT_READ);
		slots[i].write = !!(prot & PROT_WRITE);
	}
	return 0;
}

static int do_lock(const struct fuzz_op *op, unsigned int n)
{
	unsigned int i;

	/* It may fail after it has marked them. */
	for (i = op->page; i < op->page + n; i++)
		slots[i].locked = op->kind == FUZZ_LOCK;
	if (op->kind == FUZZ_UNLOCK)
		return result(munlock(fuzz_page(op->page), n * PAGE_BYTES));
	return result(syscall(SYS_mlock2, fuzz_page(op->page), n * PAGE_BYTES, op->arg));
}

static int do_advise(const struct fuzz_op *op, unsigned int n, uint64_t *sum)
{
	static const int advices[FUZZ_KINDS] = {
		[FUZZ_MERGEABLE] = MADV_MERGEABLE, [FUZZ_UNMERGEABLE] = MADV_UNMERGEABLE,
		[FUZZ_DONTNEED] = MADV_DONTNEED, [FUZZ_FREE] = MADV_FREE,
		[FUZZ_PAGEOUT] = MADV_PAGEOUT, [FUZZ_COLD] = MADV_COLD,
		[FUZZ_WILLNEED] = MADV_WILLNEED, [FUZZ_POPULATE_READ] = MADV_POPULATE_READ,
		[FUZZ_POPULATE_WRITE] = MADV_POPULATE_WRITE, [FUZZ_DONTFORK] = MADV_DONTFORK,
		[FUZZ_DOFORK] = MADV_DOFORK, [FUZZ_WIPEONFORK] = MADV_WIPEONFORK,
		[FUZZ_KEEPONFORK] = MADV_KEEPONFORK, [FUZZ_COLLAPSE] = MADV_COLLAPSE,
		[FUZZ_HUGEPAGE] = MADV_HUGEPAGE, [FUZZ_NOHUGEPAGE] = MADV_NOHUGEPAGE,
		[FUZZ_DONTNEED_LOCKED] = MADV_DONTNEED_LOCKED,
		[FUZZ_GUARD] = MADV_GUARD_INSTALL, [FUZZ_UNGUARD] = MADV_GUARD_REMOVE,
	};
	static const int flags[] = {
		MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_DONTDUMP, MADV_DODUMP,
	};
	int err, advice = op->kind == FUZZ_FLAG ? flags[op->arg] : advices[op->kind];
	unsigned int i;

	if (op->kind == FUZZ_PAGEOUT || op->kind == FUZZ_FREE)
		fuzz_pins_may_part(me);
	err = result(madvise(fuzz_page(op->page), n * PAGE_BYTES, advice));
	if (err && op->kind != FUZZ_FREE)
		return err;
	for (i = op->page; i < op->page + n; i++) {
		struct fuzz_slot *s = &slots[i];

		switch (op->kind) {
		case FUZZ_DONTNEED:
		case FUZZ_DONTNEED_LOCKED:
			fuzz_set_fresh(me, i);
			break;
		case FUZZ_GUARD:
			fuzz_set_fresh(me, i);
			s->guard = 1;
			break;
		case FUZZ_UNGUARD:
			s->guard = 0;
			break;
		case FUZZ_FREE:
			s->maybe_zero = 1;
			break;
		case FUZZ_POPULATE_WRITE:
			/* As if written to: what is there now stays. */
			if (s->maybe_zero)
				fuzz_verify(me, i, fuzz_page(i), -1, "after populate_write", sum);
			s->maybe_zero = 0;
			break;
		case FUZZ_DONTFORK:
		case FUZZ_DOFORK:
			s->dont_fork = op->kind == FUZZ_DONTFORK;
			break;
		case FUZZ_WIPEONFORK:
		case FUZZ_KEEPONFORK:
			s->wipe = op->kind == FUZZ_WIPEONFORK;
			break;
		default:
			break;
		}
	}
	return err;
}

void fuzz_memory(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r)
{
	unsigned int n = fuzz_applies(op), i;

	me = proc;
	slots = fuzz->procs[me].slots;
	if (fuzz_kinds[op->kind].needs & ON_SHARED) {
		fuzz_shared(me, op, r);
		return;
	}
	for (i = 0; i < n; i++)
		fuzz_note(op, me, op->page + i);
	if (!n && fuzz_kinds[op->kind].most)
		return;
	switch ((enum fuzz_kind)op->kind) {
	case FUZZ_MAP:
		r->err = do_map(op, n);
		break;
	case FUZZ_UNMAP:
		do_verify(op->page, op->page % 2 ? n : 0, "before it is unmapped", &r->sum);
		r->err = do_unmap(op->page, n);
		break;
	case FUZZ_DUP:
	case FUZZ_ZERO:
	case FUZZ_UNIQUE:
	case FUZZ_NEAR:
		/* What is wrong would be overwritten; but a page may as well be written unseen. */
		do_verify(op->page, op->page % 2 ? n : 0, "before it is written", &r->sum);
		do_fill(op, n);
		break;
	case FUZZ_POKE:
		do_poke(op, n, &r->sum);
		break;
	case FUZZ_RECEIVE:
		r->err = do_receive(op, n);
		break;
	case FUZZ_SEND:
		r->err = do_send(op, n, &r->sum);
		break;
	case FUZZ_VERIFY:
		do_verify(op->page, n, "when it is read", &r->sum);
		break;
	case FUZZ_EXIT:
	case FUZZ_VERIFY_ALL:
		do_verify(0, fuzz_sizes.pages, "when all is read", &r->sum);
		fuzz_shared_verify(me);
		break;
	case FUZZ_MOVE:
	case FUZZ_DONTUNMAP:
		r->err = do_move(op, &n);
		break;
	case FUZZ_GROW:
		r->err = do_grow(op, n);
		break;
	case FUZZ_SHRINK:
		r->err = do_shrink(op, n);
		break;
	case FUZZ_PROTECT:
		r->err = do_protect(op, n);
		break;
	case FUZZ_LOCK:
	case FUZZ_UNLOCK:
		r->err = do_lock(op, n);
		break;
	case FUZZ_PIN:
	case FUZZ_PIN_LONG:
		r->err = fuzz_pin(me, op, r);
		break;
	case FUZZ_UNPIN:
		fuzz_unpin(me, op, r);
		break;
	case FUZZ_UFFD_COPY:
	case FUZZ_UFFD_ZERO:
	case FUZZ_UFFD_MOVE:
	case FUZZ_UFFD_WP:
		r->err = fuzz_uffd(me, op, &n);
		break;
	case FUZZ_USER:
		r->err = fuzz_user(op->arg);
		r->pages = 1;
		break;
	case FUZZ_MERGE:
		r->err = result(prctl(PR_SET_MEMORY_MERGE, (unsigned long)!!op->arg, 0, 0, 0));
		r->pages = 1;
		break;
	default:
		r->err = do_advise(op, n, &r->sum);
	}
	if (op->kind == FUZZ_VERIFY_ALL)
		r->pages = 1;
	else if (op->kind != FUZZ_PIN && op->kind != FUZZ_PIN_LONG && fuzz_kinds[op->kind].most)
		r->pages = n;
}

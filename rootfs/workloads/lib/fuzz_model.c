// SPDX-License-Identifier: GPL-2.0-only
/* What fuzzmm knows of every byte of every process; see fuzz.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../fuzz.h"

enum { S_FUZZ_DUP = 1, S_FUZZ_UNIQUE, S_FUZZ_FILE };

struct fuzz_model *fuzz;
static uint8_t *all_bytes;
static int file = -1;

static const uint8_t zeros[PAGE_BYTES];

uint8_t *fuzz_bytes(unsigned int proc, unsigned int page)
{
	return all_bytes + ((size_t)proc * fuzz_sizes.pages + page) * PAGE_BYTES;
}

uint8_t *fuzz_page(unsigned int page)
{
	return (uint8_t *)FUZZ_BASE + (size_t)page * PAGE_BYTES;
}

int fuzz_file(void)
{
	return file;
}

static void file_content(unsigned int page, uint8_t *to)
{
	struct content c = { .key = content_key(S_FUZZ_FILE, page % 8, 0, 0) };

	page_fill(to, &c);
}

void fuzz_model_make(void)
{
	size_t n = (size_t)fuzz_sizes.procs * fuzz_sizes.pages * PAGE_BYTES;
	uint8_t text[PAGE_BYTES];
	unsigned int i;

	fuzz = untracked_alloc(sizeof(*fuzz));
	all_bytes = untracked_alloc(n);
	/* What is known is not to be evicted: only what is looked at. */
	if (mlock(fuzz, sizeof(*fuzz)) || mlock(all_bytes, n))
		die(FUZZ_ENV, "mlock: %s", strerror(errno));
	fuzz_shared_make();
	file = memfd_create("fuzzmm", MFD_CLOEXEC);
	if (file < 0)
		die(FUZZ_ENV, "memfd_create: %s", strerror(errno));
	for (i = 0; i < fuzz_sizes.pages; i++) {
		file_content(i, text);
		if (write(file, text, PAGE_BYTES) != (ssize_t)PAGE_BYTES)
			die(FUZZ_ENV, "memfd: %s", strerror(errno));
	}
}

bool fuzz_readable(const struct fuzz_slot *s)
{
	return s->mapped && s->read && !s->guard;
}

static bool fits(const struct fuzz_slot *s, unsigned int needs)
{
	if (needs & NEED_FREE)
		return !s->mapped;
	return (s->mapped || !(needs & NEED_MAPPED)) &&
	       (fuzz_readable(s) || !(needs & NEED_READ)) &&
	       (s->write || !(needs & NEED_WRITE)) &&
	       (!s->file || !(needs & NEED_ANON)) &&
	       (!s->locked || !(needs & NEED_UNLOCKED)) &&
	       (!s->maybe_zero || !(needs & NEED_SURE));
}

unsigned int fuzz_applies(const struct fuzz_op *op)
{
	const struct fuzz_slot *s = fuzz->procs[op->proc].slots + op->page;
	unsigned int i;

	for (i = 0; i < op->pages && fits(&s[i], fuzz_kinds[op->kind].needs); i++)
		;
	return i;
}

void fuzz_note(const struct fuzz_op *op, unsigned int proc, unsigned int page)
{
	struct fuzz_slot *s = &fuzz->procs[proc].slots[page];

	s->last[s->nr_last++ % FUZZ_LAST] = op->number;
}

uint64_t fuzz_hash(const void *page)
{
	const uint64_t *w = page;
	uint64_t hash = 0;
	size_t i;

	for (i = 0; i < PAGE_BYTES / 8; i++)
		hash = (hash ^ w[i]) * 0x9e3779b97f4a7c15ULL + (hash >> 29);
	return hash;
}

void fuzz_changed(unsigned int proc, unsigned int page)
{
	struct fuzz_pin *pin = fuzz->procs[proc].pins;
	unsigned int i;

	for (i = 0; i < FUZZ_MAX_PINS; i++, pin++) {
		if (!pin->fd || pin->page != (int)page)
			continue;
		if (pin->nr < FUZZ_HISTORY)
			pin->history[pin->nr] = fuzz_hash(fuzz_bytes(proc, page));
		/* More than that, and anything may come out. */
		if (pin->nr <= FUZZ_HISTORY)
			pin->nr++;
		if (pin->exact) {
			pin->history[0] = fuzz_hash(fuzz_bytes(proc, page));
			pin->nr = 1;
		}
	}
}

void fuzz_pins_follow(unsigned int proc, unsigned int page, int to)
{
	struct fuzz_pin *pin = fuzz->procs[proc].pins;
	unsigned int i;

	for (i = 0; i < FUZZ_MAX_PINS; i++, pin++)
		if (pin->fd && pin->page == (int)page)
			pin->page = (int16_t)to;
}

void fuzz_pins_may_part(unsigned int proc)
{
	unsigned int i;

	for (i = 0; i < FUZZ_MAX_PINS; i++)
		fuzz->procs[proc].pins[i].exact = fuzz->procs[proc].pins[i].is_long;
}

void fuzz_set_zero(unsigned int proc, unsigned int page)
{
	fuzz_pins_follow(proc, page, -1);
	memset(fuzz_bytes(proc, page), 0, PAGE_BYTES);
	fuzz->procs[proc].slots[page].maybe_zero = 0;
}

void fuzz_set_fresh(unsigned int proc, unsigned int page)
{
	struct fuzz_slot *s = &fuzz->procs[proc].slots[page];

	fuzz_set_zero(proc, page);
	if (s->file)
		file_content(s->file_page, fuzz_bytes(proc, page));
}

/* Nothing is left but what was done to it. */
static void slot_clear(struct fuzz_slot *s)
{
	struct fuzz_slot old = *s;

	memset(s, 0, sizeof(*s));
	memcpy(s->last, old.last, sizeof(s->last));
	s->nr_last = old.nr_last;
}

void fuzz_forget(unsigned int proc, unsigned int page)
{
	fuzz_pins_follow(proc, page, -1);
	slot_clear(&fuzz->procs[proc].slots[page]);
}

void fuzz_moved(unsigned int proc, unsigned int from, unsigned int to)
{
	struct fuzz_slot *slots = fuzz->procs[proc].slots;
	struct fuzz_slot *s = &slots[to];
	unsigned int i, nr = slots[from].nr_last;

	*s = slots[from];
	memcpy(fuzz_bytes(proc, to), fuzz_bytes(proc, from), PAGE_BYTES);
	fuzz_pins_follow(proc, from, (int)to);
	for (i = 0; i < FUZZ_LAST; i++)
		s->last[i] = slots[from].last[i];
	s->nr_last = nr;
	slot_clear(&slots[from]);
}

void fuzz_forked(unsigned int proc, unsigned int child)
{
	struct fuzz_proc *p = &fuzz->procs[proc], *c = &fuzz->procs[child];
	unsigned int i;

	memcpy(c->slots, p->slots, fuzz_sizes.pages * sizeof(*c->slots));
	memset(c->pins, 0, sizeof(c->pins));
	for (i = 0; i < fuzz_sizes.pages; i++) {
		struct fuzz_slot *s = &c->slots[i];

		if (!s->mapped)
			continue;
		s->locked = 0;
		if (s->dont_fork) {
			slot_clear(s);
			continue;
		}
		if (s->wipe) {
			s->guard = 0;
			memset(fuzz_bytes(child, i), 0, PAGE_BYTES);
			s->maybe_zero = 0;
		} else {
			memcpy(fuzz_bytes(child, i), fuzz_bytes(proc, i), PAGE_BYTES);
		}
	}
	fuzz_pins_may_part(proc);
}

void fuzz_content(enum fuzz_kind kind, uint32_t arg, unsigned int i, uint8_t *to)
{
	struct content c = { 0 };

	switch (kind) {
	case FUZZ_UNIQUE:
		c.key = content_key(S_FUZZ_UNIQUE, arg, i, 0);
		break;
	case FUZZ_NEAR:
		c.key = content_key(S_FUZZ_DUP, arg / 4 + i, 0, 0);
		c.off = (uint16_t)(arg % 2 ? PAGE_BYTES - 1 : 8 * arg);
		c.flip = 1 + arg % 4;
		break;
	case FUZZ_ZERO:
		break;
	default:
		c.key = content_key(S_FUZZ_DUP, arg + i, 0, 0);
	}
	page_fill(to, &c);
}

static void wrong_byte(unsigned int proc, unsigned int page, const uint8_t *at, const char *when)
{
	const uint8_t *want = fuzz_bytes(proc, page);
	struct fuzz_wrong *w = &fuzz->wrong;
	unsigned int off;

	if (w->found)
		return;
	for (off = 0; off < PAGE_BYTES - 1 && want[off] == at[off]; off++)
		;
	*w = (struct fuzz_wrong){ true, proc, page, off, want[off], at[off], "" };
	snprintf(w->when, sizeof(w->when), "%s", when);
}

bool fuzz_verify(unsigned int proc, unsigned int page, const uint8_t *at, int poked,
		 const char *when, uint64_t *sum)
{
	struct fuzz_slot *s = &fuzz->procs[proc].slots[page];
	uint8_t *want = fuzz_bytes(proc, page), byte;

	if (!memcmp(at, want, PAGE_BYTES))
		return true;
	if (s->maybe_zero) {
		byte = poked < 0 ? 0 : want[poked];
		if ((poked < 0 || at[poked] == byte) &&
		    !memcmp(at, zeros, (size_t)(poked < 0 ? 0 : poked)) &&
		    !memcmp(at + poked + 1, zeros, PAGE_BYTES - (size_t)(poked + 1))) {
			memset(want, 0, PAGE_BYTES);
			if (poked >= 0)
				want[poked] = byte;
			fuzz_changed(proc, page);
			*sum = *sum * 31 + page + 1;
			return true;
		}
	}
	wrong_byte(proc, page, at, when);
	return false;
}

// SPDX-License-Identifier: GPL-2.0-only
/* Page contents that can be recomputed; see common.h. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../common.h"

uint64_t mix64(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

uint64_t content_key(uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	uint64_t key = mix64(mix64(mix64(mix64(a) ^ b) ^ c) ^ d);

	return key ? key : 1;
}

void page_fill(void *page, const struct content *c)
{
	uint64_t *w = page;
	size_t i;

	if (!c->key) {
		memset(page, 0, PAGE_BYTES);
	} else {
		for (i = 0; i < PAGE_BYTES / 8; i++)
			w[i] = mix64(c->key + i);
	}
	if (c->flip)
		((uint8_t *)page)[c->off] ^= c->flip;
}

void page_put(void *page, const struct content *c, void *room)
{
	page_fill(room, c);
	memcpy(page, room, PAGE_BYTES);
}

void *room_alloc(void)
{
	void *room = untracked_alloc(PAGE_BYTES);

	memset(room, 0xff, PAGE_BYTES);
	return room;
}

bool page_check(const void *page, const struct content *c, struct mismatch *m)
{
	uint64_t expect[PAGE_BYTES / 8];
	const uint8_t *want = (const uint8_t *)expect, *got = page;
	size_t i;

	page_fill(expect, c);
	if (!memcmp(expect, page, PAGE_BYTES))
		return true;
	for (i = 0; i < PAGE_BYTES - 1 && want[i] == got[i]; i++)
		;
	m->addr = (uint64_t)(uintptr_t)page + i;
	m->off = i;
	m->expected = want[i];
	m->got = got[i];
	return false;
}

uint64_t region_check(const void *base, struct content *c, size_t n,
		      const char *when)
{
	static const struct content zeros;
	const char *page = base;
	struct mismatch m = { 0 };
	uint64_t wrong = 0;
	size_t i;

	for (i = 0; i < n; i++, page += PAGE_BYTES) {
		if (page_check(page, &c[i], &m))
			continue;
		if (c[i].maybe_zero) {
			struct mismatch unused;

			if (page_check(page, &zeros, &unused)) {
				c[i] = zeros;
				continue;
			}
		}
		if (!wrong++)
			fprintf(stderr,
				"%s: wrong byte %s: pid %d page %zu address 0x%" PRIx64 " offset %u: expected 0x%02x, got 0x%02x\n",
				prog_name, when, getpid(), i, m.addr, m.off,
				m.expected, m.got);
	}
	if (wrong > 1)
		fprintf(stderr, "%s: pid %d has %" PRIu64 " wrong pages %s\n",
			prog_name, getpid(), wrong, when);
	return wrong;
}

void region_fill(void *base, const struct content *c, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++)
		page_fill((char *)base + i * PAGE_BYTES, &c[i]);
}

static size_t gcd(size_t a, size_t b)
{
	while (b) {
		size_t t = a % b;

		a = b;
		b = t;
	}
	return a;
}

struct scatter scatter_make(size_t n, uint64_t seed, uint64_t kind, uint64_t salt)
{
	struct scatter s = {
		.n = n,
		.step = content_key(seed, kind, salt, 0) % n,
		.first = content_key(seed, kind, salt, 1) % n,
	};

	while (gcd(s.step, n) != 1)
		s.step = (s.step + 1) % n;
	return s;
}

size_t scatter_place(const struct scatter *s, size_t i)
{
	return (i * s->step + s->first) % s->n;
}

static int content_cmp(const void *a, const void *b)
{
	const struct content *x = a, *y = b;

	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	if (x->flip != y->flip)
		return x->flip < y->flip ? -1 : 1;
	if (x->flip && x->off != y->off)
		return x->off < y->off ? -1 : 1;
	return 0;
}

void content_savings(struct content *c, size_t n, struct savings *s)
{
	size_t i, j;

	memset(s, 0, sizeof(*s));
	s->pages = n;
	sort_in_place(c, n, sizeof(*c), content_cmp);
	for (i = 0; i < n; i = j) {
		for (j = i + 1; j < n && !content_cmp(&c[i], &c[j]); j++)
			;
		if (!c[i].key && !c[i].flip) {
			s->zero += j - i;
		} else if (j - i > 1) {
			s->shared++;
			s->sharing += j - i - 1;
		} else {
			s->unique++;
		}
	}
}

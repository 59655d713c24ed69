// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages that all processes of fuzzmm share: what one writes the others see, and nobody
 * may merge them, whatever is in them; see fuzz.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "../fuzz.h"

static uint8_t *area;

void fuzz_shared_make(void)
{
	area = untracked_alloc(FUZZ_SHARED * PAGE_BYTES);
}

static uint8_t *at(unsigned int page)
{
	return area + page * PAGE_BYTES;
}

static void wrong_byte(unsigned int proc, unsigned int page)
{
	struct fuzz_wrong *w = &fuzz->wrong;
	unsigned int off;

	if (w->found)
		return;
	for (off = 0; off < PAGE_BYTES - 1 && fuzz->shared[page][off] == at(page)[off]; off++)
		;
	*w = (struct fuzz_wrong){ .found = true, .proc = proc, .page = fuzz_sizes.pages };
	snprintf(w->when, sizeof(w->when), "byte %u of shared page %u", off, page);
}

bool fuzz_shared_verify(unsigned int proc)
{
	unsigned int page;

	for (page = 0; page < FUZZ_SHARED; page++) {
		if (!memcmp(at(page), fuzz->shared[page], PAGE_BYTES))
			continue;
		wrong_byte(proc, page);
		return false;
	}
	return true;
}

bool fuzz_shared_unmerged(void)
{
	uint64_t start = (uintptr_t)area;
	struct pagestat st = { 0 };
	bool fine = fuzz_shared_verify(0);

	/* All are there now. */
	fine = fine && !pagestat_add(0, start, start + FUZZ_SHARED * PAGE_BYTES, &st) &&
	       !st.merged_ptes && !st.anon && !st.zero;
	pagestat_free(&st);
	return fine;
}

static int advise(uint8_t *page, uint8_t *bytes, unsigned int number)
{
	static const int advices[] = {
		MADV_REMOVE, MADV_DONTNEED, MADV_PAGEOUT, MADV_WILLNEED, MADV_MERGEABLE,
	};

	if (madvise(page, PAGE_BYTES, advices[number]))
		return errno;
	if (advices[number] == MADV_REMOVE)
		memset(bytes, 0, PAGE_BYTES);
	return 0;
}

void fuzz_shared(unsigned int proc, const struct fuzz_op *op, struct fuzz_result *r)
{
	unsigned int i, off = op->arg % PAGE_BYTES;

	for (i = 0; i < op->pages && !r->err; i++) {
		unsigned int page = (op->page + i) % FUZZ_SHARED;
		uint8_t *bytes = fuzz->shared[page];

		if (op->kind == FUZZ_SHARE_ADVISE) {
			r->err = advise(at(page), bytes, op->arg);
		} else if (op->kind == FUZZ_SHARE_POKE) {
			bytes[off] = (uint8_t)(op->arg / PAGE_BYTES);
			*(volatile uint8_t *)(at(page) + off) = bytes[off];
		} else {
			fuzz_content(FUZZ_DUP, op->arg, i, bytes);
			memcpy(at(page), bytes, PAGE_BYTES);
		}
	}
	if (op->kind == FUZZ_SHARE_VERIFY)
		fuzz_shared_verify(proc);
	r->pages = op->pages ? op->pages : 1;
}

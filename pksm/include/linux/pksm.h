/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef _LINUX_PKSM_H
#define _LINUX_PKSM_H
/*
 * PKSM: page-based kernel samepage merging.
 *
 * This header is what the rest of mm sees of the engine: the hooks of the
 * fault path, of the free path and of the copy-on-write path. What mm asks of
 * any implementation of CONFIG_KSM stays in <linux/ksm.h>.
 *
 * PG_pksm marks a page that the engine keeps a record of. The fault path sets
 * it by __SetPagePKSM() while the page is still private; the free path clears
 * it by __ClearPagePKSM(). In between, and for pages that migrate, it is changed
 * by SetPagePKSM() and ClearPagePKSM().
 */
#include <asm/barrier.h>
#include <linux/errno.h>
#include <linux/jump_label.h>
#include <linux/mm_types.h>
#include <linux/page-flags.h>

struct anon_vma;
struct page_ext_operations;
struct pksm_rmap_item;

#ifdef CONFIG_PKSM

extern struct page_ext_operations pksm_page_ext_ops;

DECLARE_STATIC_KEY_FALSE(pksm_intake_key);
DECLARE_STATIC_KEY_FALSE(pksm_count_key);

extern struct folio *pksm_turning;

struct pksm_rmap_item *__pksm_rmap_item(struct page *page);
void pksm_add_new_anon_page(struct page *page,
			    struct pksm_rmap_item *rmap_item,
			    struct anon_vma *anon_vma);
void pksm_del_anon_page(struct page *page);
void __pksm_add_broken_off(struct page *page, struct pksm_rmap_item *rmap_item);
void __pksm_add_swapped_in(struct folio *folio);
void __pksm_add_split_off(struct page *page);
void __pksm_add_collapsed(struct folio *folio, struct pksm_rmap_item *rmap_item);
void __pksm_page_broken(struct folio *folio);
void __pksm_page_unmapped(struct folio *folio);
void __pksm_page_written(struct page *page);
void __pksm_page_lost(struct folio *folio);
bool __pksm_page_watched(struct page *page);
void __pksm_rmap_lock(void);
void __pksm_rmap_unlock(void);
void __pksm_count_mapping(int ptes, int pages);
unsigned long pksm_nr_sharing(void);
int pksm_move_error(struct vm_area_struct *vma, struct folio *folio);
int pksm_unmerge_page(struct vm_area_struct *vma, unsigned long addr);
void __pksm_collapse_begin(struct vm_area_struct *vma, unsigned long start,
			   unsigned long end);

/**
 * pksm_rmap_item - the record of a page that may enter the engine
 * @folio: a new anonymous folio, not yet visible to anybody else
 * @vma: where it is about to be mapped
 *
 * The gate of the fault path: while PKSM does not run this is one predictable
 * branch and nothing else.
 *
 * Context: Any in which the flags of @vma do not change. Takes no lock and never
 * sleeps.
 * Return: The record, or NULL when the folio is not to be tracked.
 */
static inline struct pksm_rmap_item *
pksm_rmap_item(struct folio *folio, struct vm_area_struct *vma)
{
	if (!static_branch_unlikely(&pksm_intake_key))
		return NULL;
	if (!(vma->vm_flags & VM_MERGEABLE))
		return NULL;
	return __pksm_rmap_item(&folio->page);
}

/**
 * pksm_add_new_anon_folio - take a new anonymous folio in
 * @folio: the folio: with its mapping set, not yet on the LRU and not yet in a
 *	page table, so that nobody else writes its flags
 * @vma: where it is about to be mapped
 *
 * What do_anonymous_page() does, in one call for all the others.
 *
 * Context: Process context, page table lock held. Never sleeps.
 */
static inline void pksm_add_new_anon_folio(struct folio *folio,
					   struct vm_area_struct *vma)
{
	struct pksm_rmap_item *rmap_item = pksm_rmap_item(folio, vma);

	if (rmap_item)
		pksm_add_new_anon_page(&folio->page, rmap_item, vma->anon_vma);
}

/**
 * pksm_add_copied_folio - take a copy in that a write has made
 * @folio: the copy, as for pksm_add_new_anon_folio()
 * @vma: where it is about to be mapped
 * @old: what was mapped there, still counted as mapped; NULL for the zero page
 *
 * Context: Process context, page table lock held. Never sleeps.
 */
static inline void pksm_add_copied_folio(struct folio *folio,
					 struct vm_area_struct *vma,
					 struct folio *old)
{
	struct pksm_rmap_item *rmap_item = pksm_rmap_item(folio, vma);

	if (old && folio_test_ksm(old)) {
		__pksm_page_broken(old);
		__pksm_page_unmapped(old);
		if (rmap_item)
			__pksm_add_broken_off(&folio->page, rmap_item);
	} else if (rmap_item) {
		pksm_add_new_anon_page(&folio->page, rmap_item, vma->anon_vma);
	}
}

/**
 * pksm_add_swapped_in - take a folio in that comes back from swap
 * @folio: the folio: locked, with its mapping set. It may be on the LRU, and in
 *	the page tables of others.
 *
 * Context: Process context, page table lock held. Never sleeps.
 */
static inline void pksm_add_swapped_in(struct folio *folio)
{
	if (static_branch_unlikely(&pksm_intake_key))
		__pksm_add_swapped_in(folio);
}

/**
 * pksm_add_collapsed_folio - take a large folio in that khugepaged has made
 * @folio: the folio, as for pksm_add_new_anon_folio()
 * @vma: where it is about to be mapped
 *
 * Context: Process context, page table lock held. Never sleeps.
 */
static inline void pksm_add_collapsed_folio(struct folio *folio,
					    struct vm_area_struct *vma)
{
	struct pksm_rmap_item *rmap_item = pksm_rmap_item(folio, vma);

	/* What maps it may be there all the same, from 7.3 on. */
	if (IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE) && rmap_item)
		__pksm_add_collapsed(folio, rmap_item);
}

/**
 * pksm_add_split_off - take a page in that was a part of a large folio
 * @folio: the large folio, about to be split
 * @page: the page, the first of its own folio now, with its reference count frozen
 *
 * Context: Interrupts are off. Never sleeps.
 */
static inline void pksm_add_split_off(struct folio *folio, struct page *page)
{
	if (unlikely(PagePKSM(&folio->page)))
		__pksm_add_split_off(page);
}

/**
 * pksm_page_unmapped - a PTE of an anonymous page goes
 * @folio: the page, of which this PTE is still counted as a mapping
 *
 * Context: Page table lock held. Never sleeps.
 */
static inline void pksm_page_unmapped(struct folio *folio)
{
	if (static_branch_unlikely(&pksm_count_key) && folio_test_ksm(folio))
		__pksm_page_unmapped(folio);
}

/**
 * pksm_page_written - an anonymous page is about to be mapped writable again
 * @folio: the page, or NULL for something else
 *
 * Context: Page table lock held, of a page table that maps it. Never sleeps.
 */
static inline void pksm_page_written(struct folio *folio)
{
	if (folio && unlikely(PagePKSM(&folio->page)))
		__pksm_page_written(&folio->page);
}

/**
 * pksm_page_lost - the memory of a page has gone bad, and nothing maps it any more
 * @folio: the page, locked
 *
 * Context: Process context. Never sleeps.
 */
static inline void pksm_page_lost(struct folio *folio)
{
	if (unlikely(PagePKSM(&folio->page)))
		__pksm_page_lost(folio);
}

/**
 * pksm_page_watched - may a page not be mapped writable without a write fault?
 * @page: an anonymous page, or one of a large folio, which is watched as a whole
 *
 * Context: Page table lock held, of a page table that maps it.
 * Return: true when the engine wants to be told of the next write.
 */
static inline bool pksm_page_watched(struct page *page)
{
	page = compound_head(page);
	return unlikely(PagePKSM(page)) && __pksm_page_watched(page);
}

/**
 * pksm_collapse_begin - a huge page is to be made of a range, by the wish of its owner
 * @vma: the VMA
 * @start: first address
 * @end: address behind the last
 *
 * Where pages are merged with each other that could not be done, however often it is
 * tried: who has to isolate each page finds the second of them isolated already. Zero
 * pages are in nobody's way.
 *
 * Context: Process context, mmap_lock held for reading. May sleep.
 */
static inline void pksm_collapse_begin(struct vm_area_struct *vma,
				       unsigned long start, unsigned long end)
{
	if (static_branch_unlikely(&pksm_count_key) && vma->anon_vma)
		__pksm_collapse_begin(vma, start, end);
}

/**
 * pksm_rmap_begin - the number of mappings of a page is about to change
 * @folio: the page, of order 0
 *
 * Context: The page table lock of the PTE that comes or goes is held. Never sleeps.
 * Return: What pksm_rmap_end() has to be told.
 */
static inline bool pksm_rmap_begin(struct folio *folio)
{
	if (!static_branch_unlikely(&pksm_count_key))
		return false;
	/* Whoever finds that it is not this page sees what has become of it. */
	if (likely(smp_load_acquire(&pksm_turning) != folio))
		return false;
	__pksm_rmap_lock();
	return true;
}

/**
 * pksm_rmap_end - the number of mappings of a page has changed
 * @folio: the page
 * @ptes: by how much
 * @pages: 1 when the page was not mapped before, -1 when it is not any more
 * @locked: what pksm_rmap_begin() said
 *
 * Context: As for pksm_rmap_begin(), and without having released that lock.
 */
static inline void pksm_rmap_end(struct folio *folio, int ptes, int pages,
				 bool locked)
{
	if (static_branch_unlikely(&pksm_count_key) && folio_test_ksm(folio))
		__pksm_count_mapping(ptes, pages);
	if (unlikely(locked))
		__pksm_rmap_unlock();
}

#else /* !CONFIG_PKSM */

static inline struct pksm_rmap_item *
pksm_rmap_item(struct folio *folio, struct vm_area_struct *vma)
{
	return NULL;
}

static inline void pksm_add_new_anon_page(struct page *page,
					  struct pksm_rmap_item *rmap_item,
					  struct anon_vma *anon_vma)
{
}

static inline void pksm_add_new_anon_folio(struct folio *folio,
					   struct vm_area_struct *vma)
{
}

static inline void pksm_add_copied_folio(struct folio *folio,
					 struct vm_area_struct *vma,
					 struct folio *old)
{
}

static inline void pksm_add_swapped_in(struct folio *folio)
{
}

static inline void pksm_add_collapsed_folio(struct folio *folio,
					    struct vm_area_struct *vma)
{
}

static inline void pksm_add_split_off(struct folio *folio, struct page *page)
{
}

static inline void pksm_del_anon_page(struct page *page)
{
}

static inline int pksm_move_error(struct vm_area_struct *vma, struct folio *folio)
{
	return -EBUSY;
}

static inline int pksm_unmerge_page(struct vm_area_struct *vma,
				    unsigned long addr)
{
	return -EBUSY;
}

static inline void pksm_collapse_begin(struct vm_area_struct *vma,
				       unsigned long start, unsigned long end)
{
}

static inline void pksm_page_unmapped(struct folio *folio)
{
}

static inline void pksm_page_written(struct folio *folio)
{
}

static inline void pksm_page_lost(struct folio *folio)
{
}

static inline bool pksm_page_watched(struct page *page)
{
	return false;
}

static inline bool pksm_rmap_begin(struct folio *folio)
{
	return false;
}

static inline void pksm_rmap_end(struct folio *folio, int ptes, int pages,
				 bool locked)
{
}

#endif /* CONFIG_PKSM */
#endif /* _LINUX_PKSM_H */

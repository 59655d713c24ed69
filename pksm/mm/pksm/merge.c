// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: merging one page.
 *
 * The critical section
 * --------------------
 *
 * To absorb a page, each PTE that maps it is replaced under its page table lock
 * in one go: clear the PTE and flush the TLB, so that no CPU can write to the
 * page or take a new reference through this PTE; then see that nobody else has
 * one; then compare; then install the stable page, or put the old PTE back.
 * Nothing has to be rolled back, since nothing was changed before the last test
 * passed.
 *
 * That the reference count equals the number of mappings, with the PTE cleared
 * and flushed, excludes every foreign reference: get_user_pages(), FOLL_PIN,
 * O_DIRECT, vmsplice. The order matters: a lockless get_user_pages_fast() takes
 * its reference first and looks at the PTE again afterwards.
 *
 * A page with several mappings (after fork) is not writable anywhere; writing
 * to it means copying it, because its folio lock is held here and
 * wp_can_reuse_anon_folio() needs that lock. So its contents cannot change once
 * they were compared under the first PTE.
 *
 * Two equal pages of the unstable index
 * -------------------------------------
 *
 * The one found in the index is to become the stable page. It is frozen first:
 * all its PTEs are write-protected in the same way, and with the folio lock held
 * it stays as it is. When the other page turns out equal, under its own PTE
 * lock, the frozen page becomes a KSM page there and then. When it does not, the
 * frozen page is thawed: it gets PG_anon_exclusive back, so that the next write
 * to it costs a fault and no copy.
 *
 * Pages in the swap cache are not merged: their swap entry is freed first, and
 * where that is not possible somebody else still has a PTE for it.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/highmem.h>
#include <linux/ksm.h>
#include <linux/mm_inline.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/swap.h>
#include <linux/swapops.h>
#include <linux/userfaultfd_k.h>

#include <trace/events/pksm.h>

#include "../internal.h"
#include "internal.h"
#include "hold.h"

/**
 * struct pksm_merge - one attempt to absorb a page
 * @kpage: the page to map instead: stable, frozen or the zero page
 * @node: the node of @kpage; NULL for the zero page
 * @domain: the domain of @kpage; of no meaning for the zero page
 * @convert: @kpage is a frozen page, which becomes stable on success
 * @equal: the contents were compared and are equal
 * @differs: they were compared and are not
 * @unfit: a VMA was met whose pages are never merged
 * @nr: number of PTEs replaced
 * @sharer: describes the absorbed page; complete once @nr is not 0
 */
struct pksm_merge {
	struct page *kpage;
	struct pksm_stable_node *node;
	u64 domain;
	bool convert;
	bool equal;
	bool differs;
	bool unfit;
	unsigned int nr;
	struct pksm_sharer *sharer;
};

/**
 * struct pksm_freeze - one attempt to write-protect a page
 * @domain: the domain that the page has to be of
 * @nr: number of PTEs that are write-protected now
 * @failed: one could not be
 * @unfit: a VMA was met whose pages are never merged
 * @strayed: one was met that is not of the domain
 * @exclusive: PG_anon_exclusive was cleared
 */
struct pksm_freeze {
	u64 domain;
	unsigned int nr;
	bool failed;
	bool unfit;
	bool strayed;
	bool exclusive;
};

/* How many PTEs may map one stable page: an rmap walk visits each of them. */
unsigned int pksm_max_page_sharing = 256;

/**
 * pksm_no_foreign_reference - do only mappings and the caller hold references?
 * @folio: the page, of which the caller holds one
 *
 * A mapping that goes between two looks, and takes its reference with it, must not
 * stand for a reference that stays: so mappings are counted before and after. Who maps
 * a page takes the reference first.
 *
 * Context: To be relied on, the PTE of a mapping must have been cleared and flushed,
 * and its page table lock held since. Elsewhere it is a hint, at any time.
 * Return: true when they do.
 */
bool pksm_no_foreign_reference(struct folio *folio)
{
	int mappings = folio_mapcount(folio);
	int references;

	/* Pair with the atomic operations that drop a mapping, and then its reference. */
	smp_rmb();
	references = folio_ref_count(folio);
	/* As above: a mapping whose reference was not counted is not there any more. */
	smp_rmb();
	return mappings + 1 == references && folio_mapcount(folio) == mappings;
}

/*
 * May pages of this VMA be merged at all, or just now? It may not even map the page,
 * but be that of a relative by fork. If so, its mmap_lock is held
 * for reading, and is to be released by pksm_vma_done().
 */
static bool pksm_vma_fit(struct vm_area_struct *vma, bool *unfit)
{
	/* Its owner may be just about to forbid it. */
	if (!mmap_read_trylock(vma->vm_mm))
		return false;
	if (!pksm_vma_mergeable(vma))
		*unfit = true;
	/* exec moves the page tables of its stack without the rmap locks. */
	else if (!vma_is_temporary_stack(vma))
		return true;
	mmap_read_unlock(vma->vm_mm);
	return false;
}

static void pksm_vma_done(struct vm_area_struct *vma)
{
	mmap_read_unlock(vma->vm_mm);
}

/* A PTE that stays what it is but for the page it maps. */
static bool pksm_pte_fit(pte_t pte)
{
	return pte_present(pte) && !pksm_pte_uffd(pte);
}

static void pksm_start_mmu_notifier(struct mmu_notifier_range *range,
				    struct vm_area_struct *vma,
				    unsigned long addr)
{
	mmu_notifier_range_init(range, MMU_NOTIFY_CLEAR, 0, vma->vm_mm, addr,
				addr + PAGE_SIZE);
	mmu_notifier_invalidate_range_start(range);
}

/* === freezing === */

/* Write-protect one PTE; returns false, with everything as it was, if not. */
static bool pksm_freeze_pte(struct page_vma_mapped_walk *pvmw,
			    struct folio *folio, struct pksm_freeze *freeze)
{
	struct vm_area_struct *vma = pvmw->vma;
	struct page *page = folio_page(folio, 0);
	unsigned long addr = pvmw->address;
	bool exclusive = PageAnonExclusive(page);
	pte_t pte;

	if (!pksm_pte_fit(ptep_get(pvmw->pte)))
		return false;

	flush_cache_page(vma, addr, page_to_pfn(page));
	pte = ptep_clear_flush(vma, addr, pvmw->pte);
	pksm_hold_spinning(PKSM_AT_CLEARED, page_to_pfn(page));
	if (!pksm_no_foreign_reference(folio) ||
	    (exclusive && folio_try_share_anon_rmap_pte(folio, page))) {
		set_pte_at(vma->vm_mm, addr, pvmw->pte, pte);
		return false;
	}
	freeze->exclusive |= exclusive;
	if (pte_dirty(pte))
		folio_mark_dirty(folio);
	set_pte_at(vma->vm_mm, addr, pvmw->pte,
		   pte_wrprotect(pte_mkclean(pte)));
	return true;
}

static bool pksm_freeze_one(struct folio *folio, struct vm_area_struct *vma,
			    unsigned long addr, void *arg)
{
	/* The page table lock is taken even where there is no PTE: see mappings.c. */
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, PVMW_SYNC);
	struct pksm_freeze *freeze = arg;
	struct mmu_notifier_range range;
	bool unfit = false;

	if (!pksm_vma_fit(vma, &unfit)) {
		if (!page_vma_mapped_walk(&pvmw))
			return true;
		page_vma_mapped_walk_done(&pvmw);
		freeze->unfit |= unfit;
		freeze->failed = true;
		return false;
	}
	pksm_start_mmu_notifier(&range, vma, addr);
	if (page_vma_mapped_walk(&pvmw)) {
		if (pksm_mm_domain(vma->vm_mm) != freeze->domain)
			freeze->strayed = true;
		if (!freeze->strayed && pksm_freeze_pte(&pvmw, folio, freeze))
			freeze->nr++;
		else
			freeze->failed = true;
		page_vma_mapped_walk_done(&pvmw);
	}
	mmu_notifier_invalidate_range_end(&range);
	pksm_vma_done(vma);
	return !freeze->failed;
}

static bool pksm_thaw_one(struct folio *folio, struct vm_area_struct *vma,
			  unsigned long addr, void *arg)
{
	/* As it was frozen: a PTE that others change just now is there, too. */
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, PVMW_SYNC);
	struct page *page = folio_page(folio, 0);

	if (!page_vma_mapped_walk(&pvmw))
		return true;
	/*
	 * Had it been mapped a second time meanwhile, by fork, it would be
	 * nobody's own any more. The page table lock keeps that from happening
	 * now. A child that has gone again may have left a reference behind,
	 * whose holder must not see what is written from now on.
	 */
	if (pte_present(ptep_get(pvmw.pte)) && folio_mapcount(folio) == 1 &&
	    pksm_no_foreign_reference(folio))
		SetPageAnonExclusive(page);
	page_vma_mapped_walk_done(&pvmw);
	return false;
}

static void pksm_thaw(struct folio *folio, struct pksm_freeze *freeze)
{
	struct rmap_walk_control rwc = {
		.rmap_one = pksm_thaw_one,
		.anon_lock = folio_lock_anon_vma_read,
	};

	if (freeze->exclusive)
		rmap_walk(folio, &rwc);
}

/*
 * Write-protect every PTE of a locked page. As long as the lock is held, the
 * page then cannot change. On failure it is as it was, but that a PTE may have
 * been made read-only: writing to it costs a fault, and no copy.
 */
static bool pksm_freeze(struct folio *folio, struct pksm_freeze *freeze)
{
	struct rmap_walk_control rwc = {
		.rmap_one = pksm_freeze_one,
		.arg = freeze,
		.anon_lock = folio_lock_anon_vma_read,
	};

	rmap_walk(folio, &rwc);
	/*
	 * Every mapping must have been met. Writable PTEs are exclusive, so a
	 * page that is mapped more often than this has none.
	 */
	if (!freeze->failed && freeze->nr &&
	    freeze->nr == folio_mapcount(folio))
		return true;
	pksm_thaw(folio, freeze);
	return false;
}

/* === absorbing === */

/* The frozen page has found its equal: from now on it is a KSM page. */
static void pksm_make_stable(struct page *kpage, struct pksm_stable_node *node)
{
	struct folio *kfolio = page_folio(kpage);

	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(kfolio), kfolio);
	VM_WARN_ON_ONCE_FOLIO(PageAnonExclusive(kpage), kfolio);
	VM_WARN_ON_ONCE_FOLIO(folio_test_swapcache(kfolio), kfolio);

	VM_WARN_ON_ONCE_FOLIO(folio_anon_vma(kfolio) != node->anon_vma,
			      kfolio);

	pksm_turn(kfolio, (struct address_space *)
			  ((unsigned long)node | PKSM_MAPPING_KSM));
	folio_mark_accessed(kfolio);
}

static pte_t pksm_make_pte(struct page *kpage, struct vm_area_struct *vma,
			   pte_t old)
{
	pte_t pte;

	if (is_zero_pfn(page_to_pfn(kpage)))
		/* Dirty says that it is ours: see is_ksm_zero_pte(). */
		pte = pte_mkdirty(pte_mkspecial(pfn_pte(page_to_pfn(kpage),
							vma->vm_page_prot)));
	else
		pte = mk_pte(kpage, vma->vm_page_prot);
	/* pte_mkdirty() may have set the one as well; nobody has written. */
	return pte_soft_dirty(old) ? pte_mksoft_dirty(pte) :
				     pte_clear_soft_dirty(pte);
}

/* Replace one PTE; returns false, with everything as it was, if not. */
static bool pksm_merge_pte(struct page_vma_mapped_walk *pvmw,
			   struct folio *folio, struct pksm_merge *merge)
{
	struct vm_area_struct *vma = pvmw->vma;
	struct mm_struct *mm = vma->vm_mm;
	struct page *page = folio_page(folio, 0);
	struct page *kpage = merge->kpage;
	unsigned long addr = pvmw->address;
	pte_t pte;

	if (!pksm_pte_fit(ptep_get(pvmw->pte)))
		return false;

	flush_cache_page(vma, addr, page_to_pfn(page));
	pte = ptep_clear_flush(vma, addr, pvmw->pte);
	pksm_hold_spinning(PKSM_AT_CLEARED, page_to_pfn(page));
	if (!pksm_no_foreign_reference(folio))
		goto restore;
	if (!merge->equal) {
		if (!pksm_pages_equal(page, kpage)) {
			merge->differs = true;
			goto restore;
		}
		merge->equal = true;
	}
	if (PageAnonExclusive(page) &&
	    folio_try_share_anon_rmap_pte(folio, page))
		goto restore;

	/* Nothing can fail any more. */
	if (merge->convert) {
		pksm_make_stable(kpage, merge->node);
		merge->convert = false;
	}
	if (merge->node) {
		/*
		 * The new PTE is clean, and reclaim would just drop a clean
		 * page: of those who had it before, one may have given it up
		 * by MADV_FREE. Its lock, which is held, keeps that away now.
		 */
		folio_mark_dirty(page_folio(kpage));
		folio_get(page_folio(kpage));
		folio_add_anon_rmap_pte(page_folio(kpage), kpage, vma, addr,
					RMAP_NONE);
	} else {
		ksm_map_zero_page(mm);
		dec_mm_counter(mm, MM_ANONPAGES);
	}
	set_pte_at(mm, addr, pvmw->pte, pksm_make_pte(kpage, vma, pte));
	folio_remove_rmap_pte(folio, page, vma);
	folio_put(folio);
	return true;

restore:
	set_pte_at(mm, addr, pvmw->pte, pte);
	return false;
}

/* The zero page is in every domain. */
static bool pksm_merge_mm_fit(struct mm_struct *mm,
			      const struct pksm_merge *merge)
{
	return !merge->node || pksm_mm_domain(mm) == merge->domain;
}

static bool pksm_merge_one(struct folio *folio, struct vm_area_struct *vma,
			   unsigned long addr, void *arg)
{
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, 0);
	struct pksm_merge *merge = arg;
	struct mmu_notifier_range range;
	bool go_on = true, unfit = false;

	if (!merge->node && mm_forbids_zeropage(vma->vm_mm))
		return true;
	if (!pksm_vma_fit(vma, &unfit)) {
		if (unfit && page_vma_mapped_walk(&pvmw)) {
			page_vma_mapped_walk_done(&pvmw);
			merge->unfit = true;
		}
		return true;
	}
	pksm_start_mmu_notifier(&range, vma, addr);
	if (page_vma_mapped_walk(&pvmw)) {
		if (pksm_merge_mm_fit(vma->vm_mm, merge) &&
		    pksm_merge_pte(&pvmw, folio, merge)) {
			if (!merge->nr++ && merge->sharer) {
				struct anon_vma *anon_vma =
					folio_anon_vma(folio);

				get_anon_vma(anon_vma);
				merge->sharer->anon_vma = anon_vma;
				merge->sharer->index = folio->index;
			}
		} else if (!merge->nr) {
			/* The others would fail in the same way. */
			go_on = false;
		}
		page_vma_mapped_walk_done(&pvmw);
	}
	mmu_notifier_invalidate_range_end(&range);
	pksm_vma_done(vma);
	return go_on;
}

static enum pksm_result pksm_merge_walk(struct folio *folio,
					struct pksm_merge *merge)
{
	struct rmap_walk_control rwc = {
		.rmap_one = pksm_merge_one,
		.arg = merge,
		.anon_lock = folio_lock_anon_vma_read,
	};

	enum pksm_result result;

	rmap_walk(folio, &rwc);
	if (merge->nr && !folio_mapped(folio))
		result = PKSM_MERGED;
	else if (merge->differs)
		result = PKSM_DIFFERS;
	else
		result = merge->unfit && !merge->nr ? PKSM_UNFIT : PKSM_BUSY;
	if (result == PKSM_MERGED)
		pksm_count_event(PKSM_EVENT_MERGED);
	trace_pksm_merge(folio_pfn(folio), page_to_pfn(merge->kpage), result,
			 merge->nr);
	return result;
}

/**
 * pksm_folio_fit - does the state of a page, beyond its PTEs, allow to merge it?
 * @folio: the page, locked
 *
 * Frees its swap entry where it has one that nobody else needs.
 *
 * Return: PKSM_MERGED when it does; PKSM_BUSY when it does not just now;
 * PKSM_UNFIT when it never will.
 */
enum pksm_result pksm_folio_fit(struct folio *folio)
{
	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);

	if (folio_test_large(folio) || !folio_test_anon(folio) ||
	    folio_test_ksm(folio) || folio_test_hwpoison(folio))
		return PKSM_UNFIT;
	/* It enters again when it is swapped in. */
	if (!folio_mapped(folio))
		return folio_test_swapcache(folio) ? PKSM_UNFIT : PKSM_BUSY;
	if (folio_test_writeback(folio))
		return PKSM_BUSY;
	if (folio_test_swapcache(folio) && !folio_free_swap(folio))
		return PKSM_BUSY;
	return PKSM_MERGED;
}

/**
 * pksm_merge_with_zero - give a page of zeroes back
 * @folio: the page, locked, with one reference of the caller
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 * Return: see enum pksm_result.
 */
enum pksm_result pksm_merge_with_zero(struct folio *folio)
{
	struct pksm_merge merge = { .kpage = ZERO_PAGE(0) };

	return pksm_merge_walk(folio, &merge);
}

/**
 * pksm_merge_with_stable - absorb a page into a stable page
 * @folio: the page, locked, with one reference of the caller
 * @kfolio: the stable page, locked
 * @node: its node
 * @domain: the domain of @folio, by whose hash @node was found
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 * Return: see enum pksm_result.
 */
enum pksm_result pksm_merge_with_stable(struct folio *folio,
					struct folio *kfolio,
					struct pksm_stable_node *node,
					u64 domain)
{
	struct pksm_merge merge = {
		.kpage = folio_page(kfolio, 0),
		.node = node,
		.domain = domain,
		.sharer = pksm_sharer_alloc(),
	};
	enum pksm_result result;

	if (!merge.sharer)
		return PKSM_NOMEM;
	result = pksm_merge_walk(folio, &merge);
	if (!merge.nr) {
		pksm_sharer_free(merge.sharer);
		return result;
	}
	hlist_add_head(&merge.sharer->link, &node->sharers);
	node->nr_sharers++;
	pksm_prune_node(node, kfolio);
	return result;
}

/**
 * pksm_merge_with_unstable - absorb a page into a page of the unstable index
 * @folio: the page, locked, with one reference of the caller
 * @kfolio: the other, locked, with one reference of the caller
 * @kitem: its record
 * @key: hash and domain of @folio
 *
 * On success @kfolio is a stable page.
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 * Return: see enum pksm_result.
 */
enum pksm_result pksm_merge_with_unstable(struct folio *folio,
					  struct folio *kfolio,
					  struct pksm_rmap_item *kitem,
					  const struct pksm_key *key)
{
	struct page *kpage = folio_page(kfolio, 0);
	struct pksm_freeze freeze = { .domain = key->domain };
	struct pksm_merge merge = {
		.kpage = kpage,
		.domain = key->domain,
		.convert = true,
	};
	enum pksm_result result;
	u32 old;

	merge.node = pksm_node_alloc();
	merge.sharer = pksm_sharer_alloc();
	if (!merge.node || !merge.sharer) {
		result = PKSM_NOMEM;
		goto out;
	}
	merge.node->pfn = page_to_pfn(kpage);
	merge.node->hash = key->hash;
	INIT_HLIST_HEAD(&merge.node->sharers);
	/* Its last PTE may go while it is frozen, and the anon_vma with it. */
	merge.node->anon_vma = folio_get_anon_vma(kfolio);
	if (!merge.node->anon_vma) {
		result = PKSM_BUSY_PARTNER;
		goto out;
	}

	pksm_turning_begin(kfolio);
	if (!pksm_freeze(kfolio, &freeze)) {
		pksm_turning_end();
		result = freeze.unfit ? PKSM_UNFIT_PARTNER :
			 freeze.strayed ? PKSM_DIFFERS : PKSM_BUSY_PARTNER;
		trace_pksm_merge(folio_pfn(folio), page_to_pfn(kpage), result,
				 0);
		goto out;
	}
	pksm_hold(PKSM_AT_FROZEN, page_to_pfn(kpage));
	result = pksm_merge_walk(folio, &merge);
	pksm_turning_end();
	if (!merge.nr) {
		pksm_thaw(kfolio, &freeze);
		goto out;
	}

	hlist_add_head(&merge.sharer->link, &merge.node->sharers);
	merge.node->nr_sharers = 1;
	pksm_stable_insert(merge.node);
	pksm_unstable_unlink(page_to_pfn(kpage), kitem);
	do {
		old = READ_ONCE(kitem->state);
	} while (!pksm_item_set(kitem, old, PKSM_LIVE | PKSM_STABLE));
	return result;

out:
	if (merge.node) {
		if (merge.node->anon_vma)
			put_anon_vma(merge.node->anon_vma);
		pksm_node_free(merge.node);
	}
	if (merge.sharer)
		pksm_sharer_free(merge.sharer);
	return result;
}

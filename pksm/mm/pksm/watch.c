// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: being told that a page is written to.
 *
 * To watch a page is to write-protect its PTEs. It stays whoever's own it is
 * (PG_anon_exclusive stays), so that the next write is a short fault without a
 * copy; wp_page_reuse() tells the engine of it, and can_change_pte_writable() does
 * not make the PTE writable without such a fault. Who writes to a page by other
 * means than a PTE has a reference on it, and then it is not watched. A large folio
 * is watched as a whole, whether PTEs map it or a PMD, by the record of its first page.
 *
 * That may cost a fault, too much for a page that keeps changing. There a dirty PTE
 * serves as a hint: it was cleaned when the page was last found changed, so that one
 * which is dirty again saves reading the page. A page that looks clean is read, since
 * a write may have come by other means than a PTE.
 */
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>

#include "../internal.h"
#include "internal.h"
#include "hold.h"

/**
 * struct pksm_protect - one attempt to write-protect a page
 * @nr: number of PTEs and PMDs that are write-protected now
 * @failed: one could not be
 */
struct pksm_protect {
	unsigned int nr;
	bool failed;
};

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
static void pksm_watch_pmd(struct page_vma_mapped_walk *pvmw,
			   struct folio *folio, struct pksm_protect *protect)
{
	struct vm_area_struct *vma = pvmw->vma;
	unsigned long addr = pvmw->address;
	pmd_t pmd;

	flush_cache_range(vma, addr, addr + HPAGE_PMD_SIZE);
	/* Not present, and the TLB flushed: until it is set again, nobody writes. */
	pmd = pmdp_invalidate(vma, addr, pvmw->pmd);
	if (!pksm_no_foreign_reference(folio)) {
		protect->failed = true;
	} else {
		pmd = pmd_wrprotect(pmd);
		protect->nr++;
	}
	set_pmd_at(vma->vm_mm, addr, pvmw->pmd, pmd);
}
#else
static void pksm_watch_pmd(struct page_vma_mapped_walk *pvmw,
			   struct folio *folio, struct pksm_protect *protect)
{
	protect->failed = true;
}
#endif

static bool pksm_watch_one(struct folio *folio, struct vm_area_struct *vma,
			   unsigned long addr, void *arg)
{
	/* A PTE that is none just for a moment, under its lock, is waited for. */
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, PVMW_SYNC);
	struct pksm_protect *protect = arg;
	struct mmu_notifier_range range;
	unsigned int unflushed = 0;
	pte_t pte;

	mmu_notifier_range_init(&range, MMU_NOTIFY_PROTECTION_PAGE, 0,
				vma->vm_mm, addr, vma_address_end(&pvmw));
	mmu_notifier_invalidate_range_start(&range);
	/*
	 * Between the PTEs of a large folio and the flush nobody holds their lock: who
	 * sees them read-only must not believe that no CPU can write any more.
	 */
	if (folio_test_large(folio))
		inc_tlb_flush_pending(vma->vm_mm);
	while (page_vma_mapped_walk(&pvmw)) {
		if (!pvmw.pte) {
			pksm_watch_pmd(&pvmw, folio, protect);
			continue;
		}
		pte = ptep_get(pvmw.pte);
		if (!pte_present(pte)) {
			protect->failed = true;
			continue;
		}
		flush_cache_page(vma, pvmw.address, pte_pfn(pte));
		if (folio_test_large(folio)) {
			/* Not a flush for each of them. */
			ptep_set_wrprotect(vma->vm_mm, pvmw.address, pvmw.pte);
			unflushed++;
			continue;
		}
		pte = ptep_clear_flush(vma, pvmw.address, pvmw.pte);
		/* Who holds a reference may write, whatever the PTE says. */
		if (!pksm_no_foreign_reference(folio)) {
			protect->failed = true;
		} else {
			pte = pte_wrprotect(pte);
			protect->nr++;
		}
		set_pte_at(vma->vm_mm, pvmw.address, pvmw.pte, pte);
	}
	if (unflushed) {
		pksm_hold(PKSM_AT_UNFLUSHED, folio_pfn(folio));
		flush_tlb_range(vma, range.start, range.end);
		/* After that, whoever has found a PTE writable has a reference. */
		if (!pksm_no_foreign_reference(folio))
			protect->failed = true;
		protect->nr += unflushed;
	}
	if (folio_test_large(folio))
		dec_tlb_flush_pending(vma->vm_mm);
	mmu_notifier_invalidate_range_end(&range);
	return !protect->failed;
}

/**
 * pksm_watch - write-protect a page, so that the next write is a fault
 * @folio: an anonymous folio, locked, with one reference of the caller; the record of
 *	its first page says already that it is watched
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 * Return: true when nobody can write to it any more without a fault; false when
 * somebody may.
 */
bool pksm_watch(struct folio *folio)
{
	struct pksm_protect protect = { };
	struct rmap_walk_control rwc = {
		.rmap_one = pksm_watch_one,
		.arg = &protect,
		.anon_lock = folio_lock_anon_vma_read,
	};

	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);
	VM_WARN_ON_ONCE_FOLIO(folio_test_ksm(folio), folio);
	rmap_walk(folio, &rwc);
	/* Writable PTEs are exclusive: one that is mapped more often has none. */
	return !protect.failed && protect.nr &&
	       protect.nr == folio_mapcount(folio);
}

static bool pksm_clean_one(struct folio *folio, struct vm_area_struct *vma,
			   unsigned long addr, void *arg)
{
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, 0);
	bool *dirty = arg;
	pte_t pte;

	while (page_vma_mapped_walk(&pvmw)) {
		pte = ptep_get(pvmw.pte);
		if (!pte_present(pte) || !pte_dirty(pte))
			continue;
		*dirty = true;
		/* Reclaim must not believe that it may drop the page. */
		folio_mark_dirty(folio);
		/*
		 * With the TLB flushed: reclaim takes a clean PTE as proof that no
		 * CPU can write without walking the page table first.
		 */
		flush_cache_page(vma, pvmw.address, pte_pfn(pte));
		pte = ptep_clear_flush(vma, pvmw.address, pvmw.pte);
		set_pte_at(vma->vm_mm, pvmw.address, pvmw.pte, pte_mkclean(pte));
	}
	return true;
}

/**
 * pksm_clean - was a page written to since this was called last?
 * @folio: an anonymous page of order 0, locked
 *
 * Context: pksmd, pksm_mutex held. May sleep.
 * Return: true when it was; false when it was not, or when that cannot be told.
 */
bool pksm_clean(struct folio *folio)
{
	bool dirty = false;
	struct rmap_walk_control rwc = {
		.rmap_one = pksm_clean_one,
		.arg = &dirty,
		.anon_lock = folio_lock_anon_vma_read,
	};

	VM_WARN_ON_ONCE_FOLIO(!folio_test_locked(folio), folio);
	/* After MADV_FREE, that a page is clean says that it may be dropped. */
	if (folio_test_swapbacked(folio))
		rmap_walk(folio, &rwc);
	return dirty;
}

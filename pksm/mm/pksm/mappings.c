// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: how many PTEs map merged pages.
 *
 * What merging saves is a page for each PTE of a merged page but the first.
 * Neither fork nor exit asks the engine, and everybody may read the counter, in
 * /proc/meminfo for one: it must not be summed up over all merged pages, under a
 * lock that is held while pages are merged. So it is rmap that counts, where it
 * changes the number of mappings of a page anyway; each CPU for itself.
 *
 * rmap only knows whether a page is a KSM page when it comes by. The one moment
 * that is difficult is therefore that in which a page becomes one, while others
 * may map it once more (fork) or once less (exit): each of these is either among
 * the mappings that the page has at that moment, or is counted by rmap after it.
 *
 * There is one such page at a time, since pksm_mutex is held, and it is named in
 * pksm_turning before its PTEs are write-protected. From then on whoever changes
 * the number of its mappings, and sees that, takes pksm_turning_lock for it; and
 * the page becomes a KSM page, and is counted, under that lock. Those who did not
 * see it hold the page table lock of a PTE of the page since before. Freezing the
 * page takes each of these locks, and so waits for them: that is what PVMW_SYNC
 * is for there.
 *
 * A KSM page stays one as long as it is mapped.
 */
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/spinlock.h>

#include "internal.h"

/* On from the first start: before that there are no merged pages. */
DEFINE_STATIC_KEY_FALSE(pksm_count_key);

/* The page that may be about to become a KSM page; see above. */
struct folio *pksm_turning;
static DEFINE_SPINLOCK(pksm_turning_lock);

/**
 * struct pksm_mappings - what rmap counts; single CPUs may be negative
 * @ptes: PTEs that map a KSM page
 * @pages: KSM pages that at least one PTE maps
 */
struct pksm_mappings {
	long ptes;
	long pages;
};

static DEFINE_PER_CPU(struct pksm_mappings, pksm_mappings);

/**
 * __pksm_rmap_lock - see pksm_rmap_begin()
 *
 * Context: Page table lock held.
 */
void __pksm_rmap_lock(void)
	__acquires(&pksm_turning_lock)
{
	spin_lock(&pksm_turning_lock);
}

/**
 * __pksm_rmap_unlock - see pksm_rmap_end()
 */
void __pksm_rmap_unlock(void)
	__releases(&pksm_turning_lock)
{
	spin_unlock(&pksm_turning_lock);
}

/**
 * __pksm_count_mapping - count that a KSM page is mapped more or less often
 * @ptes: the number of PTEs that came; negative for those that went
 * @pages: 1 when the page was not mapped before, -1 when it is not any more
 *
 * Context: Any. Takes no lock and never sleeps.
 */
void __pksm_count_mapping(int ptes, int pages)
{
	this_cpu_add(pksm_mappings.ptes, ptes);
	if (pages)
		this_cpu_add(pksm_mappings.pages, pages);
}

/**
 * pksm_turning_begin - a page may be about to become a KSM page
 * @folio: the page, locked; its PTEs are about to be frozen
 *
 * Context: Process context, pksm_mutex held.
 */
void pksm_turning_begin(struct folio *folio)
{
	lockdep_assert_held(&pksm_mutex);
	/* Pairs with that of pksm_turning_end(). */
	smp_store_release(&pksm_turning, folio);
}

/**
 * pksm_turn - make a page a KSM page
 * @folio: the page of pksm_turning_begin(), frozen since
 * @mapping: what folio->mapping becomes
 *
 * Context: Process context, a page table lock may be held.
 */
void pksm_turn(struct folio *folio, struct address_space *mapping)
{
	int ptes;

	VM_WARN_ON_ONCE_FOLIO(pksm_turning != folio, folio);
	spin_lock(&pksm_turning_lock);
	WRITE_ONCE(folio->mapping, mapping);
	ptes = folio_mapcount(folio);
	__pksm_count_mapping(ptes, ptes ? 1 : 0);
	spin_unlock(&pksm_turning_lock);
}

/**
 * pksm_turning_end - the page has become a KSM page, or will not
 *
 * Context: Process context, pksm_mutex held.
 */
void pksm_turning_end(void)
{
	lockdep_assert_held(&pksm_mutex);
	/* Whoever sees that it is over sees what has become of the page. */
	smp_store_release(&pksm_turning, NULL);
}

/**
 * pksm_nr_sharing - how many PTEs map a page that others map as well
 *
 * Exact: it is the sum over all merged pages of their PTEs, less one for each.
 * Mappings that come or go while the CPUs are summed up may be missed or counted
 * twice, but not for longer.
 *
 * Context: Any. Takes no lock and never sleeps.
 * Return: The number of PTEs.
 */
unsigned long pksm_nr_sharing(void)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu) {
		const struct pksm_mappings *m = per_cpu_ptr(&pksm_mappings, cpu);

		sum += READ_ONCE(m->ptes) - READ_ONCE(m->pages);
	}
	return max(sum, 0L);
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: /sys/kernel/debug/pksm_bench, for those who measure the engine.
 *
 * floor	what the hardware takes for the steps that merging a page cannot do
 *		without. Writing a number of pages measures:
 *
 *			hash	one hash of a cold page, as the engine has it
 *			xxh64	one hash of a cold page by lib/xxhash, as KSM has it
 *			memcmp	one comparison of two equal cold pages
 *			follow	one hash of a page that lies behind the last one
 *			pte	one PTE cleared, flushed and set again
 *
 *		Reading it gives the last results, one step a line: its name; how
 *		often it was done for one sample; how many samples there are; and
 *		of the times of a sample in nanoseconds the shortest, the lower
 *		quartile, the median, the upper quartile and the longest.
 * memory	how much memory the engine has taken for good, by what it is for
 *
 * Pages are cold when there are more of them than the caches of the machine hold, and
 * when no prefetcher knows which comes next: they are visited in random order. pksmd
 * visits pages in the order in which they were born, where "follow" is the least. The
 * hash that is not the engine's is there so that a slower engine does not make the floor
 * higher by as much. A sample that was interrupted is long, and does not move the median.
 */
#define pr_fmt(fmt) "pksm: " fmt

#include <linux/bits.h>
#include <linux/debugfs.h>
#include <linux/err.h>
#include <linux/highmem.h>
#include <linux/init.h>
#include <linux/memblock.h>
#include <linux/mman.h>
#include <linux/mutex.h>
#include <linux/page_ext.h>
#include <linux/random.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/sort.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/xxhash.h>

#include "internal.h"

/* How often a step is done for one sample: long against reading the clock. */
#define PKSM_BENCH_STEPS	64UL

#define PKSM_BENCH_MIN_PAGES	(4 * PKSM_BENCH_STEPS)
#define PKSM_BENCH_MAX_PAGES	BIT(20)

/* More would only be more host mappings on User-Mode Linux. */
#define PKSM_BENCH_MAX_PTES	16384UL

/* All but the last one are done with a number of pages. */
enum pksm_bench_step {
	PKSM_BENCH_HASH,
	PKSM_BENCH_XXH64,
	PKSM_BENCH_MEMCMP,
	PKSM_BENCH_FOLLOW,
	PKSM_BENCH_PTE,
	NR_PKSM_BENCH_STEPS,
};

static const char *const pksm_bench_names[NR_PKSM_BENCH_STEPS] = {
	[PKSM_BENCH_HASH]	= "hash",
	[PKSM_BENCH_XXH64]	= "xxh64",
	[PKSM_BENCH_MEMCMP]	= "memcmp",
	[PKSM_BENCH_FOLLOW]	= "follow",
	[PKSM_BENCH_PTE]	= "pte",
};

/**
 * struct pksm_bench - one measurement
 * @pages: all pages, of the same contents
 * @order: their numbers, shuffled
 * @nr: how many there are
 * @samples: the times of one step, in nanoseconds
 * @nr_samples: how many there are
 */
struct pksm_bench {
	struct page **pages;
	u32 *order;
	unsigned long nr;
	u64 *samples;
	unsigned long nr_samples;
};

/**
 * struct pksm_bench_result - what is shown of the samples of one step
 * @nr: how many there were
 * @quartiles: from the shortest to the longest, in nanoseconds
 */
struct pksm_bench_result {
	unsigned long nr;
	u64 quartiles[5];
};

/* One measurement at a time; guards the results. */
static DEFINE_MUTEX(pksm_bench_mutex);
static struct pksm_bench_result pksm_bench_results[NR_PKSM_BENCH_STEPS];

/* Keeps the compiler from leaving out what nobody looks at. */
static u64 pksm_bench_sink;

static void pksm_bench_free(struct pksm_bench *bench)
{
	unsigned long i;

	for (i = 0; bench->pages && i < bench->nr && bench->pages[i]; i++)
		__free_page(bench->pages[i]);
	vfree(bench->pages);
	vfree(bench->order);
	vfree(bench->samples);
}

static int pksm_bench_alloc(struct pksm_bench *bench, unsigned long nr_pages)
{
	unsigned long i;

	bench->nr = nr_pages;
	bench->pages = vzalloc(array_size(nr_pages, sizeof(*bench->pages)));
	bench->order = vmalloc(array_size(nr_pages, sizeof(*bench->order)));
	bench->samples = vmalloc(array_size(nr_pages / PKSM_BENCH_STEPS + 1,
					    sizeof(*bench->samples)));
	if (!bench->pages || !bench->order || !bench->samples)
		return -ENOMEM;
	for (i = 0; i < nr_pages; i++) {
		struct page *page = alloc_page(PKSM_GFP);
		u32 at = get_random_u32_below(i + 1);

		if (!page)
			return -ENOMEM;
		bench->pages[i] = page;
		bench->order[i] = bench->order[at];
		bench->order[at] = i;
		if (i)
			copy_highpage(page, bench->pages[0]);
		else
			get_random_bytes(page_address(page), PAGE_SIZE);
		cond_resched();
	}
	return 0;
}

static int pksm_bench_compare(const void *a, const void *b)
{
	u64 one = *(const u64 *)a, other = *(const u64 *)b;

	return one < other ? -1 : one > other;
}

static void pksm_bench_done(struct pksm_bench *bench, enum pksm_bench_step step)
{
	struct pksm_bench_result *result = &pksm_bench_results[step];
	int i;

	sort(bench->samples, bench->nr_samples, sizeof(*bench->samples),
	     pksm_bench_compare, NULL);
	result->nr = bench->nr_samples;
	for (i = 0; i < ARRAY_SIZE(result->quartiles); i++)
		result->quartiles[i] =
			bench->samples[(bench->nr_samples - 1) * i / 4];
	bench->nr_samples = 0;
}

static u64 pksm_bench_xxh64(struct page *page)
{
	const void *addr = kmap_local_page(page);
	u64 hash = xxh64(addr, PAGE_SIZE, 0);

	kunmap_local(addr);
	return hash;
}

/* What is done of @step with number @i of the pages. */
static u64 pksm_bench_one(struct pksm_bench *bench, enum pksm_bench_step step,
			  unsigned long i)
{
	unsigned long half = bench->nr / 2;
	struct page **pages = bench->pages;
	u32 *order = bench->order;

	switch (step) {
	case PKSM_BENCH_HASH:
		return pksm_hash_page(pages[order[i]]);
	case PKSM_BENCH_XXH64:
		return pksm_bench_xxh64(pages[order[i]]);
	case PKSM_BENCH_MEMCMP:
		return pksm_pages_equal(pages[order[i]],
					pages[order[half + i]]);
	default:
		return pksm_hash_page(pages[i]);
	}
}

/* Half of the pages are enough, and a comparison takes two. */
static int pksm_bench_pages(struct pksm_bench *bench,
			    enum pksm_bench_step step)
{
	unsigned long i = 0, end;
	u64 sum = 0;

	while (i + PKSM_BENCH_STEPS <= bench->nr / 2) {
		u64 start;

		if (mutex_lock_interruptible(&pksm_mutex))
			return -EINTR;
		start = ktime_get_ns();
		for (end = i + PKSM_BENCH_STEPS; i < end; i++)
			sum += pksm_bench_one(bench, step, i);
		bench->samples[bench->nr_samples++] = ktime_get_ns() - start;
		mutex_unlock(&pksm_mutex);
		cond_resched();
	}
	WRITE_ONCE(pksm_bench_sink, sum);
	pksm_bench_done(bench, step);
	return 0;
}

/* Returns false where there is nothing to be measured. */
static bool pksm_bench_touch_pte(struct vm_area_struct *vma, unsigned long addr)
{
	spinlock_t *ptl;	/* guards the PTE */
	pte_t *ptep = get_locked_pte(vma->vm_mm, addr, &ptl);
	bool present;

	if (!ptep)
		return false;
	present = pte_present(ptep_get(ptep));
	if (present)
		set_pte_at(vma->vm_mm, addr, ptep,
			   ptep_clear_flush(vma, addr, ptep));
	pte_unmap_unlock(ptep, ptl);
	return present;
}

static int pksm_bench_ptes(struct pksm_bench *bench, unsigned long start,
			   unsigned long end)
{
	const unsigned long step = PKSM_BENCH_STEPS * PAGE_SIZE;
	struct vm_area_struct *vma = find_vma(current->mm, start);
	unsigned long addr = start, last;

	if (!vma || vma->vm_start > start || vma->vm_end < end)
		return -EFAULT;
	while (addr + step <= end) {
		u64 begin = ktime_get_ns();

		for (last = addr + step; addr < last; addr += PAGE_SIZE) {
			if (!pksm_bench_touch_pte(vma, addr))
				return -EFAULT;
		}
		bench->samples[bench->nr_samples++] = ktime_get_ns() - begin;
		cond_resched();
	}
	pksm_bench_done(bench, PKSM_BENCH_PTE);
	return 0;
}

/* In the address space of whoever writes to the file. */
static int pksm_bench_pte(struct pksm_bench *bench)
{
	unsigned long bytes = min(bench->nr / 2, PKSM_BENCH_MAX_PTES) << PAGE_SHIFT;
	struct vm_area_struct *vma;
	unsigned long start;
	int err;

	if (!current->mm)
		return -ESRCH;
	start = vm_mmap(NULL, 0, bytes, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, 0);
	if (IS_ERR_VALUE(start))
		return start;
	/* A huge page has no PTEs. */
	mmap_write_lock(current->mm);
	vma = find_vma(current->mm, start);
	if (vma)
		vm_flags_set(vma, VM_NOHUGEPAGE);
	mmap_write_unlock(current->mm);
	mm_populate(start, bytes);
	mmap_read_lock(current->mm);
	err = pksm_bench_ptes(bench, start, start + bytes);
	mmap_read_unlock(current->mm);
	vm_munmap(start, bytes);
	return err;
}

static int pksm_bench_floor(unsigned long nr_pages)
{
	struct pksm_bench bench = { };
	enum pksm_bench_step step;
	int err;

	if (!pksm_nr_buckets())
		return -ENODATA;	/* The hash has no key yet. */
	err = pksm_bench_alloc(&bench, nr_pages);
	for (step = 0; !err && step < PKSM_BENCH_PTE; step++)
		err = pksm_bench_pages(&bench, step);
	if (!err)
		err = pksm_bench_pte(&bench);
	pksm_bench_free(&bench);
	return err;
}

static ssize_t floor_write(struct file *file, const char __user *from,
			   size_t count, loff_t *pos)
{
	unsigned long nr_pages;
	int err = kstrtoul_from_user(from, count, 0, &nr_pages);

	if (err)
		return err;
	if (nr_pages < PKSM_BENCH_MIN_PAGES || nr_pages > PKSM_BENCH_MAX_PAGES)
		return -EINVAL;
	if (mutex_lock_interruptible(&pksm_bench_mutex))
		return -EINTR;
	err = pksm_bench_floor(nr_pages);
	mutex_unlock(&pksm_bench_mutex);
	return err ?: count;
}

static int floor_show(struct seq_file *m, void *unused)
{
	int step, i;

	if (mutex_lock_interruptible(&pksm_bench_mutex))
		return -EINTR;
	for (step = 0; step < NR_PKSM_BENCH_STEPS; step++) {
		struct pksm_bench_result *result = &pksm_bench_results[step];

		seq_printf(m, "%s %lu %lu", pksm_bench_names[step],
			   PKSM_BENCH_STEPS, result->nr);
		for (i = 0; i < ARRAY_SIZE(result->quartiles); i++)
			seq_printf(m, " %llu", result->quartiles[i]);
		seq_putc(m, '\n');
	}
	mutex_unlock(&pksm_bench_mutex);
	return 0;
}

static int floor_open(struct inode *inode, struct file *file)
{
	return single_open(file, floor_show, NULL);
}

static const struct file_operations pksm_bench_floor_fops = {
	.owner		= THIS_MODULE,
	.open		= floor_open,
	.read		= seq_read,
	.write		= floor_write,
	.llseek		= seq_lseek,
	.release	= single_release,
};

static int memory_show(struct seq_file *m, void *unused)
{
	if (mutex_lock_interruptible(&pksm_mutex))
		return -EINTR;
	seq_printf(m, "pages %lu\n", totalram_pages());
	seq_printf(m, "spanned_pages %lu\n", max_pfn);
	/* With what other users of page_ext have in it. */
	seq_printf(m, "page_ext_bytes_per_page %lu\n", page_ext_size);
	seq_printf(m, "item_bytes %zu\n", sizeof(struct pksm_rmap_item));
	seq_printf(m, "index_bytes %lu\n", pksm_index_bytes());
	seq_printf(m, "node_bytes %zu\n", sizeof(struct pksm_stable_node));
	seq_printf(m, "sharer_bytes %zu\n", sizeof(struct pksm_sharer));
	mutex_unlock(&pksm_mutex);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(memory);

static int __init pksm_bench_init(void)
{
	struct dentry *dir = debugfs_create_dir("pksm_bench", NULL);

	debugfs_create_file("floor", 0600, dir, NULL, &pksm_bench_floor_fops);
	debugfs_create_file("memory", 0400, dir, NULL, &memory_fops);
	return 0;
}
late_initcall(pksm_bench_init);

// SPDX-License-Identifier: GPL-2.0-only
/* The page map, read independently of the engine's counters; see common.h. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../common.h"

#define PM_SOFT_DIRTY	(1ULL << 55)
#define PM_UFFD_WP	(1ULL << 57)
#define PM_PRESENT	(1ULL << 63)
#define PM_SWAP		(1ULL << 62)
#define PM_PFN_MASK	((1ULL << 55) - 1)
/*
 * Of what is no present page: its kind. The last of all is a mark that userfaultfd
 * leaves where there is nothing; nobody counts that as memory.
 */
#define PM_KIND_MASK	31
#define PM_KIND_MARK	31
#define KPF_ANON	(1ULL << 12)
#define KPF_COMPOUND	(3ULL << 15)	/* head or tail */
#define KPF_KSM		(1ULL << 21)
#define KPF_ZERO_PAGE	(1ULL << 24)

static int read_u64(int fd, uint64_t index, uint64_t *value)
{
	ssize_t n = pread(fd, value, 8, (off_t)(index * 8));

	if (n < 0)
		return -errno;
	return n == 8 ? 0 : -ENODATA;
}

static void pageset_add(struct pageset *s, uint64_t pfn)
{
	size_t room = s->room ? s->room * 2 : 512;

	if (s->n == s->room) {
		uint64_t *more = untracked_alloc(room * sizeof(*more));

		if (s->room) {
			memcpy(more, s->pfn, s->n * sizeof(*more));
			munmap(s->pfn, s->room * sizeof(*more));
		}
		s->pfn = more;
		s->room = room;
	}
	s->pfn[s->n++] = pfn;
}

static int pagestat_entry(int flags_fd, uint64_t entry, struct pagestat *st)
{
	uint64_t pfn = entry & PM_PFN_MASK, flags;
	int err;

	st->pages++;
	st->soft_dirty += !!(entry & PM_SOFT_DIRTY);
	st->uffd_wp += !!(entry & PM_UFFD_WP);
	if ((entry & PM_SWAP) && (entry & PM_KIND_MASK) != PM_KIND_MARK)
		st->swapped++;
	if (!(entry & PM_PRESENT))
		return 0;
	st->present++;
	err = read_u64(flags_fd, pfn, &flags);
	if (err)
		return err;
	if (flags & KPF_ZERO_PAGE) {
		st->zero++;
	} else if (flags & KPF_ANON) {
		pageset_add(&st->pfns, pfn);
		if (flags & KPF_KSM) {
			st->merged_ptes++;
			pageset_add(&st->merged, pfn);
		} else {
			st->anon++;
			st->large += !!(flags & KPF_COMPOUND);
		}
	} else {
		st->file++;
	}
	return 0;
}

/* The merged PTEs of the VMAs that overlap [@start, @end). */
static int smaps_merged(pid_t pid, uint64_t start, uint64_t end, uint64_t *ptes)
{
	unsigned long long first, last, kib;
	bool inside = false;
	char path[64], line[512];
	FILE *smaps;

	snprintf(path, sizeof(path), "/proc/%d/smaps", pid);
	smaps = fopen(path, "re");
	if (!smaps)
		return -errno;
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%llx-%llx ", &first, &last) == 2)
			inside = first < end && last > start;
		else if (inside && sscanf(line, "KSM: %llu kB", &kib) == 1)
			*ptes += kib * 1024 / PAGE_BYTES;
	}
	fclose(smaps);
	return 0;
}

int pagestat_add(pid_t pid, uint64_t start, uint64_t end, struct pagestat *st)
{
	uint64_t page = start / PAGE_BYTES, last = end / PAGE_BYTES;
	static int flags_fd = -1;
	uint64_t chunk[512];
	char path[64];
	int err = 0, fd;

	if (!pid)
		pid = getpid();
	if (flags_fd < 0)
		flags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (flags_fd < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	while (page < last && !err) {
		size_t i, want = last - page;
		ssize_t n;

		if (want > ARRAY_SIZE(chunk))
			want = ARRAY_SIZE(chunk);
		n = pread(fd, chunk, want * 8, (off_t)(page * 8));
		if (n <= 0) {
			err = n < 0 ? -errno : 0;
			break;
		}
		for (i = 0; i < (size_t)n / 8 && !err; i++)
			err = pagestat_entry(flags_fd, chunk[i], st);
		page += (size_t)n / 8;
	}
	close(fd);
	return err ? err : smaps_merged(pid, start, end, &st->smaps_ptes);
}

static int u64_cmp(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* How many different pages are in a set. */
static uint64_t pageset_distinct(struct pageset *s)
{
	uint64_t distinct = 0;
	size_t i;

	if (s->n)
		sort_in_place(s->pfn, s->n, sizeof(*s->pfn), u64_cmp);
	for (i = 0; i < s->n; i++)
		distinct += !i || s->pfn[i] != s->pfn[i - 1];
	return distinct;
}

void pagestat_finish(struct pagestat *st)
{
	struct pageset *s = &st->pfns;
	uint64_t count;
	size_t i, j;
	int fd;

	st->merged_pages = pageset_distinct(&st->merged);
	st->pfn_sum = 0;
	st->mapcount_wrong = 0;
	fd = open("/proc/kpagecount", O_RDONLY | O_CLOEXEC);
	if (s->n)
		sort_in_place(s->pfn, s->n, sizeof(*s->pfn), u64_cmp);
	for (i = 0; i < s->n; i = j) {
		for (j = i + 1; j < s->n && s->pfn[j] == s->pfn[i]; j++)
			;
		if (j - i > 1)
			st->pfn_sum += s->pfn[i];
		count = 0;
		if (fd >= 0 && !read_u64(fd, s->pfn[i], &count) && count == j - i)
			continue;
		if (!st->mapcount_wrong++) {
			st->wrong_pfn = s->pfn[i];
			st->wrong_count = count;
			st->wrong_ptes = j - i;
		}
	}
	if (fd >= 0)
		close(fd);
}

static void pageset_free(struct pageset *s)
{
	if (s->room)
		munmap(s->pfn, s->room * sizeof(*s->pfn));
}

/* Returns whether there is one that is @pfn, or any if that is 0; which is @found then. */
static bool pfn_look(pid_t pid, uint64_t start, uint64_t end, uint64_t pfn, uint64_t *found)
{
	struct pagestat st = { 0 };
	bool there = false;
	size_t i;

	if (!pagestat_add(pid, start, end, &st)) {
		for (i = 0; i < st.pfns.n && !there; i++) {
			there = !pfn || st.pfns.pfn[i] == pfn;
			*found = st.pfns.pfn[i];
		}
	}
	pagestat_free(&st);
	return there;
}

bool pfn_first(pid_t pid, uint64_t start, uint64_t end, uint64_t *pfn)
{
	return pfn_look(pid, start, end, 0, pfn);
}

bool pfn_among(pid_t pid, uint64_t start, uint64_t end, uint64_t pfn)
{
	return pfn_look(pid, start, end, pfn, &pfn);
}

void pagestat_free(struct pagestat *st)
{
	pageset_free(&st->pfns);
	pageset_free(&st->merged);
	memset(st, 0, sizeof(*st));
}

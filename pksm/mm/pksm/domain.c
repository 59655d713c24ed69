// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: whose pages may be merged with whose.
 *
 * That a page is merged can be told by the one who has it: its first write takes
 * longer, and /proc/PID/pagemap says so outright. So somebody who writes a guess
 * into a page, and waits, may learn what is in a page of somebody else. Pages are
 * therefore merged within a domain only: by default that of a user.
 *
 * A domain is a 64-bit number that is mixed into the hash of a page. Pages of
 * different domains then do not meet in the indexes; and before merge.c replaces or
 * freezes a PTE it sees that its address space belongs to the domain. The page of
 * zeroes is in every domain: whether a page may be given back for it depends on
 * nothing but the page itself.
 *
 * A page that fork has left to several domains belongs to none, and is not merged
 * as long as it is so. What fork shares stays shared until it is written to.
 *
 * In the same way the nodes of a machine can be kept apart, for the sake of speed:
 * then that of a page is mixed into its hash as well.
 */
#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/cgroup.h>
#include <linux/cred.h>
#include <linux/ksm.h>
#include <linux/memcontrol.h>
#include <linux/sched.h>
#include <linux/sched/coredump.h>
#include <linux/uidgid.h>

#include "internal.h"

/* Tell address spaces, and nodes, from users, whose numbers have 32 bits. */
#define PKSM_PROCESS_ID		BIT_ULL(63)
#define PKSM_NODE_ID		BIT_ULL(62)

enum pksm_domain_kind pksm_domain_kind = PKSM_DOMAIN_USER;

/* Are pages of different nodes merged? As merge_across_nodes of KSM. */
bool pksm_across_nodes = true;

/**
 * pksm_new_mm_id - a number for a new address space
 *
 * Context: Any.
 * Return: A number that no other address space has had since boot.
 */
u64 pksm_new_mm_id(void)
{
	static atomic64_t last;

	return atomic64_inc_return(&last);
}

/* A bijection on 64 bits that leaves 0 alone (the finalizer of MurmurHash3). */
static u64 pksm_mix(u64 id)
{
	id ^= id >> 33;
	id *= 0xff51afd7ed558ccdULL;
	id ^= id >> 33;
	id *= 0xc4ceb9fe1a85ec53ULL;
	return id ^ id >> 33;
}

/**
 * pksm_nid_key - what the node of a page adds to its hash
 * @page: the page
 *
 * Context: Any.
 * Return: 0 where pages of different nodes are merged.
 */
u64 pksm_nid_key(const struct page *page)
{
	if (!IS_ENABLED(CONFIG_NUMA) || READ_ONCE(pksm_across_nodes))
		return 0;
	return pksm_mix(page_to_nid(page) | PKSM_NODE_ID);
}

/**
 * pksm_kept_apart - are two pages of nodes whose pages are not merged?
 * @one: a page
 * @other: another one
 *
 * Hashes may be alike by chance, and a merged page may have been migrated.
 *
 * Context: Any.
 * Return: true when they are.
 */
bool pksm_kept_apart(const struct folio *one, const struct folio *other)
{
	return IS_ENABLED(CONFIG_NUMA) && !READ_ONCE(pksm_across_nodes) &&
	       folio_nid(one) != folio_nid(other);
}

/*
 * May every process of the same user and group read this address space, as ptrace()
 * sees it? Not after setuid() without exec, nor where the ids are not all the same:
 * its memory may hold what it came by as somebody else. Capabilities and security
 * modules are not asked.
 */
static bool pksm_is_users_own(struct mm_struct *mm, struct task_struct *owner,
			      const struct cred *cred)
{
	if (!uid_eq(cred->uid, cred->euid) || !uid_eq(cred->uid, cred->suid) ||
	    !gid_eq(cred->gid, cred->egid) || !gid_eq(cred->gid, cred->sgid))
		return false;
	/* Pairs with the one in commit_creds(), as for ptrace(). */
	smp_rmb();
	return pksm_readable(mm, owner);
}

static u64 pksm_user_domain(struct mm_struct *mm, struct task_struct *owner)
{
	const struct cred *cred = rcu_dereference(owner->real_cred);

	/* It goes when a fork fails. */
	if (!cred)
		return PKSM_NO_DOMAIN;
	if (!pksm_is_users_own(mm, owner, cred))
		return pksm_mix(mm->pksm_id | PKSM_PROCESS_ID);
	/* ptrace() wants both to be the same. */
	return pksm_mix(pksm_mix(__kuid_val(cred->uid) + 1ULL) ^
			__kgid_val(cred->gid));
}

static u64 pksm_owner_domain(struct mm_struct *mm, struct task_struct *owner)
{
	/* A task that is being forked is not in its own cgroup yet. */
	if (READ_ONCE(owner->__state) & TASK_NEW)
		return PKSM_NO_DOMAIN;
	switch (READ_ONCE(pksm_domain_kind)) {
	case PKSM_DOMAIN_USER:
		return pksm_user_domain(mm, owner);
	case PKSM_DOMAIN_MEMCG:
		return pksm_mix(mem_cgroup_from_task(owner)->css.serial_nr + 1);
	default:
		return pksm_mix(mm->pksm_id | PKSM_PROCESS_ID);
	}
}

/**
 * pksm_mm_domain - the domain of an address space
 * @mm: the address space
 *
 * Context: Any. Takes no lock and never sleeps.
 * Return: What is mixed into the hashes of its pages; PKSM_NO_DOMAIN when there
 * is nobody to tell who it belongs to: while it is forked, or going away.
 */
u64 pksm_mm_domain(struct mm_struct *mm)
{
	struct task_struct *owner;
	u64 domain = PKSM_NO_DOMAIN;

	if (READ_ONCE(pksm_domain_kind) == PKSM_DOMAIN_GLOBAL)
		return 0;
	rcu_read_lock();
	owner = rcu_dereference(mm->owner);
	if (owner)
		domain = pksm_owner_domain(mm, owner);
	rcu_read_unlock();
	return domain;
}

/**
 * struct pksm_survey - what the mappings of a page say of it
 * @domain: that of the mappings so far
 * @found: there is one
 * @fit: there is one whose VMA may be merged
 * @unsure: there is one whose VMA is just being changed
 */
struct pksm_survey {
	u64 domain;
	bool found;
	bool fit;
	bool unsure;
};

/* Flags that forbid merging may be about to change: madvise() sets them last. */
static void pksm_survey_vma(struct vm_area_struct *vma,
			    struct pksm_survey *survey)
{
	if (pksm_vma_mergeable(vma)) {
		survey->fit = true;
	} else if (mmap_read_trylock(vma->vm_mm)) {
		survey->fit |= pksm_vma_mergeable(vma);
		mmap_read_unlock(vma->vm_mm);
	} else {
		survey->unsure = true;
	}
}

static bool pksm_survey_one(struct folio *folio, struct vm_area_struct *vma,
			    unsigned long addr, void *arg)
{
	/* A PTE that is none just for a moment, under its lock, is waited for. */
	DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, PVMW_SYNC);
	struct pksm_survey *survey = arg;
	u64 domain;

	/* The area of a relative by fork may be found, and not have the page. */
	if (!page_vma_mapped_walk(&pvmw))
		return true;
	page_vma_mapped_walk_done(&pvmw);
	domain = pksm_mm_domain(vma->vm_mm);
	if (survey->found && survey->domain != domain)
		domain = PKSM_NO_DOMAIN;
	survey->found = true;
	survey->domain = domain;
	pksm_survey_vma(vma, survey);
	return domain != PKSM_NO_DOMAIN || !survey->fit;
}

/**
 * pksm_folio_survey - may a page be merged, and with whose pages?
 * @folio: an anonymous page, locked
 * @domain: where to write the domain of all that map it; PKSM_NO_DOMAIN when they
 *	are of several, or one of them is of none
 *
 * It is a first look, to save reading pages for nothing: a VMA may change before
 * its PTE is.
 *
 * Context: Process context. May sleep.
 * Return: PKSM_MERGED when it may; PKSM_UNFIT when no VMA that maps it may be
 * merged; PKSM_BUSY when nothing maps it just now, or that cannot be told.
 */
enum pksm_result pksm_folio_survey(struct folio *folio, u64 *domain)
{
	struct pksm_survey survey = { .domain = PKSM_NO_DOMAIN };
	struct rmap_walk_control rwc = {
		.rmap_one = pksm_survey_one,
		.arg = &survey,
		.anon_lock = folio_lock_anon_vma_read,
	};

	rmap_walk(folio, &rwc);
	*domain = survey.domain;
	if (!survey.found)
		return PKSM_BUSY;
	if (survey.fit)
		return PKSM_MERGED;
	return survey.unsure ? PKSM_BUSY : PKSM_UNFIT;
}

#ifdef CONFIG_PKSM_KUNIT_TEST
#include "tests/domain_test.h"
#endif

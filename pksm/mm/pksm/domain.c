// SPDX-License-Identifier: GPL-2.0-only
/*
 * PKSM: whose pages may be merged with whose.
 *
 * That a page is merged can be told by the one who has it: its first write takes
 * longer. So somebody who writes a guess into a page, and waits, may learn what
 * is in a page of somebody else. Pages are therefore merged within a domain only:
 * by default that of a user.
 *
 * A domain is a 64-bit number that is mixed into the hash of a page. Pages of
 * different domains then do not meet in the indexes; and before merge.c replaces or
 * freezes a PTE it sees that its address space belongs to the domain. The page of
 * zeroes is in every domain: whether a page may be given back for it depends on
 * nothing but the page itself.
 *
 * A page that fork has left to several domains belongs to that of the first
 * mapping found. What fork shares stays shared until it is written to.
 */
#include <linux/cgroup.h>
#include <linux/cred.h>
#include <linux/memcontrol.h>
#include <linux/sched.h>
#include <linux/uidgid.h>

#include "internal.h"

enum pksm_domain_kind pksm_domain_kind = PKSM_DOMAIN_USER;

/* A bijection on 64 bits that leaves 0 alone (the finalizer of MurmurHash3). */
static u64 pksm_mix(u64 id)
{
	id ^= id >> 33;
	id *= 0xff51afd7ed558ccdULL;
	id ^= id >> 33;
	id *= 0xc4ceb9fe1a85ec53ULL;
	return id ^ id >> 33;
}

/*
 * No two address spaces have the same number, not even one after the other in
 * the same place.
 */
static u64 pksm_process_id(struct mm_struct *mm, struct task_struct *owner)
{
	return pksm_mix((unsigned long)mm) ^ owner->group_leader->start_boottime;
}

static u64 pksm_owner_domain(struct mm_struct *mm, struct task_struct *owner)
{
	switch (READ_ONCE(pksm_domain_kind)) {
	case PKSM_DOMAIN_PROCESS:
		return pksm_process_id(mm, owner);
	case PKSM_DOMAIN_USER:
		/* Not the real one: the memory of a setuid program is not its caller's. */
		return __kuid_val(task_cred_xxx(owner, euid)) + 1ULL;
	case PKSM_DOMAIN_MEMCG:
		return mem_cgroup_from_task(owner)->css.serial_nr + 1ULL;
	default:
		return 0;
	}
}

/**
 * pksm_mm_domain - the domain of an address space
 * @mm: the address space
 *
 * Context: Any. Takes no lock and never sleeps.
 * Return: What is mixed into the hashes of its pages; PKSM_NO_DOMAIN when there
 * is nobody to tell who it belongs to, as when it is going away.
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
		domain = pksm_mix(pksm_owner_domain(mm, owner));
	rcu_read_unlock();
	return domain;
}

static bool pksm_domain_one(struct folio *folio, struct vm_area_struct *vma,
			    unsigned long addr, void *arg)
{
	u64 *domain = arg;

	*domain = pksm_mm_domain(vma->vm_mm);
	return *domain == PKSM_NO_DOMAIN;
}

/**
 * pksm_folio_domain - the domain of a page
 * @folio: an anonymous page, locked
 *
 * Context: Process context. May sleep.
 * Return: As pksm_mm_domain().
 */
u64 pksm_folio_domain(struct folio *folio)
{
	u64 domain = PKSM_NO_DOMAIN;
	struct rmap_walk_control rwc = {
		.rmap_one = pksm_domain_one,
		.arg = &domain,
		.anon_lock = folio_lock_anon_vma_read,
	};

	if (READ_ONCE(pksm_domain_kind) == PKSM_DOMAIN_GLOBAL)
		return 0;
	rmap_walk(folio, &rwc);
	return domain;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PKSM: unit tests of the domains. Included by domain.c.
 */
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/sort.h>

#include "pksm_test.h"

/* The number that an odd number is undone by, modulo 2^64 (Newton's method). */
static u64 pksm_test_inverse(u64 odd)
{
	u64 inverse = odd;
	int i;

	for (i = 0; i < 6; i++)
		inverse *= 2 - odd * inverse;
	return inverse;
}

/* What pksm_mix() undoes: it has an inverse only if it is a bijection. */
static u64 pksm_test_unmix(u64 mixed)
{
	mixed ^= mixed >> 33;
	mixed *= pksm_test_inverse(0xc4ceb9fe1a85ec53ULL);
	mixed ^= mixed >> 33;
	mixed *= pksm_test_inverse(0xff51afd7ed558ccdULL);
	return mixed ^ mixed >> 33;
}

/**
 * pksm_test_domain_bijection - the mix of an id can be undone
 * @test: the test
 */
void pksm_test_domain_bijection(struct kunit *test)
{
	u64 id = 0x9e3779b97f4a7c15ULL, owner;
	unsigned int i;

	KUNIT_EXPECT_EQ(test, pksm_mix(0), 0);
	for (i = 0; i < 64; i++)
		KUNIT_EXPECT_EQ(test, pksm_test_unmix(pksm_mix(BIT_ULL(i))),
				BIT_ULL(i));
	for (i = 0; i < 10000; i++) {
		KUNIT_EXPECT_EQ(test, pksm_test_unmix(pksm_mix(id)), id);
		id += 0x9e3779b97f4a7c15ULL;
	}

	/* No user, and no process for some time, is the one who owns nothing. */
	owner = pksm_test_unmix(PKSM_NO_DOMAIN);
	KUNIT_EXPECT_EQ(test, pksm_mix(owner), PKSM_NO_DOMAIN);
	KUNIT_EXPECT_GT(test, owner, BIT_ULL(48));
	KUNIT_EXPECT_GT(test, owner & ~PKSM_PROCESS_ID, BIT_ULL(48));
}

static int pksm_test_compare(const void *a, const void *b)
{
	u64 left = *(const u64 *)a, right = *(const u64 *)b;

	return left < right ? -1 : left > right;
}

#define PKSM_TEST_SAMPLE	4096

/**
 * pksm_test_domain_no_collisions - no two of the ids that there are have one domain
 * @test: the test
 */
void pksm_test_domain_no_collisions(struct kunit *test)
{
	u64 *mixed = kvmalloc_array(3 * PKSM_TEST_SAMPLE, sizeof(*mixed),
				    GFP_KERNEL);
	unsigned int i, nr = 0, equal = 0;

	KUNIT_ASSERT_NOT_NULL(test, mixed);
	for (i = 0; i < PKSM_TEST_SAMPLE; i++) {
		/* Small and big user ids, and processes. */
		mixed[nr++] = pksm_mix(i + 1ULL);
		mixed[nr++] = pksm_mix(U32_MAX - i + 1ULL);
		mixed[nr++] = pksm_mix((i + 1ULL) | PKSM_PROCESS_ID);
	}
	sort(mixed, nr, sizeof(*mixed), pksm_test_compare, NULL);
	for (i = 1; i < nr; i++)
		equal += mixed[i] == mixed[i - 1];
	KUNIT_EXPECT_EQ(test, equal, 0);
	KUNIT_EXPECT_GT(test, mixed[0], 0);
	KUNIT_EXPECT_LT(test, mixed[nr - 1], PKSM_NO_DOMAIN);
	kvfree(mixed);
}

/* Who the thread of this test is; it ends with the test. */
static void pksm_test_become(struct kunit *test, u32 uid, u32 euid)
{
	struct cred *cred = prepare_creds();

	KUNIT_EXPECT_NOT_NULL(test, cred);
	if (!cred)
		return;
	cred->uid = KUIDT_INIT(uid);
	cred->suid = KUIDT_INIT(uid);
	cred->euid = KUIDT_INIT(euid);
	commit_creds(cred);
}

static void pksm_test_put_mm(void *mm)
{
	mmput(mm);
}

/* An address space of the thread of this test. */
static struct mm_struct *pksm_test_mm(struct kunit *test)
{
	struct mm_struct *mm = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, mm);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, pksm_test_put_mm,
							mm), 0);
	pksm_test_set_readable(mm, true);
	return mm;
}

/**
 * pksm_test_domain_of_mm - whose pages are merged with whose
 * @test: the test
 */
void pksm_test_domain_of_mm(struct kunit *test)
{
	struct mm_struct *mm1 = pksm_test_mm(test);
	struct mm_struct *mm2 = pksm_test_mm(test);
	enum pksm_domain_kind old;
	u64 root;

	pksm_test_begin(test);
	old = pksm_domain_kind;
	WRITE_ONCE(pksm_domain_kind, PKSM_DOMAIN_GLOBAL);
	KUNIT_EXPECT_EQ(test, pksm_mm_domain(mm1), 0);

	WRITE_ONCE(pksm_domain_kind, PKSM_DOMAIN_PROCESS);
	KUNIT_EXPECT_NE(test, pksm_mm_domain(mm1), pksm_mm_domain(mm2));
	KUNIT_EXPECT_EQ(test, pksm_mm_domain(mm1), pksm_mm_domain(mm1));

	WRITE_ONCE(pksm_domain_kind, PKSM_DOMAIN_MEMCG);
	KUNIT_EXPECT_EQ(test, pksm_mm_domain(mm1), pksm_mm_domain(mm2));

	WRITE_ONCE(pksm_domain_kind, PKSM_DOMAIN_USER);
	root = pksm_mm_domain(mm1);
	KUNIT_EXPECT_EQ(test, pksm_mm_domain(mm2), root);
	/* Who may not be read by all of his user's processes is on his own. */
	pksm_test_set_readable(mm2, false);
	KUNIT_EXPECT_NE(test, pksm_mm_domain(mm2), root);
	pksm_test_set_readable(mm2, true);
	pksm_test_become(test, 1000, 0);
	KUNIT_EXPECT_NE(test, pksm_mm_domain(mm1), root);
	KUNIT_EXPECT_NE(test, pksm_mm_domain(mm1), pksm_mm_domain(mm2));
	pksm_test_become(test, 1000, 1000);
	KUNIT_EXPECT_NE(test, pksm_mm_domain(mm1), root);
	KUNIT_EXPECT_EQ(test, pksm_mm_domain(mm1), pksm_mm_domain(mm2));

	/* What belongs to nobody is merged with nothing. */
	WRITE_ONCE(mm2->owner, NULL);
	KUNIT_EXPECT_EQ(test, pksm_mm_domain(mm2), PKSM_NO_DOMAIN);
	WRITE_ONCE(pksm_domain_kind, PKSM_DOMAIN_PROCESS);
	KUNIT_EXPECT_EQ(test, pksm_mm_domain(mm2), PKSM_NO_DOMAIN);
	WRITE_ONCE(pksm_domain_kind, old);
	pksm_test_end(test);
}

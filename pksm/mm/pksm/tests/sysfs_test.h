/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PKSM: unit tests of the files in sysfs. Included by sysfs.c.
 *
 * They are read and written as sysfs does it. What is written takes effect on the
 * engine, for a moment; what would unmerge everything is not.
 */
#include "pksm_test.h"

#define PKSM_TEST_VALUES	8

/* What each control takes and what it refuses; its present value it takes always. */
static const struct pksm_test_control {
	const char *name;
	const char *good[PKSM_TEST_VALUES];
	const char *bad[PKSM_TEST_VALUES];
} pksm_test_controls[] = {
	{ "run", { }, { "3", "-1", "x", "1x", "0x1", "4294967296" } },
	{ "scope", { }, { "al", "alll", "ALL", "1", "all madvise" } },
	{ "domain", { }, { "use", "users", "USER", "0", "user memcg" } },
	{ "settle_millisecs", { "0", "1", "200\n", "3600000" },
	  { "3600001", "-1", "x", "1.5", "20 30", "4294967296" } },
	{ "rescan_seconds", { "0", "1", "86400" },
	  { "86401", "-1", "x", "1.5", "4294967296" } },
	{ "max_cpu", { "1", "99", "100" },
	  { "0", "101", "-1", "x", "50%", "4294967297" } },
	{ "max_page_sharing", { "2", "256", "2147483647" },
	  { "0", "1", "-2", "x", "2147483648", "4294967298" } },
	{ "use_zero_pages", { "0", "1" },
	  { "2", "-1", "x", "yes", "4294967296" } },
};

static struct kobj_attribute *pksm_test_attr(struct attribute *attr)
{
	return container_of(attr, struct kobj_attribute, attr);
}

static const char *pksm_test_show(struct kunit *test, struct attribute *attr)
{
	struct pksm_test_env *env = test->priv;
	char *text = page_address(env->page[0]);
	ssize_t length = pksm_test_attr(attr)->show(mm_kobj,
						    pksm_test_attr(attr), text);

	KUNIT_EXPECT_EQ_MSG(test, length, strlen(text), "%s", attr->name);
	return text;
}

static ssize_t pksm_test_store(struct attribute *attr, const char *text)
{
	return pksm_test_attr(attr)->store(mm_kobj, pksm_test_attr(attr), text,
					   strlen(text));
}

static const struct pksm_test_control *
pksm_test_control(struct kunit *test, struct attribute *attr)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pksm_test_controls); i++) {
		if (!strcmp(pksm_test_controls[i].name, attr->name))
			return &pksm_test_controls[i];
	}
	KUNIT_FAIL(test, "there is no test of the control %s", attr->name);
	return NULL;
}

/**
 * pksm_test_sysfs_one_line - one value a file, and nobody but root writes
 * @test: the test
 */
void pksm_test_sysfs_one_line(struct kunit *test)
{
	struct attribute **attr;
	unsigned int nr = 0;

	for (attr = pksm_attrs; *attr; attr++, nr++) {
		const char *text = pksm_test_show(test, *attr);
		const char *end = strchr(text, '\n');
		umode_t mode = (*attr)->mode;

		KUNIT_EXPECT_TRUE_MSG(test, end && end > text && !end[1],
				      "%s: '%s'", (*attr)->name, text);
		KUNIT_EXPECT_TRUE_MSG(test, mode == 0444 || mode == 0644,
				      "%s: mode %o", (*attr)->name, mode);
		KUNIT_EXPECT_EQ_MSG(test, !!pksm_test_attr(*attr)->store,
				    !!(mode & 0200), "%s", (*attr)->name);
	}
	KUNIT_EXPECT_GT(test, nr, ARRAY_SIZE(pksm_test_controls));
}

/* Copies what @attr shows, without the newline. Returns false when it is too long. */
static bool pksm_test_value(struct kunit *test, struct attribute *attr,
			    char *value, size_t size)
{
	if (strscpy(value, pksm_test_show(test, attr), size) < 0)
		return false;
	strim(value);
	return true;
}

/**
 * pksm_test_sysfs_refuses - nonsense is refused, and changes nothing
 * @test: the test
 */
void pksm_test_sysfs_refuses(struct kunit *test)
{
	char before[32], after[32];
	struct attribute **attr;
	unsigned int i;

	for (attr = pksm_attrs; *attr; attr++) {
		const struct pksm_test_control *control;

		if (!((*attr)->mode & 0200))
			continue;
		control = pksm_test_control(test, *attr);
		if (!control)
			continue;
		KUNIT_EXPECT_TRUE(test, pksm_test_value(test, *attr, before,
							sizeof(before)));
		KUNIT_EXPECT_EQ_MSG(test, pksm_test_store(*attr, ""), -EINVAL,
				    "nothing to %s", control->name);
		KUNIT_EXPECT_NOT_NULL(test, control->bad[0]);
		for (i = 0; i < PKSM_TEST_VALUES && control->bad[i]; i++) {
			const char *bad = control->bad[i];

			KUNIT_EXPECT_EQ_MSG(test, pksm_test_store(*attr, bad),
					    -EINVAL, "'%s' to %s", bad,
					    control->name);
			pksm_test_value(test, *attr, after, sizeof(after));
			KUNIT_EXPECT_STREQ(test, after, before);
		}
	}
}

/* Write to a control, and read it again. */
static void pksm_test_write(struct kunit *test, struct attribute *attr,
			    const char *text)
{
	char wanted[32], now[32];

	strscpy(wanted, text, sizeof(wanted));
	strim(wanted);
	KUNIT_EXPECT_EQ_MSG(test, pksm_test_store(attr, text), strlen(text),
			    "'%s' to %s", text, attr->name);
	pksm_test_value(test, attr, now, sizeof(now));
	KUNIT_EXPECT_STREQ(test, now, wanted);
}

/**
 * pksm_test_sysfs_accepts - a control reads back what was written, to its limits
 * @test: the test
 */
void pksm_test_sysfs_accepts(struct kunit *test)
{
	struct attribute **attr;
	char before[32];
	unsigned int i;

	for (attr = pksm_attrs; *attr; attr++) {
		const struct pksm_test_control *control;

		if (!((*attr)->mode & 0200))
			continue;
		control = pksm_test_control(test, *attr);
		if (!control || !pksm_test_value(test, *attr, before,
						 sizeof(before)))
			continue;
		for (i = 0; i < PKSM_TEST_VALUES && control->good[i]; i++)
			pksm_test_write(test, *attr, control->good[i]);
		pksm_test_write(test, *attr, before);
	}
}

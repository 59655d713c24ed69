/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PKSM_TESTS_H
#define PKSM_TESTS_H
/*
 * PKSM: how a test says what it has found.
 */
#include <stdbool.h>

/* A user whom nobody cares for. */
#define NOBODY		65534

/* Of the test that runs: something was not true; or why it could not run. */
extern bool failed;
extern const char *skipped;

#define CHECK(condition) do {						\
	if (!(condition)) {						\
		ksft_print_msg("%s:%d: not true: %s\n", __FILE__,	\
			       __LINE__, #condition);			\
		failed = true;						\
	}								\
} while (0)

/* pksm_controls.c */
void test_run_2_unmerges_everything(void);
void test_run_0_keeps_what_is_merged(void);
void test_controls_refuse_nonsense(void);
void test_controls_read_back(void);
void test_only_root_writes(void);
void test_counters_obey_their_laws(void);

#endif /* PKSM_TESTS_H */

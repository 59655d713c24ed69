// SPDX-License-Identifier: GPL-2.0-only
/* What the small languages have in common; see common.h. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../common.h"

static void set(char *arg)
{
	char *value = strchr(arg, ':');
	int err;

	if (!value)
		die(EXIT_USAGE, "set: \"%s\" is not CONTROL:VALUE", arg);
	*value++ = 0;
	err = control_write(arg, value);
	if (err)
		die(EXIT_ENV, "set %s to %s: %s", arg, value, strerror(-err));
}

static void compact(void)
{
	static const char path[] = "/proc/sys/vm/compact_memory";
	int err = file_write(path, "1");

	if (err)
		die(EXIT_ENV, "%s: %s", path, strerror(-err));
}

void lru_drain(void)
{
	static const char path[] = "/proc/sys/vm/drop_caches";
	/* By the way, and on all CPUs. */
	int err = file_write(path, "1");

	if (err)
		die(EXIT_ENV, "%s: %s", path, strerror(-err));
}

static void settle(uint64_t seconds)
{
	int64_t fresh = 0, changed = 0;

	if (engine_settle(seconds * 1000))
		return;
	counter_read("pages_new", &fresh);
	counter_read("pages_volatile", &changed);
	die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s: pages_new is %" PRId64
	    ", pages_volatile %" PRId64, seconds, fresh, changed);
}

bool script_op(const char *name, char *arg, uint64_t settle_s)
{
	struct condition cond;

	if (!strcmp(name, "settle")) {
		settle(settle_s);
	} else if (!strcmp(name, "wait")) {
		if (!condition_parse(arg, &cond))
			die(EXIT_USAGE, "wait: \"%s\" is not NAME OP NUMBER", arg);
		if (!condition_wait(&cond, 1, settle_s * 1000))
			die(EXIT_ENV, "%s did not come within %" PRIu64 " s", arg, settle_s);
	} else if (!strcmp(name, "set")) {
		set(arg);
	} else if (!strcmp(name, "sleep")) {
		sleep_ms((unsigned int)parse_number("sleep", arg, 0, 3600000));
	} else if (!strcmp(name, "compact")) {
		compact();
	} else if (!strcmp(name, "drain")) {
		lru_drain();
	} else if (!strcmp(name, "hold")) {
		hold_set(arg);
	} else if (!strcmp(name, "held")) {
		if (!hold_wait(settle_s * 1000))
			die(EXIT_ENV, "nobody came to where the engine is to be held");
	} else {
		return false;
	}
	return true;
}

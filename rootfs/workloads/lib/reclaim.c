// SPDX-License-Identifier: GPL-2.0-only
/* Making the pages of a memory cgroup leave memory; see common.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../common.h"

#define TRIES		12
/* memory.reclaim goes by statistics that are brought up to date every two seconds. */
#define STATISTICS_MS	2100

static int reclaim_once(const char *group)
{
	char path[256];
	int err;

	snprintf(path, sizeof(path), "%s/memory.reclaim", group);
	err = file_write(path, "1G");
	/* When it got less than it was asked for. */
	return err == -EAGAIN ? 0 : err;
}

int reclaim_all(const char *group, bool (*out)(void))
{
	int i, err;

	for (i = 0; i < TRIES; i++) {
		err = reclaim_once(group);
		if (err)
			return err;
		if (out())
			return 0;
		sleep_ms(STATISTICS_MS);
	}
	return -EBUSY;
}

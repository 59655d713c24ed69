// SPDX-License-Identifier: GPL-2.0-only
/* Making the pages of a memory cgroup leave memory; see common.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../common.h"

#define TRIES		12
/* memory.reclaim goes by statistics that are brought up to date every two seconds. */
#define STATISTICS_MS	2100

static int reclaim_once(const char *group)
{
	static const char much[] = "1G";
	char path[256];
	int fd, err = 0;

	snprintf(path, sizeof(path), "%s/memory.reclaim", group);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	/* It says EAGAIN when it got less than it was asked for. */
	if (write(fd, much, strlen(much)) < 0 && errno != EAGAIN)
		err = -errno;
	close(fd);
	return err;
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

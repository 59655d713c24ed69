// SPDX-License-Identifier: GPL-2.0-only
/*
 * mergectl - execute a program that is to be merged, or not.
 *
 * prctl(PR_SET_MEMORY_MERGE) goes on to children and to what they execute; so
 * does systemd's MemoryKSM=, which works in the same way.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "common.h"

int main(int argc, char **argv)
{
	prog_start("mergectl");
	if (argc == 2 && !strcmp(argv[1], "--help")) {
		puts("usage: mergectl 0|1 COMMAND ARG...");
		return 0;
	}
	if (argc < 3 || (strcmp(argv[1], "0") && strcmp(argv[1], "1")))
		bad_usage("give 0 or 1, and a command");
	if (prctl(PR_SET_MEMORY_MERGE, (unsigned long)(*argv[1] - '0'), 0, 0, 0))
		die(EXIT_ENV, "prctl: %s", strerror(errno));
	execvp(argv[2], argv + 2);
	die(EXIT_ENV, "%s: %s", argv[2], strerror(errno));
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * All workloads in one program: it does what the program of its name does.
 */
#include <stdio.h>
#include <string.h>

#define PROGRAM(name) int main_##name(int argc, char **argv);
#include "table.h"
#undef PROGRAM

static const struct {
	const char *name;
	int (*main)(int argc, char **argv);
} programs[] = {
#define PROGRAM(name) { #name, main_##name },
#include "table.h"
#undef PROGRAM
};

int main(int argc, char **argv)
{
	const char *name = argc ? strrchr(argv[0], '/') : NULL;
	size_t i;

	name = name ? name + 1 : argc ? argv[0] : "";
	for (i = 0; i < sizeof(programs) / sizeof(programs[0]); i++)
		if (!strcmp(programs[i].name, name))
			return programs[i].main(argc, argv);
	if (!strcmp(name, "workloads")) {
		puts("Each of these is a name of this program:");
		for (i = 0; i < sizeof(programs) / sizeof(programs[0]); i++)
			puts(programs[i].name);
		return 0;
	}
	fprintf(stderr, "%s: no such workload\n", name);
	return 127;
}

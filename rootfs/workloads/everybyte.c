// SPDX-License-Identifier: GPL-2.0-only
/*
 * everybyte - one page of each byte, held beside other programs.
 *
 * What a program fills with memset() has an equal here: it is merged, or would be,
 * however short the program lives and though nobody else runs it. At end of file on
 * standard input every page must be as it was.
 *
 * pksmd lets things gather for a while before it looks at them; --poke has it look
 * around all the time.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"

#define NR_BYTES	256
/* To write a control wakes pksmd. */
#define CONTROL		"/sys/kernel/mm/pksm/settle_millisecs"
#define MAX_POKE_MS	10000

/* Until end of file; with @poke_ms, pksmd is woken so often. */
static void hold(int poke_ms)
{
	struct pollfd in = { .fd = STDIN_FILENO, .events = POLLIN };
	int control = -1, ready;
	char c;

	if (poke_ms) {
		control = open(CONTROL, O_WRONLY);
		if (control < 0)
			die(EXIT_ENV, CONTROL ": %s", strerror(errno));
	}
	for (;;) {
		ready = poll(&in, 1, poke_ms ? poke_ms : -1);
		if (ready && read(STDIN_FILENO, &c, 1) <= 0)
			break;
		if (poke_ms && pwrite(control, "0\n", 2, 0) != 2)
			die(EXIT_ENV, CONTROL ": %s", strerror(errno));
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "poke", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	unsigned int byte, i, poke_ms = 0;
	unsigned char *base;
	int option;

	prog_start("everybyte");
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'p':
			poke_ms = parse_number("--poke", optarg, 1, MAX_POKE_MS);
			break;
		case 'h':
			puts("usage: everybyte [--poke MS]\n"
			     "Says \"holding\", and ends at end of file on standard input.\n"
			     "--poke: wakes pksmd every MS milliseconds, by settle_millisecs=0.\n"
			     "Exit status: 0, 1 a wrong byte, 2 usage, 3 refused by the kernel.");
			return 0;
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	base = mmap(NULL, NR_BYTES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (base == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	/* Of a huge page one would be merged as soon as half of all of them can be. */
	madvise(base, NR_BYTES * PAGE_BYTES, MADV_NOHUGEPAGE);
	for (byte = 0; byte < NR_BYTES; byte++)
		memset(base + byte * PAGE_BYTES, byte, PAGE_BYTES);
	puts("holding");
	fflush(stdout);
	hold(poke_ms);
	for (byte = 0; byte < NR_BYTES; byte++)
		for (i = 0; i < PAGE_BYTES; i++)
			if (base[byte * PAGE_BYTES + i] != byte)
				die(EXIT_WRONG, "byte %u of page %u is %u", i, byte,
				    base[byte * PAGE_BYTES + i]);
	return 0;
}

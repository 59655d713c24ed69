// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmcost - has the kernel give pages, take them back and copy them, when told to.
 *
 * Each is done for many pages by one order, inside of the kernel, so that the cost of
 * a single page fault, which on User-Mode Linux is that of the host's signals, does
 * not hide what is of interest. Who gives the orders takes the time, from outside:
 *
 *	nothing		what any order takes
 *	populate	mmap(MAP_POPULATE)
 *	fork		fork() of a process with so many pages
 *	cow		read(2) into all of them in the child: each is copied
 *	exit		the end of the child, with the copies
 *	unmap		munmap()
 *
 * in this order.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define CHUNK		64UL	/* pages of the file that is read again and again */

static size_t pages = 8192;
static int chunk_fd = -1;
static char *base;
static pid_t child;
static int to_child[2], from_child[2];

static void do_nothing(void)
{
}

static void populate(void)
{
	base = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (base == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
}

static void unmap(void)
{
	if (munmap(base, pages * PAGE_BYTES))
		die(EXIT_ENV, "munmap: %s", strerror(errno));
	base = NULL;
}

/* In the child: copies all pages when told to, and ends when told to. */
static void __noreturn be_child(void)
{
	char byte;
	size_t i;

	close(to_child[1]);
	if (read(to_child[0], &byte, 1) != 1)
		_exit(EXIT_ENV);
	for (i = 0; i < pages; i += CHUNK) {
		size_t bytes = (pages - i < CHUNK ? pages - i : CHUNK) * PAGE_BYTES;

		if (pread(chunk_fd, base + i * PAGE_BYTES, bytes, 0) != (ssize_t)bytes)
			_exit(EXIT_ENV);
	}
	if (write(from_child[1], &byte, 1) != 1)
		_exit(EXIT_ENV);
	_exit(read(to_child[0], &byte, 1) ? EXIT_ENV : 0);
}

static void start_child(void)
{
	if (pipe(to_child) || pipe(from_child))
		die(EXIT_ENV, "pipe: %s", strerror(errno));
	child = fork();
	if (child < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (!child)
		be_child();
	close(to_child[0]);
	close(from_child[1]);
}

static void copy_in_child(void)
{
	char byte = 0;

	if (write(to_child[1], &byte, 1) != 1 || read(from_child[0], &byte, 1) != 1)
		die(EXIT_ENV, "the child could not copy its pages");
}

static void end_child(void)
{
	int status;

	close(to_child[1]);
	if (waitpid(child, &status, 0) < 0 || status)
		die(EXIT_ENV, "the child ended badly");
	close(from_child[0]);
	child = 0;
}

/* Orders in the order in which they can be given. */
static const struct {
	const char *name;
	void (*obey)(void);
} orders[] = {
	{ "nothing\n", do_nothing },
	{ "populate\n", populate },
	{ "fork\n", start_child },
	{ "cow\n", copy_in_child },
	{ "exit\n", end_child },
	{ "unmap\n", unmap },
};

static void __noreturn usage(void)
{
	printf("usage: mmcost [--pages N]\n"
		"\n"
		"Lines of standard input are obeyed for N pages (8192), and answered by a line of\n"
		"JSON. They can be given again and again, but in this order only:\n"
		"  nothing   populate   fork   cow   exit   unmap\n"
		"\n"
		"Exit status: 0, 2 usage, 3 not possible here.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pages", required_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'n':
			pages = parse_number("--pages", optarg, 1, 1 << 20);
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
}

int main(int argc, char **argv)
{
	size_t next = 0;
	char line[32];

	prog_start("mmcost");
	parse(argc, argv);
	chunk_fd = memfd_create("chunk", MFD_CLOEXEC);
	if (chunk_fd < 0 || ftruncate(chunk_fd, (off_t)(CHUNK * PAGE_BYTES)))
		die(EXIT_ENV, "memfd: %s", strerror(errno));
	while (fgets(line, sizeof(line), stdin)) {
		if (strcmp(line, orders[next].name))
			die(EXIT_USAGE, "no such order now: %s", line);
		orders[next].obey();
		next = (next + 1) % ARRAY_SIZE(orders);
		printf("{\"pages\": %zu}\n", pages);
		fflush(stdout);
	}
	return 0;
}

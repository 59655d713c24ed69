// SPDX-License-Identifier: GPL-2.0-only
/*
 * forkfail - a process whose fork fails halfway.
 *
 * It maps many areas, more than a memory cgroup that it is in will have memory for a
 * second time: each needs a struct vm_area_struct. The limit is set to a little more
 * than what is charged just then, and fork is called over and over. Whatever the
 * kernel has copied by then is to be given back. One line of JSON tells how often it
 * has failed and what was charged before and after.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define MAX_FORKS	1000

static struct {
	size_t areas;
	unsigned int forks;
	uint64_t slack;
	const char *group;
} opt = { .areas = 10000, .forks = 8, .slack = 512 << 10 };

static char *file_of(const char *name)
{
	static char path[256];

	if ((size_t)snprintf(path, sizeof(path), "%s/%s", opt.group, name) >= sizeof(path))
		die(EXIT_USAGE, "--group %s: too long", opt.group);
	return path;
}

static void write_file(const char *path, const char *text)
{
	int err = file_write(path, text);

	if (err)
		die(EXIT_ENV, "%s: %s", path, strerror(-err));
}

static uint64_t charged(void)
{
	char text[32] = "";
	int fd = open(file_of("memory.current"), O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		die(EXIT_ENV, "%s: %s", file_of("memory.current"), strerror(errno));
	close(fd);
	return strtoull(text, NULL, 10);
}

static void limit(uint64_t bytes)
{
	char text[32];

	snprintf(text, sizeof(text), "%" PRIu64, bytes);
	write_file(file_of("memory.max"), bytes ? text : "max");
}

/*
 * Every other page may not be written to, so that no two of them are one area. No two
 * pages are alike: those would be merged meanwhile, and leave memory for the forks.
 */
static void map_areas(void)
{
	size_t i, bytes = 2 * opt.areas * PAGE_BYTES;
	char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (base == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	for (i = 0; i < opt.areas; i++) {
		memcpy(base + 2 * i * PAGE_BYTES, &i, sizeof(i));
		if (mprotect(base + (2 * i + 1) * PAGE_BYTES, PAGE_BYTES, PROT_READ))
			die(EXIT_ENV, "mprotect: %s", strerror(errno));
	}
}

static void __noreturn usage(void)
{
	printf("usage: forkfail --group DIR [--areas N] [--forks N] [--slack BYTES]\n"
		"\n"
		"Joins the memory cgroup DIR, maps N areas (10000), limits the group to what is charged\n"
		"then and BYTES more (524288), and forks N times (8), which is to fail. Nobody there\n"
		"is killed for it. Prints one line of JSON.\n"
		"\n"
		"Exit status: 0 each has failed for want of memory, 1 one has not, 2 usage, 3 not\n"
		"possible here.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "group", required_argument, NULL, 'g' },
		{ "areas", required_argument, NULL, 'a' },
		{ "forks", required_argument, NULL, 'f' },
		{ "slack", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'g':
			opt.group = optarg;
			break;
		case 'a':
			opt.areas = parse_number("--areas", optarg, 1, 30000);
			break;
		case 'f':
			opt.forks = parse_number("--forks", optarg, 1, MAX_FORKS);
			break;
		case 's':
			opt.slack = parse_number("--slack", optarg, 0, UINT32_MAX);
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	if (!opt.group)
		bad_usage("no --group given");
}

int main(int argc, char **argv)
{
	unsigned int i, failed = 0, other = 0;
	uint64_t before, after;

	prog_start("forkfail");
	parse(argc, argv);
	write_file("/proc/self/oom_score_adj", "-1000");
	write_file(file_of("cgroup.procs"), "0");
	map_areas();
	before = charged();
	limit(before + opt.slack);
	for (i = 0; i < opt.forks; i++) {
		pid_t pid = fork();

		if (!pid)
			_exit(0);
		if (pid > 0)
			waitpid(pid, NULL, 0);
		else if (errno == ENOMEM)
			failed++;
		else
			other++;
	}
	limit(0);
	after = charged();
	printf("{\"tool\": \"forkfail\", \"forks\": %u, \"failed\": %u, \"other\": %u, \"before\": %"
	       PRIu64 ", \"after\": %" PRIu64 "}\n", opt.forks, failed, other, before, after);
	return failed == opt.forks ? 0 : EXIT_WRONG;
}

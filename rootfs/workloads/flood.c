// SPDX-License-Identifier: GPL-2.0-only
/*
 * flood - pages that all have the same hash, for who knows the engine's key.
 *
 * The hash sums up the products of every two neighbouring words of a page, each with a
 * word of the key added (pksm/mm/pksm/hash.c). Where one word makes the one factor zero,
 * the other may be anything. So the contents here differ in the last word of a page
 * only, and nothing but the whole comparison tells one from another.
 *
 * The key is that of a kernel booted with pksm_secret=NUMBER. With any other key the
 * same pages have hashes as different as those of any pages.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common.h"

#define WORDS	(PAGE_BYTES / 8)

static struct {
	uint64_t secret, contents, copies, settle_s;
} opt = { .secret = 1, .contents = 512, .copies = 2, .settle_s = 300 };

static uint64_t (*region)[WORDS];

/* Word @number of the key that is made from the secret (splitmix64). */
static uint64_t key(uint64_t number)
{
	uint64_t z = opt.secret + (number + 1) * 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static uint64_t last_word(uint64_t page)
{
	return page / opt.copies + 1;
}

static uint64_t wrong_pages(uint64_t pages)
{
	uint64_t page, wrong = 0, i;

	for (page = 0; page < pages; page++) {
		bool fine = region[page][WORDS - 2] == -key(WORDS - 2) &&
			    region[page][WORDS - 1] == last_word(page);

		for (i = 0; i < WORDS - 2; i++)
			fine = fine && !region[page][i];
		wrong += !fine;
	}
	return wrong;
}

static int64_t counter(const char *name)
{
	int64_t value = 0;

	counter_read(name, &value);
	return value;
}

static void __noreturn usage(void)
{
	printf("usage: flood [options]\n"
		"\n"
		"Fills pages whose hashes are all the same in a kernel booted with pksm_secret=NUMBER,\n"
		"and waits for the engine. Prints one line of JSON: what it took.\n"
		"\n"
		"  --secret NUMBER     that number (1)\n"
		"  --contents N        different contents (512)\n"
		"  --copies N          pages of each, one behind the other (2)\n"
		"  --settle-timeout S  seconds to wait for the engine (300)\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 not possible here.\n");
	exit(0);
}

static void parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "secret", required_argument, NULL, 's' },
		{ "contents", required_argument, NULL, 'n' },
		{ "copies", required_argument, NULL, 'c' },
		{ "settle-timeout", required_argument, NULL, 'S' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 's')
			opt.secret = parse_number("--secret", optarg, 1, UINT64_MAX);
		else if (c == 'n')
			opt.contents = parse_number("--contents", optarg, 1, 1 << 16);
		else if (c == 'c')
			opt.copies = parse_number("--copies", optarg, 1, 256);
		else if (c == 'S')
			opt.settle_s = parse_number("--settle-timeout", optarg, 1, 1000000);
		else if (c == 'h')
			usage();
		else
			bad_option();
	}
	no_more_arguments(optind, argc, argv);
}

int main(int argc, char **argv)
{
	uint64_t page, pages, wrong, start;
	struct pagestat st = { 0 };
	int64_t scanned, usecs;
	int err;

	prog_start("flood");
	parse(argc, argv);
	pages = opt.contents * opt.copies;
	region = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (region == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	madvise(region, pages * PAGE_BYTES, MADV_MERGEABLE);
	scanned = counter("pages_scanned");
	usecs = counter("cpu_usecs");
	for (page = 0; page < pages; page++) {
		region[page][WORDS - 2] = -key(WORDS - 2);
		region[page][WORDS - 1] = last_word(page);
	}
	if (!engine_settle(opt.settle_s * 1000))
		die(EXIT_ENV, "the engine did not settle within %" PRIu64 " s", opt.settle_s);
	scanned = counter("pages_scanned") - scanned;
	usecs = counter("cpu_usecs") - usecs;
	start = (uintptr_t)region;
	err = pagestat_add(0, start, start + pages * PAGE_BYTES, &st);
	if (err)
		die(EXIT_ENV, "page map: %s", strerror(-err));
	wrong = wrong_pages(pages);
	printf("{\"tool\": \"flood\", \"engine\": \"%s\", \"ok\": %s, \"pages\": %" PRIu64
	       ", \"merged_ptes\": %" PRIu64 ", \"scanned\": %" PRId64 ", \"cpu_usecs\": %" PRId64
	       "}\n", engine_name(), wrong ? "false" : "true", pages, st.merged_ptes, scanned,
	       usecs);
	pagestat_free(&st);
	return wrong ? EXIT_WRONG : 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/*
 * pksmwait - wait until the engine has settled, or until conditions on its
 * counters hold; then print all counters as one line of JSON.
 *
 * Exit status: 0 reached, 2 usage, 3 time-out or no such engine or counter.
 */
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>

#include "common.h"

#define MAX_CONDITIONS	16

static void __noreturn usage(void)
{
	printf("usage: pksmwait [--timeout SECONDS] [--until 'NAME OP NUMBER']... [--settled]\n"
		"\n"
		"Waits until the engine has settled (PKSM: pages_new and pages_volatile are 0\n"
		"twice in a row; stock KSM: four full scans) and prints all counters as JSON.\n"
		"\n"
		"  --timeout SECONDS  give up after that many seconds of guest time (60)\n"
		"  --until CONDITION  wait for this instead, such as 'pages_sharing>=100';\n"
		"                     with == != >= <= > <; repeatable, all have to hold\n"
		"  --settled          with --until: wait until settled, then for the conditions\n"
		"  --now              do not wait at all\n"
		"\n"
		"Exit status: 0 reached, 2 usage, 3 time-out or no such engine or counter.\n");
	exit(0);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "timeout", required_argument, NULL, 't' },
		{ "until", required_argument, NULL, 'u' },
		{ "settled", no_argument, NULL, 's' },
		{ "now", no_argument, NULL, 'n' },
		{ "help", no_argument, NULL, 'h' },
		{ }
	};
	struct condition cond[MAX_CONDITIONS];
	bool settled = false, now = false, ok = true;
	uint64_t timeout = 60, start;
	size_t i, n = 0;
	int c;

	prog_start("pksmwait");
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 't':
			timeout = parse_number("--timeout", optarg, 0, 1000000);
			break;
		case 'u':
			if (n == MAX_CONDITIONS)
				die(EXIT_USAGE, "more than %d conditions", MAX_CONDITIONS);
			if (!condition_parse(optarg, &cond[n++]))
				die(EXIT_USAGE, "--until: \"%s\" is not NAME OP NUMBER", optarg);
			break;
		case 's':
			settled = true;
			break;
		case 'n':
			now = true;
			break;
		case 'h':
			usage();
		default:
			bad_option();
		}
	}
	no_more_arguments(optind, argc, argv);
	if (engine_kind() == ENGINE_NONE)
		die(EXIT_ENV, "this kernel has neither PKSM nor KSM");
	for (i = 0; i < n; i++)
		if (condition_holds(&cond[i]) < 0)
			die(EXIT_ENV, "%s has no counter \"%s\"", engine_name(), cond[i].name);

	start = now_ms();
	if (!now && (settled || !n))
		ok = engine_settle(timeout * 1000);
	if (!now && ok && n)
		ok = condition_wait(cond, n, timeout * 1000);
	printf("{\"tool\": \"pksmwait\", \"engine\": \"%s\", \"ok\": %s, \"ms\": %" PRIu64 ", \"counters\": ",
	       engine_name(), ok ? "true" : "false", now_ms() - start);
	json_counters(stdout);
	puts("}");
	if (!ok)
		die(EXIT_ENV, "not reached within %" PRIu64 " s", timeout);
	return 0;
}

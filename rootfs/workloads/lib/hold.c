// SPDX-License-Identifier: GPL-2.0-only
/* Holding the engine at a named moment; see common.h and mm/pksm/hold.c. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "../common.h"

#define HOLD_FILE	"/sys/kernel/debug/pksm/hold"

void hold_set(const char *text)
{
	int fd = open(HOLD_FILE, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		die(EXIT_ENV, "%s: %s", HOLD_FILE, strerror(errno));
	if (write(fd, text, strlen(text)) < 0)
		die(EXIT_ENV, "%s: \"%s\": %s", HOLD_FILE, text, strerror(errno));
	close(fd);
}

bool hold_wait(uint64_t timeout_ms)
{
	uint64_t end = now_ms() + timeout_ms;
	char text[96];
	ssize_t n;
	int fd;

	fd = open(HOLD_FILE, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die(EXIT_ENV, "%s: %s", HOLD_FILE, strerror(errno));
	for (;;) {
		n = pread(fd, text, sizeof(text) - 1, 0);
		text[n > 0 ? n : 0] = 0;
		if (strstr(text, " held ") || now_ms() >= end)
			break;
		sleep_ms(1);
	}
	close(fd);
	return strstr(text, " held ");
}

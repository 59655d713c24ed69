// SPDX-License-Identifier: GPL-2.0-only
/* Holding the engine at a named moment; see common.h and mm/pksm/hold.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
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

static int hold_open(void)
{
	int fd = open(HOLD_FILE, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die(EXIT_ENV, "%s: %s", HOLD_FILE, strerror(errno));
	return fd;
}

static bool look(int fd, uint64_t *value)
{
	char text[96], *number;
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = 0;
	number = strchr(text, ' ');
	*value = number ? strtoull(number + 1, NULL, 16) : 0;
	return strstr(text, " held ");
}

bool hold_wait(uint64_t timeout_ms)
{
	uint64_t end = now_ms() + timeout_ms, unused;
	int fd = hold_open();
	bool held;

	for (;;) {
		held = look(fd, &unused);
		if (held || now_ms() >= end)
			break;
		sleep_ms(1);
	}
	close(fd);
	return held;
}

bool hold_held(uint64_t *value)
{
	int fd = hold_open();
	bool held = look(fd, value);

	close(fd);
	return held;
}

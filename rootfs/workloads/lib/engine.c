// SPDX-License-Identifier: GPL-2.0-only
/* The counters of the engine, and waiting on them; see common.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../common.h"

static const char *const engine_dir[] = {
	[ENGINE_NONE] = NULL,
	[ENGINE_PKSM] = "/sys/kernel/mm/pksm",
	[ENGINE_KSM] = "/sys/kernel/mm/ksm",
};

enum engine engine_kind(void)
{
	static int kind = -1;
	struct stat st;

	if (kind < 0) {
		if (!stat(engine_dir[ENGINE_PKSM], &st))
			kind = ENGINE_PKSM;
		else if (!stat(engine_dir[ENGINE_KSM], &st))
			kind = ENGINE_KSM;
		else
			kind = ENGINE_NONE;
	}
	return kind;
}

const char *engine_name(void)
{
	static const char *const names[] = { "none", "pksm", "ksm" };

	return names[engine_kind()];
}

static int engine_open(const char *name, int flags)
{
	char path[128];

	if (engine_kind() == ENGINE_NONE || strchr(name, '/')) {
		errno = ENOENT;
		return -1;
	}
	snprintf(path, sizeof(path), "%s/%s", engine_dir[engine_kind()], name);
	return open(path, flags | O_CLOEXEC);
}

bool counter_read(const char *name, int64_t *value)
{
	char text[32], *end;
	ssize_t n;
	int fd = engine_open(name, O_RDONLY);

	if (fd < 0)
		return false;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return false;
	text[n] = 0;
	*value = strtoll(text, &end, 10);
	return end != text && (*end == '\n' || *end == 0);
}

int control_write(const char *name, const char *value)
{
	int err = 0, fd = engine_open(name, O_WRONLY);

	if (fd < 0)
		return -errno;
	if (write(fd, value, strlen(value)) < 0)
		err = -errno;
	close(fd);
	return err;
}

static int not_hidden(const struct dirent *d)
{
	return d->d_name[0] != '.';
}

void json_counters(FILE *f)
{
	const char *dir = engine_dir[engine_kind()], *comma = "";
	struct dirent **list;
	int64_t value;
	int i, n;

	fputc('{', f);
	n = dir ? scandir(dir, &list, not_hidden, alphasort) : 0;
	for (i = 0; i < n; i++) {
		if (counter_read(list[i]->d_name, &value)) {
			fprintf(f, "%s\"%s\": %" PRId64, comma,
				list[i]->d_name, value);
			comma = ", ";
		}
		free(list[i]);
	}
	if (n > 0)
		free(list);
	fputc('}', f);
}

/* Between two looks at a counter: at first, and when it takes long. */
#define POLL_MS		20
#define POLL_LONG_MS	100
#define POLL_OFTEN	50

static void poll_sleep(unsigned int *looks)
{
	sleep_ms((*looks)++ < POLL_OFTEN ? POLL_MS : POLL_LONG_MS);
}

#define KSM_SCANS	4	/* full scans after which stock KSM has seen all */

#define KSM_IDLE	50	/* looks without any scanning: it has nothing to scan */

static bool ksm_settle(uint64_t end)
{
	int64_t scans, pages, start = 0, last = -1;
	unsigned int looks = 0;
	int idle = 0;

	if (!counter_read("full_scans", &start))
		return false;
	for (;;) {
		if (!counter_read("full_scans", &scans) ||
		    !counter_read("pages_scanned", &pages))
			return false;
		idle = pages == last ? idle + 1 : 0;
		last = pages;
		if (scans >= start + KSM_SCANS || idle == KSM_IDLE)
			return true;
		if (now_ms() >= end)
			return false;
		poll_sleep(&looks);
	}
}

#define PATIENT_LOOKS	10	/* the machine may have stood still, and the engine with it */

/*
 * A page that was broken off a merged one waits for at most 64 settle times. One
 * that keeps changing waits for minutes, and whoever polls has such pages himself:
 * those are not waited for.
 */
static uint64_t pksm_patience_ms(void)
{
	int64_t settle = 0;

	counter_read("settle_millisecs", &settle);
	return (uint64_t)settle * 80 + 2000;
}

static bool pksm_settle(uint64_t end)
{
	uint64_t patience = pksm_patience_ms(), since = 0;
	int64_t fresh, changed, nodes, shared;
	unsigned int looks = 0, patient = 0;
	int quiet = 0;

	for (;;) {
		if (!counter_read("pages_new", &fresh) ||
		    !counter_read("pages_volatile", &changed) ||
		    !counter_read("stable_nodes", &nodes) ||
		    !counter_read("pages_shared", &shared))
			return false;
		/* The nodes of pages that are gone are still to be freed. */
		quiet = fresh || changed || nodes > shared ? 0 : quiet + 1;
		if (fresh || !since) {
			since = now_ms();
			patient = 0;
		}
		if (quiet == 2 ||
		    (patient++ >= PATIENT_LOOKS && now_ms() >= since + patience))
			return true;
		if (now_ms() >= end)
			return false;
		poll_sleep(&looks);
	}
}

bool engine_settle(uint64_t timeout_ms)
{
	uint64_t end = now_ms() + timeout_ms;

	switch (engine_kind()) {
	case ENGINE_PKSM:
		return pksm_settle(end);
	case ENGINE_KSM:
		return ksm_settle(end);
	default:
		return true;
	}
}

#define RETRIES_MS	60000	/* long enough for the engine to try again often */

bool engine_settle_pinned(uint64_t timeout_ms)
{
	const struct condition none_new = { "pages_new", "==", 0 };

	if (engine_kind() != ENGINE_PKSM)
		return engine_settle(timeout_ms);
	if (!condition_wait(&none_new, 1, timeout_ms))
		return false;
	sleep_ms(RETRIES_MS);
	return true;
}

bool condition_parse(const char *text, struct condition *c)
{
	size_t n = strcspn(text, "=!<>");
	char *end;

	if (!n || n >= sizeof(c->name) || !text[n])
		return false;
	memset(c, 0, sizeof(*c));
	memcpy(c->name, text, n);
	text += n;
	c->op[0] = *text++;
	if (*text == '=')
		c->op[1] = *text++;
	if ((c->op[0] == '=' || c->op[0] == '!') && !c->op[1])
		return false;
	errno = 0;
	c->number = strtoll(text, &end, 10);
	return end != text && !*end && !errno;
}

int condition_holds(const struct condition *c)
{
	int64_t v;

	if (!counter_read(c->name, &v))
		return -1;
	switch (c->op[0]) {
	case '=':
		return v == c->number;
	case '!':
		return v != c->number;
	case '<':
		return c->op[1] ? v <= c->number : v < c->number;
	default:
		return c->op[1] ? v >= c->number : v > c->number;
	}
}

bool condition_wait(const struct condition *c, size_t n, uint64_t timeout_ms)
{
	uint64_t end = now_ms() + timeout_ms;
	unsigned int looks = 0;
	size_t i;

	for (;;) {
		for (i = 0; i < n && condition_holds(&c[i]) == 1; i++)
			;
		if (i == n)
			return true;
		if (now_ms() >= end)
			return false;
		poll_sleep(&looks);
	}
}

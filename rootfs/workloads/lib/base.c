// SPDX-License-Identifier: GPL-2.0-only
/* Messages, arguments and time; see common.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../common.h"

const char *prog_name = "workload";

void prog_start(const char *name)
{
	prog_name = name;
	setvbuf(stderr, NULL, _IOLBF, 0);
	if (sysconf(_SC_PAGESIZE) != (long)PAGE_BYTES)
		die(EXIT_ENV, "pages are not %lu bytes here", PAGE_BYTES);
}

static void complain(const char *fmt, va_list ap)
{
	fprintf(stderr, "%s: ", prog_name);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
}

void die(int status, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	complain(fmt, ap);
	va_end(ap);
	exit(status);
}

void bad_option(void)
{
	fprintf(stderr, "try: %s --help\n", prog_name);
	exit(EXIT_USAGE);
}

void bad_usage(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	complain(fmt, ap);
	va_end(ap);
	bad_option();
}

void no_more_arguments(int first, int argc, char **argv)
{
	if (first < argc)
		bad_usage("there is no use for \"%s\"", argv[first]);
}

uint64_t parse_number(const char *what, const char *arg, uint64_t min,
		      uint64_t max)
{
	unsigned long long v;
	char *end;

	errno = 0;
	v = strtoull(arg, &end, 10);
	if (arg[0] < '0' || arg[0] > '9' || *end || errno || v < min || v > max)
		die(EXIT_USAGE, "%s: \"%s\" is not a number from %" PRIu64 " to %" PRIu64,
		    what, arg, min, max);
	return v;
}

uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

uint64_t now_ms(void)
{
	return now_us() / 1000;
}

void sleep_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, (long)(ms % 1000) * 1000000 };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

int file_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), err = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		err = -errno;
	close(fd);
	return err;
}

void *xcalloc(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	if (!p)
		die(EXIT_ENV, "out of memory");
	return p;
}

void *untracked_alloc(size_t bytes)
{
	void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die(EXIT_ENV, "no memory for bookkeeping: %s", strerror(errno));
	return p;
}

#define STREAM_BYTES	(4UL << 20)

FILE *untracked_stream(char **text)
{
	FILE *f;

	*text = untracked_alloc(STREAM_BYTES);
	f = fmemopen(*text, STREAM_BYTES, "w");
	if (!f)
		die(EXIT_ENV, "no memory for the report: %s", strerror(errno));
	return f;
}

static void swap_items(char *a, char *b, size_t size)
{
	char t;

	for (; size--; a++, b++) {
		t = *a;
		*a = *b;
		*b = t;
	}
}

static void sift_down(char *base, size_t root, size_t n, size_t size,
		      int (*cmp)(const void *, const void *))
{
	size_t child;

	for (; (child = 2 * root + 1) < n; root = child) {
		if (child + 1 < n &&
		    cmp(base + child * size, base + (child + 1) * size) < 0)
			child++;
		if (cmp(base + root * size, base + child * size) >= 0)
			return;
		swap_items(base + root * size, base + child * size, size);
	}
}

void sort_in_place(void *base, size_t n, size_t size,
		   int (*cmp)(const void *, const void *))
{
	size_t i;

	for (i = n / 2; i-- > 0;)
		sift_down(base, i, n, size, cmp);
	for (i = n; i-- > 1;) {
		swap_items(base, (char *)base + i * size, size);
		sift_down(base, 0, i, size, cmp);
	}
}

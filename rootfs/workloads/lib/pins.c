// SPDX-License-Identifier: GPL-2.0-only
/* Pages that a pipe holds a reference to; see common.h. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../common.h"

/* Each pin is an open file; the usual limit is 1024. */
static void raise_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int pin_page(struct pin *pin, void *page, const struct content *c)
{
	struct iovec iov = { page, PAGE_BYTES };
	static bool raised;
	int ends[2], err = 0;

	if (!raised)
		raise_limit();
	raised = true;
	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	if (vmsplice(ends[1], &iov, 1, 0) != (ssize_t)PAGE_BYTES)
		err = errno ? -errno : -EIO;
	close(ends[1]);
	if (err) {
		close(ends[0]);
		return err;
	}
	pin->fd = ends[0];
	pin->content = *c;
	return 0;
}

uint64_t pin_check(struct pin *pin, const struct content *expected)
{
	struct content c = expected ? *expected : pin->content;
	uint64_t page[PAGE_BYTES / 8];
	size_t got = 0;
	ssize_t n;

	while (got < PAGE_BYTES) {
		n = read(pin->fd, (char *)page + got, PAGE_BYTES - got);
		if (n <= 0)
			die(EXIT_WRONG, "a pipe has lost its page");
		got += (size_t)n;
	}
	close(pin->fd);
	return region_check(page, &c, 1, "out of the pipe");
}

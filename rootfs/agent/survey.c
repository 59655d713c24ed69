// SPDX-License-Identifier: GPL-2.0-only
/*
 * SURVEY: all files of some directories in one go.
 *
 * This is how the counters of the engine are watched, so it must not move them:
 * no program is started and nothing is allocated.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"

/* Entries of a directory; mapped for the first survey. */
static uint8_t *entries;

/* Send a file of a directory; nothing when it cannot be read. */
static void send_file(uint32_t id, int dir_fd, const char *dir,
		      const char *name)
{
	int fd = openat(dir_fd, name,
			O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;

	if (fd < 0)
		return;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
		line_file(id, fd, st.st_mode, dir, name);
	close(fd);
}

static void send_directory(uint32_t id, int fd, const char *dir)
{
	long n, at;

	while ((n = syscall(SYS_getdents64, fd, entries, PAGE)) > 0) {
		for (at = 0; at < n;) {
			struct dirent64 *d = (struct dirent64 *)(entries + at);

			if (d->d_type == DT_REG || d->d_type == DT_UNKNOWN)
				send_file(id, fd, dir, d->d_name);
			at += d->d_reclen;
		}
	}
}

/*
 * Send every file that @paths, each ended by a NUL, name or have in them.
 * Return: 0, or the errno of the last path that could not be opened.
 */
int survey(uint32_t id, const char *paths, size_t len)
{
	const char *path, *end = paths + len;
	struct stat st;
	int error = 0;

	if (!entries)
		entries = shared_memory(PAGE);
	if (!entries)
		return ENOMEM;
	for (path = paths; path < end; path += strlen(path) + 1) {
		int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);

		if (fd < 0) {
			error = errno;
			continue;
		}
		if (fstat(fd, &st) == 0) {
			if (S_ISDIR(st.st_mode))
				send_directory(id, fd, path);
			else if (S_ISREG(st.st_mode))
				line_file(id, fd, st.st_mode, path, "");
		}
		close(fd);
	}
	return error;
}

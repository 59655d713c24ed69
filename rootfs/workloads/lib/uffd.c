// SPDX-License-Identifier: GPL-2.0-only
/* Moving and write-protecting pages by userfaultfd; see common.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../common.h"

/* Newer than the headers of many a distribution. */
struct move {
	uint64_t dst, src, len, mode;
	int64_t move;
};

#define UFFDIO_MOVE_PAGES	_IOWR(UFFDIO, 0x05, struct move)
#define FEATURE_MOVE		(1ULL << 16)
#define FEATURE_WP_ASYNC	(1ULL << 15)

struct rwprotect {
	struct uffdio_range range;
	uint64_t mode;
};

#define UFFDIO_RWPROTECT_PAGES	_IOWR(UFFDIO, 0x09, struct rwprotect)
#define RWPROTECT_ON		(1ULL << 0)
#define REGISTER_MODE_RWP	(1ULL << 3)
#define FEATURE_RWP		(1ULL << 17)

int uffd_move(void *to, void *from, size_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURE_MOVE };
	struct uffdio_register reg = {
		.range = { (uintptr_t)to, bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct move move = { (uintptr_t)to, (uintptr_t)from, bytes, 0, 0 };
	int uffd = (int)syscall(__NR_userfaultfd, O_CLOEXEC), err = 0;

	if (uffd < 0)
		return -errno;
	if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg) ||
	    ioctl(uffd, UFFDIO_MOVE_PAGES, &move))
		err = -errno;
	close(uffd);
	return err;
}

int uffd_protect(void *start, size_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURE_WP_ASYNC };
	struct uffdio_register reg = {
		.range = { (uintptr_t)start, bytes },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect wp = {
		.range = reg.range,
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int uffd = (int)syscall(__NR_userfaultfd, O_CLOEXEC), err;

	if (uffd < 0)
		return -errno;
	if (!ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &reg) &&
	    !ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		return uffd;
	err = -errno;
	close(uffd);
	return err;
}

int uffd_shut(void *start, size_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FEATURE_RWP };
	struct uffdio_register reg = {
		.range = { (uintptr_t)start, bytes },
		.mode = REGISTER_MODE_RWP,
	};
	struct rwprotect rwp = {
		.range = reg.range,
		.mode = RWPROTECT_ON,
	};
	int uffd = (int)syscall(__NR_userfaultfd, O_CLOEXEC), err;

	if (uffd < 0)
		return -errno;
	if (!ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &reg) &&
	    !ioctl(uffd, UFFDIO_RWPROTECT_PAGES, &rwp))
		return uffd;
	err = -errno;
	close(uffd);
	return err;
}

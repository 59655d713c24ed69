// SPDX-License-Identifier: GPL-2.0-only
/* Moving pages to the memory of a device, of which the kernel's test_hmm plays one. */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../common.h"

#define DEVICE	"/dev/hmm_dmirror0"

/* Of lib/test_hmm_uapi.h, which is not installed anywhere. */
struct command {
	uint64_t addr, ptr, pages, done, faults;
};

#define MIGRATE_TO_DEVICE	_IOWR('H', 0x02, struct command)
#define MAKE_EXCLUSIVE		_IOWR('H', 0x05, struct command)

/* The device belongs to whoever has opened it: to be kept for as long as the memory. */
int device_open(void)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

int device_take(int fd, void *start, size_t pages, void *copy, bool exclusive)
{
	struct command command = { (uintptr_t)start, (uintptr_t)copy, pages, 0, 0 };

	return ioctl(fd, exclusive ? MAKE_EXCLUSIVE : MIGRATE_TO_DEVICE, &command) ? -errno : 0;
}

// SPDX-License-Identifier: GPL-2.0-only
/* Writing to the memory of another process; see common.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common.h"

static int flip_remote(pid_t pid, uint64_t addr, uint8_t flip)
{
	uint8_t byte;
	struct iovec here = { &byte, 1 }, there = { (void *)(uintptr_t)addr, 1 };

	if (process_vm_readv(pid, &here, 1, &there, 1, 0) != 1)
		return -errno;
	byte ^= flip;
	return process_vm_writev(pid, &here, 1, &there, 1, 0) == 1 ? 0 : -errno;
}

static int flip_file(int fd, uint64_t addr, uint8_t flip)
{
	uint8_t byte;

	if (pread(fd, &byte, 1, (off_t)addr) != 1)
		return -errno;
	byte ^= flip;
	return pwrite(fd, &byte, 1, (off_t)addr) == 1 ? 0 : -errno;
}

static int flip_traced(pid_t pid, uint64_t addr, uint8_t flip)
{
	uint64_t aligned = addr & ~7UL;
	long word;

	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, pid, aligned, NULL);
	if (errno)
		return -errno;
	word ^= (long)flip << (addr - aligned) * 8;
	return ptrace(PTRACE_POKEDATA, pid, aligned, word) ? -errno : 0;
}

int foreign_flip(pid_t pid, uint64_t base, size_t pages, size_t off, uint8_t flip,
		 const char *how)
{
	bool traced = !strcmp(how, "ptrace");
	char path[32];
	int err = 0, fd = -1, status;
	size_t i;

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	if (!strcmp(how, "memfile"))
		fd = open(path, O_RDWR | O_CLOEXEC);
	else if (traced && (ptrace(PTRACE_ATTACH, pid, NULL, NULL) ||
			    waitpid(pid, &status, __WALL) != pid))
		return -errno;
	if (!strcmp(how, "memfile") && fd < 0)
		return -errno;
	for (i = 0; i < pages && !err; i++, base += PAGE_BYTES)
		err = traced ? flip_traced(pid, base + off, flip) :
		      fd >= 0 ? flip_file(fd, base + off, flip) :
				flip_remote(pid, base + off, flip);
	if (traced && ptrace(PTRACE_DETACH, pid, NULL, NULL) && !err)
		err = -errno;
	if (fd >= 0)
		close(fd);
	return err;
}

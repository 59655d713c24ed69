// SPDX-License-Identifier: GPL-2.0-only
/*
 * Why the kernel says ENOENT for a program that is there: it lacks another
 * file, the one that is to load the program.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

/* Program headers that are looked at. */
#define MAX_HEADERS	64

/* Copy PT_INTERP of a 64-bit ELF file to @path. Return: whether it has one. */
static bool elf_loader(int fd, const Elf64_Ehdr *header, char *path, size_t room)
{
	Elf64_Phdr p;
	size_t i;

	if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_phentsize != sizeof(p))
		return false;
	for (i = 0; i < header->e_phnum && i < MAX_HEADERS; i++) {
		off_t where = (off_t)(header->e_phoff + i * sizeof(p));

		if (pread(fd, &p, sizeof(p), where) != (ssize_t)sizeof(p))
			return false;
		if (p.p_type != PT_INTERP)
			continue;
		if (p.p_filesz == 0 || p.p_filesz >= room ||
		    pread(fd, path, p.p_filesz, (off_t)p.p_offset) != (ssize_t)p.p_filesz)
			return false;
		path[p.p_filesz] = '\0';
		return true;
	}
	return false;
}

/* Copy what follows the #! of a script to @path. Return: whether something does. */
static bool script_interpreter(int fd, char *path, size_t room)
{
	ssize_t n = pread(fd, path, room - 1, 2);
	size_t skip;

	if (n <= 0)
		return false;
	path[n] = '\0';
	skip = strspn(path, " \t");
	memmove(path, path + skip, (size_t)n - skip + 1);
	path[strcspn(path, " \t\n")] = '\0';
	return path[0] != '\0';
}

enum program_kind missing_loader(int dir, const char *file, char *path, size_t room)
{
	enum program_kind kind = PROGRAM_OTHER;
	union {
		Elf64_Ehdr elf;
		char text[sizeof(Elf64_Ehdr)];
	} head = { 0 };
	int fd = openat(dir, file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return PROGRAM_OTHER;
	if (pread(fd, &head, sizeof(head), 0) >= 2) {
		if (!memcmp(head.text, "#!", 2) && script_interpreter(fd, path, room))
			kind = PROGRAM_SCRIPT;
		else if (!memcmp(head.text, ELFMAG, SELFMAG) &&
			 elf_loader(fd, &head.elf, path, room))
			kind = PROGRAM_DYNAMIC;
	}
	close(fd);
	if (kind != PROGRAM_OTHER && (faccessat(dir, path, F_OK, 0) == 0 || errno != ENOENT))
		kind = PROGRAM_OTHER;
	return kind;
}

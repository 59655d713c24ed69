// SPDX-License-Identifier: GPL-2.0-only
/*
 * pagestep - one operation on one page at a time, by order.
 *
 * A process with a region of anonymous memory, and a private mapping of a file
 * of the same size. Orders come in lines on standard input; each is answered by
 * a line of JSON with the address of the page and what the page map says of it,
 * so that somebody who watches the kernel knows what to look for. It knows every
 * byte it has written, and checks all of them at the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common.h"

#define PAGES		64UL
#define PM_PRESENT	(1ULL << 63)
#define PM_PFN_MASK	((1ULL << 55) - 1)

enum { S_STEP = 1 };

static char *region, *file_map, *buffer;
static struct content *shadow, *file_shadow;
static int pagemap_fd, data_fd;

static uint64_t pfn_of(const void *addr)
{
	uint64_t entry = 0;
	off_t at = (off_t)((uintptr_t)addr / PAGE_BYTES * sizeof(entry));

	if (pread(pagemap_fd, &entry, sizeof(entry), at) != (ssize_t)sizeof(entry))
		die(EXIT_ENV, "pagemap: %s", strerror(errno));
	return entry & PM_PRESENT ? entry & PM_PFN_MASK : 0;
}

static void report(const char *op, unsigned long page, const char *addr)
{
	printf("{\"op\": \"%s\", \"page\": %lu, \"pid\": %d, \"address\": %" PRIuPTR
	       ", \"pfn\": %" PRIu64 "}\n", op, page, getpid(), (uintptr_t)addr, pfn_of(addr));
	fflush(stdout);
}

/* A file that holds what @c says, in every page. */
static int file_of(const struct content *c)
{
	int fd = memfd_create("pagestep", MFD_CLOEXEC);
	unsigned long i;

	if (fd < 0)
		die(EXIT_ENV, "memfd_create: %s", strerror(errno));
	page_fill(buffer, c);
	for (i = 0; i < PAGES; i++)
		if (write(fd, buffer, PAGE_BYTES) != (ssize_t)PAGE_BYTES)
			die(EXIT_ENV, "write: %s", strerror(errno));
	return fd;
}

static uint64_t verify(const char *when)
{
	return region_check(region, shadow, PAGES, when) +
	       region_check(file_map, file_shadow, PAGES, when);
}

/* A child writes to the page, reports, and sees that nothing else has changed. */
static void child_write(unsigned long page, uint64_t key)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		die(EXIT_ENV, "fork: %s", strerror(errno));
	if (!pid) {
		struct content *mine = untracked_alloc(PAGES * sizeof(*mine));

		close(pagemap_fd);
		pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		memcpy(mine, shadow, PAGES * sizeof(*mine));
		mine[page] = (struct content){ .key = key };
		page_fill(region + page * PAGE_BYTES, &mine[page]);
		report("child", page, region + page * PAGE_BYTES);
		_exit(region_check(region, mine, PAGES, "in the child") ? EXIT_WRONG : 0);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status))
		die(EXIT_WRONG, "the child ended with wait status 0x%x", status);
}

/* The kernel fills the page: by read(), or into another process' memory. */
static void kernel_write(char *addr, const struct content *c, bool remote)
{
	struct iovec local = { buffer, PAGE_BYTES }, there = { addr, PAGE_BYTES };
	ssize_t n;

	page_fill(buffer, c);
	if (remote) {
		n = process_vm_writev(getpid(), &local, 1, &there, 1, 0);
	} else {
		if (pwrite(data_fd, buffer, PAGE_BYTES, 0) != (ssize_t)PAGE_BYTES)
			die(EXIT_ENV, "pwrite: %s", strerror(errno));
		n = pread(data_fd, addr, PAGE_BYTES, 0);
	}
	if (n != (ssize_t)PAGE_BYTES)
		die(EXIT_ENV, "%s: %s", remote ? "process_vm_writev" : "pread", strerror(errno));
}

static void advise(char *addr, int advice)
{
	if (madvise(addr, PAGE_BYTES, advice))
		die(EXIT_ENV, "madvise: %s", strerror(errno));
}

/* A pipe, which is never read, gets a reference to the page. */
static void pin(char *addr)
{
	struct iovec iov = { addr, PAGE_BYTES };
	int fds[2];

	if (pipe(fds))
		die(EXIT_ENV, "pipe: %s", strerror(errno));
	if (vmsplice(fds[1], &iov, 1, 0) != (ssize_t)PAGE_BYTES)
		die(EXIT_ENV, "vmsplice: %s", strerror(errno));
}

static void *touch(void *addr)
{
	(void)*(volatile char *)addr;
	return NULL;
}

/* A thread faults, and sleeps in its fault until this one has filled the page. */
static void fill_by_userfaultfd(char *addr, const struct content *c)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)addr, PAGE_BYTES },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_copy copy = {
		.dst = (uintptr_t)addr, .src = (uintptr_t)buffer, .len = PAGE_BYTES,
	};
	struct uffd_msg msg;
	pthread_t thread;
	int fd = (int)syscall(__NR_userfaultfd, O_CLOEXEC);

	page_fill(buffer, c);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg))
		die(EXIT_ENV, "userfaultfd: %s", strerror(errno));
	if (pthread_create(&thread, NULL, touch, addr))
		die(EXIT_ENV, "pthread_create failed");
	if (read(fd, &msg, sizeof(msg)) != (ssize_t)sizeof(msg) || ioctl(fd, UFFDIO_COPY, &copy))
		die(EXIT_ENV, "userfaultfd: %s", strerror(errno));
	pthread_join(thread, NULL);
	close(fd);
}

/* A pipe's table of many buffers is a block of pages, freed when the pipe is made small. */
static void free_block(void)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) || fcntl(ends[1], F_SETPIPE_SZ, 1 << 20) < 0 ||
	    fcntl(ends[1], F_SETPIPE_SZ, PAGE_BYTES) < 0)
		die(EXIT_ENV, "pipe: %s", strerror(errno));
	close(ends[0]);
	close(ends[1]);
}

/* Carries out "OP PAGE [NUMBER]"; pages of equal NUMBER have equal contents. */
static void carry_out(const char *op, unsigned long page, uint64_t number)
{
	struct content c = { .key = content_key(S_STEP, number, 0, 0) };
	char *addr = region + page * PAGE_BYTES;

	if (!strcmp(op, "write")) {
		shadow[page] = c;
		page_fill(addr, &c);
	} else if (!strcmp(op, "read")) {
		(void)*(volatile char *)addr;
	} else if (!strcmp(op, "populate")) {
		advise(addr, MADV_POPULATE_WRITE);
	} else if (!strcmp(op, "mlock")) {
		if (mlock(addr, PAGE_BYTES))
			die(EXIT_ENV, "mlock: %s", strerror(errno));
	} else if (!strcmp(op, "kernel") || !strcmp(op, "remote")) {
		shadow[page] = c;
		kernel_write(addr, &c, *op == 'r');
	} else if (!strcmp(op, "uffd")) {
		shadow[page] = c;
		fill_by_userfaultfd(addr, &c);
	} else if (!strcmp(op, "free")) {
		advise(addr, MADV_DONTNEED);
		shadow[page] = (struct content){ };
	} else if (!strcmp(op, "pageout")) {
		advise(addr, MADV_PAGEOUT);
	} else if (!strcmp(op, "lazyfree")) {
		advise(addr, MADV_FREE);
		shadow[page].maybe_zero = 1;
	} else if (!strcmp(op, "pin")) {
		pin(addr);
	} else if (!strcmp(op, "child")) {
		child_write(page, c.key);
	} else if (!strcmp(op, "block")) {
		free_block();
	} else if (!strcmp(op, "file")) {
		addr = file_map + page * PAGE_BYTES;
		file_shadow[page] = c;
		page_fill(addr, &c);
	} else if (!strcmp(op, "nowhere")) {
		/* Page 0 and those behind it are never mapped. */
		addr = (char *)(page * PAGE_BYTES);
		if (pread(data_fd, addr, PAGE_BYTES, 0) >= 0 || errno != EFAULT)
			die(EXIT_WRONG, "pread did not fail with EFAULT");
	} else if (!strcmp(op, "settle")) {
		if (!engine_settle(120000))
			die(EXIT_ENV, "the engine did not settle");
	} else if (strcmp(op, "show")) {
		die(EXIT_USAGE, "\"%s\": no such operation; see --help", op);
	}
	report(op, page, addr);
}

static void __noreturn usage(void)
{
	printf("usage: pagestep\n"
		"\n"
		"Reads orders in lines, OPERATION PAGE [NUMBER], and answers each with a line of\n"
		"JSON. The first line it prints says where its 64 pages are.\n"
		"  write     write to the page (pages with the same NUMBER are equal)\n"
		"  read      touch it by reading\n"
		"  populate  madvise(MADV_POPULATE_WRITE)     mlock    mlock it\n"
		"  kernel    read(2) into it                  remote   process_vm_writev() into it\n"
		"  free      madvise(MADV_DONTNEED)           pageout  madvise(MADV_PAGEOUT)\n"
		"  lazyfree  madvise(MADV_FREE)               pin      give a pipe a reference\n"
		"  child     a forked child writes to it      file     write to a private file page\n"
		"  uffd      a thread touches it, and waits until userfaultfd has filled it\n"
		"  nowhere   read(2) into a page of no area, which has to fail\n"
		"  block     let the kernel free a block of several pages\n"
		"  settle    wait until the engine has settled\n"
		"  show      only say what the page map says\n"
		"At the end of the input it checks every byte.\n"
		"\n"
		"Exit status: 0, 1 a wrong byte, 2 usage, 3 refused by the kernel or time-out.\n");
	exit(0);
}

static void make_maps(void)
{
	struct content c = { .key = content_key(S_STEP, UINT64_MAX, 0, 0) };
	unsigned long i;

	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		die(EXIT_ENV, "pagemap: %s", strerror(errno));
	buffer = untracked_alloc(PAGE_BYTES);
	shadow = untracked_alloc(PAGES * sizeof(*shadow));
	file_shadow = untracked_alloc(PAGES * sizeof(*shadow));
	data_fd = file_of(&c);
	region = mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	file_map = mmap(NULL, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE,
			file_of(&c), 0);
	if (region == MAP_FAILED || file_map == MAP_FAILED)
		die(EXIT_ENV, "mmap: %s", strerror(errno));
	for (i = 0; i < PAGES; i++)
		file_shadow[i] = c;
	printf("{\"tool\": \"pagestep\", \"pid\": %d, \"pages\": %lu, \"region\": %" PRIuPTR
	       ", \"file\": %" PRIuPTR "}\n", getpid(), PAGES, (uintptr_t)region,
	       (uintptr_t)file_map);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	unsigned long page;
	uint64_t number, wrong;
	char line[128], op[16];

	prog_start("pagestep");
	if (argc > 1 && !strcmp(argv[1], "--help"))
		usage();
	no_more_arguments(1, argc, argv);
	make_maps();
	while (fgets(line, sizeof(line), stdin)) {
		page = 0;
		number = 0;
		if (sscanf(line, "%15s %lu %" SCNu64, op, &page, &number) < 1)
			continue;
		if (page >= PAGES)
			die(EXIT_USAGE, "there is no page %lu", page);
		carry_out(op, page, number);
	}
	wrong = verify("at the end");
	printf("{\"tool\": \"pagestep\", \"ok\": %s, \"wrong\": %" PRIu64 "}\n",
	       wrong ? "false" : "true", wrong);
	return wrong ? EXIT_WRONG : 0;
}

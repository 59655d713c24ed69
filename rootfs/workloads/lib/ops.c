// SPDX-License-Identifier: GPL-2.0-only
/* What a worker of pageops does to its pages; see ops.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ops.h"

#define REPLACE_WRONG	99	/* a forked child's way to say: wrong byte */
#define COLLAPSE_TRIES	50
#define COLLAPSE_PAUSE_MS 20
#define HELD_SOON_MS	120000U

enum { S_DUP = 1, S_UNIQUE, S_WRITE };

struct ops_options ops = { .pages = 64, .seed = 1 };
volatile struct beat *ops_beats;
volatile struct progress *ops_progress;

/* A worker's own state; a copy in each process. */
static struct {
	unsigned int index;
	char *base;
	size_t first, last;	/* the pages that operations apply to */
	struct content *shadow;
	void *room;		/* for the contents of a page that is to be written */
	struct pin *pins;
	uint64_t generation;
	pid_t child;		/* of do_bear() */
} me;

static char *at(size_t page)
{
	return me.base + page * PAGE_BYTES;
}

static size_t bytes(void)
{
	return (me.last - me.first) * PAGE_BYTES;
}

static int do_map(const char *what)
{
	bool huge = ops.huge && !*what;
	size_t size = ops.pages * PAGE_BYTES, more = huge ? HUGE_BYTES : 0;
	int flags = MAP_PRIVATE | MAP_NORESERVE;
	char *end;

	if (!strcmp(what, "hugetlb"))
		flags = MAP_PRIVATE | MAP_HUGETLB;
	else if (!strcmp(what, "hugetlb-shared"))
		flags = MAP_SHARED | MAP_HUGETLB;
	else if (*what)
		return -EINVAL;
	me.base = mmap(NULL, size + more, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	if (me.base == MAP_FAILED)
		return -errno;
	if (huge) {
		end = me.base + size + more;
		more = -(uintptr_t)me.base % HUGE_BYTES;
		munmap(me.base, more);
		me.base += more;
		munmap(me.base + size, (size_t)(end - me.base) - size);
		if (madvise(me.base, size, MADV_HUGEPAGE))
			return -errno;
	}
	memset(me.shadow, 0, ops.pages * sizeof(*me.shadow));
	me.first = 0;
	me.last = ops.pages;
	return 0;
}

static int do_fill(const char *how)
{
	const char *arg = strchr(how, ':');
	uint64_t number = arg ? strtoull(arg + 1, NULL, 10) : 0;
	char kind[16];
	size_t i;

	snprintf(kind, sizeof(kind), "%.*s",
		 arg ? (int)(arg - how) : (int)sizeof(kind), how);

	me.generation++;
	for (i = me.first; i < me.last; i++) {
		struct content c = { 0 };

		if (!strcmp(kind, "dup"))
			c.key = content_key(ops.seed, S_DUP, i, number);
		else if (!strcmp(kind, "same"))
			c.key = content_key(ops.seed, S_DUP, 1ULL << 40, number);
		else if (!strcmp(kind, "unique"))
			c.key = content_key(ops.seed, S_UNIQUE, me.index,
					    i + (me.generation << 32));
		else if (!strcmp(kind, "near"))
			c = (struct content){ content_key(ops.seed, S_DUP, i, 0),
					      number % PAGE_BYTES, me.index + 1, 0 };
		else if (!strcmp(kind, "nearzero"))
			c = (struct content){ 0, number % PAGE_BYTES, me.index + 1, 0 };
		else if (strcmp(kind, "zero"))
			return -EINVAL;
		me.shadow[i] = c;
		page_put(at(i), &c, me.room);
	}
	return 0;
}

/* Whole new pages, a given per cent of them, all over the range. */
static int do_write(uint64_t percent)
{
	size_t i;

	me.generation++;
	for (i = me.first; i < me.last; i++) {
		if ((i - me.first) * percent / 100 == (i - me.first + 1) * percent / 100)
			continue;
		me.shadow[i] = (struct content){
			content_key(ops.seed, S_WRITE, me.index, i + (me.generation << 32)),
			0, 0, 0 };
		page_put(at(i), &me.shadow[i], me.room);
	}
	return 0;
}

/* One byte of each page; pages that already differ in one byte stay. */
static int do_poke(uint64_t off)
{
	size_t i;

	for (i = me.first; i < me.last; i++) {
		struct content *c = &me.shadow[i];

		if (c->maybe_zero || (c->flip && c->off != off))
			return -EINVAL;
		c->off = (uint16_t)off;
		c->flip ^= 0xa5;
		at(i)[off] ^= (char)0xa5;
	}
	return 0;
}

/* The same, but it is the kernel that writes, in read(2). */
static int do_receive(uint64_t off)
{
	int ends[2], err = 0;
	size_t i;

	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	for (i = me.first; i < me.last; i++) {
		struct content *c = &me.shadow[i];
		char byte = (char)(at(i)[off] ^ 0xa5);

		if (c->maybe_zero || (c->flip && c->off != off))
			err = -EINVAL;
		else if (write(ends[1], &byte, 1) != 1 || read(ends[0], at(i) + off, 1) != 1)
			err = -errno;
		if (err)
			break;		/* and the page is what it was */
		c->off = (uint16_t)off;
		c->flip ^= 0xa5;
	}
	close(ends[0]);
	close(ends[1]);
	return err;
}

static int do_touch(const char *how)
{
	static const struct content zeros;
	struct mismatch unused;
	size_t i;

	for (i = me.first; i < me.last; i++) {
		if (!strcmp(how, "read"))
			(void)*(volatile char *)at(i);
		else if (!strcmp(how, "write"))	/* what is there already */
			*(volatile char *)at(i) = *(volatile char *)at(i);
		else
			return -EINVAL;
		/* A write ends what MADV_FREE left open. */
		if (!strcmp(how, "write") && me.shadow[i].maybe_zero) {
			if (page_check(at(i), &zeros, &unused))
				me.shadow[i] = zeros;
			me.shadow[i].maybe_zero = 0;
		}
	}
	return 0;
}

static int do_madvise(const char *name)
{
	static const struct {
		const char *name;
		int advice;
	} advices[] = {
		{ "dontneed", MADV_DONTNEED }, { "free", MADV_FREE },
		{ "pageout", MADV_PAGEOUT }, { "cold", MADV_COLD },
		{ "mergeable", MADV_MERGEABLE }, { "unmergeable", MADV_UNMERGEABLE },
		{ "populate_read", MADV_POPULATE_READ },
		{ "populate_write", MADV_POPULATE_WRITE },
		{ "willneed", MADV_WILLNEED },
		{ "hugepage", MADV_HUGEPAGE }, { "nohugepage", MADV_NOHUGEPAGE },
		{ "collapse", MADV_COLLAPSE }, { "soft_offline", MADV_SOFT_OFFLINE },
	};
	unsigned int tries = COLLAPSE_TRIES;
	size_t i, a;

	for (a = 0; a < ARRAY_SIZE(advices); a++)
		if (!strcmp(advices[a].name, name))
			break;
	if (a == ARRAY_SIZE(advices))
		return -EINVAL;
	while (madvise(at(me.first), bytes(), advices[a].advice)) {
		/* Somebody holds a page, khugepaged or pksmd: "try again", says madvise(2). */
		if (errno != EAGAIN || advices[a].advice != MADV_COLLAPSE || !--tries)
			return -errno;
		sleep_ms(COLLAPSE_PAUSE_MS);
	}
	for (i = me.first; i < me.last; i++) {
		if (advices[a].advice == MADV_DONTNEED)
			memset(&me.shadow[i], 0, sizeof(me.shadow[i]));
		else if (advices[a].advice == MADV_FREE)
			me.shadow[i].maybe_zero = 1;
	}
	return 0;
}

/* For good: nobody closes the descriptor before this process ends. */
static int do_uffd_wp(void)
{
	int fd = uffd_protect(at(me.first), bytes());

	return fd < 0 ? fd : 0;
}

/* Until it is told "off"; whoever touches it meanwhile waits for that. */
static int do_uffd_rwp(const char *how)
{
	static int fd = -1;

	if (strcmp(how, "off")) {
		if (*how || fd >= 0)
			return -EINVAL;
		fd = uffd_shut(at(me.first), bytes());
		return fd < 0 ? fd : 0;
	}
	if (fd < 0)
		return -EINVAL;
	close(fd);
	fd = -1;
	return 0;
}

/* What is merged, or cannot be had just now, stays here: that is no error. */
static int do_device(const char *how)
{
	static char *copy;
	static int fd = -1;
	int err;

	if (*how && strcmp(how, "exclusive"))
		return -EINVAL;
	if (fd < 0)
		fd = device_open();
	if (fd < 0)
		return fd;
	if (!copy)
		copy = untracked_alloc(ops.pages * PAGE_BYTES);
	err = device_take(fd, at(me.first), me.last - me.first, copy, *how);
	return err == -ENOENT ? 0 : err;
}

/* In the last page of the range; at most so long until somebody is held. */
static int do_stale(uint64_t seconds, struct reply *r)
{
	int found = stale_writes(me.base, ops.pages * PAGE_BYTES,
				 (me.last - 1) * PAGE_BYTES + 8, seconds * 1000);

	if (found > 0)
		r->wrong++;
	return found < 0 ? found : 0;
}

/* NODE, NODE:move and NODE:all; 0 or a negative errno. */
static int parse_node(const char *arg, int *node, unsigned int *flags)
{
	char how[8] = "";

	if (sscanf(arg, "%d:%7s", node, how) < 1 || *node < 0 || *node >= (int)NODES)
		return -EINVAL;
	if (!strcmp(how, "move"))
		*flags = MPOL_MF_MOVE;
	else if (!strcmp(how, "all"))
		*flags = MPOL_MF_MOVE_ALL;
	else if (*how)
		return -EINVAL;
	return 0;
}

static int do_bind(const char *arg)
{
	unsigned int flags = 0;
	int node, err = parse_node(arg, &node, &flags);

	return err ? err : node_bind(at(me.first), bytes(), node, flags);
}

static int do_move(const char *arg)
{
	unsigned int flags = MPOL_MF_MOVE;
	int node, err = parse_node(arg, &node, &flags);

	return err ? err : node_move(at(me.first), me.last - me.first, node, flags);
}

static int do_migrate(const char *arg)
{
	int from, to;

	if (sscanf(arg, "%d-%d", &from, &to) != 2 || from < 0 || from >= (int)NODES ||
	    to < 0 || to >= (int)NODES)
		return -EINVAL;
	return node_migrate(from, to);
}

/* Reads every page, over and over, so that this process uses its CPU. */
static void do_look(uint64_t ms)
{
	uint64_t end = now_ms() + ms;
	size_t i;

	do {
		for (i = me.first; i < me.last; i++)
			(void)*(volatile char *)at(i);
	} while (now_ms() < end);
}

/*
 * Writes to the first page of the range what it holds, over and over, and makes no
 * system call meanwhile: its CPU has no reason to look at the page table again.
 */
static void do_beat(void)
{
	volatile uint64_t *word = (uint64_t *)at(me.first), value = *word;
	volatile struct beat *beat = &ops_beats[me.index];

	beat->strokes = 0;
	beat->begun++;
	while (beat->ended < beat->begun) {
		*word = value;
		beat->strokes++;
	}
}

/* What is not of the region, a stack for one, is not moved or swapped out any more. */
static int do_stay(void)
{
	if (mlockall(MCL_CURRENT | MCL_ONFAULT) ||
	    munlock(me.base, ops.pages * PAGE_BYTES))
		return -errno;
	return 0;
}

/* Returns only if it fails: who has asked waits for the end of this process. */
static int do_exec(void)
{
	execl("/bin/true", "true", (char *)NULL);
	return -errno;
}

static int do_mremap(void)
{
	size_t size = ops.pages * PAGE_BYTES;
	char *place, *new;

	place = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (place == MAP_FAILED)
		return -errno;
	new = mremap(me.base, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	if (new == MAP_FAILED)
		return -errno;
	me.base = new;
	return 0;
}

static int do_mprotect(const char *how)
{
	int prot;

	if (!strcmp(how, "none"))
		prot = PROT_NONE;
	else if (!strcmp(how, "ro"))
		prot = PROT_READ;
	else if (!strcmp(how, "rw"))
		prot = PROT_READ | PROT_WRITE;
	else
		return -EINVAL;
	return mprotect(at(me.first), bytes(), prot) ? -errno : 0;
}

static int do_pin(const char *how)
{
	size_t i;
	int err = 0;

	if (*how && strcmp(how, "child") && strcmp(how, "held"))
		return -EINVAL;
	if (!me.pins)
		me.pins = untracked_alloc(ops.pages * sizeof(*me.pins));
	for (i = me.first; i < me.last && !err; i++) {
		if (*how == 'h')
			err = pin_page_when_held(&me.pins[i], at(i), &me.shadow[i],
						 HELD_SOON_MS);
		else
			err = (*how ? pin_page_by_child : pin_page)(&me.pins[i], at(i),
								    &me.shadow[i]);
	}
	return err;
}

/* What was written since comes out of the pipe, or, with "old", what was there then. */
static int do_unpin(const char *how, struct reply *r)
{
	size_t i;

	if (!me.pins || (*how && strcmp(how, "old")))
		return -EINVAL;
	for (i = me.first; i < me.last; i++)
		r->wrong += pin_check(&me.pins[i], *how ? NULL : &me.shadow[i]);
	return 0;
}

/* PATH:TEXT, to a file that means whoever writes to it: of /proc/self, or a cgroup's. */
static int do_self(const char *arg)
{
	const char *text = strchr(arg, ':');
	char path[sizeof(((struct order *)NULL)->text)];

	if (!text)
		return -EINVAL;
	snprintf(path, sizeof(path), "%.*s", (int)(text - arg), arg);
	return file_write(path, text + 1);
}

/*
 * A child that is just there until do_bury(), with a number lower than that of any
 * worker: who visits processes by their numbers has passed it then.
 */
static int do_bear(void)
{
	struct clone_args args = { .exit_signal = SIGCHLD };
	pid_t number = getpid();
	sigset_t term;
	int unused;
	long pid;

	while (number > 1 && !kill(number, 0))
		number--;
	if (number == 1)
		return -EAGAIN;	/* nobody has ended before */
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &term, NULL))
		return -errno;
	args.set_tid = (uintptr_t)&number;
	args.set_tid_size = 1;
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return -errno;
	if (!pid) {
		sigwait(&term, &unused);
		_exit(region_check(me.base, me.shadow, ops.pages, "in a child") ?
		      REPLACE_WRONG : 0);
	}
	me.child = (pid_t)pid;
	return 0;
}

/* The child must have what its parent had when it was born, and has still. */
static int do_bury(struct reply *r)
{
	int status;

	if (!me.child || kill(me.child, SIGTERM) ||
	    waitpid(me.child, &status, 0) != me.child)
		return me.child ? -errno : -EINVAL;
	me.child = 0;
	r->wrong += status != 0;
	return 0;
}

/* A child verifies, with "write" also rewrites everything, verifies, ends. */
static int do_fork(const char *how, struct reply *r)
{
	int status = 0;
	pid_t pid;

	if (*how && strcmp(how, "write"))
		return -EINVAL;
	pid = fork();
	if (pid < 0)
		return -errno;
	if (!pid) {
		struct content *mine = untracked_alloc(ops.pages * sizeof(*mine));
		uint64_t wrong;

		/*
		 * The shadow is shared memory: the parent's must not change. So is the
		 * room, but the parent only waits.
		 */
		memcpy(mine, me.shadow, ops.pages * sizeof(*mine));
		me.shadow = mine;
		wrong = region_check(me.base, mine, ops.pages, "in a forked child");
		if (*how) {
			me.index += 1000;
			me.first = 0;
			me.last = ops.pages;
			do_write(100);
			wrong += region_check(me.base, mine, ops.pages,
					      "in a forked child that wrote");
		}
		_exit(wrong ? REPLACE_WRONG : 0);
	}
	if (waitpid(pid, &status, 0) != pid)
		return -errno;
	if (!WIFEXITED(status) || (WEXITSTATUS(status) && WEXITSTATUS(status) != REPLACE_WRONG)) {
		fprintf(stderr, "%s: forked child ended with wait status 0x%x\n",
			prog_name, status);
		r->wrong++;
	} else if (WEXITSTATUS(status)) {
		r->wrong++;
	}
	r->wrong += region_check(me.base, me.shadow, ops.pages, "after a fork");
	return 0;
}

/* As a program that the user has executed, which the user may look at by ptrace. */
static int do_user(uid_t id)
{
	return setresuid(id, id, id) || prctl(PR_SET_DUMPABLE, 1) ? -errno : 0;
}

static int do_group(gid_t id)
{
	return setresgid(id, id, id) || prctl(PR_SET_DUMPABLE, 1) ? -errno : 0;
}

static void carry_out(const struct order *o, struct reply *r)
{
	switch ((enum op)(o->op & ~OP_LATER)) {
	case OP_MAP:
		if (!me.shadow) {
			me.shadow = untracked_alloc(ops.pages * sizeof(*me.shadow));
			me.room = room_alloc();
		}
		r->status = do_map(o->text);
		break;
	case OP_UNMAP:
		r->status = munmap(me.base, ops.pages * PAGE_BYTES) ? -errno : 0;
		me.base = NULL;
		/* What applies to pages applies to none from now on. */
		me.first = 0;
		me.last = 0;
		break;
	case OP_FILL:
		r->status = do_fill(o->text);
		break;
	case OP_VERIFY:
		r->wrong = region_check(at(me.first), me.shadow + me.first,
					me.last - me.first, "at verify");
		break;
	case OP_WRITE:
		r->status = do_write(o->value);
		break;
	case OP_POKE:
		r->status = do_poke(o->value);
		break;
	case OP_RECEIVE:
		r->status = do_receive(o->value);
		break;
	case OP_TOUCH:
		r->status = do_touch(o->text);
		break;
	case OP_MADVISE:
		r->status = do_madvise(o->text);
		break;
	case OP_MLOCK:
		r->status = mlock(at(me.first), bytes()) ? -errno : 0;
		break;
	case OP_MUNLOCK:
		r->status = munlock(at(me.first), bytes()) ? -errno : 0;
		break;
	case OP_MREMAP:
		r->status = do_mremap();
		break;
	case OP_MPROTECT:
		r->status = do_mprotect(o->text);
		break;
	case OP_FORK:
		r->status = do_fork(o->text, r);
		break;
	case OP_MERGE:
		r->status = prctl(PR_SET_MEMORY_MERGE, (unsigned long)o->value, 0, 0, 0) ?
			    -errno : 0;
		break;
	case OP_PIN:
		r->status = do_pin(o->text);
		break;
	case OP_UNPIN:
		r->status = do_unpin(o->text, r);
		break;
	case OP_SELF:
		r->status = do_self(o->text);
		break;
	case OP_UFFD_WP:
		r->status = do_uffd_wp();
		break;
	case OP_UFFD_RWP:
		r->status = do_uffd_rwp(o->text);
		break;
	case OP_STALE:
		r->status = do_stale(o->value, r);
		break;
	case OP_DEVICE:
		r->status = do_device(o->text);
		break;
	case OP_USER:
		r->status = do_user((uid_t)o->value);
		break;
	case OP_GROUP:
		r->status = do_group((gid_t)o->value);
		break;
	case OP_CPU:
		r->status = run_on_cpu((int)o->value);
		break;
	case OP_BIND:
		r->status = do_bind(o->text);
		break;
	case OP_MOVE:
		r->status = do_move(o->text);
		break;
	case OP_MIGRATE:
		r->status = do_migrate(o->text);
		break;
	case OP_LOOK:
		do_look(o->value);
		break;
	case OP_STAY:
		r->status = do_stay();
		break;
	case OP_BEAT:
		do_beat();
		break;
	case OP_EXEC:
		r->status = do_exec();
		break;
	case OP_EXIT:
		_exit(0);
	case OP_BEAR:
		r->status = do_bear();
		break;
	case OP_BURY:
		r->status = do_bury(r);
		break;
	case OP_RANGE:
		me.first = o->value >> 32;
		me.last = o->value & 0xffffffff;
		break;
	default:
		r->status = -EINVAL;
	}
	r->value[0] = (uint64_t)(uintptr_t)me.base;
}

void ops_order(void *ctx __unused, const struct order *o, struct reply *r)
{
	volatile struct progress *mine;

	/* The first that it is told is to map its region. */
	if (o->op == OP_MAP)
		me.index = o->arg;
	mine = &ops_progress[me.index];
	mine->got++;
	while (o->op & OP_LATER && mine->free < mine->got)
		;
	mine->begun++;
	carry_out(o, r);
	mine->ended++;
}

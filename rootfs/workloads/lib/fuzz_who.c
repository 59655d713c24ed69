// SPDX-License-Identifier: GPL-2.0-only
/* Who the processes of fuzzmm are: their users, and their memory cgroups; see fuzz.h. */
#include <errno.h>
#include <inttypes.h>
#include <linux/securebits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../fuzz.h"

#define FIRST_USER	1000U

static const char *groups[2];

void fuzz_group(const char *dir)
{
	if (groups[1])
		bad_usage("--group: two are enough");
	groups[!!groups[0]] = dir;
}

const char *fuzz_group_of(unsigned int number)
{
	return groups[1] ? groups[number % 2] : groups[0];
}

int fuzz_join(pid_t pid, unsigned int number)
{
	const char *dir = fuzz_group_of(number);
	char path[256], text[16];

	if (!dir)
		return ENOENT;
	snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
	snprintf(text, sizeof(text), "%" PRId32, (int32_t)pid);
	return -file_write(path, text);
}

/* It may do as another user what it could as root, so that all operations are possible. */
int fuzz_user(unsigned int number)
{
	unsigned int id = number ? FIRST_USER + number : 0;

	if (number == 3)
		return prctl(PR_SET_DUMPABLE, 0) ? errno : 0;
	if (prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP) ||
	    setresgid(id, id, id) || setresuid(id, id, id))
		return errno;
	/* Another user is out of sight, and out of its parent's care. */
	if (prctl(PR_SET_DUMPABLE, 1) || prctl(PR_SET_PDEATHSIG, SIGKILL))
		return errno;
	return 0;
}

# SPDX-License-Identifier: GPL-2.0-only
#
# A gdb session with a User-Mode Linux kernel:
#
#   gdb -x gdb-scripts/session.gdb vmlinux
#
# ./linux-um gdb begins its sessions with this file too, and says by the
# variable LINUX_UM_SESSION which process to attach to.

# Quitting detaches, and the guest goes on: nothing to ask about.
set confirm off
set print pretty on
set print object off
# Nothing in a guest is on a server, and its kernel has no threads.
set debuginfod enabled off
# A defect of gdb's own is not to leave a dump of gdb behind.
maint set internal-error corefile no
set auto-load libthread-db off
set print thread-events off
set print inferior-events off

# UML's interrupts and page faults, and what ends its processes with it.
# SIGTRAP is gdb's own; SIGINT is Ctrl-C, and stops; SIGABRT is a panic.
handle SIGSEGV SIGUSR1 SIGUSR2 SIGALRM SIGVTALRM SIGIO SIGCHLD SIGWINCH nostop noprint pass
# SIG34 is what one CPU sends another; nothing else uses it where there is one.
handle SIGTERM SIGCONT SIG34 nostop noprint pass

python
import os
import sys


def _here():
    """Return the directory of this file, which gdb reads just now."""
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink("/proc/self/fd/" + descriptor)
        except OSError:
            continue
        if os.path.basename(name) == "session.gdb":
            return os.path.dirname(name)
    return os.getcwd()


if _here() not in sys.path:
    sys.path.insert(0, _here())
from pksm_gdb import session as _session

_session.begin()
end

# These would put another guest in the place of this one.
define hook-run
  linux-um-refuse run
end
define hook-start
  linux-um-refuse start
end

# SPDX-License-Identifier: GPL-2.0-only
"""Where a guest that has just booted meets a debugger that waits for one.

The name of a socket is in the environment. There the guest's process says
which one it is; the answer, one byte, comes when gdb is attached.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

# The socket at which the first guest of the test is waited for.
VARIABLE = "LINUX_UM_GDB_TEST"


def wait_for_debugger(pid: int, rundir: Path) -> bool:
    """Offer the guest *pid* to a debugger that waits for one, and wait until it is attached.

    Returns False at once when there is none, or when it has a guest already.
    """
    name = os.environ.get(VARIABLE)
    if not name:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        try:
            line.connect(name)
            line.send(json.dumps({"pid": pid, "rundir": str(rundir)}).encode())
            return bool(line.recv(1))
        except OSError:
            return False

# SPDX-License-Identifier: GPL-2.0-only
"""Instructions that a process of the host has executed, where the host can count them.

Most virtual machines have no performance counters, and some hosts keep them for root.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager

# See perf_event_open(2): the number of the system call, and what it is given.
_SYSCALLS = {"x86_64": 298, "aarch64": 241}
_ATTR_SIZE = 128
HARDWARE_INSTRUCTIONS = (0, 1)
# What every kernel has, to see that the rest of this works.
SOFTWARE_TASK_CLOCK = (1, 1)
_EXCLUDE_KERNEL, _EXCLUDE_HYPERVISOR = 1 << 5, 1 << 6


class Counter:
    """What one thread of a process counts, from the moment that this is made."""

    def __init__(self, descriptor: int) -> None:
        """For the file *descriptor* of an event."""
        self._descriptor = descriptor

    def read(self) -> int:
        """Return how many there were. Raises OSError."""
        (number,) = struct.unpack("Q", os.read(self._descriptor, 8))
        return int(number)


@contextmanager
def counting(
    pid: int, event: tuple[int, int] = HARDWARE_INSTRUCTIONS
) -> Iterator[Counter | None]:
    """Count *event* of the main thread of the process *pid*, its host kernel's work left out.

    None where the host cannot, or may not, count it.
    """
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        yield None
        return
    kind, config = event
    flags = _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
    head = struct.pack("IIQQQQQ", kind, _ATTR_SIZE, config, 0, 0, 0, flags)
    attributes = ctypes.create_string_buffer(head, _ATTR_SIZE)
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(number, attributes, pid, -1, -1, 0)
    if descriptor < 0:
        yield None
        return
    try:
        yield Counter(descriptor)
    finally:
        os.close(descriptor)

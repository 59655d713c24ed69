# SPDX-License-Identifier: GPL-2.0-only
"""When a task of the guest has run, and was woken, from the trace of the scheduler's events.

User-Mode Linux has no clock of the scheduler's that is finer than a tick, and so no
exact CPU time of a task; but the trace has one.
"""

from __future__ import annotations

import re

from .agent import Guest
from .bench_lab import BenchError

TRACING = "/sys/kernel/tracing"
EVENTS = f"{TRACING}/events/sched"
BEGIN = "begin"
_TIME = r"\s(\d+)\.(\d{6}): "
_SWITCH = re.compile(_TIME + r"sched_switch: prev_comm=(.*?) prev_pid=.* next_comm=(.*?) ")
_WAKING = re.compile(_TIME + r"sched_waking: comm=(.*?) pid=")
_BEGIN = re.compile(_TIME + rf"tracing_mark_write: {BEGIN}$", re.MULTILINE)


def start(guest: Guest, comm: str) -> None:
    """Begin to watch the task named *comm*. Raises OSError without the kernel's tracing."""
    guest.write_file(f"{TRACING}/trace_clock", "mono")
    guest.write_file(f"{TRACING}/buffer_size_kb", "8192")
    filters = {
        "sched_switch": f'prev_comm=="{comm}" || next_comm=="{comm}"',
        "sched_waking": f'comm=="{comm}"',
    }
    for event, text in filters.items():
        guest.write_file(f"{EVENTS}/{event}/filter", text)
        guest.write_file(f"{EVENTS}/{event}/enable", "1")
    guest.write_file(f"{TRACING}/trace_marker", BEGIN)


def stop(guest: Guest) -> str:
    """Return the trace since :func:`start`. Raises BenchError when events were lost."""
    guest.write_file(f"{TRACING}/events/enable", "0")
    trace = guest.read_file(f"{TRACING}/trace")
    if "LOST" in trace:
        raise BenchError("the trace of the scheduler has lost events", "give it a larger buffer")
    return trace


def _ns(seconds: str, micros: str) -> int:
    return (int(seconds) * 1_000_000 + int(micros)) * 1000


def runs_of(trace: str, comm: str) -> list[int]:
    """Return how long *comm* has run each time, in nanoseconds, to the microsecond."""
    found = []
    since = None
    for seconds, micros, before, after in _SWITCH.findall(trace):
        now = _ns(seconds, micros)
        if after == comm:
            since = now
        elif before == comm and since is not None:
            found.append(now - since)
            since = None
    return found


def wakings_of(trace: str, comm: str, since: float | None = None) -> list[float]:
    """Return when *comm* was woken, in seconds since *since*, or since :func:`start`.

    *since* is a time of the guest's monotonic clock, in seconds. Raises BenchError for a
    trace without a beginning.
    """
    begin = _BEGIN.search(trace)
    if begin is None:
        raise BenchError("the trace of the scheduler has no beginning", "give it a larger buffer")
    first = _ns(begin[1], begin[2]) if since is None else round(since * 1e9)
    return [
        (_ns(seconds, micros) - first) / 1e9
        for seconds, micros, name in _WAKING.findall(trace)
        if name == comm
    ]

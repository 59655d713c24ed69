# SPDX-License-Identifier: GPL-2.0-only
"""Uprobes: a breakpoint in the text of a program is a copy of a page of its file.

User-Mode Linux has none: this runs with --arch x86_64.
"""

from __future__ import annotations

import re
import struct

import pytest
from lab import baseline, settle
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_pksm, pytest.mark.needs_config("CONFIG_UPROBE_EVENTS")]

TRACING = "/sys/kernel/tracing"
PROGRAM = "/tmp/probed/busybox"
HEADERS = 4096
PT_LOAD = 1


def entry_offset(guest: Guest, path: str) -> int:
    """Return where in the ELF file *path* its first instruction is."""
    data = bytes.fromhex(guest.sh(f"od -An -v -tx1 -N {HEADERS} {path}").stdout)
    entry, table = struct.unpack_from("<QQ", data, 24)
    size, number = struct.unpack_from("<HH", data, 54)
    for i in range(number):
        kind, _, offset, start, _, length = struct.unpack_from("<IIQQQQ", data, table + i * size)
        if kind == PT_LOAD and start <= entry < start + length:
            return int(entry - start + offset)
    raise AssertionError(f"{path} has no segment with its entry {entry:#x}")


def text_of(guest: Guest, pid: int) -> dict[str, int]:
    """Return the kB that smaps tells of the text of process *pid*, by name."""
    found: dict[str, int] = {}
    inside = False
    for line in guest.read_file(f"/proc/{pid}/smaps").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = " r-xp " in line and line.endswith(PROGRAM)
        elif inside and line.endswith(" kB"):
            name, number, _ = line.split()
            found[name.rstrip(":")] = int(number)
    return found


@pytest.mark.time_travel
def test_pages_with_breakpoints_are_merged_and_given_back(guest: Guest) -> None:
    """Two processes of one program, with the same breakpoint, until it is taken out."""
    guest.sh(f"mkdir -p {PROGRAM.rpartition('/')[0]} && cp $(readlink -f /bin/sh) {PROGRAM}")
    event = f"p:probed/entry {PROGRAM}:{entry_offset(guest, PROGRAM):#x}"
    before = baseline(settle(guest))
    guest.write_file(f"{TRACING}/uprobe_events", event)
    enable = f"{TRACING}/events/probed/entry/enable"
    guest.write_file(enable, "1")
    # They wait for input: under time travel a sleep of any length is soon over.
    jobs = [guest.start(["sh", "-c", f"echo $$; exec {PROGRAM} cat"]) for _ in range(2)]
    for job in jobs:
        job.write(b"here\n")
        job.wait_output("here\n")
    pids = [int(job.stdout.split()[0]) for job in jobs]
    settle(guest)
    for pid in pids:
        text = text_of(guest, pid)
        assert text["Anonymous"] == 4, text
        assert text["KSM"] == 4, text
    assert guest.sh(f"grep -c entry: {TRACING}/trace").stdout.strip() == "2"
    guest.write_file(enable, "0")
    for pid in pids:
        text = text_of(guest, pid)
        assert text["Anonymous"] == text["KSM"] == 0, text
    # What they run is the program's own again: they end as it does.
    for job in jobs:
        job.close_stdin()
        assert job.wait().status == 0
    guest.write_file(f"{TRACING}/uprobe_events", "")
    assert baseline(settle(guest)) == before

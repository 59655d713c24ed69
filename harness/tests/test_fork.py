# SPDX-License-Identifier: GPL-2.0-only
"""Fork over merged pages: both sides keep their bytes, counters stay exact."""

from __future__ import annotations

import pytest
from lab import baseline, pageops, settle, workload
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm


def test_trees_of_forks_keep_every_byte(guest: Guest) -> None:
    before = settle(guest)
    report = workload(guest, ["forkdup", "--depth", "3", "--fanout", "2", "--mib", "2"])
    assert report["merged"].counters["pages_sharing"] - before["pages_sharing"] >= 256
    assert baseline(settle(guest)) == baseline(before)


def test_wide_forks_keep_every_byte(guest: Guest) -> None:
    before = settle(guest)
    workload(guest, ["forkdup", "--depth", "1", "--fanout", "16", "--mib", "1", "--phases", "3"])
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R30")
def test_r30_a_fork_counts_the_pages_it_maps_as_well(guest: Guest) -> None:
    """R30, R52: sharing is counted by PTE: a child that ends takes its share with it.

    The first fork is for the pages of the program's own that it writes to when it forks. These
    are not to be merged between the looks: what is counted then is not pksmd's doing.
    """
    report = pageops(
        guest, "fill=dup", "@1:fill=zero", "settle", "set=run:0", "fork", "stat=before", "fork",
        "stat=after", "set=run:1", "verify",
        procs=3, pages=128,
    )  # fmt: skip
    before, after = report["before"].counters, report["after"].counters
    for name in ("pages_shared", "pages_sharing", "zero_pages"):
        assert before[name] == after[name], name


def test_a_child_that_writes_changes_its_parent_in_nothing(guest: Guest) -> None:
    before = settle(guest)
    report = pageops(
        guest, "fill=dup", "settle", "stat=merged", "fork=write", "verify", "stat=after",
        "poke=3", "verify", "fork=write", "verify", "settle", "verify",
        procs=3, pages=128,
    )  # fmt: skip
    assert report["merged"].sharing == report["after"].sharing == 2 * 128
    assert baseline(settle(guest)) == baseline(before)


def test_the_owner_of_a_merged_page_may_go_first(guest: Guest) -> None:
    """R12, R45: the anon_vma of a process that has gone is still valid for its sharers."""
    before = settle(guest)
    report = pageops(
        guest, "fill=dup", "settle", "stat=all", "@0:exit", "settle", "stat=without", "verify",
        "file=/proc/sys/vm/compact_memory:1", "verify", "poke=1", "verify",
        procs=4, pages=256,
    )  # fmt: skip
    assert report["all"]["merged_ptes"] == 4 * 256
    assert report["without"]["merged_ptes"] == 3 * 256
    assert report["without"]["merged_pages"] == 256
    assert baseline(settle(guest)) == baseline(before)


def test_killed_processes_leave_nothing_behind(guest: Guest) -> None:
    """R1: SIGKILL while the engine is at work on the pages."""
    before = settle(guest)
    for number in range(8):
        guest.sh(
            f"memdup --procs 3 --mib 4 --dup 100 --seed {number} >/dev/null 2>&1 & "
            f"pid=$!; usleep {(number + 1) * 130000}; kill -9 $pid; wait $pid 2>/dev/null; true"
        )
    assert baseline(settle(guest)) == baseline(before)

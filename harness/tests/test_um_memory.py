# SPDX-License-Identifier: GPL-2.0-only
"""What merging takes for granted of UML's own memory management.

These hold with and without an engine: what fails here would be blamed on it.
"""

from __future__ import annotations

import json

import pytest
from lab import GROUP, BootFresh, group, pageops, ram_swap
from linux_um.guest import Guest


@pytest.mark.parametrize("engine", ["off", "on"])
def test_what_the_kernel_writes_for_a_process_is_swapped_out(
    boot_fresh: BootFresh, engine: str
) -> None:
    """The pages come back for reading, clean; read(2) writes to them; they go again."""
    guest = boot_fresh(append=[f"pksm={engine}"])
    ram_swap(guest, 16)
    # Pages that wait for their place in the LRU lists, by another CPU, are not seen.
    out = ("drain", "madvise=pageout", "sleep=50") * 2
    report = pageops(
        guest, "fill=unique", *out, "stat=out", "touch=read", "receive=8", *out, "stat=again",
        "verify",
        procs=2, pages=64,
    )  # fmt: skip
    assert report["out"]["swapped"] == report["again"]["swapped"] == 2 * 64
    assert report.raw["wrong"] == 0


def test_a_fork_that_fails_halfway_gives_back_what_it_has_copied(guest: Guest) -> None:
    """For want of memory, while it copies areas; and the kernel goes on."""
    group(guest)
    report = json.loads(guest.run(["forkfail", "--group", GROUP, "--forks", "32"]).stdout)
    assert report["failed"] == 32
    # Reclaim at the limit may have left less than there was.
    assert report["after"] - report["before"] < 1 << 20
    guest.sh(f"rmdir {GROUP}")


@pytest.mark.parametrize("pieces", ["of_a_table", "of_a_table_of_tables"])
def test_what_was_mapped_by_a_page_table_that_is_gone_is_not_seen_any_more(
    guest: Guest, pieces: str
) -> None:
    """Where another page table has come to its place before the process was told."""
    report = json.loads(guest.run(["hostmap"], check=False).stdout)
    assert report[pieces] == 0

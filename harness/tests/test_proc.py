# SPDX-License-Identifier: GPL-2.0-only
"""What /proc says of a process whose pages are merged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import PAGES_PER_MIB, hold_memdup, pagestat, release, settle, vmstat
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

MIB = 2
PAGES = MIB * PAGES_PER_MIB


@pytest.fixture
def pids(guest: Guest) -> Iterator[list[int]]:
    """Return two processes that hold the same 2 MiB, merged."""
    job = hold_memdup(
        guest, "--procs", "2", "--mib", str(MIB), "--dup", "75", "--zero", "25", "--unique", "0",
        "--rewrite", "0",
    )  # fmt: skip
    settle(guest)
    found = [int(word) for word in guest.sh("pidof memdup").stdout.split()]
    parents = {pid: int(guest.read_file(f"/proc/{pid}/stat").split()[3]) for pid in found}
    yield sorted(pid for pid in found if parents[pid] in found)
    release(job)


def lines(text: str) -> dict[str, int]:
    """Return the numbers of a file of the form "name[:] number [kB]"."""
    found: dict[str, int] = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].lstrip("-").isdigit():
            found[words[0]] = found.get(words[0], 0) + int(words[1])
    return found


def test_smaps_counts_the_merged_pages(guest: Guest, pids: list[int]) -> None:
    assert len(pids) == 2
    for pid in pids:
        seen = pagestat(guest, "--pid", str(pid))
        assert seen["merged_ptes"] >= PAGES * 3 // 4
        # The zero page is not among them.
        assert seen["merged_ptes"] <= PAGES * 3 // 4 + 16
        smaps = lines(guest.read_file(f"/proc/{pid}/smaps_rollup"))
        assert smaps["KSM"] == 4 * seen["merged_ptes"]


def test_the_page_map_knows_merged_pages_and_the_zero_page(guest: Guest, pids: list[int]) -> None:
    """Looked at by pagestat, page by page."""
    for pid in pids:
        seen = pagestat(guest, "--pid", str(pid))
        assert seen["merged_ptes"] >= PAGES * 3 // 4
        assert seen["zero"] >= PAGES // 4


def test_ksm_stat_counts_zero_pages(guest: Guest, pids: list[int]) -> None:
    for pid in pids:
        stat = lines(guest.read_file(f"/proc/{pid}/ksm_stat"))
        assert PAGES // 4 <= stat["ksm_zero_pages"] <= PAGES // 4 + 16, stat


def test_ksm_merging_pages_is_never_negative(guest: Guest, pids: list[int]) -> None:
    for pid in pids:
        value = int(guest.read_file(f"/proc/{pid}/ksm_merging_pages"))
        stat = lines(guest.read_file(f"/proc/{pid}/ksm_stat"))
        assert 0 <= value == stat["ksm_merging_pages"]


def test_a_write_to_a_merged_page_is_seen_in_vmstat(guest: Guest) -> None:
    """cow_ksm of /proc/vmstat counts the copies that writes to merged pages made."""
    before = vmstat(guest, "cow_ksm")
    guest.run(
        ["pageops", "--procs", "3", "--pages", "64", "fill=dup", "settle", "@0:poke=1", "verify"]
    )
    assert vmstat(guest, "cow_ksm") - before >= 64

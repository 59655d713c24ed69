# SPDX-License-Identifier: GPL-2.0-only
"""Advice, locking and moving of mappings whose pages are merged."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import baseline, pageops, settle, settled_meminfo
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm


@pytest.fixture(autouse=True)
def nothing_left_behind(guest: Guest) -> Iterator[None]:
    """After each of these tests the counters are back where they were."""
    before = baseline(settle(guest))
    yield
    assert baseline(settle(guest)) == before


def test_dontneed_gives_zeros_and_leaves_the_others(guest: Guest) -> None:
    report = pageops(
        guest, "fill=dup", "settle", "@0:madvise=dontneed", "stat=gone", "@1:verify", "@2:verify",
        "@0:fill=dup", "settle", "stat=again", "@0:madvise=dontneed", "verify",
        procs=3, pages=128,
    )  # fmt: skip
    assert report["gone"]["merged_ptes"] == 2 * 128
    assert report["gone"]["merged_pages"] == 128
    assert report["again"]["merged_ptes"] == 3 * 128


@pytest.mark.regression("R30")
def test_r30_dontneed_on_zero_pages_is_counted(guest: Guest) -> None:
    """R30: zap of a PTE that the engine pointed at the zero page."""
    guest.set_pksm("use_zero_pages", 1)
    report = pageops(
        guest, "fill=zero", "settle", "stat=zero", "@0:madvise=dontneed", "stat=gone", "verify",
        procs=2, pages=128,
    )  # fmt: skip
    fallen = report["zero"].counters["zero_pages"] - report["gone"].counters["zero_pages"]
    assert fallen == 128


def test_free_gives_the_old_content_or_zeros(guest: Guest) -> None:
    pageops(
        guest, "fill=dup", "settle", "@0:madvise=free", "verify", "@0:touch=write", "verify",
        "@0:fill=unique", "verify",
        procs=3, pages=128,
    )  # fmt: skip


def test_pageout_without_swap_changes_nothing(guest: Guest) -> None:
    report = pageops(
        guest, "fill=dup", "settle", "madvise=pageout", "madvise=cold", "verify", "stat=after",
        procs=3, pages=128,
    )  # fmt: skip
    assert report["after"].sharing == 2 * 128


@pytest.mark.regression("R51")
def test_r51_unmergeable_unmerges_at_once(guest: Guest) -> None:
    """R51: and only the process that asked."""
    report = pageops(
        guest, "madvise=mergeable", "fill=dup", "settle", "stat=merged", "@0:madvise=unmergeable",
        "stat=unmerged", "verify",
        procs=3, pages=128,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * 128
    assert report["unmerged"]["merged_ptes"] == 2 * 128
    assert report["unmerged"]["anon"] == 128


@pytest.mark.regression("R28")
def test_locked_memory_is_accounted_in_balance(guest: Guest) -> None:
    """R28: locked before or after merging, Mlocked and Unevictable return to where they were."""
    before = settled_meminfo(guest, "Mlocked", "Unevictable")
    for steps in (
        ("fill=dup", "mlock", "settle", "verify", "munlock"),
        ("fill=dup", "settle", "mlock", "verify", "munlock"),
        ("mlock", "fill=dup", "settle", "poke=5", "verify", "munlock"),
        ("mlock", "fill=dup", "settle", "exit"),
        ("@0:mlock", "fill=dup", "settle", "@0:munlock", "verify"),
    ):
        pageops(guest, *steps, procs=3, pages=128)
        assert settled_meminfo(guest, "Mlocked", "Unevictable") == before, steps


@pytest.mark.regression("R8")
def test_moved_mappings_keep_their_merged_pages(guest: Guest) -> None:
    """R8: whether they stay merged (they may be unmerged first), rmap finds the PTEs."""
    report = pageops(
        guest, "fill=dup", "settle", "@0:mremap", "stat=moved", "verify", "settle",
        "file=/proc/sys/vm/compact_memory:1", "verify", "@0:poke=7", "verify", "@1:mremap",
        "@1:mremap", "verify", "stat=end",
        procs=3, pages=256,
    )  # fmt: skip
    assert 2 * 256 <= report["moved"]["merged_ptes"] <= 3 * 256
    assert report["moved"]["present"] == 3 * 256
    assert report["end"]["merged_ptes"] <= 2 * 256


@pytest.mark.regression("R8")
def test_mappings_moved_before_they_merge_are_found(guest: Guest) -> None:
    """R8: the pages' index is older than their address."""
    report = pageops(
        guest, "fill=dup", "@0:mremap", "@0:mremap", "settle", "stat=merged", "verify",
        "set=run:2", "stat=unmerged", "verify", "set=run:1",
        procs=3, pages=128,
    )  # fmt: skip
    assert report["merged"].sharing == 2 * 128
    assert report["unmerged"]["merged_ptes"] == 0


def test_a_part_of_a_mapping_is_a_part(guest: Guest) -> None:
    report = pageops(
        guest, "fill=dup", "settle", "@0:range=10-20", "@0:madvise=dontneed", "stat=part",
        "@1:verify", "@0:fill=dup", "settle", "stat=whole", "verify", "@0:range=all",
        "verify",
        procs=2, pages=64,
    )  # fmt: skip
    assert report["part"]["merged_ptes"] == 2 * 64 - 10
    assert report["whole"].sharing == 64

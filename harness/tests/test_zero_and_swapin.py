# SPDX-License-Identifier: GPL-2.0-only
"""Zero pages without a mapping, and merged pages that come back from swap one by one."""

from __future__ import annotations

import pytest
from lab import GROUP, RECLAIM, baseline, group, in_group, pageops, ram_swap, settle, vmstat
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm


@pytest.mark.regression("R29")
def test_r29_a_page_of_zeroes_that_nothing_maps_any_more_is_left_alone(guest: Guest) -> None:
    """R29: a pipe keeps it alive: the engine meets it, and there is no VMA to merge it in."""
    before = settle(guest)
    report = pageops(
        guest, "set=run:0", "fill=zero", "pin", "madvise=dontneed", "set=run:1", "settle=60000",
        "stat=gone", "unpin=old", "verify",
        procs=2, pages=64,
    )  # fmt: skip
    assert report["gone"]["present"] == 0
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R29")
def test_r29_pages_of_zeroes_whose_mapping_goes_while_they_wait(guest: Guest) -> None:
    """R29: unmapped, or their process ended, at every moment of their way to the zero page."""
    before = settle(guest)
    steps = []
    for number in range(16):
        steps += ["fill=zero", f"sleep={number * 25}", "unmap", "map"]
    report = pageops(guest, *steps, "fill=zero", "settle", "stat=end", "verify", procs=3, pages=128)
    assert report["end"]["zero"] == 3 * 128
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R33")
def test_r33_what_one_process_swapped_in_is_copied_for_the_others(guest: Guest) -> None:
    """R33: the page in the swap cache is another's, and its owner has gone.

    Process 1 has its pages at other offsets, process 2 at the same. Were they given the page
    itself, reclaim would not find their mappings, and they could never be swapped out again.
    """
    ram_swap(guest)
    group(guest)
    before = baseline(settle(guest))
    copies = vmstat(guest, "ksm_swpin_copy")
    report = in_group(
        guest, "pageops", "--procs", "3", "--pages", "512", "@1:mremap", "fill=dup", "settle",
        "stat=merged", *RECLAIM, "stat=out", "set=run:0", "@0:verify", "@0:exit", "verify",
        "stat=in", *RECLAIM, "stat=again", "verify", "poke=3", "verify", "set=run:1", "settle",
        "verify",
    )  # fmt: skip
    assert report["merged"].sharing == 2 * 512
    # Nothing of a page but its copies in the swap device may be left to swap in from.
    assert report["out"]["swapped"] > 2 * 512
    assert vmstat(guest, "ksm_swpin_copy") - copies > 256
    assert report["in"]["present"] == 2 * 512
    assert report["again"]["swapped"] > 512
    assert baseline(settle(guest)) == before
    guest.sh(f"rmdir {GROUP}")


@pytest.mark.regression("R30")
def test_r30_zero_pages_are_counted_through_fork_and_every_kind_of_zap(guest: Guest) -> None:
    """R30: each way in which a PTE of the zero page can go, in a parent and in a child."""
    before = settle(guest)
    report = pageops(
        guest, "fill=zero", "settle", "stat=all", "fork=write", "stat=forked",
        "@0:madvise=dontneed", "@1:unmap", "@2:exit", "@3:poke=7", "@4:mremap", "stat=four",
        "@5:madvise=unmergeable", "stat=unmerged", "@1:map", "verify",
        procs=6, pages=64,
    )  # fmt: skip
    zero = {stage.name: stage.counters["zero_pages"] for stage in report}
    assert zero["forked"] == zero["all"]
    # An ended process and writes take zero pages of the program's own with them.
    assert 4 * 64 <= zero["all"] - zero["four"] <= 4 * 64 + 32
    assert zero["four"] - zero["unmerged"] == 64
    assert baseline(settle(guest)) == baseline(before)

# SPDX-License-Identifier: GPL-2.0-only
"""The counters account for every page, and agree with the page map."""

from __future__ import annotations

import pytest
from lab import (
    PAGES_PER_MIB,
    Report,
    baseline,
    hold_memdup,
    memdup,
    pagestat_and_counters,
    release,
    settle,
    tracked,
)
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

# Pages of a workload besides its regions that may happen to be alike: stacks,
# heaps and thread blocks of processes forked from one another.
SLACK_PER_PROCESS = 12


def check_settled(report: Report, procs: int) -> None:
    """The settled stage merged exactly what the contents allow."""
    before, after = report["start"].counters, report["settled"].counters
    expected, seen = report["settled"].expected, report["settled"].map
    assert seen["merged_pages"] >= expected["shared"]
    assert report["settled"].sharing == expected["sharing"]
    assert seen["zero"] == expected["zero"]
    assert seen["anon"] == expected["unique"]
    slack = SLACK_PER_PROCESS * (procs + 1)
    grown = after["pages_sharing"] - before["pages_sharing"]
    assert expected["sharing"] <= grown <= expected["sharing"] + slack
    grown = after["zero_pages"] - before["zero_pages"]
    assert expected["zero"] <= grown <= expected["zero"] + slack


def test_every_duplicate_is_counted_once(guest: Guest) -> None:
    """4 x 16 MiB of the same data become 16 MiB: every byte verifies, all counters return."""
    before = settle(guest)
    report = memdup(guest, "--procs", "4", "--mib", "16", "--dup", "100", "--unique", "0")
    check_settled(report, 4)
    assert report["settled"].map["merged_pages"] == 16 * PAGES_PER_MIB
    assert report["settled"].sharing == 3 * 16 * PAGES_PER_MIB
    assert report["settled"].map["anon"] == 0
    assert baseline(settle(guest)) == baseline(before)


def test_unique_pages_stay_what_they_are(guest: Guest) -> None:
    """Nothing merges where nothing is alike, and each page is read at most twice."""
    before = settle(guest)
    report = memdup(guest, "--procs", "2", "--mib", "8", "--unique", "100", "--rewrite", "0")
    check_settled(report, 2)
    pages = 2 * 8 * PAGES_PER_MIB
    assert report["settled"].map["merged_ptes"] == 0
    scanned = (
        report["settled"].counters["pages_scanned"] - report["start"].counters["pages_scanned"]
    )
    # Hashed, and looked at once more; and what the programs have themselves.
    assert pages <= scanned <= 2 * pages + 64 * 3
    grown = report["settled"].counters["pages_unshared"] - report["start"].counters["pages_unshared"]
    assert pages <= grown <= pages + 64 * 3
    assert baseline(settle(guest)) == baseline(before)


def test_zero_pages_go_to_the_zero_page(guest: Guest) -> None:
    guest.set_pksm("use_zero_pages", 1)
    before = settle(guest)
    report = memdup(
        guest, "--procs", "2", "--mib", "4", "--zero", "50", "--dup", "30", "--rewrite", "0"
    )
    check_settled(report, 2)
    assert report["settled"].map["zero"] == 2 * 4 * PAGES_PER_MIB // 2
    assert baseline(settle(guest)) == baseline(before)


def test_zero_pages_are_merged_like_others_when_the_zero_page_is_not_to_be_used(
    guest: Guest,
) -> None:
    guest.set_pksm("use_zero_pages", 0)
    before = settle(guest)
    report = memdup(guest, "--procs", "2", "--mib", "1", "--zero", "100", "--rewrite", "0")
    assert report["settled"].map["zero"] == 0
    assert report["settled"].map["merged_ptes"] == 2 * PAGES_PER_MIB
    assert report["settled"].counters["zero_pages"] == before["zero_pages"]
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mixed_contents_merge_exactly_as_far_as_they_are_alike(guest: Guest, seed: int) -> None:
    before = settle(guest)
    report = memdup(
        guest, "--procs", "3", "--mib", "6", "--dup", "40", "--zero", "15", "--near", "15",
        "--unique", "30", "--seed", str(seed), "--rewriters", "all",
    )  # fmt: skip
    check_settled(report, 3)
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R52")
def test_r52_counters_agree_with_the_page_map_while_pages_are_merged(guest: Guest) -> None:
    """R52: pages_sharing is the number of PTEs beyond the first, whoever looks."""
    job = hold_memdup(guest, "--procs", "4", "--mib", "4", "--dup", "70", "--zero", "10")
    settle(guest)
    seen, now = pagestat_and_counters(guest)
    assert seen["mapcount_wrong"] == 0
    assert now["pages_sharing"] >= 3 * 4 * PAGES_PER_MIB // 2
    assert now["pages_sharing"] + now["pages_shared"] == seen["merged_ptes"]
    assert now["stable_nodes"] == now["pages_shared"]
    assert now["rmap_items"] <= now["pages_merged"]
    assert release(job).raw["ok"] is True


def test_tracked_pages_are_the_sum_of_their_classes(guest: Guest) -> None:
    """Nothing is in no class and nothing in two: touched pages are all there, once."""
    report = memdup(guest, "--procs", "2", "--mib", "8", "--dup", "50", "--rewrite", "0")
    pages = 2 * 8 * PAGES_PER_MIB
    merged_away = report["settled"].sharing
    grown = tracked(report["settled"].counters) - tracked(report["start"].counters)
    assert pages - merged_away <= grown <= pages - merged_away + 64 * 3


def test_general_profit_is_what_merging_saves_less_what_it_costs(guest: Guest) -> None:
    report = memdup(guest, "--procs", "4", "--mib", "8", "--dup", "100", "--rewrite", "0")
    saved = report["settled"].sharing * 4096
    profit = (
        report["settled"].counters["general_profit"] - report["start"].counters["general_profit"]
    )
    # At most 32 bytes for an absorbed page, 64 for a shared one, 12 for any other tracked one.
    assert 0.97 * saved < profit <= saved + 4096 * SLACK_PER_PROCESS * 5


def test_memory_really_comes_back(guest: Guest) -> None:
    """MemFree says so too, not only the engine's own counters."""
    job = hold_memdup(guest, "--procs", "4", "--mib", "16", "--dup", "100", "--rewrite", "0")
    settle(guest)
    used = {
        line.split(":")[0]: int(line.split()[1])
        for line in guest.read_file("/proc/meminfo").splitlines()
    }
    # 64 MiB were filled; the anonymous memory that remains is one copy and the rest of user space.
    assert used["AnonPages"] < 32 * 1024, used
    release(job)

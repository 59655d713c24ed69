# SPDX-License-Identifier: GPL-2.0-only
"""Merged pages are moved by compaction and stay merged, whole and findable."""

from __future__ import annotations

import pytest
from lab import baseline, pageops, settle, vmstat
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

COMPACT = "file=/proc/sys/vm/compact_memory:1"


@pytest.mark.regression("R24")
def test_compaction_moves_merged_pages(guest: Guest) -> None:
    """R24: the end of one process makes room to move the others' merged pages to."""
    before = settle(guest)
    report = pageops(
        guest,
        "fill=dup", "@0:fill=unique", "settle", "stat=before",
        "@0:exit", COMPACT, "stat=moved", "verify",
        "@1:poke=8", "verify", "stat=broken", "settle", "verify",
        procs=4, pages=1024,
    )  # fmt: skip
    assert vmstat(guest, "pgmigrate_success") > 0, "nothing moved: the test tested nothing"
    assert report["before"].sharing == report["moved"].sharing == 2 * 1024
    assert report["before"]["merged_pages"] == report["moved"]["merged_pages"]
    assert report["before"]["merged_pfn_sum"] != report["moved"]["merged_pfn_sum"], (
        "no merged page moved"
    )
    assert report["moved"]["mapcount_other"] == report["before"]["mapcount_other"]
    assert report["broken"]["merged_ptes"] == 2 * 1024
    assert baseline(settle(guest)) == baseline(before)


def test_a_merged_page_that_moved_still_takes_in_duplicates(guest: Guest) -> None:
    """The stable index follows the page."""
    report = pageops(
        guest,
        "@1:fill=dup", "@2:fill=dup", "@3:fill=dup", "@0:fill=unique", "settle", "@0:exit",
        COMPACT, "stat=moved", "@4:fill=dup", "settle", "stat=joined", "verify",
        procs=5, pages=1024,
    )  # fmt: skip
    assert report["moved"]["merged_pages"] == report["joined"]["merged_pages"] == 1024
    assert report["joined"]["merged_ptes"] == 4 * 1024


def test_pages_that_moved_before_they_were_merged_still_merge(guest: Guest) -> None:
    """R49: migration does not lose track of a page."""
    report = pageops(
        guest,
        "set=run:0", "@0:fill=unique", "@1:fill=dup", "@2:fill=dup", "@3:fill=dup", "@0:exit",
        COMPACT, "set=run:1", "settle", "stat=merged", "verify",
        procs=4, pages=1024,
    )  # fmt: skip
    assert vmstat(guest, "pgmigrate_success") > 0
    assert report["merged"].sharing == 2 * 1024


def test_compaction_over_and_over_keeps_contents_and_counters(guest: Guest) -> None:
    before = settle(guest)
    steps = []
    for number in range(4):
        steps += [f"@{number % 4}:fill=unique", COMPACT, f"@{number % 4}:fill=dup", "settle",
                  COMPACT, "verify"]  # fmt: skip
    report = pageops(guest, *steps, "settle", "stat=end", "verify", procs=4, pages=1024)
    assert report["end"].sharing <= 3 * 1024
    assert baseline(settle(guest)) == baseline(before)

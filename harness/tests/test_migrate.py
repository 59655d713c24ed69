# SPDX-License-Identifier: GPL-2.0-only
"""Merged pages are moved by compaction and stay merged, whole and findable."""

from __future__ import annotations

import pytest
from lab import BootFresh, baseline, pageops, settle, vmstat
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

COMPACT = "file=/proc/sys/vm/compact_memory:1"
# Two sorts of duplicates with a large block of other pages between them: when
# process 0, which holds that, has gone, one sort lies where compaction clears.
FILLER = 8192
ISLAND = 1024
TRIES = 4
ISLANDS = (
    *(f"@{process}:range=0-{ISLAND}" for process in (1, 2, 3, 4)),
    "@1:fill=dup:1", "@2:fill=dup:1", "@0:fill=unique", "@3:fill=dup:2", "@4:fill=dup:2",
)  # fmt: skip


@pytest.mark.regression("R24")
def test_compaction_moves_merged_pages(boot_fresh: BootFresh) -> None:
    """R24: the end of one process makes room to move the others' merged pages to.

    In more memory compaction is done before it comes to these pages; and where they lie
    is chance, so that now and then there is nothing to move them for.
    """
    guest = boot_fresh(mem="128M")
    before = settle(guest)
    for _ in range(TRIES):
        report = pageops(
            guest,
            *ISLANDS, "settle", "stat=before", "@0:exit", COMPACT, "stat=moved", "verify",
            "@1:poke=8", "@3:poke=9", "verify", "stat=broken", "settle", "verify",
            procs=5, pages=FILLER,
        )  # fmt: skip
        assert report["before"].sharing == report["moved"].sharing == 2 * ISLAND
        assert report["before"]["merged_pages"] == report["moved"]["merged_pages"]
        assert report["moved"]["mapcount_other"] == report["before"]["mapcount_other"]
        assert report["broken"]["merged_ptes"] == 2 * ISLAND
        assert baseline(settle(guest)) == baseline(before)
        if report["before"]["merged_pfn_sum"] != report["moved"]["merged_pfn_sum"]:
            break
    else:
        pytest.fail("no merged page moved: the test tested nothing")
    assert vmstat(guest, "pgmigrate_success") > 0


def test_a_merged_page_that_moved_still_takes_in_duplicates(guest: Guest) -> None:
    """The stable index follows the page."""
    report = pageops(
        guest,
        *ISLANDS, "settle", "@0:exit", COMPACT, "stat=moved",
        f"@5:range=0-{ISLAND}", "@5:fill=dup:1", f"@6:range=0-{ISLAND}", "@6:fill=dup:2",
        "settle", "stat=joined", "verify",
        procs=7, pages=FILLER,
    )  # fmt: skip
    assert report["moved"]["merged_pages"] == report["joined"]["merged_pages"] == 2 * ISLAND
    assert report["joined"]["merged_ptes"] == 6 * ISLAND


@pytest.mark.regression("R49")
def test_r49_pages_that_moved_before_they_were_merged_still_merge(boot_fresh: BootFresh) -> None:
    """R49: migration does not lose track of a page.

    In more memory compaction is done before it comes to these pages.
    """
    guest = boot_fresh(mem="128M")
    report = pageops(
        guest,
        "set=run:0", *ISLANDS, "@0:exit", COMPACT, "set=run:1", "settle", "stat=merged", "verify",
        procs=5, pages=FILLER,
    )  # fmt: skip
    assert vmstat(guest, "pgmigrate_success") > 0
    assert report["merged"].sharing == 2 * ISLAND


def test_compaction_over_and_over_keeps_contents_and_counters(guest: Guest) -> None:
    before = settle(guest)
    steps = []
    for number in range(4):
        steps += [f"@{number % 4}:fill=unique", COMPACT, f"@{number % 4}:fill=dup", "settle",
                  COMPACT, "verify"]  # fmt: skip
    report = pageops(guest, *steps, "settle", "stat=end", "verify", procs=4, pages=1024)
    assert report["end"].sharing <= 3 * 1024
    assert baseline(settle(guest)) == baseline(before)

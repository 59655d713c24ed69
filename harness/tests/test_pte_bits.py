# SPDX-License-Identifier: GPL-2.0-only
"""Bits of a PTE that are somebody else's: userfaultfd's write protection, and soft-dirty.

User-Mode Linux has neither: these tests run with --arch x86_64.
"""

from __future__ import annotations

import pytest
from lab import BootFresh, baseline, pageops, ram_swap, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

needs_soft_dirty = pytest.mark.needs_config("CONFIG_MEM_SOFT_DIRTY")
needs_uffd_rwp = pytest.mark.needs_config("CONFIG_USERFAULTFD_RWP")
needs_uffd_wp = pytest.mark.needs_config("CONFIG_PTE_MARKER_UFFD_WP")
PAGES = 64
CLEAR = "self=/proc/self/clear_refs:4"
# Until pages without a partner are watched, in milliseconds.
WATCHED_MS = 60_000


@needs_soft_dirty
def test_pages_that_nobody_has_written_to_do_not_become_soft_dirty(guest: Guest) -> None:
    """Merging, watching, and unmerging are not writes of the process."""
    report = pageops(
        guest, "fill=dup", "range=32-56", "fill=unique", "range=56-64", "fill=zero",
        "range=all", CLEAR, "stat=clear",
        "settle", f"sleep={WATCHED_MS}", "stat=merged", "verify", "set=run:2", "stat=unmerged",
        "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["clear"]["soft_dirty"] == 0
    assert report["merged"]["merged_ptes"] == 2 * 32
    assert report["merged"]["zero"] == 2 * 8
    assert report["merged"]["soft_dirty"] == 0
    assert report["unmerged"]["merged_ptes"] == 0


@needs_soft_dirty
def test_pages_that_were_written_to_stay_soft_dirty_when_they_are_merged(guest: Guest) -> None:
    """Who saves what has changed since would miss them otherwise."""
    report = pageops(
        guest, "fill=unique", CLEAR, "stat=clear", "range=0-48", "fill=dup", "range=all",
        "stat=written", "settle", f"sleep={WATCHED_MS}", "stat=merged", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["clear"]["soft_dirty"] == 0
    assert report["written"]["soft_dirty"] == 2 * 48
    assert report["merged"]["merged_ptes"] == 2 * 48
    assert report["merged"]["soft_dirty"] == 2 * 48


@needs_soft_dirty
@pytest.mark.parametrize("fill", ["dup", "unique", "zero"])
def test_a_write_after_it_was_cleared_is_seen(guest: Guest, fill: str) -> None:
    """To a merged page, to one that is watched, to one that has become the zero page."""
    report = pageops(
        guest, f"fill={fill}", "settle", f"sleep={WATCHED_MS}", CLEAR, "stat=clear",
        "range=0-20", "poke=7", "range=all", "stat=written", "verify", "settle", "stat=later",
        "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["clear"]["soft_dirty"] == 0
    assert report["written"]["soft_dirty"] == 2 * 20
    assert report["later"]["soft_dirty"] == 2 * 20


@needs_soft_dirty
def test_they_are_soft_dirty_also_when_they_come_back_from_swap(boot_fresh: BootFresh) -> None:
    guest = boot_fresh()
    ram_swap(guest, 32)
    report = pageops(
        guest, "fill=dup", "settle", CLEAR, "range=0-20", "poke=7", "range=all",
        "madvise=pageout", "stat=out", "verify", "stat=back", procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["out"]["swapped"] > 0
    assert report["back"]["soft_dirty"] >= 3 * 20


@needs_uffd_wp
def test_pages_that_userfaultfd_protects_are_not_merged(guest: Guest) -> None:
    """Until they are written to; others of the same region are."""
    report = pageops(
        guest, "fill=unique", "range=0-32", "uffd_wp", "range=all", "stat=protected", "settle=2000",
        "stat=settled", "verify", "range=0-16", "fill=dup", "range=all", "stat=written",
        "sleep=400000", "stat=merged", "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["protected"]["uffd_wp"] == report["settled"]["uffd_wp"] == 2 * 32
    assert report["written"]["uffd_wp"] == report["merged"]["uffd_wp"] == 2 * 16
    assert report["merged"]["merged_ptes"] == 2 * 16


@pytest.mark.regression("R27")
@needs_uffd_wp
def test_equal_pages_that_userfaultfd_protects_stay_as_they_are(guest: Guest) -> None:
    before = baseline(settle(guest))
    report = pageops(
        guest, "set=settle_millisecs:200", "fill=dup", "uffd_wp", "settle=60000", "stat=settled",
        "verify", "range=0-16",
        "poke=3", "range=all", "stat=written", "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["settled"]["uffd_wp"] == 2 * PAGES
    assert report["settled"]["merged_ptes"] == 0
    assert report["written"]["uffd_wp"] == 2 * (PAGES - 16)
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R27")
@needs_uffd_wp
def test_merged_pages_can_be_protected_by_userfaultfd(guest: Guest) -> None:
    """A write to one is a copy, and is seen; the others keep their protection."""
    report = pageops(
        guest, "fill=dup", "settle", "@0:uffd_wp", "stat=protected", "verify", "@0:range=0-20",
        "@0:poke=7", "@0:range=all", "stat=written", "verify", "set=run:2", "stat=unmerged",
        "verify", procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["protected"]["uffd_wp"] == PAGES
    assert report["protected"]["merged_ptes"] == 3 * PAGES
    assert report["written"]["uffd_wp"] == PAGES - 20
    assert report["written"]["merged_ptes"] == 3 * PAGES - 20
    assert report["unmerged"]["uffd_wp"] == PAGES - 20
    assert report["unmerged"]["merged_ptes"] == 0


@needs_uffd_rwp
def test_merged_pages_that_nobody_may_touch_are_unmerged(guest: Guest) -> None:
    """To unshare a page is no access that userfaultfd has to be told of, and wait for."""
    report = pageops(
        guest, "fill=dup", "settle", "stat=merged", "@0:uffd_rwp", "stat=shut", "set=run:2",
        "stat=unmerged", "@0:uffd_rwp=off", "verify", procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * PAGES
    assert report["shut"]["uffd_wp"] == PAGES
    assert report["shut"]["merged_ptes"] == 3 * PAGES
    assert report["unmerged"]["merged_ptes"] == 0
    # Nobody has touched them.
    assert report["unmerged"]["uffd_wp"] == PAGES


@needs_uffd_wp
@needs_soft_dirty
def test_a_watched_page_that_userfaultfd_protects_still_tells(guest: Guest) -> None:
    """One fault for both: the page finds its equal."""
    report = pageops(
        guest, "fill=unique", "settle", f"sleep={WATCHED_MS}", "uffd_wp", CLEAR, "stat=watched",
        "fill=dup", "stat=written", "sleep=400000", "settle", "stat=merged", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["watched"]["uffd_wp"] == 2 * PAGES
    assert report["written"]["uffd_wp"] == 0
    assert report["merged"].sharing == PAGES

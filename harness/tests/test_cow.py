# SPDX-License-Identifier: GPL-2.0-only
"""Writing to a merged page gives the writer a copy and changes nobody else's."""

from __future__ import annotations

import pytest
from lab import baseline, memdup, pageops, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm


@pytest.mark.parametrize("offset", [0, 1, 2048, 4095])
def test_one_byte_written_changes_one_copy_only(guest: Guest, offset: int) -> None:
    report = pageops(
        guest,
        "fill=dup", "settle", "stat=merged", f"@1:poke={offset}", "verify", "stat=broken",
        "settle", "verify",
        procs=4, pages=64,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 4 * 64
    assert report["broken"]["merged_ptes"] == 3 * 64
    assert report["broken"]["merged_pages"] == 64
    broken = (
        report["broken"].counters["pages_broken"] - report["merged"].counters["pages_broken"]
    )
    assert 64 <= broken <= 64 + 16


def test_every_sharer_may_write_at_once(guest: Guest) -> None:
    """When the last sharer has written, the merged page is gone and nothing leaks."""
    before = settle(guest)
    report = pageops(
        guest, "fill=dup", "settle", "stat=merged", "fill=unique", "stat=broken", "verify",
        "settle", "verify",
        procs=4, pages=64,
    )  # fmt: skip
    assert report["merged"].sharing == 3 * 64
    assert report["broken"]["merged_ptes"] == 0
    assert baseline(settle(guest)) == baseline(before)


def test_writing_zeros_back_to_the_zero_page_is_private(guest: Guest) -> None:
    guest.set_pksm("use_zero_pages", 1)
    report = pageops(
        guest, "fill=zero", "settle", "set=run:0", "stat=zero", "@0:poke=100", "verify",
        "stat=broken", "set=run:1", "settle", "verify",
        procs=3, pages=32,
    )  # fmt: skip
    assert report["zero"]["zero"] == 3 * 32
    assert report["broken"]["zero"] == 2 * 32
    fallen = report["zero"].counters["zero_pages"] - report["broken"].counters["zero_pages"]
    assert 32 <= fallen <= 32 + 8


def test_rewriting_one_process_leaves_every_byte_of_the_others(guest: Guest) -> None:
    """R19, R20: a byte, a page, a page of zeros; all pages of all processes verified after."""
    report = memdup(guest, "--procs", "4", "--mib", "8", "--dup", "80", "--rewrite", "50")
    rewritten = report["rewritten"]
    assert rewritten.sharing >= rewritten.raw["expected_untouched"]["sharing"]
    assert rewritten.sharing < report["settled"].sharing


@pytest.mark.regression("R48")
def test_r48_a_page_broken_off_can_merge_again(guest: Guest) -> None:
    """R48: a copy made by a write is a page like any other."""
    report = pageops(
        guest, "fill=dup", "settle", "stat=merged", "fill=dup:7", "stat=broken", "settle",
        "stat=again", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["merged"].sharing == 2 * 64
    assert report["broken"].sharing == 0
    assert report["again"].sharing == 2 * 64


def test_read_only_and_inaccessible_mappings_keep_their_content(guest: Guest) -> None:
    report = pageops(
        guest, "fill=dup", "@0:mprotect=ro", "@1:mprotect=none", "settle", "@0:verify",
        "mprotect=rw", "verify", "poke=9", "verify", "stat=end",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["end"]["merged_ptes"] == 0

# SPDX-License-Identifier: GPL-2.0-only
"""Memory of devices: pages that move there and come back, beside pages that are merged.

The kernel's test_hmm plays the device. User-Mode Linux cannot have one: these tests run
with --arch x86_64.
"""

from __future__ import annotations

import pytest
from lab import baseline, pageops, settle
from linux_um.guest import Guest
from linux_um.laws import CHECK_FILE

pytestmark = [pytest.mark.needs_pksm, pytest.mark.needs_config("CONFIG_TEST_HMM")]

PAGES = 64


@pytest.mark.regression("R26")
def test_what_is_merged_does_not_move_to_a_device(guest: Guest) -> None:
    """A device has no records, and its memory no list of those who share a page."""
    before = baseline(settle(guest))
    report = pageops(
        guest, "fill=dup", "range=32-64", "fill=unique", "range=all", "settle", "stat=merged",
        "@0:device", "stat=moved", "@1:verify", "sleep=60000", "settle", "stat=settled",
        "verify", "stat=back", "settle", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 2 * 32
    assert report["moved"]["merged_ptes"] == 2 * 32
    # The other half of one process did; and does not come back by itself.
    assert report["moved"]["swapped"] == report["settled"]["swapped"] == 32
    assert report["back"]["swapped"] == 0
    assert baseline(settle(guest)) == before


def test_what_comes_back_from_a_device_is_merged(guest: Guest) -> None:
    """It is born where it comes to, whether it was known before it left or not."""
    before = baseline(settle(guest))
    report = pageops(
        guest, "set=run:0", "fill=dup", "device", "stat=moved", "set=run:1", "settle", "verify",
        "settle", "stat=merged", "verify", "@0:poke=3", "@0:device", "verify", "settle",
        "stat=later", "verify", procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["moved"]["swapped"] == 3 * PAGES
    assert report["merged"]["merged_ptes"] == 3 * PAGES
    assert report["later"]["merged_ptes"] == 2 * PAGES
    assert baseline(settle(guest)) == before


def test_zero_pages_in_whose_place_a_device_has_its_own_are_counted_no_more(guest: Guest) -> None:
    """They are collected as pages that need not be copied."""
    before = baseline(settle(guest))
    report = pageops(
        guest, "fill=zero", "settle", "stat=merged", "@0:device", "stat=moved", "verify",
        "settle", "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    zero = report["merged"].counters["zero_pages"]
    assert report["merged"]["zero"] == 2 * PAGES
    assert report["moved"]["swapped"] == PAGES
    assert report["moved"].counters["zero_pages"] == zero - PAGES
    assert baseline(settle(guest)) == before


@pytest.mark.time_travel
@pytest.mark.regression("R26")
def test_r26_what_a_device_has_for_itself_is_not_merged(guest: Guest) -> None:
    """R26: the page is where it was, and no PTE is present; that says not that it has no owner."""
    before = baseline(settle(guest))
    report = pageops(
        guest, "set=run:0", "fill=dup", "@0:device=exclusive", "stat=taken", "set=run:1",
        "sleep=20000", "stat=merged", "@0:fork=write", "verify", "sleep=2000000", "settle",
        "stat=back", "verify", procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["taken"]["present"] == 2 * PAGES
    assert report["merged"]["merged_ptes"] == 2 * PAGES
    assert report["back"]["present"] == 3 * PAGES
    assert baseline(settle(guest)) == before


@pytest.mark.time_travel
@pytest.mark.needs_config("CONFIG_PKSM_DEBUG")
def test_a_walk_over_memory_does_not_go_as_far_as_a_devices(guest: Guest) -> None:
    """Which is at the end of all addresses: to there it would be 6 s, in place of some ms."""
    done = guest.sh(f"cat /proc/uptime {CHECK_FILE} /proc/uptime")
    before, said, after = done.stdout.splitlines()
    assert said == "fine"
    assert float(after.split()[0]) - float(before.split()[0]) < 1


@pytest.mark.regression("R26")
def test_a_device_that_takes_pages_while_they_are_merged(guest: Guest) -> None:
    """No byte is lost, and nothing is left behind, however the two meet."""
    before = baseline(settle(guest))
    guest.set_pksm("settle_millisecs", 0)
    steps = ("&@0:device", "@1:poke=5", "&@2:device", "@1:fork=write", "join", "verify") * 8
    report = pageops(
        guest, "fill=dup", *steps, "settle", "stat=merged", "verify", procs=3, pages=PAGES
    )
    assert report["merged"]["merged_ptes"] > 0
    assert baseline(settle(guest)) == before

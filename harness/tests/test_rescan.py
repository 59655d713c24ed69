# SPDX-License-Identifier: GPL-2.0-only
"""Pages without a partner: looked at twice, then watched, and found when they change."""

from __future__ import annotations

import pytest
from lab import cost_of_time, counters, hold_memdup, machine_of, pageops, release, settle
from linux_um.guest import Guest

# Hours and days of the guest's time pass.
pytestmark = [pytest.mark.needs_pksm, pytest.mark.time_travel]

PAGES = 64
RESCAN_MS = 20_000
# What a guest's own programs touch meanwhile.
STRAY = 40
# Wall-clock seconds for a day, or what can be skipped of it: two minutes where it takes longest.
DAY_SECONDS = 900.0


def ages(guest: Guest) -> dict[str, list[int]]:
    """Return how many pages wait or were hashed, by age."""
    lines = guest.read_file("/sys/kernel/debug/pksm/ages").splitlines()
    return {line.split()[0]: [int(word) for word in line.split()[1:]] for line in lines}


def test_when_nothing_changes_nothing_is_done(guest: Guest, pytestconfig: pytest.Config) -> None:
    """A day, or what can be skipped of it, costs what twenty minutes cost: the sleep's own pages."""
    day = machine_of(pytestconfig).skipped_seconds
    job = hold_memdup(guest, "--procs", "2", "--mib", "4", "--dup", "50", "--unique", "50",
                      "--rewrite", "0")  # fmt: skip
    (scanned, wakings), (day_scanned, day_wakings) = cost_of_time(
        guest, 1200, 1200, day, timeout=DAY_SECONDS
    )
    release(job)
    assert 0 < scanned < 2 * STRAY
    assert abs(day_scanned - scanned) <= 4
    assert 0 < wakings < 16
    assert day_wakings <= wakings + 2


def test_a_page_without_a_partner_is_read_twice(guest: Guest) -> None:
    # The agent's pages are watched then: no pass that is due for them reads these early.
    settle(guest)
    guest.sh(f"sleep {5 * RESCAN_MS // 1000}")
    report = pageops(
        guest, "stat=start", "fill=unique", "settle", "stat=hashed", f"sleep={5 * RESCAN_MS}",
        "stat=watched", "sleep=3600000", "stat=later",
        procs=1, pages=1024,
    )  # fmt: skip
    start, hashed, watched, later = (
        report[name].counters["pages_scanned"] for name in ("start", "hashed", "watched", "later")
    )
    assert 1024 <= hashed - start <= 1024 + 3 * STRAY
    assert 1024 <= watched - hashed <= 1024 + 3 * STRAY
    assert later - watched <= STRAY
    # The look at the watched pages is itself a new page or two.
    scans = [report[name].counters["full_scans"] for name in ("watched", "later")]
    assert scans[1] - scans[0] <= 2
    assert report["watched"].counters["full_scans"] > report["start"].counters["full_scans"]


def test_pages_that_change_after_they_were_hashed_are_found(guest: Guest) -> None:
    """Neither is what its hash says: only a second look can find out."""
    report = pageops(
        guest, "fill=unique", "settle", "fill=dup", f"sleep={3 * RESCAN_MS}", "settle",
        "stat=merged", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["merged"].sharing == PAGES


def test_pages_that_become_equal_late_are_found(guest: Guest) -> None:
    """Long after they were looked at for the last time."""
    report = pageops(
        guest, "fill=unique", "settle", "sleep=3000000", "stat=alone", "fill=dup", "settle",
        "stat=merged", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["alone"]["merged_ptes"] == 0
    assert report["merged"].sharing == PAGES


def test_a_protection_that_comes_and_goes_hides_no_write(guest: Guest) -> None:
    """mprotect() does not make the PTE of a watched page writable by the way."""
    report = pageops(
        guest, "fill=unique", "settle", f"sleep={5 * RESCAN_MS}", "mprotect=none", "mprotect=ro",
        "mprotect=rw", "fill=dup", "settle", "stat=merged", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["merged"].sharing == PAGES


def test_a_write_after_fork_is_told(guest: Guest) -> None:
    """The child is gone when the parent writes: it need not copy, and still tells."""
    report = pageops(
        guest, "fill=unique", "settle", f"sleep={5 * RESCAN_MS}", "fork", "fill=dup", "settle",
        "stat=merged", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["merged"].sharing == PAGES


def test_watching_does_not_cost_a_copy(guest: Guest) -> None:
    """The page stays its owner's own: the same frame is there after the write."""
    report = pageops(
        guest, "fill=unique", "settle", f"sleep={5 * RESCAN_MS}", "stat=watched", "poke=9",
        "stat=written", "verify",
        procs=1, pages=PAGES,
    )  # fmt: skip
    watched, written = report["watched"].counters, report["written"].counters
    # But for a page of the program's own.
    assert written["pages_broken"] - watched["pages_broken"] < 8
    assert report["written"]["anon"] == PAGES
    # Written to, they wait for another try, and none of them is a new page.
    assert written["pages_volatile"] - watched["pages_volatile"] >= PAGES
    assert written["pages_new"] - watched["pages_new"] < PAGES // 2


def test_a_page_that_never_goes_quiet_costs_less_and_less(guest: Guest) -> None:
    pages = 256
    minute = [step for _ in range(30) for step in ("write=100", "sleep=2000")]
    report = pageops(
        guest, "fill=unique", "stat=begin", *minute, "stat=first", *minute, *minute, *minute,
        *minute, *minute, *minute, *minute, "stat=eighth", *minute, "stat=ninth", "verify",
        procs=1, pages=pages,
    )  # fmt: skip
    begin, first, eighth, ninth = (
        report[name].counters["pages_scanned"] for name in ("begin", "first", "eighth", "ninth")
    )
    assert first - begin <= 12 * pages
    # One look in two minutes or more, and that looks at the PTE only, mostly.
    assert ninth - eighth <= pages + STRAY
    assert report["ninth"].counters["pages_volatile"] >= pages // 2
    assert first > begin


def test_a_page_that_was_busy_for_long_is_found_when_it_goes_quiet(guest: Guest) -> None:
    minute = [step for _ in range(30) for step in ("write=100", "sleep=2000")]
    report = pageops(
        guest, "fill=unique", *minute, *minute, *minute, "fill=dup", "sleep=600000", "stat=quiet",
        "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["quiet"].sharing == PAGES


def test_a_frame_that_had_to_wait_for_long_does_not_make_its_next_page_wait(guest: Guest) -> None:
    """Its record is still in a queue of minutes when the frame is given to a new page."""
    minute = [step for _ in range(30) for step in ("write=100", "sleep=2000")]
    report = pageops(
        guest, "fill=unique", *minute, *minute, *minute, "stat=busy", "unmap", "map", "fill=dup",
        "sleep=2000", "stat=merged", "verify",
        procs=2, pages=1024,
    )  # fmt: skip
    assert report["busy"].counters["pages_volatile"] >= 1024
    assert report["merged"].sharing >= 1024 - PAGES


def test_broken_off_pages_wait_longer_than_new_ones(guest: Guest) -> None:
    report = pageops(
        guest, "fill=dup", "settle", "@0:poke=3", "stat=broken", "sleep=600", "stat=waiting",
        "settle", "stat=settled", "verify",
        procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["broken"].counters["pages_volatile"] >= PAGES
    assert report["waiting"].counters["pages_volatile"] >= PAGES
    # A page of whoever polls may keep changing.
    assert report["settled"].counters["pages_volatile"] < PAGES // 8


def test_no_rescans_when_they_are_switched_off(guest: Guest) -> None:
    guest.set_pksm("rescan_seconds", 0)
    before = settle(guest)
    report = pageops(
        guest, "fill=unique", "settle", "stat=hashed", "sleep=3600000", "stat=later",
        procs=1, pages=PAGES,
    )  # fmt: skip
    hashed, later = report["hashed"].counters, report["later"].counters
    assert later["pages_scanned"] - hashed["pages_scanned"] < STRAY
    assert later["full_scans"] == before["full_scans"]
    guest.set_pksm("rescan_seconds", 5)
    guest.sh("sleep 60")
    assert counters(guest)["full_scans"] > before["full_scans"]


@pytest.mark.parametrize("value", ["-1", "x", "86401", "1.5", ""])
def test_no_nonsense_is_taken(guest: Guest, value: str) -> None:
    with pytest.raises(OSError):
        guest.set_pksm("rescan_seconds", value or "\n")
    assert guest.pksm("rescan_seconds") == 20


def test_the_index_says_who_is_watched(guest: Guest) -> None:
    guest.set_pksm("rescan_seconds", 0)
    job = hold_memdup(guest, "--procs", "1", "--mib", "2", "--dup", "0", "--unique", "100",
                      "--rewrite", "0")  # fmt: skip
    fresh = ages(guest)
    guest.set_pksm("rescan_seconds", 20)
    guest.sh("sleep 100")
    later = ages(guest)
    assert sum(fresh["hashed"]) >= 512 and sum(later["hashed"]) <= STRAY
    assert sum(later["watched"]) >= 512
    release(job)

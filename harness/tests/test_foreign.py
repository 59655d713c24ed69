# SPDX-License-Identifier: GPL-2.0-only
"""Pages that others write to or move than page faults do, and pages in zswap."""

from __future__ import annotations

import pytest
from lab import GROUP, BootFresh, baseline, group, kin, meminfo, ram_swap, settle
from linux_um.guest import Guest

PAGES = 64
# Pages that were written to again and again wait up to so many times as long as others.
SETTLE_MS = 5
SOON = f"set=settle_millisecs:{SETTLE_MS}"
LONG = f"sleep={4096 * SETTLE_MS}"
WAYS = ("remote", "ptrace", "memfile")


def still(*steps: str) -> tuple[str, ...]:
    """Return *steps* that pksmd does nothing beside: counters are those of the whole guest."""
    return ("set=run:0", *steps, "set=run:1")


@pytest.mark.needs_pksm
@pytest.mark.parametrize("way", WAYS)
def test_a_foreign_write_to_a_merged_page_makes_a_copy(guest: Guest, way: str) -> None:
    """The one that is written to gets it, the others keep what they had."""
    before = baseline(settle(guest))
    report = kin(
        guest, "a:new", "b:new", "c:new", "fill=dup", "settle", "stat=merged", f"a:{way}=7",
        "verify", "stat=broken", f"b:{way}=7", "settle", "verify", "stat=again", pages=PAGES,
    )  # fmt: skip
    merged, broken = report["merged"], report["broken"]
    assert merged["merged_ptes"] == 3 * PAGES
    assert broken["merged_ptes"] == 2 * PAGES
    assert broken.counters["pages_broken"] - merged.counters["pages_broken"] >= PAGES
    # a and b are alike again, and c is alone.
    assert report["again"]["merged_ptes"] >= 2 * PAGES
    assert baseline(settle(guest)) == before


@pytest.mark.needs_pksm
@pytest.mark.parametrize("way", WAYS)
def test_a_foreign_write_to_a_watched_page_is_told(guest: Guest, way: str) -> None:
    """So that it is looked for by what it is now: it is merged with its new equal."""
    guest.set_pksm("rescan_seconds", 1)
    report = kin(
        guest, "a:new", "b:new", "a:fill=unique", "b:fill=dup:1", "settle", "sleep=10000", "settle",
        *still("stat=watched", f"a:{way}=7", "verify", "stat=told"), SOON, f"a:{way}=7",
        "sleep=3000",
        "verify", "a:fill=dup:1", f"a:{way}=9", f"b:{way}=9", LONG, "verify",
        "stat=merged", pages=PAGES,
    )  # fmt: skip
    watched, told = report["watched"].counters, report["told"].counters
    assert told["pages_volatile"] - watched["pages_volatile"] >= PAGES
    assert report["merged"]["merged_ptes"] == 2 * PAGES


@pytest.mark.needs_pksm
@pytest.mark.parametrize("way", ["ptrace", "memfile"])
def test_a_forced_write_to_a_watched_page_that_is_read_only_is_told(
    guest: Guest, way: str
) -> None:
    """A debugger writes through a PTE that nobody else could write through."""
    guest.set_pksm("rescan_seconds", 1)
    report = kin(
        guest, "a:new", "a:fill=unique", "a:protect=ro", "settle", "sleep=10000", "settle",
        *still("stat=watched", f"a:{way}=7", "stat=told"), "verify", pages=PAGES,
    )  # fmt: skip
    watched, told = report["watched"].counters, report["told"].counters
    assert told["pages_volatile"] - watched["pages_volatile"] >= PAGES


@pytest.mark.needs_pksm
def test_a_watched_page_that_userfaultfd_moves_is_told(guest: Guest) -> None:
    """It is mapped writable where it comes to: nobody would be told of the next write."""
    guest.set_pksm("rescan_seconds", 1)
    report = kin(
        guest, "a:new", "b:new", "fill=unique", "settle", "sleep=10000", "settle",
        *still("stat=watched", "a:uffdmove", "stat=told"), SOON, "verify", "a:fill=dup", "b:fill=dup", LONG,
        "stat=merged", "verify", pages=PAGES,
    )  # fmt: skip
    watched, told = report["watched"].counters, report["told"].counters
    assert told["pages_volatile"] - watched["pages_volatile"] >= PAGES
    assert report["merged"]["merged_ptes"] == 2 * PAGES


@pytest.mark.needs_pksm
def test_a_zero_page_that_userfaultfd_moves_is_counted_no_more(guest: Guest) -> None:
    """Where it comes to it is as if nobody had ever merged it."""
    before = settle(guest)
    report = kin(
        guest, "a:new", "a:fill=zero", "settle",
        *still("stat=merged", "a:uffdmove", "stat=moved"), "verify", "a:poke=9", "verify", pages=PAGES,
    )  # fmt: skip
    merged, moved = report["merged"].counters, report["moved"].counters
    assert merged["zero_pages"] - before["zero_pages"] >= PAGES
    assert merged["zero_pages"] - moved["zero_pages"] == PAGES
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.needs_pksm
def test_userfaultfd_moves_a_merged_page_as_a_copy_of_its_owner(guest: Guest) -> None:
    """KSM says EBUSY, to who asked for it. This program did not."""
    report = kin(
        guest, "a:new", "b:new", "fill=dup", "settle", "stat=merged", "a:uffdmove", "stat=moved",
        "verify", LONG, "stat=again", "verify", "a:poke=9", "verify", pages=PAGES,
    )  # fmt: skip
    merged, moved = report["merged"].counters, report["moved"].counters
    assert report["merged"]["merged_ptes"] == 2 * PAGES
    assert moved["pages_broken"] - merged["pages_broken"] >= PAGES
    assert report["again"]["merged_ptes"] == 2 * PAGES


@pytest.mark.needs_pksm
def test_userfaultfd_moves_what_was_merged_before_it_was_swapped_out(guest: Guest) -> None:
    """From swap; and when it has been read again, and nobody knows that it was merged."""
    ram_swap(guest)
    group(guest)
    report = kin(
        guest, "a:new", "b:new", "fill=dup", "settle", "stat=merged", "set=run:0",
        f"evict={GROUP}", "stat=out", "a:uffdmove", "stat=moved", "verify", f"evict={GROUP}",
        "b:verify", "b:uffdmove", "verify", "a:poke=9", "verify", "set=run:1", pages=PAGES,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 2 * PAGES
    assert report["out"]["swapped"] == 2 * PAGES
    assert report["moved"]["present"] == PAGES


@pytest.mark.needs_pksm
def test_userfaultfd_does_not_move_what_a_child_has_too(guest: Guest) -> None:
    """Merged or not, that is not PKSM's to change."""
    done = guest.run(
        ["kin", "--pages", "4", "a:new", "a:fill=unique", "a:fork=b", "a:uffdmove"], check=False
    )
    assert done.status == 3
    assert "busy" in done.stderr.lower()


def zswapped(guest: Guest) -> int:
    """Return how many pages zswap has ever taken."""
    for line in guest.read_file("/proc/vmstat").splitlines():
        name, number = line.split()
        if name == "zswpout":
            return int(number)
    raise KeyError("zswpout")


@pytest.mark.parametrize("profile", ["own", "ksm"])
def test_merged_pages_are_compressed_and_come_back(
    boot_fresh: BootFresh, profile: str, request: pytest.FixtureRequest
) -> None:
    """zswap takes a merged page once, whoever maps it, and all get it back."""
    own = request.config.getoption("--profile")
    guest = boot_fresh(profile=own if profile == "own" else "ksm", append=["zswap.enabled=1"])
    if guest.sh("ls /sys/kernel/mm/pksm", check=False).status:
        for name, value in (("pages_to_scan", 20000), ("smart_scan", 0), ("run", 1)):
            guest.write_file(f"/sys/kernel/mm/ksm/{name}", str(value))
    ram_swap(guest, 32)
    group(guest)
    before = zswapped(guest)
    report = kin(
        guest, "a:new", "b:new", "c:new", "advise=mergeable", "fill=thin", "settle",
        "stat=merged", f"evict={GROUP}", "stat=out", "verify", "settle", "verify", pages=256,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * 256
    assert report["out"]["swapped"] == 3 * 256
    taken = zswapped(guest) - before
    # Each content once, and what the program itself has.
    assert 256 <= taken < 2 * 256, taken
    assert meminfo(guest, "Zswapped") is not None

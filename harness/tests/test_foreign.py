# SPDX-License-Identifier: GPL-2.0-only
"""Pages that are written to by another process than their own, and pages in zswap."""

from __future__ import annotations

import pytest
from lab import GROUP, BootFresh, baseline, group, kin, loop_swap, meminfo, settle
from linux_um.guest import Guest

PAGES = 64
WAYS = ("remote", "ptrace", "memfile")


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
        guest, "a:new", "b:new", "a:fill=unique", "b:fill=dup:1", "settle", "sleep=10000",
        "stat=watched", f"a:{way}=7", "verify", "stat=told", f"a:{way}=7", "sleep=60000",
        "verify", "a:fill=dup:1", f"a:{way}=9", f"b:{way}=9", "sleep=400000", "verify",
        "stat=merged", pages=PAGES,
    )  # fmt: skip
    watched, told = report["watched"].counters, report["told"].counters
    assert told["pages_volatile"] - watched["pages_volatile"] >= PAGES
    assert report["merged"]["merged_ptes"] == 2 * PAGES


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
    loop_swap(guest, 32)
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

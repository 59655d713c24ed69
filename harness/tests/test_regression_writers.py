# SPDX-License-Identifier: GPL-2.0-only
"""Merging against whoever writes to, pins, locks or forbids the pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import (
    GROUP,
    BootFresh,
    Report,
    baseline,
    group,
    kin,
    ram_swap,
    settle,
    settled_meminfo,
)
from linux_um.guest import Guest
from test_regression_rmap import ONLY, new

pytestmark = pytest.mark.needs_pksm

PAGES = 64
EVICT = f"evict={GROUP}"
LEAVE = f"reclaim={GROUP}"


@pytest.fixture
def swapping(boot_fresh: BootFresh) -> Iterator[Guest]:
    """Return a guest with swap and a memory cgroup; its counters return after the test."""
    guest = boot_fresh()
    ram_swap(guest, 32)
    group(guest)
    before = baseline(settle(guest))
    yield guest
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R20")
def test_r20_a_read_with_o_direct_arrives_where_it_was_meant_to(guest: Guest) -> None:
    """R20: it is held up half-way, with the pages in its hands, while the engine looks at them."""
    before = baseline(settle(guest))
    guest.sh(
        "mkdir /disk && mount -t tmpfs -o size=4m none /disk && "
        "dd if=/dev/zero of=/disk/file bs=1M count=2 2>/dev/null && losetup /dev/loop0 /disk/file"
    )
    done = guest.run(
        ["pinpages", "--mode", "direct", "--device", "/dev/loop0", "--pages", "200"], check=False
    )
    assert done.status == 0, f"{done.stdout}\n{done.stderr}"
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R21")
def test_r21_a_page_pinned_for_long_is_not_merged(guest: Guest) -> None:
    """R21: io_uring writes to its registered buffer, with FOLL_PIN, whatever the PTE says."""
    before = baseline(settle(guest))
    done = guest.run(["pinpages", "--mode", "io_uring", "--pages", "256"], check=False)
    assert done.status == 0, f"{done.stdout}\n{done.stderr}"
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R21")
def test_r21_a_merged_page_is_nobodys_own(guest: Guest) -> None:
    """R21: not even of the one who had it first: who writes to it gets a copy."""
    report = kin(
        guest, "a:new", "b:new", "c:new", "fill=dup", "settle", "stat=merged", "a:poke=1",
        "verify", "b:poke=2", "verify", "stat=broken", "a:fork=d", "d:poke=1", "verify", "c:poke=4",
        "verify", "settle", "verify", pages=PAGES,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * PAGES
    assert report["broken"]["merged_ptes"] == PAGES


@pytest.mark.regression("R22")
def test_r22_a_page_that_could_not_be_merged_is_as_it_was(swapping: Guest) -> None:
    """R22: a is in the index and write-protected when b turns out to be pinned.

    Both stay tracked and whole; the next with these contents, c, finds a; and b joins
    them when its pin is gone.
    """
    report = kin(
        swapping, "a:new", "a:fill=dup", "settle", "set=run:0", "b:new", "b:fill=dup", "b:pin",
        "stat=before", "set=run:1", "wait=pages_new==0", "sleep=2000", "stat=failed", "verify",
        "a:poke=9", "a:poke=9", "stat=written", "verify", "c:new", "c:fill=dup",
        "wait=pages_new==0", f"wait=pages_sharing>={PAGES}", "sleep=2000", "stat=joined",
        "verify", "b:unpin", "settle", "stat=merged", "verify", EVICT, "verify", pages=PAGES,
    )  # fmt: skip
    failed = report["failed"]
    assert failed["merged_ptes"] == 0
    assert failed["anon"] == 2 * PAGES
    assert failed.counters["pages_volatile"] >= PAGES, "b was not found to be pinned"
    for name in ("pages_shared", "stable_nodes", "rmap_items"):
        assert failed.counters[name] <= report["before"].counters[name] + 4, name
    # a's pages are its own still: it writes to them, and no copy is born.
    assert report["written"].counters["pages_new"] <= 8
    assert report["joined"]["merged_ptes"] == 2 * PAGES
    assert report["joined"]["merged_pages"] == PAGES
    assert report["merged"]["merged_ptes"] == 3 * PAGES
    assert report["merged"]["merged_pages"] == PAGES


@pytest.mark.regression("R23")
@pytest.mark.parametrize("unwilling", ["a", "b"])
def test_r23_a_merge_that_ends_midway_is_on_record(swapping: Guest, unwilling: str) -> None:
    """R23: parent and child have the same pages; one of the two does not want to be merged.

    So some PTEs of a page are replaced and others are not. rmap has to find both kinds.
    """
    report = half_merged(swapping, unwilling, "verify", EVICT, "stat=out", "verify")
    willing = "b" if unwilling == "a" else "a"
    half = report["half"].raw
    assert half[unwilling]["merged_ptes"] == 0
    assert half[willing]["merged_ptes"] == PAGES, "nothing was merged: the test tested nothing"
    assert report["out"]["present"] == 0


@pytest.mark.regression("R23")
@pytest.mark.parametrize("leaver", ["a", "b", "c", "d"])
def test_r23_each_of_those_half_merged_may_write_and_go(swapping: Guest, leaver: str) -> None:
    """R23: and nobody else notices."""
    half_merged(
        swapping, "b", f"{leaver}:poke=7", "verify", f"{leaver}:exit", "verify", "poke=8", "verify",
        "settle", "verify",
    )  # fmt: skip


@pytest.mark.regression("R23")
@pytest.mark.parametrize("moment", ["found", "frozen"])
@pytest.mark.parametrize("unwilling", ["a", "b"])
def test_r23_who_forbids_it_in_the_middle_of_a_merge_leaves_it_half_done(
    swapping: Guest, unwilling: str, moment: str
) -> None:
    """R23: parent and child have the page; one of them says no when its equal is there.

    That is a merged page when it is found, and another process' own when it is frozen.
    """
    others = (*new("c"), *(new("d") if moment == "found" else ()))
    report = kin(
        swapping, *ONLY, *others, "fill=dup", "settle", "set=run:0", *new("a"), "a:fill=dup",
        "a:fork=b",
        f"hold={moment}", "set=run:1", "held", f"{unwilling}:advise=unmergeable", "hold=off",
        "settle", "stat=half", "verify", EVICT, "stat=out", "verify", pages=PAGES,
    )  # fmt: skip
    willing = "b" if unwilling == "a" else "a"
    half = report["half"].raw
    assert half[unwilling]["merged_ptes"] == 0
    assert half[willing]["merged_ptes"] == PAGES, "nothing was merged: the test tested nothing"
    assert report["out"]["present"] == 0


def half_merged(guest: Guest, unwilling: str, *operations: str) -> Report:
    """Run kin with a family a, b of which one is unwilling, and two strangers c, d."""
    return kin(
        guest, "c:new", "d:new", "fill=dup", "settle", "set=run:0", "a:new", "a:fill=dup",
        "a:fork=b", f"{unwilling}:advise=unmergeable", "set=run:1", "settle", "stat=half",
        *operations, pages=PAGES,
    )  # fmt: skip


@pytest.mark.regression("R28")
@pytest.mark.parametrize("when", ["before", "after"])
def test_r28_a_merged_page_that_anybody_has_locked_stays(swapping: Guest, when: str) -> None:
    """R28: it is locked once, stays in memory for all, and is let go with the last lock."""
    lock = ("b:mlock", "fill=dup") if when == "before" else ("fill=dup", "settle", "b:mlock")
    names = ("Mlocked", "Unevictable")
    before = settled_meminfo(swapping, *names)
    report = kin(
        swapping, "a:new", "b:new", "c:new", *lock, "settle", "stat=locked", LEAVE, "stat=kept",
        "verify", "b:munlock", "stat=unlocked", EVICT, "stat=out", "verify", pages=PAGES,
    )  # fmt: skip
    assert report["locked"]["merged_ptes"] == 3 * PAGES
    assert report["locked"]["mlocked_kib"] == before[0] + 4 * PAGES
    assert report["kept"]["present"] == 3 * PAGES
    assert report["unlocked"]["mlocked_kib"] == before[0]
    assert report["out"]["present"] == 0
    assert settled_meminfo(swapping, *names) == before

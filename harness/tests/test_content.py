# SPDX-License-Identifier: GPL-2.0-only
"""Only equal pages merge: one different byte anywhere is enough."""

from __future__ import annotations

import pytest
from lab import PAGES_PER_MIB, memdup, pageops, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

# The ends, the edges of words, cache lines and halves, and places that engines
# which hash only samples of a page have skipped.
OFFSETS = (0, 1, 7, 8, 63, 64, 127, 128, 1023, 1024, 2047, 2048, 3000, 4032, 4088, 4095)


@pytest.mark.regression("R41")
def test_r41_pages_that_differ_in_one_byte_never_merge(guest: Guest) -> None:
    """R41: whatever the offset of that byte."""
    for offset in OFFSETS:
        report = pageops(
            guest, f"fill=near:{offset}", "settle", "stat=near", "verify", procs=3, pages=16
        )
        assert report["near"]["merged_ptes"] == 0, f"offset {offset}"
        assert report["near"]["anon"] == 3 * 16, f"offset {offset}"


@pytest.mark.regression("R41")
def test_r41_pages_that_are_zero_but_for_one_byte_are_not_taken_for_zero(guest: Guest) -> None:
    """R41: nor are they dropped: those of a process are equal, and merge."""
    guest.set_pksm("use_zero_pages", 1)
    for offset in OFFSETS:
        report = pageops(
            guest, f"fill=nearzero:{offset}", "settle", "stat=near", "verify", procs=3, pages=4
        )
        assert report["near"]["zero"] == 0, f"offset {offset}"
        assert report["near"]["merged_ptes"] == 12, f"offset {offset}"
        assert report["near"]["merged_pages"] == 3, f"offset {offset}"


def test_near_duplicates_among_duplicates_are_told_apart(guest: Guest) -> None:
    """256 pages of each process differ from the others' in a byte at a random place."""
    report = memdup(
        guest, "--procs", "4", "--mib", "2", "--near", "50", "--dup", "50", "--stopped"
    )
    expected = report["settled"].expected
    assert report["settled"].sharing == expected["sharing"] == 3 * PAGES_PER_MIB
    assert report["settled"].map["anon"] == expected["unique"] == 4 * PAGES_PER_MIB


@pytest.mark.regression("R42")
def test_r42_many_different_pages_all_find_their_twin(guest: Guest) -> None:
    """R42, R43: no content is locked out of the indexes by another, 16384 of them at once.

    A record keeps 24 bits of the hash: about eight pairs of these contents have them equal.
    """
    report = memdup(
        guest, "--procs", "2", "--mib", "64", "--dup", "100", "--rewrite", "0", "--stopped"
    )
    assert report["settled"].map["merged_pages"] == 64 * PAGES_PER_MIB
    assert report["settled"].map["anon"] == 0


def test_one_content_in_all_pages_becomes_as_many_pages_as_are_needed(guest: Guest) -> None:
    """None is mapped more often than max_page_sharing says."""
    report = pageops(guest, "fill=same", "settle", "stat=some", "verify", procs=4, pages=512)
    assert report["some"]["merged_ptes"] == 4 * 512
    assert report["some"]["merged_pages"] == 4 * 512 // guest.pksm("max_page_sharing")


def test_one_content_in_all_pages_becomes_one_page_where_it_may(guest: Guest) -> None:
    guest.set_pksm("max_page_sharing", 10000)
    report = pageops(guest, "fill=same", "settle", "stat=one", "verify", procs=4, pages=512)
    assert report["one"]["merged_pages"] == 1
    assert report["one"]["merged_ptes"] == 4 * 512


def test_a_duplicate_that_comes_late_joins_the_merged_page(guest: Guest) -> None:
    """The stable index is searched: no second merged page of the same content."""
    report = pageops(
        guest,
        "@0:fill=dup", "@1:fill=dup", "settle", "stat=two",
        "@2:fill=dup", "settle", "stat=three", "verify",
        procs=3, pages=128,
    )  # fmt: skip
    assert (report["two"]["merged_pages"], report["two"]["merged_ptes"]) == (128, 256)
    assert (report["three"]["merged_pages"], report["three"]["merged_ptes"]) == (128, 384)


def test_a_merged_content_can_die_and_come_again(guest: Guest) -> None:
    """R9, R43: a stale stable node neither takes part nor stands in the way."""
    before = settle(guest)
    for _ in range(4):
        report = pageops(guest, "fill=dup", "settle", "stat=merged", "verify", procs=3, pages=64)
        assert report["merged"]["merged_pages"] == 64
        after = settle(guest)
        assert after["stable_nodes"] == before["stable_nodes"]
        assert after["rmap_items"] == before["rmap_items"]


def test_pages_that_change_while_the_engine_looks_at_them_stay_right(guest: Guest) -> None:
    """Written again and again while they are hashed and merged: never a stale copy."""
    steps = []
    for number in range(24):
        steps += [f"fill=dup:{number}", f"sleep={90 + number}", "verify"]
    report = pageops(guest, *steps, "settle", "verify", "stat=end", procs=3, pages=64)
    assert report["end"].counters["pages_scanned"] >= 3 * 64


def test_a_page_that_changed_since_it_was_hashed_is_found_out(guest: Guest) -> None:
    """The hash of an unmerged page is old news: contents decide, wherever they differ.

    The page of process 0 is in the index by a hash that no longer holds when process 1 comes
    with the old contents. It is then hashed anew, so that process 2 finds it.
    """
    # There are many offsets, and each waits for pages to settle again and again. The engine
    # stops while a process writes, which a busy host may keep from it for longer than that.
    guest.set_pksm("settle_millisecs", 5)
    for offset in OFFSETS:
        report = pageops(
            guest,
            "set=run:0", "@0:fill=dup", "set=run:1", "settle",
            "set=run:0", f"@0:poke={offset}", "@1:fill=dup", "set=run:1", "settle",
            "stat=changed", "verify",
            "set=run:0", "@2:fill=dup", f"@2:poke={offset}", "set=run:1", "settle",
            "stat=found", "verify",
            procs=3, pages=16,
        )  # fmt: skip
        assert report["changed"]["merged_ptes"] == 0, f"offset {offset}"
        assert report["found"]["merged_ptes"] == 2 * 16, f"offset {offset}"
        assert report["found"]["anon"] == 16, f"offset {offset}"


@pytest.mark.parametrize("alloc", ["mmap", "brk"])
@pytest.mark.parametrize("touch", ["write", "gup"])
def test_pages_enter_wherever_they_come_from(guest: Guest, alloc: str, touch: str) -> None:
    """Heap or mapping, touched by the processor or populated by get_user_pages."""
    report = memdup(
        guest, "--procs", "2", "--mib", "2", "--dup", "100", "--alloc", alloc, "--touch", touch
    )
    assert report["settled"].sharing == 2 * PAGES_PER_MIB

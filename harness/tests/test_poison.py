# SPDX-License-Identifier: GPL-2.0-only
"""Memory that goes bad: a merged page takes its sharers' page with it, and nothing else.

User-Mode Linux has no such memory: these tests run with --arch x86_64.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from lab import baseline, pageops, settle, tracked
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_pksm, pytest.mark.needs_config("CONFIG_MEMORY_FAILURE")]


def poison(guest: Guest, *options: str) -> dict[str, Any]:
    """Run poison; see `poison --help`. Afterwards pksmd has seen what was lost."""
    done = guest.run(["poison", *options])
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["ok"] is True
    guest.sh("sleep 60")
    return report


@pytest.mark.regression("R35")
def test_a_merged_page_that_goes_bad_is_lost_to_all_who_have_it(guest: Guest) -> None:
    before = baseline(settle(guest))
    report = poison(guest, "--procs", "3", "--pages", "64")
    assert report["lost"] == [1, 1, 1]
    assert report["before"]["pages_sharing"] >= 2 * 64
    # The page is nobody's any more, and not the engine's either.
    assert baseline(settle(guest)) == before


def test_what_is_written_where_a_merged_page_went_bad_merges_anew(guest: Guest) -> None:
    """The bad page is never read again, and nobody is merged with it."""
    poison(guest, "--procs", "2", "--pages", "8", "--page", "3")
    report = poison(guest, "--procs", "2", "--pages", "8", "--page", "4")
    assert report["lost"] == [1, 1]
    assert report["before"]["pages_sharing"] >= 8


@pytest.mark.regression("R35")
@pytest.mark.parametrize("page", [0, 63])
def test_a_page_of_ones_own_that_goes_bad_is_lost_to_nobody_else(
    guest: Guest, page: int
) -> None:
    before = baseline(settle(guest))
    report = poison(guest, "--unique", "--procs", "3", "--pages", "64", "--page", str(page))
    assert report["lost"] == [1, 0, 0]
    assert baseline(settle(guest)) == before


@pytest.mark.time_travel
def test_what_has_gone_bad_is_not_counted_for_ever(guest: Guest) -> None:
    """The page is never freed: whoever found that out tells the engine."""
    once = "poison --unique --procs 1 --pages 8 --page 1 >/dev/null"
    guest.sh(f"{once}; sleep 1000")
    before = tracked(settle(guest))
    guest.sh(f"for i in $(seq 32); do {once} || exit 1; done; sleep 1000")
    assert tracked(settle(guest)) - before < 16


@pytest.mark.needs_config("CONFIG_TRANSPARENT_HUGEPAGE")
@pytest.mark.parametrize("unique", [False, True])
def test_a_page_of_a_large_folio_that_goes_bad(guest: Guest, unique: bool) -> None:
    """It is lost to its owner, and to another one only where it had been split and merged."""
    guest.write_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")
    before = baseline(settle(guest))
    options = ["--unique"] if unique else []
    report = poison(guest, "--huge", "--procs", "2", "--pages", "512", "--page", "77", *options)
    assert report["filled_large"] == 2 * 512
    if unique:
        assert report["large"] == 2 * 512
        assert report["lost"] == [1, 0]
    else:
        assert report["large"] == 0
        assert report["before"]["pages_sharing"] >= 512
        assert report["lost"] == [1, 1]
    assert baseline(settle(guest)) == before


def test_merged_pages_that_are_taken_offline_move_elsewhere(guest: Guest) -> None:
    """Soft offline: the content goes to another page, and stays merged."""
    before = baseline(settle(guest))
    report = pageops(
        guest, "fill=dup", "settle", "stat=merged", "range=0-8", "@0:madvise=soft_offline",
        "range=all", "verify", "stat=moved", "poke=3", "verify", procs=3, pages=64,
    )  # fmt: skip
    merged, moved = report["merged"], report["moved"]
    assert moved["merged_ptes"] == merged["merged_ptes"] == 3 * 64
    assert moved["merged_pfn_sum"] != merged["merged_pfn_sum"]
    assert baseline(settle(guest)) == before

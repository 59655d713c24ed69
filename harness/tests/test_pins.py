# SPDX-License-Identifier: GPL-2.0-only
"""Pages that somebody else holds a reference to are not merged away from under him."""

from __future__ import annotations

import pytest
from lab import baseline, pageops, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm


@pytest.mark.regression("R20")
@pytest.mark.regression("R21")
@pytest.mark.parametrize("mode", ["vmsplice", "io_uring"])
def test_data_goes_through_a_reference_held_while_the_engine_runs(guest: Guest, mode: str) -> None:
    """R20, R21: a page in a pipe, a page pinned for long by io_uring."""
    before = settle(guest)
    done = guest.run(["pinpages", "--mode", mode, "--pages", "128"], check=False)
    assert done.status == 0, f"{done.stdout}\n{done.stderr}"
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R40")
def test_r40_pinned_pages_cost_little_while_they_wait(guest: Guest) -> None:
    """R40: the engine tries them again, but ever more rarely."""
    before = settle(guest)["pages_scanned"]
    guest.run(["pinpages", "--mode", "vmsplice", "--pages", "64"])
    scanned = settle(guest)["pages_scanned"] - before
    # 128 pages and what else a few processes touch; 60 s of retries at each interval
    # of 200 ms would be 64 * 300.
    assert scanned < 4000


@pytest.mark.parametrize("late", [False, True], ids=["in-the-index", "held-all-its-life"])
def test_a_page_that_is_held_keeps_no_others_from_merging(guest: Guest, late: bool) -> None:
    """Pages that are equal to it find each other; when it is given back, it joins them."""
    # Else the rest of what these processes have would be merged and counted as well.
    guest.set_pksm("scope", "madvise")
    before = baseline(settle(guest))
    first = ("@0:fill=dup", "@0:pin", "settle") if late else ("@0:fill=dup", "settle", "@0:pin")
    report = pageops(
        guest,
        "madvise=mergeable", *first, *(f"@{process}:fill=dup" for process in (1, 2, 3)),
        f"wait=pages_sharing>={before['pages_sharing'] + 2 * 16}", "stat=held", "verify",
        "@0:unpin", "settle", "stat=free", "verify",
        procs=4, pages=16,
    )  # fmt: skip
    assert report["held"]["merged_ptes"] == 3 * 16
    assert report["held"]["merged_pages"] == 16
    assert report["free"]["merged_ptes"] == 4 * 16
    guest.run(["pksmwait", "--until", "stable_nodes==0"])
    assert baseline(settle(guest)) == before


@pytest.mark.time_travel
@pytest.mark.regression("R40")
def test_pages_that_are_both_held_leave_each_other_alone(guest: Guest) -> None:
    """R40: each would merge with the other, and neither can: they are read ever more rarely.

    A pass over the index, at most 21 minutes later, finds them to be free.
    """
    before = baseline(settle(guest))
    report = pageops(
        guest, "set=run:0", "fill=dup", "pin", "set=run:1", "stat=first", "sleep=3600000",
        "stat=last", "verify", "unpin", "sleep=1800000", "settle", "stat=free", "verify",
        procs=3, pages=16,
    )  # fmt: skip
    assert report["last"]["merged_ptes"] == 0
    scanned = [report[name].counters["pages_scanned"] for name in ("first", "last")]
    # 48 pages, at most once for each doubling of the time, and what else there is.
    assert scanned[1] - scanned[0] < 48 * 20
    assert report["free"]["merged_ptes"] == 3 * 16
    assert baseline(settle(guest)) == before

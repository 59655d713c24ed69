# SPDX-License-Identifier: GPL-2.0-only
"""Pages that somebody else holds a reference to are not merged away from under him."""

from __future__ import annotations

import pytest
from lab import baseline, settle
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
    # of a fixed 200 ms would be 64 * 300.
    assert scanned < 4000

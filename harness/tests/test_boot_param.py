# SPDX-License-Identifier: GPL-2.0-only
"""pksm=on and pksm=off on the kernel's command line."""

from __future__ import annotations

import pytest
from lab import BootFresh, pageops

pytestmark = pytest.mark.needs_pksm


def test_off_from_boot_nothing_is_tracked_and_nothing_merges(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(append=("pksm=off",))
    assert guest.pksm("run") == 0
    report = pageops(guest, "fill=dup", "sleep=20000", "stat=end", "verify", procs=3, pages=64)
    assert report["end"]["merged_ptes"] == 0
    for name in ("pages_shared", "pages_sharing", "pages_scanned", "pages_merged"):
        assert report["end"].counters[name] == 0, name


def test_off_from_boot_can_be_switched_on(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(append=("pksm=off",))
    report = pageops(
        guest, "set=run:1", "fill=dup", "settle", "stat=end", "verify", procs=3, pages=64
    )
    assert report["end"].sharing == 2 * 64


@pytest.mark.parametrize("append", [(), ("pksm=on",)])
def test_on_is_the_default_of_a_guest(boot_fresh: BootFresh, append: tuple[str, ...]) -> None:
    guest = boot_fresh(append=append)
    assert guest.pksm("run") == 1


def test_nonsense_is_said_and_ignored(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(append=("pksm=perhaps",))
    assert guest.pksm("run") == 1

# SPDX-License-Identifier: GPL-2.0-only
"""How much of a CPU pksmd may use."""

from __future__ import annotations

import time

import pytest
from lab import BootFresh, counters, hold_memdup, release, settle
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_pksm, pytest.mark.real_time]

# Enough pages to keep pksmd at work for two seconds at a fifth of a CPU.
LOAD = ("--procs", "4", "--mib", "220", "--dup", "100", "--unique", "0", "--rewrite", "0",
        "--no-wait")  # fmt: skip


def share(guest: Guest, seconds: float) -> float:
    """Return how much of a CPU pksmd had, in per cent, by the guest's own clocks."""

    def now() -> tuple[float, int]:
        text = guest.sh(
            "cut -d' ' -f1 /proc/uptime; cat /sys/kernel/mm/pksm/cpu_usecs; cut -d' ' -f1 /proc/uptime"
        ).stdout.split()
        return (float(text[0]) + float(text[2])) / 2, int(text[1])

    begin = now()
    time.sleep(seconds)
    end = now()
    return (end[1] - begin[1]) / 1e4 / (end[0] - begin[0])


@pytest.mark.parametrize("limit", [5, 20])
def test_the_limit_holds_under_full_load(boot_fresh: BootFresh, limit: int) -> None:
    """Over a few seconds, and not far below it either; test_pace_exact.py has the exact figure.

    The machine that runs this is shared. Time that it takes from the guest counts as
    pksmd's where it comes in the middle of its work; pksmd pays for that afterwards.
    """
    guest = boot_fresh(mem="1300M")
    settle(guest)
    guest.set_pksm("settle_millisecs", 0)
    guest.set_pksm("max_cpu", limit)
    guest.set_pksm("run", 0)
    job = hold_memdup(guest, *LOAD)
    guest.set_pksm("run", 1)
    # There is work for some tenths of a second. The longer it takes, the less does it
    # matter that the host once takes some for itself.
    seen = share(guest, 30.0 / limit)
    now = counters(guest)
    assert now["pages_new"] > 0, f"there was not enough to do: {seen}"
    assert limit / 4 <= seen <= 1.5 * limit + 2
    guest.set_pksm("max_cpu", 100)
    release(job)


def test_a_higher_limit_takes_effect_at_once(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(mem="1300M")
    guest.set_pksm("settle_millisecs", 0)
    guest.set_pksm("max_cpu", 1)
    job = hold_memdup(guest, *LOAD)
    slow = share(guest, 2.0)
    guest.set_pksm("max_cpu", 100)
    fast = share(guest, 1.0)
    assert fast > 4 * slow, (slow, fast)
    release(job)


@pytest.mark.parametrize("value", ["0", "101", "-5", "x", "50%", "1e2"])
def test_no_nonsense_is_taken(guest: Guest, value: str) -> None:
    with pytest.raises(OSError):
        guest.set_pksm("max_cpu", value)
    assert guest.pksm("max_cpu") == 50

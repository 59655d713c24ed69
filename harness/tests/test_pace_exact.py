# SPDX-License-Identifier: GPL-2.0-only
"""How much of a CPU pksmd may use, second by second.

On a PC that is emulated by counting instructions, where neither the clock nor what a
task is charged for depends on what else the host does. In User-Mode Linux both do: see
test_pace.py for what can be said there.
"""

from __future__ import annotations

import time

import pytest
from lab import BootFresh, counters, settle

pytestmark = [pytest.mark.needs_pksm, pytest.mark.exact_time, pytest.mark.time_travel]

LOAD = ("memdup", "--procs", "4", "--mib", "160", "--dup", "100", "--unique", "0", "--rewrite", "0",
        "--hold", "--no-wait")  # fmt: skip
# The time, in seconds, and what pksmd has used up to then, in microseconds.
LOOK = "cut -d' ' -f1 /proc/uptime; cat /sys/kernel/mm/pksm/cpu_usecs"


# For how many seconds there is enough to do.
@pytest.mark.parametrize(("limit", "seconds"), [(5, 4), (20, 4), (50, 1)])
def test_the_limit_holds_over_each_second_of_full_load(
    boot_fresh: BootFresh, limit: int, seconds: int
) -> None:
    """Within two points."""
    guest = boot_fresh(mem="900M")
    settle(guest)
    guest.set_pksm("settle_millisecs", 0)
    guest.set_pksm("max_cpu", limit)
    guest.set_pksm("run", 0)
    job = guest.start(LOAD)
    guest.wait_for(lambda: "holding" in job.stderr, time.monotonic() + 240, "memdup does not hold")
    guest.set_pksm("run", 1)
    again = f"for i in $(seq {seconds}); do sleep 1; {LOOK}; done"
    text = guest.sh(f"sleep 1; {LOOK}; {again}").stdout.split()
    assert counters(guest)["pages_new"] > 0, "there was not enough to do"
    times = [float(word) for word in text[::2]]
    used = [int(word) for word in text[1::2]]
    shares = [
        (used[i + 1] - used[i]) / 1e4 / (times[i + 1] - times[i]) for i in range(seconds)
    ]
    assert all(abs(share - limit) <= 2 for share in shares), shares
    guest.set_pksm("max_cpu", 100)
    job.close_stdin()
    assert job.wait(240).status == 0

# SPDX-License-Identifier: GPL-2.0-only
"""Random work under the engine: every byte verified before and after each step."""

from __future__ import annotations

import pytest
from lab import baseline, meminfo, settle, workload
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_random_steps_keep_every_byte_and_leave_nothing(guest: Guest, seed: int) -> None:
    before = settle(guest)
    report = workload(
        guest, ["churn", "--procs", "4", "--rounds", "120", "--pause-ms", "40", "--seed", str(seed)]
    )
    merged = report.raw["after"]["pages_merged"] - report.raw["before"]["pages_merged"]
    assert merged > 0, "nothing was merged: the test tested nothing"
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.real_time
def test_random_steps_in_real_time(guest: Guest) -> None:
    """The clock goes on and interrupts come whenever they come."""
    guest.set_pksm("settle_millisecs", 5)
    before = settle(guest)
    report = workload(
        guest, ["churn", "--procs", "3", "--seconds", "8", "--pause-ms", "1", "--seed", "5"]
    )
    merged = report.raw["after"]["pages_merged"] - report.raw["before"]["pages_merged"]
    assert merged > 0
    after = settle(guest)
    assert baseline(after) == baseline(before)


@pytest.mark.regression("R52")
def test_r52_counters_are_sane_at_any_moment_of_a_churn(guest: Guest) -> None:
    """R52: read in mid-work, none is negative, nor of pages that there are not.

    By the guest itself: its clock does not wait for the host to look.
    """
    seen = guest.sh(
        "{ churn --procs 3 --rounds 100 --pause-ms 30 --no-wait >/dev/null; echo $? >/tmp/end; } & "
        "until [ -s /tmp/end ]; do grep . /sys/kernel/mm/pksm/*; usleep 20000; done; "
        "exit $(cat /tmp/end)"
    ).stdout.splitlines()
    names = ("pages_shared", "pages_sharing", "pages_new", "pages_unshared", "pages_volatile",
             "zero_pages", "rmap_items", "stable_nodes")  # fmt: skip
    looks: dict[str, list[int]] = {name: [] for name in names}
    for line in seen:
        name, _, value = line.rpartition("/")[2].partition(":")
        if name in looks:
            looks[name].append(int(value))
    assert len(looks["pages_shared"]) > 20
    assert max(looks["pages_shared"]) > 0, "nothing was merged meanwhile"
    pages = meminfo(guest, "MemTotal") // 4
    assert not {name: values for name, values in looks.items()
                if min(values) < 0 or max(values) > pages}  # fmt: skip


def test_switching_the_engine_during_a_churn_loses_no_byte(guest: Guest) -> None:
    job = guest.start(["churn", "--procs", "3", "--rounds", "100", "--pause-ms", "50"])
    job.close_stdin()
    for value in (2, 1, 0, 1, 2, 1, 0, 2, 1) * 3:
        guest.set_pksm("run", value)
        guest.run(["usleep", "150000"])
    guest.set_pksm("run", 1)
    done = job.wait(120)
    assert done.status == 0, done.stderr

# SPDX-License-Identifier: GPL-2.0-only
"""Random work under the engine: every byte verified before and after each step."""

from __future__ import annotations

import pytest
from lab import (
    GROUP,
    BootFresh,
    baseline,
    group,
    meminfo,
    parse_report,
    ram_swap,
    settle,
    vmstat,
    workload,
)
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

SECONDS = 6
# What has to happen meanwhile, at least so often.
LEAST = {
    "pksm_scanned": 1000, "pksm_merged": 200, "pksm_broken": 50, "cow_ksm": 50, "pswpout": 100,
    "pswpin": 50, "pgmigrate_success": 20,
}  # fmt: skip
# Until churn has ended: everything is unmerged, and merged again; and its pages are
# swapped out, and moved. Beside that processes pin pages. Each loop says how often it went round.
AT_ONCE = """
cd /sys/kernel/mm/pksm
(echo 0 > {group}/cgroup.procs; exec churn --procs {procs} --seconds {seconds} --pause-ms 0 --no-wait) &
pid=$!
turns=0
{{ while kill -0 $pid 2>/dev/null; do
	echo 1M > {group}/memory.reclaim
	echo 1 > /proc/sys/vm/compact_memory
	turns=$((turns + 1))
done 2>/dev/null; echo moved $turns; }} &
{{ while kill -0 $pid 2>/dev/null; do
	# Contents that nobody has had: they cannot have been merged before.
	pinpages --no-wait --seed $turns > /tmp/pinned || {{ cat /tmp/pinned >&2; exit; }}
	turns=$((turns + 1))
done; echo pinned $turns; }} &
while kill -0 $pid 2>/dev/null; do
	echo 2 > run && turns=$((turns + 1))
	echo 1 > run; usleep 100000
done
echo unmerged $turns
wait $pid
status=$?
wait
exit $status
"""

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


@pytest.mark.needs_smp
@pytest.mark.parametrize("cpus", [2, 4])
def test_all_at_once_at_full_speed(boot_fresh: BootFresh, cpus: int) -> None:
    """Intake, free, copies, fork, exit, mremap, unmerging, pins, swap, migration and compaction.

    Nobody pauses, pksmd neither. What one of them meets in the other is luck; that all of it
    happened, and while pages were merged, is asserted.
    """
    guest = boot_fresh(cpus=cpus)
    ram_swap(guest, 48)
    group(guest)
    guest.set_pksm("settle_millisecs", 0)
    guest.set_pksm("max_cpu", 100)
    before = settle(guest)
    first = {event: vmstat(guest, event) for event in LEAST}
    script = AT_ONCE.format(group=GROUP, procs=cpus, seconds=SECONDS)
    done = guest.sh(script)
    lines = done.stdout.splitlines()
    (report,) = [parse_report(line) for line in lines if line.startswith("{")]
    turns = dict(line.split() for line in lines if not line.startswith("{"))
    grown = {event: vmstat(guest, event) - first[event] for event in LEAST}
    assert report.raw["wrong"] == 0
    assert set(turns) == {"moved", "pinned", "unmerged"}, done.stderr
    assert min(map(int, turns.values())) >= 2, turns
    assert min(report.raw["steps"].values()) > 0, report.raw["steps"]
    little = {event: number for event, number in grown.items() if number < LEAST[event]}
    assert not little, "it hardly happened: the test tested nothing"
    assert baseline(settle(guest)) == baseline(before)

# SPDX-License-Identifier: GPL-2.0-only
"""One guest under work of many kinds for hours, and whether it is as it was in the end.

The work is done in cycles. In each, several workloads run beside each other, drawn at
random; every one of them verifies its own bytes. When all have ended and the engine has
settled, memory and counters are read. What a cycle leaves behind is a leak, or drift.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import laws
from .errors import LinuxUmError
from .guest import Guest
from .guest_setup import RAM_SWAP_DEVICE, memory_group, ram_swap
from .process import Completed

# Seconds of wall-clock time that the workloads of a cycle may take.
CYCLE_SECONDS = 600.0
# How many workloads run beside each other.
AT_ONCE = 3
# What is read after each cycle counts from then on: the first ones fill caches.
WARM_UP = 3
# What may be gone of the free memory between the first and the last cycles, in KiB, and
# what more of slab there may be. Per-CPU lists and partial slabs move by some pages.
MEM_DRIFT_KIB = 512
SLAB_DRIFT_KIB = 256
SWAP_MIB = 32
GROUP = "/sys/fs/cgroup/soak"
# Counters of what exists now: at rest they are the same after each cycle.
AT_REST = (
    "pages_shared",
    "pages_sharing",
    "zero_pages",
    "rmap_items",
    "stable_nodes",
    "stable_items",
)
# Counters that only grow: they say that a cycle did something.
DONE = ("pages_merged", "pages_broken", "pages_scanned")
# Of /proc/vmstat.
SWAPPED = ("pswpout", "pswpin")
# What the agent's own pages may have found, or lost, where they are equal to others.
SLACK = 8

# The engine's controls, a name and a value to a line.
CONTROLS = """\
cd /sys/kernel/mm/pksm
for f in *; do if [ $(stat -c %a $f) = 644 ]; then echo $f $(cat $f); fi; done
"""
# Two thirds of the memory that the workload takes: the rest has to go to swap.
UNDER_PRESSURE = f'echo 10M > {GROUP}/memory.high; echo $$ > {GROUP}/cgroup.procs; exec "$@"'


class SoakError(LinuxUmError):
    """A workload of the soak failed, or the guest is not as it was."""

    exit_status = 1


@dataclass(frozen=True)
class Sample:
    """What was read after a cycle: seconds of both clocks, KiB, counters."""

    cycle: int
    wall_seconds: float
    guest_seconds: float
    mem_free_kib: int
    slab_kib: int
    peak_saved_pages: int
    counters: dict[str, int]
    work: list[str]


def works(draw: random.Random) -> list[list[str]]:
    """Return the workloads that run beside each other in a cycle, as *draw* has it."""
    seed = str(draw.randrange(1, 1 << 30))
    # That the engine settles is for when the others have ended.
    each = ["--no-wait", "--seed", seed]
    kinds = [
        ["memdup", "--procs", "3", "--mib", "4", "--dup", "50", "--zero", "10", "--unique", "40",
         "--rewrite", "30", *each],
        ["memdup", "--procs", "6", "--mib", "2", "--dup", "90", "--unique", "10",
         "--rewrite", "5", *each],
        ["churn", "--procs", "3", "--mib", "3", "--rounds", "60", "--pause-ms", "20", *each],
        ["forkdup", "--depth", "2", "--fanout", "2", "--mib", "1", *each],
        ["sh", "-c", UNDER_PRESSURE, "sh", "churn", "--procs", "2", "--mib", "8",
         "--rounds", "40", "--pause-ms", "20", *each],
    ]  # fmt: skip
    return draw.sample(kinds, AT_ONCE)


def lone_work(draw: random.Random) -> list[str]:
    """Return a workload that turns the engine's controls, or counts, and so has to be alone."""
    seed = str(draw.randrange(1, 1 << 30))
    return draw.choice([
        ["mmrace", "--procs", "4", "--pages", "512", "--rounds", "3",
         draw.choice(("kill", "exits", "locked", "forks"))],
        ["fuzzmm", "--seed", seed, "--ops", "2000", "--procs", "3", "--pages", "64"],
        ["births", "--seed", seed,
         draw.choice(("write", "populate", "read", "vm-write", "file", "fork", "uffd"))],
    ])  # fmt: skip


class Soak:
    """Works on one guest, cycle after cycle."""

    def __init__(self, guest: Guest, seed: int) -> None:
        """Make swap and a cgroup in *guest*. Raises CommandFailed when it cannot be done."""
        self._guest = guest
        self._draw = random.Random(seed)
        self._begun = time.monotonic()
        self.samples: list[Sample] = []
        guest.sh(f"{ram_swap(SWAP_MIB)} && {memory_group(GROUP)}")
        lines = guest.sh(CONTROLS).stdout.splitlines()
        self._controls = [(name, value) for name, value in map(str.split, lines)]

    def cycle(self, said: Callable[[str], None] = lambda _: None) -> Sample:
        """Do one cycle and return what was read after it.

        Raises SoakError when a workload says that a byte is wrong, or does not end, and
        AssertionError when counters contradict each other.
        """
        guest = self._guest
        together, alone = works(self._draw), lone_work(self._draw)
        work = [*together, alone]
        said(", ".join(_name(argv) for argv in together))
        peak = self._run(together)
        said(_name(alone))
        # Not watched: it waits for the engine to have nothing new, as any look brings.
        self._check(guest.run(alone, timeout=CYCLE_SECONDS, check=False))
        for name, value in self._controls:
            guest.set_pksm(name, value)
        sample = self._read(work, peak)
        self.samples.append(sample)
        guest.sh(f"swapon {RAM_SWAP_DEVICE}")
        return sample

    def _read(self, work: Sequence[Sequence[str]], peak: int) -> Sample:
        """Return what there is to be read when all has ended; swap is off then."""
        guest = self._guest
        guest.sh(f"swapoff {RAM_SWAP_DEVICE} && echo 3 > /proc/sys/vm/drop_caches")
        laws.check_laws(guest)
        now = laws.settle(guest)
        events = dict(map(str.split, guest.read_file("/proc/vmstat").splitlines()))
        return Sample(
            cycle=len(self.samples) + 1,
            wall_seconds=time.monotonic() - self._begun,
            guest_seconds=float(guest.read_file("/proc/uptime").split()[0]),
            mem_free_kib=laws.free_kib(guest),
            slab_kib=laws.meminfo(guest, "Slab"),
            peak_saved_pages=peak,
            counters={
                **{name: now[name] for name in (*AT_REST, *DONE)},
                **{name: int(events[name]) for name in SWAPPED},
            },
            work=[_name(argv) for argv in work],
        )

    def _run(self, work: Sequence[Sequence[str]]) -> int:
        """Run workloads to their ends; return the most pages that were saved at a time."""
        guest, peak = self._guest, 0
        jobs = [guest.start(argv) for argv in work]
        for job in jobs:
            job.close_stdin()
        limit = time.monotonic() + CYCLE_SECONDS
        while any(job.poll() is None for job in jobs):
            if time.monotonic() > limit:
                late = next(job for job in jobs if job.poll() is None)
                raise SoakError(f"{_name(late.argv)} did not end within {CYCLE_SECONDS:g} s")
            peak = max(peak, guest.pksm("pages_sharing") + guest.pksm("zero_pages"))
            guest.run(["usleep", "200000"])
        for job in jobs:
            self._check(job.wait())
        return peak

    def _check(self, done: Completed) -> None:
        if done.status != 0:
            raise SoakError(
                f"{' '.join(done.argv)} ended with status {done.status}: "
                f"{(done.stderr or done.stdout).strip()[-400:]}"
            )


def _name(argv: Sequence[str]) -> str:
    """Return what a workload is called."""
    if argv[0] == "sh":
        return f"{argv[4]} in swap"
    return f"{argv[0]} {argv[-1]}" if argv[0] in ("mmrace", "births") else argv[0]


def steady(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Return the samples that count, after the warm-up."""
    return samples[WARM_UP:]


def drift(values: Sequence[float]) -> float:
    """Return how much a series has grown: median of its last third less that of its first.

    0 for fewer than three values.
    """
    part = len(values) // 3
    if part == 0:
        return 0.0
    return statistics.median(values[-part:]) - statistics.median(values[:part])


def verdicts(samples: Sequence[Sample]) -> list[str]:
    """Return what is not flat, a line for each; none when all is as it was."""
    counted = steady(samples)
    if len(counted) < 3:
        return [f"{len(samples)} cycles are too few to say anything: {WARM_UP + 3} are needed"]
    wrong = []
    gone = -drift([sample.mem_free_kib for sample in counted])
    if gone > MEM_DRIFT_KIB:
        wrong.append(f"free memory: {gone:.0f} KiB less than at first (bound: {MEM_DRIFT_KIB})")
    more = drift([sample.slab_kib for sample in counted])
    if more > SLAB_DRIFT_KIB:
        wrong.append(f"slab: {more:.0f} KiB more than at first (bound: {SLAB_DRIFT_KIB})")
    for name in AT_REST:
        values = [sample.counters[name] for sample in samples]
        # Where nothing was left at all once, nothing may ever be.
        slack = SLACK if min(values) else 0
        if max(values) - min(values) > slack:
            wrong.append(f"{name} at rest: from {min(values)} to {max(values)}, and not the same")
    for name in (*DONE, *SWAPPED):
        if samples[-1].counters[name] <= samples[0].counters[name]:
            wrong.append(f"{name} does not grow: the soak has tested nothing")
    return wrong


def totals(samples: Sequence[Sample]) -> dict[str, float]:
    """Return what a line about the whole soak is made of."""
    counted = steady(samples)
    last = samples[-1]
    return {
        "cycles": len(samples),
        "guest_hours": last.guest_seconds / 3600,
        "wall_minutes": last.wall_seconds / 60,
        "pages_merged": last.counters["pages_merged"],
        "pages_broken": last.counters["pages_broken"],
        "peak_saved_mib": max(sample.peak_saved_pages for sample in samples) / 256,
        "mem_drift_kib": -drift([sample.mem_free_kib for sample in counted]),
        "slab_drift_kib": drift([sample.slab_kib for sample in counted]),
    }

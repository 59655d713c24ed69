# SPDX-License-Identifier: GPL-2.0-only
"""What the guest tests share: running the workloads, reading what they saw.

Every function takes a booted guest. Counters are plain dictionaries by the
name of their file in /sys/kernel/mm/pksm (or ksm, in the profile of that name).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from linux_um import guest_setup
from linux_um.guest import MACHINES, Guest, Process
from linux_um.laws import (
    CHECK_FILE as CHECK_FILE,
    LOOKS as LOOKS,
    WORKLOAD_SECONDS as WORKLOAD_SECONDS,
    Counters as Counters,
    check_laws as check_laws,
    check_structures as check_structures,
    contradiction as contradiction,
    has_file as has_file,
    meminfo as meminfo,
    settle as settle,
)
from linux_um.machine import Machine

PAGES_PER_MIB = 256
# A memory cgroup, once group() has made it.
GROUP = "/sys/fs/cgroup/t"
# Counters that count pages or records which exist now: they fall back to
# where they were once a workload has ended.
GAUGES = (
    "pages_shared",
    "pages_sharing",
    "zero_pages",
    "rmap_items",
    "stable_nodes",
    "pages_new",
    "pages_unshared",
    "pages_volatile",
)

# Counters that any merge, and the end of any, changes.
MOVING = ("pages_merged", "pages_shared", "pages_sharing", "pages_broken", "zero_pages")

# Everything is merged with everything, at once, whatever that costs.
MOST_EAGER: dict[str, int | str] = {
    "scope": "all",
    "domain": "global",
    "settle_millisecs": 0,
    "rescan_seconds": 1,
    "max_cpu": 100,
}

_Seen = TypeVar("_Seen")
# Boots a guest; its keyword arguments are those of boot_guest().
BootFresh = Callable[..., Guest]
# Records a name and a value that are shown at the end of the run.
Figure = Callable[[str, str], None]


@dataclass(frozen=True)
class Stage:
    """A stage of a workload: counters, the page map of its regions, the rest."""

    name: str
    counters: Counters
    raw: dict[str, Any]

    def __getitem__(self, key: str) -> int:
        """Return a number that the workload took itself, such as merged_ptes."""
        value = self.raw[key]
        assert isinstance(value, int)
        return value

    @property
    def map(self) -> dict[str, int]:
        """memdup only: what the page map says of all its regions."""
        return dict(self.raw["map"])

    @property
    def expected(self) -> dict[str, int]:
        """memdup only: what the contents allow to be merged."""
        return dict(self.raw["expected"])

    @property
    def sharing(self) -> int:
        """PTEs beyond the first that map a merged page, from the page map."""
        seen = self.raw.get("map", self.raw)
        return int(seen["merged_ptes"]) - int(seen["merged_pages"])


@dataclass(frozen=True)
class Report:
    """The line of JSON of a workload."""

    raw: dict[str, Any]
    stages: tuple[Stage, ...]

    def __getitem__(self, name: str) -> Stage:
        """Return the first stage of that name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)


def machine_of(config: pytest.Config) -> type[Machine]:
    """Return the kind of machine that the guests are."""
    return MACHINES[config.getoption("--arch")]


def parse_report(stdout: str) -> Report:
    """Return the report that is the last line of *stdout*."""
    raw = json.loads(stdout.strip().splitlines()[-1])
    stages = raw.get("stages", raw.get("stats", ()))
    return Report(raw, tuple(Stage(s["name"], dict(s["counters"]), s) for s in stages))


def workload(guest: Guest, argv: Sequence[str], *, timeout: float = WORKLOAD_SECONDS) -> Report:
    """Run a workload that has to succeed, *timeout* in wall-clock seconds.

    Raises AssertionError with what it said on stderr when it does not.
    """
    done = guest.run(argv, timeout=timeout, check=False)
    assert done.status == 0, (
        f"'{' '.join(argv)}' ended with status {done.status}:\n{done.stderr}\n{done.stdout[-2000:]}"
    )
    report = parse_report(done.stdout)
    assert report.raw["ok"] is True
    return report


def hold_memdup(guest: Guest, *options: str, group: str = "") -> Process:
    """Start memdup and return when it has done its work and holds its memory.

    *group* is the directory of a cgroup to run it in. End it by release().
    """
    argv = ["memdup", *options, "--hold"]
    if group:
        argv = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh", *argv]
    job = guest.start(argv)
    guest.wait_for(
        lambda: "holding" in job.stderr or job.status is not None,
        time.monotonic() + WORKLOAD_SECONDS,
        "memdup does not come to hold its memory",
    )
    assert job.status is None, f"memdup ended with status {job.status}: {job.stderr}"
    return job


def release(job: Process) -> Report:
    """Let a memdup that holds its memory verify everything once more and end."""
    job.close_stdin()
    done = job.wait(WORKLOAD_SECONDS)
    assert done.status == 0, done.stderr
    return parse_report(done.stdout)


def memdup(guest: Guest, *options: str, timeout: float = WORKLOAD_SECONDS) -> Report:
    """Run memdup; see `memdup --help`."""
    return workload(guest, ["memdup", *options], timeout=timeout)


def pageops(
    guest: Guest,
    *operations: str,
    procs: int = 2,
    pages: int = 64,
    seed: int = 1,
    timeout: float = WORKLOAD_SECONDS,
) -> Report:
    """Run pageops; see `pageops --help`. Each "stat=NAME" makes a stage."""
    return workload(
        guest,
        ["pageops", "--procs", str(procs), "--pages", str(pages), "--seed", str(seed), *operations],
        timeout=timeout,
    )


def kin(
    guest: Guest, *operations: str, pages: int = 64, timeout: float = WORKLOAD_SECONDS
) -> Report:
    """Run kin; see `kin --help`. In the memory cgroup, where group() has made it."""
    argv = ["kin", "--pages", str(pages), *operations]
    if has_file(guest, GROUP):
        argv = ["sh", "-c", f'echo $$ > {GROUP}/cgroup.procs; exec "$@"', "sh", *argv]
    return workload(guest, argv, timeout=timeout)


def counters(guest: Guest) -> Counters:
    """Return all counters as they are now, each read on its own, by no new process."""
    names = guest.sh("ls /sys/kernel/mm/pksm").stdout.split()
    found: Counters = {}
    for name in names:
        text = guest.read_file(f"/sys/kernel/mm/pksm/{name}").strip()
        if text.lstrip("-").isdigit():
            found[name] = int(text)
    return found


def tracked(now: Counters) -> int:
    """Return how many pages the engine knows."""
    return (
        now["pages_new"] + now["pages_unshared"] + now["pages_volatile"] + now["pages_shared"]
    )


def pagestat(guest: Guest, *options: str) -> dict[str, int]:
    """Return what the page map says; "--all" when nothing else is given.

    A page of the agent's may come or go while it is looked at: what is really wrong
    is so each time.
    """
    return {k: v for k, v in _pagestat(guest, *options).items() if isinstance(v, int)}


def pagestat_and_counters(guest: Guest) -> tuple[dict[str, int], Counters]:
    """Return what the page map says of all processes, and the counters of the same moment.

    Not so when one is asked for after the other: pagestat has memory too, and it may
    be merged while it looks.
    """
    seen = _pagestat(guest)
    return {k: v for k, v in seen.items() if isinstance(v, int)}, dict(seen["counters"])


def _pagestat(guest: Guest, *options: str) -> dict[str, Any]:
    for _ in range(LOOKS):
        done = guest.run(["pagestat", *(options or ("--all",))], check=False)
        if done.status != 1:
            break
    assert done.status == 0, f"pagestat: status {done.status}: {done.stderr}{done.stdout}"
    return dict(json.loads(done.stdout))


def at_rest(guest: Guest, look: Callable[[], _Seen]) -> tuple[_Seen, Counters]:
    """Return what *look* returns, and the counters MOVING, once these are the same after it.

    *look* is to start no program: that has pages, too, which may be merged.
    """

    def moving() -> Counters:
        return {name: guest.pksm(name) for name in MOVING}

    before = moving()
    for _ in range(LOOKS):
        seen, after = look(), moving()
        moved = [name for name in MOVING if before[name] != after[name]]
        if not moved:
            return seen, after
        before = after
    raise AssertionError(f"the engine does not come to rest: {moved} changed during each look")


def vmstat(guest: Guest, name: str) -> int:
    """Return a line of /proc/vmstat."""
    for line in guest.read_file("/proc/vmstat").splitlines():
        key, value = line.split()
        if key == name:
            return int(value)
    raise KeyError(name)


# Both are read by one program of the guest that makes no page meanwhile: a word from
# the host would make the clock leap, and pages.
LOOK_AT_PKSMD = r"""
pid=$(pidof pksmd)
look() {
	read -r scanned < /sys/kernel/mm/pksm/pages_scanned
	while read -r name number; do
		[ $name != voluntary_ctxt_switches: ] || echo $scanned $number
	done < /proc/$pid/status
}
"""


def cost_of_time(
    guest: Guest,
    *seconds: int,
    before: str = "",
    after: str = "",
    timeout: float = WORKLOAD_SECONDS,
) -> list[tuple[int, int]]:
    """Return how many pages pksmd has read, and how often it was woken, in each time but the first.

    The times are in seconds of the guest, one after the other; *before* and *after* are
    commands of its shell. What each look itself costs is in it. *timeout* is in wall-clock
    seconds.
    """
    script = [LOOK_AT_PKSMD, before, *(f"sleep {time}\nlook" for time in seconds), after]
    looks = [
        [int(word) for word in line.split()]
        for line in guest.sh("\n".join(script), timeout=timeout).stdout.splitlines()
    ]
    return [
        (new[0] - old[0], new[1] - old[1]) for old, new in zip(looks, looks[1:], strict=False)
    ]


def one_cpu(guest: Guest) -> None:
    """Let pksmd, the agent and what it starts from now on take turns on the first CPU.

    What a test sees of a task that stands still is not to be changed by another CPU.
    """
    guest.sh("for pid in 1 $(pidof pksmd); do taskset -p 1 $pid; done")


def settled_meminfo(guest: Guest, *names: str) -> list[int]:
    """Return lines of /proc/meminfo in KiB, with nothing left in the batches of the CPUs."""
    guest.sh(
        "echo 1 > /proc/sys/vm/drop_caches; f=/proc/sys/vm/stat_refresh; "
        "if [ -e $f ]; then echo 1 > $f; fi"
    )
    return [meminfo(guest, name) for name in names]


def swap_device(guest: Guest) -> str:
    """Return the name of the swap device in use. Raises IndexError when there is none."""
    return guest.read_file("/proc/swaps").splitlines()[1].split()[0]


def group(guest: Guest) -> None:
    """Make a memory cgroup."""
    guest.sh(guest_setup.memory_group(GROUP))


def ram_swap(guest: Guest, mib: int = 32) -> None:
    """Add a swap device that lies in the guest's own memory."""
    guest.sh(guest_setup.ram_swap(mib))


# memory.reclaim goes by statistics that are brought up to date every two seconds,
# and finds merged pages young at the first time.
RECLAIM = (
    *(f"file={GROUP}/memory.reclaim:16M", "sleep=2500"),
    *(f"file={GROUP}/memory.reclaim:16M", "sleep=2500"),
    f"file={GROUP}/memory.reclaim:16M",
)


def in_group(guest: Guest, *argv: str) -> Report:
    """Run a workload in that cgroup."""
    command = f'echo $$ > {GROUP}/cgroup.procs; exec "$@"'
    return workload(guest, ["sh", "-c", command, "sh", *argv])


def baseline(now: Counters, names: Sequence[str] = GAUGES[:5]) -> Counters:
    """Return the counters that have to be the same again after a workload."""
    return {name: now[name] for name in names}

# SPDX-License-Identifier: GPL-2.0-only
"""Measurements of page mergers: each function makes samples, and judges nothing.

A sample is a dict: ``what`` was measured, of which ``engine`` (a name of bench_lab.SETTINGS),
with how many ``mib`` and ``procs``, and numbers whose names end with their unit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from . import bench_trace
from .agent import Guest
from .bench_lab import (
    PAGES_PER_MIB,
    BenchError,
    Hoard,
    Lab,
    Setting,
    counters,
    engine_file,
    hoard,
    kernel_cpu_ns,
    named_numbers,
    set_engine,
    slabs,
    tune,
)

Sample = dict[str, Any]

BENCH_DIR = "/sys/kernel/debug/pksm_bench"
# Half of them are hashed: twice of what most caches hold.
FLOOR_PAGES = 32768
# A few pages of somebody else's may come and go.
NEARLY_ALL = 0.999
# Guest seconds after which PKSM has looked at unmatched pages once more, and watches them:
# also those of the guest's first process, which changes them whenever it is asked something.
REST_SECONDS = 400
# How often it is looked whether an engine is ready: KSM goes on when it is.
POLL_MS = {"pksmd": 10, "ksmd": 2}
# The same where pksmd does nothing for a second first.
RESCAN_POLL_MS = 100
# Until PKSM looks at unmatched pages once more, in seconds: never, and as soon as it can.
NO_RESCAN, RESCAN = "0", "1"
SHARERS = 10_000
# In which PKSM deals with the pages of the guest's own programs: at full speed, and else.
OWN_PAGES_MS = (400, 1500)
# Between two changes of a page that never rests.
CHANGE_MS = 100
# What is saved has come to rest when it has nearly been the same for so long, in ms of a
# clock that skips waiting: longer than two passes of KSM, and than PKSM waits for a second
# look. And how long that may take. The same of an engine that never sleeps, for which no
# clock can skip anything.
STEADY_MS, STEADY_MOST_MS, STEADY_EVERY_MS = 30_000, 300_000, 250
BUSY_STEADY_MS, BUSY_STEADY_MOST_MS, BUSY_STEADY_EVERY_MS = 1_500, 30_000, 50
VISIT_EVERY_MS = 50
# Beside pages that fill nearly all of its memory a guest has so much, in MiB.
TIGHT_SPARE_MIB = 24


def floor(guest: Guest) -> list[Sample]:
    """Measure the least that merging takes: hash, comparison, PTE. Of the profile bench."""
    guest.write_file(f"{BENCH_DIR}/floor", str(FLOOR_PAGES))
    found = []
    for line in guest.read_file(f"{BENCH_DIR}/floor").splitlines():
        step, *numbers = line.split()
        times, samples, low, lower, median, upper, high = map(int, numbers)
        found.append({
            "what": "floor", "step": step, "steps_per_sample": times, "samples": samples,
            "min_ns": low, "lower_ns": lower, "median_ns": median, "upper_ns": upper,
            "max_ns": high,
        })  # fmt: skip
    return found


def _run_until(
    guest: Guest, setting: Setting, pages: Hoard, counter: str, more: int, poll_ms: int
) -> Sample:
    """Let the engine run until *counter* has grown by *more*; return what that took.

    It is looked at every *poll_ms*. What that has cost is measured as well, with the engine
    stopped.
    """
    goal = engine_file(guest, setting, counter) + more
    before = counters(guest, setting)
    start = kernel_cpu_ns(guest)
    began = time.monotonic_ns()
    set_engine(guest, setting, "run", "1")
    answer = pages.order(f"until {counter}>={goal} {poll_ms} 300", 360.0)
    used, took = kernel_cpu_ns(guest) - start, time.monotonic_ns() - began
    if not answer["ok"]:
        raise BenchError(f"{setting.title}: {counter} has not come to {goal}", "see its counters")
    polls = _cost_of_polls(guest, setting, pages, counter, answer["polls"])
    after = counters(guest, setting)
    return {
        "cpu_ns": used,
        "polls_cpu_ns": polls,
        "polls": answer["polls"],
        "wall_ns": took,
        "scanned_pages": after["pages_scanned"] - before["pages_scanned"],
        "daemon_usecs": after.get("cpu_usecs", 0) - before.get("cpu_usecs", 0),
    }


def _cost_of_polls(
    guest: Guest, setting: Setting, pages: Hoard, counter: str, number: int
) -> int:
    """Stop the engine, and return the CPU time that to look at *counter* so often takes."""
    start = kernel_cpu_ns(guest)
    set_engine(guest, setting, "run", "0")
    pages.order(f"poll {counter} {number}")
    return kernel_cpu_ns(guest) - start


def _memory(guest: Guest, setting: Setting) -> Sample:
    """Return what the engine's records take now: of slabs, and for good."""
    found: Sample = {f"slab_{name}": slab for name, slab in slabs(guest).items()}
    if setting.profile == "bench":
        found.update(named_numbers(guest.read_file(f"{BENCH_DIR}/memory")))
    return found


def work(
    lab: Lab,
    setting: Setting,
    mib: int,
    procs: int,
    turn: int,
    measure: Callable[[Guest, Setting, int, int], list[Sample]],
) -> list[Sample]:
    """Measure one thing at the size *mib*, in a guest of its own; and there, first, the floor.

    *measure* is :func:`unmatched` or :func:`merged`. All samples have the same ``run``: what
    is compared with a floor is compared with that of its own run.
    """
    with lab.guest(setting.profile, mib) as guest:
        found = floor(guest) if setting.profile == "bench" else []
        tune(guest, setting)
        found += measure(guest, setting, mib, procs)
    where = {"run": f"{measure.__name__}, {setting.name}, {mib} MiB, {procs} processes, turn {turn}",
             "turn": turn, "mib": mib, "procs": procs}  # fmt: skip
    return [{**where, **sample} for sample in found]


def _deal_with_own_pages(guest: Guest, setting: Setting, pages: Hoard) -> None:
    """Let PKSM have done what has nothing to do with the pages that are to come.

    They are as many as in a MiB or two. KSM has been asked for none of them.
    """
    if setting.is_pksm:
        set_engine(guest, setting, "run", "1")
        _own_pages(setting, pages)
        set_engine(guest, setting, "run", "0")


def _own_pages(setting: Setting, pages: Hoard) -> None:
    """Wait until PKSM, which is running, has dealt with the pages of the guest's programs."""
    if setting.is_pksm:
        pages.order(f"sleep {OWN_PAGES_MS[not setting.full_speed]}")


def _ready(setting: Setting, number: int) -> tuple[int, int]:
    """Return by how much a counter has to grow for *number* pages, and how often to look."""
    return int(number * NEARLY_ALL), POLL_MS[setting.daemon]


def unmatched(guest: Guest, setting: Setting, mib: int, procs: int) -> list[Sample]:
    """Measure what pages cost that are like no other, until the engine knows that.

    PKSM looks at each of them once more, after some seconds, and never again before it is
    written to, which it is told of by a fault: what these two cost is measured as well.
    """
    with hoard(guest, mib, procs, dup=0) as pages:
        where = {"engine": setting.name, "mib": mib, "procs": pages.procs}
        _rescan(guest, setting, NO_RESCAN)
        _deal_with_own_pages(guest, setting, pages)
        number = pages.order("fill")["pages"]
        goal, every = _ready(setting, number)
        sample = _run_until(guest, setting, pages, "pages_unshared", goal, every)
        found = [{
            "what": "unmatched", **where, "pages": number, **sample,
            "memory": _memory(guest, setting), "counters": counters(guest, setting),
        }]  # fmt: skip
        if setting.is_pksm:
            _rescan(guest, setting, RESCAN)
            sample = _run_until(guest, setting, pages, "full_scans", 1, RESCAN_POLL_MS)
            found.append({"what": "watched", **where, "pages": number, **sample})
            # The same contents again, into pages that are watched and then are not.
            cost = {name: _cost_of_filling(guest, pages) for name in ("watched", "plain")}
            found.append({
                "what": "first write", **where, "pages": number,
                "watched_cpu_ns": cost["watched"], "plain_cpu_ns": cost["plain"],
            })  # fmt: skip
        return found


def _rescan(guest: Guest, setting: Setting, seconds: str) -> None:
    """Let PKSM look at unmatched pages again after *seconds*, or never."""
    if setting.is_pksm:
        set_engine(guest, setting, "rescan_seconds", seconds)


def _cost_of_filling(guest: Guest, pages: Hoard) -> int:
    start = kernel_cpu_ns(guest)
    pages.order("fill")
    return kernel_cpu_ns(guest) - start


def merged(guest: Guest, setting: Setting, mib: int, procs: int) -> list[Sample]:
    """Measure merging pages, breaking some off by writes, and unmerging the rest."""
    with hoard(guest, mib, procs, dup=100) as pages:
        where = {"engine": setting.name, "mib": mib, "procs": pages.procs}
        _rescan(guest, setting, NO_RESCAN)
        _deal_with_own_pages(guest, setting, pages)
        number = pages.order("fill")["expected_sharing"]
        goal, every = _ready(setting, number)
        sample = _run_until(guest, setting, pages, "pages_sharing", goal, every)
        found = [{
            "what": "merged", **where, "pages": number, **sample,
            "memory": _memory(guest, setting), "counters": counters(guest, setting),
        }]  # fmt: skip
        cow = pages.order("break 0")
        found.append({"what": "cow", **where, **cow})
        pages.order("verify")
        broken = cow["pages_per_call"] * len(cow["ns"])
        found.append({"what": "unmerge", **where, **_unmerge(guest, setting, broken)})
        pages.order("verify")
    return found


def _unmerge(guest: Guest, setting: Setting, broken: int) -> Sample:
    """Measure giving every merged page its own copy back, of which *broken* have one."""
    before = counters(guest, setting)
    start, began = kernel_cpu_ns(guest), time.monotonic_ns()
    set_engine(guest, setting, "run", "2")
    return {
        "cpu_ns": kernel_cpu_ns(guest) - start,
        "wall_ns": time.monotonic_ns() - began,
        # Of those that were broken off KSM knows later: see break_off() in hoard.c.
        "pages": before["pages_sharing"] + before["pages_shared"] - (0 if setting.is_pksm else broken),
    }


def metadata(lab: Lab, setting: Setting, mib: int) -> list[Sample]:
    """Measure what an engine keeps of pages that are like no other, and fill nearly all memory."""
    with lab.guest(setting.profile, mib, spare_mib=TIGHT_SPARE_MIB) as guest:
        tune(guest, setting)
        with hoard(guest, mib, dup=0) as pages:
            goal, every = _ready(setting, pages.order("fill")["pages"])
            set_engine(guest, setting, "run", "1")
            pages.wait(f"pages_unshared>={goal}", every, 300, stop=True)
            return [{
                "what": "metadata", "engine": setting.name, "mib": mib, "procs": pages.procs,
                "memory": _memory(guest, setting), "counters": counters(guest, setting),
            }]  # fmt: skip


def convergence(lab: Lab, setting: Setting, mib: int, procs: int) -> list[Sample]:
    """Measure the time from the last write to all duplicates merged, and the CPU until then."""
    with lab.guest(setting.profile, mib) as guest:
        tune(guest, setting)
        with hoard(guest, mib, procs, dup=100) as pages:
            # Twice: memory that was never used is new to the host as well.
            for _ in range(2):
                start = kernel_cpu_ns(guest)
                number = pages.order("fill")["expected_sharing"]
                filled = kernel_cpu_ns(guest) - start
                pages.order("drop")
            set_engine(guest, setting, "run", "1")
            # And goes on: what was stopped begins with what has come meanwhile.
            _own_pages(setting, pages)
            goal = engine_file(guest, setting, "pages_sharing") + int(number * NEARLY_ALL)
            start = kernel_cpu_ns(guest)
            pages.order("fill")
            # Stopped there, or KSM would go on until it is asked what it has used.
            answer = pages.wait(f"pages_sharing>={goal}", 10, 300, stop=True)
            used = kernel_cpu_ns(guest) - start
            polls = _cost_of_polls(guest, setting, pages, "pages_sharing", answer["polls"])
            pages.order("verify")
            counted = counters(guest, setting)
    return [{
        "what": "convergence", "engine": setting.name, "mib": mib, "procs": pages.procs,
        "pages": number, "ns": answer["ns"], "polls": answer["polls"], "cpu_ns": used,
        "fill_cpu_ns": filled, "polls_cpu_ns": polls, "counters": counted,
    }]  # fmt: skip


def idle(lab: Lab, setting: Setting, mib: int, procs: int, seconds: int) -> list[Sample]:
    """Measure what an engine does while nothing changes: with it, and with it stopped.

    The guest's clock skips what nobody waits for, so that a minute of it takes a moment;
    the CPU time is real. The first window begins at the moment when all has been merged;
    PKSM looks at unmatched pages for the second time in it. Its CPU time is what all has
    taken from the first write on, less what it has taken when the engine was stopped at
    that moment. The last window comes when all unmatched pages are watched. Of that,
    wake-ups are those of its last *seconds*: to have asked for the measurement is a change,
    too, which an engine may look at.
    """
    with lab.guest(setting.profile, mib, time_travel=True) as guest:
        tune(guest, setting)
        with hoard(guest, mib, procs, dup=50, zero=10) as pages:
            where = {"what": "idle", "engine": setting.name, "mib": mib, "procs": pages.procs,
                     "seconds": seconds}  # fmt: skip
            filled = pages.order("fill")
            pages.order("drop")
            # KSM merges zeroes with each other, PKSM with the zero page.
            more = filled["expected_sharing"] + (0 if setting.is_pksm else filled["zero"])
            used, answer, _ = _converge(guest, setting, pages, more, "until", 0)
            # KSM would know of what is given back now when it has made another pass.
            set_engine(guest, setting, "run", "2")
            pages.order("drop")
            set_engine(guest, setting, "run", "0")
            until = used
            used, answer, trace = _converge(guest, setting, pages, more, "wait", seconds)
            wakings = bench_trace.wakings_of(trace, setting.daemon, answer["at_ns"] / 1e9)
            found: list[Sample] = [{
                **where, "window": "first", "running": True, "cpu_ns": used - until,
                "cpu_seconds": seconds, "wakeups": len([w for w in wakings if 0 < w < seconds]),
                "counters": counters(guest, setting),
            }]  # fmt: skip

            def watch(running: bool) -> None:
                bench_trace.start(guest, setting.daemon)
                start = kernel_cpu_ns(guest)
                pages.order(f"sleep {(REST_SECONDS + seconds) * 1000}")
                used = kernel_cpu_ns(guest) - start
                wakings = bench_trace.wakings_of(bench_trace.stop(guest), setting.daemon)
                late = [w for w in wakings if REST_SECONDS <= w < REST_SECONDS + seconds]
                found.append({
                    **where, "window": "last", "running": running, "cpu_ns": used,
                    "cpu_seconds": REST_SECONDS + seconds, "wakeups": len(late),
                    "counters": counters(guest, setting),
                })  # fmt: skip

            pages.order(f"sleep {REST_SECONDS * 1000}")
            watch(True)
            set_engine(guest, setting, "run", "0")
            watch(False)
    return found


def _converge(
    guest: Guest, setting: Setting, pages: Hoard, more: int, wait: str, seconds: int
) -> tuple[int, Sample, str]:
    """Let the engine merge what is written, *more* PTEs, and sleep for *seconds* then.

    *wait* is ``wait``, or ``until`` to stop the engine when all is merged. Returns the CPU
    time of all of it in nanoseconds, the answer to *wait*, and the trace of the daemon.
    Raises BenchError when it takes more than an hour of the guest's clock.
    """
    goal = engine_file(guest, setting, "pages_sharing") + int(more * NEARLY_ALL)
    orders = ["run 1", "fill", f"{wait} pages_sharing>={goal} 100 3600", f"sleep {seconds * 1000}"]
    bench_trace.start(guest, setting.daemon)
    start = kernel_cpu_ns(guest)
    answer = pages.orders(orders)[2]
    used = kernel_cpu_ns(guest) - start
    trace = bench_trace.stop(guest)
    if not answer["ok"]:
        raise BenchError(f"{setting.title}: not all was merged within an hour", "see its counters")
    return used, answer, trace


def volatile(lab: Lab, setting: Setting, mib: int, procs: int, seconds: int) -> list[Sample]:
    """Measure what an engine costs in *seconds* in which every page changes ten times a second.

    From the moment on at which it begins: the first look at each page is part of it, and
    whatever looks come later. The guest's clock skips waiting; the CPU time is real, and is
    that of the kernel with the engine, less that with it stopped, so that what a write costs
    more because of the engine is in it, too. Raises BenchError when the engine has read less
    pages than there are: then it was not measured.
    """
    with lab.guest(setting.profile, mib, time_travel=True) as guest:
        tune(guest, setting)
        with hoard(guest, mib, procs, dup=0) as pages:
            _deal_with_own_pages(guest, setting, pages)
            number = pages.order("fill")["pages"]
            change = f"change {CHANGE_MS} {seconds * 1000}"
            start = kernel_cpu_ns(guest)
            pages.order(change)
            without = kernel_cpu_ns(guest) - start
            before = counters(guest, setting)
            start = kernel_cpu_ns(guest)
            pages.orders(["run 1", change])
            used = kernel_cpu_ns(guest) - start
            set_engine(guest, setting, "run", "0")
            after = counters(guest, setting)
            pages.order("verify")
    read = after["pages_scanned"] - before["pages_scanned"]
    if read < number:
        raise BenchError(
            f"{setting.title}: of {number} pages that change it has read {read}", "see its counters"
        )
    return [{
        "what": "volatile", "engine": setting.name, "mib": mib, "procs": pages.procs,
        "seconds": seconds, "pages": number, "cpu_ns": used, "stopped_cpu_ns": without,
        "scanned_pages": read, "counters": after,
    }]  # fmt: skip


def savings(lab: Lab, setting: Setting, mib: int, visit_seconds: int) -> list[Sample]:
    """Follow what is saved of a mix, of which 50 % are duplicates and 10 % zeroes.

    First of one half of it, until that has come to rest; then another half comes, for
    *visit_seconds* of the guest's clock; and when it has gone, until what is left has come
    to rest again. The clock skips waiting, but for an engine that never sleeps.
    """
    steady = f"steady {STEADY_EVERY_MS} {STEADY_MS} {STEADY_MOST_MS}"
    if setting.full_speed:
        steady = f"steady {BUSY_STEADY_EVERY_MS} {BUSY_STEADY_MS} {BUSY_STEADY_MOST_MS}"
    with lab.guest(setting.profile, mib, time_travel=not setting.full_speed) as guest:
        tune(guest, setting)
        with hoard(guest, mib // 2, dup=50, zero=10) as pages:
            _deal_with_own_pages(guest, setting, pages)
            start = kernel_cpu_ns(guest)
            # Of the guest's own programs, which KSM does not look at.
            before = saved(guest, setting)
            alone = pages.orders(["run 1", "fill", steady])[-1]
            with hoard(guest, mib // 2, dup=50, zero=10, unique_seed=2) as guests:
                visit = f"sample {VISIT_EVERY_MS} {visit_seconds * 1000}"
                visited = guests.orders(["fill", visit])[-1]
            left = pages.order(steady)
            used = kernel_cpu_ns(guest) - start
            counted = counters(guest, setting)
            pages.order("verify")
    parts = {"alone": alone, "visited": visited, "left": left}
    began = alone["samples"][0][0]
    return [{
        "what": "savings", "engine": setting.name, "mib": mib, "visit_seconds": visit_seconds,
        "cpu_ns": used, "counters": counted,
        "began_ms": {name: part["samples"][0][0] - began for name, part in parts.items()},
        "steady": alone["steady"] and left["steady"],
        "samples": [
            [when - began, sharing + zero - before]
            for part in parts.values() for when, sharing, zero in part["samples"]
        ],
        "possible_at_rest_pages": _possible(mib // 2, 1),
        "possible_at_peak_pages": _possible(mib // 2, 2),
    }]  # fmt: skip


def saved(guest: Guest, setting: Setting) -> int:
    """Return how many pages the engine saves now."""
    zero = "zero_pages" if setting.is_pksm else "ksm_zero_pages"
    return sum(engine_file(guest, setting, name) for name in ("pages_sharing", zero))


def _possible(mib: int, copies: int) -> int:
    """Return how many pages can be saved of *copies* hoards of eight processes."""
    pages = mib * PAGES_PER_MIB // 8
    return (8 * copies - 1) * (pages * 50 // 100) + 8 * copies * (pages * 10 // 100)


def rmap(lab: Lab, setting: Setting) -> list[Sample]:
    """Measure a walk over all mappings of a page that is shared 10,000 times."""
    with lab.guest(setting.profile, 96) as guest:
        tune(guest, setting)
        set_engine(guest, setting, "max_page_sharing", str(SHARERS))
        command = ["rmapstorm", "--procs", "2", "--pages", str(SHARERS // 2), "sharers"]
        found = guest.run(command, timeout=300.0).stdout
    many = json.loads(found)["many"]
    return [{"what": "rmap", "engine": setting.name, **many}]

# SPDX-License-Identifier: GPL-2.0-only
"""From samples to results: pure functions, which never measure.

A result is what one engine takes for one thing, as a median with its spread. Times and
sizes are in the unit that the result names. What was not measured has no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

Sample = dict[str, Any]
# What is worked out of a sample: a number, or None.
Value = Callable[[Sample], Any]

PATH_STEPS = ("populate", "unmap", "fork", "cow", "exit")
# What a turn has beside them: an order for which nothing is done.
EMPTY_STEP = "nothing"
BASELINES = ("none-a", "none-b")
# Of an interval that a median is in: the chance that it is not.
UNSURE = 0.1
# What is measured for several sizes, or numbers of processes: a slope is worked out of it.
SCALED = ("merged", "unmatched", "watched", "convergence", "convergence CPU", "unmerge",
          "first minute", "volatile")  # fmt: skip


@dataclass(frozen=True)
class Stat:
    """The median of some runs, and their spread."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Stat:
        """Return that of *values*, of which there is one at least."""
        from statistics import median

        found = list(values)
        return cls(median(found), min(found), max(found), len(found))


@dataclass(frozen=True)
class Result:
    """One line of the table: *what* was measured of *engine*, at a size in MiB if it has one."""

    what: str
    engine: str
    unit: str
    stat: Stat
    mib: int | None = None
    procs: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        found = asdict(self)
        return {**{name: value for name, value in found.items() if name != "stat"},
                **found["stat"]}  # fmt: skip


class Results:
    """All results of one run."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.all = list(results)

    def find(self, what: str, engine: str | None = None) -> list[Result]:
        """Return the results of one thing, the smaller sizes first."""
        found = [r for r in self.all if r.what == what and engine in (None, r.engine)]
        return sorted(found, key=lambda r: (r.mib or 0, r.procs or 0))

    def by_size(self, what: str, engine: str) -> list[Result]:
        """Return the results of one thing for each size, in the usual number of processes."""
        found: dict[int | None, Result] = {}
        for each in self.find(what, engine):
            found.setdefault(each.mib, each)
        return list(found.values())

    def by_procs(self, what: str, engine: str) -> list[Result]:
        """Return the results of the size that was measured with several numbers of processes."""
        groups: dict[int | None, list[Result]] = {}
        for each in self.find(what, engine):
            groups.setdefault(each.mib, []).append(each)
        none: list[Result] = []
        most = max(groups.values(), key=len, default=none)
        return most if len(most) > 1 else []

    def last(self, what: str, engine: str) -> Result | None:
        """Return the result of the largest size, in the usual number of processes."""
        found = self.by_size(what, engine)
        return found[-1] if found else None

    def pair(self, what: str, one: str, other: str) -> tuple[Result, Result] | None:
        """Return the results of two engines at the largest size that both have; None if none."""
        mine = {(each.mib, each.procs): each for each in self.by_size(what, one)}
        for each in reversed(self.find(what, other)):
            if (each.mib, each.procs) in mine:
                return mine[each.mib, each.procs], each
        return None

    def value(self, what: str, engine: str) -> float | None:
        """Return the median of :meth:`last`, or None where there is none."""
        found = self.last(what, engine)
        return found.stat.median if found is not None else None


def _grouped(
    samples: Iterable[Sample], what: str, value: Value
) -> dict[tuple[str, int | None, int | None], Stat]:
    """Return the statistics of *value* by engine, size and number of processes."""
    groups: dict[tuple[str, int | None, int | None], list[float]] = {}
    for sample in samples:
        if sample["what"] != what:
            continue
        number = value(sample)
        if number is not None:
            key = (str(sample.get("engine", "")), sample.get("mib"), sample.get("procs"))
            groups.setdefault(key, []).append(number)
    return {key: Stat.of(values) for key, values in groups.items()}


@dataclass(frozen=True)
class Slope:
    """By which power what was measured of *engine* grows *by* something: 0 is flat."""

    what: str
    engine: str
    by: str
    exponent: float
    first: float
    last: float


def slopes_of(results: Results) -> list[Slope]:
    """Return the slope of everything that was measured in several sizes, or numbers of processes."""
    found = []
    for what in SCALED:
        for engine in dict.fromkeys(each.engine for each in results.find(what)):
            sizes = [(float(r.mib or 0), r.stat.median) for r in results.by_size(what, engine)]
            procs = [(float(r.procs or 0), r.stat.median) for r in results.by_procs(what, engine)]
            for by, every in (("MiB", sizes), ("processes", procs)):
                points = [point for point in every if point[1] > 0]
                exponent = slope(points)
                if exponent is not None:
                    found.append(Slope(what, engine, by, exponent, points[0][0], points[-1][0]))
    return found


def results_of(samples: Sequence[Sample]) -> Results:
    """Return all results that *samples* have in them."""
    found: list[Result] = []

    def add(name: str, unit: str, what: str, value: Value) -> None:
        for (engine, mib, procs), stat in _grouped(samples, what, value).items():
            found.append(Result(name, engine, unit, stat, mib, procs))

    for step in ("hash", "memcmp", "follow", "pte"):
        add(f"floor {step}", "µs", "floor", partial(_floor_step, step))
    add("merged", "µs", "merged", page_us)
    add("unmatched", "µs", "unmatched", page_us)
    add("reads per unmatched page", "", "unmatched", lambda s: s["scanned_pages"] / s["pages"])
    add("watched", "µs", "watched", page_us)
    add("reads per watched page", "", "watched", lambda s: s["scanned_pages"] / s["pages"])
    add("first write", "ns", "first write",
        lambda s: (s["watched_cpu_ns"] - s["plain_cpu_ns"]) / s["pages"])
    add("convergence", "ms", "convergence", lambda s: s["ns"] / 1e6)
    add("convergence CPU", "ms", "convergence", _convergence_cpu_ms)
    for window, name in (("last", "idle wake-ups"), ("first", "first minute wake-ups")):
        add(name, "/min", "idle", partial(_wakeups, window))
    add("first minute", "% of a CPU", "idle", _first_minute)
    add("volatile", "% of a CPU", "volatile", lambda s: 100 * s["daemon_ns"] / s["wall_ns"])
    add("volatile, per GiB", "% of a CPU", "volatile",
        lambda s: 100 * s["daemon_ns"] / s["wall_ns"] * 1024 / s["mib"])
    add("saved at rest", "MiB", "savings", lambda s: s["samples"][-1][1] / 256)
    add("saved at peak", "MiB", "savings", lambda s: max(n for _, n in s["samples"]) / 256)
    add("savings CPU", "ms", "savings", lambda s: s["cpu_ns"] / 1e6)
    add("break", "µs", "cow", lambda s: min(s["ns"]) / s["pages_per_call"] / 1000)
    add("unmerge", "µs", "unmerge", lambda s: s["cpu_ns"] / s["pages"] / 1000)
    add("rmap walk", "µs", "rmap", lambda s: s["walk_ns"] / 1000)
    add("rmap walk, per mapping", "ns", "rmap", lambda s: s["walk_ns"] / s["mapcount"])
    for name in dict.fromkeys(s["program"] for s in samples if s["what"] == "programs"):
        add(f"saved at rest, {name}", "MiB", "programs", partial(_saved, name, False))
        add(f"saved at peak, {name}", "MiB", "programs", partial(_saved, name, True))
    for name in dict.fromkeys(s["machine"] for s in samples if s["what"] == "contention"):
        add(f"fault and free, {name}", "ns", "contention", partial(_contended_ns, name))
    found += _idle_cpu(samples)
    found += _metadata(samples)
    found += _paths(samples)
    return Results(found)


def _wakeups(window: str, sample: Sample) -> float | None:
    """Return the wake-ups of the daemon in a minute of *window*."""
    if not sample["running"] or sample.get("window", "last") != window:
        return None
    return float(sample["wakeups"] * 60 / sample["seconds"])


def _first_minute(sample: Sample) -> float | None:
    """Return the kernel's share of a CPU in the first minute after all is merged."""
    if sample.get("window", "last") != "first":
        return None
    return float(100 * sample["cpu_ns"] / 1e9 / sample["cpu_seconds"])


def _saved(name: str, peak: bool, sample: Sample) -> float | None:
    """Return the MiB that are saved of a program at last, or at most."""
    if sample["program"] != name:
        return None
    saved = [pages for _, pages in sample["samples"]]
    return float((max(saved) if peak else saved[-1]) / 256)


def _contended_ns(machine: str, sample: Sample) -> float | None:
    """Return what a page has cost the process that had it, among others that had theirs."""
    if sample["machine"] != machine or not sample["pages"]:
        return None
    return float(sample["usecs"] * 1000 * sample["procs"] / sample["pages"])


def _convergence_cpu_ms(sample: Sample) -> float:
    """Return the CPU time to converge, without what filling and (if known) polling have cost."""
    besides = sample["fill_cpu_ns"] + sample.get("polls_cpu_ns", 0)
    return float((sample["cpu_ns"] - besides) / 1e6)


def _floor_step(step: str, sample: Sample) -> float | None:
    return floor_us(sample) if sample["step"] == step else None


def floor_us(sample: Sample) -> float:
    """Return the microseconds of one step of a sample of the floor."""
    return float(sample["median_ns"] / sample["steps_per_sample"] / 1000)


def page_us(sample: Sample) -> float:
    """Return the CPU time in microseconds for each page, without what polling has cost."""
    return float((sample["cpu_ns"] - sample["polls_cpu_ns"]) / sample["pages"] / 1000)


def _idle_cpu(samples: Sequence[Sample]) -> list[Result]:
    """Return what doing nothing costs: CPU with the engine, less that with it stopped."""
    found = []
    groups: dict[tuple[str, int, int | None], list[Sample]] = {}
    for sample in samples:
        if sample["what"] == "idle" and sample.get("window", "last") == "last":
            key = sample["engine"], sample["mib"], sample.get("procs")
            groups.setdefault(key, []).append(sample)
    for (name, mib, procs), mine in groups.items():
        costs = {
            running: [100 * s["cpu_ns"] / 1e9 / s["cpu_seconds"] for s in mine
                      if s["running"] is running]
            for running in (True, False)
        }  # fmt: skip
        if costs[True] and costs[False]:
            pairs = zip(costs[True], costs[False], strict=False)
            stat = Stat.of(with_engine - without for with_engine, without in pairs)
            found.append(Result("idle", name, "% of a CPU", stat, mib, procs))
    return found


# Of what is measured, the slabs that are for it, and the counter of the pages that have it.
_SLABS = {
    "bytes per absorbed page": (("slab_pksm_sharer", "slab_ksm_rmap_item"), "pages_sharing"),
    "bytes per shared page": (("slab_pksm_stable_node", "slab_ksm_stable_node"), "pages_shared"),
}


def _metadata(samples: Sequence[Sample]) -> list[Result]:
    """Return the bytes that an engine keeps of pages: each, absorbed ones, shared ones.

    What is kept for each page of memory, whether it is tracked or not, is that of the kernel.
    The rest is measured: all objects of a slab, over the pages that the engine says it has.
    """
    found: dict[tuple[str, str, int | None, int | None], list[float]] = {}
    for sample in samples:
        memory = sample.get("memory")
        if not memory:
            continue
        where = str(sample["engine"]), sample.get("mib"), sample.get("procs")
        if "page_ext_bytes_per_page" in memory:
            share = memory["index_bytes"] / memory["spanned_pages"]
            value = memory["page_ext_bytes_per_page"] + share
            found.setdefault(("bytes per tracked page", *where), []).append(value)
        elif "slab_ksm_rmap_item" in memory and sample["what"] == "unmatched":
            value = float(memory["slab_ksm_rmap_item"]["bytes"])
            found.setdefault(("bytes per tracked page", *where), []).append(value)
        if sample["what"] != "merged":
            continue
        for what, (names, counter) in _SLABS.items():
            pages = sample.get("counters", {}).get(counter)
            for name in names:
                if name in memory and pages:
                    value = memory[name]["objects"] * memory[name]["bytes"] / pages
                    found.setdefault((what, *where), []).append(value)
    return [
        Result(what, engine, "B", Stat.of(values), mib, procs)
        for (what, engine, mib, procs), values in found.items()
    ]


def step_ns(sample: Sample, step: str) -> float:
    """Return the nanoseconds that a step has taken for a page, without what any order takes.

    The median of the times that it was done in this turn.
    """
    from statistics import median

    empty = median(sample[EMPTY_STEP]) if sample.get(EMPTY_STEP) else 0
    return float((median(sample[step]) - empty) / sample["pages"])


def _paths(samples: Sequence[Sample]) -> list[Result]:
    """Return nanoseconds per page of each path, and what of all of it was pksmd's.

    That has twice as many pages to take over as there are: the copies. And the
    instructions, where the host has counted them.
    """
    found = []
    turns = [s for s in samples if s["what"] == "paths"]
    usecs = [1000 * s["daemon_usecs"] / (2 * s["pages"] * len(s["populate"]))
             for s in turns if s.get("daemon_usecs")]  # fmt: skip
    if usecs:
        found.append(Result("intake by pksmd", "pksm-on", "ns", Stat.of(usecs)))
    for step in PATH_STEPS:
        for variant in dict.fromkeys(s["variant"] for s in turns):
            mine = [s for s in turns if s["variant"] == variant]
            found.append(Result(step, variant, "ns", Stat.of(step_ns(s, step) for s in mine)))
            counted = [s["instructions"] for s in mine if s.get("instructions")]
            if counted:
                each = ((c[step] - c.get(EMPTY_STEP, 0)) / mine[0]["pages"] for c in counted)
                found.append(Result(f"{step}, instructions", variant, "", Stat.of(each)))
    return found


@dataclass(frozen=True)
class Overhead:
    """What something costs more than without PKSM, as a share of what it costs without.

    The median of all boots, and the interval that it is in; *apart* is by how much two
    guests with the same kernel differ, by which the interval is wider than boots tell.
    """

    step: str
    variant: str
    share: float
    low: float
    high: float
    apart: float = 0.0

    @classmethod
    def of(cls, step: str, variant: str, shares: Sequence[float], apart: float = 0.0) -> Overhead:
        """Return that of *shares*, which do not depend on each other."""
        from statistics import median

        low, high = interval(shares)
        return cls(step, variant, median(shares), low - apart, high + apart, apart)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return two of *values* between which the median lies that many more would have.

    With a chance of :data:`UNSURE` it does not, or a larger one where there are fewer than
    five. Nothing is supposed of how they are distributed: it is the chance that so many or
    more of them lie on one side of the median.
    """
    found = sorted(values)
    number = len(found)
    outer, chance = 0, 2 / 2**number
    while 2 * (outer + 1) < number:
        chance += 2 * math.comb(number, outer + 1) / 2**number
        if chance > UNSURE:
            break
        outer += 1
    return found[outer], found[number - 1 - outer]


def overheads(samples: Sequence[Sample]) -> list[Overhead]:
    """Return what each path costs more in each variant than where nobody merges.

    Each turn is compared with itself, so that a slow moment of the host's does not count;
    of a boot there is the median of its turns, since a guest keeps the memory that it was
    given. The same kernel is there in two guests; what lies between these is none of the
    engine's.
    """
    from statistics import median

    turns: dict[tuple[int, int], dict[str, Sample]] = {}
    for sample in samples:
        if sample["what"] == "paths":
            key = sample.get("boot", 0), sample["turn"]
            turns.setdefault(key, {})[sample["variant"]] = sample
    boots: dict[int, list[dict[str, Sample]]] = {}
    for (boot, _), turn in turns.items():
        if all(name in turn for name in BASELINES):
            boots.setdefault(boot, []).append(turn)
    variants = dict.fromkeys(name for turn in turns.values() for name in turn)

    def share(turn: dict[str, Sample], step: str, variant: str) -> float:
        base = sum(step_ns(turn[name], step) for name in BASELINES) / len(BASELINES)
        return step_ns(turn[variant], step) / base - 1

    found = []
    for step in PATH_STEPS:
        of_boots: dict[str, list[float]] = {}
        for whole in boots.values():
            for variant in variants:
                shares = [share(turn, step, variant) for turn in whole if variant in turn]
                if shares:
                    of_boots.setdefault(variant, []).append(median(shares))
        if not of_boots:
            continue
        # The base is in the middle of the two: they are as far from it as from nothing.
        apart = median(abs(each) for name in BASELINES for each in of_boots[name])
        found += [
            Overhead.of(step, variant, shares, apart)
            for variant, shares in of_boots.items() if variant not in BASELINES
        ]  # fmt: skip
    return found


def contended(samples: Sequence[Sample]) -> list[Overhead]:
    """Return what fault and free cost more on all CPUs at once with PKSM on than with it off.

    Of each machine, on as many CPUs as were measured at most; of one boot of each guest, so
    that how the two differ whatever PKSM does is not known.
    """
    found = []
    mine = [s for s in samples if s["what"] == "contention"]
    for machine in dict.fromkeys(s["machine"] for s in mine):
        here = [s for s in mine if s["machine"] == machine]
        cpus = max(s["procs"] for s in here)
        turns: dict[int, dict[str, float]] = {}
        for sample in here:
            cost = _contended_ns(machine, sample)
            if sample["procs"] == cpus and cost is not None:
                turns.setdefault(sample["turn"], {})[sample["engine"]] = cost
        ratios = [
            turn["pksm-on"] / turn["pksm-off"] - 1 for turn in turns.values()
            if {"pksm-on", "pksm-off"} <= set(turn)
        ]  # fmt: skip
        if ratios:
            found.append(Overhead.of(f"{machine}, {cpus} CPUs", "pksm-on", ratios))
    return found


def harness_of(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Return how long the harness takes for each of its measurements, in seconds."""
    from statistics import median

    runs: dict[str, list[float]] = {}
    titles: dict[str, str] = {}
    for sample in samples:
        if sample["what"] == "harness":
            runs.setdefault(sample["name"], []).append(round(sample["seconds"], 4))
            titles[sample["name"]] = sample["title"]
    return {
        name: {
            "title": titles[name], "unit": "s", "median": round(median(found), 4),
            "min": min(found), "max": max(found), "runs": found,
        }
        for name, found in runs.items()
    }  # fmt: skip


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the exponent by which y grows with x: the slope of a line through the logarithms.

    None for fewer than two points with logarithms.
    """
    points = [(x, y) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in points}) < 2:
        return None
    logs = [(math.log(x), math.log(y)) for x, y in points]
    middle_x = sum(x for x, _ in logs) / len(logs)
    middle_y = sum(y for _, y in logs) / len(logs)
    along = sum((x - middle_x) ** 2 for x, _ in logs)
    return sum((x - middle_x) * (y - middle_y) for x, y in logs) / along

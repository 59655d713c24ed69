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
BASELINES = ("none-a", "none-b")


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
    add("convergence", "ms", "convergence", lambda s: s["ns"] / 1e6)
    add("convergence CPU", "ms", "convergence", _convergence_cpu_ms)
    add("idle wake-ups", "/min", "idle",
        lambda s: s["wakeups"] * 60 / s["seconds"] if s["running"] else None)
    add("volatile", "% of a CPU", "volatile", lambda s: 100 * s["daemon_ns"] / s["wall_ns"])
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
    names = {s["engine"] for s in samples if s["what"] == "idle"}
    for name in sorted(names):
        mine = [s for s in samples if s["what"] == "idle" and s["engine"] == name]
        costs = {
            running: [100 * s["cpu_ns"] / 1e9 / s["cpu_seconds"] for s in mine
                      if s["running"] is running]
            for running in (True, False)
        }  # fmt: skip
        if costs[True] and costs[False]:
            pairs = zip(costs[True], costs[False], strict=False)
            stat = Stat.of(with_engine - without for with_engine, without in pairs)
            found.append(Result("idle", name, "% of a CPU", stat, mine[0]["mib"]))
    return found


def _metadata(samples: Sequence[Sample]) -> list[Result]:
    """Return the bytes that an engine keeps of pages: each, absorbed ones, shared ones."""
    found: dict[tuple[str, str], list[float]] = {}
    for sample in samples:
        memory = sample.get("memory")
        if not memory:
            continue

        def note(
            what: str, value: float, engine: str = str(sample["engine"])
        ) -> None:
            found.setdefault((what, engine), []).append(value)

        if "page_ext_bytes_per_page" in memory:
            share = memory["index_bytes"] / memory["spanned_pages"]
            note("bytes per tracked page", memory["page_ext_bytes_per_page"] + share)
        elif "slab_ksm_rmap_item" in memory and sample["what"] == "unmatched":
            note("bytes per tracked page", memory["slab_ksm_rmap_item"]["bytes"])
        if sample["what"] == "merged":
            for what, names in (
                ("bytes per absorbed page", ("slab_pksm_sharer", "slab_ksm_rmap_item")),
                ("bytes per shared page", ("slab_pksm_stable_node", "slab_ksm_stable_node")),
            ):
                for name in names:
                    if name in memory:
                        note(what, memory[name]["bytes"])
    return [Result(what, engine, "B", Stat.of(v)) for (what, engine), v in found.items()]


def _paths(samples: Sequence[Sample]) -> list[Result]:
    """Return nanoseconds per page of each path: of each turn the best, which nothing disturbed.

    And what of all of it was pksmd's, which has twice as many pages to take over: the copies.
    """
    found = []
    turns = [s for s in samples if s["what"] == "paths"]
    usecs = [1000 * s["daemon_usecs"] / (2 * s["pages"] * len(s["populate"]))
             for s in turns if s.get("daemon_usecs")]  # fmt: skip
    if usecs:
        found.append(Result("intake by pksmd", "pksm-on", "ns", Stat.of(usecs)))
    for step in PATH_STEPS:
        for variant in dict.fromkeys(s["variant"] for s in turns):
            best = [min(s[step]) / s["pages"] for s in turns if s["variant"] == variant]
            found.append(Result(step, variant, "ns", Stat.of(best)))
    return found


@dataclass(frozen=True)
class Overhead:
    """What a path costs more than without PKSM, as a share; *noise* is that of the measuring."""

    step: str
    variant: str
    share: float
    noise: float


def overheads(samples: Sequence[Sample]) -> list[Overhead]:
    """Return what each path costs more in each variant than where nobody merges.

    The same guest twice shows the noise: what lies between the two is none of the engine's.
    Each turn is compared with itself, so that a slow moment of the host's does not count.
    """
    from statistics import median

    turns: dict[int, dict[str, Sample]] = {}
    for sample in samples:
        if sample["what"] == "paths":
            turns.setdefault(sample["turn"], {})[sample["variant"]] = sample
    whole = [turn for turn in turns.values() if all(name in turn for name in BASELINES)]
    if not whole:
        return []
    found = []
    for step in PATH_STEPS:
        def best(turn: dict[str, Sample], name: str, step: str = step) -> float:
            return float(min(turn[name][step]) / turn[name]["pages"])

        def base(turn: dict[str, Sample]) -> float:
            return sum(best(turn, name) for name in BASELINES) / len(BASELINES)

        apart = [abs(best(turn, "none-a") - best(turn, "none-b")) / base(turn) for turn in whole]
        noise = median(apart)
        for variant in dict.fromkeys(name for turn in whole for name in turn):
            if variant in BASELINES:
                continue
            ratios = [best(turn, variant) / base(turn) for turn in whole if variant in turn]
            found.append(Overhead(step, variant, median(ratios) - 1, noise))
    return found


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

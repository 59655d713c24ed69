# SPDX-License-Identifier: GPL-2.0-only
"""What the hooks cost: a page on each path of mm, and what of it is more than without them.

From samples to results, as in bench_results; and to shares of what a path costs without
PKSM, each with the interval that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .bench_facts import Result, Sample, Stat

PATH_STEPS = ("populate", "unmap", "fork", "cow", "exit")
# What a turn has beside them: an order for which nothing is done.
EMPTY_STEP = "nothing"
BASELINES = ("none-a", "none-b")
# Of an interval that a median is in: the chance that it is not.
UNSURE = 0.1


def step_ns(sample: Sample, step: str) -> float:
    """Return the nanoseconds that a step has taken for a page, without what any order takes.

    The median of the times that it was done in this turn.
    """
    from statistics import median

    empty = median(sample[EMPTY_STEP]) if sample.get(EMPTY_STEP) else 0
    return float((median(sample[step]) - empty) / sample["pages"])


def path_results(samples: Sequence[Sample]) -> list[Result]:
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
    guests with the same kernel differ, by which the interval is wider than boots tell; None
    where that is not known.
    """

    step: str
    variant: str
    share: float
    low: float
    high: float
    apart: float | None = None

    @classmethod
    def of(
        cls, step: str, variant: str, shares: Sequence[float], apart: float | None = None
    ) -> Overhead:
        """Return that of *shares*, which do not depend on each other."""
        from statistics import median

        low, high = interval(shares)
        wider = apart or 0.0
        return cls(step, variant, median(shares), low - wider, high + wider, apart)


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


def contended_ns(machine: str, sample: Sample) -> float | None:
    """Return what a page has cost the process that had it, among others that had theirs."""
    if sample["machine"] != machine or not sample["pages"]:
        return None
    return float(sample["usecs"] * 1000 * sample["procs"] / sample["pages"])


def contended(samples: Sequence[Sample]) -> list[Overhead]:
    """Return what fault and free cost more on all CPUs at once with PKSM on than with it off.

    Of each machine, on as many CPUs as were measured at most; of a boot there is the median
    of its turns. By how much two guests differ whatever PKSM does is not known.
    """
    from statistics import median

    found = []
    mine = [s for s in samples if s["what"] == "contention"]
    for machine in dict.fromkeys(s["machine"] for s in mine):
        here = [s for s in mine if s["machine"] == machine]
        cpus = max(s["procs"] for s in here)
        turns: dict[tuple[int, int], dict[str, float]] = {}
        for sample in here:
            cost = contended_ns(machine, sample)
            if sample["procs"] == cpus and cost is not None:
                turns.setdefault((sample["boot"], sample["turn"]), {})[sample["engine"]] = cost
        boots: dict[int, list[float]] = {}
        for (boot, _), turn in turns.items():
            if {"pksm-on", "pksm-off"} <= set(turn):
                boots.setdefault(boot, []).append(turn["pksm-on"] / turn["pksm-off"] - 1)
        if boots:
            shares = [median(ratios) for ratios in boots.values()]
            found.append(Overhead.of(f"{machine}, {cpus} CPUs", "pksm-on", shares))
    return found

# SPDX-License-Identifier: GPL-2.0-only
"""What is worked out of samples: results, slopes, and how long the harness takes.

All of it by pure functions, which never measure. bench_results says which results there
are, and bench_overheads what the hooks cost. A result is what one engine takes for one
thing, as a median with its spread. Times and sizes are in the unit that the result names.
What was not measured has no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Sample = dict[str, Any]
# What is worked out of a sample: a number, or None.
Value = Callable[[Sample], Any]

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

    def pairs(self, what: str, one: str, other: str) -> list[tuple[Result, Result]]:
        """Return the results of two engines of all that was measured of both, as :meth:`find`."""
        theirs = {(each.mib, each.procs): each for each in self.find(what, other)}
        return [
            (each, theirs[each.mib, each.procs]) for each in self.find(what, one)
            if (each.mib, each.procs) in theirs
        ]  # fmt: skip

    def pair(self, what: str, one: str, other: str) -> tuple[Result, Result] | None:
        """Return the results of two engines at the largest size that both have; None if none.

        In the usual number of processes.
        """
        usual = {(each.mib, each.procs) for each in self.by_size(what, one)}
        found = [pair for pair in self.pairs(what, one, other) if (pair[0].mib, pair[0].procs) in usual]
        return found[-1] if found else None

    def value(self, what: str, engine: str) -> float | None:
        """Return the median of :meth:`last`, or None where there is none."""
        found = self.last(what, engine)
        return found.stat.median if found is not None else None


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


def harness_of(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """Return how long the harness takes for each of its measurements, in seconds.

    And what is wrong with it where it has failed, of which the time is known all the same.
    """
    from statistics import median

    runs: dict[str, list[float]] = {}
    titles: dict[str, str] = {}
    failed: dict[str, str] = {}
    for sample in samples:
        if sample["what"] == "harness":
            runs.setdefault(sample["name"], []).append(round(sample["seconds"], 4))
            titles[sample["name"]] = sample["title"]
            if sample["failed"]:
                failed[sample["name"]] = sample["failed"]
    return {
        name: {
            "title": titles[name], "unit": "s", "median": round(median(found), 4),
            "min": min(found), "max": max(found), "runs": found, "failed": failed.get(name, ""),
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

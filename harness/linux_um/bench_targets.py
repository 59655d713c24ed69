# SPDX-License-Identifier: GPL-2.0-only
"""What is to be reached, and whether it is. Ratios are of one run, so that hosts do not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .bench_facts import Result, Results, Sample, overheads, slope
from .bench_lab import SETTINGS

# Names of settings, as in bench_lab.
_PKSM, _FULL = "pksm", "pksm-full"
_KSM, _KSM_FULL = "ksm", "ksm-full"
_KSMS = [each.name for each in SETTINGS.values() if not each.is_pksm]

# Pages of programs that are not the workload's are alike as well.
_POSSIBLE = 1.05


@dataclass(frozen=True)
class Target:
    """A number that is to be at most, or at least, some limit.

    ``value`` is None where it was not measured. ``noise`` is by how much measurements of
    the same thing differ: a number is beyond its limit only where it is so by more than
    that, and nothing can be said where it is so by less. Where the noise is more than the
    limit, nothing can be said of any other number either.
    """

    name: str
    title: str
    value: float | None
    limit: float
    unit: str = ""
    at_least: bool = False
    note: str = ""
    noise: float = 0.0

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where that is not known."""
        if self.value is None:
            return None
        if self.at_least:
            return self.value >= self.limit
        if self.value > self.limit + self.noise:
            return False
        return None if self.value > self.limit or self.noise > self.limit else True

    @property
    def bound(self) -> str:
        """The limit as text."""
        return f"{'≥' if self.at_least else '≤'} {number(self.limit)}{_spaced(self.unit)}"

    @property
    def text(self) -> str:
        """The value as text."""
        return "not measured" if self.value is None else number(self.value) + _spaced(self.unit)

    def facts(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {**asdict(self), "met": self.met}


def _spaced(unit: str) -> str:
    return f" {unit}" if unit and unit != "×" else unit


def number(value: float) -> str:
    """Return a number with three digits that matter."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def targets_of(
    results: Results, samples: Sequence[Sample], harness: Mapping[str, Any]
) -> list[Target]:
    """Return every target, in the order of the report."""
    return [
        *_work(results),
        *_convergence(results),
        *_quiet(results),
        *_paths(samples),
        *_memory(results),
        *_savings(results, samples),
        *_scaling(results),
        *_harness(harness),
    ]


def _work(results: Results) -> list[Target]:
    merged, unmatched = results.value("merged", _FULL), results.value("unmatched", _FULL)
    hashing = results.value("floor hash", "")
    least = _sum(hashing, results.value("floor memcmp", ""), results.value("floor pte", ""))
    theirs = results.value("merged", _KSM_FULL)
    return [
        Target("merged-to-ksm", "CPU per merged page, to that of KSM", _ratio(merged, theirs), 0.25,
               "×"),
        Target("merged-to-floor", "CPU per merged page, to the floor", _ratio(merged, least), 1.6,
               "×", note="one hash, one comparison, one PTE replaced"),
        Target("unmatched-to-floor", "CPU per unmatched page, to one cold hash",
               _ratio(unmatched, hashing), 1.4, "×"),
    ]  # fmt: skip


def _convergence(results: Results) -> list[Target]:
    ours = results.value("convergence", _PKSM)
    found = [
        Target("convergence-to-ksm", "convergence, times faster than KSM's defaults",
               _ratio(results.value("convergence", _KSM), ours), 50, "×", at_least=True)
    ]  # fmt: skip
    for name, title, what in (
        ("convergence-to-best", "time to converge", "convergence"),
        ("convergence-cpu", "CPU to converge", "convergence CPU"),
    ):
        best = _best_of_ksm(results, what)
        least = best.stat.median if best is not None else None
        found.append(
            Target(name, f"{title}, to that of KSM at its best",
                   _ratio(results.value(what, _PKSM), least), 1, "×",
                   note=SETTINGS[best.engine].title if best is not None else "")
        )  # fmt: skip
    return found


def _best_of_ksm(results: Results, what: str) -> Result | None:
    """Return the least that any setting of KSM has taken at the size that counts for PKSM."""
    ours = results.last(what, _PKSM)
    if ours is None:
        return None
    found = [
        each for each in results.find(what)
        if each.engine in _KSMS and (each.mib, each.procs) == (ours.mib, ours.procs)
    ]  # fmt: skip
    return min(found, key=lambda each: each.stat.median) if found else None


def _quiet(results: Results) -> list[Target]:
    return [
        Target("idle", "wake-ups of pksmd while nothing changes",
               results.value("idle wake-ups", _PKSM), 0, "/min"),
        Target("volatile", "pksmd while every page changes ten times a second",
               results.value("volatile", _PKSM), 1, "% of a CPU"),
    ]  # fmt: skip


def _paths(samples: Sequence[Sample]) -> list[Target]:
    """Return the targets of the hooks, with the noise that was seen."""
    found = []
    by_name = {(each.step, each.variant): each for each in overheads(samples)}
    for variant, title, allowed in (("pksm-off", "PKSM off", 1.0), ("pksm-on", "PKSM on", 2.0)):
        for step in ("populate", "unmap", "fork", "exit"):
            each = by_name.get((step, variant))
            noise = 100 * each.noise if each is not None else 0.0
            found.append(
                Target(f"{step}-{variant}", f"{step}, {title}: more than without",
                       100 * each.share if each is not None else None, allowed, "%",
                       note=f"noise {noise:.1f} %" if each is not None else "", noise=noise)
            )  # fmt: skip
    return found


def _memory(results: Results) -> list[Target]:
    return [
        Target(f"bytes-{kind}", f"memory per {kind} page",
               results.value(f"bytes per {kind} page", _FULL), limit, "B")
        for kind, limit in (("tracked", 12), ("absorbed", 32), ("shared", 64))
    ]  # fmt: skip


def _savings(results: Results, samples: Sequence[Sample]) -> list[Target]:
    """Return the targets of a mix, and of all programs: of these the worst counts.

    And whether anybody has saved more than there is to save, which would say that the
    measurement is wrong, and no engine good.
    """
    found = [
        Target(f"saved-{when}", f"saved at {when} of a mix, to KSM's defaults",
               _ratio(*(results.value(f"saved at {when}", name) for name in (_PKSM, _KSM))), 1,
               "×", at_least=True)
        for when in ("rest", "peak")
    ]  # fmt: skip
    shares: dict[str, float] = {
        str(sample["engine"]): max(
            sample["samples"][-1][1] / sample["possible_at_rest_pages"],
            max(pages for _, pages in sample["samples"]) / sample["possible_at_peak_pages"],
        )
        for sample in samples if sample["what"] == "savings"
    }  # fmt: skip
    most = max(shares, key=lambda name: shares[name], default=None)
    found.append(
        Target("saved-possible", "saved of a mix at most, to what its contents allow",
               shares[most] if most is not None else None, _POSSIBLE, "×",
               note=SETTINGS[most].title if most is not None else "")
    )  # fmt: skip
    for when in ("rest", "peak"):
        whats = {each.what for each in results.all if each.what.startswith(f"saved at {when}, ")}
        ratios = {
            what.partition(", ")[2]: ratio for what in whats
            if (ratio := _ratio(*(results.value(what, name) for name in (_PKSM, _KSM)))) is not None
        }  # fmt: skip
        worst = min(ratios, key=lambda name: ratios[name], default=None)
        found.append(
            Target(f"programs-{when}", f"saved at {when} of programs, to KSM's defaults",
                   ratios[worst] if worst is not None else None, 1, "×", at_least=True,
                   note=f"{worst}; best of {len(ratios)}: {max(ratios.values()):.2f}×"
                   if worst is not None else "")
        )  # fmt: skip
    return found


def _scaling(results: Results) -> list[Target]:
    found = []
    for what in ("merged", "unmatched"):
        costs = [(float(r.mib or 0), r.stat.median) for r in results.by_size(what, _FULL)]
        values = [cost for _, cost in costs]
        steep = slope(costs)
        spread = 100 * (max(values) / min(values) - 1) if steep is not None else None
        note = f"slope {steep:+.3f}" if steep is not None else ""
        found.append(
            Target(f"flat-{what}", f"cost per {what} page over all sizes, dearest to cheapest",
                   spread, 10, "%", note=note)
        )  # fmt: skip
    return found


def _harness(harness: Mapping[str, Any]) -> list[Target]:
    suite, bugs, edit = (
        harness.get(name, {}).get("median") for name in ("suite", "bugs", "edit")
    )
    return [
        Target("bugs", "the tests of known classes of bugs", bugs, 90, "s"),
        Target("suite", "the whole suite", suite, 90, "s"),
        Target("edit", "edit of one engine file, to a test that has passed", edit, 20, "s"),
    ]

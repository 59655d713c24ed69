# SPDX-License-Identifier: GPL-2.0-only
"""What is to be reached, and whether it is. Ratios are of one run, so that hosts do not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .bench_facts import Overhead, Result, Results, Sample, contended, overheads, slope
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

    ``value`` is None where it was not measured. Where it is not sure, it is between
    ``low`` and ``high``; nothing can be said where the limit is between them, too.
    """

    name: str
    title: str
    value: float | None
    limit: float
    unit: str = ""
    at_least: bool = False
    note: str = ""
    low: float | None = None
    high: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where that is not known."""
        if self.value is None:
            return None
        if self.at_least:
            return self.value >= self.limit
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if low > self.limit:
            return False
        return True if high <= self.limit else None

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


def _size(result: Result) -> str:
    return f"{result.mib} MiB"


def _against(found: tuple[Result, Result] | None) -> tuple[float | None, str]:
    """Return the ratio of two results, and a note: of which size, and from which to which."""
    if found is None or found[1].stat.median <= 0:
        return None, ""
    one, other = found[0].stat, found[1].stat
    note = _size(found[0])
    if max(one.runs, other.runs) > 1 and other.low > 0:
        note += f", {number(one.low / other.high)} .. {number(one.high / other.low)}"
    return one.median / other.median, note


def _work(results: Results) -> list[Target]:
    merged, unmatched = results.value("merged", _FULL), results.value("unmatched", _FULL)
    watched = results.value("watched", _FULL)
    hashing, follow = results.value("floor hash", ""), results.value("floor follow", "")
    least = _sum(hashing, results.value("floor memcmp", ""), results.value("floor pte", ""))
    ratio, note = _against(results.pair("merged", _FULL, _KSM_FULL))
    foreseen = _ratio(unmatched, follow)
    return [
        Target("merged-to-ksm", "CPU per merged page, to that of KSM", ratio, 0.25, "×", note=note),
        Target("merged-to-floor", "CPU per merged page, to the floor", _ratio(merged, least), 1.6,
               "×", note="one hash, one comparison, one PTE replaced"),
        Target("unmatched-to-floor", "CPU per unmatched page, to one cold hash",
               _ratio(unmatched, hashing), 1.4, "×",
               note=f"{number(foreseen)}× of a hash that is foreseen" if foreseen else ""),
        Target("watched-to-floor", "the same with the second and last look, and the watch",
               _ratio(_sum(unmatched, watched), hashing), 1.4, "×"),
    ]  # fmt: skip


def _convergence(results: Results) -> list[Target]:
    both = results.pair("convergence", _KSM, _PKSM)
    ratio, note = _against(both)
    found = [
        Target("convergence-to-ksm", "convergence, times faster than KSM's defaults", ratio, 50,
               "×", at_least=True, note=note)
    ]  # fmt: skip
    for name, title, what in (
        ("convergence-to-best", "time to converge", "convergence"),
        ("convergence-cpu", "CPU to converge", "convergence CPU"),
    ):
        best, ours = _best_of_ksm(results, what), results.last(what, _PKSM)
        ratio, note = _against((ours, best)) if ours is not None and best is not None else (None, "")
        found.append(
            Target(name, f"{title}, to that of KSM at its best", ratio, 1, "×",
                   note=f"{SETTINGS[best.engine].title}; {note}" if best is not None else "")
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
    first = results.value("first minute wake-ups", _PKSM)
    volatile = results.last("volatile", _PKSM)
    return [
        Target("idle", "wake-ups of pksmd while nothing changes",
               results.value("idle wake-ups", _PKSM), 0, "/min",
               note=f"{number(first)} in the minute after merging" if first is not None else ""),
        Target("volatile", "pksmd while every page changes ten times a second",
               volatile.stat.median if volatile is not None else None, 1, "% of a CPU",
               note=_size(volatile) if volatile is not None else ""),
    ]  # fmt: skip


def _overhead(name: str, title: str, each: Overhead | None, allowed: float) -> Target:
    if each is None:
        return Target(name, title, None, allowed, "%")
    low, high = 100 * each.low, 100 * each.high
    return Target(name, title, 100 * each.share, allowed, "%", low=low, high=high,
                  note=f"{low:+.1f} .. {high:+.1f} %")  # fmt: skip


def _paths(samples: Sequence[Sample]) -> list[Target]:
    """Return the targets of the hooks, each with the interval that it is in."""
    by_name = {(each.step, each.variant): each for each in overheads(samples)}
    found = [
        _overhead(f"{step}-{variant}", f"{step}, {title}: more than without",
                  by_name.get((step, variant)), allowed)
        for variant, title, allowed in (
            ("pksm-off", "PKSM off", 1.0), ("pksm-stopped", "PKSM stopped", 1.0),
            ("pksm-on", "PKSM on", 2.0),
        )
        for step in ("populate", "unmap", "fork", "exit")
    ]  # fmt: skip
    return found + [
        _overhead(f"contention-{each.step}", f"fault and free, {each.step}: on, more than off",
                  each, 2.0)
        for each in contended(samples)
    ]  # fmt: skip


def _memory(results: Results) -> list[Target]:
    found = []
    for kind, limit, note in (
        ("tracked", 12, "of all memory, tracked or not"),
        ("absorbed", 32, ""),
        ("shared", 64, ""),
    ):
        value = results.value(f"bytes per {kind} page", _FULL)
        # The last slab is never full: that is no byte for each page.
        whole = round(value) if value is not None and kind != "tracked" else value
        found.append(
            Target(f"bytes-{kind}", f"memory per {kind} page", whole, limit, "B",
                   note=note or (f"{value:.2f}" if value is not None else ""))
        )  # fmt: skip
    return found


def _savings(results: Results, samples: Sequence[Sample]) -> list[Target]:
    """Return the targets of a mix, and of all programs: of these the worst counts.

    And whether anybody has saved more than there is to save, which would say that the
    measurement is wrong, and no engine good.
    """
    found = [
        Target(f"saved-{when}", f"saved at {when} of a mix, to KSM's defaults",
               _against(results.pair(f"saved at {when}", _PKSM, _KSM))[0], 1,
               "×", at_least=True)
        for when in ("rest", "peak")
    ]  # fmt: skip
    shares: list[tuple[float, str]] = [
        (
            max(
                sample["samples"][-1][1] / sample["possible_at_rest_pages"],
                max(pages for _, pages in sample["samples"]) / sample["possible_at_peak_pages"],
            ),
            str(sample["engine"]),
        )
        for sample in samples if sample["what"] == "savings"
    ]  # fmt: skip
    most, engine = max(shares, default=(None, ""))
    found.append(
        Target("saved-possible", "saved of a mix at most, to what its contents allow",
               most, _POSSIBLE, "×", note=SETTINGS[engine].title if engine else "")
    )  # fmt: skip
    for when in ("rest", "peak"):
        whats = {each.what for each in results.all if each.what.startswith(f"saved at {when}, ")}
        ratios = {
            what.partition(", ")[2]: ratio for what in whats
            if (ratio := _against(results.pair(what, _PKSM, _KSM))[0]) is not None
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
        values = [cost for _, cost in costs if cost > 0]
        steep = slope(costs)
        spread = 100 * (max(values) / min(values) - 1) if steep is not None and values else None
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

# SPDX-License-Identifier: GPL-2.0-only
"""What is to be reached, and whether it is. Ratios are of one run, so that hosts do not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .bench_facts import Result, Results, Sample, slope
from .bench_lab import SETTINGS
from .bench_overheads import Overhead, contended, overheads
from .bench_programs import PROGRAMS

# Names of settings, as in bench_lab.
_PKSM, _FULL = "pksm", "pksm-full"
_KSM, _KSM_FULL = "ksm", "ksm-full"
_KSMS = [each.name for each in SETTINGS.values() if not each.is_pksm]

# How many processes a hoard has where nothing else is said.
USUAL_PROCS = 8

# Pages of programs that are not the workload's are alike as well.
_POSSIBLE = 1.05


@dataclass(frozen=True)
class Target:
    """A number that is to be at most, or at least, some limit; ``strict``: above it.

    ``value`` is None where it was not measured. Where it is not sure, it is between
    ``low`` and ``high``; nothing can be said where the limit is between them, too. What was
    measured of something that ``failed`` has missed its target, whatever the number is.
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
    strict: bool = False
    failed: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where that is not known."""
        if self.value is None:
            return None
        if self.failed:
            return False
        if self.at_least:
            return self.value > self.limit or (self.value == self.limit and not self.strict)
        low = self.value if self.low is None else self.low
        high = self.value if self.high is None else self.high
        if low > self.limit:
            return False
        return True if high <= self.limit else None

    @property
    def above(self) -> bool:
        """Whether the number is above its limit, and only not by more than is sure."""
        return self.value is not None and self.met is None and self.value > self.limit

    @property
    def bound(self) -> str:
        """The limit as text."""
        sign = (">" if self.strict else "≥") if self.at_least else "≤"
        return f"{sign} {number(self.limit)}{_spaced(self.unit)}"

    @property
    def text(self) -> str:
        """The value as text, with so many digits that it does not seem to be its limit."""
        if self.value is None:
            return "not measured"
        text = number(self.value)
        if float(text) == self.limit != self.value:
            text = f"{self.value:.6g}"
        return text + _spaced(self.unit)

    def facts(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {**asdict(self), "met": self.met, "above": self.above}


def _spaced(unit: str) -> str:
    return f" {unit}" if unit and unit != "×" else unit


def number(value: float) -> str:
    """Return a number with three digits that matter."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def targets_of(
    results: Results,
    samples: Sequence[Sample],
    harness: Mapping[str, Any],
    quick_seconds: float | None = None,
) -> list[Target]:
    """Return every target, in the order of the report.

    *quick_seconds* is how long it has taken to measure all of the quick mode.
    """
    return [
        *_work(results),
        *_convergence(results),
        *_quiet(results),
        *_paths(samples),
        *_memory(results),
        *_savings(results, samples),
        *_scaling(results),
        *_harness(harness),
        Target("quick", "a quick run, all of its measurements", quick_seconds, 120, "s"),
    ]


def _size(result: Result) -> str:
    """Return the size of a result, with the number of processes where it is not the usual one."""
    procs = "" if result.procs in (None, USUAL_PROCS) else f" of {result.procs}"
    return f"{result.mib} MiB{procs}"


def _ratio_of(pair: tuple[Result, Result]) -> float:
    """Return the ratio of two medians that are above nothing."""
    return pair[0].stat.median / pair[1].stat.median


def _against(found: tuple[Result, Result] | None) -> tuple[float | None, str]:
    """Return the ratio of two results, and a note: of which size, and from which to which."""
    if found is None or found[1].stat.median <= 0:
        return None, ""
    one, other = found[0].stat, found[1].stat
    note = _size(found[0])
    if max(one.runs, other.runs) > 1 and other.low > 0:
        note += f", {number(one.low / other.high)} .. {number(one.high / other.low)}"
    if min(one.runs, other.runs) == 1:
        note += ", one run"
    return one.median / other.median, note


def _work(results: Results) -> list[Target]:
    ratio, note = _against(results.pair("merged", _FULL, _KSM_FULL))
    foreseen = results.value("unmatched, to a hash that is foreseen", _FULL)
    return [
        Target("merged-to-ksm", "CPU per merged page, to that of KSM", ratio, 0.25, "×", note=note),
        _to_floor(results, "merged-to-floor", "CPU per merged page, to the floor",
                  "merged, to the floor", 1.6, "hash, comparison, PTE"),
        _to_floor(results, "unmatched-to-floor", "CPU per unmatched page, to one cold hash",
                  "unmatched, to a hash", 1.4,
                  f"{number(foreseen)}× of a hash that is foreseen" if foreseen else ""),
        _to_floor(results, "watched-to-floor",
                  "the same with the second and last look, and the watch",
                  "unmatched and watched, to a hash", 1.4, ""),
    ]  # fmt: skip


def _to_floor(
    results: Results, name: str, title: str, what: str, limit: float, note: str
) -> Target:
    """Return the target of a ratio to the floor of the same run, at the largest size."""
    found = results.last(what, _FULL)
    if found is None:
        return Target(name, title, None, limit, "×")
    stat = found.stat
    notes = [_size(found), f"{number(stat.low)} .. {number(stat.high)}", note]
    return Target(name, title, stat.median, limit, "×",
                  note=", ".join(text for text in notes if text))  # fmt: skip


def _convergence(results: Results) -> list[Target]:
    """Return the targets of converging; of all sizes and numbers of processes the worst counts."""
    pairs = results.pairs("convergence", _KSM, _PKSM)
    ratio, note = _against(min(pairs, key=_ratio_of) if pairs else None)
    found = [
        Target("convergence-to-ksm", "convergence, times faster than KSM's defaults", ratio, 50,
               "×", at_least=True, note=f"{note}{_others(pairs)}")
    ]  # fmt: skip
    for name, title, what in (
        ("convergence-to-best", "time to converge", "convergence"),
        ("convergence-cpu", "CPU to converge", "convergence CPU"),
    ):
        pairs = _to_best_of_ksm(results, what)
        worst = max(pairs, key=_ratio_of) if pairs else None
        ratio, note = _against(worst)
        if worst is not None:
            note = f"{SETTINGS[worst[1].engine].title}; {note}{_others(pairs)}"
        found.append(Target(name, f"{title}, to that of KSM at its best", ratio, 1, "×", note=note))
    return found


def _others(pairs: Sequence[tuple[Result, Result]]) -> str:
    """Return what the ratios of all *pairs* are, where there are several."""
    ratios = [_ratio_of(pair) for pair in pairs]
    if len(ratios) < 2:
        return ""
    return f"; of {len(ratios)} sizes {number(min(ratios))} .. {number(max(ratios))}"


def _to_best_of_ksm(results: Results, what: str) -> list[tuple[Result, Result]]:
    """Return each result of PKSM with the least that any setting of KSM has taken there."""
    found = []
    for ours in results.find(what, _PKSM):
        theirs = [
            each for each in results.find(what)
            if each.engine in _KSMS and (each.mib, each.procs) == (ours.mib, ours.procs)
            and each.stat.median > 0
        ]  # fmt: skip
        if theirs:
            found.append((ours, min(theirs, key=lambda each: each.stat.median)))
    return found


def _quiet(results: Results) -> list[Target]:
    """Return the targets of doing nothing: of all runs of all sizes the worst counts."""
    return [
        _most(results, "idle-first", "wake-ups of pksmd in the minute after all is merged",
              "first minute wake-ups", 0, "/min"),
        _most(results, "idle", "wake-ups of pksmd in a minute, when all is watched",
              "idle wake-ups", 0, "/min"),
        _most(results, "volatile", "PKSM, and what writes cost more, while every page changes",
              "volatile", 1, "% of a CPU"),
    ]  # fmt: skip


def _most(
    results: Results, name: str, title: str, what: str, limit: float, unit: str
) -> Target:
    """Return the target of the most that any run of any size has had of *what* with PKSM."""
    found = results.find(what, _PKSM)
    worst = max(found, key=lambda each: each.stat.high, default=None)
    if worst is None:
        return Target(name, title, None, limit, unit)
    runs = sum(each.stat.runs for each in found)
    return Target(name, title, worst.stat.high, limit, unit,
                  note=f"{_size(worst)}; the most of {runs} run{'s' if runs > 1 else ''}")  # fmt: skip


def _overhead(name: str, title: str, each: Overhead | None, allowed: float) -> Target:
    if each is None:
        return Target(name, title, None, allowed, "%")
    low, high = 100 * each.low, 100 * each.high
    note = f"{low:+.1f} .. {high:+.1f} %"
    if each.apart is not None:
        note += f"; the same kernel twice: {100 * each.apart:.1f} %"
    return Target(name, title, 100 * each.share, allowed, "%", low=low, high=high, note=note)


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
    """Return the targets of metadata, of all memory that was taken for it, at the largest size."""
    found = []
    for kind, limit in (("tracked", 12), ("absorbed", 32), ("shared", 64)):
        each = results.last(f"bytes per {kind} page", _FULL)
        note = _size(each) if each is not None else ""
        share = results.value("memory that is tracked", _FULL)
        if kind == "tracked" and share is not None:
            note += f"; {number(share)} % of the guest's memory is tracked"
        found.append(
            Target(f"bytes-{kind}", f"memory per {kind} page",
                   each.stat.median if each is not None else None, limit, "B", note=note)
        )  # fmt: skip
    return found


def _savings(results: Results, samples: Sequence[Sample]) -> list[Target]:
    """Return the targets of a mix, and of all programs: of these the worst counts.

    And whether anybody has saved more than there is to save, which would say that the
    measurement is wrong, and no engine good.
    """
    found = [
        Target(f"saved-{when}{name}", f"saved at {when} of a mix, to {title}",
               _against(results.pair(f"saved at {when}", _PKSM, engine))[0], 1,
               "×", at_least=True, strict=when == "peak",
               note=_not_at_rest(samples, (_PKSM, engine)))
        for engine, name, title in (
            (_KSM, "", "KSM's defaults"), (_KSM_FULL, "-best", "KSM at full speed"),
        )
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
    return [*found, *(_programs(results, when) for when in ("rest", "peak"))]


def _not_at_rest(samples: Sequence[Sample], engines: Sequence[str]) -> str:
    """Return a note that says which of *engines* had not come to rest when its time was over."""
    restless = dict.fromkeys(
        SETTINGS[s["engine"]].title for s in samples
        if s["what"] == "savings" and s["engine"] in engines and not s["steady"]
    )  # fmt: skip
    return f"not at rest yet: {' and '.join(restless)}" if restless else ""


def _programs(results: Results, when: str) -> Target:
    """Return the target of all programs. There is none unless each was measured with both."""
    ratios: dict[str, float] = {}
    absent, unequalled = [], []
    for name in PROGRAMS:
        both = results.pair(f"saved at {when}, {name}", _PKSM, _KSM)
        if both is None:
            absent.append(name)
            continue
        ours, theirs = (each.stat.median for each in both)
        if theirs > 0:
            ratios[name] = ours / theirs
        elif ours > theirs:
            unequalled.append(name)
        else:
            # Neither has saved anything, or PKSM has lost.
            ratios[name] = 1.0 if ours == theirs else 0.0
    worst = min(ratios, key=lambda name: ratios[name], default=None)
    notes = [
        f"{worst}; best of {len(ratios)}: {max(ratios.values()):.2f}×" if worst is not None else "",
        f"KSM has saved nothing of {', '.join(unequalled)}" if unequalled else "",
        f"not measured: {', '.join(absent)}" if absent else "",
    ]
    return Target(
        f"programs-{when}", f"saved at {when} of programs, to KSM's defaults",
        ratios[worst] if worst is not None and not absent else None, 1, "×", at_least=True,
        strict=when == "peak", note="; ".join(note for note in notes if note),
    )  # fmt: skip


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
    found = []
    for name, title, limit in (
        ("bugs", "the tests of known classes of bugs", 90),
        ("suite", "the whole suite", 90),
        ("edit", "edit of one engine file, to a test that has passed", 20),
    ):
        each = harness.get(name, {})
        failed = each.get("failed", "")
        found.append(
            Target(name, title, each.get("median"), limit, "s", note=failed, failed=bool(failed))
        )
    return found

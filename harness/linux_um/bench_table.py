# SPDX-License-Identifier: GPL-2.0-only
"""The report as text: every result, then the targets, in red where they are missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .bench_facts import Result, Results, Slope
from .bench_lab import SETTINGS
from .bench_overheads import PATH_STEPS, Overhead
from .bench_targets import Target, number

TITLES = {
    "floor hash": "floor: hash of a cold page, the engine's",
    "floor xxh64": "floor: hash of a cold page, xxh64",
    "floor least hash": "floor: the lesser of both in each run",
    "floor memcmp": "floor: comparison of two cold pages",
    "floor follow": "floor: hash of a page behind the last one",
    "floor pte": "floor: PTE cleared, flushed, set",
    "merged, to the floor": "CPU per merged page, to the floor of its run",
    "unmatched, to a hash": "CPU per unmatched page, to a cold hash",
    "unmatched, to a hash that is foreseen": "the same, to a hash that is foreseen",
    "unmatched and watched, to a hash": "the same with the second look",
    "merged": "CPU per merged page",
    "unmatched": "CPU per unmatched page",
    "reads per unmatched page": "pages read per unmatched page",
    "watched": "the second look at an unmatched page",
    "reads per watched page": "pages read per second look",
    "first write": "first write to a page that is watched",
    "convergence": "last write to all merged",
    "convergence CPU": "CPU to converge",
    "idle": "nothing changes: CPU",
    "idle wake-ups": "nothing changes: wake-ups of the daemon",
    "first minute": "the minute after merging: CPU",
    "first minute wake-ups": "the minute after merging: wake-ups",
    "volatile": "every page changes: engine, writes with it",
    "volatile, per GiB": "the same, for a GiB",
    "reads per volatile page": "pages read per page that changes, in a minute",
    "saved at rest": "saved of a mix at rest",
    "saved at peak": "saved of a mix at peak",
    "savings CPU": "kernel's CPU for the mix, all of it",
    "intake by pksmd": "pksmd takes a page over, in the paths",
    "break": "breaking a merged page off",
    "unmerge": "unmerging, per page",
    "rmap walk": "rmap walk of a page shared 10,000 times",
    "rmap walk, per mapping": "the same, per mapping",
}
VARIANT_TITLES = {
    "none-a": "no merger", "none-b": "no merger, again", "pksm-off": "PKSM off",
    "pksm-stopped": "PKSM stopped", "pksm-on": "PKSM on", "ksm-on": "KSM on",
}  # fmt: skip
_RED, _GREEN, _YELLOW, _RESET = "\033[31m", "\033[32m", "\033[33m", "\033[0m"


def red(text: str, *, colour: bool) -> str:
    """Return *text*, in red where there are colours."""
    return f"{_RED}{text}{_RESET}" if colour else text


def title_of(result: Result) -> str:
    """Return what was measured, as people read it."""
    if result.what in PATH_STEPS:
        return f"{result.what}, per page"
    return TITLES.get(result.what, result.what)


def engine_title(name: str) -> str:
    """Return the name of an engine and its setting, as people read it."""
    setting = SETTINGS.get(name)
    return setting.title if setting is not None else VARIANT_TITLES.get(name, name)


def kind_of(target: Target) -> str:
    """Return ``met``, ``missed``, ``unknown`` where it was not measured, or what it may be.

    Which is ``above`` where the number is above its limit, and ``close`` where it is not, by
    less than is sure.
    """
    if target.met is not None:
        return "met" if target.met else "missed"
    if target.value is None:
        return "unknown"
    return "above" if target.above else "close"


_VERDICTS = {"met": "met", "missed": "MISSED", "above": "ABOVE?", "close": "close", "unknown": ""}
_COLOURS = {"met": _GREEN, "missed": _RED, "above": _YELLOW}


def verdict(target: Target) -> str:
    """Return in a word what became of a target, or nothing where it was not measured."""
    return _VERDICTS[kind_of(target)]


def targets_table(targets: Sequence[Target], *, colour: bool) -> str:
    """Return the targets as a table."""
    lines = [f"{'target':59} {'is':>16}  {'to be':14}"]
    for each in targets:
        line = f"{each.title:59} {each.text:>16}  {each.bound:14} {verdict(each):7}"
        if each.note:
            line += f" {each.note}"
        if colour and kind_of(each) in _COLOURS:
            line = f"{_COLOURS[kind_of(each)]}{line}{_RESET}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def overhead_text(each: Overhead) -> tuple[str, str, str, str, str]:
    """Return step, variant, median, interval and noise of an overhead, as people read them."""
    apart = "" if each.apart is None else f"{100 * each.apart:.1f} %"
    return (
        each.step, engine_title(each.variant), f"{100 * each.share:+.1f} %",
        f"{100 * each.low:+.1f} .. {100 * each.high:+.1f} %", apart,
    )  # fmt: skip


OVERHEADS_HEAD = ("more than without PKSM", "", "median", "is in", "the same kernel twice")


def overheads_table(found: Sequence[Overhead]) -> str:
    """Return what the hooks cost more, and by how much two guests of a kernel differ."""
    rows = [OVERHEADS_HEAD, *(overhead_text(each) for each in found)]
    return "\n".join(
        f"{step:44} {variant:18} {share:>9}  {inside:18} {apart:>10}".rstrip()
        for step, variant, share, inside, apart in rows
    )


def results_table(results: Results) -> str:
    """Return all results as a table."""
    lines = [f"{'':44} {'':18} {'median':>9} {'':12} min .. max (runs)"]
    for each in results.all:
        size = "" if each.mib is None else f"{each.mib} MiB"
        if each.procs is not None:
            size += f" / {each.procs}" if size else f"{each.procs} CPUs"
        stat = each.stat
        lines.append(
            f"{title_of(each):44} {engine_title(each.engine):18} {number(stat.median):>9} "
            f"{each.unit:12} {number(stat.low)} .. {number(stat.high)} ({stat.runs})"
            + (f"  {size}" if size else "")
        )
    return "\n".join(line.rstrip() for line in lines)


def slope_text(each: Slope) -> tuple[str, str, str]:
    """Return what was scaled, of which engine, and over which sizes, as people read it."""
    return (
        TITLES.get(each.what, each.what), engine_title(each.engine),
        f"{each.first:g} to {each.last:g} {each.by}",
    )  # fmt: skip


def slopes_table(slopes: Sequence[Slope]) -> str:
    """Return by which power everything grows, as a table."""
    lines = [f"{'slope, of the logarithms (0: flat)':44}"]
    for each in slopes:
        what, engine, sizes = slope_text(each)
        lines.append(f"{what:44} {engine:18} {each.exponent:+9.3f}  {sizes}")
    return "\n".join(line.rstrip() for line in lines)


def harness_table(harness: Mapping[str, Any], *, colour: bool) -> str:
    """Return how long the harness takes, as a table; in red what has failed."""
    lines = []
    for each in harness.values():
        line = (
            f"{each['title']:63} {each['median']:9.2f} s            "
            f"{each['min']:.2f} .. {each['max']:.2f} ({len(each['runs'])})"
        )
        if each["failed"]:
            line = red(f"{line}  FAILED: {each['failed']}", colour=colour)
        lines.append(line)
    return "\n".join(lines)


def summary(targets: Sequence[Target]) -> str:
    """Return one line that says how many targets are met."""
    kinds = [kind_of(each) for each in targets]
    text = f"{kinds.count('met')} targets met, {kinds.count('missed')} missed"
    for kind, what in (
        ("above", "above the limit by less than is sure"),
        ("close", "too close to say"),
        ("unknown", "not measured"),
    ):
        text += f", {kinds.count(kind)} {what}" if kind in kinds else ""
    return text


def changes_table(now: Results, before: Results, *, colour: bool) -> str:
    """Return what became slower or faster since another run, by more than both have spread.

    What was measured once has no spread: that is said.
    """
    old = {(each.what, each.engine, each.mib, each.procs): each for each in before.all}
    lines = []
    for each in now.all:
        other = old.get((each.what, each.engine, each.mib, each.procs))
        if other is None:
            continue
        change = change_of(each, other)
        if not change:
            continue
        line = (
            f"{title_of(each):44} {engine_title(each.engine):18} "
            f"{number(other.stat.median)} -> {number(each.stat.median)} {each.unit}".rstrip()
        )
        # What is nothing, or a difference below it, has no ratio.
        if other.stat.median > 0 and each.stat.median > 0:
            line += f"  {each.stat.median / other.stat.median:.2f} ×"
        line += f"  {_WORDS[each.unit in _OF_TIME][change > 0]}"
        # One run may have been anything: that is no change that is sure.
        sure = min(each.stat.runs, other.stat.runs) > 1
        line += "" if sure else ", perhaps: one run"
        if colour and sure:
            better = (change > 0) is each.what.startswith("saved")
            line = f"{_GREEN if better else _RED}{line}{_RESET}"
        lines.append(line)
    return "\n".join(lines) or "nothing has changed by more than the runs differ among themselves"


# Words for a change, by whether it is of a time: for less, and for more.
_OF_TIME = ("ns", "µs", "ms", "s")
_WORDS = {True: ("faster", "slower"), False: ("less", "more")}
# Of the old median: by less than that nothing has changed.
_APART = 0.05


def change_of(now: Result, before: Result) -> int:
    """Return 1 where there is more of it, -1 where there is less, or 0.

    The runs of the two must not overlap, and their medians must be 5 % apart.
    """
    apart = _APART * abs(before.stat.median)
    if now.stat.low > before.stat.high and now.stat.median > before.stat.median + apart:
        return 1
    if now.stat.high < before.stat.low and now.stat.median < before.stat.median - apart:
        return -1
    return 0

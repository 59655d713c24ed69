# SPDX-License-Identifier: GPL-2.0-only
"""The plots of the report, by matplotlib. Each is made only where there is something to show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .bench_facts import Result, Results, Sample, slope
from .bench_overheads import PATH_STEPS, overheads
from .bench_table import engine_title

COLOURS = {
    "pksm": "#1b6ca8", "pksm-full": "#1b6ca8", "ksm": "#d1495b", "ksm-full": "#edae49",
    "ksm-advisor": "#8d6a9f", "none-a": "#999999", "none-b": "#bbbbbb", "pksm-off": "#66a182",
    "pksm-stopped": "#8fb8de", "pksm-on": "#1b6ca8", "ksm-on": "#d1495b",
}  # fmt: skip
_STYLE = {
    "figure.figsize": (8.0, 4.2), "figure.dpi": 110, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 10,
    "axes.titlesize": 12, "axes.titleweight": "bold", "legend.frameon": False,
    "svg.hashsalt": "linux-um", "svg.fonttype": "none",
}  # fmt: skip


# How much of the time until savings have come to rest is shown: as many visits.
_SEEN = 3


def _error(stat: Any) -> tuple[float, float]:
    return stat.median - stat.low, stat.high - stat.median


def _work(plt: Any, results: Results, _samples: Sequence[Sample]) -> Any:
    """CPU for a page: PKSM, KSM, and the floor."""
    bars = [
        (label, what, engine)
        for what in ("merged", "unmatched")
        for label, engine in (("PKSM", "pksm-full"), ("KSM", "ksm-full"))
    ]
    bars = [bar for bar in bars if results.last(bar[1], bar[2]) is not None]
    if not bars:
        return None
    figure, axes = plt.subplots()
    for place, (label, what, engine) in enumerate(bars):
        found = results.last(what, engine)
        assert found is not None
        low, high = _error(found.stat)
        axes.barh(place, found.stat.median, xerr=[[low], [high]], color=COLOURS[engine],
                  error_kw={"ecolor": "#444444", "capsize": 3})  # fmt: skip
        axes.text(found.stat.high, place, f"  {found.stat.median:.2f} µs", va="center")
    left = 0.0
    for step, colour in (("least hash", "#555555"), ("memcmp", "#888888"), ("pte", "#bbbbbb")):
        value = results.value(f"floor {step}", "")
        if value is not None:
            axes.barh(len(bars), value, left=left, color=colour, label=step)
            left += value
    follow = results.value("floor follow", "")
    if follow is not None:
        axes.axvline(follow, color="#555555", linestyle=":", linewidth=1)
        axes.text(follow, -0.6, " a hash that is foreseen", fontsize=8, color="#555555")
    labels = [f"{what} page, {label}" for label, what, _ in bars]
    if left:
        labels.append("the floor")
        axes.text(left, len(bars), f"  {left:.2f} µs: hash, comparison, PTE", va="center")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("kernel CPU time per page, µs (median; whiskers: all runs)")
    axes.set_title("CPU per page at full speed")
    return figure


def _scale(
    what: str, title: str, label: str, engines: Sequence[str], by_procs: bool = False
) -> Callable[[Any, Results, Sequence[Sample]], Any]:
    """Return what makes a log-log plot of *what* against memory, or processes, with slopes."""

    def make(plt: Any, results: Results, _samples: Sequence[Sample]) -> Any:
        choose = results.by_procs if by_procs else results.by_size
        found = {engine: choose(what, engine) for engine in engines}
        if max((len(each) for each in found.values()), default=0) < 2:
            return None
        figure, axes = plt.subplots()
        for engine, each in found.items():
            if each:
                sizes = [_size_of(result, by_procs) for result in each]
                medians = [result.stat.median for result in each]
                steep = slope(list(zip(sizes, medians, strict=True)))
                errors = list(zip(*(_error(result.stat) for result in each), strict=True))
                axes.errorbar(sizes, medians, yerr=errors, marker="o", capsize=3,
                              color=COLOURS[engine], label=engine_title(engine)
                              + (f" (slope {steep:+.2f})" if steep is not None else ""))  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("processes" if by_procs else "memory that is filled, MiB")
        axes.set_ylabel(label)
        axes.set_title(title)
        axes.legend()
        return figure

    return make


def _size_of(result: Result, by_procs: bool) -> float:
    return float((result.procs if by_procs else result.mib) or 0)


def _convergence(plt: Any, results: Results, _samples: Sequence[Sample]) -> Any:
    """Time from the last write to all merged."""
    # The largest size that was measured for most of them.
    sizes = Counter(each.mib for each in results.find("convergence") if each.procs == 8)
    mib = max(sizes, key=lambda size: (sizes[size], size or 0), default=None)
    bars = [
        each for name in ("pksm", "ksm-full", "ksm-advisor", "ksm")
        for each in results.by_size("convergence", name) if each.mib == mib
    ]  # fmt: skip
    if not bars:
        return None
    figure, axes = plt.subplots(figsize=(8.0, 3.2))
    for place, each in enumerate(bars):
        axes.barh(place, each.stat.median / 1000, color=COLOURS[each.engine])
        axes.text(each.stat.median / 1000, place, f"  {each.stat.median / 1000:.2f} s",
                  va="center")  # fmt: skip
    axes.set_yticks(range(len(bars)), [engine_title(each.engine) for each in bars])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel("seconds")
    axes.set_title(f"From the last write to all duplicates merged, {mib} MiB")
    return figure


def _over_time(axes: Any, samples: Sequence[Sample]) -> None:
    """Draw what is saved over time, each turn of an engine as one more line of its colour."""
    named = set()
    for sample in samples:
        engine = sample["engine"]
        axes.plot([when / 1000 for when, _ in sample["samples"]],
                  [pages / 256 for _, pages in sample["samples"]], color=COLOURS[engine],
                  label=None if engine in named else engine_title(engine))  # fmt: skip
        named.add(engine)


def _savings(plt: Any, _results: Results, samples: Sequence[Sample]) -> Any:
    """What is saved of a mix, over time: alone, with a second half, and alone again.

    Each of them from its beginning on, and no longer than there is something to see.
    """
    found = [sample for sample in samples if sample["what"] == "savings"]
    if not found:
        return None
    titles = {
        "alone": "half of the processes", "visited": "the other half has come",
        "left": "and gone",
    }  # fmt: skip
    figure, every = plt.subplots(1, len(titles), sharey=True)
    for axes, (name, title) in zip(every, titles.items(), strict=True):
        _over_time(axes, [_part_of(sample, name) for sample in found])
        for possible in ("possible_at_rest_pages", "possible_at_peak_pages"):
            axes.axhline(found[0][possible] / 256, color="#999999", linestyle=":", linewidth=1)
        axes.set_xlim(0, found[0]["visit_seconds"] * (1 if name == "visited" else _SEEN))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("seconds")
        axes.set_title(title)
    every[0].set_ylabel("MiB saved; dotted: what the contents allow")
    every[0].legend(loc="lower right")
    return figure


def _part_of(sample: Sample, name: str) -> Sample:
    """Return a sample of savings with that part of it which is called *name*, from 0 on."""
    began = sample["began_ms"]
    first = began[name]
    end = min((when for when in began.values() if when > first), default=math.inf)
    return {**sample, "samples": [[when - first, pages] for when, pages in sample["samples"]
                                  if first <= when < end]}  # fmt: skip


def _programs(plt: Any, _results: Results, samples: Sequence[Sample]) -> Any:
    """What is saved of real programs, over time."""
    found = [sample for sample in samples if sample["what"] == "programs"]
    names = list(dict.fromkeys(sample["program"] for sample in found))
    if not names:
        return None
    figure, every = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.2), squeeze=False)
    for axes, name in zip(every[0], names, strict=True):
        _over_time(axes, [sample for sample in found if sample["program"] == name])
        axes.set_title(name)
        axes.set_xlabel("seconds")
        axes.set_ylim(bottom=0)
    every[0][0].set_ylabel("MiB saved")
    every[0][0].legend()
    return figure


def _paths(plt: Any, _results: Results, samples: Sequence[Sample]) -> Any:
    """What the hooks cost."""
    found = overheads(samples)
    if not found:
        return None
    variants = list(dict.fromkeys(each.variant for each in found))
    width = 0.8 / len(variants)
    figure, axes = plt.subplots()
    for place, variant in enumerate(variants):
        mine = [each for each in found if each.variant == variant]
        shares = [100 * each.share for each in mine]
        below = [100 * (each.share - each.low) for each in mine]
        above = [100 * (each.high - each.share) for each in mine]
        axes.bar([step + place * width for step in range(len(mine))], shares, 0.9 * width,
                 yerr=[below, above], error_kw={"ecolor": "#444444", "capsize": 2},
                 color=COLOURS[variant], label=engine_title(variant))  # fmt: skip
    for step, each in enumerate(each for each in found if each.variant == variants[0]):
        apart = 100 * (each.apart or 0.0)
        axes.fill_between([step - 0.15, step + 0.7], -apart, apart,
                          color="#cccccc", alpha=0.6, zorder=0,
                          label=None if step else "the same kernel twice")  # fmt: skip
    axes.set_xticks([step + 0.3 for step in range(len(PATH_STEPS))], PATH_STEPS)
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_ylabel("more than without any merger, %")
    axes.set_title("Fault, free, fork, copy, exit")
    axes.legend()
    return figure


def _contention(plt: Any, results: Results, samples: Sequence[Sample]) -> Any:
    """Fault and free throughput against the number of CPUs."""
    names = list(dict.fromkeys(s["machine"] for s in samples if s["what"] == "contention"))
    if not names:
        return None
    figure, every = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.6), squeeze=False)
    for axes, name in zip(every[0], names, strict=True):
        for engine in ("pksm-off", "pksm-on"):
            found = results.find(f"fault and free, {name}", engine)
            cpus = [each.procs or 0 for each in found]
            rates = [1000 * (each.procs or 0) / each.stat.median for each in found]
            axes.plot(cpus, rates, marker="o", color=COLOURS[engine], label=engine_title(engine))
        axes.set_title(name)
        axes.set_xlabel("CPUs at work")
        axes.set_xticks(cpus)
        axes.set_ylim(bottom=0)
    every[0][0].set_ylabel("pages per µs, faulted in and freed")
    every[0][0].legend()
    return figure


PLOTS: tuple[tuple[str, Callable[[Any, Results, Sequence[Sample]], Any]], ...] = (
    ("work", _work),
    ("savings", _savings),
    ("convergence", _convergence),
    ("programs", _programs),
    ("merged-by-size", _scale("merged", "CPU per merged page against memory size",
                              "µs per merged page", ("pksm-full", "ksm-full"))),
    ("unmatched-by-size", _scale("unmatched", "CPU per unmatched page against memory size",
                                 "µs per unmatched page", ("pksm-full", "ksm-full"))),
    ("convergence-by-size", _scale("convergence", "Convergence against memory size", "ms",
                                   ("pksm", "ksm-full", "ksm-advisor", "ksm"))),
    ("merged-by-processes", _scale("merged", "CPU per merged page against processes",
                                   "µs per merged page", ("pksm-full", "ksm-full"), True)),
    ("unmatched-by-processes", _scale("unmatched", "CPU per unmatched page against processes",
                                      "µs per unmatched page", ("pksm-full", "ksm-full"), True)),
    ("convergence-by-processes", _scale("convergence", "Convergence against processes", "ms",
                                        ("pksm", "ksm-full", "ksm-advisor"), True)),
    ("paths", _paths),
    ("contention", _contention),
)  # fmt: skip


def draw(
    results: Results, samples: Sequence[Sample], directory: Path
) -> tuple[list[tuple[str, str]], list[str]]:
    """Write ``NAME.png`` of each plot into *directory*; return names and SVG texts.

    And what is wrong with each of those that could not be drawn: the others are drawn, and
    none is where matplotlib is missing. Raises OSError when the files cannot be written.
    """
    import io

    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        return [], [f"no plots: {error}; install python3-matplotlib"]

    found, failed = [], []
    with plt.rc_context(_STYLE):
        for name, make in PLOTS:
            try:
                figure = make(plt, results, samples)
                if figure is None:
                    continue
                figure.tight_layout()
                text = io.StringIO()
                figure.savefig(text, format="svg", metadata={"Date": None})
                image = io.BytesIO()
                figure.savefig(image, format="png")
            except Exception as error:
                failed.append(f"no plot {name}: {type(error).__name__}: {error}")
                continue
            finally:
                plt.close("all")
            (directory / f"{name}.png").write_bytes(image.getvalue())
            svg = text.getvalue()
            found.append((name, svg[svg.index("<svg") :]))
    return found, failed

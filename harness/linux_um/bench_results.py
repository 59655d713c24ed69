# SPDX-License-Identifier: GPL-2.0-only
"""What results samples have in them: of the engines, but for what the hooks cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from .bench_facts import Result, Results, Sample, Stat, Value
from .bench_overheads import contended_ns, path_results


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
    add("volatile", "% of a CPU", "volatile", _volatile)
    add("volatile, per GiB", "% of a CPU", "volatile", lambda s: _volatile(s) * 1024 / s["mib"])
    add("reads per volatile page", "", "volatile", lambda s: s["scanned_pages"] / s["pages"])
    add("saved at rest", "MiB", "savings", lambda s: s["samples"][-1][1] / 256)
    add("saved at peak", "MiB", "savings", lambda s: max(n for _, n in s["samples"]) / 256)
    add("savings CPU", "ms", "savings", lambda s: s["cpu_ns"] / 1e6)
    add("break", "µs", "cow",
        lambda s: min(s["ns"]) / s["pages_per_call"] / 1000 if s["ns"] else None)
    add("unmerge", "µs", "unmerge", lambda s: s["cpu_ns"] / s["pages"] / 1000)
    add("rmap walk", "µs", "rmap", lambda s: s["walk_ns"] / 1000)
    add("rmap walk, per mapping", "ns", "rmap", lambda s: s["walk_ns"] / s["mapcount"])
    for name in dict.fromkeys(s["program"] for s in samples if s["what"] == "programs"):
        add(f"saved at rest, {name}", "MiB", "programs", partial(_saved, name, False))
        add(f"saved at peak, {name}", "MiB", "programs", partial(_saved, name, True))
    for name in dict.fromkeys(s["machine"] for s in samples if s["what"] == "contention"):
        add(f"fault and free, {name}", "ns", "contention", partial(contended_ns, name))
    found += _idle_cpu(samples)
    found += _metadata(samples)
    found += path_results(samples)
    return Results([*_floors(samples), *found])


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


def _convergence_cpu_ms(sample: Sample) -> float:
    """Return the CPU time to converge, without what filling and (if known) polling have cost."""
    besides = sample["fill_cpu_ns"] + sample.get("polls_cpu_ns", 0)
    return float((sample["cpu_ns"] - besides) / 1e6)


def _volatile(sample: Sample) -> float:
    """Return what the engine costs in per cent of a CPU while every page changes."""
    return float(100 * (sample["cpu_ns"] - sample["stopped_cpu_ns"]) / 1e9 / sample["seconds"])


def _floors(samples: Sequence[Sample]) -> list[Result]:
    """Return the floor, all runs together, and what pages cost to that of their own run.

    The hash of the floor is the engine's or xxh64, which is not, whichever takes less: an
    engine with a slower hash has no higher floor.
    """
    steps: dict[str, list[float]] = {}
    runs: dict[str, dict[str, float]] = {}
    for sample in samples:
        if sample["what"] == "floor":
            took = floor_us(sample)
            steps.setdefault(sample["step"], []).append(took)
            runs.setdefault(sample["run"], {})[sample["step"]] = took
    for floor in runs.values():
        floor["least hash"] = min(floor["hash"], floor["xxh64"])
        steps.setdefault("least hash", []).append(floor["least hash"])
    found = [Result(f"floor {step}", "", "µs", Stat.of(took)) for step, took in steps.items()]
    ratios: dict[tuple[str, str, int, int], list[float]] = {}
    looks: dict[str, float] = {}

    def add(name: str, sample: Sample, value: float) -> None:
        where = name, sample["engine"], sample["mib"], sample["procs"]
        ratios.setdefault(where, []).append(value)

    for sample in samples:
        floor = runs.get(sample.get("run", ""), {})
        if not floor or sample["what"] not in ("merged", "unmatched", "watched"):
            continue
        cost = page_us(sample)
        if sample["what"] == "merged":
            least = floor["least hash"] + floor["memcmp"] + floor["pte"]
            add("merged, to the floor", sample, cost / least)
        elif sample["what"] == "unmatched":
            looks[sample["run"]] = cost
            add("unmatched, to a hash", sample, cost / floor["least hash"])
            add("unmatched, to a hash that is foreseen", sample, cost / floor["follow"])
        elif sample["run"] in looks:
            both = cost + looks[sample["run"]]
            add("unmatched and watched, to a hash", sample, both / floor["least hash"])
    return found + [
        Result(name, engine, "×", Stat.of(values), mib, procs)
        for (name, engine, mib, procs), values in ratios.items()
    ]


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
# The classes of pages that an engine has a record of, each on its own.
_TRACKED = ("pages_new", "pages_unshared", "pages_volatile", "pages_shared")


def tracked_pages(sample: Sample) -> int:
    """Return of how many pages the engine has kept a record."""
    return sum(sample["counters"].get(name, 0) for name in _TRACKED)


def _metadata(samples: Sequence[Sample]) -> list[Result]:
    """Return the bytes that an engine keeps of pages: each, absorbed ones, shared ones.

    All of it counts: what PKSM keeps for each page of memory, whether it is tracked or not,
    is divided by those that are tracked; and of slabs all pages, full or not.
    """
    found: dict[tuple[str, str, int | None, int | None], list[float]] = {}
    for sample in samples:
        memory = sample.get("memory")
        if not memory:
            continue
        where = str(sample["engine"]), sample.get("mib"), sample.get("procs")
        found_here = _slab_bytes(sample) if sample["what"] == "merged" else _kept_bytes(sample)
        for what, value in found_here.items():
            found.setdefault((what, *where), []).append(value)
    return [
        Result(what, engine, "%" if what == "memory that is tracked" else "B", Stat.of(values),
               mib, procs)
        for (what, engine, mib, procs), values in found.items()
    ]  # fmt: skip


def _kept_bytes(sample: Sample) -> dict[str, float]:
    """Return what is kept of a page, of a sample in which pages are like no other.

    Of PKSM only a kernel of the profile bench says it.
    """
    memory, tracked = sample["memory"], tracked_pages(sample)
    if not tracked:
        return {}
    if "page_ext_bytes_per_page" in memory:
        kept = memory["page_ext_bytes_per_page"] * memory["spanned_pages"] + memory["index_bytes"]
        return {
            "bytes per tracked page": kept / tracked,
            "bytes per page of memory": kept / memory["spanned_pages"],
            "memory that is tracked": 100 * tracked / memory["spanned_pages"],
        }
    if "slab_ksm_rmap_item" not in memory:
        return {}
    # KSM has a record of each mapping that it looks at, and of each address space.
    kept = sum(memory[name]["page_bytes"] for name in ("slab_ksm_rmap_item", "slab_ksm_mm_slot"))
    return {"bytes per tracked page": kept / tracked}


def _slab_bytes(sample: Sample) -> dict[str, float]:
    """Return what is kept of an absorbed page and a shared one, of a sample that has merged."""
    found = {}
    for what, (names, counter) in _SLABS.items():
        pages = sample["counters"].get(counter)
        for name in names:
            if name in sample["memory"] and pages:
                found[what] = sample["memory"][name]["page_bytes"] / pages
    return found

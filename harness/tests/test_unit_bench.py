# SPDX-License-Identifier: GPL-2.0-only
"""The arithmetic of the bench, and its report, from raw data that was recorded or made up."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
import threading
import time
from html import escape
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux_um import bench, bench_html, bench_instructions, bench_plots  # noqa: E402
from linux_um import bench_table, bench_trace  # noqa: E402
from linux_um.bench_contention import cpu_counts  # noqa: E402
from linux_um.bench_facts import Result, Results, Stat, harness_of, slope, slopes_of  # noqa: E402
from linux_um.bench_lab import BenchError  # noqa: E402
from linux_um.bench_overheads import contended, interval, overheads  # noqa: E402
from linux_um.bench_programs import PROGRAMS  # noqa: E402
from linux_um.bench_results import results_of  # noqa: E402
from linux_um.bench_targets import Target, number, targets_of  # noqa: E402
from linux_um.term import Term  # noqa: E402

RECORDED = Path(__file__).resolve().parent / "bench_recorded.json"

Sample = dict[str, Any]


@pytest.fixture
def document() -> dict[str, Any]:
    """Return what a run has left."""
    return bench.read(RECORDED)


def target(samples: list[Sample], name: str) -> Target:
    """Return a target by its name."""
    found = {each.name: each for each in targets_of(results_of(samples), samples, {})}
    return found[name]


def work(what: str, engine: str, cpu_us: float, mib: int = 64, run: str = "run") -> Sample:
    """Return a sample of a thousand pages that took *cpu_us* each, beside polls of 5 ms."""
    return {
        "what": what, "engine": engine, "mib": mib, "procs": 8, "pages": 1000, "run": run,
        "cpu_ns": int(cpu_us * 1e6) + 5_000_000, "polls_cpu_ns": 5_000_000, "scanned_pages": 1010,
    }  # fmt: skip


def floor(step: str, us: float, run: str = "run") -> Sample:
    """Return a sample of the floor."""
    return {"what": "floor", "step": step, "run": run, "steps_per_sample": 64,
            "median_ns": int(us * 64e3)}  # fmt: skip


def floors(run: str = "run", hash_us: float = 1.0) -> list[Sample]:
    """Return all of the floor: as much for xxh64 as for the engine's hash, if not more."""
    took = {"hash": hash_us, "xxh64": 1.0, "memcmp": 0.5, "pte": 0.25, "follow": 0.1}
    return [floor(step, us, run) for step, us in took.items()]


def test_a_page_costs_the_cpu_time_less_that_of_polling() -> None:
    samples = [work("merged", "pksm-full", cost) for cost in (2.0, 9.0, 3.0)]
    found = results_of(samples).last("merged", "pksm-full")
    assert found is not None and found.unit == "µs"
    assert found.stat == Stat(median=3.0, low=2.0, high=9.0, runs=3)


def test_ratios_are_of_medians_at_the_largest_size() -> None:
    samples = [
        *(work("merged", "pksm-full", cost) for cost in (2.0, 2.2, 8.0)),
        # A run that has ended early: of KSM there is nothing to compare it with.
        work("merged", "pksm-full", 2.2, mib=256),
        *(work("merged", "ksm-full", cost) for cost in (10.0, 11.0, 12.0)),
        work("merged", "pksm-full", 99.0, mib=16), work("merged", "ksm-full", 1.0, mib=16),
    ]  # fmt: skip
    assert target(samples, "merged-to-ksm").value == pytest.approx(2.2 / 11.0)
    assert target(samples, "merged-to-ksm").met is True
    assert target(samples, "merged-to-ksm").note == "64 MiB, 0.17 .. 0.80"


def test_what_a_page_costs_is_compared_with_the_floor_of_its_own_run() -> None:
    """A host that is slower in the second run is so for both."""
    samples = [
        *floors("one"), work("merged", "pksm-full", 3.5, run="one"),
        *(floor(each["step"], 2 * each["median_ns"] / 64e3, "two") for each in floors()),
        work("merged", "pksm-full", 7.0, run="two"),
        *floors("three"), work("unmatched", "pksm-full", 1.8, run="three"),
        work("merged", "ksm-full", 9.0, run="of KSM, which has no floor"),
    ]  # fmt: skip
    found = target(samples, "merged-to-floor")
    assert found.value == pytest.approx(2) and found.met is False
    assert found.note == "64 MiB, 2 .. 2, hash, comparison, PTE"
    missed = target(samples, "unmatched-to-floor")
    assert missed.value == pytest.approx(1.8) and missed.met is False
    assert missed.note == "64 MiB, 1.80 .. 1.80, 18× of a hash that is foreseen"
    samples.append(work("watched", "pksm-full", 1.3, run="three"))
    assert target(samples, "watched-to-floor").value == pytest.approx(3.1)


def test_an_engine_with_a_slower_hash_has_no_higher_floor() -> None:
    """It is slower in the floor as well: xxh64 is not."""
    sound = [*floors(hash_us=0.8), work("unmatched", "pksm-full", 1.0)]
    slow = [*floors(hash_us=6.4), work("unmatched", "pksm-full", 6.6)]
    assert target(sound, "unmatched-to-floor").value == pytest.approx(1.0 / 0.8)
    assert target(sound, "unmatched-to-floor").met is True
    each = target(slow, "unmatched-to-floor")
    assert each.value == pytest.approx(6.6) and each.met is False
    assert results_of(slow).value("floor hash", "") == pytest.approx(6.4)


def test_results_are_paired_at_the_largest_size_that_both_have() -> None:
    samples = [work("merged", "pksm-full", 2.0, mib) for mib in (16, 64, 1024)]
    samples += [work("merged", "ksm-full", 8.0, mib) for mib in (16, 64, 256)]
    both = results_of(samples).pair("merged", "pksm-full", "ksm-full")
    assert both is not None and [each.mib for each in both] == [64, 64]
    assert results_of(samples[:3]).pair("merged", "pksm-full", "ksm-full") is None


def test_a_write_to_a_watched_page_costs_what_it_costs_more_than_another() -> None:
    sample = {"what": "first write", "engine": "pksm-full", "mib": 64, "procs": 8, "pages": 1000,
              "watched_cpu_ns": 900_000, "plain_cpu_ns": 400_000}  # fmt: skip
    assert results_of([sample]).value("first write", "pksm-full") == pytest.approx(500)


def converged(engine: str, ms: int, cpu_ms: int, mib: int = 64) -> Sample:
    """Return a sample of that duration and CPU time, beside 1 ms of filling and 2 of polls."""
    return {
        "what": "convergence", "engine": engine, "mib": mib, "procs": 8, "pages": 1000,
        "ns": ms * 10**6, "cpu_ns": (cpu_ms + 3) * 10**6, "fill_cpu_ns": 10**6,
        "polls_cpu_ns": 2 * 10**6, "polls": 9,
    }  # fmt: skip


def test_convergence_is_compared_with_the_best_setting_of_ksm_by_name() -> None:
    """Whichever that is, in time and in CPU time; at the size at which PKSM is worst."""
    samples = [
        converged("pksm", 300, 60), converged("ksm-full", 240, 120),
        converged("ksm-advisor", 150, 80), converged("ksm", 9000, 30),
        converged("pksm", 400, 100, mib=256), converged("ksm-full", 400, 200, mib=256),
        converged("ksm", 36000, 90, mib=256), converged("ksm-advisor", 1, 1, mib=16),
    ]  # fmt: skip
    time, cpu = (target(samples, name) for name in ("convergence-to-best", "convergence-cpu"))
    assert time.value == pytest.approx(2)
    assert time.note == "KSM, advisor; 64 MiB, one run; of 2 sizes 1 .. 2"
    assert cpu.value == pytest.approx(2)
    assert cpu.note == "KSM, defaults; 64 MiB, one run; of 2 sizes 1.11 .. 2"
    defaults = target(samples, "convergence-to-ksm")
    assert defaults.value == pytest.approx(30) and defaults.met is False
    assert defaults.note == "64 MiB, one run; of 2 sizes 30 .. 90"


def idle(window: str, wakeups: int, mib: int = 32, engine: str = "pksm") -> Sample:
    """Return a sample of a minute in which nothing changes."""
    return {"what": "idle", "engine": engine, "mib": mib, "procs": 8, "seconds": 60,
            "window": window, "running": True, "cpu_ns": 1, "cpu_seconds": 60,
            "wakeups": wakeups}  # fmt: skip


def test_one_wake_up_in_one_run_of_one_size_misses_the_target() -> None:
    """Both in the minute after all is merged, and later."""
    samples = [idle("last", 0, mib) for mib in (64, 256, 1024) for _ in range(3)]
    assert target(samples, "idle").met is True and target(samples, "idle-first").value is None
    samples += [idle("last", 2, 256), idle("first", 0, 64), idle("first", 4, 64)]
    assert target(samples, "idle").value == 2 and target(samples, "idle").met is False
    assert target(samples, "idle").note == "256 MiB; the most of 10 runs"
    assert target(samples, "idle-first").value == 4


def test_what_every_page_changes_costs_is_less_that_without_the_engine() -> None:
    sample = {"what": "volatile", "engine": "pksm", "mib": 16, "procs": 4, "seconds": 60,
              "pages": 4096, "cpu_ns": 900_000_000, "stopped_cpu_ns": 300_000_000,
              "scanned_pages": 8192}  # fmt: skip
    assert target([sample], "volatile").value == pytest.approx(1)
    assert target([sample], "volatile").note == "16 MiB of 4; the most of 1 run"
    assert results_of([sample]).value("volatile, per GiB", "pksm") == pytest.approx(64)
    assert results_of([sample]).value("reads per volatile page", "pksm") == 2


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    for each in targets_of(Results([]), [], {}):
        assert each.value is None and each.met is None and each.text == "not measured"


def test_a_limit_is_met_when_it_is_reached() -> None:
    assert Target("a", "a", 1.0, 1.0).met and Target("a", "a", 1.0, 1.0, at_least=True).met
    assert not Target("a", "a", 1.01, 1.0).met
    assert not Target("a", "a", 0.99, 1.0, at_least=True).met
    assert not Target("a", "a", 1.0, 1.0, at_least=True, strict=True).met
    assert Target("a", "a", 1.01, 1.0, at_least=True, strict=True).met
    assert Target("a", "a", 1.0, 1.0, at_least=True, strict=True).bound == "> 1"


def test_what_is_above_its_limit_does_not_look_as_if_it_were_not() -> None:
    each = Target("a", "a", 32.0213, 32, "B")
    assert each.met is False and each.text == "32.0213 B"
    assert Target("a", "a", 32.0, 32, "B").text == "32 B"
    assert Target("a", "a", 40.123, 32, "B").text == "40.1 B"


def saved(engine: str, *pages: int) -> Sample:
    """Return a sample of a mix of which 100 pages can be saved at rest, and 200 at its peak."""
    return {
        "what": "savings", "engine": engine, "mib": 1, "cpu_ns": 1, "steady": True, "samples":
        [[when, number] for when, number in enumerate(pages)],
        "possible_at_rest_pages": 100, "possible_at_peak_pages": 200,
    }  # fmt: skip


def test_more_saved_than_there_is_to_save_is_shown_as_an_error() -> None:
    good = [saved("pksm", 0, 201, 102), saved("ksm", 0, 150, 90)]
    assert target(good, "saved-possible").met is True
    for wrong in (saved("ksm-full", 0, 260, 100), saved("ksm-full", 0, 150, 130)):
        each = target([*good, wrong], "saved-possible")
        assert each.met is False and each.value == pytest.approx(1.3)
        assert each.note == "KSM, full speed"


def test_savings_are_compared_with_both_settings_of_ksm() -> None:
    """At the peak as much is not enough; and who had not come to rest is said."""
    samples = [saved("pksm", 0, 150, 90), saved("ksm", 0, 120, 90), saved("ksm-full", 0, 150, 100)]
    samples[2]["steady"] = False
    values = {each.name: (each.value, each.met) for each in targets_of(results_of(samples), samples, {})}
    assert values["saved-rest"] == (1, True) and values["saved-peak"] == (1.25, True)
    assert values["saved-rest-best"] == (0.9, False) and values["saved-peak-best"] == (1, False)
    assert target(samples, "saved-rest-best").note == "not at rest yet: KSM, full speed"
    assert target(samples, "saved-rest").note == ""


def of_program(name: str, engine: str, *pages: int) -> Sample:
    """Return a sample of what is saved of a program."""
    return {"what": "programs", "engine": engine, "program": name, "cpu_ns": 1,
            "samples": [[when, number] for when, number in enumerate(pages)]}  # fmt: skip


def test_no_program_is_left_out_of_those_that_count() -> None:
    """Neither one that was not measured, nor one of which KSM has saved nothing."""
    names = list(PROGRAMS)
    samples = [of_program(name, engine, 0, 200, 100) for name in names for engine in ("pksm", "ksm")]
    each = target(samples, "programs-rest")
    assert each.value == 1 and each.met is True
    assert target(samples, "programs-peak").met is False
    absent = target(samples[:-1], "programs-rest")
    assert absent.value is None and absent.note.endswith(f"not measured: {names[-1]}")
    nothing = [*samples[:-1], of_program(names[-1], "ksm", 0, 0, 0)]
    assert target(nothing, "programs-rest").note.endswith(f"KSM has saved nothing of {names[-1]}")
    lost = [*samples[:-2], of_program(names[-1], "pksm", 0, 0, -5), nothing[-1]]
    assert target(lost, "programs-rest").value == 0 and target(lost, "programs-rest").met is False


def test_what_is_not_above_nothing_has_no_part_in_a_slope() -> None:
    samples = [work("merged", "pksm-full", 2.0, mib) for mib in (64, 256)]
    samples.append({**work("merged", "pksm-full", 2.0, 16), "cpu_ns": 0})
    (each,) = slopes_of(results_of(samples))
    assert (each.first, each.last, each.by) == (64, 256, "MiB")
    assert each.exponent == pytest.approx(0)
    assert "64 to 256 MiB" in bench_table.slopes_table([each])


def test_slopes_are_of_the_logarithms() -> None:
    assert slope([(16, 5.0), (64, 5.0), (4096, 5.0)]) == pytest.approx(0)
    assert slope([(1, 3.0), (10, 30.0), (100, 300.0)]) == pytest.approx(1)
    assert slope([(1, 2.0), (4, 4.0)]) == pytest.approx(0.5)
    assert slope([(16, 5.0)]) is None
    assert slope([(16, 5.0), (64, -1.0)]) is None


def test_costs_that_grow_with_memory_are_not_flat() -> None:
    flat = [work("merged", "pksm-full", 2.0 + mib / 4096, mib) for mib in (16, 64, 256)]
    assert target(flat, "flat-merged").met is True
    steep = [*flat, work("merged", "pksm-full", 2.5, 1024)]
    each = target(steep, "flat-merged")
    assert each.met is False and each.value == pytest.approx(100 * (2.5 / (2 + 16 / 4096) - 1))


def path(variant: str, boot: int, populate_ns: int, turn: int = 0) -> Sample:
    """Return a turn of mmcost in which two pages were populated, and all else took 100 ns.

    Of each page; and 50 ns whatever is done.
    """
    steps = {step: [230, 250, 950] for step in ("unmap", "fork", "cow", "exit")}
    return {"what": "paths", "variant": variant, "boot": boot, "turn": turn, "pages": 2,
            "nothing": [50], "populate": [50 + 2 * populate_ns], **steps}  # fmt: skip


def test_overhead_is_of_each_turn_without_what_an_order_takes() -> None:
    samples = []
    # The host is twice as slow at the second boot, which changes no ratio.
    for boot, slow in enumerate((1, 2, 1)):
        samples += [path("none-a", boot, 100 * slow), path("none-b", boot, 100 * slow),
                    path("pksm-on", boot, (105 + boot) * slow)]  # fmt: skip
    found = {(each.step, each.variant): each for each in overheads(samples)}
    each = found["populate", "pksm-on"]
    assert [each.share, each.low, each.high] == pytest.approx([0.06, 0.05, 0.07])
    assert found["exit", "pksm-on"].share == pytest.approx(0)
    assert results_of(samples).value("exit", "pksm-on") == pytest.approx(100)
    said = target(samples, "populate-pksm-on")
    assert said.limit == 2 and said.value == pytest.approx(6) and said.met is False
    assert said.note == "+5.0 .. +7.0 %; the same kernel twice: 0.0 %"
    assert target(samples, "exit-pksm-on").met is True


def test_turns_of_one_boot_are_not_taken_for_many_boots() -> None:
    """What a boot has for its own, all its turns have."""
    samples = []
    for boot, cost in enumerate((101, 103, 120)):
        for turn in range(9):
            samples += [path("none-a", boot, 100, turn), path("none-b", boot, 100, turn),
                        path("pksm-on", boot, cost, turn)]  # fmt: skip
    (each,) = [each for each in overheads(samples) if each.step == "populate"]
    assert [each.share, each.low, each.high] == pytest.approx([0.03, 0.01, 0.20])


def test_guests_of_the_same_kernel_that_differ_make_it_less_sure() -> None:
    """Whichever of the two is the slower one at which boot."""
    samples = []
    for boot in range(5):
        a, b = (98, 102) if boot % 2 else (102, 98)
        samples += [path("none-a", boot, a), path("none-b", boot, b),
                    path("pksm-off", boot, 101), path("pksm-on", boot, 110)]  # fmt: skip
    found = {(each.step, each.variant): each for each in overheads(samples)}
    each = found["populate", "pksm-off"]
    assert each.apart == pytest.approx(0.02)
    assert [each.low, each.high] == pytest.approx([-0.01, 0.03])
    assert target(samples, "populate-pksm-off").met is None
    assert target(samples, "populate-pksm-on").met is False


def test_instructions_are_shown_where_the_host_counts_them() -> None:
    sample = path("pksm-on", 0, 100)
    assert not results_of([sample]).find("populate, instructions")
    sample["instructions"] = {step: 500 for step in ("unmap", "fork", "cow", "exit", "populate")}
    sample["instructions"]["nothing"] = 100
    assert results_of([sample]).value("populate, instructions", "pksm-on") == pytest.approx(200)


def test_what_a_process_of_the_host_does_is_counted() -> None:
    """By an event that every kernel has; whether there are more depends on the host."""
    with bench_instructions.counting(
        threading.get_native_id(), bench_instructions.SOFTWARE_TASK_CLOCK
    ) as counter:
        if counter is None:
            pytest.skip("this host does not let its users count events")
        before = counter.read()
        began = time.thread_time_ns()
        while time.thread_time_ns() < began + 5_000_000:
            pass
        assert counter.read() - before > 4_000_000
    with bench_instructions.counting(threading.get_native_id(), (12345, 0)) as counter:
        assert counter is None


@pytest.mark.parametrize(
    ("number", "outer"), [(1, 0), (3, 0), (5, 0), (7, 0), (8, 1), (15, 3), (25, 7)]
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(number: int, outer: int) -> None:
    values = [float(value) for value in reversed(range(number))]
    assert interval(values) == (outer, number - 1 - outer)
    chance = 2 * sum(math.comb(number, each) for each in range(outer + 1)) / 2**number
    assert chance <= 0.1 or number < 5


def test_what_is_too_close_to_its_limit_is_neither_met_nor_missed() -> None:
    assert Target("a", "a", 9.0, 2.0, low=3.0, high=15.0).met is False
    hidden = Target("a", "a", 1.0, 2.0, low=-5.0, high=7.0)
    assert hidden.met is None and bench_table.verdict(hidden) == "close"
    assert "1 too close to say" in bench_table.summary([hidden])
    assert "\033" not in bench_table.targets_table([hidden], colour=True)
    assert Target("a", "a", 1.0, 2.0, low=0.0, high=2.0).met is True


def test_what_is_above_its_limit_by_less_than_is_sure_has_a_word_and_a_colour() -> None:
    above = Target("a", "a", 2.5, 2.0, low=1.5, high=3.5)
    assert above.met is None and above.facts()["above"] is True
    assert bench_table.verdict(above) == "ABOVE?"
    assert bench_table.targets_table([above], colour=True).splitlines()[1].startswith("\033[33m")
    assert "1 above the limit by less than is sure" in bench_table.summary([above])
    assert "close" not in bench_table.summary([above])


def test_recorded_data_give_these_results(document: dict[str, Any]) -> None:
    """Worked out by hand from the numbers in the file."""
    samples = document["samples"]
    results = results_of(samples)
    ours = sorted([(24033895 - 1007340) / 14336, (19948711 - 1190412) / 14336,
                   (20363099 - 781299) / 14336])  # fmt: skip
    theirs = sorted([(46731035 - 2303076) / 14336, (68713241 - 3680252) / 14336,
                     (47718526 - 2924141) / 14336])  # fmt: skip
    merged = results.last("merged", "pksm-full")
    assert merged is not None
    assert [1000 * x for x in (merged.stat.low, merged.stat.median, merged.stat.high)] == (
        pytest.approx(ours)
    )
    assert target(samples, "merged-to-ksm").value == pytest.approx(ours[1] / theirs[1])
    run = [s for s in samples if s.get("run") == "merged, pksm-full, 64 MiB, 8 processes, turn 0"]
    (one,) = results_of(run).find("merged, to the floor")
    least_ns = (55552 + 61440 + 256) / 64
    assert one.stat.median == pytest.approx((24033895 - 1007340) / 14336 / least_ns)
    assert results.value("convergence", "pksm-full") is None
    converged = results.find("convergence", "pksm")[0]
    assert converged.stat.median == pytest.approx(420.007424)
    assert target(samples, "convergence-to-ksm").value == pytest.approx(9952656128 / 420007424)
    assert target(samples, "convergence-to-best").value == pytest.approx(420007424 / 53114880)
    used = results.find("convergence CPU", "pksm")[0]
    assert used.stat.median == pytest.approx((40112031 - 21570310 - 4278747) / 1e6)
    assert target(samples, "idle-first").value == 2 and target(samples, "idle").value == 0
    assert results.value("idle", "ksm") == pytest.approx((307386704 - 2771778) / 1e7 / 460)
    assert results.value("volatile", "pksm") == pytest.approx((807037877 - 144755483) / 1e7 / 60)
    assert results.value("rmap walk, per mapping", "pksm-full") == pytest.approx(30.4384)
    saved = next(s for s in samples if s["what"] == "savings" and s["engine"] == "pksm")
    assert results.value("saved at peak", "pksm") == max(n for _, n in saved["samples"]) / 256


def test_metadata_is_all_pages_of_a_slab_over_the_pages_that_have_one() -> None:
    memory = {"slab_pksm_sharer": {"objects": 1001, "bytes": 32, "page_bytes": 8 * 4096},
              "slab_pksm_stable_node": {"objects": 85, "bytes": 48, "page_bytes": 4096}}  # fmt: skip
    counted = {"pages_sharing": 1000, "pages_shared": 100}
    sample = {**work("merged", "pksm-full", 1.0), "memory": memory, "counters": counted}
    absorbed = target([sample], "bytes-absorbed")
    assert absorbed.value == pytest.approx(32.768) and absorbed.met is False
    assert target([sample], "bytes-shared").value == pytest.approx(40.96)
    assert target([sample], "bytes-tracked").value is None


def test_metadata_of_all_memory_is_divided_by_the_pages_that_are_tracked() -> None:
    memory = {"page_ext_bytes_per_page": 8, "spanned_pages": 1000, "index_bytes": 2800}
    counted = {"pages_new": 100, "pages_unshared": 700, "pages_volatile": 60, "pages_shared": 40}
    sample = {"what": "metadata", "engine": "pksm-full", "mib": 512, "procs": 8,
              "memory": memory, "counters": counted}  # fmt: skip
    each = target([sample], "bytes-tracked")
    assert each.value == pytest.approx(12) and each.met is True
    assert each.note == "512 MiB; 90 % of the guest's memory is tracked"
    assert results_of([sample]).value("bytes per page of memory", "pksm-full") == pytest.approx(10.8)
    # A kernel that does not say it.
    assert not results_of([{**sample, "memory": {"slab_pksm_sharer": {}}}]).all


def test_a_slower_engine_is_called_slower(document: dict[str, Any]) -> None:
    """Also when its hash is, which is in the floor; and what has only spread is not."""
    slow = copy.deepcopy(document["samples"])
    for sample in slow:
        if sample["what"] == "unmatched" and sample["engine"] == "pksm-full":
            sample["cpu_ns"] *= 8
        if sample["what"] == "floor" and sample["step"] in ("hash", "follow"):
            sample["median_ns"] *= 8
    now, before = results_of(slow), results_of(document["samples"])
    text = bench_table.changes_table(now, before, colour=False)
    assert [line for line in text.splitlines() if "CPU per unmatched page" in line and "slower" in line]
    assert "faster" in bench_table.changes_table(before, now, colour=False)
    assert "nothing has changed" in bench_table.changes_table(now, now, colour=False)
    assert target(slow, "unmatched-to-floor").met is False


def test_a_change_of_which_there_was_one_run_is_not_sure() -> None:
    once, often = ([work("merged", "pksm-full", cost) for cost in costs] for costs in ((2.0,), (9.0, 9.1)))
    text = bench_table.changes_table(results_of(often), results_of(once), colour=True)
    assert "slower, perhaps: one run" in text and "\033" not in text


@pytest.mark.parametrize(
    ("what", "unit", "before", "now", "said", "good"),
    [
        ("idle wake-ups", "/min", 0.0, 3.0, "0 -> 3 /min  more", False),
        ("idle wake-ups", "/min", 3.0, 0.0, "3 -> 0 /min  less", True),
        ("idle", "% of a CPU", -0.5, 0.5, "-0.50 -> 0.50 % of a CPU  more", False),
        ("idle", "% of a CPU", -1.0, -2.0, "-1 -> -2 % of a CPU  less", True),
        ("bytes per tracked page", "B", 8.0, 12.0, "8 -> 12 B  1.50 ×  more", False),
        ("reads per unmatched page", "", 1.0, 2.0, "1 -> 2  2.00 ×  more", False),
        ("saved at rest", "MiB", 20.0, 10.0, "20 -> 10 MiB  0.50 ×  less", False),
        ("merged", "µs", 4.0, 2.0, "4 -> 2 µs  0.50 ×  faster", True),
        ("merged", "µs", 4.0, 4.1, "", True),
        ("idle", "% of a CPU", -1.0, -1.02, "", True),
    ],
)
def test_a_change_is_told_by_its_own_word(
    what: str, unit: str, before: float, now: float, said: str, good: bool
) -> None:
    """Also where there was nothing before, or a difference that was below it."""
    old, new = (
        Results([Result(what, "pksm", unit, Stat.of([value] * 2))]) for value in (before, now)
    )
    text = bench_table.changes_table(new, old, colour=True)
    if not said:
        assert "nothing has changed" in text
        return
    assert said in text
    assert text.startswith("\033[32m" if good else "\033[31m")


def test_missed_targets_are_red_where_there_are_colours(document: dict[str, Any]) -> None:
    found = targets_of(results_of(document["samples"]), document["samples"], {})
    plain = bench_table.targets_table(found, colour=False)
    assert "\033" not in plain and "MISSED" in plain
    for line in bench_table.targets_table(found, colour=True).splitlines():
        assert line.startswith("\033[31m") == ("MISSED" in line)
        assert line.startswith("\033[32m") == (" met" in line)
        assert line.startswith("\033[33m") == ("ABOVE?" in line)
    met, missed = plain.count(" met"), plain.count("MISSED")
    assert f"{met} targets met, {missed} missed" in bench_table.summary(found)


def test_the_page_has_everything_inside_of_it(document: dict[str, Any]) -> None:
    results = results_of(document["samples"])
    found = targets_of(results, document["samples"], harness_of(document["samples"]))
    svg = '<svg><path id="a"/><use xlink:href="#a"/></svg>'
    more = overheads(document["samples"])
    text = bench_html.page(
        document, results, found, [], more, [("one", svg), ("two", svg)], ["wrong"]
    )
    assert not re.search(r"(src|href)=['\"](?!#)", text)
    for each in found:
        assert escape(each.title) in text
    assert text.count("class='missed'") == sum(each.met is False for each in found)
    assert text.count("class='above'") == sum(each.above for each in found)
    assert "the same kernel twice" in text and "<p class='warning'>wrong</p>" in text
    # Two plots with the same ids do not take each other's parts.
    assert 'id="one-a"' in text and 'xlink:href="#two-a"' in text


def test_the_report_is_made_again_from_the_file(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.report(document, tmp_path, document, Term(quiet=True))
    said = capsys.readouterr().out
    assert "nothing has changed" in said and str(tmp_path / "index.html") in said
    again = json.loads((tmp_path / "bench.json").read_text())
    assert again["samples"] == document["samples"]
    assert {each["name"] for each in again["targets"]} >= {"merged-to-ksm", "idle", "saved-peak"}
    assert all(each["apart"] is not None for each in again["overheads"])
    assert "the same kernel twice" in said
    assert {path.name for path in tmp_path.glob("*.png")} >= {"work.png", "savings.png"}
    assert (tmp_path / "index.html").read_text().count("<svg") >= 4


def test_a_plot_that_cannot_be_drawn_does_not_keep_the_rest_from_the_report(
    document: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("nothing to draw")

    monkeypatch.setattr(bench_plots, "PLOTS", (("bad", broken), *bench_plots.PLOTS[:2]))
    bench.report(document, tmp_path, None, Term(quiet=True))
    said = "no plot bad: ValueError: nothing to draw"
    assert said in capsys.readouterr().out
    text = (tmp_path / "index.html").read_text()
    assert said in text and text.count("<svg") == 2
    assert (tmp_path / "work.png").is_file() and not (tmp_path / "bad.png").exists()


def test_what_has_too_few_pages_to_be_timed_is_left_out() -> None:
    sample = {"what": "cow", "engine": "pksm-full", "mib": 1, "procs": 8, "pages_per_call": 512,
              "ns": []}  # fmt: skip
    assert not results_of([sample]).find("break")


def test_the_trace_says_when_a_task_ran_and_was_woken() -> None:
    trace = """\
            init-1  [000] .....  10.000000: tracing_mark_write: begin
     ksoftirqd/0-9  [000] d.s..  11.500000: sched_waking: comm=ksmd pid=7 prio=125 target_cpu=000
          <idle>-0  [000] d....  11.600000: sched_switch: prev_comm=swapper prev_pid=0 \
prev_prio=120 prev_state=R ==> next_comm=ksmd next_pid=7 next_prio=125
            ksmd-7  [000] d....  11.600250: sched_switch: prev_comm=ksmd prev_pid=7 \
prev_prio=125 prev_state=S ==> next_comm=swapper next_pid=0 next_prio=120
"""
    assert bench_trace.runs_of(trace, "ksmd") == [250_000]
    assert bench_trace.wakings_of(trace, "ksmd") == [pytest.approx(1.5)]
    assert bench_trace.wakings_of(trace, "ksmd", 11.25) == [pytest.approx(0.25)]
    assert bench_trace.wakings_of(trace, "pksmd") == []
    with pytest.raises(BenchError, match="no beginning"):
        bench_trace.wakings_of("", "ksmd")


def test_numbers_have_three_digits_that_matter() -> None:
    assert [number(x) for x in (0, 5, 0.25, 12.34, 123.4, 1.005)] == (
        ["0", "5", "0.25", "12.3", "123", "1.00"]
    )


def at_once(
    machine: str, engine: str, cpus: int, page_ns: int, boot: int = 0, turn: int = 0
) -> Sample:
    """Return a sample in which 1000 pages have cost *page_ns* each, on so many CPUs at once."""
    return {"what": "contention", "machine": machine, "engine": engine, "procs": cpus,
            "boot": boot, "turn": turn, "pages": 1000, "usecs": page_ns // cpus}  # fmt: skip


def test_contention_is_what_a_page_costs_the_cpu_that_has_it() -> None:
    samples = [at_once("UML", "pksm-on", 1, 800), at_once("UML", "pksm-on", 2, 900),
               at_once("QEMU", "pksm-on", 1, 5000), at_once("UML", "pksm-off", 1, 780)]  # fmt: skip
    found = results_of(samples).find("fault and free, UML", "pksm-on")
    assert [(each.procs, each.stat.median) for each in found] == [(1, 800), (2, 900)]
    (other,) = results_of(samples).find("fault and free, QEMU")
    assert other.stat.median == 5000
    assert "2 CPUs" in bench_table.results_table(results_of(samples))


def test_turns_of_guests_that_were_booted_once_are_one_boot() -> None:
    samples = []
    for boot, costs in enumerate(((1000, 1010, 1090), (1040, 1040, 1040), (1100, 900, 1060))):
        for turn, cost in enumerate(costs):
            samples += [at_once("UML", "pksm-off", 2, 1000, boot, turn),
                        at_once("UML", "pksm-on", 2, cost, boot, turn)]  # fmt: skip
    (each,) = contended(samples)
    assert [each.share, each.low, each.high] == pytest.approx([0.04, 0.01, 0.06])
    assert each.apart is None and target(samples, "contention-UML, 2 CPUs").met is None


@pytest.mark.parametrize(
    ("host", "counts"), [(1, [1, 2]), (2, [1, 2]), (6, [1, 2, 4]), (64, [1, 2, 4, 8])]
)
def test_no_more_cpus_are_at_work_than_the_host_has(host: int, counts: list[int]) -> None:
    """But for one that has a single CPU, where two take turns."""
    assert cpu_counts(host) == counts

# SPDX-License-Identifier: GPL-2.0-only
"""The arithmetic of the bench, and its report, from raw data that was recorded or made up."""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import sys
import threading
import time
from collections import Counter
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux_um import bench, bench_harness, bench_html, bench_instructions  # noqa: E402
from linux_um import bench_lab  # noqa: E402
from linux_um import bench_run, bench_table, bench_trace  # noqa: E402
from linux_um.bench_contention import cpu_counts  # noqa: E402
from linux_um.bench_facts import Result, Results, Stat, harness_of, interval  # noqa: E402
from linux_um.bench_facts import overheads, results_of, slope, slopes_of  # noqa: E402
from linux_um.bench_lab import BenchError  # noqa: E402
from linux_um.bench_targets import Target, number, targets_of  # noqa: E402
from linux_um.errors import LinuxUmError, UsageError  # noqa: E402
from linux_um.paths import repo_root  # noqa: E402
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


def work(what: str, engine: str, cpu_us: float, mib: int = 64) -> Sample:
    """Return a sample of a thousand pages that took *cpu_us* each, beside polls of 5 ms."""
    return {
        "what": what, "engine": engine, "mib": mib, "procs": 8, "pages": 1000,
        "cpu_ns": int(cpu_us * 1e6) + 5_000_000, "polls_cpu_ns": 5_000_000, "scanned_pages": 1010,
    }  # fmt: skip


def floor(step: str, us: float) -> Sample:
    """Return a sample of the floor."""
    return {"what": "floor", "step": step, "steps_per_sample": 64, "median_ns": int(us * 64e3)}


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
        work("unmatched", "pksm-full", 1.8),
        floor("hash", 1.0), floor("memcmp", 0.5), floor("pte", 0.25), floor("follow", 0.1),
    ]  # fmt: skip
    assert target(samples, "merged-to-ksm").value == pytest.approx(2.2 / 11.0)
    assert target(samples, "merged-to-ksm").met is True
    assert target(samples, "merged-to-ksm").note == "64 MiB, 0.17 .. 0.80"
    assert target(samples, "merged-to-floor").value == pytest.approx(2.2 / 1.75)
    missed = target(samples, "unmatched-to-floor")
    assert missed.value == pytest.approx(1.8) and missed.met is False
    assert missed.note == "18× of a hash that is foreseen"
    samples.append(work("watched", "pksm-full", 1.3))
    assert target(samples, "watched-to-floor").value == pytest.approx(3.1)


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
    """Whichever that is, in time and in CPU time; at the size of PKSM's own result."""
    samples = [
        converged("pksm", 300, 60), converged("ksm-full", 240, 120),
        converged("ksm-advisor", 150, 80), converged("ksm", 9000, 30),
        converged("ksm-advisor", 1, 1, mib=16),
    ]  # fmt: skip
    time, cpu = (target(samples, name) for name in ("convergence-to-best", "convergence-cpu"))
    assert time.value == pytest.approx(2) and time.note == "KSM, advisor; 64 MiB"
    assert cpu.value == pytest.approx(2) and cpu.note == "KSM, defaults; 64 MiB"
    assert target(samples, "convergence-to-ksm").value == pytest.approx(30)


def test_the_advisor_is_measured_as_often_as_full_speed() -> None:
    lab = bench_lab.Lab("6.12", Term(quiet=True))
    titles = [title for title, _ in bench_run.tasks(bench_run.FULL, lab, ("convergence",), print)]
    often = Counter(title.partition(":")[0] for title in titles)
    assert often["KSM, advisor"] == often["KSM, full speed"] > often["KSM, defaults"]


@pytest.mark.parametrize("plan", [bench_run.QUICK, bench_run.FULL])
def test_no_two_measurements_have_the_same_title(plan: bench_run.Plan) -> None:
    """A run that is resumed knows by it what was made."""
    todo = bench_run.tasks(plan, bench_lab.Lab("6.12", Term(quiet=True)), bench_run.PARTS, print)
    titles = [title for title, _ in todo]
    assert len(set(titles)) == len(titles) > 30


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    for each in targets_of(Results([]), [], {}):
        assert each.value is None and each.met is None and each.text == "not measured"


def test_a_limit_is_met_when_it_is_reached() -> None:
    assert Target("a", "a", 1.0, 1.0).met and Target("a", "a", 1.0, 1.0, at_least=True).met
    assert not Target("a", "a", 1.01, 1.0).met
    assert not Target("a", "a", 0.99, 1.0, at_least=True).met


def saved(engine: str, *pages: int) -> Sample:
    """Return a sample of a mix of which 100 pages can be saved at rest, and 200 at its peak."""
    return {
        "what": "savings", "engine": engine, "mib": 1, "cpu_ns": 1, "samples":
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
    assert said.note == "+5.0 .. +7.0 %" and target(samples, "exit-pksm-on").met is True


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
    assert Target("a", "a", 2.5, 2.0, low=1.5, high=3.5).met is None
    assert Target("a", "a", 1.0, 2.0, low=0.0, high=2.0).met is True


def test_recorded_data_give_these_results(document: dict[str, Any]) -> None:
    """Worked out by hand from the numbers in the file."""
    samples = document["samples"]
    results = results_of(samples)
    ours = sorted([(79095895 - 4242150) / 14336, (44727550 - 1354950) / 14336,
                   (48339747 - 1983685) / 14336])  # fmt: skip
    theirs = sorted([(116159812 - 7406869) / 14336, (186562033 - 13792387) / 14336,
                     (132633614 - 7489748) / 14336])  # fmt: skip
    merged = results.last("merged", "pksm-full")
    assert merged is not None
    assert [1000 * x for x in (merged.stat.low, merged.stat.median, merged.stat.high)] == (
        pytest.approx(ours)
    )
    assert target(samples, "merged-to-ksm").value == pytest.approx(ours[1] / theirs[1])
    assert results.value("floor hash", "") == pytest.approx(70400 / 64e3)
    assert results.value("convergence", "pksm") == pytest.approx(440.137472)
    assert target(samples, "convergence-to-ksm").value == pytest.approx(10237862400 / 440137472)
    assert results.value("convergence CPU", "pksm") == pytest.approx((91731859 - 22075673) / 1e6)
    assert results.value("idle wake-ups", "pksm") == 2
    assert results.value("idle", "ksm") == pytest.approx((130511209 - 5403989) / 1e7 / 150)
    assert results.value("volatile", "ksm") == pytest.approx(100 * 20359000 / 5003647365)
    assert results.value("rmap walk, per mapping", "pksm-full") == pytest.approx(36.2752)
    saved = next(s for s in samples if s["what"] == "savings" and s["engine"] == "pksm")
    assert results.value("saved at peak", "pksm") == max(n for _, n in saved["samples"]) / 256


def test_metadata_is_all_objects_of_a_slab_over_the_pages_that_have_one() -> None:
    memory = {"slab_pksm_sharer": {"objects": 1001, "bytes": 32},
              "slab_pksm_stable_node": {"objects": 110, "bytes": 48}}  # fmt: skip
    counted = {"pages_sharing": 1000, "pages_shared": 100}
    sample = {**work("merged", "pksm-full", 1.0), "memory": memory, "counters": counted}
    assert target([sample], "bytes-absorbed").value == 32
    assert target([sample], "bytes-absorbed").note == "32.03"
    assert target([sample], "bytes-shared").value == 53


def test_a_slower_engine_is_called_slower(document: dict[str, Any]) -> None:
    """And what is not slower by more than the runs differ is not."""
    slow = copy.deepcopy(document["samples"])
    for sample in slow:
        if sample["what"] == "unmatched" and sample["engine"] == "pksm-full":
            sample["cpu_ns"] *= 8
    now, before = results_of(slow), results_of(document["samples"])
    text = bench_table.changes_table(now, before, colour=False)
    assert [line for line in text.splitlines() if "slower" in line]
    assert all("PKSM, full speed" in line and "unmatched" in line for line in text.splitlines())
    assert "faster" in bench_table.changes_table(before, now, colour=False)
    assert "nothing has changed" in bench_table.changes_table(now, now, colour=False)
    assert target(slow, "unmatched-to-floor").met is False


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
        Results([Result(what, "pksm", unit, Stat.of([value]))]) for value in (before, now)
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
    met, missed = plain.count(" met"), plain.count("MISSED")
    assert f"{met} targets met, {missed} missed" in bench_table.summary(found)


def test_the_page_has_everything_inside_of_it(document: dict[str, Any]) -> None:
    results = results_of(document["samples"])
    found = targets_of(results, document["samples"], harness_of(document["samples"]))
    svg = '<svg><path id="a"/><use xlink:href="#a"/></svg>'
    text = bench_html.page(document, results, found, [], [("one", svg), ("two", svg)])
    assert not re.search(r"(src|href)=['\"](?!#)", text)
    for each in found:
        assert escape(each.title) in text
    assert text.count("class='missed'") == sum(each.met is False for each in found)
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
    assert {path.name for path in tmp_path.glob("*.png")} >= {"work.png", "savings.png"}
    assert (tmp_path / "index.html").read_text().count("<svg") >= 4


def words_of(output: Path, *options: str) -> argparse.Namespace:
    """Return what ``bench`` with *options* is called with, for a report in *output*."""
    parser = argparse.ArgumentParser()
    bench.add_parsers(parser.add_subparsers())
    words = ["bench", "--only", "work", "-o", str(output), "--arch", "um", *options]
    return parser.parse_args(words)


def measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any], *options: str
) -> tuple[int | None, Path]:
    """Run bench with measurements that end as *outcomes*; return its status, and its file."""

    def make(outcome: Any) -> list[Sample]:
        if isinstance(outcome, BaseException):
            raise outcome
        return [work("merged", "pksm-full", float(outcome))]

    todo = [(f"number {n}", partial(make, outcome)) for n, outcome in enumerate(outcomes)]
    monkeypatch.setattr(bench_run, "tasks", lambda *_: todo)
    monkeypatch.setattr(bench_run, "profiles_of", lambda _: ())
    output = tmp_path / "new" / "report"
    try:
        status = bench.bench_command(words_of(output, *options), Term(quiet=True))
        return status, output / "bench.json"
    except BenchError:
        return None, output / "bench.json"


def test_one_that_fails_does_not_keep_the_others_from_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said in the report, and by the status."""
    status, path_ = measured(tmp_path, monkeypatch, [2.0, 3.0, BenchError("broken"), 4.0])
    assert status is None
    document = bench.read(path_)
    assert len(document["samples"]) == 3 and document["left"] == 0
    assert document["failed"] == [["number 2", "broken"]]
    assert "PARTIAL: 1 of 4 measurements have failed: number 2" in capsys.readouterr().out
    assert "PARTIAL" in (path_.parent / "index.html").read_text()


def test_a_run_that_is_interrupted_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path_ = tmp_path / "new" / "report" / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, monkeypatch, [2.0, 3.0, KeyboardInterrupt(), 4.0])
    document = bench.read(path_)
    assert len(document["samples"]) == 2 and document["left"] == 2
    bench.report(document, path_.parent, None, Term(quiet=True))
    assert "PARTIAL: the run has ended early; 2 of 4" in capsys.readouterr().out
    assert "PARTIAL" in (path_.parent / "index.html").read_text()
    # What was made is not made again.
    never = AssertionError("made again")
    status, _ = measured(tmp_path, monkeypatch, [never, never, 5.0, 4.0], "--resume")
    assert status == 0 and "PARTIAL" not in capsys.readouterr().out
    assert len(bench.read(path_)["samples"]) == 4
    with pytest.raises(BenchError, match="has other mode"):
        bench.bench_command(words_of(path_.parent, "--resume", "--quick"), Term(quiet=True))


def test_where_nothing_works_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BenchError("broken")
    status, path_ = measured(tmp_path, monkeypatch, [broken, OSError("no such file"), broken, 4.0])
    assert status is None
    document = bench.read(path_)
    said = [said.partition(";")[0] for _, said in document["failed"]]
    assert said == ["broken", "no such file", "broken"]
    assert document["left"] == 1
    # But for that, what works is measured.
    outcomes = [2.0, broken, broken, broken, 4.0]
    status, path_ = measured(tmp_path, monkeypatch, outcomes)
    assert status is None and len(bench.read(path_)["samples"]) == 2


def test_a_run_to_its_end_is_not_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, path_ = measured(tmp_path, monkeypatch, [2.0, 3.0])
    assert status == 0 and "PARTIAL" not in capsys.readouterr().out
    document = bench.read(path_)
    assert document["left"] == 0 and len(document["samples"]) == 2
    assert [title for title, _ in document["steps"]] == ["number 0", "number 1"]
    assert "PARTIAL" not in (path_.parent / "index.html").read_text()


def test_a_place_for_the_report_is_made_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_text("a file")
    with pytest.raises(LinuxUmError, match="--output"):
        measured(tmp_path, monkeypatch, [AssertionError("measured")])


LAUNCHER = """\
#!/bin/sh
here=$(dirname "$0")
source=$here/pksm/mm/pksm/merge.c
gcc -fsyntax-only -D__maybe_unused= "$source" || exit 1
echo "$here $* $(grep -c edited "$source")" >> "$LOG"
[ "$1" != "$FAILS" ] || { echo said why; exit 3; }
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return what stands for the repository, with a launcher that writes down what it is told."""
    root = tmp_path / "repository"
    source = root / bench_harness.EDITED
    source.parent.mkdir(parents=True)
    source.write_text("int x;\n")
    (root / "linux-um").write_text(LAUNCHER)
    (root / "linux-um").chmod(0o755)
    monkeypatch.setattr(bench_harness, "repo_root", lambda: root)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("FAILS", "nothing")
    return root


def test_the_edit_that_is_measured_is_one_of_a_copy(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which was built before, so that no more than the one file has changed."""
    assert bench_harness.edit_to_test(["--profile", "fast"]) > 0
    assert (repository / bench_harness.EDITED).read_text() == "int x;\n"
    built, tested = (line.split() for line in (tmp_path / "log").read_text().splitlines())
    assert built[0] == tested[0] != str(repository)
    assert built[1:] == ["build", "--profile", "fast", "1"]
    assert tested[1:6] == ["test", "--profile", "fast", "-n", "0"]
    assert tested[6] == f"{tested[0]}/{bench_harness.EDIT_TEST}" and tested[7] == "2"
    assert not Path(tested[0]).exists()
    monkeypatch.setenv("FAILS", "build")
    with pytest.raises(BenchError, match="build ends with 3: said why"):
        bench_harness.edit_to_test([])


def test_the_test_that_follows_an_edit_is_there() -> None:
    name, _, test = bench_harness.EDIT_TEST.partition("::")
    assert f"def {test}(" in (repo_root() / name).read_text()
    assert (repo_root() / bench_harness.EDITED).is_file()


@pytest.mark.parametrize(("name", "words"), [("suite", []), ("bugs", ["-m", "regression"])])
def test_the_suite_is_measured_as_a_whole_and_in_part(
    repository: Path, tmp_path: Path, name: str, words: list[str]
) -> None:
    (measure,) = (run for each, _, run in bench_harness.MEASUREMENTS if each == name)
    assert measure(["--kernel", "6.12"]) > 0
    said = (tmp_path / "log").read_text().split()[1:]
    assert said == ["test", "--kernel", "6.12", *words, "0"]
    assert bench_run.FULL.suite and not bench_run.QUICK.suite


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "bench.json"
    wrong.write_text("{}")
    for path_ in (wrong, tmp_path / "none.json"):
        with pytest.raises(BenchError, match="bench.json|none.json"):
            bench.read(path_)
    with pytest.raises(UsageError, match="no such part"):
        bench.parts_of("work,nonsense")
    assert bench.parts_of("work,idle") == ("work", "idle")


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
    assert bench_trace.wakings_of(trace, "pksmd") == []
    with pytest.raises(BenchError, match="no beginning"):
        bench_trace.wakings_of("", "ksmd")


def test_numbers_have_three_digits_that_matter() -> None:
    assert [number(x) for x in (0, 5, 0.25, 12.34, 123.4, 1.005)] == (
        ["0", "5", "0.25", "12.3", "123", "1.00"]
    )


def contended(machine: str, engine: str, cpus: int, page_ns: int) -> Sample:
    """Return a sample in which 1000 pages have cost *page_ns* each, on so many CPUs at once."""
    return {"what": "contention", "machine": machine, "engine": engine, "procs": cpus, "turn": 0,
            "pages": 1000, "usecs": page_ns // cpus}  # fmt: skip


def test_contention_is_what_a_page_costs_the_cpu_that_has_it() -> None:
    samples = [contended("UML", "pksm-on", 1, 800), contended("UML", "pksm-on", 2, 900),
               contended("QEMU", "pksm-on", 1, 5000), contended("UML", "pksm-off", 1, 780)]  # fmt: skip
    found = results_of(samples).find("fault and free, UML", "pksm-on")
    assert [(each.procs, each.stat.median) for each in found] == [(1, 800), (2, 900)]
    (other,) = results_of(samples).find("fault and free, QEMU")
    assert other.stat.median == 5000
    assert "2 CPUs" in bench_table.results_table(results_of(samples))


@pytest.mark.parametrize(
    ("host", "counts"), [(1, [1, 2]), (2, [1, 2]), (6, [1, 2, 4]), (64, [1, 2, 4, 8])]
)
def test_no_more_cpus_are_at_work_than_the_host_has(host: int, counts: list[int]) -> None:
    """But for one that has a single CPU, where two take turns."""
    assert cpu_counts(host) == counts

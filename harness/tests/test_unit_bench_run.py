# SPDX-License-Identifier: GPL-2.0-only
"""What the bench measures, in which order, and what becomes of it when something fails."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux_um import bench, bench_contention, bench_harness, bench_lab  # noqa: E402
from linux_um import bench_programs, bench_run, packages  # noqa: E402
from linux_um.bench_facts import Results, harness_of  # noqa: E402
from linux_um.bench_lab import BenchError  # noqa: E402
from linux_um.bench_table import harness_table, summary  # noqa: E402
from linux_um.bench_targets import targets_of  # noqa: E402
from linux_um.errors import HostError, LinuxUmError, UsageError  # noqa: E402
from linux_um.paths import repo_root  # noqa: E402
from linux_um.term import Term  # noqa: E402

Sample = dict[str, Any]


def work(cpu_us: float) -> Sample:
    """Return a sample of a thousand pages that took *cpu_us* each."""
    return {
        "what": "merged", "engine": "pksm-full", "mib": 64, "procs": 8, "pages": 1000,
        "cpu_ns": int(cpu_us * 1e6), "polls_cpu_ns": 0, "scanned_pages": 1010,
    }  # fmt: skip


def titles_of(plan: bench_run.Plan, *parts: str, lacking: tuple[str, ...] = ()) -> list[str]:
    """Return the titles of all measurements of *parts*."""
    lab = bench_lab.Lab("6.12", Term(quiet=True))
    return [title for title, _ in bench_run.tasks(plan, lab, parts, print, lacking=lacking)]


def test_each_setting_of_ksm_is_measured_as_often_as_pksm() -> None:
    """But for its defaults, for which large sizes take too long."""
    titles = titles_of(bench_run.FULL, "convergence")
    often = Counter(title.partition(":")[0] for title in titles)
    assert often["KSM, advisor"] == often["KSM, full speed"] == often["PKSM, defaults"]
    assert 1 < often["KSM, defaults"] < often["KSM, advisor"]
    for plan in (bench_run.QUICK, bench_run.FULL):
        assert any(title.startswith("KSM, full speed") for title in titles_of(plan, "savings"))


@pytest.mark.parametrize("plan", [bench_run.QUICK, bench_run.FULL])
def test_no_two_measurements_have_the_same_title(plan: bench_run.Plan) -> None:
    """A run that is resumed knows by it what was made."""
    titles = titles_of(plan, *bench_run.PARTS)
    assert len(set(titles)) == len(titles) > 30


@pytest.mark.parametrize("plan", [bench_run.QUICK, bench_run.FULL])
def test_pages_change_for_a_minute_at_least(plan: bench_run.Plan) -> None:
    """Longer than until PKSM looks at a page again that it has read."""
    assert plan.volatile_seconds >= 60 and plan.idle_seconds >= 60


def test_what_lacks_something_is_no_measurement() -> None:
    machine = bench_run.machine_part(bench_contention.MACHINES[0])
    titles = titles_of(bench_run.FULL, *bench_run.PARTS, lacking=("redis", "rmap", machine))
    assert not any(name in title for title in titles for name in (machine, "redis", "10,000"))
    assert any("sqlite" in title for title in titles)
    assert any(bench_run.machine_part(bench_contention.MACHINES[1]) in title for title in titles)


def words_of(output: Path, *options: str) -> argparse.Namespace:
    """Return what ``bench`` with *options* is called with, for a report in *output*."""
    parser = argparse.ArgumentParser()
    bench.add_parsers(parser.add_subparsers())
    words = ["bench", "--only", "work", "-o", str(output), "--arch", "um", *options]
    return parser.parse_args(words)


def measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[Any], *options: str
) -> tuple[int | None, Path]:
    """Run bench with measurements that end as *outcomes*; return its status, and its file.

    An outcome that is a list is what comes of one try after the other.
    """

    def make(outcome: Any) -> list[Sample]:
        if isinstance(outcome, list):
            outcome = outcome.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return [work(float(outcome))]

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


def test_what_fails_once_is_tried_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was; and no third time."""
    outcomes = [[BenchError("at first"), 2.0], [OSError("at first"), 3.0],
                [ValueError("a"), ValueError("b"), 4.0]]  # fmt: skip
    status, path_ = measured(tmp_path, monkeypatch, outcomes)
    document = bench.read(path_)
    assert status is None and len(document["samples"]) == 2
    assert document["failed"] == [["number 2", "ValueError: b; that is a bug"]]


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
    monkeypatch.setattr(bench, "cpu_name", lambda: "another")
    with pytest.raises(BenchError, match=r"has other host \(cpu\)"):
        bench.bench_command(words_of(path_.parent, "--resume"), Term(quiet=True))


def test_a_kernel_that_can_be_had_by_now_does_not_keep_a_run_from_being_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path_ = measured(tmp_path, monkeypatch, [2.0, BenchError("broken")])
    monkeypatch.setattr(bench, "prepare", lambda *_: ({"off": "a kernel"}, {}))
    status, _ = measured(tmp_path, monkeypatch, [2.0, 3.0], "--resume")
    assert status == 0 and bench.read(path_)["images"] == {"off": "a kernel"}
    monkeypatch.setattr(bench, "prepare", lambda *_: ({"off": "another kernel"}, {}))
    with pytest.raises(BenchError, match="has other images"):
        bench.bench_command(words_of(path_.parent, "--resume"), Term(quiet=True))


def test_a_part_that_lacks_something_does_not_keep_the_others_from_being_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has failed, for the reason that there was."""

    def ensure(*stages: str, **_: Any) -> None:
        if stages != ("bench",):
            raise HostError("no such package")

    def image(profile: str, *_: Any) -> Any:
        raise OSError("no such file")

    monkeypatch.setattr(packages, "ensure", ensure)
    monkeypatch.setattr("linux_um.guest.finished_image", image)
    monkeypatch.setattr(bench_run, "tasks", lambda *_: [("other", lambda: [work(2.0)])])
    output = tmp_path / "report"
    words = words_of(output, "--only", "paths,programs,contention")
    with pytest.raises(BenchError, match="5 measurements have failed"):
        bench.bench_command(words, Term(quiet=True))
    document = bench.read(output / "bench.json")
    first, second = (bench_run.machine_part(machine) for machine in bench_contention.MACHINES)
    assert document["failed"] == [
        ["redis", "no such package"], ["paths", "no such file"], ["programs", "no such file"],
        [first, "no such file"], [second, "no such package"],
    ]  # fmt: skip
    assert len(document["samples"]) == 1
    # Where nothing is left to be measured, it ends.
    monkeypatch.setattr(bench_run, "tasks", lambda *_: [])
    with pytest.raises(BenchError, match="nothing can be measured; redis: no such package"):
        bench.bench_command(words, Term(quiet=True))


def test_only_what_writes_the_report_is_an_error_of_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory", "/somewhere")

    monkeypatch.setattr(bench, "prepare", prepare)
    with pytest.raises(FileNotFoundError):
        bench.bench_command(words_of(tmp_path), Term(quiet=True))


def test_where_nothing_works_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BenchError("broken")
    status, path_ = measured(tmp_path, monkeypatch, [broken, OSError("no such file"), broken, 4.0])
    assert status is None
    document = bench.read(path_)
    said = [said.partition(";")[0] for _, said in document["failed"]]
    assert said == ["broken", "OSError: no such file", "broken"]
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
[ "$1" != "$FAILS" ] || { echo said why; exit "${STATUS:-3}"; }
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
    assert bench_harness.edit_to_test(["--profile", "fast"]).seconds > 0
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
    assert measure(["--kernel", "6.12"]).seconds > 0
    said = (tmp_path / "log").read_text().split()[1:]
    assert said == ["test", "--kernel", "6.12", *words, "0"]
    assert bench_run.FULL.suite and not bench_run.QUICK.suite


def test_a_suite_with_a_test_that_fails_has_a_time_and_misses_its_target(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "test")
    monkeypatch.setenv("STATUS", "1")
    todo = dict(bench_harness.tasks(("fast", "6.12"), 1, suite=True))
    samples = todo["harness: the whole suite"]()
    assert samples[0]["seconds"] > 0 and samples[0]["failed"] == "said why"
    found = harness_of(samples)
    assert "FAILED: said why" in harness_table(found, colour=False)
    (each,) = (each for each in targets_of(Results([]), [], found) if each.name == "suite")
    assert each.met is False and each.value == found["suite"]["median"] < 90
    assert each.note == "said why" and "1 missed" in summary([each])
    monkeypatch.setenv("STATUS", "125")
    with pytest.raises(BenchError, match="test ends with 125: said why"):
        todo["harness: the whole suite"]()


STUBBORN = """\
#!/bin/sh
trap '' TERM HUP
sleep 600 &
echo $! > "$LOG"
wait
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [("boot", "does not work"), ("run", "within 3 s"), ("gdb", "no prompt"),
     ("suite", "within 3 s"), ("build_again", "within 3 s")],
)  # fmt: skip
def test_what_does_not_end_is_ended(
    repository: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    """With all that it has started."""
    (repository / "linux-um").write_text(STUBBORN)
    monkeypatch.setattr(bench_harness, "END_LIMIT", 0.5)
    for limit in ("LIMIT", "BUILD_LIMIT", "TEST_LIMIT"):
        # Time enough for a shell to begin, however busy the host is.
        monkeypatch.setattr(bench_harness, limit, 3.0)
    runs = {name: run for name, _, run in bench_harness.MEASUREMENTS}
    with pytest.raises(BenchError, match=said):
        runs[name]([])
    assert has_ended(int((repository.parent / "log").read_text()))


def has_ended(pid: int) -> bool:
    """Return whether a process is there no more, or is about to be gone; within some seconds."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(100):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


def test_a_program_that_is_missing_is_none_that_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    lab = bench_lab.Lab("6.12", Term(quiet=True))
    with pytest.raises(BenchError, match="the host has no"):
        bench_programs.program(lab, bench_lab.PKSM, "redis")


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "bench.json"
    wrong.write_text("{}")
    for path_ in (wrong, tmp_path / "none.json"):
        with pytest.raises(BenchError, match="bench.json|none.json"):
            bench.read(path_)
    with pytest.raises(UsageError, match="no such part"):
        bench.parts_of("work,nonsense")
    assert bench.parts_of("work,idle") == ("work", "idle")

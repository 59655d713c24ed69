# SPDX-License-Identifier: GPL-2.0-only
"""Which test runs where, the table of which ran where, and by what QEMU runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from skiplab import skips

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import where_table  # noqa: E402
from linux_um import accel, errors, paths, prove  # noqa: E402
from linux_um.accel import Trial  # noqa: E402
from linux_um.paths import repo_root  # noqa: E402
from linux_um.term import Term  # noqa: E402

HERE = Path(__file__).resolve().parent
JUNIT = """\
<testsuites><testsuite timestamp="2026-11-28T07:26:00.915843">
<properties><property name="state" value="abc"/></properties>
<testcase classname="harness.tests.test_a" name="one"/>
<testcase classname="harness.tests.test_a" name="two"><failure/></testcase>
<testcase classname="harness.tests.test_b" name="three"><skipped message="no CPU"/></testcase>
</testsuite></testsuites>
"""


RWP = (
    "test_pte_bits.py::test_merged_pages_that_nobody_may_touch_are_unmerged",
    "test_large_folios.py::test_merged_pages_that_are_read_only_can_be_collapsed",
)
NO_RWP = "test_merged_pages_that_are_not_collapsed_since_they_are_read_only_stay_merged"
HAS_RWP = "CONFIG_USERFAULTFD_RWP=y\nCONFIG_TRANSPARENT_HUGEPAGE=y\n"
HAS_NONE = "# CONFIG_UNRELATED is not set\n"


@pytest.mark.parametrize(
    ("profile", "arch", "config", "lacks"),
    [
        ("fast", "x86_64", HAS_RWP, ["", ""]),
        ("fast", "x86_64", HAS_NONE, ["CONFIG_USERFAULTFD_RWP"] * 2),
        ("fast", "um", HAS_NONE, ["CONFIG_USERFAULTFD_RWP", "CONFIG_TRANSPARENT_HUGEPAGE"]),
        ("smp", "um", HAS_NONE, ["CONFIG_USERFAULTFD_RWP", "CONFIG_TRANSPARENT_HUGEPAGE"]),
    ],
    ids=["7.3 on a PC", "6.12 on a PC", "UML", "UML, two CPUs"],
)
def test_what_kconfig_has_chosen_is_read_from_the_finished_kernel(
    tmp_path: Path, profile: str, arch: str, config: str, lacks: list[str]
) -> None:
    """No fragment wishes for USERFAULTFD_RWP: Linux 7.3 has it on a PC, and 6.12 has not."""
    files = [name.partition("::")[0] for name in RWP]
    seen = skips(tmp_path, profile, arch, *files, kernel="7.3", config=config)
    said = f"the kernel of profile {profile}, {arch}, has no "
    assert [seen[name] for name in RWP] == [each and said + each for each in lacks]


@pytest.mark.parametrize(
    ("config", "lacks"), [(HAS_RWP, "CONFIG_USERFAULTFD_RWP"), (HAS_NONE, "")], ids=["7.3", "6.12"]
)
def test_a_test_may_need_that_a_kernel_lacks_something(
    tmp_path: Path, config: str, lacks: str
) -> None:
    config += "CONFIG_TRANSPARENT_HUGEPAGE=y\n"
    seen = skips(tmp_path, "fast", "x86_64", "test_large_folios.py", config=config)
    reason = seen["test_large_folios.py::" + NO_RWP]
    assert reason == (lacks and f"the kernel of profile fast, x86_64, has {lacks}")


def test_nothing_is_asked_of_a_kernel_that_no_test_to_be_run_needs(tmp_path: Path) -> None:
    """There is none: to list tests, or run those of the harness, must not build one."""
    files = [name.partition("::")[0] for name in RWP]
    seen = skips(tmp_path, "fast", "x86_64", *files, "-k", "split or dirty")
    assert seen and not set(RWP) & set(seen)


def test_what_a_kernel_lacks_is_said_before_that_its_clock_is_the_hosts(tmp_path: Path) -> None:
    for profile, arch, file, reason in (
        ("smp", "um", "test_hugetlb.py", "the kernel of profile smp, um, has no CONFIG_HUGETLBFS"),
        ("smp", "um", "test_numa.py", "the kernel of profile smp, um, has no CONFIG_NUMA"),
        ("kcsan", "x86_64", "test_gdb_session.py", "gdb looks at a process that is User-Mode Linux"),
    ):
        seen = skips(tmp_path, profile, arch, file, kernel="7.3", config=HAS_NONE)
        assert set(seen.values()) == {reason}


def test_who_does_not_wait_long_runs_where_no_clock_leaps(tmp_path: Path) -> None:
    """On a PC under KCSAN, for which large folios, nodes and huge pages are news."""
    files = [f"test_{name}.py" for name in ("large_folios", "numa", "hugetlb", "device", "poison")]
    seen = skips(tmp_path, "kcsan", "x86_64", *files, config=HAS_RWP)
    runs = {name.partition("[")[0] for name, reason in seen.items() if not reason}
    assert runs >= {
        "test_large_folios.py::test_pages_that_are_merged_with_each_other_can_be_collapsed",
        RWP[1],
        "test_numa.py::test_merged_pages_are_moved_to_another_node",
        "test_numa.py::test_no_byte_is_wrong_while_pages_follow_their_processes",
        "test_hugetlb.py::test_fork_and_copies_of_pages_of_hugetlb",
    }
    long = {
        "test_large_folios.py::test_what_was_split_and_merged_stays_so",
        "test_hugetlb.py::test_reserved_pages_are_there_when_they_are_needed",
        "test_device.py::test_r26_what_a_device_has_for_itself_is_not_merged",
        "test_poison.py::test_what_has_gone_bad_is_not_counted_for_ever",
    }
    reason = "guests of profile kcsan cannot travel in time"
    assert {seen[name] for name in long} == {reason}


def test_who_runs_in_real_time_needs_no_travel(tmp_path: Path) -> None:
    seen = skips(tmp_path, "kcsan", "x86_64", "-m", "real_time", config=HAS_RWP)
    assert len(seen) > 20
    assert not [name for name, reason in seen.items() if "travel" in reason]


@pytest.mark.parametrize(
    ("test", "reason", "skipping", "running"),
    [
        ("test_swap.py::test_churn_under_pressure_keeps_every_byte",
         "the kernel of profile kcsan, x86_64, has CONFIG_KCSAN",
         ("kcsan", "x86_64", "6.12"), ("smp", "um", "7.3")),
        ("test_bench_speed.py::test_an_unmatched_page_costs_much_less_than_under_ksm",
         "it says nothing of a kernel of profile smp", ("smp", "um", "7.3"), ("mutant", "um", "6.12")),
        ("test_pace_exact.py::test_the_limit_holds_over_each_second_of_full_load[5-4]",
         "the guest's time depends on what else the host does",
         ("fast", "um", "6.12"), ("fast", "x86_64", "6.12")),
        ("test_mm_selftests.py::test_each_subtest_ends_as_on_the_stock_kernel[uffd-unit-tests]",
         "it takes this machine many minutes", ("fast", "x86_64", "6.12"), ("smp", "um", "7.3")),
        ("test_regression_storm.py::test_r15_stock_ksm_looks_at_all_20000",
         "KSM of this kernel goes by the page's index as well",
         ("fast", "um", "7.3"), ("fast", "um", "6.12")),
    ],
    ids=["memory", "profile", "clock", "slow", "series"],
)  # fmt: skip
def test_what_cannot_be_found_out_here_is_known_before_a_guest_is_booted(
    tmp_path: Path,
    test: str,
    reason: str,
    skipping: tuple[str, str, str],
    running: tuple[str, str, str],
) -> None:
    file, _, name = test.partition("::")
    for (profile, arch, kernel), said in ((skipping, reason), (running, "")):
        seen = skips(tmp_path, profile, arch, file, kernel=kernel, config=HAS_RWP)
        assert seen[f"{file}::{name}"] == said


def table(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run where_table.py."""
    command = [sys.executable, str(repo_root() / "harness" / "where_table.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_table_says_what_passed_failed_and_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "one.xml").write_text(JUNIT)
    (tmp_path / "two.xml").write_text(JUNIT.replace("test_a", "test_c"))
    done = table(f"here={tmp_path}/one.xml", f"there={tmp_path}/two.xml")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "| tests | here | there |" in lines
    assert "| test_a | 1 **1 failed** |  |" in lines
    assert "| test_b | (1) | (1) |" in lines
    assert "| **all** | 1 (1) **1 failed** | 1 (1) **1 failed** |" in lines
    assert "- 1: no CPU" in lines
    assert lines.index("- here: 2 files; commit abc; 2026-11-28") < lines.index("| tests | here | there |")


def test_the_table_says_what_was_run_and_when(tmp_path: Path) -> None:
    (tmp_path / "one.xml").write_text(JUNIT)
    (tmp_path / "two.xml").write_text(JUNIT.replace("abc", "def").replace("-28T", "-29T"))
    (tmp_path / "three.xml").write_text(JUNIT.replace('name="state"', "").replace("timestamp", "x"))
    done = table(f"here={tmp_path}/one.xml,{tmp_path}/two.xml,{tmp_path}/one.xml")
    assert "- here: 2 files; commit abc, def; 2026-11-28, 2026-11-29" in done.stdout.splitlines()
    done = table(f"here={tmp_path}/three.xml")
    assert done.returncode == 125 and done.stderr.endswith("give --commit\n")
    arguments = ["--commit", "xyz", f"here={tmp_path}/three.xml", f"there={tmp_path}/one.xml"]
    lines = table(*arguments).stdout.splitlines()
    assert {"- here: 2 files; commit xyz", "- there: 2 files; commit abc; 2026-11-28"} <= set(lines)


def test_a_run_leaves_the_state_of_the_tree_with_its_results(tmp_path: Path) -> None:
    """Also one by several workers."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    for workers in ("0", "2"):
        path = tmp_path / f"{workers}.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", workers,
             f"--junitxml={path}", str(HERE / "test_unit_ktap.py")],
            env=environment, capture_output=True, check=True,
        )  # fmt: skip
        state = prove.state_of(repo_root(), repo_root()).name
        assert where_table.Run.read("x", path, commit="no git").commits == [state or "no git"]


def test_the_test_of_the_table_does_not_stand_in_its_own_way(tmp_path: Path) -> None:
    """The run of which a table is made finds the one before to be stale."""
    own = test_the_table_of_the_repository_has_each_test_and_adds_up.__name__
    (tmp_path / "one.xml").write_text(JUNIT.replace('"two"', f'"{own}"'))
    text = table(f"here={tmp_path}/one.xml").stdout
    assert "| test_a | 2 |" in text.splitlines()
    assert stale(text, {"test_a": 2, "test_b": 1}) == ""


def test_of_what_was_run_again_the_last_counts_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "one.xml").write_text(JUNIT)
    (tmp_path / "two.xml").write_text(JUNIT.replace("<failure/>", ""))
    text = table(f"here={tmp_path}/one.xml,{tmp_path}/two.xml").stdout
    assert "| test_a | 2 |" in text.splitlines()
    assert "here: 3 tests were run again." in text.splitlines()
    counts = {"test_a": 2, "test_b": 1}
    assert stale(text, counts) == ""
    assert "there is no such run" in stale(text.replace("here: 3", "else: 3"), counts)


def test_what_is_no_result_of_a_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.xml").write_text("<testsuites>")
    for argument in ("no-title", f"x={tmp_path}/missing.xml", f"x={tmp_path}/bad.xml"):
        done = table(argument)
        assert done.returncode == 125
        assert len(done.stderr.splitlines()) == 1 and argument in done.stderr
    assert table().returncode == 125


# Whole runs take hours: a table is not made for each new test. It names its commit.
NEWER = 20
HOW = (
    "harness/tests/where.md: {}; run ./linux-um test --junitxml=NAME.xml for each title and then "
    "harness/where_table.py TITLE=NAME.xml... > harness/tests/where.md"
)


def stale(text: str, counts: dict[str, int]) -> str:
    """Return what of a table is out of date, or wrong, and how to make it anew, or nothing.

    *counts* are the numbers of tests that there are by files of tests. The first run has to
    be of all of them, another may be of some. A test may be newer than the table, but not
    more than one in NEWER.
    """
    try:
        runs = where_table.parse(text)
    except ValueError as error:
        return HOW.format(error)
    rows = {name for run in runs for name in run.files}
    odd = [f"no row of {name}" for name in sorted(counts.keys() - rows)]
    odd += [f"{name} is there no more" for name in sorted(rows - counts.keys())]
    odd += [f"{name} was not run, {runs[0].title}" for name in sorted(rows - runs[0].files.keys())]
    for run in runs:
        for name, seen in sorted(run.files.items()):
            if seen["failed"]:
                odd.append(f"{name}: {seen['failed']} failed, {run.title}")
            elif seen.total() > counts.get(name, seen.total()):
                odd.append(f"{name} has {counts[name]} tests, and {seen.total()} ran, {run.title}")
        there = sum(counts.get(name, 0) for name in run.files)
        newer = there - sum(seen.total() for seen in run.files.values())
        if newer * NEWER > there:
            odd.append(f"{newer} of {there} tests are newer than the run, {run.title}")
    if odd:
        return HOW.format("; ".join(odd))
    for run in runs:
        if not run.commits:
            return HOW.format(f"{run.title}: of which commit it is is not said")
        skipped = sum(counts["skipped"] for counts in run.files.values())
        said = sum(run.reasons.values())
        if skipped != said:
            return HOW.format(f"{run.title}: {skipped} skipped, and reasons for {said}")
    if text != where_table.HEAD + where_table.table(runs):
        return HOW.format("the totals, or the order, are not those of its rows")
    return ""


def collected(directory: Path, profile: str, arch: str, kernel: str = "6.12") -> dict[str, int]:
    """Return how many tests each file has, by its name without ".py"; nothing is built or run.

    Files without any are there as well.
    """
    seen = skips(directory, profile, arch, kernel=kernel, config=HAS_NONE)
    found = Counter(name.partition(".py::")[0] for name in seen)
    return {path.stem: found[path.stem] for path in HERE.glob("test_*.py")}


def test_there_are_the_same_tests_for_each_kernel_and_machine(tmp_path: Path) -> None:
    """Or numbers could not be compared: what cannot run somewhere is skipped there."""
    usual = collected(tmp_path, "fast", "um")
    for other in (("smp", "um", "7.3"), ("kcsan", "x86_64")):
        assert collected(tmp_path, *other) == usual


def test_the_table_of_the_repository_has_each_test_and_adds_up(tmp_path: Path) -> None:
    found = stale((HERE / "where.md").read_text(), collected(tmp_path, "fast", "um"))
    if found:
        pytest.fail(found, pytrace=False)


def test_a_table_that_is_stale_says_how_to_make_it_anew(tmp_path: Path) -> None:
    good = JUNIT.replace("<failure/>", "")
    (tmp_path / "one.xml").write_text(good)
    (tmp_path / "two.xml").write_text(good.replace("test_a", "test_c"))
    text = table(f"here={tmp_path}/one.xml,{tmp_path}/two.xml", f"there={tmp_path}/two.xml").stdout
    counts = {"test_a": 2, "test_b": 1, "test_c": 2}
    assert stale(text, counts) == ""
    assert "no row of test_d" in stale(text, counts | {"test_d": 3})
    assert "test_a has 1 tests, and 2 ran, here" in stale(text, counts | {"test_a": 1})
    assert "1 of 6 tests are newer than the run, here" in stale(text, counts | {"test_a": 3})
    many = JUNIT.replace("<failure/>", "").replace('name="one"/>', 'name="one"/>' + "".join(
        f'<testcase classname="harness.tests.test_a" name="{number}"/>' for number in range(40)
    ))  # fmt: skip
    (tmp_path / "many.xml").write_text(many)
    most = table(f"here={tmp_path}/many.xml").stdout
    assert stale(most, {"test_a": 44, "test_b": 1}) == ""
    assert "3 of 46 tests are newer" in stale(most, {"test_a": 45, "test_b": 1})
    for old, new, said in (
        ("test_c", "test_e", "no row of test_c; test_e is there no more"),
        ("| test_c | 2 |", "| test_c |  |", "test_c was not run, here"),
        ("| test_a | 2 |", "| test_a | 1 **1 failed** |", "test_a: 1 failed, here"),
        ("| test_b | (1)", "| test_b | (2)", "test_b has 1 tests, and 2 ran, here"),
        ("| **all** | 4 (1)", "| **all** | 5 (1)", "the totals"),
        ("- there: 2 files", "- there: 3 files", "the totals"),
        ("- here: 3 files; commit abc; 2026-11-28\n", "", "here: of which commit"),
        ("- there: 2 files", "- elsewhere: 2 files", "there is no such run"),
        ("- 1: no CPU", "- 3: no CPU", "here: 1 skipped, and reasons for 3"),
        ("| test_b | (1)", "| test_b | x", "'x' is no cell"),
        ("| tests |", "| files |", "there is no table"),
        ("Skipped, here", "Skipped, elsewhere", "there is no such run"),
        (" | (1) |\n", " |\n", "test_b: 1 cells, and 2 runs"),
    ):
        assert old in text, old
        found = stale(text.replace(old, new, 1), counts)
        assert said in found and "where_table.py TITLE=NAME.xml" in found
        assert len(found.splitlines()) == 1


def not_asked(_linux: Path) -> Trial:
    """Stand for a trial that is not to be made."""
    raise AssertionError("KVM was tried")


@pytest.fixture
def no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty cache; KVM may be had, and nobody has decided."""
    monkeypatch.delenv("LINUX_UM_ACCEL", raising=False)
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    monkeypatch.setattr("os.access", lambda *_: True)
    accel.choose.cache_clear()
    return tmp_path


def test_kvm_is_tried_once(no_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answer is kept, for this boot of the host."""
    term = Term(quiet=True)
    booted, failed, refused = Trial.BOOTED, Trial.FAILED, Trial.REFUSED
    for outcomes, wanted in (
        ([booted], "kvm"), ([failed, booted], "kvm"), ([failed, failed], "tcg"), ([refused], "tcg"),
    ):  # fmt: skip
        left = list(outcomes)
        monkeypatch.setattr(accel, "boots", lambda _, left=left: left.pop(0))
        (no_answer / accel.ANSWER).unlink(missing_ok=True)
        for _ in range(2):
            accel.choose.cache_clear()
            assert accel.choose(Path("linux"), term) == wanted
        assert not left
    tried: list[Path] = []

    def boots(linux: Path) -> Trial:
        tried.append(linux)
        return booted

    monkeypatch.setattr(accel, "boots", boots)
    answer = json.loads((no_answer / accel.ANSWER).read_text())
    (no_answer / accel.ANSWER).write_text(json.dumps({**answer, "host": "another"}))
    accel.choose.cache_clear()
    accel.choose(Path("linux"), term)
    assert len(tried) == 1


def test_who_waits_for_a_trial_takes_its_answer(
    no_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has tried meanwhile."""

    @contextmanager
    def lock(*_: object, **__: object) -> Iterator[None]:
        answer = json.dumps({"host": accel._host(), "accel": "kvm"})
        (no_answer / accel.ANSWER).write_text(answer)
        yield

    monkeypatch.setattr(paths, "lock", lock)
    monkeypatch.setattr(accel, "boots", not_asked)
    assert accel.choose(Path("linux"), Term(quiet=True)) == "kvm"


def test_what_qemu_refuses_is_told_from_what_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "qemu"
    monkeypatch.setattr(accel, "PROGRAM", str(program))
    for script, timeout, wanted in (
        ("echo 'Kernel panic - not syncing: VFS: no root'", 60.0, Trial.BOOTED),
        ("echo 'failed to initialize kvm'; exit 1", 60.0, Trial.REFUSED),
        ("echo 'Triple fault'", 60.0, Trial.FAILED),
        ("exec sleep 99", 1.0, Trial.FAILED),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert accel.boots(Path("linux"), timeout=timeout) is wanted


def test_one_can_say_how_qemu_is_to_run(no_answer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    term = Term(quiet=True)
    monkeypatch.setattr(accel, "boots", not_asked)
    for wish in ("kvm", "tcg"):
        accel.choose.cache_clear()
        monkeypatch.setenv("LINUX_UM_ACCEL", wish)
        assert accel.choose(Path("linux"), term) == wish
    accel.choose.cache_clear()
    monkeypatch.setenv("LINUX_UM_ACCEL", "xen")
    with pytest.raises(errors.UsageError, match="LINUX_UM_ACCEL is 'xen'"):
        accel.choose(Path("linux"), term)


def test_where_there_is_no_kvm_nothing_is_tried(
    no_answer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(accel, "boots", not_asked)
    assert accel.choose(Path("linux"), Term(quiet=True)) == "tcg"

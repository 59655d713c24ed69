# SPDX-License-Identifier: GPL-2.0-only
"""The command that runs all evidence: what it runs, what it keeps, and what it says."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from pathlib import Path

import pytest
from linux_um import cli, prove
from linux_um.errors import UsageError
from linux_um.paths import repo_root
from linux_um.prove import Part, State
from linux_um.term import Term
from skiplab import skips

GOOD = Part("good", "that help is given", ("doctor", "--help"), ("top", "--help"))
BAD = Part("bad", "that nonsense fails", ("doctor", "--nonsense"))


def arguments(directory: Path, *words: str) -> argparse.Namespace:
    """Return what the command line parses to."""
    return cli.build_parser().parse_args(["prove", "-o", str(directory), *words])


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are these two parts, and the tree does not change."""
    monkeypatch.setattr(prove, "parts", lambda _: [GOOD, BAD])
    monkeypatch.setattr(prove, "state_of", lambda *_: State("abc", "1"))


def test_every_part_is_a_command_and_every_test_is_there(tmp_path: Path) -> None:
    names = []
    for part in prove.parts(tmp_path):
        names.append(part.name)
        for words in filter(None, (part.words, part.short)):
            cli.build_parser().parse_known_args(list(words))
            for word in words:
                if word.startswith("harness/"):
                    assert (repo_root() / word).is_file(), f"{part.name}: {word}"
    assert len(set(names)) == len(names)


def test_no_file_that_a_part_names_would_be_skipped_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would be a part that shows nothing."""
    # A part does not run with what this test may run with.
    for name in prove.NOT_INHERITED:
        monkeypatch.delenv(name, raising=False)
    idle = []
    for part in prove.parts(tmp_path):
        words = cli.build_parser().parse_known_args(list(part.words))[0]
        files = [Path(word).name for word in part.words if word.startswith("harness/tests/")]
        if not files:
            continue
        seen = skips(
            tmp_path, words.profile, words.arch, *files, kernel=words.kernel, config="CONFIG_X=y\n"
        )
        runs = {name.partition("::")[0] for name, reason in seen.items() if not reason}
        idle += [f"{part.name}: {file}" for file in files if file not in runs]
    assert not idle


def test_linux_7_3_is_proven_where_it_differs(tmp_path: Path) -> None:
    said = {prove.command_of(part.words) for part in prove.parts(tmp_path)}
    tests = "harness/tests/test_"
    assert said >= {
        "./linux-um test --kernel 7.3",
        f"./linux-um test --kernel 7.3 --profile smp-ksm {tests}smp.py",
        "./linux-um test --kernel 7.3 --mutants 'smp-*'",
        "./linux-um test --kernel 7.3 --profile smp-ksm --mutants smp-no-shootdown",
        "./linux-um test --arch x86_64 --kernel 7.3 "
        f"{tests}pte_bits.py {tests}large_folios.py {tests}smp.py",
    }


def test_the_whole_suite_runs_where_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And elsewhere as many files of it: correct its section on ``prove`` with this."""
    # A part does not run with what this test may run with.
    for name in prove.NOT_INHERITED:
        monkeypatch.delenv(name, raising=False)
    whole, some = set(), {}
    for part in prove.parts(tmp_path):
        words = list(part.words)
        if words[0] != "test" or "--mutants" in words:
            continue
        known = cli.build_parser().parse_known_args(words)[0]
        where = known.kernel, known.profile, known.arch
        files = [word for word in words if word.startswith("harness/tests/")]
        if not files:
            whole.add(where)
        elif where != ("6.12", "fast", "um"):
            some[where] = len(files)
    assert whole == {
        ("6.12", "fast", "um"), ("6.12", "ksm", "um"), ("6.12", "debug", "um"),
        ("7.3", "fast", "um"), ("7.3", "smp", "um"), ("6.12", "fast", "x86_64"),
    }  # fmt: skip
    meetings = some.pop(("6.12", "kcsan", "x86_64"))
    assert some == {
        ("7.3", "smp-debug", "um"): meetings,
        ("7.3", "smp-ksm", "um"): 1,
        ("7.3", "fast", "x86_64"): 3,
    }
    # In short, but for the default profile.
    short = [words for _, words in prove.choose(prove.parts(tmp_path), None, short=True)]
    fuzz, smp = [words for words in short if {"--profile", "--kernel", "--arch"} & set(words)]
    assert fuzz[:3] == ("fuzz", "--profile", "debug")
    assert smp[:5] == ("test", "--kernel", "7.3", "--profile", "smp")
    assert len([word for word in smp if word.startswith("harness/tests/")]) == 4


def test_races_are_looked_for_where_cpus_meet(tmp_path: Path) -> None:
    """By KCSAN, and by the checkers with two CPUs."""
    found = {part.name: part.words for part in prove.parts(tmp_path)}
    for name in ("swap", "migrate", "intake", "regression_mm", "run_control", "moments"):
        assert f"harness/tests/test_{name}.py" in found["races"]
        assert f"harness/tests/test_{name}.py" in found["smp-debug"]


@pytest.mark.usefixtures("two_parts")
def test_a_part_that_fails_is_said_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prove.prove_command(arguments(tmp_path), Term(quiet=True)) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("good         passed, ")
    assert said[1].startswith("bad          FAILED (125), ")
    assert "unrecognized" in said[1]
    assert said[2].startswith("1 of 2 parts passed; ")
    page = (tmp_path / prove.PAGE_NAME).read_text()
    assert "| good | that help is given | `./linux-um doctor --help` | passed |" in page
    assert "| **FAILED** (125) |" in page
    assert "| bad | nothing | `./linux-um doctor --nonsense` |" in page
    assert "that nonsense fails" not in page
    assert "unrecognized" in page.split("## bad")[1]
    assert "usage" in (tmp_path / "good.log").read_text()


@pytest.mark.usefixtures("two_parts")
def test_resume_keeps_what_passed_on_the_same_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prove.prove_command(arguments(tmp_path), Term(quiet=True))
    first = (tmp_path / "good.log").stat().st_mtime_ns
    capsys.readouterr()
    prove.prove_command(arguments(tmp_path, "--resume"), Term(quiet=True))
    said = capsys.readouterr().out
    assert "good         kept" in said and "bad          FAILED" in said
    assert (tmp_path / "good.log").stat().st_mtime_ns == first
    # A document has changed.
    monkeypatch.setattr(prove, "state_of", lambda *_: State("abe", "1"))
    prove.prove_command(arguments(tmp_path, "--resume", "--only", "good"), Term(quiet=True))
    assert (tmp_path / "good.log").stat().st_mtime_ns == first
    monkeypatch.setattr(prove, "state_of", lambda *_: State("abd", "2"))
    prove.prove_command(arguments(tmp_path, "--resume", "--only", "good"), Term(quiet=True))
    assert (tmp_path / "good.log").stat().st_mtime_ns > first
    # What is not run this time is in the report still, with the state it was run on.
    states = {each.name: each.state for each in prove.read(tmp_path / prove.JSON_NAME)}
    assert states == {"good": "abd", "bad": "abc"}


def test_the_state_of_a_tree_is_of_all_that_is_in_it(tmp_path: Path) -> None:
    assert prove.state_of(tmp_path, tmp_path / "proof") == State("", "")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for name in ("pksm", "harness/tests"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pksm/a").write_text("1")
    (tmp_path / "README").write_text("1")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    states = [prove.state_of(tmp_path, tmp_path / "proof")]
    for name, text in (("pksm/a", "2"), ("pksm/a", "3"), ("pksm/new", "1"), ("pksm/new", "2")):
        (tmp_path / name).write_text(text)
        states.append(prove.state_of(tmp_path, tmp_path / "proof"))
    assert len({state.works for state in states}) == len(states)
    # A commit changes no contents, a document nothing that has to be proven again.
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "y"], check=True)
    states.append(prove.state_of(tmp_path, tmp_path / "proof"))
    for name in ("README", "new", "harness/tests/where.md"):
        (tmp_path / name).write_text("2")
        states.append(prove.state_of(tmp_path, tmp_path / "proof"))
    assert len({state.name for state in states}) == len(states)
    assert {state.works for state in states[4:]} == {states[4].works}
    (tmp_path / "pksm/a").unlink()
    states.append(prove.state_of(tmp_path, tmp_path / "proof"))
    assert states[-1].works != states[4].works
    # The report itself may be in the tree, and grows.
    (tmp_path / "proof").mkdir()
    for name in ("proof/proven.md", "proof/good.log"):
        (tmp_path / name).write_text("x")
        assert prove.state_of(tmp_path, tmp_path / "proof") == states[-1]
    for other in (tmp_path, tmp_path / "other", tmp_path.parent):
        assert prove.state_of(tmp_path, other).name != states[-1].name


def test_nothing_that_is_set_outside_changes_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "LINUX_UM_PROFILE", "LINUX_UM_KERNEL", "LINUX_UM_ARCH", "LINUX_UM_ACCEL", "KERNEL_SRC",
        "LINUX_UM_COVERAGE", "LINUX_UM_TARBALL", "CC", "PYTEST_ADDOPTS",
    ):  # fmt: skip
        monkeypatch.setenv(name, "x")
        assert name not in prove.environment()


def test_parts_are_run_where_their_words_are_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever prove itself is; a report of a part's goes where prove's own does."""
    monkeypatch.chdir(tmp_path)
    collect = Part("here", "x", ("test", "--collect-only", "-q", "harness/tests/test_large.py"))
    monkeypatch.setattr(prove, "parts", lambda _: [collect])
    monkeypatch.setattr(prove, "state_of", lambda *_: State("abc", "1"))
    assert prove.prove_command(arguments(Path("proof")), Term(quiet=True)) == 0
    assert "1 test collected" in (tmp_path / "proof" / "here.log").read_text()
    assert prove.from_root(Path("proof")) == tmp_path / "proof"
    monkeypatch.chdir(repo_root() / "harness")
    assert prove.from_root(Path("../proof").resolve()) == Path("proof")


def test_no_part_says_more_than_its_words(tmp_path: Path) -> None:
    """Not of its short form either: how much it is stands in them alone."""
    for part in prove.parts(tmp_path):
        assert not re.search(r"million|thousand|hours?|\d{3}", part.shows), part.shows


@pytest.mark.usefixtures("two_parts")
def test_what_changes_while_a_part_runs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter([State("abc", "1"), State("abd", "2"), State("abd", "2")])
    monkeypatch.setattr(prove, "state_of", lambda *_: next(states))
    prove.prove_command(arguments(tmp_path), Term(quiet=True))
    found = {each.name: each.state for each in prove.read(tmp_path / prove.JSON_NAME)}
    assert found == {"good": "changed meanwhile", "bad": "abd"}


@pytest.mark.usefixtures("two_parts")
def test_the_short_form_leaves_out_what_has_none(tmp_path: Path) -> None:
    assert prove.choose([GOOD, BAD], None, short=True) == [(GOOD, GOOD.short)]
    assert prove.choose([GOOD, BAD], "bad", short=True) == [(BAD, BAD.words)]


def test_no_such_part() -> None:
    with pytest.raises(UsageError, match="there are: good, bad"):
        prove.choose([GOOD, BAD], "good,other", short=False)


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"parts": [{"name": "x"}]})])
def test_a_report_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / prove.JSON_NAME).write_text(text)
    with pytest.raises(UsageError):
        prove.read(tmp_path / prove.JSON_NAME)


def test_the_page_shows_figures_where_there_are_any() -> None:
    lines = [f"line {number}" for number in range(30)]
    assert prove.shown_of(lines) == lines[-prove.SHOWN_LINES :]
    lines[3] = "===== figures ====="
    assert prove.shown_of(lines) == lines[3:]


def test_the_list_runs_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [repo_root() / "linux-um", "prove", "--list", "-o", str(tmp_path / "none")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "./linux-um test --mutants" in done.stdout
    assert not (tmp_path / "none").exists()

# SPDX-License-Identifier: GPL-2.0-only
"""Each of the bugs R1 to R52 has a test named after it and a mutant, or cannot come about."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from regressions import COLLECTED, LUCK, RACES, REGRESSIONS, STATE, Race, Regression
from linux_um import build, mutants
from linux_um.paths import repo_root
from linux_um.source import default_kernel
from linux_um.term import Term

HERE = Path(__file__).resolve().parent
LAST = 52
# What can come about on User-Mode Linux, where the mutants are.
TESTED = [row for row in REGRESSIONS if not row.reason]
IMPOSSIBLE = [row for row in REGRESSIONS if row.reason]


@functools.lru_cache(maxsize=1)
def collected() -> dict[str, list[str]]:
    """Return the tests that have each marker, whichever of them run just now."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-s", "-p", "regressions",
         "-p", "no:cacheprovider", str(HERE)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    (line,) = re.findall(rf"^{COLLECTED}(.*)$", done.stdout, re.M)
    return dict(json.loads(line))


@functools.lru_cache(maxsize=None)
def definitions(file: Path) -> dict[str, ast.stmt]:
    """Return what *file* defines at its top level, by name."""
    found: dict[str, ast.stmt] = {}
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Assign):
            found |= {to.id: statement for to in statement.targets if isinstance(to, ast.Name)}
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = statement
    return found


def strings_of(test: str) -> list[str]:
    """Return all strings of one test ("test_x.py::test_name[id]"), of what it is parametrized
    with, and of what it uses of its file."""
    file, _, name = test.partition("::")
    top = definitions(HERE / Path(file).name)
    seen: set[str] = set()
    todo = [name.partition("[")[0]]
    strings: list[str] = []
    while todo:
        name = todo.pop()
        if name in seen or name not in top:
            continue
        seen.add(name)
        for node in ast.walk(top[name]):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
            elif isinstance(node, ast.Name):
                todo.append(node.id)
            elif isinstance(node, ast.arg):
                todo.append(node.arg)
    return strings


def test_the_table_has_each_number_once() -> None:
    assert [row.number for row in REGRESSIONS] == [f"R{n}" for n in range(1, LAST + 1)]


def test_no_marker_has_a_number_of_its_own() -> None:
    assert set(collected()) <= {row.number for row in REGRESSIONS}


@pytest.mark.parametrize("row", REGRESSIONS, ids=[row.number for row in REGRESSIONS])
def test_each_bug_is_tested_or_impossible(row: Regression) -> None:
    """Or both: tested where there is what it needs."""
    tests = collected().get(row.number, [])
    assert bool(row.reason) is bool(row.needs)
    if not row.reason:
        assert tests, f"nothing is marked regression({row.number!r})"
        name = f"_{row.number.lower()}_"
        assert any(name in test.partition("::")[2] for test in tests), f"no name has {name}"
    files = {Path(test.partition("::")[0]).stem.removeprefix("test_") for test in tests}
    assert set(row.files) == files, "the table names other files"


@pytest.mark.parametrize("row", TESTED, ids=[row.number for row in TESTED])
def test_each_tested_bug_can_be_put_back(row: Regression) -> None:
    """There is a mutant with it, and a file of the table has a test that has to kill it."""
    killers = {
        killer.partition("::")[0]
        for mutant in mutants.load(HERE / "mutants") + mutants.load(HERE / "mutants" / "7.3")
        if row.number in re.findall(r"\bR\d+\b", mutant.breaks)
        for killer in mutant.killers
    }
    assert killers & {f"test_{file}.py" for file in row.files}, killers


@pytest.mark.parametrize("race", RACES, ids=[race.number for race in RACES])
def test_each_race_is_provoked_at_a_moment_of_the_engine(race: Race) -> None:
    """Its tests name the moments, and the engine has them; or it is said what is done instead.

    Where that is to wait for luck, a test says what it was when there was none.
    """
    source = (repo_root() / "pksm" / "mm" / "pksm" / "hold.c").read_text()
    known = set(re.findall(r'\[PKSM_AT_\w+\]\s*= "(\w+)"', source)) - {"off"}
    assert race.how
    assert set(race.moments) <= known
    assert bool(race.moments) != (race.instead in (STATE, LUCK))
    said = [string for test in collected()[race.number] for string in strings_of(test)]
    if race.instead == LUCK:
        assert any("the test tested nothing" in string for string in said)
    for moment in race.moments:
        assert any(re.search(rf"(^|[=:]){moment}($|:)", string) for string in said), moment


@pytest.mark.parametrize("row", IMPOSSIBLE, ids=[row.number for row in IMPOSSIBLE])
def test_cannot_come_about_here(row: Regression, request: pytest.FixtureRequest) -> None:
    """Skipped, with the reason; a kernel that has what the bug needs has its tests, too."""
    profile, arch = (request.config.getoption(name) for name in ("--profile", "--arch"))
    image = build.ensure_image(profile, default_kernel(), term=Term(), arch=arch)
    config = image.config.read_text()
    there = [symbol for symbol in row.needs if f"CONFIG_{symbol}=" in config]
    if not there:
        pytest.skip(row.reason)
    assert row.files, f"{', '.join(there)} is there now: {row.number} needs a test"

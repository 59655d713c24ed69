# SPDX-License-Identifier: GPL-2.0-only
"""Each of the bugs R1 to R52 has a test named after it and a mutant, or cannot come about."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from regressions import COLLECTED, RACES, REGRESSIONS, Race, Regression
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
    """Its tests name the moments, and the engine has them; or it is said what is done instead."""
    source = (repo_root() / "pksm" / "mm" / "pksm" / "hold.c").read_text()
    known = set(re.findall(r'\[PKSM_AT_\w+\]\s*= "(\w+)"', source)) - {"off"}
    (row,) = (row for row in REGRESSIONS if row.number == race.number)
    text = "".join((HERE / f"test_{file}.py").read_text() for file in row.files)
    assert race.how
    assert set(race.moments) <= known
    for moment in race.moments:
        assert re.search(rf'"{moment}"|[=":]{moment}[":]', text), moment


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

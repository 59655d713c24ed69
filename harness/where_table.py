#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes the table of which test ran where, from what runs of the suite have left.

    where_table.py [--commit NAME] TITLE=JUNIT.XML[,JUNIT.XML...]... > harness/tests/where.md

Each run of `./linux-um test` leaves the results of its tests in junit.xml, or where
--junitxml says. TITLE names the kernel and the machine; columns are in the order given.
Of a test that is in several files of a title the last counts, and the table says how
many there are of these. A title may be of some files of tests only; these have to have
been run whole.

The test of this table counts as passed. Which state of the tree was run, and when, is in
junit.xml as well (conftest.py writes it there). --commit names it for a file without.
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HEAD = """\
# Which test ran where

Made by `harness/where_table.py` from the results of these runs. A cell says how many
tests of a file passed; in parentheses, how many were skipped. Empty: it was not run.

"""
# The name of the property of a run that has the state of the tree.
STATE = "state"
# The test of the table that this makes. What was run could only look at the one before, which
# is mostly stale by then; and if this one is wrong it fails from now on.
OWN_TEST = "test_the_table_of_the_repository_has_each_test_and_adds_up"
_CELL = re.compile(r"(\d+)?(?: ?\((\d+)\))?(?: \*\*(\d+) failed\*\*)?")
_RUN = re.compile(r"- (.*): \d+ files; commit ([^;]+)(?:; ([^;]+))?")
_TOTAL = "**all**"


@dataclass
class Run:
    """The results of one run: of each file of tests, how many had which outcome.

    ``commits`` are the states of the tree that were run, ``days`` those on which they were.
    """

    title: str
    files: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    again: int = 0
    commits: list[str] = field(default_factory=list)
    days: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, title: str, *paths: Path, commit: str = "") -> Run:
        """Read junit files; *commit* was run where a file does not say.

        Raises OSError, ElementTree.ParseError, or ValueError when nobody says.
        """
        run = cls(title)
        cases: dict[tuple[str, str], ElementTree.Element] = {}
        for path in paths:
            root = ElementTree.parse(path).getroot()
            run._note(root, commit, path)
            for case in root.iter("testcase"):
                key = case.get("classname", ""), case.get("name", "")
                # What fails in its test and in what comes after it is there twice.
                run.again += key in cases and path != paths[0]
                cases[key] = case
        for case in cases.values():
            name = case.get("classname", "").rsplit(".", 1)[-1]
            skipped = case.find("skipped")
            if skipped is not None:
                outcome = "skipped"
                run.reasons[skipped.get("message", "")] += 1
            elif case.get("name") == OWN_TEST:
                outcome = "passed"
            elif case.find("failure") is not None or case.find("error") is not None:
                outcome = "failed"
            else:
                outcome = "passed"
            run.files.setdefault(name, Counter())[outcome] += 1
        return run

    def _note(self, root: ElementTree.Element, commit: str, path: Path) -> None:
        """Note what was run, and when. Raises ValueError."""
        states = [each.get("value", "") for each in root.iter("property") if each.get("name") == STATE]
        state = states[0] if states else commit
        if not state:
            raise ValueError(f"{path} does not say of which commit it is: give --commit")
        # 2026-11-28T07:26:00.915843
        days = [each.get("timestamp", "")[:10] for each in root.iter("testsuite")]
        for known, new in ((self.commits, [state]), (self.days, filter(None, days))):
            known += [each for each in new if each not in known]

    def line(self) -> str:
        """Return what was run, and when."""
        days = f"; {', '.join(self.days)}" if self.days else ""
        return f"- {self.title}: {len(self.files)} files; commit {', '.join(self.commits)}{days}"

    def cell(self, name: str) -> str:
        """Return what is to be said of one file."""
        seen = self.files.get(name)
        if seen is None:
            return ""
        text = str(seen["passed"]) if seen["passed"] or not seen["skipped"] else ""
        if seen["skipped"]:
            text += f" ({seen['skipped']})"
        if seen["failed"]:
            text += f" **{seen['failed']} failed**"
        return text.strip()

    def total(self) -> str:
        """Return the sum of all files."""
        whole: Counter[str] = sum(self.files.values(), Counter())
        failed = f" **{whole['failed']} failed**" if whole["failed"] else ""
        return f"{whole['passed']} ({whole['skipped']}){failed}"


def table(runs: list[Run]) -> str:
    """Return what was run, the table, and below it why tests were skipped."""
    lines = [*(run.line() for run in runs), ""]
    lines += ["| tests | " + " | ".join(run.title for run in runs) + " |"]
    lines.append("|---" * (len(runs) + 1) + "|")
    for name in sorted({name for run in runs for name in run.files}):
        lines.append(f"| {name} | " + " | ".join(run.cell(name) for run in runs) + " |")
    lines.append(f"| {_TOTAL} | " + " | ".join(run.total() for run in runs) + " |")
    for run in runs:
        if run.again:
            lines += ["", f"{run.title}: {run.again} tests were run again."]
        if run.reasons:
            lines += ["", f"Skipped, {run.title}:", ""]
            lines += [f"- {number}: {reason}" for reason, number in run.reasons.most_common()]
    return "\n".join(lines) + "\n"


def parse(text: str) -> list[Run]:
    """Return the runs that a table was made from, without its totals.

    Raises ValueError for a text that is no such table.
    """
    rows = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    if not rows or rows[0][0] != "tests":
        raise ValueError("there is no table")
    runs = [Run(title) for title in rows[0][1:]]
    for name, *cells in rows[1:]:
        if name == _TOTAL:
            continue
        if len(cells) != len(runs):
            raise ValueError(f"{name}: {len(cells)} cells, and {len(runs)} runs")
        for run, cell in zip(runs, cells, strict=True):
            found = _CELL.fullmatch(cell.strip())
            if found is None:
                raise ValueError(f"{name}: {cell!r} is no cell")
            if cell.strip():
                counts = zip(("passed", "skipped", "failed"), found.groups(), strict=True)
                run.files[name] = Counter({what: int(number or 0) for what, number in counts})
    titled = {run.title: run for run in runs}
    reasons: Counter[str] = Counter()
    for line in text.splitlines():
        if noted := _RUN.fullmatch(line):
            if noted[1] not in titled:
                raise ValueError(f"{line!r}: there is no such run")
            titled[noted[1]].commits = noted[2].split(", ")
            titled[noted[1]].days = noted[3].split(", ") if noted[3] else []
        elif again := re.fullmatch(r"(.*): (\d+) tests were run again\.", line):
            if again[1] not in titled:
                raise ValueError(f"{line!r}: there is no such run")
            titled[again[1]].again = int(again[2])
        elif begins := re.fullmatch(r"Skipped, (.*):", line):
            if begins[1] not in titled:
                raise ValueError(f"{line!r}: there is no such run")
            reasons = titled[begins[1]].reasons
        elif reason := re.fullmatch(r"- (\d+): (.*)", line):
            reasons[reason[2]] = int(reason[1])
    return runs


def main(arguments: list[str]) -> int:
    """Print the table; 125 when an argument is no result of a run."""
    runs = []
    commit = ""
    if len(arguments) > 1 and arguments[0] == "--commit":
        commit, arguments = arguments[1], arguments[2:]
    for argument in arguments:
        title, equals, path = argument.partition("=")
        try:
            if not equals:
                raise ValueError("not TITLE=JUNIT.XML")
            runs.append(Run.read(title, *map(Path, path.split(",")), commit=commit))
        except (OSError, ValueError, ElementTree.ParseError) as error:
            print(f"where_table.py: {argument}: {error}", file=sys.stderr)
            return 125
    if not runs:
        usage = "where_table.py [--commit NAME] TITLE=JUNIT.XML[,JUNIT.XML...]..."
        print(f"usage: {usage}", file=sys.stderr)
        return 125
    sys.stdout.write(HEAD + table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

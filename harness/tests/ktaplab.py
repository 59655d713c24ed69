# SPDX-License-Identifier: GPL-2.0-only
"""Suites whose results are KTAP, each case of which is to be a pytest test.

A suite runs once in each worker; its cases are known before it has run, from
its source. A case that is listed there and has no result is a failure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from linux_um import ktap
from linux_um.errors import LinuxUmError
from linux_um.guest import CONSOLE, finished_image
from linux_um.ktap import Results, Status
from linux_um.paths import overlay_dir
from linux_um.source import default_kernel
from linux_um.term import Term

# Of what was printed, the lines that a failure shows.
TAIL_LINES = 30


@dataclass(frozen=True)
class Run:
    """A suite that has run: what it printed, and how it ended.

    ``trouble`` says what befell the guest, if anything did; ``status`` is the
    exit status of a program.
    """

    output: str
    results: Results
    status: int = 0
    trouble: str = ""

    def tail(self) -> str:
        """Return the last lines that were printed."""
        return "\n".join(self.output.splitlines()[-TAIL_LINES:])


def parser_of(profile: str) -> Path:
    """Return the directory of the parser that belongs to the kernel of *profile*."""
    return finished_image(profile, default_kernel(), Term(quiet=True)).kunit_tools


def run_of(profile: str, output: str, *, status: int = 0, error: Exception | None = None) -> Run:
    """Return the run that has printed *output*, and ended with *error* if one is given."""
    results = ktap.parse(output, parser_of(profile))
    return Run(output, results, status, "" if error is None else str(error))


def console_of(error: LinuxUmError) -> str:
    """Return the console log of the guest that *error* came from."""
    return str(getattr(error, CONSOLE, ""))


def listed(source: str, pattern: str) -> tuple[str, ...]:
    """Return the names that *pattern* finds in a file of the engine.

    Raises ValueError when there are none, or one is there twice.
    """
    names = re.findall(pattern, (overlay_dir() / source).read_text(), re.MULTILINE)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{source} lists {len(names)} tests, {len(set(names))} of them different")
    return tuple(names)


def judge(run: Run, name: str) -> None:
    """Let the pytest test that stands for the case *name* end as the case did."""
    why = f"{run.trouble}\n{run.tail()}".strip()
    try:
        case = run.results[name]
    except KeyError:
        pytest.fail(f"{name} is listed and has no result\n{why}", pytrace=False)
    if case.status is Status.SKIPPED:
        pytest.skip(case.reason or "no reason given")
    if case.status is Status.CRASHED:
        pytest.fail(f"{name} did not come to its end\n{why}", pytrace=False)
    if case.status is Status.FAILED:
        pytest.fail(f"{name} failed\n{case.log}", pytrace=False)


def judge_whole(run: Run, names: tuple[str, ...]) -> None:
    """Check that just the cases *names* have a result, and nothing else went wrong."""
    assert not run.results.skipped, f"nothing ran: {run.results.skipped}"
    assert sorted(run.results.names) == sorted(names), run.tail()
    assert run.results.errors == (), run.tail()
    assert run.trouble == ""

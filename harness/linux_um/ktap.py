# SPDX-License-Identifier: GPL-2.0-only
"""Results in KTAP, as KUnit and the kernel's selftests print them.

The kernel's own parser reads them (tools/testing/kunit/kunit_parser.py, of
which a finished kernel keeps a copy). Here its tree of tests becomes a flat
list of cases, what it prints is kept instead of printed, and lines that
kselftest.h writes and the parser does not know are put in the form it does.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import io
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

from .build import KUNIT_FILES
from .errors import LinuxUmError

PARSER, PRINTER = KUNIT_FILES

# "ok 3 # SKIP name" of ksft_test_result_skip() and its like, for "ok 3 name # SKIP".
_DIRECTIVE_FIRST = re.compile(r"^(\s*(?:not )?ok \d+) # (SKIP|XFAIL|XPASS|error) (.*)$")
_RESULT = re.compile(r"^\s*(?:not )?ok \d+ ")
_SKIPPED = re.compile(r"ok \d+ (?:- )?(.*?) # SKIP ?(.*)$")
_ALL_SKIPPED = re.compile(r"^1\.\.0 # SKIP ?(.*)$")


class Status(Enum):
    """What became of a case."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Case:
    """One test that has no tests below it; ``name`` is without the names above.

    ``log`` holds the lines that came before its result, or, without a result,
    all that came; ``reason`` is why it was skipped.
    """

    name: str
    status: Status
    log: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Results:
    """All cases in their order.

    ``errors`` are what is wrong with the output as a whole: a plan that was
    not kept, results without a test. ``skipped`` is the reason when nothing
    ran at all because nothing could.
    """

    cases: tuple[Case, ...]
    errors: tuple[str, ...] = ()
    skipped: str = ""

    def __getitem__(self, name: str) -> Case:
        """Return the case called *name*. Raises KeyError when it did not run."""
        for case in self.cases:
            if case.name == name:
                return case
        raise KeyError(name)

    @property
    def names(self) -> list[str]:
        """The names of the cases that have a result."""
        return [case.name for case in self.cases if case.status is not Status.CRASHED]


@functools.cache
def _load(directory: Path) -> tuple[ModuleType, ModuleType]:
    """Return the kernel's parser and its printer. Raises LinuxUmError without them."""
    printer = _import("kunit_printer", directory / PRINTER)
    # The parser imports the printer by that name.
    before = sys.modules.get("kunit_printer")
    sys.modules["kunit_printer"] = printer
    try:
        parser = _import("kunit_parser", directory / PARSER)
    finally:
        if before is None:
            del sys.modules["kunit_printer"]
        else:
            sys.modules["kunit_printer"] = before
    return parser, printer


def _import(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"linux_um_{name}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise LinuxUmError(f"{path} is missing", "run: ./linux-um clean, and build again")
    module = importlib.util.module_from_spec(spec)
    # dataclasses looks its module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def parse(text: str, tools: Path) -> Results:
    """Return the results in *text*, a kernel's log or the output of a selftest.

    *tools* is the directory of the kernel's parser.
    """
    lines = [_normal(line) for line in text.splitlines()]
    for line in lines:
        if match := _ALL_SKIPPED.match(line):
            return Results((), skipped=match.group(1).strip() or "no reason given")
    parser, printer = _load(tools)
    said = io.StringIO()
    teller = printer.Printer(output=said)
    # Up to 6.12 or so it prints by a variable of its module, later as it is told.
    if "printer" in inspect.signature(parser.parse_run_tests).parameters:
        tree: Any = parser.parse_run_tests(lines, teller)
    else:
        setattr(parser, "stdout", teller)
        tree = parser.parse_run_tests(lines)
    errors = tuple(
        re.sub(r"^\[[\d:]+\] \[ERROR\] Test: ", "", line)
        for line in said.getvalue().splitlines()
        if "[ERROR]" in line
    )
    # The parser does not keep them.
    found = (_SKIPPED.search(line) for line in lines)
    reasons = {match.group(1): match.group(2) for match in found if match is not None}
    return Results(tuple(_flatten(tree, reasons)), errors)


def _normal(line: str) -> str:
    """Return a line of results as the kernel's parser takes it."""
    line = _DIRECTIVE_FIRST.sub(r"\1 \3 # \2", line.rstrip())
    if _RESULT.match(line):
        # A name must not have the mark of a directive in it.
        name, mark, directive = line.partition(" # ")
        line = name.replace("#", "_") + mark + directive
    return line


def _flatten(test: Any, reasons: Mapping[str, str]) -> Iterable[Case]:
    """Yield the tests below *test* that have none below themselves."""
    for child in test.subtests:
        if child.subtests:
            yield from _flatten(child, reasons)
            continue
        status = _status(child)
        reason = reasons.get(child.name, "") if status is Status.SKIPPED else ""
        yield Case(child.name or "(no name)", status, "\n".join(child.log), reason)


def _status(test: Any) -> Status:
    known = {
        "SUCCESS": Status.PASSED,
        "SKIPPED": Status.SKIPPED,
        "TEST_CRASHED": Status.CRASHED,
    }
    return known.get(test.status.name, Status.FAILED)

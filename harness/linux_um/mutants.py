# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that are broken on purpose, to see the suite fail.

A mutant is a patch against the patched kernel tree, ``harness/tests/mutants/
NAME.patch``. Its head says what it breaks and names the tests that must
notice::

    Breaks: pages are merged without having been compared
    Killed-by: test_content.py test_cow.py::test_name

The mutant is killed when those tests fail in a kernel built with it, and
survives when they pass.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .errors import LinuxUmError, UsageError
from .paths import repo_root
from .term import Term

# pytest's exit status when tests ran and some failed.
TESTS_FAILED = 1
_HEADER = re.compile(r"^(Breaks|Killed-by): *(.+)$", re.MULTILINE)


class MutantError(LinuxUmError):
    """A mutant that could not be tried."""


@dataclass(frozen=True)
class Mutant:
    """One broken kernel: its patch, what it breaks, and the tests that must fail."""

    name: str
    patch: Path
    breaks: str
    killers: tuple[str, ...]


def load(directory: Path) -> list[Mutant]:
    """Return the mutants of *directory*, by name. Raises MutantError for a patch without a head."""
    return [parse(path) for path in sorted(directory.glob("*.patch"))]


def parse(path: Path) -> Mutant:
    """Return the mutant in the file *path*. Raises MutantError when its head is incomplete."""
    head = path.read_text().split("\n--- ", 1)[0]
    fields = dict(_HEADER.findall(head))
    for field in ("Breaks", "Killed-by"):
        if field not in fields:
            raise MutantError(f"{path.name}: no line {field}:", "add it above the patch")
    return Mutant(path.stem, path, fields["Breaks"], tuple(fields["Killed-by"].split()))


def select(mutants: list[Mutant], names: list[str]) -> list[Mutant]:
    """Return the mutants called *names*, or all. Raises UsageError for an unknown name."""
    known = {mutant.name: mutant for mutant in mutants}
    for name in names:
        if name not in known:
            raise UsageError(f"no mutant {name!r}", f"there are: {' '.join(known)}")
    return [known[name] for name in names] if names else mutants


def run(names: list[str], profile: str, kernel: str, *, term: Term) -> int:
    """Try each mutant; print a line for each; return 0 when all were killed, else 1.

    Raises UsageError for an unknown name and MutantError for a mutant that
    does not apply, build or boot.
    """
    chosen = select(load(repo_root() / "harness" / "tests" / "mutants"), names)
    survivors = 0
    for mutant in chosen:
        with term.step(f"mutant {mutant.name}: {mutant.breaks}"):
            failed = try_mutant(mutant, profile, kernel)
        survivors += failed == 0
        verdict = f"killed by {failed} tests" if failed else "SURVIVED"
        print(f"{mutant.name:24} {verdict}", flush=True)
    print(f"{len(chosen) - survivors} killed, {survivors} survived")
    return 1 if survivors else 0


def try_mutant(mutant: Mutant, profile: str, kernel: str) -> int:
    """Build and test a copy of the repository with the mutant; return how many tests failed."""
    with tempfile.TemporaryDirectory(prefix="linux-um-mutant-") as scratch:
        copy = Path(scratch) / "repository"
        shutil.copytree(
            repo_root(), copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "*_cache")
        )
        series = copy / "linux-patches" / kernel
        shutil.copy(mutant.patch, series / "mutant.patch")
        with (series / "series").open("a") as file:
            file.write("mutant.patch\n")
        tests = [str(copy / "harness" / "tests" / killer) for killer in mutant.killers]
        command = [str(copy / "linux-um"), "test", "--profile", profile, "--kernel", kernel,
                   "-q", "--tb=no", "--no-header", f"--junitxml={scratch}/junit.xml",
                   "-p", "no:cacheprovider", *tests]  # fmt: skip
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LINUX_UM_PYTHON": sys.executable},
        ) as process:
            try:
                stdout, stderr = process.communicate()
            except BaseException:
                # The launcher ends its tests, and they their guests.
                process.terminate()
                process.communicate()
                raise
    return verdict_of(mutant.name, process.returncode, stdout, stderr)


def verdict_of(name: str, status: int, stdout: str, stderr: str) -> int:
    """Return how many tests failed, from what ``linux-um test`` said.

    Raises MutantError when it did not get as far as running them.
    """
    if status == 0:
        return 0
    counted = re.search(r"(\d+) failed", stdout)
    if status == TESTS_FAILED and counted is not None:
        return int(counted.group(1))
    said = [line for line in (stdout + stderr).splitlines() if line.strip()]
    raise MutantError(
        f"mutant {name} could not be tried (exit status {status}): {said[-1] if said else ''}",
        "see that its patch fits and builds",
    )

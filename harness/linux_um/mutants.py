# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that are broken on purpose, to see the suite fail.

A mutant is a patch against the patched kernel tree, ``harness/tests/mutants/
NAME.patch``. Its head says what it breaks and names the tests that must
notice::

    Breaks: pages are merged without having been compared
    Killed-by: test_content.py test_cow.py::test_name

Those in a directory of the name of a series, such as ``7.3``, are tried with
``--kernel 7.3``, in the profile that is given; those in one of the name of a
machine, such as ``x86_64``, with ``--arch x86_64``.

The mutant is killed when one of those tests fails in a kernel built with it,
and survives when all pass. The first failure is enough.

Mutants are built one after the other in one build directory, from a copy of
the repository that always lies at the same place, so that each costs the
compilation of what it changes, and a link. Their profile has no debug info.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from . import kconfig
from .errors import EXIT_LAUNCHER, LinuxUmError, UsageError
from .options import DEFAULT_PROFILE
from .paths import cache_root, ensure_dir, lock, repo_root
from .source import DEFAULT_KERNEL, series_of
from .term import Term

# What mutants of the default profile are built as.
MUTANT_PROFILE = kconfig.MUTANT_PROFILE
# The directory of the cache that belongs to this module.
PLACE = "mutant"
# What of the repository a kernel is built from and tested by.
PARTS = ("linux-um", "linux-patches", "pksm", "um-config", "rootfs", "harness", "gdb-scripts")
# How the message of a test begins that has got no guest.
_NO_GUEST = ("linux_um.errors.BootError", "linux_um.errors.HostError")
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


def directory_of(kernel: str, arch: str = kconfig.UM) -> Path:
    """Return where the mutants of *kernel* for the machine *arch* are.

    Raises UsageError when there are none.
    """
    directory = repo_root() / "harness" / "tests" / "mutants"
    series = series_of(kernel)
    if series != DEFAULT_KERNEL:
        directory /= series
    if arch != kconfig.UM:
        directory /= arch
    if not directory.is_dir():
        machine = "" if arch == kconfig.UM else f" for {arch}"
        raise UsageError(
            f"no mutants of kernel {series}{machine}", f"leave --kernel at {DEFAULT_KERNEL}"
        )
    return directory


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


def select(mutants: list[Mutant], patterns: list[str]) -> list[Mutant]:
    """Return the mutants whose names match one of *patterns*, such as ``no-*``, or all.

    In the order of the patterns, each once. Raises UsageError for a pattern
    that matches none.
    """
    known = {mutant.name: mutant for mutant in mutants}
    chosen: dict[str, Mutant] = {}
    for pattern in patterns:
        names = fnmatch.filter(known, pattern)
        if not names:
            raise UsageError(f"no mutant {pattern!r}", f"there are: {' '.join(known)}")
        chosen.update((name, known[name]) for name in names)
    return list(chosen.values()) if patterns else mutants


def run(
    patterns: list[str], profile: str, kernel: str, *, term: Term, arch: str = kconfig.UM
) -> int:
    """Try each mutant; print a line for each.

    Returns 0 when all were killed, 1 when one survived, else 125: one does not
    apply, build or boot. Raises UsageError for a pattern that matches none.
    """
    chosen = select(load(directory_of(kernel, arch)), patterns)
    if profile == DEFAULT_PROFILE:
        profile = MUTANT_PROFILE
    survived = untried = 0
    with lock("mutants", term=term):
        for mutant in chosen:
            with term.step(f"mutant {mutant.name}: {mutant.breaks}"):
                try:
                    killer = try_mutant(mutant, profile, kernel, arch)
                except MutantError as error:
                    verdict = f"NOT TRIED: {error.line()}"
                    untried += 1
                else:
                    verdict = f"killed by {killer}" if killer else "SURVIVED"
                    survived += not killer
            print(f"{mutant.name:24} {verdict}", flush=True)
    counts = [f"{len(chosen) - survived - untried} killed", f"{survived} survived"]
    print(", ".join(counts + ([f"{untried} not tried"] if untried else [])))
    return 1 if survived else EXIT_LAUNCHER if untried else 0


def try_mutant(mutant: Mutant, profile: str, kernel: str, arch: str = kconfig.UM) -> str:
    """Build and test a copy of the repository with the mutant.

    Returns the first test that failed, or an empty text when none did. Call
    with the lock held. Raises MutantError when no test came to run.
    """
    place = ensure_dir(cache_root() / PLACE)
    copy = place / "repository"
    copy_repository(repo_root(), copy)
    series = copy / "linux-patches" / series_of(kernel)
    shutil.copy(mutant.patch, series / "mutant.patch")
    with (series / "series").open("a") as file:
        file.write("mutant.patch\n")
    junit = place / "junit.xml"
    junit.unlink(missing_ok=True)
    tests = [str(copy / "harness" / "tests" / killer) for killer in mutant.killers]
    command = [str(copy / "linux-um"), "test", "--profile", profile, "--kernel", kernel,
               "--arch", arch, "-q", "-x", "--tb=no", "--no-header", f"--junitxml={junit}",
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
    results = junit.read_text() if junit.is_file() else ""
    return verdict_of(mutant.name, process.returncode, results, stdout + stderr)


def copy_repository(source: Path, copy: Path) -> None:
    """Make *copy* the parts of *source* that matter; what is compiled from them stays valid."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for part in PARTS:
        if (source / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*_cache")
            shutil.copytree(source / part, copy / part, ignore=ignored)
        else:
            shutil.copy2(source / part, copy / part)


def verdict_of(name: str, status: int, junit: str, said: str) -> str:
    """Return the first test that failed, from pytest's results; empty when all passed.

    A test that has passed and whose guest was found unwell afterwards has
    failed; one that could not begin has not. Raises MutantError when none
    failed and yet ``linux-um test`` did.
    """
    failed = first_failure(junit) if junit else ""
    if failed:
        return failed
    if status == 0:
        return ""
    lines = [line for line in said.splitlines() if line.strip()]
    raise MutantError(
        f"mutant {name} could not be tried (exit status {status}): {lines[-1] if lines else ''}",
        "see that its patch fits and builds",
    )


def first_failure(junit: str) -> str:
    """Return the first test that failed, as ``test_file.py::test_name``; empty when there is none.

    Raises MutantError when a text is no results of pytest.
    """
    try:
        cases = list(ElementTree.fromstring(junit).iter("testcase"))
    except ElementTree.ParseError as error:
        raise MutantError(f"pytest left no results: {error}") from error
    for case in cases:
        if any(_is_kill(result) for result in case):
            module = case.get("classname", "").rpartition(".")[2]
            return f"{module}.py::{case.get('name')}"
    return ""


def _is_kill(result: ElementTree.Element) -> bool:
    """Return whether what pytest says of a test is about the kernel, once it had booted."""
    message = result.get("message", "")
    if result.tag == "error":
        return "teardown" in message
    return result.tag == "failure" and not message.startswith(_NO_GUEST)

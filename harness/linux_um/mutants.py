# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that are broken on purpose, to see the suite fail.

A mutant is a patch against the patched kernel tree, ``harness/tests/mutants/
NAME.patch``. Its head says what it breaks and names the tests that must
notice::

    Breaks: pages are merged without having been compared
    Killed-by: test_content.py test_cow.py::test_name

Those in a directory of the name of a series, such as ``7.3``, are tried with
``--kernel 7.3``; those in one of the name of a machine, such as ``x86_64``, with
``--arch x86_64``. One whose name begins with ``smp-`` is tried with two CPUs: in
the profile smp, or in the one with SMP that belongs to the profile that is given
(``ksm``: smp-ksm).

The mutant is killed when one of those tests fails in a kernel built with it,
and survives when all pass. The first failure is enough. Where all were skipped
it has not been tried.

Mutants are built one after the other in one build directory, from a copy of
the repository that always lies at the same place, so that each costs the
compilation of what it changes, and a link. Their profile has no debug info.
Where there are many, several workers share them, each with such a place and with
a cache of its own, which is made of the same source.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from . import build, kconfig
from .errors import EXIT_LAUNCHER, LinuxUmError, UsageError
from .options import DEFAULT_PROFILE
from .paths import cache_root, ensure_dir, lock, repo_root, source_dir
from .source import DEFAULT_KERNEL, series_of
from .term import Term

# What mutants of the default profile are built as.
MUTANT_PROFILE = kconfig.MUTANT_PROFILE
# How the names of mutants begin that one CPU cannot tell from a sound kernel.
SMP_PREFIX = "smp-"
# The directory of the cache that belongs to this module.
PLACE = "mutant"
# What of the repository a kernel is built from and tested by.
PARTS = ("linux-um", "linux-patches", "pksm", "um-config", "rootfs", "harness", "gdb-scripts")
# As many mutants are worth a worker: it compiles a kernel before its first one.
WORTH_A_WORKER = 12
_JOBS = re.compile(r"-n=?([1-9][0-9]*)")
_SHARE = re.compile(r"--share=([1-9][0-9]*)/([1-9][0-9]*)")
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


def profile_of(mutant: Mutant, profile: str, arch: str) -> str:
    """Return the profile that *mutant* is built as where *profile* is asked for."""
    if mutant.name.startswith(SMP_PREFIX):
        return kconfig.with_cpus(profile, 2, arch)
    return profile


def jobs_of(words: Sequence[str]) -> tuple[int, list[str]]:
    """Return the number of workers that ``-n NUMBER`` among *words* asks for, and the others.

    Without it there are two, or one where there is one CPU. Raises UsageError.
    """
    words = list(words)
    jobs = min(2, os.cpu_count() or 1)
    for place, word in enumerate(words):
        if word == "-n":
            word = "".join(words[place : place + 2])
            del words[place : place + 1]
        if not word.startswith("-"):
            continue
        found = _JOBS.fullmatch(word)
        if found is None:
            raise UsageError(
                f"{word}: mutants have no such option", "-n NUMBER, --share=K/N, or patterns"
            )
        del words[place]
        return int(found[1]), words
    return jobs, words


def share_of(words: Sequence[str]) -> tuple[tuple[int, int], list[str]]:
    """Return K and N of the word ``--share=K/N``, and the other *words*; 1 and 1 without it.

    Raises UsageError when there is no such share.
    """
    share, others = (1, 1), []
    for word in words:
        if not word.startswith("--share"):
            others.append(word)
            continue
        found = _SHARE.fullmatch(word)
        share = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 0 < share[0] <= share[1]:
            raise UsageError(f"{word}: no such share", "--share=2/3 is the second of three")
    return share, others


def run(
    patterns: list[str],
    profile: str,
    kernel: str,
    *,
    term: Term,
    arch: str = kconfig.UM,
    jobs: int = 1,
    share: tuple[int, int] = (1, 1),
) -> int:
    """Try each mutant, *jobs* at a time where there are many; print a line for each.

    *share* K of N begins with the Kth and has each Nth from there.

    Returns 0 when all were killed, 1 when one survived, else 125: one does not
    apply, build or boot. Raises UsageError for a pattern that matches none.
    """
    chosen = select(load(directory_of(kernel, arch)), patterns)[share[0] - 1 :: share[1]]
    if profile == DEFAULT_PROFILE:
        profile = MUTANT_PROFILE
    jobs = max(1, min(jobs, len(chosen) // WORTH_A_WORKER))
    survived = untried = 0
    with lock("mutants", term=term):
        crew = Crew(profile, kernel, arch, jobs, term)
        for mutant, killer in crew.try_all(chosen):
            if isinstance(killer, MutantError):
                verdict = f"NOT TRIED: {killer.line()}"
                untried += 1
            else:
                verdict = f"killed by {killer}" if killer else "SURVIVED"
                survived += not killer
            print(f"{mutant.name:24} {verdict}", flush=True)
    counts = [f"{len(chosen) - survived - untried} killed", f"{survived} survived"]
    counts += [f"{untried} not tried"] if untried else []
    counts += [f"share {share[0]} of {share[1]}"] if share != (1, 1) else []
    print(", ".join(counts))
    return 1 if survived else EXIT_LAUNCHER if untried else 0


@dataclass(frozen=True)
class Place:
    """Where a worker has its copy of the repository, and its cache."""

    directory: Path
    cache: Path


class Crew:
    """Workers that try mutants. Call with the lock held."""

    def __init__(self, profile: str, kernel: str, arch: str, jobs: int, term: Term) -> None:
        """For *jobs* workers, which build mutants of *profile*."""
        self.profile, self.kernel, self.arch = profile, kernel, arch
        self._jobs = jobs
        self._term = term
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def try_all(self, chosen: Sequence[Mutant]) -> Iterator[tuple[Mutant, str | MutantError]]:
        """Try each mutant of *chosen*; yield it, and its killer or why it was not tried."""
        free = [self._place(number) for number in range(self._jobs)]
        begun: dict[Future[str], tuple[Mutant, Place]] = {}
        waiting = list(reversed(chosen))
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                while waiting or begun:
                    while waiting and free:
                        mutant, place = waiting.pop(), free.pop()
                        begun[pool.submit(self._try, mutant, place)] = mutant, place
                    tried = [mutant for mutant, _ in begun.values()]
                    done = len(chosen) - len(waiting) - len(begun)
                    with self._term.step(self._title(tried, done, len(chosen))):
                        ended, _ = wait(begun, return_when=FIRST_COMPLETED)
                    for future in ended:
                        mutant, place = begun.pop(future)
                        free.append(place)
                        yield mutant, self._verdict(future)
            except BaseException:
                self.end()
                raise

    def end(self) -> None:
        """End what runs: each launcher ends its tests, and they their guests."""
        self._ended = True
        for process in list(self._running):
            process.terminate()

    def _title(self, tried: Sequence[Mutant], done: int, number: int) -> str:
        if self._jobs == 1:
            return f"mutant {tried[0].name}: {tried[0].breaks}"
        names = " and ".join(mutant.name for mutant in tried)
        return f"mutants, {done} of {number} tried: {names}"

    def _verdict(self, future: Future[str]) -> str | MutantError:
        try:
            return future.result()
        except MutantError as error:
            return error

    def _place(self, number: int) -> Place:
        """Return where worker *number* works; the source is there for it."""
        place = cache_root() / PLACE
        if number == 0:
            return Place(ensure_dir(place), cache_root())
        build.ensure_tree(self.profile, self.kernel, term=self._term)
        cache = ensure_dir(place / f"worker-{number}")
        source = source_dir("x").parent
        if not (cache / source.name).is_symlink():
            (cache / source.name).symlink_to(source)
        return Place(cache, cache)

    def _try(self, mutant: Mutant, place: Place) -> str:
        """Build and test a copy of the repository with the mutant.

        Returns the first test that failed, or an empty text when none did. Raises
        MutantError when no test came to run.
        """
        copy = place.directory / "repository"
        copy_repository(repo_root(), copy)
        series = copy / "linux-patches" / series_of(self.kernel)
        shutil.copy(mutant.patch, series / "mutant.patch")
        with (series / "series").open("a") as file:
            file.write("mutant.patch\n")
        junit = place.directory / "junit.xml"
        junit.unlink(missing_ok=True)
        tests = [str(copy / "harness" / "tests" / killer) for killer in mutant.killers]
        # With several workers it is they that use the CPUs.
        guests = ["-n", "0"] if self._jobs > 1 else []
        profile = profile_of(mutant, self.profile, self.arch)
        command = [str(copy / "linux-um"), "test", "--profile", profile, "--kernel",
                   self.kernel, "--arch", self.arch, "-q", "-x", "--tb=no", "--no-header",
                   f"--junitxml={junit}", "-p", "no:cacheprovider", *guests, *tests]  # fmt: skip
        environment = {
            **os.environ,
            "LINUX_UM_PYTHON": sys.executable,
            "LINUX_UM_CACHE": str(place.cache),
        }
        status, said = self._run(command, environment)
        results = junit.read_text() if junit.is_file() else ""
        return verdict_of(mutant.name, status, results, said)

    def _run(self, command: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
        """Run *command*; return its status and what it has said."""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        ) as process:
            self._running.add(process)
            try:
                # Ended before it was seen to run.
                if self._ended:
                    process.terminate()
                said, _ = process.communicate()
            finally:
                self._running.discard(process)
        return process.returncode, said


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
    failed and yet ``linux-um test`` did, or when all were skipped.
    """
    failed = first_failure(junit) if junit else ""
    if failed:
        return failed
    if status == 0:
        why = why_skipped(junit) if junit else ""
        if why:
            raise MutantError(f"mutant {name}: its tests were skipped: {why}", "see their needs")
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


def why_skipped(junit: str) -> str:
    """Return why the first of the tests was skipped; empty unless all of them were."""
    cases = list(ElementTree.fromstring(junit).iter("testcase"))
    reasons = [found.get("message", "") for case in cases if (found := case.find("skipped")) is not None]
    return reasons[0] if reasons and len(reasons) == len(cases) else ""


def _is_kill(result: ElementTree.Element) -> bool:
    """Return whether what pytest says of a test is about the kernel, once it had booted."""
    message = result.get("message", "")
    if result.tag == "error":
        return "teardown" in message
    return result.tag == "failure" and not message.startswith(_NO_GUEST)

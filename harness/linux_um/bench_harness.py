# SPDX-License-Identifier: GPL-2.0-only
"""How long the launcher takes, as a person at a terminal has it: measured from outside."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import packages, rootfs
from .bench_facts import Sample
from .bench_lab import BenchError
from .gdb_machine import Kernel
from .gdb_session import indexing
from .guest import finished_image
from .make import ccache_directory
from .paths import repo_root, source_dir
from .term import Term

# Wall-clock seconds that one guest, a build of all, and a run of tests may take, and what
# has been told to end.
LIMIT = 120.0
BUILD_LIMIT = 3600.0
TEST_LIMIT = 7200.0
END_LIMIT = 10.0
# pytest's exit status when tests have failed, and nothing else is wrong.
TESTS_FAILED = 1
GDB_PROMPT = b"(gdb) "
# What is edited, and the test that follows: paths in the repository.
EDITED = "pksm/mm/pksm/merge.c"
EDIT_TEST = "harness/tests/test_cow.py::test_every_sharer_may_write_at_once"


def _launcher() -> str:
    return str(repo_root() / "linux-um")


@dataclass(frozen=True)
class Took:
    """How long something has taken in seconds, and what is wrong with it, if anything."""

    seconds: float
    failed: str = ""


def _end(process: subprocess.Popen[Any]) -> None:
    """End *process*, which leads a session, and all that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(END_LIMIT)
            break
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def _started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run *command* with its output in a pipe; what runs at the end of the block is ended."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, start_new_session=True, **options
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                _end(process)


def boot_to_output(kernel: Sequence[str]) -> Took:
    """Return the seconds until a shell in a fresh guest writes something."""
    began = time.monotonic()
    took = None
    said = b""
    with _started(
        [_launcher(), "boot", *kernel], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"echo up\n")
        process.stdin.close()
        while time.monotonic() < began + LIMIT:
            if not select.select([process.stdout], [], [], 1.0)[0]:
                continue
            more = os.read(process.stdout.fileno(), 1 << 16)
            if not more:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LIMIT)
                break
            said += more
            if took is None and said.startswith(b"up\n"):
                took = time.monotonic() - began
        status = process.poll()
    if took is None or status != 0:
        raise BenchError("./linux-um boot does not work", "try it")
    return Took(took)


def run_true(kernel: Sequence[str]) -> Took:
    """Return the seconds that one command in a fresh guest takes, to its very end."""
    return _timed([_launcher(), "run", *kernel, "--", "true"], LIMIT)


def gdb_to_prompt(kernel: Sequence[str]) -> Took:
    """Return the seconds until gdb's prompt."""
    return _until_prompt([_launcher(), "gdb", *kernel], b"")


def gdb_to_first_stop(kernel: Sequence[str]) -> Took:
    """Return the seconds until gdb's prompt at the first page of a program."""
    command = [_launcher(), "gdb", *kernel, "--", "memdup", "--procs", "1", "--mib", "1"]
    return _until_prompt(command, b"The first page of memdup")


def _until_prompt(command: Sequence[str], before: bytes) -> Took:
    """Run *command* on a terminal; return the seconds until gdb's prompt, after *before*."""
    began = time.monotonic()
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.execvp(command[0], list(command))
        finally:
            os._exit(127)
    said = b""
    took = None
    try:
        while time.monotonic() < began + LIMIT:
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            try:
                said += os.read(terminal, 1 << 16)
            except OSError:
                break
            if took is None and before in said and GDB_PROMPT in said:
                took = time.monotonic() - began
                os.write(terminal, b"quit\n")
    finally:
        os.close(terminal)
        _reap(pid, END_LIMIT)
    if took is None:
        last = said.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        raise BenchError(f"gdb shows no prompt, but: {last[0]}", "try ./linux-um gdb")
    return Took(took)


def _reap(pid: int, limit: float) -> None:
    """Wait for the process *pid*, which leads a session; after *limit* seconds end all of it."""
    for number in (signal.SIGTERM, signal.SIGKILL, None):
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return
            time.sleep(0.05)
        if number is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)


def edit_to_test(kernel: Sequence[str]) -> Took:
    """Return the seconds from an edit of the engine until a test of it has passed.

    The edit is one of a copy of this repository, and is never the same twice.
    """
    with tempfile.TemporaryDirectory(prefix="linux-um-edit-") as scratch:
        copy = Path(scratch) / "copy"
        shutil.copytree(
            repo_root(), copy, symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__")
        )
        # The work tree may be that of another version: one file is to be compiled, no more.
        _edit(copy)
        _timed([str(copy / "linux-um"), "build", *kernel], BUILD_LIMIT)
        _edit(copy)
        return _timed(
            [str(copy / "linux-um"), "test", *kernel, "-n", "0", f"{copy}/{EDIT_TEST}"], BUILD_LIMIT
        )


def _edit(copy: Path) -> None:
    """Change what a file of the engine is compiled to, but not what it does."""
    with (copy / EDITED).open("a") as source:
        name = f"edited_{time.monotonic_ns()}"
        source.write(f"\nstatic int __maybe_unused {name}(void)\n{{\n\treturn 0;\n}}\n")


def tests(words: Sequence[str], kernel: Sequence[str]) -> Took:
    """Return the seconds that the suite takes, or what pytest's *words* choose of it.

    They are known when a test has failed as well, which is said.
    """
    return _timed([_launcher(), "test", *kernel, *words], TEST_LIMIT, may_fail=(TESTS_FAILED,))


def _timed(
    command: Sequence[str],
    limit: float,
    environment: Mapping[str, str] | None = None,
    may_fail: Sequence[int] = (),
) -> Took:
    """Return how long *command* takes.

    Its last line is what is wrong when it ends with a status of *may_fail*. Raises
    BenchError with that line when it ends with another, and when it takes more than *limit*
    seconds: then it is ended.
    """
    began = time.monotonic()
    with _started(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=environment
    ) as process:
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise BenchError(
                f"./linux-um {command[1]} has not ended within {limit:g} s", "try it"
            ) from error
    took = time.monotonic() - began
    if process.returncode == 0:
        return Took(took)
    last = (said.decode(errors="replace").strip().splitlines() or ["nothing"])[-1].strip("= ")
    if process.returncode in may_fail:
        return Took(took, last)
    raise BenchError(f"./linux-um {command[1]} ends with {process.returncode}: {last}", "try it")


def build_anew(kernel: Sequence[str]) -> Took:
    """Return the seconds that a kernel and its rootfs take of which only the source is there.

    Without ccache: every file is compiled.
    """
    return _build_elsewhere(kernel, {"CCACHE_DISABLE": "1"})


def build_from_ccache(kernel: Sequence[str]) -> Took:
    """Return the seconds that the same takes where ccache has seen every file before."""
    return _build_elsewhere(kernel, ccache_directory(os.environ))


def _build_elsewhere(kernel: Sequence[str], environment: Mapping[str, str]) -> Took:
    with tempfile.TemporaryDirectory(prefix="linux-um-build-") as scratch:
        source = source_dir("x").parent
        (Path(scratch) / source.name).symlink_to(source)
        environment = {**os.environ, "LINUX_UM_CACHE": scratch, **environment}
        return _timed([_launcher(), "build", *kernel], BUILD_LIMIT, environment)


def build_again(kernel: Sequence[str]) -> Took:
    """Return the seconds that a build takes for which there is nothing to do."""
    return _timed([_launcher(), "build", *kernel], BUILD_LIMIT)


# Name, title, and what does it once for the options that choose a kernel.
MEASUREMENTS: tuple[tuple[str, str, Callable[[Sequence[str]], Took]], ...] = (
    ("boot", "boot to the shell's first output", boot_to_output),
    ("run", "run -- true", run_true),
    ("gdb", "gdb to its prompt", gdb_to_prompt),
    ("gdb_first_stop", "gdb -- memdup to the first stop", gdb_to_first_stop),
    ("build_again", "build with nothing to do", build_again),
    ("build_anew", "build of kernel and rootfs, all of it", build_anew),
    ("build_from_ccache", "the same from ccache", build_from_ccache),
    ("bugs", "the tests of known classes of bugs", partial(tests, ("-m", "regression"))),
    ("suite", "the whole suite", partial(tests, ())),
    # Last, since it leaves the work tree with the edit in it.
    ("edit", "edit of one engine file to a test that has passed", edit_to_test),
)
# These take so long that once has to do, and are none of the quick ones.
ONCE = ("build_anew", "build_from_ccache", "bugs", "suite", "edit")


def prepare(kernel: tuple[str, str], *, term: Term) -> None:
    """See that all is there that is not to be measured; *kernel* is its profile and version."""
    profile, version = kernel
    packages.ensure("gdb", term=term)
    image = finished_image(profile, version, term)
    rootfs.ensure_rootfs(term=term, kernel=version)
    with indexing(Kernel.of(image)):
        pass


def tasks(
    kernel: tuple[str, str], turns: int, *, suite: bool
) -> list[tuple[str, Callable[[], list[Sample]]]]:
    """Return each measurement *turns* times, in turns, as what it is and what makes it.

    *kernel* is its profile and version; *suite* says whether kernels are built and tests
    run as well. They raise BenchError for what does not work.
    """
    profile, version = kernel
    options = ["--profile", profile, "--kernel", version]
    found: list[tuple[str, Callable[[], list[Sample]]]] = [
        (f"harness: {title}, turn {turn + 1} of {turns}",
         partial(_sample, name, title, run, options))
        for turn in range(turns) for name, title, run in MEASUREMENTS if name not in ONCE
    ]  # fmt: skip
    if suite:
        found += [
            (f"harness: {title}", partial(_sample, name, title, run, options))
            for name, title, run in MEASUREMENTS if name in ONCE
        ]  # fmt: skip
    return found


def _sample(
    name: str, title: str, run: Callable[[Sequence[str]], Took], options: Sequence[str]
) -> list[Sample]:
    took = run(options)
    return [{"what": "harness", "name": name, "title": title, "seconds": took.seconds,
             "failed": took.failed}]  # fmt: skip

# SPDX-License-Identifier: GPL-2.0-only
"""Runs the kernel's make: reproducibly, through ccache, with progress and readable errors."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import paths
from .errors import BuildError, LinuxUmError
from .term import Term

# In a build directory: which headers there were, see build.discard_stale().
HEADERS_NAME = ".linux-um-headers"
LOG_NAME = "build.log"
COUNT_NAME = ".linux-um-steps"
# Steps of a first build; afterwards the count of the last full one is known.
STEPS_OF_A_FIRST_BUILD = 1200
SHOWN_ERROR_LINES = 24

_STEP = re.compile(r"^  ([A-Z][A-Z0-9_+]*)\s+(\S+)")
_TROUBLE = re.compile(
    r"(\berror:|\bError \d|undefined reference|\*\*\*|No rule to make|warning:.*-Werror"
    r"|multiple definition|fixdep:|ccache: error)"
)
_CONTEXT_LINES_AFTER = 3


def job_count() -> int:
    """Return how many compilers to run: one per CPU that this process may use."""
    return len(os.sched_getaffinity(0))


def interesting_lines(log: Sequence[str]) -> list[str]:
    """Return the lines of a build log that say what went wrong, first things first."""
    picked: dict[int, None] = {}
    for number, line in enumerate(log):
        if _TROUBLE.search(line):
            for near in range(number, min(number + _CONTEXT_LINES_AFTER, len(log))):
                if near == number or not _STEP.match(log[near]):
                    picked[near] = None
    lines = [log[number].rstrip() for number in picked] or [line.rstrip() for line in log]
    compiler = [line for line in lines if "make[" not in line and "make:" not in line]
    chosen = compiler or lines
    return chosen[:SHOWN_ERROR_LINES] if compiler else chosen[-SHOWN_ERROR_LINES:]


def ccache_directory(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that says where ccache keeps what it has, where it needs one."""
    if "CCACHE_DIR" in environment or os.access(environment.get("HOME") or "/", os.W_OK):
        return {}
    return {"CCACHE_DIR": str(paths.cache_root() / "ccache")}


class Make:
    """The kernel's make for one work tree and one build directory; *words* are more for it."""

    def __init__(
        self, tree: Path, build: Path, arch: str = "um", words: Sequence[str] = ()
    ) -> None:
        self.tree = tree
        self.words = tuple(words)
        self.arch = arch
        self.build_dir = build
        self.log = build / LOG_NAME

    def command(self, targets: Sequence[str]) -> list[str]:
        """Return the command that makes *targets*.

        ccache hands the compiler names relative to the build directory, so
        that its hits do not depend on where the cache lies; the prefix map
        keeps the tree's place out of the kernel's messages.
        """
        compiler = "ccache gcc" if shutil.which("ccache") else "gcc"
        return [
            "make", "-C", str(self.tree), f"O={self.build_dir}", f"ARCH={self.arch}",
            f"CC={compiler}",
            f"KCFLAGS=-fmacro-prefix-map={os.path.relpath(self.tree, self.build_dir)}/=",
            f"-j{job_count()}", *self.words, *targets,
        ]  # fmt: skip

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a build: nothing in it depends on time, user or host."""
        unwanted = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "KBUILD_OUTPUT", "ARCH", "CROSS_COMPILE",
                    "CFLAGS", "LDFLAGS", "KCFLAGS", "KCONFIG_CONFIG", "LOCALVERSION", "V", "C",
                    "W", "O", "M", "SUBARCH")  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name not in unwanted}
        environment.update(
            LC_ALL="C",
            KBUILD_BUILD_TIMESTAMP="Thu Jan  1 00:00:00 UTC 1970",
            KBUILD_BUILD_USER="linux-um",
            KBUILD_BUILD_HOST="linux-um",
            KBUILD_BUILD_VERSION="1",
            CCACHE_BASEDIR=str(paths.cache_root()),
            CCACHE_NOHASHDIR="1",
            CCACHE_SLOPPINESS="include_file_mtime,include_file_ctime",
        )
        if (self.build_dir / HEADERS_NAME).is_file():
            environment["CCACHE_EXTRAFILES"] = str(self.build_dir / HEADERS_NAME)
        environment.update(ccache_directory(environment))
        environment.update(extra or {})
        return environment

    def run(
        self,
        targets: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        each_line: Callable[[str], None] | None = None,
    ) -> list[str]:
        """Make *targets*, writing the log; return the log's lines.

        Raises BuildError, with the lines that matter in ``detail``.
        """
        command = self.command(targets)
        lines: list[str] = []
        with self.log.open("w", buffering=1) as log:
            log.write(f"$ {shlex.join(command)}\n")
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self.environment(environment),
                start_new_session=True,
            ) as process:
                try:
                    assert process.stdout is not None
                    for line in process.stdout:
                        log.write(line)
                        lines.append(line)
                        if each_line is not None:
                            each_line(line)
                    status = process.wait()
                except BaseException:
                    _end(process)
                    raise
        if status != 0:
            raise MakeError(
                f"make {' '.join(targets)} failed", f"see {self.log}", interesting_lines(lines)
            )
        return lines

    def build(self, text: str, targets: Sequence[str], *, term: Term) -> None:
        """Make *targets* as the step *text*, counting files; show the errors of a failure."""
        counter = self.build_dir / COUNT_NAME
        try:
            expected = int(counter.read_text())
        except (OSError, ValueError):
            expected = STEPS_OF_A_FIRST_BUILD
        first = not (self.build_dir / "mm").exists()
        done = 0
        try:
            with term.step(text) as step:

                def each_line(line: str) -> None:
                    nonlocal done
                    match = _STEP.match(line)
                    if match is not None:
                        done += 1
                        of_all = f" of {max(expected, done)}" if first else ""
                        step.update(f"{done}{of_all} {match.group(2)}")

                self.run(targets, each_line=each_line)
        except MakeError as error:
            for line in error.detail:
                term.write_line(f"  {line}")
            raise
        if first:
            counter.write_text(str(done))


class MakeError(BuildError):
    """make failed; ``detail`` holds the lines of its log that say why."""

    def __init__(self, message: str, mend: str, detail: list[str]) -> None:
        LinuxUmError.__init__(self, message, mend)
        self.detail = detail


def _end(process: subprocess.Popen[str]) -> None:
    """End make and all its compilers, which are a session of their own."""
    try:
        os.killpg(process.pid, 15)
        process.wait(timeout=5)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        process.kill()

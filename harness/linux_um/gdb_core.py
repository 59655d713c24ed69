# SPDX-License-Identifier: GPL-2.0-only
"""A core dump of a guest that panics (--keep-core), and what is needed to read it later.

The host's own core dumps cannot be relied on: where they go is the host's
affair, and the guest's memory, a mapping of a shared file, is not part of
them. So a gdb without symbols is attached to the UML process. It passes every
signal on, and where UML begins to end after a panic, in os_dump_core(), it
writes the core before it lets the process die of SIGABRT. Status and messages
stay as they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from . import packages
from .errors import SessionError
from .gdb_machine import CORE_NAME, Kernel, tracer_of, write_machine
from .gdb_session import guarded
from .term import Term

LOG_NAME = "core.log"
# Seconds: until gdb is attached, and for it to write a core once the guest has ended.
ATTACH_SECONDS = 20.0
END_SECONDS = 60.0
_LOOK = 0.005
# How often gdb tries to write a core, and for how many seconds it waits in between.
TRIES, PAUSE = 20, 0.1
# Where UML sends SIGTERM to all its processes; gdb traces those that share memory with it, and
# cannot read the registers of one that has died of that.
PLACE = "os_dump_core"
COMMANDS = (
    "handle all nostop noprint pass",
    "handle SIGINT nostop noprint pass",
    # In case it ends in another way.
    "handle SIGABRT stop print pass",
    # All mappings but files: gdb counts the guest's memory, a deleted file, among them.
    "set use-coredump-filter off",
    "continue",
    # UML aborts until it is dead, and so there is another time.
    f"""python
import time
import gdb
for turn in range({TRIES}):
    if not gdb.selected_inferior().pid:
        break
    try:
        gdb.execute("generate-core-file {CORE_NAME}")
        break
    except gdb.error as error:
        print(error)
    # What is dying has a little time for it.
    time.sleep({PAUSE})
    try:
        gdb.execute("signal 0")
    except gdb.error as error:
        print(error)
""",
    "handle SIGABRT nostop noprint pass",
    "continue",
)


def break_command(linux: Path) -> list[str]:
    """Return gdb's command that stops the kernel *linux* as it ends, if its symbols say where."""
    if shutil.which("nm") is None:
        return []
    done = subprocess.run(["nm", str(linux)], capture_output=True, text=True, check=False)
    return [
        f"break *0x{fields[0]}"
        for fields in map(str.split, done.stdout.splitlines())
        if fields[1:] == ["T", PLACE]
    ]


class CoreKeeper:
    """The gdb that waits for a guest's panic."""

    def __init__(self, rundir: Path, pid: int, kernel: Kernel, *, term: Term) -> None:
        """Start it; :meth:`wait_attached` says when it is there. Raises HostError, SessionError."""
        kernel.need_symbols()
        packages.ensure("gdb", term=term)
        self._rundir = rundir
        self._pid = pid
        self._kernel = kernel
        self._term = term
        words = ["gdb", "-q", "-batch", "-nx", "-iex", "set debuginfod enabled off",
                 "-iex", "set auto-load libthread-db off", "-iex", "set exec-file-mismatch off",
                 "-e", str(kernel.linux), "-p", str(pid)]  # fmt: skip
        for command in [*break_command(kernel.linux), *COMMANDS]:
            words += ["-ex", command]
        try:
            with open(rundir / LOG_NAME, "wb") as log:
                self._process = subprocess.Popen(
                    guarded(words),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=rundir,
                    # Ctrl-C at our terminal is for us.
                    start_new_session=True,
                )
        except OSError as error:
            raise SessionError(f"cannot start gdb: {error}", "see ./linux-um doctor") from error

    def wait_attached(self) -> None:
        """Wait until a panic would be noticed. Raises SessionError when gdb cannot attach."""
        limit = time.monotonic() + ATTACH_SECONDS
        while time.monotonic() < limit and self._process.poll() is None:
            if tracer_of(self._pid) == self._process.pid:
                return
            time.sleep(_LOOK)
        if not os.path.exists(f"/proc/{self._pid}/exe"):
            # The guest has ended, which others report.
            return
        said = (self._rundir / LOG_NAME).read_text(errors="replace").split("\n")
        reason = next((line for line in said if "ptrace" in line or "attach" in line), "no reason")
        raise SessionError(
            f"--keep-core: gdb cannot attach to the guest: {reason}", "leave --keep-core out"
        )

    def finish(self, *, panicked: bool) -> None:
        """Wait for gdb's end, once the guest has ended; keep the core when it *panicked*."""
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        core = self._rundir / CORE_NAME
        if not panicked:
            core.unlink(missing_ok=True)
        elif keep_kernel(self._rundir, self._pid, self._kernel, term=self._term):
            (self._rundir / LOG_NAME).unlink()
        else:
            log = self._rundir / LOG_NAME
            said = [line.strip() for line in log.read_text(errors="replace").splitlines()]
            last = " / ".join(line for line in said[-3:] if line) or "nothing"
            self._term.warn(f"gdb has left no core dump; it said: {last} (all of it: {log})")


def keep_kernel(rundir: Path, pid: int, kernel: Kernel, *, term: Term) -> bool:
    """Put the kernel and its scripts beside the core dump; return whether there is one.

    The kernel is another name of the image's file where that is possible, so
    that it outlives the image.
    """
    core = rundir / CORE_NAME
    if not core.is_file():
        return False
    subprocess.run(["fallocate", "-d", str(core)], check=False, stderr=subprocess.DEVNULL)
    own = replace(
        kernel, linux=rundir / "linux", scripts=rundir / "gdb" / kernel.scripts.name
    )
    try:
        _link_or_copy(kernel.linux, own.linux)
        shutil.copytree(kernel.scripts.parent, own.scripts.parent, copy_function=_link_or_copy)
    except OSError as error:
        term.warn(f"the kernel cannot be kept beside its core dump: {error.strerror}")
    else:
        write_machine(rundir, pid, own)
    term.info(f"a core dump is kept: ./linux-um gdb --core {rundir.name}")
    return True


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

# SPDX-License-Identifier: GPL-2.0-only
"""Running gdb: its command line, what it inherits, the terminal, and its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from .errors import SessionError
from .gdb_control import Control
from .gdb_machine import Kernel
from .paths import ensure_dir, repo_root
from .rundir import RunDir

# What the session file is to do, as JSON; see gdb-scripts/pksm_gdb/session.py.
VARIABLE = "LINUX_UM_SESSION"
_STDIN = 0
# Seconds gdb may take to end when it is asked to.
END_SECONDS = 5.0


@dataclass(frozen=True)
class Session:
    """What a gdb is to do.

    ``pid`` is the process to attach to, or ``core`` the dump to open;
    ``command`` is started in the guest, which then stops before its first
    page; ``scripts`` make it a batch; ``announce`` says that somebody waits
    for gdb to be attached; ``keep_core`` is where a panic leaves its dump.
    """

    kernel: Kernel
    pid: int | None = None
    core: Path | None = None
    command: Sequence[str] = ()
    scripts: Sequence[Path] = ()
    announce: bool = False
    keep_core: Path | None = None

    @property
    def batch(self) -> bool:
        """Whether scripts are run in place of a conversation."""
        return bool(self.scripts)

    def wishes(self, control: int | None) -> str:
        """Return what session.gdb is to do; *control* is the inherited end of the line."""
        wishes: dict[str, object] = {
            "batch": self.batch,
            "scripts": str(self.kernel.scripts),
            "sources": str(self.kernel.build_dir),
            "announce": self.announce,
        }
        if control is not None:
            wishes["control"] = control
        if self.pid is not None:
            wishes["pid"] = self.pid
        if self.core is not None:
            wishes["core"] = str(self.core)
        if self.keep_core is not None:
            wishes["keep_core"] = str(self.keep_core)
        if self.command:
            wishes["command"] = list(self.command)
        return json.dumps(wishes)

    def argv(self, scratch: Path) -> list[str]:
        """Return gdb's command line; *scratch* is a directory for a file of ours."""
        # Before anything is loaded: nothing to answer, nothing to scroll away.
        words = ["gdb", "-q", "-iex", "set debuginfod enabled off", *_index_options(self.kernel)]
        if self.batch:
            words += ["-batch", "-nx"]
        words += ["-x", str(session_file())]
        if self.batch:
            words += ["-x", str(_one_script(self.scripts, scratch))]
        return [*words, str(self.kernel.linux)]


def _index_options(kernel: Kernel) -> list[str]:
    """Return the options by which gdb finds, or makes, the index of a kernel's symbols."""
    return [
        "-iex", f"set index-cache directory {kernel.index}",
        "-iex", "set index-cache enabled on",
    ]  # fmt: skip


@contextmanager
def indexing(kernel: Kernel) -> Iterator[None]:
    """See that a kernel's symbols have an index by the end of the block.

    Without one gdb reads all of them for the first cast to a struct, and that
    takes it several seconds. Making one takes a second, once for each kernel.
    """
    if any(kernel.index.glob("*.gdb-index")):
        yield
        return
    command = ["gdb", "-batch", "-nx", "-iex", "set debuginfod enabled off"]
    with subprocess.Popen(
        [*command, *_index_options(kernel), str(kernel.linux)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield
        except BaseException:
            process.kill()
            raise


def guarded(command: list[str]) -> list[str]:
    """Return a command that ends when we do, however we end."""
    return ["setpriv", "--pdeathsig", "TERM", *command] if shutil.which("setpriv") else command


def session_file() -> Path:
    """Return the file every session begins with."""
    return repo_root() / "gdb-scripts" / "session.gdb"


def check_scripts(scripts: Sequence[str]) -> tuple[Path, ...]:
    """Return the scripts of --batch as absolute paths. Raises SessionError for one that is none."""
    found = []
    for name in scripts:
        path = Path(name).absolute()
        if not path.is_file() or not os.access(path, os.R_OK):
            raise SessionError(f"--batch {name}: no such script", "give a file of gdb commands")
        found.append(path)
    return tuple(found)


def _one_script(scripts: Sequence[Path], scratch: Path) -> Path:
    """Return a script that is all of *scripts*: the first that fails ends them."""
    if len(scripts) == 1:
        return scripts[0]
    script = scratch / "batch.gdb"
    script.write_text("".join(f"source {path}\n" for path in scripts))
    return script


@dataclass(frozen=True)
class Gdb:
    """A gdb that runs on our terminal, or in batch mode without input."""

    process: subprocess.Popen[bytes]
    batch: bool

    @property
    def pid(self) -> int:
        """Its process number."""
        return self.process.pid

    def wait(self) -> int:
        """Wait for its end and return its exit status, as a shell has it.

        In a conversation Ctrl-C is gdb's: it stops the guest, and leaves us alone.
        """
        if self.batch:
            return _status(self.process.wait())

        def leave_it(_number: int, _frame: FrameType | None) -> None:
            """Do nothing: gdb has had the signal too."""

        previous = signal.signal(signal.SIGINT, leave_it)
        try:
            return _status(self.process.wait())
        finally:
            signal.signal(signal.SIGINT, previous)


def _status(returned: int) -> int:
    """Return the status of a process as a shell has it."""
    return returned if returned >= 0 else 128 - returned


@contextmanager
def gdb(
    session: Session,
    scratch: Path,
    *,
    control: Control | None = None,
) -> Iterator[Gdb]:
    """Run gdb for the length of the block; at its end gdb is ended, if it has not.

    A guest must outlive its gdb, or the gdb would keep it from being reaped.
    Raises SessionError when gdb cannot be started.
    """
    far_end = control.descriptor if control is not None else None
    terminal = _terminal_state()
    try:
        process = subprocess.Popen(
            guarded(session.argv(scratch)),
            stdin=subprocess.DEVNULL if session.batch else None,
            pass_fds=() if far_end is None else (far_end,),
            env={**os.environ, VARIABLE: session.wishes(far_end)},
            # Scripts need no terminal; what they start ends with them.
            start_new_session=session.batch,
        )
    except OSError as error:
        raise SessionError(f"cannot start gdb: {error}", "see ./linux-um doctor") from error
    if control is not None:
        control.close_far_end()
        control.serve()
    try:
        yield Gdb(process, session.batch)
    finally:
        _end(process, group=session.batch)
        if terminal is not None and process.returncode < 0:
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, terminal)
        if control is not None:
            control.close()


def _terminal_state() -> list[Any] | None:
    """Return how our terminal is set, for the case that gdb dies without setting it back."""
    try:
        return termios.tcgetattr(_STDIN)
    except termios.error:
        return None


def _end(process: subprocess.Popen[bytes], *, group: bool) -> None:
    """End gdb, kindly at first: it then takes its breakpoints out of the guest.

    With *group*, also what it has started.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if group:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

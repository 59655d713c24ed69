# SPDX-License-Identifier: GPL-2.0-only
"""One pytest test whose first guest is under gdb (``./linux-um gdb --test TEST``).

pytest runs in a process of its own, and boots its guests by guest.boot().
That meets us by gdb_rendezvous.py, and goes on with the test when gdb is
attached to the guest.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import SessionError
from .gdb_control import Answer, Control
from .gdb_machine import Kernel, read_machine
from .gdb_rendezvous import VARIABLE
from .gdb_session import Session, gdb, indexing
from .packages import test_python
from .paths import repo_root
from .term import Term

# Seconds: between looks at pytest, and for it to end its guests when it is interrupted.
_LOOK = 0.1
END_SECONDS = 30.0


def test_command(test: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs the one test by pytest, *arguments* being pytest's own.

    A test's file is looked for in harness/tests too.
    """
    own = repo_root() / "harness" / "tests" / test
    here = Path(test.split("::")[0]).exists()
    if not here and Path(str(own).split("::")[0]).exists():
        test = str(own)
    # One guest at a time, and no limit but the user's patience.
    return [test_python(), "-m", "pytest", "-n", "0", "-o", "timeout=0", *arguments, test]


class _Pytest:
    """A pytest whose output is kept back until gdb has left the terminal."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]
    ) -> None:
        self._log = log
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C is gdb's.
            start_new_session=True,
        )

    def show_until_end(self) -> int:
        """Show what it has written and writes, and return its exit status."""
        with open(self._log.name, "rb") as shown:
            while True:
                status = self.process.poll()
                sys.stdout.buffer.write(shown.read())
                sys.stdout.buffer.flush()
                if status is not None:
                    return status if status >= 0 else 128 - status
                try:
                    self.process.wait(_LOOK)
                except subprocess.TimeoutExpired:
                    continue

    def end(self) -> None:
        """End it, if it has not, with its guests."""
        for number, patience in ((signal.SIGINT, END_SECONDS), (signal.SIGKILL, None)):
            if self.process.poll() is None:
                self.process.send_signal(number)
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue


@contextmanager
def _pytest(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[_Pytest]:
    with tempfile.NamedTemporaryFile(prefix="linux-um-gdb-", suffix=".log") as log:
        pytest = _Pytest(command, environment, log)
        try:
            yield pytest
        finally:
            pytest.end()


def debug_test(
    command: Sequence[str],
    environment: Mapping[str, str],
    kernel: Kernel,
    scripts: Sequence[Path],
    *,
    term: Term,
) -> int:
    """Run pytest by *command*, its first guest under gdb; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="linux-um-gdb-") as scratch:
        name = f"{scratch}/guest"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(name)
            listener.listen(1)
            listener.settimeout(_LOOK)
            with _pytest(command, {**environment, VARIABLE: name}) as pytest:
                with indexing(kernel), term.waiting("waiting for the test to boot its first guest"):
                    line = _first_guest(listener, pytest)
                # Guests that come later are not waited for.
                listener.close()
                status = 0
                if line is not None:
                    with line:
                        status = _session(line, Path(scratch), scripts)
                ended = pytest.show_until_end()
    if line is None and ended == 0:
        term.warn("the test has booted no guest, so there was nothing to debug")
    return status or ended


def _first_guest(listener: socket.socket, pytest: _Pytest) -> socket.socket | None:
    """Return the line to the first guest, or None when pytest ends without one."""
    while True:
        try:
            line, _ = listener.accept()
        except TimeoutError:
            if pytest.process.poll() is not None:
                return None
        else:
            line.setblocking(True)
            return line


def _session(line: socket.socket, scratch: Path, scripts: Sequence[Path]) -> int:
    """Run gdb on the guest that is at the other end of *line*; return what decides the status.

    That is 0 for a conversation, however it ended. Raises SessionError when
    gdb cannot attach.
    """
    offer = json.loads(line.recv(1 << 16))
    attached = False

    def on_attached(_request: Answer) -> Answer:
        nonlocal attached
        attached = True
        line.send(b"g")
        return {}

    def on_guest(_request: Answer) -> Answer:
        raise SessionError("the guest is the test's, which alone starts programs in it")

    control = Control()
    control.handle("attached", on_attached)
    control.handle("guest", on_guest)
    kernel = read_machine(Path(offer["rundir"])).kernel
    session = Session(kernel, pid=int(offer["pid"]), scripts=scripts, announce=True)
    with gdb(session, scratch, control=control) as debugger:
        status = debugger.wait()
    if not attached:
        raise SessionError("the session could not begin", "see above")
    return status if scripts else 0

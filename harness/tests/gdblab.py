# SPDX-License-Identifier: GPL-2.0-only
"""gdb on a guest of a test: a script run in batch mode, attached to the kernel's process."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linux_um.guest import Guest
from linux_um.paths import repo_root

# Wall-clock seconds a script may take.
SCRIPT_SECONDS = 120.0


class GdbError(AssertionError):
    """gdb failed, or did not say what it was to say."""


class Session:
    """A gdb that works on a script while the test goes on."""

    def __init__(self, guest: Guest, script: Path) -> None:
        environment = {**os.environ, "TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [
                "gdb", "-nx", "-q", "-batch",
                "-ex", "set confirm off",
                "-ex", "set pagination off",
                "-ex", "set width 0",
                "-x", str(repo_root() / "gdb-scripts" / "session.gdb"),
                "-x", str(script),
                "-p", str(guest.pid),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
        self._output = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while data := os.read(self._process.stdout.fileno(), 1 << 16):
            self._output.extend(data)

    @property
    def output(self) -> str:
        """What gdb has printed so far."""
        return bytes(self._output).decode("utf-8", "replace")

    def wait_for(self, text: str, *, timeout: float = SCRIPT_SECONDS) -> str:
        """Wait until gdb has printed *text*; return all of its output so far.

        *timeout* is in wall-clock seconds. Raises GdbError when gdb ends or the time is over.
        """
        limit = time.monotonic() + timeout
        while text not in self.output:
            ended = not self._reader.is_alive()
            if ended and text in self.output:
                break
            if ended or time.monotonic() > limit:
                raise GdbError(f"gdb never said '{text}':\n{self.output}")
            time.sleep(0.01)
        return self.output

    def finish(self, *, status: int = 0, timeout: float = SCRIPT_SECONDS) -> str:
        """Wait for the end of the script; return the output.

        Raises GdbError when it does not end in time, or with another status.
        """
        try:
            ended = self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise GdbError(f"gdb did not end:\n{self.output}") from error
        self._reader.join(5.0)
        if ended != status:
            raise GdbError(f"gdb ended with status {ended}:\n{self.output}")
        return self.output

    def kill(self) -> None:
        """End gdb if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


@contextmanager
def session(guest: Guest, script: str) -> Iterator[Session]:
    """Attach gdb to the guest and let it work on *script*, commands of gdb in lines."""
    with tempfile.TemporaryDirectory(prefix="linux-um-gdb-") as scratch:
        path = Path(scratch) / "script.gdb"
        path.write_text(script)
        running = Session(guest, path)
        try:
            yield running
        finally:
            running.kill()


def run_script(guest: Guest, script: str, *, status: int = 0) -> str:
    """Attach gdb, run *script*, detach; return what gdb printed."""
    with session(guest, script) as running:
        return running.finish(status=status)

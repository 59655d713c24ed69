# SPDX-License-Identifier: GPL-2.0-only
"""The launcher's own standard streams joined to a program in a guest."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from .agent import Guest, Process
from .protocol import STDIN_WINDOW

_STDIN, _STDOUT, _STDERR = 0, 1, 2
# Wall-clock seconds between looks at the guest while nothing happens.
_LOOK = 0.5
_LOOK_FOR_CREDIT = 0.002


class _Output:
    """Passes output on to a descriptor, and ends the program when that is closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.closed = threading.Event()

    def __call__(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.closed.is_set():
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [], _LOOK)
            except OSError:
                self.closed.set()


def _window() -> tuple[int, int]:
    """Return the rows and columns of the terminal on standard input."""
    try:
        size = os.get_terminal_size(_STDIN)
    except OSError:
        return 24, 80
    return size.lines, size.columns


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Put the terminal into raw mode for the length of the block."""
    before = termios.tcgetattr(_STDIN)
    try:
        tty.setraw(_STDIN, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(_STDIN, termios.TCSAFLUSH, before)


class _Wake:
    """A pipe that wakes the main loop: program ended, or window changed."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.resized = False

    def set(self) -> None:
        """Wake the loop; safe in a signal handler and in any thread."""
        try:
            os.write(self._write_end, b"w")
        except OSError:
            return

    def on_winch(self, _number: int, _frame: FrameType | None) -> None:
        """Handle SIGWINCH."""
        self.resized = True
        self.set()

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        try:
            os.read(self.read_end, 4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.read_end)
        os.close(self._write_end)


def attach(
    guest: Guest,
    argv: Sequence[str],
    *,
    timeout: float | None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    pty: bool = False,
) -> int:
    """Run a program in the guest on our standard streams, and return its status.

    With *pty* our terminal becomes the program's, in raw mode: its size follows,
    and Ctrl-C is the program's. *timeout* is in wall-clock seconds, None for no
    limit. Raises what Process.wait() raises.
    """
    wake = _Wake()
    out, err = _Output(_STDOUT), _Output(_STDERR)
    process = guest.start(
        argv,
        env=env,
        cwd=cwd,
        window=_window() if pty else None,
        on_stdout=out,
        on_stderr=err,
        on_exit=wake.set,
    )
    try:
        if pty:
            previous = signal.signal(signal.SIGWINCH, wake.on_winch)
            try:
                with _raw_terminal():
                    return _serve(guest, process, wake, (out, err), timeout, pty)
            finally:
                signal.signal(signal.SIGWINCH, previous)
        return _serve(guest, process, wake, (out, err), timeout, pty)
    finally:
        wake.close()


def _serve(
    guest: Guest,
    process: Process,
    wake: _Wake,
    outputs: Sequence[_Output],
    timeout: float | None,
    pty: bool,
) -> int:
    limit = time.monotonic() + timeout if timeout is not None else None
    reading = True
    told = False
    while process.status is None and guest.alive:
        left = limit - time.monotonic() if limit is not None else _LOOK
        if left <= 0:
            break
        # No more than the program takes: what we do not read stays the host's.
        room = process.credit if reading else 0
        sources = [wake.read_end] + ([_STDIN] if room > 0 else [])
        # Credit comes without a wake-up, so look for it more often.
        pause = _LOOK if room > 0 or not reading else _LOOK_FOR_CREDIT
        ready = select.select(sources, [], [], min(left, pause))[0]
        if wake.read_end in ready:
            wake.clear()
        if wake.resized:
            wake.resized = False
            process.resize(*_window())
        if not told and any(output.closed.is_set() for output in outputs):
            told = True
            process.signal(signal.SIGPIPE)
        if _STDIN in ready:
            data = _read_stdin(min(room, STDIN_WINDOW))
            if data:
                process.write(data)
            else:
                reading = False
                if pty:
                    process.signal(signal.SIGHUP)
                else:
                    process.close_stdin()
    # Raises when the guest is gone or the time is over.
    left = max(0.0, limit - time.monotonic()) if limit is not None else 5.0
    return process.wait(left, said=timeout).status


def _read_stdin(size: int) -> bytes:
    try:
        return os.read(_STDIN, size)
    except BlockingIOError:
        return b""
    except OSError:
        return b""


def on_terminal() -> bool:
    """Return whether standard input and output are a terminal."""
    return sys.stdin is not None and os.isatty(_STDIN) and os.isatty(_STDOUT)

# SPDX-License-Identifier: GPL-2.0-only
"""The launcher's own standard streams joined to a program in a guest."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from .agent import Guest
from .errors import OutputError
from .process import Process
from .protocol import STDIN_WINDOW

_STDIN, _STDOUT, _STDERR = 0, 1, 2
# Wall-clock seconds between looks at the guest while nothing happens.
_LOOK = 0.5
_LOOK_FOR_CREDIT = 0.002


class _Output:
    """Passes output on to a descriptor, and ends the program when that takes no more."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self.name = name
        self.closed = threading.Event()
        # Why output is lost; None when nobody wants it any more.
        self.error: OSError | None = None

    def __call__(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self.closed.is_set():
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [], _LOOK)
            except OSError as error:
                if error.errno != errno.EPIPE:
                    self.error = error
                self.closed.set()


class Streams:
    """The launcher's standard output and error, as what a program writes gets there."""

    def __init__(self) -> None:
        self.out = _Output(_STDOUT, "standard output")
        self.err = _Output(_STDERR, "standard error")

    @property
    def closed(self) -> bool:
        """Whether one of them takes no more."""
        return self.out.closed.is_set() or self.err.closed.is_set()

    @property
    def hung_up(self) -> bool:
        """Whether one of them was a terminal that has gone."""
        return any(
            output.error is not None and output.error.errno == errno.EIO
            for output in (self.out, self.err)
        )

    def check(self) -> None:
        """Raise OutputError when output was lost; a closed pipe is no loss."""
        for output in (self.out, self.err):
            if output.error is not None:
                raise OutputError(f"cannot write to {output.name}: {output.error.strerror}")


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
        # A terminal that has hung up has no mode to go back to.
        with suppress(termios.error):
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
    streams: Streams,
    *,
    timeout: float | None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    pty: bool = False,
) -> int:
    """Run a program in the guest on our standard streams, and return its status.

    With *pty* our terminal becomes the program's, in raw mode: its size follows,
    and Ctrl-C is the program's; when it hangs up we get SIGHUP. *timeout* is in
    wall-clock seconds, None for no limit. Raises what Process.wait() raises; ask
    *streams* afterwards whether output was lost.
    """
    wake = _Wake()
    process = guest.start(
        argv,
        env=env,
        cwd=cwd,
        window=_window() if pty else None,
        on_stdout=streams.out,
        on_stderr=streams.err,
        on_exit=wake.set,
    )
    try:
        if pty:
            previous = signal.signal(signal.SIGWINCH, wake.on_winch)
            try:
                with _raw_terminal():
                    return _serve(guest, process, wake, streams, timeout, pty)
            finally:
                signal.signal(signal.SIGWINCH, previous)
        return _serve(guest, process, wake, streams, timeout, pty)
    finally:
        wake.close()


def _serve(
    guest: Guest,
    process: Process,
    wake: _Wake,
    streams: Streams,
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
        if not told and streams.closed:
            told = True
            if pty and streams.hung_up:
                signal.raise_signal(signal.SIGHUP)
            process.signal(signal.SIGPIPE)
        if _STDIN in ready:
            data = _read_stdin(min(room, STDIN_WINDOW))
            if data:
                process.write(data)
            else:
                reading = False
                if pty:
                    signal.raise_signal(signal.SIGHUP)
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

# SPDX-License-Identifier: GPL-2.0-only
"""A program in a guest, as its caller on the host sees it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .outcome import CommandFailed
from .protocol import STDIN_WINDOW, Frame, ToGuest, ToHost, winsize_frame

if TYPE_CHECKING:
    from .agent import Guest

Sink = Callable[[bytes], None]


@dataclass(frozen=True)
class Completed:
    """A program that has ended: its status as a shell has it, and what it wrote."""

    argv: tuple[str, ...]
    status: int
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """Standard output as text."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def check(self) -> Completed:
        """Return self. Raises CommandFailed when the status is not 0."""
        if self.status != 0:
            tail = (self.stderr or self.stdout).strip()[-500:]
            raise CommandFailed(
                f"in the guest, '{shlex.join(self.argv)}' ended with status {self.status}: {tail}"
            )
        return self


class Process:
    """A program that runs in the guest, in a channel of its own."""

    def __init__(
        self,
        guest: Guest,
        channel: int,
        argv: Sequence[str],
        on_stdout: Sink | None,
        on_stderr: Sink | None,
        on_exit: Callable[[], None] | None,
    ) -> None:
        self._guest = guest
        self.channel = channel
        self.argv = tuple(argv)
        self.status: int | None = None
        self._out = bytearray()
        self._err = bytearray()
        self._on_stdout = on_stdout if on_stdout is not None else self._out.extend
        self._on_stderr = on_stderr if on_stderr is not None else self._err.extend
        self._on_exit = on_exit
        self._credit = STDIN_WINDOW

    @property
    def stdout(self) -> str:
        """What it has written to standard output so far."""
        return bytes(self._out).decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return bytes(self._err).decode("utf-8", "replace")

    @property
    def credit(self) -> int:
        """How many bytes of input may be written now without waiting."""
        return self._credit

    def write(self, data: bytes, *, timeout: float = 60.0) -> None:
        """Give it *data* as input; waits, at most *timeout* seconds, until it takes it.

        Input for a program that has ended is thrown away.
        """
        view = memoryview(data)
        limit = time.monotonic() + timeout
        while view:
            self._guest.wait_for(
                lambda: self._credit > 0 or self.status is not None,
                limit,
                f"'{shlex.join(self.argv)}' does not read its input",
            )
            if self.status is not None:
                return
            piece = view[: self._credit]
            self._credit -= len(piece)
            self._guest.send(Frame(ToGuest.STDIN, self.channel, bytes(piece)))
            view = view[len(piece) :]

    def close_stdin(self) -> None:
        """Say that there is no more input."""
        self._guest.send(Frame(ToGuest.STDIN_EOF, self.channel))

    def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        self._guest.send(Frame(ToGuest.SIGNAL, self.channel, bytes([number])))

    def resize(self, rows: int, columns: int) -> None:
        """Tell its pty a new size, in characters."""
        self._guest.send(winsize_frame(self.channel, rows, columns))

    def poll(self) -> int | None:
        """Return its status, or None while it runs."""
        return self.status

    def wait_output(self, text: str, *, timeout: float = 60.0) -> str:
        """Wait until standard output holds *text*, and return all of it so far.

        *timeout* is in wall-clock seconds. Raises CommandFailed when it ends
        without having written that.
        """
        self._guest.wait_for(
            lambda: text in self.stdout or self.status is not None,
            time.monotonic() + timeout,
            f"'{shlex.join(self.argv)}' does not write '{text}'",
        )
        if text not in self.stdout:
            raise CommandFailed(
                f"'{shlex.join(self.argv)}' ended with status {self.status} "
                f"and never wrote '{text}'"
            )
        return self.stdout

    def wait(self, timeout: float = 60.0, *, said: float | None = None) -> Completed:
        """Wait for its end, at most *timeout* wall-clock seconds.

        *said* is the limit to name in the error, when part of it has passed.
        Raises GuestTimeout after having put the kernel's state into the log
        and ended the guest.
        """
        self._guest.wait_for(
            lambda: self.status is not None,
            time.monotonic() + timeout,
            f"'{shlex.join(self.argv)}' did not end within {said or timeout:g} s",
        )
        status = self.status if self.status is not None else -1
        return Completed(self.argv, status, bytes(self._out), bytes(self._err))

    def take(self, frame: Frame) -> None:
        """Take a frame of this channel; called by the guest's reader."""
        if frame.type == ToHost.STDOUT:
            self._on_stdout(frame.payload)
        elif frame.type == ToHost.STDERR:
            self._on_stderr(frame.payload)
        elif frame.type == ToHost.CREDIT:
            self._credit += frame.u32()
        elif frame.type == ToHost.EXIT:
            self.status = frame.u32()
            self.notify_end()

    def notify_end(self) -> None:
        """Run the caller's hook for the end of the program or of the guest."""
        if self._on_exit is not None:
            self._on_exit()

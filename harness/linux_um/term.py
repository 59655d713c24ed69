# SPDX-License-Identifier: GPL-2.0-only
"""Progress and messages on standard error.

On a terminal a step is one line that is redrawn with a spinner, the elapsed
time and the latest detail; in a pipe it is a plain line when it starts and
another when it ends, with a sign of life every minute. ``NO_COLOR`` and
``TERM=dumb`` are respected.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

PROGRAM = "linux-um"
REDRAW_SECONDS = 0.1
PIPE_HEARTBEAT_SECONDS = 60.0

_GREEN, _YELLOW, _RED, _DIM, _RESET = "\033[32m", "\033[33m", "\033[31m", "\033[2m", "\033[0m"
_ERASE_LINE = "\r\033[K"


def format_seconds(seconds: float) -> str:
    """Return a duration in seconds as people write it: ``0.4 s``, ``73 s``, ``4 min 33 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s"


class Step:
    """One piece of work that is shown while it runs; use it as a context manager."""

    def __init__(self, term: Term, text: str) -> None:
        self._term = term
        self._text = text
        self._detail = ""
        self._started = 0.0
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def update(self, detail: str) -> None:
        """Show *detail* (a file, a count) behind the step's text from now on."""
        self._detail = detail

    def __enter__(self) -> Step:
        self._started = time.monotonic()
        if not self._term.is_tty:
            self._term.write_line(f"{PROGRAM}: {self._text} ...")
        self._thread = threading.Thread(target=self._animate, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()
        elapsed = format_seconds(time.monotonic() - self._started)
        if self._term.is_tty:
            self._term.write(_ERASE_LINE)
            mark = self._term.paint(self._term.tick, _GREEN)
            if kind is not None:
                mark = self._term.paint(self._term.cross, _RED)
            self._term.write_line(f"{mark} {self._text} {self._term.paint(f'({elapsed})', _DIM)}")
        else:
            verdict = "done" if kind is None else "failed"
            self._term.write_line(f"{PROGRAM}: {self._text}: {verdict} ({elapsed})")

    def _animate(self) -> None:
        if self._term.is_tty:
            turn = 0
            while not self._done.wait(REDRAW_SECONDS):
                self._redraw(turn)
                turn += 1
            return
        while not self._done.wait(PIPE_HEARTBEAT_SECONDS):
            elapsed = format_seconds(time.monotonic() - self._started)
            detail = f" {self._detail}" if self._detail else ""
            self._term.write_line(f"{PROGRAM}: {self._text}: {elapsed}{detail}")

    def _redraw(self, turn: int) -> None:
        frames = self._term.spinner
        elapsed = format_seconds(time.monotonic() - self._started)
        room = shutil.get_terminal_size().columns - 1
        head = f"{frames[turn % len(frames)]} {self._text} ({elapsed})"
        detail = self._detail[: max(0, room - len(head) - 1)]
        painted = self._term.paint(detail, _DIM) if detail else ""
        self._term.write(f"{_ERASE_LINE}{head[:room]} {painted}")


class Term:
    """Where the launcher talks to its user: standard error, or *stream*."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._lock = threading.Lock()
        self.quiet = quiet
        dumb = os.environ.get("TERM", "dumb") == "dumb"
        self.is_tty = self._stream.isatty() and not dumb
        self.colour = self.is_tty and not os.environ.get("NO_COLOR")
        unicode = (getattr(self._stream, "encoding", "") or "").lower().startswith("utf")
        self.spinner = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏" if unicode else "|/-\\"
        self.tick = "✓" if unicode else "ok"
        self.cross = "✗" if unicode else "failed"

    def paint(self, text: str, colour: str) -> str:
        """Return *text* in *colour* when colours are wanted, else as it is."""
        return f"{colour}{text}{_RESET}" if self.colour else text

    def write(self, text: str) -> None:
        """Write *text* as it is; that nobody can read it is not an error."""
        if self.quiet:
            return
        with self._lock:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                self.quiet = True

    def write_line(self, text: str) -> None:
        """Write *text* and a newline."""
        self.write(text + "\n")

    def step(self, text: str) -> Step:
        """Return a context manager that shows *text* as work in progress."""
        return Step(self, text)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Say what is waited for in the block: as a step on a terminal, in one line in a pipe."""
        if not self.is_tty:
            self.info(text)
            yield
            return
        with self.step(text):
            yield

    def info(self, text: str) -> None:
        """Say something the user should know."""
        self.write_line(f"{PROGRAM}: {text}")

    def warn(self, text: str) -> None:
        """Say that something is doubtful, and go on."""
        self.write_line(f"{PROGRAM}: {self.paint('warning:', _YELLOW)} {text}")

    def error(self, text: str) -> None:
        """Say what is wrong. Shown even when quiet."""
        quiet, self.quiet = self.quiet, False
        self.write_line(f"{PROGRAM}: {self.paint(text, _RED)}")
        self.quiet = quiet

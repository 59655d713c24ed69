# SPDX-License-Identifier: GPL-2.0-only
"""The full-screen view of ``./linux-um top``: curses, keys and the pace of sampling."""

from __future__ import annotations

import curses
import locale
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Protocol

from .top import Sample
from .top_screen import Glyphs, Line, State, Style, compose

# What + and - choose from, in seconds.
INTERVALS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
# An answer that takes longer than this is remarked on.
SLOW_SECONDS = 2.0
# Curses learns of a new size of the terminal when it is asked for a key.
_LOOK = 0.2
_COLOURS = {
    Style.TITLE: curses.COLOR_CYAN,
    Style.BAR: curses.COLOR_GREEN,
    Style.ALARM: curses.COLOR_RED,
}
_ATTRIBUTES = {
    Style.TITLE: curses.A_BOLD,
    Style.HEAD: curses.A_BOLD | curses.A_UNDERLINE,
    Style.DIM: curses.A_DIM,
    Style.STRONG: curses.A_BOLD,
    Style.ALARM: curses.A_BOLD,
}


class Source(Protocol):
    """Where samples come from, one at a time."""

    @property
    def asked(self) -> float | None:
        """When the sample that has not come yet was asked for, or None."""

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when a sample has come."""

    def ask(self) -> None:
        """Ask for a sample."""

    def take(self, timeout: float) -> Sample | None:
        """Return the sample if it comes within *timeout* seconds. Raises EOFError."""

    def delay_reason(self) -> str:
        """Say why a sample may not come."""


class NoScreen(Exception):
    """The terminal cannot do what a full-screen view takes."""


def show(source: Source, name: str, release: str, interval: float) -> None:
    """Show samples until the user has enough.

    Raises EOFError when the guest has ended, NoScreen when the terminal is too
    simple; the terminal is then as it was.
    """
    locale.setlocale(locale.LC_ALL, "")
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        raise NoScreen("the terminal is too simple for a full-screen view")
    state = State(name, release, interval, Glyphs.for_encoding(locale.getpreferredencoding(False)))
    try:
        screen = curses.initscr()
    except curses.error as error:
        raise NoScreen(f"no full-screen view: {error}") from error
    try:
        curses.noecho()
        curses.cbreak()
        screen.keypad(True)
        screen.nodelay(True)
        _View(screen, state, source).run()
    except KeyboardInterrupt:
        return
    finally:
        screen.keypad(False)
        curses.echo()
        curses.nocbreak()
        curses.endwin()


class _View:
    def __init__(self, screen: curses.window, state: State, source: Source) -> None:
        self._screen = screen
        self._state = state
        self._source = source
        self._held = False
        self._over = False
        # When the next sample is due.
        self._due = time.monotonic()
        self._attributes = _looks()
        self._keys: dict[int, Callable[[], None]] = {
            ord("q"): self._quit,
            ord("Q"): self._quit,
            27: self._quit,
            ord(" "): self._hold,
            ord("+"): lambda: self._pace(1),
            ord("="): lambda: self._pace(1),
            ord("-"): lambda: self._pace(-1),
            ord("h"): self._help,
            ord("?"): self._help,
            curses.KEY_UP: lambda: self._move(-1),
            curses.KEY_DOWN: lambda: self._move(1),
            curses.KEY_PPAGE: lambda: self._move(-10),
            curses.KEY_NPAGE: lambda: self._move(10),
            curses.KEY_RESIZE: self._screen.erase,
        }

    def run(self) -> None:
        """Sample, draw and obey until there is enough of it. Raises EOFError."""
        while not self._over:
            self._sample()
            self._draw()
            ready = select.select([sys.stdin, self._source], [], [], self._pause())[0]
            del ready
            while not self._over and (key := self._screen.getch()) != -1:
                self._keys.get(key, lambda: None)()

    def _pause(self) -> float:
        """Return how long there is nothing to do but wait for keys and samples."""
        if self._held or self._source.asked is not None:
            return _LOOK
        return min(max(self._due - time.monotonic(), 0.0), _LOOK)

    def _sample(self) -> None:
        if self._source.asked is not None:
            sample = self._source.take(0.0)
            if sample is not None and not self._held:
                self._state.take(sample)
        now = time.monotonic()
        if self._source.asked is None and not self._held and now >= self._due:
            self._source.ask()
            # What was missed while the guest stood still is not made up for.
            self._due = max(self._due + self._state.interval, now)
        self._remark(now)

    def _remark(self, now: float) -> None:
        asked = self._source.asked
        state = self._state
        state.alarm = False
        if self._held:
            state.message = "held; space goes on"
        elif asked is not None and now - asked > SLOW_SECONDS:
            state.message = f"no answer for {now - asked:.0f} s{self._source.delay_reason()}"
            state.alarm = True
        else:
            state.message = ""

    def _draw(self) -> None:
        rows, columns = self._screen.getmaxyx()
        self._screen.erase()
        for number, line in enumerate(compose(self._state, rows, columns)):
            self._draw_line(number, line)
        self._screen.refresh()

    def _draw_line(self, number: int, line: Line) -> None:
        at = 0
        for text, style in line:
            try:
                self._screen.addstr(number, at, text, self._attributes[style])
            except curses.error:
                # The last cell of the screen: it is written, but the cursor has nowhere to go.
                return
            at += len(text)

    # Keys

    def _quit(self) -> None:
        if self._state.help:
            self._state.help = False
        else:
            self._over = True

    def _hold(self) -> None:
        self._held = not self._held
        self._due = time.monotonic()

    def _pace(self, step: int) -> None:
        interval = self._state.interval
        if step > 0:
            self._state.interval = next((x for x in INTERVALS if x > interval), INTERVALS[-1])
        else:
            self._state.interval = next((x for x in INTERVALS[::-1] if x < interval), INTERVALS[0])
        self._due = min(self._due, time.monotonic() + self._state.interval)

    def _help(self) -> None:
        self._state.help = not self._state.help

    def _move(self, lines: int) -> None:
        self._state.scroll = max(0, self._state.scroll + lines)


def _looks() -> dict[Style, int]:
    """Return the attributes of each style, with colours where they are wanted."""
    looks = {style: _ATTRIBUTES.get(style, curses.A_NORMAL) for style in Style}
    if os.environ.get("NO_COLOR"):
        return looks
    try:
        curses.curs_set(0)
    except curses.error:
        pass
    try:
        curses.start_color()
        curses.use_default_colors()
        for number, (style, colour) in enumerate(_COLOURS.items(), 1):
            curses.init_pair(number, colour, -1)
            looks[style] |= curses.color_pair(number)
    except curses.error:
        pass
    return looks

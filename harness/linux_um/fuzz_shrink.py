# SPDX-License-Identifier: GPL-2.0-only
"""Making a list of operations that fails as short as it can be.

Any part of a list is a list (see rootfs/workloads/fuzz.h), so lines are taken away as
long as what is left still fails: first all of a kind or of a process at once, then runs
of lines, from halves down to single ones (Zeller's delta debugging). At last the ranges
of pages become single pages. Guesses at what may matter are tried before, since each try
is a guest that runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

Fails = Callable[[Sequence[str]], bool]
_RANGE = re.compile(r"\b(\d+)\+(\d+)\b")


class Shrinker:
    """Shrinks one list; *fails* says whether a part of it still fails in the same way.

    *enough* is asked before each try, and ends the work early when it returns True.
    """

    def __init__(self, fails: Fails, enough: Callable[[], bool] = lambda: False) -> None:
        self._fails = fails
        self._enough = enough
        self.tries = 0

    def shrink(self, lines: Sequence[str], guesses: Iterable[Sequence[str]] = ()) -> list[str]:
        """Return what is left of *lines*, which fail as a whole; *guesses* are parts of them."""
        left = list(lines)
        for guess in guesses:
            if len(guess) < len(left) and self._try(guess):
                left = list(guess)
        left = self._without_groups(left)
        left = self._without_runs(left)
        return self._with_single_pages(left)

    def _try(self, lines: Sequence[str]) -> bool:
        if not lines or self._enough():
            return False
        self.tries += 1
        return self._fails(lines)

    def _without_groups(self, lines: list[str]) -> list[str]:
        """Drop kinds, then processes: the most frequent first, since that helps most."""
        for key in (kind_of, process_of):
            counts: dict[str, int] = {}
            for line in lines:
                counts[key(line)] = counts.get(key(line), 0) + 1
            for group in sorted(counts, key=lambda name: (-counts[name], name)):
                rest = [line for line in lines if key(line) != group]
                if group and len(rest) < len(lines) and self._try(rest):
                    lines = rest
        return lines

    def _without_runs(self, lines: list[str]) -> list[str]:
        size = max(len(lines) // 2, 1)
        while not self._enough():
            start, before = 0, len(lines)
            while start < len(lines):
                rest = lines[:start] + lines[start + size :]
                if self._try(rest):
                    lines = rest
                else:
                    start += size
            if size > 1:
                size = max(min(size // 2, len(lines) // 2), 1)
            elif len(lines) == before:
                break
        return lines

    def _with_single_pages(self, lines: list[str]) -> list[str]:
        for number, line in enumerate(lines):
            match = _RANGE.search(line)
            if match is None or match[2] == "1":
                continue
            simpler = line[: match.start()] + f"{match[1]}+1" + line[match.end() :]
            other = [*lines[:number], simpler, *lines[number + 1 :]]
            if self._try(other):
                lines = other
        return lines


def about(lines: Sequence[str], pages: Iterable[int]) -> list[str]:
    """Return the operations on any of these pages, whosever, and those that are on none."""
    wanted = set(pages)
    kept = []
    for line in lines:
        match = _RANGE.search(line)
        if match is None or wanted.intersection(pages_of(line)):
            kept.append(line)
    return kept


def pages_of(line: str) -> range:
    """Return the pages of an operation."""
    match = _RANGE.search(line)
    return range(int(match[1]), int(match[1]) + int(match[2])) if match else range(0)


def kind_of(line: str) -> str:
    """Return the name of the operation of a line."""
    return line.split(" ", 1)[0]


def process_of(line: str) -> str:
    """Return the process that an operation is about; empty when it is about none."""
    words = line.split()
    return words[1] if len(words) > 1 and words[1].isdigit() and words[0] != "sleep" else ""

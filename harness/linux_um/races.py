# SPDX-License-Identifier: GPL-2.0-only
"""The data races of the kernel with itself that are known: harness/tests/races.txt.

Its head says what a line is like, and what has to be found out for one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from .errors import LinuxUmError
from .paths import repo_root

# Who has raced, by name: two functions in order, or one where KCSAN knows of no other.
Pair = tuple[str, ...]

_TITLE = re.compile(r"^BUG: KCSAN: data-race in (\S+)(?: / (\S+))?$")
# What follows a function's name: the place in it, and what the compiler has made of it.
_BEHIND = re.compile(r"\+0x.*|\.(?:isra|constprop|part|cold)\b.*")
_LINE = re.compile(r"([^ |]+(?: / [^ |]+)?) \| (\S.*)")


class RaceError(LinuxUmError):
    """The list of known races cannot be read."""


def pair_of(title: str) -> Pair:
    """Return who has raced by the line that heads a report of KCSAN, or nobody.

    An assertion of the kernel's own code that does not hold is no such race.
    """
    found = _TITLE.match(title)
    return () if found is None else _pair(filter(None, found.groups()))


def _pair(names: Iterable[str]) -> Pair:
    return tuple(sorted(_BEHIND.sub("", name) for name in names))


def parse(text: str) -> dict[Pair, str]:
    """Return the reason of each race in *text*.

    Raises RaceError for a line that is none, and for a race that is there twice.
    """
    known: dict[Pair, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise RaceError(f"line {number}: {line!r}", "write FUNCTION / FUNCTION | REASON")
        pair = _pair(found[1].split(" / "))
        if pair in known:
            raise RaceError(f"line {number}: {found[1]} is there twice", "remove one")
        known[pair] = found[2]
    return known


def list_path() -> Path:
    """Return where the list is."""
    return repo_root() / "harness" / "tests" / "races.txt"


@functools.lru_cache(maxsize=1)
def known() -> dict[Pair, str]:
    """Return the reason of each race of the list. Raises RaceError when it cannot be read."""
    path = list_path()
    try:
        return parse(path.read_text())
    except OSError as error:
        raise RaceError(f"{path}: {error.strerror}", "it is a part of this repository") from error

# SPDX-License-Identifier: GPL-2.0-only
"""What the commands share: their words, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import gdb

from . import kernel


@dataclass
class Words:
    """The words of a command, sorted: options with their value ("" for a flag), and the rest."""

    options: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)
    # All of it as it was typed, for an expression that has quotes.
    raw: str = ""

    def number(self, name: str, default: int) -> int:
        """Return the number given with an option. Raises GdbError when it is none."""
        if name not in self.options:
            return default
        value = kernel.evaluate_number(self.options[name])
        if value < 0:
            raise gdb.GdbError(f"{name} takes a number that is not negative, not {value}")
        return value


def sort_words(argv: Sequence[str], known: Mapping[str, bool]) -> Words:
    """Sort the words of a command.

    *known* has the options by name, and whether each takes a value. Raises
    GdbError for an option that is not known or lacks its value.
    """
    words = Words()
    pending = iter(argv)
    for word in pending:
        if not word.startswith("--"):
            words.rest.append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in known:
            there = ", ".join(known) or "none"
            raise gdb.GdbError(f"no such option: {name}; there are: {there}")
        if known[name] and not equals:
            value = next(pending, "")
            if not value:
                raise gdb.GdbError(f"{name} needs a value")
        elif equals and not known[name]:
            raise gdb.GdbError(f"{name} takes no value")
        words.options[name] = value
    return words


class Command(gdb.Command):
    """A command below ``pksm``: one class each, whose docstring is the help.

    Subclasses define ``run``; what it raises reaches the user as one line.
    """

    NAME = ""
    # Options by name, and whether each takes a value.
    OPTIONS: Mapping[str, bool] = {}
    # Whether it lets the guest run: then nothing that was read may be remembered.
    LIVE = False

    def __init__(self) -> None:
        super().__init__(f"pksm {self.NAME}", gdb.COMMAND_DATA)

    def run(self, words: Words) -> None:
        """Do what the command is for."""
        raise NotImplementedError

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Sort the words, and run. Raises GdbError in one line."""
        try:
            words = sort_words(gdb.string_to_argv(argument), self.OPTIONS)
            words.raw = argument.strip()
            with contextlib.nullcontext() if self.LIVE else kernel.remembering():
                self.run(words)
        except gdb.GdbError as error:
            raise gdb.GdbError(kernel.one_line(f"pksm {self.NAME}: {error}")) from error
        except (gdb.error, OverflowError) as error:
            raise gdb.GdbError(kernel.one_line(f"pksm {self.NAME}: {error}")) from error


def table(lines: Iterable[Sequence[str]], right: str = "") -> list[str]:
    """Return lines with their columns aligned.

    *right* has an "r" for each column that is aligned to the right. The last
    column may be as wide as it likes.
    """
    rows = [list(line) for line in lines]
    columns = max((len(row) for row in rows), default=0)
    width = [max((len(row[i]) for row in rows if i < len(row)), default=0) for i in range(columns)]
    out = []
    for row in rows:
        cells = [
            cell.rjust(width[i]) if right[i : i + 1] == "r" else cell.ljust(width[i])
            for i, cell in enumerate(row)
        ]
        out.append("  ".join(cells).rstrip())
    return out

# SPDX-License-Identifier: GPL-2.0-only
"""pksm path: the call chain that led here, and which way in or out it is."""

from __future__ import annotations

import gdb

from . import command, kernel, ways
from .code import Level

# Inlined helpers of headers, at which a stop may happen to lie, say nothing.
HEADER = ("include/", "arch/um/include/", "arch/x86/include/")
KEPT = ("pksm_", "set_pte", "set_ptes", "free_pages_prepare")
# Its functions are the ways in and out; what is inlined there is how they are done.
HOOKS = "mm/pksm/intake.c"


def innermost(levels: list[Level]) -> list[Level]:
    """Return the chain without the inlined helpers of headers, or of a hook, at its inner end."""
    kept = list(levels)
    real = next((place for place, level in enumerate(levels) if not level.inlined), 0)
    if levels and levels[real].file == HOOKS:
        return kept[real:]
    while len(kept) > 1 and kept[0].inlined:
        if not kept[0].file.startswith(HEADER) or kept[0].name.startswith(KEPT):
            break
        kept.pop(0)
    return kept


def lines_of(levels: list[Level], *, lines: bool = False) -> list[str]:
    """Return the chain in lines, outermost first, indented as in the notes."""
    texts = []
    for depth, level in enumerate(reversed(innermost(levels))):
        arrow = ""
        if depth == 1:
            arrow = "-> "
        elif depth > 1:
            arrow = "  " * (depth - 1) + "--> "
        texts.append(f"{arrow}{level.name}()")
    width = max((len(text) for text in texts), default=0) + 2
    found = []
    for text, level in zip(texts, reversed(innermost(levels)), strict=True):
        where = f"{level.file}:{level.line}" if lines and level.line else level.file
        mark = "  (inlined)" if level.inlined else ""
        found.append(f"{text:{width}}{where}{mark}".rstrip())
    return found


class Path(command.Command):
    """Show the call chain that led here, and which way in or out of PKSM it is.

    pksm path [--lines]

The first line names the way: a user fault, GUP (and for whom), a kernel access
to user memory, fork, swap-in, copy-on-write (of what), migration; for a free,
whether a single page, a batch, or a block of higher order, and why; or a merge
by pksmd. The chain follows from the way in downwards, with the file of each
function; functions that the compiler has inlined are marked. --lines adds the
line in which each one is."""

    NAME = "path"
    OPTIONS = {"--lines": False}

    def run(self, words: command.Words) -> None:
        """Print the way and the chain."""
        if words.rest:
            raise gdb.GdbError(f"what is '{words.raw}'? Write: pksm path [--lines]")
        kernel.need_memory()
        way = ways.current()
        print(way.text)
        for line in lines_of(way.levels, lines="--lines" in words.options):
            print(line)


Path()

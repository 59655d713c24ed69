# SPDX-License-Identifier: GPL-2.0-only
"""Which page a user means."""

from __future__ import annotations

from dataclasses import dataclass

import gdb

from . import kernel, memory, rmap, tasks

PAGE_TYPES = ("page", "folio")


@dataclass(frozen=True)
class Target:
    """A page frame, and where it was found when it was named by a process and an address."""

    pfn: int
    task: tasks.Task | None = None
    address: int = 0


def page_of_value(value: gdb.Value) -> int:
    """Return the page frame of a number, or of a struct page or folio or a pointer to one.

    Raises GdbError when it is none of them.
    """
    kind = value.type.strip_typedefs()
    if kind.code == gdb.TYPE_CODE_PTR:
        target = kind.target().strip_typedefs()
        if target.name in PAGE_TYPES:
            return memory.page_to_pfn(int(value))
        raise gdb.GdbError(
            f"'{value.type}' is no page; give a page frame number, a struct page * or a "
            "struct folio *"
        )
    if kind.code == gdb.TYPE_CODE_STRUCT and kind.name in PAGE_TYPES:
        if value.address is None:
            raise gdb.GdbError("this struct page is a copy in gdb; give its address")
        return memory.page_to_pfn(int(value.address))
    try:
        number = int(value)
    except (gdb.error, ValueError) as error:
        raise gdb.GdbError(f"'{value.type}' is no page frame number and no struct page") from error
    return memory.check_pfn(number)


def place(text: str) -> tuple[tasks.Task, int] | None:
    """Return the process and the address of ``PID:ADDRESS`` or ``COMM:ADDRESS``; None for others.

    The address is that of the page. Raises GdbError when there is no such process.
    """
    who, colon, where = text.rpartition(":")
    if not colon or not who or who.endswith(":") or any(c in who for c in "?'\"("):
        return None
    address = kernel.evaluate_number(where)
    return tasks.find(who.strip()), address & ~(memory.PAGE_SIZE - 1)


def resolve(text: str) -> Target:
    """Return the page that a user named.

    That is a page frame number, an expression for a struct page or folio, or a
    process and an address. Raises GdbError in one line.
    """
    kernel.need_memory()
    if not text:
        raise gdb.GdbError("which page? Give a pfn, a struct page *, PID:ADDRESS or COMM:ADDRESS")
    found = place(text)
    if found is None:
        return Target(page_of_value(kernel.evaluate(text)))
    task, address = found
    return Target(rmap.page_at(task, address), task, address)

# SPDX-License-Identifier: GPL-2.0-only
"""All address spaces of the guest, and every page table entry in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import kernel, memory, tasks


@dataclass(frozen=True)
class Place:
    """A PTE that maps a page: whose it is, the address, its value."""

    mm: int
    address: int
    pte: tasks.Pte


def _threads(leader: tasks.Task) -> Iterator[tasks.Task]:
    """Yield the threads of a process, the leader included."""
    signal = kernel.member(leader.address, "struct task_struct", "signal")
    head = signal + kernel.offset("struct signal_struct", "thread_head")
    shift = kernel.offset("struct task_struct", "thread_node")
    for link in kernel.circle(head):
        yield tasks.read_task(link - shift)


def spaces() -> dict[int, str]:
    """Return each address space that a process has, and the name of the process.

    That of a process whose first thread has exited already is among them.
    """
    found: dict[int, str] = {}
    for leader in tasks.tasks():
        owner = leader
        if not leader.mm and kernel.member(leader.address, "struct task_struct", "signal"):
            owner = next((thread for thread in _threads(leader) if thread.mm), leader)
        if owner.mm and owner.mm not in found:
            found[owner.mm] = str(leader)
    return found


def _table(where: int) -> memoryview:
    """Return the entries of the page table at *where*."""
    return memoryview(kernel.read(where, memory.PAGE_SIZE)).cast("Q")


def entries(mm: int) -> Iterator[tuple[int, int, int]]:
    """Yield (user address, address of the PTE, its value) of each PTE that is not zero."""
    pgd = kernel.member(mm, "struct mm_struct", "pgd")
    if not pgd:
        return
    base = kernel.variable("uml_physmem")
    # What is above that is the kernel's own. exec fills in mm->task_size late.
    end = kernel.variable("task_size")
    tables = [(0, pgd)]
    for _, shift in tasks.levels():
        tables = [
            (start + (i << shift), base + (entry & tasks.PFN_MASK))
            for start, table in tables
            for i, entry in enumerate(_table(table))
            if entry & tasks.TABLE_PRESENT and start + (i << shift) < end
        ]
    for start, table in tables:
        for i, value in enumerate(_table(table)):
            if value:
                yield start + i * memory.PAGE_SIZE, table + 8 * i, value


class PageTables:
    """Every PTE that maps a page, by page frame, in the address spaces given."""

    def __init__(self, mms: list[int]) -> None:
        self.places: dict[int, list[Place]] = {}
        for mm in mms:
            for address, where, value in entries(mm):
                if value & tasks.PTE_PRESENT:
                    pte = tasks.Pte(where, value)
                    self.places.setdefault(pte.pfn, []).append(Place(mm, address, pte))

    def of(self, pfn: int) -> list[Place]:
        """Return the PTEs that map a page."""
        return self.places.get(pfn, [])


def vma_flags(flags: int) -> list[str]:
    """Return the flags of a VMA by the names that mm/debug.c has for them."""
    array = kernel.address("vmaflag_names")
    stride = kernel.size("struct trace_print_flags")
    names = []
    for i in range(64):
        mask = kernel.member(array + i * stride, "struct trace_print_flags", "mask")
        name = kernel.member(array + i * stride, "struct trace_print_flags", "name")
        if not name:
            break
        if flags & mask:
            names.append(kernel.text(name, 32))
    return names

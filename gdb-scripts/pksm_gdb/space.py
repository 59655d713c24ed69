# SPDX-License-Identifier: GPL-2.0-only
"""All address spaces of the guest, and every page table entry in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import kernel, memory, tasks

# How many bytes each level of page tables spans; see tasks.walk().
_PGD_SPAN = 1 << tasks.PGDIR_SHIFT
_PMD_SPAN = 1 << tasks.PMD_SHIFT


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


def _table(base: int, entry: int) -> memoryview:
    """Return the entries of the page table that an entry points at."""
    return memoryview(kernel.read(base + (entry & tasks.PFN_MASK), memory.PAGE_SIZE)).cast("Q")


def entries(mm: int) -> Iterator[tuple[int, int, int]]:
    """Yield (user address, address of the PTE, its value) of each PTE that is not zero."""
    base = kernel.variable("uml_physmem")
    pgd = kernel.member(mm, "struct mm_struct", "pgd")
    if not pgd:
        return
    # The entries above that are the kernel's own. exec fills in mm->task_size late.
    spans = -(-kernel.variable("task_size") // _PGD_SPAN)
    top = memoryview(kernel.read(pgd, memory.PAGE_SIZE)).cast("Q")
    for i, upper in enumerate(top[: min(spans, tasks.PTRS)]):
        if not upper & tasks.TABLE_PRESENT:
            continue
        for j, middle in enumerate(_table(base, upper)):
            if not middle & tasks.TABLE_PRESENT:
                continue
            start = i * _PGD_SPAN + j * _PMD_SPAN
            where = base + (middle & tasks.PFN_MASK)
            for k, value in enumerate(_table(base, middle)):
                if value:
                    yield start + k * memory.PAGE_SIZE, where + 8 * k, value


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

# SPDX-License-Identifier: GPL-2.0-only
"""Tasks of the guest, their address spaces and page tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gdb

from . import kernel, memory

COMM_LEN = 16
# UML (arch/um/include/asm/pgtable.h). The levels above the PTE, from the top, and the
# shift of each: 6.12 has three levels, with the pud folded into the pgd; later kernels four.
LEVELS = (("pgd", 39), ("pud", 30), ("pmd", 21))
FOLDED_LEVELS = (("pgd", 30), ("pmd", 21))
PTRS = 512
PTE_BITS = {
    "present": 0x001,
    "protnone": 0x010,
    "write": 0x020,
    "user": 0x040,
    "young": 0x080,
    "dirty": 0x100,
}
PTE_PRESENT = 0x011
TABLE_PRESENT = 0x001
# Bits that UML sets to remember what the host has to be told.
PTE_UML = 0x006
PFN_MASK = ~(memory.PAGE_SIZE - 1) & (1 << 64) - 1


@dataclass(frozen=True)
class Task:
    """A task_struct; ``mm`` is 0 for a kernel thread."""

    address: int
    pid: int
    comm: str
    mm: int

    def __str__(self) -> str:
        return f"{self.comm}[{self.pid}]"


def read_task(where: int) -> Task:
    """Read the task_struct at *where*."""
    name = "struct task_struct"
    return Task(
        address=where,
        pid=kernel.member(where, name, "pid", 4, signed=True),
        comm=kernel.text(where + kernel.offset(name, "comm"), COMM_LEN),
        mm=kernel.member(where, name, "mm"),
    )


def current_cpu() -> int:
    """Return the CPU that the selected thread of the guest is.

    Each but the first is a thread, whose pthread_t is the base of its thread-local storage.
    """
    if not kernel.has_symbol("cpu_threads"):
        return 0
    base = int(gdb.newest_frame().read_register("fs_base")) & (1 << 64) - 1
    threads = kernel.address("cpu_threads")
    for cpu in range(1, kernel.length("cpu_threads")):
        if kernel.number(threads + cpu * kernel.WORD) == base:
            return cpu
    return 0


def current() -> Task:
    """Return the task that runs on the CPU at the stop, as UML notes it when it switches."""
    kernel.need_memory()
    # An array of pointers, or (6.12) of structures that have nothing else in them.
    task = kernel.number(kernel.address("cpu_tasks") + current_cpu() * kernel.WORD)
    if not task:
        raise gdb.GdbError("no task runs yet: the guest is still booting")
    return read_task(task)


def tasks() -> Iterator[Task]:
    """Yield every process of the guest (thread group leaders), kernel threads included."""
    first = kernel.address("init_task")
    shift = kernel.offset("struct task_struct", "tasks")
    for link in kernel.circle(first + shift):
        yield read_task(link - shift)


def find(what: str) -> Task:
    """Return the process with that pid, or the only one with that name.

    Raises GdbError in one line when there is none, or several.
    """
    if what.isdigit():
        found = [task for task in tasks() if task.pid == int(what)]
    else:
        found = [task for task in tasks() if task.comm == what[: COMM_LEN - 1]]
    if not found:
        there = ", ".join(str(task) for task in tasks() if task.mm)
        raise gdb.GdbError(f"no process {what} in the guest; there are: {there or 'none'}")
    if len(found) > 1:
        pids = ", ".join(str(task.pid) for task in found)
        raise gdb.GdbError(f"several processes are called {what}; name one by its pid: {pids}")
    return found[0]


def users(mm: int) -> list[Task]:
    """Return the processes whose address space is the mm_struct at *mm*."""
    return [task for task in tasks() if task.mm == mm]


def name_of(mm: int) -> str:
    """Return the name of the process that has the address space *mm*."""
    found = users(mm)
    return str(found[0]) if found else f"mm {mm:#x} without a process"


# Page tables


@dataclass(frozen=True)
class Pte:
    """A page table entry: where it lies, and its value when it was read."""

    address: int
    value: int

    @property
    def present(self) -> bool:
        """Whether it maps a page; the same rule as pte_present()."""
        return bool(self.value & PTE_PRESENT)

    @property
    def none(self) -> bool:
        """Whether it is empty; the same rule as pte_none()."""
        return not self.value & ~0x002

    @property
    def pfn(self) -> int:
        """The page frame number, of an entry that is present."""
        return (self.value & PFN_MASK) >> memory.PAGE_SHIFT

    @property
    def writable(self) -> bool:
        """Whether the process may write without a fault."""
        return bool(self.value & PTE_BITS["write"])

    def __str__(self) -> str:
        if self.none:
            return "empty"
        if not self.present:
            return f"swap entry or marker {self.value:#x}"
        names = [name for name, mask in PTE_BITS.items() if self.value & mask]
        return f"pfn {self.pfn:#x} {' '.join(names)}"


def check_address(address: int) -> int:
    """Return *address*. Raises GdbError when no process can have it."""
    if not 0 <= address < PTRS << levels()[0][1]:
        raise gdb.GdbError(f"{address:#x} is not an address of a process")
    return address


def levels() -> tuple[tuple[str, int], ...]:
    """Return (name, shift) of the levels above the PTE that this kernel has."""
    return LEVELS if kernel.has_symbol("__pud_alloc") else FOLDED_LEVELS


def upper_levels(mm: int, address: int) -> list[tuple[str, int]]:
    """Return (name, entry) of the levels above the PTE, down to the first without a table."""
    check_address(address)
    base = kernel.variable("uml_physmem")
    table = kernel.member(mm, "struct mm_struct", "pgd")
    found = []
    for name, shift in levels():
        entry = kernel.number(table + 8 * (address >> shift & PTRS - 1))
        found.append((name, entry))
        if not entry & TABLE_PRESENT:
            break
        table = base + (entry & PFN_MASK)
    return found


def walk(mm: int, address: int) -> Pte | None:
    """Return the entry for *address* in the mm_struct at *mm*; None without a page table."""
    last = upper_levels(mm, address)[-1][1]
    if not last & TABLE_PRESENT:
        return None
    base = kernel.variable("uml_physmem")
    where = base + (last & PFN_MASK) + 8 * (address >> memory.PAGE_SHIFT & PTRS - 1)
    return Pte(where, kernel.number(where))


def need_pte(task: Task, address: int) -> Pte:
    """Return the entry for an address of a process. Raises GdbError when there is none."""
    if not task.mm:
        raise gdb.GdbError(f"{task} is a kernel thread and has no address space")
    pte = walk(task.mm, address)
    if pte is None:
        raise gdb.GdbError(f"{task} has no page table for {address:#x}: nothing was touched there")
    return pte


# Areas


@dataclass(frozen=True)
class Vma:
    """A vm_area_struct; addresses in bytes; ``pgoff``, that of its anonymous pages, in pages."""

    address: int
    mm: int
    start: int
    end: int
    pgoff: int
    flags: int
    anon_vma: int
    file: int

    def place(self, index: int) -> int | None:
        """Return the address at which page offset *index* is mapped, None when it is not."""
        where = self.start + (index - self.pgoff) * memory.PAGE_SIZE
        return where if self.start <= where < self.end else None


def _anon_pgoff(where: int) -> int:
    """Return the page offset of an area's anonymous pages; see vma_start_anon_pgoff().

    It is that of its file's pages, and no longer so since 7.3.
    """
    name = "struct vm_area_struct"
    if not kernel.has_member(name, "__vm_anon_pgoff_lo"):
        return kernel.member(where, name, "vm_pgoff")
    low, high = (
        kernel.member(where, name, f"__vm_anon_pgoff_{half}", 4) for half in ("lo", "hi")
    )
    return high << 32 | low


def read_vma(where: int) -> Vma:
    """Read the vm_area_struct at *where*."""
    name = "struct vm_area_struct"

    def word(path: str) -> int:
        return kernel.member(where, name, path)

    return Vma(
        address=where,
        mm=word("vm_mm"),
        start=word("vm_start"),
        end=word("vm_end"),
        pgoff=_anon_pgoff(where),
        flags=word("vm_flags"),
        anon_vma=word("anon_vma"),
        file=word("vm_file"),
    )


def find_vma(mm: int, address: int) -> Vma | None:
    """Return the area of an address space that holds *address*, by the kernel's own scripts."""
    try:
        from linux import mapletree  # type: ignore[import]
    except ImportError as error:
        raise gdb.GdbError(f"the kernel's gdb scripts are not loaded: {error}") from error
    tree = kernel.pointer(mm + kernel.offset("struct mm_struct", "mm_mt"), "struct maple_tree")
    found = mapletree.mtree_load(tree, address)
    return read_vma(int(found)) if found is not None and int(found) else None

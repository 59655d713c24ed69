# SPDX-License-Identifier: GPL-2.0-only
"""From a page to the page table entries that map it, as mm/rmap.c goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gdb

from . import index, kernel, memory, tasks
from .memory import Page


@dataclass(frozen=True)
class Mapping:
    """One PTE that maps a page."""

    vma: tasks.Vma
    address: int
    pte: tasks.Pte

    @property
    def process(self) -> str:
        """The process, as ``comm[pid]``."""
        return tasks.name_of(self.vma.mm)


def anon_vma(page: Page) -> int:
    """Return the address of a page's anon_vma; that of a merged page is its node's.

    Raises GdbError for a page that is not anonymous.
    """
    if page.kind == "anon":
        return page.owner
    if page.kind == "ksm" and page.owner:
        return index.read_node(page.owner).anon_vma
    raise gdb.GdbError(f"pfn {page.pfn:#x} is not anonymous, but {page.kind}: it has no anon_vma")


def areas(where: int) -> Iterator[tasks.Vma]:
    """Yield the areas of the anon_vma at *where*."""
    root = where + kernel.offset("struct anon_vma", "rb_root.rb_root")
    shift = kernel.offset("struct anon_vma_chain", "rb")
    for node in kernel.rb_tree(root):
        vma = kernel.member(node - shift, "struct anon_vma_chain", "vma")
        yield tasks.read_vma(vma)


def spots(where: int, offset: int) -> list[tuple[int, int]]:
    """Return the (mm, address) at which page offset *offset* of an anon_vma may be mapped."""
    found = []
    for vma in areas(where):
        address = vma.place(offset)
        if address is not None:
            found.append((vma.mm, address))
    return found


def _in_anon_vma(where: int, offset: int, pfn: int) -> Iterator[Mapping]:
    for vma in areas(where):
        address = vma.place(offset)
        pte = tasks.walk(vma.mm, address) if address is not None else None
        if address is not None and pte is not None and pte.present and pte.pfn == pfn:
            yield Mapping(vma, address, pte)


def places(page: Page) -> list[tuple[int, int]]:
    """Return the (anon_vma, page offset) at which PTEs of a page are looked for."""
    if page.kind == "anon":
        return [(page.owner, page.index)]
    if page.kind == "ksm" and page.owner:
        node = index.read_node(page.owner)
        found = [(node.anon_vma, page.index)]
        found += [(sharer.anon_vma, sharer.index) for sharer in index.sharers(node)]
        return found
    return []


def mappings(page: Page) -> list[Mapping]:
    """Return each PTE that maps an anonymous or merged page."""
    found: dict[tuple[int, int], Mapping] = {}
    for where, offset in dict.fromkeys(places(page)):
        for mapping in _in_anon_vma(where, offset, page.pfn):
            found.setdefault((mapping.vma.mm, mapping.address), mapping)
    return list(found.values())


def page_at(task: tasks.Task, address: int) -> int:
    """Return the page frame that a process has at an address. Raises GdbError without one."""
    pte = tasks.need_pte(task, address)
    if not pte.present:
        raise gdb.GdbError(f"{task} has no page at {address:#x}: the PTE is {pte}")
    return memory.check_pfn(pte.pfn)

# SPDX-License-Identifier: GPL-2.0-only
"""Everything the engine has, walked once, for the commands that compare."""

from __future__ import annotations

from functools import cached_property

from . import index, kernel, memory, record, rmap, space, tasks
from .memory import Page


class Snapshot:
    """The records, pages, nodes and page tables of a guest that stands still."""

    def __init__(self) -> None:
        kernel.need_memory()
        self.table = record.Table()
        self.pages = memory.Pages()
        self._base = memory.physical_address(0)
        self.states = self.table.states()
        self.tracked = [pfn for pfn, state in enumerate(self.states) if state & record.bit("LIVE")]
        self._areas: dict[int, list[tasks.Vma]] = {}
        self._read: dict[int, Page] = {}
        # What is wrong with each anon_vma that was looked at, if anything.
        self.verdicts: dict[int, str | None] = {}

    def page(self, pfn: int) -> Page:
        """Return a page; it is taken apart only once."""
        if pfn not in self._read:
            self._read[pfn] = self.pages[pfn]
        return self._read[pfn]

    @cached_property
    def flagged(self) -> set[int]:
        """The pages that have PG_pksm."""
        mask = memory.flag_mask("pksm")
        return {pfn for pfn, flags in enumerate(self.pages.flags()) if flags & mask}

    @cached_property
    def stable(self) -> list[int]:
        """The tracked pages that are merged, by their record."""
        mask = record.bit("STABLE")
        return [pfn for pfn in self.tracked if self.states[pfn] & mask]

    def counts(self) -> dict[str, int]:
        """Return how many records there are of each class."""
        found = dict.fromkeys(record.CLASSES, 0)
        for pfn in self.tracked:
            found[self.table[pfn].page_class] += 1
        return found

    def in_memory(self, where: int, align: int = kernel.WORD) -> bool:
        """Return whether a pointer points into the guest's memory, and is aligned."""
        end = self._base + len(self.pages) * memory.PAGE_SIZE
        return where % align == 0 and self._base <= where < end

    def in_slab(self, where: int) -> bool:
        """Return whether a pointer may be one to an object that was allocated."""
        if not self.in_memory(where):
            return False
        page = self.page((where - self._base) >> memory.PAGE_SHIFT)
        if page.head is not None:
            page = self.page(page.head)
        return page.page_type == "slab"

    def areas(self, anon_vma: int) -> list[tasks.Vma]:
        """Return the areas of an anon_vma; its tree is walked only once."""
        if anon_vma not in self._areas:
            self._areas[anon_vma] = list(rmap.areas(anon_vma))
        return self._areas[anon_vma]

    def spots(self, anon_vma: int, offset: int) -> list[tuple[int, int]]:
        """Return the (mm, address) at which a page offset of an anon_vma may be mapped."""
        found = []
        for vma in self.areas(anon_vma):
            address = vma.place(offset)
            if address is not None:
                found.append((vma.mm, address))
        return found

    def _anon_vmas(self) -> set[int]:
        """Return the anon_vma of every page that is mapped, tracked or not, merged or not."""
        pages = (
            self.page(pfn)
            for pfn, mapping in enumerate(self.pages.mappings())
            if mapping & memory.MAPPING_FLAGS == memory.MAPPING_ANON
        )
        found = {page.owner for page in pages if page.kind == "anon" and page.mapcount}
        for _, node in self.nodes:
            found.add(node.anon_vma)
            found.update(sharer.anon_vma for sharer in index.sharers(node))
        return found

    @cached_property
    def names(self) -> dict[int, str]:
        """The address spaces, with the names of their processes.

        One that no process has any more, or yet, is known by its areas: it is
        being torn down, made by fork or exec, or held by somebody who looks at it.
        """
        found = space.spaces()
        owners = self._anon_vmas()
        for anon_vma in owners:
            for area in self.areas(anon_vma) if self.in_slab(anon_vma) else ():
                found.setdefault(area.mm, f"mm {area.mm:#x} without a process")
        return found

    @cached_property
    def tables(self) -> space.PageTables:
        """All page tables."""
        return space.PageTables(list(self.names))

    @cached_property
    def nodes(self) -> list[tuple[int, index.Node]]:
        """The stable index."""
        return list(index.stable_nodes())

    @cached_property
    def dead(self) -> set[int]:
        """The nodes whose page was freed."""
        return set(index.dead_nodes())

    def zero_ptes(self) -> dict[int, int]:
        """Return how many PTEs of the zero page PKSM has made in each address space."""
        found = dict.fromkeys(self.names, 0)
        for place in self.tables.of(memory.zero_pfn()):
            # is_ksm_zero_pte() of include/linux/ksm.h: dirty tells them apart.
            if place.pte.value & tasks.PTE_BITS["dirty"]:
                found[place.mm] += 1
        return found

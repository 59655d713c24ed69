# SPDX-License-Identifier: GPL-2.0-only
"""Convenience functions, for expressions: $pksm_item, $pfn_to_page, $page_to_pfn, $pte, $anon_vma.

A page is given as a struct page *, a struct folio *, or its page frame number.
"""

from __future__ import annotations

import gdb

from . import kernel, memory, record, rmap, target, tasks


class _Function(gdb.Function):
    """A function whose errors are one line. Subclasses define ``value``."""

    NAME = ""
    ARGUMENTS: tuple[str, ...] = ("PAGE",)

    def __init__(self) -> None:
        super().__init__(self.NAME)

    def value(self, *args: gdb.Value) -> gdb.Value:
        """Return the value; there are as many arguments as ARGUMENTS says."""
        raise NotImplementedError

    def invoke(self, *args: gdb.Value) -> gdb.Value:
        """Count the arguments, and return the value. Raises GdbError in one line."""
        if len(args) != len(self.ARGUMENTS):
            raise gdb.GdbError(f"write: ${self.NAME}({', '.join(self.ARGUMENTS)})")
        try:
            return self.value(*args)
        except gdb.error as error:
            raise gdb.GdbError(kernel.one_line(f"${self.NAME}: {error}")) from error


class PksmItem(_Function):
    """$pksm_item(PAGE): the engine's record of a page, a struct pksm_rmap_item *."""

    NAME = "pksm_item"

    def value(self, *args: gdb.Value) -> gdb.Value:
        """Return the pointer."""
        where = record.record_address(target.page_of_value(args[0]))
        return kernel.pointer(where, "struct pksm_rmap_item")


class PfnToPage(_Function):
    """$pfn_to_page(NUMBER): the struct page * of a page frame."""

    NAME = "pfn_to_page"
    ARGUMENTS = ("NUMBER",)

    def value(self, *args: gdb.Value) -> gdb.Value:
        """Return the pointer."""
        return kernel.pointer(memory.pfn_to_page(target.page_of_value(args[0])), "struct page")


class PageToPfn(_Function):
    """$page_to_pfn(PAGE): the page frame number of a struct page * or struct folio *."""

    NAME = "page_to_pfn"

    def value(self, *args: gdb.Value) -> gdb.Value:
        """Return the number."""
        pfn = target.page_of_value(args[0])
        return gdb.Value(pfn).cast(kernel.typ("unsigned long"))


class PtePointer(_Function):
    """$pte(PID or "COMM", ADDRESS): the pte_t * for an address of a process.

    To see the entry itself: print *$pte("memdup", 0x40400000)."""

    NAME = "pte"
    ARGUMENTS = ('PID or "COMM"', "ADDRESS")

    def value(self, *args: gdb.Value) -> gdb.Value:
        """Return the pointer."""
        process, address = args
        code = process.type.strip_typedefs().code
        is_text = code in (gdb.TYPE_CODE_ARRAY, gdb.TYPE_CODE_PTR)
        who = process.string() if is_text else str(int(process))
        pte = tasks.need_pte(tasks.find(who), int(address) & ~(memory.PAGE_SIZE - 1))
        return kernel.pointer(pte.address, "pte_t")


class AnonVma(_Function):
    """$anon_vma(PAGE): the struct anon_vma * of a page; of a merged page, that of its node."""

    NAME = "anon_vma"

    def value(self, *args: gdb.Value) -> gdb.Value:
        """Return the pointer."""
        found = rmap.anon_vma(memory.read_page(target.page_of_value(args[0])))
        return kernel.pointer(found, "struct anon_vma")


for _function in (PksmItem, PfnToPage, PageToPfn, PtePointer, AnonVma):
    _function()

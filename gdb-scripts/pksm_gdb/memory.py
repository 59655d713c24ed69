# SPDX-License-Identifier: GPL-2.0-only
"""Pages: page frame number, struct page and contents, for FLATMEM (all that UML has)."""

from __future__ import annotations

from dataclasses import dataclass

import gdb

from . import kernel

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
# page->mapping of pages that are no page cache (include/linux/page-flags.h).
MAPPING_ANON = 1
MAPPING_MOVABLE = 2
MAPPING_FLAGS = 3
# page->page_type is shared with the map count; such values are types.
FIRST_TYPE = 0xF0
# Several flags share a bit; these names are the ones for pages of processes.
FLAG_ALIASES = frozenset({"readahead", "swapcache", "anon_exclusive"})
# Flags whose bit means something else for a page that is not anonymous.
ANON_ALIASES = {"owner_priv_1": "swapcache", "owner_2": "anon_exclusive"}


def frames() -> int:
    """Return how many page frames the guest has; their numbers begin at 0."""
    kernel.need_memory()
    if not kernel.has_symbol("mem_map"):
        raise gdb.GdbError("these scripts know FLATMEM kernels only, and this one has no mem_map")
    count = kernel.variable("max_mapnr")
    if not count:
        raise gdb.GdbError("the guest has not set up its memory yet")
    return count


def check_pfn(pfn: int) -> int:
    """Return *pfn*. Raises GdbError when the guest has no such page frame."""
    count = frames()
    if not 0 <= pfn < count:
        raise gdb.GdbError(f"pfn {pfn:#x} is out of range: the guest has 0 to {count - 1:#x}")
    return pfn


def pfn_to_page(pfn: int) -> int:
    """Return the address of the struct page of a page frame."""
    return kernel.variable("mem_map") + check_pfn(pfn) * kernel.size("struct page")


def page_to_pfn(page: int) -> int:
    """Return the page frame number of the struct page at *page*."""
    distance = page - kernel.variable("mem_map")
    pfn, rest = divmod(distance, kernel.size("struct page"))
    if rest or not 0 <= pfn < frames():
        raise gdb.GdbError(f"{page:#x} is not the address of a struct page")
    return pfn


def physical_address(pfn: int) -> int:
    """Return where in the kernel's address space a page frame is mapped."""
    return kernel.variable("uml_physmem") + (check_pfn(pfn) << PAGE_SHIFT)


def content(pfn: int) -> bytes:
    """Return the 4096 bytes of a page."""
    return kernel.read(physical_address(pfn), PAGE_SIZE)


def zero_pfn() -> int:
    """Return the page frame number of the kernel's page of zeroes."""
    # It was a pointer to the page, and is the page itself since 7.0.
    is_page = kernel.symbol("empty_zero_page").type.code == gdb.TYPE_CODE_ARRAY
    find = kernel.address if is_page else kernel.variable
    return find("empty_zero_page") - kernel.variable("uml_physmem") >> PAGE_SHIFT


def flag_mask(name: str) -> int:
    """Return the bit of the page flag ``PG_name``."""
    return 1 << kernel.enum("pageflags")[f"PG_{name}"]


@dataclass(frozen=True)
class Page:
    """A struct page as it was when it was read."""

    pfn: int
    address: int
    flags: int
    mapping: int
    index: int
    refcount: int
    raw_mapcount: int
    private: int
    compound_head: int

    @property
    def head(self) -> int | None:
        """The page frame of the folio's first page, for a tail page; None for any other."""
        return page_to_pfn(self.compound_head - 1) if self.compound_head & 1 else None

    @property
    def mapcount(self) -> int:
        """How many PTEs map it; 0 for what is not a page of a process."""
        return self.raw_mapcount + 1 if self.page_type is None else 0

    @property
    def page_type(self) -> str | None:
        """``buddy``, ``slab``, ``table``..., or None for a page of a process or a cache."""
        kind = (self.raw_mapcount & 0xFFFFFFFF) >> 24
        if kind < FIRST_TYPE or self.raw_mapcount == -1:
            return None
        try:
            types = kernel.enum("pagetype")
        except gdb.GdbError:
            return "typed"
        for name, value in types.items():
            if value == kind:
                return name.removeprefix("PGTY_")
        return "typed"

    @property
    def kind(self) -> str:
        """``anon``, ``ksm`` (merged), ``file``, ``movable``, ``free`` or ``kernel``."""
        if self.refcount == 0 and self.page_type in (None, "buddy"):
            return "free"
        if self.page_type is not None:
            return "kernel"
        low = self.mapping & MAPPING_FLAGS
        if low == MAPPING_FLAGS:
            return "ksm"
        if low == MAPPING_ANON:
            return "anon"
        if low == MAPPING_MOVABLE:
            return "movable"
        return "file" if self.mapping else "kernel"

    @property
    def owner(self) -> int:
        """page->mapping without its low bits: an anon_vma, a stable node, an address_space."""
        return self.mapping & ~MAPPING_FLAGS

    def has(self, flag: str) -> bool:
        """Return whether ``PG_flag`` is set."""
        return bool(self.flags & flag_mask(flag))

    @property
    def flag_names(self) -> list[str]:
        """The names of the flags that are set, as enum pageflags has them."""
        anonymous = bool(self.mapping & MAPPING_ANON) and self.page_type is None
        names = []
        for full, bit in kernel.enum("pageflags").items():
            if full == "__NR_PAGEFLAGS":
                break
            if self.flags >> bit & 1:
                name = full.removeprefix("PG_")
                names.append(ANON_ALIASES.get(name, name) if anonymous else name)
        return names


def _parse(pfn: int, where: int, data: bytes) -> Page:
    """Return the Page of the bytes of a struct page."""

    def field(path: str, length: int = kernel.WORD, *, signed: bool = False) -> int:
        at = kernel.offset("struct page", path)
        return int.from_bytes(data[at : at + length], "little", signed=signed)

    return Page(
        pfn=pfn,
        address=where,
        flags=field("flags"),
        mapping=field("mapping"),
        index=field(kernel.first_member("struct page", "index", "__folio_index")),
        refcount=field("_refcount.counter", 4, signed=True),
        raw_mapcount=field("_mapcount.counter", 4, signed=True),
        private=field("private"),
        compound_head=field(kernel.first_member("struct page", "compound_head", "compound_info")),
    )


def read_page(pfn: int) -> Page:
    """Read the struct page of a page frame."""
    where = pfn_to_page(pfn)
    return _parse(pfn, where, kernel.read(where, kernel.size("struct page")))


class Pages:
    """The struct page of every page frame, read at one stroke."""

    def __init__(self) -> None:
        self._start = kernel.variable("mem_map")
        self._stride = kernel.size("struct page")
        self._count = frames()
        self._data = kernel.read(self._start, self._count * self._stride)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, pfn: int) -> Page:
        if not 0 <= pfn < self._count:
            raise gdb.GdbError(f"pfn {pfn:#x} is out of range")
        at = pfn * self._stride
        return _parse(pfn, self._start + at, self._data[at : at + self._stride])

    def flags(self) -> list[int]:
        """Return the flags of each page by page frame number."""
        return self._column("flags")

    def mappings(self) -> list[int]:
        """Return page->mapping of each page by page frame number."""
        return self._column("mapping")

    def _column(self, path: str) -> list[int]:
        words = memoryview(self._data).cast("Q")
        step = self._stride // kernel.WORD
        return list(words[kernel.offset("struct page", path) // kernel.WORD :: step])

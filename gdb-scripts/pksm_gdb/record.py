# SPDX-License-Identifier: GPL-2.0-only
"""Records: struct pksm_rmap_item in the page_ext of each page. See mm/pksm/internal.h."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import gdb

from . import kernel, memory

END = 0xFFFFFFFF
MAX_ORDER_NR_PAGES = 1 << 10
# Names of the classes, as enum pksm_class has them; pages_unshared of sysfs is two of them.
UNTRACKED, NEW, UNSHARED, WATCHED = "untracked", "new", "unshared", "watched"
VOLATILE, SHARED = "volatile", "shared"
CLASSES = (UNTRACKED, NEW, UNSHARED, WATCHED, VOLATILE, SHARED)


def bit(name: str) -> int:
    """Return PKSM_NAME of enum pksm_state."""
    return kernel.enum("pksm_state")[f"PKSM_{name}"]


def layout(name: str) -> int:
    """Return PKSM_NAME of enum pksm_state_layout."""
    return kernel.enum("pksm_state_layout")[f"PKSM_{name}"]


@dataclass(frozen=True)
class Record:
    """A record as it was when it was read."""

    pfn: int
    state: int
    next: int

    @property
    def live(self) -> bool:
        """Whether the page is tracked."""
        return bool(self.state & bit("LIVE"))

    @property
    def stable(self) -> bool:
        """Whether it is a merged page."""
        return bool(self.state & bit("STABLE"))

    @property
    def where(self) -> str:
        """``list`` (a new list or a queue), ``index`` (a bucket) or ``none``."""
        place = self.state & bit("WHERE_MASK")
        return {bit("LIST"): "list", bit("INDEX"): "index"}.get(place, "none")

    @property
    def reborn(self) -> bool:
        """Whether its hash is outdated: that of a former page, or of what the page held before."""
        return self.where == "index" and bool(self.state & bit("REBORN"))

    @property
    def written(self) -> bool:
        """Whether it was watched, and was written to since."""
        return self.reborn and bool(self.state & bit("WATCHED"))

    @property
    def age(self) -> int:
        """How often the page had changed after it was hashed, as far as that is counted."""
        return (self.state & bit("AGE_MASK")) >> layout("AGE_SHIFT")

    @property
    def cleaned(self) -> bool:
        """Whether a dirty PTE means that it was written to, for a record in a list."""
        return self.where == "list" and bool(self.state & bit("CLEANED"))

    @property
    def level(self) -> int | None:
        """For which queue it is, for a record in a list."""
        if self.where != "list":
            return None
        return (self.state & bit("LEVEL_MASK")) >> layout("LEVEL_SHIFT")

    @property
    def tag(self) -> int | None:
        """The bits of the hash that are kept, for a record in the index."""
        return self.state >> layout("HASH_SHIFT") if self.where == "index" else None

    @property
    def page_class(self) -> str:
        """The class it is counted in; the same rules as pksm_classify()."""
        if not self.live:
            return UNTRACKED
        if self.stable:
            return SHARED
        if self.where == "index":
            watched = self.state & bit("WATCHED")
            if self.reborn:
                return VOLATILE if watched else NEW
            return WATCHED if watched else UNSHARED
        return VOLATILE if self.level else NEW

    def __str__(self) -> str:
        words = [self.page_class]
        if self.where == "index":
            words.append(f"in the unstable index, hash bits {self.tag:#x}")
            if self.reborn:
                words.append("of what was written over" if self.written else "of a former page")
        elif self.where == "list":
            words.append(f"waiting, level {self.level}")
            if self.cleaned:
                words.append("cleaned")
        elif self.live and not self.stable:
            words.append("in pksmd's hands")
        if self.age:
            words.append(f"age {self.age}")
        return f"{', '.join(words)} (state {self.state:#x})"


def max_age() -> int:
    """Return the age at which a page gets no older."""
    return bit("AGE_MASK") >> layout("AGE_SHIFT")


def age_level(age: int) -> int:
    """Return the level of the queue for a page of an age; see pksm_age_level()."""
    return int(kernel.evaluate("pksm_age_level::levels")[min(age, max_age())])


def _table() -> tuple[int, int, int]:
    """Return the address of page frame 0's record, the distance of two, and their number."""
    operations = kernel.address("pksm_page_ext_ops")
    node = kernel.address("contig_page_data")
    base = kernel.member(node, "struct pglist_data", "node_page_ext")
    if not base:
        raise gdb.GdbError("the guest has no page_ext yet: it is still booting")
    # As lookup_page_ext() has it: the table begins at a block of the buddy allocator.
    start = kernel.member(node, "struct pglist_data", "node_start_pfn")
    start -= start % MAX_ORDER_NR_PAGES
    stride = kernel.variable("page_ext_size")
    shift = kernel.member(operations, "struct page_ext_operations", "offset")
    return base + shift - start * stride, stride, memory.frames()


def record_address(pfn: int) -> int:
    """Return the address of the struct pksm_rmap_item of a page frame."""
    first, stride, _ = _table()
    return first + memory.check_pfn(pfn) * stride


def read_record(pfn: int) -> Record:
    """Read the record of a page frame."""
    state, following = struct.unpack("<II", kernel.read(record_address(pfn), 8))
    return Record(pfn, state, following)


class Table:
    """All records, read at one stroke: for walking chains and for counting."""

    def __init__(self) -> None:
        first, self._stride, self._count = _table()
        self._data = kernel.read(first, self._stride * (self._count - 1) + 8)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, pfn: int) -> Record:
        if not 0 <= pfn < self._count:
            raise gdb.GdbError(f"a record points at pfn {pfn:#x}, which the guest does not have")
        state, following = struct.unpack_from("<II", self._data, pfn * self._stride)
        return Record(pfn, state, following)

    def states(self) -> list[int]:
        """Return the state of each record by page frame number."""
        at = range(0, self._count * self._stride, self._stride)
        return [struct.unpack_from("<I", self._data, place)[0] for place in at]

# SPDX-License-Identifier: GPL-2.0-only
"""The lists and indexes of the engine, walked in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gdb

from . import kernel, record

# The chains of struct pksm_queue.
CHAINS = ("filling", "ripening", "ripe")


@dataclass(frozen=True)
class Chain:
    """A chain of records: its name, and the page frame number of its first."""

    name: str
    first: int


def follow(table: record.Table, first: int) -> Iterator[record.Record]:
    """Yield the records of the chain that begins at page frame *first*.

    Raises GdbError for a chain that is a circle or leaves memory.
    """
    pfn = first
    for _ in range(len(table) + 1):
        if pfn == record.END:
            return
        entry = table[pfn]
        yield entry
        pfn = entry.next
    raise gdb.GdbError(f"the chain that begins at pfn {first:#x} is a circle")


def new_lists() -> list[Chain]:
    """Return the new list of each CPU: what the fault path left."""
    shift = kernel.offset("struct pksm_cpu", "new_head")
    return [
        Chain(f"new list of CPU {cpu}", kernel.number(where + shift, 4))
        for cpu, where in kernel.percpu("pksm_cpu")
    ]


def queues() -> list[Chain]:
    """Return the chains of the queues in which pages settle, by level."""
    base = kernel.address("pksm_queues")
    stride = kernel.size("struct pksm_queue")
    return [
        Chain(
            f"queue {level}, {name}",
            kernel.number(base + level * stride + kernel.offset("struct pksm_queue", name), 4),
        )
        for level in range(kernel.length("pksm_queues"))
        for name in CHAINS
    ]


def unstable_bits() -> int:
    """Return the binary logarithm of the number of buckets; 0 before PKSM was first started."""
    return kernel.variable("pksm_unstable_bits")


def unstable_buckets() -> Iterator[tuple[int, int]]:
    """Yield (number, first page frame) of each bucket of the unstable index that is not empty."""
    base = kernel.variable("pksm_unstable")
    if not base:
        return
    data = memoryview(kernel.read(base, 4 << unstable_bits())).cast("I")
    for number, first in enumerate(data):
        if first != record.END:
            yield number, first


@dataclass(frozen=True)
class Marks:
    """A struct pksm_marks: a set of buckets in two bitmaps, and a flag."""

    name: str
    buckets: int
    words: int
    any: bool

    def lacks(self, bucket: int) -> str | None:
        """Return what is missing for pksmd to find a bucket in the set; None when it would."""

        def marked(base: int, bit: int) -> bool:
            return bool(kernel.number(base + kernel.WORD * (bit // 64)) >> bit % 64 & 1)

        if not marked(self.buckets, bucket):
            return f"bucket {bucket:#x} is not marked in {self.name}.buckets"
        if not marked(self.words, bucket // 64):
            return f"its word {bucket // 64:#x} is not marked in {self.name}.words"
        return None if self.any else f"{self.name}.any is false"


def read_marks(name: str) -> Marks:
    """Read ``pksm_dead`` (buckets of the unstable index) or ``pksm_stale`` (of the stable one)."""
    where = kernel.address(name)

    def word(path: str, length: int = kernel.WORD) -> int:
        return kernel.member(where, "struct pksm_marks", path, length)

    return Marks(name, word("buckets"), word("words"), bool(word("any", 1)))


# pksm_interval(): what waits a second time waits for longer, and nothing waits for hours.
_BACKOFF = 4
_MIN_BACKOFF_MILLISECS = 10
_MAX_INTERVAL_MILLISECS = 3600 * 1000


def interval_millisecs(level: int) -> int:
    """Return how long pages of a level wait at least; at most it is twice that."""
    settle = kernel.variable("pksm_settle_millisecs")
    if level:
        settle = max(settle * _BACKOFF, _MIN_BACKOFF_MILLISECS)
    return min(settle << level, _MAX_INTERVAL_MILLISECS)


def bucket_of(tag: int) -> int:
    """Return the bucket for the hash bits of a record."""
    return tag & (1 << unstable_bits()) - 1


@dataclass(frozen=True)
class Node:
    """A struct pksm_stable_node."""

    address: int
    pfn: int
    nr_sharers: int
    anon_vma: int
    hash: int


@dataclass(frozen=True)
class Sharer:
    """A struct pksm_sharer; ``index`` is in pages."""

    address: int
    anon_vma: int
    index: int


def read_node(where: int) -> Node:
    """Read the stable node at *where*."""
    name = "struct pksm_stable_node"
    return Node(
        address=where,
        pfn=kernel.member(where, name, "pfn", 4),
        nr_sharers=kernel.member(where, name, "nr_sharers", 4),
        anon_vma=kernel.member(where, name, "anon_vma"),
        hash=kernel.member(where, name, "hash"),
    )


def sharers(node: Node) -> Iterator[Sharer]:
    """Yield the sharers of a node."""
    head = node.address + kernel.offset("struct pksm_stable_node", "sharers.first")
    shift = kernel.offset("struct pksm_sharer", "link")
    for link in kernel.hlist(head):
        where = link - shift
        yield Sharer(
            where,
            kernel.member(where, "struct pksm_sharer", "anon_vma"),
            kernel.member(where, "struct pksm_sharer", "index"),
        )


def stable_bits() -> int:
    """Return the binary logarithm of the number of buckets of the stable index."""
    return kernel.variable("pksm_stable_bits")


def stable_nodes() -> Iterator[tuple[int, Node]]:
    """Yield (bucket, node) of the stable index."""
    base = kernel.variable("pksm_stable")
    if not base:
        return
    shift = kernel.offset("struct pksm_stable_node", "link")
    heads = memoryview(kernel.read(base, kernel.WORD << stable_bits())).cast("Q")
    for number, first in enumerate(heads):
        if first:
            for link in kernel.hlist(base + kernel.WORD * number):
                yield number, read_node(link - shift)


def dead_nodes() -> list[int]:
    """Return the addresses of the nodes whose page was freed and which pksmd has yet to free."""
    shift = kernel.offset("struct pksm_cpu", "dead_nodes.first")
    link = kernel.offset("struct pksm_stable_node", "dead")
    return [
        node - link
        for _, where in kernel.percpu("pksm_cpu")
        for node in kernel.hlist(where + shift)
    ]

# SPDX-License-Identifier: GPL-2.0-only
"""The invariants of the records and their chains. Those of merged pages: stable_laws.py.

Each law is a function that walks a Snapshot and yields what it finds broken,
with both sides.
"""

from __future__ import annotations

from collections.abc import Iterator

import gdb

from . import index, kernel, record
from .finding import FREEING, HAND, MUTEX, Finding
from .record import Record
from .snapshot import Snapshot


class Chains:
    """The chains of the engine, followed, and what was wrong with them on the way."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        # The levels at which pages begin: new ones, and copies of merged ones.
        self._born = (0, record.age_level(1))
        # Which chain each record is in.
        self.home: dict[int, str] = {}
        # The records of each bucket, by its number.
        self.buckets: dict[int, list[int]] = {}
        self.problems: list[Finding] = []
        for chain in index.new_lists():
            self._check_list(chain, 0)
        for number, chain in enumerate(index.queues()):
            self._check_list(chain, number // len(index.CHAINS))
        for number, first in index.unstable_buckets():
            self.buckets[number] = self._check_bucket(number, first)

    def _follow(self, name: str, first: int) -> Iterator[Record]:
        """Yield the records of a chain up to its end, or to where it goes wrong."""
        pfn, before = first, first
        while pfn != record.END:
            if pfn >= len(self._snapshot.table):
                said = f"the {name} goes on to pfn {pfn:#x}, which the guest does not have"
                self.problems.append(Finding(before, said))
                return
            if pfn in self.home:
                if self.home[pfn] == name:
                    said = f"the {name} is a circle: pfn {before:#x} leads back here"
                else:
                    said = f"is in two chains: the {self.home[pfn]} and the {name}"
                self.problems.append(Finding(pfn, said))
                return
            self.home[pfn] = name
            entry = self._snapshot.table[pfn]
            yield entry
            before, pfn = pfn, entry.next

    def _where(self, entry: Record, wanted: str, name: str) -> bool:
        if entry.where == wanted:
            return True
        said = f"is in the {name}, but its record says '{entry.where}' (state {entry.state:#x})"
        self.problems.append(Finding(entry.pfn, said, HAND))
        return False

    def _check_list(self, chain: index.Chain, level: int) -> None:
        born = self._born
        for entry in self._follow(chain.name, chain.first):
            # One that is born in a queue, or in a new list, has the level of its kind: it is
            # put right when pksmd gets there.
            if self._where(entry, "list", chain.name) and entry.level not in (level, *born):
                said = f"is in the {chain.name}, but its record says level {entry.level}"
                self.problems.append(Finding(entry.pfn, said, HAND))

    def _check_bucket(self, number: int, first: int) -> list[int]:
        name = f"bucket {number:#x}"
        found = []
        for entry in self._follow(name, first):
            found.append(entry.pfn)
            if not self._where(entry, "index", name):
                continue
            wanted = index.bucket_of(entry.tag or 0)
            if wanted != number:
                said = f"is in {name}, but its hash bits {entry.tag:#x} belong in {wanted:#x}"
                self.problems.append(Finding(entry.pfn, said, HAND))
        return found


def unreachable(snapshot: Snapshot, chains: Chains) -> Iterator[Finding]:
    """Every record that says it is in a list or bucket can be reached from one."""
    mask = record.bit("WHERE_MASK")
    lost = {
        pfn
        for pfn, state in enumerate(snapshot.states)
        if state & mask and pfn not in chains.home
    }
    behind = {snapshot.table[pfn].next for pfn in lost}
    heads = sorted(lost - behind)
    for pfn in heads:
        entry = snapshot.table[pfn]
        place = "list" if entry.where == "list" else f"bucket {index.bucket_of(entry.tag or 0):#x}"
        yield Finding(
            pfn,
            f"its record says '{entry.where}' (state {entry.state:#x}), but no {place} reaches it",
            HAND,
        )
    if lost and not heads:
        yield Finding(min(lost), "is in a circle of records that no list and no bucket reaches")


def states(snapshot: Snapshot, chains: Chains) -> Iterator[Finding]:
    """The bits of a record fit each other."""
    watched = record.bit("WATCHED")
    for pfn, state in enumerate(snapshot.states):
        if not state:
            continue
        entry = snapshot.table[pfn]
        if entry.stable and not entry.live:
            yield Finding(pfn, f"its record says stable, but not live (state {state:#x})")
        if entry.reborn and not entry.live:
            yield Finding(pfn, f"its record says born again, but not live (state {state:#x})")
        if entry.where == "index" and state & watched and not entry.live:
            yield Finding(pfn, f"its record says watched, but not live (state {state:#x})")
        if entry.live and not entry.stable and entry.where == "none":
            said = f"is tracked, but in no list and no index (state {state:#x}): pksmd has it in "
            yield Finding(pfn, said + "hand, or nobody will ever look at it", HAND)


def dead_marks(snapshot: Snapshot, chains: Chains) -> Iterator[Finding]:
    """A bucket with a record whose page is not what was hashed is marked: pksmd finds it."""
    marks = index.read_marks("pksm_dead")
    for number, pfns in chains.buckets.items():
        for pfn in pfns:
            entry = snapshot.table[pfn]
            if entry.where != "index" or (entry.live and not entry.reborn):
                continue
            lacks = marks.lacks(number)
            if lacks is None:
                continue
            what = "is dead"
            if entry.reborn:
                what = "was written to" if entry.written else "was born again"
            yield Finding(pfn, f"{what} in bucket {number:#x}, but {lacks}", MUTEX)


def flags(snapshot: Snapshot, chains: Chains) -> Iterator[Finding]:
    """PG_pksm is set for the pages whose record is alive, and for no other."""
    tracked = set(snapshot.tracked)
    for pfn in sorted(tracked ^ snapshot.flagged):
        state = snapshot.states[pfn]
        if pfn in tracked:
            said = f"its record is alive (state {state:#x}), but PG_pksm is not set"
        else:
            said = f"PG_pksm is set, but its record is dead (state {state:#x})"
        yield Finding(pfn, said, HAND)


def references(snapshot: Snapshot, chains: Chains) -> Iterator[Finding]:
    """A tracked page is in use."""
    for pfn in snapshot.tracked:
        count = snapshot.page(pfn).refcount
        if count <= 0:
            yield Finding(pfn, f"is tracked, but its reference count is {count}", FREEING)


def kinds(snapshot: Snapshot, chains: Chains) -> Iterator[Finding]:
    """A tracked page is anonymous; a stable one is merged, by a node that says so."""
    for pfn in snapshot.tracked:
        page = snapshot.page(pfn)
        entry = snapshot.table[pfn]
        if page.refcount <= 0:
            continue
        wanted = "ksm" if entry.stable else "anon"
        if page.kind != wanted:
            said = f"its record says {entry.page_class}, but page->mapping {page.mapping:#x}"
            yield Finding(pfn, f"{said} is '{page.kind}', not '{wanted}'", HAND)
        elif wanted == "anon" and page.mapcount:
            problem = anon_vma_problem(snapshot, page.owner)
            if problem:
                yield Finding(pfn, f"its {problem}")


def anon_vma_problem(snapshot: Snapshot, where: int) -> str | None:
    """Return what is wrong with an anon_vma, or None."""
    if where not in snapshot.verdicts:
        snapshot.verdicts[where] = _anon_vma_problem(snapshot, where)
    return snapshot.verdicts[where]


def _anon_vma_problem(snapshot: Snapshot, where: int) -> str | None:
    name = "struct anon_vma"
    if not snapshot.in_slab(where):
        return f"anon_vma {where:#x} is no object of the slab allocator"
    root = kernel.member(where, name, "root")
    if not snapshot.in_slab(root):
        return f"anon_vma {where:#x} has a root {root:#x} that is no object of the slab allocator"
    if kernel.member(root, name, "root") != root:
        return f"anon_vma {where:#x} has a root {root:#x} that is not its own root"
    for what, which in (("anon_vma", where), ("anon_vma's root", root)):
        count = kernel.member(which, name, "refcount.counter", 4, signed=True)
        if count <= 0:
            return f"{what} {which:#x} has a reference count of {count}"
    return None


def chain_laws(snapshot: Snapshot) -> Iterator[Finding]:
    """Yield what is wrong with the records and their chains, in the order of the laws."""
    try:
        chains = Chains(snapshot)
    except gdb.GdbError as error:
        yield Finding(None, f"the chains cannot be walked: {error}")
        return
    yield from chains.problems
    for law in (unreachable, states, dead_marks, flags, references, kinds):
        yield from law(snapshot, chains)

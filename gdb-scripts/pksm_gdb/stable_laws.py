# SPDX-License-Identifier: GPL-2.0-only
"""The invariants of merged pages, of the PTEs that map tracked pages, and of the counters."""

from __future__ import annotations

from collections.abc import Iterator

from . import contents, counters, domain, index, kernel, memory, record, tasks
from .finding import HAND, MUTEX, Finding
from .laws import anon_vma_problem
from .snapshot import Snapshot


def _owns(snapshot: Snapshot, node: index.Node) -> bool:
    """Return whether the page that a node names is this node's."""
    page = snapshot.page(node.pfn)
    return page.kind == "ksm" and page.owner == node.address


def nodes(snapshot: Snapshot) -> Iterator[Finding]:
    """Each node of the stable index has its page, or is queued as dead."""
    seen: set[int] = set()
    for bucket, node in snapshot.nodes:
        name = f"stable node {node.address:#x}"
        if not snapshot.in_slab(node.address):
            yield Finding(None, f"{name} is no object of the slab allocator")
            continue
        if node.address in seen:
            yield Finding(node.pfn, f"{name} is in the stable index twice")
            continue
        seen.add(node.address)
        if node.pfn >= len(snapshot.pages):
            yield Finding(None, f"{name} says pfn {node.pfn:#x}, which the guest does not have")
            continue
        if node.address in snapshot.dead:
            if _owns(snapshot, node) and snapshot.page(node.pfn).refcount > 0:
                yield Finding(node.pfn, f"{name} is queued as dead, but its page is in use")
            continue
        if not _owns(snapshot, node):
            mapping = snapshot.page(node.pfn).mapping
            said = f"{name} says that this is its page, but page->mapping is {mapping:#x}, "
            yield Finding(node.pfn, f"{said}and it is not queued as dead", MUTEX)
            continue
        wanted = node.hash >> 64 - index.stable_bits()
        if wanted != bucket:
            said = f"{name} is in bucket {bucket:#x}, but its hash {node.hash:#018x} belongs in"
            yield Finding(node.pfn, f"{said} {wanted:#x}")
        if not snapshot.table[node.pfn].stable:
            state = snapshot.states[node.pfn]
            said = f"{name} is in the stable index, but the page's record says state {state:#x}"
            yield Finding(node.pfn, said, HAND)
    for where in snapshot.dead - seen:
        yield Finding(None, f"stable node {where:#x} is queued as dead, but not in the index")


def node_links(snapshot: Snapshot) -> Iterator[Finding]:
    """Each page with a stable record has a node, which is in the index and names it."""
    known = {node.address for _, node in snapshot.nodes}
    for pfn in snapshot.stable:
        page = snapshot.page(pfn)
        if page.kind != "ksm" or page.refcount <= 0:
            continue
        if not snapshot.in_slab(page.owner):
            said = f"page->mapping {page.mapping:#x} names a node {page.owner:#x} that is no "
            yield Finding(pfn, said + "object of the slab allocator")
            continue
        node = index.read_node(page.owner)
        if node.pfn != pfn:
            # folio_migrate_ksm() first tells the node, then forgets the old page.
            yield Finding(pfn, f"its node {node.address:#x} says pfn {node.pfn:#x}", HAND)
        if node.address not in known:
            said = f"its node {node.address:#x} is in no bucket of the stable index"
            yield Finding(pfn, said, HAND)


def sharers(snapshot: Snapshot) -> Iterator[Finding]:
    """The sharers of a node are as many as it says, and name anon_vmas that exist."""
    for _, node in snapshot.nodes:
        if not snapshot.in_slab(node.address) or node.pfn >= len(snapshot.pages):
            continue
        problem = anon_vma_problem(snapshot, node.anon_vma)
        if problem:
            yield Finding(node.pfn, f"its node's {problem}")
        count = 0
        for sharer in index.sharers(node):
            count += 1
            if not snapshot.in_slab(sharer.address):
                said = f"has a sharer {sharer.address:#x} that is no object of the slab allocator"
                yield Finding(node.pfn, said)
                break
            problem = anon_vma_problem(snapshot, sharer.anon_vma)
            if problem:
                yield Finding(node.pfn, f"the {problem}, of sharer {sharer.address:#x}")
        if count != node.nr_sharers:
            said = f"its node says {node.nr_sharers} sharers, but its list has {count}"
            yield Finding(node.pfn, said, HAND)


def page_tables(snapshot: Snapshot) -> Iterator[Finding]:
    """Map counts are right, merged pages are read-only everywhere, and rmap finds every PTE."""
    for pfn in snapshot.tracked:
        page = snapshot.page(pfn)
        found = snapshot.tables.of(pfn)
        if page.refcount > 0 and page.mapcount != len(found):
            said = f"its map count is {page.mapcount}, but {len(found)} PTEs map it"
            yield Finding(pfn, said, HAND)
    for pfn in [*snapshot.stable, memory.zero_pfn()]:
        for place in snapshot.tables.of(pfn):
            if place.pte.writable:
                who = f"{snapshot.names[place.mm]} at {place.address:#x}"
                kind = "the zero page" if pfn == memory.zero_pfn() else "a merged page"
                yield Finding(pfn, f"{kind} is writable in {who}: the PTE is {place.pte}")
    for pfn in snapshot.tracked:
        if snapshot.table[pfn].page_class != record.WATCHED:
            continue
        for place in snapshot.tables.of(pfn):
            if place.pte.writable:
                who = f"{snapshot.names[place.mm]} at {place.address:#x}"
                # pksmd marks a page before it protects it.
                said = f"a watched page is writable in {who}: the PTE is {place.pte}"
                yield Finding(pfn, said, HAND)
    for pfn in snapshot.stable:
        yield from _hidden(snapshot, pfn)


def _hidden(snapshot: Snapshot, pfn: int) -> Iterator[Finding]:
    """Yield the PTEs of a merged page that no walk of its sharers would find."""
    page = snapshot.page(pfn)
    if page.kind != "ksm" or not snapshot.in_slab(page.owner):
        return
    node = index.read_node(page.owner)
    where = [(node.anon_vma, page.index)]
    where += [(sharer.anon_vma, sharer.index) for sharer in index.sharers(node)]
    known = {
        spot
        for anon_vma, offset in where
        if snapshot.in_slab(anon_vma)
        for spot in snapshot.spots(anon_vma, offset)
    }
    for place in snapshot.tables.of(pfn):
        if (place.mm, place.address) not in known:
            who = f"{snapshot.names[place.mm]} at {place.address:#x}"
            yield Finding(pfn, f"no sharer leads to the PTE of {who}", HAND)


def _same(what: str, left: int, said: str, right: int, excuse: str = HAND) -> Iterator[Finding]:
    if left != right:
        text = f"{what} is {left}, but {said} {right}"
        yield Finding(None, text, excuse, weight=abs(left - right))


def sharers_excuse(noted: int, found: int) -> str:
    """Return what may explain a wrong number of sharers.

    A node that is taken out of the index gives up its sharers one by one.
    """
    return MUTEX if noted > found else HAND


def counts(snapshot: Snapshot) -> Iterator[Finding]:
    """The counters are what a walk finds."""
    walked = counters.walked(snapshot)
    shown = counters.shown()
    found_of = snapshot.counts()
    for kind in record.CLASSES[1:]:
        name = f"the sum of pksm_cpu.nr[PKSM_CLASS_{kind.upper()}]"
        noted = counters.class_sum(kind)
        yield from _same(name, noted, "the records of that class are", found_of[kind])
    uncounted = counters.class_sum(record.UNTRACKED)
    yield from _same("the sum of pksm_cpu.nr[PKSM_CLASS_UNTRACKED]", uncounted, "it must be", 0)
    others = {
        "stable_nodes": ("pksm_nr_nodes", "the stable index has"),
        "rmap_items": ("pksm_nr_sharers", "the lists of sharers have"),
        "zero_pages": ("ksm_zero_pages", "the PTEs that PKSM pointed at the zero page are"),
    }
    for name, (what, said) in others.items():
        noted, found = shown[name], walked[name]
        excuse = sharers_excuse(noted, found) if name == "rmap_items" else HAND
        yield from _same(what, noted, said, found, excuse)
    for member, found in counters.mappings_walked(snapshot).items():
        what = f"the sum of pksm_mappings.{member}"
        said = "the PTEs of merged pages are"
        if member == "pages":
            said = "the merged pages that a PTE maps are"
        yield from _same(what, counters.mappings(member), said, found)
    for mm, found in snapshot.zero_ptes().items():
        noted = kernel.member(mm, "struct mm_struct", "ksm_zero_pages.counter", signed=True)
        what = f"mm->ksm_zero_pages of {snapshot.names[mm]}"
        yield from _same(what, noted, "its PTEs of that kind are", found)


def hashes(snapshot: Snapshot) -> Iterator[Finding]:
    """A merged page never changes: it still has the hash of its node, domain aside. Reads it."""
    if contents.secret() is None:
        return
    for pfn in snapshot.stable:
        page = snapshot.page(pfn)
        if page.kind != "ksm" or not snapshot.in_slab(page.owner) or page.refcount <= 0:
            continue
        noted, found = index.read_node(page.owner).hash, contents.page_hash(pfn)
        if found is not None and not domain.plausible(noted ^ found):
            said = f"a merged page has changed: its node says hash {noted:#018x}, but it holds"
            yield Finding(pfn, f"{said} {found:#018x}")


def zero_page(snapshot: Snapshot) -> Iterator[Finding]:
    """The zero page holds zeroes."""
    if memory.content(memory.zero_pfn()).strip(b"\0"):
        yield Finding(memory.zero_pfn(), "the kernel's zero page does not hold zeroes")


def stable_laws(snapshot: Snapshot) -> Iterator[Finding]:
    """Yield what is wrong with merged pages, PTEs and counters, in the order of the laws."""
    for law in (nodes, node_links, sharers, page_tables, zero_page, counts):
        yield from law(snapshot)

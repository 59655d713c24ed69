# SPDX-License-Identifier: GPL-2.0-only
"""``pksm page``: everything that mm and the engine know of one page."""

from __future__ import annotations

import gdb

from . import command, contents, domain, index, kernel, memory, record, rmap, space, target, tasks
from .memory import Page
from .space import Place

# PTEs and chains that are written out; the rest is counted.
SHOWN = 20
# Flags of a VMA that decide what may become of its pages; always-there ones are left out.
VMA_FLAGS = frozenset(
    {
        "read", "write", "exec", "shared", "locked", "lockonfault", "mergeable", "growsdown",
        "hugepage", "nohugepage", "pfnmap", "mixedmap", "io", "softdirty", "uffd_missing",
        "uffd_wp", "uffd_minor", "wipeonfork", "dontcopy", "sealed",
    }
)  # fmt: skip


def where_linked(entry: record.Record) -> str:
    """Return in which chain a record really is, by walking."""
    table = record.Table()
    if entry.where == "index":
        first = dict(index.unstable_buckets()).get(index.bucket_of(entry.tag or 0), record.END)
        name = f"bucket {index.bucket_of(entry.tag or 0):#x} of the unstable index"
        if any(other.pfn == entry.pfn for other in index.follow(table, first)):
            return name
        return f"NOT in {name}"
    found = [
        chain.name
        for chain in index.new_lists() + index.queues()
        if any(other.pfn == entry.pfn for other in index.follow(table, chain.first))
    ]
    if found:
        return ", and ".join(found)
    return "no list: pksmd has it in hand" if entry.where == "list" else "no list and no index"


def describe_record(page: Page) -> list[tuple[str, str]]:
    """Return the lines about the record of a page."""
    entry = record.read_record(page.pfn)
    where = record.record_address(page.pfn)
    lines = [("record", f"{entry}, at {where:#x}")]
    if entry.live != page.has("pksm"):
        lines.append(("", "BROKEN: PG_pksm and the record do not agree; see pksm check"))
    if entry.where != "none":
        following = "the end" if entry.next == record.END else f"pfn {entry.next:#x}"
        lines.append(("linked in", f"{where_linked(entry)}; next: {following}"))
    if entry.written:
        lines.append(("", "it was watched, and written to: pksmd is to look at it again"))
    elif entry.reborn:
        lines.append(("", "it was freed and born again before pksmd came by"))
    elif entry.page_class == record.WATCHED:
        lines.append(("", "its PTEs are write-protected: the next write is a fault that is told"))
    return lines


def _references(page: Page) -> str:
    beyond = page.refcount - page.mapcount
    known = []
    if page.kind in ("anon", "ksm") and page.has("swapbacked") and page.has("owner_priv_1"):
        known.append("the swap cache")
    if page.kind == "file":
        known.append("the page cache")
    if not page.has("lru") and page.kind in ("anon", "ksm", "file"):
        known.append("an LRU batch or whoever has isolated it")
    if beyond < 0:
        why = " (BROKEN: there are fewer references than mappings)"
    elif known and beyond:
        others = f", and {beyond - len(known)} of others" if beyond > len(known) else ""
        why = f" ({', '.join(known[:beyond])}{others})"
    else:
        why = ""
    times = "once" if page.mapcount == 1 else f"{page.mapcount} times"
    return (
        f"count {page.refcount}, mapped {times}, "
        f"{beyond} reference{'s' * (beyond != 1)} beyond the PTEs{why}"
    )


def _file(page: Page) -> str:
    """Return which file a page of the page cache belongs to."""
    inode = kernel.member(page.owner, "struct address_space", "host")
    if not inode:
        return f"page cache, address_space {page.owner:#x}, page {page.index} of it"
    name = ""
    dentry = kernel.member(inode, "struct inode", "i_dentry.first")
    if dentry:
        alias = kernel.first_member("struct dentry", "d_u.d_alias", "d_alias")
        dentry -= kernel.offset("struct dentry", alias)
        text = kernel.member(dentry, "struct dentry", "d_name.name")
        name = f" '{kernel.text(text, 256)}'"
    block = kernel.member(inode, "struct inode", "i_sb")
    system = kernel.member(block, "struct super_block", "s_type")
    kind = kernel.text(kernel.member(system, "struct file_system_type", "name"), 32)
    number = kernel.member(inode, "struct inode", "i_ino")
    return f"file{name} (inode {number} of {kind}), page {page.index} of it"


def describe_kind(page: Page) -> str:
    """Return what a page is."""
    if page.pfn == memory.zero_pfn():
        return "the kernel's page of zeroes"
    if page.head is not None:
        return f"tail page of the folio at pfn {page.head:#x}"
    if page.kind == "free":
        if page.page_type == "buddy":
            return f"free, in the buddy allocator, order {page.private}"
        return "free, in a per-CPU list, or about to be"
    if page.kind == "anon":
        return f"anonymous, anon_vma {page.owner:#x}, index {page.index:#x}"
    if page.kind == "ksm":
        if not page.owner:
            return "was merged, and has lost its node: it lives in the swap cache only"
        return f"merged, stable node {page.owner:#x}"
    if page.kind == "file":
        return _file(page)
    if page.kind == "kernel":
        what = page.page_type or ("reserved" if page.has("reserved") else "no owner noted")
        return f"the kernel's own ({what})"
    return page.kind


def describe_node(page: Page, found: list[Place]) -> list[tuple[str, str]]:
    """Return the lines about the node of a merged page."""
    node = index.read_node(page.owner)
    if node.address in index.dead_nodes():
        where = "queued as dead, for pksmd to free"
    else:
        bucket = node.hash >> 64 - index.stable_bits()
        inside = any(other.address == node.address for _, other in index.stable_nodes())
        where = f"{'in' if inside else 'NOT in'} bucket {bucket:#x} of the stable index"
    lines = [("node", f"{node.address:#x}, hash {node.hash:#018x}, {where}")]
    if node.pfn != page.pfn:
        lines.append(("", f"BROKEN: the node says that its page is pfn {node.pfn:#x}"))
    lines.append(("", f"anon_vma {node.anon_vma:#x}, index {page.index:#x}"))
    there = {(place.mm, place.address) for place in found}
    stale = sum(
        1
        for sharer in index.sharers(node)
        if not any(there & {spot} for spot in rmap.spots(sharer.anon_vma, sharer.index))
    )
    text = f"{stale} of them stale (no PTE left)" if stale else "none of them stale"
    lines.append(("sharers", f"{node.nr_sharers}, {text}; see pksm sharers {page.pfn:#x}"))
    return lines


def describe_contents(page: Page) -> list[tuple[str, str]]:
    """Return the lines about what a page holds."""
    lines = [("contents", contents.summary(memory.content(page.pfn)))]
    if page.kind not in ("anon", "ksm"):
        return lines
    value = contents.page_hash(page.pfn)
    if value is None:
        return lines
    entry = record.read_record(page.pfn)
    if entry.page_class == record.SHARED and page.owner:
        noted = index.read_node(page.owner).hash
        if domain.plausible(noted ^ value):
            lines.append(("hash now", f"{noted:#018x}, in the domain {domain.name(noted ^ value)}"))
        else:
            lines.append(("", "BROKEN: its node has another hash; a merged page never changes"))
        return lines
    mixed = domain.of_page(page)
    if mixed == domain.NOBODY:
        return lines
    value ^= mixed
    kept = f"{value:#018x}, in the domain {domain.name(mixed)}; a record keeps"
    lines.append(("hash now", f"{kept} {contents.tag(value):#x}"))
    if entry.tag == contents.tag(value):
        return lines
    if entry.page_class == record.UNSHARED:
        lines.append(("", "its contents have changed since it was hashed"))
    elif entry.page_class == record.WATCHED:
        lines.append(("", "it has another hash than that: it has come to another domain"))
    return lines


def describe_place(found: Place, names: dict[int, str]) -> str:
    """Return a line about a PTE: whose it is, and its VMA."""
    text = f"{names.get(found.mm, tasks.name_of(found.mm))} {found.address:#x}: {found.pte}"
    vma = tasks.find_vma(found.mm, found.address)
    if vma is None:
        return f"{text}; BROKEN: no VMA has this address"
    flags = " ".join(name for name in space.vma_flags(vma.flags) if name in VMA_FLAGS)
    backing = "file" if vma.file else "anonymous"
    return f"{text}; VMA {vma.start:#x}-{vma.end:#x} {backing} {flags}"


def describe_places(page: Page, found: list[Place]) -> list[tuple[str, str]]:
    """Return the lines about the PTEs that map a page."""
    names = space.spaces()
    lines = [
        ("mapped by" if i == 0 else "", describe_place(place, names))
        for i, place in enumerate(found[:SHOWN])
    ]
    if not found:
        lines.append(("mapped by", "no PTE"))
    if len(found) > SHOWN:
        lines.append(("", f"and {len(found) - SHOWN} PTEs more"))
    if page.kind in ("anon", "ksm", "file") and len(found) != page.mapcount:
        lines.append(("", f"the map count is {page.mapcount}, but {len(found)} PTEs map it"))
    if page.kind in ("anon", "ksm"):
        known = {(m.vma.mm, m.address) for m in rmap.mappings(page)}
        for place in found:
            if (place.mm, place.address) not in known:
                who = names.get(place.mm, tasks.name_of(place.mm))
                lines.append(("", f"rmap does not find that of {who} at {place.address:#x}"))
    return lines


def spaces_of(page: Page) -> list[int]:
    """Return the address spaces in which a page may be mapped.

    That is each that a process has, and what rmap knows beyond them: one may
    have lost its process, and not its pages yet.
    """
    found = dict.fromkeys(space.spaces())
    if page.mapcount:
        for anon_vma, _ in dict.fromkeys(rmap.places(page)):
            found |= dict.fromkeys(vma.mm for vma in rmap.areas(anon_vma))
    return list(found)


class PksmPage(command.Command):
    """Show everything that mm and PKSM know of a page.

    pksm page PFN | PAGE | PID:ADDRESS | COMM:ADDRESS

PAGE is an expression for a struct page or struct folio, or a pointer to one.
Shows the flags, the reference and map counts, what kind of page it is, the
engine's record and where it is linked (walked), for a merged page its node
and sharers, the PTEs that map it (all page tables are walked), and what it
holds, with the hash as the kernel would compute it now."""

    NAME = "page"

    def run(self, words: command.Words) -> None:
        """Print the lines."""
        wanted = target.resolve(words.raw)
        page = memory.read_page(wanted.pfn)
        found = space.PageTables(spaces_of(page)).of(page.pfn)
        lines = [("flags", " ".join(page.flag_names) or "none"), ("kind", describe_kind(page))]
        if page.kind != "free" and page.page_type is None:
            lines.append(("references", _references(page)))
        lines += describe_record(page)
        if page.kind == "ksm" and page.owner:
            lines += describe_node(page, found)
        if page.pfn == memory.zero_pfn():
            merged = sum(1 for place in found if place.pte.value & tasks.PTE_BITS["dirty"])
            lines.append(("mapped by", f"{len(found)} PTEs, {merged} of them thanks to PKSM"))
        elif found or page.kind in ("anon", "ksm", "file"):
            lines += describe_places(page, found)
        lines += describe_contents(page)
        print(
            f"pfn {page.pfn:#x}, struct page {page.address:#x}, "
            f"contents at {memory.physical_address(page.pfn):#x}"
        )
        for name, text in lines:
            print(f"  {name:<11} {text}")


PksmPage()

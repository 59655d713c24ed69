# SPDX-License-Identifier: GPL-2.0-only
"""Words for what the guided steps print: flags, areas, PTEs, pages, results."""

from __future__ import annotations

import gdb

from . import kernel, memory, record, space, tasks

GONE = "optimised out here"
# vm_flags of include/linux/mm.h.
VM_SHARED = 0x8
VM_MAYSHARE = 0x80
# Flags of a VMA that decide what becomes of a fault; the rest is left out.
VMA_WORDS = ("locked", "mergeable", "growsdown", "hugepage", "nohugepage", "pfnmap", "mixedmap",
             "uffd_missing", "uffd_wp", "softdirty")  # fmt: skip


def names(value: int, enum: str, prefix: str) -> str:
    """Return the names of the bits of *value* that ``enum ENUM`` knows; 0 is "none"."""
    found = []
    rest = value
    for full, mask in kernel.enum(enum).items():
        # A mask of several bits is a field, no flag.
        if mask and mask & (mask - 1) == 0 and value & mask:
            found.append(full.removeprefix(prefix))
            rest &= ~mask
    if rest:
        found.append(f"{rest:#x}")
    return " ".join(found) or "none"


def fault_flags(value: int) -> str:
    """Return the FAULT_FLAG_... of a fault by name."""
    return names(value, "fault_flag", "FAULT_FLAG_")


def fault_result(value: int) -> str:
    """Return what a fault handler returned by name."""
    if not value:
        return "0: done, a minor fault"
    return names(value, "vm_fault_reason", "VM_FAULT_")


def enumerator(value: int, enum: str, prefix: str) -> str:
    """Return the name of one enumerator, in lower case."""
    for full, number in kernel.enum(enum).items():
        if number == value:
            return full.removeprefix(prefix).lower()
    return f"{value}"


def file_of(vma: tasks.Vma) -> str:
    """Return the name of the file that an area maps."""
    dentry = kernel.member(vma.file, "struct file", "f_path.dentry")
    return kernel.text(kernel.member(dentry, "struct dentry", "d_name.name"), 256)


def vma(where: int | None) -> str:
    """Return an area: its range, rights, what it maps, and the flags that matter."""
    if not where:
        return GONE
    area = tasks.read_vma(where)
    flags = set(space.vma_flags(area.flags))
    rights = "".join(
        letter if word in flags else "-"
        for word, letter in (("read", "r"), ("write", "w"), ("exec", "x"))
    )
    kind = "shared" if area.flags & (VM_SHARED | VM_MAYSHARE) else "private"
    what = f"file '{file_of(area)}'" if area.file else "anonymous"
    extra = "".join(f" {word}" for word in VMA_WORDS if word in flags)
    anon = "" if area.anon_vma else ", no anon_vma yet"
    return f"{area.start:#x}-{area.end:#x} {rights} {kind} {what}{extra}{anon}"


def pte(entry: tasks.Pte | None) -> str:
    """Return a PTE in words."""
    if entry is None:
        return "there is no page table yet"
    if entry.present and entry.pfn == memory.zero_pfn():
        ours = ", put there by PKSM" if entry.value & tasks.PTE_BITS["dirty"] else ""
        return f"the zero page{ours} ({entry})"
    return str(entry)


def pte_value(value: gdb.Value | None) -> str | None:
    """Return a pte_t in words; None when it cannot be known."""
    if value is None:
        return None
    try:
        return pte(tasks.Pte(0, int(value["pte"])))
    except gdb.error:
        return None


def page(pfn: int) -> str:
    """Return a page in words."""
    seen = memory.read_page(pfn)
    if pfn == memory.zero_pfn():
        return f"pfn {pfn:#x}, the zero page"
    kinds = {"ksm": "merged", "anon": "anonymous", "file": "of a file", "kernel": "nobody's yet",
             "free": "without references"}  # fmt: skip
    kind = kinds.get(seen.kind, seen.kind)
    return f"pfn {pfn:#x}, {kind}, refcount {seen.refcount}, mapcount {seen.mapcount}"


def flags(pfn: int) -> str:
    """Return the flags of a page by name."""
    return " ".join(memory.read_page(pfn).flag_names) or "none"


def record_of(pfn: int) -> str:
    """Return the record of a page in words."""
    try:
        return str(record.read_record(pfn))
    except gdb.GdbError as error:
        return f"none ({error})"

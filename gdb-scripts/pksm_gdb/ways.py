# SPDX-License-Identifier: GPL-2.0-only
"""The ways a page enters and leaves, told from the call chain.

The names are those of 6.12, and of 7.3 where they differ: mm/memory.c, mm/gup.c,
mm/migrate.c, mm/swap*.c, mm/mmu_gather.c, mm/page_alloc.c, fs/exec.c and arch/um.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import gdb

from . import code, kernel, memory, tasks
from .code import Level

# What lies outside of every way: how UML comes to run a task, and system calls.
OUTSIDE = frozenset(
    {"handle_syscall", "handle_trap", "userspace", "new_thread_handler", "fork_handler", "kthread"}
)
SYSCALL = re.compile(r"__(?:do|se)_(?:compat_)?sys_(\w+)$")

# Where the kernel itself accesses the memory of a process, and looks up the page first.
KERNEL_ACCESS = frozenset({"maybe_map", "map_user"})
FAULT = KERNEL_ACCESS | frozenset(
    {
        "segv_handler", "segv", "handle_page_fault", "handle_mm_fault", "__handle_mm_fault",
        "handle_pte_fault", "do_swap_page", "do_wp_page", "finish_fault",
        "faultin_page", "__get_user_pages", "fixup_user_fault",
    }
)  # fmt: skip
FORK = frozenset({"copy_page_range", "copy_pte_range"})
SWAPOFF = frozenset({"unuse_pte", "unuse_mm", "try_to_unuse"})
USERFAULT = frozenset({"mfill_atomic", "mfill_atomic_pte_copy", "mfill_atomic_pte_zeropage",
                       "mfill_atomic_install_pte"})  # fmt: skip
UPROBES = frozenset({"uprobe_write_opcode", "__replace_page"})
SWEEP = frozenset({"pksm_sweep", "pksm_sweep_page"})
INTAKE = frozenset({"pksm_intake_range", "pksm_intake_pte"})
RESCAN = frozenset({"pksm_rescan", "pksm_rescan_page"})
PRUNE = frozenset({"pksm_prune"})
MIGRATION = frozenset({"folio_migrate_ksm", "folio_migrate_flags", "migrate_folio_move",
                       "migrate_folio_unmap", "migrate_pages_batch", "migrate_pages"})  # fmt: skip
MERGE = frozenset({"pksm_consider", "pksm_queue_run", "pksm_do_round", "pksmd"})
DRAIN = frozenset({"free_pcppages_bulk", "drain_pages_zone", "decay_pcp_high"})
FREE = frozenset(
    {
        "pksm_del_anon_page", "free_pages_prepare", "free_unref_page", "free_unref_folios",
        "free_unref_page_commit", "__free_pages_ok", "free_one_page", "__free_pages", "free_pages",
        "__folio_put", "folios_put_refs", "free_pages_and_swap_cache", "free_page_and_swap_cache",
        "__free_pages_prepare", "free_frozen_pages", "__free_frozen_pages",
        "free_frozen_page_commit", "free_folio_and_swap_cache", "__zap_vma_range",
        "zap_page_range_single_batched", "tlb_batch_pages_flush", "tlb_finish_mmu", "tlb_flush_mmu", "unmap_page_range",
        "zap_pte_range", "zap_page_range_single", "unmap_vmas", "unmap_region", "exit_mmap",
        "release_pages",
    }
)  # fmt: skip

# For whom get_user_pages() works: the first of these that is in the chain.
GUP_FOR = (
    ("get_arg_page", "exec's arguments"),
    ("madvise_populate", "madvise(MADV_POPULATE_READ or _WRITE)"),
    ("process_vm_rw", "process_vm_readv() or process_vm_writev()"),
    ("get_cmdline", "the arguments of a process, as /proc shows them"),
    ("mem_rw", "/proc/PID/mem"),
    ("environ_read", "/proc/PID/environ"),
    ("ptrace_request", "ptrace()"),
    ("arch_ptrace", "ptrace()"),
    ("__access_remote_vm", "somebody who looks into another process"),
    ("vmsplice_to_pipe", "vmsplice()"),
    ("iov_iter_extract_pages", "direct I/O (pinned)"),
    ("io_pin_pages", "a buffer of io_uring (pinned)"),
    ("fixup_user_fault", "a futex"),
)
# Why pages are unmapped or put: the first of these that is in the chain.
FREE_FOR = (
    ("exec_mmap", "exec, which drops the former address space"),
    ("exit_mmap", "the end of an address space (exit)"),
    ("madvise_dontneed_free", "madvise(MADV_DONTNEED or MADV_FREE)"),
    # Where 7.3 flushes the TLB once for all ranges.
    ("madvise_finish_tlb", "madvise(MADV_DONTNEED or MADV_FREE)"),
    ("wp_page_copy", "a copy-on-write: the page it copied is not needed any more"),
    ("pksm_consider", "pksmd: nothing maps the page since it was merged"),
    ("shrink_folio_list", "reclaim"),
    ("migrate_folio_move", "migration: its contents have moved"),
    ("do_swap_page", "a swap-in"),
    ("truncate_inode_pages_range", "truncation of a file"),
    ("lru_add_drain", "a drain of the LRU batches"),
)


@dataclass(frozen=True)
class Way:
    """A way: ``kind`` (fault, fork, migration, free, merge, drain, ...) and a line about it."""

    kind: str
    text: str
    levels: list[Level]


def trim(levels: list[Level]) -> list[Level]:
    """Return the chain without what lies outside of every way, and without repetitions."""
    kept = list(levels)
    while len(kept) > 1 and kept[-1].name in OUTSIDE:
        kept.pop()
    names = {level.name for level in kept}
    twins = {name for name in names if name.replace("__se_", "__do_") in names - {name}}
    return [level for level in kept if level.name not in twins]


def syscall(levels: list[Level]) -> str | None:
    """Return the name of the system call that is being carried out."""
    for level in levels:
        found = SYSCALL.match(level.name)
        if found:
            return found.group(1)
    return None


def vm_fault(levels: list[Level]) -> int | None:
    """Return the address of the struct vm_fault of the fault that is being handled."""
    level = code.find(levels, "__handle_mm_fault")
    if level is not None:
        value = level.value("vmf")
        if value is not None and value.address is not None:
            return int(value.address)
    for level in levels:
        where = level.number("vmf")
        if where:
            return where
    return None


def fault_address(levels: list[Level]) -> int | None:
    """Return the user address of the fault that is being handled."""
    for name in ("handle_mm_fault", "handle_page_fault"):
        level = code.find(levels, name)
        found = level.number("address") if level is not None else None
        if found is not None:
            return found
    level = code.find(levels, "__handle_mm_fault")
    where = vm_fault(levels) if level is not None else None
    return kernel.member(where, "struct vm_fault", "real_address") if where else None


def copied_page(vmf: int) -> str:
    """Return what a write fault copies: the kind of the page that was mapped."""
    page = kernel.member(vmf, "struct vm_fault", "page")
    if not page:
        return "the zero page"
    kind = memory.read_page(memory.page_to_pfn(page)).kind
    words = {"ksm": "a merged page", "anon": "an anonymous page that others share"}
    return words.get(kind, "a page of a private file mapping")


def _case(levels: list[Level]) -> str:
    """Return which kind of fault it is, as far as it is known yet."""
    names = [level.name for level in levels]
    if "wp_page_copy" in names:
        vmf = vm_fault(levels)
        what = copied_page(vmf) if vmf is not None else "a page"
        return f"copy-on-write of {what}"
    for name, text in (
        ("do_cow_fault", "copy-on-write of a page of a private file mapping, on its first touch"),
        ("do_swap_page", "swap-in"),
        ("do_anonymous_page", "the first touch of anonymous memory"),
        ("do_read_fault", "a page of a file that is read"),
        ("do_shared_fault", "a page of a file that is written to, shared"),
        ("do_wp_page", "a write to a page that is mapped read-only"),
    ):
        if name in names:
            return text
    return ""


def _access(levels: list[Level]) -> str:
    """Return who touches which address, and how."""
    address = fault_address(levels)
    where = f"{address:#x}" if address is not None else "an address that was optimised out here"
    verb = {True: "writes to", False: "reads from", None: "touches"}[_is_write(levels)]
    return f"{tasks.current()} {verb} {where}"


def _is_write(levels: list[Level]) -> bool | None:
    level = code.find(levels, "handle_page_fault")
    is_write = level.number("is_write") if level is not None else None
    if is_write is not None:
        return bool(is_write & 0xFFFFFFFF)
    # Its frame has set struct vm_fault up once it has called something.
    if code.find(levels, "__handle_mm_fault") in (None, levels[0]):
        return None
    vmf = vm_fault(levels)
    if vmf is None:
        return None
    flags = kernel.member(vmf, "struct vm_fault", "flags", 4)
    names = kernel.enum("fault_flag")
    if flags & names["FAULT_FLAG_UNSHARE"]:
        return None
    return bool(flags & names["FAULT_FLAG_WRITE"])


def _gup_for(levels: list[Level]) -> str:
    names = {level.name for level in levels}
    for name, text in GUP_FOR:
        if name in names:
            return text
    call = syscall(levels)
    if "populate_vma_page_range" in names:
        return {"mmap": "mmap(MAP_POPULATE)", None: "populating memory"}.get(
            call, f"{call}(), which populates memory"
        )
    return f"the system call {call}()" if call else "the kernel"


def _fault(levels: list[Level]) -> Way:
    names = {level.name for level in levels}
    case = _case(levels)
    if names & {"faultin_page", "__get_user_pages", "fixup_user_fault"}:
        how = f"GUP, for {_gup_for(levels)}"
    elif names & KERNEL_ACCESS:
        call = syscall(levels)
        by = f" in {call}()" if call else ""
        how = f"a kernel access to user memory{by}, for which arch/um maps the page itself"
    elif names & {"segv_handler", "segv"}:
        level = code.find(levels, "segv")
        is_user = level.number("is_user") if level is not None else None
        how = "a fault of the kernel" if is_user == 0 else "a user fault"
    elif names & {"pksm_unmerge_range", "pksm_unmerge_mm"}:
        how = "unmerging, by a fault of PKSM's own"
    else:
        call = syscall(levels)
        how = f"handle_mm_fault() called{f' in {call}()' if call else ' by the kernel'}"
    words = ", ".join(word for word in (how, case) if word)
    return Way("fault", f"The way in: {words}: {_access(levels)}.", levels)


def _order(levels: list[Level]) -> int:
    for name in ("free_pages_prepare", "__free_pages_prepare", "free_unref_page",
                 "__free_frozen_pages", "__free_pages_ok", "__free_pages"):  # fmt: skip
        level = code.find(levels, name)
        order = level.number("order") if level is not None else None
        if order is not None:
            return order & 0xFFFFFFFF
    return 0


def _free(levels: list[Level]) -> Way:
    names = {level.name for level in levels}
    reason = next((text for name, text in FREE_FOR if name in names), "")
    if not reason:
        call = syscall(levels)
        reason = f"{call}()" if call else "the kernel"
    order = _order(levels)
    if names & {"free_unref_folios", "folios_put_refs", "tlb_batch_pages_flush"}:
        size = _batch(levels)
        how = "a batch of pages" + (f" ({size} in this round)" if size is not None else "")
        if "tlb_batch_pages_flush" in names:
            how += ", gathered while they were unmapped"
    elif order:
        how = f"a block of {1 << order} pages (order {order})"
    elif names & {"free_unref_page", "__folio_put", "__free_pages", "free_pages_prepare",
                  "__free_pages_prepare", "__free_frozen_pages", "free_frozen_pages",
                  "__free_pages_ok", "free_one_page"}:  # fmt: skip
        how = "a single page"
    else:
        how = "pages are unmapped, which frees those nobody else needs"
    return Way("free", f"The way out: {how}; by {reason}: {tasks.current()}.", levels)


def _batch(levels: list[Level]) -> int | None:
    """Return the number of folios in the batch that is being freed."""
    for name in ("free_unref_folios", "folios_put_refs"):
        level = code.find(levels, name)
        where = level.number("folios") if level is not None else None
        if where:
            return kernel.member(where, "struct folio_batch", "nr", 1)
    return None


def _merge(levels: list[Level]) -> Way:
    level = code.find(levels, "pksm_consider")
    pfn = level.number("pfn") if level is not None else None
    what = f"considers pfn {pfn:#x}" if pfn is not None else "goes its round"
    return Way("merge", f"A merge, no way in or out: pksmd {what}.", levels)


def _migration(levels: list[Level]) -> Way:
    reasons = (("compact_zone", "compaction"), ("do_pages_move", "move_pages()"),
               ("do_mbind", "mbind()"), ("alloc_contig_range", "an allocation of a range"),
               ("offline_pages", "memory that goes offline"))  # fmt: skip
    names = {level.name for level in levels}
    reason = next((text for name, text in reasons if name in names), "the kernel")
    text = f"The way in: migration; a page moves to another frame, for {reason}: {tasks.current()}."
    return Way("migration", text, levels)


def _fork(levels: list[Level]) -> Way:
    copied = "copy_present_page" in {level.name for level in levels}
    what = f"fork, which copies {'a page that is pinned' if copied else 'page tables'}"
    return Way("fork", f"The way in: {what}: {tasks.current()}.", levels)


def _fixed(kind: str, text: str) -> Callable[[list[Level]], Way]:
    return lambda levels: Way(kind, text.format(task=tasks.current()), levels)


KINDS: tuple[tuple[frozenset[str], Callable[[list[Level]], Way]], ...] = (
    (DRAIN, _fixed("drain", "Neither in nor out: pages that were freed before go from a per-CPU "
                   "list to the buddy allocator; no hook is passed: {task}.")),
    (FREE, _free),
    (FAULT, _fault),
    (FORK, _fork),
    (SWAPOFF, _fixed("swapoff", "The way in: swapoff, which brings all pages back: {task}.")),
    (USERFAULT, _fixed("userfaultfd", "The way in: userfaultfd, which fills a page: {task}.")),
    (UPROBES, _fixed("uprobes", "The way in: uprobes, which copies a page: {task}.")),
    (MIGRATION, _migration),
    (SWEEP, _fixed("sweep", "The way in: the sweep, in which pksmd takes in the pages that were "
                   "there before: {task}.")),
    (INTAKE, _fixed("intake", "The way in: pages that were there before somebody wanted them "
                    "merged, by madvise(), prctl() or a new scope: {task}.")),
    (RESCAN, _fixed("rescan", "Neither in nor out: pksmd looks a second time at pages without a "
                    "partner, and watches them from then on: {task}.")),
    (PRUNE, _fixed("prune", "Neither in nor out: pksmd drops sharers that have no PTE left: "
                   "{task}.")),
    (MERGE, _merge),
)  # fmt: skip


def find(levels: list[Level]) -> Way:
    """Return the way on which the chain lies; the innermost counts where there are several."""
    kept = trim(levels)
    for level in kept:
        for names, describe in KINDS:
            if level.name in names:
                return describe(kept)
    return Way("none", "No path to a hook of PKSM leads here.", kept)


def current() -> Way:
    """Return the way on which the stop lies."""
    try:
        return find(code.chain())
    except gdb.error as error:
        raise gdb.GdbError(kernel.one_line(error)) from error

# SPDX-License-Identifier: GPL-2.0-only
"""Whether the guest stands still in the middle of a change.

At most stops everything adds up. But a stop may lie between two steps that
belong together: a page is in pksmd's hand, or in that of the running task.
Such a stop is known by pksm_mutex, and by the functions that are being
carried out. Without kernel preemption (UML has none) a task that does not run
waits at a place where it could sleep; so nothing else can be halfway.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import gdb

from . import kernel, tasks

# Bits of mutex->owner that are no part of the pointer (kernel/locking/mutex.c).
MUTEX_FLAGS = 7
# Files of mm/ in which a page, or a PTE, is halfway from one state to the next.
_BUSY = re.compile(
    r"(?:^|/)mm/(?:pksm/\w+|memory|page_alloc|swap|swap_state|swapfile|rmap|migrate|vmscan|"
    r"mremap|mprotect|madvise|userfaultfd|mmu_gather|memory-failure|mlock)\.c$"
)
# task->flags (include/linux/sched.h): set while a task reclaims memory, and always in kswapd.
PF_MEMALLOC, PF_KSWAPD = 0x800, 0x20000
MAX_FRAMES = 200
# Pages and chains that pksmd has in hand at a time: a page and its partner.
HANDS = 2
# Pages that wait in a batch without a reference (PAGEVEC_SIZE of include/linux/pagevec.h).
BATCH = 31


@dataclass(frozen=True)
class Moment:
    """What is going on at this stop.

    ``hands`` is how many pages may be between two states, ``freeing`` how many
    may have no reference and not be freed yet.
    """

    holder: tasks.Task | None
    function: str | None
    reclaimers: int

    @property
    def hands(self) -> int:
        """How many pages may be in somebody's hand."""
        return HANDS * ((self.holder is not None) + (self.function is not None))

    @property
    def freeing(self) -> int:
        """How many pages may have lost their last reference and wait to be freed."""
        return BATCH * (self.reclaimers + (self.function is not None))

    def __str__(self) -> str:
        reasons = []
        if self.function is not None:
            reasons.append(f"the guest was stopped in {self.function}()")
        if self.holder is not None:
            reasons.append(f"{self.holder} holds pksm_mutex")
        if self.reclaimers:
            reasons.append("memory is being reclaimed")
        return " and ".join(reasons)


def _function() -> str | None:
    """Return the innermost function of those that are busy with pages; None without one.

    An inlined one is named only where no other is.
    """
    inlined = None
    frame: gdb.Frame | None = gdb.newest_frame()
    for _ in range(MAX_FRAMES):
        if frame is None or not frame.is_valid():
            break
        function = frame.function()
        if function is not None and _BUSY.search(function.symtab.filename):
            if frame.type() != gdb.INLINE_FRAME:
                return str(function.name)
            inlined = inlined or str(function.name)
        frame = frame.older()
    return inlined


def _reclaims(task: tasks.Task) -> bool:
    """Return whether a task may be in shrink_folio_list(), which frees by batches and sleeps."""
    if kernel.member(task.address, "struct task_struct", "reclaim_state"):
        return True
    # MADV_PAGEOUT has no reclaim_state.
    flags = kernel.member(task.address, "struct task_struct", "flags", 4)
    return flags & (PF_MEMALLOC | PF_KSWAPD) == PF_MEMALLOC


def now() -> Moment:
    """Return what is going on."""
    kernel.need_memory()
    owner = kernel.number(kernel.address("pksm_mutex") + kernel.offset("struct mutex", "owner"))
    owner &= ~MUTEX_FLAGS
    reclaimers = sum(1 for task in tasks.tasks() if _reclaims(task))
    return Moment(tasks.read_task(owner) if owner else None, _function(), reclaimers)

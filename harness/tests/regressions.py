# SPDX-License-Identifier: GPL-2.0-only
"""The bugs that page mergers have really had, and what became of each here.

Each number is the marker ``regression("Rn")`` of tests, or it stands here with
the reason why such a bug cannot come about, and with the symbols of the
kernel's configuration that it would need; or both, where one machine has what
the other lacks. test_regressions.py sees to it that there is one of the two at
least, that the files named here are those where the marked tests are, that a
mutant puts the bug back, and that a kernel for which the reason is to stand
really lacks these symbols.

RACES says of those bugs that are races how the two parties are made to meet.

As a plug-in of pytest (``-p regressions``) this prints which markers the
collected tests have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

# What the plug-in puts before its line.
COLLECTED = "collected regressions: "


@dataclass(frozen=True)
class Regression:
    """A class of bug.

    ``files`` are the test files with tests of it, without "test_" and ".py".
    ``reason`` says why it cannot come about in a kernel without any of the
    symbols ``needs``.
    """

    number: str
    title: str
    files: tuple[str, ...] = ()
    reason: str = ""
    needs: tuple[str, ...] = ()


def tested(number: str, title: str, *files: str) -> Regression:
    """Return the row of a bug that tests guard against."""
    return Regression(number, title, files)


def impossible(
    number: str, title: str, reason: str, *needs: str, files: tuple[str, ...] = ()
) -> Regression:
    """Return the row of a bug that cannot come about without *needs*.

    *files* are those with tests for kernels that have these symbols, all of which are
    of the machine x86_64.
    """
    return Regression(number, title, files, reason, needs)


REGRESSIONS = (
    # Life and death of an address space
    tested("R1", "exit races the scan, NULL dereference", "regression_mm"),
    tested("R2", "mm freed while its mmap lock is held", "regression_mm"),
    tested("R3", "VMA iteration against teardown", "regression_mm"),
    tested("R4", "OOM deadlock holding the engine's mutex", "regression_mm"),
    tested("R5", "munlock and exit_mmap hang under mlockall", "regression_mm"),
    tested(
        "R6", "exec and fork lose the setting of the process; fork copies counters",
        "regression_mm",
    ),
    tested("R7", "madvise drops high vm_flags bits", "regression_mm"),
    # Stable pages
    tested("R8", "mremap poisons the stable index", "madvise", "regression_rmap"),
    tested(
        "R9", "stale stable nodes; pages faulted in again while they are unmerged",
        "moments", "regression_mm",
    ),
    tested("R10", "unmerging misses pages behind migration entries", "moments", "regression_mm"),
    impossible(
        "R11", "memory hot-remove against stable nodes",
        "UML cannot take memory away", "MEMORY_HOTREMOVE", files=("hotplug",),
    ),
    tested("R12", "lifetime of an anon_vma and its root", "regression_rmap"),
    tested("R13", "unbounded rmap walk", "regression_storm"),
    tested("R14", "the bound itself brings a use-after-free", "regression_storm"),
    tested("R15", "20,000 VMAs on one anon_vma: 500 ms under its lock", "regression_storm"),
    tested("R16", "flag bits kept inside an address confuse rmap", "regression_rmap"),
    tested("R17", "a stale list head loses an item", "regression_rmap"),
    tested("R18", "false WARN while a stable node is removed", "moments", "regression_mm"),
    # Merging against writers
    tested("R19", "batched TLB flush race", "smp"),
    tested(
        "R20", "write-protection against O_DIRECT and GUP",
        "moments", "pins", "regression_writers", "smp",
    ),
    tested(
        "R21", "a page with FOLL_PIN is merged", "moments", "pins", "regression_writers", "smp",
    ),
    tested(
        "R22", "failure after write-protection leaves a page half merged",
        "moments", "regression_writers", "smp",
    ),
    tested(
        "R23", "a merge aborted midway leaves some PTEs merged, unrecorded",
        "regression_writers",
    ),
    tested("R24", "a merged page without rmap", "migrate", "regression_rmap", "swap"),
    impossible(
        "R25", "NUMA hint PTEs: saved write not cleared",
        "UML has no NUMA, so no PTE is ever a NUMA hint", "NUMA_BALANCING", files=("numa",),
    ),
    impossible(
        "R26", "device-exclusive PTEs",
        "UML has no memory of devices", "DEVICE_PRIVATE", "ZONE_DEVICE",
        files=("device",),
    ),
    impossible(
        "R27", "userfaultfd write-protection is lost",
        "UML has no userfaultfd write-protection", "HAVE_ARCH_USERFAULTFD_WP",
        files=("pte_bits",),
    ),
    tested("R28", "mlocked pages: lock and unlock out of balance", "madvise", "regression_writers"),
    # Zero pages, THP, swap, memcg
    tested("R29", "zero-page merge with a NULL VMA", "zero_and_swapin"),
    tested("R30", "zero-page accounting across zap and fork", "fork", "madvise", "zero_and_swapin"),
    impossible(
        "R31", "both candidates inside the same THP",
        "UML has no transparent huge pages; test_large.py compiles what is about them",
        "TRANSPARENT_HUGEPAGE", files=("large_folios",),
    ),
    impossible(
        "R32", "THP split zero-maps subpages behind the engine's back",
        "UML has no transparent huge pages", "TRANSPARENT_HUGEPAGE", files=("large_folios",),
    ),
    tested(
        "R33", "swap-in copy: use-after-free, and hardware poison on swap-in",
        "zero_and_swapin",
    ),
    tested("R34", "a memcg at its limit: unmerging must fail cleanly", "memcg"),
    impossible(
        "R35", "hardware poison on a merged page kills only those who touch it",
        "UML has no handling of hardware poison", "MEMORY_FAILURE", files=("poison",),
    ),
    # The scanner
    tested("R36", "sparse VMA: the scanner must not burn CPU", "fault_hook", "scanner"),
    tested("R37", "page lock held during a search", "scanner"),
    tested("R38", "endless loop while allocating metadata under memory pressure", "scanner"),
    tested("R39", "the recheck list never rotates", "scanner"),
    tested("R40", "pinned pages retried for ever", "pins"),
    tested("R41", "the hash samples a part of the page", "content"),
    tested("R42", "one index node per hash value", "content"),
    tested("R43", "one stale node aborts the whole search", "scanner"),
    # Intake and free
    tested("R44", "lost fault race: freed page and item handed to the intake hook", "intake"),
    tested("R45", "anon_vma stored without a reference", "intake"),
    tested(
        "R46", "page freed and reallocated between lookup and get_page",
        "fault_hook", "intake", "moments",
    ),
    tested("R47", "free hook in interrupt context", "intake"),
    tested("R48", "a page copied on a COW break never enters again", "cow"),
    tested(
        "R49", "pages born in other ways never enter",
        "births", "fault_hook", "migrate", "swap",
    ),
    tested("R50", "CONFIG_PKSM=n does not build", "build_without"),
    tested("R51", "run=2 and MADV_UNMERGEABLE do nothing", "madvise", "run_control"),
    tested(
        "R52", "counters updated without a lock drift",
        "churn", "counters", "intake", "kernel_counters", "moments", "smp",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Race:
    """A bug that needs two who do something at the same time.

    The engine is held at each of ``moments``, which are those of mm/pksm/hold.c, while
    the other party acts; ``how`` says who that is. Where there is none of them, ``instead``
    says what brings the two together: STATE or LUCK.
    """

    number: str
    moments: tuple[str, ...]
    how: str
    instead: str = ""


# One party has done its part, and what it leaves stays, when the other comes: there is
# nothing to meet.
STATE = "a state"
# They meet by luck, which is not one of the engine's moments: tests assert that they have.
LUCK = "luck"


RACES = (
    Race(
        "R1", ("hashed", "lookup", "found", "frozen"),
        "the process of either page ends, is killed, executes another program; and one that "
        "has gone leaves its address space to a reader whom userfaultfd keeps waiting",
    ),
    Race("R2", ("visit",), "who is about to be visited ends: the visitor is the last"),
    Race("R3", ("visit", "migrate"), "it unmaps, or is killed while the visitor waits in a fault"),
    Race(
        "R4", ("visit", "hashed", "lookup", "found", "frozen"),
        "processes end, and one is killed for memory, before the engine goes on",
    ),
    Race("R9", ("visit",), "a process that was visited is forked, or swaps in"),
    Race("R10", ("migrate",), "migration entries stand for the page that is unmerged"),
    Race(
        "R11", ("hashed", "lookup", "found", "frozen"),
        "the memory module that a page is in is taken out; and memory has merged and watched "
        "pages when it goes offline, once more while pages come and go",
    ),
    Race("R12", ("found", "frozen"), "all who brought the page end, and others get their memory"),
    Race("R14", ("lookup", "found"), "all mappings of one of several merged pages go"),
    Race("R17", ("lookup", "found"), "a sharer ends, unmaps, writes, moves, forks"),
    Race("R18", ("visit",), "a child is born that has a lower number"),
    Race(
        "R19", ("cleared", "unflushed"),
        "another CPU writes to the page; and writers never stop, while their pages are merged, "
        "swapped out, moved, split and collapsed: that this has happened is asserted",
    ),
    Race(
        "R20", ("hashed", "lookup", "found", "frozen", "cleared"),
        "whatever a process can do to the page, and a reference by a PTE of a child's",
    ),
    Race("R21", ("hashed", "lookup", "found", "frozen", "cleared"), "the page is given to a pipe"),
    Race("R22", ("hashed", "lookup", "found", "frozen", "cleared"), "so that the merge fails then"),
    Race("R23", ("found", "frozen"), "one of those who have the page forbids merging"),
    Race("R25", (), "the PTE is a hint when the engine comes to the page", STATE),
    Race("R32", (), "the folio was split when the engine comes to its pages", STATE),
    Race(
        "R33", (),
        "nothing of a page is left but its copy in the swap device when its owner ends", STATE,
    ),
    Race("R35", (), "the page is merged, and stays so, when it goes bad", STATE),
    Race(
        "R44", (),
        "faults sleep for memory side by side, before the engine is told of anything: that some "
        "have lost is asserted",
        LUCK,
    ),
    Race("R45", ("frozen",), "the page's only owner ends, and others get its anon_vma's memory"),
    Race("R46", ("lookup",), "the page is freed, and its frame is another's: asserted"),
    Race(
        "R47", (),
        "a device is done with writes whose memory has gone, whenever it likes, while pksmd "
        "works: that there were some is asserted",
        LUCK,
    ),
    Race(
        "R52", ("hashed", "lookup", "found", "frozen", "cleared"),
        "whatever a process can do to the page: the counters are what they were when it has "
        "ended; and pages are freed by interrupts, as with R47",
    ),
)  # fmt: skip


def pytest_collection_finish(session: pytest.Session) -> None:
    """Print which tests have which marker: {"R1": ["test_x.py::test_name", ...], ...}."""
    found: dict[str, list[str]] = {}
    for item in session.items:
        for marker in item.iter_markers("regression"):
            found.setdefault(marker.args[0], []).append(item.nodeid)
    print(f"\n{COLLECTED}{json.dumps(found)}")

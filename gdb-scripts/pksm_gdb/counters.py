# SPDX-License-Identifier: GPL-2.0-only
"""The counters as /sys/kernel/mm/pksm shows them, and the same found by walking."""

from __future__ import annotations

from collections.abc import Iterable

from . import index, kernel, memory, record
from .snapshot import Snapshot

CONTROLS = (
    "run", "settle_millisecs", "rescan_seconds", "max_cpu", "max_page_sharing", "use_zero_pages",
)  # fmt: skip
# A counter, and the classes that it counts.
CLASS_COUNTERS = {
    "pages_new": (record.NEW,),
    "pages_unshared": (record.UNSHARED, record.WATCHED),
    "pages_volatile": (record.VOLATILE,),
    "pages_shared": (record.SHARED,),
}
# What only ever grows, and is in no structure that could be walked.
EVENTS = {"pages_scanned": "SCANNED", "pages_merged": "MERGED", "pages_broken": "BROKEN"}
# The order of sysfs.c.
NAMES = (
    *CONTROLS, *CLASS_COUNTERS, "pages_sharing", "zero_pages", *EVENTS, "full_scans",
    "folios_split", "rmap_items", "stable_nodes", "stable_items", "general_profit", "cpu_usecs",
)  # fmt: skip


def class_sum(name: str) -> int:
    """Return the sum over all CPUs of the pages of a class; see enum pksm_class."""
    number = kernel.enum("pksm_class")[f"PKSM_CLASS_{name.upper()}"]
    at = kernel.offset("struct pksm_cpu", "nr") + kernel.WORD * number
    return sum(kernel.number(where + at, signed=True) for _, where in kernel.percpu("pksm_cpu"))


def classes_sum(kinds: Iterable[str]) -> int:
    """Return what sysfs says of several classes: a sum below 0 is shown as 0."""
    return sum(max(class_sum(kind), 0) for kind in kinds)


def event_sum(name: str) -> int:
    """Return the sum over all CPUs of an event; see enum pksm_event."""
    number = kernel.enum("pksm_event")[f"PKSM_EVENT_{name}"]
    at = kernel.offset("struct pksm_cpu", "events") + kernel.WORD * number
    return sum(kernel.number(where + at) for _, where in kernel.percpu("pksm_cpu"))


def _profit(sharing: int, zero: int, sharers: int, nodes: int) -> int:
    records = sharers * kernel.size("struct pksm_sharer")
    records += nodes * kernel.size("struct pksm_stable_node")
    return (sharing + zero) * memory.PAGE_SIZE - records


def mappings(member: str) -> int:
    """Return the sum over all CPUs of what rmap counts; see struct pksm_mappings."""
    at = kernel.offset("struct pksm_mappings", member)
    return sum(
        kernel.number(where + at, signed=True) for _, where in kernel.percpu("pksm_mappings")
    )


def mappings_walked(snapshot: Snapshot) -> dict[str, int]:
    """Return what rmap should have counted, by the members of struct pksm_mappings."""
    found = [len(snapshot.tables.of(pfn)) for pfn in snapshot.stable]
    return {"ptes": sum(found), "pages": sum(1 for number in found if number)}


def shown() -> dict[str, int]:
    """Return what the files of sysfs would say now, by the same rules."""
    # As pksm_nr_sharing() has it.
    sharing = max(mappings("ptes") - mappings("pages"), 0)
    zero = int(kernel.symbol("ksm_zero_pages")["counter"])
    sharers = kernel.variable("pksm_nr_sharers")
    nodes = kernel.variable("pksm_nr_nodes")
    values = {
        **{name: kernel.variable(f"pksm_{name}") for name in (*CONTROLS, "full_scans", "folios_split")},
        "pages_sharing": sharing,
        "zero_pages": zero,
        "rmap_items": sharers,
        "stable_nodes": nodes,
        "stable_items": nodes + sharers,
        "general_profit": _profit(sharing, zero, sharers, nodes),
        "cpu_usecs": kernel.variable("pksm_cpu_nsecs") // 1000,
    }
    values |= {name: classes_sum(kinds) for name, kinds in CLASS_COUNTERS.items()}
    values |= {name: event_sum(kind) for name, kind in EVENTS.items()}
    return values


def walked(snapshot: Snapshot) -> dict[str, int]:
    """Return the counters that can be found by walking the structures and page tables."""
    counts = snapshot.counts()
    sharing = sum(max(len(snapshot.tables.of(pfn)) - 1, 0) for pfn in snapshot.stable)
    zero = sum(snapshot.zero_ptes().values())
    sharers = sum(1 for _, node in snapshot.nodes for _ in index.sharers(node))
    nodes = len(snapshot.nodes)
    return {
        **{name: sum(counts[kind] for kind in kinds) for name, kinds in CLASS_COUNTERS.items()},
        "pages_sharing": sharing,
        "zero_pages": zero,
        "rmap_items": sharers,
        "stable_nodes": nodes,
        "stable_items": nodes + sharers,
        "general_profit": _profit(sharing, zero, sharers, nodes),
    }

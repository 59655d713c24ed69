# SPDX-License-Identifier: GPL-2.0-only
"""``pksm stat``: the counters, and the laws that they obey."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gdb

from . import command, counters, domain, kernel, moment, record
from .finding import HAND, MUTEX, NEVER, Finding, sort_out
from .snapshot import Snapshot
from .stable_laws import sharers_excuse


@dataclass(frozen=True)
class Law:
    """A law in words, whether it holds, and the two sides.

    ``weight`` is by how many pages it is missed.
    """

    text: str
    holds: bool
    sides: str
    excuse: str = NEVER
    weight: int = 1


def _equal(text: str, left: int, right: int, excuse: str = HAND) -> Law:
    return Law(text, left == right, f"{left} and {right}", excuse, abs(left - right))


def laws(snapshot: Snapshot, shown: dict[str, int], walked: dict[str, int]) -> Iterator[Law]:
    """Yield the conservation laws of Documentation/ABI/testing/sysfs-kernel-mm-pksm."""
    classes = sum(shown[name] for name in counters.CLASS_COUNTERS)
    yield _equal(
        "pages_new + pages_unshared + pages_volatile + pages_shared = pages with the flag pksm",
        classes,
        len(snapshot.flagged),
    )
    mapped = counters.mappings_walked(snapshot)
    unmapped = len(snapshot.stable) - mapped["pages"]
    yield _equal(
        "pages_shared + pages_sharing = PTEs of merged pages + merged pages without a PTE",
        shown["pages_shared"] + shown["pages_sharing"],
        mapped["ptes"] + unmapped,
    )
    for member, text in (("ptes", "PTEs of merged pages"), ("pages", "merged pages with a PTE")):
        noted = counters.mappings(member)
        yield _equal(f"{text} = what rmap has counted", mapped[member], noted)
    dead = len(snapshot.dead)
    yield _equal(
        "stable_nodes = pages_shared + nodes whose page was freed",
        shown["stable_nodes"],
        shown["pages_shared"] + dead,
        # pksmd takes the whole list of the dead, and works it off.
        MUTEX,
    )
    noted = sum(
        kernel.member(mm, "struct mm_struct", "ksm_zero_pages.counter", signed=True)
        for mm in snapshot.names
    )
    yield _equal("zero_pages = the sum over all processes", shown["zero_pages"], noted)
    for name in walked:
        if name != "general_profit":
            noted, found = shown[name], walked[name]
            of_sharers = name in ("rmap_items", "stable_items")
            excuse = sharers_excuse(noted, found) if of_sharers else HAND
            yield _equal(f"{name} = what is found by walking", noted, found, excuse)
    uncounted = counters.class_sum(record.UNTRACKED)
    yield _equal("nobody counts what is not tracked", uncounted, 0)
    merged, scanned = shown["pages_merged"], shown["pages_scanned"]
    yield Law("pages_merged <= pages_scanned", merged <= scanned, f"{merged} and {scanned}")
    raw = {f"the class {kind}": counters.class_sum(kind) for kind in record.CLASSES[1:]}
    raw |= {name: shown[name] for name in ("zero_pages", "rmap_items", "stable_nodes")}
    negative = {name: value for name, value in raw.items() if value < 0}
    sides = ", ".join(f"{name} is {value}" for name, value in negative.items())
    yield Law("no counter is negative", not negative, sides, HAND, -sum(negative.values()))


class PksmStat(command.Command):
    """Show the counters, and check the laws that they obey.

    pksm stat

The first column is what the files in /sys/kernel/mm/pksm say, computed from
the kernel's variables; the second is found by walking records, nodes and page
tables. +watched, which is no file, are those of pages_unshared that are watched.
Then a line for each conservation law: ok, or BROKEN with both sides. The command
fails when one is broken, unless the guest was stopped in the middle of a change
that explains it."""

    NAME = "stat"

    def run(self, words: command.Words) -> None:
        """Print both tables. Raises GdbError when a law is broken."""
        if words.rest:
            raise gdb.GdbError(f"'{words.rest[0]}' is not expected here")
        snapshot = Snapshot()
        now = moment.now()
        shown, walked = counters.shown(), counters.walked(snapshot)
        lines = [
            ("counter", "sysfs", "walked"),
            ("scope", domain.scope(), "-"),
            ("domain", domain.kind(), "-"),
        ]
        for name in counters.NAMES:
            lines.append((name, str(shown[name]), str(walked.get(name, "-"))))
            if name == "pages_unshared":
                noted = counters.classes_sum([record.WATCHED])
                lines.append(("+watched", str(noted), str(snapshot.counts()[record.WATCHED])))
        print("\n".join(command.table(lines, "lrr")))
        print()
        found = list(laws(snapshot, shown, walked))
        findings = {
            law: Finding(None, f"{law.text}: {law.sides}", law.excuse, law.weight)
            for law in found
            if not law.holds
        }
        broken, _ = sort_out(findings.values(), now)
        for law in found:
            if law.holds:
                print(f"ok      {law.text}")
            else:
                word = "BROKEN: " if findings[law] in broken else "not now "
                print(f"{word}{findings[law]}")
        if len(findings) > len(broken):
            print(f"({now}: look again when that is done)")
        if broken:
            raise gdb.GdbError(f"{len(broken)} broken laws, the first: {broken[0]}")


PksmStat()

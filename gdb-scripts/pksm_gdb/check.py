# SPDX-License-Identifier: GPL-2.0-only
"""``pksm check``: walks every structure, and reports what does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import gdb

from . import command, moment
from .finding import Finding, sort_out
from .laws import chain_laws
from .snapshot import Snapshot
from .stable_laws import hashes, stable_laws


def laws(snapshot: Snapshot, *, contents: bool) -> Iterator[Finding]:
    """Yield what is wrong, in the order of the laws; a structure that cannot be walked is wrong."""
    parts = [chain_laws, stable_laws, *([hashes] if contents else [])]
    for part in parts:
        try:
            yield from part(snapshot)
        except gdb.GdbError as error:
            yield Finding(None, f"a structure cannot be walked: {error}")


class PksmCheck(command.Command):
    """Walk every structure of the engine, and report the first broken invariant.

    pksm check [--all] [--contents]

Checked are: the chains (every record in exactly the chain that its state
says, no circle, right bucket, dead buckets marked), PG_pksm against the
records, reference counts, the kind of each page, stable nodes and their pages,
sharers and their anon_vmas, the PTEs of all processes against the map counts
and against rmap, write protection of merged pages, and the counters.
--contents reads every merged page as well, and compares its hash.

The command fails with the first law that is broken, with both sides and the
page; --all prints all of them. When the guest was stopped in the middle of a
change, what that explains is printed, and is no failure."""

    NAME = "check"
    OPTIONS = {"--all": False, "--contents": False}

    def run(self, words: command.Words) -> None:
        """Print what is found. Raises GdbError when a law is broken."""
        if words.rest:
            raise gdb.GdbError(f"'{words.rest[0]}' is not expected here")
        snapshot = Snapshot()
        now = moment.now()
        found = laws(snapshot, contents="--contents" in words.options)
        broken, explained = sort_out(found, now)
        for finding in explained:
            print(f"in the middle of a change: {finding}")
        if explained:
            print(f"({now}: look again when that is done)")
        if broken and "--all" in words.options:
            for finding in broken:
                print(f"BROKEN: {finding}")
            raise gdb.GdbError(f"{len(broken)} broken invariants")
        if broken:
            more = f" (and {len(broken) - 1} more: --all)" if len(broken) > 1 else ""
            raise gdb.GdbError(f"BROKEN: {broken[0]}{more}")
        ptes = sum(len(snapshot.tables.of(pfn)) for pfn in snapshot.tracked)
        print(
            f"all is well: {len(snapshot.tracked)} tracked pages with {ptes} PTEs, "
            f"{len(snapshot.nodes)} stable nodes, {len(snapshot.names)} address spaces"
        )


PksmCheck()

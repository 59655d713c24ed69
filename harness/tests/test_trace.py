# SPDX-License-Identifier: GPL-2.0-only
"""The tracepoints of PKSM: each says what the counters say, event by event."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from lab import Report, pageops, settle
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_pksm, pytest.mark.time_travel]

TRACING = "/sys/kernel/tracing"
LINE = re.compile(r": pksm_(\w+): (.*)$", re.MULTILINE)
PAGES = 64


def traced(guest: Guest, *operations: str) -> tuple[Report, list[tuple[str, str]]]:
    """Run pageops with two processes; return its report and the events: names and texts."""
    settle(guest)
    guest.sh(f"cd {TRACING} && echo 8192 > buffer_size_kb && echo > trace && echo 1 > events/pksm/enable")
    report = pageops(guest, *operations, procs=2, pages=PAGES)
    guest.sh(f"echo 0 > {TRACING}/events/pksm/enable")
    found = LINE.findall(guest.sh(f"grep ': pksm_' {TRACING}/trace").stdout)
    return report, found


def frame(text: str) -> str:
    """Return the page frame number that an event begins with."""
    assert text.startswith("pfn="), text
    return text.split()[0]


def test_there_are_these_and_no_others(guest: Guest) -> None:
    names = set(guest.sh(f"ls -d {TRACING}/events/pksm/pksm_*").stdout.split())
    assert {name.rpartition("/")[2] for name in names} == {
        "pksm_intake", "pksm_delete", "pksm_hash", "pksm_merge", "pksm_break", "pksm_write",
        "pksm_rescan", "pksm_split", "pksm_prune", "pksm_unmerge",
    }  # fmt: skip


def test_each_event_is_told_once(guest: Guest) -> None:
    """A page's life: it enters, is read, merged, broken off by a write, unmerged, freed."""
    report, events = traced(
        guest, "stat=start", "fill=dup", "settle", "stat=merged", "range=0-16", "@0:poke=3",
        "range=16-32", "@0:madvise=unmergeable", "range=all", "settle", "stat=end", "verify",
    )  # fmt: skip
    number = Counter(name for name, _ in events)
    start, end = report["start"].counters, report["end"].counters
    # The tracing itself ends later, with the programs.
    assert end["pages_merged"] - start["pages_merged"] <= sum(
        name == "merge" and "result=merged" in text for name, text in events
    )
    assert number["break"] >= end["pages_broken"] - start["pages_broken"] >= 32
    assert number["hash"] >= end["pages_scanned"] - start["pages_scanned"] >= 2 * PAGES
    assert number["intake"] >= 2 * PAGES and number["delete"] >= 2 * PAGES
    assert number["unmerge"] == 16
    entered = {frame(text) for name, text in events if name == "intake"}
    read = {frame(text) for name, text in events if name == "hash"}
    assert len(read & entered) >= 2 * PAGES


def test_a_merge_that_fails_says_why(guest: Guest) -> None:
    """A page that somebody holds."""
    _, events = traced(
        guest, "set=settle_millisecs:200", "@0:fill=dup", "settle", "@1:fill=dup", "range=0-1", "@1:pin",
        "sleep=5000",
        "@1:unpin", "range=all", "settle", "verify",
    )  # fmt: skip
    results = Counter(
        match[1] for name, text in events
        if name == "merge" and (match := re.search(r"result=(\w+)", text)) is not None
    )  # fmt: skip
    assert results["merged"] >= PAGES - 1
    assert results["busy"] >= 1, results


def test_a_second_look_and_a_write_to_what_is_watched(guest: Guest) -> None:
    _, events = traced(
        guest, "fill=unique", "settle", "sleep=100000", "range=0-8", "@0:poke=5", "sleep=1000",
        "range=all", "verify",
    )  # fmt: skip
    number = Counter(name for name, _ in events)
    watched = [text for name, text in events if name == "rescan" and "watched=1" in text]
    assert len(watched) >= 2 * PAGES
    assert number["write"] >= 8


def test_sharers_that_went_are_pruned(guest: Guest) -> None:
    _, events = traced(
        guest, "fill=same", "settle", "@1:fill=unique", "settle", "sleep=20000", "verify"
    )
    pruned = [
        tuple(map(int, re.findall(r"(?:before|after)=(\d+)", text)))
        for name, text in events if name == "prune"
    ]  # fmt: skip
    assert sum(before - after for before, after in pruned) >= PAGES - 1

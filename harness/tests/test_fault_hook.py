# SPDX-License-Identifier: GPL-2.0-only
"""Each page that a fault makes enters the engine; each page that is freed leaves it."""

from __future__ import annotations

import pytest
from lab import pageops, tracked
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

PAGES = 1000


def test_each_touched_page_enters_and_each_freed_page_leaves(guest: Guest) -> None:
    """Stopped, so that nothing but intake moves the counters: 1000 in, 1000 out."""
    report = pageops(
        guest, "set=run:0", "range=0-1", "fill=unique", "drain", "stat=before",
        f"range=1-{PAGES + 1}", "fill=unique", "stat=touched", "madvise=dontneed", "drain",
        "stat=freed",
        procs=1, pages=PAGES + 1,
    )  # fmt: skip
    before, touched, freed = (tracked(stage.counters) for stage in report)
    assert touched - before == PAGES
    assert touched - freed == PAGES
    grown = report["touched"].counters["pages_new"] - report["before"].counters["pages_new"]
    assert grown == PAGES
    guest.set_pksm("run", 1)


def test_pages_touched_by_reading_only_do_not_enter(guest: Guest) -> None:
    """They are the zero page; there is nothing to merge."""
    report = pageops(
        guest, "set=run:0", "drain", "stat=before", "touch=read", "stat=read",
        procs=1, pages=PAGES,
    )  # fmt: skip
    assert tracked(report["read"].counters) == tracked(report["before"].counters)
    guest.set_pksm("run", 1)


def test_pages_made_by_get_user_pages_enter(guest: Guest) -> None:
    """__get_user_pages, faultin_page, handle_mm_fault: the notes' second way in."""
    report = pageops(
        guest, "set=run:0", "drain", "stat=before", "madvise=populate_write", "stat=populated",
        procs=1, pages=PAGES,
    )  # fmt: skip
    assert tracked(report["populated"].counters) - tracked(report["before"].counters) == PAGES
    guest.set_pksm("run", 1)


@pytest.mark.regression("R36")
def test_r36_untouched_memory_costs_nothing(guest: Guest) -> None:
    """R36: a large mapping of which little is touched is not searched."""
    guest.set_pksm("rescan_seconds", 2)
    report = pageops(
        guest, "range=0-8", "fill=dup", "settle", "sleep=9000", "stat=before", "sleep=6000",
        "stat=after",
        procs=2, pages=1 << 17,
    )  # fmt: skip
    scanned = report["after"].counters["pages_scanned"] - report["before"].counters["pages_scanned"]
    # What the program and the agent touch themselves; the mapping has 131072 pages.
    assert scanned <= 64


def test_a_process_that_ends_takes_its_pages_with_it(guest: Guest) -> None:
    report = pageops(
        guest, "set=run:0", "drain", "stat=before", "@1:fill=unique", "stat=filled", "@1:exit",
        "drain", "stat=gone",
        procs=2, pages=PAGES,
    )  # fmt: skip
    before, filled, gone = (tracked(stage.counters) for stage in report)
    assert PAGES <= filled - before <= PAGES + 16
    assert filled - gone >= PAGES
    guest.set_pksm("run", 1)


@pytest.mark.regression("R49")
def test_r49_pages_that_were_read_before_they_were_written_enter(guest: Guest) -> None:
    """R49: the zero page was mapped there; the write copies it."""
    report = pageops(
        guest, "touch=read", "drain", "set=settle_millisecs:60000", "stat=before", "fill=unique",
        "stat=after", "set=settle_millisecs:50", procs=1, pages=PAGES,
    )  # fmt: skip
    grown = tracked(report["after"].counters) - tracked(report["before"].counters)
    assert grown == PAGES


@pytest.mark.regression("R49")
def test_r49_pages_copied_after_a_fork_enter(guest: Guest) -> None:
    """R49: parent and child hold different pages once one of them has written."""
    before = guest.pksm("pages_scanned")
    guest.run(["forkdup", "--depth", "1", "--fanout", "4", "--mib", "1", "--phases", "1"])
    # 256 pages of the root, a third of 256 rewritten in each of 4 children.
    assert guest.pksm("pages_scanned") - before >= 256 + 4 * 80


@pytest.mark.regression("R46")
def test_r46_pages_freed_and_born_again_between_looks_are_told_apart(guest: Guest) -> None:
    """R46: the same frames, other contents, while the old ones still wait in the lists."""
    steps = []
    for number in range(20):
        steps += [f"fill=dup:{number}", "sleep=30", "madvise=dontneed"]
    # The last ones are not to be read before they are full: another CPU may be held up for long.
    report = pageops(
        guest, *steps, "set=run:0", "fill=dup:99", "set=run:1", "settle", "stat=end", "verify",
        procs=3, pages=256,
    )  # fmt: skip
    assert report["end"].sharing == 2 * 256
    assert report["end"]["merged_pages"] == 256

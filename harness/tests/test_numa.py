# SPDX-License-Identifier: GPL-2.0-only
"""Memory of more than one node: merged across them, moved between them, and left alone.

User-Mode Linux has one node: these tests run with --arch x86_64, in a guest with two.
"""

from __future__ import annotations

import pytest
from lab import BootFresh, Stage, baseline, pageops, settle
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_pksm, pytest.mark.needs_config("CONFIG_NUMA")]

ACROSS = "/sys/kernel/mm/ksm/merge_across_nodes"
PAGES = 64
# Of a huge page.
HUGE = 512
# Until pages without a partner are watched, in milliseconds; the same for large folios.
WATCHED_MS = 60_000
HUGE_WATCHED_MS = 200_000
# Until what was written to has been read again.
AGAIN_MS = 400_000
# How long a process has to be at work for the kernel to look where its memory is, and
# to move it: it looks after a second, and then each second. Where time travels that takes
# as many instructions, so that tests which need no long sleep run in real time.
LOOK_MS = 2500
# In real time: of a busy machine the guest gets little.
BUSY_LOOK_MS = 15_000
# How often at most what the host decides is tried again.
MOST_TURNS = 6


@pytest.fixture
def balanced(boot_fresh: BootFresh) -> Guest:
    """Return a guest that moves memory to where it is used."""
    guest = boot_fresh(mem="512M")
    guest.write_file("/proc/sys/kernel/numa_balancing", "1")
    guest.write_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")
    # It is not to make huge pages meanwhile.
    guest.write_file(
        "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", "4000000000"
    )
    return guest


def nodes(stage: Stage) -> tuple[int, int]:
    """Return how many PTEs map a page of each node."""
    return stage["node0"], stage["node1"]


def test_equal_pages_of_both_nodes_are_merged(guest: Guest) -> None:
    """Unless merge_across_nodes says otherwise, which can be changed at any time."""
    before = baseline(settle(guest))
    report = pageops(
        guest, "@0:bind=0", "@1:bind=1", "@2:bind=0", "@3:bind=1", "fill=dup", "stat=filled",
        "settle", "stat=merged", f"file={ACROSS}:0", "settle", "stat=apart", "verify",
        f"file={ACROSS}:1", "settle", "stat=again", "verify", procs=4, pages=PAGES,
    )  # fmt: skip
    assert nodes(report["filled"]) == (2 * PAGES, 2 * PAGES)
    assert report["merged"].sharing == report["again"].sharing == 3 * PAGES
    assert sum(nodes(report["merged"])) == 4 * PAGES
    apart = report["apart"]
    assert (apart["merged_ptes"], apart["merged_pages"]) == (4 * PAGES, 2 * PAGES)
    assert nodes(apart) == (2 * PAGES, 2 * PAGES)
    assert baseline(settle(guest)) == before


@pytest.mark.parametrize("zero_page", [0, 1])
def test_zeroes_of_both_nodes_are_kept_apart_unless_they_are_the_zero_page(
    guest: Guest, zero_page: int
) -> None:
    guest.write_file(ACROSS, "0")
    guest.set_pksm("use_zero_pages", zero_page)
    report = pageops(
        guest, "@0:bind=0", "@1:bind=1", "@2:bind=0", "@3:bind=1", "fill=zero", "settle",
        "stat=merged", "verify", procs=4, pages=PAGES,
    )  # fmt: skip
    merged = report["merged"]
    if zero_page:
        assert merged.counters["zero_pages"] >= 4 * PAGES
        assert merged["merged_ptes"] == 0
    else:
        assert merged["merged_ptes"] == 4 * PAGES
        assert nodes(merged) == (2 * PAGES, 2 * PAGES)


def test_what_was_migrated_is_not_merged_with_pages_of_the_node_it_left(guest: Guest) -> None:
    """Its place in the index is that of its contents there, and it is elsewhere."""
    guest.write_file(ACROSS, "0")
    report = pageops(
        guest, "bind=0", "@0:fill=dup", "@1:fill=dup", "settle", "@0:move=1:all", "stat=moved",
        "@2:fill=dup", "@3:fill=dup", "settle", "stat=merged", "verify", procs=4, pages=PAGES,
    )  # fmt: skip
    assert nodes(report["moved"]) == (0, 2 * PAGES)
    merged = report["merged"]
    assert (merged["merged_ptes"], merged["merged_pages"]) == (4 * PAGES, 2 * PAGES)
    assert nodes(merged) == (2 * PAGES, 2 * PAGES)


def test_a_node_does_not_make_up_for_a_user(guest: Guest) -> None:
    """User 1 on node 1 is not taken for root on node 0, of whom a page was migrated there."""
    guest.write_file(ACROSS, "0")
    report = pageops(
        guest, "@0:bind=0", "@1:bind=0", "@0:fill=dup", "@1:fill=dup", "settle", "stat=roots",
        "@0:move=1:all", "stat=moved", "@2:user=1", "@3:user=1", "@2:bind=1", "@3:bind=1",
        "@2:fill=dup", "@3:fill=dup", "settle", "stat=both", "verify", procs=4, pages=PAGES,
    )  # fmt: skip
    assert report["roots"]["merged_pages"] == PAGES
    assert nodes(report["moved"]) == (0, 2 * PAGES)
    both = report["both"]
    assert nodes(both) == (0, 4 * PAGES)
    assert (both["merged_ptes"], both["merged_pages"]) == (4 * PAGES, 2 * PAGES)


@pytest.mark.parametrize("end", ["poke=7", "set=run:2"])
def test_the_end_of_a_merge_brings_each_page_to_the_node_of_its_process(
    guest: Guest, end: str
) -> None:
    """Who is bound to a node has pages of another only while they are merged."""
    before = baseline(settle(guest))
    report = pageops(
        guest, "@0:bind=0", "@1:bind=1", "@2:bind=0", "fill=dup", "settle", "stat=merged", end,
        "stat=apart", "verify", procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * PAGES
    assert nodes(report["merged"]) != (2 * PAGES, PAGES)
    assert report["apart"]["merged_ptes"] == 0
    assert nodes(report["apart"]) == (2 * PAGES, PAGES)
    guest.set_pksm("run", 1)
    assert baseline(settle(guest)) == before


@pytest.mark.parametrize("way", ["migrate=0-1", "move=1:all", "bind=1:all"])
def test_merged_pages_are_moved_to_another_node(guest: Guest, way: str) -> None:
    """By migrate_pages(2), move_pages(2) and mbind(2) of one of their processes: all of
    them stay merged, and findable."""
    before = baseline(settle(guest))
    report = pageops(
        guest, "bind=0", "@0:fill=dup", "@1:fill=dup", "@2:fill=dup", "settle", "stat=merged",
        f"@0:{way}", "stat=moved", "verify", "@3:fill=dup", "settle", "stat=joined", "verify",
        "@1:poke=9", "verify", "stat=broken", procs=4, pages=PAGES,
    )  # fmt: skip
    merged, moved, joined = report["merged"], report["moved"], report["joined"]
    assert nodes(merged) == (3 * PAGES, 0)
    assert nodes(moved) == (0, 3 * PAGES)
    for stage in (merged, moved):
        assert (stage["merged_ptes"], stage["merged_pages"]) == (3 * PAGES, PAGES)
    assert moved["mapcount_other"] == merged["mapcount_other"]
    # The copy of who comes last is given up for the page that is elsewhere by now.
    assert (joined["merged_ptes"], joined["merged_pages"]) == (4 * PAGES, PAGES)
    assert nodes(joined) == (0, 4 * PAGES)
    assert report["broken"]["merged_ptes"] == 3 * PAGES
    assert baseline(settle(guest)) == before


@pytest.mark.parametrize("way", ["move=1", "bind=1:move"])
def test_a_process_moves_its_own_pages_and_not_those_that_others_have_as_well(
    guest: Guest, way: str
) -> None:
    report = pageops(
        guest, "bind=0", "range=0-32", "fill=dup", "range=32-64", "fill=unique", "range=all",
        "settle", "stat=merged", f"@0:{way}", "stat=moved", "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    merged, moved = report["merged"], report["moved"]
    assert (nodes(merged), merged["merged_ptes"]) == ((2 * PAGES, 0), 2 * 32)
    assert (nodes(moved), moved["merged_ptes"]) == ((2 * PAGES - 32, 32), 2 * 32)
    assert moved["merged_pfn_sum"] == merged["merged_pfn_sum"]


@pytest.mark.time_travel
def test_pages_are_moved_over_and_over_while_they_are_merged_and_written_to(guest: Guest) -> None:
    before = baseline(settle(guest))
    guest.set_pksm("settle_millisecs", 0)
    steps = []
    for number in range(6):
        there, back = f"{number % 2}-{1 - number % 2}", f"{1 - number % 2}-{number % 2}"
        steps += [
            f"&@0:migrate={there}", f"&@1:migrate={there}", f"&@2:migrate={back}", "join",
            f"@{number % 3}:fill=unique", f"@{number % 3}:fill=dup", f"@{(number + 1) % 3}:poke=5",
            "verify",
        ]  # fmt: skip
    # What was read, and written to before it was watched, is found when it is read again.
    report = pageops(guest, "fill=dup", *steps, "fill=dup", f"sleep={AGAIN_MS}", "settle",
                     "stat=end", "verify", procs=3, pages=256)  # fmt: skip
    assert report["end"].sharing == 2 * 256
    assert baseline(settle(guest)) == before


@pytest.mark.real_time
def test_pages_that_followed_their_process_still_merge(balanced: Guest) -> None:
    """Moved by a fault that nobody asked for, before they were merged."""
    before = baseline(settle(balanced))
    report = pageops(
        balanced, "set=run:0", "@0:cpu=0", "@1:cpu=1", "fill=dup", "stat=filled", "@0:cpu=1",
        f"@0:look={BUSY_LOOK_MS}", "stat=moved", "verify", "set=run:1", "settle", "stat=merged",
        "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    filled, moved = report["filled"], report["moved"]
    assert nodes(filled) == (PAGES, PAGES)
    # Of a busy machine the kernel gets no time to move all of them.
    assert nodes(moved)[1] >= 3 * PAGES // 2
    assert moved["numa_pages_migrated"] - filled["numa_pages_migrated"] >= PAGES // 2
    assert report["merged"].sharing == PAGES
    assert baseline(settle(balanced)) == before


@pytest.mark.real_time
def test_merged_pages_stay_where_they_are_whoever_looks_at_them(balanced: Guest) -> None:
    """They are not sent to and fro between the nodes of their processes."""
    report = pageops(
        balanced, "@0:cpu=0", "@1:cpu=1", "range=0-256", "set=run:0", "fill=dup", "set=run:1",
        "settle", "stat=merged", f"@0:look={LOOK_MS}", f"@1:look={LOOK_MS}", "stat=looked", "@0:range=256-512",
        "@0:fill=unique", "@0:range=all", "@0:cpu=1", f"@0:look={BUSY_LOOK_MS}", "stat=moved",
        "verify", procs=2, pages=512,
    )  # fmt: skip
    merged, looked, moved = report["merged"], report["looked"], report["moved"]
    for stage in (merged, looked, moved):
        assert stage["merged_ptes"] == 2 * 256
        assert stage["merged_pfn_sum"] == merged["merged_pfn_sum"]
    # Some pages of the programs themselves may move.
    assert looked["numa_pages_migrated"] - merged["numa_pages_migrated"] < 128
    # It was on all the time: what is not merged follows.
    assert moved["numa_pages_migrated"] - looked["numa_pages_migrated"] >= 64


@pytest.mark.time_travel
@pytest.mark.regression("R25")
def test_a_watched_page_that_is_hinted_at_still_tells(balanced: Guest) -> None:
    """A fault that is to find out who uses a page does not make it writable.

    The kernel takes the rights to the pages away while their process is on another
    node, and gives them back when it has returned.
    """
    report = pageops(
        balanced, "cpu=0", "fill=unique", "settle", f"sleep={WATCHED_MS}", "@0:range=0-8",
        "@0:cpu=1", f"@0:look={LOOK_MS}", "@0:range=8-64", "@0:cpu=0", "stat=hinted",
        "@0:touch=read", "stat=back", "range=all", "fill=dup", f"sleep={AGAIN_MS}", "settle",
        "stat=merged", "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    hinted, back = report["hinted"], report["back"]
    assert back["numa_hint_faults"] - hinted["numa_hint_faults"] >= 56
    assert nodes(back)[0] >= PAGES + 56
    assert report["merged"].sharing == PAGES


@pytest.mark.time_travel
@pytest.mark.needs_config("CONFIG_TRANSPARENT_HUGEPAGE")
def test_a_watched_large_folio_follows_its_process_whole(balanced: Guest) -> None:
    """And is split and merged when it has become equal to another."""
    report = pageops(
        balanced, "--huge", "cpu=0", "fill=unique", "settle", f"sleep={HUGE_WATCHED_MS}",
        "stat=watched", "@0:cpu=1", f"@0:look={LOOK_MS}", "stat=moved", "verify", "fill=dup",
        f"sleep={AGAIN_MS}", "settle", "stat=merged", "verify", procs=2, pages=HUGE,
    )  # fmt: skip
    watched, moved = report["watched"], report["moved"]
    assert nodes(watched) == (2 * HUGE, 0)
    assert nodes(moved) == (HUGE, HUGE)
    assert watched["large"] == moved["large"] == 2 * HUGE
    assert report["merged"].sharing == HUGE


@pytest.mark.real_time
@pytest.mark.regression("R25")
def test_no_byte_is_wrong_while_pages_follow_their_processes(balanced: Guest) -> None:
    """Which go from node to node, and write, while the engine merges at full speed."""
    before = baseline(settle(balanced))
    balanced.set_pksm("settle_millisecs", 0)
    steps = []
    for process, cpu in ((0, 1), (1, 1), (0, 0)):
        steps += [
            f"@{process}:cpu={cpu}", f"@{process}:look={BUSY_LOOK_MS // 2}", "write=30",
            "poke=3", "verify", "fork=write", "verify", "fill=dup",
        ]  # fmt: skip
    migrated = merged = 0
    # How many follow is a matter of how busy the host is.
    for _ in range(MOST_TURNS):
        report = pageops(
            balanced, "cpu=0", "stat=start", "fill=dup", *steps, "settle", "stat=end", "verify",
            procs=2, pages=256,
        )  # fmt: skip
        start, end = report["start"], report["end"]
        migrated += end["numa_pages_migrated"] - start["numa_pages_migrated"]
        merged += end.counters["pages_merged"] - start.counters["pages_merged"]
        if migrated >= 64 and merged >= 256:
            break
    assert migrated >= 64
    assert merged >= 256
    assert baseline(settle(balanced)) == before

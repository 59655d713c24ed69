# SPDX-License-Identifier: GPL-2.0-only
"""Large folios: split for many equal pages, watched as a whole, at peace with khugepaged.

User-Mode Linux has none: these tests run with --arch x86_64.
"""

from __future__ import annotations

import pytest
from lab import BootFresh, baseline, cost_of_time, pageops, parse_report, ram_swap, settle, vmstat
from linux_um.guest import Guest
from linux_um.laws import WORKLOAD_SECONDS

pytestmark = [pytest.mark.needs_pksm, pytest.mark.needs_config("CONFIG_TRANSPARENT_HUGEPAGE")]

THP = "/sys/kernel/mm/transparent_hugepage"
# Pages of a huge page, and of each process' region.
HUGE = 512
PAGES = 2 * HUGE
# Until a folio that was written to has been read again, in milliseconds: twice what
# an age of 1 has to wait.
AGAIN_MS = 450_000


@pytest.fixture
def huge(boot_fresh: BootFresh) -> Guest:
    """Return a guest with memory enough for huge pages, where khugepaged does not stir."""
    guest = boot_fresh(mem="512M")
    # Below 512 MiB the kernel is against it.
    guest.write_file(f"{THP}/enabled", "madvise")
    guest.write_file(f"{THP}/khugepaged/scan_sleep_millisecs", "4000000000")
    return guest


def khugepaged(guest: Guest, sleep_ms: int) -> None:
    """Let khugepaged look at everything, again and again after a sleep of that long."""
    guest.write_file(f"{THP}/khugepaged/pages_to_scan", "100000")
    guest.write_file(f"{THP}/khugepaged/alloc_sleep_millisecs", str(sleep_ms))
    guest.write_file(f"{THP}/khugepaged/scan_sleep_millisecs", str(sleep_ms))


@pytest.mark.time_travel
def test_large_folios_that_are_equal_are_split_and_merged(huge: Guest) -> None:
    before = baseline(settle(huge))
    split = vmstat(huge, "thp_split_page")
    report = pageops(
        huge, "--huge", "fill=dup", "stat=filled", "settle", "sleep=60000", "settle",
        "stat=merged", "verify", "write=50", "verify", procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["filled"]["large"] == 2 * PAGES
    assert report["merged"]["large"] == 0
    assert report["merged"]["merged_ptes"] == 2 * PAGES
    assert report["merged"].sharing == PAGES
    assert vmstat(huge, "thp_split_page") - split >= 2 * PAGES // HUGE
    assert huge.pksm("folios_split") >= 2 * PAGES // HUGE
    assert baseline(settle(huge)) == before


@pytest.mark.time_travel
@pytest.mark.regression("R31")
def test_r31_equal_pages_of_one_large_folio_are_merged(huge: Guest) -> None:
    """With each other, which takes it apart first."""
    before = baseline(settle(huge))
    report = pageops(
        huge, "--huge", "fill=same", "stat=filled", "settle", "sleep=60000", "settle",
        "stat=merged", "verify", "write=50", "verify", procs=1, pages=HUGE,
    )  # fmt: skip
    assert report["filled"]["large"] == HUGE
    assert report["merged"]["large"] == 0
    assert report["merged"]["merged_ptes"] == HUGE
    assert baseline(settle(huge)) == before


@pytest.mark.time_travel
@pytest.mark.regression("R32")
@pytest.mark.parametrize("watched", [False, True])
def test_r32_a_split_that_maps_the_zero_page_is_noticed(huge: Guest, watched: bool) -> None:
    """Of a folio that is hardly used: its pages of zeroes are freed, and none is merged."""
    used, unused = HUGE // 4, HUGE - HUGE // 4
    huge.write_file(f"{THP}/khugepaged/max_ptes_none", str(HUGE // 2))
    before = baseline(settle(huge))
    known = ["fill=unique", "settle", "sleep=200000", "set=run:0"] if watched else ["set=run:0"]
    report = pageops(
        huge, "--huge", *known, f"range=0-{used}", "fill=dup", f"range={used}-{HUGE}", "fill=zero",
        "range=all", "stat=filled", "file=/proc/sys/vm/drop_caches:2", "stat=split", "verify",
        "set=run:1", "settle", f"sleep={AGAIN_MS}", "settle", "stat=merged", "verify", "poke=7",
        "verify", "set=run:2", "verify", "set=run:1", procs=2, pages=HUGE,
    )  # fmt: skip
    filled, split, merged = (report[name] for name in ("filled", "split", "merged"))
    assert filled["large"] == 2 * HUGE
    assert (split["large"], split["zero"]) == (0, 2 * unused)
    # It was the kernel that has saved these.
    assert split.counters["zero_pages"] == filled.counters["zero_pages"]
    assert (merged["merged_ptes"], merged["zero"]) == (2 * used, 2 * unused)
    assert baseline(settle(huge)) == before


@pytest.mark.time_travel
def test_a_large_folio_of_zeroes_becomes_the_zero_page(huge: Guest) -> None:
    report = pageops(
        huge, "--huge", "fill=unique", "fill=zero", "stat=filled", "settle", "sleep=60000",
        "stat=merged", "verify", procs=1, pages=PAGES,
    )  # fmt: skip
    assert report["filled"]["large"] == PAGES
    assert report["merged"]["zero"] == PAGES


@pytest.mark.time_travel
@pytest.mark.parametrize(("equal", "whole"), [(96, True), (416, False)])
def test_a_large_folio_is_split_for_more_than_half_of_its_pages(
    huge: Guest, equal: int, whole: bool
) -> None:
    """Never for a few: it is worth more than they are."""
    report = pageops(
        huge, "--huge", "fill=unique", f"range=0-{equal}", "fill=dup", "settle", "sleep=60000",
        "settle", "stat=after", "range=all", "verify", procs=2, pages=HUGE,
    )  # fmt: skip
    if whole:
        assert report["after"]["large"] == 2 * HUGE
        assert report["after"]["merged_ptes"] == 0
    else:
        assert report["after"]["large"] == 0
        assert report["after"].sharing == equal


@pytest.mark.time_travel
def test_small_pages_split_the_large_folio_that_they_are_equal_to(huge: Guest) -> None:
    """Which was read, and watched, before they came."""
    report = pageops(
        huge, "--huge", "@1:madvise=nohugepage", "@0:fill=dup", "settle", "sleep=200000",
        "stat=alone", "@1:fill=dup", "settle", "sleep=200000", "settle", "stat=merged", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["alone"]["large"] == PAGES
    assert report["merged"].sharing == PAGES


@pytest.mark.time_travel
def test_a_large_folio_that_is_not_written_to_costs_nothing(huge: Guest) -> None:
    """It is watched like any other page: nobody reads it again, nor wakes up for it."""
    short, long = cost_of_time(
        huge, 1200, 2400, 9600,
        before="pageops --huge --procs 1 --pages 1024 fill=unique sleep=50000000 verify >/dev/null &",
        after="kill -0 $! && grep -Eq 'AnonHugePages: +4096 kB' /proc/meminfo",
    )  # fmt: skip
    # The pages of the sleep itself, in both.
    assert short[0] < 128
    assert long[0] <= short[0] + 16
    assert long[1] <= short[1] + 4


@pytest.mark.time_travel
@pytest.mark.parametrize("way", ["write=100", "poke=7", "fill=dup"])
def test_a_write_to_a_watched_large_folio_is_told(huge: Guest, way: str) -> None:
    """By the fault of a PMD, or it would not be read again."""
    report = pageops(
        huge, "--huge", "fill=unique", "settle", "sleep=200000", "stat=watched",
        f"sleep={AGAIN_MS}", "stat=quiet", f"@0:{way}", f"sleep={AGAIN_MS}", "stat=told",
        f"sleep={AGAIN_MS}", "stat=later", "verify", procs=2, pages=HUGE,
    )  # fmt: skip
    watched, quiet, told, later = (
        report[name].counters["pages_scanned"] for name in ("watched", "quiet", "told", "later")
    )
    assert report["later"]["large"] == 2 * HUGE
    # Besides it, only pages of the programs are read.
    assert quiet - watched < HUGE // 2
    assert HUGE <= told - quiet < 2 * HUGE
    assert later - told < HUGE // 2


@pytest.mark.time_travel
@pytest.mark.parametrize(
    "steps",
    [
        ("fill=dup",),
        ("mprotect=ro", "mprotect=rw", "fill=dup"),
        ("mprotect=none", "mprotect=rw", "fill=dup"),
        ("mremap", "fill=dup"),
        ("fork", "fill=dup"),
        ("fork=write", "fill=dup"),
        ("mlock", "fill=dup"),
        ("range=0-1", "madvise=dontneed", "range=all", "fill=dup"),
    ],
    ids=lambda steps: "-".join(step.split(":")[-1] for step in steps),
)
def test_large_folios_that_become_equal_late_are_found(
    huge: Guest, steps: tuple[str, ...]
) -> None:
    """Whatever was done to the mapping in between, no write is missed."""
    report = pageops(
        huge, "--huge", "fill=unique", "settle", "sleep=200000", *steps, f"sleep={AGAIN_MS}",
        "settle", "stat=merged", "verify", procs=2, pages=HUGE,
    )  # fmt: skip
    assert report["merged"].sharing == HUGE


@pytest.mark.time_travel
def test_a_large_folio_that_is_written_to_while_it_is_read_is_split_once(huge: Guest) -> None:
    """Its first page waits in a queue then, as all that are written to; and in one only."""
    report = pageops(
        huge, "--huge", "fill=unique", "settle", "sleep=5000", "stat=read", "fill=same",
        "hold=large", "held", "range=300-301", "poke=7", "range=all", "hold=off", "sleep=60000",
        "settle", "stat=merged", "verify", procs=1, pages=HUGE,
    )  # fmt: skip
    assert report["read"]["large"] == HUGE
    assert report["merged"]["merged_ptes"] >= HUGE - 2


@pytest.mark.time_travel
def test_equal_large_folios_of_khugepaged_leave_each_other_alone(huge: Guest) -> None:
    """They are not split for each other, and so they need not be read again either."""
    # A tenth of what is usual, so that the longest time to wait is 164 s.
    huge.set_pksm("settle_millisecs", 5)
    short, long = cost_of_time(
        huge, 480, 240, 960,
        before="pageops --huge --procs 2 --pages 512 set=run:0 madvise=nohugepage fill=dup "
        "madvise=hugepage madvise=collapse set=run:1 sleep=50000000 verify >/dev/null &",
        after="kill -0 $! && grep -Eq 'AnonHugePages: +4096 kB' /proc/meminfo",
    )  # fmt: skip
    assert short[0] < 128
    assert long[0] <= short[0] + 16
    assert long[1] <= short[1] + 4


@pytest.mark.time_travel
def test_a_large_folio_that_is_held_is_not_read_again_and_again(huge: Guest) -> None:
    huge.set_pksm("settle_millisecs", 5)
    report = pageops(
        huge, "--huge", "fill=unique", "range=0-1", "pin", "range=all", "sleep=20000",
        "stat=read", "sleep=1000000", "stat=later", "range=0-1", "unpin", "range=all",
        "sleep=400000", "stat=free", "verify", procs=1, pages=HUGE,
    )  # fmt: skip
    read, later, free = (
        report[name].counters["pages_scanned"] for name in ("read", "later", "free")
    )
    assert report["later"]["large"] == HUGE
    # The programs' own pages.
    assert later - read < HUGE // 2
    assert free - later >= HUGE


@pytest.mark.time_travel
def test_pages_that_are_watched_can_be_collapsed(huge: Guest) -> None:
    """None of them is mapped writable; that says nothing of what their owner does."""
    report = pageops(
        huge, "--huge", "madvise=nohugepage", "fill=unique", "settle", "sleep=100000",
        "stat=watched", "madvise=hugepage", "madvise=collapse", "stat=collapsed", "verify",
        procs=1, pages=HUGE,
    )  # fmt: skip
    assert report["watched"]["large"] == 0
    assert report["collapsed"]["large"] == HUGE


def test_pages_that_are_merged_with_each_other_can_be_collapsed(huge: Guest) -> None:
    """By MADV_COLLAPSE, whose caller never asked for merging; zero pages stay what they are."""
    before = baseline(settle(huge))
    report = pageops(
        huge, "--huge", "madvise=nohugepage", "range=0-64", "fill=zero", "range=64-512",
        "fill=same", "range=all", "settle", "stat=merged", "madvise=hugepage", "madvise=collapse",
        "stat=collapsed", "verify", "write=10", "verify", procs=2, pages=HUGE,
    )  # fmt: skip
    merged = report["merged"]
    assert (merged["zero"], merged["merged_ptes"]) == (2 * 64, 2 * (HUGE - 64))
    assert merged["merged_pages"] < 16
    assert (report["collapsed"]["large"], report["collapsed"]["merged_ptes"]) == (2 * HUGE, 0)
    assert baseline(settle(huge)) == before


@pytest.mark.needs_config("CONFIG_USERFAULTFD_RWP")
def test_merged_pages_that_are_read_only_can_be_collapsed(huge: Guest) -> None:
    """Since Linux 7, which does not ask whether any is mapped writable."""
    report = pageops(
        huge, "--huge", "madvise=nohugepage", "fill=same", "mprotect=ro", "settle", "stat=merged",
        "madvise=hugepage", "madvise=collapse", "stat=collapsed", "verify", "mprotect=rw",
        "write=10", "verify", procs=2, pages=HUGE,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 2 * HUGE
    assert (report["collapsed"]["large"], report["collapsed"]["merged_ptes"]) == (2 * HUGE, 0)


@pytest.mark.needs_config("!CONFIG_USERFAULTFD_RWP")
def test_merged_pages_that_are_not_collapsed_since_they_are_read_only_stay_merged(
    huge: Guest,
) -> None:
    """Before Linux 7: they are not given back to a caller who will be refused."""
    report = pageops(
        huge, "--huge", "madvise=nohugepage", "fill=same", "mprotect=ro", "settle", "stat=merged",
        "madvise=hugepage", "fails=EINVAL:@0:madvise=collapse", "stat=refused", "verify",
        procs=2, pages=HUGE,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 2 * HUGE
    assert report["refused"]["merged_ptes"] == 2 * HUGE


@pytest.mark.time_travel
def test_what_was_split_and_merged_stays_so(huge: Guest) -> None:
    """At khugepaged's own pace: it has nothing to collapse that PKSM would split again."""
    khugepaged(huge, 10_000)
    before = vmstat(huge, "thp_collapse_alloc")
    report = pageops(
        huge, "--huge", "range=0-512", "fill=zero", "range=512-1024", "fill=dup", "settle",
        "stat=merged", "sleep=3600000", "stat=later", "range=all", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    for stage in (report["merged"], report["later"]):
        assert (stage["zero"], stage["merged_ptes"]) == (2 * HUGE, 2 * HUGE)
    assert vmstat(huge, "thp_collapse_alloc") == before


@pytest.mark.time_travel
def test_khugepaged_and_pksm_do_not_undo_each_others_work(huge: Guest) -> None:
    """Not even where it is faster than pages settle: it may win, but nobody begins anew."""
    khugepaged(huge, 100)
    names = ("thp_split_page", "thp_collapse_alloc")
    job = huge.start(["pageops", "--huge", "--procs", "2", "--pages", str(PAGES), "range=0-512",
                      "fill=zero", "range=512-1024", "fill=dup", "stat=filled", "settle",
                      "sleep=10000000", "range=all", "verify"])  # fmt: skip
    look = "grep -E '^thp_(split_page|collapse_alloc) ' /proc/vmstat"
    # khugepaged is awake ten times a second all the time.
    done = huge.sh(f"sleep 2000; {look}; sleep 6000; {look}", timeout=4 * WORKLOAD_SECONDS)
    assert job.poll() is None, job.stderr
    seen = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(seen) == 2 * len(names)
    # It was at work, and has come to an end.
    assert sum(seen[:2]) > 0
    grown = dict(zip(names, (seen[2] - seen[0], seen[3] - seen[1]), strict=True))
    assert all(value <= 2 for value in grown.values()), grown
    assert job.wait(240).status == 0
    assert parse_report(job.stdout)["filled"]["large"] == 2 * PAGES


@pytest.mark.time_travel
def test_large_folios_come_and_go(huge: Guest) -> None:
    """Collapsed, reclaimed, freed in parts: no wrong byte, and nothing is left."""
    before = baseline(settle(huge))
    report = pageops(
        huge, "--huge", "fill=dup", "settle", "sleep=5000", "range=0-700", "poke=5", "range=all",
        "madvise=collapse", "stat=collapsed", "verify", "sleep=60000", "range=100-300", "madvise=dontneed", "range=all", "verify",
        "fork=write", "verify", "madvise=free", "touch=write", "sleep=60000", "settle", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip
    assert report["collapsed"]["large"] > 0
    assert baseline(settle(huge)) == before


@pytest.mark.time_travel
def test_large_folios_are_swapped(huge: Guest) -> None:
    ram_swap(huge, 64)
    before = baseline(settle(huge))
    report = pageops(
        huge, "--huge", "fill=unique", "settle", "sleep=200000", "madvise=pageout", "stat=out",
        "verify", "fill=dup", "settle", "sleep=200000", "madvise=pageout", "verify", "settle",
        "sleep=60000", "settle", "stat=merged", "verify", procs=2, pages=HUGE,
    )  # fmt: skip
    assert report["out"]["swapped"] > 0
    assert report["merged"].sharing == HUGE
    assert baseline(settle(huge)) == before


@pytest.mark.time_travel
@pytest.mark.parametrize("size", [16, 64, 256])
def test_folios_of_other_sizes_are_split_as_well(huge: Guest, size: int) -> None:
    """*size* in KiB."""
    huge.write_file(f"{THP}/hugepages-{size}kB/enabled", "always")
    huge.write_file(f"{THP}/hugepages-2048kB/enabled", "never")
    report = pageops(
        huge, "--huge", "fill=unique", "stat=filled", "settle", "sleep=200000", "stat=watched",
        "fill=dup", f"sleep={AGAIN_MS}", "settle", "stat=merged", "verify",
        procs=2, pages=HUGE,
    )  # fmt: skip
    assert report["filled"]["large"] == report["watched"]["large"] == 2 * HUGE
    assert report["merged"].sharing == HUGE

# SPDX-License-Identifier: GPL-2.0-only
"""Pages of hugetlb: never taken in, while ordinary duplicates merge around them.

User-Mode Linux has none: these tests run with --arch x86_64.
"""

from __future__ import annotations

import pytest
from lab import BootFresh, Counters, baseline, meminfo, pageops, settle, tracked
from linux_um import kconfig
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_pksm, pytest.mark.needs_config("CONFIG_HUGETLBFS")]

# Pages of a huge page.
HUGE = 512
# In the pool, which two nodes share out among each other.
POOL = 16
# So many pages of the programs themselves, or fewer, may come and go.
FEW = HUGE // 4


@pytest.fixture
def pool(boot_fresh: BootFresh) -> Guest:
    """Return a guest with huge pages that are kept for who asks for them."""
    guest = boot_fresh(mem="512M")
    guest.write_file("/proc/sys/vm/nr_hugepages", str(POOL))
    assert meminfo(guest, "HugePages_Free") == POOL
    return guest


@pytest.fixture
def pause(request: pytest.FixtureRequest) -> str:
    """Return the step that waits until whoever found no partner has been read again.

    Where waiting takes its time, a few seconds: what is taken in at all is so by then.
    """
    profile, arch = (request.config.getoption(name) for name in ("--profile", "--arch"))
    return f"sleep={60_000 if kconfig.time_travels(profile, arch) else 5_000}"


def all_back(guest: Guest, before: Counters) -> None:
    """Check that nobody holds a huge page any more, and that the engine is as it was."""
    assert meminfo(guest, "HugePages_Free") == POOL
    assert meminfo(guest, "HugePages_Rsvd") == 0
    assert baseline(settle(guest)) == before


@pytest.mark.parametrize("fill", ["dup", "same", "zero"])
@pytest.mark.parametrize("kind", ["hugetlb", "hugetlb-shared"])
def test_equal_pages_of_hugetlb_are_left_alone(
    pool: Guest, pause: str, kind: str, fill: str
) -> None:
    """Also when their processes ask for a merge: nobody reads, nor counts them."""
    before = settle(pool)
    report = pageops(
        pool, "unmap", "merge=1", f"map={kind}", "madvise=mergeable", "settle", "stat=mapped",
        "fill=unique", f"fill={fill}", "stat=filled", "settle", pause, pause,
        "settle", "stat=later", "verify", procs=3, pages=HUGE,
    )  # fmt: skip
    mapped, filled, later = report["mapped"], report["filled"], report["later"]
    for stage in (filled, later):
        assert stage["present"] == 3 * HUGE
        assert stage["merged_ptes"] == stage["zero"] == 0
        assert tracked(stage.counters) - tracked(mapped.counters) < FEW
    assert later.counters["pages_scanned"] - mapped.counters["pages_scanned"] < FEW
    all_back(pool, baseline(before))


def test_ordinary_duplicates_merge_around_them(pool: Guest, pause: str) -> None:
    """Among each other: a page of hugetlb with the same bytes is no partner."""
    before = settle(pool)
    report = pageops(
        pool, "@0:unmap", "@0:map=hugetlb", "@1:unmap", "@1:map=hugetlb-shared", "fill=dup",
        "settle", pause, "settle", "stat=merged", "verify", "@0:poke=7", "@2:poke=9",
        "verify", "@1:poke=11", "settle", "stat=broken", "verify", procs=4, pages=HUGE,
    )  # fmt: skip
    merged = report["merged"]
    assert (merged["merged_ptes"], merged["merged_pages"]) == (2 * HUGE, HUGE)
    assert merged["mapcount_other"] == 0 or merged["large"] == HUGE
    assert report["broken"]["merged_ptes"] == HUGE
    all_back(pool, baseline(before))


def test_one_ordinary_page_is_not_merged_with_those_of_hugetlb(pool: Guest, pause: str) -> None:
    report = pageops(
        pool, "@0:unmap", "@0:map=hugetlb", "@1:unmap", "@1:map=hugetlb", "fill=dup", "settle",
        pause, "settle", "stat=settled", "verify", procs=3, pages=HUGE,
    )  # fmt: skip
    assert report["settled"]["present"] == 3 * HUGE
    assert report["settled"]["merged_ptes"] == 0


@pytest.mark.parametrize("kind", ["hugetlb", "hugetlb-shared"])
def test_fork_and_copies_of_pages_of_hugetlb(pool: Guest, pause: str, kind: str) -> None:
    """What a child writes to private ones is a copy, which is not taken in either."""
    before = settle(pool)
    write = ["fork=write", "verify"] if kind == "hugetlb" else []
    report = pageops(
        pool, "unmap", f"map={kind}", "fill=dup", "settle", "stat=filled", "fork", *write,
        "@0:poke=3", "fork", *write, "settle", pause, "stat=later", "verify",
        procs=2, pages=HUGE,
    )  # fmt: skip
    filled, later = report["filled"], report["later"]
    assert later["present"] == 2 * HUGE
    assert later["merged_ptes"] == 0
    assert tracked(later.counters) - tracked(filled.counters) < FEW
    assert later.counters["pages_scanned"] - filled.counters["pages_scanned"] < HUGE
    all_back(pool, baseline(before))


@pytest.mark.time_travel
def test_reserved_pages_are_there_when_they_are_needed(pool: Guest) -> None:
    """All of the pool: nobody has taken one while ordinary pages were merged."""
    before = settle(pool)
    pages = POOL // 2 * HUGE
    job = pool.start(["pageops", "--procs", "2", "--pages", str(pages), "unmap", "map=hugetlb",
                      "sleep=3000000", "fill=dup", "verify", "sleep=60000", "verify"])  # fmt: skip
    pool.sh("sleep 60")
    assert meminfo(pool, "HugePages_Rsvd") == meminfo(pool, "HugePages_Free") == POOL
    report = pageops(pool, "fill=dup", "settle", "stat=merged", "verify", procs=3, pages=4096)
    assert report["merged"].sharing == 2 * 4096
    assert meminfo(pool, "HugePages_Rsvd") == POOL
    assert job.wait(240).status == 0
    all_back(pool, baseline(before))


@pytest.mark.needs_config("CONFIG_NUMA")
def test_pages_of_hugetlb_that_are_moved_do_not_enter(pool: Guest, pause: str) -> None:
    """From one node to the other: an ordinary page that moves is born anew."""
    before = settle(pool)
    report = pageops(
        pool, "unmap", "map=hugetlb", "madvise=mergeable", "bind=0", "fill=dup", "settle",
        "stat=filled", "move=1", "stat=moved", "settle", pause, "settle", "stat=later",
        "verify", "poke=5", "verify", procs=2, pages=HUGE,
    )  # fmt: skip
    filled, moved, later = report["filled"], report["moved"], report["later"]
    assert (filled["node0"], filled["node1"]) == (2 * HUGE, 0)
    assert (moved["node0"], moved["node1"]) == (0, 2 * HUGE)
    assert later["merged_ptes"] == 0
    # One record stands for all pages of a large folio.
    assert later.counters["pages_scanned"] - moved.counters["pages_scanned"] < FEW
    all_back(pool, baseline(before))

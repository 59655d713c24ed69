# SPDX-License-Identifier: GPL-2.0-only
"""What the daemon does when pages cannot be merged: it goes on, and it does not burn time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lab import BootFresh, baseline, kin, meminfo, pageops, settle, vmstat, workload
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm


def sparse(guest: Guest, *options: str) -> dict[str, Any]:
    """Run sparse; see `sparse --help`."""
    done = guest.run(["sparse", *options], check=False)
    assert done.status == 0, f"sparse: status {done.status}: {done.stderr}{done.stdout}"
    return dict(json.loads(done.stdout))


@pytest.mark.real_time
@pytest.mark.regression("R36")
def test_r36_the_emptiness_of_a_huge_mapping_costs_nothing(guest: Guest) -> None:
    """R36: 480 GiB with 64 pages in it, against the same 64 pages side by side."""
    # What the second look reads is of the programs' own.
    guest.set_pksm("rescan_seconds", 0)
    dense = sparse(guest, "--dense")
    far = sparse(guest, "--gib", "480")
    for said in (dense, far):
        assert said["merged"] == 64
        assert said["left"] == 0
        assert said["idle_scanned"] <= 16, said
    # A look at each of 126 million addresses takes seconds; noise of the machine does not.
    assert far["usecs"] <= 20 * dense["usecs"] + 500_000, (dense, far)
    assert far["idle_usecs"] <= 200_000, far
    assert far["unmerge_ms"] <= 20 * dense["unmerge_ms"] + 500, (dense, far)


def crowd_usecs(guest: Guest, pages: int) -> int:
    """Return the CPU time of pksmd for so many equal pages, none of which can be merged.

    Each has two mappings, as many as a merged page may have.
    """
    before = guest.pksm("cpu_usecs")
    report = kin(
        guest, "set=run:0", "a:new", "a:fill=same", "a:fork=b", "set=run:1", "settle",
        "stat=crowd", "verify",
        pages=pages,
    )  # fmt: skip
    assert report["crowd"]["merged_ptes"] == 0
    assert report["crowd"].counters["pages_unshared"] >= pages, "they are not in the index"
    return report["crowd"].counters["cpu_usecs"] - before


@pytest.mark.real_time
@pytest.mark.regression("R37")
def test_r37_a_search_among_many_equal_pages_is_bounded(guest: Guest) -> None:
    """R37: with the page locked, each of them is compared with a few others, not with all."""
    guest.set_pksm("settle_millisecs", 5)
    guest.set_pksm("max_page_sharing", 2)
    crowd_usecs(guest, 64)
    few = crowd_usecs(guest, 1000)
    # The clock may go on while others have the CPU; what is quadratic is so each time.
    many = min(crowd_usecs(guest, 8000) for _ in range(3))
    # Eight times as many pages: about eight times the work, or 64 times if all are tried. The
    # clock of CPU time is coarse, and 1000 pages may take no time at all.
    assert many < 24 * max(few, 20_000), (few, many)


# A PC's kernel starts threads meanwhile, for the stack of which it has processes killed;
# test_fault_injection.py takes memory from the engine alone.
@pytest.mark.um_only
@pytest.mark.time_travel
@pytest.mark.regression("R38")
def test_r38_without_memory_for_its_records_the_engine_waits(boot_fresh: BootFresh) -> None:
    """R38: it neither loops nor has processes killed; with memory again it merges.

    The watermark is raised above what is free. Whoever may not use the reserves, and will not
    have processes killed, gets nothing; a real-time task, as pageops is here, may use half of
    them.
    """
    guest = boot_fresh(mem="128M")
    file = "file=/proc/sys/vm/min_free_kbytes"
    usual = guest.read_file("/proc/sys/vm/min_free_kbytes").strip()
    before = settle(guest)
    high = meminfo(guest, "MemFree") * 5 // 4
    report = workload(
        guest, ["pageops", "--procs", "3", "--pages", "2048", "--fifo", "fill=dup",
                f"{file}:{high}", "sleep=20000", f"{file}:{usual}", "stat=short",
                "sleep=60000", "settle", "stat=again", "verify"],
    )  # fmt: skip
    merged = report["short"].counters["pages_merged"] - before["pages_merged"]
    assert merged < 1024, "memory was not short: the test tested nothing"
    assert report["again"].sharing == 2 * 2048
    assert vmstat(guest, "oom_kill") == 0
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R39")
@pytest.mark.parametrize("held", ["0-16", "48-64", "24-40"])
def test_r39_pages_behind_one_that_never_gets_ready_have_their_turn(
    guest: Guest, held: str
) -> None:
    """R39: whichever pages stay pinned, those that do not are merged at a later try."""
    first, last = (int(word) for word in held.split("-"))
    free = [part for part in ((0, first), (last, 64)) if part[0] < part[1]]
    release = [
        step for a, b in free for step in (f"@0:range={a}-{b}", "@0:unpin")
    ]
    report = pageops(
        guest, "@0:fill=dup", "@0:pin", "@1:fill=dup", "sleep=1500", "stat=pinned", *release,
        "settle=60000", "@0:range=all", "stat=part", "verify", f"@0:range={held}", "@0:unpin",
        "@0:range=all", "verify",
        procs=2, pages=64,
    )  # fmt: skip
    assert report["pinned"]["merged_ptes"] == 0
    assert report["part"]["merged_ptes"] == 2 * (64 - (last - first))


@pytest.mark.time_travel
@pytest.mark.regression("R43")
def test_r43_one_entry_that_is_out_of_date_does_not_end_the_search(guest: Guest) -> None:
    """R43: of two equal pages in the index, pinned when they came, one has changed since.

    For half of them it is the older entry, for half the younger. A third process' page must
    find the other. What is pinned comes to the index once it was tried often enough, an hour
    later.
    """
    report = pageops(
        guest, "@0:fill=dup", "@0:pin", "settle=10000", "@1:fill=dup", "@1:pin", "sleep=3600000",
        "stat=pinned", "set=run:0", "@0:unpin", "@1:unpin", "@0:range=0-32", "@0:poke=5",
        "@1:range=32-64", "@1:poke=6", "@0:range=all", "@1:range=all", "@2:fill=dup",
        "set=run:1", "settle", "stat=found", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["pinned"]["merged_ptes"] == 0
    assert report["pinned"].counters["pages_unshared"] >= 2 * 64, "they are not in the index"
    assert report["pinned"].counters["pages_volatile"] < 32, "some wait still"
    assert report["found"]["merged_ptes"] == 2 * 64
    assert report["found"]["merged_pages"] == 64


@pytest.mark.regression("R43")
def test_r43_contents_that_died_do_not_hide_those_that_live(guest: Guest) -> None:
    """R43: merged pages of a content that is gone, and pages of the index that are, in between."""
    before = settle(guest)
    steps = []
    for number in range(6):
        steps += [
            "@0:fill=dup", "@1:fill=dup", "settle", "@0:madvise=dontneed", "@1:madvise=dontneed",
            "@2:fill=dup", f"sleep={number * 60}", "@2:madvise=dontneed",
        ]  # fmt: skip
    report = pageops(guest, *steps, "fill=dup", "settle", "stat=end", "verify", procs=3, pages=128)
    assert report["end"]["merged_ptes"] == 3 * 128
    assert report["end"]["merged_pages"] == 128
    assert baseline(settle(guest)) == baseline(before)

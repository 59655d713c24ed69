# SPDX-License-Identifier: GPL-2.0-only
"""Address spaces that come, go, fork and are locked while the engine is at work."""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lab import (
    GROUP,
    WORKLOAD_SECONDS,
    BootFresh,
    Figure,
    Report,
    baseline,
    counters,
    group,
    hold_memdup,
    machine_of,
    pageops,
    parse_report,
    ram_swap,
    settle,
    vmstat,
    workload,
)
from linux_um.guest import MACHINES, Guest, Process
from linux_um.options import default_arch
from test_migrate import FILLER, ISLANDS

pytestmark = pytest.mark.needs_pksm

PAGES = 64
# Freed address spaces and VMAs are poisoned: whoever still uses one is found out.
POISON = "slub_debug=FZPU,mm_struct,vm_area_struct"
# Wall-clock seconds for what hangs when it goes wrong. Emulated, what goes well has taken 120.
SOON = 360.0 if MACHINES[default_arch()].slow else 120.0
RUN = "/sys/kernel/mm/pksm/run"
# How a process ends, of its own accord or not; the third by becoming another program.
ENDS = ("exit", "kill", "exec")


def hold_orphan(guest: Guest, *options: str) -> Process:
    """Start orphan, and return when there is an address space without a process."""
    job = guest.start(["orphan", "--pages", str(PAGES), *options])
    guest.wait_for(
        lambda: "no owner" in job.stderr or job.status is not None,
        time.monotonic() + WORKLOAD_SECONDS,
        "orphan does not come to its point",
    )
    assert job.status is None, f"orphan ended with status {job.status}: {job.stderr}"
    return job


def let_go(job: Process) -> Report:
    """Let an orphan's address space go; every byte of it was right."""
    job.close_stdin()
    done = job.wait(WORKLOAD_SECONDS)
    assert done.status == 0, done.stderr
    report = parse_report(done.stdout)
    assert report.raw["ok"] is True
    return report


def race(guest: Guest, scenario: str, *options: str, timeout: float = WORKLOAD_SECONDS) -> Report:
    """Run mmrace; see `mmrace --help`."""
    return workload(guest, ["mmrace", *options, scenario], timeout=timeout)


def mmflags(guest: Guest, *arguments: str) -> dict[str, Any]:
    """Run mmflags; see `mmflags --help`."""
    return dict(json.loads(guest.run(["mmflags", *arguments]).stdout))


@pytest.fixture
def poisoned(boot_fresh: BootFresh) -> Iterator[Guest]:
    """Return a guest in which freed address spaces are poisoned; counters return after it."""
    guest = boot_fresh(append=[POISON])
    before = baseline(settle(guest))
    yield guest
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R1")
@pytest.mark.parametrize(("domain", "merged"), [("user", 0), ("global", PAGES - 1)])
def test_r1_an_address_space_without_a_process_is_no_trap(
    poisoned: Guest, domain: str, merged: int
) -> None:
    """R1: its pages are looked at, and nobody can be asked whose they are.

    Where nobody need be asked they merge, except for the one that is being read.
    """
    poisoned.set_pksm("domain", domain)
    report = let_go(hold_orphan(poisoned))
    assert report["orphaned"]["merged_ptes"] == merged
    assert report["gone"]["merged_ptes"] == merged
    poisoned.set_pksm("domain", "user")


@pytest.mark.regression("R1")
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("moment", ["hashed", "lookup", "found", "frozen"])
def test_r1_a_process_whose_page_is_looked_at_ends(poisoned: Guest, moment: str, who: int) -> None:
    """R1: in the hands of the engine are the page and what it knows of it, and no address space."""
    poisoned.set_pksm("scope", "madvise")
    for end in ENDS:
        report = pageops(
            poisoned, "madvise=mergeable", "@0:fill=dup", "settle", f"hold={moment}", "@1:fill=dup",
            "held", f"@{who}:{end}", "hold=off", "settle", "stat=after", "verify",
            procs=2, pages=4, timeout=SOON,
        )  # fmt: skip
        # At "frozen" the other may go on alone with the page that was kept still for it.
        assert report["after"].sharing == 0, end


@pytest.mark.regression("R2")
@pytest.mark.regression("R3")
@pytest.mark.parametrize("act", [*ENDS, "unmap"])
def test_r2_r3_the_visitor_is_the_last_to_have_the_address_space(
    poisoned: Guest, act: str
) -> None:
    """R2, R3: run=2 is about to visit a process, which ends; or what it has is unmapped."""
    report = pageops(
        poisoned, "fill=dup", "settle", "stat=merged", "hold=visit:@1", f"&@3:self={RUN}:2", "held",
        f"@1:{act}", "hold=off", "join", "stat=unmerged", "@0:verify", "@2:verify",
        procs=4, pages=PAGES, timeout=SOON,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 4 * PAGES
    left = report["unmerged"].counters
    assert (left["pages_shared"], left["pages_sharing"]) == (0, 0)
    poisoned.set_pksm("run", 1)


@pytest.mark.regression("R3")
def test_r3_a_process_is_killed_while_the_visitor_waits_in_the_middle_of_it(
    poisoned: Guest,
) -> None:
    """R3: for a page on the move: which of the four has it is chance, so all are killed."""
    report = pageops(
        poisoned,
        # Who is to end the hold is not to wait for a page that is moved together with those.
        "stay", "file=/proc/sys/vm/compact_unevictable_allowed:0",
        *ISLANDS, "settle", "stat=merged", "@0:exit", "hold=migrate",
        "&@5:self=/proc/sys/vm/compact_memory:1", "held", f"&@6:self={RUN}:2", "sleep=1000",
        *(f"@{process}:kill" for process in (1, 2, 3, 4)), "hold=off", "join", "stat=unmerged",
        "verify",
        procs=7, pages=FILLER, timeout=SOON,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] > 0
    left = report["unmerged"].counters
    assert (left["pages_shared"], left["pages_sharing"]) == (0, 0)
    poisoned.set_pksm("run", 1)


@pytest.mark.regression("R2")
@pytest.mark.regression("R3")
@pytest.mark.real_time
def test_r2_r3_a_process_killed_while_it_is_unmerged_goes_in_peace(
    poisoned: Guest, figure: Figure
) -> None:
    """R2, R3: the engine is the last user of its address space, and lets it go in order."""
    rounds = 10
    report = race(poisoned, "kill", "--rounds", str(rounds), "--pages", "4096", timeout=SOON)
    figure("racing an unmerge, by SIGKILL: met", f"{report.raw['met']} of {rounds} times")
    assert report.raw["met"] >= rounds // 4, "none was killed in time: the test tested nothing"


@pytest.mark.regression("R4")
@pytest.mark.parametrize("moment", ["visit:@0", "hashed", "lookup", "found", "frozen"])
def test_r4_processes_end_while_the_engine_stands_still(guest: Guest, moment: str) -> None:
    """R4: it keeps its mutex, and two pages of those who end: each is gone before it goes on.

    Process 3 has nothing to do with that, 0 to 2 have what the engine is about.
    """
    before = baseline(settle(guest))
    guest.set_pksm("scope", "madvise")
    visit = moment.startswith("visit")
    for end in ENDS:
        pageops(
            guest, "madvise=mergeable", "@3:fill=unique", "@0:fill=dup", "@1:fill=dup:1", "settle",
            f"hold={moment}", *([f"&@4:self={RUN}:2"] if visit else ["@2:fill=dup"]), "held",
            f"@3:{end}", f"@0:{end}", f"@1:{end}", f"@2:{end}", "hold=off", "join",
            *(["set=run:1"] if visit else []), "settle", "verify",
            procs=5, pages=4, timeout=SOON,
        )  # fmt: skip
    guest.set_pksm("scope", "all")
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R4")
@pytest.mark.parametrize("moment", ["found", "frozen"])
def test_r4_who_is_killed_for_memory_need_not_wait_for_the_engine(
    boot_fresh: BootFresh, moment: str
) -> None:
    """R4: it stands still with its mutex; nobody waits for that but who would free memory."""
    guest = boot_fresh(mem="96M")
    guest.set_pksm("scope", "madvise")
    before = baseline(settle(guest))
    pageops(
        guest, "stay", "range=0-4", "madvise=mergeable", "@0:fill=dup", "settle", f"hold={moment}",
        "@1:fill=dup", "held", "@2:range=all", "&@2:fill=unique", "@2:killed", "hold=off",
        "settle", "verify",
        procs=3, pages=25600, timeout=SOON,
    )  # fmt: skip
    assert vmstat(guest, "oom_kill") > 0
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R4")
@pytest.mark.real_time
def test_r4_no_process_waits_for_the_engine_to_end(poisoned: Guest, figure: Figure) -> None:
    """R4: an exit takes no lock of the engine: one who frees memory by it must not wait."""
    report = race(poisoned, "exits", "--pages", "8192", timeout=SOON)
    figure(
        "racing an unmerge, by exits: met",
        f"{report.raw['met']} times in {report.raw['unmerge_usecs'] / 1000:.0f} ms",
    )
    # Who waits for it ends after it: it would be none, or the one that was before its lock.
    assert report.raw["met"] >= 3


@pytest.mark.regression("R4")
@pytest.mark.real_time
def test_r4_out_of_memory_while_unmerging_is_no_deadlock(
    boot_fresh: BootFresh, pytestconfig: pytest.Config
) -> None:
    """R4: run=2 needs twice the memory there is. It ends, and so does who is killed for it."""
    guest = boot_fresh(mem=f"{64 + machine_of(pytestconfig).kernel_mib}M")
    before = baseline(settle(guest))
    jobs = []
    # One after another: together they would not fit before they are merged.
    for _ in range(5):
        jobs.append(hold_memdup(guest, "--procs", "2", "--mib", "8", "--dup", "100",
                                "--unique", "0", "--rewrite", "0"))  # fmt: skip
        settle(guest)
    assert settle(guest)["pages_sharing"] >= 9 * 8 * 256 * 9 // 10
    guest.run(["sh", "-c", "echo 2 > /sys/kernel/mm/pksm/run"], check=False, timeout=SOON)
    assert vmstat(guest, "oom_kill") > 0, "there was memory enough: the test tested nothing"
    guest.set_pksm("run", 1)
    for job in jobs:
        job.close_stdin()
    for job in jobs:
        done = job.wait(SOON)
        assert "wrong byte" not in done.stderr
        killed = re.search(r"died of signal 9|wait status 0x9\b", done.stderr)
        assert done.status in (0, 137, 141) or killed, done.stderr
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R5")
def test_r5_processes_that_lock_all_memory_come_to_an_end(poisoned: Guest) -> None:
    """R5: mlockall(), with areas that cannot be populated: exit, SIGKILL, unmerging."""
    report = race(poisoned, "locked", "--rounds", "3", "--pages", "256", timeout=SOON)
    assert report.raw["met"] == 3 * 4


@pytest.mark.regression("R6")
@pytest.mark.parametrize("setting", [0, 1])
def test_r6_fork_and_exec_keep_the_setting_of_the_process(guest: Guest, setting: int) -> None:
    """R6: PR_SET_MEMORY_MERGE, and with it what becomes of new mappings."""
    said = mmflags(guest, "inherit", str(setting))
    for who in ("self", "fork", "exec after fork", "exec"):
        assert said[who] == {"setting": setting, "mergeable": bool(setting)}, who


@pytest.mark.regression("R6")
def test_r6_a_child_counts_the_zero_pages_it_was_given(guest: Guest) -> None:
    """R6: not those of its parent: half of them were not to be copied."""
    said = mmflags(guest, "zero")
    assert said["parent"] - said["before"] == 2 * said["pages"] == said["after"] - said["before"]
    assert said["child"] - said["before"] == said["pages"]


@pytest.mark.regression("R7")
def test_r7_advice_keeps_the_high_bits_of_the_flags(guest: Guest) -> None:
    """R7: VM_SEALED is bit 63, VM_DROPPABLE bit 40."""
    said = mmflags(guest, "keep")
    assert (said["was_sealed"], said["was_droppable"]) == (1, 1), "the test tested nothing"
    assert (said["sealed"], said["droppable"]) == (1, 1)


@pytest.mark.needs_pksm
def test_a_file_that_is_mapped_piece_by_piece_makes_one_mapping(guest: Guest) -> None:
    """That its private pages are merged, unasked, is no reason for more."""
    said = mmflags(guest, "chunks")
    assert said == {"tool": "mmflags", "ok": True, "mappings": 1, "mergeable": True}


@pytest.mark.regression("R9")
def test_r9_pages_that_come_back_from_swap_are_unmerged_too(boot_fresh: BootFresh) -> None:
    """R9: while run=2 goes from process to process, they fault merged pages in again."""
    guest = boot_fresh()
    ram_swap(guest, 48)
    group(guest)
    before = baseline(settle(guest))
    command = 'echo $$ > "$0/cgroup.procs"; exec mmrace --group "$0" --rounds 4 refault'
    report = workload(guest, ["sh", "-c", command, GROUP])
    assert report.raw["met"] >= 4 * 3000, "little was swapped out: the test tested nothing"
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R9")
def test_r9_pages_that_come_back_behind_the_back_of_the_visitor_are_copies(
    boot_fresh: BootFresh,
) -> None:
    """R9: it has been with their process, and is about to visit the next."""
    guest = boot_fresh()
    ram_swap(guest, 16)
    guest.set_pksm("scope", "madvise")
    before = baseline(settle(guest))
    report = pageops(
        guest, "madvise=mergeable", "@0:fill=dup", "@3:fill=dup", "@1:fill=dup:1", "@2:fill=dup:1",
        "settle", "@3:write=100", "settle", "@0:madvise=pageout", "stat=out", "hold=visit:@1",
        f"&@4:self={RUN}:2", "held", "@0:touch=read", "hold=off", "join", "stat=unmerged",
        "verify", "set=run:1",
        procs=5, pages=PAGES, timeout=SOON,
    )  # fmt: skip
    assert report["out"]["swapped"] == PAGES
    assert report["unmerged"]["merged_ptes"] == 0
    assert report["unmerged"].counters["pages_shared"] == 0
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R10")
@pytest.mark.real_time
def test_r10_pages_on_the_move_are_unmerged_too(boot_fresh: BootFresh) -> None:
    """R10: MADV_UNMERGEABLE waits for what compaction has taken away just now."""
    guest = boot_fresh(mem="96M")
    before = baseline(settle(guest))
    report = race(guest, "migrate", "--rounds", "6", "--pages", "512")
    assert report.raw["met"] > 1000, "little was moved: the test tested nothing"
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R18")
def test_r18_a_page_that_is_mapped_still_is_left_without_a_warning(poisoned: Guest) -> None:
    """R18: no process can be found that maps it; run=2 says so, and not the log."""
    job = hold_orphan(poisoned, "--merge")
    with pytest.raises(OSError) as caught:
        poisoned.set_pksm("run", 2)
    assert caught.value.errno == errno.EBUSY
    # Those of the one that cannot be found are left, each mapped once.
    assert poisoned.pksm("run") == 0
    left = counters(poisoned)
    assert left["pages_sharing"] == 0
    assert PAGES <= left["pages_shared"] <= PAGES + 8
    poisoned.set_pksm("run", 1)
    report = let_go(job)
    assert report["orphaned"]["merged_ptes"] == PAGES


@pytest.mark.regression("R18")
@pytest.mark.real_time
def test_r18_children_born_while_all_is_unmerged_are_visited(
    poisoned: Guest, figure: Figure
) -> None:
    """R18: nodes of pages that a new child maps are met again, until none is left."""
    met = tried = 0
    # It is a matter of chance whether a child is born at the right time. On a busy host of few
    # CPUs the order to fork may come when all is unmerged, for many rounds.
    for _ in range(40):
        report = race(poisoned, "forks", "--rounds", "4", "--pages", "512", timeout=SOON)
        tried += 4
        met += report.raw["met"]
        if met >= 2:
            break
    figure("racing an unmerge, by forks: met", f"{met} of {tried} times")
    assert met >= 2

# SPDX-License-Identifier: GPL-2.0-only
"""Pages on their way in and out: lost races, interrupts, frames that are used again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from lab import (
    GROUP,
    WORKLOAD_SECONDS,
    BootFresh,
    baseline,
    counters,
    group,
    machine_of,
    one_cpu,
    pageops,
    parse_report,
    ram_swap,
    settle,
    swap_device,
    tracked,
)
from linux_um.guest import Guest
from test_moments import HOLD

pytestmark = pytest.mark.needs_pksm

TRACING = "/sys/kernel/tracing"
INTAKE = "events/pksm/pksm_intake/enable"
DELETE = "events/pksm/pksm_delete/enable"
# Says how many pages entered, and how many of these were there already.
ENTERED_TWICE = """
match($0, /pfn=0x[0-9a-f]+/) { pfn = substr($0, RSTART, RLENGTH) }
/ pksm_intake: / { entered++; twice += there[pfn]; there[pfn] = 1 }
/ pksm_delete: / { there[pfn] = 0 }
END { print entered + 0, twice + 0 }
"""


def json_of(guest: Guest, *argv: str) -> dict[str, Any]:
    """Run a program that has to succeed, and return its line of JSON."""
    done = guest.run(argv, check=False)
    assert done.status == 0, f"{argv[0]}: status {done.status}: {done.stderr}{done.stdout}"
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.regression("R44")
def test_r44_a_page_whose_fault_lost_the_race_does_not_enter(guest: Guest) -> None:
    """R44: threads fault on the same page, and sleep for memory before they can map theirs.

    Were the page of a lost fault handed in, it would be marked while it is free, and enter
    once more when it is used again.
    """
    ram_swap(guest, 48)
    group(guest)
    guest.write_file(f"{GROUP}/memory.max", "3M")
    before = settle(guest)
    guest.set_pksm("run", 0)
    known = tracked(counters(guest))
    # By a clock that has an order for what two CPUs do in the same jiffy.
    guest.sh(f"cd {TRACING} && echo counter > trace_clock && echo 8192 > buffer_size_kb")
    guest.sh(f"cd {TRACING} && echo 1 > {INTAKE} && echo 1 > {DELETE}")
    said = json_of(
        guest, "sh", "-c",
        f"echo $$ > {GROUP}/cgroup.procs; exec race --threads 4 --pages 2048 --rounds 3",
    )  # fmt: skip
    guest.sh(f"cd {TRACING} && echo 0 > {INTAKE} && echo 0 > {DELETE}")
    assert said["extra_faults"] > 50, "hardly a fault was lost: the test tested nothing"
    entered, twice = guest.sh(f"awk '{ENTERED_TWICE}' {TRACING}/trace").stdout.split()
    assert int(entered) >= 2048
    assert int(twice) == 0
    assert abs(tracked(counters(guest)) - known) < 64
    guest.set_pksm("run", 1)
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R45")
def test_r45_the_anon_vma_of_those_who_have_gone_is_still_there(guest: Guest) -> None:
    """R45: whoever brought a page has gone, its anon_vma would be another's by now.

    Reclaim and compaction look for the mappings through it; and each who is left must be found.
    """
    ram_swap(guest)
    group(guest)
    before = settle(guest)
    reuse = ("@4:fork=write", "@4:unmap", "@4:map", "@4:fill=unique")
    reclaim = (f"file={GROUP}/memory.reclaim:16M", "sleep=2500") * 3
    report = pageops(
        guest, f"self={GROUP}/cgroup.procs:0", "@0:fill=dup", "settle", "@1:fill=dup", "settle",
        "@2:fill=dup", "@3:fill=dup", "settle", "stat=all", "@0:exit", "@1:exit", *reuse, *reuse,
        "file=/proc/sys/vm/compact_memory:1", "@2:verify", "@3:verify", *reclaim, "stat=out",
        "verify", "poke=1", "verify", "settle", "verify",
        procs=5, pages=256,
    )  # fmt: skip
    assert report["all"]["merged_ptes"] == 4 * 256
    assert report["out"]["swapped"] > 2 * 256, "reclaim does not find the mappings"
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R45")
def test_r45_the_anon_vma_goes_while_its_page_is_frozen(guest: Guest) -> None:
    """R45: its only owner ends then; others take what memory of anon_vmas is free.

    Compaction and reclaim go by the anon_vma of the page that has become a merged one.
    """
    ram_swap(guest)
    group(guest)
    before = settle(guest)
    reuse = ("@3:fork=write", "@3:unmap", "@3:map", "@3:fill=unique")
    reclaim = (f"file={GROUP}/memory.reclaim:16M", "sleep=2500") * 3
    report = pageops(
        guest, "set=scope:madvise", "madvise=mergeable", f"self={GROUP}/cgroup.procs:0",
        "@0:fill=dup", "settle", "hold=frozen", "@1:fill=dup", "held", "@0:exit", *reuse, "hold=off", "settle", "@2:fill=dup", "settle",
        "stat=two", *reuse, "file=/proc/sys/vm/compact_memory:1", "@1:verify", "@2:verify",
        *reclaim, "stat=out", "verify", "poke=1", "verify", "settle", "verify",
        procs=4, pages=256,
    )  # fmt: skip
    assert report["two"].sharing == 256
    assert report["out"]["swapped"] > 256, "reclaim does not find the mappings"
    assert baseline(settle(guest)) == baseline(before)


def anon_vmas_once(guest: Guest, ready: Callable[[], bool]) -> int:
    """Return how many anon_vmas there are when the guest is ready, and nothing is pruned any more.

    The number is exact where the cache is debugged. Compaction empties the batches of the LRU,
    which hold pages.
    """
    guest.wait_for(ready, time.monotonic() + WORKLOAD_SECONDS, "pageops does not come that far")
    guest.write_file("/proc/sys/vm/compact_memory", "1")
    time.sleep(2)
    settle(guest)
    return int(guest.read_file("/sys/kernel/slab/anon_vma/objects").split()[0])


@pytest.mark.real_time
@pytest.mark.regression("R45")
def test_r45_the_engine_keeps_the_anon_vma_of_those_who_have_gone(boot_fresh: BootFresh) -> None:
    """R45: as long as a page names it, and no longer.

    What the last process has was merged into the pages of four others, which have gone. When it
    writes to all of them these pages go as well, and the four anon_vmas with them.
    """
    guest = boot_fresh(append=["slub_debug=FZU,anon_vma"])
    guest.set_pksm("settle_millisecs", 5)
    # Or pages of the programs themselves may keep an anon_vma.
    guest.set_pksm("scope", "madvise")
    owned = [
        step for who in range(4)
        for step in (f"@{who}:range={4 * who}-{4 * who + 4}", f"@{who}:fill=dup")
    ]  # fmt: skip
    # A page that was read before it was full would wait for the second look.
    filled = ["set=run:0", *owned, "set=run:1", "settle", "set=run:0", "@4:fill=dup", "set=run:1"]
    # Host and guest tell each other by controls of the engine how far they are.
    job = guest.start(
        ["pageops", "--procs", "5", "--pages", "16", "madvise=mergeable", *filled, "settle",
         "stat=all", *(f"@{who}:exit" for who in range(4)), "set=rescan_seconds:19",
         "wait=settle_millisecs==21", "@4:poke=1", "set=rescan_seconds:18",
         "wait=settle_millisecs==22", "verify"]
    )  # fmt: skip
    held = anon_vmas_once(guest, lambda: guest.pksm("rescan_seconds") == 19)
    guest.set_pksm("settle_millisecs", 21)
    left = anon_vmas_once(guest, lambda: guest.pksm("rescan_seconds") == 18)
    guest.set_pksm("settle_millisecs", 22)
    done = job.wait(WORKLOAD_SECONDS)
    assert done.status == 0, done.stderr
    assert parse_report(done.stdout)["all"]["merged_ptes"] == 2 * 16
    # Something else may have come or gone meanwhile.
    assert held - left >= 3


def runs_a_process(process: Path, guest: Guest) -> bool:
    """Return whether a process of the host is where one of the guest's runs.

    Either UML traces it, or it is another program. Raises OSError when it has ended.
    """
    kernel = os.readlink(f"/proc/{guest.pid}/exe")
    traced = "\nTracerPid:\t0\n" not in (process / "status").read_text()
    return traced or os.readlink(process / "exe") != kernel


@contextmanager
def on_one_cpu(guest: Guest) -> Iterator[None]:
    """Let one CPU of the host do all of a guest's work, the kernel's before its devices'.

    What is made for the guest's processes meanwhile is on that CPU as well.
    """
    every = os.sched_getaffinity(0)

    def place(cpus: set[int], devices: int) -> None:
        for process in Path("/proc").glob("[1-9]*"):
            # It may end at any time.
            with suppress(OSError):
                if os.getpgid(int(process.name)) != guest.pid:
                    continue
                for thread in (process / "task").iterdir():
                    os.sched_setaffinity(int(thread.name), cpus)
                if runs_a_process(process, guest):
                    continue
                for thread in (process / "task").iterdir():
                    if int(thread.name) != guest.pid:
                        os.sched_setscheduler(int(thread.name), devices, os.sched_param(0))

    place({min(every)}, os.SCHED_IDLE)
    try:
        yield
    finally:
        # Or what comes now may take for ever on a busy host. Not every user may do the last.
        place(every, os.SCHED_OTHER)


@pytest.mark.real_time
@pytest.mark.regression("R47")
@pytest.mark.regression("R52")
def test_r47_r52_pages_freed_by_an_interrupt_leave_the_engine(
    boot_fresh: BootFresh, pytestconfig: pytest.Config
) -> None:
    """R47, R52: the last reference goes at the end of a direct write, in a hard interrupt.

    Meanwhile pksmd works on other pages, whose counters the interrupt must not disturb.
    """
    guest = boot_fresh(swap="16M")
    device = swap_device(guest)
    guest.sh(f"swapoff {device}")
    guest.set_pksm("settle_millisecs", 1)
    before = settle(guest)
    in_flight = 0
    # A device that has a CPU to itself is done with a write before its memory goes.
    with on_one_cpu(guest) if machine_of(pytestconfig).disk_thread else nullcontext():
        # Where each is done all the same: once more.
        for _ in range(6):
            churn = guest.start(["churn", "--procs", "2", "--rounds", "60", "--pause-ms", "1"])
            churn.close_stdin()
            in_flight += json_of(
                guest, "directio", "--file", device, "--pages", "1024", "--rounds", "10", "gone"
            )["in_flight"]
            assert churn.wait(WORKLOAD_SECONDS).status == 0
            if in_flight > 50:
                break
    assert in_flight > 50, "no interrupt had anything to free: the test tested nothing"
    after = settle(guest)
    assert baseline(after) == baseline(before)
    assert abs(tracked(after) - tracked(before)) < 64


@pytest.mark.regression("R46")
def test_r46_a_hash_does_not_outlive_its_page(guest: Guest) -> None:
    """R46: frames in the index are freed and born again at once, before pksmd has looked.

    The new pages, whose frames have the hashes of the old, must be read, and must merge.
    """
    before = settle(guest)
    report = pageops(
        guest, "@0:fill=unique", "@1:fill=unique", "settle", "stat=indexed",
        "set=settle_millisecs:60000", "@0:madvise=dontneed", "@1:madvise=dontneed",
        "@0:fill=dup", "@1:fill=dup", "stat=reborn", "set=settle_millisecs:50", "settle",
        "stat=end", "verify",
        procs=2, pages=512,
    )  # fmt: skip
    assert report["indexed"]["anon"] == 2 * 512
    assert report["reborn"].counters["pages_new"] >= 2 * 512
    assert report["end"]["merged_ptes"] == 2 * 512
    assert baseline(settle(guest)) == baseline(before)


@pytest.mark.regression("R46")
@pytest.mark.parametrize(
    ("refill", "merged"),
    [
        # Who has the page frame now, and with what; and how many PTEs of each content are
        # merged in the end.
        (("@0:fill=dup:7",), 2),
        (("@0:fill=dup",), 2),
        (("@2:user=1000", "@2:fill=dup"), 0),
        (("@2:madvise=unmergeable", "@2:fill=dup"), 0),
        ((), 0),
    ],
    ids=["another", "its equal", "another user's", "of whom it is forbidden", "free"],
)
@pytest.mark.parametrize("stable", [False, True], ids=["in the index", "merged"])
@pytest.mark.parametrize("pages", [1, 4])
def test_r46_the_page_is_gone_when_a_reference_is_taken(
    boot_fresh: BootFresh, refill: tuple[str, ...], merged: int, stable: bool, pages: int
) -> None:
    """R46: between the look at the index and the reference another is born in its page frame.

    The new page is read in its turn: process 4 has what one of them holds. Of several page
    frames each gets the contents of another.
    """
    sharers = (0, 3) if stable else (0,)
    last = refill[-1].partition(":")[0] if refill else ""
    operations = [
        "madvise=mergeable", f"range=0-{pages}", *(f"@{who}:fill=dup" for who in sharers),
        "settle", "drain", *([f"{last}:range=all"] if refill else []), *refill[:-1],
        "stat=there", "hold=lookup", "@1:fill=dup", "held",
        *(f"@{who}:madvise=dontneed" for who in sharers), *refill[-1:],
        *([f"{last}:reborn"] if refill else []), "hold=off", "@4:fill=dup:7", "settle",
        "stat=after", "verify", "poke=9", "verify",
    ]  # fmt: skip
    # What one process frees another gets, of the same CPU; if not for its first page, since
    # it needs tables as well, then for one of the next: mostly. Where the page frames of a guest
    # are such that it does not, it may not the next time either: then in another guest.
    for tries_left in reversed(range(16)):
        if tries_left % 2:
            guest = boot_fresh()
            one_cpu(guest)
            guest.set_pksm("scope", "madvise")
            before = baseline(settle(guest))
        try:
            report = pageops(guest, *operations, procs=5)
            break
        except AssertionError as error:
            if tries_left == 0 or "the test tested nothing" not in str(error):
                raise
            guest.write_file(HOLD, "off")
            if tries_left % 2:
                settle(guest)
            else:
                guest.power_off()
    assert report["there"]["merged_ptes"] == (2 * pages if stable else 0)
    assert report["after"]["merged_ptes"] == merged * pages
    guest.run(["pksmwait", "--until", "stable_nodes==0"])
    assert baseline(settle(guest)) == before

# SPDX-License-Identifier: GPL-2.0-only
"""More than one CPU: that a PTE was write-protected has to reach whoever writes.

The engine may be PKSM or stock KSM. Without the patches to arch/um a process goes on
writing to a page that was merged meanwhile, for as long as it is let run: both engines
lose bytes then, within seconds. So does the rest of mm when it takes a page away.

At the moment "cleared" pksmd spins with a page table locked, on a CPU of its own, and
another CPU acts.
"""

from __future__ import annotations

import pytest
from lab import (
    GROUP,
    BootFresh,
    Report,
    baseline,
    group,
    has_file,
    pageops,
    parse_report,
    ram_swap,
    settle,
    vmstat,
    workload,
)
from linux_um.guest import Guest
from test_moments import ACTS, BOTH, NONE, PAGES

pytestmark = [pytest.mark.needs_smp, pytest.mark.regression("R19")]

KSM = "/sys/kernel/mm/ksm"
THP = "/sys/kernel/mm/transparent_hugepage"
PKSM = "/sys/kernel/mm/pksm"
SECONDS = 5


def at_full_speed(guest: Guest) -> None:
    """Let the engine, whichever it is, merge as fast as it can."""
    if has_file(guest, PKSM):
        settings = {f"{PKSM}/settle_millisecs": 0, f"{PKSM}/max_cpu": 100}
    else:
        settings = {f"{KSM}/pages_to_scan": 5000, f"{KSM}/sleep_millisecs": 0,
                    f"{KSM}/smart_scan": 0, f"{KSM}/run": 1}  # fmt: skip
    for path, value in settings.items():
        guest.write_file(path, str(value))


@pytest.mark.parametrize("cpus", [2, 4])
@pytest.mark.parametrize("procs", [2, 4])
@pytest.mark.parametrize("pages", [4, 8, 16])
def test_r19_writers_on_other_cpus_lose_nothing(
    boot_fresh: BootFresh, procs: int, pages: int, cpus: int
) -> None:
    """R19: processes that never stop writing to pages that are merged all the time."""
    guest = boot_fresh(cpus=cpus)
    assert int(guest.sh("nproc").stdout) == cpus
    at_full_speed(guest)
    report = workload(
        guest,
        ["hammer", "--procs", str(procs), "--pages", str(pages), "--seconds", str(SECONDS)],
    )
    assert report.raw["wrong"] == 0
    assert vmstat(guest, "cow_ksm") > 4, "little was merged: the test tested nothing"


def test_what_a_process_is_sent_lands_in_its_own_page(boot_fresh: BootFresh) -> None:
    """The same for what the kernel writes for a process: read(2) into pages that merge."""
    guest = boot_fresh()
    at_full_speed(guest)
    report = workload(guest, ["hammer", "--receive", "--pages", "8", "--seconds", str(SECONDS)])
    assert report.raw["wrong"] == 0
    assert vmstat(guest, "cow_ksm") > 4, "little was merged: the test tested nothing"


@pytest.mark.needs_pksm
@pytest.mark.needs_config("CONFIG_TRANSPARENT_HUGEPAGE")
def test_what_is_made_read_only_meanwhile_is_not_written_to_any_more(
    boot_fresh: BootFresh,
) -> None:
    """Also where PTEs of a large folio are read-only already, and a CPU does not know it yet.

    The engine flushes the TLB when it has dropped the lock under which it has
    write-protected them; who finds them so must not believe that this is done.
    """
    guest = boot_fresh(mem="512M")
    guest.write_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")
    guest.set_pksm("settle_millisecs", 5)
    report = pageops(
        guest, "--huge", "fill=unique", "range=0-1", "mprotect=ro", "mprotect=rw", "range=all",
        "stat=mapped", "hold=unflushed", "&@0:stale=60", "held", "sleep=1000", "hold=off", "join",
        "verify", procs=1, pages=512,
    )  # fmt: skip
    assert report["mapped"]["large"] == 512
    assert report.raw["wrong"] == 0


def work_apart(guest: Guest, cpu: int) -> None:
    """Let pksmd alone have a CPU, and the agent and what it starts the first one."""
    guest.sh(f"taskset -p {1 << cpu:x} $(pidof pksmd) && taskset -p 1 1")


@pytest.fixture
def apart(boot_fresh: BootFresh) -> Guest:
    """Return a guest with swap in which pksmd has a CPU, and merges what a test asks for."""
    guest = boot_fresh(cpus=3)
    ram_swap(guest, 16)
    guest.set_pksm("scope", "madvise")
    work_apart(guest, 2)
    settle(guest)
    return guest


def cleared(guest: Guest, who: int, acts: tuple[str, ...]) -> Report:
    """Let process *who* do *acts* while a PTE of its first page is cleared.

    It has a CPU of its own, where it is about the first of them, and cannot go on before
    the engine does. Under UML it does not even come to user space as long as its page table
    is locked: there it begins when the engine lets go. With --arch x86_64 it waits in the act.
    """
    first, *others = acts
    before, meanwhile = [f"&&@{who}:{first}"], []
    if first == "kill":
        before, meanwhile = [], [f"&@{who}:kill"]
    others = [act if "sleep" in act else f"@{who}:{act}" for act in others]
    last = [f"@{who}:unpin=old"] if "pin" in acts else []
    if "mprotect=ro" in acts:
        last.append(f"@{who}:mprotect=rw")
    return pageops(
        guest, f"@{who}:cpu=1", "madvise=mergeable", "@0:fill=dup", "settle", "set=run:0",
        "@1:fill=dup", *before, f"hold=cleared:#{who}", "set=run:1", "held", *meanwhile,
        f"@{who}:blocked", "hold=off", "join", *others, "settle", "stat=after", "verify", *last,
        "settle", "write=100", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip


@pytest.mark.needs_pksm
@pytest.mark.regression("R20")
@pytest.mark.regression("R21")
@pytest.mark.regression("R22")
@pytest.mark.regression("R52")
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_r20_whatever_a_process_does_while_its_pte_is_cleared(
    apart: Guest, who: int, first: int
) -> None:
    """R20 to R22, R52: it comes to the page table when the engine has done with it."""
    before = baseline(settle(apart))
    every: dict[str, tuple[tuple[str, ...], int | None]] = {**ACTS, "killed": (("kill",), NONE)}
    for name in list(every)[first::3]:
        acts, merged = every[name]
        report = cleared(apart, who, acts)
        assert report.raw["wrong"] == 0, name
        if merged == BOTH:
            assert report["after"]["merged_ptes"] == merged, name
        elif merged is not None:
            assert report["after"].sharing == 0, name
    apart.run(["pksmwait", "--until", "stable_nodes==0"])
    assert baseline(settle(apart)) == before


@pytest.mark.needs_pksm
@pytest.mark.regression("R20")
@pytest.mark.regression("R21")
def test_r20_a_reference_that_is_taken_while_a_pte_is_cleared_counts(apart: Guest) -> None:
    """R20: a child takes it by a PTE of its own; so nothing of the page may be merged."""
    before = baseline(settle(apart))
    report = pageops(
        apart, "madvise=mergeable", "@0:fill=dup", "settle", "set=run:0", "@1:fill=dup",
        "@1:pin=held", "hold=cleared:#1", "set=run:1", "held", "sleep=400", "hold=off", "settle=2000", "stat=held", "verify",
        "@1:unpin=old", "settle", "stat=free", "poke=1", "verify",
        procs=2, pages=1,
    )  # fmt: skip
    assert report["held"]["merged_ptes"] == 0
    assert report["free"]["merged_ptes"] == 2
    apart.run(["pksmwait", "--until", "stable_nodes==0"])
    assert baseline(settle(apart)) == before


@pytest.mark.needs_pksm
@pytest.mark.parametrize("who", [0, 1])
def test_r19_nobody_writes_to_a_page_whose_pte_is_cleared(boot_fresh: BootFresh, who: int) -> None:
    """R19: the CPU of a process that writes all the time has been told, and waits.

    One CPU is pksmd's, one the writer's, who spins when he has to wait, and one looks. Under
    UML a CPU learns what it was not told with its next tick: so it is done more than once.
    """
    guest = boot_fresh(cpus=4)
    guest.set_pksm("scope", "madvise")
    work_apart(guest, 3)
    turns = [
        step for number in range(3) for step in (
            f"@0:fill=dup:{number}", "settle", "set=run:0", f"@1:fill=dup:{number}",
            f"&@{who}:beat", f"@{who}:beating", f"hold=cleared:#{who}", "set=run:1", "held",
            f"@{who}:kept", "hold=off", "join", "settle",
        )
    ]  # fmt: skip
    report = pageops(
        guest, f"@{who}:cpu=1", "madvise=mergeable", *turns, "stat=after", "verify",
        procs=2, pages=1,
    )  # fmt: skip
    assert report.raw["wrong"] == 0
    assert report["after"]["merged_ptes"] == 2


# Until the hammer has ended: reclaim takes a part of what it has, or compaction moves it.
DISTURBANCE = """
(echo 0 > {group}/cgroup.procs; exec hammer --procs {procs} --pages {pages} --seconds {seconds}) &
pid=$!
while kill -0 $pid 2>/dev/null; do
	{what}
done
wait $pid
"""
RECLAIM = f"echo 1M > {GROUP}/memory.reclaim 2>/dev/null"
# What compaction has moved to one end lies anywhere when it comes back from swap.
COMPACT = f"{RECLAIM}; echo 1 > /proc/sys/vm/compact_memory"


@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("cpus", [2, 4])
@pytest.mark.parametrize(
    ("what", "counter", "least"),
    [(RECLAIM, "pswpout", 20), (COMPACT, "pgmigrate_success", 5)],
    ids=["reclaim", "compaction"],
)
def test_r19_writers_whose_pages_are_taken_from_them_lose_nothing(
    boot_fresh: BootFresh, what: str, counter: str, least: int, cpus: int, run: int
) -> None:
    """R19: to be swapped out, or moved elsewhere; with an engine that merges them, or without."""
    guest = boot_fresh(cpus=cpus)
    ram_swap(guest)
    group(guest)
    at_full_speed(guest)
    guest.write_file(f"{PKSM if has_file(guest, PKSM) else KSM}/run", str(run))
    before = vmstat(guest, counter)
    # Each has a CPU to itself, and so has what is done to it.
    script = DISTURBANCE.format(group=GROUP, procs=cpus // 2, pages=64, seconds=4, what=what)
    report = parse_report(guest.sh(script).stdout)
    guest.write_file(f"{PKSM if has_file(guest, PKSM) else KSM}/run", "1")
    assert report.raw["wrong"] == 0
    taken = vmstat(guest, counter) - before
    assert taken >= least, "hardly a page was taken: the test tested nothing"


@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("cpus", [2, 4])
def test_r19_processes_that_page_each_other_out_do_not_wait_for_each_other(
    boot_fresh: BootFresh, cpus: int, run: int
) -> None:
    """R19: two CPUs, each of which has to tell the other at the same time."""
    guest = boot_fresh(cpus=cpus)
    ram_swap(guest)
    at_full_speed(guest)
    guest.write_file(f"{PKSM if has_file(guest, PKSM) else KSM}/run", str(run))
    before = vmstat(guest, "pswpout")
    argv = ["hammer", "--procs", str(cpus), "--pages", "64", "--evict", "--seconds", str(SECONDS)]
    report = workload(guest, argv, timeout=60)
    guest.write_file(f"{PKSM if has_file(guest, PKSM) else KSM}/run", "1")
    assert report.raw["wrong"] == 0
    assert report.raw["evictions"] > 20
    assert vmstat(guest, "pswpout") - before > 20, "little was paged out: the test tested nothing"


@pytest.mark.needs_config("CONFIG_TRANSPARENT_HUGEPAGE")
@pytest.mark.parametrize("cpus", [2, 4])
def test_r19_writers_to_huge_pages_that_come_and_go_lose_nothing(
    boot_fresh: BootFresh, cpus: int
) -> None:
    """R19: they are split, and put together again, by their owners, khugepaged and pksmd."""
    guest = boot_fresh(mem="512M", cpus=cpus)
    for name, value in (
        ("enabled", "madvise"), ("khugepaged/pages_to_scan", 4096),
        ("khugepaged/scan_sleep_millisecs", 10), ("khugepaged/alloc_sleep_millisecs", 10),
    ):  # fmt: skip
        guest.write_file(f"{THP}/{name}", str(value))
    at_full_speed(guest)
    report = workload(
        guest, ["hammer", "--procs", "4", "--pages", "512", "--huge", "--seconds", str(SECONDS)]
    )
    assert report.raw["wrong"] == 0
    assert report.raw["collapses"] > 10 and report.raw["splits"] > 10
    assert vmstat(guest, "cow_ksm") > 4, "little was merged: the test tested nothing"


@pytest.mark.parametrize("processes", [2, 4])
def test_what_the_kernel_does_to_a_futex_is_done_at_once(
    boot_fresh: BootFresh, processes: int
) -> None:
    """Other CPUs are in userspace meanwhile, and change the same word."""
    guest = boot_fresh(cpus=processes)
    report = workload(guest, ["hostmap", "--processes", str(processes)])
    assert (report.raw["lost"], report.raw["unguarded"]) == (0, 0)

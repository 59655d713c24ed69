# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel says of merging outside of the engine's own files, each number exact.

/proc/meminfo, /proc/vmstat, /proc/kpageflags, /proc/PID/ksm_stat and smaps are
compared with the page map, and with one another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from lab import (
    GROUP,
    LOOKS,
    PAGES_PER_MIB,
    BootFresh,
    at_rest,
    group,
    hold_memdup,
    kin,
    memdup,
    meminfo,
    pageops,
    pagestat,
    pagestat_and_counters,
    ram_swap,
    release,
    settle,
    vmstat,
    workload,
)
from linux_um.guest import Guest
from linux_um.process import Process

pytestmark = pytest.mark.needs_pksm

SHARER_BYTES = 32
EVENTS = ("scanned", "merged", "broken")


def ksm_stat(guest: Guest, pid: int) -> dict[str, int]:
    """Return the numbers in /proc/PID/ksm_stat; 7.3 has lines that say yes or no besides."""
    found = {}
    for line in guest.read_file(f"/proc/{pid}/ksm_stat").splitlines():
        name, value = line.split()
        if not name.endswith(":"):
            found[name] = int(value)
        else:
            assert value in ("yes", "no"), line
    return found


def said_of(guest: Guest, pid: int) -> tuple[dict[str, int], int, dict[str, int]]:
    """Return what page map, ksm_merging_pages and ksm_stat say of a process at one moment.

    Where time does not wait, the engine may work on between two orders: ksm_stat is to say
    the same of its merges before and after.
    """
    merges = ("ksm_merging_pages", "ksm_zero_pages")
    before = ksm_stat(guest, pid)
    for _ in range(LOOKS):
        seen = pagestat(guest, "--pid", str(pid))
        merging = int(guest.read_file(f"/proc/{pid}/ksm_merging_pages"))
        after = ksm_stat(guest, pid)
        if all(before[name] == after[name] for name in merges):
            return seen, merging, after
        before = after
    raise AssertionError(f"what process {pid} has merged changed during each look")


def processes(guest: Guest) -> list[int]:
    """Return the numbers of all processes that have an address space."""
    pids = (int(word) for word in guest.sh("ls /proc").stdout.split() if word.isdigit())
    return [pid for pid in pids if guest.sh(f"cat /proc/{pid}/cmdline", check=False).stdout]


@pytest.fixture
def held(guest: Guest) -> Iterator[Process]:
    """Hold three processes with merged, zero and unique pages in memory."""
    job = hold_memdup(
        guest, "--procs", "3", "--mib", "2", "--dup", "50", "--zero", "25", "--unique", "25",
        "--rewrite", "0",
    )  # fmt: skip
    settle(guest)
    yield job
    if job.poll() is None:
        release(job)


def check_sharing(guest: Guest) -> None:
    """meminfo, both sysfs files and the page map agree on what is saved."""
    seen, now = pagestat_and_counters(guest)
    assert seen["merged_ptes"] - seen["merged_pages"] == now["pages_sharing"]
    (saved, ksm), now = at_rest(
        guest,
        lambda: (
            meminfo(guest, "KsmSharingPages"),
            int(guest.read_file("/sys/kernel/mm/ksm/pages_sharing")),
        ),
    )
    assert saved == 4 * now["pages_sharing"]
    assert ksm == now["pages_sharing"]


# === /proc/meminfo ===


def test_meminfo_says_what_is_saved(guest: Guest, held: Process) -> None:
    check_sharing(guest)
    assert meminfo(guest, "KsmSharingPages") >= 4 * 2 * PAGES_PER_MIB
    release(held)
    settle(guest)
    check_sharing(guest)


def test_meminfo_keeps_its_form(guest: Guest, held: Process) -> None:
    """As every other line: a name, a colon, a number and kB."""
    lines = guest.read_file("/proc/meminfo").splitlines()
    (line,) = [line for line in lines if line.startswith("KsmSharingPages")]
    words = line.split()
    assert words[0] == "KsmSharingPages:" and words[1].isdigit() and words[2:] == ["kB"]


def test_stock_ksm_has_no_such_line(boot_fresh: BootFresh) -> None:
    """With the other choice of CONFIG_KSM the kernel is what it was."""
    stock = boot_fresh(profile="ksm")
    assert "KsmSharingPages" not in stock.read_file("/proc/meminfo")
    assert "pksm_" not in stock.read_file("/proc/vmstat")
    assert set(ksm_stat(stock, 1)) == {
        "ksm_rmap_items", "ksm_zero_pages", "ksm_merging_pages", "ksm_process_profit",
    }  # fmt: skip


@pytest.mark.regression("R52")
@pytest.mark.parametrize(
    "steps",
    [
        ("fork=write", "fork", "@0:poke=5", "fork", "exit"),
        ("@0:poke=7", "@1:madvise=dontneed"),
        ("@0:unmap", "@1:mremap"),
        ("file=/proc/sys/vm/compact_memory:1", "@0:poke=1"),
        ("@0:madvise=unmergeable", "@1:mprotect=none"),
        ("@0:madvise=free", "@0:touch=write"),
    ],
    ids=lambda steps: "-".join(step.split(":")[-1].split("=")[0] for step in steps),
)
def test_r52_mappings_that_come_and_go_are_counted(
    guest: Guest, held: Process, steps: tuple[str, ...]
) -> None:
    """R52: fork, exit, copies, unmapping and migration; the sum never drifts.

    Others hold merged pages: a sum that is too small cannot hide below zero.
    """
    before = settle(guest)
    pageops(guest, "fill=dup", "settle", *steps, procs=3, pages=200)
    after = settle(guest)
    check_sharing(guest)
    assert after["pages_sharing"] == before["pages_sharing"]


@pytest.mark.regression("R52")
def test_r52_forks_and_exits_while_pages_become_merged_are_counted(
    guest: Guest, held: Process
) -> None:
    """R52: the moment in which a page becomes a merged one, seen from all sides."""
    guest.set_pksm("settle_millisecs", 0)
    for seed in range(3):
        workload(guest, ["forkdup", "--depth", "3", "--fanout", "2", "--seed", str(seed)])
    workload(guest, ["churn", "--procs", "4", "--rounds", "150", "--pause-ms", "5"])
    settle(guest)
    check_sharing(guest)


def test_swapped_out_and_in_again_they_are_counted(boot_fresh: BootFresh) -> None:
    """Also those merged pages that only the swap cache has for a while."""
    guest = boot_fresh(swap="128M")
    pageops(
        guest, "fill=dup", "settle", "madvise=pageout", "stat=out", "verify", "settle",
        "madvise=pageout", "@0:unmap", "@1:verify", "settle", "verify",
        procs=3, pages=256,
    )  # fmt: skip
    settle(guest)
    check_sharing(guest)


def test_reading_it_does_not_wait_for_the_engine(guest: Guest, held: Process) -> None:
    """A counter that many read often takes no lock: a thousand reads, no time."""
    done = guest.sh(
        "for i in $(seq 200); do cat /proc/meminfo /sys/kernel/mm/pksm/pages_sharing "
        "/sys/kernel/mm/pksm/general_profit; done | grep -c KsmSharingPages"
    )
    assert int(done.stdout) == 200


# === /proc/vmstat ===


def check_events(guest: Guest) -> None:
    """Compare the two places, both read by one process while nothing happens.

    Time leaps between two orders, and on another CPU the engine works on between two reads:
    its own files are read before the other place, and after it.
    """
    for _ in range(LOOKS):
        done = guest.sh("cd /sys/kernel/mm/pksm && exec grep -H . pages_* /proc/vmstat pages_*")
        seen: dict[str, list[int]] = {}
        for line in done.stdout.splitlines():
            file, _, text = line.partition(":")
            name, _, number = text.rpartition(" ")
            seen.setdefault(name or file, []).append(int(number))
        ours = {event: seen[f"pages_{event}"] for event in EVENTS}
        if all(first == last for first, last in ours.values()):
            break
    else:
        raise AssertionError(f"the engine never stands still: {ours}")
    for event, (_, last) in ours.items():
        assert seen[f"pksm_{event}"] == [last], event


def test_the_engines_events_are_in_vmstat(guest: Guest) -> None:
    settle(guest)
    check_events(guest)
    before = {event: vmstat(guest, f"pksm_{event}") for event in EVENTS}
    pageops(
        guest, "set=run:0", "fill=dup", "set=run:1", "settle", "@0:poke=5", "verify", procs=3,
        pages=128,
    )  # fmt: skip
    settle(guest)
    check_events(guest)
    grown = {event: vmstat(guest, f"pksm_{event}") - before[event] for event in EVENTS}
    assert grown["merged"] >= 2 * 128
    assert grown["broken"] >= 128
    assert grown["scanned"] >= 3 * 128


def test_copies_of_merged_pages_are_counted_exactly(guest: Guest) -> None:
    """cow_ksm is one for each page that was written to, no more."""
    report = pageops(
        guest, "fill=dup", "settle", "stat=merged", "@1:poke=5", "stat=broken", "verify",
        procs=3, pages=128,
    )  # fmt: skip
    broken = report["broken"].counters["pages_broken"] - report["merged"].counters["pages_broken"]
    # The 128 pages, and those of the stacks and heaps that the processes have in common.
    assert 128 <= broken <= 128 + 24
    settle(guest)
    first, counted = vmstat(guest, "cow_ksm"), guest.pksm("pages_broken")
    pageops(guest, "fill=dup", "settle", "@0:poke=5", "@2:poke=6", "verify", procs=3, pages=64)
    settle(guest)
    assert vmstat(guest, "cow_ksm") - first == guest.pksm("pages_broken") - counted >= 2 * 64


def test_copies_that_swap_in_makes_are_counted_as_under_ksm(boot_fresh: BootFresh) -> None:
    """ksm_swpin_copy: the first process gets the page back, each other one a copy."""
    grown = []
    for profile in ("fast", "ksm"):
        guest = boot_fresh(profile=profile)
        ram_swap(guest, 32)
        group(guest)
        if profile == "ksm":
            for name, value in (("pages_to_scan", 20000), ("smart_scan", 0), ("run", 1)):
                guest.write_file(f"/sys/kernel/mm/ksm/{name}", str(value))
        before = vmstat(guest, "ksm_swpin_copy")
        kin(
            guest, "a:new", "b:new", "c:new", "advise=mergeable", "fill=dup", "settle",
            f"evict={GROUP}", "set=run:0", "verify", pages=256,
        )  # fmt: skip
        grown.append(vmstat(guest, "ksm_swpin_copy") - before)
        guest.write_file("/sys/kernel/mm/ksm/run", "1")
    pksm, stock = grown
    assert stock > 0
    assert abs(pksm - stock) <= 2 * 256 // 10, grown


# === /proc/kpageflags and smaps ===


def test_page_flags_and_smaps_agree_on_every_process(guest: Guest, held: Process) -> None:
    """KPF_KSM and the lines "KSM:" are two ways to ask, for merged pages and for no others."""
    seen = pagestat(guest)
    assert seen["merged_ptes"] == seen["smaps_ptes"] >= 3 * PAGES_PER_MIB
    assert seen["anon"] >= 3 * 2 * PAGES_PER_MIB // 4
    for pid in processes(guest):
        one, _, _ = said_of(guest, pid)
        assert one["merged_ptes"] == one["smaps_ptes"], pid


def test_unique_pages_are_no_ksm_pages(guest: Guest) -> None:
    report = memdup(guest, "--procs", "1", "--mib", "2", "--unique", "100", "--rewrite", "0")
    assert report["settled"].map["anon"] == 2 * PAGES_PER_MIB
    assert report["settled"].map["merged_ptes"] == 0


def test_kpageflags_of_stock_ksm_tell_ksm_pages_too(boot_fresh: BootFresh) -> None:
    """The mend is not PKSM's: stock KSM's pages, and only those, have the flag."""
    stock = boot_fresh(profile="ksm")
    for name, value in (("pages_to_scan", 20000), ("smart_scan", 0), ("run", 1)):
        stock.write_file(f"/sys/kernel/mm/ksm/{name}", str(value))
    report = memdup(stock, "--madvise", "--procs", "2", "--mib", "2", "--dup", "50", "--unique", "50",
                    "--rewrite", "0")  # fmt: skip
    assert report["settled"].map["merged_ptes"] == 2 * PAGES_PER_MIB
    assert report["settled"].map["anon"] == 2 * PAGES_PER_MIB
    seen = json.loads(stock.run(["pagestat", "--all"]).stdout)
    assert seen["merged_ptes"] == seen["smaps_ptes"]


# === /proc/PID/ksm_stat ===


def test_every_line_of_ksm_stat_is_exact(guest: Guest, held: Process) -> None:
    pids = [int(word) for word in guest.sh("pidof memdup").stdout.split()]
    assert len(pids) == 4
    for pid in pids:
        seen, merging, stat = said_of(guest, pid)
        assert stat["ksm_merging_pages"] == seen["merged_ptes"]
        assert merging == seen["merged_ptes"]
        # All has settled: every anonymous page has a record, merged or not.
        assert stat["ksm_rmap_items"] == seen["merged_ptes"] + seen["anon"]
        assert stat["ksm_zero_pages"] <= seen["zero"]
        assert stat["ksm_process_profit"] == (
            4096 * (stat["ksm_merging_pages"] + stat["ksm_zero_pages"])
            - SHARER_BYTES * stat["ksm_merging_pages"]
        )


def test_the_processes_add_up_to_the_whole(guest: Guest, held: Process) -> None:
    """Zero pages and merged PTEs: the sum over all processes is what the engine counts."""
    pids = processes(guest)
    settle(guest)
    stats, now = at_rest(guest, lambda: [ksm_stat(guest, pid) for pid in pids])
    assert sum(stat["ksm_zero_pages"] for stat in stats) == now["zero_pages"] > 0
    merging = sum(stat["ksm_merging_pages"] for stat in stats)
    assert merging == now["pages_shared"] + now["pages_sharing"]

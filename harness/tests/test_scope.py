# SPDX-License-Identifier: GPL-2.0-only
"""What is merged without being asked for, and who may keep out of it."""

from __future__ import annotations

import time

import pytest
from lab import BootFresh, counters, hold_memdup, memdup, pageops, release, settle, tracked
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

MIB = 2
PAGES = MIB * 256
ALIKE = ("--procs", "3", "--mib", str(MIB), "--dup", "100", "--unique", "0", "--rewrite", "0")


def flags(guest: Guest, pid: int, name: str) -> str:
    """Return the VmFlags of the VMA of process *pid* that smaps calls *name*."""
    inside = False
    for line in guest.read_file(f"/proc/{pid}/smaps").splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(name)
        elif inside and line.startswith("VmFlags:"):
            return line
    raise AssertionError(f"process {pid} has no {name}")


def test_everything_that_can_be_merged_has_the_mark(guest: Guest) -> None:
    """The heap and the stack as well as what mmap() made; not what is shared."""
    job = guest.start(["sh", "-c", "echo $$; read x"])
    guest.wait_for(lambda: "\n" in job.stdout, time.monotonic() + 60, "sh does not start")
    pid = int(job.stdout)
    for name in ("[heap]", "[stack]"):
        assert " mg" in flags(guest, pid, name), name
    assert " mg" not in flags(guest, pid, "[vdso]")
    job.close_stdin()
    job.wait(60)


def test_the_heap_stays_one_area(guest: Guest) -> None:
    """The mark is there before an area is made: growing makes no new areas."""
    text = guest.sh("for i in $(seq 2000); do a=$a$i-$i-$i-$i; done; grep -c heap /proc/self/maps")
    assert text.stdout.strip() in ("1", "0")
    report = guest.sh("x=$(seq 200000); grep -c '\\[heap\\]' /proc/$$/maps")
    assert report.stdout.strip() == "1"


def test_asked_only_means_that_nothing_else_merges(guest: Guest) -> None:
    guest.set_pksm("scope", "madvise")
    guest.set_pksm("rescan_seconds", 2)
    report = pageops(
        guest, "fill=dup", "settle", "sleep=10000", "stat=unasked", "@0:madvise=mergeable",
        "@1:madvise=mergeable", "settle", "stat=asked", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["unasked"]["merged_ptes"] == 0
    assert report["asked"]["merged_ptes"] == 2 * 64
    assert report["asked"].sharing == 64


def test_narrowing_unmerges_what_nobody_asked_for(guest: Guest) -> None:
    job = hold_memdup(guest, *ALIKE)
    assert settle(guest)["pages_sharing"] >= 2 * PAGES
    guest.set_pksm("scope", "madvise")
    now = settle(guest)
    assert now["pages_sharing"] == 0
    assert now["zero_pages"] == 0
    assert "mg" not in guest.sh("cat /proc/[0-9]*/smaps | grep VmFlags | grep -w mg || true").stdout
    assert now["pages_new"] == 0
    guest.set_pksm("scope", "all")
    assert settle(guest)["pages_sharing"] >= 2 * PAGES
    release(job)


def test_narrowing_leaves_who_asked_by_prctl(guest: Guest) -> None:
    report = pageops(
        guest, "@0:merge=1", "@1:merge=1", "fill=dup", "settle", "stat=all",
        "set=scope:madvise", "settle", "stat=asked", "verify", "set=scope:all", "settle",
        "stat=again", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["all"]["merged_ptes"] == 3 * 64
    assert report["asked"]["merged_ptes"] == 2 * 64
    assert report["again"]["merged_ptes"] == 3 * 64


def test_narrowing_leaves_who_asked_by_madvise(guest: Guest) -> None:
    """Also of a range that had been asked for while everybody had what it asked for."""
    report = pageops(
        guest, "range=0-32", "@0:madvise=mergeable", "@1:madvise=mergeable", "range=all",
        "fill=dup", "settle", "stat=all", "set=scope:madvise", "settle", "stat=asked", "verify",
        "@0:fork=write", "set=scope:all", "settle", "stat=again", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["all"]["merged_ptes"] == 3 * 64
    assert report["asked"]["merged_ptes"] == 2 * 32
    assert report["again"]["merged_ptes"] == 3 * 64


@pytest.mark.parametrize("scope", ["all", "madvise"])
def test_widening_leaves_out_what_was_forbidden_by_madvise(guest: Guest, scope: str) -> None:
    """Whichever *scope* it was forbidden in; until prctl() speaks for the whole process."""
    guest.set_pksm("scope", scope)
    report = pageops(
        guest, "range=16-48", "@0:madvise=unmergeable", "range=all", "fill=dup", "settle",
        "set=scope:madvise", "set=scope:all", "settle", "sleep=10000", "stat=out", "verify",
        "@0:merge=1", "settle", "stat=in", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["out"]["merged_ptes"] == 3 * 64 - 32
    assert report["in"]["merged_ptes"] == 3 * 64


@pytest.mark.time_travel
def test_what_madvise_has_said_is_shown(guest: Guest) -> None:
    """In smaps: "ma", for and against. prctl() takes it back, either way."""
    report = guest.sh(
        "pageops --procs 1 --pages 8 range=0-2 madvise=mergeable range=4-6 madvise=unmergeable "
        "fill=dup sleep=100000 merge=0 sleep=100000 merge=1 sleep=100000 >/dev/null & "
        "for t in 1 2 3; do sleep 60; "
        "cat $(ls -d /proc/[0-9]*/exe | while read l; do case $(readlink $l) in *pageops*|*all-in-one*) "
        "echo ${l%exe}smaps;; esac; done) | grep VmFlags | grep -cw ma; sleep 40; done"
    )  # fmt: skip
    assert report.stdout.split() == ["2", "0", "0"]


def test_who_opts_out_again_means_what_was_asked_for_since(guest: Guest) -> None:
    report = pageops(
        guest, "@0:merge=0", "@0:madvise=mergeable", "fill=dup", "settle", "stat=asked",
        "@0:merge=0", "stat=out", "verify", procs=3, pages=64,
    )  # fmt: skip
    assert report["asked"]["merged_ptes"] == 3 * 64
    assert report["out"]["merged_ptes"] == 2 * 64


def test_prctl_takes_in_what_is_there(guest: Guest) -> None:
    guest.set_pksm("scope", "madvise")
    report = pageops(
        guest, "fill=dup", "settle", "merge=1", "settle", "stat=asked", "verify", "@0:merge=0",
        "stat=left", "verify", "unmap", "map", "fill=dup", "settle", "stat=born", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["asked"].sharing == 2 * 64
    assert report["left"]["merged_ptes"] == 2 * 64
    # What is mapped later has the mark too, but for process 0.
    assert report["born"]["merged_ptes"] == 2 * 64


def test_a_process_can_keep_out(guest: Guest) -> None:
    """And keeps out: what it maps later is not merged either, until it asks for it."""
    guest.set_pksm("rescan_seconds", 2)
    report = pageops(
        guest, "fill=dup", "settle", "@0:merge=0", "stat=out", "verify", "@0:unmap", "@0:map",
        "@0:fill=dup", "settle", "sleep=10000", "stat=later", "@0:merge=1", "settle",
        "stat=back", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["out"]["merged_ptes"] == 2 * 64
    assert report["later"]["merged_ptes"] == 2 * 64
    assert report["back"]["merged_ptes"] == 3 * 64


def test_keeping_out_goes_on_to_children_and_programs(guest: Guest) -> None:
    """memdup is executed, and forks the processes that hold the pages."""
    out = guest.run(["mergectl", "0", "memdup", *ALIKE])
    assert '"merged_ptes": 0' in out.stdout and f'"merged_ptes": {3 * PAGES}' not in out.stdout
    assert memdup(guest, *ALIKE)["settled"].map["merged_ptes"] == 3 * PAGES


def test_asking_goes_on_to_children_and_programs(guest: Guest) -> None:
    """As systemd's MemoryKSM= relies on."""
    guest.set_pksm("scope", "madvise")
    assert memdup(guest, *ALIKE)["settled"].map["merged_ptes"] == 0
    asked = guest.run(["mergectl", "1", "memdup", *ALIKE])
    assert f'"merged_ptes": {3 * PAGES}' in asked.stdout


def test_who_keeps_out_is_not_even_tracked(guest: Guest) -> None:
    before = tracked(settle(guest))
    job = guest.start(["mergectl", "0", "memdup", *ALIKE, "--hold", "--no-wait"])
    guest.wait_for(
        lambda: "holding" in job.stderr, time.monotonic() + 240, "memdup does not hold its memory"
    )
    assert tracked(counters(guest)) - before < PAGES // 2
    release(job)


def test_unmergeable_lasts(guest: Guest) -> None:
    """Pages that come later in the range are not merged, nor those of children."""
    guest.set_pksm("rescan_seconds", 2)
    report = pageops(
        guest, "@0:madvise=unmergeable", "fill=dup", "settle", "sleep=10000", "stat=out",
        "@0:fork=write", "@0:madvise=mergeable", "settle", "stat=in", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["out"]["merged_ptes"] == 2 * 64
    assert report["in"]["merged_ptes"] == 3 * 64


def test_a_part_of_a_range_can_keep_out(guest: Guest) -> None:
    report = pageops(
        guest, "fill=dup", "settle", "@0:range=16-48", "@0:madvise=unmergeable", "@0:range=all",
        "stat=part", "verify", "@0:fill=dup", "settle", "stat=filled", "verify",
        procs=2, pages=64,
    )  # fmt: skip
    # Their partners stay merged pages of one mapping each.
    assert report["part"]["merged_ptes"] == 2 * 64 - 32
    assert report["filled"]["merged_ptes"] <= 2 * 64 - 32


def test_widening_before_the_engine_runs_is_not_forgotten(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(append=["pksm=off"])
    guest.set_pksm("scope", "madvise")
    job = hold_memdup(guest, *ALIKE, "--no-wait")
    guest.set_pksm("scope", "all")
    guest.set_pksm("run", 1)
    assert settle(guest)["pages_sharing"] >= 2 * PAGES
    release(job)


@pytest.mark.parametrize("text", ["\n", "ALL", "0", "madvise all", "x" * 5000])
def test_no_other_scope_is_taken(guest: Guest, text: str) -> None:
    with pytest.raises(OSError):
        guest.set_pksm("scope", text)
    assert guest.read_file("/sys/kernel/mm/pksm/scope").strip() == "all"

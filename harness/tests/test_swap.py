# SPDX-License-Identifier: GPL-2.0-only
"""Merged pages are swapped out and in like any other, and come back right."""

from __future__ import annotations

import pytest
from lab import (
    GROUP,
    RECLAIM,
    BootFresh,
    baseline,
    check_laws,
    group,
    hold_memdup,
    in_group,
    machine_of,
    memdup,
    pageops,
    release,
    settle,
    swap_device,
    vmstat,
    workload,
)
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

TRIES = 3
# A kernel with KCSAN takes more memory for itself than the guest "small" has.
fits = pytest.mark.needs_config("!CONFIG_KCSAN")


@pytest.fixture
def small(boot_fresh: BootFresh) -> Guest:
    """Return a guest of 48 MiB with more swap than that, for tests that are marked "fits"."""
    return boot_fresh(mem="48M", swap="128M")


@fits
def test_data_larger_than_memory_survives(small: Guest) -> None:
    """3 x 14 MiB, mostly unique."""
    before = settle(small)
    memdup(
        small, "--procs", "3", "--mib", "14", "--dup", "20", "--zero", "5", "--unique", "75",
        "--rewriters", "all", "--rewrite", "5",
        "--settle-timeout", "200",
    )  # fmt: skip
    assert vmstat(small, "pswpout") > 0, "nothing was swapped: the test tested nothing"
    assert vmstat(small, "pswpin") > 0
    after = settle(small)
    for name in ("pages_sharing", "rmap_items"):
        assert after[name] == before[name], name


def test_duplicates_larger_than_memory_fit_once_they_are_merged(
    pytestconfig: pytest.Config, boot_fresh: BootFresh
) -> None:
    """4 x 12 MiB of the same data in a guest with less to spare: one copy is enough."""
    # Twice what the kernel takes for itself: a machine that takes more is slower as well, and
    # swaps out what it has not merged yet.
    mem = f"{56 + 2 * machine_of(pytestconfig).kernel_mib}M"
    merged: list[int] = []
    # What was swapped out before it could be merged is not there to be merged, and how
    # much that is depends on how fast the host is just then.
    while len(merged) < TRIES and max(merged, default=0) <= 12 * 256:
        guest = boot_fresh(mem=mem, swap="128M")
        report = memdup(
            guest, "--procs", "4", "--mib", "12", "--dup", "100", "--rewriters", "all",
            "--rewrite", "5", "--settle-timeout", "200",
        )  # fmt: skip
        seen = report["settled"].map
        assert seen["present"] + seen["swapped"] == 4 * 12 * 256
        merged.append(report["settled"].sharing)
    assert max(merged) > 12 * 256


@pytest.mark.regression("R24")
def test_merged_pages_are_swapped_out_under_pressure(boot_fresh: BootFresh) -> None:
    """R24: rmap finds every PTE of a merged page, so that reclaim can unmap it."""
    guest = boot_fresh(swap="256M")
    group(guest)
    before = settle(guest)
    report = in_group(
        guest, "pageops", "--procs", "4", "--pages", "1024", "set=run:0", "fill=dup", "set=run:1",
        "settle", "stat=merged", *RECLAIM, "stat=out", "verify", "stat=in", "poke=123", "verify",
        "settle", "verify",
    )  # fmt: skip
    assert report["merged"].sharing == 3 * 1024
    out = report["out"]
    assert out["swapped"] > 1024, "reclaim left the merged pages alone"
    assert out["swapped"] + out["present"] == 4 * 1024
    assert report["in"]["swapped"] == 0
    after = settle(guest)
    for name in ("pages_sharing", "rmap_items"):
        assert after[name] == before[name], name


def test_merged_pages_swapped_out_can_be_forked_and_freed(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(swap="256M")
    group(guest)
    report = in_group(
        guest, "pageops", "--procs", "3", "--pages", "512", "fill=dup", "settle",
        *RECLAIM, "stat=out", "@0:fork=write", "@1:madvise=dontneed",
        "verify", "@2:exit", "verify",
    )  # fmt: skip
    assert report["out"]["swapped"] > 0


def test_unmerging_brings_back_what_is_swapped_out(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(swap="256M")
    group(guest)
    report = in_group(
        guest, "pageops", "--procs", "3", "--pages", "512", "fill=dup", "settle",
        *RECLAIM, "stat=out", "set=run:2", "verify", "stat=unmerged",
        "set=run:1",
    )  # fmt: skip
    assert report["out"]["swapped"] > 0
    assert report["unmerged"]["merged_ptes"] == 0


@pytest.mark.regression("R49")
def test_r49_single_pages_paged_out_by_advice_come_back_and_merge(boot_fresh: BootFresh) -> None:
    """R49: a page that was swapped in is a page like any other."""
    guest = boot_fresh(swap="128M")
    report = pageops(
        guest, "set=run:0", "fill=dup", "madvise=pageout", "stat=out", "set=run:1", "verify",
        "settle", "stat=in", "verify",
        procs=3, pages=256,
    )  # fmt: skip
    assert report["out"]["swapped"] == 3 * 256
    assert report["in"]["swapped"] == 0


@fits
def test_churn_under_pressure_keeps_every_byte(small: Guest) -> None:
    workload(small, ["churn", "--procs", "3", "--mib", "14", "--rounds", "25"])
    assert vmstat(small, "pswpout") > 0


def test_the_laws_hold_while_merged_pages_are_swapped_out(boot_fresh: BootFresh) -> None:
    """And when some of them have come back."""
    guest = boot_fresh(swap="64M")
    group(guest)
    job = hold_memdup(guest, "--procs", "3", "--mib", "1", "--dup", "100", group=GROUP)
    guest.sh(
        f"for i in 1 2 3; do echo 16M > {GROUP}/memory.reclaim; sleep 2.5; done 2>/dev/null",
        check=False,
    )
    assert vmstat(guest, "pswpout") > 0
    check_laws(guest)
    release(job)


def test_swapping_off_brings_everything_back(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(swap="128M")
    group(guest)
    before = baseline(settle(guest))
    job = hold_memdup(guest, "--procs", "3", "--mib", "4", "--dup", "100", group=GROUP)
    guest.sh(
        f"for i in 1 2 3; do echo 16M > {GROUP}/memory.reclaim; sleep 2.5; done 2>/dev/null",
        check=False,
    )
    assert vmstat(guest, "pswpout") > 0
    guest.run(["swapoff", swap_device(guest)])
    release(job)
    assert baseline(settle(guest)) == before

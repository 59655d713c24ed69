# SPDX-License-Identifier: GPL-2.0-only
"""The control: the same workloads under stock KSM, in the profile of that name.

Were one of these to fail, the workload or the machine would be wrong, not PKSM.
"""

from __future__ import annotations

import pytest
from lab import PAGES_PER_MIB, BootFresh, has_file, memdup, pageops, workload
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_ksm

KSM = "/sys/kernel/mm/ksm"


@pytest.fixture
def ksm_guest(boot_fresh: BootFresh) -> Guest:
    """Return a guest with stock KSM, scanning fast, not sharing without bound."""
    guest = boot_fresh(profile="ksm")
    assert not has_file(guest, "/sys/kernel/mm/pksm")
    for name, value in (("pages_to_scan", 20000), ("smart_scan", 0), ("use_zero_pages", 1), ("run", 1)):
        guest.write_file(f"{KSM}/{name}", str(value))
    return guest


def test_duplicates_merge_and_every_byte_verifies(ksm_guest: Guest) -> None:
    report = memdup(ksm_guest, "--madvise", "--procs", "4", "--mib", "8", "--dup", "100")
    assert report["settled"].sharing == 3 * 8 * PAGES_PER_MIB
    assert report["settled"].counters["pages_sharing"] == 3 * 8 * PAGES_PER_MIB


def test_without_madvise_stock_ksm_merges_nothing(ksm_guest: Guest) -> None:
    """What sets PKSM apart, and what shows that the kernel is really the other one."""
    report = memdup(ksm_guest, "--procs", "2", "--mib", "4", "--dup", "100")
    assert report["settled"].map["merged_ptes"] == 0


def test_mixed_contents_merge_exactly_as_far_as_they_are_alike(ksm_guest: Guest) -> None:
    report = memdup(
        ksm_guest, "--madvise", "--procs", "3", "--mib", "4", "--dup", "40", "--zero", "15",
        "--near", "15", "--unique", "30", "--rewriters", "all",
    )  # fmt: skip
    expected = report["settled"].expected
    assert report["settled"].sharing == expected["sharing"]
    assert report["settled"].map["zero"] == expected["zero"]


def test_forks_and_churn_verify(ksm_guest: Guest) -> None:
    workload(ksm_guest, ["forkdup", "--madvise", "--depth", "2", "--fanout", "2"])
    workload(ksm_guest, ["churn", "--madvise", "--procs", "3", "--rounds", "80", "--pause-ms", "30"])


@pytest.mark.parametrize("mode", ["vmsplice", "io_uring"])
def test_pinned_pages_are_left_alone(ksm_guest: Guest, mode: str) -> None:
    done = ksm_guest.run(["pinpages", "--madvise", "--mode", mode], check=False)
    assert done.status == 0, f"{done.stdout}\n{done.stderr}"


def test_cow_and_moving_behave_as_under_pksm(ksm_guest: Guest) -> None:
    report = pageops(
        ksm_guest, "madvise=mergeable", "fill=dup", "settle", "stat=merged", "@1:poke=9", "verify",
        "stat=broken", "@0:mremap", "verify", "@0:madvise=unmergeable", "verify", "stat=unmerged",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * 64
    assert report["broken"]["merged_ptes"] == 2 * 64
    assert report["unmerged"]["merged_ptes"] == 64

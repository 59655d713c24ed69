# SPDX-License-Identifier: GPL-2.0-only
"""Each way in which an anonymous page can come to be leads into the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lab import GROUP, BootFresh, counters, group, hold_memdup, release, settle, tracked
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

PAGES = 100
# What two processes touch besides: stacks, the tables of the program.
STRAY = 24
WAYS = ("write", "populate", "mlock", "read", "vm-write", "zero", "file", "file-read", "fork",
        "fork-pinned", "uffd")  # fmt: skip
SWAP_WAYS = ("swap", "swap-write", "swapoff")


def births(guest: Guest, way: str, *, in_group: bool = False) -> dict[str, Any]:
    """Run births, in a memory cgroup if one is given; see `births --help`."""
    argv = ["births", "--pages", str(PAGES), way]
    if in_group:
        argv[1:1] = ["--reclaim", f"{GROUP}/memory.reclaim"]
        argv = ["sh", "-c", f'echo $$ > {GROUP}/cgroup.procs; exec "$@"', "sh", *argv]
    done = guest.run(argv, check=False)
    assert done.status == 0, f"births {way}: status {done.status}: {done.stderr}{done.stdout}"
    return dict(json.loads(done.stdout))


def check(said: dict[str, Any]) -> None:
    """All of them came in, and each was merged with its like."""
    assert said["pages"] <= said["entered"] <= said["pages"] + STRAY, said
    assert said["merged_ptes"] == said["pages"], said
    assert said["merged_pages"] == PAGES, said


@pytest.mark.regression("R49")
@pytest.mark.parametrize("way", WAYS)
def test_r49_pages_born_this_way_enter_and_merge(guest: Guest, way: str) -> None:
    check(births(guest, way))


@pytest.mark.regression("R49")
@pytest.mark.parametrize("way", SWAP_WAYS)
def test_r49_pages_that_come_back_from_swap_enter_and_merge(boot_fresh: BootFresh, way: str) -> None:
    guest = boot_fresh(swap="64M")
    group(guest)
    check(births(guest, way, in_group=True))


def test_pages_that_were_there_before_the_engine_are_taken_in(boot_fresh: BootFresh) -> None:
    """Nothing is tracked while it is off; all of it is found once it is switched on."""
    guest = boot_fresh(append=["pksm=off"])
    job = hold_memdup(guest, "--procs", "4", "--mib", "4", "--dup", "75", "--zero", "25",
                      "--unique", "0", "--rewrite", "0", "--no-wait")  # fmt: skip
    assert tracked(counters(guest)) == 0
    guest.set_pksm("run", 1)
    now = settle(guest)
    dup = 3 * 256
    assert now["zero_pages"] >= 4 * 256
    assert now["pages_sharing"] >= 3 * dup
    assert now["pages_shared"] >= dup
    release(job)


def test_pages_let_go_by_unmerging_are_taken_in_again(guest: Guest) -> None:
    """run=2 forgets every page; run=1 finds them all again."""
    job = hold_memdup(guest, "--procs", "4", "--mib", "4", "--dup", "100", "--unique", "0",
                      "--rewrite", "0")  # fmt: skip
    merged = settle(guest)["pages_sharing"]
    assert merged >= 3 * 1024
    guest.set_pksm("run", 2)
    assert tracked(counters(guest)) == 0
    guest.set_pksm("run", 1)
    assert settle(guest)["pages_sharing"] >= 3 * 1024
    release(job)


def test_starting_again_after_a_mere_stop_takes_nothing_in_twice(guest: Guest) -> None:
    """run=0 lets intake go on, so there is nothing to sweep up."""
    job = hold_memdup(guest, "--procs", "2", "--mib", "2", "--dup", "100", "--unique", "0",
                      "--rewrite", "0")  # fmt: skip
    # Nor is what has no partner read a second time meanwhile.
    guest.set_pksm("rescan_seconds", 0)
    before = settle(guest)
    guest.set_pksm("run", 0)
    guest.set_pksm("run", 1)
    after = settle(guest)
    assert after["pages_scanned"] - before["pages_scanned"] < 64
    assert after["pages_sharing"] == before["pages_sharing"]
    release(job)

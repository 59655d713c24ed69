# SPDX-License-Identifier: GPL-2.0-only
"""What a process without privileges can do to others through the engine, in figures.

What it can learn is in test_side_channel.py; what a content in very many places costs in
test_regression_storm.py, what records it takes in the bench. Here: to keep pksmd from its
work. What stock KSM makes of the same is measured beside it.
"""

from __future__ import annotations

import pytest
from lab import BootFresh, Figure
from linux_um.bench_lab import KSM, Setting, counters, hoard, set_engine
from linux_um.guest import Guest

# Of the victim: each content is there twice.
VICTIM_MIB = 2
COPIES = VICTIM_MIB * 256 // 2
# Of the attacker, which changes all of it again and again.
ATTACKER_MIB = 16
CHANGE_MS = 200
# How often a page may be read that changes all the time, until the victim is served.
LOOKS_AT_A_VOLATILE_PAGE = 3
# KSM much faster than by default. Without any sleep the clock of the guest would stand still.
FAST_KSM = Setting(
    "ksm-fast", "KSM, fast", KSM.profile,
    (("pages_to_scan", "2000"), ("sleep_millisecs", "20"), ("smart_scan", "0")),
)  # fmt: skip


def read_until_merged(guest: Guest, setting: Setting) -> int:
    """Fill a victim's memory; return how many pages the engine has read when it is merged."""
    before = counters(guest, setting)
    with hoard(guest, VICTIM_MIB, procs=2, dup=100, copies=2) as victim:
        victim.order("fill")
        goal = before["pages_sharing"] + COPIES
        victim.wait(f"pages_sharing>={goal}", 20, 600)
        after = counters(guest, setting)
        victim.order("verify")
    return after["pages_scanned"] - before["pages_scanned"]


def looks_beside_an_attacker(boot_fresh: BootFresh, setting: Setting) -> float:
    """Have a victim merged beside an attacker whose pages change all the time.

    Returns how often the engine has read each page of the attacker meanwhile, more or less:
    of all that it read, what the victim has is taken off once.
    """
    guest = boot_fresh(profile=setting.profile)
    for name, value in setting.controls:
        set_engine(guest, setting, name, value)
    set_engine(guest, setting, "run", "1")
    with hoard(guest, ATTACKER_MIB, procs=8, dup=0, unique_seed=7) as attacker:
        attacker.order("fill")
        attacker.order(f"change {CHANGE_MS} 3000")
        attacker.send(f"change {CHANGE_MS} 20000")
        read = read_until_merged(guest, setting)
        attacker.answers(1)
    return max(0, read - VICTIM_MIB * 256) / (ATTACKER_MIB * 256)


@pytest.mark.needs_pksm
def test_pages_that_change_all_the_time_do_not_keep_pksmd_from_others(
    boot_fresh: BootFresh, figure: Figure
) -> None:
    """The attacker has eight times the victim's memory; its pages are left alone soon."""
    seen = looks_beside_an_attacker(boot_fresh, Setting("pksm", "PKSM", "fast"))
    figure(
        f"looks at each page of {ATTACKER_MIB} MiB that change until a victim is merged, PKSM",
        f"{seen:.2f}",
    )
    assert seen < LOOKS_AT_A_VOLATILE_PAGE


def test_stock_ksm_reads_every_page_that_changes(boot_fresh: BootFresh, figure: Figure) -> None:
    """Each pass goes over all of the attacker's memory: what the test above says of that."""
    seen = looks_beside_an_attacker(boot_fresh, FAST_KSM)
    figure(
        f"looks at each page of {ATTACKER_MIB} MiB that change until a victim is merged, KSM",
        f"{seen:.2f}",
    )
    assert seen > 1

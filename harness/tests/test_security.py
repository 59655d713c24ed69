# SPDX-License-Identifier: GPL-2.0-only
"""What a process without privileges can do to others through the engine, in figures.

What it can learn is in test_side_channel.py; what a content in very many places costs in
test_regression_storm.py; how often it meets the engine while that unmerges in
test_regression_mm.py. Here: to keep pksmd from its work, by pages that change or that have
the same hash, and to make it keep records. What stock KSM makes of the first is measured
beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from lab import BootFresh, Counters, Figure, pageops, workload
from linux_um import kconfig
from linux_um.bench_lab import KSM, Setting, counters, hoard, set_engine
from linux_um.guest import Guest

# Of the victim: each content is there twice.
VICTIM_MIB = 2
COPIES = VICTIM_MIB * 256 // 2
# Of the attacker, which changes all of it again and again.
ATTACKER_MIB = 16
CHANGE_MS = 200
# For so long; the guest's time, which goes by while the host is busy with something else.
CHANGE_SECONDS = 120
# How often a page may be read that changes all the time, until the victim is served.
LOOKS_AT_A_VOLATILE_PAGE = 2
# KSM much faster than by default. Without any sleep the clock of the guest would stand still.
FAST_KSM = Setting(
    "ksm-fast", "KSM, fast", KSM.profile,
    (("pages_to_scan", "2000"), ("sleep_millisecs", "20"), ("smart_scan", "0")),
)  # fmt: skip


# A secret that the attacker knows, in place of one that nobody does.
SECRET = 7
# Contents that are made to have the same hash then, and of how many pages each of them is.
CONTENTS = 512
TRACING = "/sys/kernel/tracing"
# Pages of the same hash that are compared with one that is like none of them.
MAX_CANDIDATES = 8
# Of a merged page and of one that was absorbed, in bytes.
NODE, SHARER = 48, 32


def read_until_merged(guest: Guest, setting: Setting) -> int:
    """Fill a victim's memory; return how many pages the engine has read when it is merged."""
    before = counters(guest, setting)
    with hoard(guest, VICTIM_MIB, procs=2, dup=100, copies=2) as victim:
        goal = before["pages_sharing"] + COPIES
        victim.orders(["fill", f"wait pages_sharing>={goal} 20 600"])
        after = counters(guest, setting)
        victim.order("verify")
    assert after["pages_sharing"] >= goal
    return after["pages_scanned"] - before["pages_scanned"]


def looks_beside_an_attacker(
    boot_fresh: BootFresh, setting: Setting, seconds: int = CHANGE_SECONDS
) -> float:
    """Have a victim merged beside an attacker whose pages change all the time, for *seconds*.

    Returns how often the engine has read each page of the attacker meanwhile, more or less:
    of all that it read, what the victim has is taken off once.
    """
    guest = boot_fresh(profile=setting.profile)
    for name, value in setting.controls:
        set_engine(guest, setting, name, value)
    set_engine(guest, setting, "run", "1")
    with hoard(guest, ATTACKER_MIB, procs=8, dup=0, unique_seed=7) as attacker:
        # Without a pause: the clock would leap in it, and the pages be left alone by pksmd
        # when they had not changed for long.
        attacker.send("fill", f"change {CHANGE_MS} {seconds * 1000}")
        guest.sh("sleep 3").check()
        read = read_until_merged(guest, setting)
        assert not attacker.answered(), "the host was too slow: the attacker was done before"
        attacker.answers(1)
    return max(0, read - VICTIM_MIB * 256) / (ATTACKER_MIB * 256)


@pytest.mark.needs_pksm
def test_pages_that_change_all_the_time_do_not_keep_pksmd_from_others(
    boot_fresh: BootFresh, figure: Figure, pytestconfig: pytest.Config
) -> None:
    """The attacker has eight times the victim's memory; its pages are left alone soon."""
    profile, arch = (pytestconfig.getoption(name) for name in ("--profile", "--arch"))
    # Two minutes of a clock that skips all waiting are three seconds of ours.
    seconds = CHANGE_SECONDS * (3 if kconfig.time_travels(profile, arch) else 1)
    seen = looks_beside_an_attacker(boot_fresh, Setting("pksm", "PKSM", profile), seconds)
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


@dataclass(frozen=True)
class Flooded:
    """What pages took, each of them, that were made to have the same hash for a known secret."""

    read: float
    tried: float
    usecs: float


def flood(guest: Guest, copies: int) -> Flooded:
    """Run flood; see `flood --help`. How often two pages were compared is traced."""
    guest.write_file(f"{TRACING}/events/pksm/pksm_merge/enable", "1")
    said = workload(
        guest, ["flood", "--secret", str(SECRET), "--contents", str(CONTENTS), "--copies", str(copies)]
    ).raw  # fmt: skip
    guest.write_file(f"{TRACING}/events/pksm/pksm_merge/enable", "0")
    stats = guest.sh(f"cat {TRACING}/per_cpu/cpu*/stats").stdout
    tried = sum(map(int, re.findall(r"^(?:entries|overrun): (\d+)$", stats, re.MULTILINE)))
    assert said["merged_ptes"] == (said["pages"] if copies > 1 else 0)
    pages = said["pages"]
    return Flooded(said["scanned"] / pages, tried / pages, said["cpu_usecs"] / pages)


@pytest.mark.needs_pksm
@pytest.mark.needs_config("CONFIG_PKSM_DEBUG")
@pytest.mark.real_time
@pytest.mark.parametrize(("copies", "what"), [(1, "one page"), (2, "two pages")])
def test_pages_that_are_made_to_collide_do_so_only_for_who_knows_the_key(
    boot_fresh: BootFresh, figure: Figure, copies: int, what: str
) -> None:
    """The defence is that the key is as long as a page, and secret.

    For who knows it each merged page is compared with all that were merged before, but of
    pages that are not merged yet with a few only.
    """
    known = flood(boot_fresh(append=[f"pksm_secret={SECRET}"]), copies)
    secret = flood(boot_fresh(), copies)
    for name, seen in (("known", known), ("secret", secret)):
        figure(
            f"{CONTENTS} contents made to collide, of {what} each, key {name}: per page",
            f"read {seen.read:.1f} times, compared {seen.tried:.1f} times, {seen.usecs:.1f} µs",
        )
    assert secret.tried < 2 and secret.read < 2, secret
    if copies == 1:
        assert MAX_CANDIDATES / 2 < known.read < MAX_CANDIDATES + 3, known
    else:
        assert known.tried > CONTENTS / 4, known


def record_bytes(now: Counters) -> int:
    """Return what the records of merged pages take."""
    return now["stable_nodes"] * NODE + now["rmap_items"] * SHARER


@pytest.mark.needs_pksm
@pytest.mark.parametrize(
    ("fill", "bound", "what"),
    [
        ("dup", 256, "each content in two places"),
        ("same", 2, "one content, in two places each page (max_page_sharing=2)"),
        ("same", 256, "one content"),
    ],
)
def test_records_are_never_a_burden_to_what_is_saved(
    guest: Guest, figure: Figure, fill: str, bound: int, what: str
) -> None:
    """At worst there are two for a page that is saved."""
    guest.set_pksm("max_page_sharing", bound)
    report = pageops(guest, "settle", "stat=before", f"fill={fill}", "settle", "stat=merged", pages=512)
    before, now = report["before"].counters, report["merged"].counters
    saved = now["pages_sharing"] - before["pages_sharing"]
    each = (record_bytes(now) - record_bytes(before)) / saved
    figure(f"records by page that is saved, {what}", f"{each:.0f} B")
    assert saved >= 500
    assert SHARER <= each < (NODE + SHARER) * 1.05


@pytest.mark.needs_pksm
@pytest.mark.time_travel
def test_records_of_places_that_have_gone_do_not_add_up(guest: Guest, figure: Figure) -> None:
    """The attacker has pages merged, writes to them, and has them merged once more."""
    rounds, pages = 10, 256
    # What was broken off a merged page waits for four seconds at most before it is read.
    again = ["@1:fill=unique", "@1:fill=same", "sleep=5000"]
    report = pageops(
        guest, "fill=same", "settle", "stat=first", *(again * rounds), "settle", "stat=last",
        "verify", pages=pages,
    )  # fmt: skip
    first, last = report["first"].counters, report["last"].counters
    made = last["pages_merged"] - first["pages_merged"]
    figure(
        f"records of absorbed pages, by page that is saved, after {rounds} times as many merges",
        f"{last['rmap_items'] / last['pages_sharing']:.2f}; if none went: "
        f"{(first['rmap_items'] + made) / last['pages_sharing']:.2f}",
    )
    assert made >= rounds * pages * 0.9
    assert last["rmap_items"] <= 1.2 * last["pages_sharing"] + 16

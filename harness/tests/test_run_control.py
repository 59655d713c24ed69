# SPDX-License-Identifier: GPL-2.0-only
"""The controls in sysfs do what they say, or say EINVAL and change nothing."""

from __future__ import annotations

import errno

import pytest
from lab import baseline, counters, has_file, pageops, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

NONSENSE = {
    "run": ("3", "-1", "x", "1x", "99999999999999999999"),
    "use_zero_pages": ("2", "-1", "x"),
    "settle_millisecs": ("-1", "x", "1.5", "99999999999999999999"),
    "rescan_seconds": ("-1", "x", "86401"),
    "max_cpu": ("0", "101", "-5", "50%"),
    "max_page_sharing": ("0", "1", "-1", "x", "99999999999"),
}
CONTROLS = tuple(NONSENSE)
# Controls whose value is a word.
NAMED = ("domain", "scope")


def test_stopped_nothing_merges_and_started_it_does(guest: Guest) -> None:
    report = pageops(
        guest, "set=run:0", "fill=dup", "sleep=20000", "stat=stopped", "set=run:1", "settle",
        "stat=running", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["stopped"]["merged_ptes"] == 0
    assert report["running"].sharing == 2 * 64


def test_stopped_merged_pages_stay_merged(guest: Guest) -> None:
    report = pageops(
        guest, "fill=dup", "settle", "set=run:0", "sleep=20000", "stat=stopped", "verify",
        "@0:poke=5", "verify", "stat=broken",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["stopped"].sharing == 2 * 64
    assert report["broken"].sharing == 64
    guest.set_pksm("run", 1)


@pytest.mark.regression("R51")
def test_r51_unmerging_everything_really_does(guest: Guest) -> None:
    """R51, R9: no merged PTE remains, contents are intact, the metadata is gone."""
    report = pageops(
        guest, "fill=dup", "@3:fill=zero", "settle", "stat=merged", "set=run:2", "stat=unmerged",
        "verify", "poke=77", "verify",
        procs=4, pages=256,
    )  # fmt: skip
    merged, unmerged = report["merged"], report["unmerged"]
    assert merged.sharing == 2 * 256
    assert merged["zero"] == 256
    assert unmerged["merged_ptes"] == 0
    assert unmerged["present"] == 4 * 256
    assert unmerged["anon"] == 4 * 256
    for name in ("pages_shared", "pages_sharing", "rmap_items", "stable_nodes", "zero_pages"):
        assert unmerged.counters[name] == 0, name
    assert guest.pksm("run") == 2
    guest.set_pksm("run", 1)


def test_after_unmerging_new_pages_merge_again(guest: Guest) -> None:
    report = pageops(
        guest, "fill=dup", "settle", "set=run:2", "set=run:1", "unmap", "map", "fill=dup:2",
        "settle", "stat=again", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["again"].sharing == 2 * 64


def test_unmerging_and_merging_over_and_over_leaks_nothing(guest: Guest) -> None:
    before = settle(guest)
    steps = []
    for number in range(5):
        steps += [f"fill=dup:{number}", "settle", "set=run:2", "verify", "set=run:1"]
    pageops(guest, *steps, "settle", "verify", procs=3, pages=64)
    assert baseline(settle(guest))["rmap_items"] <= baseline(before)["rmap_items"]


@pytest.mark.parametrize(
    ("control", "value"), [(name, value) for name in CONTROLS for value in NONSENSE[name]]
)
def test_nonsense_is_refused_and_changes_nothing(guest: Guest, control: str, value: str) -> None:
    before = guest.pksm(control)
    with pytest.raises(OSError) as caught:
        guest.set_pksm(control, value)
    assert caught.value.errno in (errno.EINVAL, errno.ERANGE)
    assert guest.pksm(control) == before


@pytest.mark.parametrize(("control", "value"), [("run", 0), ("settle_millisecs", 1234)])
def test_a_control_reads_back_what_was_written(guest: Guest, control: str, value: int) -> None:
    guest.set_pksm(control, value)
    assert guest.pksm(control) == value
    guest.set_pksm("run", 1)


def test_a_longer_settle_time_makes_pages_wait_longer(guest: Guest) -> None:
    report = pageops(
        guest, "set=settle_millisecs:10000", "fill=dup", "sleep=3000", "stat=early",
        "wait=pages_new==0", "stat=late", "verify",
        procs=2, pages=64,
    )  # fmt: skip
    assert report["early"]["merged_ptes"] == 0
    assert report["late"].sharing == 64
    guest.set_pksm("settle_millisecs", 50)


def test_only_root_may_change_anything(guest: Guest) -> None:
    """Controls are 0644, counters 0444, and another user's write is refused."""
    for name in [*counters(guest), *NAMED]:
        mode = guest.run(["stat", "-c", "%a %u", f"/sys/kernel/mm/pksm/{name}"]).stdout.strip()
        assert mode == ("644 0" if name in (*CONTROLS, *NAMED) else "444 0"), name
    assert has_file(guest, "/sys/kernel/mm/pksm/run")
    refused = guest.sh("su nobody -s /bin/sh -c 'echo 0 > /sys/kernel/mm/pksm/run'", check=False)
    assert refused.status != 0
    assert guest.pksm("run") == 1


def test_each_file_holds_one_value(guest: Guest) -> None:
    """A number, except for the two controls that are names."""
    for name in guest.sh("ls /sys/kernel/mm/pksm").stdout.split():
        text = guest.read_file(f"/sys/kernel/mm/pksm/{name}")
        assert text.endswith("\n") and text.count("\n") == 1, name
        assert text.strip().isalpha() if name in NAMED else text.strip().lstrip("-").isdigit()

# SPDX-License-Identifier: GPL-2.0-only
"""The conservation laws of the engine's counters, and what the page map says to them.

What is wrong is told by AssertionError: to a test that is a failure, to ``fuzz`` a find.
"""

from __future__ import annotations

import json
import re

from .guest import Guest
from .leaks import check_leaks

# Wall-clock seconds a program of the guest may take.
WORKLOAD_SECONDS = 240.0
# How often the page map and the counters are compared before they are called wrong.
LOOKS = 5
# What the engine finds wrong with itself, in a kernel with CONFIG_PKSM_DEBUG.
CHECK_FILE = "/sys/kernel/debug/pksm/check"

Counters = dict[str, int]


def settle(guest: Guest, *, seconds: int = 300) -> Counters:
    """Wait until the engine has settled; *seconds* of guest time. Returns the counters."""
    done = guest.run(["pksmwait", "--timeout", str(seconds)], timeout=WORKLOAD_SECONDS)
    return dict(json.loads(done.stdout)["counters"])


def meminfo(guest: Guest, name: str) -> int:
    """Return a line of /proc/meminfo in KiB."""
    for line in guest.read_file("/proc/meminfo").splitlines():
        key, value = line.split(":")
        if key == name:
            return int(value.split()[0])
    raise KeyError(name)


def has_file(guest: Guest, path: str) -> bool:
    """Return whether the guest has a file there. Raises CommandFailed when it cannot say."""
    done = guest.run(["test", "-e", path], check=False)
    return done.status != 1 and bool(done.check())


def check_structures(guest: Guest) -> None:
    """Let the engine go over all that it keeps, and say what contradicts what.

    Only a kernel that was built without CONFIG_PKSM_DEBUG may not be able to.
    """
    try:
        said = guest.read_file(CHECK_FILE).strip()
    except FileNotFoundError:
        assert guest.config.get("CONFIG_PKSM_DEBUG") != "y", f"there is no {CHECK_FILE}"
        return
    assert said == "fine", f"the engine's own check: {said}"


def check_laws(guest: Guest) -> None:
    """Check the conservation laws of the counters of a settled, idle guest.

    The page map is asked as well: it knows nothing of the engine's counters. Every
    page must be mapped by as many PTEs as it counts, every process must have the
    anonymous memory that its RSS says, and what the processes say in ksm_stat must sum
    up to what the engine says.
    """
    check_structures(guest)
    check_leaks(guest)
    now = settle(guest)
    negative = {name: value for name, value in now.items() if value < 0 and name != "general_profit"}
    assert not negative, f"negative counters: {negative}"
    assert now["pages_merged"] <= now["pages_scanned"] or now["pages_merged"] == 0, now
    for _ in range(LOOKS):
        wrong = imbalance(now) or contradiction(guest)
        if not wrong:
            return
        now = settle(guest)
    raise AssertionError(wrong)


def imbalance(now: Counters) -> str:
    """Return the counters *now* if those of merged pages contradict each other, or nothing.

    They are read one after the other, and pksmd may work on another CPU meanwhile: what is
    really wrong is so each time.
    """
    fine = (
        (now["pages_sharing"] == 0 or now["pages_shared"] > 0)
        and now["stable_nodes"] >= now["pages_shared"]
        and now["stable_items"] == now["stable_nodes"] + now["rmap_items"]
    )
    return "" if fine else f"counters {now}"


def contradiction(guest: Guest) -> str:
    """Return what the page map and the counters of one moment say against each other, or nothing."""
    done = guest.run(["pagestat", "--all"], check=False)
    if done.status:
        return f"{done.stderr}{done.stdout}"
    seen = json.loads(done.stdout)
    now = seen.pop("counters")
    both = f"counters {now}, page map {seen}"
    if seen["merged_ptes"] != seen["smaps_ptes"]:
        return both
    ptes = now["pages_shared"] + now["pages_sharing"]
    # Pages of the swap cache that nobody maps are counted, and are not in any page map.
    unmapped = now["pages_shared"] if meminfo(guest, "SwapTotal") else 0
    fine = (
        0 <= ptes - seen["merged_ptes"] <= unmapped
        and seen["ksm_merging_pages"] == seen["merged_ptes"]
        and now["zero_pages"] == seen["ksm_zero_pages"]
    )
    return "" if fine else both


def free_kib(guest: Guest) -> int:
    """Return what is free in KiB, with the lists of the CPUs, which MemFree leaves out."""
    counts = re.findall(r"^ +count: +(\d+)$", guest.read_file("/proc/zoneinfo"), re.MULTILINE)
    return meminfo(guest, "MemFree") + sum(map(int, counts)) * 4

# SPDX-License-Identifier: GPL-2.0-only
"""KFENCE watches a sample of the kernel's small objects; what it reports fails a test.

User-Mode Linux does not have it: these tests run with --arch x86_64.
"""

from __future__ import annotations

import re

import pytest
from lab import BootFresh, pageops, settle
from linux_um.guest import Guest, boot_guest
from linux_um.outcome import GuestOops

pytestmark = pytest.mark.needs_config("CONFIG_KFENCE")

KFENCE = "/sys/kernel/debug/kfence"
SLABS = "/sys/kernel/slab"


def stats(guest: Guest) -> dict[str, int]:
    """Return what KFENCE says of itself."""
    text = guest.read_file(f"{KFENCE}/stats")
    return {name: int(value) for name, value in re.findall(r"^([^:\n]+): (-?\d+)$", text, re.M)}


def freed(guest: Guest, cache: str) -> int:
    """Return how many objects of *cache* KFENCE has taken, seen freed, and not used again."""
    text = guest.read_file(f"{KFENCE}/objects")
    return sum(f" cache={cache}\n" in one and "\nfreed by " in one for one in text.split("\n---"))


@pytest.mark.needs_pksm
def test_kfence_looks_at_objects_while_pages_are_merged(guest: Guest) -> None:
    before = stats(guest)
    pageops(guest, "fill=dup", "settle", "poke=3", "fill=dup", "sleep=60000", "settle", "verify",
            procs=4, pages=1024)  # fmt: skip
    after = stats(guest)
    assert after["enabled"] == 1
    assert after["total allocations"] > before["total allocations"]
    assert after["total bugs"] == 0


@pytest.mark.needs_pksm
@pytest.mark.parametrize("cache", ["pksm_stable_node", "pksm_sharer"])
def test_kfence_looks_at_objects_of_the_engine(boot_fresh: BootFresh, cache: str) -> None:
    """The next object that it takes is one of *cache*: those of all others are left out."""
    # Or caches whose objects have the same size are one.
    guest = boot_fresh(append=["slab_nomerge"])
    guest.sh(
        f"for file in {SLABS}/*/skip_kfence; do echo 1 > $file; done; "
        f"echo 0 > {SLABS}/{cache}/skip_kfence"
    )
    before = freed(guest, cache)
    pageops(guest, "fill=dup", "settle", "fill=unique", "sleep=1000", "fill=dup", "settle", "poke=3",
            "verify", "set=run:2", "set=run:1", procs=4, pages=1024)  # fmt: skip
    settle(guest)
    assert freed(guest, cache) > before
    assert stats(guest)["total bugs"] == 0


def test_what_kfence_reports_fails_a_command_that_succeeded(
    request: pytest.FixtureRequest,
) -> None:
    profile = request.config.getoption("--profile")
    fake = "echo 'BUG: KFENCE: use-after-free read in none+0x0/0x1' > /dev/kmsg"
    with pytest.raises(GuestOops, match="KFENCE"), boot_guest(profile) as guest:
        guest.sh(fake)

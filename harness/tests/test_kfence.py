# SPDX-License-Identifier: GPL-2.0-only
"""KFENCE watches a sample of the kernel's small objects; what it reports fails a test.

User-Mode Linux does not have it: these tests run with --arch x86_64.
"""

from __future__ import annotations

import re

import pytest
from lab import pageops
from linux_um.guest import Guest, boot_guest
from linux_um.outcome import GuestOops

pytestmark = pytest.mark.needs_config("CONFIG_KFENCE")

STATS = "/sys/kernel/debug/kfence/stats"


def stats(guest: Guest) -> dict[str, int]:
    """Return what KFENCE says of itself."""
    text = guest.read_file(STATS)
    return {name: int(value) for name, value in re.findall(r"^([^:\n]+): (-?\d+)$", text, re.M)}


@pytest.mark.needs_pksm
def test_kfence_looks_at_objects_while_pages_are_merged(guest: Guest) -> None:
    before = stats(guest)
    pageops(guest, "fill=dup", "settle", "poke=3", "fill=dup", "sleep=60000", "settle", "verify",
            procs=4, pages=1024)  # fmt: skip
    after = stats(guest)
    assert after["enabled"] == 1
    assert after["total allocations"] > before["total allocations"]
    assert after["total bugs"] == 0


def test_what_kfence_reports_fails_a_command_that_succeeded(
    request: pytest.FixtureRequest,
) -> None:
    profile = request.config.getoption("--profile")
    fake = "echo 'BUG: KFENCE: use-after-free read in none+0x0/0x1' > /dev/kmsg"
    with pytest.raises(GuestOops, match="KFENCE"), boot_guest(profile) as guest:
        guest.sh(fake)

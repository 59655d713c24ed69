# SPDX-License-Identifier: GPL-2.0-only
"""Memory that nothing points to any more, as kmemleak finds it where a kernel has that."""

from __future__ import annotations

from .guest import Guest

FILE = "/sys/kernel/debug/kmemleak"
# kmemleak does not look at what is younger, which may be on its way to where it is held.
_YOUNG_SECONDS = "6"
# What is left of a process that has ended is freed some time later, and nothing points to
# it meanwhile: it is given that time, by processes that are too young to be looked at.
_GRACE_SECONDS = "1"
# A pointer may be in a register only, just then: what counts is found each time.
_LOOKS = 3


def leaks(guest: Guest) -> str:
    """Return what kmemleak says of *guest* each time it is asked, at last.

    That is nothing where the kernel does not have it. Takes seconds of the guest's time.
    """
    found = ""
    if guest.config.get("CONFIG_DEBUG_KMEMLEAK") != "y":
        return found
    for _ in range(_LOOKS):
        guest.run(["sleep", _YOUNG_SECONDS])
        guest.run(["sleep", _GRACE_SECONDS])
        # Twice: an object is reported when its bytes are what they were at the scan before.
        for _ in range(2):
            guest.write_file(FILE, "scan")
        found = guest.read_file(FILE)
        if not found:
            break
    return found


def check_leaks(guest: Guest) -> None:
    """Raise AssertionError when memory has leaked in *guest*, by whomever."""
    found = leaks(guest)
    assert not found, f"kmemleak: {found}"

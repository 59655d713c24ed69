# SPDX-License-Identifier: GPL-2.0-only
"""Every file of the engine in sysfs against the same nonsense."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from lab import counters, pageops
from linux_um.agent import PKSM_DIR
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

NONSENSE = (
    b"", b"\n", b" ", b"\0", b"\0\0\0\0", b"1\0", b"1\x001", b"\x01\x02\xff\xfe", b"\x1b[2J",
    b"9" * 4096, b"0" * 4096, b"x" * 4096, b" " * 4096, b"-1", b"-0", b"+1", b"-9223372036854775809",
    b"4294967296", b"18446744073709551616", b"99999999999999999999999", b" 1", b"1 ", b"1 1", b"1\n1",
    b"1.5", b"1e3", b"0x10", b"1K", b"nan", b"true", b"user memcg", b"USER", b"user,all", b"%s%n",
    "\u0661".encode(), "\uff11".encode(), "\u00bd".encode(), "stra\u00dfe".encode(),
)  # fmt: skip
# What the kernel says of a value that it does not take, and of a file that takes none.
REFUSED = (errno.EINVAL, errno.ERANGE)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EIO)


def meaning(raw: bytes, before: str) -> str:
    """Return what a file has to hold that has taken *raw*."""
    # The kernel ends a text at its first NUL, and has no call for none at all.
    text = raw.split(b"\0")[0].decode(errors="replace").strip()
    if not raw:
        return before
    return str(int(text)) if text.lstrip("+-").isdigit() else text


def taken(guest: Guest, path: str) -> Iterator[str]:
    """Write all of it to a control; yield what is wrong with what becomes of that."""
    before = guest.read_file(path).strip()
    for raw in NONSENSE:
        shown = raw if len(raw) < 64 else raw[:8] + b"..."
        said, wanted = "", before
        try:
            guest.write_file(path, raw)
            wanted = meaning(raw, before)
        except OSError as error:
            said = "" if error.errno in REFUSED else f"{error.strerror}; "
        after = guest.read_file(path).strip()
        if said or after != wanted:
            yield f"{shown!r}: {said}it is {after} and was {before}"
        if after != before:
            guest.write_file(path, before)


def not_taken(guest: Guest, path: str) -> Iterator[str]:
    """Write all of it to a file that says something; yield what that takes."""
    for raw in NONSENSE:
        try:
            guest.write_file(path, raw)
            yield f"{raw[:16]!r}: taken"
        except OSError as error:
            if error.errno not in READ_ONLY:
                yield f"{raw[:16]!r}: {error.strerror}"


def test_nonsense_is_refused_or_means_what_it_says(guest: Guest) -> None:
    """By every file; those that say something take nothing, and the engine still works."""
    names = guest.sh(f"ls {PKSM_DIR}").stdout.split()
    assert {"run", "domain", "scope", "pages_shared"} <= set(names)
    modes = guest.sh(f"cd {PKSM_DIR}; stat -c '%n %a' *").stdout.splitlines()
    settable = {line.split()[0] for line in modes if line.endswith(" 644")}
    wrong = [
        f"{name}: {said}"
        for name in names
        for said in (taken if name in settable else not_taken)(guest, f"{PKSM_DIR}/{name}")
    ]
    assert not wrong, "\n".join(wrong)
    report = pageops(guest, "fill=dup", "settle", "stat=merged", "verify", procs=3, pages=64)
    assert report["merged"].sharing == 2 * 64
    assert counters(guest)["run"] == 1

# SPDX-License-Identifier: GPL-2.0-only
"""What became of a guest: the outcomes, and how the kernel's log tells them apart."""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from . import races
from .errors import BootError, GuestHang, GuestPanic, GuestTimeout, HostError, LinuxUmError
from .paths import repo_root

EXIT_TAINT = 70
EXIT_GONE = 71
# Lines of a log in which nothing matters that are shown, and at most of one in which
# something does.
TAIL_LINES = 15
TRACE_LINES = 60
# Exit statuses of UML after SIGABRT: after a panic, but at times also when a
# timer fires while it ends after an orderly power-off.
ABORTED = (-6, 134)
# Addresses that are symbolised at most, the first in the log.
MAX_ADDRESSES = 400


class Outcome(Enum):
    """How a guest ended; HANG, not TIMEOUT, when its kernel did not answer any more."""

    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    PANIC = "panic"
    TAINT = "oops or WARN"
    TIMEOUT = "time-out"
    HANG = "hang"
    GONE = "powered off"
    GARBLED = "garbage on the agent's line"
    BOOT_FAILURE = "boot failure"
    BROKEN_HOST = "broken host"


class GuestOops(LinuxUmError):
    """The kernel's log has an oops, a WARN or a sanitizer's report."""

    exit_status = EXIT_TAINT


class GuestGone(LinuxUmError):
    """The guest ended, without a panic, before the command did."""

    exit_status = EXIT_GONE


class LineError(LinuxUmError):
    """What comes by the agent's line is not the agent's: nothing can be told from it."""

    exit_status = EXIT_GONE


class CommandFailed(LinuxUmError):
    """A command in the guest ended with a status that was not expected."""

    exit_status = 1


def outcome_of(error: BaseException | None) -> Outcome:
    """Return the outcome that an exception (None: no exception) stands for."""
    if error is None:
        return Outcome.PASS
    if type(error).__name__ == "Skipped":
        return Outcome.SKIP
    for kind, outcome in (
        (GuestPanic, Outcome.PANIC),
        (GuestOops, Outcome.TAINT),
        (GuestHang, Outcome.HANG),
        (GuestTimeout, Outcome.TIMEOUT),
        (GuestGone, Outcome.GONE),
        (LineError, Outcome.GARBLED),
        (BootError, Outcome.BOOT_FAILURE),
        (HostError, Outcome.BROKEN_HOST),
    ):
        if isinstance(error, kind):
            return outcome
    return Outcome.FAIL


@dataclass(frozen=True)
class Finding:
    """A line of the log that says the kernel is not well; ``line`` counts from 1."""

    kind: str
    line: int
    text: str


_STAMP = re.compile(r"^(?:<\d>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ")
_KINDS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("panic", r"^Kernel panic - not syncing"),
        ("KASAN", r"^BUG: KASAN: "),
        ("UBSAN", r"^UBSAN: "),
        ("KFENCE", r"^BUG: KFENCE: "),
        ("KCSAN", r"^BUG: KCSAN: "),
        ("bad page", r"^(BUG: Bad (page|rss)|\S+:\d+: bad (pgd|p4d|pud|pmd|pte) )"),
        ("written when free", r"^pagealloc: (memory corruption|single bit error)"),
        ("BUG", r"^(BUG: |kernel BUG at |------------\[ cut here BUG)"),
        ("oops", r"^(Oops\b|Internal error: |general protection fault|Unable to handle kernel )"),
        ("WARN", r"^WARNING: "),
        ("lockdep", r"^INFO: (trying to register non-static key|possible .* detected)"),
        ("list corruption", r"^(list_(add|del)( corruption|_entry)|slab error in )"),
        ("refcount", r"^refcount_t: "),
        ("hung task", r"^INFO: task .* blocked for more than \d+ seconds"),
        ("RCU stall", r"^(INFO: rcu|rcu: INFO: rcu).* (detected stalls|self-detected stall)"),
        ("objects left", r"^BUG .*: Objects remaining "),
        # On 7.3 with SMP all that is said may be that a call in the stub got ENOMEM.
        (
            "host mappings",
            r"UML ran out of memory on the host side|stub syscall type \d+ failed, .* = 0xf{15}4$",
        ),
        ("host memory", r"^Bus error - the host "),
        ("UML", r"^(Segfault with no mm|Kernel mode signal \d+|Kernel tried to access user memory)"),
    )
)
# Those of them that are the host's doing, and the panics that come of them.
_HOST_KINDS = ("host mappings", "host memory")
_PANIC_BY_HOST = re.compile(
    r"Attempted to kill init|Failed to sync kernel TLBs|Kernel mode signal 7\b"
)
# What besides says where trouble begins in a log that is otherwise ordinary.
_MATTERS = re.compile(
    r"^(-+\[ cut here|Call Trace:|Modules linked in:|RIP: |Out of memory: |Memory cgroup out of "
    r"memory: |\S+ invoked oom-killer|VFS: (Cannot|Unable) |Failed to execute |Run /init .* failed)"
    r"|\bsegfault\b|page allocation failure|\bgeneral protection\b",
    re.IGNORECASE,
)
# A file of the kernel, with the directories that its tree lies in.
_ABOVE_TREE = re.compile(r"(/[^ ]*?)?/((arch|mm|kernel|fs|lib|init|drivers|include)/)")
_CONTEXT = re.compile(r"\[<([0-9a-f]{8,16})>\]")


# How many functions of a stack may have made an access their own.
_WHO = 2
_FRAME = re.compile(r"^ (\w+)(?:\.\w+)*\+0x")


def scan(console: str) -> list[Finding]:
    """Return what in a kernel's log counts as an oops, a WARN or a panic.

    A data race counts unless it is known to be the kernel's with itself, see races.py; and
    then, too, when the engine has a part in it. What a hook has had inlined into a function
    of mm has no name of its own.
    """
    found = []
    lines = [_STAMP.sub("", raw.rstrip("\r")) for raw in console.splitlines()]
    for number, text in enumerate(lines, 1):
        for kind, pattern in _KINDS:
            if pattern.search(text):
                if kind != "KCSAN" or _race_counts(lines[number - 1 :]):
                    found.append(Finding(kind, number, text))
                break
    return found


def host_shortage(findings: Sequence[Finding]) -> str:
    """Return the kind of what the host ran out of, if that is all that is wrong, or has ended
    the guest; else an empty text.

    That is "host mappings" or "host memory". What else is wrong may be the kernel's own
    fault, and is to be told.
    """
    end = next((n for n, f in enumerate(findings) if f.kind == "panic"), None)
    lacks = [f.kind for f in findings[:end] if f.kind in _HOST_KINDS]
    if end is None:
        guilty = len(lacks) == len(findings)
    else:
        guilty = _PANIC_BY_HOST.search(findings[end].text) is not None
    return lacks[-1] if lacks and guilty else ""


def _race_counts(lines: list[str]) -> bool:
    """Return whether the report of KCSAN that begins *lines* is of a race that is not known."""
    return races.pair_of(lines[0]) not in races.known() or of_the_engine(_race(lines))


def _race(lines: list[str]) -> set[str]:
    """Return who has accessed memory in the report of KCSAN that begins *lines*.

    Of each stack the function that did, and the one that has called it.
    """
    found = set()
    left = 0
    for line in itertools.takewhile(lambda line: not line.startswith("====="), lines):
        frame = _FRAME.match(line)
        if frame is None:
            left = _WHO
        elif left > 0:
            left -= 1
            found.add(frame[1])
    return found


def of_the_engine(functions: set[str]) -> bool:
    """Return whether one of *functions* is the engine's, or of what stands behind ksm.h."""
    return any("ksm" in name for name in functions) or not functions.isdisjoint(_attributes())


@functools.lru_cache(maxsize=1)
def _attributes() -> set[str]:
    """Return the functions of the engine's files in sysfs and debugfs, which have no prefix."""
    found = set()
    for path in (repo_root() / "pksm" / "mm" / "pksm").glob("*.c"):
        text = path.read_text()
        found |= set(re.findall(r"^static \w+ (\w+_(?:show|store|open|read|write))\(", text, re.M))
        names = re.findall(r"^\w*ATTR\w*\((\w+)", text, re.M)
        found |= {f"{name}_{what}" for name in names for what in ("show", "store")}
    return found


def started(console: str) -> bool:
    """Return whether the kernel got past UML's checks of the host."""
    return "Linux version " in console


def dmesg(console: str) -> str:
    """Return the kernel's own lines of a console log, without UML's and the guest's."""
    return "".join(line + "\n" for line in console.splitlines() if _STAMP.match(line))


def host_complaint(console: str) -> str:
    """Return the line in which UML says what it misses on the host; empty when it says nothing."""
    lines = [line.strip() for line in console.splitlines() if line.strip()]
    # The launcher's own head.
    lines = [line for line in lines if not line.startswith("# ")]
    for line in lines:
        if re.search(r"noexec|not permitted|No space|Cannot|[Cc]ouldn't|failed|errno", line):
            return line
    return lines[-1] if lines else ""


def powered_down(console: str) -> bool:
    """Say whether the log ends with an orderly power-off."""
    return "reboot: Power down" in console[-2000:]


def judge_end(status: int, console: str, *, booted: bool) -> LinuxUmError:
    """Return the error for a guest that ended without having been asked to.

    *status* is as subprocess has it (negative: a signal); *booted* says whether
    its agent had answered.
    """
    panics = [finding for finding in scan(console) if finding.kind == "panic"]
    said = panics[0].text if panics else ""
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    complaint = host_complaint(console)
    if not booted and not started(console) and complaint:
        return HostError(
            f"User-Mode Linux cannot start here: {complaint}",
            "./linux-um doctor says what it needs",
        )
    if not booted and not started(console):
        return HostError(
            f"the guest's kernel ended ({how}) before its first word",
            "give it more memory with --mem; ./linux-um doctor says what it needs of the host",
        )
    # UML aborts at times as it ends after an orderly power-off.
    if status in ABORTED and powered_down(console) and not panics:
        how = "exit status 0"
    if not booted:
        return BootError(f"the guest did not boot: {said or 'it ended with ' + how}")
    if panics or (status in ABORTED and not powered_down(console)):
        return GuestPanic(f"the guest's kernel panicked: {said or how}")
    return GuestGone(f"the guest powered off ({how}) before the command ended")


def first_that_matters(console: str) -> int | None:
    """Return the number, from 1, of the first line that is not ordinary; None without one."""
    findings = scan(console)
    limit = findings[0].line if findings else None
    for number, raw in enumerate(console.splitlines()[:limit], 1):
        if _MATTERS.search(_STAMP.sub("", raw)):
            return number
    return limit


def excerpt(console: str) -> tuple[str, list[str]]:
    """Return what a person needs to see of a log, after a word on which part of it that is.

    That is from the first line that matters, at most TRACE_LINES, else the last
    TAIL_LINES. *console* is to be without the dump of a time-out, where everything
    would seem to matter.
    """
    lines = console.splitlines()
    first = first_that_matters(console)
    if first is None:
        return f"the last of {len(lines)} lines", lines[-TAIL_LINES:]
    shown = lines[first - 1 :][:TRACE_LINES]
    return f"lines {first} to {first - 1 + len(shown)} of {len(lines)}", shown


def symbolise(lines: Iterable[str], vmlinux: Path, *, timeout: float = 60.0) -> str:
    """Return *lines* with each code address followed by its source line.

    Uses addr2line on *vmlinux*; without it the lines come back as they are.
    *timeout* is in seconds.
    """
    text = list(lines)
    addresses = list(dict.fromkeys(match for line in text for match in _CONTEXT.findall(line)))
    places = _addr2line(addresses[:MAX_ADDRESSES], vmlinux, timeout)
    result = []
    for line in text:
        result.append(line)
        for address in _CONTEXT.findall(line):
            result += [f"        {place}" for place in places.get(address, ())]
    return "\n".join(result)


def _addr2line(addresses: Sequence[str], vmlinux: Path, timeout: float) -> dict[str, list[str]]:
    if not addresses or not vmlinux.exists():
        return {}
    command = ["addr2line", "-a", "-i", "-f", "-p", "-e", str(vmlinux), *addresses]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    places: dict[str, list[str]] = {}
    wanted = {int(address, 16): address for address in addresses}
    here: list[str] = []
    for line in done.stdout.splitlines():
        match = re.match(r"^(0x[0-9a-f]+): (.*)$", line)
        if match:
            here = places.setdefault(wanted.get(int(match[1], 16), match[1]), [])
            line = match[2]
        place = line.strip()
        if not place.startswith("??"):
            here.append(_ABOVE_TREE.sub(r"\2", place, count=1))
    return places

# SPDX-License-Identifier: GPL-2.0-only
"""What the paths of mm cost on which the hooks are: without PKSM, with it off, and with it on.

The guests run side by side, one working at a time, so that a host that is busy for a while
is busy for all of them. One of them is there twice: what lies between those two is noise.
They are booted anew several times, since a guest keeps the memory that it was given.

The CPU time is that of the whole kernel. Where PKSM is on, it has pksmd's in it as far as
that takes the new pages over; to read them is work that bench_engine measures, and so they
are let settle for longer than this takes. An order takes time whatever is done for it:
that is measured as well, by one for which nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from .bench_engine import Sample
from .bench_instructions import Counter, counting
from .bench_lab import KSM_DIR, PKSM_DIR, Lab, Workload, kernel_cpu_ns
from .bench_overheads import EMPTY_STEP

# Name, profile, and words for the kernel's command line.
VARIANTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("none-a", "off", ()),
    ("pksm-off", "bench", ("pksm=off",)),
    ("pksm-stopped", "bench", ("pksm=on",)),
    ("none-b", "off", ()),
    ("pksm-on", "bench", ("pksm=on",)),
    ("ksm-on", "ksm", ()),
)
# More than the caches of most hosts hold.
PAGES = 16384
MIB = 192
SETTLE_MILLISECS = 60_000
# In the order in which mmcost does them.
STEPS = (EMPTY_STEP, "populate", "fork", "cow", "exit", "unmap")


@dataclass(frozen=True)
class _Subject:
    """A variant, its guest's workload, and what counts its instructions if anything does."""

    name: str
    program: Workload
    counter: Counter | None


def paths(
    lab: Lab, boot: int, turns: int, repeat: int, progress: Callable[[str], None]
) -> list[Sample]:
    """Measure each step *repeat* times in each guest, *turns* times, in turns.

    *boot* is the number of these guests, which are booted for it.
    """
    found: list[Sample] = []
    with ExitStack() as stack:
        subjects = []
        for name, profile, append in VARIANTS:
            progress(f"booting {name}")
            subjects.append(_subject(lab, stack, name, profile, append))
        for turn in range(turns):
            # Another order each time: who comes first finds the caches of somebody else.
            first = (boot + turn) % len(subjects)
            for each in subjects[first:] + subjects[:first]:
                progress(f"turn {turn + 1} of {turns}: {each.name}")
                found.append({"what": "paths", "variant": each.name, "boot": boot, "turn": turn,
                              "pages": PAGES, **_turn(each, repeat)})  # fmt: skip
    return found


def _subject(
    lab: Lab, stack: ExitStack, name: str, profile: str, append: tuple[str, ...]
) -> _Subject:
    guest = stack.enter_context(lab.guest(profile, MIB, append=append))
    if name == "ksm-on":
        guest.write_file(f"{KSM_DIR}/run", "1")
    elif name == "pksm-stopped":
        guest.write_file(f"{PKSM_DIR}/run", "0")
    elif name == "pksm-on":
        guest.write_file(f"{PKSM_DIR}/settle_millisecs", str(SETTLE_MILLISECS))
    program = stack.enter_context(Workload(guest, ["mmcost", "--pages", str(PAGES)]))
    subject = _Subject(name, program, stack.enter_context(counting(guest.pid)))
    # Memory that was never used is new to the host as well.
    _turn(subject, 1)
    return subject


def _daemon_usecs(subject: _Subject) -> int:
    """Return the CPU time of pksmd, in microseconds of the clock; 0 where nobody asks for it."""
    if subject.name != "pksm-on":
        return 0
    return int(subject.program.guest.read_file(f"{PKSM_DIR}/cpu_usecs"))


def _turn(subject: _Subject, repeat: int) -> Sample:
    """Have each step done *repeat* times; return the nanoseconds of CPU that each has taken."""
    times: dict[str, list[int]] = {step: [] for step in STEPS}
    instructions: dict[str, int] = dict.fromkeys(STEPS, 0)
    before = _daemon_usecs(subject)
    for _ in range(repeat):
        for step in STEPS:
            counted = subject.counter.read() if subject.counter else 0
            start = kernel_cpu_ns(subject.program.guest)
            subject.program.order(step)
            times[step].append(kernel_cpu_ns(subject.program.guest) - start)
            if subject.counter:
                instructions[step] += subject.counter.read() - counted
    found: Sample = {"daemon_usecs": _daemon_usecs(subject) - before, **times}
    if subject.counter:
        found["instructions"] = {step: n / repeat for step, n in instructions.items()}
    return found

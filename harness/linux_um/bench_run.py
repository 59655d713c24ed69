# SPDX-License-Identifier: GPL-2.0-only
"""Which measurements a run of the bench makes, how often, and in which order.

Engines take turns, so that a host that is busy for a while is busy for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from . import bench_contention, bench_engine, bench_paths, bench_programs
from .bench_engine import Sample
from .bench_lab import KSM, KSM_ADVISOR, KSM_FULL, PKSM, PKSM_FULL, Lab, Setting
from .term import Term

PARTS = ("work", "convergence", "idle", "volatile", "paths", "contention", "savings", "rmap",
         "programs", "harness")  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is measured: sizes in MiB of memory that is filled, turns, seconds."""

    mode: str
    sizes: tuple[tuple[int, int], ...]
    procs: tuple[int, ...]
    procs_mib: int
    turns: int
    convergence: tuple[int, ...]
    convergence_turns: int
    idle_mib: int
    idle_seconds: int
    volatile_mib: int
    volatile_seconds: int
    path_turns: int
    path_repeat: int
    contention_turns: int
    savings_mib: int
    savings_seconds: int
    programs: bool
    harness_turns: int
    suite: bool


# Sizes with how often they are measured: the large ones take their time and vary less.
QUICK = Plan(
    mode="quick", sizes=((16, 4), (64, 5)), procs=(), procs_mib=64, turns=1, convergence=(64,),
    convergence_turns=1, idle_mib=32, idle_seconds=60, volatile_mib=16, volatile_seconds=4,
    path_turns=5, path_repeat=6, contention_turns=0, savings_mib=64, savings_seconds=9,
    programs=False, harness_turns=2, suite=False,
)  # fmt: skip
FULL = Plan(
    mode="full", sizes=((16, 7), (64, 7), (256, 5), (1024, 3), (4096, 2)), procs=(8, 32, 128),
    procs_mib=256, turns=3, convergence=(16, 64, 256, 1024), convergence_turns=3, idle_mib=64,
    idle_seconds=60, volatile_mib=32, volatile_seconds=60, path_turns=15, path_repeat=10,
    contention_turns=9, savings_mib=256, savings_seconds=45, programs=True, harness_turns=5,
    suite=True,
)  # fmt: skip

# The kernels that are measured; the last one by the part "paths" alone.
PROFILES = ("bench", "ksm", "off")

# One measurement: what it is, and what makes it.
Task = tuple[str, Callable[[], list[Sample]]]
# Is told of one that was made: its samples, its title, the seconds it took, how many are left.
Made = Callable[[Sequence[Sample], str, float, int], None]


def profiles_of(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the profiles of the kernels that *parts* need."""
    if "paths" in parts:
        return PROFILES
    return PROFILES[:2] if set(parts) - {"harness", "contention"} else ()


def tasks(plan: Plan, lab: Lab, parts: tuple[str, ...], say: Callable[[str], None]) -> list[Task]:
    """Return what is to be done, in order; *say* is told of steps within a task."""
    found: list[Task] = []

    def add(part: str, title: str, make: Callable[[], list[Sample]]) -> None:
        if part in parts:
            found.append((title, make))

    for mib, turns in plan.sizes:
        for turn in range(turns):
            for setting in _in_turn((PKSM_FULL, KSM_FULL), turn):
                add("work", f"{setting.title}: {mib} MiB, turn {turn + 1} of {turns}",
                    partial(bench_engine.work, lab, setting, mib, 8))  # fmt: skip
    for turn in range(plan.turns):
        for procs in plan.procs[1:]:
            for setting in _in_turn((PKSM_FULL, KSM_FULL), turn):
                add("work", f"{setting.title}: {procs} processes",
                    partial(bench_engine.work, lab, setting, plan.procs_mib, procs))  # fmt: skip
    add("paths", "fault, free, fork, copy and exit",
        partial(bench_paths.paths, lab, plan.path_turns, plan.path_repeat, say))  # fmt: skip
    for machine in bench_contention.MACHINES if plan.contention_turns else ():
        add("contention", f"fault and free on several CPUs: {machine[0]}",
            partial(bench_contention.contention, lab, machine, plan.contention_turns,
                    say))  # fmt: skip
    for mib in plan.convergence:
        for turn in range(plan.convergence_turns):
            for setting in (PKSM, KSM_FULL, KSM_ADVISOR, KSM):
                # KSM takes so long by its defaults that once shows it.
                if setting is KSM and turn:
                    continue
                add("convergence", f"{setting.title}: converging on {mib} MiB",
                    partial(bench_engine.convergence, lab, setting, mib, 8))  # fmt: skip
    for turn in range(plan.turns):
        for setting in (PKSM, KSM):
            add("idle", f"{setting.title}: while nothing changes",
                partial(bench_engine.idle, lab, setting, plan.idle_mib,
                        plan.idle_seconds))  # fmt: skip
            add("volatile", f"{setting.title}: while everything changes",
                partial(bench_engine.volatile, lab, setting, plan.volatile_mib,
                        plan.volatile_seconds))  # fmt: skip
    for setting in (PKSM, KSM, KSM_FULL) if plan is FULL else (PKSM, KSM):
        add("savings", f"{setting.title}: what is saved of a mix",
            partial(bench_engine.savings, lab, setting, plan.savings_mib,
                    plan.savings_seconds))  # fmt: skip
    for turn in range(plan.turns):
        for setting in (PKSM_FULL, KSM_FULL):
            add("rmap", f"{setting.title}: a page shared 10,000 times",
                partial(bench_engine.rmap, lab, setting))  # fmt: skip
    for name in bench_programs.PROGRAMS if plan.programs else ():
        for setting in (PKSM, KSM):
            add("programs", f"{setting.title}: {name}",
                partial(bench_programs.program, lab, setting, name))  # fmt: skip
    return found


def _in_turn(settings: Sequence[Setting], turn: int) -> list[Setting]:
    """Return *settings*, every other time in the other order."""
    return list(settings if turn % 2 == 0 else reversed(settings))


def run(plan: Plan, kernel: str, parts: tuple[str, ...], made: Made, *, term: Term) -> None:
    """Make all measurements of *plan* that are of *parts*, and tell *made* of each.

    Raises what guests raise, and BenchError when an engine does not do what it should.
    """
    with term.step("measuring") as step:
        done = ""

        def say(text: str) -> None:
            step.update(f"{done}: {text}")

        todo = tasks(plan, Lab(kernel, term), parts, say)
        for count, (title, make) in enumerate(todo, 1):
            done = f"{count} of {len(todo)}"
            if term.is_tty:
                say(title)
            else:
                term.info(f"{done}: {title}")
            began = time.monotonic()
            samples = make()
            made(samples, title, time.monotonic() - began, len(todo) - count)

# SPDX-License-Identifier: GPL-2.0-only
"""Which measurements a run of the bench makes, how often, and in which order.

Engines take turns, so that a host that is busy for a while is busy for all of them. One
measurement that fails is tried once more; if it fails again that does not end the run: it is
written down, and the others are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from . import bench_contention, bench_engine, bench_harness, bench_paths, bench_programs
from .bench_engine import Sample
from .bench_lab import BenchError, KSM, KSM_ADVISOR, KSM_FULL, PKSM, PKSM_FULL, Lab, Setting
from .errors import LinuxUmError
from .term import Term

PARTS = ("work", "convergence", "idle", "volatile", "paths", "contention", "savings", "rmap",
         "programs", "harness")  # fmt: skip
# Where the first so many have failed there is no sense in going on.
MOST_FAILURES = 3

# Memory that is filled, in MiB, and how many processes have it.
Size = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """How much is measured: sizes in MiB of memory that is filled, turns, seconds."""

    mode: str
    sizes: tuple[tuple[int, int], ...]
    procs: tuple[int, ...]
    procs_mib: int
    turns: int
    convergence: tuple[Size, ...]
    convergence_turns: int
    slow_mib: tuple[int, ...]
    idle: tuple[Size, ...]
    idle_seconds: int
    volatile: tuple[Size, ...]
    volatile_seconds: int
    metadata_mib: int
    path_boots: int
    path_turns: int
    path_repeat: int
    contention_boots: int
    contention_turns: int
    savings_mib: int
    visit_seconds: int
    programs: bool
    harness_turns: int
    suite: bool


# Sizes with how often they are measured: the large ones take their time and vary less.
QUICK = Plan(
    mode="quick", sizes=((16, 3), (64, 3)), procs=(), procs_mib=64, turns=1,
    convergence=((64, 8), (256, 8)), convergence_turns=1, slow_mib=(64,), idle=((32, 8),),
    idle_seconds=60, volatile=((16, 4),), volatile_seconds=60, metadata_mib=512, path_boots=3,
    path_turns=2, path_repeat=3, contention_boots=0, contention_turns=0, savings_mib=64,
    visit_seconds=4, programs=False, harness_turns=2, suite=False,
)  # fmt: skip
FULL = Plan(
    mode="full", sizes=((16, 7), (64, 7), (256, 5), (1024, 5), (4096, 3)), procs=(8, 32, 128),
    procs_mib=256, turns=3,
    convergence=((16, 8), (64, 8), (256, 8), (256, 32), (256, 128), (1024, 8)),
    convergence_turns=3, slow_mib=(16, 64, 256), idle=((64, 8), (256, 8), (256, 64), (1024, 8)),
    idle_seconds=60, volatile=((32, 4), (128, 4), (128, 16)), volatile_seconds=60,
    metadata_mib=4096, path_boots=8, path_turns=5, path_repeat=5, contention_boots=5,
    contention_turns=3, savings_mib=256, visit_seconds=15, programs=True, harness_turns=5,
    suite=True,
)  # fmt: skip

# The kernels that are measured; the last one by the part "paths" alone.
PROFILES = ("bench", "ksm", "off")

# One measurement: what it is, which nothing else is, and what makes it.
Task = tuple[str, Callable[[], list[Sample]]]
# Is told of one that was made: its samples, its title, the seconds it took, how many are left.
Made = Callable[[Sequence[Sample], str, float, int], None]
# Is told of one that has failed, and why, and how many are left.
Failed = Callable[[str, str, int], None]


def profiles_of(part: str) -> tuple[str, ...]:
    """Return the profiles of the kernels that *part* needs, but for those of contention."""
    if part == "paths":
        return PROFILES
    return () if part in ("harness", "contention") else PROFILES[:2]


def machine_part(machine: tuple[str, str, str, str]) -> str:
    """Return what the part of ``contention`` is called that is of *machine*."""
    return f"fault and free on several CPUs: {machine[0]}"


def tasks(
    plan: Plan,
    lab: Lab,
    parts: Sequence[str],
    say: Callable[[str], None],
    profile: str = "fast",
    lacking: Collection[str] = (),
) -> list[Task]:
    """Return what is to be done, in order; *say* is told of steps within a task.

    The harness is measured with kernels of *profile*. Nothing is done for the parts that are
    *lacking*, nor for programs that are, nor for what :func:`machine_part` calls a machine
    that is. Last comes what most depends on the host: other machines, its programs, and
    whole runs of the suite.
    """
    found: list[Task] = []

    def add(part: str, title: str, make: Callable[[], list[Sample]]) -> None:
        if part in parts and part not in lacking:
            found.append((title, make))

    def each_turn(number: int, settings: Sequence[Setting]) -> Iterator[tuple[str, Setting]]:
        """Yield the settings of each turn, every other time in the other order."""
        for turn in range(number):
            title = f", turn {turn + 1} of {number}" if number > 1 else ""
            for setting in settings if turn % 2 == 0 else reversed(settings):
                yield title, setting

    full_speed, defaults = (PKSM_FULL, KSM_FULL), (PKSM, KSM)
    works = [(mib, 8, turns) for mib, turns in plan.sizes]
    works += [(plan.procs_mib, procs, plan.turns) for procs in plan.procs[1:]]
    for mib, procs, turns in works:
        for number, (turn, setting) in enumerate(each_turn(turns, full_speed)):
            for measure in (bench_engine.unmatched, bench_engine.merged):
                add("work",
                    f"{setting.title}: {mib} MiB of {procs}, {measure.__name__}{turn}",
                    partial(bench_engine.work, lab, setting, mib, procs,
                            number // len(full_speed), measure))  # fmt: skip
    for setting in full_speed:
        add("work", f"{setting.title}: metadata of {plan.metadata_mib} MiB",
            partial(bench_engine.metadata, lab, setting, plan.metadata_mib))  # fmt: skip
    for boot in range(plan.path_boots):
        add("paths", f"fault, free, fork, copy and exit, boot {boot + 1} of {plan.path_boots}",
            partial(bench_paths.paths, lab, boot, plan.path_turns, plan.path_repeat,
                    say))  # fmt: skip
    for mib, procs in plan.convergence:
        settings = [PKSM, KSM_FULL, KSM_ADVISOR]
        for turn, setting in each_turn(plan.convergence_turns, settings):
            add("convergence", f"{setting.title}: converging on {mib} MiB of {procs}{turn}",
                partial(bench_engine.convergence, lab, setting, mib, procs))  # fmt: skip
        # KSM by its defaults takes long.
        if mib in plan.slow_mib and procs == 8:
            for turn, setting in each_turn(plan.convergence_turns, [KSM]):
                add("convergence", f"{setting.title}: converging on {mib} MiB{turn}",
                    partial(bench_engine.convergence, lab, setting, mib, procs))  # fmt: skip
    for mib, procs in plan.idle:
        for turn, setting in each_turn(plan.turns, defaults):
            add("idle", f"{setting.title}: nothing changes in {mib} MiB of {procs}{turn}",
                partial(bench_engine.idle, lab, setting, mib, procs,
                        plan.idle_seconds))  # fmt: skip
    for mib, procs in plan.volatile:
        for turn, setting in each_turn(plan.turns, defaults):
            add("volatile", f"{setting.title}: all of {mib} MiB of {procs} changes{turn}",
                partial(bench_engine.volatile, lab, setting, mib, procs,
                        plan.volatile_seconds))  # fmt: skip
    for turn, setting in each_turn(plan.turns, [PKSM, KSM, KSM_FULL]):
        add("savings", f"{setting.title}: what is saved of a mix{turn}",
            partial(bench_engine.savings, lab, setting, plan.savings_mib,
                    plan.visit_seconds))  # fmt: skip
    for turn, setting in each_turn(plan.turns, full_speed):
        add("rmap", f"{setting.title}: a page shared 10,000 times{turn}",
            partial(bench_engine.rmap, lab, setting))  # fmt: skip
    for machine in bench_contention.MACHINES:
        for boot in range(plan.contention_boots if machine_part(machine) not in lacking else 0):
            add("contention",
                f"{machine_part(machine)}, boot {boot + 1} of {plan.contention_boots}",
                partial(bench_contention.contention, lab, machine, boot, plan.contention_turns,
                        say))  # fmt: skip
    for name in bench_programs.PROGRAMS if plan.programs else ():
        if name in lacking:
            continue
        for turn, setting in each_turn(plan.turns, defaults):
            add("programs", f"{setting.title}: {name}{turn}",
                partial(bench_programs.program, lab, setting, name))  # fmt: skip
    for title, make in bench_harness.tasks(
        (profile, lab.kernel), plan.harness_turns, suite=plan.suite
    ):
        add("harness", title, make)
    return found


def run(
    todo: Sequence[Task],
    made: Made,
    failed: Failed,
    step: Callable[[str], None],
    done: Collection[str] = (),
) -> None:
    """Make the measurements *todo* but for those whose titles are in *done*.

    *made* is told of each, or *failed* when it has raised an Exception twice; *step* of the
    one that begins. Raises the last error when the first :data:`MOST_FAILURES` have failed,
    and nothing has not.
    """
    left = [task for task in todo if task[0] not in done]
    failures, succeeded = 0, len(left) < len(todo)
    for count, (title, make) in enumerate(left, 1):
        step(f"{count + len(todo) - len(left)} of {len(todo)}: {title}")
        began = time.monotonic()
        try:
            samples = _made_by(make, title, step)
        except LinuxUmError as error:
            failures += 1
            failed(title, str(error), len(left) - count)
            if failures == MOST_FAILURES and not succeeded:
                raise
            continue
        succeeded = True
        made(samples, title, time.monotonic() - began, len(left) - count)


def _made_by(
    make: Callable[[], list[Sample]], title: str, step: Callable[[str], None]
) -> list[Sample]:
    """Make a measurement, and once more when it fails, of which *step* is told.

    Raises LinuxUmError, whatever went wrong the second time: the others go on.
    """
    try:
        return make()
    except Exception as error:
        step(f"once more: {title} ({error})")
    try:
        return make()
    except LinuxUmError:
        raise
    except OSError as error:
        raise BenchError(f"{type(error).__name__}: {error}") from error
    except Exception as error:
        raise BenchError(f"{type(error).__name__}: {error}", "that is a bug") from error


class Progress:
    """Says which measurement is being made, and what it is about: at most one line each."""

    def __init__(self, term: Term, update: Callable[[str], None]) -> None:
        """To be shown by *update* on a terminal, and else by lines of *term*."""
        self._term = term
        self._update = update
        self._title = ""

    def begin(self, title: str) -> None:
        """Another measurement begins."""
        self._title = title
        if self._term.is_tty:
            self._update(title)
        else:
            self._term.info(title)

    def say(self, text: str) -> None:
        """It has come to something within it."""
        self._update(f"{self._title}: {text}")

# SPDX-License-Identifier: GPL-2.0-only
"""What the paths of mm cost on which the hooks are: without PKSM, with it off, and with it on.

The guests run side by side, one working at a time, so that a host that is busy for a while
is busy for all of them. One of them is there twice: what lies between those two is noise.

The CPU time is that of the whole kernel. Where PKSM is on, it has pksmd's in it as far as
that takes the new pages over; to read them is work that bench_engine measures, and so they
are let settle for longer than this takes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from .bench_engine import Sample
from .bench_lab import KSM_DIR, PKSM_DIR, Lab, Workload, kernel_cpu_ns

# Name, profile, and words for the kernel's command line.
VARIANTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("none-a", "off", ()),
    ("pksm-off", "bench", ("pksm=off",)),
    ("none-b", "off", ()),
    ("pksm-on", "bench", ("pksm=on",)),
    ("ksm-on", "ksm", ()),
)
PAGES = 8192
MIB = 192
SETTLE_MILLISECS = 60_000
# In the order in which mmcost does them.
STEPS = ("populate", "fork", "cow", "exit", "unmap")


def paths(lab: Lab, turns: int, repeat: int, progress: Callable[[str], None]) -> list[Sample]:
    """Measure each step *repeat* times in each guest, *turns* times, in turns."""
    found: list[Sample] = []
    with ExitStack() as stack:
        programs: list[tuple[str, Workload]] = []
        for name, profile, append in VARIANTS:
            progress(f"booting {name}")
            guest = stack.enter_context(lab.guest(profile, MIB, append=append))
            if name == "ksm-on":
                guest.write_file(f"{KSM_DIR}/run", "1")
            elif name == "pksm-on":
                guest.write_file(f"{PKSM_DIR}/settle_millisecs", str(SETTLE_MILLISECS))
            program = Workload(guest, ["mmcost", "--pages", str(PAGES)])
            programs.append((name, stack.enter_context(program)))
            # Memory that was never used is new to the host as well.
            _steps(program)
        for turn in range(turns):
            # Another order each time: who comes first finds the caches of somebody else.
            first = turn % len(programs)
            for name, program in programs[first:] + programs[:first]:
                progress(f"turn {turn + 1} of {turns}: {name}")
                times: dict[str, list[int]] = {step: [] for step in STEPS}
                before = _daemon_usecs(name, program)
                for _ in range(repeat):
                    for step, cpu_ns in _steps(program).items():
                        times[step].append(cpu_ns)
                found.append({"what": "paths", "variant": name, "turn": turn, "pages": PAGES,
                              "daemon_usecs": _daemon_usecs(name, program) - before,
                              **times})  # fmt: skip
    return found


def _daemon_usecs(name: str, program: Workload) -> int:
    """Return the CPU time of pksmd, in microseconds of the clock; 0 where there is none."""
    if not name.startswith("pksm"):
        return 0
    return int(program.guest.read_file(f"{PKSM_DIR}/cpu_usecs"))


def _steps(program: Workload) -> dict[str, int]:
    """Have each step done once; return the nanoseconds of CPU that the kernel has used for it."""
    found = {}
    for step in STEPS:
        start = kernel_cpu_ns(program.guest)
        program.order(step)
        found[step] = kernel_cpu_ns(program.guest) - start
    return found

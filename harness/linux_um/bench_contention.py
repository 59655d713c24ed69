# SPDX-License-Identifier: GPL-2.0-only
"""Fault and free on several CPUs at once, with PKSM on and off.

One kernel and one workload: processes that share nothing but the kernel populate and
unmap memory, each on a CPU of its own. A page costs each of them as much as it costs one
alone where nothing is contended for; what the engine adds to that is the difference
between the guests, which take turns. No guest has more CPUs than the host, or than two
where the host has one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack

from . import kconfig
from .bench_engine import Sample
from .bench_lab import PKSM_DIR, Lab
from .bench_paths import SETTLE_MILLISECS
from .guest import Guest

# Name, kernel, profile, architecture.
MACHINES: tuple[tuple[str, str, str, str], ...] = (
    ("7.3, UML", "7.3", "smp", kconfig.UM),
    ("x86_64, QEMU", "6.12", "bench-pc", "x86_64"),
)
VARIANTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pksm-off", ("pksm=off",)),
    ("pksm-on", ("pksm=on",)),
)
MIB = 192
MAX_CPUS = 8
MILLISECS = 500


def cpu_counts(host: int | None = None) -> list[int]:
    """Return on how many CPUs it is measured: powers of two that *host* has; at least 1 and 2."""
    most = min(MAX_CPUS, max(2, (os.cpu_count() or 1) if host is None else host))
    return [1 << bits for bits in range(most.bit_length()) if 1 << bits <= most]


def contention(
    lab: Lab, machine: tuple[str, str, str, str], boot: int, turns: int, say: Callable[[str], None]
) -> list[Sample]:
    """Measure on each number of CPUs of *machine*, *turns* times, in turns.

    *boot* is the number of these guests, which are booted for it.
    """
    name, kernel, profile, arch = machine
    counts = cpu_counts()
    found: list[Sample] = []
    with ExitStack() as stack:
        guests: list[tuple[str, Guest]] = []
        for variant, append in VARIANTS:
            say(f"booting {name}, {variant}")
            guest = stack.enter_context(
                lab.guest(profile, MIB, append=append, kernel=kernel, arch=arch, cpus=counts[-1])
            )
            if variant == "pksm-on":
                guest.write_file(f"{PKSM_DIR}/settle_millisecs", str(SETTLE_MILLISECS))
            for count in counts:
                _run(guest, count)
            guests.append((variant, guest))
        for turn in range(turns):
            say(f"{name}, turn {turn + 1} of {turns}")
            first = (boot + turn) % len(guests)
            for count in counts:
                for variant, guest in guests[first:] + guests[:first]:
                    found.append({
                        "what": "contention", "machine": name, "engine": variant, "boot": boot,
                        "procs": count, "turn": turn, **_run(guest, count),
                    })  # fmt: skip
    return found


def _run(guest: Guest, workers: int) -> dict[str, int]:
    """Have so many processes work at the same time; return the pages and the microseconds."""
    done = guest.run(["mmscale", f"--workers={workers}", f"--millisecs={MILLISECS}"], timeout=300.0)
    report: dict[str, int] = json.loads(done.stdout)
    return {"pages": report["pages"], "usecs": report["usecs"]}

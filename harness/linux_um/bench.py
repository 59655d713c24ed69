# SPDX-License-Identifier: GPL-2.0-only
"""The command ``bench``: how long things take on this host. It judges nothing.

The measurements take turns, so that a host that is busy for a while is busy
for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import bench_harness, packages, rootfs
from .errors import LinuxUmError, UsageError
from .gdb_machine import Kernel
from .gdb_session import indexing
from .guest import finished_image
from .options import add_kernel_options
from .term import Term

DEFAULT_REPEAT = 5


@dataclass(frozen=True)
class Measurement:
    """Something to measure: ``run`` does it once and returns seconds."""

    name: str
    title: str
    run: Callable[[], float]


@dataclass(frozen=True)
class Result:
    """What came of a measurement, in seconds."""

    name: str
    title: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the runs."""
        # Not at the top: every start of the launcher would pay for it.
        from statistics import median

        return median(self.seconds)

    def row(self) -> str:
        """Return the result as a line of the table."""
        spread = f"{min(self.seconds):.2f} .. {max(self.seconds):.2f}"
        return f"{self.title:44} {self.median:7.2f} s   {spread}"

    def facts(self) -> dict[str, object]:
        """Return the result for the JSON file."""
        return {
            "title": self.title,
            "unit": "s",
            "median": round(self.median, 4),
            "min": round(min(self.seconds), 4),
            "max": round(max(self.seconds), 4),
            "runs": [round(value, 4) for value in self.seconds],
        }


def add_parsers(subparsers: Any) -> None:
    """Add the parser of this module's command."""
    parser = subparsers.add_parser(
        "bench",
        help="how long things take here",
        description="Measure how long the harness takes: each thing several times, in turns. "
        "The table has medians and the spread from the fastest to the slowest run.",
    )
    add_kernel_options(parser)
    parser.add_argument(
        "--repeat",
        metavar="N",
        type=int,
        default=DEFAULT_REPEAT,
        help="how often each thing is measured (default %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")
    parser.set_defaults(handler=bench_command)


def bench_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um bench``: print the table; return 0."""
    if arguments.repeat < 1:
        raise UsageError("--repeat must be 1 at least", "write --repeat 5")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UsageError(f"--json {arguments.json}: no such directory", "name one that exists")
    packages.ensure("gdb", term=term)
    image = finished_image(arguments.profile, arguments.kernel, term)
    rootfs.ensure_rootfs(term=term, kernel=arguments.kernel)
    with indexing(Kernel.of(image)):
        pass
    kernel = ["--profile", arguments.profile, "--kernel", arguments.kernel]
    measurements = [
        Measurement(name, title, partial(what, kernel))
        for name, title, what in bench_harness.MEASUREMENTS
    ]
    results = measure(measurements, arguments.repeat, term=term)
    print(table(results, image.describe()), flush=True)
    if arguments.json is not None:
        facts = {
            "image": image.key,
            "kernel": image.kernel,
            "profile": image.profile,
            "host": {"machine": platform.machine(), "cpus": os.cpu_count(),
                     "release": platform.release(), "load": os.getloadavg()[0]},
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "harness": {result.name: result.facts() for result in results},
        }  # fmt: skip
        try:
            arguments.json.write_text(json.dumps(facts, indent=2) + "\n")
        except OSError as error:
            raise LinuxUmError(f"--json {arguments.json}: {error.strerror}") from error
    return 0


def measure(measurements: Sequence[Measurement], repeat: int, *, term: Term) -> list[Result]:
    """Do each of *measurements* *repeat* times, in turns; raises what they raise."""
    seconds: dict[str, list[float]] = {item.name: [] for item in measurements}
    with term.step(f"measuring {len(measurements)} things, {repeat} times each") as step:
        for turn in range(repeat):
            for item in measurements:
                step.update(f"turn {turn + 1}: {item.title}")
                seconds[item.name].append(item.run())
    return [Result(item.name, item.title, tuple(seconds[item.name])) for item in measurements]


def table(results: Sequence[Result], what: str) -> str:
    """Return the results as a table, under *what* was measured."""
    head = f"{'':44} {'median':>7}     min .. max"
    runs = len(results[0].seconds) if results else 0
    return "\n".join([f"{what}; {runs} runs", head, *(result.row() for result in results)])

# SPDX-License-Identifier: GPL-2.0-only
"""The command ``soak``: one guest at work for long, with memory and counters plotted."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import packages, soak
from .commands_run import add_machine_options, boot_options
from .errors import LinuxUmError, UsageError
from .guest import boot, run_arguments
from .options import finite
from .outcome import CommandFailed
from .soak import Sample, SoakError
from .term import Term

DEFAULT_DIRECTORY = "soak-report"
DEFAULT_CYCLES = 20
JSON_NAME, PLOT_NAME = "soak.json", "soak.png"

DESCRIPTION = """\
Let workloads of many kinds run beside each other in one guest, cycle after cycle; after
each cycle, when all have ended, read free memory, slab and the engine's counters. They
have to be flat: what is left behind by each cycle is a leak.
"""
EPILOG = f"""\
Leaves {JSON_NAME} and {PLOT_NAME}. Hours are hours of the guest: under time travel (the
default, where there is such) waiting takes none.
Exit status: 0; 1 a wrong byte, counters that contradict each other, or drift;
otherwise as of run.

  ./linux-um soak                    # {DEFAULT_CYCLES} cycles
  ./linux-um soak --hours 10
  ./linux-um soak --profile debug --cycles 10
  ./linux-um soak --kernel 7.3 --cpus 2 --cycles 50"""


def add_parsers(subparsers: Any) -> None:
    """Add the parser of this module's command."""
    parser = subparsers.add_parser(
        "soak",
        help="hours of mixed work in one guest: is it flat?",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--cycles", metavar="N", type=int, help=f"how many (default {DEFAULT_CYCLES})"
    )
    length.add_argument(
        "--hours", metavar="H", type=finite, help="go on until the guest is so old"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="of the choice (1)")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=Path(DEFAULT_DIRECTORY),
        help="where the report goes (default %(default)s)",
    )  # fmt: skip
    add_machine_options(parser, time_travel=True)
    parser.set_defaults(handler=soak_command)


def soak_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um soak``: return 0 when all is flat, or 1. Raises what the guest's end is."""
    cycles, hours = arguments.cycles, arguments.hours
    fewest = soak.WARM_UP + 3
    if cycles is not None and cycles < fewest:
        raise UsageError(f"--cycles {cycles}", f"give {fewest} at least")
    if hours is not None and hours <= 0:
        raise UsageError(f"--hours {hours:g}", "give more than 0")
    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}", "give a number that is not negative")
    if arguments.swap is not None or arguments.share:
        raise UsageError("--swap and --share are not for soak", "it has swap of its own")
    options = boot_options(arguments, "soak", soak.CYCLE_SECONDS)
    packages.ensure("bench", term=term)
    directory: Path = arguments.output
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LinuxUmError(f"--output {directory}: {error.strerror}", "name another") from error
    words = ["./linux-um", "soak", *run_arguments(options), "--seed", str(arguments.seed)]
    options = replace(options, repeat=shlex.join(words))
    with boot(options, term=term) as guest:
        worker = soak.Soak(guest, arguments.seed)
        document = {
            "kernel": guest.version,
            "profile": options.profile,
            "seed": arguments.seed,
            "time": time.strftime("%Y-%m-%d %H:%M"),
        }
        try:
            work(worker, cycles or (None if hours else DEFAULT_CYCLES), hours, term)
        finally:
            # What there is, also when a cycle has failed or somebody got impatient.
            leave(worker.samples, document, directory)
    return judge(worker.samples, directory)


def work(worker: soak.Soak, cycles: int | None, hours: float | None, term: Term) -> None:
    """Do the cycles, and print a line for each. Raises SoakError, also for broken laws."""
    fewest = soak.WARM_UP + 3
    while True:
        number = len(worker.samples) + 1
        of = f" of {cycles}" if cycles else ""
        with term.step(f"cycle {number}{of}") as step:
            try:
                sample = worker.cycle(step.update)
            except (AssertionError, CommandFailed) as error:
                raise SoakError(f"cycle {number}: {error}") from error
        print(line_of(sample), flush=True)
        if cycles is not None and number >= cycles:
            return
        if hours is not None and number >= fewest and sample.guest_seconds >= hours * 3600:
            return


def line_of(sample: Sample) -> str:
    """Return a line on a cycle."""
    return (
        f"{sample.cycle:4} {sample.guest_seconds / 60:8.1f} min  free {sample.mem_free_kib} KiB, "
        f"slab {sample.slab_kib} KiB, at rest {sample.counters['stable_items']} items, "
        f"{sample.counters['pages_merged']} merged so far; {', '.join(sample.work)}"
    )


def judge(samples: Sequence[Sample], directory: Path) -> int:
    """Print what the soak has shown; return the exit status."""
    wrong = soak.verdicts(samples)
    for each in wrong:
        print(f"not flat: {each}")
    sums = soak.totals(samples)
    print(
        f"{sums['cycles']:.0f} cycles, {sums['guest_hours']:.2f} h of the guest in "
        f"{sums['wall_minutes']:.0f} min: {sums['pages_merged']:.0f} pages merged, "
        f"{sums['pages_broken']:.0f} broken off, {sums['peak_saved_mib']:.1f} MiB saved at most; "
        f"free memory {sums['mem_drift_kib']:.0f} KiB less, slab {sums['slab_drift_kib']:.0f} KiB "
        f"more: {'NOT FLAT' if wrong else 'flat'}"
    )
    print(f"{directory / JSON_NAME}, {directory / PLOT_NAME}")
    return 1 if wrong else 0


def leave(samples: Sequence[Sample], document: Mapping[str, Any], directory: Path) -> None:
    """Write the report of *samples*, if there are any. Raises LinuxUmError when that fails."""
    if not samples:
        return
    whole = {**document, "samples": [asdict(sample) for sample in samples]}
    try:
        (directory / JSON_NAME).write_text(json.dumps(whole, indent=1) + "\n")
        draw(samples, directory / PLOT_NAME)
    except OSError as error:
        raise LinuxUmError(f"cannot write the report: {error}", "mend that") from error


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Plot memory and counters against the guest's time. Raises OSError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    minutes = [sample.guest_seconds / 60 for sample in samples]
    series: list[tuple[str, list[tuple[str, list[float]]]]] = [
        ("MiB free at rest", [("", [sample.mem_free_kib / 1024 for sample in samples])]),
        ("MiB of slab at rest", [("", [sample.slab_kib / 1024 for sample in samples])]),
        (
            "left at rest",
            [(name, [float(sample.counters[name]) for sample in samples]) for name in soak.AT_REST],
        ),
        ("pages saved at most", [("", [float(sample.peak_saved_pages) for sample in samples])]),
        ("pages merged so far", [("", [float(each.counters["pages_merged"]) for each in samples])]),
    ]
    figure, every = plt.subplots(len(series), 1, figsize=(8, 11), sharex=True)
    for axes, (label, lines) in zip(every, series, strict=True):
        for name, values in lines:
            axes.plot(minutes, values, marker=".", label=name or None)
        if len(lines) > 1:
            axes.legend(fontsize=7, ncols=3, frameon=False)
        low, high = axes.get_ylim()
        # Noise of a few pages is not to look like a mountain.
        if label.startswith("MiB"):
            axes.set_ylim(0, high * 1.2)
        elif low == high or high - low < 1:
            axes.set_ylim(-1, max(high, 1) + 1)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.25)
    every[0].set_title(f"{len(samples)} cycles of mixed work in one guest")
    every[-1].set_xlabel("minutes of the guest")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)

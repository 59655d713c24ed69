# SPDX-License-Identifier: GPL-2.0-only
"""The command ``bench``: PKSM measured against stock KSM, and a report of it.

The measurements make samples; everything else is worked out of these, so that a report
can be made again, or compared with another, from the file that has them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import kconfig, packages
from .bench_facts import Sample
from .bench_lab import BenchError
from .errors import LinuxUmError, UsageError
from .options import add_kernel_options, only_um
from .term import Term

if TYPE_CHECKING:
    from .bench_run import Plan

FORMAT = 3
DEFAULT_DIRECTORY = "bench-report"
JSON_NAME = "bench.json"
# What two runs must have been made with for one to go on with the other.
SAME = ("mode", "parts", "kernel", "profile")
SAME_HOST = ("machine", "cpu", "cpus", "release")
HTML_NAME = "index.html"


def add_parsers(subparsers: Any) -> None:
    """Add the parser of this module's command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure PKSM against stock KSM",
        description="Measure PKSM against stock KSM, against the floor of this machine and "
        "against kernels without either, in guests that take turns; and how long the harness "
        "takes. Leaves a report: index.html, a PNG file of each plot, and bench.json with every "
        "number. The table has medians and the spread from the lowest to the highest run.",
    )
    add_kernel_options(parser)
    parser.add_argument(
        "--quick", action="store_true",
        help="two minutes, in place of an hour or more: smaller and fewer",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="go on with a run that has ended early: what its bench.json has is not measured again",
    )  # fmt: skip
    parser.add_argument(
        "--only",
        metavar="PART,...",
        help="some of: work, convergence, idle, volatile, paths, contention, savings, rmap, "
        "programs, harness (contention and programs are no part of --quick)",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=Path(DEFAULT_DIRECTORY),
        help="where the report goes (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--from", dest="source", metavar="FILE", type=Path,
        help="measure nothing: make the report of that bench.json again",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="FILE", type=Path,
        help="say what is slower or faster than in that bench.json",
    )  # fmt: skip
    parser.set_defaults(handler=bench_command)


def bench_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um bench``: measure, leave the report, print the tables; return 0.

    Raises BenchError at the end when something could not be measured.
    """
    only_um(arguments, "bench")
    packages.ensure("bench", term=term)
    before = read(arguments.against) if arguments.against is not None else None
    document = read(arguments.source) if arguments.source is not None else None
    directory: Path = arguments.output
    with _output(directory):
        directory.mkdir(parents=True, exist_ok=True)
    if document is None:
        document = measure(arguments, directory / JSON_NAME, term)
    report(document, directory, before, term)
    if arguments.source is None and document["failed"]:
        title, message = document["failed"][0]
        raise BenchError(
            f"{len(document['failed'])} measurements have failed; the first: {title}: {message}",
            f"try them again: add --resume -o {directory}",
        )
    return 0


@contextmanager
def _output(directory: Path) -> Iterator[None]:
    """What is done in the block writes to *directory*. Raises LinuxUmError when it cannot."""
    try:
        yield
    except OSError as error:
        raise LinuxUmError(
            f"--output {directory}: {error.strerror or error}", "name another"
        ) from error


def parts_of(text: str | None) -> tuple[str, ...]:
    """Return the parts that ``--only`` names, or all. Raises UsageError for another word."""
    from .bench_run import PARTS

    chosen = tuple(text.split(",")) if text else PARTS
    for name in chosen:
        if name not in PARTS:
            raise UsageError(f"--only {name}: no such part", f"there are: {','.join(PARTS)}")
    return chosen


def read(path: Path) -> dict[str, Any]:
    """Return the document of a bench.json. Raises BenchError when it is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"cannot read {path}: {error}", "give a bench.json") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BenchError(f"{path} is no bench.json of this version", "measure again")
    return document


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a bench.json, a sample a line; all of it or nothing. Raises OSError."""
    lines = ",\n  ".join(json.dumps(sample) for sample in document["samples"])
    rest = json.dumps({**document, "samples": []}, indent=1)
    text = rest.replace('"samples": []', f'"samples": [\n  {lines}\n ]', 1) + "\n"
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def missing(document: Mapping[str, Any]) -> str:
    """Return one line that says how much a run lacks that was ended early, or nothing."""
    left, failed = document.get("left", 0), document.get("failed", [])
    number = left + len(failed) + len(document["steps"])
    said = []
    if left:
        said.append(f"the run has ended early; {left} of {number} measurements were not made")
    if failed:
        said.append(f"{len(failed)} of {number} measurements have failed: {failed[0][0]}")
    return f"PARTIAL: {'; '.join(said)}" if said else ""


def prepare(
    arguments: argparse.Namespace, parts: Sequence[str], term: Term
) -> tuple[dict[str, str], dict[str, str]]:
    """See that all is there before anything is measured.

    Returns what is said of each kernel; and of each of *parts* that lacks something why. Of
    contention, machines are parts of their own: see bench_run.machine_part(); and of the
    programs, that which is in a package.
    """
    from . import bench_contention, bench_harness, bench_programs, bench_run
    from .guest import finished_image

    plan = _plan(arguments)
    images: dict[str, str] = {}
    lacking: dict[str, str] = {}

    def need(parts: Sequence[str], get: Callable[[], None]) -> None:
        """Get what those of *parts* need that lack nothing so far."""
        left = [part for part in parts if part not in lacking]
        if not left:
            return
        try:
            get()
        except (LinuxUmError, OSError) as error:
            lacking.update(dict.fromkeys(left, str(error)))

    def image(name: str, profile: str, kernel: str, arch: str = kconfig.UM) -> None:
        images[name] = finished_image(profile, kernel, term, arch).describe()

    # First of all what may not be to be had: kernels take long to compile.
    if "programs" in parts and plan.programs:
        need([bench_programs.PACKAGED], lambda: packages.ensure("bench programs", term=term))
    if "harness" in parts and plan.suite:
        need(["harness"], lambda: packages.ensure("test", term=term))
    for profile in bench_run.PROFILES:
        users = [part for part in parts if profile in bench_run.profiles_of(part)]
        need(users, partial(image, profile, profile, arguments.kernel))
    if "contention" in parts and plan.contention_turns:
        for machine in bench_contention.MACHINES:
            name, kernel, profile, arch = machine
            title = [bench_run.machine_part(machine)]
            if arch != kconfig.UM:
                need(title, lambda: packages.ensure("qemu", term=term))
            need(title, partial(image, name, profile, kernel, arch))
    if "harness" in parts:
        kernel_of_harness = arguments.profile, arguments.kernel
        need(["harness"], lambda: bench_harness.prepare(kernel_of_harness, term=term))
    return images, lacking


def _plan(arguments: argparse.Namespace) -> Plan:
    from . import bench_run

    return bench_run.QUICK if arguments.quick else bench_run.FULL


def _to_go_on_with(path: Path, new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of *path*, to go on with. Raises BenchError when it is of other things.

    What was worked out of its samples is left behind. A kernel that could not be had then
    may be there now.
    """
    old = read(path)
    other = [name for name in SAME if old.get(name) != new[name]]
    kernels = set(old["images"]) & set(new["images"])
    other += ["images"] if any(old["images"][k] != new["images"][k] for k in kernels) else []
    other += [f"host ({name})" for name in SAME_HOST if old["host"].get(name) != new["host"][name]]
    if other:
        raise BenchError(f"{path} has other {other[0]}", "measure without --resume")
    images = {**old["images"], **new["images"]}
    return {**{name: old[name] for name in new}, "images": images, "left": 0, "failed": []}


def measure(arguments: argparse.Namespace, path: Path, term: Term) -> dict[str, Any]:
    """Make all measurements that are asked for; return the document that has them.

    After each it is written to *path*, with the number of those that are left: what was
    measured for an hour is not lost when the last one fails. Raises LinuxUmError when it
    cannot be written, or when nothing can be measured.
    """
    from . import bench_run
    from .bench_lab import Lab

    parts = parts_of(arguments.only)
    load = os.getloadavg()[0]
    images, lacking = prepare(arguments, parts, term)
    document: dict[str, Any] = {
        "format": FORMAT,
        "mode": _plan(arguments).mode,
        "parts": list(parts),
        "time": "",
        "seconds": 0.0,
        "left": 0,
        "steps": [],
        "failed": [],
        "kernel": arguments.kernel,
        "profile": arguments.profile,
        "images": images,
        "host": {
            "machine": platform.machine(), "cpu": cpu_name(), "cpus": os.cpu_count(),
            "release": platform.release(), "load": [load, load],
        },
        "samples": [],
    }  # fmt: skip
    if arguments.resume:
        document = _to_go_on_with(path, document)
    before, began = document["seconds"], time.monotonic()

    def keep(left: int) -> None:
        document["left"] = left
        document["time"] = time.strftime("%Y-%m-%d %H:%M:%S %z")
        document["seconds"] = round(before + time.monotonic() - began, 1)
        document["host"]["load"][1] = os.getloadavg()[0]
        with _output(path.parent):
            write(path, document)

    def made(samples: Sequence[Sample], title: str, seconds: float, left: int) -> None:
        document["samples"] += samples
        document["steps"].append([title, round(seconds, 1)])
        keep(left)

    def failed(title: str, message: str, left: int) -> None:
        document["failed"].append([title, message])
        term.info(f"{title}: {message}")
        keep(left)

    try:
        with term.step("measuring") as step:
            progress = bench_run.Progress(term, step.update)
            todo = bench_run.tasks(_plan(arguments), Lab(arguments.kernel, term), parts,
                                   progress.say, arguments.profile, lacking)  # fmt: skip
            for part, reason in lacking.items():
                failed(part, reason, len(todo))
            if lacking and not todo:
                part, reason = next(iter(lacking.items()))
                raise BenchError(f"nothing can be measured; {part}: {reason}")
            done = {title for title, _ in document["steps"]}
            bench_run.run(todo, made, failed, progress.begin, done)
        keep(0)
    except BaseException:
        if document["steps"]:
            term.info(f"what was measured is kept: ./linux-um bench --from {path}, or --resume")
        raise
    return document


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of this host's processor, or an empty text."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _quick_seconds(document: Mapping[str, Any]) -> float | None:
    """Return how long the quick mode has taken, where all of it was measured."""
    from .bench_run import PARTS

    whole = document["mode"] == "quick" and document["parts"] == list(PARTS)
    return float(document["seconds"]) if whole and not missing(document) else None


def report(
    document: dict[str, Any], directory: Path, before: Mapping[str, Any] | None, term: Term
) -> None:
    """Write the report of *document* into *directory*, and print the tables of it.

    Raises LinuxUmError when a file cannot be written.
    """
    from . import bench_html, bench_plots, bench_table
    from .bench_facts import harness_of, slopes_of
    from .bench_overheads import contended, overheads
    from .bench_results import results_of
    from .bench_targets import targets_of

    samples = document["samples"]
    harness = harness_of(samples)
    results = results_of(samples)
    slopes = slopes_of(results)
    more = [*overheads(samples), *contended(samples)]
    targets = targets_of(results, samples, harness, _quick_seconds(document))
    document = {
        **document,
        "results": [each.facts() for each in results.all],
        "targets": [each.facts() for each in targets],
        "slopes": [asdict(each) for each in slopes],
        "overheads": [asdict(each) for each in more],
        "harness": harness,
    }
    with _output(directory):
        write(directory / JSON_NAME, document)
    colour = os.isatty(1) and not os.environ.get("NO_COLOR")
    print(bench_table.results_table(results))
    if more:
        print(f"\n{bench_table.overheads_table(more)}")
    if slopes:
        print(f"\n{bench_table.slopes_table(slopes)}")
    if harness:
        print(bench_table.harness_table(harness, colour=colour))
    print()
    print(bench_table.targets_table(targets, colour=colour))
    if before is not None:
        print("\nsince the other run:")
        print(bench_table.changes_table(results, results_of(before["samples"]), colour=colour))
    with _output(directory):
        plots, wrong = bench_plots.draw(results, samples, directory)
        warnings = [text for text in (missing(document), *wrong) if text]
        html = bench_html.page(document, results, targets, slopes, more, plots, warnings)
        (directory / HTML_NAME).write_text(html, encoding="utf-8")
    for text in warnings:
        print(f"\n{bench_table.red(text, colour=colour)}")
    print(f"\n{bench_table.summary(targets)}; see {directory / HTML_NAME}", flush=True)

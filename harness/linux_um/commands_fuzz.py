# SPDX-License-Identifier: GPL-2.0-only
"""The command ``fuzz``: random operations on memory, until one byte is wrong."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import kconfig
from .commands_run import boot_options, add_machine_options
from .errors import UsageError
from .fuzz import EXIT_FOUND, Find, Fuzzer, Result, keep
from .options import finite
from .outcome import EXIT_TAINT
from .term import Term

DEFAULT_OPS = 20000
# Operations of a seed: more are dealt out to further ones, each in a guest of its own.
OPS_PER_GUEST = 20000
# So many must have done something.
ENOUGH_OPS = 5000
DEFAULT_SHRINK_SECONDS = 600.0
# A kind of memory that User-Mode Linux does not have takes larger arenas.
PAGES = {kconfig.UM: 96, kconfig.X86_64: 1024}
MAX_PROCS, MAX_PAGES = 16, 2048
_GREEN, _RED, _RESET = "\033[32m", "\033[31m", "\033[0m"

DESCRIPTION = """\
Let fuzzmm do random things to the memory of some processes in fresh guests, and compare
every byte with a model; check the laws of the engine's counters after each run. A run
that fails is repeated with ever fewer operations, as long as it still fails.
"""
EPILOG = f"""\
Under time travel (the default, where there is such) a seed is the same run each time.
Exit status: 0; 1 a wrong byte, counters that contradict each other, or nothing done;
{EXIT_TAINT} an oops, WARN or sanitizer report in the kernel's log, 124 time-out,
125 launcher or host error, 126 the guest did not boot, 134 panic.

  ./linux-um fuzz
  ./linux-um fuzz --seed 7 --runs 20
  ./linux-um fuzz --ops 1000000                 # in guests of {OPS_PER_GUEST} operations
  ./linux-um fuzz --only map,dup,poke,verify,fork,sleep
  ./linux-um fuzz --profile debug --runs 5
  ./linux-um fuzz --arch x86_64 --ops 5000
  ./linux-um fuzz --from-script FILE            # once more, what was found"""


def add_parsers(subparsers: Any) -> None:
    """Add the parser of this module's command."""
    parser = subparsers.add_parser(
        "fuzz",
        help="random operations on memory against a model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", metavar="N", type=int, default=1, help="the first seed (1)")
    parser.add_argument(
        "--ops",
        metavar="N",
        type=int,
        default=DEFAULT_OPS,
        help="operations of a run (default %(default)s); more than that are dealt out to "
        "further seeds",
    )
    parser.add_argument(
        "--runs", metavar="N", type=int, default=1, help="how many, each with the next seed (1)"
    )
    parser.add_argument("--procs", metavar="N", type=int, default=4, help="processes (4)")
    parser.add_argument(
        "--pages", metavar="N", type=int, help="pages of each (96; with --arch x86_64 1024)"
    )
    parser.add_argument("--only", metavar="OP,...", help="only these operations")
    parser.add_argument("--without", metavar="OP,...", help="all operations but these")
    parser.add_argument(
        "--from-script",
        metavar="FILE",
        type=Path,
        help="the operations in FILE in place of those of a seed",
    )
    parser.add_argument(
        "--shrink",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make what fails as small as possible (default)",
    )
    parser.add_argument(
        "--shrink-seconds",
        metavar="SECONDS",
        type=finite,
        default=DEFAULT_SHRINK_SECONDS,
        help="how long that may take (default %(default)g)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=finite,
        default=600.0,
        help="wall-clock limit of a guest (default %(default)g)",
    )
    add_machine_options(parser, time_travel=True)
    parser.set_defaults(handler=fuzz_command)


def fuzz_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um fuzz``: return the exit status of the first run that failed, or 0."""
    fuzzer = fuzzer_of(arguments, term)
    colour = os.isatty(1) and not os.environ.get("NO_COLOR")
    begun, total, done, merged = time.monotonic(), 0, 0, 0
    if arguments.from_script is not None:
        lines = read_script(arguments.from_script)
        with term.step(f"{arguments.from_script}: {len(lines) - 1} operations") as step:
            result = fuzzer.script(lines, lambda n: step.update(f"{n}"))
        say(f"{arguments.from_script}", result, colour)
        if result.kind:
            return failed(arguments, fuzzer, result, lines, "script", term)
        return 0
    for seed, ops in seeds_of(arguments.seed, arguments.ops, arguments.runs):
        with term.step(f"seed {seed}: {ops} operations") as step:
            result = fuzzer.seed(seed, ops, lambda n: step.update(f"{n}"))
        say(f"seed {seed}", result, colour)
        total += int(result.report.get("ops", result.reached))
        done += int(result.report.get("done", 0))
        merged += int(result.report.get("counters", {}).get("pages_merged", 0))
        if result.kind:
            lines = fuzzer.list_of(seed, ops)
            return failed(arguments, fuzzer, result, lines, f"seed-{seed}", term)
    chosen = arguments.only is not None or arguments.without is not None
    if not chosen and (idle := idleness(total, done, merged if fuzzer.has_laws() else None)):
        term.error(f"{idle}: that shows nothing; see what the guests lack")
        return EXIT_FOUND
    seconds = time.monotonic() - begun
    print(f"{total} operations in {seconds:.0f} s, {total / seconds:.0f} a second: nothing found")
    return 0


def fuzzer_of(arguments: argparse.Namespace, term: Term) -> Fuzzer:
    """Return what the options ask for. Raises UsageError for what there cannot be."""
    for name, value in (("--ops", arguments.ops), ("--runs", arguments.runs)):
        if value < 1:
            raise UsageError(f"{name} {value}", "give 1 at least")
    if arguments.seed < 0:
        raise UsageError(f"--seed {arguments.seed}", "give a number that is not negative")
    pages = PAGES[arguments.arch] if arguments.pages is None else arguments.pages
    for name, value, most in (
        ("--procs", arguments.procs, MAX_PROCS),
        ("--pages", pages, MAX_PAGES),
    ):
        if not 1 <= value <= most:
            raise UsageError(f"{name} {value}", f"give a number from 1 to {most}")
    for name, seconds in (
        ("--timeout", arguments.timeout), ("--shrink-seconds", arguments.shrink_seconds),
    ):  # fmt: skip
        if seconds <= 0:
            raise UsageError(f"{name} {seconds:g}", "give some seconds")
    if arguments.swap is not None or arguments.share:
        raise UsageError("--swap and --share are not for fuzz", "it has swap of its own")
    sizes = ["--procs", str(arguments.procs), "--pages", str(pages)]
    for name in ("only", "without"):
        if getattr(arguments, name):
            sizes += [f"--{name}", getattr(arguments, name)]
    options = boot_options(arguments, "fuzz", arguments.timeout)
    return Fuzzer(options, sizes, term, arguments.timeout)


def idleness(total: int, done: int, merged: int | None) -> str:
    """Return how little has happened, when it is too little to show anything; else nothing.

    Of *total* operations *done* were possible; *merged* pages, None without PKSM.
    """
    if total < ENOUGH_OPS:
        return ""
    if done < total / 4:
        return f"only {done} of {total} operations could be done"
    return f"no page was merged in {total} operations" if merged == 0 else ""


def seeds_of(seed: int, ops: int, runs: int) -> Iterator[tuple[int, int]]:
    """Yield the seeds, with the operations of each."""
    for _ in range(runs):
        left = ops
        while left:
            here = min(left, OPS_PER_GUEST)
            yield seed, here
            seed, left = seed + 1, left - here


def read_script(path: Path) -> list[str]:
    """Return the lines of a list of operations, remarks left out. Raises UsageError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--from-script {path}: {error}", "name a list") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines or not lines[0].startswith("sizes "):
        lines.insert(0, "sizes 4 96")
    if len(lines) == 1:
        raise UsageError(f"--from-script {path}: no operation in it", "name a list")
    return lines


def say(name: str, result: Result, colour: bool) -> None:
    """Print a line on what became of a run."""
    report, verdict = result.report, result.kind or "fine"
    if colour:
        verdict = f"{_RED if result.kind else _GREEN}{verdict}{_RESET}"
    if not report:
        print(f"{name:10} {verdict}: {result.said} (after operation {result.reached})", flush=True)
        return
    rate = report["ops"] / max(result.seconds, 0.1)
    counters = report["counters"]
    print(
        f"{name:10} {verdict}: {report['ops']} operations, {report['done']} of them done, "
        f"{rate:.0f} a second; merged {counters.get('pages_merged', 0)}, "
        f"broken off {counters.get('pages_broken', 0)}; digest {report['digest']}",
        flush=True,
    )


def failed(
    arguments: argparse.Namespace,
    fuzzer: Fuzzer,
    result: Result,
    lines: list[str],
    name: str,
    term: Term,
) -> int:
    """Say what is wrong, keep and shrink it, say how to repeat it; return the exit status."""
    print(result.said, file=sys.stderr)
    find = keep(
        fuzzer, result, lines, name,
        shrink=arguments.shrink, seconds=arguments.shrink_seconds, term=term,
    )  # fmt: skip
    if arguments.shrink and not find.repeats:
        term.warn("the list alone does not fail in that way: it takes more than its operations")
    elif arguments.shrink:
        print(f"{len(find.lines) - 1} operations are left, after {find.tries} runs:")
        for line in find.lines[:40]:
            print(f"  {line}")
        if len(find.lines) > 40:
            print("  ...")
    print(f"kept in {find.directory}; repeat by: {repeat_command(arguments, find)}", flush=True)
    return result.exit_status


def repeat_command(arguments: argparse.Namespace, find: Find) -> str:
    """Return the command that repeats a find."""
    words = ["./linux-um", "fuzz", "--from-script", str(find.directory / "script")]
    words += ["--profile", arguments.profile, "--kernel", arguments.kernel]
    if arguments.arch != kconfig.UM:
        words += ["--arch", arguments.arch]
    if arguments.time_travel is False:
        words.append("--real-time")
    if arguments.cpus is not None:
        words += ["--cpus", str(arguments.cpus)]
    for text in arguments.append:
        words += ["--append", text]
    return shlex.join(words)

# SPDX-License-Identifier: GPL-2.0-only
"""The command ``top``: the counters of a guest that runs already."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

from . import top
from .errors import SessionError, UsageError
from .gdb_machine import MachineFacts, find_live, is_running, running, tracer_of
from .rundir import LATEST
from .term import Term
from .watch import Onlooker

# An answer that takes longer than this is remarked on.
SLOW_SECONDS = 2.0
MIN_INTERVAL, MAX_INTERVAL = 0.05, 3600.0
# Seconds a launcher that has just started may take to open its socket.
_CONNECT_SECONDS = 5.0
DESCRIPTION = """\
Watch the engine of a guest that another terminal has booted (boot, run, gdb, test):
its counters, how they change in a second, what merging saves. RUN is a run directory's
name or a path to one; without, the newest guest that runs. The guest starts no program
for it, and notices nothing while nobody watches.

On a terminal the view fills the screen (q quits, h has the other keys); in a pipe, and
with --count, --once or --json, it is a line for each interval.
"""
EPILOG = """\
Exit status: 0 also when the guest ends meanwhile; 125 when no guest runs.

  ./linux-um top
  ./linux-um top --interval 0.2 --count 50 | tee counters.txt
  ./linux-um top --once --json"""


def add_parsers(subparsers: Any) -> None:
    """Add the parser of this module's command."""
    parser = subparsers.add_parser(
        "top",
        help="watch the counters of a running guest",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", nargs="?", default=LATEST)
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=float,
        default=1.0,
        help="time between samples (default %(default)g)",
    )
    parser.add_argument("--count", metavar="N", type=int, help="print N lines, then end")
    parser.add_argument("--once", action="store_true", help="the same as --count 1")
    parser.add_argument("--json", action="store_true", help="print lines of JSON")
    parser.set_defaults(handler=top_command)


def top_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um top``: return the exit status."""
    if not MIN_INTERVAL <= arguments.interval <= MAX_INTERVAL:
        raise UsageError(
            f"--interval {arguments.interval:g} is out of range",
            f"give {MIN_INTERVAL:g} to {MAX_INTERVAL:g} seconds",
        )
    count = 1 if arguments.once else arguments.count
    if count is not None and count < 1:
        raise UsageError(f"--count {count} is no number of lines", "give 1 at least")
    path, facts = find_guest(arguments.run)
    source = GuestSource(path, facts)
    plain = arguments.json or count is not None or not _on_terminal()
    try:
        if plain or not _show(source, path.name, arguments.interval, term):
            _print_lines(source, arguments.interval, count, term, as_json=arguments.json)
    except EOFError:
        term.info(f"the guest {path.name} has ended")
    except BrokenPipeError:
        # Whoever reads has enough. Nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        source.close()
    return 0


def _on_terminal() -> bool:
    return os.isatty(0) and os.isatty(1)


def find_guest(name: str) -> tuple[Path, MachineFacts]:
    """Return the directory and the guest of the run *name*; the newest for ``latest``.

    Raises SessionError when it does not run.
    """
    if name == LATEST:
        names = running()
        if not names:
            raise SessionError("no guest runs", "in another terminal: ./linux-um boot")
        name = names[-1]
    return find_live(name)


class GuestSource:
    """Samples of one guest's engine."""

    def __init__(self, path: Path, facts: MachineFacts) -> None:
        """Connect to the launcher of the run *path*. Raises SessionError."""
        self._facts = facts
        self._onlooker = _connect(path, facts)
        # Asked for PKSM first; a guest without it is asked for stock KSM.
        self._engine = "pksm"
        self._time_travel = False
        self.asked: float | None = None

    @property
    def release(self) -> str:
        """The release of the guest's kernel."""
        return self._facts.kernel.release

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a sample comes."""
        return self._onlooker.fileno()

    def ask(self) -> None:
        """Ask for a sample."""
        self.asked = time.monotonic()
        self._onlooker.request(top.engine_paths(self._engine))

    def take(self, timeout: float) -> top.Sample | None:
        """Return the sample asked for, or None when it has not come in *timeout* seconds.

        Raises EOFError when the guest has ended, SessionError when its kernel
        has neither engine.
        """
        files = self._onlooker.receive(timeout)
        if files is None:
            return None
        sample = top.parse_sample(files, time.monotonic())
        if sample is None and self._engine == "pksm":
            self._engine = "ksm"
            self.ask()
            return self.take(timeout)
        if sample is None:
            raise SessionError("the guest's kernel has neither PKSM nor KSM", "boot another")
        self.asked = None
        self._time_travel = sample.time_travel
        return sample

    def delay_reason(self) -> str:
        """Say why a sample may not come, as the end of a sentence."""
        tracer = tracer_of(self._facts.pid)
        if tracer:
            return f": process {tracer}, a debugger, may hold the guest"
        return ": under time travel a busy guest takes long" if self._time_travel else ""

    def close(self) -> None:
        """Look no longer."""
        self._onlooker.close()


def _connect(path: Path, facts: MachineFacts) -> Onlooker:
    limit = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return Onlooker(path / "watch")
        except OSError as error:
            if not is_running(facts):
                raise SessionError(f"the run {path.name} has ended") from error
            if time.monotonic() > limit:
                raise SessionError(
                    f"the run {path.name} cannot be watched: {error.strerror}",
                    "its launcher may be of another version",
                ) from error
        time.sleep(0.05)


def _show(source: GuestSource, name: str, interval: float, term: Term) -> bool:
    """Show the full-screen view; return False when the terminal has none."""
    try:
        from . import top_view
    except ImportError:
        term.warn("this Python has no curses: lines instead")
        return False
    try:
        top_view.show(source, name, source.release, interval)
    except top_view.NoScreen as error:
        term.warn(f"{error}: lines instead")
        return False
    return True


def _print_lines(
    source: GuestSource, interval: float, count: int | None, term: Term, *, as_json: bool
) -> None:
    """Print a line for each interval, *count* in all. Raises EOFError when the guest has ended."""
    table = top.Table()
    before: top.Sample | None = None
    due = time.monotonic()
    printed = 0
    while count is None or printed < count:
        _wait(source, due - time.monotonic())
        source.ask()
        if (sample := source.take(SLOW_SECONDS)) is None:
            term.warn(f"the guest does not answer{source.delay_reason()}")
            while (sample := source.take(MAX_INTERVAL)) is None:
                continue
        rate = top.rates(before, sample)
        if as_json:
            clock = time.time() - (time.monotonic() - sample.when)
            lines = [top.json_line(sample, rate, clock)]
        else:
            lines = table.lines(sample, rate, time.strftime("%H:%M:%S"))
        sys.stdout.write("".join(line + "\n" for line in lines))
        sys.stdout.flush()
        before = sample
        printed += 1
        # What was missed while the guest stood still is not made up for.
        due = max(due + interval, sample.when)


def _wait(source: GuestSource, seconds: float) -> None:
    """Wait *seconds*, but not longer than the guest lives. Raises EOFError."""
    if seconds > 0 and select.select([source], [], [], seconds)[0]:
        source.take(0.0)

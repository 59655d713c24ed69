# SPDX-License-Identifier: GPL-2.0-only
"""The command line of ``linux-um``: parsing, dispatch and exit statuses.

Each module of commands has ``add_parsers(subparsers)``; a command's parser
sets ``handler`` to a function ``(argparse.Namespace, Term) -> int`` whose
result is the exit status.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType

from . import bench, commands_build, commands_gdb, commands_run, commands_top
from .errors import EXIT_INTERRUPTED, EXIT_LAUNCHER, LinuxUmError
from .options import check_series
from .term import PROGRAM, Term

Handler = Callable[[argparse.Namespace, Term], int]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors have the launcher's exit status."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(EXIT_LAUNCHER, f"{PROGRAM}: {message}; see {self.prog} --help\n")


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; unwinds the stack so that clean-up runs."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise _Terminated(number)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser: argparse.ArgumentParser = _Parser(
        prog=PROGRAM,
        description="Build, boot and test a User-Mode Linux kernel with PKSM.",
        epilog="Set-up that is missing (packages, kernel source, patches, build, rootfs) is done "
        "by whatever command needs it. Exit status: the command's own; 124 time-out, "
        "125 launcher or host error, 126 the guest did not boot, 134 panic.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    commands_run.add_parsers(subparsers)
    commands_gdb.add_parsers(subparsers)
    commands_top.add_parsers(subparsers)
    bench.add_parsers(subparsers)
    commands_build.add_parsers(subparsers)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    term = Term()
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    try:
        parser = build_parser()
        arguments, unknown = parser.parse_known_args(argv)
        if hasattr(arguments, "kernel"):
            check_series(arguments.kernel)
        if hasattr(arguments, "pytest_arguments"):
            arguments.pytest_arguments = unknown
        elif unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        handler: Handler = arguments.handler
        return handler(arguments, term)
    except LinuxUmError as error:
        term.error(error.line())
        return error.exit_status
    except KeyboardInterrupt:
        term.error("interrupted")
        return EXIT_INTERRUPTED
    except _Terminated as end:
        term.error(f"ended by {signal.Signals(end.number).name}")
        return 128 + end.number

# SPDX-License-Identifier: GPL-2.0-only
"""The command line of ``linux-um``: parsing, dispatch and exit statuses.

Each module of commands has ``add_parsers(subparsers)``; a command's parser
sets ``handler`` to a function ``(argparse.Namespace, Term) -> int`` whose
result is the exit status. The parser itself is ``parser`` in the namespace.
"""

from __future__ import annotations

import argparse
import errno
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

from . import (
    bench,
    commands_build,
    commands_cov,
    commands_fuzz,
    commands_gdb,
    commands_run,
    commands_soak,
    commands_top,
    prove,
)
from .errors import (
    EXIT_INTERRUPTED,
    EXIT_LAUNCHER,
    HostError,
    LinuxUmError,
    OutputError,
    cannot,
)
from .options import check_kernel_options
from .outcome import EXIT_GONE, EXIT_TAINT
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


def _open_closed_streams() -> None:
    """Occupy the standard streams that are closed, so that no other file becomes one of them.

    Reading or writing them still fails with EBADF.
    """
    for descriptor, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, mode), True)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))


def _flush_stdout() -> None:
    """Write what print() has left behind. Raises OutputError when it is lost."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_stdout()
        if error.errno != errno.EPIPE:
            raise OutputError(f"cannot write to standard output: {error.strerror}") from error


def _drop_stdout() -> None:
    """Leave nothing to be flushed at exit, which would be one more error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nobody_reads() -> bool:
    """Return whether standard output is a pipe that has been closed at its other end."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _drop_stderr() -> None:
    """Forget messages that cannot be written, or Python ends with a status of its own."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser: argparse.ArgumentParser = _Parser(
        prog=PROGRAM,
        description="Build, boot and test a User-Mode Linux kernel with PKSM.",
        epilog="Set-up that is missing (packages, kernel source, patches, build, rootfs) is done "
        "by whatever command needs it. Exit status: the command's own; "
        f"{EXIT_TAINT} an oops, WARN or sanitizer report in the kernel's log, "
        f"{EXIT_GONE} the guest powered off, or its agent's line is garbled, before the command "
        "ended, 124 time-out, "
        "125 launcher or host error, 126 the guest did not boot, 134 panic.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    commands_run.add_parsers(subparsers)
    commands_gdb.add_parsers(subparsers)
    commands_top.add_parsers(subparsers)
    commands_fuzz.add_parsers(subparsers)
    commands_soak.add_parsers(subparsers)
    commands_cov.add_parsers(subparsers)
    bench.add_parsers(subparsers)
    prove.add_parsers(subparsers)
    commands_build.add_parsers(subparsers)
    for command in subparsers.choices.values():
        command.set_defaults(parser=command)
    return parser


def _fail(error: LinuxUmError, term: Term) -> int:
    """Show an error, and return its exit status."""
    term.error(error.line())
    return error.exit_status


def main(argv: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    _open_closed_streams()
    term = Term()
    # Tests may run this in another thread, which cannot have handlers.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        signal.signal(signal.SIGHUP, _terminate)
    try:
        try:
            arguments, unknown = build_parser().parse_known_args(argv)
        except SystemExit:
            _flush_stdout()  # of --help
            raise
        if hasattr(arguments, "kernel"):
            check_kernel_options(arguments)
        if hasattr(arguments, "pytest_arguments"):
            arguments.pytest_arguments = unknown
        elif unknown:
            arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        handler: Handler = arguments.handler
        status = handler(arguments, term)
        _flush_stdout()
        return status
    except LinuxUmError as error:
        return _fail(error, term)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            # As in `linux-um build | head`: the end that a signal would have brought.
            _drop_stdout()
            return 128 + signal.SIGPIPE
        return _fail(cannot(error, "go on", HostError), term)
    except KeyboardInterrupt:
        term.error("interrupted")
        return EXIT_INTERRUPTED
    except _Terminated as end:
        term.error(f"ended by {signal.Signals(end.number).name}")
        return 128 + end.number
    finally:
        _drop_stderr()

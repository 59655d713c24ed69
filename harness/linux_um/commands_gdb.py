# SPDX-License-Identifier: GPL-2.0-only
"""The command ``gdb``: a guest's kernel under the debugger."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import gdb_test, packages, rootfs
from .agent import Guest
from .commands_run import (
    DEFAULT_TIMEOUT,
    ENV_PROFILE,
    add_machine_options,
    boot_options,
)
from .errors import LinuxUmError, UsageError
from .gdb_control import Control, Programs
from .gdb_core import keep_kernel
from .gdb_machine import CORE_NAME, Kernel, find_core, find_running
from .gdb_session import Session, check_scripts, gdb, indexing
from .guest import REPORT, BootOptions, boot, finished_image, run_arguments
from .options import only_um
from .source import ENV_KERNEL
from .term import Term

USAGE = """linux-um gdb [OPTION...] [-- COMMAND ARG...]
       linux-um gdb --test TEST [OPTION...] [-- PYTEST ARGUMENT...]
       linux-um gdb --attach RUN | --core RUN [--batch SCRIPT]"""
DESCRIPTION = """\
Boot a guest and look at its kernel with gdb. The symbols, the kernel's own lx-
commands and those of PKSM (help pksm) are loaded, and UML's signals handled.

With COMMAND the guest starts it and stands still before its first page enters.
Without, it stands still at once, and `pksm guest COMMAND ARG...` starts programs.
Ctrl-C stops the guest again, as does the end of COMMAND; leaving gdb ends it.
"""
EPILOG = """\
RUN is a run directory's name, a path to one, or `latest`.

Exit status: gdb's own. With --batch that of the script when it is not 0 (1 for an
error, N for `quit N`), else COMMAND's, as `run` has it; with --test pytest's.

  ./linux-um gdb -- memdup --procs 2 --mib 4
  ./linux-um gdb --batch trace.gdb -- memdup --procs 2 --mib 4
  ./linux-um gdb --test test_cow.py::test_every_sharer_may_write_at_once
  ./linux-um run --keep-core -- sh -c 'echo c > /proc/sysrq-trigger'
  ./linux-um gdb --core latest"""


def add_parsers(subparsers: Any) -> None:
    """Add the parser of this module's command."""
    parser = subparsers.add_parser(
        "gdb",
        help="a guest's kernel under gdb",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--attach", metavar="RUN", help="attach to a guest that runs; it goes on")
    what.add_argument("--core", metavar="RUN", help="open the core dump of a run with --keep-core")
    what.add_argument("--test", metavar="TEST", help="the first guest of one pytest test")
    parser.add_argument(
        "--batch",
        metavar="SCRIPT",
        action="append",
        default=[],
        help="run a script of gdb commands, without a conversation; repeatable",
    )
    add_machine_options(parser, time_travel=True)
    parser.add_argument("command_line", metavar="COMMAND", nargs=argparse.REMAINDER)
    parser.set_defaults(handler=gdb_command)


def gdb_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um gdb``: return the exit status, see EPILOG."""
    command = list(arguments.command_line)
    if command[:1] == ["--"]:
        del command[0]
    only_um(arguments, "gdb")
    name = os.path.basename(command[0]) if command else "gdb"
    options = boot_options(arguments, name, DEFAULT_TIMEOUT)
    scripts = check_scripts(arguments.batch)
    packages.ensure("gdb", term=term)
    boots = arguments.attach is None and arguments.core is None and arguments.test is None
    if arguments.keep_core and not boots:
        raise UsageError("--keep-core is for a guest that `gdb` boots itself", "leave it out")
    if arguments.attach is not None or arguments.core is not None:
        if command:
            words = shlex.join(command)
            raise UsageError(f"no command can be started there: {words}", "leave it out")
        return _look(arguments, scripts)
    if arguments.test is not None:
        return _test(arguments, command, scripts, term)
    return _boot(options, arguments.keep_core, command, scripts, term)


def _test(
    arguments: argparse.Namespace, extra: list[str], scripts: tuple[Path, ...], term: Term
) -> int:
    """Run one test, its first guest under gdb; *extra* are pytest's own arguments."""
    packages.ensure("test", term=term)
    kernel = Kernel.of(finished_image(arguments.profile, arguments.kernel, term)).need_symbols()
    rootfs.ensure_rootfs(term=term, kernel=arguments.kernel)
    environment = {
        **os.environ,
        ENV_PROFILE: arguments.profile,
        ENV_KERNEL: arguments.kernel,
    }
    command = gdb_test.test_command(arguments.test, extra)
    return gdb_test.debug_test(command, environment, kernel, scripts, term=term)


def _look(arguments: argparse.Namespace, scripts: tuple[Path, ...]) -> int:
    """Attach to a guest that runs, or open a core dump."""
    if arguments.core is not None:
        core, kernel = find_core(arguments.core)
        session = Session(kernel, core=core, scripts=scripts)
    else:
        facts = find_running(arguments.attach)
        session = Session(facts.kernel, pid=facts.pid, scripts=scripts)
    with indexing(session.kernel.need_symbols()):
        pass
    with TemporaryDirectory(prefix="linux-um-gdb-") as scratch:
        with gdb(session, Path(scratch)) as debugger:
            return debugger.wait()


def _boot(
    options: BootOptions,
    keep_core: bool,
    command: list[str],
    scripts: tuple[Path, ...],
    term: Term,
) -> int:
    """Boot a guest, and give it to gdb; *keep_core* keeps a dump when the kernel panics."""
    words = ["./linux-um", "gdb", *run_arguments(options)]
    words += [word for path in scripts for word in ("--batch", str(path))]
    options = replace(
        options,
        repeat=shlex.join(words + (["--", *command] if command else [])),
        # Whoever looks on has seen what there was.
        allow_taint=options.allow_taint or not scripts,
        # A process has one debugger: this one will see to the core.
        keep_core=False,
    )
    kernel = Kernel.of(finished_image(options.profile, options.kernel, term)).need_symbols()
    try:
        with ExitStack() as stack:
            with indexing(kernel):
                guest = stack.enter_context(boot(options, term=term))
            try:
                status = _session(guest, kernel, command, scripts, keep_core, term)
            finally:
                if keep_core:
                    guest.destroy()
                    guest.keep |= keep_kernel(guest.rundir, guest.pid, kernel, term=term)
    except LinuxUmError as error:
        if text := getattr(error, REPORT, ""):
            print(text, file=sys.stderr)
        raise
    return status


def _session(
    guest: Guest,
    kernel: Kernel,
    command: list[str],
    scripts: tuple[Path, ...],
    keep_core: bool,
    term: Term,
) -> int:
    """Run gdb on a booted guest; in batch mode wait for the command's end after it."""
    guest.lift_limits()
    session = Session(
        kernel,
        pid=guest.pid,
        command=command,
        scripts=scripts,
        keep_core=guest.rundir / CORE_NAME if keep_core else None,
    )
    control = Control()
    programs = Programs(guest, guest.pid, command, term)
    programs.serve(control)
    try:
        with gdb(session, guest.rundir, control=control) as debugger:
            programs.debugger = debugger.pid
            status = debugger.wait()
    finally:
        programs.end_wait()
    guest.result = {"gdb": status, "command": shlex.join(command)}
    if not scripts:
        guest.destroy()
        if findings := guest.findings():
            guest.keep = True
            first = findings[0]
            term.warn(f"the kernel's log has a {first.kind}: {first.text}; see {guest.rundir}")
        return status
    if status == 0 and programs.command is not None:
        status = programs.command.wait(float("inf")).status
    if status != 0:
        guest.keep = True
        guest.result |= {"status": status, "outcome": "fail"}
        guest.destroy()
    return status

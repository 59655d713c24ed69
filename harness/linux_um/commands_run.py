# SPDX-License-Identifier: GPL-2.0-only
"""The commands that need a guest: ``run``, ``boot`` and ``test``."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import Any

from . import build, kconfig, mutants, packages, rootfs
from .agent import PKSM_DIR, Guest
from .errors import LinuxUmError, UsageError
from .guest import (
    DEFAULT_MEM,
    MACHINES,
    REPORT,
    BootOptions,
    boot,
    parse_share,
    run_arguments,
)
from .options import ENV_ARCH, add_kernel_options, finite, hang, parse_size, profile_lines
from .outcome import EXIT_GONE, EXIT_TAINT, GuestGone
from .paths import ensure_dir, repo_root, runs_root
from .shell import Streams, attach, on_terminal
from .source import DEFAULT_KERNEL, ENV_KERNEL
from .term import Term

# Less, and the kernel does not boot.
MIN_MEM_BYTES = 32 << 20
# CONFIG_NR_CPUS of the profiles with SMP.
MAX_CPUS = 8
# Wall-clock limit of `run`, in seconds; 0 on the command line means none.
DEFAULT_TIMEOUT = 3600.0
# Environment variables by which `test` tells the suite what to test.
ENV_PROFILE = "LINUX_UM_PROFILE"
# Options of pytest that take the next word as their value, as all long ones may.
_WITH_VALUE = ("-k", "-m", "-n", "-o", "-p", "-c", "-W", "-r")
# The argument of `test` that runs the suite against broken engines.
MUTANTS = "--mutants"
TEST_HELP = """usage: linux-um test [--profile PROFILE] [--kernel VERSION] [--arch ARCH]
                     [PYTEST ARGUMENT...]
       linux-um test [--kernel VERSION] [--arch ARCH] {mutants} [-n NUMBER] [PATTERN...]

Run the suite in harness/tests. Whatever else is given goes to pytest, which
describes itself by: {python} -m pytest --help

  --profile PROFILE  the kernel's configuration, fast where none is given:
{profiles}
  --kernel VERSION   kernel version (default {kernel})
  --arch ARCH        um (User-Mode Linux, the default) or x86_64 (under QEMU)
  {mutants} [PATTERN...]
                     run the tests against the broken kernels of
                     harness/tests/mutants instead (those for that kernel
                     and machine): they have to fail;
                     all, or those whose names match, as in 'no-*'; those of
                     --kernel 7.3 whose names begin with smp- get two CPUs
                     (profile smp; with --profile ksm: smp-ksm);
                     NUMBER at the same time (default 2), where there are many;
                     --share=K/N: the Kth and each Nth from there
  --share K/N        the Kth of N shares of the tests, which make up the whole
  -k EXPRESSION      (pytest) only tests whose names match
  -n NUMBER          (pytest) guests at the same time
  -x                 (pytest) stop at the first failure"""


def add_parsers(subparsers: Any) -> None:
    """Add the parsers of this module's commands."""
    run = subparsers.add_parser(
        "run",
        help="run one command in a fresh guest",
        description="Boot a fresh guest, run COMMAND in it, and end with its exit status. "
        "Standard input, output and error are passed through; the kernel's log is not among "
        "them, but in the run directory.",
        epilog="Exit status: the command's own (128 + N for signal N); "
        f"{EXIT_TAINT} an oops, WARN or sanitizer report in the kernel's log, "
        f"{EXIT_GONE} the guest powered off, or its agent's line is garbled, before the command "
        "ended, 124 time-out, 125 launcher or host error, 126 the guest did not boot, 134 panic.",
    )
    add_machine_options(run)
    run.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=finite,
        default=DEFAULT_TIMEOUT,
        help="wall-clock limit, then exit status 124 (default %(default)g; 0: none)",
    )
    run.add_argument("command_line", metavar="COMMAND", nargs=argparse.REMAINDER)
    run.set_defaults(handler=run_command)

    shell = subparsers.add_parser(
        "boot",
        help="a shell in a fresh guest",
        description="Boot a guest and give a shell in it. Leaving the shell powers it off. "
        "Without a terminal the shell reads its commands from standard input.",
    )
    add_machine_options(shell)
    shell.set_defaults(handler=boot_command)

    test = subparsers.add_parser(
        "test",
        help="the regression suite",
        description="Run the suite in harness/tests by pytest. Arguments this command does not "
        "know are pytest's own. With --mutants [PATTERN...] the tests are run against each of the "
        "broken kernels of harness/tests/mutants instead, and have to fail.",
        add_help=False,
        allow_abbrev=False,
    )
    add_kernel_options(test)
    # The launcher puts there what no parser knows.
    test.set_defaults(handler=test_command, pytest_arguments=[])


def add_machine_options(
    parser: argparse.ArgumentParser, *, time_travel: bool = False
) -> None:
    """Add the options that say what a guest is to be like.

    *time_travel* is the default pace, for profiles that have it.
    """
    add_kernel_options(parser)
    parser.add_argument(
        "--mem", default=DEFAULT_MEM, metavar="SIZE", help="memory (default %(default)s)"
    )
    parser.add_argument(
        "--cpus",
        type=_cpus,
        metavar="NUMBER",
        help="how many CPUs (default: the profile's); more than one takes --kernel 7.3, "
        "or --arch x86_64",
    )
    parser.add_argument("--swap", metavar="SIZE", help="give the guest a swap device, in use")
    parser.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="DIR[:GUESTPATH]",
        help="mount a directory of the host, writable (default GUESTPATH /share); repeatable",
    )
    parser.add_argument(
        "--append",
        action="append",
        default=[],
        metavar="WORDS",
        help="words for the kernel's command line; repeatable",
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--time-travel",
        action="store_true",
        dest="time_travel",
        default=None if time_travel else False,
        help="the guest's waiting takes no time; a busy loop on the clock never ends"
        + (" (default, where the profile has it)" if time_travel else ""),
    )
    pace.add_argument(
        "--real-time",
        action="store_false",
        dest="time_travel",
        help="the guest's clock is the host's" + ("" if time_travel else " (default)"),
    )
    parser.add_argument(
        "--allow-taint", action="store_true", help="let an oops or WARN in the log pass"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the run directory also when the guest went well"
    )
    parser.add_argument(
        "--keep-core",
        action="store_true",
        help="when the kernel panics, keep a core dump for ./linux-um gdb --core RUN",
    )


def _cpus(text: str) -> int:
    """Return a number of CPUs. Raises UsageError for what no guest has."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_CPUS:
        raise UsageError(f"--cpus {text}", f"give a number from 1 to {MAX_CPUS}")
    return int(text)


def boot_options(arguments: argparse.Namespace, name: str, timeout: float) -> BootOptions:
    """Return what the options of add_machine_options() ask for. Raises UsageError."""
    if parse_size(arguments.mem) < MIN_MEM_BYTES:
        raise UsageError(f"--mem {arguments.mem} is too little", "give 32M at least")
    profile = kconfig.with_cpus(arguments.profile, arguments.cpus or 1, arguments.arch)
    targets = [target for _, target in map(parse_share, arguments.share)]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"two shares at {target}", "write --share DIR:GUESTPATH")
    if arguments.swap is not None:
        parse_size(arguments.swap)
    travels = arguments.time_travel
    if travels is None:
        travels = kconfig.time_travels(profile, arguments.arch)
    return BootOptions(
        profile=profile,
        kernel=arguments.kernel,
        mem=arguments.mem,
        swap=arguments.swap,
        time_travel=travels,
        append=tuple(arguments.append),
        shares=tuple(parse_share(text) for text in arguments.share),
        timeout=timeout,
        name=name,
        allow_taint=arguments.allow_taint,
        keep=arguments.keep,
        keep_core=arguments.keep_core,
        cpus=arguments.cpus,
        arch=arguments.arch,
    )


def run_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um run``: return the command's exit status."""
    command = list(arguments.command_line)
    if command[:1] == ["--"]:
        del command[0]
    if not command:
        raise UsageError("no command to run", "write: ./linux-um run -- COMMAND")
    if arguments.timeout < 0:
        raise UsageError("--timeout must not be negative", "0 means no limit")
    limit = arguments.timeout or None
    name = os.path.basename(command[0]) or "run"
    options = boot_options(arguments, name, limit or DEFAULT_TIMEOUT)
    extra = ["--timeout", f"{arguments.timeout:g}"] if limit != DEFAULT_TIMEOUT else []
    extra += ["--allow-taint"] if options.allow_taint else []
    words = ["./linux-um", "run", *run_arguments(options), *extra, "--", *command]
    options = replace(options, repeat=shlex.join(words))
    status = -1
    streams = Streams()
    try:
        with boot(options, term=term) as guest:
            status = attach(guest, command, streams, timeout=limit)
            guest.result = {"status": status, "command": shlex.join(command)}
            if status != 0:
                guest.result["outcome"] = "fail"
                if full := guest.full_directory():
                    term.warn(full)
    except LinuxUmError as error:
        _show_report(error)
        if status == 0 and error.exit_status == EXIT_TAINT:
            term.info("the command itself succeeded; --allow-taint would let this pass")
        raise
    streams.check()
    return status


def boot_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um boot``: return the shell's exit status."""
    options = boot_options(arguments, "boot", DEFAULT_TIMEOUT)
    repeat = shlex.join(["./linux-um", "boot", *run_arguments(options)])
    interactive = on_terminal()
    streams = Streams()
    try:
        with boot(replace(options, repeat=repeat), term=term) as guest:
            _banner(guest, options, term, interactive)
            environment = {"TERM": os.environ.get("TERM", "dumb")} if interactive else {}
            status = attach(
                guest,
                ["sh", "-l"],
                streams,
                timeout=None,
                env=environment,
                cwd="/root",
                pty=interactive,
            )
            guest.result = {"status": status}
    except GuestGone:
        # Typed in the shell: as good a way to leave as any.
        term.info("the guest has powered off")
        streams.check()
        return 0
    except LinuxUmError as error:
        _show_report(error)
        raise
    if interactive:
        term.info("the guest has powered off")
    streams.check()
    return status


def _banner(guest: Guest, options: BootOptions, term: Term, interactive: bool) -> None:
    """Say what has booted and what to try."""
    try:
        state = {"0": "stopped", "1": "running", "2": "stopped, all unmerged"}
        value = guest.read_file(f"{PKSM_DIR}/run").strip()
        engine = f"PKSM is {state.get(value, value)}, see {PKSM_DIR}"
    except OSError:
        engine = "this kernel has no PKSM"
    term.info(f"Linux {guest.version.split(' ', 1)[0]}, {options.mem} of memory; {engine}")
    if interactive:
        term.info(
            "try: memdup --procs 4 --mib 16, or counters; exit or Ctrl-D powers off; "
            "to watch, in another terminal: ./linux-um top"
        )


def _show_report(error: LinuxUmError) -> None:
    text = getattr(error, REPORT, "")
    if text:
        print(text, file=sys.stderr)


def test_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um test``: return pytest's exit status."""
    given = list(arguments.pytest_arguments)
    if {"-h", "--help"} & set(given):
        print(_test_help())
        return 0
    if MUTANTS not in given:
        check_tests(given)
    packages.ensure("test", term=term)
    if MUTANTS in given:
        given.remove(MUTANTS)
        share, given = mutants.share_of(given)
        jobs, patterns = mutants.jobs_of(given)
        return mutants.run(
            patterns, arguments.profile, arguments.kernel, term=term, arch=arguments.arch,
            jobs=jobs, share=share,
        )  # fmt: skip
    packages.ensure(*MACHINES[arguments.arch].stages, term=term)
    build.ensure_image(arguments.profile, arguments.kernel, term=term, arch=arguments.arch)
    rootfs.ensure_rootfs(term=term, kernel=arguments.kernel)
    command = pytest_command(given)
    environment = dict(os.environ)
    environment[ENV_PROFILE] = arguments.profile
    environment[ENV_KERNEL] = arguments.kernel
    environment[ENV_ARCH] = arguments.arch
    return run_pytest(command, environment)


def _test_help() -> str:
    """Return what `test --help` prints."""
    profiles = textwrap.indent("\n".join(hang(profile_lines(), 64)), " " * 21)
    return TEST_HELP.format(
        mutants=MUTANTS, python=sys.executable, profiles=profiles, kernel=DEFAULT_KERNEL
    )


def check_tests(given: list[str]) -> None:
    """See that the files among pytest's arguments are there. Raises UsageError."""
    before = ""
    for word in given:
        # The value of an option may look like a file.
        is_value = before in _WITH_VALUE or (before.startswith("--") and "=" not in before[2:])
        before = word if word != "--" else ""
        name = word.partition("::")[0]
        looks_like_a_file = "/" in name or name.endswith(".py")
        if is_value or word.startswith("-") or not looks_like_a_file or os.path.exists(name):
            continue
        raise UsageError(f"there is no file {name}", "name one such as harness/tests/test_cow.py")


def pytest_command(given: list[str]) -> list[str]:
    """Return the command of the suite, *given* being pytest's own arguments."""
    if given[:1] == ["--"]:
        given = given[1:]
    command = [packages.test_python(), "-m", "pytest"]
    # A debugger or an explicit choice forbids our parallel guests.
    serial = {"--pdb", "--trace", "-s", "--co", "--collect-only", "-h", "--help", "--version"}
    chosen = any(
        word in serial or word.startswith(("-n", "--numprocesses", "--dist")) for word in given
    )
    if not chosen:
        command += ["-n", str(min(4, 2 * (os.cpu_count() or 1)))]
    if not any(word.startswith(("--junitxml", "--junit-xml")) for word in given):
        ensure_dir(runs_root())
        command.append(f"--junitxml={runs_root() / 'junit.xml'}")
    command += given
    named = any(not word.startswith("-") and os.path.exists(word.split("::")[0]) for word in given)
    if not named:
        command.append(str(repo_root() / "harness" / "tests"))
    return command


def run_pytest(command: list[str], environment: dict[str, str]) -> int:
    """Run pytest to its end; when we are ended, end it and wait for its clean-up."""
    process = subprocess.Popen(command, env=environment)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise

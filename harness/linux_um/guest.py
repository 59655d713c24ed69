# SPDX-License-Identifier: GPL-2.0-only
"""A fresh guest for each use: booting it, judging it, reporting on it.

    with boot_guest(profile="fast", time_travel=True) as guest:
        print(guest.run(["memdup", "--procs", "4"]).stdout)

Leaving the block powers the guest off, looks through its log and, unless all
is well, raises an error of outcome.py and keeps the run directory.
"""

from __future__ import annotations

import functools
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import build, coverage, kconfig, packages, rootfs
from .agent import Guest
from .errors import HostError, LinuxUmError, UsageError
from .gdb_core import CoreKeeper
from .gdb_machine import Kernel, write_machine
from .gdb_rendezvous import wait_for_debugger
from .machine import Machine, MachineOptions
from .options import default_arch, parse_size
from .outcome import (
    GuestOops,
    Outcome,
    dmesg,
    excerpt,
    outcome_of,
    scan,
    symbolise,
)
from .process import Completed, Process
from .qemu import QemuMachine
from .rundir import RunDir
from .source import DEFAULT_KERNEL, default_kernel, series_meant
from .term import Term
from .uml import UmlMachine
from .watch import Watch

__all__ = ["BootOptions", "Completed", "Guest", "Process", "boot", "boot_guest", "parse_share"]

MACHINES: dict[str, type[Machine]] = {kconfig.UM: UmlMachine, kconfig.X86_64: QemuMachine}
DEFAULT_MEM = "256M"
DEFAULT_SHARE = "/share"
# Attribute of an exception that holds the report of the guest it came from.
REPORT = "linux_um_report"
# And of one that holds its whole console log.
CONSOLE = "linux_um_console"


@dataclass(frozen=True)
class BootOptions:
    """What a guest is to be like, and how it is to be judged.

    ``shares`` are pairs of a host directory and a guest directory; ``timeout``
    is in wall-clock seconds; ``repeat`` is the command line that repeats this
    run; ``allow_taint`` lets an oops or a WARN in the log pass; ``keep`` keeps
    the run directory even when all is well; ``keep_core`` leaves a core dump in
    it when the kernel panics; ``cpus`` is their number, or None for that of the
    profile; ``dimm`` is the size of a memory module to be plugged in later.
    """

    profile: str = "fast"
    kernel: str = DEFAULT_KERNEL
    mem: str = DEFAULT_MEM
    swap: str | None = None
    time_travel: bool = False
    append: Sequence[str] = ()
    shares: Sequence[tuple[str, str]] = ()
    timeout: float = 120.0
    name: str = "guest"
    repeat: str = ""
    allow_taint: bool = False
    keep: bool = False
    keep_core: bool = False
    cpus: int | None = None
    arch: str = kconfig.UM
    dimm: str | None = None


def _host_dir(text: str) -> Path:
    return Path(text).expanduser().absolute()


def parse_share(text: str) -> tuple[str, str]:
    """Return the directories of ``DIR`` or ``DIR:GUESTPATH``. Raises UsageError."""
    host, colon, guest = text.rpartition(":")
    if not colon or not guest.startswith("/"):
        if colon and not _host_dir(text).is_dir() and _host_dir(host).is_dir():
            raise UsageError(
                f"--share {text}: the GUESTPATH {guest!r} is not absolute",
                f"write --share {host}:/{guest or 'PATH'}",
            )
        host, guest = text, DEFAULT_SHARE
    path = _host_dir(host)
    if not path.is_dir():
        raise UsageError(f"--share {text}: {path} is not a directory", "name one that exists")
    return str(path), guest


@functools.lru_cache(maxsize=None)
def finished_image(
    profile: str, kernel: str, term: Term, arch: str = kconfig.UM
) -> build.Image:
    """Return the finished kernel; made sure of once in each process."""
    return build.ensure_image(profile, kernel, term=term, arch=arch)


@functools.lru_cache(maxsize=None)
def _initrd(kernel: str, term: Term) -> Path:
    return rootfs.ensure_rootfs(term=term, kernel=kernel)


@functools.lru_cache(maxsize=1)
def _default_term() -> Term:
    return Term()


def _cpus(options: BootOptions) -> int:
    """Return the number of CPUs. Raises UsageError when the profile has no such guests."""
    usual = kconfig.cpus_of(options.profile, options.arch)
    if options.time_travel and not kconfig.time_travels(options.profile, options.arch):
        raise UsageError(
            f"guests of profile {options.profile} cannot travel in time", "use --real-time"
        )
    if options.cpus is None:
        return usual
    kconfig.check_cpus(
        options.profile, options.cpus, series_meant(options.kernel), options.arch
    )
    return options.cpus


def _repeat_command(options: BootOptions) -> str:
    """Return the command line that makes such a guest again."""
    if options.repeat:
        return options.repeat
    test = os.environ.get("PYTEST_CURRENT_TEST")
    if test:
        which = ["--profile", options.profile, "--kernel", options.kernel]
        if options.arch != kconfig.UM:
            which += ["--arch", options.arch]
        return shlex.join(["./linux-um", "test", *which, test.rsplit(" ", 1)[0]])
    return shlex.join(["./linux-um", "run", *run_arguments(options), "--", "COMMAND"])


def run_arguments(options: BootOptions) -> list[str]:
    """Return the options of ``linux-um run`` that stand for *options*."""
    words = ["--profile", options.profile, "--kernel", options.kernel, "--mem", options.mem]
    if options.arch != kconfig.UM:
        words += ["--arch", options.arch]
    if options.swap is not None:
        words += ["--swap", options.swap]
    words.append("--time-travel" if options.time_travel else "--real-time")
    if options.cpus is not None:
        words += ["--cpus", str(options.cpus)]
    for text in options.append:
        words += ["--append", text]
    for host, guest in options.shares:
        words += ["--share", f"{host}:{guest}"]
    if options.keep_core:
        words.append("--keep-core")
    return words


@contextmanager
def boot(options: BootOptions, *, term: Term | None = None) -> Iterator[Guest]:
    """Boot a guest for the length of the block. See the module's text."""
    term = term if term is not None else _default_term()
    # What may be wrong comes before the kernel is built, which takes minutes.
    parse_size(options.mem)
    cpus = _cpus(options)
    kind = MACHINES[options.arch]
    if options.keep_core and not kind.debuggable:
        raise UsageError("--keep-core is for User-Mode Linux", f"leave out --arch {options.arch}")
    packages.ensure(*kind.stages, term=term)
    image = finished_image(options.profile, options.kernel, term, options.arch)
    initrd = _initrd(options.kernel, term)
    wishes = MachineOptions(
        linux=image.linux,
        initrd=initrd,
        mem=options.mem,
        swap=options.swap,
        time_travel=options.time_travel,
        append=[*kconfig.boot_words(options.profile, options.arch), *options.append],
        cpus=cpus,
        shares=[host for host, _ in options.shares],
        dimm=options.dimm,
    )
    start = kind.starter(wishes, term)
    repeat = _repeat_command(options)
    rundir = _run_directory(options.name, image, repeat)
    guest: Guest | None = None
    keeper: CoreKeeper | None = None
    watch = Watch(rundir.watch)
    keep = True
    try:
        machine = start(rundir)
        guest = Guest(machine, rundir, timeout=options.timeout)
        try:
            guest.config = kconfig.parse(image.config.read_text())
            write_machine(rundir.path, machine.pid, Kernel.of(image))
            watch.serve(guest)
            if options.keep_core:
                keeper = CoreKeeper(rundir.path, machine.pid, Kernel.of(image), term=term)
            guest.wait_boot(min(machine.boot_seconds, options.timeout))
            if keeper is not None:
                keeper.wait_attached()
            _prepare(guest, machine, options)
            if machine.debuggable and wait_for_debugger(machine.pid, rundir.path):
                guest.lift_limits()
            yield guest
            _leave_counts(guest, image)
            _finish(guest, options)
        finally:
            guest.destroy()
            if keeper is not None:
                keeper.finish(panicked=any(f.kind == "panic" for f in guest.findings()))
        keep = options.keep or guest.keep
        _record(rundir, guest, options, None, repeat)
    except BaseException as error:
        _record(rundir, guest, options, error, repeat)
        if isinstance(error, Exception) and outcome_of(error) is not Outcome.SKIP:
            log = guest.own_log() if guest is not None else rundir.read_console()
            _attach(error, report(rundir, image.vmlinux, error, repeat, log))
            setattr(error, CONSOLE, rundir.read_console())
        raise
    finally:
        watch.close()
        rundir.close(keep=keep)


@contextmanager
def boot_guest(
    profile: str = "fast",
    *,
    kernel: str | None = None,
    mem: str = DEFAULT_MEM,
    swap: str | None = None,
    time_travel: bool | None = None,
    append: Sequence[str] = (),
    shares: Sequence[str | tuple[str, str]] = (),
    timeout: float = 120.0,
    name: str = "guest",
    allow_taint: bool = False,
    keep: bool = False,
    cpus: int | None = None,
    arch: str | None = None,
    dimm: str | None = None,
    term: Term | None = None,
) -> Iterator[Guest]:
    """Boot a guest for a test; as :func:`boot`, with time travel where there is such.

    *shares* are directories, ``DIR:GUESTPATH`` texts or pairs; the machine is that of
    ``$LINUX_UM_ARCH`` where *arch* does not say.
    """
    machine = default_arch() if arch is None else arch
    pairs = tuple(parse_share(item) if isinstance(item, str) else item for item in shares)
    options = BootOptions(
        profile=profile,
        kernel=default_kernel() if kernel is None else kernel,
        mem=mem,
        swap=swap,
        time_travel=(
            kconfig.time_travels(profile, machine) if time_travel is None else time_travel
        ),
        append=(append,) if isinstance(append, str) else tuple(append),
        shares=pairs,
        timeout=timeout,
        name=name,
        allow_taint=allow_taint,
        keep=keep,
        cpus=cpus,
        arch=machine,
        dimm=dimm,
    )
    with boot(options, term=term) as guest:
        yield guest


def _run_directory(name: str, image: build.Image, repeat: str) -> RunDir:
    """Return a run directory with the head of its log. Raises HostError."""
    rundir = RunDir(name)
    head = (
        f"# kernel {image.kernel}, profile {image.profile}, machine {image.arch}, "
        f"patches {image.patches_hash}, engine {image.engine_hash}, image {image.key}\n"
        f"# repeat: {repeat}\n"
    )
    try:
        rundir.write("command.txt", repeat + "\n")
        rundir.write(rundir.console.name, head)
    except HostError:
        rundir.close(keep=False)
        raise
    return rundir


def _prepare(guest: Guest, machine: Machine, options: BootOptions) -> None:
    for number, (host, target) in enumerate(options.shares):
        try:
            guest.mount(machine.share_source(number, host), target)
        except OSError as error:
            raise LinuxUmError(
                f"cannot mount {host} at {target} in the guest: {error.strerror}",
                "give a directory of the host that can be read",
            ) from error
    if options.swap is not None:
        device = machine.swap_device
        guest.sh(f"mkswap {device} >/dev/null && swapon {device}")


def _leave_counts(guest: Guest, image: build.Image) -> None:
    """Fetch what the guest has counted of its kernel's lines, when it does and somebody asks.

    Raises OSError when it cannot be read, CoverageError when it cannot be added.
    """
    target = coverage.target_directory()
    if target is None or not guest.alive or not image.coverage_notes.is_dir():
        return
    coverage.collect(
        guest.read_bytes, image.key, image.build_dir, image.coverage_notes, target
    )


def _finish(guest: Guest, options: BootOptions) -> None:
    """Power off and judge the log. Raises GuestOops, HostError and what power_off() raises."""
    guest.power_off()
    findings = guest.findings()
    if findings and not options.allow_taint:
        refused = guest.host_error()
        if refused is not None:
            raise refused
        first = findings[0]
        raise GuestOops(f"the kernel's log has a {first.kind}: {first.text}", "see the trace")


def _record(
    rundir: RunDir,
    guest: Guest | None,
    options: BootOptions,
    error: BaseException | None,
    repeat: str,
) -> None:
    """Write dmesg and result.json. The log may be the only trace, so never fail."""
    console = rundir.read_console()
    findings = guest.findings() if guest is not None else scan(console)
    result: dict[str, object] = {
        "outcome": outcome_of(error).value,
        "message": "" if error is None else str(error) or type(error).__name__,
        "profile": options.profile,
        "version": guest.version if guest is not None else "",
        "findings": [f"{f.line}: {f.kind}: {f.text}" for f in findings],
        "repeat": repeat,
    }
    if guest is not None:
        result.update(guest.result)
    try:
        rundir.write("dmesg", dmesg(console))
        rundir.write_json("result.json", result)
    except HostError as problem:
        print(f"linux-um: {problem.line()}", file=sys.stderr)


def report(
    rundir: RunDir,
    vmlinux: Path,
    error: BaseException,
    repeat: str,
    log: str,
) -> str:
    """Return what a person needs to understand a failed run; *log* is the kernel's own log."""
    lines = [f"outcome: {outcome_of(error).value}"]
    which, shown = excerpt(log)
    lines.append(f"kernel's log, {which} (all of it: {rundir.console}):")
    lines += [f"  {line}" for line in symbolise(shown, vmlinux).splitlines()]
    lines += [f"run directory: {rundir.path}", f"repeat by: {repeat}"]
    return "\n".join(lines)


def _attach(error: Exception, text: str) -> None:
    """Give the report to the exception, for whoever shows it."""
    setattr(error, REPORT, text)
    error.add_note(text)

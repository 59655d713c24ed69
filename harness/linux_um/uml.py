# SPDX-License-Identifier: GPL-2.0-only
"""The machine that is a process: User-Mode Linux, started by run_uml.sh."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from . import doctor
from .errors import HostError
from .machine import SWAP_FILE, Machine, MachineError, MachineOptions, make_swap_file
from .mconsole import MconsoleError, mconsole
from .options import parse_size
from .outcome import host_shortage, scan, started
from .paths import repo_root
from .rundir import RunDir
from .term import Term

# Seconds the kernel may take for an answer on its management console.
ANSWER_SECONDS = 5.0


class UmlMachine(Machine):
    """A UML kernel; the line is a pipe each way, and its management console is asked."""

    stages = ()
    debuggable = True
    trace_addresses = True
    boot_seconds = 60.0
    shutdown_seconds = 60.0
    usual_seconds = 5.0
    slow = False
    skipped_seconds = 86400
    exact_time = False
    repeatable = True
    kernel_mib = 0
    host_mappings = True
    walks_once = True
    swap_device = "/dev/ubdb"
    disk_thread = True

    def __init__(self, options: MachineOptions, rundir: RunDir) -> None:
        """Start it, as :meth:`Machine._start` says. Raises HostError."""
        super().__init__(options, rundir)
        self._mem_bytes = parse_size(options.mem)
        self._memory = options.memory or doctor.memory_directory(self._mem_bytes)
        make_swap_file(options, rundir.path)
        try:
            guest_in, self.line_out = os.pipe2(os.O_CLOEXEC)
            self.line_in, guest_out = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"cannot start the guest: {error}") from error
        os.set_blocking(self.line_out, False)
        environment = {**os.environ, "TMPDIR": str(self._memory)}
        command = machine_command(options, rundir.path, guest_in, guest_out)
        self._start(command, (guest_in, guest_out), environment)

    @classmethod
    def starter(cls, options: MachineOptions, term: Term) -> Callable[[RunDir], UmlMachine]:
        """Look for a directory that has room for the memory, which is a file."""
        memory = doctor.boot_checks(parse_size(options.mem))
        return functools.partial(cls, replace(options, memory=memory))

    def share_source(self, number: int, host_dir: str) -> str:
        """Return the directory: hostfs takes what the host has."""
        return host_dir

    def answers(self) -> bool:
        """Ask the kernel by its management console.

        In real time a kernel thread has to answer. Under time travel a program that
        never waits keeps all others from running, so there an interrupt's answer has
        to do.
        """
        question = "help" if self.time_travel else "version"
        try:
            mconsole(self._rundir.mconsole, question, timeout=ANSWER_SECONDS)
        except MconsoleError:
            return False
        return True

    def host_error(self, log: str) -> HostError | None:
        """Look for what UML says of the host, and at the memory's directory if it says nothing."""
        memory = doctor.Directory.look(self._memory)
        return host_error(log, memory, self._mem_bytes, doctor.max_map_count())

    def full_directory(self) -> str:
        """UML's memory is a file."""
        return doctor.full_warning(doctor.Directory.look(self._memory))

    def sysrq(self, key: str) -> None:
        """Press a key by the management console. Raises MachineError."""
        try:
            mconsole(self._rundir.mconsole, f"sysrq {key}")
        except MconsoleError as error:
            raise MachineError(str(error)) from error


def host_error(
    log: str, memory: doctor.Directory, mem_bytes: int, max_map_count: int
) -> HostError | None:
    """Return the error for what the host did not let a guest have that has left *log*.

    *memory* is the directory for its memory of *mem_bytes*, as it is now.
    """
    shortage = host_shortage(scan(log))
    if shortage == "host mappings":
        return doctor.mappings_error(max_map_count, mem_bytes)
    if shortage == "host memory":
        return doctor.memory_error(memory.path, mem_bytes)
    # Memory may be lacking before there is a kernel that can say so.
    check = doctor.memory_check(memory, mem_bytes)
    return None if started(log) or not check.mend else check.error()


def machine_command(
    options: MachineOptions, rundir: Path, line_in: int, line_out: int, *extra: str
) -> list[str]:
    """Return the command that becomes the kernel; *extra* are options of run_uml.sh."""
    command = [
        str(repo_root() / "harness" / "run_uml.sh"),
        "--linux", str(options.linux),
        "--initrd", str(options.initrd),
        "--rundir", str(rundir),
        "--mem", options.mem,
        "--line-in", str(line_in),
        "--line-out", str(line_out),
    ]  # fmt: skip
    if options.time_travel:
        command.append("--time-travel")
    if options.cpus > 1:
        command += ["--cpus", str(options.cpus)]
    if options.swap is not None:
        command += ["--swap", SWAP_FILE]
    for words in options.append:
        command += ["--append", words]
    return command + list(extra)

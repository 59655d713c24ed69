# SPDX-License-Identifier: GPL-2.0-only
"""The UML process: starting it by run_uml.sh, and ending it with all that belongs to it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import HostError
from .options import parse_size
from .paths import repo_root
from .rundir import RunDir

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1).value
SWAP_FILE = "swap"


@dataclass(frozen=True)
class MachineOptions:
    """What a machine is to be like.

    ``mem`` and ``swap`` are sizes such as 256M; no swap device when ``swap`` is
    None. ``append`` holds words for the kernel's command line. ``memory`` is the
    directory of the host for the file that is the guest's memory. More than one
    of ``cpus`` takes a kernel with SMP.
    """

    linux: Path
    initrd: Path
    mem: str = "256M"
    swap: str | None = None
    time_travel: bool = False
    append: Sequence[str] = ()
    memory: Path | None = None
    cpus: int = 1


class Machine:
    """One running UML kernel: a process group of its own, and the agent's line."""

    def __init__(self, options: MachineOptions, rundir: RunDir) -> None:
        """Start it. The caller must call :meth:`kill` in the end, come what may.

        The thread that does this must outlive the guest: the kernel is told to
        die with it. Raises HostError when it cannot be started.
        """
        self._rundir = rundir
        self._ended = False
        self.time_travel = options.time_travel
        _become_subreaper()
        guest_in, self.line_out = os.pipe2(os.O_CLOEXEC)
        self.line_in, guest_out = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.line_out, False)
        try:
            command = machine_command(options, rundir.path, guest_in, guest_out)
            if options.swap is not None:
                with open(rundir.path / SWAP_FILE, "wb") as swap:
                    swap.truncate(parse_size(options.swap))
            environment = dict(os.environ)
            if options.memory is not None:
                environment["TMPDIR"] = str(options.memory)
            with open(rundir.console, "ab") as console:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    pass_fds=(guest_in, guest_out),
                    start_new_session=True,
                    env=environment,
                    preexec_fn=allow_debugger(),
                )
        except OSError as error:
            os.close(self.line_in)
            os.close(self.line_out)
            raise HostError(f"cannot start the guest: {error}") from error
        finally:
            os.close(guest_in)
            os.close(guest_out)

    @property
    def pid(self) -> int:
        """The host's number of the UML process, also of its process group."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status once it has ended (negative: a signal), else None."""
        return self._process.poll()

    def wait(self, timeout: float) -> int | None:
        """Wait up to *timeout* seconds for its end; return as :meth:`poll` does."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> int:
        """End the kernel and each of its processes, and return the exit status.

        Also after an orderly end, to be sure; calling it again does nothing.
        """
        if not self._ended:
            # While a member is left, or the leader unreaped, the group's
            # number cannot be anybody else's.
            _signal_group(self.pid, signal.SIGKILL)
            self._process.wait()
            _reap_group(self.pid)
            self._ended = True
        return int(self._process.wait())


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


def _become_subreaper() -> None:
    """Let orphans of a guest come to us rather than to init, so that we reap them."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):
        return


def allow_debugger(
    scope: Path = Path("/proc/sys/kernel/yama/ptrace_scope"),
) -> Callable[[], None] | None:
    """Return what a child has to call so that gdb may attach to it: mostly nothing.

    Where kernel.yama.ptrace_scope is 1, a user's gdb may attach to its own
    children only, unless the process to be allows others.
    """
    try:
        restricted = scope.read_text().strip() == "1" and os.geteuid() != 0
    except OSError:
        return None
    if not restricted:
        return None
    # Looked up here: between fork and exec there is to be one call and no more.
    prctl = ctypes.CDLL(None).prctl
    anyone = ctypes.c_ulong(_PR_SET_PTRACER_ANY)
    return lambda: prctl(_PR_SET_PTRACER, anyone, 0, 0, 0) and None


def _signal_group(group: int, number: int) -> bool:
    """Return False when there is no such group any more."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reap_group(group: int, *, timeout: float = 5.0) -> None:
    """Kill and reap what is left of a process group; *timeout* in seconds."""
    limit = time.monotonic() + timeout
    while _signal_group(group, signal.SIGKILL) and time.monotonic() < limit:
        try:
            while os.waitpid(-group, os.WNOHANG)[0] > 0:
                pass
        except ChildProcessError:
            pass
        time.sleep(0.002)

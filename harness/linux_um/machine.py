# SPDX-License-Identifier: GPL-2.0-only
"""What every machine has in common: one process of the host, and the agent's line.

A machine is started by its constructor. :class:`Machine` is all that the rest of
the harness knows; uml.py and qemu.py are the machines there are.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import HostError
from .options import parse_size
from .rundir import RunDir
from .term import Term

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1).value
SWAP_FILE = "swap"


class MachineError(OSError):
    """A machine does not take a request that goes by the agent."""


@dataclass(frozen=True)
class MachineOptions:
    """What a machine is to be like.

    ``linux`` is the file to start. ``mem`` and ``swap`` are sizes such as 256M; no
    swap device when ``swap`` is None. ``append`` holds words for the kernel's command
    line. ``memory`` is the directory of the host for the file that is the guest's
    memory. ``shares`` are directories of the host that are to be mounted. More than
    one of ``cpus`` takes a kernel with SMP. ``dimm`` is the size of a memory module that
    can be plugged in while it runs; there is a place for one only where it is given.
    """

    linux: Path
    initrd: Path
    mem: str = "256M"
    swap: str | None = None
    time_travel: bool = False
    append: Sequence[str] = ()
    memory: Path | None = None
    cpus: int = 1
    shares: Sequence[str] = ()
    dimm: str | None = None


class Machine(ABC):
    """A running machine: a process group of its own, and the agent's line.

    Whoever has to know in what kinds of machines differ asks for one of these traits.
    """

    # The stages of packages.py without which it cannot be started.
    stages: tuple[str, ...]
    # Whether its process is the guest's kernel, which the host's gdb can look at.
    debuggable: bool
    # Whether the traces in its log have addresses, so that lines of source are found by them.
    trace_addresses: bool

    # Wall-clock seconds that it may take, on a busy host, from its start to the agent's greeting.
    boot_seconds: float
    # The same from the order to power off to its end.
    shutdown_seconds: float
    # Wall-clock seconds in which it has always booted and begun to work, on any other.
    usual_seconds: float
    # Whether it may be emulated, so that whatever it does takes many times as long.
    slow: bool
    # Seconds of a guest's time that go by in a moment when they are skipped.
    skipped_seconds: int
    # Whether, under time travel, its clock and what a task is charged for are the same
    # whatever else the host does.
    exact_time: bool
    # Whether, under time travel, a guest does the same again that does not draw lots.
    repeatable: bool

    # MiB of memory that its kernel takes for itself, beyond what User-Mode Linux does.
    kernel_mib: int
    # Whether each page that a process maps is a mapping of the host's, which has a limit.
    host_mappings: bool
    # Whether most of the work of a walk over the mappings of a page is done once, and not
    # for each mapping.
    walks_once: bool
    # Under which name the guest has its swap device.
    swap_device: str
    # Whether its disks are a thread of the host's, which does a write beside the kernel.
    disk_thread: bool

    def __init__(self, options: MachineOptions, rundir: RunDir) -> None:
        """Make ready; the constructor of a kind of machine goes on by :meth:`_start`."""
        self._rundir = rundir
        self._ended = False
        self.time_travel = options.time_travel
        self.line_in = self.line_out = -1
        _become_subreaper()

    def _start(
        self,
        command: Sequence[str],
        descriptors: Sequence[int],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start *command*, which inherits *descriptors*; its output goes into the log.

        The caller must call :meth:`kill` in the end, come what may. The thread that
        does this must outlive the guest: it is told to die with it. *descriptors* are
        closed here. Raises HostError when it cannot be started.
        """
        try:
            with open(self._rundir.console, "ab") as console:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    pass_fds=tuple(descriptors),
                    start_new_session=True,
                    env=environment,
                    cwd=self._rundir.path,
                    preexec_fn=allow_debugger(),
                )
        except OSError as error:
            self.close_line()
            raise HostError(f"cannot start the guest: {error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    @property
    def pid(self) -> int:
        """The host's number of the machine's process, also of its process group."""
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

    def close_line(self) -> None:
        """Close this end of the agent's line; calling it again does nothing."""
        for descriptor in {self.line_in, self.line_out}:
            if descriptor >= 0:
                os.close(descriptor)
        self.line_in = self.line_out = -1

    @classmethod
    @abstractmethod
    def starter(cls, options: MachineOptions, term: Term) -> Callable[[RunDir], Machine]:
        """Return what starts such a machine in a run directory, once the host is fit for it.

        Raises HostError when it is not, UsageError for what the environment asks for in vain.
        """

    @abstractmethod
    def share_source(self, number: int, host_dir: str) -> str:
        """Return what the agent has to mount for the share *number*, from 0."""

    @abstractmethod
    def answers(self) -> bool:
        """Ask the kernel, not the agent, for something; return whether it answers."""

    def host_error(self, log: str) -> HostError | None:
        """Return the error for what the host did not let the machine have, by its *log*.

        None when that is nothing, or not what is wrong.
        """
        return None

    def full_directory(self) -> str:
        """Return a line on the host's directory that holds its memory and is full.

        Empty when there is none such just now.
        """
        return ""

    @abstractmethod
    def sysrq(self, key: str) -> None:
        """Press a key of magic SysRq; the answer goes to the log. Raises MachineError."""

    def plug_memory(self) -> None:
        """Plug the memory module in. Raises MachineError, also where there is no place for it."""
        raise MachineError("it has no place for a memory module")

    def unplug_memory(self, timeout: float) -> None:
        """Ask the kernel for the memory module, and wait *timeout* seconds until it is out.

        Raises MachineError when it is not given back.
        """
        raise MachineError("it has no place for a memory module")


def make_swap_file(options: MachineOptions, directory: Path) -> None:
    """Make the file behind the swap device, if there is to be one. Raises HostError."""
    if options.swap is None:
        return
    try:
        with open(directory / SWAP_FILE, "wb") as swap:
            swap.truncate(parse_size(options.swap))
    except OSError as error:
        raise HostError(f"cannot make a swap device of {options.swap}: {error}") from error


def _become_subreaper() -> None:
    """Let orphans of a guest come to us rather than to init, so that we reap them."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (OSError, AttributeError):
        return


@functools.lru_cache(maxsize=1)
def guard() -> tuple[str, ...]:
    """Return the words before a command which is to end with us, or none where that cannot be.

    It ends with the thread that starts it.
    """
    words = ("setpriv", "--pdeathsig", "KILL")
    try:
        done = subprocess.run([*words, "true"], capture_output=True, check=False)
    except OSError:
        return ()
    return words if done.returncode == 0 else ()


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

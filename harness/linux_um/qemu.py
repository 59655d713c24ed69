# SPDX-License-Identifier: GPL-2.0-only
"""The machine that is emulated, or virtual: x86_64 under QEMU.

This is the one place that knows QEMU's command line. The agent's line is a port of
virtio-serial, the log is the first serial port, and what the management console is
to User-Mode Linux is QEMU's monitor: a break on the serial port, and a key.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .accel import PROGRAM, TCG
from .accel import choose as choose_accel
from .errors import HostError
from .machine import SWAP_FILE, Machine, MachineError, MachineOptions, guard, make_swap_file
from .options import parse_size
from .rundir import RunDir
from .term import Term

# Where the guest finds the agent's line.
LINE = "/dev/vport0p1"
# Of the run directory: the monitor, and what goes in by the serial port.
MONITOR = "qmp"
SERIAL = "serial"
# Seconds the kernel may take for an answer to a key.
ANSWER_SECONDS = 10.0
_MONITOR_SECONDS = 5.0
_LOOK_SECONDS = 0.1
# The memory module that can be plugged in, and what is behind it.
_DIMM = "dimm"
_DIMM_MEMORY = "dimm-memory"
# How often the guest's clock ticks for an instruction, as a power of two in ns.
_ICOUNT_SHIFT = 0
# Two nodes take memory enough for both.
MIN_NODE_BYTES = 128 << 20


class QemuMachine(Machine):
    """A PC of the kind q35 without what a test of memory does not need."""

    stages = ("qemu",)
    debuggable = False
    trace_addresses = False
    boot_seconds = 300.0
    shutdown_seconds = 120.0
    usual_seconds = 30.0
    slow = True
    # It has timers of its own: an hour of its clock takes seconds of ours.
    skipped_seconds = 14400
    # It counts instructions.
    exact_time = True
    repeatable = False
    kernel_mib = 20
    host_mappings = False
    walks_once = False
    swap_device = "/dev/vda"
    disk_thread = False

    def __init__(self, options: MachineOptions, rundir: RunDir, *, accel: str) -> None:
        """Start it by the accelerator *accel* (kvm or tcg). Raises HostError."""
        super().__init__(options, rundir)
        self._dimm = options.dimm
        make_swap_file(options, rundir.path)
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise HostError(f"cannot start the guest: {error}") from error
        self.line_out = os.dup(ours.fileno())
        self.line_in = ours.detach()
        line = theirs.detach()
        self._start([*guard(), *qemu_command(options, line, accel)], (line,))

    @classmethod
    def starter(cls, options: MachineOptions, term: Term) -> Callable[[RunDir], QemuMachine]:
        """Decide on the accelerator, by a trial where that has never been done."""
        # QEMU counts instructions only where it executes them itself.
        how = TCG if options.time_travel else choose_accel(options.linux, term)
        return functools.partial(cls, options, accel=how)

    def share_source(self, number: int, host_dir: str) -> str:
        """Return the tag of the share, as the command line has it."""
        return share_tag(number)

    def answers(self) -> bool:
        """Ask the kernel for the list of its keys, and see whether its log grows by it."""
        try:
            self.sysrq("h")
        except MachineError:
            return False
        return True

    def sysrq(self, key: str) -> None:
        """Send a break and the key to the serial port, and wait till the log has an answer.

        Raises MachineError, also when there is none.
        """
        size = self._rundir.console.stat().st_size
        try:
            # Whoever is connected to the port is its other end.
            with (
                _Monitor(self._rundir.path) as monitor,
                _connect(self._rundir.path, SERIAL) as serial,
            ):
                monitor.ask("chardev-send-break", id=SERIAL)
                serial.sendall(key.encode())
                if not self._log_has(size, b"sysrq: ", serial):
                    raise MachineError(f"sysrq {key}: no answer")
        except (OSError, ValueError) as error:
            raise MachineError(f"sysrq {key}: {error}") from error

    def plug_memory(self) -> None:
        """Plug the memory module in. Raises MachineError, also where there is no place for it."""
        if self._dimm is None:
            return super().plug_memory()
        backend: dict[str, str | int] = {
            "qom-type": "memory-backend-ram", "id": _DIMM_MEMORY, "size": parse_size(self._dimm),
        }  # fmt: skip
        try:
            with _Monitor(self._rundir.path) as monitor:
                monitor.ask("object-add", **backend)
                monitor.ask("device_add", driver="pc-dimm", id=_DIMM, memdev=_DIMM_MEMORY)
        except (OSError, ValueError) as error:
            raise MachineError(f"memory is not plugged in: {error}") from error

    def unplug_memory(self, timeout: float) -> None:
        """Ask the kernel for the memory module, and wait *timeout* seconds until it is out.

        Raises MachineError when it is not given back.
        """
        try:
            with _Monitor(self._rundir.path) as monitor:
                monitor.ask("device_del", id=_DIMM)
                monitor.wait_gone(_DIMM, timeout)
                monitor.ask("object-del", id=_DIMM_MEMORY)
        except (OSError, ValueError) as error:
            raise MachineError(f"memory is not given back: {error}") from error

    def _log_has(self, begin: int, text: bytes, serial: socket.socket) -> bool:
        """Wait until the log has *text* from the byte *begin* on; return whether it has.

        What comes by *serial* meanwhile is in the log as well. Nobody reading it, the
        kernel would have to wait with what it says.
        """
        limit = time.monotonic() + ANSWER_SECONDS
        serial.settimeout(_LOOK_SECONDS)
        while time.monotonic() < limit:
            with contextlib.suppress(TimeoutError):
                serial.recv(1 << 16)
            with open(self._rundir.console, "rb") as console:
                console.seek(begin)
                if text in console.read():
                    return True
        return False


def share_tag(number: int) -> str:
    """Return the name by which a guest mounts its share *number*, from 0."""
    return f"share{number}"


def qemu_command(options: MachineOptions, line: int, accel: str) -> list[str]:
    """Return the command that becomes the machine.

    Its current directory is the run directory. *line* is the descriptor of a socket.
    """
    words = ["panic=-1", "console=ttyS0", f"line={LINE}", "no_timer_check"]
    if accel == "tcg" and not options.time_travel:
        # Else the ACPI timer is the clock, which begins anew after 4.7 s: where the host lets
        # the guest wait for so long, its time stands still from then on.
        words.append("tsc=reliable")
    words += options.append
    command = [
        PROGRAM, "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35,vmport=off,smbus=off,hpet=off",
        "-accel", f"{accel},thread=single" if accel == "tcg" and options.time_travel else accel,
        "-cpu", "max" if accel == "tcg" else "host",
        *_cpus_and_memory(options),
        "-kernel", str(options.linux), "-initrd", str(options.initrd),
        "-append", " ".join(words),
        "-no-reboot",
        "-qmp", f"unix:{MONITOR},server=on,wait=off",
        "-chardev",
        f"socket,id={SERIAL},path={SERIAL},server=on,wait=off,logfile=console.log,logappend=on",
        "-serial", f"chardev:{SERIAL}",
        "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=line,fd={line}",
        "-device", "virtserialport,chardev=line,name=line",
    ]  # fmt: skip
    if options.time_travel:
        command += ["-icount", f"shift={_ICOUNT_SHIFT},sleep=off"]
    if options.swap is not None:
        command += ["-drive", f"file={SWAP_FILE},format=raw,if=virtio,cache=unsafe"]
    for number, directory in enumerate(options.shares):
        tag = share_tag(number)
        quoted = directory.replace(",", ",,")
        command += [
            "-virtfs",
            f"local,path={quoted},mount_tag={tag},security_model=none,multidevs=remap,id={tag}",
        ]
    return command


def _cpus_and_memory(options: MachineOptions) -> list[str]:
    """Return the options for both: two nodes where there is enough of them."""
    size = parse_size(options.mem)
    half = size // 2 >> 21 << 21
    words = ["-m", f"size={size // 1024}K", "-smp"]
    if options.dimm is not None:
        words[1] += f",slots=1,maxmem={(size + parse_size(options.dimm)) // 1024}K"
    if options.cpus < 2 or half < MIN_NODE_BYTES:
        return [*words, str(options.cpus)]
    # A node is a socket, with as many CPUs as the other or one less.
    middle = (options.cpus + 1) // 2
    words.append(f"{options.cpus},sockets=2,cores={middle},threads=1,maxcpus={2 * middle}")
    for node, cpus, count in (
        (0, f"0-{middle - 1}", half),
        (1, f"{middle}-{2 * middle - 1}", size - half),
    ):
        words += [
            "-object", f"memory-backend-ram,id=node{node},size={count}",
            "-numa", f"node,nodeid={node},cpus={cpus},memdev=node{node}",
        ]  # fmt: skip
    return words


def _connect(directory: Path, name: str) -> socket.socket:
    """Connect to a socket of the run directory, however long its path is."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(_MONITOR_SECONDS)
        try:
            client.connect(f"/proc/self/fd/{descriptor}/{name}")
        except OSError:
            client.close()
            raise
        return client
    finally:
        os.close(descriptor)


class _Monitor:
    """QEMU's monitor, for the length of a block."""

    def __init__(self, directory: Path) -> None:
        """Connect to it. Raises OSError."""
        self._socket = _connect(directory, MONITOR)
        self._answers = self._socket.makefile("r")
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> _Monitor:
        """Make ready for commands. Raises OSError, ValueError."""
        try:
            self._answers.readline()
            self.ask("qmp_capabilities")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, what: str, **arguments: str | int) -> None:
        """Execute a command. Raises OSError when it is refused, ValueError for nonsense."""
        request = {"execute": what, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = self._read(what)
            if "return" in answer:
                return
            if "error" in answer:
                raise OSError(f"{what}: {answer['error'].get('desc', 'refused')}")
            self._events.append(answer)

    def wait_gone(self, device: str, timeout: float) -> None:
        """Wait *timeout* seconds until the guest has given a device back. Raises as :meth:`ask`."""
        limit = time.monotonic() + timeout
        while True:
            for event in self._events:
                if event.get("data", {}).get("device") != device:
                    continue
                if event["event"] == "DEVICE_DELETED":
                    return
                raise OSError(f"{device}: {event['event']}")
            self._socket.settimeout(max(limit - time.monotonic(), _LOOK_SECONDS))
            self._events = [self._read(device)]

    def _read(self, what: str) -> dict[str, Any]:
        """Return what it says next. Raises OSError once it has gone."""
        line = self._answers.readline()
        if not line:
            raise OSError(f"{what}: the monitor has gone")
        return dict(json.loads(line))

# SPDX-License-Identifier: GPL-2.0-only
"""What the measurements of engines are made with: guests, settings, and a clock of CPU time.

A User-Mode Linux kernel is one process of the host, and what the programs of the guest
compute is done by other processes. So the host's CPU clock of that process tells, to the
nanosecond, what the guest's kernel has computed; and while all programs of the guest
sleep, that is the engine. Time for which the host has taken the CPU away does not count.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import kconfig
from .errors import LinuxUmError
from .guest import Guest, boot_guest
from .term import Term

KSM_DIR = "/sys/kernel/mm/ksm"
PKSM_DIR = "/sys/kernel/mm/pksm"
PAGE_BYTES = 4096
PAGES_PER_MIB = 256
# Pages of one process, which needs a mapping of the host for each that is merged.
MAX_PAGES_OF_PROCESS = 32768
# So that slabs of the engine are not counted with others of the same size.
APPEND = ("slab_nomerge",)
# What a guest needs beside the pages of a hoard, in MiB.
SPARE_MIB = 160


class BenchError(LinuxUmError):
    """What was to be measured did not work."""


@dataclass(frozen=True)
class Setting:
    """An engine and how it is tuned: the profile of its kernel, and its controls."""

    name: str
    title: str
    profile: str
    controls: tuple[tuple[str, str], ...] = ()

    @property
    def is_pksm(self) -> bool:
        """Whether the engine is PKSM, and not stock KSM."""
        return self.name.startswith("pksm")

    @property
    def full_speed(self) -> bool:
        """Whether the engine is not kept from taking all of a CPU."""
        return self.name.endswith("-full")

    @property
    def directory(self) -> str:
        """Where the engine's files are in the guest."""
        return PKSM_DIR if self.is_pksm else KSM_DIR

    @property
    def daemon(self) -> str:
        """The name of the task that merges."""
        return "pksmd" if self.is_pksm else "ksmd"


PKSM = Setting("pksm", "PKSM, defaults", "bench")
PKSM_FULL = Setting(
    "pksm-full", "PKSM, full speed", "bench", (("max_cpu", "100"), ("settle_millisecs", "2"))
)
KSM = Setting("ksm", "KSM, defaults", "ksm")
KSM_ADVISOR = Setting("ksm-advisor", "KSM, advisor", "ksm", (("advisor_mode", "scan-time"),))
# Small batches cost no more, and let go of the lock sooner.
KSM_FULL = Setting(
    "ksm-full",
    "KSM, full speed",
    "ksm",
    (("sleep_millisecs", "0"), ("pages_to_scan", "500"), ("smart_scan", "0")),
)
SETTINGS = {each.name: each for each in (PKSM, PKSM_FULL, KSM, KSM_ADVISOR, KSM_FULL)}


def kernel_cpu_ns(guest: Guest) -> int:
    """Return the CPU time in nanoseconds that the guest's kernel has used since its start."""
    # See clock_getcpuclockid(3): the clock of all threads of a process.
    return time.clock_gettime_ns((~guest.pid << 3) | 2)


def mem_of(mib: int, spare_mib: int = SPARE_MIB) -> str:
    """Return the memory of a guest that is to hold *mib* MiB of pages, and *spare_mib* others."""
    return f"{max(256, mib + mib // 16 + spare_mib)}M"


class Workload:
    """A program in the guest that obeys lines of input, each answered by a line of JSON."""

    def __init__(self, guest: Guest, argv: Sequence[str]) -> None:
        """For *argv* in *guest*; it is started by entering the block."""
        self.guest = guest
        self._argv = list(argv)
        self._orders = 0

    def __enter__(self) -> Workload:
        """Start it."""
        self._process = self.guest.start(self._argv)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End it. Raises CommandFailed when it has found a wrong byte."""
        if kind is not None or not self.guest.alive:
            return
        self._process.close_stdin()
        self._process.wait(120.0).check()

    def send(self, *orders: str) -> None:
        """Give orders without waiting for the answers.

        They come at once: a clock that skips waiting does not leap in between.
        """
        self._orders += len(orders)
        self._process.write("".join(f"{order}\n" for order in orders).encode())

    def answers(self, number: int, timeout: float = 600.0) -> list[dict[str, Any]]:
        """Return the answers to the last *number* orders; *timeout* in wall-clock seconds.

        Raises BenchError when the program has ended, GuestTimeout when it is late.
        """
        process = self._process
        self.guest.wait_for(
            lambda: process.stdout.count("\n") >= self._orders or process.poll() is not None,
            time.monotonic() + timeout,
            f"{self._argv[0]} does not answer",
        )
        lines = process.stdout.splitlines()
        if len(lines) < self._orders:
            raise BenchError(f"{self._argv[0]} has ended: {process.stderr.strip()}", "try it")
        return [json.loads(line) for line in lines[self._orders - number : self._orders]]

    def answered(self) -> bool:
        """Return whether all orders are done."""
        return self._process.stdout.count("\n") >= self._orders

    def order(self, order: str, timeout: float = 600.0) -> dict[str, Any]:
        """Give an order and return its answer; as :meth:`answers`."""
        return self.orders([order], timeout)[0]

    def orders(self, orders: Sequence[str], timeout: float = 600.0) -> list[dict[str, Any]]:
        """Give *orders* at once and return the answers; as :meth:`answers`."""
        self.send(*orders)
        return self.answers(len(orders), timeout)


class Hoard(Workload):
    """The workload of that name; see rootfs/workloads/hoard.c."""

    def __init__(self, guest: Guest, procs: int, pages: int, options: Sequence[str] = ()) -> None:
        """For *procs* processes of *pages* pages each."""
        argv = ["hoard", "--procs", str(procs), "--pages", str(pages), "--madvise", *options]
        super().__init__(guest, argv)
        self.procs = procs

    def __enter__(self) -> Hoard:
        """Start it."""
        super().__enter__()
        return self

    def wait(
        self, condition: str, every_ms: int, seconds: int, *, stop: bool = False
    ) -> dict[str, Any]:
        """Wait in the guest until *condition* holds, and *stop* the engine then.

        Raises BenchError after *seconds*.
        """
        order = "until" if stop else "wait"
        found = self.order(f"{order} {condition} {every_ms} {seconds}", seconds + 60.0)
        if not found["ok"]:
            raise BenchError(
                f"the engine has not come to {condition} within {seconds} s", "see its counters"
            )
        return found


def hoard(guest: Guest, mib: int, procs: int = 8, **options: int) -> Hoard:
    """Return a hoard of *mib* MiB in *procs* processes, or more where that is too much for them.

    *options* are those of the workload, such as ``dup=100``. Duplicates are the same in
    groups of eight processes, whatever the number of processes.
    """
    while mib * PAGES_PER_MIB // procs > MAX_PAGES_OF_PROCESS:
        procs *= 2
    words = [
        f"--{name.replace('_', '-')}={value}" for name, value in {"copies": 8, **options}.items()
    ]
    return Hoard(guest, procs, mib * PAGES_PER_MIB // procs, words)


class Lab:
    """Guests for the measurements, each with an engine that is stopped."""

    def __init__(self, kernel: str, term: Term) -> None:
        """For guests of the kernel version *kernel*."""
        self.kernel = kernel
        self._term = term

    @contextmanager
    def guest(
        self,
        profile: str,
        mib: int,
        *,
        time_travel: bool = False,
        spare_mib: int = SPARE_MIB,
        shares: Sequence[str] = (),
        append: Sequence[str] = (),
        kernel: str | None = None,
        arch: str = kconfig.UM,
        cpus: int | None = None,
    ) -> Iterator[Guest]:
        """Boot a guest that can hold *mib* MiB of pages; its clock is the host's by default."""
        with boot_guest(
            profile,
            kernel=self.kernel if kernel is None else kernel,
            mem=mem_of(mib, spare_mib),
            time_travel=time_travel,
            append=[*APPEND, *append],
            shares=shares,
            timeout=900.0,
            name="bench",
            arch=arch,
            cpus=cpus,
            term=self._term,
        ) as guest:
            yield guest


def engine_file(guest: Guest, setting: Setting, name: str) -> int:
    """Return a number of the engine's. Raises OSError when there is no such file."""
    return int(guest.read_file(f"{setting.directory}/{name}"))


def set_engine(guest: Guest, setting: Setting, name: str, value: str) -> None:
    """Write a control of the engine's. Raises OSError."""
    guest.write_file(f"{setting.directory}/{name}", value)


def tune(guest: Guest, setting: Setting) -> None:
    """Stop the engine and give it the controls of *setting*."""
    set_engine(guest, setting, "run", "0")
    for name, value in setting.controls:
        set_engine(guest, setting, name, value)


def counters(guest: Guest, setting: Setting) -> dict[str, int]:
    """Return all numbers of the engine's directory, by name."""
    done = guest.sh(f"cd {setting.directory} && grep . *")
    found = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(":")
        if value.lstrip("-").isdigit():
            found[name] = int(value)
    return found


def slabs(guest: Guest) -> dict[str, dict[str, int]]:
    """Return of each slab of an engine the objects, the bytes of one, and of its pages."""
    found = {}
    for line in guest.read_file("/proc/slabinfo").splitlines():
        words = line.split()
        if words and words[0].startswith(("ksm_", "pksm_")):
            # NAME active objects size per-slab pages-per-slab : tunables ... : slabdata
            # active-slabs slabs ...
            number = int(words[words.index("slabdata") + 2])
            found[words[0]] = {
                "objects": int(words[1]), "bytes": int(words[3]),
                "page_bytes": number * int(words[5]) * PAGE_BYTES,
            }  # fmt: skip
    return found


def named_numbers(text: str) -> Mapping[str, int]:
    """Return the numbers of lines such as ``name 12``."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}

# SPDX-License-Identifier: GPL-2.0-only
"""pagestep in a guest under gdb: orders to a process whose addresses and pages are known."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import dataclass
from typing import Any

import gdblab
from gdblab import Session
from lab import one_cpu
from linux_um.guest import Guest
from linux_um.kconfig import cpus_of, numbers
from linux_um.source import default_kernel, series_of

PAGE_SIZE = 4096
# Wall-clock seconds an order may take, gdb's work included.
ORDER_SECONDS = 60.0
# What a script says when orders may come.
READY = "orders may come"
SAY_READY = f"echo {READY}\\n\n"


@dataclass(frozen=True)
class Answer:
    """What pagestep said of an order."""

    op: str
    page: int
    pid: int
    address: int
    pfn: int


class Pages:
    """A pagestep that runs; close it by finish()."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        one_cpu(guest)
        self._job = guest.start(["pagestep"])
        first = self._line(0)
        self.pid = int(first["pid"])
        self._region = int(first["region"])
        self._file = int(first["file"])
        self._ordered = 0

    def _line(self, number: int) -> dict[str, Any]:
        limit = time.monotonic() + ORDER_SECONDS
        self._guest.wait_for(
            lambda: self._job.stdout.count("\n") > number or self._job.status is not None,
            limit,
            "pagestep does not answer",
        )
        lines = self._job.stdout.splitlines()
        assert len(lines) > number, self._job.stderr
        found: dict[str, Any] = json.loads(lines[number])
        return found

    def address(self, page: int, *, file: bool = False) -> int:
        """Return the address of a page of the anonymous region, or of the file's mapping."""
        return (self._file if file else self._region) + page * PAGE_SIZE

    def order(self, *orders: str) -> None:
        """Give orders, "OP PAGE [NUMBER]" each, and do not wait."""
        self._job.write("".join(f"{order}\n" for order in orders).encode())
        self._ordered += len(orders)

    def answers(self) -> list[Answer]:
        """Wait until every order is carried out; return all answers so far."""
        count = 0
        line = 0
        found = []
        while count < self._ordered:
            line += 1
            answer = Answer(**self._line(line))
            found.append(answer)
            # A child answers on its own, before its parent does.
            count += answer.pid == self.pid
        return found

    def do(self, order: str) -> Answer:
        """Give an order, and return its answer."""
        self.order(order)
        return self.answers()[-1]

    def close(self) -> None:
        """Let it check every byte, and end."""
        self._job.close_stdin()

    def finish(self) -> None:
        """Let it end, and wait for that; see await_end()."""
        self.close()
        self.await_end()

    def await_end(self) -> None:
        """Wait for its end. Raises AssertionError when a byte was wrong."""
        done = self._job.wait(ORDER_SECONDS)
        assert done.status == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["ok"] is True


def watch(guest: Guest) -> None:
    """Let the engine look a second time at the pages without a partner, and watch them."""
    scans = guest.pksm("full_scans")
    guest.set_pksm("rescan_seconds", 1)
    # A pass that has begun may have gone by a page; the next one does not.
    wanted = f"full_scans>={scans + 2}"
    guest.run(["pksmwait", "--timeout", "60", "--until", wanted], timeout=ORDER_SECONDS)
    guest.set_pksm("rescan_seconds", 0)


def await_swap_out(guest: Guest) -> None:
    """Wait until the swap device has everything, and no batch of the LRU's has a reference."""
    limit = time.monotonic() + ORDER_SECONDS
    while not re.search(r"^nr_writeback 0$", guest.read_file("/proc/vmstat"), re.M):
        assert time.monotonic() < limit, "the swap device does not get ready"
        time.sleep(0.01)
    # This empties the batches. What is in the swap cache, stays there.
    guest.write_file("/proc/sys/vm/drop_caches", "1")


def interrupt(guest: Guest) -> None:
    """Stop a guest that runs under gdb, as Ctrl-C does: gdb's script goes on."""
    os.kill(guest.pid, signal.SIGINT)


def order_when_ready(gdb: Session, pages: Pages, *orders: str) -> None:
    """Give orders once gdb's script says that they may come."""
    gdb.wait_for(READY)
    pages.order(*orders)


# What a script says at its end: how many breakpoints are left, internal ones included.
COUNT_BREAKPOINTS = 'python print(f"breakpoints left: {len(gdb.breakpoints())}")\n'
NONE_LEFT = "breakpoints left: 0"


# What the guided steps print

# What 7.3 calls a function, and 6.12 does; the tests have the names of 6.12.
LATER_NAMES = {
    "map_user": "maybe_map",
    "__free_frozen_pages": "free_unref_page",
    "free_frozen_page_commit": "free_unref_page_commit",
    "__free_pages_prepare": "free_pages_prepare",
}


def in_612(function: str) -> str:
    """Return what 6.12 calls a function of the kernel under test."""
    return LATER_NAMES.get(function, function)


def end_of_free() -> str:
    """Return where a free of a page ends: 7.3 has no per-CPU lists for one CPU."""
    profile = os.environ.get("LINUX_UM_PROFILE", "fast")
    if numbers(series_of(default_kernel())) < (7, 3) or cpus_of(profile) > 1:
        return "free_unref_page_commit"
    return "__free_one_page"


def here(function: str) -> str:
    """Return what the kernel under test calls a function of 6.12."""
    if numbers(series_of(default_kernel())) < (7, 3):
        return function
    return next((later for later, name in LATER_NAMES.items() if name == function), function)


@dataclass(frozen=True)
class Step:
    """A stage as it was printed: the function, the sentence, and the facts by their label."""

    function: str
    sentence: str
    facts: dict[str, str]


def steps_of(text: str) -> list[Step]:
    """Return the stages in what gdb printed."""
    found = []
    for part in re.split(r"^\[\d+\] ", text, flags=re.M)[1:]:
        lines = part.splitlines()
        facts: dict[str, str] = {}
        for line in lines[2:]:
            match = re.match(r"    (\S.*?)  +(.*)$", line)
            if match is None:
                break
            facts.setdefault(match.group(1), match.group(2))
        found.append(Step(in_612(lines[0].split("(")[0]), lines[1].strip(), facts))
    return found


Event = list[Step]


def events_of(text: str) -> list[Event]:
    """Return the stages of each event that was followed to its end."""
    found = []
    for part in re.split(r"^The \w+ is over", text, flags=re.M)[:-1]:
        steps = steps_of(part)
        numbers = [int(number) for number in re.findall(r"^\[(\d+)\] ", part, re.M)]
        assert numbers == list(range(1, len(steps) + 1)), part
        found.append(steps)
    return found


def follow(guest: Guest, pages: Pages, commands: list[str], *orders: str) -> list[Event]:
    """Follow events through all stages, one after another, while pagestep carries out orders."""
    script = SAY_READY + "".join(f"{command} --all\n" for command in commands)
    with gdblab.session(guest, script + COUNT_BREAKPOINTS) as gdb:
        order_when_ready(gdb, pages, *orders)
        text = gdb.finish()
    assert NONE_LEFT in text, text
    events = events_of(text)
    assert len(events) == len(commands), text
    return events


def merge(guest: Guest, pages: Pages, *orders: str) -> Event:
    """Carry out orders while the engine stands still; follow the last one's page through it."""
    guest.set_pksm("run", 0)
    pages.order(*orders)
    pfn = pages.answers()[-1].pfn
    script = f"{SAY_READY}pksm merge {pfn:#x} --all\n{COUNT_BREAKPOINTS}"
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for(READY)
        guest.set_pksm("run", 1)
        text = gdb.finish()
    assert NONE_LEFT in text, text
    (event,) = events_of(text)
    assert event[0].facts["page"].startswith(f"pfn {pfn:#x},")
    return event


def names(steps: Event) -> list[str]:
    """Return the functions of the stages."""
    return [step.function for step in steps]


def stage(steps: Event, function: str, nth: int = 0) -> Step:
    """Return a stage in a function."""
    return [step for step in steps if step.function == function][nth]

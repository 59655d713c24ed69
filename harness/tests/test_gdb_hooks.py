# SPDX-License-Identifier: GPL-2.0-only
"""pksm hooks: a line for each page that passes a hook, and no page without one."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gdblab
import pytest
from lab import parse_report, tracked
from linux_um.guest import Guest
from steplab import (
    COUNT_BREAKPOINTS,
    NONE_LEFT,
    READY,
    SAY_READY,
    Pages,
    interrupt,
    order_when_ready,
    watch,
)

pytestmark = pytest.mark.needs_pksm

PAGES = 200
LINE = re.compile(r"^(\w+) +(0x[0-9a-f]+)  (\S+)\[(\d+)\] +(0x[0-9a-f]+|-)  (.*)$")
COUNTERS = (
    "python\n"
    "from pksm_gdb import counters, record\n"
    "print('counters', sum(counters.class_sum(c) for c in record.CLASSES[1:]),"
    " counters.event_sum('BROKEN'), counters.event_sum('MERGED'))\n"
    "end\n"
)


@dataclass(frozen=True)
class Line:
    """A line of the trace."""

    hook: str
    pfn: int
    comm: str
    pid: int
    address: int | None
    state: str


def lines_of(text: str) -> list[Line]:
    """Return the lines of a trace."""
    found = []
    for line in text.splitlines():
        match = LINE.match(line)
        if match:
            hook, pfn, comm, pid, address, state = match.groups()
            where = None if address == "-" else int(address, 16)
            found.append(Line(hook, int(pfn, 16), comm, int(pid), where, state))
    return found


def test_the_lines_are_what_the_counters_moved_by(guest: Guest, tmp_path: Path) -> None:
    """All pages of all processes: what entered less what left is what is tracked now."""
    log = tmp_path / "trace"
    script = f"{COUNTERS}pksm hooks on --log {log}\n{SAY_READY}continue\n"
    script += f"{COUNTERS}pksm hooks status\npksm hooks off\n{COUNT_BREAKPOINTS}"
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for(READY)
        job = guest.start(
            ["pageops", "--procs", "2", "--pages", str(PAGES), "fill=dup", "settle", "stat=merged",
             "@1:write=100", "stat=written", "verify"]
        )  # fmt: skip
        done = job.wait(gdblab.SCRIPT_SECONDS)
        interrupt(guest)
        text = gdb.finish()
    assert done.status == 0, done.stderr
    before, after = (
        [int(word) for word in line.split()[1:]]
        for line in text.splitlines()
        if line.startswith("counters ")
    )
    lines = lines_of(log.read_text())
    counts = Counter(line.hook for line in lines)
    entered = sum(counts[word] for word in ("enter", "move", "swapin", "sweep"))
    moved = entered - counts["leave"] - counts["drop"]
    assert after[0] - before[0] == moved
    assert after[1] - before[1] == counts["broken"]
    # Besides, data of the programs themselves may be merged, and broken.
    broken_by = Counter(line.pid for line in lines if line.hook == "broken")
    assert max(broken_by.values()) == PAGES
    merged = sum(1 for line in lines if line.hook == "merge" and line.state.endswith(": merged"))
    assert after[2] - before[2] == merged >= PAGES
    assert f"The trace is on: {len(lines)} lines" in text
    # What the engine itself said, in sysfs, while the pages of this run were written to.
    report = parse_report(done.stdout)
    broken = [stage.counters["pages_broken"] for stage in report]
    assert PAGES <= broken[1] - broken[0] <= counts["broken"]
    assert NONE_LEFT in text


def test_pages_enter_and_leave_where_the_page_map_says(guest: Guest) -> None:
    """Stopped, so that nothing but intake moves: sysfs, addresses and page frames agree."""
    pages = Pages(guest)
    guest.set_pksm("run", 0)
    names = ("pages_new", "pages_unshared", "pages_volatile", "pages_shared")
    numbers = range(10, 30)
    for _ in range(2):
        before = tracked({name: guest.pksm(name) for name in names})
    script = f"pksm hooks on\n{SAY_READY}continue\npksm hooks off\n"
    with gdblab.session(guest, script) as gdb:
        orders = [f"write {number} {number}" for number in numbers]
        # mlock(): what waits for joining the LRU has a reference, and is freed later.
        order_when_ready(gdb, pages, *orders, "mlock 31", "free 12", "free 13")
        answers = pages.answers()
        interrupt(guest)
        text = gdb.finish()
    after = tracked({name: guest.pksm(name) for name in names})
    lines = [line for line in lines_of(text) if line.pid == pages.pid]
    written = [(answer.address, answer.pfn) for answer in answers if answer.op == "write"]
    inside = {pages.address(number) for number in numbers}
    entered = [(x.address, x.pfn) for x in lines if x.hook == "enter" and x.address in inside]
    assert entered == written
    left = [(x.address, x.pfn) for x in lines if x.hook == "leave" and x.address in inside]
    assert left == [pair for pair in written if pair[0] in (pages.address(12), pages.address(13))]
    assert all(line.comm == "pagestep" for line in lines)
    assert {x.state for x in lines if x.hook == "enter"} == {"untracked -> new list 0"}
    counts = Counter(line.hook for line in lines_of(text))
    assert after - before == counts["enter"] - counts["leave"] >= len(written) - 2
    guest.set_pksm("run", 1)
    pages.finish()


def test_a_write_to_a_watched_page_is_shown(guest: Guest) -> None:
    """One line, of the first write; a write to a page that nobody watches has none."""
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    pages.order("write 1 1", "write 2 2", "settle")
    page = pages.answers()[0]
    watch(guest)
    guest.set_pksm("run", 0)
    script = f"pksm hooks on --pid pagestep\n{SAY_READY}continue\npksm hooks off\n"
    with gdblab.session(guest, script) as gdb:
        order_when_ready(gdb, pages, "write 1 7", "write 1 8")
        pages.answers()
        interrupt(guest)
        text = gdb.finish()
    # The process writes to others of its pages as well, such as its stack.
    written = [line for line in lines_of(text) if line.hook == "write"]
    (line,) = [line for line in written if line.pfn == page.pfn]
    assert line.address == page.address
    assert re.fullmatch(r"watched index 0x\w+ -> volatile index written", line.state)
    guest.set_pksm("run", 1)
    pages.finish()


def test_stop_stops_at_each_and_count_ends_it(guest: Guest) -> None:
    """`stop' stops where the hook has done its work; `--count' switches the trace off."""
    # Nothing is watched, so that no write is among the stops.
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    script = (
        f"pksm hooks stop --pid pagestep\n{SAY_READY}continue\n"
        "pksm path\necho second\\n\ncontinue\npksm hooks off\n"
        f"pksm hooks on --pid {pages.pid} --count 1\ncontinue\npksm hooks status\n"
        f"{COUNT_BREAKPOINTS}"
    )
    with gdblab.session(guest, script) as gdb:
        order_when_ready(gdb, pages, "write 1 1", "write 2 2", "write 3 3")
        text = gdb.finish()
    answers = pages.answers()
    lines = [line for line in lines_of(text) if line.hook == "enter"]
    assert [(line.address, line.pfn) for line in lines] == [(a.address, a.pfn) for a in answers]
    first, rest = text.split("second\n")
    assert first.count("enter ") == 1 and "--> pksm_add_new_anon_page()" in first
    assert "The trace is off after 2 lines" in rest
    assert "The trace is off after 1 lines" in rest
    assert "No trace is on." in rest
    assert rest.count("hook          pfn") == 1
    assert NONE_LEFT in text
    pages.finish()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("on --pid 4711", "pksm hooks: no process 4711 in the guest; there are: init[1]"),
        ("on --count many", "pksm hooks: 'many': No symbol \"many\" in current context."),
        ("on --log /nowhere/x", "pksm hooks: cannot write /nowhere/x: No such file or directory"),
        ("sideways", "pksm hooks: what is 'sideways'? write: on or stop"),
        ("on --quietly", "pksm hooks: no such option: --quietly"),
    ],
)
def test_what_users_get_wrong_is_one_line(guest: Guest, words: str, message: str) -> None:
    """Each of them is told in a line that says what is wrong."""
    text = gdblab.run_script(guest, f"pksm hooks {words}\n", status=1)
    assert text.splitlines()[-1].startswith(message)

# SPDX-License-Identifier: GPL-2.0-only
"""The guided steps: going on, giving up, other stops, ends, and what users get wrong."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import gdblab
import pytest
from linux_um.guest import Guest
from linux_um.paths import repo_root
from steplab import (
    COUNT_BREAKPOINTS,
    NONE_LEFT,
    READY,
    SAY_READY,
    Pages,
    events_of,
    interrupt,
    names,
    order_when_ready,
    steps_of,
)

pytestmark = pytest.mark.needs_pksm

# What pksmd does with a page that has no equal.
ALONE = ["pksm_consider", "pksm_get_tracked", "pksm_folio_fit", "pksm_folio_survey",
         "pksm_hash_page", "pksm_stable_next", "pksm_unstable_next", "pksm_unstable_insert",
         "pksm_consider"]  # fmt: skip
TOP = ["handle_page_fault", "handle_mm_fault", "__handle_mm_fault"]


def test_next_continue_quit_and_abandon(guest: Guest) -> None:
    """Stage by stage, by the user's own continue too; giving up removes every breakpoint."""
    pages = Pages(guest)
    address = pages.address(3)
    script = (
        f"{SAY_READY}pksm fault {pages.pid} {address:#x}\npksm next\ncontinue\npksm path\n"
        f"pksm quit\n{COUNT_BREAKPOINTS}pksm quit\n"
        f"pksm fault pagestep {pages.address(4):#x}\npksm fault --abandon\n{COUNT_BREAKPOINTS}"
        f"pksm fault pagestep {pages.address(5):#x}\npksm free\npksm quit\n"
        f"pksm fault pagestep {pages.address(6):#x}\npksm next --all\n{COUNT_BREAKPOINTS}"
    )
    with gdblab.session(guest, script) as gdb:
        # mlock(): what waits for joining the LRU has a reference, and is freed later.
        order_when_ready(
            gdb, pages, "write 3", "write 4", "write 5", "mlock 7", "free 3", "write 6"
        )
        text = gdb.finish()
    first = text.split("Nothing is followed any more.")[0]
    assert names(steps_of(first)) == TOP
    assert "--> __handle_mm_fault()" in first
    assert "Nothing was followed." in text
    assert text.count("Nothing is followed any more.") == 3
    assert "The fault that was followed is given up." in text
    assert text.count(NONE_LEFT) == 3
    assert text.rstrip().splitlines()[-2] == "The fault is over."
    pages.finish()


def test_other_stops_and_ends(guest: Guest) -> None:
    """Ctrl-C while it waits; the end of the process; an address that is in no area."""
    pages = Pages(guest)
    other = Pages(guest)
    where = "0x2000"
    script = (
        f"pksm fault {pages.pid} {where}\n{SAY_READY}pksm next\necho ended\\n\n"
        f"{COUNT_BREAKPOINTS}pksm fault {other.pid} 0x1000 --all\n{COUNT_BREAKPOINTS}"
    )
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for("a guest that stands still")
        other.do("write 1 1")
        interrupt(guest)
        gdb.wait_for(READY)
        pages.finish()
        gdb.wait_for("ended\n")
        other.do("nowhere 1")
        text = gdb.finish()
    stopped, ended = text.split(READY)
    assert f"; it waits for a fault of process {pages.pid} at {where}." in stopped
    assert f"pagestep[{pages.pid}] ends; the fault is not followed any more." in ended
    refused = steps_of(ended)
    assert names(refused) == ["handle_page_fault", "handle_page_fault"]
    assert refused[0].facts["for"] == "the system call pread64()"
    assert refused[1].facts["area"] == "none" and refused[1].facts["returns"] == "-14 (EFAULT)"
    assert ended.count(NONE_LEFT) == 2
    other.finish()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fault 4711", "pksm fault: no process 4711 in the guest; there are: init[1]"),
        ("fault nobody", "pksm fault: no process nobody in the guest yet; with --wait"),
        ("fault init 1 2", "pksm fault: at most a process and an address"),
        ("free 0x7fffffff", "pksm free: pfn 0x7fffffff is out of range: the guest has 0 to 0x"),
        ("free 2", "pksm free: pfn 0x2 is not tracked by PKSM: the page is "),
        ("merge nonsense", "pksm merge: 'nonsense': No symbol \"nonsense\" in current context."),
        ("next", "pksm next: nothing is followed; begin by pksm fault, free, merge or cow"),
        ("cow --now", "pksm cow: no such option: --now; there are: --all, --wait"),
    ],
)
def test_what_users_get_wrong_is_one_line(guest: Guest, words: str, message: str) -> None:
    """Each of them is told in a line that says what is wrong."""
    text = gdblab.run_script(guest, f"pksm {words}\n", status=1)
    assert text.splitlines()[-1].startswith(message)


# Which of the callers' locals the compiler has kept differs from kernel to kernel.
FREE_WHAT_IS_NOT_THERE = """\
python
def what_is_not_there():
    frame = gdb.newest_frame().older()
    while frame is not None and frame.name() is not None:
        for symbol in frame.block():
            if symbol.is_variable and frame.read_var(symbol).is_optimized_out:
                frame.select()
                return symbol.name
        frame = frame.older()
gdb.set_convenience_variable("lost", what_is_not_there())
end
printf "optimised out: %s\\n", $lost
eval "pksm free %s", $lost
"""


def test_a_local_that_was_optimised_out(guest: Guest) -> None:
    """It cannot be followed by that name, which one line says."""
    pages = Pages(guest)
    script = f"tbreak pksm_add_new_anon_page\n{SAY_READY}continue\n{FREE_WHAT_IS_NOT_THERE}"
    with gdblab.session(guest, script) as gdb:
        order_when_ready(gdb, pages, "write 1 1")
        text = gdb.finish(status=1)
    (name,) = re.findall(r"^optimised out: (\w+)$", text, re.M)
    assert f"'{name}' was optimised out here" in text.splitlines()[-1]
    pages.finish()


def gdb_without_guest(guest: Guest, *commands: str, core: Path | None = None) -> str:
    """Run commands in a gdb that has the guest's kernel, and at most a core dump."""
    kernel = os.readlink(f"/proc/{guest.pid}/exe")
    argv = ["gdb", "-nx", "-q", "-batch", "-ex", "set width 0", kernel]
    argv += [str(core)] if core is not None else []
    argv += ["-x", str(repo_root() / "gdb-scripts" / "session.gdb")]
    for command in commands:
        argv += ["-ex", command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_without_a_guest_and_with_a_core_dump(guest: Guest, tmp_path: Path) -> None:
    """What needs a guest that runs says so; the path needs none."""
    commands = ("fault", "free", "merge", "cow", "hooks on", "next", "path")
    text = gdb_without_guest(guest, *(f"pksm {command}" for command in commands))
    for command in commands:
        name = command.split()[0]
        assert f"pksm {name}: there is no guest; start one by ./linux-um gdb" in text, command
    pages = Pages(guest)
    core = tmp_path / "core"
    script = (
        "set use-coredump-filter off\nset dump-excluded-mappings on\n"
        f"tbreak pksm_add_new_anon_page\n{SAY_READY}continue\npksm path\n"
        f"echo core\\n\ngenerate-core-file {core}\n"
    )
    with gdblab.session(guest, script) as gdb:
        order_when_ready(gdb, pages, "write 1 1")
        live = gdb.finish().split(READY)[1].split("core\n")[0]
    text = gdb_without_guest(guest, *(f"pksm {command}" for command in commands), core=core)
    for command in commands[:-1]:
        name = command.split()[0]
        assert f"pksm {name}: a core dump does not run; this command needs a live" in text, command
    shown = live[live.index("The way in") :].strip()
    assert "--> pksm_add_new_anon_page()" in shown
    assert shown in text
    pages.finish()


def test_a_signal_while_it_stands_still_costs_no_stage(guest: Guest) -> None:
    """gdb comes by the place again once it is handled, asks the breakpoint, and drops the answer."""
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    guest.set_pksm("run", 0)
    pages.order("write 1 1")
    pfn = pages.answers()[-1].pfn
    signalled = f"python os.kill({guest.pid}, signal.SIGIO)\n"
    script = f"python import os, signal\n{SAY_READY}pksm merge {pfn:#x}\n"
    script += f"{signalled}pksm next\n" * (len(ALONE) - 1) + COUNT_BREAKPOINTS
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for(READY)
        guest.set_pksm("run", 1)
        text = gdb.finish()
    (steps,) = events_of(text)
    assert names(steps) == ALONE
    assert NONE_LEFT in text
    pages.finish()

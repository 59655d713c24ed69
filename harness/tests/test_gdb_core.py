# SPDX-License-Identifier: GPL-2.0-only
"""Core dumps of guests that panic: `run --keep-core`, and `gdb --core`."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux_um import gdb_core  # noqa: E402
from linux_um.errors import GuestPanic  # noqa: E402
from linux_um.gdb_machine import CORE_NAME, read_machine  # noqa: E402
from linux_um.guest import BootOptions, boot  # noqa: E402
from test_gdb_session import background, one_line, script  # noqa: E402
from test_gdb_session import Script  # noqa: E402
from runlab import LIMIT, launch, run_directory, run_of, runs, start  # noqa: E402

__all__ = ["runs", "script"]

# What is said has to be passed on before; in real time, on another CPU.
PANIC = ("sh", "-c", "echo out; sleep 3; echo c > /proc/sysrq-trigger")


def check_core(run: Path, script: Script) -> None:
    """See that the core dump of a run shows the panic, by the run's own kernel."""
    core = (run / CORE_NAME).stat()
    assert core.st_blocks * 512 < core.st_size // 2, "the core dump is not sparse"
    assert read_machine(run).kernel.linux == run / "linux"
    look = script("bt", "printf \"%s\\n\", $lx_current().comm", "lx-dmesg", "lx-ps", name="look")
    done = launch("gdb", "--core", run.name, "--batch", look)
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    frames = re.findall(r"^#\d+ +(?:0x\w+ in )?(\w+)", text, re.M)
    wanted = ["os_dump_core", "panic", "sysrq_handle_crash", "ksys_write", "fork_handler"]
    assert [frame for frame in frames if frame in wanted] == wanted
    # Nothing had been told to end: gdb cannot write a core when what it traces has just died.
    assert frames[0] == wanted[0]
    assert "\nsh\n" in text
    assert "Kernel panic - not syncing: sysrq triggered crash" in text
    assert re.search(r"^0x\w+ +1 +init$", text, re.M)
    # What needs a guest that runs says so, and the script's status is the session's.
    assert launch("gdb", "--core", run.name, "--batch", script("stepi")).returncode == 1


@pytest.mark.parametrize(
    "pace", [pytest.param("--time-travel", marks=pytest.mark.time_travel), "--real-time"]
)
def test_a_panic_leaves_a_core_dump(runs: Path, script: Script, pace: str) -> None:
    """Status and messages are as without it."""
    done = launch("run", "--keep-core", pace, "--", *PANIC)
    assert done.returncode == 134
    assert done.stdout == b"out\n"
    assert b"linux-um: the guest's kernel panicked: Kernel panic - not syncing" in done.stderr
    run = run_directory(done.stderr)
    assert f"./linux-um gdb --core {run.name}".encode() in done.stderr
    check_core(run, script)
    attach = launch("gdb", "--attach", run.name)
    assert attach.returncode == 125
    assert f"has ended; it has left a core dump: ./linux-um gdb --core {run.name}" in one_line(
        attach.stderr
    )


def test_a_core_dump_that_fails_is_tried_again(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when gdb finds a process of UML gone, of which it has not been told yet."""
    fails_once = [
        command.replace("for turn in", "turns = []\nfor turn in").replace(
            "    try:\n", "    try:\n        turns.append(turn) or turns[1]\n", 1
        ).replace("gdb.error", "(gdb.error, IndexError)")
        for command in gdb_core.COMMANDS
    ]  # fmt: skip
    assert fails_once != list(gdb_core.COMMANDS)
    monkeypatch.setattr(gdb_core, "COMMANDS", fails_once)
    with pytest.raises(GuestPanic), boot(BootOptions(keep_core=True)) as guest:
        rundir = guest.rundir
        guest.run([*PANIC])
    assert (rundir / CORE_NAME).is_file()


def test_without_the_option_there_is_none(runs: Path) -> None:
    """And --core says how to get one."""
    done = launch("run", "--", *PANIC)
    assert done.returncode == 134
    run = run_directory(done.stderr)
    assert not (run / CORE_NAME).exists()
    done = launch("gdb", "--core", run.name)
    assert done.returncode == 125
    assert "has left no core dump; a panic leaves one with --keep-core" in one_line(done.stderr)


def test_a_run_that_goes_well_leaves_nothing(runs: Path) -> None:
    """Neither a core dump nor a debugger."""
    launcher = start("run", "--keep-core", "--keep", "--", "echo", "out")
    assert launcher.communicate(timeout=LIMIT)[0] == b"out\n"
    assert launcher.returncode == 0
    run = run_of(launcher)
    assert not (run / CORE_NAME).exists() and not (run / "linux").exists()
    assert launch("run", "--keep-core", "--", "sh", "-c", "exit 9").returncode == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_launcher_is_ended(runs: Path, number: int) -> None:
    """The debugger goes too. Until then it is the only one the guest can have."""
    launcher, run = background("--keep-core", "--", "sh", "-c", "echo up; sleep 1000")
    denied = launch("gdb", "--attach", run.name)
    assert denied.returncode == 125
    assert "already traces the guest" in one_line(denied.stderr)
    launcher.send_signal(number)
    launcher.communicate(timeout=60)


def test_a_panic_under_gdb_leaves_a_core_dump(runs: Path, script: Script) -> None:
    """The session's own gdb writes it and stops there; the status is that of a panic."""
    look = script("continue", "backtrace -frame-arguments none")
    done = launch("gdb", "--keep-core", "--batch", look, "--", *PANIC)
    assert done.returncode == 134, done.stderr
    assert b"The guest's kernel has panicked, and ends.\n" in done.stdout
    assert b"sysrq_handle_crash" in done.stdout
    check_core(run_directory(done.stderr), script)


def test_a_debugger_that_cannot_attach_is_an_error(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that would not leave a core dump when asked to does not begin."""
    fake = tmp_path / "bin" / "gdb"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'ptrace: Operation not permitted.'\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    done = launch("run", "--keep-core", "--", "echo", "ran")
    assert done.returncode == 125
    assert done.stdout == b""
    assert b"gdb cannot attach to the guest: ptrace: Operation not permitted" in done.stderr

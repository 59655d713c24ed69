# SPDX-License-Identifier: GPL-2.0-only
"""The interactive shell of `linux-um boot`, driven as a person would."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

pexpect = pytest.importorskip("pexpect")

from linux_um.paths import repo_root  # noqa: E402

LAUNCHER = [str(repo_root() / "linux-um")]
PROMPT = r"root@pksm:[^#]*# "
JOB = "sh -c 'echo started; exec sleep 1000'"
CTRL_A, CTRL_C, CTRL_D, CTRL_Z = "\x01", "\x03", "\x04", "\x1a"


@pytest.fixture
def shell() -> Iterator[Any]:
    """Yield a shell that has shown its prompt, on a terminal of 100 columns and 30 rows."""
    child = pexpect.spawn(
        LAUNCHER[0], [*LAUNCHER[1:], "boot"], timeout=120, dimensions=(30, 100), encoding="utf-8"
    )
    child.expect(PROMPT)
    yield child
    child.close(force=True)


def ask(shell: Any, line: str) -> str:
    """Type a line and return what comes before the next prompt, without the echo."""
    shell.sendline(line)
    shell.expect_exact("\r\n")
    shell.expect(PROMPT)
    return str(shell.before).replace("\r", "").strip()


def start_job(shell: Any) -> None:
    """Start a job that runs until it is told otherwise, and return when it has the terminal.

    The job itself says that it has started: what the shell says before it forks can be
    answered before there is a job, and then the key goes to the shell.
    """
    shell.sendline(JOB)
    shell.expect_exact("\r\nstarted\r\n")


def test_the_line_can_be_edited(shell: Any) -> None:
    """Ctrl-A, the arrows, backspace and the history work."""
    shell.send("cho editedX\x7f")
    shell.send(CTRL_A + "e\r")
    shell.expect_exact("\r\nedited\r\n")
    shell.expect(PROMPT)
    shell.send("\x1b[A\r")
    shell.expect_exact("\r\nedited\r\n")
    shell.expect(PROMPT)


def test_ctrl_c_reaches_the_program_in_the_guest(shell: Any) -> None:
    """It ends the program and neither the shell nor the launcher."""
    start_job(shell)
    shell.send(CTRL_C)
    shell.expect(PROMPT)
    assert ask(shell, "echo status $?") == "status 130"


def test_jobs_can_be_stopped_and_continued(shell: Any) -> None:
    """Ctrl-Z, jobs, bg and fg."""
    start_job(shell)
    shell.send(CTRL_Z)
    shell.expect("Stopped")
    shell.expect(PROMPT)
    assert "Stopped" in ask(shell, "jobs")
    ask(shell, "bg")
    assert "Running" in ask(shell, "jobs")
    shell.sendline("fg")
    shell.expect(r"sleep 1000['\"]\r\n")
    shell.send(CTRL_C)
    shell.expect(PROMPT)


def test_the_terminals_size_follows(shell: Any) -> None:
    """stty in the guest says what the host's terminal has, also after a change."""
    assert ask(shell, "stty size") == "30 100"
    shell.setwinsize(41, 77)
    for _ in range(20):
        if ask(shell, "stty size") == "41 77":
            return
    pytest.fail("the new size has not arrived")


@pytest.mark.parametrize("leave", ["exit\r", CTRL_D], ids=["exit", "Ctrl-D"])
def test_leaving_the_shell_powers_the_guest_off(shell: Any, leave: str) -> None:
    """And the launcher ends with the shell's status."""
    shell.send(leave)
    shell.expect_exact("the guest has powered off")
    shell.expect(pexpect.EOF)
    shell.close()
    assert (shell.exitstatus, shell.signalstatus) == (0, None)


@pytest.mark.parametrize("controlling", [True, False], ids=["controlling", "other"])
def test_a_terminal_that_hangs_up_ends_the_run(tmp_path: Path, controlling: bool) -> None:
    """As SIGHUP does, whether or not the kernel sends one; and nothing hides that."""
    master, slave = pty.openpty()

    def prepare() -> None:
        os.setsid()
        if controlling:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    said = tmp_path / "stderr"
    with said.open("wb") as errors:
        launcher = subprocess.Popen(
            [*LAUNCHER, "boot"], stdin=slave, stdout=slave, stderr=errors, preexec_fn=prepare
        )
    os.close(slave)
    shown = b""
    while re.search(PROMPT.encode(), shown) is None:
        shown += os.read(master, 4096)
    os.close(master)
    assert launcher.wait(120) == 128 + signal.SIGHUP
    assert said.read_text().splitlines()[-1] == "linux-um: ended by SIGHUP"


def test_the_terminal_is_as_before_afterwards(tmp_path: Path) -> None:
    """Echo and line mode are back once `boot` has ended."""
    script = tmp_path / "session"
    command = " ".join(LAUNCHER)
    script.write_text(f"stty -a > {tmp_path}/before\n{command} boot\nstty -a > {tmp_path}/after\n")
    child = pexpect.spawn("sh", [str(script)], timeout=120, encoding="utf-8")
    child.expect(PROMPT)
    child.sendline("exit 0")
    child.expect(pexpect.EOF)
    child.close()
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()

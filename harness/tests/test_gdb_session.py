# SPDX-License-Identifier: GPL-2.0-only
"""`linux-um gdb`: sessions, scripts, attaching, tests under gdb, and how long they take."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

pexpect = pytest.importorskip("pexpect")

from linux_um.gdb_machine import read_machine, tracer_of  # noqa: E402
from linux_um.paths import repo_root  # noqa: E402
from linux_um.machine import allow_debugger  # noqa: E402
from runlab import LAUNCHER, end_terminal, launch, run_of, runs, start  # noqa: E402

__all__ = ["runs"]

Script = Callable[..., str]
PROMPT = r"\(gdb\) "
CTRL_C = "\x03"
SESSION_FILE = repo_root() / "gdb-scripts" / "session.gdb"
# Arguments of setpriv that leave root without the right to trace everybody.
NO_PTRACE = ["setpriv", "--inh-caps=-sys_ptrace", "--bounding-set=-sys_ptrace"]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Return a function that writes lines into a script and returns its name."""

    def write(*lines: str, name: str = "script.gdb") -> str:
        path = tmp_path / name
        path.write_text("".join(line + "\n" for line in lines))
        return str(path)

    return write


@pytest.fixture
def session(runs: Path) -> Iterator[Callable[..., Any]]:
    """Return a function that starts an interactive session and waits for its prompt."""
    children: list[Any] = []

    def begin(*arguments: str, terminal: str = "dumb") -> Any:
        child = pexpect.spawn(
            LAUNCHER[0],
            [*LAUNCHER[1:], "gdb", *arguments],
            timeout=120,
            dimensions=(40, 160),
            encoding="utf-8",
            env={**os.environ, "TERM": terminal},
        )
        children.append(child)
        child.expect(PROMPT)
        return child

    yield begin
    for child in children:
        end_terminal(child)


def ask(child: Any, line: str) -> str:
    """Type a line and return what gdb says before its next prompt, without the echo."""
    child.sendline(line)
    child.expect_exact(line)
    child.expect(PROMPT)
    return str(child.before).replace("\r", "").strip()


def leave(child: Any, line: str = "quit") -> int:
    """Leave gdb and return the launcher's exit status: the kernel must not have complained."""
    child.sendline(line)
    child.expect(pexpect.EOF)
    child.close()
    assert "the kernel's log has" not in str(child.before), child.before
    return int(child.exitstatus)


def background(*command: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start `linux-um run` with a command that says it is up; return it and its run directory."""
    launcher = start("run", *command)
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"up\n"
    return launcher, run_of(launcher)


def one_line(text: bytes) -> str:
    """Return the only line of *text*, which has to be an error's."""
    lines = text.decode().splitlines()
    assert len(lines) == 1 and lines[0].startswith("linux-um: "), lines
    return lines[0]


@pytest.mark.needs_pksm
def test_a_command_stops_before_its_first_page(runs: Path, script: Script) -> None:
    """In exec, in the new address space, which has no page; and it ends as it does without gdb."""
    name = script(
        "backtrace -frame-arguments none",
        "info breakpoints",
        "frame function get_arg_page",
        'printf "pages: %ld\\n", bprm->mm->rss_stat[1].count',
        'printf "name: %s\\n", bprm->filename',
    )
    done = launch("gdb", "--batch", name, "--", "memdup", "--procs", "1", "--mib", "1")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    explained = re.search(r"^The first page of memdup \(pid \d+\) is about to enter", text, re.M)
    assert explained is not None, text
    assert "GUP" in text[explained.start() :].splitlines()[0]
    frames = re.findall(r"^#\d+ +(?:0x\w+ in )?(\w+)", text, re.M)
    assert frames[1] == "pksm_add_new_anon_page", frames
    assert {"do_anonymous_page", "get_arg_page", "copy_string_kernel"} < set(frames)
    assert "No breakpoints or watchpoints." in text
    assert "name: /bin/memdup" in text
    pages = re.search(r"^pages: (\d+)$", text, re.M)
    assert pages is not None and int(pages[1]) <= 1, text
    report = next(line for line in text.splitlines() if line.startswith("{"))
    assert json.loads(report)["ok"] is True


@pytest.mark.needs_ksm
def test_a_kernel_without_pksm_stops_in_the_fault(runs: Path, script: Script) -> None:
    """There the first page is caught where it is made."""
    done = launch("gdb", "--profile", "ksm", "--batch", script("frame"), "--", "true")
    assert done.returncode == 0, done.stderr
    assert re.search(rb"^#0 .*do_anonymous_page", done.stdout, re.M), done.stdout


@pytest.mark.parametrize(
    ("lines", "command", "status"),
    [
        (["continue"], "exit 7", 7),
        ([], "exit 7", 7),
        (["quit 5"], "exit 7", 5),
        (["print no_such_symbol"], "exit 0", 1),
        (["python raise gdb.GdbError('no')"], "exit 0", 1),
        (["kill"], "exit 0", 71),
    ],
)
def test_exit_status_of_a_script(
    runs: Path, script: Script, lines: list[str], command: str, status: int
) -> None:
    """The script's when it is not 0, else the command's."""
    done = launch("gdb", "--batch", script(*lines), "--", "sh", "-c", command)
    assert done.returncode == status, done.stderr


def test_the_first_script_that_fails_ends_them(runs: Path, script: Script) -> None:
    """And so the status is not that of the last."""
    scripts = [
        script("echo one\\n", name="1.gdb"),
        script("print no_such", name="2.gdb"),
        script("echo three\\n", name="3.gdb"),
    ]
    done = launch("gdb", *(word for name in scripts for word in ("--batch", name)), "--", "true")
    assert done.returncode == 1
    assert b"\none\n" in done.stdout and b"three" not in done.stdout


def test_a_command_that_is_not_there_ends_the_session(runs: Path, script: Script) -> None:
    """With its status, rather than to wait for a page that never comes."""
    done = launch("gdb", "--batch", script("echo script\\n"), "--", "no-such-program")
    assert done.returncode == 127
    assert b"no-such-program ended with status 127 before its first page" in done.stderr
    assert b"script" not in done.stdout


def test_errors_of_the_command_line_are_one_line(runs: Path) -> None:
    """Each with 125, and before anything is booted."""
    for words, said in (
        (["--batch", "/no/such.gdb"], "/no/such.gdb: no such script"),
        (["--attach", "no-such-run"], "no run directory no-such-run; "),
        (["--core", "no-such-run"], "no run directory no-such-run; "),
        (["--attach", "latest", "--", "ls"], "no command can be started there: ls"),
        (["--core", "latest", "--keep-core"], "--keep-core is for a guest that"),
    ):
        done = launch("gdb", *words)
        assert done.returncode == 125
        assert said in one_line(done.stderr)


def test_a_conversation(session: Callable[..., Any]) -> None:
    """The guest stands still; programs are started; Ctrl-C stops it; nothing is left."""
    child = session()
    assert "No breakpoints" in ask(child, "info breakpoints")
    assert "a guest that stands still" in child.before or ask(child, "print 1") == "$1 = 1"
    assert "Linux version" in ask(child, "lx-version")
    assert ask(child, "pksm guest sh -c 'echo said; exit 3'") == ""
    child.sendline("continue")
    child.expect_exact("\r\nsaid\r\n")
    child.expect_exact("has ended with status 3")
    child.send(CTRL_C)
    child.expect_exact(" received signal SIGINT")
    child.expect(PROMPT)
    # The launcher is still there to start another one.
    assert ask(child, "pksm guest echo again") == ""
    child.sendline("continue")
    child.expect_exact("\r\nagain\r\n")
    child.send(CTRL_C)
    child.expect(PROMPT)
    assert "no command" in ask(child, "pksm guest")
    assert leave(child) == 0


WAITING = "waiting for memdup to be given its first page"


@pytest.mark.needs_pksm
def test_it_says_what_it_waits_for(
    runs: Path, script: Script, session: Callable[..., Any]
) -> None:
    """In one line in a pipe; on a terminal as a step that is crossed off; likewise later waits."""
    command = ("--", "memdup", "--procs", "1", "--mib", "1")
    done = launch("gdb", "--batch", script("quit"), *command)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.decode().splitlines() if "waiting" in line]
    assert lines == [f"linux-um: {WAITING}"]
    child = session(*command, terminal="xterm")
    before = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", str(child.before))
    assert re.search(rf"\S+ {WAITING} \([\d.]+ s\)\r\n(?s:.)*The first page of memdup", before)
    child.sendline("pksm merge")
    child.expect_exact("Waiting for pksmd to consider a page; Ctrl-C stops the guest.")
    child.expect(r"\[1\] ")
    child.expect(PROMPT)
    assert leave(child) == 0


def test_the_end_of_the_command_stops_the_guest(session: Callable[..., Any]) -> None:
    """And gdb's status is the session's."""
    child = session("--", "sh", "-c", "echo said; exit 3")
    assert re.search("is about to (enter|be made)", child.before) is not None
    said = ask(child, "continue")
    assert "said\n" in said and "has ended with status 3" in said
    assert leave(child, "quit 9") == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_session_that_is_ended(
    session: Callable[..., Any], number: int
) -> None:
    """gdb and the guest go with the launcher. (The fixture looks for what is left.)"""
    child = session("--", "memdup", "--procs", "1", "--mib", "1")
    child.kill(number)
    child.expect(pexpect.EOF)
    child.close()
    assert number in (child.signalstatus, (child.exitstatus or 0) - 128)


@pytest.mark.time_travel
def test_the_guests_clock_stands_still_while_one_looks(runs: Path, script: Script) -> None:
    """Seconds at a stop are none in the guest, by its clock and by what it says afterwards."""
    clock = "time_travel_time"
    name = script(
        f'printf "before %lu\\n", {clock}', "shell sleep 3", f'printf "after %lu\\n", {clock}'
    )
    done = launch("gdb", "--batch", name, "--", "cat", "/proc/uptime")
    assert done.returncode == 0, done.stderr
    found = re.findall(rb"^(?:before|after) (\d+)$", done.stdout, re.M)
    before, after = (int(value) for value in found)
    assert before == after
    uptime = float(done.stdout.splitlines()[-1].split()[0])
    # /proc/uptime has hundredths, rounded down.
    assert -0.02 < uptime - before / 1e9 < 1


def by_hand(*words: str) -> subprocess.CompletedProcess[str]:
    """Run gdb with the session file and nothing of the launcher's, in another directory."""
    return subprocess.run(
        ["gdb", "-q", "-batch", "-nx", "-x", str(SESSION_FILE), *words],
        capture_output=True, text=True, check=False, cwd="/", timeout=120,
    )  # fmt: skip


def test_the_session_file_works_by_hand(runs: Path) -> None:
    """It finds its modules and the lx- commands by itself, and says in one line what it lacks."""
    built = launch("build")
    assert built.returncode == 0
    (kernel,) = re.findall(r"^/.*/linux$", built.stdout.decode(), re.MULTILINE)
    done_by_hand = by_hand(kernel, "-ex", "info signals SIGUSR1", "-ex", "help lx-version",
                           "-ex", "pksm guest true")  # fmt: skip
    assert re.search(r"^SIGUSR1\s+No\s+No\s+Yes", done_by_hand.stdout, re.M)
    assert "Report the Linux Version" in done_by_hand.stdout
    assert done_by_hand.stderr.strip().startswith("no launcher to start a program: ")
    wrong_kernels: dict[tuple[str, ...], str] = {
        ("/bin/true",): "is no Linux kernel with symbols; run: gdb -x ",
        (): "no kernel given; run: gdb -x ",
    }
    for given, said in wrong_kernels.items():
        wrong = by_hand(*given)
        assert said in wrong.stderr and len(wrong.stderr.splitlines()) == 1, wrong.stderr


def test_attach_leaves_the_guest_going_on(runs: Path, script: Script, tmp_path: Path) -> None:
    """By the run directory's name and by its path; the run then ends as it would have."""
    share = tmp_path / "share"
    share.mkdir()
    wait = "echo up; while [ ! -e /share/go ]; do sleep 0.1; done; exit 4"
    launcher, run = background("--keep", "--share", str(share), "--", "sh", "-c", wait)
    name = script("lx-version", "print $lx_current().pid")
    for which in (run.name, str(run)):
        done = launch("gdb", "--attach", which, "--batch", name)
        assert done.returncode == 0, done.stderr
        assert b"Linux version " in done.stdout
    assert launch("gdb", "--attach", run.name, "--batch", script("quit 6")).returncode == 6
    unknown = launch("gdb", "--attach", "no-such-run")
    assert "there run: " in one_line(unknown.stderr) and run.name in one_line(unknown.stderr)
    assert launcher.poll() is None
    (share / "go").touch()
    launcher.communicate(timeout=60)
    assert launcher.returncode == 4
    ended = launch("gdb", "--attach", run.name)
    assert ended.returncode == 125
    assert f"the run {run.name} has ended; " in one_line(ended.stderr)


def test_attach_says_why_it_cannot(runs: Path, script: Script) -> None:
    """Another debugger; no permission."""
    launcher, run = background("--", "sh", "-c", "echo up; sleep 1000")
    try:
        if os.geteuid() == 0:
            denied = subprocess.run(
                [*NO_PTRACE, *LAUNCHER, "gdb", "--attach", run.name, "--batch", script("bt")],
                capture_output=True, check=False,
            )  # fmt: skip
            assert denied.returncode == 125
            assert re.search(rb"^session.gdb: cannot attach .* not permitted", denied.stderr, re.M)
        first = start("gdb", "--attach", run.name, "--batch", script("shell sleep 1000"))
        limit = time.monotonic() + 60
        while not tracer_of(read_machine(run).pid) and time.monotonic() < limit:
            time.sleep(0.05)
        second = launch("gdb", "--attach", run.name)
        assert second.returncode == 125
        assert "already traces the guest" in one_line(second.stderr)
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=60)
        assert launcher.poll() is None
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)


def test_a_users_guest_allows_a_debugger_where_yama_forbids_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only there something is called in the child; and the child starts all the same."""
    scope = tmp_path / "ptrace_scope"
    assert allow_debugger(scope) is None
    for value, user, wanted in (("0", 1000, False), ("1", 0, False), ("1", 1000, True)):
        scope.write_text(value + "\n")
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        found = allow_debugger(scope)
        assert (found is not None) == wanted
    assert subprocess.run(["true"], preexec_fn=found, check=False).returncode == 0


def test_a_test_under_gdb(runs: Path, script: Script, tmp_path: Path) -> None:
    """Its guest waits for gdb and has no time limits; the status is pytest's, or the script's."""
    test = tmp_path / "test_it.py"
    test.write_text(
        "import os\n"
        "from linux_um.guest import boot_guest\n"
        "PROFILE = os.environ['LINUX_UM_PROFILE']\n"
        "def test_it():\n"
        "    with boot_guest(PROFILE, timeout=60) as guest:\n"
        "        assert guest.run(['echo', 'x'], timeout=0.5).stdout == 'x\\n'\n"
        "    with boot_guest(PROFILE) as second:\n"
        "        assert second.run(['echo', 'y']).stdout == 'y\\n'\n"
        "def test_fails():\n"
        "    with boot_guest(PROFILE) as guest:\n"
        "        guest.run(['false'])\n"
        "def test_without_a_guest():\n"
        "    pass\n"
    )
    slow = script("backtrace 1", "shell sleep 3", "echo looked\\n")
    for name, scripts, status, said in (
        ("test_it", slow, 0, "1 passed"),
        ("test_it", script("quit 5", name="5.gdb"), 5, "1 passed"),
        ("test_fails", slow, 1, "1 failed"),
        ("test_without_a_guest", slow, 0, "1 passed"),
        ("no_such_test", slow, 4, "not found"),
    ):
        done = launch("gdb", "--test", f"{test}::{name}", "--batch", scripts)
        text = done.stdout.decode()
        assert done.returncode == status, (name, text, done.stderr)
        assert b"linux-um: waiting for the test to boot its first guest\n" in done.stderr
        assert said in text
        debugged = scripts == slow and name in ("test_it", "test_fails")
        assert ("looked" in text) == debugged
        assert not debugged or text.index("looked") < text.index(said)


def test_bench_measures_the_harness_as_well(runs: Path, tmp_path: Path) -> None:
    """No assertion on times but that there are some."""
    done = launch("bench", "--quick", "--only", "harness", "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())["harness"]
    assert set(found) == {"boot", "run", "gdb", "gdb_first_stop", "build_again"}
    for result in found.values():
        assert len(result["runs"]) >= 1 and result["min"] > 0
        assert result["title"] in done.stdout.decode()
    assert launch("bench", "--only", "nothing").returncode == 125


@pytest.mark.parametrize("command", ["run", "start"])
def test_a_session_does_not_start_another_guest(runs: Path, script: Script, command: str) -> None:
    """It would take the place of the one that was booted."""
    done = launch("gdb", "--batch", script(command), "--", "true")
    assert done.returncode == 1
    assert b"would put another guest in the place of this one; use continue" in done.stderr
    assert b"Traceback" not in done.stderr

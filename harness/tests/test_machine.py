# SPDX-License-Identifier: GPL-2.0-only
"""The machine around the guest: streams, exit statuses, outcomes, and that nothing is left."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab import BootFresh  # noqa: E402
from linux_um.errors import EXIT_NO_BOOT, GuestHang, GuestTimeout  # noqa: E402
from linux_um.guest import MACHINES, Guest, boot_guest  # noqa: E402
from linux_um.mconsole import mconsole  # noqa: E402
from linux_um.options import default_arch  # noqa: E402
from linux_um.outcome import TAIL_LINES, CommandFailed, GuestOops  # noqa: E402
from linux_um.paths import runs_root  # noqa: E402
from runlab import LAUNCHER, LIMIT, launch, run_directory, run_of, runs as runs, start  # noqa: E402

# How often the processes of the guest are counted: the kernel starts some of its own.
LOOKS = 5


def shown_of_the_log(stderr: bytes) -> list[str]:
    """Return the lines of the kernel's log that a failure's report shows, of a log it names."""
    text = stderr.decode()
    found = re.search(r"^kernel's log, .* \(all of it: (.*)\):\n((?:  .*\n)+)", text, re.M)
    assert found is not None, text[-2000:]
    assert Path(found[1]) == run_directory(stderr) / "console.log"
    return found[2].splitlines()


def test_streams_are_kept_apart_and_the_status_is_the_commands(runs: Path) -> None:
    """stdout, stderr and the exit status each arrive, and nothing of the kernel's log."""
    done = launch("run", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout == b"out\n"
    assert b"err\n" in done.stderr
    assert b"Linux version" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (">/dev/full", "standard output: No space left on device"),
        (">&-", "standard output: Bad file descriptor"),
    ],
    ids=["full", "closed"],
)
@pytest.mark.parametrize(
    ("words", "script"),
    [(["run", "--", "echo", "out"], b""), (["run", "--", "yes"], b""), (["boot"], b"echo out\n")],
    ids=["run", "endless", "boot"],
)
def test_output_that_is_lost_is_an_error(
    runs: Path, words: list[str], script: bytes, where: str, reason: str
) -> None:
    """It ends the command, and is status 125 and one line that says why."""
    command = ["sh", "-c", f'exec "$@" {where}', "sh", *LAUNCHER, *words]
    done = subprocess.run(
        command, input=script, stderr=subprocess.PIPE, timeout=LIMIT, check=False
    )
    assert done.returncode == 125, done.stderr
    assert done.stderr.decode().splitlines()[-1] == f"linux-um: cannot write to {reason}"
    assert b"run directory" not in done.stderr


def test_errors_that_are_lost_are_an_error_too(runs: Path) -> None:
    """What cannot be shown on standard error is still in the status."""
    with open("/dev/full", "wb") as full:
        for script, status in (("echo out", 0), ("echo err >&2", 125)):
            done = subprocess.run(
                [*LAUNCHER, "run", "--", "sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=full,
                timeout=LIMIT, check=False,
            )  # fmt: skip
            assert done.returncode == status


def test_a_reader_that_has_enough_is_no_error(runs: Path) -> None:
    """A closed pipe ends the command by SIGPIPE, and nothing is said."""
    launcher = start("run", "--", "yes")
    assert launcher.stdout is not None and launcher.stderr is not None
    assert launcher.stdout.readline() == b"y\n"
    launcher.stdout.close()
    with launcher.stderr as errors:
        assert b"cannot write" not in errors.read()
    assert launcher.wait(LIMIT) == 128 + signal.SIGPIPE


def test_statuses_are_a_shells(guest: Guest) -> None:
    """A signal gives 128 + N, an unknown program 127, a file that is none 126."""
    assert guest.sh("kill -9 $$", check=False).status == 128 + 9
    assert guest.run(["no-such-program"], check=False).status == 127
    assert guest.run(["/etc/passwd"], check=False).status == 126
    assert guest.run(["true"]).status == 0
    with pytest.raises(CommandFailed):
        guest.run(["false"])


@pytest.mark.parametrize("time_travel", [True, False], ids=["time-travel", "real-time"])
def test_a_hundred_mebibytes_of_output_arrive_whole(time_travel: bool) -> None:
    """Neither lost nor dead-locked, in both ways of keeping time."""
    size = 100 << 20
    digest = hashlib.sha256()
    with boot_guest(time_travel=time_travel, name="big-output", timeout=LIMIT) as guest:
        command = ["head", "-c", str(size), "/dev/zero"]
        process = guest.start(command, on_stdout=digest.update)
        process.close_stdin()
        process.wait(LIMIT)
    assert digest.digest() == hashlib.sha256(bytes(size)).digest()


def test_any_bytes_pass_both_ways(guest: Guest) -> None:
    """Input, output and error are binary safe, whatever the line's terminal thinks of bytes."""
    data = bytes(range(256)) * 64 + random.Random(7).randbytes(100_000)
    assert guest.run(["cat"], input=data).stdout_bytes == data
    done = guest.run(["sh", "-c", "cat >&2"], input=data)
    assert done.stderr_bytes == data
    assert done.stdout_bytes == b""


def test_input_reaches_a_command_of_run(runs: Path) -> None:
    """`run` forwards standard input and its end, and what nobody reads does not block it."""
    data = random.Random(3).randbytes(60_000)
    done = launch("run", "--", "md5sum", input=data)
    assert done.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()
    assert launch("run", "--", "true", input=bytes(500_000)).returncode == 0


def test_programs_run_at_the_same_time(guest: Guest) -> None:
    """Channels do not disturb one another."""
    waiting = guest.start(["cat"])
    others = [guest.start(["sh", "-c", f"echo {n}; echo e{n} >&2; exit {n}"]) for n in range(20)]
    for number, process in enumerate(others):
        done = process.wait()
        assert (done.status, done.stdout, done.stderr) == (number, f"{number}\n", f"e{number}\n")
    waiting.write(b"still here\n")
    waiting.wait_output("still here")
    waiting.signal(signal.SIGTERM)
    assert waiting.wait().status == 128 + signal.SIGTERM


def test_the_agent_reads_and_writes_files_itself(guest: Guest) -> None:
    """Errors come as the guest's errno; reading starts no process."""
    # What starts one for each read does so each time.
    for _ in range(LOOKS):
        before = guest.read_file("/proc/stat").split("processes ")[1].split()[0]
        assert guest.read_file("/proc/1/comm") == "init\n"
        after = guest.read_file("/proc/stat").split("processes ")[1].split()[0]
        if before == after:
            break
    assert before == after
    guest.write_file("/proc/sys/vm/swappiness", "31")
    assert guest.read_file("/proc/sys/vm/swappiness") == "31\n"
    with pytest.raises(FileNotFoundError):
        guest.read_file("/no/such/file")
    with pytest.raises(OSError):
        guest.write_file("/proc/sys/vm/swappiness", "31415")


def test_an_idle_guest_has_one_process(guest: Guest) -> None:
    """PID 1 is alone in user space, and small."""
    names = guest.run(["ls", "/proc"]).stdout.split()
    alone = [name for name in names if name.isdigit() and guest_has(guest, name)]
    assert alone == ["1"]
    status = guest.read_file("/proc/1/status")
    anonymous = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert anonymous is not None and int(anonymous[1]) <= 128


def guest_has(guest: Guest, pid: str) -> bool:
    """Return whether a process of the guest is there and has memory of its own."""
    try:
        return bool(guest.read_file(f"/proc/{pid}/maps"))
    except OSError:
        return False


def test_orphans_are_reaped(guest: Guest) -> None:
    """PID 1 collects the children of parents that have ended."""
    guest.sh("(true & true &) ; (sh -c 'true &' &)")
    guest.run(["sleep", "1"])
    assert guest.sh("grep -l '^State:.Z' /proc/[0-9]*/status; true").stdout == ""


def test_share_is_the_hosts_directory(runs: Path, tmp_path: Path) -> None:
    """A static program of the host's runs from a share, and writing goes through."""
    share = tmp_path / "a share, with odd characters"
    share.mkdir()
    program = share / "busybox"
    program.write_bytes(Path("/bin/busybox").read_bytes())
    program.chmod(0o755)
    done = launch(
        "run", "--share", str(share), "--", "/share/busybox", "sh", "-c", "echo hi > /share/new"
    )
    assert done.returncode == 0, done.stderr
    assert (share / "new").read_text() == "hi\n"
    done = launch("run", "--share", f"{share}:/data/deep", "--", "cat", "/data/deep/new")
    assert done.stdout == b"hi\n"


def test_a_program_whose_loader_the_guest_lacks_is_explained(
    runs: Path, tmp_path: Path, boot_fresh: BootFresh
) -> None:
    """The file is there, so that ENOENT alone would mislead; the guest has no shared libraries."""
    source = tmp_path / "probe.c"
    source.write_text("int main(void)\n{\n\treturn 0;\n}\n")
    program = tmp_path / "probe"
    subprocess.run(["gcc", "-o", str(program), str(source)], check=True)
    script = tmp_path / "script"
    script.write_text("#! /opt/python3 -u\nprint()\n")
    script.chmod(0o755)
    loader = r"/\S*ld-linux\S*"
    dynamic = rf"a dynamically linked program, and the guest has no loader {loader}; "
    dynamic += "link it with -static"
    done = launch("run", "--share", str(tmp_path), "--", "/share/probe")
    assert done.returncode == 127
    assert re.fullmatch(rf"/share/probe: {dynamic}\n", done.stderr.decode()), done.stderr
    guest = boot_fresh(shares=[(str(tmp_path), "/share")])
    scripted = "a script, and the guest has no interpreter /opt/python3; the guest has /bin/sh"
    missing = "No such file or directory"
    for name, cwd, text in (
        ("probe", "/", dynamic),
        ("./probe", "/share", dynamic),
        ("/share/script", "/", scripted),
        ("./probe", "/", missing),
        ("no-such-program", "/", missing),
    ):
        ended = guest.run([name], cwd=cwd, check=False)
        assert ended.status == 127
        assert re.fullmatch(rf"{re.escape(name)}: {text}\n", ended.stderr), ended.stderr


def test_options_shape_the_machine(runs: Path) -> None:
    """--mem, --append and --swap are what the guest sees."""
    script = "grep MemTotal /proc/meminfo; cat /proc/cmdline; tail -n1 /proc/swaps"
    words = ["--mem", "96M", "--swap", "32M", "--append", "one.word=1 two.word=2"]
    done = launch("run", *words, "--", "sh", "-c", script)
    total = int(re.findall(rb"MemTotal: +(\d+) kB", done.stdout)[0])
    assert 60_000 < total < 96 * 1024
    assert b"one.word=1 two.word=2" in done.stdout
    assert re.search(rb"/dev/(ubdb|vda) +partition\s+327\d\d", done.stdout)


@pytest.mark.time_travel
def test_time_travel_makes_waiting_free(runs: Path) -> None:
    """An hour's sleep takes no hour, and the guest's clock has gone on."""
    before = time.monotonic()
    done = launch(
        "run", "--time-travel", "--", "sh", "-c", "sleep 3600; cut -d. -f1 /proc/uptime"
    )
    assert int(done.stdout) >= 3600
    assert time.monotonic() - before < LIMIT


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--real-time", "--", "sleep", "1000"], id="sleeping"),
        pytest.param(
            ["--time-travel", "--", "sh", "-c", "while :; do :; done"],
            id="busy",
            marks=pytest.mark.time_travel,
        ),
    ],
)
def test_a_time_out_is_124_with_the_tasks_in_the_log(runs: Path, words: Sequence[str]) -> None:
    """On a time-out the kernel tells its state before it is ended."""
    limit = MACHINES[default_arch()].usual_seconds
    # The boot has no more time than that either; one that was too slow says nothing of this.
    for seconds in (limit, 4 * limit):
        done = launch("run", "--timeout", f"{seconds:g}", *words)
        if done.returncode != EXIT_NO_BOOT:
            break
    assert done.returncode == 124, done.stderr[-2000:]
    log = (run_directory(done.stderr) / "console.log").read_text(errors="replace")
    assert "sysrq: Show State" in log
    assert "task:init" in log
    assert b"outcome: time-out\n" in done.stderr
    # Of the log, neither the boot nor that state is shown.
    assert len(shown_of_the_log(done.stderr)) == TAIL_LINES
    assert b"task:" not in done.stderr
    result = json.loads((run_directory(done.stderr) / "result.json").read_text())
    assert result["outcome"] == "time-out"


def test_a_kernel_that_does_not_answer_is_a_hang() -> None:
    """GuestHang, and `hang` in the result: here the host has stopped the kernel's process."""
    with pytest.raises(GuestHang, match="did not end within 1 s; its kernel does not answer"):
        with boot_guest(name="stopped", time_travel=False, timeout=LIMIT) as guest:
            kept = guest.rundir
            os.kill(guest.pid, signal.SIGSTOP)
            guest.run(["true"], timeout=1.0)
    assert json.loads((kept / "result.json").read_text())["outcome"] == "hang"


def test_a_panic_is_134_with_its_trace(runs: Path) -> None:
    """The report has the outcome, a symbolised trace, the directory and the command."""
    done = launch("run", "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert done.returncode == 134
    assert b"outcome: panic" in done.stderr
    # Where there is no address that could be looked up the function is named.
    place = b" at drivers/tty/sysrq.c:" if MACHINES[default_arch()].trace_addresses else b"+0x"
    assert b"sysrq_handle_crash" + place in done.stderr
    assert b"./linux-um run --profile" in done.stderr
    shown = shown_of_the_log(done.stderr)
    assert "sysrq: Trigger a crash" not in "".join(shown)
    assert "Kernel panic - not syncing: sysrq triggered crash" in shown[0]
    log = run_directory(done.stderr) / "console.log"
    assert "Kernel panic - not syncing: sysrq triggered crash" in log.read_text()


def test_no_boot_is_126(runs: Path) -> None:
    """A guest without an init did not boot."""
    done = launch("run", "--append", "rdinit=/nonexistent init=/nonexistent", "--", "true")
    assert done.returncode == EXIT_NO_BOOT
    assert b"did not boot" in done.stderr.splitlines()[-1]
    assert "VFS: Cannot open root device" in shown_of_the_log(done.stderr)[0]


def test_a_guest_that_powers_off_early_is_71(runs: Path) -> None:
    """It is neither the command's success nor a panic."""
    assert launch("run", "--", "poweroff", "-f").returncode == 71


@pytest.mark.um_only
def test_a_memory_directory_without_room_is_125(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken host is told apart from a broken guest; no other machine's memory is a file."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "not-there"))
    done = launch("run", "--", "true")
    assert done.returncode == 125, done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"linux-um: ")


def test_usage_errors_are_125(runs: Path) -> None:
    """One line each."""
    for words in (["run"], ["run", "--mem", "huge", "--", "true"], ["run", "--share", "/no/such", "--", "true"]):
        done = launch(*words)
        assert done.returncode == 125
        assert done.stderr.splitlines()[-1].startswith(b"linux-um: "), done.stderr


def test_an_unknown_option_of_test_is_not_about_pytests_insides() -> None:
    """The usage is that of the command that was typed, and where there is more about it."""
    done = launch("test", "-n0", "--nosuchoption")
    assert done.returncode != 0
    text = (done.stdout + done.stderr).decode()
    assert "usage: linux-um test " in text
    assert "linux-um test: error: unrecognized arguments: --nosuchoption\n" in text
    assert "see: ./linux-um test --help" in text
    for word in ("__main__", "inifile", "rootdir"):
        assert word not in text, text


def test_a_report_in_the_log_fails_a_command_that_succeeded() -> None:
    """A kernel message that looks like a WARN turns success into GuestOops."""
    fake = "echo 'WARNING: CPU: 0 PID: 1 at mm/none.c:1 none+0x0/0x1' > /dev/kmsg"
    with pytest.raises(GuestOops):
        with boot_guest(name="fake-warn") as guest:
            guest.sh(fake)
    with boot_guest(name="fake-warn-allowed", allow_taint=True) as guest:
        guest.sh(fake)


def test_a_reader_that_goes_away_ends_the_writer() -> None:
    """As in a pipe of the host's: `run -- yes | head -1` ends, by SIGPIPE."""
    script = '"$0" run -- yes | head -n 1; echo ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", script, *LAUNCHER],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.stdout.split() == ["y", str(128 + signal.SIGPIPE)], done.stderr



def test_a_report_in_the_log_fails_run_with_70(runs: Path) -> None:
    """And --allow-taint lifts it."""
    fake = "echo 'BUG: KASAN: use-after-free in nothing' > /dev/kmsg; exit 0"
    assert launch("run", "--", "sh", "-c", fake).returncode == 70
    assert launch("run", "--allow-taint", "--", "sh", "-c", fake).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_nothing_is_left_when_the_launcher_is_ended(runs: Path, number: int) -> None:
    """The guest and its processes go with the launcher, even by SIGKILL."""
    launcher = start("run", "--", "sh", "-c", "echo up; sleep 1000 & sleep 1000")
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"up\n"
    launcher.send_signal(number)
    launcher.communicate(timeout=60)
    expected = -number if number == signal.SIGKILL else 128 + number
    assert launcher.returncode == expected
    # The fixture looks for what is left.


def test_run_directory_is_kept_on_failure_only() -> None:
    """On success it goes; on failure it has the log, the result and the command."""
    with boot_guest(name="kept-not") as guest:
        gone = guest.rundir
    assert not gone.exists()
    with pytest.raises(CommandFailed):
        with boot_guest(name="kept") as guest:
            kept = guest.rundir
            guest.run(["false"])
    assert (kept / "command.txt").read_text().startswith("./linux-um test ")
    assert json.loads((kept / "result.json").read_text())["outcome"] == "fail"
    assert "Linux version" in (kept / "dmesg").read_text()
    assert (kept / "console.log").read_text().startswith("# kernel ")


def test_a_commands_own_status_leaves_no_run_directory(runs: Path) -> None:
    """When nothing else is wrong it goes; --keep keeps it, with the status in the result."""
    name = f"no-such-program-{os.getpid()}"
    for words, left in ((["run"], 0), (["run", "--keep"], 1)):
        done = launch(*words, "--", name)
        assert done.returncode == 127
        assert len(list(runs_root().glob(f"*-{name}-*"))) == left
    (kept,) = runs_root().glob(f"*-{name}-*")
    result = json.loads((kept / "result.json").read_text())
    assert (result["outcome"], result["status"]) == ("fail", 127)


def test_time_out_in_a_test_raises_and_ends_the_guest() -> None:
    """GuestTimeout comes out of run(), and whatever is called next."""
    with pytest.raises(GuestTimeout):
        with boot_guest(name="late", time_travel=False) as guest:
            with pytest.raises(GuestTimeout):
                guest.run(["sleep", "1000"], timeout=1.0)
            guest.run(["true"])


@pytest.mark.um_only
def test_mconsole_answers(guest: Guest) -> None:
    """Long paths are no obstacle, and an unknown command is an error."""
    socket = guest.rundir / "uml" / "guest" / "mconsole"
    assert mconsole(socket, "version", timeout=60.0).startswith("Linux ")
    with pytest.raises(OSError, match="Unknown command"):
        mconsole(socket, "nonsense", timeout=60.0)


def test_sixteen_guests_at_once() -> None:
    """Parallel guests neither mix their output nor their directories."""

    def one(number: int) -> str:
        with boot_guest(name=f"parallel-{number}", mem="64M", timeout=LIMIT) as guest:
            return guest.run(["echo", str(number)]).stdout

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == [f"{n}\n" for n in range(16)]


def test_boot_without_a_terminal_ends_well(runs: Path) -> None:
    """`boot </dev/null` boots and powers off; a script on its input is run."""
    assert launch("boot").returncode == 0
    done = launch("boot", input=b"echo hello; exit 5\n")
    assert (done.returncode, done.stdout) == (5, b"hello\n")


def test_latest_points_at_the_newest_run(runs: Path) -> None:
    """The link leads to the last run that is still there."""
    launcher = start("run", "--keep", "--", "true")
    assert launcher.wait(LIMIT) == 0
    run = run_of(launcher)
    # Other guests come and go beside this one.
    assert os.readlink(runs_root() / "latest")[:15] >= run.name[:15]

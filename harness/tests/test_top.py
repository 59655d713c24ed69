# SPDX-License-Identifier: GPL-2.0-only
"""`linux-um top`: what it shows is what the guest has, and the guest does not mind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

pexpect = pytest.importorskip("pexpect")
ANSI = pytest.importorskip("pexpect.ANSI").ANSI

import lab  # noqa: E402
from lab import BootFresh  # noqa: E402
from linux_um import top, watch  # noqa: E402
from linux_um.guest import Guest  # noqa: E402
from linux_um.mconsole import mconsole  # noqa: E402
from linux_um.paths import cache_root  # noqa: E402
from runlab import LAUNCHER, end_terminal, launch, start  # noqa: E402

# Counters that only the engine moves, not the agent's own pages.
STEADY = ("pages_shared", "pages_sharing", "zero_pages", "rmap_items", "stable_nodes")
# Wall-clock seconds until something has to be on the screen.
SCREEN_SECONDS = 60.0
# So many equal samples in a row are rest. They have to fit between two passes over all
# memory, which move the counters, and a slow machine takes a third of a second for each.
STILL = 30
KEY_UP, KEY_DOWN = "\x1bOA", "\x1bOB"
PROMPT = r"\(gdb\) "
# What is said of a guest that takes long for an answer, which it may on a busy host.
SLOW = "linux-um: warning: the guest does not answer"


def name_of(guest: Guest) -> str:
    """Return the name of the run that a guest is."""
    return guest.rundir.name


def top_once(guest: Guest) -> dict[str, Any]:
    """Return what a single sample says."""
    done = launch("top", name_of(guest), "--once", "--json")
    assert done.returncode == 0, done.stderr
    assert said(done.stderr) == []
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 1
    return dict(json.loads(lines[0]))


def said(text: bytes) -> list[str]:
    """Return the lines of *text*, but for those that say that the guest is slow."""
    return [line for line in text.decode().splitlines() if not line.startswith(SLOW)]


def stop_or_go(guest: Guest, word: str) -> None:
    """Let UML stand still by "stop", and go on by "go"; on a busy host it may take long to hear."""
    mconsole(guest.rundir / "uml" / "guest" / "mconsole", word, timeout=SCREEN_SECONDS)


def one_line(text: bytes) -> str:
    """Return the only line that is said in *text*, which has to be the launcher's."""
    lines = said(text)
    assert len(lines) == 1 and lines[0].startswith("linux-um: "), lines
    return lines[0]


@pytest.fixture
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a cache that shares everything with the real one but its runs; return these."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for entry in cache_root().iterdir():
        if entry.name != "runs":
            (cache / entry.name).symlink_to(entry)
    monkeypatch.setenv("LINUX_UM_CACHE", str(cache))
    return cache / "runs"


@contextmanager
def booted() -> Iterator[subprocess.Popen[bytes]]:
    """Run `linux-um boot` without a terminal, and give its launcher once the shell answers."""
    launcher = subprocess.Popen(
        [*LAUNCHER, "boot"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert launcher.stdin is not None and launcher.stdout is not None
    try:
        launcher.stdin.write(b"echo up\n")
        launcher.stdin.flush()
        assert launcher.stdout.readline() == b"up\n"
        yield launcher
    finally:
        launcher.terminate()
        launcher.wait(60)
        launcher.stdin.close()
        launcher.stdout.close()


def leave(launcher: subprocess.Popen[bytes]) -> None:
    """End the shell of booted(), as Ctrl-D would."""
    assert launcher.stdin is not None
    launcher.stdin.close()


class Screen:
    """`top` on a terminal, and what that terminal shows."""

    def __init__(self, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self._child = pexpect.spawn(
            LAUNCHER[0],
            [*LAUNCHER[1:], "top", *arguments],
            timeout=SCREEN_SECONDS,
            dimensions=(rows, columns),
            # The emulator knows the codes of this one.
            env={**os.environ, "TERM": "vt100", "LC_ALL": "C.UTF-8"},
        )
        self._emulator = ANSI(rows, columns, encoding="utf-8")

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size; it begins empty, so what comes must be drawn anew."""
        self._emulator = ANSI(rows, columns, encoding="utf-8")
        self._child.setwinsize(rows, columns)

    def send(self, keys: str) -> None:
        """Type *keys*."""
        self._child.send(keys)

    def wait_for(self, pattern: str) -> str:
        """Wait until the screen shows *pattern*; return all it shows."""
        limit = time.monotonic() + SCREEN_SECONDS
        while not re.search(pattern, text := str(self._emulator)):
            assert time.monotonic() < limit, f"no {pattern!r} on the screen:\n{text}"
            try:
                data = self._child.read_nonblocking(4096, timeout=0.2)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                raise AssertionError(f"it has ended:\n{text}") from None
            # Modes of the keypad, which the emulator does not know.
            self._emulator.write(re.sub(rb"\x1b(=|>|[()]B)|\x0f", b"", data))
        return text

    def wait_end(self) -> int:
        """Wait until it has ended; return its exit status."""
        self._child.expect(pexpect.EOF)
        self._child.close()
        assert self._child.signalstatus is None
        return int(self._child.exitstatus)

    def close(self) -> None:
        """End it."""
        end_terminal(self._child)


# The numbers


@pytest.mark.needs_pksm
def test_the_numbers_are_those_of_sysfs(guest: Guest) -> None:
    """Every file of the engine is there, with the value the guest itself reads."""
    job = lab.hold_memdup(guest, "--procs", "3", "--mib", "2", "--dup", "50", "--zero", "20",
                          "--unique", "30")  # fmt: skip
    # The agent's first survey takes the pages it needs.
    top_once(guest)
    lab.settle(guest)
    before = lab.counters(guest)
    # Where time does not wait, the engine may work on between two looks.
    for _ in range(lab.LOOKS):
        seen, now = top_once(guest), lab.counters(guest)
        moved = [name for name in STEADY if before[name] != now[name]]
        if not moved:
            break
        before = now
    else:
        raise AssertionError(f"{moved} changed during each look")
    assert seen["engine"] == "pksm"
    assert seen["counters"]["pages_sharing"] > 256
    assert {name: seen["counters"][name] for name in STEADY} == {name: now[name] for name in STEADY}
    names = set(guest.sh("ls /sys/kernel/mm/pksm").stdout.split())
    assert set(seen["counters"]) | set(seen["controls"]) == names
    writable = guest.sh("cd /sys/kernel/mm/pksm && find . -perm -200 -type f").stdout.split()
    assert set(seen["controls"]) == {name.removeprefix("./") for name in writable}
    assert seen["controls"] == {
        name: guest.read_file(f"/sys/kernel/mm/pksm/{name}").strip() for name in seen["controls"]
    }
    assert seen["saved_bytes"] == (now["pages_sharing"] + now["zero_pages"]) * 4096
    assert seen["memory_bytes"] == lab.meminfo(guest, "MemTotal") * 1024
    lab.release(job)


@pytest.mark.needs_pksm
def test_a_change_of_a_control_is_seen(guest: Guest) -> None:
    assert top_once(guest)["controls"]["settle_millisecs"] == "50"
    guest.set_pksm("settle_millisecs", 30)
    assert top_once(guest)["controls"]["settle_millisecs"] == "30"


@pytest.mark.needs_ksm
def test_stock_ksm_is_shown_as_well(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(profile="ksm")
    for name, value in (("pages_to_scan", 20000), ("smart_scan", 0), ("use_zero_pages", 1), ("run", 1)):
        guest.write_file(f"/sys/kernel/mm/ksm/{name}", str(value))
    job = lab.hold_memdup(guest, "--madvise", "--procs", "2", "--mib", "2", "--dup", "100")
    guest.write_file("/sys/kernel/mm/ksm/run", "0")
    seen = top_once(guest)
    assert seen["engine"] == "ksm"
    for name in ("pages_shared", "pages_sharing", "ksm_zero_pages", "pages_scanned", "full_scans"):
        assert seen["counters"][name] == int(guest.read_file(f"/sys/kernel/mm/ksm/{name}")), name
    assert seen["counters"]["pages_sharing"] > 0
    ptes = seen["counters"]["pages_sharing"] + seen["counters"]["ksm_zero_pages"]
    assert seen["saved_bytes"] == ptes * 4096
    assert seen["controls"]["pages_to_scan"] == "20000"
    names = set(guest.sh("ls /sys/kernel/mm/ksm").stdout.split())
    assert set(seen["counters"]) | set(seen["controls"]) == names
    lab.release(job)


@pytest.mark.needs_pksm
@pytest.mark.real_time
def test_rates_are_those_of_the_counters(guest: Guest) -> None:
    """What the lines of an interval say adds up to what the counters did."""
    guest.set_pksm("settle_millisecs", 1)
    load = guest.start(["churn", "--procs", "2", "--rounds", "100000", "--pause-ms", "1"])
    done = launch("top", name_of(guest), "--json", "--interval", "0.2", "--count", "10")
    load.signal(signal.SIGKILL)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 10 and lines[0]["per_second"] == {}
    assert lines[0]["cpu_percent"] is None and lines[9]["cpu_percent"] is not None
    assert max(line["per_second"].get("pages_scanned", 0) for line in lines) > 0
    assert lines[0]["uptime"] < lines[9]["uptime"]
    for before, now in zip(lines, lines[1:], strict=False):
        elapsed = now["time"] - before["time"]
        # One that came late is followed by the next at once.
        assert elapsed >= 0 and before["uptime"] <= now["uptime"]
        for name, rate in now["per_second"].items():
            change = now["counters"][name] - before["counters"][name]
            # "time" is in whole milliseconds, and a rate has two places.
            rounded = abs(rate) * 0.002 + 0.005 * elapsed + 0.01
            assert abs(rate * elapsed - change) <= rounded, name
    load.wait()


@pytest.mark.needs_pksm
@pytest.mark.real_time
def test_a_watched_guest_comes_to_rest(guest: Guest) -> None:
    """Looking on neither feeds the engine nor leaves pages behind, however often."""
    watcher = start("top", name_of(guest), "--json", "--interval", "0.05", "--count", "600")
    assert watcher.stdout is not None
    still, last = 0, None
    for line in watcher.stdout:
        value = json.loads(line)["counters"]
        now = {name: value[name] for name in ("pages_scanned", "pages_unshared", *STEADY)}
        still = still + 1 if now == last else 0
        last = now
        if still == STILL:
            break
    watcher.kill()
    watcher.communicate()
    assert still == STILL, last


# Lines in a pipe


@pytest.mark.needs_pksm
def test_lines_in_a_pipe_are_a_table(guest: Guest) -> None:
    count = top.HEADING_EVERY + 2
    done = launch("top", name_of(guest), "--interval", "0.05", "--count", str(count))
    assert done.returncode == 0 and said(done.stderr) == []
    lines = done.stdout.decode().splitlines()
    headings = [number for number, line in enumerate(lines) if "time" in line.split()]
    assert headings == [0, top.HEADING_EVERY + 1] and len(lines) == count + 2
    names = lines[0].split()
    for number, line in enumerate(lines):
        if number not in headings:
            row = dict(zip(names, line.split(), strict=True))
            assert re.fullmatch(r"\d\d:\d\d:\d\d", row["time"])
            assert float(row["uptime"]) > 0
            assert row["sharing"].isdigit() and row["new"].isdigit()
            assert re.fullmatch(r"-|[\d.]+", row["scanned/s"])


@pytest.mark.needs_pksm
def test_a_reader_that_has_enough_ends_it(guest: Guest) -> None:
    """`top | head -1` ends with status 0, and without a word."""
    watcher = start("top", name_of(guest), "--interval", "0.05")
    assert watcher.stdout is not None and watcher.stderr is not None
    assert b"sharing" in watcher.stdout.readline()
    watcher.stdout.close()
    assert watcher.wait(60) == 0
    assert said(watcher.stderr.read()) == []
    watcher.stderr.close()


# Which guest, and its end


@pytest.mark.needs_pksm
def test_the_end_of_the_guest_is_an_orderly_end(boot_fresh: BootFresh) -> None:
    guest = boot_fresh()
    name = name_of(guest)
    waiting = start("top", name, "--interval", "3000")
    watchers = [waiting, start("top", name, "--interval", "0.05")]
    for watcher in watchers:
        assert watcher.stdout is not None
        assert b"sharing" in watcher.stdout.readline()
    guest.power_off()
    guest.destroy()
    # Its launcher, which this test is, lets go of the onlookers when all is over.
    for watcher in watchers[1:]:
        _, stderr = watcher.communicate(timeout=60)
        assert watcher.returncode == 0
        assert one_line(stderr) == f"linux-um: the guest {name} has ended"
    waiting.kill()
    waiting.communicate()


def test_the_newest_guest_is_the_default(own_runs: Path) -> None:
    """And when it has ended, the newest that still runs, whatever `latest` points at."""
    assert one_line(launch("top").stderr).startswith("linux-um: no guest runs; ")
    assert launch("top").returncode == 125
    with booted() as older:
        with booted() as newer:
            watcher = start("top", "--interval", "0.1")
            assert watcher.stdout is not None
            assert b"time" in watcher.stdout.readline()
            name = _run_of(own_runs, newer)
            leave(newer)
            _, stderr = watcher.communicate(timeout=60)
            assert watcher.returncode == 0
            assert one_line(stderr) == f"linux-um: the guest {name} has ended"
        watcher = start("top", "--interval", "0.1")
        assert watcher.stdout is not None
        assert b"time" in watcher.stdout.readline()
        leave(older)
        _, stderr = watcher.communicate(timeout=60)
        name = one_line(stderr).split()[3]
    ended = launch("top", name)
    assert ended.returncode == 125
    one_line(ended.stderr)


def _run_of(runs: Path, launcher: subprocess.Popen[bytes]) -> str:
    """Return the name of the run of a launcher."""
    found = [path.name for path in runs.glob(f"*-{launcher.pid}.*")]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    "words",
    [("no-such-run",), ("--interval", "0"), ("--interval", "-1"), ("--interval", "nan"),
     ("--count", "0"), ("--count", "-3")],
)  # fmt: skip
def test_nonsense_is_one_line_and_status_125(own_runs: Path, words: tuple[str, ...]) -> None:
    done = launch("top", *words)
    assert done.returncode == 125
    one_line(done.stderr)


# The guest is master


@pytest.mark.um_only
@pytest.mark.needs_pksm
def test_a_guest_that_stands_still_is_waited_for(guest: Guest) -> None:
    """The onlooker says so; neither it nor the guest is ended by that."""
    stop_or_go(guest, "stop")
    watcher = start("top", name_of(guest), "--count", "2", "--interval", "0.1")
    assert watcher.stdout is not None and watcher.stderr is not None
    assert watcher.stderr.readline().startswith(SLOW.encode())
    stop_or_go(guest, "go")
    stdout, _ = watcher.communicate(timeout=60)
    assert watcher.returncode == 0
    assert len(stdout.splitlines()) == 3
    assert guest.run(["true"]).status == 0


@pytest.mark.um_only
@pytest.mark.needs_pksm
def test_onlookers_that_leave_a_guest_at_rest_do_not_fill_its_line(guest: Guest) -> None:
    """Any number of them may come and go; what they asked for is answered when it goes on."""
    stop_or_go(guest, "stop")
    for _ in range(5 * watch.MAX_ONLOOKERS):
        onlooker = watch.Onlooker(guest.rundir / "watch")
        onlooker.request(top.engine_paths("pksm"))
        onlooker.close()
    stop_or_go(guest, "go")
    assert guest.run(["echo", "well"]).stdout == "well\n"


@pytest.mark.needs_pksm
@pytest.mark.needs_debug_info
def test_a_session_of_gdb_can_be_watched(own_runs: Path) -> None:
    """While gdb holds the guest there is no answer, and why is said; then there is one."""
    child = pexpect.spawn(
        LAUNCHER[0], [*LAUNCHER[1:], "gdb"], timeout=120, encoding="utf-8",
        dimensions=(40, 160), env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    try:
        child.expect(PROMPT)
        watcher = start("top", "--once", "--json")
        assert watcher.stderr is not None
        assert re.search(rb"does not answer: process \d+, a debugger", watcher.stderr.readline())
        child.sendline("continue")
        stdout, _ = watcher.communicate(timeout=60)
        assert watcher.returncode == 0
        assert json.loads(stdout)["engine"] == "pksm"
    finally:
        end_terminal(child)


# The full-screen view


@pytest.mark.needs_pksm
@pytest.mark.real_time
def test_the_view_draws_and_quits(guest: Guest) -> None:
    """The numbers are on the screen, keys do what they say, q ends it with status 0."""
    job = lab.hold_memdup(guest, "--procs", "2", "--mib", "1", "--dup", "100", "--unique", "0")
    sharing = lab.settle(guest)["pages_sharing"]
    assert sharing > 0
    with closing(Screen(name_of(guest), "--interval", "0.1")) as screen:
        screen.wait_for(rf"{name_of(guest)} .*\n?.*PKSM running")
        text = screen.wait_for(r"pages_sharing +\d+ +[\d.]+ KiB")
        shown = re.search(r"pages_sharing +(\d+)", text)
        # A page of the agent's may have come or gone meanwhile.
        assert shown is not None and abs(int(shown.group(1)) - sharing) < 8, (sharing, text)
        for name in guest.sh("ls /sys/kernel/mm/pksm").stdout.split():
            screen.wait_for(rf"\b{name} ")
        screen.wait_for(r"settle_millisecs +50\b")
        guest.set_pksm("settle_millisecs", 111)
        screen.wait_for(r"settle_millisecs +111\b")
        screen.wait_for(r"every 0\.1 s")
        screen.send("++")
        screen.wait_for(r"every 0\.5 s")
        screen.send("---")
        screen.wait_for(r"every 0\.1 s")
        screen.send("h")
        assert "pages_sharing" not in screen.wait_for("more often")
        screen.send("q")
        screen.wait_for("pages_sharing")
        screen.send(" ")
        screen.wait_for("held; space goes on")
        guest.set_pksm("settle_millisecs", 50)
        screen.send(" ")
        screen.wait_for(r"settle_millisecs +50\b")
        screen.send("q")
        assert screen.wait_end() == 0
    lab.release(job)


@pytest.mark.needs_pksm
def test_the_view_follows_the_size_of_the_terminal(guest: Guest) -> None:
    """With room the change of each counter is shown; without, the lines can be scrolled."""
    *_, last = top_once(guest)["controls"]
    with closing(Screen(name_of(guest), "--interval", "0.1")) as screen:
        assert "change/s" not in screen.wait_for("pages_unshared")
        screen.resize(40, 130)
        screen.wait_for("change/s")
        screen.resize(9, 40)
        assert "stable_nodes" not in screen.wait_for("pages_new")
        screen.send(KEY_DOWN)
        screen.wait_for(r"\n +\npages_new")
        # However many lines there are: it ends with the last one. What is on the screen
        # may be half of what was there before.
        screen.send(KEY_DOWN * 100)
        screen.wait_for(rf"\A(?s:(?!.*pages_new).*)\n{last} .*\nq quit")
        screen.send(KEY_UP * 100)
        screen.wait_for(rf"(?s)\npages +count.*pages_new(?!.*{last})")
        screen.resize(24, 80)
        screen.wait_for(r"(?s)pages_new.*stable_nodes")
        screen.send("q")
        assert screen.wait_end() == 0


@pytest.mark.um_only
@pytest.mark.needs_pksm
def test_the_view_says_that_a_guest_stands_still(guest: Guest) -> None:
    with closing(Screen(name_of(guest), "--interval", "0.1")) as screen:
        screen.wait_for("pages_unshared")
        stop_or_go(guest, "stop")
        screen.wait_for(r"no answer for \d+ s")
        stop_or_go(guest, "go")
        screen.wait_for("quit")
        screen.send("q")
        assert screen.wait_end() == 0


@pytest.mark.needs_pksm
@pytest.mark.parametrize("end", ["q", "\x03", "term", "guest"])
def test_the_terminal_is_as_before_afterwards(
    boot_fresh: BootFresh, tmp_path: Path, end: str
) -> None:
    """However the view ends: by a key, Ctrl-C, SIGTERM, or with the guest."""
    guest = boot_fresh()
    script = tmp_path / "session"
    script.write_text(
        f"trap : INT\nstty -a > {tmp_path}/before\n"
        f"sh -c 'echo $$ > {tmp_path}/pid; exec {LAUNCHER[0]} top {name_of(guest)}'\n"
        f"echo status $?\nstty -a > {tmp_path}/after\n"
    )
    child = pexpect.spawn(
        "sh", [str(script)], timeout=60, encoding="utf-8", env={**os.environ, "TERM": "xterm"}
    )
    child.expect_exact("pages_unshared")
    if end == "term":
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    elif end == "guest":
        guest.power_off()
    else:
        child.send(end)
    if end == "guest":
        child.send("q")
    child.expect(rf"status {128 + signal.SIGTERM if end == 'term' else 0}\s")
    child.expect(pexpect.EOF)
    child.close()
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()


@pytest.mark.needs_pksm
@pytest.mark.parametrize("kind", ["dumb", "no-such-terminal"])
def test_a_simple_terminal_gets_lines(guest: Guest, kind: str) -> None:
    """Where curses cannot draw, the table takes its place."""
    child = pexpect.spawn(
        LAUNCHER[0],
        [*LAUNCHER[1:], "top", name_of(guest), "--interval", "0.1"],
        timeout=SCREEN_SECONDS,
        dimensions=(24, 200),
        encoding="utf-8",
        env={**os.environ, "TERM": kind},
    )
    try:
        child.expect_exact("lines instead")
        child.expect_exact("scanned/s")
        child.expect(r"\d\d:\d\d:\d\d")
    finally:
        end_terminal(child)


def test_a_guest_that_ends_ends_the_view(own_runs: Path) -> None:
    """With one line that says so, and status 0."""
    with booted() as launcher, closing(Screen()) as screen:
        screen.wait_for("pages_unshared")
        leave(launcher)
        assert screen.wait_end() == 0

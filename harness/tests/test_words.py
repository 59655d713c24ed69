# SPDX-License-Identifier: GPL-2.0-only
"""Nonsense on the command line of every command: one line, status 125, nothing done.

What a command would do next is not done here: whoever sees to its packages, boots a guest
or looks at the cache is told that this is as far as it goes.
"""

from __future__ import annotations

import argparse
import errno
import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from linux_um import cli, commands_fuzz, commands_run, doctor, packages
from linux_um.errors import EXIT_LAUNCHER, LinuxUmError

Said = Callable[..., tuple[int, str]]
REACHED = "as far as this goes"
# What a command needs besides, to be one.
NEEDED = {"run": ["--", "true"], "gdb": ["--", "true"]}
# No numbers of any kind, and what no number here may be.
NO_NUMBERS = ("word", "nan", "inf", "1e999", "", "1.5.2", "-1", "-99999999999999999999")
EXTREMES = ("0", "1", "99999999999999999999")
SIZES = ("mem", "swap", "cpus")


@functools.cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    for action in cli.build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("there are no commands")


def numeric_options() -> list[tuple[str, str]]:
    """Return each option whose value is a number, with its command."""
    found = []
    for command, parser in commands().items():
        for action in parser._actions:
            kind: Any = action.type
            number = kind is int or getattr(kind, "__name__", "") in ("float", "finite")
            if action.option_strings and (number or action.dest in SIZES):
                found.append((command, action.option_strings[-1]))
    return found


@pytest.fixture
def say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Said:
    """Return a function that runs a command line; it returns the status and the last line.

    Whatever else is said before that is the usage.
    """

    def stop(*_words: object, **_options: object) -> NoReturn:
        raise LinuxUmError(REACHED)

    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("LINUX_UM_PROFILE", "LINUX_UM_KERNEL", "LINUX_UM_ARCH", "KERNEL_SRC"):
        monkeypatch.delenv(name, raising=False)
    # The handlers of this process stay pytest's.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(packages, "ensure", stop)
    monkeypatch.setattr(commands_run, "boot", stop)
    monkeypatch.setattr(commands_fuzz, "seeds_of", stop)
    monkeypatch.setattr(doctor, "all_checks", stop)

    def run(*words: str) -> tuple[int, str]:
        begun = time.monotonic()
        try:
            status = cli.main(list(words))
        except SystemExit as end:
            status = int(end.code or 0)
        assert time.monotonic() - begun < 60
        lines = capsys.readouterr().err.splitlines()
        said = [line for line in lines if line.startswith("linux-um: ")]
        assert len(said) == 1 and said[0] == lines[-1], lines
        assert len(lines) == 1 or lines[0].startswith("usage: "), lines
        return status, said[0].removeprefix("linux-um: ")

    return run


@pytest.mark.parametrize("command", [name for name in commands() if name not in ("test", "cov")])
def test_an_option_that_there_is_not(say: Said, command: str) -> None:
    """(Those of test and cov are pytest's.)"""
    status, said = say(command, "--nosuchoption")
    assert status == EXIT_LAUNCHER
    assert "--nosuchoption" in said and said.endswith(f"see linux-um {command} --help")


@pytest.mark.parametrize(("command", "option"), numeric_options())
def test_what_is_no_number_is_refused(say: Said, command: str, option: str) -> None:
    for value in NO_NUMBERS:
        status, said = say(command, f"{option}={value}", *NEEDED.get(command, []))
        assert status == EXIT_LAUNCHER
        assert said != REACHED, f"{option}={value} is taken"
        assert option in said or repr(value) in said, said


@pytest.mark.parametrize(("command", "option"), numeric_options())
def test_a_number_that_is_out_of_all_bounds_does_no_harm(
    say: Said, command: str, option: str
) -> None:
    for value in EXTREMES:
        status, said = say(command, option, value, *NEEDED.get(command, []))
        assert status == EXIT_LAUNCHER
        assert said


def test_there_are_numbers_to_be_tried() -> None:
    """Else those tests test nothing."""
    found = numeric_options()
    for each in (("run", "--timeout"), ("fuzz", "--ops"), ("soak", "--hours"), ("top", "--count"),
                 ("doctor", "--mem"), ("cov", "--lines"), ("boot", "--cpus")):  # fmt: skip
        assert each in found


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["fuzz", "--ops", "0"], "--ops 0; give 1 at least"),
        (["fuzz", "--procs", "99"], "--procs 99; give a number from 1 to 16"),
        (["fuzz", "--pages", "0"], "--pages 0; give a number from 1 to 2048"),
        (["fuzz", "--seed", "-1"], "--seed -1; give a number that is not negative"),
        (["fuzz", "--from-script", "no-such"], "--from-script no-such: [Errno 2] No such file or "
         "directory: 'no-such'; name a list"),
        (["fuzz", "--from-script", "."], "--from-script .: [Errno 21] Is a directory: '.'; "
         "name a list"),
        (["soak", "--seed", "-1"], "--seed -1; give a number that is not negative"),
        (["cov", "--lines", "101"], "--lines 101; give 0 to 100 per cent"),
        (["prove", "--only", "nothing"], "--only nothing: there is no such part; there are: "),
        (["patches", "--kernel", "1.0"], "no patches for kernel 1.0; there are for: "),
        (["patches", "-o", "file"], "cannot write to file: File exists; name another "),
        (["doctor", "--mem", "none"], "'none' is not a size; give one such as 256M"),
        (["top", "no-such-run"], ""),
        (["gdb", "--attach", "no-such-run"], REACHED),
    ],
)  # fmt: skip
def test_what_a_command_cannot_do_is_said(
    say: Said, tmp_path: Path, words: list[str], line: str
) -> None:
    (tmp_path / "file").write_text("precious")
    status, said = say(*words)
    assert said.startswith(line), said
    assert status == EXIT_LAUNCHER
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"),
         "cannot go on: /x/y: No space left on device; make room there, or set LINUX_UM_CACHE to "),
        (OSError(errno.EROFS, "Read-only file system", "/x"),
         "cannot go on: /x: Read-only file system; set LINUX_UM_CACHE to a directory of your own"),
        (OSError(errno.ENOSPC, "No space left on device"),
         "cannot go on: No space left on device; make room there, or set LINUX_UM_CACHE to "),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/gone"),
         "cannot go on: /gone: No such file or directory"),
    ],
)  # fmt: skip
def test_what_the_host_refuses_anywhere_is_one_line(
    say: Said, monkeypatch: pytest.MonkeyPatch, error: OSError, line: str
) -> None:
    def refuse(_bytes: int) -> NoReturn:
        raise error

    monkeypatch.setattr(doctor, "all_checks", refuse)
    status, said = say("doctor")
    assert said.startswith(line), said
    assert status == EXIT_LAUNCHER

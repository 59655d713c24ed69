# SPDX-License-Identifier: GPL-2.0-only
"""The host's checks on made-up hosts, and the command line without a kernel."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from linux_um import (
    build,
    cli,
    doctor,
    errors,
    kconfig,
    options,
    packages,
    paths,
)


GOOD = doctor.Facts(
    machine="x86_64",
    memory=doctor.Directory(Path("/dev/shm"), True, True, True, 8 << 30, True),
    max_map_count=1 << 20,
    ptrace_scope=1,
    xstate_bytes=2696,
    ptrace_error="",
    cache=doctor.Directory(Path("/home/u"), True, True, True, 50 << 30, False),
    missing={"kernel": [], "lint": []},
)
MEM = 256 << 20


def test_a_good_host_has_nothing_to_mend() -> None:
    assert [check for check in doctor.judge(GOOD, MEM) if check.mend] == []


@pytest.mark.parametrize(
    ("change", "name", "mend", "required"),
    [
        ({"machine": "aarch64"}, "processor", "x86_64", True),
        ({"ptrace_error": "a child cannot be traced"}, "ptrace", "SYS_PTRACE", True),
        ({"ptrace_scope": 3}, "ptrace", "lower value", True),
        ({"xstate_bytes": 11008}, "floating-point state", "virtual machine", True),
        ({"max_map_count": 65530}, "vm.max_map_count", "sysctl -w vm.max_map_count=67584", False),
        ({"memory": {"exists": False}}, "guest memory directory", "TMPDIR", True),
        ({"memory": {"writable": False}}, "guest memory directory", "TMPDIR", True),
        ({"memory": {"exec_allowed": False}}, "guest memory directory", "exec", True),
        ({"memory": {"free_bytes": 64 << 20}}, "guest memory directory", "256 MiB free", True),
        ({"cache": {"writable": False}}, "cache", "LINUX_UM_CACHE", True),
        ({"cache": {"free_bytes": 1 << 30}}, "cache", "6 GB", False),
        ({"missing": {"kernel": ["bc"]}}, "tools to build the kernel", "install.* bc", True),
        ({"missing": {"lint": ["mypy"]}}, "tools for make lint", "install.* mypy", False),
    ],
)
def test_each_defect_of_a_host_is_named_with_its_mend(
    change: dict[str, Any], name: str, mend: str, required: bool
) -> None:
    values: dict[str, Any] = {}
    for key, value in change.items():
        nested = key in ("memory", "cache")
        values[key] = dataclasses.replace(getattr(GOOD, key), **value) if nested else value
    bad = [check for check in doctor.judge(dataclasses.replace(GOOD, **values), MEM) if check.mend]
    assert [check.name for check in bad] == [name]
    assert bad[0].required is required
    assert re.search(mend, bad[0].mend)


def test_the_memory_directory_given_by_the_environment_binds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(errors.HostError, match="does not exist"):
        doctor.boot_checks(MEM)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert doctor.boot_checks(1 << 20) == tmp_path
    with pytest.raises(errors.HostError, match="the guest needs"):
        doctor.boot_checks(1 << 60)


# The command line


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher as a user does."""
    return subprocess.run(
        [str(paths.repo_root() / "linux-um"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
        timeout=60,
    )


def test_nonsense_on_the_command_line_is_status_125() -> None:
    for line in ("", "nonsense", "build --nonsense", "build --profile none"):
        result = launch(*line.split())
        assert result.returncode == errors.EXIT_LAUNCHER
        assert "Traceback" not in result.stderr
        assert result.stderr.splitlines()[-1].startswith("linux-um: ")


def test_an_unknown_option_is_told_by_the_command_it_was_given_to() -> None:
    result = launch("run", "--nosuch", "--", "true")
    assert result.returncode == errors.EXIT_LAUNCHER
    assert result.stderr.startswith("usage: linux-um run ")
    last = result.stderr.splitlines()[-1]
    assert last == "linux-um: unrecognized arguments: --nosuch; see linux-um run --help"


# What the environment may say otherwise.
PLAIN = ("--profile", "fast", "--kernel", "6.12", "--arch", "um")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "--cpus", "0"], "--cpus 0; give a number from 1 to 8"),
        (["run", "--cpus", "99"], "--cpus 99; give a number from 1 to 8"),
        (["boot", "--cpus", "-1"], "--cpus -1; give a number from 1 to 8"),
        (["fuzz", "--cpus", "two"], "--cpus two; give a number from 1 to 8"),
        *(([command, *PLAIN, "--cpus", "2"],
           "--cpus 2: User-Mode Linux 6.12 has one CPU; add --kernel 7.3 or --arch x86_64")
          for command in ("run", "boot", "fuzz", "soak", "gdb")),
        (["run", *PLAIN, "--kernel", "7.3", "--cpus", "2", "--time-travel"],
         "--cpus 2: User-Mode Linux with more than one CPU cannot travel in time; leave out "
         "--time-travel, or add --arch x86_64"),
        (["run", *PLAIN, "--profile", "off", "--cpus", "2"],
         "guests of profile off have one CPU; use --profile smp, smp-debug or smp-ksm, with "
         "--kernel 7.3 or --arch x86_64"),
        (["run", *PLAIN, "--profile", "off", "--cpus", "2", "--kernel", "7.3"],
         "guests of profile off have one CPU; use --profile smp, smp-debug or smp-ksm"),
        *(([command, *PLAIN, "--profile", "smp"],
           "profile smp needs a kernel from 7.0 on, and this is 6.12; add --kernel 7.3 or --arch "
           "x86_64")
          for command in ("run", "build", "test")),
        *(([command, "--arch", "arm"], "--arch arm: no such machine; use um or x86_64")
          for command in ("run", "boot", "test", "build", "fuzz", "bench", "cov")),
    ],
)  # fmt: skip
def test_a_machine_that_there_cannot_be_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], line: str
) -> None:
    """Before packages, source or kernel are seen to."""
    for name in ("KERNEL_SRC", "LINUX_UM_TARBALL"):
        monkeypatch.delenv(name, raising=False)
    command = ["--", "true"] if words[0] == "run" else []
    result = launch(*words, *command, LINUX_UM_CACHE=str(tmp_path))
    assert result.stderr == f"linux-um: {line}\n"
    assert result.returncode == errors.EXIT_LAUNCHER
    assert not list(tmp_path.glob("*.json")) and not (tmp_path / "lock").exists()


def test_the_cpus_of_a_tree_of_ones_own_are_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever --kernel says."""
    words = ["--cpus", "2", "--profile", "fast", "--kernel", "6.12", "--arch", "um", "--", "true"]
    made = cli.build_parser().parse_args(["run", *words])
    (tmp_path / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 3\nSUBLEVEL = 1\n")
    monkeypatch.setenv("KERNEL_SRC", str(tmp_path))
    options.check_kernel_options(made)
    monkeypatch.delenv("KERNEL_SRC")
    with pytest.raises(errors.UsageError, match="--cpus 2: User-Mode Linux 6.12 has one CPU"):
        options.check_kernel_options(made)


@pytest.mark.parametrize("command", ["run", "boot", "test", "build", "fuzz", "gdb", "bench", "cov"])
def test_help_has_every_profile_with_what_it_is_for(command: str) -> None:
    """In the words of its fragment."""
    text = " ".join(launch(command, "--help").stdout.split())
    names = {path.stem for path in paths.config_dir().glob("*.config")}
    for name in names - {"base", "mutant"}:
        assert f" {name}: {kconfig.summary(name)} " in text, name
    assert kconfig.summary("fast").startswith("The default profile: PKSM")
    assert kconfig.summary("kcsan").endswith(" (--arch x86_64)")
    assert kconfig.summary("smp").endswith(" (um from Linux 7.0 on)")


def test_help_lists_the_exit_statuses() -> None:
    for words in ((), ("run",)):
        text = launch(*words, "--help").stdout.split("Exit status:")[1]
        assert re.findall(r"\b\d{2,3}\b(?! \+)", text) == ["70", "71", "124", "125", "126", "134"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("--help",), ("test", "--help"), ("doctor",), ("patches",)])
def test_a_reader_that_has_gone_is_told_by_the_status_alone(
    words: tuple[str, ...], unbuffered: str, tmp_path: Path
) -> None:
    """As in `linux-um build | head`."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nobody:
        done = subprocess.run(
            [str(paths.repo_root() / "linux-um"), *words], stdout=nobody, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert done.stderr == b""
    assert done.returncode in (0, 128 + signal.SIGPIPE)


def test_no_colour_and_no_spinner_in_a_pipe() -> None:
    result = launch("build", "--profile", "none")
    assert "\033" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_clean_refuses_a_directory_that_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    result = launch("clean", LINUX_UM_CACHE=str(tmp_path))
    assert result.returncode == errors.EXIT_LAUNCHER
    assert (tmp_path / "precious").exists()


def test_clean_frees_builds_and_keeps_sources(tmp_path: Path) -> None:
    for name in ("src/k/a", "tree/k/a", "build/k/a", "image/k/a", "runs/r/a"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x" * 100_000)
    result = launch("clean", LINUX_UM_CACHE=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "freed" in result.stderr
    # The launcher has written its own compiled modules meanwhile.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "pycache", "src"]
    assert launch("clean", "--all", LINUX_UM_CACHE=str(tmp_path)).returncode == 0
    assert not (tmp_path / "src").exists()


def test_clean_refuses_while_a_build_holds_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    with paths.lock(build.BUILD_LOCK):
        result = launch("clean", LINUX_UM_CACHE=str(tmp_path))
    assert result.returncode == errors.EXIT_LAUNCHER
    assert "a build runs" in result.stderr


def test_clean_refuses_while_a_guest_of_this_cache_runs(tmp_path: Path) -> None:
    kernel = tmp_path / "image/k/linux"
    kernel.parent.mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "/bin/sleep", kernel)
    with subprocess.Popen([str(kernel), "60"]) as guest:
        try:
            result = launch("clean", LINUX_UM_CACHE=str(tmp_path))
        finally:
            guest.kill()
    assert result.returncode == errors.EXIT_LAUNCHER
    assert str(guest.pid) in result.stderr
    assert kernel.exists()


def test_the_interpreter_of_the_tests_has_pytest() -> None:
    assert packages.test_python() == sys.executable

# SPDX-License-Identifier: GPL-2.0-only
"""A host that gives a running guest no more memory or mappings: one line, and status 125.

A guest may take more than there was when it began: mappings, of which the host counts
those of each process, and room for the file that is its memory.
"""

from __future__ import annotations

import io
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from linux_um import cli, commands_run, doctor, packages
from linux_um.errors import EXIT_LAUNCHER
from linux_um.gdb_machine import CORE_NAME
from linux_um.outcome import host_shortage, scan
from linux_um.term import Term
from linux_um.uml import host_error
from runlab import launch, run_directory, runs as runs
from test_bad_host import mounted

# Maps the page of zeros as often as it is told to. For the host each is a mapping.
MAPS = """\
#include <stdlib.h>
#include <sys/mman.h>

int main(int argc, char **argv)
{
	size_t bytes = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1) * 4096;
	volatile char *p = mmap(NULL, bytes, PROT_READ,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return p == MAP_FAILED ? 3 : p[0] + p[bytes - 1];
}
"""
# More mappings than this take too long, and too much of the host's memory.
MANY = 1 << 21
SPARE = 4096
# Fills the memory's directory, in the background, as soon as the guest says that it is ready;
# the guest may look on without asking for memory.
FILL = """\
(until [ -e "$1/ready" ] || ! kill -0 $$ 2>/dev/null; do sleep 0.05; done
 dd if=/dev/zero of="$1/fill" bs=4k || :; : >"$1/go") >/dev/null 2>&1 &
"""
READY = "echo out; : >/share/ready; until [ -e /share/go ]; do :; done; "
MEM = 64 << 20
SIZE = "64 MiB"

BOOTED = "[    0.000000] Linux version 6.12.117 (x)\n"
MAPPINGS = (
    "[    1.000000] UML ran out of memory on the host side! This can happen due to a memory "
    "limitation or vm.max_map_count has been reached.\n"
)
BUS = "[    1.000000] Bus error - the host /dev/shm or /tmp mount likely just ran out of space\n"
PANIC = "[    1.000000] Kernel panic - not syncing: "
SIGNAL_7 = f"{PANIC}Kernel mode signal 7\n"
INIT = f"{PANIC}Attempted to kill init! exitcode=0x0000000b\n"
WARN = "[    1.000000] WARNING: CPU: 0 PID: 31 at mm/pksm/merge.c:88 pksm_merge+0x12/0x40\n"


def last_line(stderr: bytes | str) -> str:
    """Return what is said last; that nothing is a trace of Python's is seen to."""
    text = stderr if isinstance(stderr, str) else stderr.decode()
    assert "Traceback" not in text
    return text.splitlines()[-1]


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Return the directory of a program that maps many pages."""
    place = tmp_path / "maps"
    place.mkdir()
    source = place / "maps.c"
    source.write_text(MAPS)
    subprocess.run(["gcc", "-static", "-o", str(place / "maps"), str(source)], check=True)
    return place


@pytest.mark.um_only
def test_too_many_mappings_are_named_with_the_limit(runs: Path, maps: Path) -> None:
    """Of one process, which is killed: what else runs in the guest goes on."""
    limit = doctor.max_map_count()
    if limit > MANY:
        pytest.skip(f"vm.max_map_count is {limit}: no guest comes near that")
    command = f"/share/maps {limit // 2}; echo $?; /share/maps {limit + SPARE}; echo $?"
    words = ["run", "--share", str(maps), "--", "sh", "-c", command]
    done = launch(*words)
    assert last_line(done.stderr) == (
        "linux-um: vm.max_map_count: a process in the guest takes more mappings than the "
        f"{limit} that the host lets it have; spread the workload over processes, or run: "
        f"sudo sysctl -w vm.max_map_count={max(2 * limit, 67584)}"
    )
    assert done.returncode == EXIT_LAUNCHER
    assert done.stdout == b"0\n139\n"
    assert b"outcome: broken host\n" in done.stderr
    log = (run_directory(done.stderr) / "console.log").read_text()
    assert "UML ran out of memory" in log or "stub syscall type" in log
    # Whoever lets an oops pass has the command's own status.
    assert launch(words[0], "--allow-taint", *words[1:]).returncode == 0


@pytest.mark.um_only
@pytest.mark.parametrize("core", [False, True], ids=["no core", "core"])
def test_memory_that_runs_full_is_named_with_its_directory(
    runs: Path, tmp_path: Path, core: bool
) -> None:
    """There was room for all of it at the start. Output, log and core are not lost."""
    if core and packages.missing("gdb"):
        pytest.skip("no gdb")
    place = tmp_path / "mount"
    words = ["--mem", "64M", "--share", str(place), *(["--keep-core"] if core else [])]
    command = ["sh", "-c", READY + "exec memdup --mib 16 --unique 100 --no-wait"]
    done = mounted("TMPDIR", place, "size=80m", FILL, "run", *words, "--", *command)
    assert last_line(done.stderr) == (
        f"linux-um: guest memory directory: {place} ran full while the guest ran, which takes up "
        f"to {SIZE}; make room there, or set TMPDIR to a directory that allows exec and has "
        f"{SIZE} free, or --mem"
    )
    assert done.returncode == EXIT_LAUNCHER
    assert done.stdout == "out\n"
    run = run_directory(done.stderr.encode())
    assert "Bus error - the host " in (run / "console.log").read_text()
    assert (run / CORE_NAME).exists() == core


@pytest.mark.parametrize(
    ("status", "free", "warned"), [(3, 0, True), (3, 4096, False), (0, 0, False)]
)
def test_a_command_that_fails_while_memory_is_full_ends_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, status: int, free: int, warned: bool
) -> None:
    """The host's refusal may be EFAULT to a command and no more: its status is its own."""
    memory = doctor.Directory(Path("/m"), True, True, True, free, True)
    guest = SimpleNamespace(result={}, full_directory=lambda: doctor.full_warning(memory))
    monkeypatch.setattr(commands_run, "boot", lambda *_, **__: nullcontext(guest))
    monkeypatch.setattr(commands_run, "attach", lambda *_, **__: status)
    said = io.StringIO()
    arguments = cli.build_parser().parse_args(["run", "--arch", "um", "--", "false"])
    assert commands_run.run_command(arguments, Term(said)) == status
    line = (
        "linux-um: warning: guest memory directory: /m is full, which may be why the command "
        "failed; make room there, or set TMPDIR to another directory\n"
    )
    assert said.getvalue() == (line if warned else "")


@pytest.mark.parametrize(
    ("log", "shortage"),
    [
        (BOOTED, ""),
        (BOOTED + MAPPINGS, "host mappings"),
        (BOOTED + MAPPINGS + MAPPINGS, "host mappings"),
        (BOOTED + MAPPINGS + INIT, "host mappings"),
        (BOOTED + MAPPINGS + f"{PANIC}Failed to sync kernel TLBs: -12\n", "host mappings"),
        (BOOTED + BUS + SIGNAL_7, "host memory"),
        (BOOTED + MAPPINGS + BUS + SIGNAL_7, "host memory"),
        (BOOTED + WARN + BUS + SIGNAL_7, "host memory"),
        (BOOTED + SIGNAL_7, ""),
        (BOOTED + INIT, ""),
        (BOOTED + WARN + MAPPINGS, ""),
        (BOOTED + MAPPINGS + WARN, ""),
        (BOOTED + MAPPINGS + f"{PANIC}pksm: a wrong count\n", ""),
        (BOOTED + f"{PANIC}Kernel mode signal 11\n" + BUS, ""),
    ],
)
def test_the_host_is_to_blame_for_what_comes_of_it_alone(log: str, shortage: str) -> None:
    """What the kernel may have done itself is told as ever."""
    assert host_shortage(scan(log)) == shortage


@pytest.mark.parametrize(
    ("log", "free", "begin"),
    [
        ("Checking PROT_EXEC mmap in /m...OK\n", MEM - 1,
         f"guest memory directory: /m has 63 MiB free, the guest needs {SIZE}; set TMPDIR"),
        ("Checking PROT_EXEC mmap in /m...OK\n", MEM, ""),
        (BOOTED, 0, ""),
        (BOOTED + BUS + SIGNAL_7, 0, "guest memory directory: /m ran full"),
        (BOOTED + BUS + SIGNAL_7, MEM, "guest memory directory: /m ran full"),
        (BOOTED + MAPPINGS, MEM, "vm.max_map_count: "),
    ],
)  # fmt: skip
def test_a_kernel_without_room_for_a_word_is_seen_by_the_directory(
    log: str, free: int, begin: str
) -> None:
    """When it has ended before it could tell why."""
    memory = doctor.Directory(Path("/m"), True, True, True, free, True)
    error = host_error(log, memory, MEM, 65530)
    assert (error.line() if error is not None else "").startswith(begin)
    assert (error is None) == (not begin)
    assert error is None or error.exit_status == EXIT_LAUNCHER


@pytest.mark.parametrize(
    ("limit", "mem", "wanted"), [(100, 256 << 20, 67584), (65530, 256 << 20, 131060)]
)
def test_the_limit_to_set_is_enough_for_memory_and_more_than_there_was(
    limit: int, mem: int, wanted: int
) -> None:
    """A page may be mapped more than once."""
    assert doctor.mappings_error(limit, mem).mend.endswith(f"sysctl -w vm.max_map_count={wanted}")

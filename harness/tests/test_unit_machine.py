# SPDX-License-Identifier: GPL-2.0-only
"""The machine layer without a machine: frames, outcomes by canned logs, run directories."""

from __future__ import annotations

import fcntl
import functools
import io
import os
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux_um import (  # noqa: E402
    accel,
    build,
    cli,
    guest,
    kconfig,
    packages,
    protocol,
    qemu,
    races,
    rundir,
)
from linux_um.commands_run import check_tests, pytest_command  # noqa: E402
from linux_um.errors import (  # noqa: E402
    BootError,
    GuestHang,
    GuestPanic,
    GuestTimeout,
    HostError,
    UsageError,
)
from linux_um.guest import parse_share  # noqa: E402
from linux_um.outcome import (  # noqa: E402
    GuestGone,
    GuestOops,
    LineError,
    Outcome,
    dmesg,
    judge_end,
    of_the_engine,
    outcome_of,
    scan,
    TAIL_LINES,
    excerpt,
    symbolise,
)
from linux_um.paths import repo_root  # noqa: E402
from linux_um.protocol import Frame, FrameReader, ProtocolError, ToGuest, ToHost  # noqa: E402
from linux_um.options import parse_size  # noqa: E402
from linux_um.machine import Machine, MachineOptions  # noqa: E402
from linux_um.qemu import qemu_command  # noqa: E402
from linux_um.term import Term  # noqa: E402
from linux_um.uml import machine_command  # noqa: E402

BOOTED = "Checking PROT_EXEC mmap in /dev/shm...OK\n[    0.000000] Linux version 6.12.117 (x)\n"
WARN = (
    BOOTED
    + """[    0.150000] Run /init as init process
[    3.310000] ------------[ cut here ]------------
[    3.310000] WARNING: CPU: 0 PID: 31 at mm/pksm/merge.c:88 pksm_merge+0x12/0x40
[    3.310000] Call Trace:
[    3.310000]  [<60033a70>] ? pksm_merge+0x0/0x40
[    3.310000] ---[ end trace 0000000000000000 ]---
"""
)
PANIC = BOOTED + "[    1.000000] Kernel panic - not syncing: sysrq triggered crash\n"


def test_protocol_numbers_are_the_agents() -> None:
    """protocol.py says what rootfs/agent/protocol.h says."""
    text = (repo_root() / "rootfs" / "agent" / "protocol.h").read_text()
    defined = {name: int(value) for name, value in re.findall(r"#define (\w+)\s+(\d+)", text)}
    for name in ("PROTOCOL_VERSION", "FRAME_MAX", "STDIN_WINDOW", "LINE_WINDOW", "EXEC_PTY"):
        assert getattr(protocol, name) == defined[name]
    to_guest = {name: int(value) for name, value in re.findall(r"\bTO_(\w+)\s*= (\d+)", text)}
    to_host = {name: int(value) for name, value in re.findall(r"\bFROM_(\w+)\s*= (\d+)", text)}
    assert to_guest == {kind.name: kind.value for kind in ToGuest}
    assert to_host == {kind.name: kind.value for kind in ToHost}


def test_frames_survive_any_cutting() -> None:
    """A stream of frames gives the same frames in whatever pieces it comes."""
    frames = [
        Frame(ToHost.STDOUT, 7, bytes(range(256)) * 9),
        Frame(ToHost.EXIT, 7, struct.pack("<I", 3)),
        Frame(ToHost.STDERR, 0xFFFFFFFF, b""),
    ]
    stream = b"".join(frame.encode() for frame in frames)
    for size in (1, 2, 9, 10, 1000, len(stream)):
        reader = FrameReader()
        got = []
        for start in range(0, len(stream), size):
            got += list(reader.feed(stream[start : start + size]))
        assert got == frames


def test_a_stream_that_is_no_frames_is_refused() -> None:
    """An unknown type or an impossible length ends the conversation."""
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(b"Kernel panic - not syncing"))
    # Less than a header.
    with pytest.raises(ProtocolError, match="not a frame"):
        list(FrameReader().feed(b"garbage\n"))
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(struct.pack("<BII", ToHost.STDOUT, 1, protocol.FRAME_MAX + 1)))
    with pytest.raises(ProtocolError):
        Frame(ToHost.EXIT, 1, b"ab").u32()


def test_exec_frame_has_the_documented_layout() -> None:
    """Flags, window, counts, then directory, words and environment, each with its NUL."""
    frame = protocol.exec_frame(5, ["a", "b c"], {"X": "y=z"}, cwd="/tmp", window=(24, 80))
    assert frame.payload == struct.pack("<BHHHH", 1, 24, 80, 2, 1) + b"/tmp\0a\0b c\0X=y=z\0"
    assert protocol.exec_frame(5, ["a"], {}).payload[0] == 0
    wrong: list[list[str]] = [[], ["a\0b"], ["x" * 40000], ["x"] * 3000]
    for words in wrong:
        with pytest.raises(ProtocolError):
            protocol.exec_frame(1, words, {})


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("WARNING: CPU: 0 PID: 31 at mm/pksm/merge.c:88 pksm_merge+0x12/0x40", "WARN"),
        ("WARNING: possible circular locking dependency detected", "WARN"),
        ("BUG: KASAN: slab-use-after-free in pksm_free+0x1/0x2", "KASAN"),
        ("BUG: KFENCE: use-after-free read in pksm_free+0x1/0x2", "KFENCE"),
        ("BUG: KFENCE: memory corruption in pksm_free+0x1/0x2", "KFENCE"),
        ("BUG: KFENCE: invalid free in pksm_free+0x1/0x2", "KFENCE"),
        ("UBSAN: array-index-out-of-bounds in mm/pksm/core.c:3:4", "UBSAN"),
        ("BUG: Bad page state in process memdup  pfn:01234", "bad page"),
        ("BUG: Bad page map in process memdup  pte:1 pmd:2", "bad page"),
        ("BUG: Bad rss-counter state mm:1 type:MM_ANONPAGES val:1", "bad page"),
        ("mm/pgtable-generic.c:54: bad pmd 000000006789abcd(0123456789abcdef)", "bad page"),
        ("pagealloc: memory corruption", "written when free"),
        ("pagealloc: single bit error", "written when free"),
        ("BUG: sleeping function called from invalid context at mm/x.c:1", "BUG"),
        ("kernel BUG at mm/pksm/core.c:12!", "BUG"),
        ("Oops: 0002 [#1] PREEMPT", "oops"),
        ("list_del corruption. prev->next should be 1, but was 2.", "list corruption"),
        ("refcount_t: underflow; use-after-free.", "refcount"),
        ("INFO: task kcompactd0:20 blocked for more than 120 seconds.", "hung task"),
        ("rcu: INFO: rcu_sched self-detected stall on CPU", "RCU stall"),
        ("Kernel panic - not syncing: Segfault with no mm", "panic"),
        ("Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b", "panic"),
    ],
)
def test_reports_in_the_log_are_found(line: str, kind: str) -> None:
    """With and without a time stamp, with and without the caller."""
    for stamp in ("", "[    1.234567] ", "[  123.000000][   T31] ", "<4>[    0.000000] "):
        (finding,) = scan(f"{BOOTED}{stamp}{line}\n")
        assert (finding.kind, finding.text, finding.line) == (kind, line, 3)


@pytest.mark.parametrize(
    "line",
    [
        "Warning: tempdir /tmp is not on tmpfs",
        "[    0.110000] Checking that host ptys support output SIGIO...Yes",
        "[    0.330000] epollctl add err fd 1, Operation not permitted",
        "[    0.120000] Failed to initialize ubd device 0 :Couldn't determine size of device's file",
        "[    2.000000] kmemleak: Kernel memory leak detector initialized",
        # One scan alone is wrong now and then: see leaks.py, which decides.
        "[    9.000000] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "[    0.000000] debug: unmapping init memory, no WARNING: here",
        "[    0.500000] reboot: Power down",
    ],
)
def test_ordinary_lines_are_no_reports(line: str) -> None:
    """Nothing a healthy guest says counts."""
    assert scan(f"{BOOTED}{line}\n") == []


def test_the_end_is_judged_by_status_and_log() -> None:
    """Broken host, boot failure, panic and power-off are told apart."""
    host = judge_end(1, "Checking PROT_EXEC mmap in /x...Operation not permitted\n", booted=False)
    assert isinstance(host, HostError) and "not permitted" in host.line()
    boot = judge_end(-6, PANIC, booted=False)
    assert isinstance(boot, BootError) and "sysrq triggered crash" in boot.line()
    panic = judge_end(-6, PANIC, booted=True)
    assert isinstance(panic, GuestPanic) and "sysrq triggered crash" in panic.line()
    assert isinstance(judge_end(-6, BOOTED, booted=True), GuestPanic)
    assert isinstance(judge_end(97, BOOTED, booted=True), GuestGone)
    down = BOOTED + "[ 1.0] reboot: Power down\n"
    assert isinstance(judge_end(-6, down, booted=True), GuestGone)
    early = judge_end(-6, down, booted=False)
    assert early.line() == "the guest did not boot: it ended with exit status 0"


def test_each_error_has_its_outcome_and_status() -> None:
    """As the documentation lists them."""
    table = {
        GuestPanic("x"): (Outcome.PANIC, 134),
        GuestTimeout("x"): (Outcome.TIMEOUT, 124),
        GuestHang("x"): (Outcome.HANG, 124),
        BootError("x"): (Outcome.BOOT_FAILURE, 126),
        HostError("x"): (Outcome.BROKEN_HOST, 125),
        GuestOops("x"): (Outcome.TAINT, 70),
        GuestGone("x"): (Outcome.GONE, 71),
        LineError("x"): (Outcome.GARBLED, 71),
    }
    for error, (outcome, status) in table.items():
        assert (outcome_of(error), error.exit_status) == (outcome, status)
    assert outcome_of(None) is Outcome.PASS
    assert outcome_of(AssertionError()) is Outcome.FAIL
    # A hang is a time-out, to a script, and a guest that cannot be talked to has gone.
    assert len({status for _, status in table.values()}) == len(table) - 2


def test_the_excerpt_starts_at_the_cut() -> None:
    """The report shows the lines of the first finding, from its cut-here on."""
    which, lines = excerpt(WARN)
    assert which == "lines 4 to 8 of 8"
    assert "cut here" in lines[0]
    assert lines[-1].endswith("[ end trace 0000000000000000 ]---")


@pytest.mark.parametrize(
    "line",
    [
        "memdup[31]: segfault at 0 ip 401000 sp 7ffe error 6 in memdup[401000+1000]",
        "Call Trace:",
        "memdup invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0",
        "Out of memory: Killed process 31 (memdup) total-vm:1kB",
        "pksmd: page allocation failure: order:0, mode:0x40cc0(GFP_KERNEL)",
        "Failed to execute /init (error -2)",
        "BUG: Bad page state in process memdup  pfn:01234",
        "Kernel panic - not syncing: No working init found.",
    ],
)
def test_the_excerpt_starts_with_what_matters(line: str) -> None:
    """The ordinary messages before it are not shown, and what follows is."""
    boot = "".join(f"[    0.00{n:04}] an ordinary message, number {n}\n" for n in range(50))
    which, lines = excerpt(f"{BOOTED}{boot}[    1.000000] {line}\n[    1.000001] and more\n")
    assert lines == [f"[    1.000000] {line}", "[    1.000001] and more"]
    assert which == "lines 53 to 54 of 54"


def test_the_excerpt_of_an_ordinary_log_is_its_end() -> None:
    """Nothing matters, so a few lines will do."""
    lines = [f"[    0.00{n:04}] an ordinary message, number {n}" for n in range(50)]
    assert excerpt("\n".join(lines)) == ("the last of 50 lines", lines[-TAIL_LINES:])
    assert excerpt("") == ("the last of 0 lines", [])


def test_symbolise_keeps_the_lines_without_a_kernel(tmp_path: Path) -> None:
    """No vmlinux, no harm."""
    lines = excerpt(WARN)[1]
    assert symbolise(lines, tmp_path / "vmlinux") == "\n".join(lines)


def test_symbolise_names_source_lines(tmp_path: Path) -> None:
    """An address is followed by the place in the source."""
    source = tmp_path / "mm" / "probe.c"
    source.parent.mkdir()
    source.write_text("int probe(int x)\n{\n\treturn x + 1;\n}\nint main(void)\n{\n\treturn probe(1);\n}\n")
    program = tmp_path / "program"
    compile_it = ["gcc", "-g", "-O0", "-static", "-no-pie", "-o", str(program), str(source)]
    subprocess.run(compile_it, check=True)
    symbols = subprocess.run(["nm", program], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^([0-9a-f]+) T probe$", symbols, re.MULTILINE)
    assert found is not None
    line = f"[    1.0]  [<{int(found[1], 16):08x}>] probe+0x0/0x10"
    assert "probe at mm/probe.c:2" in symbolise([line], program)


def test_dmesg_is_the_kernels_part_of_the_console() -> None:
    """Lines without a time stamp are not the kernel's."""
    assert dmesg("UML says\n[    0.1] kernel\nguest says\n") == "[    0.1] kernel\n"


def test_sizes() -> None:
    """Units are powers of two; nonsense is refused."""
    assert parse_size("256M") == 256 << 20
    assert parse_size("1g") == 1 << 30
    assert parse_size("4096") == 4096
    for text in ("", "0", "-1M", "12X", "M", "1.5G"):
        with pytest.raises(UsageError):
            parse_size(text)


def test_shares(tmp_path: Path) -> None:
    """DIR and DIR:GUESTPATH; a colon in the directory's name is no separator."""
    odd = tmp_path / "a:b"
    odd.mkdir()
    assert parse_share(str(tmp_path)) == (str(tmp_path), "/share")
    assert parse_share(f"{tmp_path}:/data") == (str(tmp_path), "/data")
    assert parse_share(str(odd)) == (str(odd), "/share")
    with pytest.raises(UsageError):
        parse_share(str(tmp_path / "missing"))
    for relative in ("rel", "rel/deep", ""):
        with pytest.raises(UsageError, match="GUESTPATH '.*' is not absolute"):
            parse_share(f"{tmp_path}:{relative}")


def test_run_uml_makes_the_command_line(tmp_path: Path) -> None:
    """The script shows what it would run; each option has its words."""
    linux = tmp_path / "linux"
    linux.write_text("")
    linux.chmod(0o755)
    options = MachineOptions(
        linux=linux, initrd=linux, mem="64M", swap="8M", time_travel=True, append=("one two", "three")
    )
    shown = show(machine_command(options, tmp_path, 7, 8, "--show"))
    for word in ("mem=64M", "ubdb=swap", "time-travel=inf-cpu", "uml_dir=uml", "one", "two", "three"):
        assert word in shown
    assert "ssl0=fd:7\\,fd:8" in shown
    plain = show(machine_command(MachineOptions(linux, linux), tmp_path, 7, 8, "--show"))
    assert not any("time-travel" in word or "ubdb" in word for word in plain)


def test_qemu_gets_its_command_line(tmp_path: Path) -> None:
    """Each option has its words; two nodes only where both have memory and CPUs."""
    linux = tmp_path / "linux"
    options = MachineOptions(
        linux=linux, initrd=linux, mem="512M", swap="8M", time_travel=True, cpus=4,
        append=("one two",), shares=("/a,b", "/c"),
    )  # fmt: skip
    words = qemu_command(options, 7, "tcg")
    kernel = words[words.index("-append") + 1].split()
    assert {"one", "two", "line=/dev/vport0p1"} <= set(kernel)
    assert words[words.index("-icount") + 1].endswith("sleep=off")
    assert words[words.index("-smp") + 1] == "4,sockets=2,cores=2,threads=1,maxcpus=4"
    assert [word for word in words if word.startswith("node,")] == [
        "node,nodeid=0,cpus=0-1,memdev=node0", "node,nodeid=1,cpus=2-3,memdev=node1"
    ]  # fmt: skip
    assert [word.split(",security")[0] for word in words if word.startswith("local,")] == [
        "local,path=/a,,b,mount_tag=share0", "local,path=/c,mount_tag=share1"
    ]  # fmt: skip
    assert any(word.startswith("file=swap,") for word in words)
    assert words[words.index("-m") + 1] == "size=524288K"
    later = qemu_command(MachineOptions(linux, linux, mem="512M", dimm="128M"), 7, "tcg")
    assert later[later.index("-m") + 1] == "size=524288K,slots=1,maxmem=655360K"
    odd = qemu_command(MachineOptions(linux, linux, mem="512M", cpus=3), 7, "tcg")
    assert "node,nodeid=1,cpus=2-3,memdev=node1" in odd
    for mem, cpus in (("512M", 1), ("128M", 2)):
        plain = qemu_command(MachineOptions(linux, linux, mem=mem, cpus=cpus), 7, "kvm")
        assert not {"-numa", "-icount", "-virtfs", "-drive"} & set(plain)
        assert plain[plain.index("-cpu") + 1] == "host"


def test_time_travel_is_never_by_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU refuses to count instructions that the processor executes."""
    monkeypatch.setattr(qemu, "choose_accel", lambda *_: "kvm")
    for travels, wanted in ((True, "tcg,thread=single"), (False, "kvm")):
        wishes = MachineOptions(tmp_path / "linux", tmp_path / "linux", time_travel=travels)
        start = guest.MACHINES["x86_64"].starter(wishes, Term(quiet=True))
        words = qemu_command(wishes, 7, start.keywords["accel"])  # type: ignore[attr-defined]
        assert words[words.index("-accel") + 1] == wanted
        assert ("-icount" in words) is travels


def test_every_kind_of_machine_has_every_trait() -> None:
    """With a value of its own: none is left to be looked for when a test asks."""
    assert set(guest.MACHINES) == set(kconfig.ARCHES)
    for kind in guest.MACHINES.values():
        assert set(Machine.__annotations__) <= set(vars(kind)), kind


def test_what_is_known_of_machines_is_asked_of_them() -> None:
    """And not by their names in each place, nor by a symbol that only one of them happens to have."""
    harness = repo_root() / "harness"
    files = [path for path in (harness / "tests").glob("test_*.py") if "test_unit_" not in path.name]
    for path in (*files, harness / "tests/lab.py", harness / "linux_um/fuzz.py"):
        found = re.search(r'[=!]= kconfig\.(UM|X86_64)|"CONFIG_(UML|PVH)"', path.read_text())
        assert found is None, f"{path.name}: {found}"
    # Who boots a guest names a machine in commands, where it is not the usual one, and in the
    # table of all.
    text = (harness / "linux_um/guest.py").read_text()
    assert "== kconfig." not in text and text.count("kconfig.X86_64") == 1


def test_what_starts_a_machine_is_seen_to_before_its_kernel_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A build takes minutes; and whoever cannot have a core dump need not wait for it, either."""

    def ensure(*stages: str, term: Term) -> None:
        if "qemu" in stages:
            raise HostError("missing packages: qemu-system-x86", "")

    def build_it(*_: object) -> None:
        raise AssertionError("the kernel was built first")

    monkeypatch.setattr(packages, "ensure", ensure)
    monkeypatch.setattr(guest, "finished_image", build_it)
    with pytest.raises(HostError, match="qemu-system-x86"):
        with guest.boot(guest.BootOptions(arch="x86_64"), term=Term(quiet=True)):
            pass
    with pytest.raises(UsageError, match="--keep-core is for User-Mode Linux"):
        with guest.boot(guest.BootOptions(arch="x86_64", keep_core=True), term=Term(quiet=True)):
            pass
    for module, command in ((build, "test"), (build, "cov")):
        monkeypatch.setattr(module, "ensure_image", lambda *_, **__: build_it())
        said = io.StringIO()
        monkeypatch.setattr(sys, "stderr", said)
        words = [command, "--arch", "x86_64", "--kernel", "6.12", "--profile",
                 "cov" if command == "cov" else "fast"]  # fmt: skip
        assert cli.main(words) == 125
        assert said.getvalue() == "linux-um: missing packages: qemu-system-x86\n"


def test_a_machine_that_there_is_not_is_one_line() -> None:
    """Also when it is the environment that names it."""
    for words in (["run", "--", "true"], ["doctor"]):
        done = subprocess.run(
            [str(repo_root() / "linux-um"), *words], env={**os.environ, "LINUX_UM_ARCH": "arm"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 125
        assert done.stderr == "linux-um: LINUX_UM_ARCH is 'arm'; set it to um or x86_64\n"


def test_the_command_that_repeats_a_guest_names_its_kernel() -> None:
    words = guest._repeat_command(guest.BootOptions(kernel="7.3", profile="smp")).split()
    assert words[words.index("--kernel") + 1] == "7.3"
    assert words[1] == "test" and words[-1].endswith("_names_its_kernel")


# Starts what $PROGRAM names in place of QEMU, says its number, and waits.
LAUNCHER = """
import os, sys, time
from pathlib import Path
from linux_um import qemu
from linux_um.machine import MachineOptions
from linux_um.rundir import RunDir

qemu.PROGRAM = os.environ["PROGRAM"]
options = MachineOptions(Path("linux"), Path("initrd"))
print(qemu.QemuMachine(options, RunDir("guarded"), accel="tcg").pid, flush=True)
time.sleep(60)
"""


def test_qemu_ends_with_a_launcher_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which cannot do anything about it any more."""
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    monkeypatch.setenv("PROGRAM", str(program))
    monkeypatch.setenv("PYTHONPATH", str(repo_root() / "harness"))
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        descriptor = os.pidfd_open(pid)
        # Until it is what was asked for, it may not have been told yet.
        limit = time.monotonic() + 10
        while b"sleep" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < limit
            time.sleep(0.01)
        launcher.kill()
    ended, _, _ = select.select([descriptor], [], [], 10.0)
    os.close(descriptor)
    assert ended


def make_qemu(path: Path, *lines: str) -> Path:
    """Make a program at *path* that stands in for QEMU, and return it."""
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return path


PANICKED = "echo '[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs'"
HANGS = "exec sleep 60"


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        ((PANICKED,), accel.Trial.BOOTED),
        (("echo booting",), accel.Trial.FAILED),
        ((PANICKED, HANGS), accel.Trial.FAILED),
        (("echo no KVM >&2", "exit 1"), accel.Trial.REFUSED),
    ],
)
def test_kvm_is_judged_by_how_a_kernel_boots(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: tuple[str, ...],
    outcome: accel.Trial,
) -> None:
    monkeypatch.setattr(accel, "PROGRAM", str(make_qemu(tmp_path / "qemu", *lines)))
    # One that ends by itself has as long as it takes.
    timeout = 2.0 if HANGS in lines else 60.0
    assert accel.boots(tmp_path / "linux", timeout=timeout) is outcome


def test_a_qemu_that_there_is_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "PROGRAM", str(tmp_path / "nosuch"))
    assert accel.boots(tmp_path / "linux") is accel.Trial.REFUSED


def test_a_qemu_that_cannot_be_killed_is_left_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is held fast in the host's kernel. KVM is not tried again by such a host."""
    tried = tmp_path / "tried"
    program = make_qemu(tmp_path / "qemu", f"echo $$ >> {tried}", "exec sleep 20")
    monkeypatch.setattr(accel, "PROGRAM", str(program))
    monkeypatch.setattr(accel, "boots", functools.partial(accel.boots, timeout=3.0))
    monkeypatch.setattr(subprocess.Popen, "kill", lambda _process: None)
    begun = time.monotonic()
    try:
        assert accel._try_kvm(tmp_path / "linux") == accel.TCG
        assert time.monotonic() - begun < 15
    finally:
        pids = [int(line) for line in tried.read_text().split()]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert len(pids) == 1


# Tries KVM by what $PROGRAM names in place of QEMU.
TRYING = """
import os
from pathlib import Path
from linux_um import accel

accel.PROGRAM = os.environ["PROGRAM"]
accel.boots(Path("linux"), timeout=60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_qemu_on_trial_ends_with_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Whether that can do something about it or not."""
    said = tmp_path / "pid"
    program = make_qemu(tmp_path / "qemu", f"echo $$ > {said}.new", f"mv {said}.new {said}",
                        "exec sleep 60")  # fmt: skip
    monkeypatch.setenv("PROGRAM", str(program))
    monkeypatch.setenv("PYTHONPATH", str(repo_root() / "harness"))
    command = [sys.executable, "-c", TRYING]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as launcher:
        limit = time.monotonic() + 10
        while not said.exists():
            assert time.monotonic() < limit
            time.sleep(0.01)
        descriptor = os.pidfd_open(int(said.read_text()))
        launcher.send_signal(number)
    ended, _, _ = select.select([descriptor], [], [], 10.0)
    os.close(descriptor)
    assert ended


def show(command: list[str]) -> list[str]:
    """Return the words of the command that run_uml.sh shows."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_run_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are clean, latest follows, success leaves nothing, pruning spares the living."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    root = tmp_path / "runs"
    first = rundir.RunDir("a/b [c]")
    assert re.fullmatch(r"\d{8}-\d{6}-a-b-c-\d+\.\d+", first.path.name)
    first.close(keep=True)
    second = rundir.RunDir("second")
    assert (root / "latest").resolve() == second.path
    second.close(keep=False)
    assert not second.path.exists()
    assert (root / "latest").resolve() == first.path
    living = rundir.RunDir("living")
    for path in (first.path, living.path):
        (path / "swap").write_text("x")
        os.utime(path, (time.time() - 1000,) * 2)
    rundir.prune(root, 0)
    assert not first.path.exists()
    assert living.path.exists() and (living.path / "swap").exists()
    living.close(keep=False)


def test_a_dead_launchers_swap_file_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log stays."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    dead = rundir.RunDir("dead")
    (dead.path / "swap").write_text("x")
    fcntl.flock(dead._lock, fcntl.LOCK_UN)
    os.utime(dead.path, (time.time() - 1000,) * 2)
    rundir.prune(tmp_path / "runs", 10)
    assert not (dead.path / "swap").exists()
    assert dead.console.exists()
    dead.close(keep=False)


def test_a_file_of_tests_that_there_is_not_is_one_line(tmp_path: Path) -> None:
    """Before anything is built. The values of options are pytest's own affair."""
    tests = str(repo_root() / "harness" / "tests")
    for words in (
        ["/nosuch"], ["-x", "/nosuch"], ["--", "/nosuch"], ["test_nosuch.py::test_it"],
        [tests, f"{tests}/test_nosuch.py"],
    ):  # fmt: skip
        with pytest.raises(UsageError, match="there is no file .*nosuch"):
            check_tests(words)
    check_tests(["-k", "a/b", "--ignore", "x/y", "--ignore=x/y", "-q", f"{tests}/test_cow.py::one"])
    done = subprocess.run(
        [str(repo_root() / "linux-um"), "test", "/nosuch"], capture_output=True, text=True,
        env={**os.environ, "LINUX_UM_CACHE": str(tmp_path / "empty")}, check=False,
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr.startswith("linux-um: there is no file /nosuch; name one")
    assert len(done.stderr.splitlines()) == 1


def test_pytest_arguments_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parallel by default, not under a debugger; the user's words win."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    tests = str(repo_root() / "harness" / "tests")
    plain = pytest_command([])
    assert "-n" in plain and plain[-1] == tests
    assert any(word.startswith("--junitxml=") for word in plain)
    assert "-n" not in pytest_command(["--pdb"])
    assert pytest_command(["-n0"]).count("-n") == 0
    given = pytest_command(["-k", "swap", "--junitxml=x.xml"])
    assert [word for word in given if word.startswith("--junitxml")] == ["--junitxml=x.xml"]
    assert given[-1] == tests
    one = pytest_command([f"{tests}/test_unit_machine.py::test_sizes"])
    assert one[-1].endswith("::test_sizes") and tests not in one


# Reports of the form that kernel/kcsan/report.c prints. The first is of the kernel with
# itself; of the second KCSAN knows one side only.
TIMER_RACE = """\
==================================================================
BUG: KCSAN: data-race in __hrtimer_run_queues / hrtimer_active

write to 0xffff88801fc1d0b0 of 8 bytes by interrupt on cpu 0:
 __hrtimer_run_queues+0x1a2/0x4d0
 hrtimer_interrupt+0x1d6/0x3b0
 __sysvec_apic_timer_interrupt+0x5d/0x120
 sysvec_apic_timer_interrupt+0x6d/0x80
 asm_sysvec_apic_timer_interrupt+0x1a/0x20

read to 0xffff88801fc1d0b0 of 8 bytes by task 30 on cpu 1:
 hrtimer_active+0x8f/0xd0
 hrtimer_try_to_cancel+0x2c/0x150
 hrtimer_cancel+0x1d/0x40
 schedule_hrtimeout_range_clock+0x11c/0x170
 schedule_hrtimeout_range+0x15/0x20
 pksmd+0x2f3/0x310
 kthread+0x18a/0x1b0
 ret_from_fork+0x3c/0x50
 ret_from_fork_asm+0x1a/0x30

value changed: 0xffffc900001c7d40 -> 0x0000000000000000

Reported by Kernel Concurrency Sanitizer on:
CPU: 1 UID: 0 PID: 30 Comm: pksmd Not tainted 6.12.117-pksm-kcsan #1
==================================================================
"""
DEVICE_RACE = """\
==================================================================
BUG: KCSAN: data-race in virtqueue_get_buf_ctx+0x6c/0x3a0

race at unknown origin, with read to 0xffff888004d2a002 of 2 bytes by interrupt on cpu 0:
 virtqueue_get_buf_ctx+0x6c/0x3a0
 virtqueue_get_buf+0x1b/0x30
 req_done+0x5e/0x130
 vring_interrupt+0x9e/0x150

value changed: 0x04d1 -> 0x04d2

Reported by Kernel Concurrency Sanitizer on:
CPU: 0 UID: 0 PID: 0 Comm: swapper/0 Not tainted 6.12.117-pksm-kcsan #1
==================================================================
"""


def races_in(report: str) -> list[str]:
    """Return the titles of the reports that count, in a log with stamps."""
    log = "".join(f"[   20.783519] {line}\n" for line in report.splitlines())
    found = scan(f"{BOOTED}{log}[   20.790000] pksmd: later\n")
    assert {finding.kind for finding in found} <= {"KCSAN"}
    return [finding.text for finding in found]


def test_races_of_the_kernel_that_are_known_do_not_count() -> None:
    """Whichever of the two is named first, and whatever the compiler has made of it."""
    title = "__hrtimer_run_queues / hrtimer_active"
    for names in (
        title, "hrtimer_active / __hrtimer_run_queues",
        "__hrtimer_run_queues.isra.0 / hrtimer_active.constprop.0",
    ):  # fmt: skip
        assert races_in(TIMER_RACE.replace(title, names)) == []
    assert races_in(DEVICE_RACE) == []


@pytest.mark.parametrize(
    ("report", "old", "new"),
    [
        # A function of mm, into which a hook may have been inlined.
        (TIMER_RACE, "__hrtimer_run_queues", "do_anonymous_page"),
        # Two that are known, but not for racing with each other.
        (TIMER_RACE, "__hrtimer_run_queues", "pipe_release"),
        (TIMER_RACE, "__hrtimer_run_queues / hrtimer_active", "hrtimer_active / hrtimer_active"),
        # One of a pair, of which the other is not known; and one alone that is not in the list.
        (TIMER_RACE, "__hrtimer_run_queues / hrtimer_active", "hrtimer_active+0x8f/0xd0"),
        (DEVICE_RACE, "virtqueue_get_buf_ctx+0x6c/0x3a0", "wp_page_copy+0x6c/0x3a0"),
        (TIMER_RACE, "data-race in", "assert: race in"),
    ],
    ids=["a hook", "strangers", "itself", "one of a pair", "alone", "an assertion"],
)
def test_a_race_that_is_not_known_counts(report: str, old: str, new: str) -> None:
    report = report.replace(old, new, 1)
    assert races_in(report) == [line for line in report.splitlines() if "KCSAN: " in line]
    # A known one beside it changes nothing.
    assert len(races_in(TIMER_RACE + report + DEVICE_RACE)) == 1


@pytest.mark.parametrize(
    ("who", "counts"),
    [("pksm_scan", 1), ("pksm_do_round.constprop.0", 1), ("ksm_madvise", 1), ("max_cpu_store", 1),
     ("advisor_target_scan_time_show", 1), ("hrtimer_try_to_cancel", 0), ("kobj_attr_store", 0)],
)  # fmt: skip
def test_a_data_race_counts_when_the_engine_has_a_part_in_it(who: str, counts: int) -> None:
    """Also a known one, when it was the engine that has called one of the two."""
    assert len(races_in(TIMER_RACE.replace("hrtimer_try_to_cancel", who))) == counts


def test_the_list_of_races_has_none_of_the_engine() -> None:
    known = races.parse(races.list_path().read_text())
    assert ("__hrtimer_run_queues", "hrtimer_active") in known
    for pair, reason in known.items():
        assert not of_the_engine(set(pair)), pair
        assert len(reason.split()) > 4, f"{pair}: say what is accessed, and why that does no harm"


@pytest.mark.parametrize(
    "text", ["a / b", "a / b |", "a / b / c | x y", "a, b | x y", "| x y", "a / b | x\nb / a | y"]
)
def test_a_line_of_that_list_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(races.RaceError, match="line [12]: "):
        races.parse(text)

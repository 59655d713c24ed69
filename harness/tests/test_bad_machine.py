# SPDX-License-Identifier: GPL-2.0-only
"""A guest that ends, hangs, panics or talks nonsense at each stage: one line, the right status.

What no real kernel does when it is told to is done by a script in place of one, which
says what a kernel says up to some stage, and then what it is asked for.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from linux_um.guest import boot_guest
from linux_um.outcome import GuestGone, LineError
from linux_um.paths import repo_root
from linux_um.protocol import PROTOCOL_VERSION, Frame, ToHost
from runlab import LIMIT, launch, run_directory, runs as runs

# Runs the launcher with the program $KERNEL as the kernel of its guests.
DRIVER = """
import os, sys
from pathlib import Path
from linux_um import build, cli, guest

linux = Path(os.environ["KERNEL"])
image = build.Image(linux, linux, "0", "6.12", "fast", "0", "0", linux.parent, linux)
guest.finished_image = lambda *_, **__: image
guest._initrd = lambda *_: linux
sys.exit(cli.main(sys.argv[1:]))
"""
HELLO = Frame(ToHost.HELLO, 0, struct.pack("<I", PROTOCOL_VERSION) + b"6.12 fake").encode()
_OCTAL = "".join(f"\\{byte:03o}" for byte in HELLO)
# What is said up to each stage, on the log and on the agent's line.
STAGES = {
    "nothing": "",
    "kernel": "echo '[    0.000000] Linux version 6.12 (fake)'",
    "init": "echo '[    0.000000] Linux version 6.12 (fake)'\n"
    "echo '[    0.100000] Run /init as init process'",
    "hello": "echo '[    0.000000] Linux version 6.12 (fake)'\n"
    f"printf '{_OCTAL}' >&$line",
}
# And what happens then.
ENDS = {
    "ends": "exit 0",
    "fails": "exit 3",
    "dies": "kill -KILL $$",
    "panics": "echo '[    0.200000] Kernel panic - not syncing: a fake'\nkill -ABRT $$",
    "starves": "echo '[    0.200000] Bus error - the host /dev/shm or /tmp mount likely just ran "
    "out of space'\necho '[    0.200000] Kernel panic - not syncing: Kernel mode signal 7'\n"
    "kill -ABRT $$",
    "unmapped": "echo '[    0.200000] UML ran out of memory on the host side! This can happen'\n"
    "echo '[    0.200000] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0b'\n"
    "kill -ABRT $$",
    "hangs": "exec sleep 1000",
    "garbage": "printf 'garb\\033[2J\\377age\\n' >&$line\nexec sleep 1000",
    "noise": "printf '\\033[2J\\377noise\\n'\nexit 3",
}
SCRIPT = """\
#!/bin/bash
for word; do
    case $word in
    ssl0=fd:*) line=${word##*fd:} ;;
    esac
done
"""
# Of each stage: the status, and what the line has, for each end.
STARVED = (125, "guest memory directory: ")
UNMAPPED = (125, "vm.max_map_count: a process in the guest takes more mappings than the ")
OUT_OF_STEP = r"the agent's line is out of step: not a frame: b'garb\x1b[2J\xffage\n'"
BEFORE = {
    "ends": (126, "the guest did not boot: it ended with exit status 0"),
    "fails": (126, "the guest did not boot: it ended with exit status 3"),
    "dies": (126, "the guest did not boot: it ended with signal 9"),
    "panics": (126, "the guest did not boot: Kernel panic - not syncing: a fake"),
    "starves": STARVED,
    "unmapped": UNMAPPED,
    "hangs": (126, "the guest did not boot within 5 s"),
    "garbage": (126, OUT_OF_STEP),
    "noise": (126, "the guest did not boot: it ended with exit status 3"),
}
EXPECTED = {
    "nothing": {
        "ends": (125, "the guest's kernel ended (exit status 0) before its first word"),
        "fails": (125, "the guest's kernel ended (exit status 3) before its first word"),
        "dies": (125, "the guest's kernel ended (signal 9) before its first word"),
        "hangs": (126, "the guest did not boot within 5 s"),
        "garbage": (126, OUT_OF_STEP),
        "noise": (125, "User-Mode Linux cannot start here: ?[2J\ufffdnoise"),
    },
    "kernel": BEFORE,
    "init": BEFORE,
    "hello": {
        "ends": (71, "the guest powered off (exit status 0) before the command ended"),
        "fails": (71, "the guest powered off (exit status 3) before the command ended"),
        "dies": (71, "the guest powered off (signal 9) before the command ended"),
        "panics": (134, "the guest's kernel panicked: Kernel panic - not syncing: a fake"),
        "starves": STARVED,
        "unmapped": UNMAPPED,
        "hangs": (124, "'true' did not end within 5 s; its kernel does not answer"),
        "garbage": (71, OUT_OF_STEP),
        "noise": (71, "the guest powered off (exit status 3) before the command ended"),
    },
}  # fmt: skip


@pytest.mark.um_only
@pytest.mark.parametrize(
    ("stage", "end"), [(stage, end) for stage, ends in EXPECTED.items() for end in ends]
)
def test_each_end_at_each_stage_is_one_line(
    runs: Path, tmp_path: Path, stage: str, end: str
) -> None:
    """The fixture looks for what is left."""
    kernel = tmp_path / "linux"
    kernel.write_text(f"{SCRIPT}{STAGES[stage]}\n{ENDS[end]}\n")
    kernel.chmod(0o755)
    # Whatever does not hang may take its time on a busy host.
    limit = ["--timeout", "5"] if end == "hangs" else []
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "run", "--arch", "um", *limit, "--", "true"],
        env={**os.environ, "KERNEL": str(kernel), "PYTHONPATH": str(repo_root() / "harness")},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    status, said = EXPECTED[stage][end]
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith(f"linux-um: {said}"), last
    assert done.returncode == status
    assert b"Traceback" not in done.stderr
    # Nothing is lost: the log is where it is said to be.
    log = (run_directory(done.stderr) / "console.log").read_bytes()
    assert (b"Linux version" in log) == (stage != "nothing")
    assert (b"\xffnoise" in log) == (end == "noise")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("root=/dev/nosuch rootwait rdinit=/none", "the guest did not boot within "),
        ("rdinit=/bin/true", "the guest did not boot: Kernel panic - not syncing: Attempted to "),
        ("rdinit=/bin/poweroff -- -f", "the guest did not boot: it ended with exit status 0"),
        ('rdinit=/bin/sh -- -c "sleep 1000"', "the guest did not boot within "),
        ('rdinit=/bin/sh -- -c "mount -t devtmpfs d /dev; echo garbage >/dev/ttyS0; sleep 99"',
         "the agent's line is out of step: not a frame: b'g"),
    ],
    ids=["hangs before init", "init ends", "init powers off", "init hangs", "init says garbage"],
)  # fmt: skip
@pytest.mark.um_only
def test_a_kernel_without_the_agent_did_not_boot(runs: Path, words: str, said: str) -> None:
    """A real one, with another init than its own, or none."""
    limit = ["--timeout", "10"] if said.endswith("within ") else []
    done = launch("run", *limit, "--append", words, "--", "true")
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith(f"linux-um: {said}"), last
    assert done.returncode == 126
    assert (run_directory(done.stderr) / "console.log").exists()


@pytest.mark.um_only
@pytest.mark.parametrize("script", ["echo garbage >/dev/ttyS0; sleep 100", "yes >/dev/ttyS0"])
def test_garbage_on_the_agents_line_is_said(runs: Path, script: str) -> None:
    """It is the failure, not how the guest is ended then."""
    done = launch("run", "--", "sh", "-c", script)
    last = done.stderr.decode().splitlines()[-1]
    assert re.match(r"linux-um: the agent's line is out of step: not a frame: b'[gy]", last)
    assert done.returncode == 71
    assert b"outcome: garbage on the agent's line\n" in done.stderr


def test_a_guest_that_has_gone_when_nobody_looks_is_an_error() -> None:
    """Whoever leaves it then has not seen what became of it."""
    with pytest.raises(GuestGone, match="powered off .signal 9."):
        with boot_guest(name="gone") as guest:
            os.kill(guest.pid, 9)
            guest._machine.wait(LIMIT)


@pytest.mark.um_only
def test_garbage_that_nobody_waited_for_is_an_error() -> None:
    with pytest.raises(LineError, match="out of step"):
        with boot_guest(name="garbage", time_travel=False) as guest:
            guest.start(["sh", "-c", "echo garbage >/dev/ttyS0"])
            guest._reader.join(LIMIT)


def test_a_guest_that_has_powered_down_may_be_left() -> None:
    """Its log says that all went well."""
    with boot_guest(name="down", time_travel=False) as guest:
        guest.start(["poweroff", "-f"])
        assert guest._machine.wait(LIMIT) is not None

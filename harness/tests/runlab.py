# SPDX-License-Identifier: GPL-2.0-only
"""The launcher as its user has it, and a fixture that finds what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from linux_um import build
from linux_um.options import DEFAULT_PROFILE, default_arch
from linux_um.paths import repo_root, runs_root
from linux_um.source import default_kernel
from linux_um.term import Term

LAUNCHER = [str(repo_root() / "linux-um")]
# Wall-clock seconds for one run of the launcher, on a busy host.
LIMIT = 180.0


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the launcher a TMPDIR of its own and fail when something is left behind.

    Yields that directory. Guests are found by their environment's mark. The kernel that the
    launcher takes where nobody says which is there: to build it takes longer than a guest may.
    """
    profile = os.environ.get("LINUX_UM_PROFILE", DEFAULT_PROFILE)
    build.ensure_image(profile, default_kernel(), term=Term(quiet=True), arch=default_arch())
    memory = tmp_path / "memory"
    memory.mkdir()
    mark = f"LINUX_UM_TEST_MARK={tmp_path}"
    monkeypatch.setenv("TMPDIR", str(memory))
    monkeypatch.setenv(*mark.split("=", 1))
    yield memory
    limit = time.monotonic() + 20
    while (left := marked(mark)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert left == [], "processes are left behind"
    assert os.listdir(memory) == [], "files are left in TMPDIR"


def marked(mark: str) -> list[str]:
    """Return the processes other than this one whose environment has *mark*."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if mark.encode() in environment.split(b"\0") and state != "Z":
            found.append(f"{entry.name} {state} {command[:100].decode(errors='replace')}")
    return found


def launch(
    *arguments: str, input: bytes | None = b"", limit: float = LIMIT
) -> subprocess.CompletedProcess[bytes]:
    """Run the launcher to its end."""
    return subprocess.run(
        [*LAUNCHER, *arguments], input=input, capture_output=True, timeout=limit, check=False
    )


def end_terminal(child: Any) -> None:
    """Hang up on a child of pexpect's, and wait until it has ended.

    close() kills it soon, and does not wait long enough for the end of what it has killed.
    """
    if child.closed:
        return
    child.kill(signal.SIGHUP)
    child.expect(pytest.importorskip("pexpect").EOF, timeout=LIMIT)
    # The end of what has closed its terminal is waited for.
    child.close()


def run_directory(stderr: bytes) -> Path:
    """Return the run directory that a failure's report names."""
    found = re.search(rb"^run directory: (.*)$", stderr, re.MULTILINE)
    assert found is not None, stderr[-2000:]
    return Path(found[1].decode())


def run_of(launcher: subprocess.Popen[bytes]) -> Path:
    """Return the run directory of a launcher.

    An earlier run that was kept may be of a launcher with the same number, since they come
    again. Names begin with the time.
    """
    found = [path for path in runs_root().glob(f"*-{launcher.pid}.*") if path.is_dir()]
    return max(found, key=lambda path: path.name)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start the launcher in a session of its own, its output being ours to read."""
    return subprocess.Popen(
        [*LAUNCHER, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )

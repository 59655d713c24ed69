# SPDX-License-Identifier: GPL-2.0-only
"""A host whose directories are full, too small, read-only or noexec: one line, nothing left.

The directories are mounts of a namespace that ends with the launcher: nobody else sees
them, and none is left.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest
from linux_um import patches, paths
from linux_um.errors import EXIT_LAUNCHER, PatchError
from linux_um.term import Term
from runlab import LAUNCHER, LIMIT, runs as runs

ROOM = "make room there, or set LINUX_UM_CACHE to a directory of your own with 6 GB of free space"
# A cache that has what the real one has, but a place of its own for runs.
CACHE = """\
for name in "$REAL"/*; do ln -s "$name" "$1"; done
rm -f "$1/runs"
mkdir "$1/runs"
"""
FULL = 'dd if=/dev/zero of="$1/fill" bs=4k 2>/dev/null || true\n'
NO_INODES = 'i=0; while touch "$1/i$i" 2>/dev/null; do i=$((i + 1)); done\n'


def mounted(
    variable: str, place: Path, options: str, setup: str, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run the launcher where *place*, which *variable* names, is a tmpfs.

    It is made ready by *setup*, which has it as $1, and the real cache as $REAL. After the
    output there is what is left in the directory of the runs, if there is one.
    """
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no directory can be mounted here")
    place.mkdir(exist_ok=True)
    script = (
        f'set -e; mount -t tmpfs -o {options} none "$1"; {setup}\nshift; status=0\n'
        f'"$@" || status=$?; ls "{place}/runs" 2>/dev/null || true; exit $status'
    )
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(place), *LAUNCHER, *words],
        env={**os.environ, "REAL": str(paths.cache_root()), variable: str(place)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


@pytest.mark.um_only
@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ("noexec,size=1g", "is mounted noexec; "),
        ("size=64m", "has 64 MiB free, the guest needs 256 MiB; "),
        ("ro", "is not writable; "),
    ],
)
def test_a_directory_that_memory_cannot_lie_in_is_named(
    runs: Path, tmp_path: Path, options: str, finding: str
) -> None:
    """With what to do. (No other machine's memory is a file.)"""
    place = tmp_path / "mount"
    done = mounted("TMPDIR", place, options, "", "run", "--", "true")
    begin = f"linux-um: guest memory directory: {place} {finding}set TMPDIR to a directory that "
    assert done.stderr.startswith(begin), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == EXIT_LAUNCHER


@pytest.mark.um_only
@pytest.mark.parametrize(
    ("options", "setup", "said"),
    [
        ("size=1m", CACHE + FULL,
         f"cannot write {{runs}}*/command.txt: No space left on device; {ROOM}"),
        ("size=1m,nr_inodes=100", CACHE + NO_INODES,
         f"cannot make a run directory: {{runs}}*: No space left on device; {ROOM}"),
        ("size=1m", CACHE + 'mount -o remount,ro "$1"',
         "cannot make a run directory: {runs}*: Read-only file system; set LINUX_UM_CACHE to a "
         "directory of your own"),
        ("size=1m", CACHE + 'rm "$1/rootfs" "$1/lock"\n' + FULL,
         f"cannot make the guest's file system: {{rootfs}}*: No space left on device; {ROOM}"),
    ],
    ids=["full", "no inodes", "read-only", "full for the file system"],
)  # fmt: skip
def test_a_cache_that_takes_nothing_is_named(
    runs: Path, tmp_path: Path, options: str, setup: str, said: str
) -> None:
    """At each stage of starting a run; no run directory is left half made."""
    place = tmp_path / "mount"
    done = mounted("LINUX_UM_CACHE", place, options, setup, "run", "--", "true")
    begin, end = said.format(runs=f"{place}/runs/", rootfs=f"{place}/rootfs/.new-").split("*")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"linux-um: {begin}") and last.endswith(end), done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith("linux-um: ") for line in done.stderr.splitlines())
    assert done.returncode == EXIT_LAUNCHER
    assert done.stdout == ""


@pytest.mark.um_only
def test_a_log_that_is_lost_is_no_success(runs: Path, tmp_path: Path) -> None:
    """The guest fills the disk that its log lies on: nobody can say that it went well."""
    place = tmp_path / "mount"
    fill = "dd if=/dev/zero of=/share/fill bs=4k 2>/dev/null; echo out; "
    # More than there is room for in the log's last page.
    fill += "for i in 1 2 3 4 5; do echo m >/proc/sysrq-trigger; done"
    words = ["run", "--share", str(place), "--", "sh", "-c", fill]
    done = mounted("LINUX_UM_CACHE", place, "size=1m", CACHE, *words)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("linux-um: the kernel's log is lost: "), done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == EXIT_LAUNCHER
    assert done.stdout.startswith("out\n")


def test_a_work_tree_that_takes_nothing_is_made_anew_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, tree, quiet = tmp_path / "source", tmp_path / "tree", Term(quiet=True)
    (source / "mm").mkdir(parents=True)
    engine = patches.Snapshot((), (), {"mm/pksm/a.c": b"int a;\n"})
    patches.synchronise(source, "1", tree, patches.Snapshot((), (), {}), term=quiet)

    def refuse(_path: Path, _data: bytes) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", refuse)
        with pytest.raises(PatchError) as caught:
            patches.synchronise(source, "1", tree, engine, term=quiet)
    assert caught.value.line() == f"cannot write the work tree {tree}: No space left on device; {ROOM}"
    assert not list(tree.rglob("*.linux-um-new"))
    assert patches.synchronise(source, "1", tree, engine, term=quiet) == ["mm/pksm/a.c"]

# SPDX-License-Identifier: GPL-2.0-only
"""One directory for each guest: its console, its result, the command to repeat it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

from .errors import HostError, cannot
from .paths import ensure_dir, runs_root

# Directories of failed runs that are kept.
KEEP = 40
# A directory without a lock file is left alone for so long.
YOUNG_SECONDS = 60.0
LATEST = "latest"
# What a run directory has only while its guest runs.
PASSING = ("uml", "swap", "watch", "qmp", "serial")


class RunDir:
    """The directory of one guest, locked as long as its launcher lives."""

    def __init__(self, name: str) -> None:
        """Create it. Raises HostError when the cache cannot be written."""
        root = ensure_dir(runs_root())
        try:
            prune(root, KEEP)
            self.path = _new_directory(root, name)
        except OSError as error:
            raise cannot(error, "make a run directory", HostError) from error
        self.console = self.path / "console.log"
        self._lock = -1
        try:
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.console.touch()
            _point_latest(root, self.path.name)
        except OSError as error:
            _remove(self.path)
            if self._lock >= 0:
                os.close(self._lock)
            raise cannot(error, "make a run directory", HostError) from error

    @property
    def mconsole(self) -> Path:
        """The socket of the management console."""
        return self.path / "uml" / "guest" / "mconsole"

    @property
    def watch(self) -> Path:
        """The socket for onlookers, see watch.py."""
        return self.path / "watch"

    def write(self, name: str, text: str) -> None:
        """Write a small text file into the directory. Raises HostError when that fails."""
        path = self.path / name
        try:
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise cannot(error, f"write {path}", HostError) from error

    def write_json(self, name: str, value: object) -> None:
        """Write *value* as JSON into the directory. Raises HostError when that fails."""
        self.write(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def read_console(self) -> str:
        """Return the console log as far as it has got."""
        return self.console.read_text(encoding="utf-8", errors="replace")

    def close(self, *, keep: bool) -> None:
        """Let go of the directory, and remove it unless it is to be kept."""
        if self._lock < 0:
            return
        for name in PASSING:
            _remove(self.path / name)
        if keep:
            (self.path / "lock").unlink(missing_ok=True)
        else:
            _remove(self.path)
        os.close(self._lock)
        self._lock = -1
        if not keep:
            _repair_latest(runs_root())


def _new_directory(root: Path, name: str) -> Path:
    """Make a directory with a name of its own below *root*. Raises OSError."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "guest"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in itertools.count():
        path = root / f"{stamp}-{clean}-{os.getpid()}.{number}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    return path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _point_latest(root: Path, name: str) -> None:
    new = root / f".{LATEST}.{os.getpid()}.{threading.get_ident()}"
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    os.replace(new, root / LATEST)


def _runs(root: Path) -> list[Path]:
    """Return the run directories, oldest first."""
    found = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: path.name)


def _repair_latest(root: Path) -> None:
    """Let ``latest`` point at the newest run there is, when its own is gone."""
    link = root / LATEST
    if not link.is_symlink() or link.exists():
        return
    kept = _runs(root)
    if kept:
        _point_latest(root, kept[-1].name)
    else:
        link.unlink(missing_ok=True)


def _alive(path: Path) -> bool:
    """Return whether the launcher of a run directory still holds its lock."""
    try:
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def prune(root: Path, keep: int) -> None:
    """Tidy up after launchers that have ended without being able to.

    All but the newest *keep* of their run directories go; in those that stay,
    sockets and swap files go.
    """
    runs = _runs(root)
    for age, path in enumerate(reversed(runs)):
        if not _young(path) and not _alive(path):
            for part in (path,) if age >= keep else [path / name for name in PASSING]:
                _remove(part)


def _young(path: Path) -> bool:
    """Return whether a directory may be one that is just being made, lock file and all."""
    try:
        return time.time() - path.stat().st_mtime < YOUNG_SECONDS
    except OSError:
        return True

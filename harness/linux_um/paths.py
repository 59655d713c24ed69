# SPDX-License-Identifier: GPL-2.0-only
"""Where things lie: the repository, the cache, and the locks on the cache."""

from __future__ import annotations

import fcntl
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import HostError, cannot
from .term import Term


@functools.cache
def repo_root() -> Path:
    """Return the directory that holds ``linux-um``."""
    return Path(__file__).resolve().parents[2]


def cache_root() -> Path:
    """Return the cache: ``$LINUX_UM_CACHE``, or ``linux-um`` in the user's cache directory."""
    own = os.environ.get("LINUX_UM_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base).absolute() / "linux-um"


def ensure_dir(path: Path) -> Path:
    """Create *path* with its parents and return it.

    Raises HostError when that is not possible.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot(error, f"create {path}", HostError) from error
    return path


def patches_dir(series: str) -> Path:
    """Return the directory of the hook patches for a kernel series such as ``6.12``."""
    return repo_root() / "linux-patches" / series


def known_series() -> list[str]:
    """Return the kernel series that there are patches for, the oldest first."""
    names = [path.name for path in patches_dir("").iterdir() if path.is_dir()]
    return sorted(names, key=lambda name: [int(number) for number in name.split(".")])


def overlay_dir() -> Path:
    """Return the engine, laid out as it lies in a kernel tree."""
    return repo_root() / "pksm"


def config_dir() -> Path:
    """Return the directory of the configuration fragments."""
    return repo_root() / "um-config"


def source_dir(key: str) -> Path:
    """Return where the pristine kernel source named *key* is unpacked."""
    return cache_root() / "src" / key


def tree_dir(key: str) -> Path:
    """Return the work tree (pristine source, patches, engine) for *key*."""
    return cache_root() / "tree" / key


def build_dir(key: str, profile: str, arch: str = "um") -> Path:
    """Return the kernel build directory (``O=``) of *profile* for the machine *arch*."""
    return cache_root() / "build" / key / (profile if arch == "um" else f"{profile}-{arch}")


def image_root() -> Path:
    """Return the directory of the finished kernels."""
    return cache_root() / "image"


def rootfs_root() -> Path:
    """Return the directory of the finished initramfs images."""
    return cache_root() / "rootfs"


def runs_root() -> Path:
    """Return the directory of the guests' run directories."""
    return cache_root() / "runs"


@contextmanager
def lock(name: str, *, term: Term | None = None, blocking: bool = True) -> Iterator[bool]:
    """Hold the cache's lock *name* for the length of the block.

    Yields True when the lock is held. With ``blocking=False`` yields False at
    once when another process holds it. Tells *term* when it has to wait. Raises
    HostError when the cache cannot be written.
    """
    directory = ensure_dir(cache_root() / "lock")
    try:
        descriptor = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise cannot(error, "lock the cache", HostError) from error
    held = False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            if blocking:
                if term is not None:
                    term.info(f"waiting for another linux-um that holds the {name} lock")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                held = True
        yield held
    finally:
        os.close(descriptor)

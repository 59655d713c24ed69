# SPDX-License-Identifier: GPL-2.0-only
"""The guest's initramfs: built by rootfs/Makefile, kept by the hash of what it is made of."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import intact, source
from .errors import RootfsError, cannot
from .paths import ensure_dir, lock, repo_root, rootfs_root
from .term import Term

ARCHIVE = "initramfs.cpio"
# The seal of the archive, see intact.py.
SEAL = "seal.json"
# What making one takes at most.
NEEDED_BYTES = 32 << 20
# Finished file systems that are kept.
KEEP = 8
_SKIP = {"out", ".obj", "__pycache__"}


def _recipe() -> Path:
    return repo_root() / "rootfs"


def _busybox() -> Path:
    """Return the static busybox. Raises RootfsError when there is none."""
    for name in ("/bin/busybox", "/usr/bin/busybox"):
        path = Path(name)
        if path.exists() and b"ld-linux" not in path.read_bytes()[:4096]:
            return path
    raise RootfsError("there is no static busybox", "run: apt-get install busybox-static")


def _compiler() -> str:
    compiler = os.environ.get("CC", "gcc")
    try:
        done = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RootfsError(f"cannot run {compiler}: {error}", "run: apt-get install gcc") from error
    return done.stdout.splitlines()[0]


def _inputs() -> list[Path]:
    """Return the files of the recipe, sorted."""
    return sorted(
        path
        for path in _recipe().rglob("*")
        if path.is_file() and not _SKIP.intersection(path.relative_to(_recipe()).parts)
    )


def rootfs_key() -> str:
    """Return the hash that names the file system made of what lies in the tree now."""
    digest = hashlib.sha256(_compiler().encode())
    for path in [_busybox(), *_inputs()]:
        name = path.relative_to(_recipe()) if path.is_relative_to(_recipe()) else path.name
        content = path.read_bytes()
        digest.update(f"\0{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def ensure_rootfs(*, term: Term, kernel: str = "6.12") -> Path:
    """Return the initramfs of this tree, made now if it is not there yet.

    Needs gcc, static busybox and the kernel's source (for gen_init_cpio), but
    not root. Raises RootfsError or SourceError.
    """
    target = rootfs_root() / rootfs_key()
    if _defect(target):
        generator = _generator(kernel, term)
        with lock("rootfs", term=term):
            if wrong := _defect(target):
                if target.exists():
                    term.warn(f"{wrong}; the guest's file system is built anew")
                _build(target, generator, term)
                _prune()
    with contextlib.suppress(OSError):
        os.utime(target)
    return target / ARCHIVE


def _defect(target: Path) -> str:
    """Return what is wrong with the archive of a file system, or nothing.

    One that was made before there were seals has none.
    """
    try:
        noted = json.loads((target / SEAL).read_text())
    except FileNotFoundError:
        noted = None
    except (OSError, ValueError):
        return f"{target / SEAL} is damaged"
    if noted is not None and not isinstance(noted, dict):
        return f"{target / SEAL} is damaged"
    return intact.defect(target / ARCHIVE, noted)


def _generator(kernel: str, term: Term) -> Path:
    """Return the source of gen_init_cpio, from the unpacked kernel."""
    found = source.identify(kernel, term=term)
    if found.directory.is_dir():
        tree = found.directory
    else:
        with lock("build", term=term):
            tree = source.obtain(kernel, term=term)
    generator = tree / "usr" / "gen_init_cpio.c"
    if not generator.exists():
        raise RootfsError(f"{generator} is missing", "run: ./linux-um clean --all")
    return generator


def _build(target: Path, generator: Path, term: Term) -> None:
    ensure_dir(target.parent)
    with term.step("building the guest's file system"):
        try:
            work = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        except OSError as error:
            raise cannot(error, "make the guest's file system", RootfsError) from error
        try:
            work.chmod(0o755)
            command = [
                "make",
                "-C",
                str(_recipe()),
                f"OUT={work}",
                f"GEN_INIT_CPIO_C={generator}",
                f"BUSYBOX={_busybox()}",
                f"CC={os.environ.get('CC', 'gcc')}",
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=_environment()
            )
            if done.returncode != 0:
                # Not every tool says so, or at all.
                if shutil.disk_usage(work).free < NEEDED_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work))
                errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
                first = errors[0] if errors else (done.stderr.strip() or "make failed")
                raise RootfsError(
                    f"the guest's file system does not build: {first}",
                    "run: make -C rootfs, or mend the source file",
                )
            if wrong := intact.defect(work / ARCHIVE):
                raise RootfsError(f"make left no file system: {wrong}", "run: make -C rootfs")
            (work / SEAL).write_text(json.dumps(intact.seal(work / ARCHIVE)) + "\n")
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
        except OSError as error:
            raise cannot(error, "make the guest's file system", RootfsError) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _environment() -> dict[str, str]:
    """Return the environment of the build, without an outer make's variables."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "OUT", "CFLAGS", "LDFLAGS")
    }


def _prune() -> None:
    found = [path for path in rootfs_root().iterdir() if (path / ARCHIVE).exists()]
    found.sort(key=lambda path: path.stat().st_mtime)
    for path in found[:-KEEP]:
        shutil.rmtree(path, ignore_errors=True)

# SPDX-License-Identifier: GPL-2.0-only
"""A kernel tree of the user's own: read, never written.

The cache holds a copy without version control and build products. The copy
is brought up to date in place: only files that changed are copied, with new
times, so that make rebuilds just what depends on them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .errors import SourceError
from .term import Term

BUILD_SUFFIXES = (
    ".o", ".ko", ".a", ".cmd", ".mod", ".mod.c", ".order", ".lex.c", ".tab.c", ".tab.h",
    ".dtb", ".dtbo", ".symtypes", ".gcno", ".gcda", ".rej", ".orig", ".pyc", ".s", ".i", ".lst",
)  # fmt: skip
BUILD_FILES = frozenset(
    {
        ".config", ".config.old", ".version", "Module.symvers", "System.map", "vmlinux", "linux",
        "vmlinux.unstripped", "vmlinux.lds", "cscope.out", "tags", "TAGS",
    }
)  # fmt: skip
SKIPPED_DIRECTORIES = re.compile(
    r"(.*/)?(\.git|__pycache__|\.tmp_versions)|include/(config|generated)"
    r"|arch/[^/]+/include/generated"
)
STAMP = ".linux-um-listing"
# Names that look like build products and are in the kernel's own tree.
SHIPPED = re.compile(r"(_shipped|tools/.*\.lds|lib/vdso/.*|.*/vmlinux\.lds\.S)$")


def kernel_version(directory: Path) -> str:
    """Return the version that the tree's Makefile states.

    Raises SourceError when *directory* is no kernel tree.
    """
    try:
        text = (directory / "Makefile").read_text()
    except OSError as error:
        raise SourceError(
            f"KERNEL_SRC={directory} is no kernel tree: {error.strerror}", "correct the path"
        ) from error
    parts = [
        re.search(rf"^{name} *= *(\d+)$", text, re.MULTILINE)
        for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL")
    ]
    if None in parts:
        raise SourceError(
            f"KERNEL_SRC={directory} is no kernel tree: its Makefile states no version",
            "give the top directory of a kernel source",
        )
    return ".".join(part.group(1) for part in parts if part is not None)


def is_source(relative: str) -> bool:
    """Say whether a file of a kernel tree is source rather than a product of a build."""
    name = relative.rsplit("/", 1)[-1]
    if SHIPPED.search(relative):
        return True
    if name in BUILD_FILES and not relative.startswith(("tools/", "Documentation/")):
        return False
    if name.endswith(BUILD_SUFFIXES):
        return False
    return not (name.startswith(".tmp_") or name == STAMP)


def walk(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the relative name and status of every source file or link, in a fixed order.

    A git checkout says itself what is source; elsewhere names decide.
    """
    names = _git_names(directory)
    if names is None:
        yield from _walk_by_name(directory)
        return
    for relative in names:
        try:
            status = os.lstat(directory / relative)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(status.st_mode):
            yield relative, status


def _git_names(directory: Path) -> list[str] | None:
    """Return the tracked and the not ignored files, or None when git cannot tell."""
    if not (directory / ".git").exists() or shutil.which("git") is None:
        return None
    listing = subprocess.run(
        ["git", "-C", str(directory), "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listing.returncode != 0:
        return None
    names = {os.fsdecode(name) for name in listing.stdout.split(b"\0") if name}
    return sorted(names)


def _walk_by_name(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            entries = sorted(os.scandir(directory / prefix), key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(
                f"cannot read {directory / prefix}: {error.strerror}", "make it readable"
            ) from error
        for entry in entries:
            relative = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if SKIPPED_DIRECTORIES.fullmatch(relative) is None:
                    pending.append(relative + "/")
            elif is_source(relative) and (entry.is_file() or entry.is_symlink()):
                yield relative, entry.stat(follow_symlinks=False)


def listing_hash(directory: Path) -> str:
    """Return a hash of all names, sizes, modes and times: what changes when a file is edited."""
    digest = hashlib.sha256()
    for relative, status in walk(directory):
        line = f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_mode}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def synchronise(origin: Path, copy: Path, content: str, *, term: Term) -> None:
    """Make *copy* hold the source files of *origin*, touching only what differs.

    *content* is the identity that the result will have. Raises SourceError.
    """
    stamp = copy.with_name(copy.name + STAMP)
    known = _read_stamp(stamp) if copy.is_dir() else _Stamp("", {})
    if known.content == content:
        return
    paths.ensure_dir(copy)
    stamp.unlink(missing_ok=True)
    with term.step(f"copying {origin}") as step:
        wanted = {
            relative: (status.st_size, status.st_mtime_ns, status.st_mode)
            for relative, status in walk(origin)
        }
        for relative in [name for name, _ in walk(copy) if name not in wanted]:
            (copy / relative).unlink()
        for count, (relative, facts) in enumerate(wanted.items()):
            if count % 1000 == 0:
                step.update(f"{count} of {len(wanted)} files")
            if known.files.get(relative) != facts or not os.path.lexists(copy / relative):
                _copy(origin / relative, copy / relative)
    stamp.write_text(json.dumps({"content": content, "files": wanted}))


@dataclass(frozen=True)
class _Stamp:
    """What a copy was made from: an identity, and per file its size, time and mode."""

    content: str
    files: dict[str, tuple[int, int, int]]


def _read_stamp(path: Path) -> _Stamp:
    """Return the stamp in *path*, or an empty one when there is none that can be read."""
    try:
        data = json.loads(path.read_text())
        files = {name: (int(a), int(b), int(c)) for name, (a, b, c) in data["files"].items()}
        return _Stamp(str(data["content"]), files)
    except (OSError, ValueError, KeyError, TypeError):
        return _Stamp("", {})


def _copy(origin: Path, copy: Path) -> None:
    """Replace *copy* by the contents and mode of *origin*, with the present time."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        temporary = copy.with_name(copy.name + ".linux-um-new")
        temporary.unlink(missing_ok=True)
        if origin.is_symlink():
            temporary.symlink_to(os.readlink(origin))
        else:
            shutil.copyfile(origin, temporary)
            temporary.chmod(origin.stat().st_mode & 0o777 | 0o200)
        temporary.replace(copy)
    except OSError as error:
        raise SourceError(
            f"cannot copy {origin}: {error.strerror}", "see the free space of the cache"
        ) from error

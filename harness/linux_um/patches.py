# SPDX-License-Identifier: GPL-2.0-only
"""The hook patches and the engine, and the work tree that they make.

``linux-patches/SERIES/series`` names the patches in their order; the line
``pksm/`` stands where the commits of the engine belong, and ``pksm/NAME`` where
that one of them belongs (see export.py). The work tree is the pristine source, the patches, and ``pksm/`` laid over it. It
is brought up to date in place: a file is written only when its contents
change, so that make rebuilds only what an edit calls for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .errors import PatchError, cannot
from .term import Term

ENGINE_MARK = "pksm/"
STATE_SUFFIX = ".state.json"
IGNORED_IN_OVERLAY = re.compile(r"(^|/)(\.|__pycache__/)|(~|\.orig|\.rej|\.o|\.cmd|\.pyc)$")


@dataclass(frozen=True)
class Patch:
    """One patch file: its name in the series and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Snapshot:
    """The patches and the engine as they were at one moment.

    ``placed`` are the commits of the engine that have a place of their own: how
    many of the patches ``after`` come before it, and its name.
    """

    before: tuple[Patch, ...]
    after: tuple[Patch, ...]
    overlay: dict[str, bytes]
    placed: tuple[tuple[int, str], ...] = ()

    @property
    def patches(self) -> tuple[Patch, ...]:
        """All hook patches in their order."""
        return self.before + self.after

    @property
    def patches_hash(self) -> str:
        """Return 12 hexadecimal digits that identify the hook patches."""
        return _digest((patch.name, patch.data) for patch in self.patches)

    @property
    def engine_hash(self) -> str:
        """Return 12 hexadecimal digits that identify the engine."""
        return _digest(sorted(self.overlay.items()))


def _digest(items: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, data in items:
        digest.update(f"{name}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()[:12]


def take_snapshot(directory: Path, overlay: Path) -> Snapshot:
    """Read the series in *directory* and the engine in *overlay*.

    Raises PatchError when a named patch is missing, or one is not named.
    """
    series = directory / "series"
    if not series.is_file():
        raise PatchError(
            f"there are no patches for kernel {directory.name}",
            "use a kernel that linux-patches/ has a directory for",
        )
    before: list[Patch] = []
    after: list[Patch] = []
    placed: list[tuple[int, str]] = []
    current = before
    for line in series.read_text().splitlines():
        name = line.split("#", 1)[0].strip()
        if not name:
            continue
        if name == ENGINE_MARK:
            current = after
            continue
        if name.startswith(ENGINE_MARK):
            if current is before:
                raise PatchError(f"{series}: {name} comes before {ENGINE_MARK}", "move it down")
            placed.append((len(after), name.removeprefix(ENGINE_MARK)))
            continue
        try:
            current.append(Patch(name, (directory / name).read_bytes()))
        except OSError as error:
            raise PatchError(
                f"{series} names {name}: {error.strerror}", "correct the series"
            ) from error
    named = {patch.name for patch in before + after}
    for stray in sorted(directory.glob("*.patch")):
        if stray.name not in named:
            raise PatchError(f"{stray} is not named in series", "add it there or remove it")
    return Snapshot(tuple(before), tuple(after), read_overlay(overlay), tuple(placed))


def read_overlay(overlay: Path) -> dict[str, bytes]:
    """Return the engine: name in the kernel tree to contents."""
    files: dict[str, bytes] = {}
    for path in sorted(overlay.rglob("*")):
        relative = path.relative_to(overlay).as_posix()
        if path.is_file() and IGNORED_IN_OVERLAY.search(relative) is None:
            files[relative] = path.read_bytes()
    return files


def touched_files(patch: bytes) -> list[str]:
    """Return the names in the kernel tree that a patch changes, creates or removes."""
    names: dict[str, None] = {}
    for line in patch.decode(errors="replace").splitlines():
        match = re.match(r"(?:--- a/|\+\+\+ b/|rename (?:from|to) )([^\t\n]+)", line)
        if match is not None:
            names[match.group(1)] = None
    return list(names)


def patched_files(source: Path, snapshot: Snapshot) -> dict[str, bytes | None]:
    """Return what patches and engine make of *source*: name to contents, None for removed.

    Raises PatchError with file and hunk when a patch does not fit exactly.
    """
    names = {name for patch in snapshot.patches for name in touched_files(patch.data)}
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise PatchError(f"a patch names {name}", "keep to files of the kernel tree")
    with tempfile.TemporaryDirectory(prefix="linux-um-patch-") as directory:
        scratch = Path(directory)
        for name in names:
            if (source / name).is_file():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, scratch / name)
        for name in snapshot.overlay:
            if (source / name).exists():
                raise PatchError(
                    f"pksm/{name} would replace a file of the kernel",
                    "change that file by a patch",
                )
        for patch in snapshot.before:
            apply_patch(scratch, patch)
        # A patch behind the engine may change a file of the engine.
        for name in names & snapshot.overlay.keys():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(snapshot.overlay[name])
        for patch in snapshot.after:
            apply_patch(scratch, patch)
        result: dict[str, bytes | None] = {
            name: (scratch / name).read_bytes() if (scratch / name).is_file() else None
            for name in sorted(names)
        }
    return {**snapshot.overlay, **result}


def apply_patch(directory: Path, patch: Patch) -> None:
    """Apply one patch to the files in *directory*, without fuzz.

    Raises PatchError naming the first file and hunk that does not fit.
    """
    command = [
        "patch", "-p1", "-F0", "--no-backup-if-mismatch", "--force", "--reject-file=-",
        "-d", str(directory),
    ]  # fmt: skip
    try:
        result = subprocess.run(command, input=patch.data, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise PatchError("patch is missing", "run: sudo apt-get install patch") from error
    if result.returncode == 0:
        return
    output = (result.stdout + result.stderr).decode(errors="replace")
    raise PatchError(
        f"{patch.name} does not fit: {_first_failure(output)}",
        "refresh the patch for this kernel, or use the kernel that it was made for",
    )


def _first_failure(output: str) -> str:
    """Return ``file: hunk`` of the first complaint in the output of patch."""
    name = "unknown file"
    for line in output.splitlines():
        if line.startswith(("patching file ", "checking file ")):
            name = line.split(" ", 2)[2].strip("'")
        elif "FAILED" in line or "malformed" in line or "can't find" in line:
            return f"{name}: {line.strip()}"
        elif "previously applied" in line or "only garbage" in line:
            return f"{name}: {line.strip()}"
    return f"{name}: {output.strip().splitlines()[-1] if output.strip() else 'patch failed'}"


def synchronise(
    source: Path, content: str, tree: Path, snapshot: Snapshot, *, term: Term
) -> list[str]:
    """Make *tree* hold *source* with patches and engine; return the names written.

    *content* identifies the source. The caller holds the build lock.
    Raises PatchError; the tree is then as it was, or, when the disk is full, made anew
    the next time.
    """
    target = patched_files(source, snapshot)
    try:
        return _bring_up_to_date(source, content, tree, target, term)
    except OSError as error:
        with contextlib.suppress(OSError):
            _state_file(tree).unlink(missing_ok=True)
        raise cannot(error, f"write the work tree {tree}", PatchError) from error


def _bring_up_to_date(
    source: Path, content: str, tree: Path, target: Mapping[str, bytes | None], term: Term
) -> list[str]:
    """Do what :func:`synchronise` says, *target* being the files with patches and engine."""
    state_file = _state_file(tree)
    state = _read_state(state_file)
    if not tree.is_dir() or state is None:
        state_file.unlink(missing_ok=True)
        _plant(source, tree, term)
        state = ({}, content)
    changed, former = [], state[0]
    if state[1] != content:
        changed += _follow_source(source, tree, set(target))
    for name in sorted(set(former) - set(target)):
        if _write(tree / name, _read(source / name)):
            changed.append(name)
    for name, data in target.items():
        if _write(tree / name, data):
            changed.append(name)
    hashes = {name: _hash(data) for name, data in target.items()}
    if (hashes, content) != _read_state(state_file):
        temporary = state_file.with_name(state_file.name + ".new")
        temporary.write_text(json.dumps({"content": content, "files": hashes}))
        temporary.replace(state_file)
    return changed


def _state_file(tree: Path) -> Path:
    return tree.with_name(tree.name + STATE_SUFFIX)


def _hash(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _read_state(path: Path) -> tuple[dict[str, str], str] | None:
    try:
        data = json.loads(path.read_text())
        return dict(data["files"]), str(data["content"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plant(source: Path, tree: Path, term: Term) -> None:
    """Make *tree* a tree of hard links to *source*; files are only ever replaced, not written."""
    with term.step("preparing the work tree"):
        shutil.rmtree(tree, ignore_errors=True)
        temporary = tree.with_name(tree.name + ".new")
        shutil.rmtree(temporary, ignore_errors=True)
        paths.ensure_dir(tree.parent)
        command = ["cp", "-a", "--link", str(source), str(temporary)]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode != 0:
            shutil.rmtree(temporary, ignore_errors=True)
            result = subprocess.run(
                ["cp", "-a", str(source), str(temporary)],
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode != 0:
                raise PatchError(
                    f"cannot copy the kernel source: {result.stderr.strip()}",
                    "see the free space of the cache",
                )
        temporary.rename(tree)


def _follow_source(source: Path, tree: Path, ours: set[str]) -> list[str]:
    """Take over what changed in the source of the user's own; return the names written."""
    changed = []
    present = _names(source)
    for name in sorted(_names(tree) - present - ours):
        (tree / name).unlink()
        changed.append(name)
    for name in sorted(present - ours):
        origin, copy = source / name, tree / name
        if origin.is_symlink():
            if not copy.is_symlink() or os.readlink(copy) != os.readlink(origin):
                copy.unlink(missing_ok=True)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(os.readlink(origin))
                changed.append(name)
        elif not copy.exists() or not origin.samefile(copy):
            if _write(copy, origin.read_bytes(), origin.stat().st_mode & 0o777):
                changed.append(name)
    return changed


def _names(directory: Path) -> set[str]:
    found: set[str] = set()
    for parent, _, files in os.walk(directory):
        prefix = os.path.relpath(parent, directory)
        found.update(name if prefix == "." else f"{prefix}/{name}" for name in files)
    return found


def _write(path: Path, data: bytes | None, mode: int | None = None) -> bool:
    """Give *path* the contents *data* (None: remove it) by replacing it; say if it changed."""
    present = _read(path)
    if present == data:
        return False
    if data is None:
        path.unlink()
        return True
    if mode is None:
        mode = path.stat().st_mode & 0o777 if present is not None else 0o644
        if present is None and data.startswith(b"#!"):
            mode = 0o755
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".linux-um-new")
    try:
        temporary.write_bytes(data)
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return True

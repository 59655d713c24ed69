# SPDX-License-Identifier: GPL-2.0-only
"""The complete series, hooks and engine, for ``git am`` on a vanilla tree.

``linux-patches/engine.series`` says how the engine becomes commits::

    [pksm-core]
    Subject: mm/pksm: add the engine
    Files: mm/pksm/*.c mm/pksm/*.h include/linux/pksm.h

    Text of the commit message.

Sections follow one another in the order of the commits, except for those that
``series`` gives a place of their own; every file of ``pksm/`` belongs to exactly
one (the first that names it; ``!PATTERN`` names what does not belong to it).
Without that file the whole engine is one commit. Author and date are those of the hook patches,
so the same tree always gives the same series.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path

from . import paths
from .errors import PatchError
from .patches import Patch, Snapshot

DEFAULT_AUTHOR = "PKSM developers <pksm@localhost>"
DEFAULT_DATE = "Thu, 1 Jan 2026 00:00:00 +0000"
ZERO_COMMIT = "0" * 40
_SECTION = re.compile(r"^\[([\w.-]+)\]\s*$")


@dataclass(frozen=True)
class EngineCommit:
    """One commit of the engine: a name for its file, its message, its patterns of files."""

    name: str
    subject: str
    body: str
    patterns: tuple[str, ...]

    def takes(self, name: str) -> bool:
        """Say whether a file of the engine belongs to this commit."""

        def any_of(patterns: list[str]) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

        excluded = [pattern[1:] for pattern in self.patterns if pattern.startswith("!")]
        return any_of([p for p in self.patterns if not p.startswith("!")]) and not any_of(excluded)


def parse_engine_series(text: str) -> list[EngineCommit]:
    """Return the commits that the text of engine.series describes.

    Raises PatchError when a section lacks its Subject or its Files.
    """
    sections: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        match = _SECTION.match(line)
        if match is not None:
            sections.append((match.group(1), []))
        elif sections:
            sections[-1][1].append(line)
        elif line.strip() and not line.startswith("#"):
            raise PatchError(f"engine.series: text before the first section: {line!r}", "remove it")
    return [_parse_section(name, lines) for name, lines in sections]


def _parse_section(name: str, lines: list[str]) -> EngineCommit:
    head: dict[str, str] = {}
    rest = list(lines)
    while rest and (match := re.match(r"(Subject|Files):\s*(.*)$", rest[0])):
        key, value = match.group(1), match.group(2)
        rest.pop(0)
        while rest and rest[0].startswith((" ", "\t")):
            value += " " + rest.pop(0).strip()
        head[key] = value
    for key in ("Subject", "Files"):
        if not head.get(key):
            raise PatchError(f"engine.series: [{name}] has no {key}:", "add it")
    return EngineCommit(
        name, head["Subject"], "\n".join(rest).strip("\n"), tuple(head["Files"].split())
    )


def engine_commits() -> list[EngineCommit]:
    """Return the commits of the engine as the repository describes them."""
    path = paths.repo_root() / "linux-patches" / "engine.series"
    if path.is_file():
        return parse_engine_series(path.read_text())
    return [EngineCommit("pksm-engine", "mm/pksm: add the engine", "", ("*",))]


def assign(
    overlay: dict[str, bytes], commits: list[EngineCommit]
) -> list[tuple[EngineCommit, dict[str, bytes]]]:
    """Return the files of each commit. Raises PatchError for a file or a commit left over."""
    left = dict(overlay)
    result = []
    for commit in commits:
        mine = {
            name: data
            for name, data in left.items()
            if commit.takes(name)
        }
        if not mine:
            raise PatchError(f"engine.series: [{commit.name}] names no file of pksm/", "correct it")
        for name in mine:
            del left[name]
        result.append((commit, mine))
    if left:
        raise PatchError(
            f"engine.series names no commit for pksm/{next(iter(left))}", "add it to a Files: line"
        )
    return result


def new_file_diff(name: str, data: bytes) -> bytes:
    """Return the git diff that creates *name*.

    Raises PatchError for a file that is not text or has no newline at its end.
    """
    if not data.endswith(b"\n") or b"\0" in data:
        raise PatchError(f"pksm/{name} is no text file ending in a newline", "make it one")
    lines = data.split(b"\n")[:-1]
    mode = "100755" if data.startswith(b"#!") else "100644"
    span = f"+1,{len(lines)}" if len(lines) != 1 else "+1"
    head = (
        f"diff --git a/{name} b/{name}\nnew file mode {mode}\n"
        f"--- /dev/null\n+++ b/{name}\n@@ -0,0 {span} @@\n"
    )
    return head.encode() + b"".join(b"+" + line + b"\n" for line in lines)


def _header(patch: Patch, name: str, default: str) -> str:
    match = re.search(rf"^{name}: (.*)$", patch.data.decode(errors="replace"), re.MULTILINE)
    return match.group(1) if match is not None else default


def complete_series(snapshot: Snapshot) -> list[Patch]:
    """Return all patches in order, numbered anew as ``NNNN-name.patch``."""
    author, date = DEFAULT_AUTHOR, DEFAULT_DATE
    if snapshot.patches:
        author = _header(snapshot.patches[0], "From", DEFAULT_AUTHOR)
        date = _header(snapshot.patches[0], "Date", DEFAULT_DATE)
    engine: list[tuple[EngineCommit, dict[str, bytes]]] = []
    if snapshot.overlay:
        engine = assign(snapshot.overlay, engine_commits())
    order = _order(snapshot, engine)
    result: list[Patch] = []
    for number, item in enumerate(order, 1):
        if isinstance(item, Patch):
            result.append(_renumber(item, number, len(order)))
            continue
        commit, files = item
        data = _engine_patch(commit, files, author, date, number, len(order))
        result.append(Patch(f"{number:04d}-{commit.name}.patch", data))
    return result


def _order(
    snapshot: Snapshot, engine: list[tuple[EngineCommit, dict[str, bytes]]]
) -> list[Patch | tuple[EngineCommit, dict[str, bytes]]]:
    """Return hooks and commits in their order. Raises PatchError for a place without a commit."""
    placed = {name: place for place, name in snapshot.placed}
    unknown = placed.keys() - {commit.name for commit, _ in engine}
    if engine and unknown:
        raise PatchError(
            f"series has a place for pksm/{min(unknown)}, which engine.series does not have",
            "correct one of them",
        )
    order: list[Patch | tuple[EngineCommit, dict[str, bytes]]] = [*snapshot.before]
    order += [item for item in engine if item[0].name not in placed]
    for place in range(len(snapshot.after) + 1):
        order += [item for item in engine if placed.get(item[0].name) == place]
        order += snapshot.after[place : place + 1]
    return order


def _renumber(patch: Patch, number: int, total: int) -> Patch:
    """Return *patch* with its place in the complete series in subject and name."""
    subject = re.compile(rb"^Subject: (?:\[[^\]\n]*\] *)?", re.MULTILINE)
    mark = f"Subject: [PATCH {number:02d}/{total:02d}] ".encode()
    name = re.sub(r"^\d+-", "", patch.name)
    return Patch(f"{number:04d}-{name}", subject.sub(mark, patch.data, count=1))


def _engine_patch(
    commit: EngineCommit,
    files: dict[str, bytes],
    author: str,
    date: str,
    number: int,
    total: int,
) -> bytes:
    diffs = b"".join(new_file_diff(name, data) for name, data in sorted(files.items()))
    lines = sum(data.count(b"\n") for data in files.values())
    listing = "".join(f" {name} | {files[name].count(bytes([10]))}\n" for name in sorted(files))
    body = commit.body + "\n\n" if commit.body else ""
    signed = "" if "Signed-off-by:" in body else f"Signed-off-by: {author}\n"
    head = (
        f"From {ZERO_COMMIT} Mon Sep 17 00:00:00 2001\n"
        f"From: {author}\nDate: {date}\n"
        f"Subject: [PATCH {number:02d}/{total:02d}] {commit.subject}\n\n"
        f"{body}{signed}---\n{listing} {len(files)} files changed, {lines} insertions(+)\n\n"
    )
    return head.encode() + diffs + b"-- \nlinux-um\n\n"


def write_series(patches: list[Patch], directory: Path) -> list[Path]:
    """Write *patches* and a ``series`` file to *directory*; return the patches' paths.

    Patches of an earlier series in that directory are removed.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("[0-9][0-9][0-9][0-9]-*.patch"):
            old.unlink()
        written = []
        for patch in patches:
            target = directory / patch.name
            target.write_bytes(patch.data)
            written.append(target)
        (directory / "series").write_text("".join(f"{patch.name}\n" for patch in patches))
    except OSError as error:
        raise PatchError(
            f"cannot write to {directory}: {error.strerror}", "name another directory by -o"
        ) from error
    return written

# SPDX-License-Identifier: GPL-2.0-only
"""Whether a file of the cache is still what was put there: a full disk or a crash cuts it off.

A seal is noted when a file is kept: its size, and a hash of what a machine loads of it.
Of a kernel that is a tenth, which takes 10 ms; the rest is for debuggers. A file that is
older than seals is looked at for its end alone.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

_ELF = b"\x7fELF"
# Of a 64-bit ELF header: where program and section headers lie, the sizes and numbers of both.
_PLACES = struct.Struct("<32xQQ6xHHHH")
# Of a program header: its type, where its bytes lie in the file, and how many they are.
_SEGMENT = struct.Struct("<IxxxxQ16xQ")
_LOAD = 1
_CPIO, _TRAILER = b"070701", b"TRAILER!!!"
# Bytes in which an archive of gen_init_cpio, which is filled up, has its end.
_CPIO_END = 1024
_PIECE = 1 << 20


def seal(path: Path) -> dict[str, Any]:
    """Return what is to be noted of a file. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return {"size": _size(file), "sha256": _hash(file)}


def defect(path: Path, noted: Mapping[str, Any] | None = None) -> str:
    """Return what is wrong with a file, or nothing; *noted* is its seal, if it has one."""
    try:
        with path.open("rb") as file:
            size = _size(file)
            if noted is None:
                return "" if _has_end(file) else f"{path} is not complete"
            if size != noted.get("size"):
                return f"{path} has {size} bytes, not {noted.get('size')}"
            return "" if _hash(file) == noted.get("sha256") else f"{path} has changed"
    except OSError as error:
        return f"{path}: {error.strerror}"


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _hash(file: BinaryIO) -> str:
    """Return the hash of what is loaded: of a program its segments, else everything."""
    left = max(_segments(file), default=_size(file))
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0 and (piece := file.read(min(left, _PIECE))):
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


def _header(file: BinaryIO) -> tuple[int, ...] | None:
    """Return the places of an ELF header, or None when the file is none."""
    file.seek(0)
    head = file.read(_PLACES.size)
    whole = head.startswith(_ELF) and len(head) == _PLACES.size
    return _PLACES.unpack(head) if whole else None


def _segments(file: BinaryIO) -> list[int]:
    """Return where in the file each segment that is loaded ends."""
    header = _header(file)
    if header is None:
        return []
    where, _, each, count, _, _ = header
    file.seek(where)
    table = file.read(each * count)
    heads = [table[at : at + each] for at in range(0, len(table), each or 1)]
    found = [_SEGMENT.unpack_from(head) for head in heads if len(head) >= _SEGMENT.size]
    return [start + length for kind, start, length in found if kind == _LOAD]


def _has_end(file: BinaryIO) -> bool:
    """Return whether a program has its last part, the table of sections, or an archive its end."""
    header = _header(file)
    size = _size(file)
    if header is not None:
        _, where, _, _, each, count = header
        return 0 < where and where + each * count <= size and max(_segments(file), default=0) <= size
    file.seek(0)
    if file.read(len(_CPIO)) != _CPIO:
        return False
    file.seek(max(0, size - _CPIO_END))
    return _TRAILER in file.read()

# SPDX-License-Identifier: GPL-2.0-only
"""What a page holds, and its keyed hash as the kernel computes it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from . import kernel, memory, record

_MASK = (1 << 64) - 1
_SUM_MASK = (1 << 128) - 1
# Words of the key of the hash that are not for words of the page.
_MORE_WORDS = 6
# How many bytes of a page are shown.
SHOWN = 16


def hash_of(data: bytes, key: Sequence[int]) -> int:
    """Return the hash of a page with *key*, as mm/pksm/hash.c computes it."""
    words = struct.unpack(f"<{len(data) // 8}Q", data)
    assert len(key) == len(words) + _MORE_WORDS
    total = 0
    for i in range(0, len(words), 2):
        total += (words[i] + key[i] & _MASK) * (words[i + 1] + key[i + 1] & _MASK)
    total &= _SUM_MASK
    low, high, add = (key[i] << 64 | key[i + 1] for i in range(len(words), len(key), 2))
    return (low * (total & _MASK) + high * (total >> 64) + add & _SUM_MASK) >> 64


def secret() -> Sequence[int] | None:
    """Return the key of the hash; None before PKSM was first started."""
    if not kernel.variable("pksm_unstable"):
        return None
    words = kernel.length("pksm_hash_key")
    return struct.unpack(f"<{words}Q", kernel.read(kernel.address("pksm_hash_key"), 8 * words))


def page_hash(pfn: int) -> int | None:
    """Return the hash of what a page holds now, as pksm_hash_page() would."""
    key = secret()
    return None if key is None else hash_of(memory.content(pfn), key)


def tag(value: int) -> int:
    """Return the bits of a hash that a record keeps; the same rule as pksm_tag()."""
    return value >> 64 - record.layout("HASH_BITS")


def summary(data: bytes) -> str:
    """Return what a page holds, in a few words."""
    if not data.strip(b"\0"):
        return "all zero"
    first = next(i for i, byte in enumerate(data) if byte)
    word = data[:8]
    if data == word * (len(data) // 8):
        return f"the word {int.from_bytes(word, 'little'):#018x} over and over"
    start = data[first : first + SHOWN].hex(" ")
    return (
        f"{len(set(data))} different bytes; the first that is not zero at {first:#x}, "
        f"from there: {start}"
    )

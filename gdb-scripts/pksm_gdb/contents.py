# SPDX-License-Identifier: GPL-2.0-only
"""What a page holds, and its keyed hash as the kernel computes it."""

from __future__ import annotations

import struct

from . import kernel, memory, record

# lib/xxhash.c
_P1 = 11400714785074694791
_P2 = 14029467366897019727
_P3 = 1609587929392839161
_P4 = 9650029242287828579
_MASK = (1 << 64) - 1
# How many bytes of a page are shown.
SHOWN = 16


def _rotate(value: int, bits: int) -> int:
    return (value << bits | value >> 64 - bits) & _MASK


def xxh64(data: bytes, seed: int) -> int:
    """Return the xxHash of a page; *data* is a multiple of 32 bytes, as pages are."""
    assert data and len(data) % 32 == 0
    lanes = [seed + _P1 + _P2 & _MASK, seed + _P2 & _MASK, seed, seed - _P1 & _MASK]
    words = struct.unpack(f"<{len(data) // 8}Q", data)
    for i in range(4):
        lane = lanes[i]
        for word in words[i::4]:
            lane = lane + word * _P2 & _MASK
            lane = (lane << 31 | lane >> 33) * _P1 & _MASK
        lanes[i] = lane
    result = sum(_rotate(lane, bits) for lane, bits in zip(lanes, (1, 7, 12, 18))) & _MASK
    for lane in lanes:
        result ^= _rotate(lane * _P2 & _MASK, 31) * _P1 & _MASK
        result = result * _P1 + _P4 & _MASK
    result = result + len(data) & _MASK
    result = (result ^ result >> 33) * _P2 & _MASK
    result = (result ^ result >> 29) * _P3 & _MASK
    return result ^ result >> 32


def secret() -> int | None:
    """Return the key of the hash; None before PKSM was first started."""
    if not kernel.variable("pksm_unstable"):
        return None
    return kernel.variable("pksm_secret") & _MASK


def page_hash(pfn: int) -> int | None:
    """Return the hash of what a page holds now, as pksm_hash_page() would."""
    key = secret()
    return None if key is None else xxh64(memory.content(pfn), key)


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

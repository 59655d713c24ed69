# SPDX-License-Identifier: GPL-2.0-only
"""Symbols, types and memory of the kernel that gdb looks at.

Everything here works on a live guest and on a core dump alike: it reads
memory and debug information, and never calls a function of the kernel.
Whatever cannot be read or found raises gdb.GdbError, which gdb shows as one
line.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator

import gdb

WORD = 8
# How many steps a list may take before it is held to be a circle.
MAX_STEPS = 1 << 26


def symbol(name: str) -> gdb.Value:
    """Return the variable *name*, static or not. Raises GdbError when there is none."""
    found = gdb.lookup_global_symbol(name) or gdb.lookup_static_symbol(name)
    if found is None:
        raise gdb.GdbError(_missing(f"variable '{name}'"))
    return found.value()


def _missing(what: str) -> str:
    if gdb.lookup_global_symbol("linux_banner") is None:
        return f"no {what}: gdb has no kernel with symbols; start it by ./linux-um gdb"
    if gdb.lookup_global_symbol("pksm_intake_key") is None:
        return f"no {what}: this kernel was built without CONFIG_PKSM"
    return f"this kernel has no {what}; these scripts fit the kernel of their own tree"


def has_symbol(name: str) -> bool:
    """Return whether there is a variable or function *name*."""
    return bool(gdb.lookup_global_symbol(name) or gdb.lookup_static_symbol(name))


def address(name: str) -> int:
    """Return the address of the variable *name*, in bytes."""
    where = symbol(name).address
    if where is None:
        raise gdb.GdbError(f"'{name}' has no address")
    return int(where)


@functools.lru_cache(maxsize=None)
def typ(name: str) -> gdb.Type:
    """Return a type by name, such as ``struct page``."""
    try:
        return gdb.lookup_type(name)
    except gdb.error as error:
        raise gdb.GdbError(_missing(f"type '{name}'")) from error


@functools.lru_cache(maxsize=None)
def size(name: str) -> int:
    """Return the size of a type in bytes."""
    return int(typ(name).sizeof)


@functools.lru_cache(maxsize=None)
def offset(name: str, path: str) -> int:
    """Return where the member *path* (``a.b``) lies in the type *name*, in bytes.

    Members of anonymous structures and unions are found by their own name.
    """
    found = _offset(name, path)
    if found is None:
        raise gdb.GdbError(_missing(f"member '{path}' in {name}"))
    return found


def has_member(name: str, path: str) -> bool:
    """Return whether the type *name* has a member *path*, which other kernels may not have."""
    return _offset(name, path) is not None


def first_member(name: str, *paths: str) -> str:
    """Return the first of *paths* that the type *name* has: kernels rename members.

    Raises GdbError when it has none of them.
    """
    for path in paths:
        if has_member(name, path):
            return path
    raise gdb.GdbError(_missing(f"member '{paths[-1]}' in {name}"))


@functools.lru_cache(maxsize=None)
def _offset(name: str, path: str) -> int | None:
    here = typ(name).strip_typedefs()
    bits = 0
    for member in path.split("."):
        found = _member(here, member)
        if found is None:
            return None
        bits += found[0]
        here = found[1].strip_typedefs()
    return bits // 8


def _member(where: gdb.Type, name: str) -> tuple[int, gdb.Type] | None:
    for field in where.fields():
        if field.name == name:
            return int(field.bitpos), field.type
        if not field.name and field.type.code in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION):
            inner = _member(field.type, name)
            if inner is not None:
                return int(field.bitpos) + inner[0], inner[1]
    return None


@functools.lru_cache(maxsize=None)
def enum(name: str) -> dict[str, int]:
    """Return the enumerators of ``enum NAME`` in the order of the source."""
    return {str(field.name): int(field.enumval) for field in typ(f"enum {name}").fields()}


def forget_caches(_event: object = None) -> None:
    """Forget types and members: another kernel was loaded."""
    typ.cache_clear()
    size.cache_clear()
    offset.cache_clear()
    _offset.cache_clear()
    enum.cache_clear()


gdb.events.clear_objfiles.connect(forget_caches)


# Memory


def need_memory() -> None:
    """Raise GdbError unless there is a guest, live or as a core dump."""
    if gdb.selected_thread() is None:
        raise gdb.GdbError("there is no guest; start one by ./linux-um gdb, or give --attach RUN")


def is_core() -> bool:
    """Return whether what gdb looks at is a core dump, which cannot run."""
    connection = getattr(gdb.selected_inferior(), "connection", None)
    return connection is not None and connection.type == "core"


def need_live() -> None:
    """Raise GdbError unless there is a guest that can run."""
    need_memory()
    if is_core():
        raise gdb.GdbError("a core dump does not run; this command needs a live guest")


def read(where: int, length: int) -> bytes:
    """Return *length* bytes of the kernel's memory."""
    need_memory()
    try:
        return bytes(gdb.selected_inferior().read_memory(where, length))
    except (gdb.MemoryError, OverflowError) as error:
        raise gdb.GdbError(f"cannot read {length} bytes at {where:#x}") from error


# What was read while `remembering` is in force, by 4096 bytes.
_CHUNK = 4096
_chunks: dict[int, bytes] | None = None
_variables: dict[str, int] = {}


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Remember what is read, for a command that walks much: the guest stands still meanwhile."""
    global _chunks
    before = _chunks
    _chunks = {} if before is None else before
    try:
        yield
    finally:
        _chunks = before
        if before is None:
            _variables.clear()


def variable(name: str) -> int:
    """Return the value of an integer or pointer variable; remembered while `remembering`."""
    if name in _variables:
        return _variables[name]
    value = int(symbol(name))
    if _chunks is not None:
        _variables[name] = value
    return value


def _chunk(where: int) -> bytes:
    """Return the chunk around *where*, empty when not all of it can be read."""
    assert _chunks is not None
    start = where & ~(_CHUNK - 1)
    found = _chunks.get(start)
    if found is None:
        need_memory()
        try:
            found = bytes(gdb.selected_inferior().read_memory(start, _CHUNK))
        except gdb.MemoryError:
            found = b""
        _chunks[start] = found
    return found


def number(where: int, length: int = WORD, *, signed: bool = False) -> int:
    """Return the integer of *length* bytes at *where*."""
    if _chunks is not None and where >= 0:
        at = where & _CHUNK - 1
        data = _chunk(where)[at : at + length]
        if len(data) == length:
            return int.from_bytes(data, "little", signed=signed)
    return int.from_bytes(read(where, length), "little", signed=signed)


def member(where: int, name: str, path: str, length: int = WORD, *, signed: bool = False) -> int:
    """Return an integer member of the object of type *name* at *where*."""
    return number(where + offset(name, path), length, signed=signed)


def pointer(where: int, name: str) -> gdb.Value:
    """Return *where* as a pointer to the type *name*."""
    return gdb.Value(where).cast(typ(name).pointer())


def length(name: str) -> int:
    """Return how many elements the array *name* has."""
    return int(symbol(name).type.range()[1]) + 1


def text(where: int, length: int) -> str:
    """Return the zero-terminated text in the *length* bytes at *where*."""
    return read(where, length).split(b"\0", 1)[0].decode("utf-8", "replace")


def percpu(name: str) -> list[tuple[int, int]]:
    """Return (CPU, address) of the per-CPU variable *name* for each possible CPU."""
    base = address(name)
    if not has_symbol("__per_cpu_offset"):
        return [(0, base)]
    offsets = address("__per_cpu_offset")
    mask = number(address("__cpu_possible_mask"))
    return [
        (cpu, (base + number(offsets + WORD * cpu)) & (1 << 64) - 1)
        for cpu in range(64)
        if mask >> cpu & 1
    ]


# Lists. Each yields addresses of the links, not of what they are embedded in.


def hlist(head: int) -> Iterator[int]:
    """Yield the address of each node of the hlist or llist with its head at *head*."""
    node = number(head)
    for _ in range(MAX_STEPS):
        if not node:
            return
        yield node
        node = number(node)
    raise gdb.GdbError(f"the list at {head:#x} does not end")


def circle(head: int) -> Iterator[int]:
    """Yield the address of each entry of the list_head at *head*."""
    node = number(head)
    for _ in range(MAX_STEPS):
        if node == head:
            return
        yield node
        node = number(node)
    raise gdb.GdbError(f"the list at {head:#x} does not end")


def rb_tree(root: int) -> Iterator[int]:
    """Yield the address of each node of the red-black tree whose rb_root is at *root*."""
    stack: list[int] = []
    node = number(root + offset("struct rb_root", "rb_node"))
    left = offset("struct rb_node", "rb_left")
    right = offset("struct rb_node", "rb_right")
    while node or stack:
        while node:
            stack.append(node)
            if len(stack) > 128:
                raise gdb.GdbError(f"the tree at {root:#x} is deeper than a tree can be")
            node = number(node + left)
        node = stack.pop()
        yield node
        node = number(node + right)


# What users type


def evaluate(expression: str) -> gdb.Value:
    """Return the value of what a user typed. Raises GdbError in one line."""
    try:
        value = gdb.parse_and_eval(expression)
        if value.is_optimized_out:
            raise gdb.GdbError(
                f"'{expression}' was optimised out here; look at it in a calling frame (up), "
                "or where the function begins"
            )
        return value
    except gdb.error as error:
        raise gdb.GdbError(one_line(f"'{expression}': {error}")) from error


def evaluate_number(expression: str) -> int:
    """Return the number that a user typed or named. Raises GdbError in one line."""
    value = evaluate(expression)
    try:
        return int(value)
    except gdb.error as error:
        raise gdb.GdbError(one_line(f"'{expression}' is not a number: {error}")) from error


def one_line(what: object) -> str:
    """Return a message as one line."""
    return re.sub(r"\s+", " ", str(what)).strip()

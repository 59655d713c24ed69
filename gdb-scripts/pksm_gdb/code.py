# SPDX-License-Identifier: GPL-2.0-only
"""Places in the kernel's code, and the call chain at a stop.

A function that was compiled may exist as a body of its own, as copies inlined
into others, or both. Places are addresses: where a body begins, where an
inlined copy begins, and where a body is left.
Nothing here needs the source text.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import gdb

from . import kernel

# What gcc appends to the names of the parts it makes of a function.
SUFFIX = re.compile(r"(\.(part|isra|constprop|cold|lto_priv|localalias)(\.\d+)*)+$")
# A function that every kernel has, and its file: tells where the kernel tree lies.
LANDMARK = ("handle_mm_fault", "mm/memory.c")
# Registers of a call on x86-64: the arguments, and what it returns.
ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
MASK = (1 << 64) - 1
MAX_LEVELS = 200
# A line of `disassemble`: address, symbol offset, mnemonic, operands.
_INSTRUCTION = re.compile(r"^(?:=>)?\s*(0x[0-9a-f]+)\s+<\+?-?\d+>:\s+(\S+)\s*(.*)$")
_GOAL = re.compile(r"^0x[0-9a-f]+ <([^>+]+)>")


def plain(name: str | None) -> str:
    """Return the name of a function as the source has it."""
    return SUFFIX.sub("", name) if name else "??"


@functools.lru_cache(maxsize=None)
def _tree() -> str:
    """Return what the names of the kernel's source files begin with."""
    found = _function(LANDMARK[0])
    name = found.symtab.filename if found is not None else ""
    return name.removesuffix(LANDMARK[1]) if name.endswith(LANDMARK[1]) else ""


def source_path(symtab: gdb.Symtab | None) -> str:
    """Return a source file's name from the top of the kernel tree."""
    return symtab.filename.removeprefix(_tree()).removeprefix("./") if symtab is not None else ""


def forget_caches(_event: object = None) -> None:
    """Forget everything about the code: another kernel was loaded."""
    _tree.cache_clear()
    function_address.cache_clear()
    inlined.cache_clear()
    exits.cache_clear()
    blocks_at.cache_clear()


gdb.events.clear_objfiles.connect(forget_caches)


# Functions


def _function(name: str) -> gdb.Symbol | None:
    for lookup in (gdb.lookup_global_symbol, gdb.lookup_static_symbol):
        found = lookup(name, gdb.SYMBOL_VAR_DOMAIN)
        if found is not None and found.is_function:
            return found
    return None


@functools.lru_cache(maxsize=None)
def function_address(name: str) -> int | None:
    """Return where the body of a function begins; None when it was inlined everywhere."""
    found = _function(name)
    if found is None:
        return None
    where = found.value().address
    # A function that is inlined everywhere has a symbol in no place.
    return int(where) or None if where is not None else None


def file_of(name: str) -> str:
    """Return the source file of a function that has a body; "" for others."""
    found = _function(name) if function_address(name) is not None else None
    return source_path(found.symtab) if found is not None else ""


def entry(name: str) -> int:
    """Return where a function's body begins. Raises GdbError when there is none."""
    where = function_address(name)
    if where is None:
        what = "is inlined wherever it is used" if inlined(name) else "is not in this kernel"
        raise gdb.GdbError(f"the function {name}() {what}")
    return where


@functools.lru_cache(maxsize=None)
def exits(name: str) -> tuple[int, ...]:
    """Return the addresses of the instructions by which a function leaves; none without a body.

    Those are its returns and its jumps to the beginning of another function. A
    jump by register may be one within: who stops there compares the stack
    pointer with the one at the function's beginning.
    """
    if function_address(name) is None:
        return ()
    text = str(gdb.execute(f"disassemble {entry(name):#x}", to_string=True))
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        where, mnemonic, operands = match.groups()
        goal = _GOAL.match(operands)
        elsewhere = goal is not None and plain(goal.group(1)) != name
        if mnemonic.startswith("ret") or (
            mnemonic == "jmp" and (operands.startswith("*") or elsewhere)
        ):
            found.append(int(where, 16))
    return tuple(found)


@functools.lru_cache(maxsize=None)
def blocks_at(address: int) -> tuple[str, ...]:
    """Return the functions inlined at an address, innermost first, and the body's own last."""
    found: list[str] = []
    block = gdb.block_for_pc(address)
    while block is not None and not block.is_global and not block.is_static:
        if block.function is not None:
            found.append(plain(block.function.name))
        block = block.superblock
    return tuple(found)


@functools.lru_cache(maxsize=None)
def inlined(name: str) -> tuple[int, ...]:
    """Return where the inlined copies of a function begin."""
    try:
        places = gdb.decode_line(name)[1] or ()
    except gdb.error:
        return ()
    return tuple(place.pc for place in places if name in blocks_at(place.pc)[:-1])


def copies(name: str, *under: str) -> list[int]:
    """Return where the copies of a function that are inlined into all of *under* begin."""
    return [where for where in inlined(name) if set(under) <= set(blocks_at(where))]


def entries(*names: str) -> list[int]:
    """Return where the bodies of those functions begin that have one."""
    found = [function_address(name) for name in names]
    return [where for where in found if where is not None]


# Registers


def register(name: str) -> int:
    """Return a register at the stop."""
    return int(gdb.newest_frame().read_register(name)) & MASK


def argument(number: int) -> int:
    """Return an argument (0 is the first), where a function begins."""
    return register(ARGUMENTS[number])


def result() -> int | None:
    """Return what a function returns, where it does; None where another goes on in its place."""
    # `ret', and `repz ret' of older compilers. gdb shows no breakpoint of its own here.
    is_return = kernel.read(int(gdb.newest_frame().pc()), 1) in (b"\xc3", b"\xf3")
    return register("rax") if is_return else None


def returns_to() -> str:
    """Return the function that a return goes to, where a function leaves by it; else ""."""
    return called_by() if result() is not None else ""


def returns_into() -> frozenset[str]:
    """Return the functions that a return goes to: the body, and what is inlined there."""
    if result() is None:
        return frozenset()
    return frozenset(blocks_at(kernel.number(stack_pointer()) - 1))


def called_by() -> str:
    """Return the function that has called the one that begins here."""
    names = blocks_at(kernel.number(stack_pointer()) - 1)
    return names[-1] if names else ""


def stack_pointer() -> int:
    """Return the stack pointer at the stop."""
    return register("rsp")


# The call chain


@dataclass(frozen=True)
class Level:
    """A level of the call chain; ``frame`` is None for one that begins right here, inlined."""

    name: str
    file: str
    line: int
    inlined: bool
    frame: gdb.Frame | None

    def value(self, variable: str) -> gdb.Value | None:
        """Return a local variable or argument; None when it cannot be known here."""
        if self.frame is None:
            return None
        try:
            value = self.frame.read_var(variable)
            if value.is_optimized_out:
                return None
            value.fetch_lazy()
        except (ValueError, gdb.error, RuntimeError):
            return None
        return value

    def number(self, variable: str) -> int | None:
        """Return a local variable or argument as a number (a pointer: its address)."""
        value = self.value(variable)
        try:
            return int(value) & MASK if value is not None else None
        except gdb.error:
            return None


def _level(frame: gdb.Frame) -> Level:
    place = frame.find_sal()
    inlined_here = frame.type() == gdb.INLINE_FRAME
    function = frame.function()
    # The symbol of an inlined function names the file it was inlined into.
    symtab = place.symtab if inlined_here or function is None else function.symtab
    return Level(plain(frame.name()), source_path(symtab), place.line, inlined_here, frame)


def _hidden(frame: gdb.Frame) -> list[Level]:
    """Return the inlined levels that gdb does not show, since they begin at this very address."""
    names = blocks_at(frame.pc())
    # Where a body begins, what is inlined at its beginning says nothing.
    if not names or int(frame.pc()) == function_address(names[-1]):
        return []
    shown = 1
    here: gdb.Frame | None = frame
    while here is not None and here.type() == gdb.INLINE_FRAME:
        shown += 1
        here = here.older()
    place = gdb.find_pc_line(frame.pc())
    return [
        Level(name, source_path(place.symtab), place.line, True, None)
        for name in names[: max(len(names) - shown, 0)]
    ]


def chain(until: frozenset[str] = frozenset()) -> list[Level]:
    """Return the call chain at the stop, innermost first, as far as it has symbols.

    It ends with the first function that is in *until*.
    """
    kernel.need_memory()
    frame: gdb.Frame | None = gdb.newest_frame()
    levels = _hidden(frame) if frame is not None else []
    while frame is not None and frame.name() is not None and len(levels) < MAX_LEVELS:
        level = _level(frame)
        # A part that gcc split off and inlined again is the same function.
        if levels and levels[-1].name == level.name and levels[-1].inlined:
            levels[-1] = level
        else:
            levels.append(level)
        if level.name in until:
            break
        try:
            frame = frame.older()
        except gdb.error:
            break
    return levels


def find(levels: list[Level], *names: str) -> Level | None:
    """Return the innermost level whose function is one of *names*."""
    for level in levels:
        if level.name in names:
            return level
    return None

# SPDX-License-Identifier: GPL-2.0-only
"""pksm hooks: a line for each page that passes a hook of PKSM."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TextIO

import gdb

from . import code, command, kernel, memory, record, tasks, ways

# Whom pksm_add_moved_page() works for, besides migration. The first of them tells
# __pksm_page_written() of pages that are tracked still.
MOVERS = {
    "__pksm_add_swapped_in": "swapin", "pksm_sweep_page": "sweep", "pksm_sweep": "sweep",
    "pksm_intake_pte": "sweep",
}  # fmt: skip
HEADER = f"{'hook':8} {'pfn':>8}  {'process':22} {'address':>16}  state"
# Where the functions end that know the user address.
OUTER = frozenset({"__handle_mm_fault", "copy_page_range", "zap_page_range_single",
                   "zap_page_range_single_batched", "unmap_region",
                   "exit_mmap", "pksm_consider", "handle_syscall", "userspace"})  # fmt: skip


@dataclass(frozen=True)
class Hook:
    """A function at which pages pass: the word for it, and what is before and after."""

    function: str
    word: str


# See mm/pksm/intake.c and mm/pksm/merge.c. Every page that is tracked came by one of the first
# three, and goes by a `leave' or a `drop'.
MOVED = "pksm_add_moved_page"
WRITE = "write"
HOOKS = (
    Hook("pksm_add_new_anon_page", "enter"),
    Hook("__pksm_add_broken_off", "enter"),
    Hook(MOVED, "move"),
    Hook("pksm_del_anon_page", "leave"),
    Hook("pksm_forget", "drop"),
    Hook("__pksm_page_broken", "broken"),
    Hook("__pksm_page_written", WRITE),
    Hook("pksm_merge_with_zero", "merge"),
    Hook("pksm_merge_with_stable", "merge"),
    Hook("pksm_merge_with_unstable", "merge"),
)


@dataclass(frozen=True)
class Passage:
    """A page at a hook, as it was when the hook began."""

    word: str
    pfn: int
    process: str
    address: int | None
    before: str
    partner: str


def short(entry: record.Record) -> str:
    """Return a record in few words."""
    words = entry.page_class
    if entry.where == "index":
        if entry.reborn:
            words += " index written" if entry.written else " index reborn"
        else:
            words += f" index {entry.tag:#x}"
    elif entry.where == "list":
        words += f" list {entry.level}"
    return words


def _area(level: code.Level) -> int | None:
    """Return the address of the vm_area_struct that a function works on."""
    where = level.number("vma")
    if where:
        return where
    # 7.3 frees what madvise() has unmapped when it is done with all ranges.
    behavior = level.value("madv_behavior")
    try:
        if behavior is not None and behavior.type.strip_typedefs().code == gdb.TYPE_CODE_PTR:
            behavior = behavior.dereference()
        return int(behavior["vma"]) if behavior is not None else None
    except gdb.error:
        return None


def _address(word: str, page: memory.Page) -> int | None:
    """Return the user address of a page at a hook, where the calling functions know it."""
    levels = code.chain(OUTER)
    if word in ("enter", "swapin", "broken", WRITE) or code.find(levels, "wp_page_copy"):
        vmf = ways.vm_fault(levels)
        if vmf is not None:
            return kernel.member(vmf, "struct vm_fault", "address")
        level = code.find(levels, "copy_present_page", "copy_present_ptes")
        return level.number("addr") if level is not None else None
    if word == "leave" and page.mapping & memory.MAPPING_FLAGS == memory.MAPPING_ANON:
        for level in levels:
            where = _area(level)
            if where:
                vma = tasks.read_vma(where)
                return vma.place(page.index) if vma.anon_vma == page.owner else None
    return None


def _partner(hook: Hook) -> str:
    if hook.function == "pksm_merge_with_zero":
        return "the zero page"
    kind = "stable" if hook.function == "pksm_merge_with_stable" else "unstable"
    return f"{kind} pfn {memory.page_to_pfn(code.argument(1)):#x}"


class Trace:
    """The trace that is on: its breakpoints, its options, and what it has counted."""

    def __init__(
        self, *, stops: bool, process: str | None, count: int | None, log: TextIO | None
    ) -> None:
        self.stops = stops
        self.counts: dict[str, int] = {}
        self.lines = 0
        self.began = time.monotonic()
        self.failure: str | None = None
        self._process = process
        self._count = count
        self._log = log
        self._passing: dict[tuple[str, int], Passage] = {}
        self._breakpoints: list[gdb.Breakpoint] = []
        for hook in HOOKS:
            if code.function_address(hook.function) is None:
                continue
            self._breakpoints.append(_Enter(self, hook))
            self._breakpoints += [_Leave(self, hook, where) for where in code.exits(hook.function)]

    def enter(self, hook: Hook) -> None:
        """Remember a page that comes to a hook."""
        task = tasks.current()
        pfn = memory.page_to_pfn(code.argument(0))
        word = hook.word
        if hook.function == MOVED or word == WRITE:
            word = MOVERS.get(code.called_by(), word)
        if self._process not in (None, task.comm, str(task.pid)):
            return
        page = memory.read_page(pfn)
        self._passing[hook.function, code.stack_pointer()] = Passage(
            word,
            pfn,
            str(task),
            _address(word, page),
            short(record.read_record(pfn)),
            _partner(hook) if hook.word == "merge" else "",
        )

    def leave(self, hook: Hook) -> bool:
        """Write the line of a page that has passed a hook; return whether to stop."""
        passage = self._passing.pop((hook.function, code.stack_pointer()), None)
        if passage is None:
            return False
        if hook.word == "merge":
            names = {value: name for name, value in kernel.enum("pksm_result").items()}
            result = names.get(code.register("rax") & 0xFFFFFFFF, "?")
            state = f"with {passage.partner}: {result.removeprefix('PKSM_').lower()}"
        elif hook.word == "broken":
            # The mapping that goes is still counted.
            left = memory.read_page(passage.pfn).mapcount - 1
            state = f"{passage.before}, still mapped by {left}"
        else:
            after = short(record.read_record(passage.pfn))
            if hook.word == WRITE and after == passage.before:
                # A write to a page that is not watched: nobody wants to know.
                return False
            state = f"{passage.before} -> {after}"
        where = f"{passage.address:#x}" if passage.address is not None else "-"
        self._write(
            f"{passage.word:8} {passage.pfn:#8x}  {passage.process:22} {where:>16}  {state}"
        )
        self.counts[passage.word] = self.counts.get(passage.word, 0) + 1
        self.lines += 1
        return self.stops or (self._count is not None and self.lines >= self._count)

    def _write(self, line: str) -> None:
        out = self._log if self._log is not None else sys.stdout
        if not self.lines:
            out.write(HEADER + "\n")
        out.write(line + "\n")

    @property
    def over(self) -> bool:
        """Whether it has written as many lines as it was to."""
        return self._count is not None and self.lines >= self._count

    def close(self) -> None:
        """Remove its breakpoints, and close its file."""
        for breakpoint in self._breakpoints:
            if breakpoint.is_valid():
                breakpoint.delete()
        self._breakpoints = []
        if self._log is not None:
            self._log.close()

    def __str__(self) -> str:
        seconds = time.monotonic() - self.began
        parts = [f"{count} {word}" for word, count in sorted(self.counts.items())]
        return f"{self.lines} lines in {seconds:.1f} s ({', '.join(parts) or 'no page came'})"


class _Enter(gdb.Breakpoint):
    """Where a hook's function begins."""

    def __init__(self, trace: Trace, hook: Hook) -> None:
        super().__init__(f"*{code.entry(hook.function):#x}", internal=True)
        self.silent = True
        self._trace = trace
        self._hook = hook

    def stop(self) -> bool:
        """Remember the page. Stops only when something is wrong."""
        try:
            with kernel.remembering():
                self._trace.enter(self._hook)
        except (gdb.error, gdb.GdbError) as error:
            self._trace.failure = kernel.one_line(error)
            return True
        return False


class _Leave(gdb.Breakpoint):
    """One of the places where a hook's function ends."""

    def __init__(self, trace: Trace, hook: Hook, where: int) -> None:
        super().__init__(f"*{where:#x}", internal=True)
        self.silent = True
        self._trace = trace
        self._hook = hook

    def stop(self) -> bool:
        """Write the line."""
        try:
            with kernel.remembering():
                return self._trace.leave(self._hook)
        except (gdb.error, gdb.GdbError) as error:
            self._trace.failure = kernel.one_line(error)
            return True


_trace: Trace | None = None


def off() -> Trace | None:
    """Switch the trace off; return it."""
    global _trace
    was, _trace = _trace, None
    if was is not None:
        was.close()
    return was


def _on_stop(_event: object) -> None:
    """Switch a trace off that has written all its lines, or has failed."""
    if _trace is None:
        return
    if _trace.failure is not None:
        gdb.write(f"pksm hooks: {_trace.failure}; the trace is off\n", gdb.STDERR)
        off()
    elif _trace.over:
        print(f"The trace is off after {off()}.")


def _on_exit(_event: object) -> None:
    if _trace is not None:
        print(f"The guest has ended, or gdb has let go of it; the trace is off after {off()}.")


gdb.events.stop.connect(_on_stop)
gdb.events.exited.connect(_on_exit)

USAGE = "write: on or stop, with [--pid PID|COMM] [--count N] [--log FILE]; off; or status"


class Hooks(command.Command):
    """Trace the pages that pass the hooks of PKSM.

    pksm hooks on|stop [--pid PID|COMM] [--count N] [--log FILE]
    pksm hooks off
    pksm hooks status

on: while the guest runs, a line for each page that passes a hook: the hook, the
page frame number, the process in whose time it happens, the user address where
the calling functions know it (else -), and the page's record before -> after.
The hooks: enter (pksm_add_new_anon_page; for the copy of a merged page
__pksm_add_broken_off); move, swapin and sweep (all of them pksm_add_moved_page: by
migration, from swap, or a page that was there before PKSM was started or might have
it; swapin also for a page that was watched and comes back to where it may be written
to); write (__pksm_page_written: to a page that was watched); leave
(pksm_del_anon_page); drop (pksm_forget: pksmd or migration lets it go);
broken (__pksm_page_broken: the page is the merged one); and merge (what became of
an attempt, pksm_merge_with_...). stop: the same, but the guest stops at each,
where the hook has done its work. --pid: only what happens in that process (a name
may be of one to come); --count: stop, and switch the trace off, after N lines;
--log: write the lines to FILE. off removes the trace; status tells what it has
counted."""

    NAME = "hooks"
    OPTIONS = {"--pid": True, "--count": True, "--log": True}

    def run(self, words: command.Words) -> None:
        """Switch on or off, or tell."""
        action = words.rest[0] if words.rest else "status"
        if len(words.rest) > 1 or action not in ("on", "stop", "off", "status"):
            raise gdb.GdbError(f"what is '{words.raw}'? {USAGE}")
        if action in ("on", "stop"):
            self._on(action == "stop", words)
        elif words.options:
            raise gdb.GdbError(f"{action} takes no options; {USAGE}")
        elif action == "off":
            was = off()
            print(f"The trace is off after {was}." if was is not None else "No trace was on.")
        else:
            print(f"The trace is on: {_trace}." if _trace is not None else "No trace is on.")

    def _on(self, stops: bool, words: command.Words) -> None:
        global _trace
        kernel.need_live()
        if code.function_address(HOOKS[0].function) is None:
            raise gdb.GdbError("this kernel was built without CONFIG_PKSM: it has no hooks")
        count = words.number("--count", -1) if "--count" in words.options else None
        if count == 0:
            raise gdb.GdbError("--count takes a number of lines")
        process = words.options.get("--pid")
        if process is not None and process.isdigit():
            tasks.find(process)
        path = words.options.get("--log")
        off()
        try:
            log = open(path, "w", encoding="utf-8") if path is not None else None
        except OSError as error:
            raise gdb.GdbError(f"cannot write {path}: {error.strerror}") from error
        if process is not None:
            process = process[: tasks.COMM_LEN - 1]
        _trace = Trace(stops=stops, process=process, count=count, log=log)
        what = "stops at each page that passes a hook" if stops else "runs, and is traced"
        print(f"When it goes on (continue), the guest {what}.")


Hooks()

# SPDX-License-Identifier: GPL-2.0-only
"""The engine of the guided steps: a list of stages, each of which stops the guest once.

A guide follows one event (a fault, a free, a merge) from stage to stage. A
stage has places in the code, a condition which says that a pass through such a
place belongs to the event, and a function that prints. Stages on a way that is
not taken never stop. The breakpoints are internal, and are removed at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import gdb

from . import code, command, kernel, tasks

# What a stage prints: a label and its value each.
Facts = list[tuple[str, str]]
STDIN = 0
NEXT = "pksm next goes on to the next stage, pksm quit gives up."


@dataclass
class Stage:
    """A stage of a guide.

    ``when`` is asked at the stop and must not change anything but the guide;
    ``show`` prints, and returns True when the event is over. A stage is passed
    once unless it is ``repeated``. Only a stage that is ``first`` may begin the event.
    """

    name: str
    places: Iterable[int]
    when: Callable[[], bool]
    show: Callable[[], bool | None]
    first: bool = False
    repeated: bool = False
    done: bool = False


class _Stop(gdb.Breakpoint):
    """A place of a stage."""

    def __init__(self, guide: Guide, stage: Stage, where: int) -> None:
        super().__init__(f"*{where:#x}", internal=True)
        self.silent = True
        self._guide = guide
        self.stage = stage
        self.where = where

    def stop(self) -> bool:
        """Stop when this pass belongs to the event."""
        return self._guide.reached(self)


class Guide:
    """Follows one event. Subclasses say which, in stages()."""

    # What is followed, such as "fault".
    NAME = ""

    def __init__(self) -> None:
        self.task: int | None = None
        self.number = 0
        # What gdb has asked about the last stop at a place, and the stage that was found.
        self._asked: list[_Stop] = []
        self._pending: Stage | None = None
        self._failure: str | None = None
        self._driving = False
        self._breakpoints: list[_Stop] = []
        self._stages: list[Stage] = []

    def stages(self) -> list[Stage]:
        """Return the stages, with the places that this kernel has."""
        raise NotImplementedError

    def waits_for(self) -> str:
        """Return what is waited for before the first stage."""
        raise NotImplementedError

    # Conditions

    def mine(self) -> bool:
        """Return whether the task runs to which the event has been bound."""
        return self.task is not None and tasks.current().address == self.task

    def again(self) -> None:
        """Let every stage be passed once more: it all begins anew."""
        for stage in self._stages:
            stage.done = False

    # Running

    def install(self) -> None:
        """Set the breakpoints."""
        self._stages = self.stages()
        for stage in self._stages:
            for where in dict.fromkeys(stage.places):
                self._breakpoints.append(_Stop(self, stage, where))
        self._enable()

    def _enable(self) -> None:
        """Enable what may come next: each pass through a breakpoint costs milliseconds."""
        for breakpoint in self._breakpoints:
            stage = breakpoint.stage
            may_come = stage.first if not self.number else stage.repeated or not stage.done
            if breakpoint.enabled != may_come:
                breakpoint.enabled = may_come

    def remove(self) -> None:
        """Remove the breakpoints."""
        for breakpoint in self._breakpoints:
            if breakpoint.is_valid():
                breakpoint.delete()
        self._breakpoints = []

    def reached(self, stop: _Stop) -> bool:
        """Return whether to stop for a stage; called in the middle of gdb's own work.

        gdb asks once for each breakpoint of a place. It may ask and not stop all the same:
        where it goes on from a place, and a signal comes before the first instruction, it
        comes by the place again when the signal was handled, asks, and drops the answer.
        """
        if stop in self._asked or (self._asked and self._asked[0].where != stop.where):
            self._asked, self._pending, self._failure = [], None, None
        self._asked.append(stop)
        stage = stop.stage
        if self._pending is not None or (stage.done and not stage.repeated):
            return False
        try:
            with kernel.remembering():
                if not stage.when():
                    return False
        except (gdb.error, gdb.GdbError) as error:
            self._failure = f"stage '{stage.name}': {kernel.one_line(error)}"
            return True
        self._pending = stage
        return True

    def next(self) -> bool:
        """Let the guest run to the next stage; return whether there may be more."""
        if not self.number and os.isatty(STDIN):
            # Who sits there sees nothing else until it comes.
            gdb.write(f"Waiting for {self.waits_for()}; Ctrl-C stops the guest.\n")
            gdb.flush()
        self._driving = True
        try:
            gdb.execute("continue", to_string=True)
        finally:
            self._driving = False
        if self.arrived():
            return _guide is self
        if _guide is not self:
            return False
        frame = gdb.newest_frame()
        where = f"{code.plain(frame.name())}()" if frame.name() else f"{frame.pc():#x}"
        waits = f"it waits for {self.waits_for()}" if not self.number else "the guide is still on"
        print(f"The guest was stopped in {where}; {waits}.")
        print(NEXT)
        return False

    def arrived(self) -> bool:
        """Print the stage that the stop is for; return whether there is one."""
        asked, self._asked = self._asked, []
        here = int(gdb.newest_frame().pc()) if gdb.selected_thread() is not None else None
        if not asked or asked[0].where != here:
            # What was found there was dropped, and the guest has gone on.
            self._pending = self._failure = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            end()
            raise gdb.GdbError(f"{failure}; the {self.NAME} is not followed any more")
        stage, self._pending = self._pending, None
        if stage is None:
            return False
        stage.done = True
        with kernel.remembering():
            over = stage.show()
        if over:
            end()
        else:
            self._enable()
        return True

    def stopped_otherwise(self) -> None:
        """Print a stage at which the user's own continue has arrived."""
        if not self._driving and (self._pending is not None or self._failure is not None):
            self.arrived()

    # Printing

    def say(self, function: str, sentence: str, facts: Facts, *, within: str = "") -> None:
        """Print a stage: its function and file, what happens there, and what matters."""
        self.number += 1
        file = code.file_of(function)
        if not file:
            level = code.find(code.chain(), function)
            file = level.file if level is not None else code.file_of(within)
        inside = f", inlined into {within}()" if within and within != function else ""
        print(f"[{self.number}] {function}()  {file}{inside}")
        print(f"    {sentence}")
        for line in command.table([(f"    {label}", value) for label, value in facts]):
            print(line)


def inside(function: str) -> str:
    """Return the function in whose body the stop lies, when *function* was inlined there."""
    names = code.blocks_at(gdb.newest_frame().pc())
    return names[-1] if names and function in names[:-1] else ""


_guide: Guide | None = None


def current() -> Guide:
    """Return the guide that is on. Raises GdbError without one."""
    if _guide is None:
        raise gdb.GdbError("nothing is followed; begin by pksm fault, free, merge or cow")
    return _guide


def end() -> bool:
    """End the guide that is on; return whether there was one."""
    global _guide
    was, _guide = _guide, None
    if was is not None:
        was.remove()
    return was is not None


def begin(guide: Guide, *, through: bool) -> None:
    """Follow an event from now on: to its first stage, or *through* all of them."""
    global _guide
    kernel.need_live()
    if _guide is not None:
        print(f"The {_guide.NAME} that was followed is given up.")
    end()
    _guide = guide
    try:
        guide.install()
    except BaseException:
        end()
        raise
    go_on(through=through)


def go_on(*, through: bool) -> None:
    """Go on to the next stage, or through all of them."""
    guide = current()
    more = guide.next()
    while through and more:
        more = guide.next()


def _on_stop(_event: object) -> None:
    if _guide is not None:
        try:
            _guide.stopped_otherwise()
        except gdb.GdbError as error:
            gdb.write(f"{error}\n", gdb.STDERR)


def _on_exit(_event: object) -> None:
    if _guide is not None:
        print(f"The guest has ended, or gdb has let go of it; no {_guide.NAME} is followed.")
        end()


gdb.events.stop.connect(_on_stop)
gdb.events.exited.connect(_on_exit)

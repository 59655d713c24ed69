# SPDX-License-Identifier: GPL-2.0-only
"""Begins a session: attaches to a guest, and talks to the launcher that booted it.

The launcher's wishes are in the environment, as JSON in LINUX_UM_SESSION; see
``Session`` in harness/linux_um/gdb_session.py. Without it this is a session
that was begun by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gdb

from . import kernel, tasks

VARIABLE = "LINUX_UM_SESSION"
# How the launcher says that a session could not begin.
EXIT_LAUNCHER = 125
# Seconds the launcher may take for an answer.
ANSWER_SECONDS = 20.0
PKSM_ENTRY = "pksm_add_new_anon_page"
STOCK_ENTRY = "do_anonymous_page"


class SessionError(gdb.GdbError):
    """A session that cannot begin, in one line; ``status`` is to be gdb's exit status."""

    def __init__(self, message: str, status: int = EXIT_LAUNCHER) -> None:
        super().__init__(message)
        self.status = status


class Launcher:
    """The launcher's end of the line: one JSON object each way for each request."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(ANSWER_SECONDS)
        self._number = 0

    def ask(self, request: str, **details: object) -> dict[str, Any]:
        """Make a request and return the answer. Raises GdbError with the launcher's reason."""
        self._number += 1
        message = {"number": self._number, "request": request, **details}
        found: dict[str, Any] = {}
        try:
            self._socket.sendall(json.dumps(message).encode())
            # Answers that came too late for their requests are left out.
            while found.get("number") != self._number:
                answer = self._socket.recv(1 << 16)
                if not answer:
                    raise gdb.GdbError("the launcher has ended")
                found = json.loads(answer)
        except OSError as error:
            raise gdb.GdbError(f"the launcher does not answer: {error}") from error
        if "error" in found:
            raise gdb.GdbError(str(found["error"]))
        return found


_launcher: Launcher | None = None


def begin() -> None:
    """Do what the launcher wishes. What fails ends a session of the launcher's, in one line.

    The wishes are ours alone: a gdb that this one starts does not inherit them.
    """
    wishes: dict[str, Any] = json.loads(os.environ.pop(VARIABLE, "{}"))
    try:
        _begin(wishes)
    except (gdb.error, gdb.GdbError) as error:
        gdb.write(f"session.gdb: {error}\n", gdb.STDERR)
        if wishes:
            gdb.execute(f"quit {getattr(error, 'status', EXIT_LAUNCHER)}")


def _begin(wishes: dict[str, Any]) -> None:
    global _launcher
    if wishes.get("batch"):
        gdb.execute("set width 0")
        gdb.execute("set style enabled off")
    _check_kernel()
    if "sources" in wishes:
        gdb.execute(f"directory {wishes['sources']}", to_string=True)
    _load_lx(wishes.get("scripts"))
    if "control" in wishes:
        _launcher = Launcher(int(wishes["control"]))
    if "pid" in wishes:
        _attach(int(wishes["pid"]))
    if "core" in wishes:
        gdb.execute(f"core-file {wishes['core']}", to_string=True)
    if "keep_core" in wishes:
        _End(wishes["keep_core"])
    if _launcher is not None and wishes.get("announce"):
        _launcher.ask("attached")
    if wishes.get("command"):
        stop_at_first_page(wishes["command"])
    elif not wishes.get("batch"):
        _introduce(wishes)


class Refuse(gdb.Command):
    """Refuse a command that would start another guest; for session.gdb's hooks."""

    def __init__(self) -> None:
        super().__init__("linux-um-refuse", gdb.COMMAND_OBSCURE)

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Raise GdbError while there is a guest."""
        if gdb.selected_thread() is not None:
            raise gdb.GdbError(
                f"{argument} would put another guest in the place of this one; use continue"
            )


Refuse()


class LxSymbols(gdb.Command):
    """Say that the kernel's symbols are loaded: there are no modules in this kernel.

The kernel's own lx-symbols would look for vmlinux here, and lose what there is."""

    def __init__(self) -> None:
        super().__init__("lx-symbols", gdb.COMMAND_FILES)

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Say so."""
        print("The symbols of the kernel are loaded, and it has no modules.")


class LxCurrent(gdb.Function):
    """Return the current task.

$lx_current(): the task_struct of the task that runs on the CPU of the selected thread.

The kernel's own knows how UML of 6.12 notes it, with one CPU."""

    def __init__(self) -> None:
        super().__init__("lx_current")

    def invoke(self, *args: gdb.Value) -> gdb.Value:
        """Return it."""
        where = tasks.current().address
        return kernel.pointer(where, "struct task_struct").dereference()


def _check_kernel() -> None:
    """See that gdb has a kernel with symbols. Raises SessionError."""
    if gdb.lookup_global_symbol("linux_banner") is None:
        names = [objfile.filename for objfile in gdb.objfiles() if objfile.filename]
        what = f"{names[0]} is no Linux kernel with symbols" if names else "no kernel given"
        raise SessionError(f"{what}; run: gdb -x gdb-scripts/session.gdb vmlinux")


def _load_lx(scripts: str | None) -> None:
    """Load the kernel's own lx- commands from *scripts*, or from where a build has them."""
    candidates = [Path(scripts)] if scripts else []
    if not scripts:
        beside = Path(gdb.objfiles()[0].filename or "").resolve().parent
        candidates = [beside / "gdb" / "vmlinux-gdb.py", beside / "vmlinux-gdb.py"]
    for path in candidates:
        if path.is_file():
            gdb.execute(f"source {path}")
            LxSymbols()
            LxCurrent()
            return
    missing = candidates[0] if scripts else "vmlinux-gdb.py beside the kernel"
    gdb.write(f"session.gdb: no {missing}: this session has no lx- commands\n", gdb.STDERR)


def _attach(pid: int) -> None:
    """Attach to the UML process *pid*. Raises SessionError with the reason it cannot be."""
    try:
        with quiet():
            gdb.execute(f"attach {pid}", to_string=True)
    except gdb.error as error:
        reason = " ".join(str(error).split()).rstrip(".")
        mend = "run as the guest's user, or as root"
        scope = Path("/proc/sys/kernel/yama/ptrace_scope")
        if scope.is_file() and scope.read_text().strip() != "0":
            mend += "; kernel.yama.ptrace_scope is " + scope.read_text().strip()
        raise SessionError(f"cannot attach to process {pid}: {reason}; {mend}") from error


class _End(gdb.Breakpoint):
    """Stops where a panic ends, before UML sends SIGTERM to all its processes.

    gdb traces some of them, and cannot write a core when one has just died.
    """

    def __init__(self, target: str) -> None:
        super().__init__("os_dump_core", internal=True)
        self._target = target
        gdb.events.stop.connect(self._on_stop)

    def _on_stop(self, event: Any) -> None:
        ends = self in getattr(event, "breakpoints", ())
        aborts = getattr(event, "stop_signal", "") == "SIGABRT"
        if (ends or aborts) and not os.path.exists(self._target):
            gdb.execute("set use-coredump-filter off")
            gdb.execute(f"generate-core-file {self._target}")
            gdb.write("The guest's kernel has panicked, and ends.\n")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let gdb not say where it stops."""
    gdb.execute("set suppress-cli-notifications on")
    try:
        yield
    finally:
        gdb.execute("set suppress-cli-notifications off")


def _introduce(wishes: dict[str, Any]) -> None:
    """Say in two lines what there is to see."""
    if gdb.selected_inferior().pid == 0:
        gdb.write("No guest yet: attach PID, or core-file FILE. See help pksm, apropos lx-.\n")
        return
    name = kernel.symbol("init_uts_ns")["name"]
    task = tasks.current()
    where = f"{task.comm} (pid {task.pid})"
    state = "a core dump" if wishes.get("core") else "a guest that stands still"
    gdb.write(f"Linux {name['release'].string()}, {state}, in {where}.\n")
    hints = ["help pksm", "apropos lx-"]
    if _launcher is not None and not wishes.get("announce"):
        hints.append("pksm guest memdup --procs 4; continue")
    gdb.write(f"Try: {', '.join(hints)}.\n")


class _Exec(gdb.Breakpoint):
    """Notices the task that executes a program: exec's first copy is of the file's name."""

    def __init__(self, program: str) -> None:
        super().__init__("copy_string_kernel", internal=True)
        self._program = program
        self.exec_task: int | None = None

    def stop(self) -> bool:
        """Note the task when the name is the one. Never stops."""
        if self.exec_task is None:
            name = gdb.selected_frame().read_var("arg").string(errors="replace")
            if name == self._program or (
                "/" not in self._program and os.path.basename(name) == self._program
            ):
                self.exec_task = tasks.current().address
        return False


class _FirstPage(gdb.Breakpoint):
    """Stops where the task that _Exec has noticed is given a page."""

    def __init__(self, place: str, program: _Exec) -> None:
        super().__init__(place, internal=True)
        self._exec = program
        self.hit = False

    def stop(self) -> bool:
        """Stop in that task."""
        if self._exec.exec_task is not None:
            self.hit = self.hit or tasks.current().address == self._exec.exec_task
        return self.hit


def entry_function() -> str:
    """Return the function in which a new anonymous page is taken in."""
    has_pksm = gdb.lookup_global_symbol(PKSM_ENTRY) is not None
    return PKSM_ENTRY if has_pksm else STOCK_ENTRY


def stop_at_first_page(argv: list[str]) -> None:
    """Let the launcher start *argv*, and stop before its first page enters.

    Raises SessionError when the program ends before it has had a page.
    """
    if _launcher is None:
        raise gdb.GdbError("no launcher to start a program")
    place = entry_function()
    program = _Exec(argv[0])
    page = _FirstPage(place, program)
    try:
        _launcher.ask("start")
        with quiet():
            gdb.execute("continue", to_string=True)
        ended = _launcher.ask("stopped").get("status")
    finally:
        hit = page.hit
        page.delete()
        program.delete()
    if hit:
        _show_inlined(place)
        gdb.write(_explain(argv[0], place))
        gdb.execute("frame")
    elif ended is not None:
        raise SessionError(
            f"{argv[0]} ended with status {ended} before its first page", ended or EXIT_LAUNCHER
        )
    else:
        gdb.write(f"Stopped before {argv[0]} had its first page.\n")


def _show_inlined(function: str) -> None:
    """At the first instruction of an inlined function, make gdb show the function's frame.

    gdb hides it, and those around it that begin there too, at breakpoints that
    are no user's. A step then shows one of them, and nothing runs.
    """
    with quiet():
        for _ in range(8):
            if gdb.newest_frame().name() == function:
                return
            gdb.execute("step", to_string=True)


def _explain(program: str, place: str) -> str:
    """Return a line about the first page of a program."""
    pid = tasks.current().pid
    callers = set()
    frame: gdb.Frame | None = gdb.newest_frame()
    while frame is not None and frame.is_valid():
        callers.add(frame.name())
        frame = frame.older()
    way = "it came by a way that is none of exec's"
    if "get_arg_page" in callers:
        way = "it holds exec's arguments, and get_arg_page() brings it in through GUP, not a fault"
    verb = "is about to enter" if place == PKSM_ENTRY else "is about to be made"
    return f"The first page of {program} (pid {pid}) {verb}: {way}.\n"


class PksmGuest(gdb.Command):
    """Start a program in the guest.

    pksm guest COMMAND ARG...

It begins to run when the guest does (continue). Nothing stops by itself; the
output appears on the terminal, as does a line when it has ended. The words
are split as a shell does; for pipes and the like: pksm guest sh -c '...'"""

    def __init__(self) -> None:
        super().__init__("pksm guest", gdb.COMMAND_RUNNING)

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Hand the command to the launcher."""
        try:
            argv = shlex.split(argument)
        except ValueError as error:
            raise gdb.GdbError(f"pksm guest: {error}") from error
        if not argv:
            raise gdb.GdbError("no command; write: pksm guest COMMAND ARG...")
        if _launcher is None:
            raise gdb.GdbError(
                "no launcher to start a program: this session was attached, or begun by hand; "
                "use ./linux-um gdb"
            )
        _launcher.ask("guest", argv=argv)


PksmGuest()

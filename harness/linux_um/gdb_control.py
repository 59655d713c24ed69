# SPDX-License-Identifier: GPL-2.0-only
"""The line between gdb and the launcher that has booted the guest.

gdb holds the guest, the launcher has the line to its agent. So gdb asks, one
JSON object for each request, and the launcher answers:

    start           start the session's command, whose end stops the guest
    stopped         the guest stands still; answers the command's status, if it has ended
    guest argv      start a program (`pksm guest`)
    attached        gdb is attached (a test waits for that)

An answer is an object too, with the request's ``number``, and with ``error``
when there is a reason to complain.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from .agent import Guest
from .errors import LinuxUmError
from .gdb_machine import tracer_of
from .outcome import CommandFailed
from .process import Process
from .term import Term

_STDOUT, _STDERR = 1, 2
MAX_MESSAGE = 1 << 16

Answer = dict[str, Any]


def pass_on(descriptor: int) -> Callable[[bytes], None]:
    """Return a sink that writes to one of our standard streams, as long as somebody reads."""

    def sink(data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            return

    return sink


class Control:
    """Serves the requests of one gdb in a thread of its own."""

    def __init__(self) -> None:
        """Make the line. Call :meth:`serve`, start gdb with :attr:`descriptor`, then
        :meth:`close_far_end`."""
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._serve, name="gdb line", daemon=True)
        self._handlers: dict[str, Callable[[Answer], Answer]] = {}

    @property
    def descriptor(self) -> int:
        """The end that gdb is to inherit."""
        return self._far.fileno()

    def handle(self, request: str, handler: Callable[[Answer], Answer]) -> None:
        """Let *handler* answer the requests called *request*."""
        self._handlers[request] = handler

    def serve(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close_far_end(self) -> None:
        """Leave gdb's end to gdb alone, so that its end is noticed."""
        self._far.close()

    def close(self) -> None:
        """Answer no more."""
        self._far.close()
        try:
            self._near.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if self._thread.ident is not None:
            self._thread.join(5.0)
        self._near.close()

    def _serve(self) -> None:
        try:
            while data := self._near.recv(MAX_MESSAGE):
                self._near.send(json.dumps(self._answer(data)).encode())
        except OSError:
            return

    def _answer(self, data: bytes) -> Answer:
        try:
            request = json.loads(data)
            number, name = int(request["number"]), str(request["request"])
        except (ValueError, KeyError, TypeError) as error:
            return {"number": 0, "error": f"the launcher does not understand: {error!r}"}
        handler = self._handlers.get(name)
        if handler is None:
            return {"number": number, "error": f"this session has no '{name}'"}
        try:
            return {"number": number, **handler(request)}
        except LinuxUmError as error:
            return {"number": number, "error": error.line()}


class Programs:
    """The programs a session starts in its guest; the session's own command is one of them."""

    def __init__(self, guest: Guest, pid: int, command: Sequence[str], term: Term) -> None:
        """*pid* is the UML process."""
        self._guest = guest
        self._pid = pid
        self._argv = list(command)
        self._term = term
        self.command: Process | None = None
        # Shown from the start of the command until the guest stands still.
        self._waiting = ExitStack()
        # gdb's number, once it is known; only while it traces may the guest be interrupted.
        self.debugger = 0

    def serve(self, control: Control) -> None:
        """Answer the requests of *control* that are about programs."""
        control.handle("start", self._start)
        control.handle("stopped", self._stopped)
        control.handle("guest", lambda request: self._run([str(x) for x in request["argv"]]))

    def _launch(self, argv: Sequence[str], ended: Callable[[], None]) -> Process:
        if not self._guest.alive:
            raise CommandFailed("the guest has ended")
        process = self._guest.start(
            argv, on_stdout=pass_on(_STDOUT), on_stderr=pass_on(_STDERR), on_exit=ended
        )
        process.close_stdin()
        return process

    def _run(self, argv: Sequence[str]) -> Answer:
        process = self._launch(argv, lambda: self._tell_end(process))
        return {}

    def _tell_end(self, process: Process) -> None:
        if process.status is not None:
            name = shlex.join(process.argv)
            self._term.info(f"{name} has ended with status {process.status}")

    def _start(self, _request: Answer) -> Answer:
        text = f"waiting for {self._argv[0]} to be given its first page"
        self._waiting.enter_context(self._term.waiting(text))
        self.command = self._launch(self._argv, self._command_ended)
        return {}

    def _command_ended(self) -> None:
        """Stop the guest: there is nothing left that it would do."""
        self.end_wait()
        if self.command is not None:
            self._tell_end(self.command)
        # To a guest that is not traced the signal would be deadly.
        if self.debugger and tracer_of(self._pid) == self.debugger:
            os.kill(self._pid, signal.SIGINT)

    def end_wait(self) -> None:
        """Show no more that something is waited for."""
        self._waiting.close()

    def _stopped(self, _request: Answer) -> Answer:
        self.end_wait()
        return {"status": self.command.status if self.command is not None else None}

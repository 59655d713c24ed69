# SPDX-License-Identifier: GPL-2.0-only
"""Looking on at a guest that somebody else has booted.

Its launcher has the line to the agent, and serves a socket in the run
directory: an onlooker sends a line of JSON, ``{"paths": [...]}``, and gets one
back, ``{"files": {path: [mode, text]}}``, from the survey that the agent makes
of these files and directories. As long as nobody asks, the guest knows nothing
of it; and an onlooker can neither end the guest nor make its launcher wait.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .agent import Guest
from .errors import SessionError
from .outcome import GuestGone
from .protocol import ProtocolError

# More than anybody has terminals for; a bound for the threads.
MAX_ONLOOKERS = 16
_MAX_REQUEST = 4096

# Path to mode and text.
Files = Mapping[str, tuple[int, str]]


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """Give a name of the socket *path* that fits into the 107 bytes an address has."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class Watch:
    """The launcher's end: answers onlookers, each in a thread of its own."""

    def __init__(self, path: Path) -> None:
        """Make the socket *path*. Where that is impossible the guest has no onlookers."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False
        # One survey at a time: they must not fill the line.
        self._turn = threading.Lock()
        try:
            with _address(path) as name:
                self._listener.bind(name)
            self._listener.listen(MAX_ONLOOKERS)
        except OSError:
            self._listener.close()

    def serve(self, guest: Guest) -> None:
        """Begin to answer from *guest*, which may still have to boot."""
        if self._listener.fileno() >= 0:
            threading.Thread(
                target=self._accept, args=(guest,), name="onlookers", daemon=True
            ).start()

    def close(self) -> None:
        """Answer no more, and let go of all onlookers: the guest has ended."""
        with self._lock:
            self._closed = True
            for line in (self._listener, *self._open):
                try:
                    # Wakes whoever waits for it in another thread.
                    line.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        self._listener.close()

    def _accept(self, guest: Guest) -> None:
        while True:
            try:
                line = self._listener.accept()[0]
            except OSError:
                return
            with self._lock:
                refused = self._closed or len(self._open) >= MAX_ONLOOKERS
                if not refused:
                    self._open.add(line)
            if refused:
                _refuse(line, f"it has {MAX_ONLOOKERS} onlookers already")
                continue
            threading.Thread(
                target=self._attend, args=(line, guest), name="onlooker", daemon=True
            ).start()

    def _attend(self, line: socket.socket, guest: Guest) -> None:
        try:
            with line.makefile("rb") as requests:
                while request := requests.readline(_MAX_REQUEST):
                    paths = [str(path) for path in json.loads(request)["paths"]]
                    with self._turn:
                        files = guest.survey(paths)
                    answer = {"files": {file.path: (file.mode, file.text) for file in files}}
                    line.sendall(json.dumps(answer).encode() + b"\n")
        except (OSError, ValueError, KeyError, TypeError, GuestGone, ProtocolError):
            # It has hung up, asks nonsense, or there is nothing left to ask.
            pass
        finally:
            with self._lock:
                self._open.discard(line)
                line.close()


def _refuse(line: socket.socket, why: str) -> None:
    """Answer a request that has not come yet, and hang up."""
    try:
        line.sendall(json.dumps({"error": why}).encode() + b"\n")
    except OSError:
        pass
    line.close()


class Onlooker:
    """The other end: asks for files of a guest, one request at a time."""

    def __init__(self, path: Path) -> None:
        """Connect to the socket *path*. Raises OSError when nobody serves it."""
        self._line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._received = bytearray()
        try:
            with _address(path) as name:
                self._line.connect(name)
        except OSError:
            self._line.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when an answer comes."""
        return self._line.fileno()

    def request(self, paths: Sequence[str]) -> None:
        """Ask for *paths*; nothing else before the answer has come."""
        try:
            self._line.sendall(json.dumps({"paths": list(paths)}).encode() + b"\n")
        except OSError:
            # Nobody is there any more: receive() will say why, or that.
            return

    def receive(self, timeout: float) -> Files | None:
        """Return the answer, or None when it has not come within *timeout* seconds.

        Raises EOFError when the guest has ended, SessionError when it is refused.
        """
        limit = time.monotonic() + timeout
        while b"\n" not in self._received:
            left = max(limit - time.monotonic(), 0.0)
            if not select.select([self._line], [], [], left)[0]:
                return None
            try:
                data = self._line.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                raise EOFError("the guest has ended")
            self._received += data
        answer, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        found = json.loads(answer)
        if "error" in found:
            raise SessionError(f"the guest cannot be watched: {found['error']}")
        return {path: (int(mode), str(text)) for path, (mode, text) in found["files"].items()}

    def close(self) -> None:
        """Hang up."""
        self._line.close()

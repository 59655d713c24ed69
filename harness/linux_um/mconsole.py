# SPDX-License-Identifier: GPL-2.0-only
"""A client of UML's management console (arch/um/drivers/mconsole.h in the kernel)."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_MAGIC = 0xCAFEBABE
_VERSION = 2
_MAX_DATA = 512
_REQUEST = struct.Struct(f"=III{_MAX_DATA}s")
_REPLY = struct.Struct("=III")


class MconsoleError(OSError):
    """The management console does not answer, or answers with an error."""


def mconsole(sock: Path, command: str, *, timeout: float = 2.0) -> str:
    """Send *command* (``sysrq t``, ``version``, ``stop``...) and return the answer.

    *timeout* is in seconds for each datagram. Raises MconsoleError.
    """
    data = command.encode()
    if len(data) >= _MAX_DATA:
        raise MconsoleError(f"mconsole command of {len(data)} bytes is too long")
    # A socket's path has room for 107 bytes, so go by way of the directory.
    directory = -1
    try:
        directory = os.open(sock.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout)
            client.bind("")  # the kernel picks an abstract address for the answers
            request = _REQUEST.pack(_MAGIC, _VERSION, len(data), data)
            client.sendto(request, f"/proc/self/fd/{directory}/{sock.name}")
            return _receive(client)
    except OSError as error:
        raise MconsoleError(f"mconsole {command}: {error}") from error
    finally:
        if directory >= 0:
            os.close(directory)


def _receive(client: socket.socket) -> str:
    answer = bytearray()
    while True:
        reply = client.recv(_REPLY.size + _MAX_DATA)
        failed, more, length = _REPLY.unpack_from(reply)
        answer += reply[_REPLY.size : _REPLY.size + length].rstrip(b"\0")
        if failed:
            raise MconsoleError(answer.decode(errors="replace"))
        if not more:
            return answer.decode(errors="replace")

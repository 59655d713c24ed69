# SPDX-License-Identifier: GPL-2.0-only
"""The frames between the host and the agent.

rootfs/agent/protocol.h is the definition and says what each frame means; this
module mirrors it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

PROTOCOL_VERSION = 3
FRAME_MAX = 32768
LINE_WINDOW = 3072
STDIN_WINDOW = 4096
MAX_STRINGS = 2046
EXEC_PTY = 1
SURVEY_PIECE = 4096
# Bytes of the paths of one survey; an idle line has room for as many.
MAX_SURVEY = 1024

_HEADER = struct.Struct("<BII")
_EXEC = struct.Struct("<BHHHH")


class ToGuest(IntEnum):
    """Frame types the host sends."""

    EXEC = 1
    STDIN = 2
    STDIN_EOF = 3
    SIGNAL = 4
    WINSIZE = 5
    READ = 6
    WRITE = 7
    MOUNT = 8
    SHUTDOWN = 9
    SURVEY = 10


class ToHost(IntEnum):
    """Frame types the agent sends."""

    HELLO = 65
    STDOUT = 66
    STDERR = 67
    CREDIT = 68
    EXIT = 69
    ERROR = 70
    TAKEN = 71


class ProtocolError(ValueError):
    """The bytes on the agent's line are not frames, or a frame cannot be sent."""


@dataclass(frozen=True)
class Frame:
    """One frame: its type, its channel (0 is the agent itself) and its payload."""

    type: int
    channel: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Return the bytes on the line. Raises ProtocolError when it is too long."""
        if len(self.payload) > FRAME_MAX:
            raise ProtocolError(
                f"a frame of {len(self.payload)} bytes is longer than {FRAME_MAX}"
            )
        return _HEADER.pack(self.type, self.channel, len(self.payload)) + self.payload

    def u32(self) -> int:
        """Return the payload as one integer. Raises ProtocolError when it is not one."""
        if len(self.payload) < 4:
            raise ProtocolError(f"frame {self.type}: 4 bytes expected, got {len(self.payload)}")
        return int.from_bytes(self.payload[:4], "little")


class FrameReader:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that *data* completes.

        Raises ProtocolError when the stream cannot be frames.
        """
        self._buffer += data
        # Whoever writes less than a header of something else is found out all the same.
        if self._buffer and self._buffer[0] not in ToHost._value2member_map_:
            raise ProtocolError(f"not a frame: {bytes(self._buffer[:32])!r}")
        while len(self._buffer) >= _HEADER.size:
            kind, channel, length = _HEADER.unpack_from(self._buffer)
            if length > FRAME_MAX or kind not in ToHost._value2member_map_:
                raise ProtocolError(f"not a frame: {bytes(self._buffer[:32])!r}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield Frame(kind, channel, payload)


def _strings(texts: Sequence[str]) -> bytes:
    for text in texts:
        if "\0" in text:
            raise ProtocolError(f"a NUL character in {text!r}")
    return b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in texts)


def exec_frame(
    channel: int,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: str = "",
    window: tuple[int, int] | None = None,
) -> Frame:
    """Return the frame that starts *argv*; *window* (rows, columns) asks for a pty.

    Raises ProtocolError when there are too many words or they are too long.
    """
    pairs = [f"{name}={value}" for name, value in env.items()]
    if not argv or len(argv) + len(pairs) > MAX_STRINGS:
        raise ProtocolError(f"a command must have between 1 and {MAX_STRINGS} words")
    flags, rows, columns = (EXEC_PTY, *window) if window is not None else (0, 0, 0)
    head = _EXEC.pack(flags, rows, columns, len(argv), len(pairs))
    frame = Frame(ToGuest.EXEC, channel, head + _strings([cwd, *argv, *pairs]))
    frame.encode()
    return frame


def winsize_frame(channel: int, rows: int, columns: int) -> Frame:
    """Return the frame that tells a pty its new size, in characters."""
    return Frame(ToGuest.WINSIZE, channel, struct.pack("<HH", rows, columns))


def read_frame(channel: int, path: str) -> Frame:
    """Return the frame that asks for the content of a file of the guest."""
    return Frame(ToGuest.READ, channel, _strings([path]))


def write_frame(channel: int, path: str, data: bytes) -> Frame:
    """Return the frame that writes *data* to a file of the guest."""
    return Frame(ToGuest.WRITE, channel, _strings([path]) + data)


def mount_frame(channel: int, host_path: str, guest_path: str) -> Frame:
    """Return the frame that mounts a directory of the host in the guest."""
    return Frame(ToGuest.MOUNT, channel, _strings([host_path, guest_path]))


def survey_frame(channel: int, paths: Sequence[str]) -> Frame:
    """Return the frame that asks for *paths*, files and directories of files.

    Raises ProtocolError when they are too long to be sent without waiting.
    """
    payload = _strings(paths)
    if len(payload) > MAX_SURVEY:
        raise ProtocolError(f"the paths of a survey have {len(payload)} bytes of {MAX_SURVEY}")
    return Frame(ToGuest.SURVEY, channel, payload)


@dataclass(frozen=True)
class SurveyedFile:
    """What a survey says of one file."""

    mode: int
    path: str
    text: str

    @classmethod
    def parse(cls, payload: bytes) -> SurveyedFile:
        """Return the file that the payload of a STDOUT frame of a survey is about.

        Raises ProtocolError when it is not one.
        """
        path, nul, content = payload[4:].partition(b"\0")
        if len(payload) < 4 or not path or not nul:
            raise ProtocolError(f"not a file of a survey: {payload[:32]!r}")
        return cls(
            int.from_bytes(payload[:4], "little"),
            path.decode(errors="replace"),
            content.decode(errors="replace"),
        )

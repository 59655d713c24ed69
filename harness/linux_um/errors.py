# SPDX-License-Identifier: GPL-2.0-only
"""The exceptions of the launcher: one class per stage, each with its exit status.

Every error is shown as one line, ``linux-um: what is wrong; how to mend it``,
and ends the launcher with ``exit_status``.
"""

from __future__ import annotations

import errno
import signal
from typing import TypeVar

EXIT_GUEST_TIMEOUT = 124
EXIT_LAUNCHER = 125
EXIT_NO_BOOT = 126
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_PANIC = 128 + signal.SIGABRT


class LinuxUmError(Exception):
    """Base of all errors that a user is meant to read.

    ``message`` says in one line what is wrong, ``mend`` (may be empty) says
    how to mend it; ``exit_status`` is the launcher's exit status.
    """

    exit_status: int = EXIT_LAUNCHER

    def __init__(self, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def line(self) -> str:
        """Return the error as one line, without the program's name."""
        text = f"{self.message}; {self.mend}" if self.mend else self.message
        # A guest's words may be in it: they are not to drive the terminal.
        shown = "".join(c if c.isprintable() or c.isspace() else "?" for c in text)
        return " ".join(shown.split())

    def __str__(self) -> str:
        return self.line()


class UsageError(LinuxUmError):
    """The command line asks for something that does not exist."""


class HostError(LinuxUmError):
    """The host lacks something that User-Mode Linux or the harness needs."""


class SourceError(LinuxUmError):
    """The kernel source is missing, unverified or unreadable."""


class PatchError(LinuxUmError):
    """A patch does not fit, or the series or the overlay is inconsistent."""


class ConfigError(LinuxUmError):
    """A kernel configuration cannot be made, or a symbol did not stick."""


class BuildError(LinuxUmError):
    """The kernel does not compile or link."""


class RootfsError(LinuxUmError):
    """The guest's initramfs cannot be made."""


class SessionError(LinuxUmError):
    """A gdb session cannot begin, or gdb is not what it takes."""


class OutputError(LinuxUmError):
    """What a program in the guest writes cannot be passed on."""


class BootError(LinuxUmError):
    """The guest ended or fell silent before its agent answered."""

    exit_status = EXIT_NO_BOOT


class GuestTimeout(LinuxUmError):
    """The guest did not finish within its wall-clock limit."""

    exit_status = EXIT_GUEST_TIMEOUT


class GuestHang(GuestTimeout):
    """The same, and its kernel does not answer on the management console."""


class GuestPanic(LinuxUmError):
    """The guest's kernel panicked."""

    exit_status = EXIT_PANIC


_Kind = TypeVar("_Kind", bound=LinuxUmError)
_ROOM = "make room there, or set LINUX_UM_CACHE to a directory of your own with 6 GB of free space"
_OWN = "set LINUX_UM_CACHE to a directory of your own"
# How what the host refuses is mended.
_MENDS = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EROFS: _OWN,
    errno.EACCES: _OWN,
    errno.EPERM: _OWN,
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.EIO: "see the host's log: dmesg",
}


def cannot(error: OSError, what: str, kind: type[_Kind]) -> _Kind:
    """Return the error for *what* the host did not let us do: one line, with path and mend."""
    path = str(error.filename) if error.filename is not None else ""
    place = f"{path}: " if path not in what else ""
    reason = error.strerror or str(error)
    return kind(f"cannot {what}: {place}{reason}", _MENDS.get(error.errno or 0, ""))

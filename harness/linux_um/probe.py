# SPDX-License-Identifier: GPL-2.0-only
"""Tries what User-Mode Linux does to its processes: trace a child and read its registers."""

from __future__ import annotations

import ctypes
import os
import signal

PTRACE_TRACEME = 0
PTRACE_GETREGSET = 0x4204
NT_X86_XSTATE = 0x202
BUFFER_BYTES = 1 << 16


class _Iovec(ctypes.Structure):
    _fields_ = (("iov_base", ctypes.c_void_p), ("iov_len", ctypes.c_size_t))


def traced_xstate_bytes() -> tuple[int | None, str]:
    """Trace a child; return the size of its extended register state and an error text.

    The size is in bytes, None when it cannot be read. The error is empty
    when tracing works.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    child = os.fork()
    if child == 0:
        if libc.ptrace(PTRACE_TRACEME, 0, None, None) != 0:
            os._exit(ctypes.get_errno() & 0x7F or 1)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        reason = os.strerror(os.WEXITSTATUS(status)) if os.WIFEXITED(status) else "killed"
        return None, f"a child cannot be traced: {reason}"
    try:
        buffer = ctypes.create_string_buffer(BUFFER_BYTES)
        vector = _Iovec(ctypes.cast(buffer, ctypes.c_void_p), BUFFER_BYTES)
        result = libc.ptrace(PTRACE_GETREGSET, child, NT_X86_XSTATE, ctypes.byref(vector))
        if result != 0:
            return None, ""
        return int(vector.iov_len), ""
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

# SPDX-License-Identifier: GPL-2.0-only
"""The host's end of the agent's line: programs in a guest, files of it, how it ended.

All methods may be called from several threads. A guest that panics, is late,
hangs or goes away raises the matching error from whichever call is waiting for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import BootError, GuestHang, GuestTimeout, HostError, LinuxUmError
from .machine import Machine, MachineError
from .outcome import (
    ABORTED,
    CommandFailed,
    Finding,
    GuestGone,
    LineError,
    judge_end,
    powered_down,
    scan,
)
from .protocol import (
    LINE_WINDOW,
    PROTOCOL_VERSION,
    Frame,
    FrameReader,
    ProtocolError,
    SurveyedFile,
    ToGuest,
    ToHost,
    exec_frame,
    mount_frame,
    read_frame,
    survey_frame,
    write_frame,
)
from .process import Completed, Process, Sink
from .rundir import RunDir

PKSM_DIR = "/sys/kernel/mm/pksm"
GUEST_ENV = {
    "PATH": "/bin:/share",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/sh",
    "TERM": "dumb",
}
# What the kernel is asked to write into its log before it is ended (see its
# Documentation/admin-guide/sysrq.rst): blocked tasks, memory, all tasks. Those come last: UML may
# panic over one of them.
_STATE_KEYS = ("w", "m", "t")
_STATE_IN_LOG = "its log ends with the state of its tasks"
# Seconds that a machine may take to end whose line is of no use any more.
_LAST_SECONDS = 1.0
# Seconds between looks at a process that ought to have closed its line.
_LOOK = 0.25


class Guest:
    """A booted machine and the agent in it."""

    def __init__(self, machine: Machine, rundir: RunDir, *, timeout: float) -> None:
        """Serve *machine*; call :meth:`wait_boot` next. *timeout*, in wall-clock
        seconds, is what a program may take when its caller does not say."""
        self._machine = machine
        self._rundir = rundir
        self._timeout = timeout
        self._changed = threading.Condition()
        self._write_lock = threading.Lock()
        self._processes: dict[int, Process] = {}
        self._next_channel = 1
        # Bytes the line may be given now, and whether the reader is in a sink.
        self._room = LINE_WINDOW
        self._in_sink = False
        self._hello: str | None = None
        self._over = False
        # What is wrong with what came by the line; and whether we have ended the guest.
        self._complaint = ""
        self._destroyed = False
        self._failure: LinuxUmError | None = None
        self._log_end: int | None = None
        # Set by the user of the guest: keep its run directory, and what to
        # write into result.json besides.
        self.keep = False
        # The configuration of its kernel: a symbol, and its value.
        self.config: Mapping[str, str] = {}
        self.result: dict[str, str | int] = {}
        self._reader = threading.Thread(target=self._read, name="agent line", daemon=True)
        self._reader.start()

    # What the guest is

    @property
    def rundir(self) -> Path:
        """The run directory."""
        return self._rundir.path

    @property
    def pid(self) -> int:
        """The host's number of the process that is the guest's kernel."""
        return self._machine.pid

    @property
    def version(self) -> str:
        """The kernel's release and version, as the agent says it."""
        return self._hello or ""

    @property
    def booted(self) -> bool:
        """Whether the agent has answered."""
        return self._hello is not None

    @property
    def alive(self) -> bool:
        """Whether the kernel still runs."""
        return not self._over and self._machine.poll() is None

    @property
    def failure(self) -> LinuxUmError | None:
        """The error that ended the guest, if one did."""
        return self._failure

    def console(self) -> str:
        """Return the kernel's log so far."""
        return self._rundir.read_console()

    def own_log(self) -> str:
        """Return the log without the state of the kernel that a time-out has added."""
        return self.console()[: self._log_end]

    def findings(self) -> list[Finding]:
        """Return the oopses and the like in :meth:`own_log`."""
        return scan(self.own_log())

    def host_error(self) -> HostError | None:
        """Return the error for what the host did not let the guest have, by :meth:`own_log`."""
        return self._machine.host_error(self.own_log())

    def full_directory(self) -> str:
        """Return a line on the host's directory of its memory, when that is full just now."""
        return self._machine.full_directory()

    def lift_limits(self) -> None:
        """Wait for this guest as long as it takes from now on: a debugger stops it."""
        self._timeout = math.inf

    # Programs

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        window: tuple[int, int] | None = None,
        on_stdout: Sink | None = None,
        on_stderr: Sink | None = None,
        on_exit: Callable[[], None] | None = None,
    ) -> Process:
        """Start a program and return at once.

        *window* (rows, columns) gives it a pty; *env* is added to GUEST_ENV.
        The sinks are called by the reader with each piece of output, *on_exit*
        when the program or the guest has ended.
        """
        with self._changed:
            process = Process(self, self._channel(), argv, on_stdout, on_stderr, on_exit)
            self._processes[process.channel] = process
        try:
            frame = exec_frame(
                process.channel, argv, {**GUEST_ENV, **(env or {})}, cwd=cwd, window=window
            )
        except ProtocolError as error:
            raise CommandFailed(f"cannot run the command: {error}") from error
        self.send(frame)
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = True,
        input: bytes | None = None,  # noqa: A002 - subprocess.run() calls it so
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> Completed:
        """Run a program to its end, *timeout* in wall-clock seconds.

        Raises CommandFailed when its status is not 0, unless *check* is False.
        """
        limit = timeout if timeout is not None else self._timeout
        process = self.start(argv, env=env, cwd=cwd)
        if input:
            process.write(input, timeout=limit)
        process.close_stdin()
        done = process.wait(limit)
        return done.check() if check else done

    def sh(
        self, command: str, *, timeout: float | None = None, check: bool = True
    ) -> Completed:
        """Run a shell command; as :meth:`run`."""
        return self.run(["sh", "-c", command], timeout=timeout, check=check)

    # Files, without starting a program

    def read_file(self, path: str) -> str:
        """Return the content of a file of the guest. Raises OSError as open() does."""
        return self._file(lambda channel: read_frame(channel, path), path).stdout

    def read_bytes(self, path: str) -> bytes:
        """Return the content of a file of the guest that is no text; as :meth:`read_file`."""
        return self._file(lambda channel: read_frame(channel, path), path).stdout_bytes

    def write_file(self, path: str, data: str | bytes) -> None:
        """Write to an existing file by one write(2). Raises OSError with its errno."""
        raw = data.encode() if isinstance(data, str) else data
        self._file(lambda channel: write_frame(channel, path, raw), path)

    def mount(self, host_path: str, guest_path: str) -> None:
        """Mount a directory of the host, writable. Raises OSError."""
        self._file(lambda channel: mount_frame(channel, host_path, guest_path), guest_path)

    def pksm(self, name: str) -> int:
        """Return a value of /sys/kernel/mm/pksm. Raises OSError when there is none."""
        return int(self.read_file(f"{PKSM_DIR}/{name}"))

    def set_pksm(self, name: str, value: int | str) -> None:
        """Set a control of /sys/kernel/mm/pksm. Raises OSError with the kernel's errno."""
        self.write_file(f"{PKSM_DIR}/{name}", str(value))

    def _file(self, frame: Callable[[int], Frame], path: str) -> Completed:
        with self._changed:
            process = Process(self, self._channel(), ["agent", path], None, None, None)
            self._processes[process.channel] = process
        self.send(frame(process.channel))
        done = process.wait(self._timeout)
        if done.status != 0:
            raise OSError(done.status, os.strerror(done.status), path)
        return done

    def survey(self, paths: Sequence[str]) -> list[SurveyedFile]:
        """Return the files *paths*, and the files in those that are directories.

        Made for onlookers: it waits as long as the guest takes, also for the
        guest to boot, and never ends it. A file that cannot be read is left
        out. Raises GuestGone when the guest has ended.
        """
        found: list[bytes] = []
        with self._changed:
            process = Process(self, self._channel(), ["survey"], found.append, None, None)
        data = survey_frame(process.channel, paths).encode()
        while not self._send_now(process, data):
            self._look_on(lambda: self.booted and self._room >= len(data))
        self._look_on(lambda: process.status is not None)
        return [SurveyedFile.parse(payload) for payload in found]

    def _send_now(self, process: Process, data: bytes) -> bool:
        """Begin *process* by the frame *data*, if that can be done without waiting.

        Raises GuestGone when the guest has ended.
        """
        with self._write_lock, self._changed:
            if not self.alive:
                raise GuestGone("the guest has ended")
            if not self.booted or self._room < len(data):
                return False
            self._processes[process.channel] = process
            self._room -= len(data)
            try:
                os.write(self._machine.line_out, data)
            except OSError as error:
                raise GuestGone("the guest has ended") from error
        return True

    def _look_on(self, done: Callable[[], bool]) -> None:
        """Wait as long as it takes until *done*. Raises GuestGone when the guest has ended."""
        with self._changed:
            while not done():
                if not self.alive:
                    raise GuestGone("the guest has ended")
                self._changed.wait(_LOOK)

    # The line

    def _channel(self) -> int:
        number = self._next_channel
        self._next_channel += 1
        return number

    def send(self, frame: Frame) -> None:
        """Write a frame on the line. What is sent to a guest that has ended is lost."""
        data = memoryview(frame.encode())
        with self._write_lock:
            while data and not self._over:
                room = self._wait_room()
                try:
                    # The window is smaller than a pipe: this does not block.
                    done = os.write(self._machine.line_out, data[:room])
                except OSError:
                    return
                data = data[done:]
                with self._changed:
                    self._room -= done

    def _wait_room(self) -> int:
        """Wait until the line takes input, and return how many bytes of it."""
        limit = time.monotonic() + self._timeout
        with self._changed:
            while self._room <= 0 and not self._over:
                if self._in_sink:
                    # Whoever reads our output is slow; the guest is not to blame.
                    limit = time.monotonic() + self._timeout
                if self._machine.poll() is not None or time.monotonic() > limit:
                    break
                self._changed.wait(_LOOK)
            room = self._room
        if room <= 0 and self.alive:
            raise self.give_up("the guest does not read its line")
        return max(room, 1)

    def _read(self) -> None:
        frames = FrameReader()
        complaint = ""
        try:
            while data := os.read(self._machine.line_in, 1 << 16):
                for frame in frames.feed(data):
                    self._take(frame)
        except OSError as error:
            # When the other end has gone, so has the machine.
            if self._machine.wait(_LAST_SECONDS) is None:
                complaint = f"the agent's line: {error}"
        except ProtocolError as error:
            complaint = f"the agent's line is out of step: {error}"
        with self._changed:
            self._over = True
            self._complaint = complaint
            running = [p for p in self._processes.values() if p.status is None]
            self._changed.notify_all()
        for process in running:
            process.notify_end()

    def _take(self, frame: Frame) -> None:
        # A sink may block for long (a pager): not under the lock.
        process = self._processes.get(frame.channel)
        if process is not None:
            self._in_sink = True
            process.take(frame)
            self._in_sink = False
        with self._changed:
            if frame.type == ToHost.HELLO:
                if frame.u32() != PROTOCOL_VERSION:
                    raise ProtocolError(f"the agent speaks version {frame.u32()}")
                self._hello = frame.payload[4:].decode(errors="replace")
            elif frame.type == ToHost.ERROR:
                text = frame.payload.decode(errors="replace")
                self._note("agent-error.txt", f"channel {frame.channel}: {text}\n")
            elif frame.type == ToHost.TAKEN:
                self._room += frame.u32()
            elif frame.type == ToHost.EXIT:
                self._processes.pop(frame.channel, None)
            self._changed.notify_all()

    def wait_for(self, done: Callable[[], bool], limit: float, what: str) -> None:
        """Wait until *done* returns true, at most until time.monotonic() is *limit*.

        Raises the error that ended the guest, or GuestTimeout saying *what*.
        """
        with self._changed:
            while not done():
                if self._failure is not None:
                    raise self._failure
                left = max(limit - time.monotonic(), 0 if self._timeout < math.inf else math.inf)
                if self._over or self._machine.poll() is not None or left <= 0:
                    break
                self._changed.wait(min(left, _LOOK))
            else:
                return
        if not self._over and self._machine.poll() is None:
            raise self.give_up(what)
        self._reader.join(2.0)
        if not done():
            raise self._gone()

    # Its end

    def _gone(self) -> LinuxUmError:
        """Return the error for a guest that is no more although nobody ended it."""
        if self._failure is None:
            status = self._machine.wait(_LAST_SECONDS if self._complaint else 5.0)
            if status is None:
                status = self._machine.kill()
            panicked = any(finding.kind == "panic" for finding in self.findings())
            refused = None if powered_down(self.console()) else self.host_error()
            if refused is not None:
                self._failure = refused
            elif self._complaint and not panicked:
                kind = LineError if self.booted else BootError
                self._failure = kind(self._complaint, "see what writes to it in the guest")
            else:
                self._failure = judge_end(status, self.console(), booted=self.booted)
        return self._failure

    def _note(self, name: str, text: str) -> None:
        """Leave a note in the run directory, if that can be written: nothing depends on it."""
        with contextlib.suppress(HostError):
            self._rundir.write(name, text)

    def give_up(self, what: str) -> LinuxUmError:
        """Put the kernel's state into the log, end the guest, and return the error.

        That is a BootError before the agent has answered; else a GuestTimeout, or a
        GuestHang when the kernel does not answer.
        """
        answers = self._failure is None and self._machine.answers()
        if self._failure is not None:
            return self._failure
        if not self.booted:
            self._failure = BootError(what, _STATE_IN_LOG)
        elif answers:
            self._failure = GuestTimeout(what, _STATE_IN_LOG)
        else:
            self._failure = GuestHang(what, "its kernel does not answer")
        self._log_end = len(self.console())
        complaints = ""
        for key in _STATE_KEYS if answers else _STATE_KEYS[-1:]:
            try:
                self._machine.sysrq(key)
            except MachineError as error:
                # The answer may be lost although the log has it.
                complaints += f"{error}\n"
        if complaints:
            self._note("sysrq-error.txt", complaints)
        self._settle_log()
        self._machine.kill()
        return self._failure

    def _settle_log(self, *, timeout: float = 3.0) -> None:
        """Wait until the log stops growing; *timeout* in seconds."""
        limit = time.monotonic() + timeout
        size = -1
        while size != self._rundir.console.stat().st_size and time.monotonic() < limit:
            size = self._rundir.console.stat().st_size
            time.sleep(0.1)

    def wait_boot(self, timeout: float) -> None:
        """Wait for the agent, at most *timeout* seconds. Raises BootError, HostError."""
        self.wait_for(
            lambda: self._hello is not None,
            time.monotonic() + timeout,
            f"the guest did not boot within {timeout:g} s",
        )

    def plug_memory(self) -> None:
        """Plug its memory module in; the kernel finds it in a moment. Raises MachineError."""
        self._machine.plug_memory()

    def unplug_memory(self) -> None:
        """Take its memory module out, once the kernel lets go of it. Raises MachineError."""
        self._machine.unplug_memory(self._timeout)

    def power_off(self) -> None:
        """End the guest in an orderly way.

        Raises GuestTimeout when it does not power off, GuestPanic when it panics, GuestGone
        when it has ended by itself, LineError when its line is of no use, and HostError when
        its log is lost.
        """
        if self._failure is not None or self._destroyed:
            return
        if self._machine.poll() is not None or self._complaint:
            if powered_down(self.console()):
                return
            raise self._gone()
        self.send(Frame(ToGuest.SHUTDOWN, 0, b"\0"))
        seconds = self._machine.shutdown_seconds
        status = self._machine.wait(seconds if self._timeout < math.inf else math.inf)
        if status is None:
            raise self.give_up(f"the guest did not power off within {seconds:g} s")
        down = powered_down(self.console())
        if status in ABORTED and down:
            return
        # QEMU's status does not tell a panic from an orderly end.
        if status != 0 or any(finding.kind == "panic" for finding in self.findings()):
            raise self._gone()
        if not down:
            self._failure = HostError(
                f"the kernel's log is lost: {self._rundir.console} has no end",
                "make room there, or set LINUX_UM_CACHE to another directory",
            )
            raise self._failure

    def destroy(self) -> None:
        """End the guest at once with all that belongs to it; may be called again."""
        self._destroyed = True
        blocked = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        )
        try:
            self._machine.kill()
            with self._write_lock:
                self._over = True
            self._reader.join(5.0)
            self._machine.close_line()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

# SPDX-License-Identifier: GPL-2.0-only
"""How QEMU is to run x86_64: by KVM where that really works, else by TCG.

That /dev/kvm can be opened says little: under some hypervisors a guest then runs
a hundred times slower than emulated, or not at all. So the kernel is booted, against
the clock, and the answer is remembered until the host or QEMU changes.
``LINUX_UM_ACCEL`` (kvm or tcg) decides instead of all this.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import tempfile
from enum import Enum
from pathlib import Path

from . import paths
from .errors import UsageError
from .machine import guard
from .term import Term

PROGRAM = "qemu-system-x86_64"
KVM, TCG = "kvm", "tcg"
ENV_ACCEL = "LINUX_UM_ACCEL"
# Wall-clock seconds within which a kernel has to have booted by KVM, and panicked for want
# of an init. Emulated it takes about five.
TRIAL_SECONDS = 10.0
# So often it may fail to before it is not tried again.
TRIALS = 2
# Wall-clock seconds within which QEMU has to be gone once it is killed.
END_SECONDS = 2.0
ANSWER = "accel.json"


class Trial(Enum):
    """How it went: the kernel has booted, or has not in time, or QEMU has no use of KVM.

    Or QEMU does not even end when it is killed, being held fast in the host's kernel.
    """

    BOOTED = "booted"
    FAILED = "failed"
    REFUSED = "refused"
    STUCK = "stuck"


@functools.lru_cache(maxsize=None)
def choose(linux: Path, term: Term) -> str:
    """Return ``kvm`` or ``tcg``, trying *linux* out if that has not been done on this host.

    Raises UsageError when $LINUX_UM_ACCEL is neither.
    """
    wish = os.environ.get(ENV_ACCEL, "")
    if wish:
        if wish not in (KVM, TCG):
            raise UsageError(f"{ENV_ACCEL} is {wish!r}", f"set it to {KVM} or {TCG}")
        return wish
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    host = _host()
    answer = paths.ensure_dir(paths.cache_root()) / ANSWER
    # Nobody need wait, and say so, to read what is known.
    known = _known(answer, host)
    if known:
        return known
    # Who comes second waits for the first one's answer.
    with paths.lock("accel", term=term):
        known = _known(answer, host)
        if known:
            return known
        with term.step("trying KVM"):
            accel = _try_kvm(linux)
        if accel == TCG:
            term.info("/dev/kvm is there, but a guest does not boot by it in time: emulating (TCG)")
        answer.write_text(json.dumps({"host": host, "accel": accel}) + "\n")
    return accel


def _known(answer: Path, host: str) -> str:
    """Return the accelerator that the file *answer* has for *host*, or nothing."""
    try:
        known = json.loads(answer.read_text())
        if known["host"] == host and known["accel"] in (KVM, TCG):
            return str(known["accel"])
    except (OSError, ValueError, KeyError):
        pass
    return ""


def _try_kvm(linux: Path) -> str:
    """Return ``kvm`` or ``tcg``; a host that is busy for a while gets a second chance."""
    for _ in range(TRIALS):
        outcome = boots(linux)
        if outcome is Trial.BOOTED:
            return KVM
        if outcome is not Trial.FAILED:
            break
    return TCG


def boots(linux: Path, *, timeout: float = TRIAL_SECONDS) -> Trial:
    """Try whether *linux* boots by KVM within *timeout* seconds.

    QEMU ends with us. One that cannot be killed is left to itself.
    """
    command = [
        *guard(), PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
        "-accel", KVM, "-cpu", "host", "-m", "256M", "-smp", "2", "-serial", "stdio",
        "-kernel", str(linux), "-append", "console=ttyS0 panic=-1", "-no-reboot",
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        try:
            # Not in a with statement, which waits for the end, however long that takes.
            qemu = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.DEVNULL
            )
        except OSError:
            return Trial.REFUSED
        try:
            status = qemu.wait(timeout)
        except subprocess.TimeoutExpired:
            return Trial.FAILED if _end(qemu) else Trial.STUCK
        except BaseException:
            _end(qemu)
            raise
        if status != 0:
            return Trial.REFUSED
        log.seek(0)
        # Without an init and without a root the kernel gets so far, and no farther.
        panicked = b"Kernel panic - not syncing: VFS" in log.read()
    return Trial.BOOTED if panicked else Trial.FAILED


def _end(process: subprocess.Popen[bytes]) -> bool:
    """Kill *process*; return whether it is gone soon."""
    process.kill()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _host() -> str:
    """Return what an answer holds for: this boot of the host, and QEMU."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False)
    return f"{boot} {version.stdout.splitlines()[0] if version.stdout else ''}"

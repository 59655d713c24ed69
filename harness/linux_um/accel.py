# SPDX-License-Identifier: GPL-2.0-only
"""How QEMU is to run x86_64: by KVM where that really works, else by TCG.

That /dev/kvm can be opened says little: under some hypervisors a guest then runs
a hundred times slower than emulated, or not at all. So the kernel is booted once,
against the clock, and the answer is remembered until the host or QEMU changes.
``LINUX_UM_ACCEL`` (kvm or tcg) decides instead of all this.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path

from . import paths
from .errors import UsageError
from .qemu import PROGRAM
from .term import Term

KVM, TCG = "kvm", "tcg"
ENV_ACCEL = "LINUX_UM_ACCEL"
# Wall-clock seconds within which a kernel has to have booted by KVM, and panicked for want
# of an init. Emulated it takes about five.
TRIAL_SECONDS = 10.0
ANSWER = "accel.json"


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
    try:
        known = json.loads(answer.read_text())
        if known["host"] == host and known["accel"] in (KVM, TCG):
            return str(known["accel"])
    except (OSError, ValueError, KeyError):
        pass
    with paths.lock("accel", term=term), term.step("trying KVM"):
        accel = KVM if boots(linux) else TCG
    if accel == TCG:
        term.info("/dev/kvm is there, but a guest does not boot by it in time: emulating (TCG)")
    answer.write_text(json.dumps({"host": host, "accel": accel}) + "\n")
    return accel


def boots(linux: Path, *, timeout: float = TRIAL_SECONDS) -> bool:
    """Return whether *linux* boots by KVM within *timeout* seconds."""
    command = [
        PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35",
        "-accel", KVM, "-cpu", "host", "-m", "256M", "-smp", "2", "-serial", "stdio",
        "-kernel", str(linux), "-append", "console=ttyS0 panic=-1", "-no-reboot",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    # Without an init and without a root the kernel gets so far, and no farther.
    return done.returncode == 0 and b"Kernel panic - not syncing: VFS" in done.stdout


def _host() -> str:
    """Return what an answer holds for: this boot of the host, and QEMU."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    version = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False)
    return f"{boot} {version.stdout.splitlines()[0] if version.stdout else ''}"

# SPDX-License-Identifier: GPL-2.0-only
"""What a debugger has to know of a guest: kept in its run directory while it runs.

``machine.json`` names the process of the guest and the kernel it runs, so that
``./linux-um gdb --attach RUN`` finds both; after a panic with --keep-core the
run directory has the core dump and the kernel besides.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .build import Image
from .errors import HostError, SessionError, cannot
from .kconfig import UM
from .paths import runs_root
from .rundir import LATEST

MACHINE_NAME = "machine.json"
CORE_NAME = "core"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class Kernel:
    """A kernel with symbols, its lx- scripts, and the directory it was built in.

    The names of source files in the symbols are relative to that directory.
    """

    linux: Path
    scripts: Path
    build_dir: Path
    key: str
    release: str
    arch: str = UM

    @property
    def index(self) -> Path:
        """The directory for gdb's index of the symbols."""
        return self.scripts.parent / "index"

    def need_symbols(self) -> Kernel:
        """Return the kernel. Raises SessionError when it was built without what gdb needs.

        gdb is for a kernel that is a process of the host.
        """
        if self.arch != UM:
            raise SessionError(
                f"this guest is a PC ({self.arch}), and gdb looks at User-Mode Linux",
                "start one without --arch",
            )
        if not self.scripts.is_file():
            raise SessionError(
                "this kernel was built without what a debugger needs", "use another --profile"
            )
        return self

    @classmethod
    def of(cls, image: Image) -> Kernel:
        """Return the kernel of an image."""
        return cls(
            image.linux, image.gdb_scripts, image.build_dir, image.key, image.kernel, image.arch
        )


@dataclass(frozen=True)
class MachineFacts:
    """The process of a run, User-Mode Linux or QEMU, and its kernel."""

    pid: int
    start_time: int
    kernel: Kernel


def write_machine(path: Path, pid: int, kernel: Kernel) -> None:
    """Note in the run directory *path* which process runs which kernel. Raises HostError."""
    text = {name: str(value) for name, value in asdict(kernel).items()}
    facts = {"pid": pid, "start_time": _start_time(pid), "kernel": text}
    try:
        (path / MACHINE_NAME).write_text(json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise cannot(error, f"write {path / MACHINE_NAME}", HostError) from error


def read_machine(path: Path) -> MachineFacts:
    """Return what the run directory *path* says. Raises SessionError."""
    try:
        return _facts(path)
    except _UNREADABLE as error:
        raise SessionError(
            f"{path} does not say which process it belongs to", _running_hint()
        ) from error


def _facts(path: Path) -> MachineFacts:
    facts = json.loads((path / MACHINE_NAME).read_text())
    kernel = facts["kernel"]
    return MachineFacts(
        pid=int(facts["pid"]),
        start_time=int(facts["start_time"]),
        kernel=Kernel(
            linux=Path(kernel["linux"]),
            scripts=Path(kernel["scripts"]),
            build_dir=Path(kernel["build_dir"]),
            key=str(kernel["key"]),
            release=str(kernel["release"]),
            arch=str(kernel.get("arch", UM)),
        ),
    )


def _start_time(pid: int) -> int:
    """Return when a process began, in the host's ticks; 0 when there is none, or a dead one.

    With its number this identifies a process for good, and everybody may read it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def is_running(facts: MachineFacts) -> bool:
    """Say whether the guest of a run still runs."""
    return facts.start_time != 0 and _start_time(facts.pid) == facts.start_time


def running() -> list[str]:
    """Return the names of the runs whose guests run now, oldest first."""
    found = []
    root = runs_root()
    for path in root.iterdir() if root.is_dir() else []:
        if not path.is_symlink() and (path / MACHINE_NAME).is_file():
            try:
                facts = _facts(path)
            except _UNREADABLE:
                continue
            if is_running(facts):
                found.append((facts.start_time, path.name))
    return [name for _, name in sorted(found)]


def _running_hint() -> str:
    names = running()
    return f"there run: {' '.join(names)}" if names else "no guest runs"


def find_run(name: str) -> Path:
    """Return the run directory *name*: a name, a path, or ``latest``. Raises SessionError."""
    candidates = [runs_root() / name] if "/" not in name else []
    candidates.append(Path(name))
    for path in candidates:
        if path.is_dir():
            return path.resolve()
    what = "there is no run yet" if name == LATEST else f"no run directory {name}"
    raise SessionError(what, _running_hint())


def find_live(name: str) -> tuple[Path, MachineFacts]:
    """Return the directory and the guest of the run *name*, which runs. Raises SessionError."""
    path = find_run(name)
    facts = read_machine(path)
    if not is_running(facts):
        mend = _running_hint()
        if (path / CORE_NAME).is_file():
            mend = f"it has left a core dump: ./linux-um gdb --core {path.name}"
        raise SessionError(f"the run {path.name} has ended", mend)
    return path, facts


def find_running(name: str) -> MachineFacts:
    """Return the guest of the run *name*, which can be attached to. Raises SessionError."""
    facts = find_live(name)[1]
    if not facts.kernel.linux.is_file():
        raise SessionError(
            f"the kernel of that run, image {facts.kernel.key}, is no longer in the cache",
            f"without the lx- commands: gdb -x gdb-scripts/session.gdb -p {facts.pid}",
        )
    tracer = tracer_of(facts.pid)
    if tracer:
        raise SessionError(
            f"process {tracer} already traces the guest (another gdb, or that of --keep-core)",
            "a process can have one debugger only",
        )
    return facts


def find_core(name: str) -> tuple[Path, Kernel]:
    """Return the core dump of the run *name* and its kernel. Raises SessionError."""
    path = find_run(name)
    core = path / CORE_NAME
    if not core.is_file():
        raise SessionError(
            f"the run {path.name} has left no core dump", "a panic leaves one with --keep-core"
        )
    kernel = read_machine(path).kernel
    if not kernel.linux.is_file():
        raise SessionError(f"{kernel.linux} is missing", "it is needed to read the core dump")
    return core, kernel


def tracer_of(pid: int) -> int:
    """Return the process that traces *pid*, or 0."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0

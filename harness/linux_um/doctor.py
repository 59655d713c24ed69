# SPDX-License-Identifier: GPL-2.0-only
"""What User-Mode Linux and the harness need of a host, each with its mend.

A check is a pure function of facts, so that tests can make up hosts. The
facts are gathered by ``Facts.gather``; what has to be tried (ptrace) is tried
in a child process by probe.py.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from . import packages, paths, probe
from .errors import HostError

PAGE_BYTES = 4096
# What a UML kernel of 6.12 provides for the floating-point state of a thread.
XSTATE_BYTES_OF_6_12 = 2696
CACHE_BYTES_NEEDED = 6 * 2**30
MEMORY_VARIABLES = ("TMPDIR", "TMP", "TEMP")
TMPFS_DIRECTORIES = ("/dev/shm", "/tmp")
# Stages without which the host is fit for all the others.
OPTIONAL = ("gdb", "coverage", "lint")
# Room for the host mappings that are not guest pages.
SPARE_MAPS = 2048


@dataclass(frozen=True)
class Check:
    """The outcome of one check: ``mend`` is empty when all is well.

    ``required`` tells a broken host from a mere limit.
    """

    name: str
    finding: str
    mend: str = ""
    required: bool = True

    def error(self) -> HostError:
        """Return the error for a check that has failed."""
        return HostError(f"{self.name}: {self.finding}", self.mend)


@dataclass(frozen=True)
class Directory:
    """What matters about a directory for the guest's memory."""

    path: Path
    exists: bool
    writable: bool = False
    exec_allowed: bool = False
    free_bytes: int = 0
    tmpfs: bool = False

    @classmethod
    def look(cls, path: Path) -> Directory:
        """Look at *path* on this host."""
        try:
            facts = os.statvfs(path)
        except OSError:
            return cls(path, exists=False)
        return cls(
            path,
            exists=True,
            writable=os.access(path, os.W_OK | os.X_OK),
            exec_allowed=not facts.f_flag & os.ST_NOEXEC,
            free_bytes=facts.f_bavail * facts.f_frsize,
            tmpfs=_is_tmpfs(path),
        )


@dataclass(frozen=True)
class Facts:
    """What the checks look at."""

    machine: str
    memory: Directory
    max_map_count: int
    ptrace_scope: int
    xstate_bytes: int | None
    ptrace_error: str
    cache: Directory
    missing: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def gather(cls, mem_bytes: int) -> Facts:
        """Look at this host. Takes about a tenth of a second."""
        xstate, error = probe.traced_xstate_bytes()
        return cls(
            machine=platform.machine(),
            memory=Directory.look(memory_directory(mem_bytes)),
            max_map_count=max_map_count(),
            ptrace_scope=_read_int("/proc/sys/kernel/yama/ptrace_scope", 0),
            xstate_bytes=xstate,
            ptrace_error=error,
            cache=Directory.look(_existing_parent(paths.cache_root())),
            missing={
                stage: packages.missing(stage)
                for stage in (
                    "source", "tree", "kernel", "rootfs", "test", "gdb", "coverage", "lint",
                )  # fmt: skip
            },
        )


def memory_directory(mem_bytes: int = 0) -> Path:
    """Return the directory for the guest's memory file.

    That of the environment (TMPDIR, TMP, TEMP) binds. Without one: the first
    of /dev/shm, /tmp and the cache that allows exec and has *mem_bytes* free,
    so that a container's small /dev/shm does no harm; failing all, /dev/shm.
    """
    for name in MEMORY_VARIABLES:
        value = os.environ.get(name)
        if value:
            return Path(value)
    candidates = [Path(name) for name in TMPFS_DIRECTORIES] + [paths.cache_root()]
    for path in candidates:
        if not memory_check(Directory.look(path), mem_bytes).mend:
            return path
    return candidates[0]


def memory_check(memory: Directory, mem_bytes: int) -> Check:
    """Check the directory that holds the guest's memory."""
    name = "guest memory directory"
    path, size = memory.path, _mebibytes(mem_bytes)
    advice = f"set TMPDIR to a directory that allows exec and has {size} free"
    if not memory.exists:
        return Check(name, f"{path} does not exist", advice)
    if not memory.writable:
        return Check(name, f"{path} is not writable", advice)
    if not memory.exec_allowed:
        return Check(name, f"{path} is mounted noexec", f"{advice}, or remount {path} with exec")
    if memory.free_bytes < mem_bytes:
        free = _mebibytes(memory.free_bytes)
        return Check(name, f"{path} has {free} free, the guest needs {size}", f"{advice}, or --mem")
    kind = "tmpfs" if memory.tmpfs else "not tmpfs, so slower"
    return Check(name, f"{path} ({kind}), {_mebibytes(memory.free_bytes)} free, exec allowed")


def machine_check(machine: str) -> Check:
    """Check the processor's architecture."""
    if machine == "x86_64":
        return Check("processor", machine)
    return Check("processor", f"{machine} has no User-Mode Linux", "use an x86_64 host")


def ptrace_check(scope: int, error: str) -> Check:
    """Check that a process may trace its child."""
    if error:
        return Check(
            "ptrace",
            error,
            "in a container add --cap-add SYS_PTRACE, "
            "or sysctl -w kernel.yama.ptrace_scope=1, or lift the seccomp filter",
        )
    if scope >= 3:
        return Check(
            "ptrace", f"kernel.yama.ptrace_scope is {scope}", "boot the host with a lower value"
        )
    return Check("ptrace", "a child can be traced")


def xstate_check(size: int | None) -> Check:
    """Check that the processor's register state fits what UML provides for it."""
    name = "floating-point state"
    if size is None:
        return Check(name, "cannot be read", "see ptrace above", required=False)
    if size > XSTATE_BYTES_OF_6_12:
        return Check(
            name,
            f"{size} bytes, and UML 6.12 provides {XSTATE_BYTES_OF_6_12}",
            "use a virtual machine with an older processor model, or boot the host with "
            "clearcpuid= for the newest vector extensions",
        )
    return Check(name, f"{size} of at most {XSTATE_BYTES_OF_6_12} bytes")


def maps_check(max_map_count: int, mem_bytes: int) -> Check:
    """Check how many scattered pages one guest process can map."""
    name = "vm.max_map_count"
    wanted = mem_bytes // PAGE_BYTES + SPARE_MAPS
    if max_map_count >= wanted:
        return Check(name, f"{max_map_count}, enough for {_mebibytes(mem_bytes)} in one process")
    limit = _mebibytes(max(0, max_map_count - SPARE_MAPS) * PAGE_BYTES)
    return Check(
        name,
        f"{max_map_count}: one guest process can map {limit} of scattered pages, "
        f"less than the guest's {_mebibytes(mem_bytes)}",
        f"spread a workload over processes, or run: sudo sysctl -w vm.max_map_count={wanted}",
        required=False,
    )


def cache_check(cache: Directory) -> Check:
    """Check that there is room for sources and builds."""
    name = "cache"
    advice = "set LINUX_UM_CACHE to a directory of your own with 6 GB free"
    if not cache.writable:
        return Check(name, f"{cache.path} is not writable", advice)
    free = f"{cache.path} has {_mebibytes(cache.free_bytes)} free"
    if cache.free_bytes < CACHE_BYTES_NEEDED:
        return Check(name, f"{free}, a first set-up takes 6 GB", advice, required=False)
    return Check(name, free)


def tools_checks(missing: dict[str, list[str]]) -> list[Check]:
    """Check the tools of each stage; those for OPTIONAL ones are no defect of the host."""
    names = {
        "source": "tools to unpack the kernel",
        "tree": "tools to patch the kernel",
        "kernel": "tools to build the kernel",
        "rootfs": "tools to build the guest",
        "test": "a Python with pytest",
        "gdb": "a debugger",
        "coverage": "tools for cov",
        "lint": "tools for make lint",
    }
    checks = []
    for stage, wanted in missing.items():
        mend = f"run: {packages.command_line(wanted)}" if wanted else ""
        finding = f"missing: {' '.join(wanted)}" if wanted else "there"
        checks.append(Check(names[stage], finding, mend, required=stage not in OPTIONAL))
    return checks


def judge(facts: Facts, mem_bytes: int) -> list[Check]:
    """Return every check for *facts* and a guest of *mem_bytes*."""
    return [
        machine_check(facts.machine),
        ptrace_check(facts.ptrace_scope, facts.ptrace_error),
        xstate_check(facts.xstate_bytes),
        memory_check(facts.memory, mem_bytes),
        maps_check(facts.max_map_count, mem_bytes),
        cache_check(facts.cache),
        *tools_checks(facts.missing),
    ]


def all_checks(mem_bytes: int) -> list[Check]:
    """Check this host for guests of *mem_bytes* bytes."""
    return judge(Facts.gather(mem_bytes), mem_bytes)


def boot_checks(mem_bytes: int) -> Path:
    """Check in a few milliseconds what would make a boot fail; return the memory directory.

    A guest is to be started with TMPDIR set to the result. Raises HostError.
    """
    directory = memory_directory(mem_bytes)
    scope = _read_int("/proc/sys/kernel/yama/ptrace_scope", 0)
    for check in (
        machine_check(platform.machine()),
        ptrace_check(scope, ""),
        memory_check(Directory.look(directory), mem_bytes),
    ):
        if check.mend:
            raise check.error()
    return directory


def mappings_error(max_map_count: int, mem_bytes: int) -> HostError:
    """Return the error for a process in the guest that the host gave no more mappings."""
    wanted = max(2 * max_map_count, mem_bytes // PAGE_BYTES + SPARE_MAPS)
    return HostError(
        "vm.max_map_count: a process in the guest takes more mappings than the "
        f"{max_map_count} that the host lets it have",
        f"spread the workload over processes, or run: sudo sysctl -w vm.max_map_count={wanted}",
    )


def memory_error(directory: Path, mem_bytes: int) -> HostError:
    """Return the error for a guest whose memory found no room any more in *directory*."""
    size = _mebibytes(mem_bytes)
    return HostError(
        f"guest memory directory: {directory} ran full while the guest ran, which takes up to "
        f"{size}",
        f"make room there, or set TMPDIR to a directory that allows exec and has {size} free, "
        "or --mem",
    )


def full_warning(memory: Directory) -> str:
    """Return a line for a command that has failed while *memory* is full; empty when it is not."""
    if memory.free_bytes >= PAGE_BYTES:
        return ""
    return (
        f"guest memory directory: {memory.path} is full, which may be why the command failed; "
        "make room there, or set TMPDIR to another directory"
    )


def _mebibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 10 * 2**30 else f"{count // 2**20} MiB"


def max_map_count() -> int:
    """Return how many mappings the host lets a process have."""
    return _read_int("/proc/sys/vm/max_map_count", 65530)


def _read_int(path: str, default: int) -> int:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return default


def _is_tmpfs(path: Path) -> bool:
    """Say whether the mount that holds *path* is a tmpfs."""
    best, kind = "", ""
    real = os.path.realpath(path)
    try:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mount, this_kind, *_ = line.split(" ")
            inside = real == mount or real.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, kind = mount, this_kind
    except (OSError, ValueError):
        return False
    return kind == "tmpfs"


def _existing_parent(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path

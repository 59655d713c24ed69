# SPDX-License-Identifier: GPL-2.0-only
"""The Debian packages that each stage needs.

A package is needed only when what it brings is missing, so that other
distributions and tools from elsewhere work as well. As root on Debian they
are installed; otherwise one line says the command that does it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .errors import HostError
from .term import Term

APT_LISTS = Path("/var/lib/apt/lists")
# What Debian's packages of Python modules are for.
DEBIAN_PYTHON = Path("/usr/bin/python3")
PYTHON_TEST_MODULES = {
    "pytest": "python3-pytest",
    "xdist": "python3-pytest-xdist",
    "pytest_timeout": "python3-pytest-timeout",
    "pexpect": "python3-pexpect",
    # For the tests of the bench, which draws.
    "matplotlib": "python3-matplotlib",
}


@dataclass(frozen=True)
class Need:
    """A Debian package and how to see, without dpkg, that it is not needed."""

    package: str
    present: Callable[[], bool]


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def _any_file(*names: str) -> Callable[[], bool]:
    return lambda: any(Path(name).exists() for name in names)


def _module(name: str) -> Callable[[], bool]:
    """Return a check whether the tests' interpreter can import *name*."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({name!r}) is None)"

    def present() -> bool:
        if test_python() == sys.executable:
            return find_spec(name) is not None
        return subprocess.run([test_python(), "-c", code], check=False).returncode == 0

    return present


def test_python() -> str:
    """Return the tests' interpreter: this one when it has all they need, else Debian's."""
    here = all(find_spec(module) is not None for module in PYTHON_TEST_MODULES)
    if here or not DEBIAN_PYTHON.exists():
        return sys.executable
    return str(DEBIAN_PYTHON)


# What the kernel's own selftests of mm are linked with statically. Without liburing
# they leave out what they do by it.
SELFTESTS = tuple(
    Need(
        f"{name}-dev",
        _any_file(*(f"{place}/{name}.a" for place in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"))),
    )
    for name in ("libnuma", "liburing", "libcap")
)  # fmt: skip

# gcov-tool comes with gcc.
COVERAGE = (Need("gcovr", _program("gcovr")), Need("gcc", _program("gcov-tool")))

STAGES: dict[str, tuple[Need, ...]] = {
    "source": (Need("tar", _program("tar")), Need("xz-utils", _program("xz"))),
    "tree": (Need("patch", _program("patch")),),
    "kernel": (
        Need("gcc", _program("gcc")),
        Need("libc6-dev", _any_file("/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a",
                                    "/usr/lib/libc.a")),
        Need("make", _program("make")),
        Need("flex", _program("flex")),
        Need("bison", _program("bison")),
        Need("bc", _program("bc")),
        Need("perl", _program("perl")),
        Need("xz-utils", _program("xz")),
        Need("ccache", _program("ccache")),
    ),
    "kernel x86_64": (
        # objtool, without which no file of the x86-64 kernel is compiled.
        Need("libelf-dev", _any_file("/usr/include/libelf.h")),
    ),
    "qemu": (Need("qemu-system-x86", _program("qemu-system-x86_64")),),
    "rootfs": (
        Need("gcc", _program("gcc")),
        Need("libc6-dev", _any_file("/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a",
                                    "/usr/lib/libc.a")),
        Need("make", _program("make")),
        Need("busybox-static", _program("busybox")),
    ),
    "test": tuple(
        Need(package, _module(module)) for module, package in PYTHON_TEST_MODULES.items()
    ) + (
        Need("git", _program("git")),
        Need("gdb", _program("gdb")),
        # objtool, without which no file of the x86-64 kernel is compiled.
        Need("libelf-dev", _any_file("/usr/include/libelf.h")),
        # Memory stressed by others' hands.
        Need("stress-ng", _program("stress-ng")),
    ) + SELFTESTS,
    "selftests": SELFTESTS,
    "gdb": (Need("gdb", _program("gdb")),),
    "coverage": COVERAGE,
    # Of the interpreter that runs the launcher.
    "bench": (Need("python3-matplotlib", lambda: find_spec("matplotlib") is not None),),
    # The server, by the name of a tool that it is as well; no service comes with it.
    "bench programs": (Need("redis-tools", _program("redis-check-rdb")),),
    "lint": (
        Need("shellcheck", _program("shellcheck")),
        Need("sparse", _program("sparse")),
        Need("mypy", _program("mypy")),
        # What gdb's Python module looks like; mypy comes without.
        Need("python3-typeshed", _any_file("/usr/lib/python3/dist-packages/gdb-stubs")),
        Need("perl", _program("perl")),
        Need("git", _program("git")),
    ),
}  # fmt: skip


def missing(*stages: str) -> list[str]:
    """Return the packages that *stages* need and that are not there, each once."""
    found: dict[str, None] = {}
    for stage in stages:
        for need in STAGES[stage]:
            if need.package not in found and not need.present():
                found[need.package] = None
    return list(found)


def command_line(names: Iterable[str]) -> str:
    """Return the command that installs *names*."""
    update = "" if _has_lists() else "sudo apt-get update && "
    return f"{update}sudo apt-get install -y --no-install-recommends {' '.join(names)}"


def ensure(*stages: str, term: Term, extra: Iterable[str] = ()) -> None:
    """See that everything *stages* need is there, installing it when root.

    *extra* are packages that are needed besides. Raises HostError with the
    command to type when that is not possible.
    """
    names = missing(*stages) + list(extra)
    if not names:
        return
    if shutil.which("apt-get") is None:
        raise HostError(
            f"missing: {' '.join(names)} (Debian's names)", "install them with your package manager"
        )
    if os.geteuid() != 0:
        raise HostError(f"missing packages: {' '.join(names)}", f"run: {command_line(names)}")
    install(names, term=term)
    still = missing(*stages)
    if still:
        raise HostError(
            f"installed, yet not found: {' '.join(still)}", "see that /usr/bin is in PATH"
        )


def is_available(name: str, *, term: Term) -> bool:
    """Say whether apt knows the package *name*.

    Fetches apt's lists first when they are missing and the user is root; for
    an ordinary user without lists the answer is yes, since trying is cheap.
    """
    if shutil.which("apt-cache") is None or shutil.which("apt-get") is None:
        return False
    if _known(name):
        return True
    if os.geteuid() != 0:
        return not _has_lists()
    _update_lists(term)
    return _known(name)


def _has_lists() -> bool:
    """Say whether apt has any list of packages."""
    return any(APT_LISTS.glob("*Packages*"))


def install(names: list[str], *, term: Term) -> None:
    """Install packages by apt-get, as root. Raises HostError with apt's reason."""
    if not all(_known(name) for name in names):
        _update_lists(term)
    with term.step(f"installing {' '.join(names)}") as step:
        failure = _apt(["install", "-y", "--no-install-recommends", *names], step.update)
        if failure is not None and ("404" in failure or "Unable to" in failure):
            _apt(["update"], step.update)
            failure = _apt(["install", "-y", "--no-install-recommends", *names], step.update)
    if failure is not None:
        raise HostError(
            f"apt-get could not install {' '.join(names)}: {failure}",
            f"try: {command_line(names)}",
        )


def _known(name: str) -> bool:
    """Say whether apt has an installation candidate for *name*."""
    policy = subprocess.run(
        ["apt-cache", "policy", name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    lines = [line.strip() for line in policy.stdout.splitlines()]
    return any(line.startswith("Candidate:") and "(none)" not in line for line in lines)


def _update_lists(term: Term) -> None:
    """Fetch apt's package lists; a failure shows itself when a package is then missing."""
    with term.step("fetching the package lists") as step:
        failure = _apt(["update"], step.update)
    if failure is not None:
        term.warn(f"apt-get update: {failure}")


def _apt(arguments: list[str], update: Callable[[str], None]) -> str | None:
    """Run apt-get as the system's; as :func:`run_apt`."""
    options = ["-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=120"]
    return run_apt([*options, *arguments], update, {"DEBIAN_FRONTEND": "noninteractive"})


def run_apt(
    arguments: list[str],
    update: Callable[[str], None],
    environment: Mapping[str, str],
    cwd: Path | None = None,
) -> str | None:
    """Run apt-get, passing its progress on; return None or the reason of a failure.

    *environment* is in addition to that of this process.
    """
    reason = "apt-get failed"
    with subprocess.Popen(
        ["apt-get", "-q", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C", **environment},
        cwd=cwd,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.strip()
            if text.startswith("E: "):
                reason = text.removeprefix("E: ")
            elif text:
                update(text)
        return reason if process.wait() != 0 else None

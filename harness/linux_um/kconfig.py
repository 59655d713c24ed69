# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configurations: fragments merged, made whole, and verified line by line.

Comments in a fragment say what else belongs to its profile:

``# Extends: PROFILE``	it comes after the fragments of that profile
``# Since: SERIES``	it needs a kernel of that series, or a newer one
``# CPUs: NUMBER``	the guest has so many, unless --cpus says otherwise
``# Arch: ARCH``		it is for that machine only

After base come the wishes of the machine, ``um-config/arch/ARCH.config``.

``um-config/absent`` lists symbols that newer kernels do not have any more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import paths
from .errors import ConfigError, UsageError

# The profile of `test --mutants`, which is not for anything else.
MUTANT_PROFILE = "mutant"
# The profile with SMP of a profile without.
WITH_SMP = {"fast": "smp", "ksm": "smp-ksm", "debug": "smp-debug", MUTANT_PROFILE: "smp"}
REQUEST_NAME = "requested.config"

# The machines there are: a process of the host, which is the default, and QEMU's.
UM = "um"
X86_64 = "x86_64"
ARCHES = (UM, X86_64)

Make = Callable[[Sequence[str], Mapping[str, str]], None]

_SET = re.compile(r"^(CONFIG_\w+)=(.*)$")
_UNSET = re.compile(r"^# (CONFIG_\w+) is not set$")
_EXTENDS = re.compile(r"^# Extends: (\S+)$", re.MULTILINE)
_SINCE = re.compile(r"^# Since: (\d+\.\d+)$", re.MULTILINE)
_ARCH = re.compile(r"^# Arch: (\S+)$", re.MULTILINE)
_CPUS = re.compile(r"^# CPUs: (\d+)$", re.MULTILINE)
TIME_TRAVEL = "CONFIG_UML_TIME_TRAVEL_SUPPORT"


def profiles() -> list[str]:
    """Return the names of the profiles, the default ``fast`` first."""
    names = {path.stem for path in paths.config_dir().glob("*.config")} - {"base"}
    return sorted(names, key=lambda name: (name != "fast", name))


def fragments(profile: str, arch: str = UM) -> list[Path]:
    """Return the fragments of *profile* for the machine *arch* in the order of merging.

    A fragment with a line ``# Extends: PROFILE`` comes after those of that profile,
    else after base and the machine's. Raises UsageError when there is no such profile.
    """
    path = paths.config_dir() / f"{profile}.config"
    if profile == "base" or not path.is_file():
        known = ", ".join(name for name in profiles() if name != MUTANT_PROFILE)
        raise UsageError(f"there is no profile {profile!r}", f"use one of: {known}")
    extends = _EXTENDS.search(path.read_text())
    if extends is None:
        machine = paths.config_dir() / "arch" / f"{arch}.config"
        return [paths.config_dir() / "base.config", machine, path]
    return [*fragments(extends.group(1), arch), path]


def numbers(series: str) -> tuple[int, ...]:
    """Return ``(6, 12)`` for ``6.12``, so that series can be compared."""
    return tuple(int(number) for number in series.split("."))


def absent(series: str) -> set[str]:
    """Return the symbols that kernels of *series* do not have any more.

    Raises ConfigError for a line of um-config/absent that is not SERIES SYMBOL REASON.
    """
    found = set()
    for line in (paths.config_dir() / "absent").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.match(r"(\d+\.\d+)\s+(CONFIG_\w+)\s+\S", line)
        if match is None:
            raise ConfigError(
                f"um-config/absent: {line!r}", "write the first series without it, it, and why"
            )
        if numbers(series) >= numbers(match.group(1)):
            found.add(match.group(2))
    return found


def texts_of(profile: str, series: str, arch: str = UM) -> tuple[str, ...]:
    """Return the texts of the fragments of *profile*, as far as they apply to *series*.

    Raises UsageError when there is no such profile, or not for that series or machine.
    """
    texts = [path.read_text() for path in fragments(profile, arch)]
    for text in texts:
        only = _ARCH.search(text)
        if only is not None and only.group(1) != arch:
            raise UsageError(
                f"profile {profile} is for {only.group(1)} only", f"add --arch {only.group(1)}"
            )
        since = _SINCE.search(text)
        # What UML has only since then, a PC has had for long.
        if arch == UM and since is not None and numbers(series) < numbers(since.group(1)):
            raise UsageError(
                f"profile {profile} needs a kernel from {since.group(1)} on, and this is {series}",
                "add --kernel with a newer one",
            )
    gone = absent(series)
    if not gone:
        return tuple(texts)
    return tuple(
        "".join(line for line in text.splitlines(keepends=True) if not gone & parse(line).keys())
        for text in texts
    )


def cpus_of(profile: str, arch: str = UM) -> int:
    """Return how many CPUs a guest of *profile* has unless something else is asked for."""
    found = [_CPUS.search(path.read_text()) for path in fragments(profile, arch)]
    return int(next((match.group(1) for match in reversed(found) if match is not None), 1))


def with_cpus(profile: str, cpus: int, arch: str = UM) -> str:
    """Return *profile*, or that with SMP which belongs to it where *cpus* is more than one."""
    if cpus == 1 or cpus_of(profile, arch) > 1:
        return profile
    return WITH_SMP.get(profile, profile)


def time_travels(profile: str, arch: str = UM) -> bool:
    """Return whether guests of *profile* can have a clock that skips what nobody waits for."""
    wishes = wishes_of(profile, arch)
    if arch == X86_64:
        # By QEMU, whose CPUs take turns then: nothing would race, which KCSAN is there for.
        return wishes.get("CONFIG_KCSAN") != "y"
    return wishes.get(TIME_TRAVEL) == "y"


def wishes_of(profile: str, arch: str = UM) -> dict[str, str]:
    """Return what the fragments of *profile* ask for. Raises UsageError and ConfigError."""
    return merge([path.read_text() for path in fragments(profile, arch)])


def for_debugger(wishes: Mapping[str, str]) -> bool:
    """Return whether a kernel made by *wishes* can be looked at by gdb."""
    return wishes.get("CONFIG_GDB_SCRIPTS") == "y"


def parse(text: str) -> dict[str, str]:
    """Return symbol to value of a configuration; ``n`` for *is not set*; the last line wins."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        if match := _SET.match(line):
            values[match.group(1)] = match.group(2)
        elif match := _UNSET.match(line):
            values[match.group(1)] = "n"
    return values


def merge(texts: Sequence[str]) -> dict[str, str]:
    """Return the wishes of all fragments, later ones overriding earlier ones."""
    wishes: dict[str, str] = {}
    for text in texts:
        values = parse(text)
        for line in text.splitlines():
            if line and not line.isspace() and not _is_line(line):
                raise ConfigError(
                    f"not a line of a configuration: {line.strip()!r}",
                    "write CONFIG_NAME=value or # CONFIG_NAME is not set",
                )
        wishes.update(values)
    return wishes


def _is_line(line: str) -> bool:
    return line.startswith("#") or _SET.match(line) is not None


def render(wishes: Mapping[str, str]) -> str:
    """Return *wishes* as the text of a fragment."""
    return "".join(
        f"# {name} is not set\n" if value == "n" else f"{name}={value}\n"
        for name, value in wishes.items()
    )


def unsatisfied(wishes: Mapping[str, str], final: Mapping[str, str]) -> list[str]:
    """Return one text per wish that the finished configuration does not grant."""
    return [
        f"{name}={value} (is {final.get(name, 'n')})"
        for name, value in wishes.items()
        if final.get(name, "n") != value
    ]


def verify(wishes: Mapping[str, str], config: Path) -> None:
    """Raise ConfigError naming every wish that *config* does not grant."""
    failed = unsatisfied(wishes, parse(config.read_text()))
    if failed:
        raise ConfigError(
            f"the kernel's configuration refuses {', '.join(failed)}",
            "see what these symbols depend on, and correct the fragments in um-config/",
        )


def configure(build: Path, texts: Sequence[str], make: Make) -> None:
    """Make ``build/.config`` of fragments on top of allnoconfig, and verify it.

    *make* runs the kernel's make with targets and additional environment.
    Raises ConfigError when a wish is not granted, BuildError when make fails.
    """
    wishes = merge(texts)
    request = build / REQUEST_NAME
    request.write_text(render(wishes))
    make(["allnoconfig"], {"KCONFIG_ALLCONFIG": str(request)})
    verify(wishes, build / ".config")

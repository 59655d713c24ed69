# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configurations: fragments merged, made whole, and verified line by line.

Comments in a fragment say what else belongs to its profile:

``# Extends: PROFILE``	it comes after the fragments of that profile
``# Since: SERIES``	it needs a kernel of that series, or a newer one
``# CPUs: NUMBER``	the guest has so many, unless --cpus says otherwise
``# Arch: ARCH``		it is for that machine only
``# Boot: WORD``		its guests have that word on the kernel's command line

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
_BOOT = re.compile(r"^# Boot: (\S+)$", re.MULTILINE)
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
    check(profile, series, arch)
    texts = [path.read_text() for path in fragments(profile, arch)]
    gone = absent(series)
    if not gone:
        return tuple(texts)
    return tuple(
        "".join(line for line in text.splitlines(keepends=True) if not gone & parse(line).keys())
        for text in texts
    )


def check(profile: str, series: str, arch: str = UM) -> None:
    """See that there is *profile* for kernels of *series* and for the machine *arch*.

    Raises UsageError.
    """
    only = machine_of(profile)
    if only not in (None, arch):
        raise UsageError(f"profile {profile} is for {only} only", f"add --arch {only}")
    needed = since(profile, arch)
    if needed is not None and numbers(series) < numbers(needed):
        raise UsageError(
            f"profile {profile} needs a kernel from {needed} on, and this is {series}",
            f"add {newer(needed)}",
        )


def machine_of(profile: str) -> str | None:
    """Return the machine that *profile* is for, or None when it is for all of them."""
    found = [_ARCH.search(path.read_text()) for path in fragments(profile)]
    return next((match.group(1) for match in found if match is not None), None)


def since(profile: str, arch: str = UM) -> str | None:
    """Return the series from which on there is what *profile* asks for, or None for any."""
    # What UML has only since then, a PC has had for long.
    if arch != UM:
        return None
    found = [_SINCE.search(path.read_text()) for path in fragments(profile, arch)]
    needed = [match.group(1) for match in found if match is not None]
    return max(needed, key=numbers) if needed else None


def newer(series: str) -> str:
    """Return the options for a kernel that has what User-Mode Linux has from *series* on."""
    known = (name for name in paths.known_series() if numbers(name) >= numbers(series))
    return " or ".join([*(f"--kernel {name}" for name in list(known)[:1]), f"--arch {X86_64}"])


def summary(profile: str) -> str:
    """Return what the fragment of *profile* says of it first, and what it is for, in one line."""
    words: list[str] = []
    for line in fragments(profile)[-1].read_text().splitlines():
        if not line.startswith("#") or _is_wish(line):
            break
        text = line.removeprefix("#").strip()
        if not re.match(r"[\w-]+: \S+$|SPDX-", text):
            words += text.split()
    first = re.match(r"(.*?)[.;]?(?:(?<=[.;]) |$)", " ".join(words))
    limits = [f"--arch {only}" for only in [machine_of(profile)] if only is not None]
    limits += [f"{UM} from Linux {series} on" for series in [since(profile)] if series is not None]
    said = first.group(1) if first is not None else ""
    return f"{said} ({', '.join(limits)})" if limits else said


def cpus_of(profile: str, arch: str = UM) -> int:
    """Return how many CPUs a guest of *profile* has unless something else is asked for."""
    found = [_CPUS.search(path.read_text()) for path in fragments(profile, arch)]
    return int(next((match.group(1) for match in reversed(found) if match is not None), 1))


def boot_words(profile: str, arch: str = UM) -> list[str]:
    """Return what guests of *profile* have on the kernel's command line, before all else."""
    return [word for path in fragments(profile, arch) for word in _BOOT.findall(path.read_text())]


def with_cpus(profile: str, cpus: int, arch: str = UM) -> str:
    """Return *profile*, or that with SMP which belongs to it where *cpus* is more than one."""
    if cpus == 1 or cpus_of(profile, arch) > 1:
        return profile
    return WITH_SMP.get(profile, profile)


def check_cpus(profile: str, cpus: int, series: str, arch: str = UM) -> None:
    """See that guests of *profile* can have *cpus* CPUs. Raises UsageError."""
    if cpus == 1 or cpus_of(profile, arch) > 1:
        return
    fit = [name for name in profiles() if cpus_of(name, arch) > 1]
    needed = max((since(name, arch) or series for name in fit), key=numbers)
    mend = f"use --profile {', '.join(fit[:-1])} or {fit[-1]}"
    if numbers(series) < numbers(needed):
        mend += f", with {newer(needed)}"
    raise UsageError(f"guests of profile {profile} have one CPU", mend)


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
    return line.startswith("#") or _is_wish(line)


def _is_wish(line: str) -> bool:
    return _SET.match(line) is not None or _UNSET.match(line) is not None


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

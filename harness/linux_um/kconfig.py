# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configurations: fragments merged, made whole, and verified line by line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import paths
from .errors import ConfigError, UsageError

# The profile of `test --mutants`, which is not for anything else.
MUTANT_PROFILE = "mutant"
REQUEST_NAME = "requested.config"

Make = Callable[[Sequence[str], Mapping[str, str]], None]

_SET = re.compile(r"^(CONFIG_\w+)=(.*)$")
_UNSET = re.compile(r"^# (CONFIG_\w+) is not set$")
_EXTENDS = re.compile(r"^# Extends: (\S+)$", re.MULTILINE)


def profiles() -> list[str]:
    """Return the names of the profiles, the default ``fast`` first."""
    names = {path.stem for path in paths.config_dir().glob("*.config")} - {"base"}
    return sorted(names, key=lambda name: (name != "fast", name))


def fragments(profile: str) -> list[Path]:
    """Return the fragments of *profile* in the order of merging.

    A fragment with a line ``# Extends: PROFILE`` comes after those of that
    profile, else after base. Raises UsageError when there is no such profile.
    """
    path = paths.config_dir() / f"{profile}.config"
    if profile == "base" or not path.is_file():
        known = ", ".join(name for name in profiles() if name != MUTANT_PROFILE)
        raise UsageError(f"there is no profile {profile!r}", f"use one of: {known}")
    extends = _EXTENDS.search(path.read_text())
    if extends is None:
        return [paths.config_dir() / "base.config", path]
    return [*fragments(extends.group(1)), path]


def wishes_of(profile: str) -> dict[str, str]:
    """Return what the fragments of *profile* ask for. Raises UsageError and ConfigError."""
    return merge([path.read_text() for path in fragments(profile)])


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

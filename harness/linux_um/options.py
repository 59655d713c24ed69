# SPDX-License-Identifier: GPL-2.0-only
"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import functools
import math
import os
import re
import textwrap
from collections.abc import Sequence

from . import kconfig
from .errors import UsageError
from .source import DEFAULT_KERNEL, check_series, default_kernel, series_meant

DEFAULT_PROFILE = "fast"
ENV_ARCH = "LINUX_UM_ARCH"
DEFAULT_MEMORY = "256M"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def default_arch() -> str:
    """Return the machine to use where none is given: ``$LINUX_UM_ARCH`` or User-Mode Linux.

    Raises UsageError when it is none of those there are.
    """
    arch = os.environ.get(ENV_ARCH) or kconfig.UM
    if arch not in kconfig.ARCHES:
        raise UsageError(f"{ENV_ARCH} is {arch!r}", f"set it to {' or '.join(kconfig.ARCHES)}")
    return arch


def _arch(text: str) -> str:
    """Return the machine of that name. Raises UsageError when there is none."""
    if text not in kconfig.ARCHES:
        raise UsageError(f"--arch {text}: no such machine", f"use {' or '.join(kconfig.ARCHES)}")
    return text


@functools.cache
def profile_lines() -> tuple[str, ...]:
    """Return a line for each profile there is: its name, and what it is for."""
    names = [name for name in kconfig.profiles() if name != kconfig.MUTANT_PROFILE]
    return tuple(f"{name}: {kconfig.summary(name)}" for name in names)


def hang(lines: Sequence[str], width: int) -> list[str]:
    """Return *lines* with what is beyond *width* columns on further ones, which are indented."""
    return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="  ")]


class _Lines(argparse.HelpFormatter):
    """Leaves the lines of an option's help as they are, where there is more than one."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = text.splitlines()
        return hang(lines, width) if len(lines) > 1 else super()._split_lines(text, width)


class _RawLines(_Lines, argparse.RawDescriptionHelpFormatter):
    """The same, for a description that is laid out as well."""


def add_kernel_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--profile``, ``--arch`` and ``--kernel``: which kernel a command is about."""
    raw = parser.formatter_class is argparse.RawDescriptionHelpFormatter
    parser.formatter_class = _RawLines if raw else _Lines
    lines = "\n".join(profile_lines()).replace("%", "%%")
    parser.add_argument(
        "--profile",
        default=os.environ.get("LINUX_UM_PROFILE", DEFAULT_PROFILE),
        metavar="NAME",
        help=f"kernel configuration (default %(default)s), one of:\n{lines}",
    )
    parser.add_argument(
        "--arch",
        type=_arch,
        default=default_arch(),
        metavar=f"{{{','.join(kconfig.ARCHES)}}}",
        help="the machine: um (User-Mode Linux, the default) or x86_64 (under QEMU)",
    )
    parser.add_argument(
        "--kernel",
        default=default_kernel(),
        metavar="VERSION",
        help=f"kernel version (default {DEFAULT_KERNEL}); KERNEL_SRC=DIR uses a tree of your own",
    )


def check_kernel_options(arguments: argparse.Namespace) -> None:
    """See that there can be the kernel that is asked for, before anything is done for it.

    Raises UsageError, or SourceError when $KERNEL_SRC is no kernel tree.
    """
    check_series(arguments.kernel)
    if not hasattr(arguments, "profile"):
        return
    series = series_meant(arguments.kernel)
    cpus = getattr(arguments, "cpus", None) or 1
    profile = kconfig.with_cpus(arguments.profile, cpus, arguments.arch)
    if profile != arguments.profile:
        # What it is called does not matter to who has asked for CPUs.
        needed = kconfig.since(profile, arguments.arch)
        if needed is not None and kconfig.numbers(series) < kconfig.numbers(needed):
            raise UsageError(
                f"--cpus {cpus}: User-Mode Linux {series} has one CPU",
                f"add {kconfig.newer(needed)}",
            )
        if getattr(arguments, "time_travel", False) and not kconfig.time_travels(
            profile, arguments.arch
        ):
            raise UsageError(
                f"--cpus {cpus}: User-Mode Linux with more than one CPU cannot travel in time",
                "leave out --time-travel, or add --arch x86_64",
            )
    kconfig.check(profile, series, arguments.arch)
    kconfig.check_cpus(profile, cpus, series, arguments.arch)


def finite(text: str) -> float:
    """Return a number of an option, which ``nan`` and ``inf`` are not. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def only_um(arguments: argparse.Namespace, what: str) -> None:
    """Raise UsageError when *what* is asked for a machine that is not User-Mode Linux."""
    if arguments.arch != kconfig.UM:
        raise UsageError(f"{what} is for User-Mode Linux", f"leave out --arch {arguments.arch}")


def parse_size(text: str) -> int:
    """Return bytes for ``256M``, ``1G``, ``4096K`` or a plain number.

    Raises UsageError for anything else, and for zero.
    """
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip().upper())
    if match is None or int(match.group(1)) == 0:
        raise UsageError(f"{text!r} is not a size", "give one such as 256M")
    return int(match.group(1)) * _UNITS[match.group(2)]

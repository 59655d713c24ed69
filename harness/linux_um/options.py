# SPDX-License-Identifier: GPL-2.0-only
"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import os
import re

from . import kconfig
from .errors import UsageError
from .source import DEFAULT_KERNEL, default_kernel

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


def add_kernel_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--profile`` and ``--kernel``: which kernel a command is about."""
    parser.add_argument(
        "--profile",
        default=os.environ.get("LINUX_UM_PROFILE", DEFAULT_PROFILE),
        metavar="NAME",
        help="kernel configuration: fast (PKSM, the default), debug (fast with the kernel's own "
        "checkers: lockdep, DEBUG_VM, kmemleak, UBSAN), cov (fast, counting lines and branches) "
        "or ksm (stock KSM)",
    )
    parser.add_argument(
        "--arch",
        choices=kconfig.ARCHES,
        default=default_arch(),
        help="the machine: um (User-Mode Linux, the default) or x86_64 (under QEMU)",
    )
    parser.add_argument(
        "--kernel",
        default=default_kernel(),
        metavar="VERSION",
        help=f"kernel version (default {DEFAULT_KERNEL}); KERNEL_SRC=DIR uses a tree of your own",
    )


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

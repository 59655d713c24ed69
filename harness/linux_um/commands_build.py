# SPDX-License-Identifier: GPL-2.0-only
"""The commands build, patches, doctor and clean."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from . import build, doctor, export, mutants, patches, paths, source
from .errors import EXIT_LAUNCHER, HostError, UsageError
from .options import DEFAULT_MEMORY, add_kernel_options, parse_size
from .term import Term


def add_parsers(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parsers of this module's commands."""
    parser = subparsers.add_parser("build", help="make the kernel and the initramfs")
    add_kernel_options(parser)
    parser.add_argument(
        "--tree-only", action="store_true", help="only prepare the patched work tree, and print it"
    )
    parser.set_defaults(handler=command_build)

    parser = subparsers.add_parser(
        "patches", help="write the complete series (hooks and engine) for git am"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("patches-out"), metavar="DIR",
        help="where to write it (default: patches-out)",
    )  # fmt: skip
    parser.add_argument("--kernel", default=source.DEFAULT_KERNEL, metavar="VERSION")
    parser.set_defaults(handler=command_patches)

    parser = subparsers.add_parser("doctor", help="check what User-Mode Linux needs of this host")
    parser.add_argument(
        "--mem", default=DEFAULT_MEMORY, metavar="SIZE", help="memory of the guests to come"
    )
    parser.set_defaults(handler=command_doctor)

    parser = subparsers.add_parser("clean", help="remove builds, images and runs from the cache")
    parser.add_argument("--all", action="store_true", help="also the kernel sources")
    parser.set_defaults(handler=command_clean)


def command_build(arguments: argparse.Namespace, term: Term) -> int:
    """Make what is missing, and print where the kernel lies."""
    if arguments.tree_only:
        print(build.ensure_tree(arguments.profile, arguments.kernel, term=term))
        return 0
    from . import rootfs

    image = build.ensure_image(
        arguments.profile, arguments.kernel, term=term, arch=arguments.arch
    )
    initramfs = rootfs.ensure_rootfs(term=term)
    term.info(image.describe())
    print(image.linux)
    print(initramfs)
    return 0


def command_patches(arguments: argparse.Namespace, _term: Term) -> int:
    """Write the complete series and print its files."""
    series = source.series_of(arguments.kernel)
    snapshot = patches.take_snapshot(paths.patches_dir(series), paths.overlay_dir())
    for path in export.write_series(export.complete_series(snapshot), arguments.output):
        print(path)
    return 0


def command_doctor(arguments: argparse.Namespace, term: Term) -> int:
    """Show every check and its mend; 0 when all are fine."""
    failures = 0
    for check in doctor.all_checks(parse_size(arguments.mem)):
        if check.mend:
            failures += check.required
            word = "bad " if check.required else "note"
            sys.stdout.write(f"{word}  {check.name}: {check.finding}\n      mend: {check.mend}\n")
        else:
            sys.stdout.write(f"ok    {check.name}: {check.finding}\n")
    sys.stdout.flush()
    if failures:
        term.error(f"{failures} of the checks failed; each names its mend above")
        return EXIT_LAUNCHER
    return 0


def command_clean(arguments: argparse.Namespace, term: Term) -> int:
    """Remove what can be made again, and say how much space that freed."""
    root = paths.cache_root()
    if not root.is_dir():
        term.info(f"{root} does not exist: nothing to clean")
        return 0
    known = ("src", "tree", "build", "image", "rootfs", "selftests", "runs", "lock")
    if not any((root / name).is_dir() for name in known):
        raise UsageError(f"{root} is not a cache of linux-um", "correct LINUX_UM_CACHE")
    names = ["tree", "build", "image", "rootfs", "selftests", "runs", mutants.PLACE]
    if arguments.all:
        names += ["src", "download"]
    with paths.lock(build.BUILD_LOCK, blocking=False) as held:
        running = _running_guests()
        if not held or running:
            what = f"guests run (process {running[0]})" if running else "a build runs"
            raise HostError(f"not cleaned: {what}", "end it first")
        freed = 0
        with term.step(f"cleaning {root}"):
            for name in names:
                freed += _remove(root / name)
            if arguments.all:
                for stray in root.glob("debian-version.json"):
                    stray.unlink()
    term.info(f"freed {freed / 2**20:.0f} MiB")
    return 0


def _running_guests() -> list[int]:
    """Return the processes that execute a kernel of this cache."""
    found = []
    prefix = str(paths.image_root().resolve()) + os.sep
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "exe").startswith(prefix):
                    found.append(int(entry.name))
            except OSError:
                continue
    return sorted(found)


def _remove(directory: Path) -> int:
    """Remove a directory; return the bytes of disk space that this frees."""
    freed = 0
    for parent, _, files in os.walk(directory):
        for name in files:
            try:
                status = os.lstat(os.path.join(parent, name))
            except OSError:
                continue
            freed += status.st_blocks * 512 // status.st_nlink
    shutil.rmtree(directory, ignore_errors=True)
    return freed

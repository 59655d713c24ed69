# SPDX-License-Identifier: GPL-2.0-only
"""What the lines and branches of the engine have been through: what guests counted.

The kernel of the profile ``cov`` counts in the engine and in the files that are
patched for it (CONFIG_GCOV_KERNEL), and has the counts as files of its debugfs.
While ``$LINUX_UM_COVERAGE`` names a directory, each guest that ends in an orderly
way leaves them there::

    DIR/KEY/counts/mm/pksm/merge.gcda    the sum of all guests of that kernel
    DIR/KEY/guests                       how many those are

A guest that panics, is killed, or whose test fails leaves nothing. Sums are made
by gcov-tool, which is a part of GCC, under a lock: many processes boot guests.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import patches
from .errors import LinuxUmError, cannot
from .paths import ensure_dir

# How an object is compiled that counts: as kbuild has it, and without the copies of small
# functions that GCC makes before it counts, or each copy would have branches of its own.
CFLAGS = "-fprofile-arcs -ftest-coverage -fno-tree-loop-im -fno-early-inlining"
# Names the directory where guests leave what they counted.
ENV_COVERAGE = "LINUX_UM_COVERAGE"
# The symbol of a kernel that counts.
SYMBOL = "CONFIG_GCOV_KERNEL"
# Where the guest has the counts, by the name that the object has on the host.
GCOV_DIR = "/sys/kernel/debug/gcov"
ENGINE = "mm/pksm/"
# Of the engine, but not to be measured: what tests it.
TESTS = "mm/pksm/tests/"
# In an image: what the compiler notes of each object, for gcov.
NOTES_DIR = "gcov"
COUNTS = "counts"
GUESTS = "guests"
NOTES_SUFFIX, COUNTS_SUFFIX = ".gcno", ".gcda"


class CoverageError(LinuxUmError):
    """What guests counted is lost, or is not of the kernel it should be of."""


def hook_files(snapshot: patches.Snapshot) -> list[str]:
    """Return the C files and headers that are patched for the engine.

    What mends an architecture, or gcov itself, is none of them.
    """
    names = {name for patch in snapshot.patches for name in patches.touched_files(patch.data)}
    return sorted(
        name for name in names
        if name.endswith((".c", ".h")) and not name.startswith(("arch/", "tools/", "kernel/gcov/"))
    )  # fmt: skip


def engine_files(snapshot: patches.Snapshot) -> list[str]:
    """Return the C files and headers of the engine itself, without those that test it."""
    return sorted(
        name for name in snapshot.overlay
        if name.endswith((".c", ".h"))
        and not name.startswith((TESTS, "tools/", "include/trace/"))
    )  # fmt: skip


def objects(snapshot: patches.Snapshot) -> list[str]:
    """Return the objects that are to count, as make names them; some are in no kernel."""
    sources = [*engine_files(snapshot), *hook_files(snapshot)]
    return [f"{name[:-2]}.o" for name in sources if name.endswith(".c")]


def make_words(snapshot: patches.Snapshot) -> list[str]:
    """Return the words for the kernel's make that let just those objects count.

    That is kbuild's variable for a directory, made to look at the target.
    """
    return [
        f"GCOV_PROFILE=$(if $(filter {' '.join(objects(snapshot))},$@),y)",
        f"CFLAGS_GCOV={CFLAGS}",
    ]


def keep_notes(snapshot: patches.Snapshot, build: Path, target: Path) -> None:
    """Copy the compiler's notes of the objects that count in the kernel of *build*."""
    for name in objects(snapshot):
        notes = Path(name).with_suffix(NOTES_SUFFIX)
        if (build / notes).is_file():
            (target / notes).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(build / notes, target / notes)


def counted_names(notes: Path) -> list[str]:
    """Return the names of the objects that count, without suffix, as ``mm/pksm/merge``."""
    return sorted(
        path.relative_to(notes).as_posix().removesuffix(NOTES_SUFFIX)
        for path in notes.rglob(f"*{NOTES_SUFFIX}")
    )


def collect(
    read: Callable[[str], bytes], key: str, build: Path, notes: Path, target: Path
) -> None:
    """Add what a guest has counted to the sums in *target*.

    *read* returns a file of the guest; *key* names its kernel, which was built in
    *build*, and *notes* are the compiler's. Raises CoverageError.
    """
    place = ensure_dir(target / key)
    try:
        _collect(read, build, notes, place)
    except OSError as error:
        raise cannot(error, f"add the counts of a guest to {place}", CoverageError) from error


def _collect(read: Callable[[str], bytes], build: Path, notes: Path, place: Path) -> None:
    """Do what :func:`collect` says, *place* being the directory of the kernel's sums."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place) as temporary:
        fresh = Path(temporary) / COUNTS
        for name in counted_names(notes):
            file = fresh / f"{name}{COUNTS_SUFFIX}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read(f"{GCOV_DIR}{build}/{name}{COUNTS_SUFFIX}"))
        if not fresh.is_dir():
            raise CoverageError("the kernel counts in no file", "see mm/pksm in its build.log")
        with _locked(place):
            add(place / COUNTS, fresh)
            guests = place / GUESTS
            guests.write_text(f"{guest_count(place) + 1}\n")


def add(total: Path, more: Path) -> None:
    """Add the counts of the directory *more* to those of *total*, which may not exist yet.

    Raises CoverageError, and leaves *total* as it was.
    """
    if not total.exists():
        shutil.copytree(more, total)
        return
    with tempfile.TemporaryDirectory(prefix=".sum-", dir=total.parent) as temporary:
        made = Path(temporary) / COUNTS
        run_tool(["gcov-tool", "merge", str(total), str(more), "-o", str(made)])
        lost = _names(total) - _names(made)
        if lost:
            raise CoverageError(f"gcov-tool lost the counts of {min(lost)}", "is it that of gcc?")
        shutil.rmtree(total)
        made.rename(total)


def guest_count(place: Path) -> int:
    """Return how many guests have added to the sums of one kernel."""
    try:
        return int((place / GUESTS).read_text())
    except (OSError, ValueError):
        return 0


def run_tool(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run a tool of the host and return its standard output.

    Raises CoverageError with the last thing it said.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, cwd=cwd
        )
    except FileNotFoundError as error:
        raise CoverageError(f"there is no {command[0]}", "install gcc and gcovr") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CoverageError(
            f"{command[0]} ended with status {done.returncode}: {lines[-1] if lines else ''}"
        )
    return done.stdout


def _names(directory: Path) -> set[str]:
    return {
        path.relative_to(directory).as_posix() for path in directory.rglob(f"*{COUNTS_SUFFIX}")
    }


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    with open(place / "lock", "a", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def target_directory() -> Path | None:
    """Return where guests are to leave what they counted, or None when nobody asks."""
    name = os.environ.get(ENV_COVERAGE)
    return Path(name) if name else None

# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's selftests for user space, built statically for the guest.

    programs = build_selftest(tree, "mm", ["mkdirty", "mremap_test"], term=term)

Nothing is written into the kernel tree: the tests are built in a mirror of it,
whose only real files are those of the test's own directory (some Makefiles
write there) and whose other entries are links into the tree. Programs are kept
by the hash of what they are made of.

The kernel's own headers are those of tools/include/uapi, where selftests keep
what is newer than the host's: `make headers` takes minutes and adds nothing
that these tests need.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from . import packages
from .errors import BuildError
from .make import interesting_lines, job_count
from .paths import cache_root, ensure_dir, lock
from .term import Term

SELFTESTS = "tools/testing/selftests"
# Directories of programs that are kept.
KEEP = 16
# Beside a test's own directory: what it may include, by a name in the tree.
SHARED = (
    f"{SELFTESTS}/*",
    f"{SELFTESTS}/kselftest/*",
    f"{SELFTESTS}/x86/trivial_*",
    "tools/include/uapi/**/*",
    "mm/*.h",
    "lib/*.h",
)
UNWANTED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CFLAGS", "LDFLAGS", "OUTPUT", "O", "KBUILD_OUTPUT",
            "ARCH", "CROSS_COMPILE", "LLVM", "V", "TARGETS")  # fmt: skip


class SelftestError(BuildError):
    """A selftest that is not there or does not compile."""


def selftests_root() -> Path:
    """Return the directory of the finished selftests."""
    return cache_root() / "selftests"


def build_selftest(
    tree: Path, target_dir: str, names: Sequence[str], *, term: Term
) -> dict[str, Path]:
    """Return the static programs *names* of tools/testing/selftests/*target_dir* in *tree*.

    They are made now unless they were made before of the same files by the
    same compiler. All of them lie in one directory, which may be shared with a
    guest. Raises SelftestError, or HostError without a compiler.
    """
    packages.ensure("rootfs", "selftests", term=term)
    origin = tree / SELFTESTS / target_dir
    if not (origin / "Makefile").is_file():
        raise SelftestError(
            f"{tree} has no selftests {target_dir!r}", f"name a directory of {SELFTESTS}"
        )
    target = selftests_root() / _key(tree, origin, names)
    if not target.is_dir():
        with lock("selftests", term=term):
            if not target.is_dir():
                _build(tree, target_dir, names, target, term)
                _prune()
    os.utime(target)
    return {name: target / name for name in names}


def _key(tree: Path, origin: Path, names: Sequence[str]) -> str:
    """Return the hash of everything that the programs are made of."""
    done = subprocess.run(["gcc", "--version"], capture_output=True, check=False)
    digest = hashlib.sha256(done.stdout + "\0".join(sorted(names)).encode())
    for path in _inputs(tree, origin):
        content = path.read_bytes()
        digest.update(f"\0{path.relative_to(tree)}\0{len(content)}\0".encode() + content)
    return f"{origin.name}-{digest.hexdigest()[:16]}"


def _inputs(tree: Path, origin: Path) -> list[Path]:
    found: set[Path] = set(_files(origin.rglob("*")))
    for pattern in SHARED:
        found.update(_files(tree.glob(pattern)))
    return sorted(found)


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    return (path for path in paths if path.is_file())


def _mirror(tree: Path, target_dir: str, mirror: Path) -> Path:
    """Make *mirror* look like *tree* with a real directory of the test; return that directory."""
    relative = Path(SELFTESTS) / target_dir
    for parent in reversed(relative.parents):
        here = mirror / parent
        here.mkdir()
        on_the_way = relative.parts[len(parent.parts)]
        for entry in os.scandir(tree / parent):
            if entry.name != on_the_way:
                (here / entry.name).symlink_to(entry.path)
    shutil.copytree(tree / relative, mirror / relative, symlinks=True)
    return mirror / relative


def _build(
    tree: Path, target_dir: str, names: Sequence[str], target: Path, term: Term
) -> None:
    """Make the programs; all of them or nothing."""
    root = ensure_dir(target.parent)
    with (
        term.step(f"building the selftests {target_dir}"),
        tempfile.TemporaryDirectory(prefix=".new-", dir=root) as scratch,
    ):
        directory = _mirror(tree, target_dir, Path(scratch) / "tree")
        output = Path(scratch) / "output"
        output.mkdir(mode=0o755)
        # Out of the tree a Makefile makes full names only.
        command = [
            "make", "-C", str(directory), f"-j{job_count()}", f"OUTPUT={output}", "ARCH=x86_64",
            "KHDR_INCLUDES=", "USERCFLAGS=-fno-pie -Wno-error", "USERLDFLAGS=-static -no-pie",
            *(str(output / name) for name in names),
        ]  # fmt: skip
        environment = {name: text for name, text in os.environ.items() if name not in UNWANTED}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        missing = [name for name in names if not (output / name).is_file()]
        if done.returncode != 0 or missing:
            lines = interesting_lines((done.stdout + done.stderr).splitlines())
            for line in lines:
                term.write_line(f"  {line}")
            raise SelftestError(
                f"the selftest {target_dir}/{(missing or list(names))[0]} does not build",
                "mend what the compiler says above",
            )
        for left in output.iterdir():
            if left.name not in names:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        output.rename(target)


def _prune() -> None:
    """Remove all but the programs that were used last."""
    found = [path for path in selftests_root().iterdir() if not path.name.startswith(".")]
    found.sort(key=lambda path: path.stat().st_mtime)
    for path in found[:-KEEP]:
        shutil.rmtree(path, ignore_errors=True)

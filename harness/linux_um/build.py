# SPDX-License-Identifier: GPL-2.0-only
"""Finished kernels, found or made by what they are made from.

The key of an image is a hash of the source's identity, the patches, the
engine, the configuration fragments and the compiler. An image is used only
when its key is that of the files as they are now; nothing stale ever runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import coverage, intact, kconfig, packages, patches, paths, source
from .errors import BuildError, HostError
from .make import HEADERS_NAME, Make
from .term import Term

# Of each profile.
IMAGES_KEPT = 8
BUILD_LOCK = "build"
INFO_NAME = "build-info.json"
# What a first build takes of packages.
FIRST_STAGES = ("source", "tree", "kernel", "rootfs")
# In an image: what is started, and the kernel with its symbols, where that is another file.
LINUX, VMLINUX = "linux", "vmlinux"
CONFIG = "config"
# Of what is noted of an image: the kernel's release, and the seals of its files.
KERNEL, SEALS = "kernel", "seals"
# In an image: the kernel's gdb scripts, laid out as vmlinux-gdb.py looks for them.
GDB_DIR = "gdb"
GDB_MODULES = "scripts/gdb/linux"
# In an image: the kernel's parser of test results.
KUNIT_DIR = "kunit"
KUNIT_TOOLS = "tools/testing/kunit"
KUNIT_FILES = ("kunit_parser.py", "kunit_printer.py")
# Raise when the way of building changes what is built.
RECIPE = 3


@dataclass(frozen=True)
class Image:
    """A finished kernel and what it was made from."""

    linux: Path
    vmlinux: Path
    key: str
    kernel: str
    profile: str
    patches_hash: str
    engine_hash: str
    build_dir: Path
    config: Path
    arch: str = kconfig.UM

    @property
    def gdb_scripts(self) -> Path:
        """The kernel's own gdb scripts: the file to source for the lx- commands."""
        return self.linux.parent / GDB_DIR / "vmlinux-gdb.py"

    @property
    def kunit_tools(self) -> Path:
        """The directory of the kernel's own parser of test results, for ktap.parse()."""
        return self.linux.parent / KUNIT_DIR

    @property
    def coverage_notes(self) -> Path:
        """The compiler's notes of what counts; no directory when nothing does."""
        return self.linux.parent / coverage.NOTES_DIR

    def describe(self) -> str:
        """Return one line that says what this kernel was built from."""
        return (
            f"kernel {self.kernel} profile {self.profile}"
            f"{'' if self.arch == kconfig.UM else f' arch {self.arch}'} patches {self.patches_hash} "
            f"engine {self.engine_hash} image {self.key}"
        )


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a kernel will be, read at one moment."""

    source: source.Source
    profile: str
    snapshot: patches.Snapshot
    fragments: tuple[str, ...]
    compiler: str
    arch: str = kconfig.UM

    @property
    def key(self) -> str:
        """Return 16 hexadecimal digits that identify the kernel to be."""
        parts = [
            str(RECIPE),
            self.source.content,
            self.profile,
            self.snapshot.patches_hash,
            self.snapshot.engine_hash,
            *self.fragments,
            self.compiler,
        ]
        if self.arch != kconfig.UM:
            parts.append(self.arch)
        if self.counts:
            parts += coverage.make_words(self.snapshot)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def for_debugger(self) -> bool:
        """Return whether the kernel has debug info, and scripts for gdb."""
        return kconfig.for_debugger(kconfig.merge(self.fragments))

    @property
    def counts(self) -> bool:
        """Return whether the kernel counts how often its lines have run."""
        return kconfig.merge(self.fragments).get(coverage.SYMBOL) == "y"

    @property
    def name(self) -> str:
        """Return what people call it."""
        return self.profile if self.arch == kconfig.UM else f"{self.profile} {self.arch}"

    @property
    def result(self) -> str:
        """Return the name of the file that make leaves, and that a machine starts."""
        return LINUX if self.arch == kconfig.UM else VMLINUX

    @property
    def build_dir(self) -> Path:
        """Return where the kernel is built."""
        return paths.build_dir(self.source.key, self.profile, self.arch)

    @property
    def tree(self) -> Path:
        """Return the work tree that the kernel is built from."""
        return paths.tree_dir(self.source.key)


def compiler_identity() -> str:
    """Return the versions of compiler and linker, or ``none`` when they are missing."""
    lines = []
    for program in ("gcc", "ld"):
        try:
            answer = subprocess.run([program, "--version"], capture_output=True, check=False)
        except FileNotFoundError:
            return "none"
        lines.append(answer.stdout.decode(errors="replace").split("\n", 1)[0])
    return "\n".join(lines)


def read_recipe(profile: str, kernel: str, *, term: Term, arch: str = kconfig.UM) -> Recipe:
    """Read what the kernel of *profile* for the machine *arch* is to be made from now.

    Raises SourceError, PatchError or UsageError.
    """
    found = source.identify(kernel, term=term)
    fragments = kconfig.texts_of(profile, source.series_of(found.version), arch)
    snapshot = patches.take_snapshot(paths.patches_dir(found.series), paths.overlay_dir())
    return Recipe(found, profile, snapshot, fragments, compiler_identity(), arch)


def find_image(recipe: Recipe) -> Image | None:
    """Return the finished image of *recipe*, or None when it has to be made."""
    directory = paths.image_root() / recipe.key
    facts = _facts(directory)
    if facts is None or _defect(directory, facts):
        return None
    with contextlib.suppress(OSError):
        os.utime(directory / INFO_NAME)
    linux, vmlinux = directory / LINUX, directory / VMLINUX
    return Image(
        linux=linux,
        vmlinux=vmlinux if vmlinux.is_file() else linux,
        key=recipe.key,
        kernel=str(facts["kernel"]),
        profile=recipe.profile,
        patches_hash=recipe.snapshot.patches_hash,
        engine_hash=recipe.snapshot.engine_hash,
        build_dir=recipe.build_dir,
        config=directory / CONFIG,
        arch=recipe.arch,
    )


def damage(recipe: Recipe) -> str:
    """Return what is wrong with the image of *recipe*, or nothing when it is sound, or not there."""
    directory = paths.image_root() / recipe.key
    if not directory.exists():
        return ""
    facts = _facts(directory)
    return f"{directory / INFO_NAME} is damaged" if facts is None else _defect(directory, facts)


def _facts(directory: Path) -> dict[str, Any] | None:
    """Return what is noted of an image, or None when that is not what was noted."""
    try:
        facts = json.loads((directory / INFO_NAME).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or not isinstance(facts.get(KERNEL), str):
        return None
    return facts if isinstance(facts.get(SEALS, {}), dict) else None


def _defect(directory: Path, facts: dict[str, Any]) -> str:
    """Return what is wrong with the files of an image, or nothing.

    One that was made before seals were noted has none.
    """
    seals = facts.get(SEALS, {})
    if not seals:
        return intact.defect(directory / LINUX)
    found = (intact.defect(directory / name, noted) for name, noted in seals.items())
    return next(filter(None, found), "")


def ensure_image(profile: str, kernel: str, *, term: Term, arch: str = kconfig.UM) -> Image:
    """Return the kernel of *profile* for the machine *arch*, doing what is missing first.

    Raises HostError, SourceError, PatchError, ConfigError or BuildError.
    """
    _first_packages(kernel, term)
    recipe = read_recipe(profile, kernel, term=term, arch=arch)
    image = find_image(recipe)
    if image is not None:
        return image
    stages = ["source", "tree", "kernel"] + (["kernel x86_64"] if arch == kconfig.X86_64 else [])
    packages.ensure(*stages, term=term)
    with paths.lock(BUILD_LOCK, term=term):
        while True:
            recipe = read_recipe(profile, kernel, term=term, arch=arch)
            image = find_image(recipe)
            if image is not None:
                return image
            if wrong := damage(recipe):
                term.warn(f"{wrong}; the kernel is built anew")
            try:
                prepare_tree(recipe, term=term)
            except source.PlaceFailed:
                continue
            _build(recipe, term=term)


def _first_packages(kernel: str, term: Term) -> None:
    """Before a first build: see that all packages are there, so that one command is all to type.

    Raises HostError.
    """
    wanted = source.missing_package(kernel, term=term)
    if shutil.which("gcc") is not None and (wanted is None or not packages.missing(*FIRST_STAGES)):
        return
    try:
        packages.ensure(*FIRST_STAGES, term=term, extra=[wanted] if wanted is not None else [])
    except HostError as error:
        if wanted is None:
            raise
        # The source may come from elsewhere; nothing else does.
        try:
            packages.ensure(*FIRST_STAGES, term=term)
        except HostError:
            raise error from None


def prepare_tree(recipe: Recipe, *, term: Term) -> list[str]:
    """Bring the work tree up to date; return the names written. Call with the build lock held.

    Raises PlaceFailed when the recipe has to be read anew, SourceError or PatchError.
    """
    directory = source.ensure(recipe.source, term=term)
    return patches.synchronise(
        directory, recipe.source.content, recipe.tree, recipe.snapshot, term=term
    )


def ensure_tree(profile: str, kernel: str, *, term: Term) -> Path:
    """Return the patched work tree, brought up to date. Raises SourceError or PatchError."""
    with paths.lock(BUILD_LOCK, term=term):
        while True:
            recipe = read_recipe(profile, kernel, term=term)
            try:
                prepare_tree(recipe, term=term)
            except source.PlaceFailed:
                continue
            return recipe.tree


def _build(recipe: Recipe, *, term: Term) -> None:
    """Configure, compile and keep the kernel of *recipe*."""
    words = coverage.make_words(recipe.snapshot) if recipe.counts else []
    discard_stale(recipe.tree, recipe.build_dir)
    make = Make(recipe.tree, paths.ensure_dir(recipe.build_dir), recipe.arch, words)
    _configure(recipe, make, term=term)
    targets = [recipe.result, "scripts_gdb"] if recipe.for_debugger else [recipe.result]
    make.build(f"building the {recipe.name} kernel", targets, term=term)
    if wrong := intact.defect(recipe.build_dir / recipe.result):
        raise BuildError(f"make left no kernel: {wrong}", f"see {make.log}, or remove that file")
    _keep(recipe)
    _prune()


def discard_stale(tree: Path, build: Path) -> bool:
    """Empty *build* when make might take something for up to date there that is not.

    make looks at the headers that an object was made from, as far as they are there:
    it does not notice that one has gone, nor that there is another of that name, which
    is to be found before it. Nor does ccache, which is given what is noted here as one
    more file to depend on.

    Returns whether there was something to remove. Raises BuildError.
    """
    stamp = build / HEADERS_NAME
    try:
        names = _header_names(tree)
        if stamp.is_file() and stamp.read_text() == names:
            return False
        stale = build.is_dir() and any(build.iterdir())
        if stale:
            shutil.rmtree(build)
        paths.ensure_dir(build)
        stamp.write_text(names)
    except OSError as error:
        raise BuildError(
            f"cannot empty {build}: {error.strerror or error}",
            "remove it, or see: ./linux-um clean",
        ) from error
    return stale


def _header_names(tree: Path) -> str:
    """Return a hash of the names of headers that are searched for, and of the lists of those
    that are generated.
    """
    digest = hashlib.sha256()
    for parent, directories, names in os.walk(tree):
        directories.sort()
        prefix = os.path.relpath(parent, tree)
        if "include" not in prefix.split("/") and not prefix.startswith("arch/x86/um"):
            continue
        for name in sorted(names):
            if name.endswith(".h"):
                digest.update(f"{prefix}/{name}\0".encode())
            elif name == "Kbuild":
                digest.update(Path(parent, name).read_bytes())
    return digest.hexdigest()


def _configure(recipe: Recipe, make: Make, *, term: Term) -> None:
    """Configure when the wishes, the compiler or a Kconfig file changed since the last time."""
    kconfigs = {
        name: hashlib.sha256((recipe.tree / name).read_bytes()).hexdigest()
        for name in _kconfig_names(recipe)
        if (recipe.tree / name).is_file()
    }
    stamp = json.dumps([RECIPE, recipe.source.content, recipe.compiler, recipe.fragments, kconfigs])
    stamp_file = recipe.build_dir / ".linux-um-configured"
    config = recipe.build_dir / ".config"
    if config.is_file() and stamp_file.is_file() and stamp_file.read_text() == stamp:
        kconfig.verify(kconfig.merge(recipe.fragments), config)
        return
    stamp_file.unlink(missing_ok=True)

    def run(targets: Sequence[str], environment: Mapping[str, str]) -> None:
        make.run(targets, environment=environment)

    with term.step(f"configuring the {recipe.name} kernel"):
        kconfig.configure(recipe.build_dir, recipe.fragments, run)
    stamp_file.write_text(stamp)


def _kconfig_names(recipe: Recipe) -> list[str]:
    """Return the Kconfig files that patches or the engine bring or change."""
    names = set(recipe.snapshot.overlay)
    for patch in recipe.snapshot.patches:
        names.update(patches.touched_files(patch.data))
    return sorted(name for name in names if Path(name).name.startswith("Kconfig"))


def _keep(recipe: Recipe) -> None:
    """Copy the finished kernel to its place by key; all of it or nothing."""
    root = paths.ensure_dir(paths.image_root())
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    try:
        made = recipe.build_dir / recipe.result
        subprocess.run(
            ["cp", "--reflink=auto", str(made), str(temporary / made.name)], check=True
        )
        if recipe.arch != kconfig.UM:
            # QEMU reads all of a file that it starts.
            subprocess.run(
                ["strip", "--strip-debug", "-o", str(temporary / LINUX), str(made)], check=True
            )
        shutil.copyfile(recipe.build_dir / ".config", temporary / CONFIG)
        if recipe.for_debugger:
            _keep_gdb_scripts(recipe.build_dir, temporary / GDB_DIR)
        if recipe.counts:
            coverage.keep_notes(recipe.snapshot, recipe.build_dir, temporary / coverage.NOTES_DIR)
        (temporary / KUNIT_DIR).mkdir()
        for name in KUNIT_FILES:
            shutil.copyfile(recipe.tree / KUNIT_TOOLS / name, temporary / KUNIT_DIR / name)
        release = (recipe.build_dir / "include/config/kernel.release").read_text().strip()
        info = {
            KERNEL: release,
            "source": asdict(recipe.source),
            "profile": recipe.profile,
            "arch": recipe.arch,
            "patches": recipe.snapshot.patches_hash,
            "engine": recipe.snapshot.engine_hash,
            "compiler": recipe.compiler,
            "key": recipe.key,
            SEALS: {name: intact.seal(temporary / name) for name in {LINUX, made.name, CONFIG}},
            "built": int(time.time()),
        }
        (temporary / INFO_NAME).write_text(json.dumps(info, indent=1) + "\n")
        temporary.chmod(0o755)
        final = root / recipe.key
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"cannot keep the finished kernel: {error}", "see the free space of the cache"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _keep_gdb_scripts(build: Path, target: Path) -> None:
    """Copy the gdb scripts, which the build directory has as links into the work tree."""
    (target / GDB_MODULES).mkdir(parents=True)
    shutil.copyfile(build / "vmlinux-gdb.py", target / "vmlinux-gdb.py")
    for module in (build / GDB_MODULES).glob("*.py"):
        shutil.copyfile(module, target / GDB_MODULES / module.name)


def _prune() -> None:
    """Remove all but the images of each profile that were used last."""
    found: dict[str, list[tuple[float, Path]]] = {}
    for directory in paths.image_root().iterdir():
        if directory.name.startswith("."):
            continue
        info = directory / INFO_NAME
        try:
            facts = json.loads(info.read_text())
            profile = f"{facts.get('profile')} {facts.get('arch', kconfig.UM)}"
            last_use = info.stat().st_mtime
        except (OSError, ValueError, AttributeError):
            profile, last_use = "", 0.0
        found.setdefault(profile, []).append((last_use, directory))
    for images in found.values():
        for _, directory in sorted(images, reverse=True)[IMAGES_KEPT:]:
            shutil.rmtree(directory, ignore_errors=True)



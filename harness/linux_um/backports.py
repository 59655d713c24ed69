# SPDX-License-Identifier: GPL-2.0-only
"""Kernel source packages of Debian's backports, without touching the user's apt.

Newer kernels than that of the user's Debian are in the backports of a newer
one. apt itself fetches and verifies them, with a configuration, lists and a
state of its own in the cache; the mirror, and the way to it, are those of the
user's apt. That this takes what nobody has signed, if it does, is not taken over.
Nothing is installed: the package is only unpacked.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import packages, paths
from .errors import SourceError
from .kconfig import numbers
from .kernel_org import OTHER_WAYS
from .term import Term

SUITE = "trixie-backports"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PREFIX = "linux-source-"
MEND = f"go on-line, or {OTHER_WAYS}"
# For so long nobody is asked whether there is a series by now for which another stands in.
REMEMBERED_SECONDS = 86400.0
# By which apt takes what is not signed, or badly.
SIGNED_ONLY = (
    "Acquire::AllowInsecureRepositories",
    "Acquire::AllowWeakRepositories",
    "Acquire::AllowDowngradeToInsecureRepositories",
    "APT::Get::AllowUnauthenticated",
)


@dataclass(frozen=True)
class Package:
    """A source package: its name, such as ``linux-source-7.3``, and its exact version."""

    name: str
    version: str

    @property
    def series(self) -> str:
        """Return the kernel's version as far as the package's name has it: ``7.3``."""
        return self.name.removeprefix(PREFIX)

    @property
    def tarball(self) -> str:
        """Return where in the package the source lies."""
        return f"./usr/src/{self.name}.tar.xz"


def search(*, term: Term) -> list[Package]:
    """Ask the mirror for the source packages that there are now, and return them.

    Raises SourceError where there is no apt, no keyring or no mirror of Debian's, when
    the mirror does not answer, or when what it says is not signed by Debian.
    """
    mirror = _mirror()
    if mirror is None or not KEYRING.is_file():
        raise SourceError("this is no Debian with a mirror and its keys", OTHER_WAYS)
    _configure(mirror)
    with term.step(f"asking for the kernels of {SUITE}") as step:
        _apt_get(["update"], step.update)
    return _packages()


def listed() -> list[Package]:
    """Return what search() has found last, without asking anybody; nothing if it never has."""
    there = (_root() / "apt.conf").is_file() and shutil.which("apt-cache") is not None
    return _packages() if there else []


def exact(found: list[Package], series: str) -> Package | None:
    """Return the package of *series*, or None."""
    return next((package for package in found if package.series == series), None)


def nearest(found: list[Package], series: str) -> Package | None:
    """Return the package of the series that is next after *series*.

    Where nothing is newer, it is the newest of those with the same major number, or None.
    """
    wanted = numbers(series)
    ordered = sorted(found, key=lambda package: numbers(package.series))
    newer = [package for package in ordered if numbers(package.series) > wanted]
    if newer:
        return newer[0]
    older = [package for package in ordered if numbers(package.series) < wanted]
    return older[-1] if older and numbers(older[-1].series)[0] == wanted[0] else None


def remember(series: str, package: Package) -> None:
    """Note that *package* stands in for *series*, of which there is none."""
    paths.ensure_dir(_root())
    (_root() / f"{series}.json").write_text(json.dumps([package.name, package.version]))


def remembered(series: str) -> Package | None:
    """Return what has stood in for *series* since yesterday, or None."""
    memo = _root() / f"{series}.json"
    try:
        if time.time() - memo.stat().st_mtime > REMEMBERED_SECONDS:
            return None
        name, version = json.loads(memo.read_text())
        return Package(name, version)
    except (OSError, ValueError):
        return None


def fetch(package: Package, *, term: Term) -> Path:
    """Download *package*; return where its tarball of the kernel's source lies.

    apt has verified it. Raises SourceError.
    """
    directory = paths.ensure_dir(paths.cache_root() / "download")
    target = directory / f"{package.name}-{package.version}.tar.xz"
    if target.is_file():
        return target
    before = set(directory.glob("*.deb"))
    with term.step(f"downloading {package.name} {package.version}") as step:
        _apt_get(["download", f"{package.name}={package.version}"], step.update, cwd=directory)
        found = set(directory.glob(f"{package.name}_*.deb")) - before
        if not found:
            raise SourceError(f"apt-get downloaded no {package.name}", MEND)
        deb = found.pop()
        step.update("unpacking the package")
        partial = target.with_suffix(".partial")
        try:
            _extract(deb, package.tarball, partial)
            partial.rename(target)
        finally:
            deb.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
    return target


def _root() -> Path:
    """Return the directory of apt's private configuration, lists and state."""
    return paths.cache_root() / "apt"


def _mirror() -> str | None:
    """Return the address of the mirror of Debian's main archive that the user's apt has."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    answer = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)",
         "Created-By: Packages"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for line in answer.stdout.splitlines():
        origin, _, rest = line.partition(" ")
        codename, _, address = rest.partition(" ")
        if origin == "Debian" and not codename.endswith("-security") and address:
            return address
    return None


def _configure(mirror: str) -> None:
    """Write apt's private configuration."""
    root = _root()
    for name in ("lists/partial", "archives/partial", "none"):
        paths.ensure_dir(root / name)
    (root / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} {SUITE} main\n")
    settings = {
        "Dir::Etc::sourcelist": root / "sources.list",
        "Dir::Etc::sourceparts": root / "none",
        "Dir::Etc::preferences": root / "none" / "preferences",
        "Dir::Etc::preferencesparts": root / "none",
        "Dir::State": root,
        "Dir::State::lists": root / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": root,
        "Dir::Cache::archives": root / "archives",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        **dict.fromkeys(SIGNED_ONLY, "false"),
    }
    (root / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))


def _configuration() -> list[str]:
    """Return the words by which apt reads the private configuration.

    After the user's: what $APT_CONFIG names would be read before it, and give way to it.
    """
    return ["-c", str(_root() / "apt.conf")]


def _packages() -> list[Package]:
    """Return the source packages that apt's private lists have, newest version of each."""
    answer = subprocess.run(
        ["apt-cache", *_configuration(), "search", "--names-only", "--full",
         rf"^{PREFIX}[0-9.]+$"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return parse(answer.stdout)


def parse(text: str) -> list[Package]:
    """Return the packages of apt-cache's full records, the first of each name."""
    found: dict[str, Package] = {}
    for record in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (\S+)$", record, re.MULTILINE))
        name = fields.get("Package", "")
        if re.fullmatch(rf"{re.escape(PREFIX)}\d+\.\d+", name) and "Version" in fields:
            found.setdefault(name, Package(name, fields["Version"]))
    return list(found.values())


def _apt_get(arguments: list[str], update: Callable[[str], None], cwd: Path | None = None) -> None:
    """Run apt-get with the private configuration. Raises SourceError with its reason."""
    options = [*_configuration(), "-o", "APT::Update::Error-Mode=any"]
    failure = packages.run_apt([*options, *arguments], update, {}, cwd)
    if failure is not None:
        raise SourceError(f"cannot fetch from {SUITE}: {failure}", MEND)


def _extract(deb: Path, member: str, target: Path) -> None:
    """Write one file of a package to *target*. Raises SourceError."""
    with (
        target.open("wb") as stream,
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as data,
    ):
        tar = subprocess.run(
            ["tar", "-xO", member], stdin=data.stdout, stdout=stream, check=False
        )
        if tar.returncode != 0:
            data.kill()
            raise SourceError(f"{deb.name} does not have {member}", MEND)

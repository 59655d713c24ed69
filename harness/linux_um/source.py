# SPDX-License-Identifier: GPL-2.0-only
"""The pristine kernel source: where it comes from, and how it is trusted.

In this order:

1. ``KERNEL_SRC=DIR``: a tree of the user's own. It is only read; the cache
   holds a copy without build products that is brought up to date in place.
2. ``LINUX_UM_TARBALL=FILE`` with ``LINUX_UM_TARBALL_SHA256=SUM``.
3. Debian's package ``linux-source-VERSION``, trusted through apt and checked
   against dpkg's own record of the file; installed when root.
4. The same package of Debian's backports, see backports.py.
5. A tarball of kernel.org, see kernel_org.py.

No source that has not been verified is ever unpacked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import backports, kernel_org, own_tree, packages, paths
from .errors import SourceError, UsageError
from .term import Term

DEFAULT_KERNEL = "6.12"
# Set by `test --kernel` for the suite.
ENV_KERNEL = "LINUX_UM_KERNEL"
DEBIAN_SOURCE_DIR = Path("/usr/src")
BACKPORTS = "Debian backports"
TAR_RECORD_BYTES = 10240
TAR_RECORDS_PER_REPORT = 2000


@dataclass(frozen=True)
class Source:
    """A kernel source.

    ``key`` names its places in the cache; ``content`` identifies what is in
    it (the same as the key except for a tree of the user's own); ``series``
    is the directory of patches that belongs to it, such as ``6.12``.
    """

    key: str
    content: str
    series: str
    version: str
    origin: str

    @property
    def directory(self) -> Path:
        """Return where the unpacked source lies once it has been made."""
        return paths.source_dir(self.key)


def default_kernel() -> str:
    """Return the version to use where none is given: ``$LINUX_UM_KERNEL`` or 6.12."""
    return os.environ.get(ENV_KERNEL, DEFAULT_KERNEL)


def series_of(version: str) -> str:
    """Return ``6.12`` for ``6.12``, ``6.12.57`` or ``6.12.117-1~deb12u1``.

    Raises UsageError for anything that is no kernel version.
    """
    match = re.match(r"(\d+\.\d+)(?:[.\-~]|$)", version)
    if match is None:
        raise UsageError(f"{version!r} is not a kernel version", "give one such as 6.12")
    return match.group(1)


def identify(kernel: str, *, term: Term) -> Source:
    """Say which source *kernel* means, without unpacking anything.

    Installs the Debian package when that is missing and possible, since the
    exact version is part of the key. Raises SourceError or UsageError.
    """
    own = os.environ.get("KERNEL_SRC")
    if own:
        return _identify_own(Path(own))
    tarball = os.environ.get("LINUX_UM_TARBALL")
    if tarball:
        return _identify_tarball(Path(tarball), kernel)
    series = series_of(kernel)
    if kernel != series:
        return _kernel_org_source(kernel)
    version = debian_version(series)
    if version is None:
        wanted = missing_package(kernel, term=term)
        if wanted is not None:
            packages.ensure("source", term=term, extra=[wanted])
            version = debian_version(series)
    if version is not None:
        return Source(f"debian-{version}", f"debian-{version}", series, version, "Debian package")
    cached = _newest_cached(series)
    if cached is not None:
        return cached
    package = backports.remembered(series)
    if package is None or not paths.source_dir(_backports_key(package)).is_dir():
        package = backports.find(series, term=term)
    if package is not None:
        return _backports_source(package, series, term)
    return _kernel_org_source(kernel_org.newest(series, term))


def ensure(source: Source, *, term: Term) -> Path:
    """Return the directory of *source*, unpacking or copying it first when needed.

    The caller holds the build lock. Raises SourceError.
    """
    if source.origin == "own tree":
        own_tree.synchronise(
            Path(os.environ["KERNEL_SRC"]), source.directory, source.content, term=term
        )
        return source.directory
    if source.directory.is_dir():
        return source.directory
    if source.origin == "Debian package":
        tarball = debian_tarball(source.series)
        _verify_debian(source.series)
    elif source.origin == BACKPORTS:
        tarball = backports.fetch(_package_of(source), term=term)
    elif source.origin == "tarball":
        tarball = Path(os.environ["LINUX_UM_TARBALL"])
        kernel_org.require_sum(tarball, os.environ["LINUX_UM_TARBALL_SHA256"])
    else:
        tarball = kernel_org.fetch(source.version, term=term)
    unpack(tarball, source.directory, term=term)
    if source.origin == BACKPORTS:
        # It is not asked for again as long as it is there unpacked.
        tarball.unlink()
    return source.directory


def missing_package(kernel: str, *, term: Term) -> str | None:
    """Return Debian's source package when *kernel* needs it and it is not there, else None."""
    if os.environ.get("KERNEL_SRC") or os.environ.get("LINUX_UM_TARBALL"):
        return None
    series = series_of(kernel)
    if kernel != series or debian_version(series) is not None or _newest_cached(series) is not None:
        return None
    name = f"linux-source-{series}"
    return name if packages.is_available(name, term=term) else None


def debian_tarball(series: str) -> Path:
    """Return where Debian's package puts the source of *series*."""
    return DEBIAN_SOURCE_DIR / f"linux-source-{series}.tar.xz"


def debian_version(series: str) -> str | None:
    """Return the exact version of the installed Debian package, or None without it.

    dpkg is asked once per tarball; the answer is kept with its size and time.
    """
    tarball = debian_tarball(series)
    try:
        status = tarball.stat()
    except FileNotFoundError:
        return None
    stamp = [str(tarball), status.st_size, status.st_mtime_ns]
    memo = paths.cache_root() / "debian-version.json"
    try:
        known = json.loads(memo.read_text())
        if known["stamp"] == stamp:
            return str(known["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        answer = subprocess.run(
            ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", f"linux-source-{series}"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    status_word, _, version = answer.stdout.strip().partition(" ")
    if answer.returncode != 0 or status_word != "installed":
        return None
    paths.ensure_dir(memo.parent)
    memo.write_text(json.dumps({"stamp": stamp, "version": version}))
    return version


def unpack(tarball: Path, target: Path, *, term: Term) -> None:
    """Unpack *tarball* without its top directory as *target*; all of it or nothing.

    Raises SourceError when tar fails or the archive is no kernel source.
    """
    packages.ensure("source", term=term)
    paths.ensure_dir(target.parent)
    temporary = Path(tempfile.mkdtemp(prefix=".unpack-", dir=target.parent))
    command = [
        "tar", "-xf", str(tarball), "-C", str(temporary), "--strip-components=1",
        "--no-same-owner", "--no-same-permissions",
        f"--checkpoint={TAR_RECORDS_PER_REPORT}", "--checkpoint-action=echo=%u",
    ]  # fmt: skip
    try:
        with term.step(f"unpacking {tarball.name}") as step:
            errors = _run_tar(command, step.update)
            if errors is not None:
                raise SourceError(
                    f"cannot unpack {tarball}: {errors}",
                    f"see that {target.parent} has 2 GB of free space",
                )
            if not (temporary / "Kbuild").is_file():
                raise SourceError(f"{tarball} holds no kernel source", "use another tarball")
            temporary.chmod(0o755)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _run_tar(command: list[str], update: Callable[[str], None]) -> str | None:
    """Run tar, passing its progress on; return None or its last complaint."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tar:
        complaint = "tar failed"
        assert tar.stderr is not None
        for line in tar.stderr:
            text = line.strip().removeprefix("tar: ")
            if text.isdigit():
                update(f"{int(text) * TAR_RECORD_BYTES // 2**20} MiB")
            elif text:
                complaint = text
        return complaint if tar.wait() != 0 else None


def _identify_own(directory: Path) -> Source:
    """Describe the user's own tree. Raises SourceError when it is none."""
    directory = directory.resolve()
    version = own_tree.kernel_version(directory)
    place = hashlib.sha256(str(directory).encode()).hexdigest()[:12]
    content = f"own-{place}-{own_tree.listing_hash(directory)}"
    return Source(f"own-{place}", content, series_of(version), version, "own tree")


def _identify_tarball(tarball: Path, kernel: str) -> Source:
    """Describe the user's own tarball. Raises SourceError without its checksum."""
    expected = os.environ.get("LINUX_UM_TARBALL_SHA256", "")
    if re.fullmatch(r"[0-9a-f]{64}", expected) is None:
        raise SourceError(
            "LINUX_UM_TARBALL is given without its checksum",
            "set LINUX_UM_TARBALL_SHA256 to the tarball's sha256 from a source you trust",
        )
    if not tarball.is_file():
        raise SourceError(f"LINUX_UM_TARBALL={tarball} does not exist", "correct the path")
    key = f"tarball-{expected[:16]}"
    return Source(key, key, series_of(kernel), kernel, "tarball")


def _kernel_org_source(version: str) -> Source:
    """Describe a kernel.org release."""
    key = f"kernel.org-{version}"
    return Source(key, key, series_of(version), version, "kernel.org")


def _backports_source(package: backports.Package, series: str, term: Term) -> Source:
    """Describe a package of the backports; say so when it is not of *series* itself."""
    if package.series != series:
        term.warn(
            f"there is no kernel {series} any more: its patches are tried on {package.series} "
            f"({package.version})"
        )
    key = _backports_key(package)
    return Source(key, key, series, package.version, BACKPORTS)


def _backports_key(package: backports.Package) -> str:
    """Return the name that a package of the backports has in the cache."""
    return f"debian-{package.version}"


def _package_of(source: Source) -> backports.Package:
    """Return the package of the backports that *source* was made from."""
    name = f"{backports.PREFIX}{series_of(source.version)}"
    return backports.Package(name, source.version)


def _newest_cached(series: str) -> Source | None:
    """Return the newest source of *series* that was unpacked earlier, or None."""
    root = paths.source_dir("x").parent
    found = [*root.glob(f"debian-{series}.*"), *root.glob(f"kernel.org-{series}.*")]
    if not found:
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime)
    origin, version = newest.name.split("-", 1)
    name = "Debian package" if origin == "debian" else "kernel.org"
    return Source(newest.name, newest.name, series, version, name)


def _verify_debian(series: str) -> None:
    """Check the tarball against dpkg's record. Raises SourceError when it was altered."""
    name = f"linux-source-{series}"
    check = subprocess.run(
        ["dpkg", "--verify", name], capture_output=True, text=True, check=False
    )
    if str(debian_tarball(series)) in check.stdout:
        raise SourceError(
            f"{debian_tarball(series)} is not the file that Debian packaged",
            f"run: sudo apt-get install --reinstall {name}",
        )

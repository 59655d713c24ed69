# SPDX-License-Identifier: GPL-2.0-only
"""The pristine kernel source: where it comes from, and how it is trusted.

What the user gives is all there is:

- ``KERNEL_SRC=DIR``: a tree of the user's own. It is only read; the cache
  holds a copy without build products that is brought up to date in place.
- ``LINUX_UM_TARBALL=FILE`` with ``LINUX_UM_TARBALL_SHA256=SUM``.

Else what is at hand is used, Debian's package if it is installed or what was unpacked
earlier; and else the series is looked for, exactly that one, in this order:

1. Debian's package ``linux-source-VERSION``, trusted through apt and checked
   against dpkg's own record of the file; installed when root.
2. The same package of Debian's backports, see backports.py.
3. A tarball of kernel.org, see kernel_org.py.

Where no place has it, the nearest newer series of the backports stands in for it, or the
nearest older one where none is newer. A place that fails is passed over, be it only when the
source is to be fetched from there. It is said which one is taken, and why none before it.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import backports, kernel_org, own_tree, packages, paths
from .errors import LinuxUmError, SourceError, UsageError
from .kconfig import numbers
from .term import Term

DEFAULT_KERNEL = "6.12"
# Set by `test --kernel` for the suite.
ENV_KERNEL = "LINUX_UM_KERNEL"
DEBIAN_SOURCE_DIR = Path("/usr/src")
DEBIAN = "Debian package"
BACKPORTS = "Debian backports"
KERNEL_ORG = "kernel.org"
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


class PlaceFailed(SourceError):
    """A source was not to be fetched from its place: identify() knows of another by now."""


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


def series_meant(kernel: str) -> str:
    """Return the series of *kernel*, or that of ``$KERNEL_SRC``, which is used in its place.

    Raises SourceError or UsageError.
    """
    own = os.environ.get("KERNEL_SRC")
    return series_of(own_tree.kernel_version(Path(own)) if own else kernel)


def check_series(kernel: str, whose: str = "") -> None:
    """See that there are patches for a kernel version. Raises UsageError with those there are.

    *whose* says where the version comes from, if not from the command line.
    """
    if "/" in kernel or not paths.patches_dir(series_of(kernel)).is_dir():
        raise UsageError(
            f"no patches for kernel {kernel}{whose}",
            f"there are for: {' '.join(paths.known_series())}",
        )


def identify(kernel: str, *, term: Term) -> Source:
    """Say which source *kernel* means, without unpacking anything.

    Installs the Debian package when that is missing and possible, since the
    exact version is part of the key. Raises SourceError, when no place has the
    source with what each of them lacks, or UsageError.
    """
    own = os.environ.get("KERNEL_SRC")
    if own:
        return _identify_own(Path(own))
    check_series(kernel)
    tarball = os.environ.get("LINUX_UM_TARBALL")
    if tarball:
        return _identify_tarball(Path(tarball), kernel)
    series = series_of(kernel)
    if kernel != series:
        found = _kernel_org_source(kernel)
        if found.directory in _refused:
            raise _refused[found.directory]
        return found
    for at_hand in (_installed(series), _newest_cached(series)):
        if at_hand is not None and at_hand.directory not in _refused:
            return at_hand
    search = _searches.setdefault((paths.cache_root(), series), _Search(series))
    return search.source(term)


def obtain(kernel: str, *, term: Term) -> Path:
    """Return the directory of the source that *kernel* means, from the first place that has it.

    The caller holds the build lock. Raises SourceError or UsageError.
    """
    while True:
        try:
            return ensure(identify(kernel, term=term), term=term)
        except PlaceFailed:
            continue


def ensure(source: Source, *, term: Term) -> Path:
    """Return the directory of *source*, unpacking or copying it first when needed.

    The caller holds the build lock. Raises PlaceFailed where another place may have
    it, which identify() names from then on; SourceError.
    """
    if source.origin == "own tree":
        own_tree.synchronise(
            Path(os.environ["KERNEL_SRC"]), source.directory, source.content, term=term
        )
        return source.directory
    if source.directory.is_dir():
        return source.directory
    if source.origin == "tarball":
        tarball = Path(os.environ["LINUX_UM_TARBALL"])
        kernel_org.require_sum(tarball, os.environ["LINUX_UM_TARBALL_SHA256"])
    else:
        try:
            tarball = _fetch(source, term)
        except LinuxUmError as error:
            _refused[source.directory] = error
            raise PlaceFailed(error.message, error.mend) from error
    unpack(tarball, source.directory, term=term)
    if source.origin == BACKPORTS:
        # It is not asked for again as long as it is there unpacked.
        tarball.unlink()
    return source.directory


def _fetch(source: Source, term: Term) -> Path:
    """Return the tarball of *source* from its place, verified. Raises SourceError."""
    if source.origin == DEBIAN:
        _verify_debian(source.series)
        return debian_tarball(source.series)
    if source.origin == BACKPORTS:
        return backports.fetch(_package_of(source), term=term)
    return kernel_org.fetch(source.version, term=term)


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
    check_series(version, f" of KERNEL_SRC={directory}")
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
    return Source(key, key, series_of(version), version, KERNEL_ORG)


def _backports_source(package: backports.Package, series: str) -> Source:
    """Describe a package of the backports, which may stand in for another *series*."""
    key = f"debian-{package.version}"
    return Source(key, key, series, package.version, BACKPORTS)


def _installed(series: str) -> Source | None:
    """Describe Debian's package as it is installed, or return None without it."""
    version = debian_version(series)
    if version is None:
        return None
    return Source(f"debian-{version}", f"debian-{version}", series, version, DEBIAN)


def _from_debian(series: str, term: Term) -> Source:
    """Install Debian's package."""
    name = f"linux-source-{series}"
    if debian_version(series) is None:
        if not packages.is_available(name, term=term):
            raise SourceError(f"apt does not know {name}")
        packages.ensure(term=term, extra=[name])
    found = _installed(series)
    if found is None:
        raise SourceError(f"dpkg does not know {debian_tarball(series)}")
    return found


def _from_backports(series: str, term: Term) -> Source:
    """Look into Debian's backports."""
    package = backports.exact(backports.search(term=term), series)
    if package is None:
        raise SourceError(f"{backports.SUITE} does not have it", backports.MEND)
    return _backports_source(package, series)


def _from_kernel_org(series: str, term: Term) -> Source:
    """Ask kernel.org for its newest release of the series."""
    return _kernel_org_source(kernel_org.newest(series, term))


# Where the exact series may be had; each raises LinuxUmError, or OSError, with why it is not.
_PLACES: tuple[tuple[str, Callable[[str, Term], Source]], ...] = (
    ("Debian", _from_debian),
    (BACKPORTS, _from_backports),
    (KERNEL_ORG, _from_kernel_org),
)
# What the place of a series is called that stands in for another.
_NEAREST = "the nearest series"


class _Search:
    """The places for the source of one series, asked in turn; none twice in a process."""

    def __init__(self, series: str) -> None:
        self._series = series
        self._candidates: Iterator[tuple[str, Source]] | None = None
        self._place = ""
        self._found: Source | None = None
        # Why there is none to be had, by place.
        self._causes: dict[str, LinuxUmError] = {}

    def source(self, term: Term) -> Source:
        """Return the source of the first place that has one; say which when that changes.

        Raises SourceError with all that was tried.
        """
        if self._candidates is None:
            self._candidates = self._ask(term)
        while self._found is None or self._found.directory in _refused:
            if self._found is not None:
                self._causes[self._place] = _refused[self._found.directory]
            self._place, self._found = next(self._candidates, ("", None))
            if self._found is None:
                raise self._failure()
            if self._found.directory not in _refused:
                self._tell(term)
        return self._found

    def _ask(self, term: Term) -> Iterator[tuple[str, Source]]:
        """Yield what each place has, the best first, asking it only then."""
        before = backports.remembered(self._series)
        if before is not None:
            source = _backports_source(before, self._series)
            if source.directory.is_dir():
                yield _NEAREST, source
        for place, find in _PLACES:
            try:
                source = find(self._series, term)
            except LinuxUmError as error:
                self._causes[place] = error
            except OSError as error:
                self._causes[place] = SourceError(str(error))
            else:
                yield place, source
        package = backports.nearest(backports.listed(), self._series)
        if package is not None:
            backports.remember(self._series, package)
            yield _NEAREST, _backports_source(package, self._series)

    def _tell(self, term: Term) -> None:
        """Say which source is taken, and why none of a better place."""
        assert self._found is not None
        what = f"{self._found.version} ({self._found.origin})"
        if self._place != _NEAREST:
            why = f": there is none from {self._reasons()}" if self._causes else ""
            term.info(f"taking Linux {what}{why}")
            return
        none = f"there was no Linux {self._series} when it was last looked for"
        if self._causes:
            none = f"there is no Linux {self._series} from {self._reasons()}"
        older = numbers(series_of(self._found.version)) < numbers(self._series)
        term.warn(
            f"{none}: taking the nearest, {'which is older, ' if older else ''}{what}, "
            f"and trying the patches of {self._series} on it"
        )

    def _reasons(self) -> str:
        """Return the places that have been tried, each with why it has failed."""
        return ", ".join(f"{place} ({error.message})" for place, error in self._causes.items())

    def _failure(self) -> SourceError:
        """Return the error that names what each place lacks, and a way out."""
        # The first is a command to type, where Debian's package needs no more than that.
        mends = [self._causes[place].mend for place in ("Debian", KERNEL_ORG)]
        mend = mends[0] or mends[1]
        if kernel_org.OTHER_WAYS not in mend:
            mend += f", or {kernel_org.OTHER_WAYS}"
        return SourceError(f"there is no Linux {self._series} from {self._reasons()}", mend)


# What this process has found out: the searches by cache and series, and what could not be
# fetched, by where it was to be unpacked.
_searches: dict[tuple[Path, str], _Search] = {}
_refused: dict[Path, LinuxUmError] = {}


def _package_of(source: Source) -> backports.Package:
    """Return the package of the backports that *source* was made from."""
    name = f"{backports.PREFIX}{series_of(source.version)}"
    return backports.Package(name, source.version)


def _newest_cached(series: str) -> Source | None:
    """Return the newest source of *series* that was unpacked earlier, or None."""
    root = paths.source_dir("x").parent
    found = [
        *root.glob(f"debian-{series}.*"),
        *root.glob(f"kernel.org-{series}.*"),
        *root.glob(f"kernel.org-{series}"),
    ]
    if not found:
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime)
    origin, version = newest.name.split("-", 1)
    name = DEBIAN if origin == "debian" else KERNEL_ORG
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

# SPDX-License-Identifier: GPL-2.0-only
"""Release tarballs of kernel.org, verified before use.

A tarball is believed when its sha256 is the one in
``linux-patches/SERIES/source.sha256`` (lines as sha256sum prints them), or the
one in kernel.org's ``sha256sums.asc`` and gpg confirms that this file was
signed by kernel.org's checksum key. Failing both, nothing is unpacked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import paths
from .errors import SourceError
from .term import Step, Term

DEFAULT_MIRROR = "https://cdn.kernel.org/pub/linux/kernel"
AUTOSIGNER = "B8868C80BA62A1FFFAF5FDA9632D3A06589DA6B1"
OTHER_WAYS = (
    "give a tarball by LINUX_UM_TARBALL and LINUX_UM_TARBALL_SHA256, "
    "or an unpacked tree by KERNEL_SRC"
)
CHUNK_BYTES = 1 << 20
CONNECT_TIMEOUT_SECONDS = 20


def mirror() -> str:
    """Return the base address of the releases: ``$LINUX_UM_MIRROR`` or kernel.org."""
    return os.environ.get("LINUX_UM_MIRROR", DEFAULT_MIRROR).rstrip("/")


def file_sum(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_sum(path: Path, expected: str) -> None:
    """Raise SourceError unless the sha256 of *path* is *expected*."""
    actual = file_sum(path)
    if actual != expected.lower():
        raise SourceError(
            f"{path} has sha256 {actual[:16]}..., not {expected[:16]}...",
            "it is damaged or another file: get it again",
        )


def parse_sums(text: str) -> dict[str, str]:
    """Return file name to sha256 from lines as sha256sum prints them."""
    found = re.findall(r"^([0-9a-f]{64})[ \t]+\*?(\S+)[ \t]*$", text, re.MULTILINE)
    return {name: digest for digest, name in found}


def newest_of(names: list[str], series: str) -> str | None:
    """Return the highest version of *series* among tarball names, or None."""
    pattern = re.compile(rf"linux-({re.escape(series)}(?:\.(\d+))?)\.tar\.xz")
    versions = [
        (int(match.group(2) or 0), match.group(1))
        for match in map(pattern.fullmatch, names)
        if match is not None
    ]
    return max(versions)[1] if versions else None


def pinned_sums(series: str) -> dict[str, str]:
    """Return the sums that the repository itself vouches for."""
    table = paths.patches_dir(series) / "source.sha256"
    return parse_sums(table.read_text()) if table.is_file() else {}


def newest(series: str, term: Term) -> str:
    """Return the newest verifiable release of *series*, such as ``6.12.57``.

    Raises SourceError when there is none, or no way to ask.
    """
    version = newest_of(list(pinned_sums(series)), series)
    if version is None:
        version = newest_of(list(_signed_sums(series, term)), series)
    if version is None:
        raise SourceError(f"kernel.org lists no release of {series}", OTHER_WAYS)
    return version


def fetch(version: str, *, term: Term) -> Path:
    """Download and verify the tarball of *version*; return where it lies.

    Raises SourceError offline, or when it cannot be verified.
    """
    series = ".".join(version.split(".")[:2])
    name = f"linux-{version}.tar.xz"
    expected = pinned_sums(series).get(name) or _signed_sums(series, term).get(name)
    if expected is None:
        raise SourceError(f"there is no trusted checksum for {name}", OTHER_WAYS)
    target = paths.ensure_dir(paths.cache_root() / "download") / name
    if not target.is_file() or file_sum(target) != expected:
        with term.step(f"downloading {name}") as step:
            partial = target.with_suffix(".partial")
            _download(_address(series, name), partial, step)
            require_sum(partial, expected)
            partial.rename(target)
    return target


def check_signature(signed: Path, *, keyring: str | None = None) -> str:
    """Return the text of *signed* that kernel.org's checksum key has signed.

    *keyring* is a file of keys instead of the user's own. Raises SourceError
    without gpg, without the key, or when the signature is not good.
    """
    if shutil.which("gpg") is None:
        raise SourceError(
            "gpg is missing, so kernel.org's checksums cannot be verified",
            f"install gnupg, or {OTHER_WAYS}",
        )
    with tempfile.TemporaryDirectory(prefix="linux-um-gpg-") as directory:
        clear = Path(directory) / "sums"
        command = ["gpg", "--batch", "--status-fd", "1", "--output", str(clear)]
        if keyring is not None:
            command += ["--no-default-keyring", "--keyring", str(Path(keyring).absolute())]
        command += ["--decrypt", str(signed)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        valid = re.search(r"^\[GNUPG:\] VALIDSIG (.*)$", result.stdout, re.MULTILINE)
        if result.returncode == 0 and valid is not None and AUTOSIGNER in valid.group(1).split():
            return clear.read_text()
    if "NO_PUBKEY" in result.stdout:
        raise SourceError(
            "gpg does not have the key of kernel.org's checksums",
            f"run: gpg --locate-keys autosigner@kernel.org (fingerprint {AUTOSIGNER}), "
            "or name a keyring file by LINUX_UM_KEYRING",
        )
    raise SourceError("the signature of kernel.org's checksums is not good", OTHER_WAYS)


def _address(series: str, name: str) -> str:
    """Return the address of a file in the directory of *series*."""
    return f"{mirror()}/v{series.split('.')[0]}.x/{name}"


def _signed_sums(series: str, term: Term) -> dict[str, str]:
    """Fetch and verify kernel.org's list of checksums for *series*."""
    with (
        tempfile.TemporaryDirectory(prefix="linux-um-sums-") as directory,
        term.step("fetching kernel.org's checksums") as step,
    ):
        signed = Path(directory) / "sha256sums.asc"
        _download(_address(series, "sha256sums.asc"), signed, step)
        return parse_sums(check_signature(signed, keyring=os.environ.get("LINUX_UM_KEYRING")))


def _download(address: str, target: Path, step: Step) -> None:
    """Copy *address* to *target*. Raises SourceError on any failure of the network."""
    # Imported here since it takes longer than everything else in a boot's set-up.
    import http.client
    import urllib.request

    try:
        with (
            urllib.request.urlopen(address, timeout=CONNECT_TIMEOUT_SECONDS) as answer,
            target.open("wb") as stream,
        ):
            total = int(answer.headers.get("Content-Length") or 0)
            done = 0
            while chunk := answer.read(CHUNK_BYTES):
                stream.write(chunk)
                done += len(chunk)
                of_total = f" of {total >> 20}" if total else ""
                step.update(f"{done >> 20}{of_total} MiB")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise SourceError(
            f"cannot fetch {address}: {reason}", f"go on-line, or {OTHER_WAYS}"
        ) from error

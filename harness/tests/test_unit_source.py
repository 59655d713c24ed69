# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources: which one is meant, and that none is used unverified."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from linux_um import (
    backports,
    errors,
    kernel_org,
    paths,
    source,
    term,
)


@pytest.fixture
def quiet() -> term.Term:
    """A terminal that says nothing."""
    return term.Term(quiet=True)


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    """A kernel source of two files."""
    directory = tmp_path / "pristine"
    (directory / "mm").mkdir(parents=True)
    (directory / "mm/memory.c").write_text("int memory;\n")
    (directory / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 9\n")
    return directory


def tree_files(tree: Path) -> dict[str, bytes]:
    """Return every file below *tree* outside .git."""
    return {
        path.relative_to(tree).as_posix(): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


@pytest.mark.parametrize(
    ("version", "series"), [("6.12", "6.12"), ("6.12.57", "6.12"), ("6.12.117-1~deb12u1", "6.12")]
)
def test_the_series_of_a_version(version: str, series: str) -> None:
    assert source.series_of(version) == series


@pytest.mark.parametrize("version", ["", "6", "six", "6.12x", "../6.12"])
def test_no_series_of_nonsense(version: str) -> None:
    with pytest.raises(errors.UsageError):
        source.series_of(version)


def test_a_wrong_checksum_is_refused_before_unpacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    tarball = tmp_path / "linux.tar.xz"
    tarball.write_bytes(b"not what it should be")
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KERNEL_SRC", raising=False)
    monkeypatch.setenv("LINUX_UM_TARBALL", str(tarball))
    monkeypatch.delenv("LINUX_UM_TARBALL_SHA256", raising=False)
    with pytest.raises(errors.SourceError, match="LINUX_UM_TARBALL_SHA256"):
        source.identify("6.12", term=quiet)
    monkeypatch.setenv("LINUX_UM_TARBALL_SHA256", hashlib.sha256(b"the right one").hexdigest())
    found = source.identify("6.12", term=quiet)
    with pytest.raises(errors.SourceError, match="sha256"):
        source.ensure(found, term=quiet)
    assert not found.directory.exists()


def test_a_given_tarball_with_the_right_checksum_is_unpacked(
    tmp_path: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    (pristine / "Kbuild").write_text("obj-y += mm/\n")
    tarball = tmp_path / "linux.tar.xz"
    subprocess.run(["tar", "-C", str(tmp_path), "-cJf", str(tarball), "pristine"], check=True)
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KERNEL_SRC", raising=False)
    monkeypatch.setenv("LINUX_UM_TARBALL", str(tarball))
    monkeypatch.setenv("LINUX_UM_TARBALL_SHA256", kernel_org.file_sum(tarball))
    found = source.identify("6.12", term=quiet)
    assert tree_files(source.ensure(found, term=quiet)) == tree_files(pristine)


def test_a_damaged_tarball_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    tarball = tmp_path / "linux.tar.xz"
    tarball.write_bytes(b"garbage")
    target = paths.source_dir("x")
    with pytest.raises(errors.SourceError, match="cannot unpack"):
        source.unpack(tarball, target, term=quiet)
    assert list(target.parent.iterdir()) == []


def test_offline_says_so_and_names_the_other_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LINUX_UM_MIRROR", "http://127.0.0.1:9/nothing")
    with pytest.raises(errors.SourceError) as caught:
        kernel_org.fetch("6.12.57", term=quiet)
    line = caught.value.line()
    assert "cannot fetch http://127.0.0.1:9/nothing/v6.x/sha256sums.asc" in line
    assert "KERNEL_SRC" in line and "LINUX_UM_TARBALL" in line


def test_a_download_is_kept_only_with_the_right_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    release = tmp_path / "mirror/v6.x/linux-6.12.57.tar.xz"
    release.parent.mkdir(parents=True)
    release.write_bytes(b"release")
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LINUX_UM_MIRROR", (tmp_path / "mirror").as_uri())
    wrong = {release.name: "0" * 64}
    monkeypatch.setattr(kernel_org, "pinned_sums", lambda _series: wrong)
    with pytest.raises(errors.SourceError, match="sha256"):
        kernel_org.fetch("6.12.57", term=quiet)
    right = {release.name: kernel_org.file_sum(release)}
    monkeypatch.setattr(kernel_org, "pinned_sums", lambda _series: right)
    assert kernel_org.fetch("6.12.57", term=quiet).read_bytes() == b"release"


@pytest.mark.skipif(shutil.which("gpg") is None, reason="no gpg")
def test_checksums_signed_by_another_key_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(home))
    unsigned = tmp_path / "sums"
    unsigned.write_text("0" * 64 + "  linux-6.12.57.tar.xz\n")
    with pytest.raises(errors.SourceError):
        kernel_org.check_signature(unsigned)
    gpg = ["gpg", "--batch", "--pinentry-mode", "loopback", "--passphrase", ""]
    made = subprocess.run([*gpg, "--quick-gen-key", "x@example.org", "ed25519"], check=False)
    if made.returncode != 0:
        pytest.skip("gpg cannot make a key here")
    try:
        subprocess.run([*gpg, "--clearsign", "-o", str(tmp_path / "a"), str(unsigned)], check=True)
        with pytest.raises(errors.SourceError, match="not good"):
            kernel_org.check_signature(tmp_path / "a")
        fingerprint = subprocess.run(
            ["gpg", "--with-colons", "-K"], capture_output=True, text=True, check=True
        ).stdout.split("fpr:::::::::")[1].split(":")[0]
        monkeypatch.setattr(kernel_org, "AUTOSIGNER", fingerprint)
        assert kernel_org.parse_sums(kernel_org.check_signature(tmp_path / "a")) == {
            "linux-6.12.57.tar.xz": "0" * 64
        }
    finally:
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], check=False)


def test_the_newest_release_is_by_number_not_by_letter() -> None:
    names = ["linux-6.12.9.tar.xz", "linux-6.12.10.tar.xz", "linux-6.12.tar.xz", "linux-6.13.1.tar.xz"]
    assert kernel_org.newest_of(names, "6.12") == "6.12.10"
    assert kernel_org.newest_of(names, "6.1") is None


def test_an_own_tree_is_copied_without_build_products_and_never_changed(
    tmp_path: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    for name in (".config", "mm/memory.o", "include/generated/autoconf.h", "vmlinux", "kernel/b.s"):
        (pristine / name).parent.mkdir(parents=True, exist_ok=True)
        (pristine / name).write_text("built")
    (pristine / "link").symlink_to("Makefile")
    before = {name: (data, (pristine / name).stat().st_mtime_ns)
              for name, data in tree_files(pristine).items()}  # fmt: skip
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERNEL_SRC", str(pristine))
    found = source.identify("6.12", term=quiet)
    assert (found.series, found.version) == ("6.12", "6.12.9")
    copy = source.ensure(found, term=quiet)
    assert sorted(tree_files(copy)) == ["Makefile", "link", "mm/memory.c"]
    assert (copy / "link").is_symlink()
    time = (copy / "Makefile").stat().st_mtime_ns
    (pristine / "mm/memory.c").write_text("edited\n")
    again = source.identify("6.12", term=quiet)
    assert again.key == found.key
    assert again.content != found.content
    source.ensure(again, term=quiet)
    assert (copy / "mm/memory.c").read_text() == "edited\n"
    assert (copy / "Makefile").stat().st_mtime_ns == time
    for name, (data, mtime) in before.items():
        if name != "mm/memory.c":
            assert (pristine / name).read_bytes() == data
            assert (pristine / name).stat().st_mtime_ns == mtime


def test_no_kernel_tree_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_SRC", str(tmp_path))
    with pytest.raises(errors.SourceError, match="is no kernel tree"):
        source.identify("6.12", term=term.Term(quiet=True))


RECORDS = """\
Package: linux-source-7.2
Version: 7.2.12-1~bpo13+1
Description-en: Linux kernel source for version 7.2

Package: linux-source-7.2
Version: 7.2.6-1~bpo13+1

Package: linux-source-7.10
Version: 7.10.1-1~bpo13+1

Package: linux-source
Version: 7.10.1-1~bpo13+1
"""


def test_the_source_packages_that_apt_knows_of() -> None:
    assert backports.parse(RECORDS) == [
        backports.Package("linux-source-7.2", "7.2.12-1~bpo13+1"),
        backports.Package("linux-source-7.10", "7.10.1-1~bpo13+1"),
    ]


@pytest.mark.parametrize(
    ("series", "found"),
    [("7.1", "7.2"), ("7.2", "7.2"), ("7.3", "7.10"), ("7.10", "7.10"), ("7.11", None)],
)
def test_the_nearest_series_from_the_one_asked_for_on(series: str, found: str | None) -> None:
    package = backports.nearest(backports.parse(RECORDS), series)
    assert (package.series if package else None) == found


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of backports with one source package, unsigned, and apt set up for it."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    archive = tmp_path / "archive"
    built = tmp_path / "package"
    (built / "DEBIAN").mkdir(parents=True)
    (built / "DEBIAN/control").write_text(
        "Package: linux-source-7.2\nVersion: 7.2.12-1~bpo13+1\nArchitecture: all\n"
        "Maintainer: nobody <nobody@localhost>\nDescription: source\n"
    )
    (built / "usr/src").mkdir(parents=True)
    (built / "usr/src/linux-source-7.2.tar.xz").write_bytes(b"the source")
    index = archive / f"dists/{backports.SUITE}/main/binary-amd64"
    index.mkdir(parents=True)
    deb = archive / "linux-source-7.2.deb"
    subprocess.run(["dpkg-deb", "--build", str(built), str(deb)], check=True, capture_output=True)
    control = (built / "DEBIAN/control").read_text()
    data = deb.read_bytes()
    entry = (
        f"{control}Filename: {deb.name}\nSize: {len(data)}\n"
        f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
    )
    (index / "Packages").write_text(entry)
    digest = hashlib.sha256(entry.encode()).hexdigest()
    (archive / f"dists/{backports.SUITE}/Release").write_text(
        f"Suite: {backports.SUITE}\nCodename: {backports.SUITE}\nOrigin: Debian\n"
        "Components: main\nArchitectures: amd64\nSHA256:\n"
        f" {digest} {len(entry)} main/binary-amd64/Packages\n"
    )
    monkeypatch.setattr(backports, "_mirror", lambda: f"file:{archive}/")
    return archive


def test_backports_without_debians_signature_are_refused(packaged: Path, quiet: term.Term) -> None:
    with pytest.raises(errors.SourceError, match="cannot fetch from"):
        backports.find("7.2", term=quiet)


def test_the_tarball_of_a_package_is_taken_out_of_it(
    packaged: Path, quiet: term.Term, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the signature waived, for want of Debian's key: all else is as it is."""
    configure = backports._configure

    def trusting(mirror: str) -> None:
        configure(mirror)
        listing = paths.cache_root() / "apt/sources.list"
        listing.write_text(listing.read_text().replace("[", "[trusted=yes "))

    monkeypatch.setattr(backports, "_configure", trusting)
    package = backports.find("7.1", term=quiet)
    assert package == backports.Package("linux-source-7.2", "7.2.12-1~bpo13+1")
    assert backports.remembered("7.1") == package
    assert backports.fetch(package, term=quiet).read_bytes() == b"the source"
    # What was altered on the way is not.
    (paths.cache_root() / "download" / f"{package.name}-{package.version}.tar.xz").unlink()
    deb = packaged / "linux-source-7.2.deb"
    deb.write_bytes(deb.read_bytes() + b"x")
    with pytest.raises(errors.SourceError, match="cannot fetch"):
        backports.fetch(package, term=quiet)

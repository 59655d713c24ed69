# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources: which one is meant, and that none is used unverified."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest

from linux_um import (
    backports,
    build,
    errors,
    kernel_org,
    packages,
    patches,
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


def test_a_mirror_that_answers_with_nonsense_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(4096)
                client.sendall(b"nonsense\r\n")

        mirror = threading.Thread(target=answer)
        mirror.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/sums"
        with pytest.raises(errors.SourceError, match=f"cannot fetch {address}: "):
            kernel_org._download(address, tmp_path / "sums", term.Term(quiet=True).step("x"))
        mirror.join()


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
    ("series", "there", "next_one"),
    [
        ("7.1", False, "7.2"),
        ("7.2", True, "7.10"),
        ("7.3", False, "7.10"),
        # Nothing is newer: what is older, but of the same major number.
        ("7.11", False, "7.10"),
        ("7.10", True, "7.2"),
        ("8.0", False, None),
    ],
)
def test_the_series_asked_for_and_the_one_after_it(
    series: str, there: bool, next_one: str | None
) -> None:
    found = backports.parse(RECORDS)
    exact = backports.exact(found, series)
    assert (exact is not None and exact.series == series) is there
    package = backports.nearest(found, series)
    assert (package.series if package else None) == next_one


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


@pytest.fixture
def careless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose apt takes everything, by both kinds of files that it reads."""
    text = "".join(f'{name} "true";\n' for name in backports.SIGNED_ONLY)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/99careless").write_text(text)
    parts = f'Dir::Etc::parts "{tmp_path}/parts";\n'
    (tmp_path / "user.conf").write_text(text + parts)
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "user.conf"))
    configure = backports._configure

    def before_the_parts(mirror: str) -> None:
        """Ours has a word on the parts as well: read in place of $APT_CONFIG it would be heard."""
        configure(mirror)
        with (paths.cache_root() / "apt/apt.conf").open("a") as file:
            file.write(parts)

    monkeypatch.setattr(backports, "_configure", before_the_parts)


def test_backports_without_debians_signature_are_refused(packaged: Path, quiet: term.Term) -> None:
    with pytest.raises(errors.SourceError, match="cannot fetch from"):
        backports.search(term=quiet)
    assert backports.listed() == []


@pytest.mark.usefixtures("careless")
def test_a_user_whose_apt_takes_what_is_not_signed_gets_none_of_it(
    packaged: Path, quiet: term.Term
) -> None:
    with pytest.raises(errors.SourceError, match="cannot fetch from .*not signed"):
        backports.search(term=quiet)
    assert backports.listed() == []
    dump = ["apt-config", *backports._configuration(), "dump", "--format", "%F %v%n"]
    known = subprocess.run(dump, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"{name} false" for name in backports.SIGNED_ONLY} <= set(known)
    # Nor is any other setting of ours the user's.
    assert f"Dir::State::lists {paths.cache_root()}/apt/lists" in known


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
    package = backports.Package("linux-source-7.2", "7.2.12-1~bpo13+1")
    assert backports.listed() == []
    assert backports.search(term=quiet) == backports.listed() == [package]
    assert backports.fetch(package, term=quiet).read_bytes() == b"the source"
    # What was altered on the way is not.
    (paths.cache_root() / "download" / f"{package.name}-{package.version}.tar.xz").unlink()
    deb = packaged / "linux-source-7.2.deb"
    deb.write_bytes(deb.read_bytes() + b"x")
    with pytest.raises(errors.SourceError, match="cannot fetch"):
        backports.fetch(package, term=quiet)


def test_what_stands_in_for_a_series_is_remembered_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    package = backports.Package("linux-source-7.2", "7.2.12-1~bpo13+1")
    assert backports.remembered("7.1") is None
    backports.remember("7.1", package)
    assert backports.remembered("7.1") == package and backports.remembered("7.2") is None
    os.utime(tmp_path / "apt/7.1.json", (time.time() - 90_000,) * 2)
    assert backports.remembered("7.1") is None


# The places, one after another


class Places:
    """Made-up places for kernel sources: what each has, what fails, and what was done."""

    def __init__(self, downloads: Path) -> None:
        self.downloads = downloads
        # Series to version; for kernel.org, series to release.
        self.debian = {"6.12": "6.12.9-1", "7.3": "7.3.2-1"}
        self.backports = {"6.12": "6.12.9-1~bpo13+1", "7.3": "7.3.4-1~bpo13+1"}
        self.kernel_org = {"6.12": "6.12.57", "7.3": "7.3.5"}
        # Whose index, and whose files, cannot be fetched.
        self.down: set[str] = set()
        self.broken: set[str] = set()
        self.installed: dict[str, str] = {}
        self.asked: list[str] = []

    def ask(self, place: str, among: set[str]) -> None:
        """Fail as a place does that is one of *among*."""
        if among is self.down:
            self.asked.append(place)
        if place in among:
            raise errors.SourceError(f"cannot fetch from {place}: no route", backports.MEND)

    def install(self, *_stages: str, term: term.Term, extra: Sequence[str] = ()) -> None:
        """Stand in for packages.ensure()."""
        for name in extra:
            if "debian" in self.down:
                raise errors.HostError(f"apt-get could not install {name}: 404", "try: sudo apt-get")
            series = name.removeprefix("linux-source-")
            self.installed[series] = self.debian[series]

    def known(self, name: str, *, term: term.Term) -> bool:
        """Stand in for packages.is_available()."""
        self.asked.append("debian")
        return name.removeprefix("linux-source-") in self.debian

    def update(self, *_arguments: object, **_options: object) -> None:
        """Stand in for apt-get update with the private configuration."""
        self.ask("backports", self.down)

    def packages(self) -> list[backports.Package]:
        """Stand in for what apt-cache lists."""
        return [
            backports.Package(f"linux-source-{series}", version)
            for series, version in self.backports.items()
        ]

    def newest(self, series: str, _term: term.Term) -> str:
        """Stand in for kernel_org.newest()."""
        self.ask("kernel.org", self.down)
        if series not in self.kernel_org:
            raise errors.SourceError(f"kernel.org lists no release of {series}", "")
        return self.kernel_org[series]

    def fetch(self, place: str) -> Path:
        """Stand in for what fetches, and verifies, a tarball."""
        self.ask(place, self.broken)
        tarball = self.downloads / place
        tarball.touch()
        return tarball


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Places that all have both series, in a cache that is empty."""
    made = Places(tmp_path)
    for name in ("KERNEL_SRC", "LINUX_UM_TARBALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "ensure", made.install)
    monkeypatch.setattr(packages, "is_available", made.known)
    monkeypatch.setattr(source, "debian_version", made.installed.get)
    monkeypatch.setattr(source, "_verify_debian", lambda _series: made.fetch("debian"))
    monkeypatch.setattr(source, "debian_tarball", lambda _series: tmp_path / "debian")
    (tmp_path / "keys").touch()
    monkeypatch.setattr(backports, "KEYRING", tmp_path / "keys")
    monkeypatch.setattr(backports, "_mirror", lambda: "http://mirror/")
    monkeypatch.setattr(backports, "_apt_get", made.update)
    monkeypatch.setattr(backports, "_packages", made.packages)
    monkeypatch.setattr(backports, "fetch", lambda *_, **__: made.fetch("backports"))
    monkeypatch.setattr(kernel_org, "newest", made.newest)
    monkeypatch.setattr(kernel_org, "fetch", lambda *_, **__: made.fetch("kernel.org"))

    def unpack(tarball: Path, target: Path, *, term: term.Term) -> None:
        target.mkdir(parents=True)
        (target / "from").write_text(tarball.name)

    monkeypatch.setattr(source, "unpack", unpack)
    return made


@pytest.fixture
def said() -> io.StringIO:
    """What the launcher says by the terminal *talking*."""
    return io.StringIO()


@pytest.fixture
def talking(said: io.StringIO) -> term.Term:
    """A terminal that is a pipe, and read."""
    return term.Term(said)


def taken(said: io.StringIO) -> list[str]:
    """Return the lines that say what is taken."""
    return [line for line in said.getvalue().splitlines() if " taking " in line]


@pytest.mark.parametrize(
    ("down", "asked", "version", "line"),
    [
        ((), 1, "6.12.9-1", "taking Linux 6.12.9-1 (Debian package)"),
        (("debian",), 2, "6.12.9-1~bpo13+1",
         "taking Linux 6.12.9-1~bpo13+1 (Debian backports): there is none from Debian "
         "(apt-get could not install linux-source-6.12: 404)"),
        (("debian", "backports"), 3, "6.12.57",
         "taking Linux 6.12.57 (kernel.org): there is none from Debian (apt-get could not install "
         "linux-source-6.12: 404), Debian backports (cannot fetch from backports: no route)"),
        (("debian", "backports", "kernel.org"), 3, "7.3.4-1~bpo13+1",
         "warning: there is no Linux 6.12 from Debian (apt-get could not install linux-source-6.12: "
         "404), Debian backports (cannot fetch from backports: no route), kernel.org (cannot fetch "
         "from kernel.org: no route): taking the nearest, 7.3.4-1~bpo13+1 (Debian backports), and "
         "trying the patches of 6.12 on it"),
    ],
    ids=["debian", "backports", "kernel.org", "nearest"],
)  # fmt: skip
def test_a_place_that_is_down_is_passed_over_and_the_version_taken_is_said(
    places: Places,
    said: io.StringIO,
    talking: term.Term,
    down: tuple[str, ...],
    asked: int,
    version: str,
    line: str,
) -> None:
    """Once, however often it is asked for, and so are the places."""
    places.down.update(down)
    for _ in range(3):
        found = source.identify("6.12", term=talking)
        assert (found.version, found.series) == (version, "6.12")
    assert taken(said) == [f"linux-um: {line}"]
    assert places.asked == ["debian", "backports", "kernel.org"][:asked]
    # The next one has it at hand, and says nothing.
    source.obtain("6.12", term=talking)
    said.truncate(0)
    assert source.identify("6.12", term=talking).directory.is_dir()
    assert taken(said) == []


def test_the_exact_series_of_kernel_org_comes_before_a_newer_one_of_the_backports(
    places: Places, quiet: term.Term
) -> None:
    places.debian.clear()
    del places.backports["6.12"]
    found = source.identify("6.12", term=quiet)
    assert (found.version, found.origin) == ("6.12.57", "kernel.org")
    assert places.asked == ["debian", "backports", "kernel.org"]


def test_that_what_stands_in_for_a_series_is_older_is_said(
    places: Places, said: io.StringIO, talking: term.Term
) -> None:
    del places.kernel_org["7.3"]
    for older in (places.debian, places.backports):
        older["7.2"] = older.pop("7.3").replace("7.3", "7.2")
    assert source.identify("7.3", term=talking).version == "7.2.4-1~bpo13+1"
    (line,) = taken(said)
    assert line.startswith("linux-um: warning: there is no Linux 7.3 from Debian (apt does not know")
    assert line.endswith(
        "taking the nearest, which is older, 7.2.4-1~bpo13+1 (Debian backports), and trying the "
        "patches of 7.3 on it"
    )


def test_what_stands_in_for_a_series_is_not_looked_for_at_once_again_but_said(
    places: Places, said: io.StringIO, talking: term.Term, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.debian.clear()
    del places.backports["6.12"]
    places.down.add("kernel.org")
    source.obtain("6.12", term=talking)
    # As the next command does, which knows nothing of this one.
    monkeypatch.setattr(source, "_searches", {})
    places.asked.clear()
    assert source.identify("6.12", term=talking).version == "7.3.4-1~bpo13+1"
    assert places.asked == []
    assert taken(said)[1:] == [
        "linux-um: warning: there was no Linux 6.12 when it was last looked for: taking the nearest, "
        "7.3.4-1~bpo13+1 (Debian backports), and trying the patches of 6.12 on it"
    ]


@pytest.mark.parametrize(
    ("broken", "place"),
    [((), "debian"), (("debian",), "backports"), (("debian", "backports"), "kernel.org")],
)
def test_a_place_that_has_the_source_and_does_not_give_it_is_passed_over(
    places: Places, quiet: term.Term, broken: tuple[str, ...], place: str
) -> None:
    places.broken.update(broken)
    got = (source.obtain("6.12", term=quiet) / "from").read_text()
    assert got == place
    assert source.identify("6.12", term=quiet).directory.is_dir()


def test_a_build_goes_on_with_the_next_place(
    places: Places, quiet: term.Term, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe is that of the source it gets."""
    places.broken.update(("debian", "backports"))
    synchronised: list[object] = []
    monkeypatch.setattr(patches, "synchronise", lambda *given, **_: synchronised.append(given))
    tree = build.ensure_tree("fast", "6.12", term=quiet)
    assert tree == paths.tree_dir("kernel.org-6.12.57")
    assert len(synchronised) == 1


def test_without_any_place_one_line_names_each_cause_and_a_way_out(
    places: Places, quiet: term.Term
) -> None:
    places.debian.clear()
    places.backports.clear()
    places.down.update(("backports", "kernel.org"))
    for _ in range(2):
        with pytest.raises(errors.SourceError) as caught:
            source.obtain("6.12", term=quiet)
        assert caught.value.line() == (
            "there is no Linux 6.12 from Debian (apt does not know linux-source-6.12), Debian "
            "backports (cannot fetch from backports: no route), kernel.org (cannot fetch from "
            f"kernel.org: no route); go on-line, or {kernel_org.OTHER_WAYS}"
        )
    assert places.asked == ["debian", "backports", "kernel.org"]


def test_an_ordinary_user_whom_no_place_serves_is_told_the_command(
    places: Places, quiet: term.Term
) -> None:
    places.down.update(("debian", "kernel.org"))
    places.broken.add("backports")
    with pytest.raises(errors.SourceError) as caught:
        source.obtain("7.3", term=quiet)
    assert caught.value.mend == f"try: sudo apt-get, or {kernel_org.OTHER_WAYS}"
    assert "Debian backports (cannot fetch from backports: no route)" in caught.value.message


def test_one_release_is_of_kernel_org_or_not_at_all(places: Places, quiet: term.Term) -> None:
    places.broken.add("kernel.org")
    with pytest.raises(errors.SourceError, match="^cannot fetch from kernel.org: no route; go on"):
        source.obtain("6.12.57", term=quiet)
    assert places.asked == []


def test_a_source_package_that_cannot_be_installed_does_not_end_a_first_build(
    monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    """All other packages still are asked for; where they are missing as well all are named."""
    asked: list[list[str]] = []
    lacks: set[str] = {"linux-source-6.12"}

    def ensure(*stages: str, term: term.Term, extra: Sequence[str] = ()) -> None:
        asked.append(list(extra))
        names = [name for name in ("gcc", *extra) if name in lacks]
        if names:
            raise errors.HostError(f"missing packages: {' '.join(names)}", "")

    monkeypatch.setattr(source, "missing_package", lambda *_, **__: "linux-source-6.12")
    monkeypatch.setattr(packages, "missing", lambda *_: ["bc"])
    monkeypatch.setattr(packages, "ensure", ensure)
    recipe_read = RuntimeError("went on")
    monkeypatch.setattr(build, "read_recipe", Mock(side_effect=recipe_read))
    with pytest.raises(RuntimeError, match="went on"):
        build.ensure_image("fast", "6.12", term=quiet)
    assert asked == [["linux-source-6.12"], []]
    lacks.add("gcc")
    with pytest.raises(errors.HostError, match="missing packages: gcc linux-source-6.12$"):
        build.ensure_image("fast", "6.12", term=quiet)


@pytest.mark.parametrize("version", ["7.4", "7.4.1", "6.13"])
def test_a_series_without_patches_is_one_line_with_those_there_are(
    version: str, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    """On the command line, to whoever imports us, and for a tree of the user's own."""
    known = "there are for: 6.12 7.3"
    done = subprocess.run(
        [str(paths.repo_root() / "linux-um"), "run", "--kernel", version, "--", "true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == errors.EXIT_LAUNCHER
    assert done.stderr == f"linux-um: no patches for kernel {version}; {known}\n"
    with pytest.raises(errors.UsageError, match=f"no patches for kernel {version}; {known}"):
        source.identify(version, term=quiet)
    assert places.asked == []
    numbers = (*version.split("."), "0")
    names = ("VERSION", "PATCHLEVEL", "SUBLEVEL")
    text = "".join(f"{name} = {number}\n" for name, number in zip(names, numbers, strict=False))
    (tmp_path / "Makefile").write_text(text)
    monkeypatch.setenv("KERNEL_SRC", str(tmp_path))
    with pytest.raises(errors.UsageError, match=f"no patches for kernel .* of KERNEL_SRC=.*; {known}"):
        source.identify("6.12", term=quiet)


def test_series_are_listed_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("7.3", "6.12", "10.0", "7.10"):
        (tmp_path / name).mkdir()
    (tmp_path / "engine.series").touch()
    monkeypatch.setattr(paths, "patches_dir", lambda series: tmp_path / series)
    assert paths.known_series() == ["6.12", "7.3", "7.10", "10.0"]

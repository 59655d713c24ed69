# SPDX-License-Identifier: GPL-2.0-only
"""Kernels and file systems of the cache that are not what was kept there are not used."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from linux_um import build, intact, packages, patches, paths, source
from linux_um.term import Term


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> build.Recipe:
    """Return what a kernel is to be made from, in a cache that is empty."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    found = source.Source("k", "k", "6.12", "6.12.1", "Debian package")
    return build.Recipe(found, "fast", patches.Snapshot((), (), {}), (), "gcc")


def test_an_image_without_its_facts_is_not_used(recipe: build.Recipe) -> None:
    assert build.find_image(recipe) is None
    directory = paths.image_root() / recipe.key
    directory.mkdir(parents=True)
    shutil.copy(sys.executable, directory / "linux")
    assert build.find_image(recipe) is None
    (directory / build.INFO_NAME).write_text(json.dumps({"kernel": "6.12.1-pksm"}))
    # As one that was made before there were seals.
    image = build.find_image(recipe)
    assert image is not None and image.kernel == "6.12.1-pksm"
    assert recipe.key in image.describe()
    for text in ("", "{}", "[]", "0", "null", '{"kernel": 6}', '{"kernel": "6", "seals": []}'):
        (directory / build.INFO_NAME).write_text(text)
        assert build.find_image(recipe) is None, text
        assert build.damage(recipe) == f"{directory / build.INFO_NAME} is damaged"


def spoil(path: Path, place: int, length: int | None = None) -> None:
    """Turn a byte of a file, or cut it off after *length* bytes."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data if length is None else data[:length])


def test_an_image_that_is_not_what_was_kept_is_not_used(recipe: build.Recipe) -> None:
    """One that is empty or cut off is told without a seal, too."""
    directory = paths.image_root() / recipe.key
    directory.mkdir(parents=True)
    linux = directory / "linux"
    shutil.copy(sys.executable, linux)
    size = linux.stat().st_size
    old: dict[str, object] = {"kernel": "6.12.1-pksm"}
    new: dict[str, object] = {**old, build.SEALS: {"linux": intact.seal(linux)}}
    for facts, spoilt in ((old, False), (new, True)):
        for place, length, wrong in (
            (0, 0, True), (0, 100, True), (0, size - 1, True), (0, None, True), (4096, None, spoilt),
        ):  # fmt: skip
            shutil.copy(sys.executable, linux)
            (directory / build.INFO_NAME).write_text(json.dumps(facts))
            assert build.find_image(recipe) is not None and not build.damage(recipe)
            spoil(linux, place, length)
            assert (build.find_image(recipe) is None) == wrong, (facts, place, length)
            assert build.damage(recipe).startswith(str(linux) if wrong else "")
    linux.unlink()
    assert build.find_image(recipe) is None


def test_a_damaged_image_is_built_anew_and_that_is_said(
    recipe: build.Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "read_recipe", lambda *_args, **_options: recipe)
    monkeypatch.setattr(build, "_first_packages", lambda *_: None)
    monkeypatch.setattr(build, "prepare_tree", lambda *_, **__: [])
    monkeypatch.setattr(packages, "ensure", lambda *_, **__: None)
    directory = paths.image_root() / recipe.key
    built = []

    def make_it(_recipe: build.Recipe, *, term: Term) -> None:
        built.append(1)
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy(sys.executable, directory / "linux")
        (directory / build.INFO_NAME).write_text('{"kernel": "6.12.1-pksm"}')

    monkeypatch.setattr(build, "_build", make_it)
    for count in (1, 1):
        build.ensure_image("fast", "6.12", term=Term())
        assert len(built) == count and capsys.readouterr().err == ""
    spoil(directory / "linux", 0, 100)
    build.ensure_image("fast", "6.12", term=Term())
    assert len(built) == 2
    wrong = f"{directory / 'linux'} is not complete; the kernel is built anew"
    assert capsys.readouterr().err == f"linux-um: warning: {wrong}\n"


def test_an_archive_that_is_not_what_was_kept_is_not_used(tmp_path: Path) -> None:
    """With a seal, and without."""
    archive = tmp_path / "initramfs.cpio"
    content = b"070701" + bytes(5000) + b"TRAILER!!!" + bytes(300)
    archive.write_bytes(content)
    seal = intact.seal(archive)
    assert not intact.defect(archive) and not intact.defect(archive, seal)
    spoil(archive, 2000)
    assert not intact.defect(archive)
    assert intact.defect(archive, seal) == f"{archive} has changed"
    for length in (0, 3, 4000, len(content) - 400):
        archive.write_bytes(content[:length])
        assert intact.defect(archive) == f"{archive} is not complete"
        assert intact.defect(archive, seal) == f"{archive} has {length} bytes, not {len(content)}"
    archive.unlink()
    assert intact.defect(archive) == f"{archive}: No such file or directory"

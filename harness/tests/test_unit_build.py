# SPDX-License-Identifier: GPL-2.0-only
"""The build layer without a kernel: series, export, work tree, configurations, keys."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from linux_um import (
    build,
    errors,
    export,
    kconfig,
    make,
    own_tree,
    packages,
    patches,
    paths,
    source,
    term,
)

VANILLA = "".join(f"line {number}\n" for number in range(1, 31))
HOOK = """From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001
From: A Hacker <hacker@example.org>
Date: Fri, 2 Jan 2026 03:04:05 +0000
Subject: [PATCH 1/1] mm: call the hook

Why.

Signed-off-by: A Hacker <hacker@example.org>
---
 mm/memory.c | 1 +
 1 file changed, 1 insertion(+)

diff --git a/mm/memory.c b/mm/memory.c
--- a/mm/memory.c
+++ b/mm/memory.c
@@ -10,6 +10,7 @@
 line 10
 line 11
 line 12
+hook();
 line 13
 line 14
 line 15
--\x20
2.39.0

"""


@pytest.fixture
def quiet() -> term.Term:
    """A terminal that says nothing."""
    return term.Term(quiet=True)


@pytest.fixture
def pristine(tmp_path: Path) -> Path:
    """A kernel source of two files."""
    directory = tmp_path / "pristine"
    (directory / "mm").mkdir(parents=True)
    (directory / "mm/memory.c").write_text(VANILLA)
    (directory / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 9\n")
    return directory


def snapshot_of(
    hooks: dict[str, str], overlay: dict[str, bytes] | None = None, tail: tuple[str, ...] = ()
) -> patches.Snapshot:
    """Return a snapshot of hook patches by name and an engine."""
    all_patches = [patches.Patch(name, text.encode()) for name, text in hooks.items()]
    return patches.Snapshot(
        tuple(patch for patch in all_patches if patch.name not in tail),
        tuple(patch for patch in all_patches if patch.name in tail),
        overlay or {},
    )


def tree_files(tree: Path) -> dict[str, bytes]:
    """Return every file below *tree* outside .git."""
    return {
        path.relative_to(tree).as_posix(): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


# Series and patches


def test_series_splits_at_the_engine_and_strips_comments(tmp_path: Path) -> None:
    for name in ("0001-a.patch", "0002-b.patch"):
        (tmp_path / name).write_text(name)
    (tmp_path / "series").write_text("# order\n0001-a.patch\n\npksm/ # engine\n0002-b.patch\n")
    snapshot = patches.take_snapshot(tmp_path, tmp_path / "none")
    assert [patch.name for patch in snapshot.before] == ["0001-a.patch"]
    assert [patch.name for patch in snapshot.after] == ["0002-b.patch"]


@pytest.mark.parametrize(
    ("series", "files", "said"),
    [
        (None, (), "no patches for kernel"),
        ("0001-a.patch\n", (), "names 0001-a.patch"),
        ("", ("0001-a.patch",), "not named in series"),
    ],
)
def test_an_inconsistent_series_is_an_error(
    tmp_path: Path, series: str | None, files: tuple[str, ...], said: str
) -> None:
    for name in files:
        (tmp_path / name).write_text("")
    if series is not None:
        (tmp_path / "series").write_text(series)
    with pytest.raises(errors.PatchError, match=said):
        patches.take_snapshot(tmp_path, tmp_path / "none")


def test_a_fitting_patch_is_applied_and_an_offset_is_allowed(pristine: Path) -> None:
    (pristine / "mm/memory.c").write_text("new line\n" + VANILLA)
    result = patches.patched_files(pristine, snapshot_of({"0001-h.patch": HOOK}))
    assert result == {
        "mm/memory.c": ("new line\n" + VANILLA).replace("12\n", "12\nhook();\n", 1).encode()
    }


@pytest.mark.parametrize("changed", ["line 10\n", "line 15\n", "line 12\n"])
def test_fuzz_is_rejected_with_file_and_hunk(pristine: Path, changed: str) -> None:
    """One changed line of context, which patch would pass over by default."""
    text = VANILLA.replace(changed, "other\n")
    (pristine / "mm/memory.c").write_text(text)
    with pytest.raises(errors.PatchError) as caught:
        patches.patched_files(pristine, snapshot_of({"0001-h.patch": HOOK}))
    assert "0001-h.patch does not fit: mm/memory.c: Hunk #1 FAILED" in caught.value.line()
    assert "\n" not in caught.value.line()
    assert (pristine / "mm/memory.c").read_text() == text


def test_a_patch_applied_twice_or_to_a_missing_file_is_rejected(pristine: Path) -> None:
    twice = snapshot_of({"0001-h.patch": HOOK, "0002-h.patch": HOOK})
    with pytest.raises(errors.PatchError, match="0002-h.patch does not fit"):
        patches.patched_files(pristine, twice)
    (pristine / "mm/memory.c").unlink()
    with pytest.raises(errors.PatchError, match="0001-h.patch does not fit"):
        patches.patched_files(pristine, snapshot_of({"0001-h.patch": HOOK}))


def test_a_patch_cannot_leave_the_tree(pristine: Path) -> None:
    evil = HOOK.replace("mm/memory.c", "../memory.c")
    with pytest.raises(errors.PatchError, match="kernel tree"):
        patches.patched_files(pristine, snapshot_of({"0001-h.patch": evil}))


def test_the_engine_cannot_replace_a_file_of_the_kernel(pristine: Path) -> None:
    with pytest.raises(errors.PatchError, match="would replace"):
        patches.patched_files(pristine, snapshot_of({}, {"mm/memory.c": b"mine\n"}))


def test_hashes_change_with_every_byte_and_name() -> None:
    base = snapshot_of({"a": HOOK}, {"x": b"1"})
    same = snapshot_of({"a": HOOK}, {"x": b"1"})
    assert (base.patches_hash, base.engine_hash) == (same.patches_hash, same.engine_hash)
    assert base.patches_hash != snapshot_of({"a": HOOK + " "}, {}).patches_hash
    assert base.patches_hash != snapshot_of({"b": HOOK}, {}).patches_hash
    assert base.engine_hash != snapshot_of({}, {"x": b"2"}).engine_hash
    assert base.engine_hash != snapshot_of({}, {"y": b"1"}).engine_hash


# The work tree


def test_the_work_tree_follows_edits_and_touches_nothing_else(
    pristine: Path, tmp_path: Path, quiet: term.Term
) -> None:
    tree = tmp_path / "tree"
    before = tree_files(pristine)

    def sync(snapshot: patches.Snapshot, content: str = "c1") -> list[str]:
        return patches.synchronise(pristine, content, tree, snapshot, term=quiet)

    full = snapshot_of({"0001-h.patch": HOOK}, {"mm/pksm/core.c": b"a\n", "mm/pksm/b.c": b"b\n"})
    assert sorted(sync(full)) == ["mm/memory.c", "mm/pksm/b.c", "mm/pksm/core.c"]
    assert b"hook();" in (tree / "mm/memory.c").read_bytes()
    times = {name: (tree / name).stat().st_mtime_ns for name in tree_files(tree)}
    assert sync(full) == []
    edited = snapshot_of({"0001-h.patch": HOOK}, {"mm/pksm/core.c": b"a2\n", "mm/pksm/b.c": b"b\n"})
    assert sync(edited) == ["mm/pksm/core.c"]
    for name, time in times.items():
        if name != "mm/pksm/core.c":
            assert (tree / name).stat().st_mtime_ns == time
    # Without patch and engine the tree is vanilla again, with a new time for make.
    assert sorted(sync(snapshot_of({}))) == ["mm/memory.c", "mm/pksm/b.c", "mm/pksm/core.c"]
    assert tree_files(tree) == before
    assert (tree / "mm/memory.c").stat().st_mtime_ns > times["mm/memory.c"]
    assert tree_files(pristine) == before


def test_a_failed_patch_leaves_the_work_tree_as_it_was(
    pristine: Path, tmp_path: Path, quiet: term.Term
) -> None:
    tree = tmp_path / "tree"
    patches.synchronise(pristine, "c", tree, snapshot_of({"1": HOOK}), term=quiet)
    before = tree_files(tree)
    with pytest.raises(errors.PatchError):
        patches.synchronise(pristine, "c", tree, snapshot_of({"1": HOOK, "2": HOOK}), term=quiet)
    assert tree_files(tree) == before


def test_the_work_tree_follows_a_source_of_the_users_own(
    pristine: Path, tmp_path: Path, quiet: term.Term
) -> None:
    tree = tmp_path / "tree"
    (pristine / "gone.c").write_text("gone\n")
    patches.synchronise(pristine, "c1", tree, snapshot_of({"1": HOOK}), term=quiet)
    (pristine / "gone.c").unlink()
    (pristine / "new.c").write_text("new\n")
    own_tree._copy(tree / "Makefile", pristine / "Makefile")
    changed = patches.synchronise(pristine, "c2", tree, snapshot_of({"1": HOOK}), term=quiet)
    assert sorted(changed) == ["gone.c", "new.c"]
    assert not (tree / "gone.c").exists()
    assert (tree / "new.c").read_text() == "new\n"
    assert b"hook();" in (tree / "mm/memory.c").read_bytes()


# Export for git am


ENGINE_SERIES = """# comment
[pksm-core]
Subject: mm/pksm: add the engine
Files: mm/pksm/*.c
 include/linux/pksm.h

Body of
the message.

[pksm-doc]
Subject: mm/pksm: document it
Files: Documentation/*
"""
ENGINE = {
    "mm/pksm/core.c": b"int core;\n",
    "include/linux/pksm.h": b"#define PKSM\n\n",
    "Documentation/admin-guide/mm/pksm.rst": "Größe\n".encode(),
}


@pytest.fixture
def engine_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the repository describe its engine by ENGINE_SERIES."""
    monkeypatch.setattr(
        export, "engine_commits", lambda: export.parse_engine_series(ENGINE_SERIES)
    )


@pytest.mark.usefixtures("engine_series")
def test_the_exported_series_applies_by_git_am_and_gives_the_work_tree(
    pristine: Path, tmp_path: Path, quiet: term.Term, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    second = HOOK.replace("+hook();", "+second();").replace(" line 12\n", " line 12\n hook();\n")
    second = second.replace(" line 10\n", "").replace("@@ -10,6 +10,7 @@", "@@ -11,6 +11,7 @@")
    snapshot = snapshot_of(
        {"0001-hook.patch": HOOK, "0002-second.patch": second}, ENGINE, ("0002-second.patch",)
    )
    files = export.write_series(export.complete_series(snapshot), tmp_path / "out")
    assert [path.name for path in files] == [
        "0001-hook.patch",
        "0002-pksm-core.patch",
        "0003-pksm-doc.patch",
        "0004-second.patch",
    ]
    tree = tmp_path / "tree"
    patches.synchronise(pristine, "c", tree, snapshot, term=quiet)

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(pristine)]
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "vanilla")
    git("am", *map(str, files))
    assert tree_files(pristine) == tree_files(tree)
    assert git("log", "--format=%s", "-4").splitlines() == [
        "mm: call the hook",
        "mm/pksm: document it",
        "mm/pksm: add the engine",
        "mm: call the hook",
    ]
    log = git("log", "-3", "--format=%an <%ae> %ad%n%b", "--date=iso")
    assert "Body of\nthe message." in log
    assert log.count("A Hacker <hacker@example.org> 2026-01-02 03:04:05 +0000") == 3


@pytest.mark.usefixtures("engine_series")
def test_a_commit_of_the_engine_may_have_a_place_of_its_own(tmp_path: Path) -> None:
    for name in ("0001-a.patch", "0002-b.patch", "0003-c.patch"):
        (tmp_path / name).write_text(HOOK)
    series = tmp_path / "series"

    def names() -> list[str]:
        snapshot = patches.take_snapshot(tmp_path, tmp_path / "none")
        snapshot = dataclasses.replace(snapshot, overlay=ENGINE)
        return [patch.name for patch in export.complete_series(snapshot)]

    series.write_text("0001-a.patch\npksm/\n0002-b.patch\npksm/pksm-doc\n0003-c.patch\n")
    assert names() == [
        "0001-a.patch",
        "0002-pksm-core.patch",
        "0003-b.patch",
        "0004-pksm-doc.patch",
        "0005-c.patch",
    ]
    series.write_text("0001-a.patch\npksm/\n0002-b.patch\n0003-c.patch\npksm/pksm-doc\n")
    assert names()[-2:] == ["0004-c.patch", "0005-pksm-doc.patch"]
    series.write_text("0001-a.patch\npksm/\n0002-b.patch\n0003-c.patch\npksm/pksm-test\n")
    with pytest.raises(errors.PatchError, match="a place for pksm/pksm-test"):
        names()
    series.write_text("0001-a.patch\npksm/pksm-doc\npksm/\n0002-b.patch\n0003-c.patch\n")
    with pytest.raises(errors.PatchError, match="pksm/pksm-doc comes before pksm/"):
        names()


@pytest.mark.parametrize("series", ["6.12", "7.3"])
def test_the_place_of_a_patch_stands_in_its_name_alone(series: str) -> None:
    """A number in the subject is of the series as it was once; the exported one has those of all."""
    snapshot = patches.take_snapshot(paths.patches_dir(series), paths.overlay_dir())
    for patch in snapshot.patches:
        subject = re.search(rb"^Subject: (.*)$", patch.data, re.MULTILINE)
        assert subject is not None, patch.name
        assert re.match(rb"\[PATCH\] \S", subject[1]), f"{patch.name}: {subject[1]!r}"
    names = [patch.name for patch in snapshot.patches]
    assert names == sorted(names)
    assert len({name[:5] for name in names}) == len(names)


@pytest.mark.usefixtures("engine_series")
def test_the_exported_series_is_the_same_each_time() -> None:
    snapshot = snapshot_of({"0001-hook.patch": HOOK}, ENGINE)
    assert export.complete_series(snapshot) == export.complete_series(snapshot)


def test_every_engine_file_needs_a_commit_and_every_commit_a_file() -> None:
    commits = export.parse_engine_series(ENGINE_SERIES)
    with pytest.raises(errors.PatchError, match="mm/pksm/Kconfig"):
        export.assign({**ENGINE, "mm/pksm/Kconfig": b"\n"}, commits)
    with pytest.raises(errors.PatchError, match="pksm-doc"):
        export.assign({"mm/pksm/core.c": b"\n"}, commits)
    with pytest.raises(errors.PatchError, match="no Files"):
        export.parse_engine_series("[a]\nSubject: x\n")


def test_a_commit_may_leave_files_to_a_later_one() -> None:
    commits = export.parse_engine_series(
        "[a]\nSubject: a\nFiles: mm/* !mm/tests/*\n[b]\nSubject: b\nFiles: mm/*\n"
    )
    overlay = {"mm/a.c": b"\n", "mm/tests/a.c": b"\n", "mm/tests/more/b.c": b"\n"}
    files = {commit.name: sorted(mine) for commit, mine in export.assign(overlay, commits)}
    assert files == {"a": ["mm/a.c"], "b": ["mm/tests/a.c", "mm/tests/more/b.c"]}


def test_a_file_without_a_last_newline_is_not_exported() -> None:
    with pytest.raises(errors.PatchError, match="newline"):
        export.new_file_diff("a.c", b"int x;")


# Configurations


def test_later_fragments_override_earlier_ones() -> None:
    wishes = kconfig.merge(["CONFIG_A=y\nCONFIG_B=1\n", "# CONFIG_A is not set\nCONFIG_C=\"x\"\n"])
    assert wishes == {"CONFIG_A": "n", "CONFIG_B": "1", "CONFIG_C": '"x"'}
    assert kconfig.merge([kconfig.render(wishes)]) == wishes


def test_every_wish_that_did_not_stick_is_named(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    config.write_text("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=14\nCONFIG_D=y\n")
    kconfig.verify({"CONFIG_A": "y", "CONFIG_B": "n", "CONFIG_ABSENT": "n"}, config)
    with pytest.raises(errors.ConfigError) as caught:
        kconfig.verify({"CONFIG_B": "y", "CONFIG_C": "18", "CONFIG_D": "n", "CONFIG_E": "y"}, config)
    for text in ("CONFIG_B=y (is n)", "CONFIG_C=18 (is 14)", "CONFIG_D=n (is y)", "CONFIG_E=y"):
        assert text in caught.value.line()


def test_a_line_that_is_no_configuration_is_an_error() -> None:
    with pytest.raises(errors.ConfigError, match="PKSM=y"):
        kconfig.merge(["PKSM=y\n"])


def test_an_unknown_profile_is_an_error_that_lists_the_known() -> None:
    for name in ("base", "none"):
        with pytest.raises(errors.UsageError, match="fast, bench, bench-pc, cov, debug, kcsan, ksm, off, smp, smp-debug, smp-ksm$"):
            kconfig.fragments(name)


def test_the_fragments_of_the_repository_can_be_read() -> None:
    for profile in kconfig.profiles():
        wishes = kconfig.merge([path.read_text() for path in kconfig.fragments(profile)])
        assert wishes["CONFIG_KSM"] == ("n" if profile == "off" else "y")
    assert kconfig.profiles()[0] == "fast"


# Keys, make, packages


def test_a_build_begins_anew_when_a_header_comes_or_goes(tmp_path: Path) -> None:
    """make takes an object for up to date that was made from a header that has gone."""
    tree, objects = tmp_path / "tree", tmp_path / "build"
    for name in ("include/asm-generic/percpu.h", "arch/um/include/asm/Kbuild", "mm/page.c"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    built = objects / "mm" / "page.o"

    def kept() -> bool:
        built.parent.mkdir(parents=True, exist_ok=True)
        built.write_text("")
        emptied = build.discard_stale(tree, objects)
        assert emptied is not built.exists()
        return built.exists()

    assert not kept()  # nobody knows what it was made from
    assert kept()
    (tree / "mm/page.c").write_text("changed")
    (tree / "mm/new.c").write_text("")
    (tree / "include/asm-generic/percpu.h").write_text("changed")
    assert kept()
    own = tree / "arch/um/include/asm/percpu.h"
    own.write_text("")
    assert not kept()
    assert kept()
    own.unlink()
    assert not kept()
    (tree / "arch/um/include/asm/Kbuild").write_text("generic-y += percpu.h")
    assert not kept()
    assert kept()


def test_the_compilers_cache_knows_which_headers_there_were(tmp_path: Path) -> None:
    """Else it gives an object back that was made without one which is to be found first."""
    tree, objects = tmp_path / "tree", tmp_path / "build"
    (tree / "include").mkdir(parents=True)
    assert "CCACHE_EXTRAFILES" not in make.Make(tree, objects).environment()
    build.discard_stale(tree, objects)
    noted = Path(make.Make(tree, objects).environment()["CCACHE_EXTRAFILES"])
    before = noted.read_text()
    (tree / "include/first.h").write_text("")
    build.discard_stale(tree, objects)
    assert noted.read_text() != before


def test_the_image_key_follows_everything_that_decides_the_kernel() -> None:
    found = source.Source("k", "k", "6.12", "6.12.1", "Debian package")
    base = build.Recipe(found, "fast", snapshot_of({"a": HOOK}), ("CONFIG_A=y",), "gcc 12")
    others = [
        dataclasses.replace(base, source=dataclasses.replace(found, content="k2")),
        dataclasses.replace(base, profile="ksm"),
        dataclasses.replace(base, snapshot=snapshot_of({"a": HOOK + "\n"})),
        dataclasses.replace(base, snapshot=snapshot_of({"a": HOOK}, {"mm/pksm/a.c": b""})),
        dataclasses.replace(base, fragments=("CONFIG_A=n",)),
        dataclasses.replace(base, compiler="gcc 13"),
    ]
    keys = {recipe.key for recipe in [base, *others]}
    assert len(keys) == len(others) + 1
    assert dataclasses.replace(base).key == base.key


def test_only_the_images_used_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    for number in range(build.IMAGES_KEPT + 3):
        directory = paths.image_root() / f"key{number:02d}"
        directory.mkdir(parents=True)
        (directory / build.INFO_NAME).write_text("{}")
        os.utime(directory / build.INFO_NAME, (number, number))
    build._prune()
    kept = sorted(path.name for path in paths.image_root().iterdir())
    assert kept == [f"key{number:02d}" for number in range(3, build.IMAGES_KEPT + 3)]


def test_the_compilers_words_come_before_makes() -> None:
    log = [
        "  CC      mm/a.o\n",
        "mm/pksm/core.c:12:3: error: 'x' undeclared\n",
        "   12 |   x++;\n",
        "      |   ^\n",
        "  CC      mm/b.o\n",
        "make[4]: *** [scripts/Makefile.build:234: mm/pksm/core.o] Error 1\n",
    ]
    lines = make.interesting_lines(log)
    assert lines[0].endswith("error: 'x' undeclared")
    assert not any("make[" in line or "CC " in line for line in lines)
    assert make.interesting_lines(log[5:]) == [log[5].rstrip()]


def test_a_build_does_not_depend_on_the_callers_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("KBUILD_OUTPUT", "ARCH", "MAKEFLAGS", "KCFLAGS", "LOCALVERSION"):
        monkeypatch.setenv(name, "surprise")
    environment = make.Make(tmp_path, tmp_path).environment()
    assert "surprise" not in environment.values()
    assert environment["KBUILD_BUILD_USER"] == "linux-um"


def test_a_missing_package_is_one_command_for_an_ordinary_user(
    monkeypatch: pytest.MonkeyPatch, quiet: term.Term
) -> None:
    monkeypatch.setitem(
        packages.STAGES, "tree", (packages.Need("some-package", lambda: False),) * 2
    )
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda _name: "/usr/bin/apt-get")
    with pytest.raises(errors.HostError) as caught:
        packages.ensure("tree", term=quiet)
    assert caught.value.line().endswith("apt-get install -y --no-install-recommends some-package")


def test_a_profile_says_how_many_cpus_and_whose_clock() -> None:
    assert (kconfig.cpus_of("fast"), kconfig.time_travels("fast")) == (1, True)
    assert (kconfig.cpus_of("smp"), kconfig.time_travels("smp")) == (2, False)
    assert kconfig.cpus_of("smp-ksm") == 2
    assert [kconfig.with_cpus(name, 2) for name in ("fast", "ksm", "smp", "debug", "off")] == [
        "smp", "smp-ksm", "smp", "smp-debug", "off"
    ]  # fmt: skip
    assert kconfig.with_cpus("fast", 1) == "fast"


def test_a_profile_says_what_its_guests_are_told_at_boot() -> None:
    assert kconfig.boot_words("fast") == []
    assert kconfig.boot_words("smp-debug") == kconfig.boot_words("debug")
    assert kconfig.boot_words("debug") == ["page_owner=on", "page_poison=on"]


def test_a_machine_brings_wishes_of_its_own() -> None:
    """Between base and the profile; time travel is QEMU's there, and CPUs are many."""
    names = [path.name for path in kconfig.fragments("debug", kconfig.X86_64)]
    assert names == ["base.config", "x86_64.config", "fast.config", "debug.config"]
    um, pc = (kconfig.wishes_of("fast", arch) for arch in kconfig.ARCHES)
    assert um["CONFIG_UML"] == "y" and "CONFIG_UML" not in pc
    assert pc["CONFIG_NUMA"] == "y" and "CONFIG_NUMA" not in um
    assert kconfig.cpus_of("fast", kconfig.X86_64) == 2
    assert kconfig.time_travels("fast", kconfig.X86_64)
    assert not kconfig.time_travels("kcsan", kconfig.X86_64)
    assert kconfig.with_cpus("fast", 4, kconfig.X86_64) == "fast"
    # A PC has had SMP for long.
    assert kconfig.texts_of("smp", "6.12", kconfig.X86_64)


def test_a_profile_can_be_for_one_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arch").mkdir()
    for name in ("base", "arch/um", "arch/x86_64"):
        (tmp_path / f"{name}.config").write_text("CONFIG_KSM=y\n")
    (tmp_path / "race.config").write_text("# Arch: x86_64\nCONFIG_KCSAN=y\n")
    (tmp_path / "absent").write_text("")
    monkeypatch.setattr(paths, "config_dir", lambda: tmp_path)
    assert len(kconfig.texts_of("race", "6.12", kconfig.X86_64)) == 3
    with pytest.raises(errors.UsageError, match="profile race is for x86_64 only"):
        kconfig.texts_of("race", "6.12")


def test_a_profile_can_need_a_newer_kernel() -> None:
    with pytest.raises(errors.UsageError, match="profile smp-ksm needs a kernel from 7.0 on"):
        kconfig.texts_of("smp-ksm", "6.12")
    assert len(kconfig.texts_of("smp-ksm", "7.3")) == 4


def test_symbols_that_a_kernel_does_not_have_any_more_are_not_asked_for() -> None:
    old, new = (kconfig.merge(kconfig.texts_of("fast", series)) for series in ("6.12", "7.10"))
    gone = kconfig.absent("7.10")
    assert "CONFIG_PROC_SYSCTL" in gone and not kconfig.absent("6.12")
    assert gone == old.keys() - new.keys()


def test_what_is_absent_is_told_by_series_symbol_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "config_dir", lambda: tmp_path)
    (tmp_path / "absent").write_text("# why\n\n6.9 CONFIG_A is gone\n6.10 CONFIG_B too\n")
    assert kconfig.absent("6.9") == {"CONFIG_A"}
    assert kconfig.absent("6.10") == {"CONFIG_A", "CONFIG_B"}
    (tmp_path / "absent").write_text("6.9 CONFIG_A\n")
    with pytest.raises(errors.ConfigError, match="CONFIG_A"):
        kconfig.absent("6.9")

# SPDX-License-Identifier: GPL-2.0-only
"""Building selftests from a kernel tree, on a tree of three files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from linux_um import selftests
from linux_um.selftests import SelftestError, build_selftest
from linux_um.term import Term

# As the Makefiles of selftests/mm: it makes full names, and writes beside itself.
MAKEFILE = """
all:
$(OUTPUT)/%: %.c ../kselftest.h local.h
\t$(CC) $(CFLAGS) $(USERCFLAGS) $< $(USERLDFLAGS) -o $@
local.h:
\techo '#define STATUS 3' > $@
"""
PROGRAM = """
#include "../kselftest.h"
#include "local.h"
int main(void) { return STATUS + KSFT; }
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build into a cache of the test's own."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel tree with one selftest."""
    top = tmp_path / "tree"
    directory = top / selftests.SELFTESTS / "demo"
    directory.mkdir(parents=True)
    (directory.parent / "kselftest.h").write_text("#define KSFT 40\n")
    (directory / "Makefile").write_text(MAKEFILE)
    (directory / "demo.c").write_text(PROGRAM)
    return top


def demo(tree: Path, *names: str) -> dict[str, Path]:
    """Build the programs *names*."""
    return build_selftest(tree, "demo", names or ("demo",), term=Term(quiet=True))


def names_of(tree: Path) -> set[str]:
    """Return the names of everything in *tree*."""
    return {path.relative_to(tree).as_posix() for path in tree.rglob("*")}


def test_a_selftest_is_built_statically_and_the_tree_stays_as_it_is(tree: Path) -> None:
    before = names_of(tree)
    program = demo(tree)["demo"]
    assert subprocess.run([program], check=False).returncode == 43
    assert b"ld-linux" not in program.read_bytes()[:4096]
    assert [path.name for path in program.parent.iterdir()] == ["demo"]
    assert names_of(tree) == before


def test_it_is_built_again_only_when_something_it_is_made_of_changes(tree: Path) -> None:
    first = demo(tree)["demo"]
    stamp = first.stat().st_mtime_ns
    assert demo(tree)["demo"] == first
    assert first.stat().st_mtime_ns == stamp
    (tree / selftests.SELFTESTS / "kselftest.h").write_text("#define KSFT 50\n")
    second = demo(tree)["demo"]
    assert second != first
    assert subprocess.run([second], check=False).returncode == 53


def test_what_does_not_compile_is_named_and_not_kept(tree: Path) -> None:
    source = tree / selftests.SELFTESTS / "demo" / "demo.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(SelftestError, match="demo/demo does not build"):
        demo(tree)
    assert list(selftests.selftests_root().iterdir()) == []


def test_a_selftest_that_is_not_there_is_named(tree: Path) -> None:
    with pytest.raises(SelftestError, match="no selftests 'other'"):
        build_selftest(tree, "other", ["x"], term=Term(quiet=True))
    with pytest.raises(SelftestError, match="demo/absent does not build"):
        demo(tree, "absent")

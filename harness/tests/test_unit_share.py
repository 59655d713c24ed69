# SPDX-License-Identifier: GPL-2.0-only
"""Shares of the suite: `./linux-um test --share=K/N`."""

from __future__ import annotations

import subprocess
import sys

import pytest
from linux_um.paths import repo_root


def collected(*words: str) -> tuple[int, str, list[str]]:
    """Collect the tests of a file; return pytest's status, what it said, and their names."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *words,
         "harness/tests/test_unit_where.py"],
        cwd=repo_root(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    names = [line for line in done.stdout.splitlines() if "::" in line]
    return done.returncode, done.stdout + done.stderr, names


def test_shares_of_the_tests_make_up_the_whole() -> None:
    _, _, whole = collected()
    assert len(whole) > 3
    shares = [collected(f"--share={number}/3")[2] for number in (1, 2, 3)]
    assert all(shares)
    assert [name for share in shares for name in share] == whole


@pytest.mark.parametrize("word", ["0/2", "3/2", "2", "x/y", ""])
def test_a_share_that_there_is_not_is_one_line(word: str) -> None:
    status, text, _ = collected(f"--share={word}")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "no such share" in text
    assert "Traceback" not in text

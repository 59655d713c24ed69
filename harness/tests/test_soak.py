# SPDX-License-Identifier: GPL-2.0-only
"""One guest at mixed work, cycle after cycle: nothing is left behind; see ``./linux-um soak``."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lab import BootFresh
from linux_um import commands_soak, soak
from linux_um.paths import repo_root
from linux_um.soak import AT_REST, DONE, SWAPPED, WARM_UP, Sample

CYCLES = WARM_UP + 6


@pytest.mark.needs_pksm
def test_nothing_is_left_behind_by_cycles_of_work(boot_fresh: BootFresh) -> None:
    worker = soak.Soak(boot_fresh(), seed=3)
    for _ in range(CYCLES):
        worker.cycle()
    assert soak.verdicts(worker.samples) == []


def sample(number: int, **other: Any) -> Sample:
    """Return what a soak of a guest without any fault reads after a cycle."""
    counters = dict.fromkeys(AT_REST, 0) | dict.fromkeys((*DONE, *SWAPPED), 1000 * number)
    values: dict[str, Any] = {
        "cycle": number,
        "wall_seconds": 4.0 * number,
        "guest_seconds": 900.0 * number,
        "mem_free_kib": 204500 + number % 3 * 8,
        "slab_kib": 3300 + number % 5 * 8,
        "peak_saved_pages": 256 * 3,
        "counters": counters,
        "work": ["churn", "memdup"],
    }
    return Sample(**{**values, **other})


def series(change: Callable[[int], dict[str, Any]] = lambda _: {}) -> list[Sample]:
    """Return the samples of twelve cycles, each with what *change* gives for it."""
    return [sample(number, **change(number)) for number in range(1, 13)]


def counted(number: int, **counters: int) -> dict[str, Any]:
    """Return a change of counters for a sample."""
    return {"counters": {**sample(number).counters, **counters}}


def test_noise_is_flat() -> None:
    assert soak.verdicts(series()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda n: {"mem_free_kib": 204500 - 100 * n}, "free memory: "),
        (lambda n: {"slab_kib": 3300 + 50 * n}, "slab: "),
        (lambda n: counted(n, stable_nodes=int(n > 7)), "stable_nodes at rest: from 0 to 1"),
        (lambda n: counted(n, pages_merged=7), "pages_merged does not grow"),
        (lambda n: counted(n, pswpout=0), "pswpout does not grow"),
    ],
    ids=["memory", "slab", "a counter", "idle", "no swap"],
)
def test_what_grows_is_said(change: Callable[[int], dict[str, Any]], said: str) -> None:
    assert [line for line in soak.verdicts(series(change)) if line.startswith(said)]


def test_growth_during_the_warm_up_is_none() -> None:
    assert soak.verdicts(series(lambda n: {"slab_kib": 3300 + 1000 * min(n, WARM_UP)})) == []


def test_too_few_cycles_are_not_called_flat() -> None:
    assert soak.verdicts(series()[: WARM_UP + 2])


@pytest.mark.parametrize(
    ("values", "expected"), [([], 0), ([1, 2], 0), ([5, 1, 9], 4), ([1, 1, 9, 4, 3, 3], 2)]
)
def test_drift(values: Sequence[float], expected: float) -> None:
    assert soak.drift(values) == expected


def test_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the samples and a plot, and what is not flat is an error."""
    pytest.importorskip("matplotlib")
    before = series(lambda n: {"mem_free_kib": 204500 - 100 * n})
    commands_soak.leave(before, {"kernel": "6.12"}, tmp_path)
    left = json.loads((tmp_path / commands_soak.JSON_NAME).read_text())
    assert [Sample(**each) for each in left["samples"]] == before
    assert (tmp_path / commands_soak.PLOT_NAME).read_bytes().startswith(b"\x89PNG")
    assert commands_soak.judge(before, tmp_path) == 1
    assert "NOT FLAT" in capsys.readouterr().out
    assert commands_soak.judge(series(), tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("12 cycles, 3.00 h of the guest")


@pytest.mark.parametrize(
    "arguments",
    [["--cycles", "2"], ["--hours", "0"], ["--swap", "8M"], ["--output", "/proc/none"]],
    ids=" ".join,
)
def test_what_cannot_be_is_one_line(arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [repo_root() / "linux-um", "soak", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    assert done.returncode == 125
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr

# SPDX-License-Identifier: GPL-2.0-only
"""What can be told from the time of a write: whether others have the same page?

A spy guesses pages of a victim's, half of them right, and takes the time of its
first write to each. Where the two may share, the right guesses stand out. Where they
may not, right and wrong ones have to look alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from lab import GROUP, BootFresh, Figure, group
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_pksm, pytest.mark.real_time]

PAGES = 200
ROUNDS = 3
# Of pages from the same source the measure below is 0.5, with a standard deviation of
# 0.017 for twice 600 of them. This is six times as much.
NOTHING = 0.10
# Sharing, when there is any, is all there is to see.
EVERYTHING = 0.95

ONE = "1001"
OTHER = "1002"


@dataclass(frozen=True)
class Spied:
    """What the spy has seen: how many guesses were merged, and how well times tell them."""

    merged: int
    told: float


def told_apart(right: list[int], wrong: list[int]) -> float:
    """Return the probability that a right guess takes longer than a wrong one.

    This is the area under the curve of all thresholds: 0.5 when nothing can be told,
    1 when a threshold parts them without an error, whatever the threshold.
    """
    ranked = sorted([(t, 1) for t in right] + [(t, 0) for t in wrong])
    ranks = 0.0
    begin = 0
    while begin < len(ranked):
        end = begin
        while end < len(ranked) and ranked[end][0] == ranked[begin][0]:
            end += 1
        # Those that took the same time have the same rank, that in their middle.
        middle = (begin + end - 1) / 2
        ranks += middle * sum(is_right for _, is_right in ranked[begin:end])
        begin = end
    least = len(right) * (len(right) - 1) / 2
    return (ranks - least) / (len(right) * len(wrong))


def spy(guest: Guest, victim: str, other: str) -> Spied:
    """Run spy; see `spy --help`."""
    done = guest.run(
        ["spy", "--pages", str(PAGES), "--rounds", str(ROUNDS), "--victim", victim, "--spy", other]
    )
    said = json.loads(done.stdout)
    assert said["ok"] is True
    assert len(said["right"]) == len(said["wrong"]) == PAGES * ROUNDS
    return Spied(said["merged_ptes"], told_apart(said["right"], said["wrong"]))


def test_the_measure_is_what_it_says() -> None:
    assert told_apart([5, 6, 7], [1, 2, 3]) == 1.0
    assert told_apart([1, 2, 3], [5, 6, 7]) == 0.0
    assert told_apart([1, 2, 3], [1, 2, 3]) == 0.5
    assert told_apart([4, 4], [4, 4, 4]) == 0.5
    assert told_apart([1, 3], [2, 4]) == 0.25


@pytest.mark.parametrize(
    ("domain", "victim", "other"),
    [
        pytest.param("user", ONE, OTHER, id="user-another-user"),
        pytest.param("process", ONE, ONE, id="process-the-same-user"),
        pytest.param("memcg", ONE, f"{ONE}:{GROUP}", id="memcg-the-same-user-elsewhere"),
    ],
)
def test_nothing_can_be_told_of_another_domain(
    guest: Guest, domain: str, victim: str, other: str, figure: Figure
) -> None:
    group(guest)
    guest.set_pksm("domain", domain)
    seen = spy(guest, victim, other)
    figure(f"guesses right by write-fault times, domain={domain}, across", f"{seen.told:.3f}")
    assert seen.merged == 0
    assert abs(seen.told - 0.5) < NOTHING, seen


@pytest.mark.parametrize(
    ("domain", "victim", "other"),
    [
        pytest.param("global", ONE, OTHER, id="global-another-user"),
        pytest.param("user", ONE, ONE, id="user-the-same-user"),
        pytest.param("memcg", ONE, OTHER, id="memcg-another-user-in-the-same"),
    ],
)
def test_within_a_domain_all_can_be_told(
    guest: Guest, domain: str, victim: str, other: str, figure: Figure
) -> None:
    """What remains; and the test above is one that can fail."""
    group(guest)
    guest.set_pksm("domain", domain)
    # A pass over what has no partner write-protects the wrong guesses, whose writes fault then too.
    guest.set_pksm("rescan_seconds", 0)
    seen = spy(guest, victim, other)
    figure(f"guesses right by write-fault times, domain={domain}, within", f"{seen.told:.3f}")
    assert seen.merged == PAGES * ROUNDS
    assert seen.told > EVERYTHING, seen


def test_stock_ksm_tells_all_to_everybody(boot_fresh: BootFresh, figure: Figure) -> None:
    """It has no domains: what the first test would say of an engine without them."""
    guest = boot_fresh(profile="ksm")
    for name, value in (("pages_to_scan", 20000), ("smart_scan", 0), ("run", 1)):
        guest.write_file(f"/sys/kernel/mm/ksm/{name}", str(value))
    seen = spy(guest, ONE, OTHER)
    figure("guesses right by write-fault times, stock KSM, another user", f"{seen.told:.3f}")
    assert seen.merged == PAGES * ROUNDS
    assert seen.told > EVERYTHING, seen

# SPDX-License-Identifier: GPL-2.0-only
"""The laws of the counters without a guest: what they let pass, and what they do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
from linux_um import laws
from linux_um.guest import Guest
from linux_um.outcome import CommandFailed
from linux_um.process import Completed

# 10 PTEs map 4 merged pages, and 2 the zero page.
SEEN = {"merged_ptes": 10, "smaps_ptes": 10, "ksm_merging_pages": 10, "ksm_zero_pages": 2}
COUNTERS = {"pages_shared": 4, "pages_sharing": 6, "zero_pages": 2}


class FakeGuest:
    """Says what it is told to."""

    def __init__(
        self, said: Mapping[str, Any], *, swap: int = 0, status: int = 0, check: str | None = None,
        config: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.config = config or {}
        self._done = Completed(("pagestat",), status, json.dumps(said).encode(), b"said why")
        self._swap = swap
        self._check = check

    def run(self, _argv: Sequence[str], *, check: bool = True) -> Completed:
        """Run anything."""
        return self._done.check() if check else self._done

    def read_file(self, path: str) -> str:
        """Return the only files there are."""
        if path == "/proc/meminfo":
            return f"MemTotal: 1 kB\nSwapTotal: {self._swap} kB\n"
        if self._check is None:
            raise FileNotFoundError(path)
        return self._check


def guest(said: Mapping[str, Any] | None = None, **options: Any) -> Guest:
    """Return such a guest as one."""
    return cast(Guest, FakeGuest(said or {}, **options))


@pytest.mark.parametrize(
    ("swap", "seen", "counters", "fine"),
    [
        (0, {}, {}, True),
        (64, {}, {}, True),
        # Of the merged pages one is in the swap cache alone, where there is one.
        (64, {}, {"pages_shared": 5}, True),
        (0, {}, {"pages_shared": 5}, False),
        # More than there are.
        (64, {}, {"pages_sharing": 11}, False),
        # What is mapped and not counted; what is counted as zero pages and is none.
        (64, {}, {"pages_sharing": 5}, False),
        (64, {"ksm_merging_pages": 9}, {}, False),
        (64, {"ksm_zero_pages": 3}, {}, False),
        (64, {"smaps_ptes": 9}, {}, False),
    ],
)
def test_what_the_page_map_says_holds_with_swap_too(
    swap: int, seen: dict[str, int], counters: dict[str, int], fine: bool
) -> None:
    said: dict[str, Any] = {**SEEN, **seen, "counters": {**COUNTERS, **counters}}
    assert (laws.contradiction(guest(said, swap=swap)) == "") == fine


@pytest.mark.parametrize(
    ("counters", "fine"),
    [
        ({}, True),
        ({"pages_shared": 0, "pages_sharing": 0}, True),
        ({"pages_shared": 0}, False),
        ({"pages_shared": 6}, False),
        ({"rmap_items": 7}, False),
        ({"stable_items": 12}, False),
    ],
)
def test_merged_pages_are_as_many_as_what_is_kept_of_them(
    counters: dict[str, int], fine: bool
) -> None:
    now = {**COUNTERS, "stable_nodes": 5, "rmap_items": 6, "stable_items": 11, **counters}
    assert (laws.imbalance(now) == "") == fine


def test_a_check_that_is_missing_is_no_success() -> None:
    """But in a kernel that was built without it."""
    laws.check_structures(guest(check="fine\n", config={"CONFIG_PKSM_DEBUG": "y"}))
    laws.check_structures(guest(config={"CONFIG_PKSM_DEBUG": "n"}))
    with pytest.raises(AssertionError, match="there is no /sys/kernel/debug/pksm/check"):
        laws.check_structures(guest(config={"CONFIG_PKSM_DEBUG": "y"}))
    for said in ("", "an item is in no list\n"):
        with pytest.raises(AssertionError, match="the engine's own check"):
            laws.check_structures(guest(check=said))


@pytest.mark.parametrize(("status", "there"), [(0, True), (1, False), (127, None)])
def test_whether_there_is_a_file_is_known_or_an_error(status: int, there: bool | None) -> None:
    fake = guest(status=status)
    if there is None:
        with pytest.raises(CommandFailed):
            laws.has_file(fake, "/x")
    else:
        assert laws.has_file(fake, "/x") is there

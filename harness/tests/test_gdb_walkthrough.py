# SPDX-License-Identifier: GPL-2.0-only
"""The sessions in gdb-scripts/walkthrough.md are what today's kernel and scripts print.

`./linux-um test harness/tests/test_gdb_walkthrough.py --update-walkthrough` puts
today's into the document.
"""

from __future__ import annotations

import difflib
import re

import pytest
import walklab
from lab import BootFresh
from linux_um.source import DEFAULT_KERNEL, default_kernel, series_of

pytestmark = pytest.mark.needs_pksm


@pytest.mark.skipif(
    series_of(default_kernel()) != series_of(DEFAULT_KERNEL),
    reason=f"the sessions of walkthrough.md are those of Linux {DEFAULT_KERNEL}",
)
@pytest.mark.parametrize(
    "capture", [pytest.param(capture, id=capture.name) for capture in walklab.CAPTURES]
)
def test_session_is_what_the_kernel_does(
    capture: walklab.Capture, boot_fresh: BootFresh, request: pytest.FixtureRequest
) -> None:
    now = walklab.record(capture, boot_fresh)
    if request.config.getoption("--update-walkthrough"):
        walklab.rewrite(capture.name, now)
    told = walklab.written(capture.name, walklab.WALKTHROUGH.read_text())
    difference = difflib.unified_diff(
        walklab.mask(told), walklab.mask(now), "walkthrough.md", "now", lineterm="", n=2
    )
    text = "\n".join(difference)
    assert not text, f"the walk-through is out of date (--update-walkthrough mends it):\n{text}"


def test_every_session_has_its_script_and_its_place() -> None:
    document = walklab.WALKTHROUGH.read_text()
    names = [capture.name for capture in walklab.CAPTURES]
    assert sorted(re.findall(r"<!-- capture: (\S+) -->", document)) == sorted(names)
    assert sorted(path.stem for path in walklab.SCRIPTS.glob("*.gdb")) == sorted(names)


def test_what_is_masked_is_what_differs_from_guest_to_guest() -> None:
    line = "    page    pfn 0xff5c, struct page 0x6f62d700, of pagestep[21], refcount 1"
    assert walklab.mask(line) == ["page pfn #, struct page #, of pagestep[#], refcount_1"]
    assert walklab.mask("[14] set_pte()") == ["[14] set_pte()"]
    assert walklab.mask("pages_merged   2 -> 3") == ["pages_merged # -> #"]
    assert walklab.mask("-> fs/exec.c  handle_mm_fault()") == ["-> fs/exec.c handle_mm_fault()"]

# SPDX-License-Identifier: GPL-2.0-only
"""What the laws of ``pksm check`` find, and what a stop in the middle of a change excuses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .moment import Moment

# How far a stop in the middle of a change may explain a finding.
NEVER = "never"
# A page that is in somebody's hand; there are at most Moment.hands of them.
HAND = "hand"
# A page without references that waits to be freed; at most Moment.freeing.
FREEING = "freeing"
# Any number of them, while somebody holds pksm_mutex.
MUTEX = "mutex"


@dataclass(frozen=True)
class Finding:
    """Two sides that do not agree. ``pfn`` is the page it is about, if it is about one."""

    pfn: int | None
    text: str
    excuse: str = NEVER
    # How many pages a difference of counters amounts to.
    weight: int = 1

    def __str__(self) -> str:
        return self.text if self.pfn is None else f"pfn {self.pfn:#x}: {self.text}"


def sort_out(found: Iterable[Finding], moment: Moment) -> tuple[list[Finding], list[Finding]]:
    """Return the findings that are broken laws, and those that this moment explains.

    Pages in hand, and pages that wait to be freed, are few: when there are more
    of a kind than there may be, all of them are broken laws. A counter may be
    wrong by as many.
    """
    findings = list(found)
    room = {HAND: moment.hands, FREEING: moment.freeing + moment.hands}
    # A page in hand may break several laws at a time.
    pages = {kind: {one.pfn for one in findings if one.excuse == kind} - {None} for kind in room}
    busy = moment.holder is not None or moment.function is not None

    def is_explained(finding: Finding) -> bool:
        kind = finding.excuse
        if kind not in room:
            return kind == MUTEX and busy
        count = finding.weight if finding.pfn is None else len(pages[kind])
        return count <= room[kind]

    broken = [finding for finding in findings if not is_explained(finding)]
    return broken, [finding for finding in findings if is_explained(finding)]

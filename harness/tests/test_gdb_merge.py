# SPDX-License-Identifier: GPL-2.0-only
"""pksm free and pksm merge: each stage, in order, with the page that the workload reported."""

from __future__ import annotations

import re

import gdblab
import pytest
from linux_um.guest import Guest
from steplab import (
    COUNT_BREAKPOINTS,
    NONE_LEFT,
    READY,
    SAY_READY,
    Pages,
    end_of_free,
    events_of,
    follow,
    merge,
    names,
    stage,
)

pytestmark = pytest.mark.needs_pksm

# The stages of a page that is freed in a batch; the hook shows what is before and after.
BATCH = [
    "folio_remove_rmap_ptes", "__tlb_remove_folio_pages", "free_pages_and_swap_cache",
    "folios_put_refs", "free_unref_folios", "free_pages_prepare", "pksm_del_anon_page",
    "pksm_del_anon_page", end_of_free(),
]  # fmt: skip
LISTS = {
    "free_unref_page_commit": "movable pages of order 0",
    "__free_one_page": "movable pages, from order 0 on",
}


def test_a_free_by_madvise_and_what_is_left_to_pksmd(guest: Guest) -> None:
    """A page that waits in a list, and one that is in the unstable index."""
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    settled = pages.do("write 1 1").pfn
    pages.do("settle")
    guest.set_pksm("run", 0)
    new = pages.do("write 2 2").pfn
    # What waits for joining the LRU has a reference; mlock() ends the wait.
    pages.do("mlock 3")
    before = guest.pksm("pages_unshared")
    commands = [f"pksm free {new:#x}", f"pksm free {pages.pid}:{pages.address(1):#x}"]
    events = follow(guest, pages, commands, "free 2", "free 1")
    for pfn, steps in zip((new, settled), events, strict=True):
        assert names(steps) == BATCH
        assert steps[0].facts["task"] == f"pagestep[{pages.pid}]"
        address = pages.address(2 if pfn == new else 1)
        assert steps[0].facts["address"] == f"{address:#x}, whose PTE is empty now"
        for number in (0, 1, 2, 3, 4, 6):
            assert steps[number].facts["page"].startswith(f"pfn {pfn:#x},")
        assert "pksm" in steps[5].facts["flags"].split()
        assert "refcount 0" in steps[4].facts["page"]
        assert steps[7].facts["record after"].startswith("untracked")
        assert steps[8].facts["list"] == LISTS[BATCH[-1]]
    assert events[0][6].facts["record before"].startswith("new, waiting, level 0")
    assert "stays in its list" in events[0][7].facts["left to pksmd"]
    assert events[1][6].facts["record before"].startswith("unshared, in the unstable index")
    assert re.fullmatch(
        r"the record stays in bucket 0x\w+ of the unstable index, which is marked, so that pksmd "
        "finds it",
        events[1][7].facts["left to pksmd"],
    )
    assert guest.pksm("pages_unshared") == before - 1
    guest.set_pksm("run", 1)
    pages.finish()


def test_the_next_free_and_that_of_a_merged_page(guest: Guest) -> None:
    """Without a page, the next tracked one; a merged page goes with its node, at its last PTE."""
    pages = Pages(guest)
    other = pages.do("write 8 8").pfn
    pages.order("write 1 5", "write 2 5", "settle")
    pages.answers()
    merged = pages.do("show 1").pfn
    nodes = guest.pksm("stable_nodes")
    events = follow(guest, pages, ["pksm free", f"pksm free {merged}"],
                    "free 8", "free 1", "free 2")  # fmt: skip
    assert events[0][0].facts["page"].startswith(f"pfn {other:#x},")
    steps = events[1]
    assert steps[0].function == "folio_remove_rmap_ptes"
    assert steps[0].facts["page"] == f"pfn {merged:#x}, merged, refcount 1, mapcount 1"
    hook = stage(steps, "pksm_del_anon_page").facts
    assert hook["record before"].startswith("shared")
    left = stage(steps, "pksm_del_anon_page", 1).facts["left to pksmd"]
    assert re.match(r"the stable node 0x\w+, which is queued as dead", left)
    pages.do("settle")
    assert guest.pksm("stable_nodes") == nodes - 1
    pages.finish()


def test_a_page_among_others_at_the_end_of_a_process(guest: Guest) -> None:
    """It stays that page, from the unmapping through the batches to its list."""
    pages = Pages(guest)
    other = Pages(guest)
    # The first few are flushed alone; with several CPUs also before a file's shared page.
    pages.order(*[f"write {number} {number}" for number in range(1, 25)])
    pfn = pages.answers()[19].pfn
    script = f"{SAY_READY}pksm free {pfn:#x} --all\n{COUNT_BREAKPOINTS}"
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for(READY)
        pages.finish()
        text = gdb.finish()
    (steps,) = events_of(text)
    assert NONE_LEFT in text
    assert names(steps) == BATCH
    assert steps[0].facts["task"] == f"pagestep[{pages.pid}]"
    assert all(step.facts["page"].startswith(f"pfn {pfn:#x},") for step in steps if
               "page" in step.facts)  # fmt: skip
    assert stage(steps, "pksm_del_anon_page", 1).facts["record after"].startswith("untracked")
    assert int(stage(steps, "free_pages_and_swap_cache").facts["batch"].split()[0]) >= 8
    other.finish()


CONSIDERED = ["pksm_consider", "pksm_get_tracked", "pksm_folio_fit", "pksm_folio_survey",
              "pksm_hash_page"]  # fmt: skip
ABSORBED = ["pksm_queue_drop", "__folio_put", "pksm_consider"]
CRITICAL = ["pksm_merge_one", "ptep_clear_flush", "pksm_pages_equal", "set_pte"]


def test_merges_with_each_index(guest: Guest) -> None:
    """No equal; an equal in the unstable index; one in the stable index; and the zero page."""
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    counted = guest.pksm("pages_merged")
    # Alone, its equal, a third of them; and a page of zeroes.
    alone = merge(guest, pages, "write 1 5")
    first = pages.answers()[-1].pfn
    assert names(alone) == [*CONSIDERED, "pksm_stable_next", "pksm_unstable_next",
                            "pksm_unstable_insert", "pksm_consider"]  # fmt: skip
    assert "has no page" in stage(alone, "pksm_unstable_next").sentence
    assert alone[-1].facts["record after"].startswith("unshared, in the unstable index")

    # Those before and behind it in the queue are not followed.
    equal = merge(guest, pages, "write 20 20", "write 2 5", "write 21 21", "show 2")
    assert names(equal) == [
        *CONSIDERED, "pksm_stable_next", "pksm_unstable_next", "pksm_folio_fit",
        "pksm_merge_with_unstable", "pksm_freeze_one", "pksm_freeze", *CRITICAL,
        "folio_remove_rmap_ptes", "pksm_merge_with_unstable", *ABSORBED,
    ]  # fmt: skip
    place = f"pagestep[{pages.pid}] at {pages.address(2):#x}"
    assert equal[0].facts["mapped by"].startswith(place)
    assert stage(equal, "pksm_unstable_next").facts["candidate"].startswith(f"pfn {first:#x},")
    assert stage(equal, "pksm_freeze_one").facts["pte before"].endswith("write user young dirty")
    assert "write" not in stage(equal, "pksm_freeze").facts["pte now"].split()
    assert stage(equal, "ptep_clear_flush").facts["pte now"] == "empty"
    assert "nobody else" in stage(equal, "ptep_clear_flush").facts["references"]
    assert stage(equal, "pksm_pages_equal").sentence.endswith("they are equal.")
    assert stage(equal, "pksm_merge_with_unstable", 1).facts["result"] == "merged"
    end = equal[-1].facts
    assert f"{pages.address(2):#x}: pfn {first:#x} present" in end["pte now"]
    assert end["partner"] == f"pfn {first:#x}, merged, refcount 2, mapcount 2"
    assert end["pages_merged"] == f"{counted} -> {counted + 1}"
    assert pages.do("show 2").pfn == first

    stable = merge(guest, pages, "write 3 5")
    assert names(stable) == [
        *CONSIDERED, "pksm_stable_next", "pksm_merge_with_stable", *CRITICAL,
        "folio_remove_rmap_ptes", "pksm_merge_with_stable", *ABSORBED,
    ]  # fmt: skip
    assert stage(stable, "pksm_stable_next").facts["its page"].startswith(f"pfn {first:#x},")
    assert stage(stable, "pksm_merge_with_stable", 1).facts["node"].endswith("2 sharers")

    zeroes = merge(guest, pages, "populate 4")
    assert names(zeroes) == [
        *CONSIDERED, "pksm_merge_with_zero", *CRITICAL, "folio_remove_rmap_ptes",
        "pksm_merge_with_zero", *ABSORBED,
    ]  # fmt: skip
    assert stage(zeroes, "pksm_hash_page").facts["hash"].endswith("that of zeroes")
    assert "the zero page, put there by PKSM" in zeroes[-1].facts["pte now"]
    assert guest.pksm("pages_merged") == counted + 3
    pages.finish()


def test_a_merge_that_fails_is_shown_as_it_is(guest: Guest) -> None:
    """Somebody else has a reference: the old PTE is put back, and the page waits."""
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    pages.order("write 1 5", "settle")
    pages.answers()
    steps = merge(guest, pages, "write 2 5", "pin 2")
    pinned = pages.answers()[-1].pfn
    assert names(steps) == [
        *CONSIDERED, "pksm_stable_next", "pksm_unstable_next", "pksm_folio_fit",
        "pksm_merge_with_unstable", "pksm_freeze_one", "pksm_freeze", "pksm_merge_one",
        "ptep_clear_flush", "set_pte", "pksm_merge_with_unstable", "pksm_queue_add",
        "pksm_consider",
    ]  # fmt: skip
    assert "1 foreign: it is left alone" in stage(steps, "ptep_clear_flush").facts["references"]
    assert stage(steps, "set_pte").sentence == "The old PTE is put back."
    assert stage(steps, "pksm_merge_with_unstable", 1).facts["result"] == "busy"
    assert f"pfn {pinned:#x} present write" in steps[-1].facts["pte now"]
    assert steps[-1].facts["record after"].startswith("volatile, waiting, level 1")
    assert pages.do("show 2").pfn == pinned
    pages.finish()

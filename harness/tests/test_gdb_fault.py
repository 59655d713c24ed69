# SPDX-License-Identifier: GPL-2.0-only
"""pksm fault and pksm cow: each stage, in order, with the page that the workload reported."""

from __future__ import annotations

import pytest
from lab import BootFresh
from linux_um.guest import Guest
from steplab import Pages, await_swap_out, follow, names, stage, watch

pytestmark = pytest.mark.needs_pksm

TOP = ["handle_page_fault", "handle_mm_fault", "__handle_mm_fault"]


def test_a_first_touch_is_followed_to_its_pte(guest: Guest) -> None:
    """Each stage of the notes' chain, in order; faults of other tasks do not stop."""
    pages = Pages(guest)
    other = Pages(guest)
    other.order(*[f"write {number} 1" for number in range(20)])
    command = f"pksm fault {pages.pid} {pages.address(5) + 24:#x}"
    (steps,) = follow(guest, pages, [command], "write 4 4", "write 5 5")
    answer = pages.answers()[-1]
    assert names(steps) == [
        *TOP, "handle_pte_fault", "do_anonymous_page", "__folio_alloc_noprof",
        "folio_add_new_anon_rmap", "pksm_add_new_anon_page", "set_pte", "handle_mm_fault",
    ]  # fmt: skip
    assert "a fault that the host reported" in steps[0].sentence
    assert steps[0].facts["task"] == f"pagestep[{pages.pid}]"
    assert steps[0].facts["address"].startswith(f"{answer.address:#x}")
    assert steps[0].facts["access"] == "write"
    assert "WRITE" in steps[1].facts["flags"] and "rw- private anonymous" in steps[1].facts["area"]
    assert steps[3].facts["pte"] == "empty"
    assert "no vm_ops" in steps[4].sentence and "a write" in steps[4].sentence
    for number in (5, 6, 7):
        assert steps[number].facts["page"].startswith(f"pfn {answer.pfn:#x},")
    assert steps[7].facts["record before"].startswith("untracked")
    assert steps[8].facts["pte before"] == "empty"
    assert steps[9].facts["returns"].startswith("0: done")
    assert steps[9].facts["pte now"].startswith(f"pfn {answer.pfn:#x} present write")
    after = steps[9].facts["record after"]
    if "of a former page" in after:
        # The frame has been in the index before, and pksmd has not come by since.
        assert after.startswith("new, in the unstable index")
    else:
        assert after.startswith("new, waiting, level 0")
    pages.finish()
    other.finish()


def test_the_cases_of_a_fault(guest: Guest) -> None:
    """Zero page, file, flags only, reuse, GUP and the kernel's access: each says why."""
    # A write to a page that is watched is another case, see below.
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    pages.do("write 9 9")
    cases = [
        ("read 7", 7, ["do_anonymous_page", "set_pte"], "It is a read: the zero page is mapped"),
        ("write 7 7", 7,
         ["do_wp_page", "wp_page_copy", "__folio_alloc_noprof", "ptep_clear_flush",
          "folio_add_new_anon_rmap", "pksm_add_new_anon_page", "set_pte"], "read-only"),
        ("lazyfree 9|write 9 2", 9,
         ["ptep_set_access_flags", "set_pte"], "only its accessed and dirty"),
        ("child 9 3|write 9 4", 9,
         ["do_wp_page", "wp_page_copy", "__folio_alloc_noprof", "__wp_page_copy_user",
          "ptep_clear_flush", "folio_add_new_anon_rmap", "pksm_add_new_anon_page", "set_pte",
          "folio_remove_rmap_ptes"], "read-only"),
        ("", 9, ["do_wp_page", "wp_page_reuse", "__pksm_page_written", "set_pte"], "read-only"),
        ("populate 10", 10,
         ["do_anonymous_page", "__folio_alloc_noprof", "folio_add_new_anon_rmap",
          "pksm_add_new_anon_page", "set_pte"], "It is a write"),
        ("kernel 11 4", 11,
         ["do_anonymous_page", "__folio_alloc_noprof", "folio_add_new_anon_rmap",
          "pksm_add_new_anon_page", "set_pte"], "It is a write"),
        ("file 12 1", -12,
         ["do_cow_fault", "__folio_alloc_noprof", "finish_fault", "folio_add_new_anon_rmap",
          "pksm_add_new_anon_page", "set_pte"], "maps a file privately"),
    ]  # fmt: skip
    orders = [word for order, *_ in cases for word in order.split("|") if word]
    commands = [
        f"pksm fault pagestep {pages.address(abs(page), file=page < 0):#x}"
        for _, page, *_ in cases
    ]
    events = follow(guest, pages, commands, *orders)
    for (order, _, wanted, why), steps in zip(cases, events, strict=True):
        first = "__get_user_pages" if "populate" in order else "handle_page_fault"
        seen = [name for name in names(steps) if name != "__pte_alloc"]
        assert seen == [first, *TOP[1:], "handle_pte_fault", *wanted, "handle_mm_fault"], order
        assert why in stage(steps, wanted[0]).sentence, order
    zero, forked = (stage(events[number], "wp_page_copy").facts for number in (1, 3))
    assert "everybody's" in zero["why"]
    assert "not anon_exclusive" in forked["why"] and ", mapcount 2" in forked["old page"]
    assert stage(events[3], "folio_remove_rmap_ptes").facts["mappings"] == "2, then 1"
    assert "anon_exclusive" in stage(events[4], "wp_page_reuse").facts["why"] or (
        "no other PTE" in stage(events[4], "wp_page_reuse").facts["why"]
    )
    assert "madvise(MADV_POPULATE_READ or _WRITE)" in events[5][0].facts["way"]
    assert events[6][0].facts["for"] == "the system call pread64()"
    answers = {(answer.op, answer.page): answer for answer in pages.answers()}
    ends = [stage(steps, "handle_mm_fault", 1).facts["page"].split(",")[0] for steps in events]
    assert ends[1] == f"pfn {answers['write', 7].pfn:#x}"
    assert ends[5] == f"pfn {answers['populate', 10].pfn:#x}"
    assert ends[6] == f"pfn {answers['kernel', 11].pfn:#x}"
    assert ends[7] == f"pfn {answers['file', 12].pfn:#x}"
    pages.finish()


def test_a_swap_in_is_followed(boot_fresh: BootFresh) -> None:
    """The PTE is a swap entry; the page is read, and mapped."""
    guest = boot_fresh(swap="64M")
    pages = Pages(guest)
    pages.order("write 1 5", "pageout 1")
    assert pages.answers()[-1].pfn == 0
    (steps,) = follow(guest, pages, [f"pksm fault {pages.pid} {pages.address(1):#x}"], "read 1")
    assert names(steps)[:5] == [*TOP, "handle_pte_fault", "do_swap_page"]
    assert steps[3].facts["pte"].startswith("swap entry")
    assert names(steps)[-2:] == ["set_pte", "handle_mm_fault"]
    # It is tracked now, whether or not it had been in the swap cache all the time.
    hook = stage(steps, "__pksm_add_swapped_in")
    tracked = not hook.facts["record before"].startswith("untracked")
    assert ("PKSM has tracked it all the time" in hook.sentence) == tracked
    assert ("pksm_add_moved_page" in names(steps)) != tracked
    assert not steps[-1].facts["record after"].startswith("untracked")
    pfn = pages.answers()[-1].pfn
    assert steps[-1].facts["page"].startswith(f"pfn {pfn:#x},")
    pages.finish()


def test_a_watched_page_that_comes_back_from_swap(boot_fresh: BootFresh) -> None:
    """Its PTE is writable now, so that nobody would be told of a write: it counts as one."""
    guest = boot_fresh(swap="64M")
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    pages.order("write 1 5", "settle")
    old = pages.answers()[0].pfn
    watch(guest)
    assert pages.do("pageout 1").pfn == 0
    await_swap_out(guest)
    (steps,) = follow(guest, pages, [f"pksm fault pagestep {pages.address(1):#x}"], "read 1")
    assert names(steps) == [
        *TOP, "handle_pte_fault", "do_swap_page", "folio_add_anon_rmap_ptes",
        "__pksm_add_swapped_in", "__pksm_page_written", "set_pte", "handle_mm_fault",
    ]  # fmt: skip
    assert "PKSM has tracked it all the time" in stage(steps, "__pksm_add_swapped_in").sentence
    written = stage(steps, "__pksm_page_written")
    assert "it counts as written to" in written.sentence
    assert written.facts["record before"].startswith("watched, in the unstable index")
    end = steps[-1].facts
    assert end["pte now"].startswith(f"pfn {old:#x} present write")
    assert end["record after"].startswith("volatile, in the unstable index")
    pages.finish()


def test_a_break_of_a_merged_page(guest: Guest) -> None:
    """Why it is copied, the copy that enters, and what is left of the merged page."""
    pages = Pages(guest)
    pages.order("write 1 5", "write 2 5", "write 3 5", "write 4 4", "settle")
    pages.answers()
    pfns = {pages.do(f"show {number}").pfn for number in (1, 2, 3)}
    assert len(pfns) == 1
    old = pfns.pop()
    broken = guest.pksm("pages_broken")
    # The other writes, to a new page and to one that fork shares, are not waited for.
    (steps,) = follow(guest, pages, ["pksm cow pagestep"], "write 8 1", "child 4 9", "write 2 6")
    answer = pages.answers()[-1]
    assert names(steps) == [
        *TOP, "handle_pte_fault", "do_wp_page", "wp_page_copy", "__folio_alloc_noprof",
        "__wp_page_copy_user", "ptep_clear_flush", "folio_add_new_anon_rmap",
        "__pksm_page_broken", "__pksm_page_unmapped", "__pksm_add_broken_off", "set_pte",
        "folio_remove_rmap_ptes", "handle_mm_fault",
    ]  # fmt: skip
    assert steps[0].facts["address"].startswith(f"{answer.address:#x}")
    assert stage(steps, "wp_page_copy").facts["old page"].startswith(f"pfn {old:#x}, merged")
    assert "folio_test_ksm()" in stage(steps, "wp_page_copy").facts["why"]
    assert stage(steps, "folio_remove_rmap_ptes").facts["mappings"] == "3, then 2"
    end = steps[-1].facts
    assert end["pte now"].startswith(f"pfn {answer.pfn:#x} present write")
    after = end["record after"]
    if "of a former page" in after:
        # The frame of the copy has been in the index before, and pksmd has not come by since.
        assert after.startswith("new, in the unstable index") and "age 1 " in after
    else:
        assert after.startswith("volatile, waiting, level 3, age 1")
    assert end["old page"] == f"pfn {old:#x}, merged, refcount 2, mapcount 2"
    assert guest.pksm("pages_broken") == broken + 1
    pages.finish()


def test_a_write_to_a_watched_page(guest: Guest) -> None:
    """A short fault without a copy, of which the engine is told."""
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    pages.order("write 1 5", "settle")
    old = pages.answers()[0].pfn
    watch(guest)
    command = f"pksm fault pagestep {pages.address(1):#x}"
    (steps,) = follow(guest, pages, [command], "write 1 6")
    assert names(steps) == [
        *TOP, "handle_pte_fault", "do_wp_page", "wp_page_reuse", "__pksm_page_written",
        "set_pte", "handle_mm_fault",
    ]  # fmt: skip
    written = stage(steps, "__pksm_page_written")
    assert written.sentence.startswith("PKSM watches the page, and is told")
    assert written.facts["record before"].startswith("watched, in the unstable index")
    end = steps[-1].facts
    assert end["pte now"].startswith(f"pfn {old:#x} present write")
    assert end["record after"].startswith("volatile, in the unstable index")
    assert "of what was written over" in end["record after"]
    pages.finish()


def test_a_fault_that_sleeps_and_is_tried_again(guest: Guest) -> None:
    """The thread that fills the page meanwhile passes the same functions, and does not stop."""
    pages = Pages(guest)
    pages.do("write 1 1")
    (steps,) = follow(guest, pages, [f"pksm fault pagestep {pages.address(5):#x}"], "uffd 5 5")
    answer = pages.answers()[-1]
    again = names(steps).index("handle_mm_fault", 2) + 1
    assert names(steps[:again]) == [*TOP, "handle_pte_fault", "do_anonymous_page",
                                    "handle_mm_fault"]  # fmt: skip
    assert "RETRY" in steps[again - 1].facts["returns"]
    assert steps[again - 1].sentence == "It gives up for now, to be tried again."
    # In the end it finds what the other thread has put there.
    assert steps[again].function == "handle_mm_fault"
    assert "TRIED" in steps[again].facts["flags"]
    assert {"folio_add_new_anon_rmap", "pksm_add_new_anon_page"}.isdisjoint(names(steps))
    assert steps[-1].facts["pte now"].startswith(f"pfn {answer.pfn:#x} present")
    assert steps[-1].facts["record after"].startswith("new,")
    task = steps[0].facts["task"]
    assert task.startswith("pagestep[") and task != f"pagestep[{pages.pid}]"
    pages.finish()

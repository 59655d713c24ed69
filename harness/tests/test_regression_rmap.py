# SPDX-License-Identifier: GPL-2.0-only
"""rmap finds every PTE of every merged page, whatever became of the processes.

Seen from user space: reclaim can only unmap what rmap finds. So everything is
merged, then evicted until no page of the workload is left in memory (kin
fails when one stays), and read back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from lab import GROUP, BootFresh, Report, baseline, group, kin, ram_swap, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

PAGES = 128
# The caches of the records that point at each other. Debugged, they have no
# objects in the pockets of a CPU: the count is exact, and a double free is told.
CACHES = ("anon_vma", "pksm_sharer", "pksm_stable_node")
EVICT = f"evict={GROUP}"

Kin = Callable[..., Report]

# Who holds the engine holds it with a page of the regions, and not with one of a stack.
ONLY = ("set=scope:madvise",)


def new(name: str) -> tuple[str, ...]:
    """Return the operations that make a process of kin whose region may be merged all the same."""
    return (f"{name}:new", f"{name}:advise=mergeable")


def objects(guest: Guest, cache: str) -> int:
    """Return how many objects of a slab cache exist."""
    return int(guest.read_file(f"/sys/kernel/slab/{cache}/objects").split()[0])


@pytest.fixture
def evicted(boot_fresh: BootFresh) -> Iterator[Kin]:
    """Return a function that runs kin, and evicts and reads back all in the end.

    After it the counters are back where they were, and no record is left.
    """
    guest = boot_fresh(append=[f"slub_debug=FZU,{','.join(CACHES)}"])
    ram_swap(guest, 48)
    group(guest)
    # Once for nothing: what the first run leaves in caches is no leak.
    kin(guest, "a:new", "a:fill=dup", "settle", pages=4)
    before = baseline(settle(guest))
    slabs = {cache: objects(guest, cache) for cache in CACHES}

    def run(*operations: str, pages: int = PAGES) -> Report:
        report = kin(
            guest, *operations, "settle", "stat=merged", "verify", "compact", "verify", EVICT,
            "stat=out", "verify", "stat=in", "settle", "verify", pages=pages,
        )  # fmt: skip
        assert report["out"]["present"] == 0
        assert report["in"]["swapped"] == 0
        return report

    yield run
    assert baseline(settle(guest)) == before
    after = {cache: objects(guest, cache) for cache in CACHES}
    assert after == slabs


@pytest.mark.regression("R8")
def test_r8_pages_that_moved_before_they_were_merged_are_found(evicted: Kin) -> None:
    """R8: by their index, which is not their address any more."""
    report = evicted(
        "a:new", "b:new", "c:new", "fill=dup", "a:move", "b:move=20000000", "b:move=30000000",
        "c:swap",
    )  # fmt: skip
    assert report["merged"].sharing == 2 * PAGES


@pytest.mark.regression("R8")
def test_r8_pages_that_moved_after_they_were_merged_are_found(evicted: Kin) -> None:
    """R8: and they need not be unmerged for that."""
    report = evicted(
        "a:new", "b:new", "c:new", "fill=dup", "settle", "a:move", "b:move=20000000",
        "b:move=30000000", "c:swap", "stat=moved",
    )  # fmt: skip
    assert report["moved"].sharing == report["merged"].sharing == 2 * PAGES


@pytest.mark.regression("R8")
def test_r8_merged_pages_that_change_places_mislead_nobody(evicted: Kin) -> None:
    """R8: at an address where one page was merged there is now another, merged as well."""
    report = evicted(
        "a:new", "b:new", "a:fill=dup", "b:fill=dup", "settle", "a:swap", "verify",
        "c:new", "c:fill=dup", "d:new", "d:fill=dup", "d:swap",
    )  # fmt: skip
    assert report["merged"]["merged_pages"] == PAGES
    assert report["merged"]["merged_ptes"] == 4 * PAGES


@pytest.mark.regression("R12")
def test_r12_a_page_outlives_the_processes_it_came_from(evicted: Kin) -> None:
    """R12: the anon_vma, and its root, of a process whose grandchild has the page still."""
    report = evicted(
        "a:new", "a:fill=dup", "a:fork=b", "b:fork=c", "d:new", "d:fill=dup", "settle",
        "stat=all", "a:exit", "d:exit", "b:exit", "e:new", "e:fill=dup",
    )  # fmt: skip
    assert report["all"]["merged_ptes"] == 4 * PAGES
    assert report["merged"]["merged_ptes"] == 2 * PAGES
    assert report["merged"]["merged_pages"] == PAGES


@pytest.mark.regression("R12")
def test_r12_a_sharer_that_has_gone_is_no_harm(evicted: Kin) -> None:
    """R12: its anon_vma has no VMA any more, and is held by the engine alone."""
    report = evicted(
        *(f"{name}:new" for name in "abcdefgh"), "fill=dup", "settle", "stat=all",
        *(f"{name}:exit" for name in "abcefg"),
    )  # fmt: skip
    assert report["all"]["merged_ptes"] == 8 * PAGES
    assert report["merged"]["merged_ptes"] == 2 * PAGES


@pytest.mark.regression("R12")
def test_r12_the_page_that_was_found_loses_all_who_brought_it(evicted: Kin) -> None:
    """R12: the first owner, its child and a sharer end, the grandchild stays, and e comes in.

    The engine has a reference on the page, and goes by what its node says. f gets the memory
    of what the others had.
    """
    report = evicted(
        *ONLY, *new("a"), "a:fill=dup", "a:fork=b", "b:fork=c", *new("d"), "d:fill=dup", "settle",
        "stat=all", "hold=found", *new("e"), "e:fill=dup", "held", "a:exit", "b:exit", "d:exit",
        *new("f"), "f:fill=dup", "hold=off",
    )  # fmt: skip
    assert report["all"]["merged_ptes"] == 4 * PAGES
    assert report["merged"]["merged_ptes"] == 3 * PAGES


@pytest.mark.regression("R12")
def test_r12_the_page_that_is_to_become_merged_loses_its_owner(evicted: Kin) -> None:
    """R12: nothing but the engine has its anon_vma then, and the next may get that memory."""
    report = evicted(
        *ONLY, *new("a"), "a:fill=dup", "settle", "hold=frozen", *new("b"), "b:fill=dup", "held",
        "a:exit", *new("c"), "c:fill=unique", "c:fork=d", "hold=off", "settle", "stat=alone",
        *new("e"), "e:fill=dup",
    )  # fmt: skip
    assert report["alone"]["merged_ptes"] <= 1
    assert report["merged"].sharing == PAGES


@pytest.mark.regression("R16")
def test_r16_pages_at_addresses_of_every_kind_are_found(evicted: Kin) -> None:
    """R16: low and high, odd and even page numbers, and those that differ in one bit only."""
    places = ("10000", "11111000", "ffff0000", "100001000", "400000000", "7f00000000")
    names = "abcdefgh"[: len(places)]
    report = evicted(
        *(f"{name}:new={place}" for name, place in zip(names, places, strict=True)), "fill=dup"
    )
    assert report["merged"]["merged_ptes"] == len(places) * PAGES
    assert report["merged"]["merged_pages"] == PAGES


@pytest.mark.regression("R17")
def test_r17_sharers_that_come_and_go_take_nobody_with_them(evicted: Kin) -> None:
    """R17: b leaves each merged page and comes back, until its old sharers are pruned."""
    turns = []
    for number in range(20):
        turns += [f"b:fill={'unique' if number % 2 else 'dup:7'}", "b:fill=dup", "settle"]
    report = evicted(
        "a:new", "b:new", "c:new", "d:new", "fill=dup", "settle", *turns, "stat=turned", pages=32
    )
    assert report["turned"]["merged_ptes"] == 4 * 32
    assert report["turned"]["merged_pages"] == 32
    # Pruned: not one for each time that b came.
    assert report["turned"].counters["rmap_items"] < 32 * 20


@pytest.mark.regression("R17")
@pytest.mark.parametrize("moment", ["lookup", "found"])
@pytest.mark.parametrize(
    "act", ["b:exit", "b:unmap", "b:fill=unique", "b:move", "b:fork=e"]
)
def test_r17_who_shares_the_page_changes_while_another_comes_in(
    evicted: Kin, moment: str, act: str
) -> None:
    """R17: its list names a place where it is no more, or is not the only one in."""
    report = evicted(
        *ONLY, *new("a"), *new("b"), *new("c"), "fill=dup", "settle", f"hold={moment}", *new("d"),
        "d:fill=dup", "held", act, "hold=off", *(["b:exit"] if act == "b:unmap" else []), pages=16,
    )  # fmt: skip
    stays = act in ("b:move", "b:fork=e")
    assert report["merged"]["merged_ptes"] == (3 + stays + (act == "b:fork=e")) * 16
    assert report["merged"]["merged_pages"] == 16


@pytest.mark.regression("R24")
def test_r24_every_pte_of_every_merged_page_is_found(evicted: Kin) -> None:
    """R24: in two families and three strangers, through VMAs that were split."""
    report = evicted(
        "a:new", "a:fill=dup", "a:fork=b", "b:fork=c", "d:new", "d:fill=dup", "d:fork=e",
        "f:new", "f:fill=dup", "f:split", "g:new", "g:fill=same", "settle", "a:fork=h", "h:split",
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 8 * PAGES
    assert report["merged"]["merged_pages"] == PAGES + 1

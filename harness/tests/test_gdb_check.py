# SPDX-License-Identifier: GPL-2.0-only
"""pksm check: finds nothing where nothing is wrong, and each thing that is made wrong."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import gdblab
import pytest
from held import PRELUDE, Held, ask, parse_answers
from linux_um.guest import Guest
from linux_um.kconfig import cpus_of

pytestmark = pytest.mark.needs_pksm

# Bits of a PTE of UML, and of a record (enum pksm_state).
WRITE, DIRTY = 0x20, 0x100
LIVE, LIST, WHERE = 1, 4, 0xC
# How many things one session of gdb makes wrong.
PORTION = 8
# Mappings of merged pages: more than a guest has that does nothing.
MERGED = 200


@dataclass(frozen=True)
class Corruption:
    """A place in the guest's memory, what it is set to, and what pksm check has to say."""

    place: str
    value: str
    says: str
    options: str = ""


def in_sum(name: str, member: str, wanted: int) -> tuple[str, str]:
    """Return a counter of the first CPU, and what to set it to for the sum over all CPUs.

    *name* is a per-CPU variable, a structure of the same name.
    """
    cpus = cpus_of(os.environ.get("LINUX_UM_PROFILE", "fast"))
    if cpus == 1:
        return f"{name}.{member}", str(wanted)
    first, *others = (
        f"((struct {name} *)((char *)&{name} + __per_cpu_offset[{cpu}]))->{member}"
        for cpu in range(cpus)
    )
    return first, " - ".join([str(wanted), *others])


def corruptions(held: Held) -> Sequence[Corruption]:
    """Return one or more for each law."""
    merged, unique = held.page(1, "same"), held.page(0, "unique")
    other, zero = held.page(1, "unique"), held.page(2, "zero")
    item = f"$pksm_item({unique.pfn})"
    page = f"$pfn_to_page({unique.pfn})"
    kpage = f"$pfn_to_page({merged.pfn})"
    node = f"((struct pksm_stable_node *)((long){kpage}->mapping & ~3))"
    sharer = f"((struct pksm_sharer *){node}->sharers.first)"
    bucket = f"({item}->state >> PKSM_HASH_SHIFT & (1 << pksm_unstable_bits) - 1)"
    stable = f"pksm_stable[{node}->hash >> 64 - pksm_stable_bits]"
    content = f"*(char *)(uml_physmem + {merged.pfn} * 4096 + 9)"
    ours, theirs, its = (f"pfn {one.pfn:#x}: " for one in (unique, other, merged))
    return (
        Corruption(f"{item}->next", str(unique.pfn), f"{ours}the bucket \\w+ is a circle"),
        Corruption(
            f"{item}->next", str(other.pfn), f"{theirs}is in two chains: the bucket .* and the bu"
        ),
        Corruption(f"{item}->next", "0x7fffff", "goes on to pfn 0x7fffff, which the guest does"),
        Corruption(
            f"{item}->state", f"{item}->state & ~{WHERE} | {LIST}", f"{ours}.*record says 'list'"
        ),
        Corruption(
            f"{item}->state",
            f"{item}->state ^ 1 << PKSM_HASH_SHIFT",
            f"{ours}.*hash bits .* belong in",
        ),
        Corruption(
            f"{item}->state",
            f"{item}->state | PKSM_WATCHED",
            f"{ours}a watched page is writable in hold0.* at {unique.address:#x}",
        ),
        Corruption(
            f"{item}->state",
            f"{item}->state | PKSM_WATCHED | PKSM_REBORN",
            f"{ours}was written to in bucket .*is not marked in pksm_dead.buckets",
        ),
        # The first of the bucket is named; another page may be before this one.
        Corruption(f"pksm_unstable[{bucket}]", "0xffffffff", "pfn .*but no bucket .* reaches"),
        Corruption(
            # A structure in 7.3.
            f"*(long *)&{page}->flags",
            f"*(long *)&{page}->flags & ~(1UL << PG_pksm)",
            f"{ours}its record is alive .*, but PG_pksm is not set",
        ),
        Corruption(
            f"{item}->state", f"{item}->state & ~{LIVE}", f"{ours}PG_pksm is set, but its record"
        ),
        Corruption(
            f"{item}->state",
            f"{item}->state & ~{LIVE}",
            f"{ours}is dead in bucket .*is not marked in pksm_dead.buckets",
        ),
        Corruption(
            f"{item}->state", "1", f"{ours}is tracked, but in no list and no index"
        ),
        Corruption(
            f"{page}->_refcount.counter", "0", f"{ours}is tracked, but its reference count is 0"
        ),
        Corruption(
            f"*(long *)&{page}->mapping",
            f"(long){page}->mapping | 3",
            f"{ours}its record says unshared, but page->mapping .* is 'ksm', not 'anon'",
        ),
        Corruption(
            f"(({page})->_mapcount.counter)", "1", f"{ours}its map count is 2, but 1 PTEs map it"
        ),
        Corruption(f"{node}->pfn", f"{node}->pfn + 1", f"{its}its node .* says pfn"),
        Corruption(
            f"{node}->hash", f"{node}->hash ^ 1UL << 63", f"{its}stable node .* hash .* belongs in"
        ),
        Corruption(f"{stable}.first", "0", f"{its}its node .* is in no bucket of the stable index"),
        Corruption(f"{node}->nr_sharers", "7", f"{its}its node says 7 sharers, but its list has 2"),
        Corruption(f"{node}->sharers.first", "0", f"{its}no sharer leads to the PTE of hold"),
        Corruption(f"{sharer}->anon_vma", "0x1238", f"{its}the anon_vma 0x1238 is no object"),
        Corruption(f"{sharer}->anon_vma->root", "0", f"{its}the anon_vma .* has a root 0x0 that"),
        Corruption(
            f"{node}->anon_vma->refcount.counter", "0", f"{its}its node's .* reference count of 0"
        ),
        Corruption(
            f'$pte("hold1", {merged.address})->pte',
            f'$pte("hold1", {merged.address})->pte | {WRITE}',
            f"{its}a merged page is writable in hold1.* at {merged.address:#x}",
        ),
        Corruption(
            f'$pte("hold2", {zero.address})->pte',
            f'$pte("hold2", {zero.address})->pte & ~{DIRTY}',
            r"mm->ksm_zero_pages of hold2\[\d+\] is \d+, but its PTEs of that kind are \d+",
        ),
        Corruption("ksm_zero_pages.counter", "5000", "ksm_zero_pages is 5000, but the PTEs"),
        Corruption("pksm_nr_nodes", "pksm_nr_nodes + 3", "pksm_nr_nodes is .*, but the stable"),
        Corruption("pksm_nr_sharers", "0", "pksm_nr_sharers is 0, but the lists of sharers have"),
        Corruption(
            *in_sum("pksm_mappings", "ptes", 700), "the sum of pksm_mappings.ptes is 700, but the PTEs of mer"
        ),
        Corruption(
            *in_sum("pksm_mappings", "pages", 70), "the sum of pksm_mappings.pages is 70, but the merged pag"
        ),
        Corruption(
            *in_sum("pksm_cpu", "nr[PKSM_CLASS_UNSHARED]", -3),
            r"the sum of pksm_cpu.nr\[PKSM_CLASS_UNSHARED\] is -3, but the records",
        ),
        Corruption(content, f"{content} + 1", f"{its}a merged page has changed", "--contents"),
    )


def test_each_thing_made_wrong_is_reported_until_it_is_undone(guest: Guest) -> None:
    # The page without a partner is not watched.
    guest.set_pksm("rescan_seconds", 0)
    held = Held(guest)
    made = corruptions(held)
    counted = sum(
        make_wrong(guest, made[start : start + PORTION]) for start in range(0, len(made), PORTION)
    )
    # Those that the counters show: classes, nodes, sharers, zero pages, flags, map counts.
    assert counted >= 8
    held.order("settle")
    held.finish()


def make_wrong(guest: Guest, made: Sequence[Corruption]) -> int:
    """Make each thing wrong in turn; return how many of them `pksm stat' has seen as well."""
    script = [PRELUDE, "python say('pksm check --contents')"]
    for one in made:
        script += [
            f"set $saved = {one.place}",
            f"set var {one.place} = {one.value}",
            f"python say('pksm check --all {one.options}')",
            "python say('pksm check')",
            "python say('pksm stat')",
            f"set var {one.place} = $saved",
            f"python say('pksm check {one.options}')",
        ]
    text = gdblab.run_script(guest, "\n".join(script) + "\n")
    answers = parse_answers(text, 1 + 4 * len(made))
    assert answers[0].startswith("all is well: ")
    counted = 0
    for number, one in enumerate(made):
        found, first, stat, undone = answers[1 + 4 * number : 5 + 4 * number]
        assert re.search(f"^BROKEN: .*{one.says}", found, re.M), (one, found)
        assert found.splitlines()[-1].startswith("error: pksm check: ")
        if not one.options:
            assert first.startswith("error: pksm check: BROKEN: ") and "\n" not in first, first
        assert undone.startswith("all is well: "), (one, undone)
        counted += "BROKEN: " in stat and "error: pksm stat: " in stat
    return counted


def test_a_stop_while_a_page_is_in_hand_is_no_failure(guest: Guest) -> None:
    """pksmd holds a page, a node and a sharer that are nowhere yet; what cannot be is seen."""
    held = Held(guest)
    merged = held.page(1, "same")
    # Others, of the guest itself, may become parts of what is merged already.
    write = f'$pte("hold1", {merged.address})->pte'
    script = f"""
break pksm_merge_walk if merge->convert
echo ready\\n
continue
python say('pksm check')
python say('pksm stat')
set $saved = {write}
set var {write} = $saved | {WRITE}
python say('pksm check')
set var {write} = $saved
set $saved = pksm_nr_nodes
set var pksm_nr_nodes = $saved + 9
python say('pksm check')
set var pksm_nr_nodes = $saved
delete
"""
    with gdblab.session(guest, PRELUDE + script) as gdb:
        gdb.wait_for("ready")
        # Two pages of one content that no other has.
        for process in (0, 1):
            held.order(f"drop {process} pair")
            held.order(f"write {process} pair")
        text = gdb.finish()
    check, stat, writable, nodes = parse_answers(text, 4)
    assert "in the middle of a change: pfn 0x" in check, check
    assert re.search(r"stopped in pksm_merge_walk\(\) and pksmd\[\d+\] holds pksm_mutex", check)
    assert check.splitlines()[-1].startswith("all is well: ") and "BROKEN" not in check
    assert "not now stable_nodes" in stat and "BROKEN" not in stat and "error" not in stat, stat
    assert "BROKEN: " in writable and "a merged page is writable in hold1" in writable
    assert "BROKEN: pksm_nr_nodes is" in nodes
    held.order("settle")
    assert held.page(0, "pair").pfn == held.page(1, "pair").pfn
    held.finish()


def test_an_address_space_without_a_process_is_walked_too(guest: Guest) -> None:
    """At the entry of exit_mmap() the task has given it up, and all its PTEs are still there."""
    held = Held(guest)
    page = held.page(1, "same")
    script = f"""
tbreak exit_mmap
echo ready\n
continue
python say('pksm check --all')
python say('pksm page {page.pfn}')
"""
    with gdblab.session(guest, PRELUDE + script) as gdb:
        gdb.wait_for("ready")
        held.job.write(b"end 1\n")
        check, shown = parse_answers(gdb.finish(), 2)
    assert check.splitlines()[-1].startswith("all is well: "), check
    assert "mapped 3 times" in shown and "without a process" in shown, shown
    assert f"{page.address:#x}: pfn {page.pfn:#x} present" in shown
    held.order("show")
    held.finish()


def test_the_address_space_that_exec_makes_is_walked_too(guest: Guest) -> None:
    """It has the arguments' pages already, and no process yet."""
    script = "tbreak exec_mmap\necho ready\\n\ncontinue\npython say('pksm check --all')\n"
    with gdblab.session(guest, PRELUDE + script) as gdb:
        gdb.wait_for("ready")
        job = guest.start(["true"])
        (check,) = parse_answers(gdb.finish(), 1)
    assert check.splitlines()[-1].startswith("all is well: ") and "map count" not in check, check
    assert job.wait(60).status == 0


def test_nothing_is_wrong_while_pages_are_merged_broken_and_freed(guest: Guest) -> None:
    """Stops at moments of the engine's own choosing, in a guest that works."""
    places = ("pksm_unstable_insert", "pksm_del_anon_page", "__pksm_page_broken", "pksm_node_alloc")
    script = PRELUDE + "echo ready\\n\n"
    for place in places:
        # Before the first one there is to be something that can be wrong.
        when = f" if pksm_nr_sharers > {MERGED}" if place == places[0] else ""
        script += f"tbreak {place}{when}\ncontinue\npython say('pksm check --all')\n"
    # Which comes to each of them, however late gdb is.
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for("ready")
        job = guest.start(["churn", "--procs", "3", "--mib", "2", "--rounds", "150"])
        answers = parse_answers(gdb.finish(), len(places))
    for place, said in zip(places, answers):
        assert said.splitlines()[-1].startswith("all is well: "), (place, said)
    assert job.wait(120).status == 0


def test_a_failure_ends_a_script_with_status_1(guest: Guest) -> None:
    script = "set var pksm_nr_nodes = pksm_nr_nodes + 3\npksm check\necho not reached\n"
    text = gdblab.run_script(guest, script, status=1)
    assert "BROKEN: pksm_nr_nodes is" in text and "not reached" not in text
    (undone,) = ask(guest, "set var pksm_nr_nodes = pksm_nr_nodes - 3")
    assert undone == ""

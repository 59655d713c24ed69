# SPDX-License-Identifier: GPL-2.0-only
"""What others do while the engine is in the middle of something, each time and not by luck.

The engine is held at a dangerous moment by /sys/kernel/debug/pksm/hold; a process acts;
the engine goes on. Process 0 has the page that was there, process 1 the page that
pksmd is about.
"""

from __future__ import annotations

import pytest
from lab import (
    WORKLOAD_SECONDS,
    BootFresh,
    Report,
    baseline,
    counters,
    hold_memdup,
    pageops,
    pagestat,
    ram_swap,
    release,
    settle,
    swap_device,
)
from linux_um.guest import Guest
from test_migrate import FILLER, ISLANDS, TRIES

pytestmark = pytest.mark.needs_pksm

HOLD = "/sys/kernel/debug/pksm/hold"
RUN = "/sys/kernel/mm/pksm/run"
PAGES = 4

# How many PTEs map merged pages in the end, or None where that is a matter of how far
# the engine had come.
BOTH, NONE = 2 * PAGES, 0
ACTS = {
    "other contents": (("write=100",), NONE),
    "another byte": (("poke=4095",), NONE),
    "the same again": (("touch=write",), BOTH),
    "moved": (("mremap",), BOTH),
    "read-only": (("mprotect=ro",), BOTH),
    "a child": (("fork=write",), BOTH),
    "swapped out": (("madvise=pageout", "sleep=20", "touch=read"), BOTH),
    "dropped": (("madvise=dontneed",), NONE),
    "given up": (("madvise=free",), None),
    "unmapped": (("unmap", "map", "madvise=mergeable", "fill=unique"), NONE),
    "not to be merged": (("madvise=unmergeable",), NONE),
    "pinned": (("pin",), None),
    "end of the process": (("exit",), NONE),
}


@pytest.fixture
def still(boot_fresh: BootFresh) -> Guest:
    """Return a guest with swap in which nothing is merged but what a test asks for."""
    guest = boot_fresh()
    ram_swap(guest, 16)
    guest.set_pksm("scope", "madvise")
    settle(guest)
    return guest


def interrupted(guest: Guest, moment: str, who: int, acts: tuple[str, ...]) -> Report:
    """Let process *who* do *acts* while the engine is held, and see what becomes of it.

    Each has been done before the engine goes on: the clock may be the host's.
    """
    operations = [
        step for act in acts
        for step in ((act,) if "sleep" in act else (f"&@{who}:{act}", f"@{who}:done"))
    ]  # fmt: skip
    last = [f"@{who}:unpin=old"] if "pin" in acts else []
    if "mprotect=ro" in acts:
        last.append(f"@{who}:mprotect=rw")
    return pageops(
        guest, "madvise=mergeable", "@0:fill=dup", "settle", f"hold={moment}", "@1:fill=dup",
        "held", *operations, "hold=off", "join", "settle", "stat=after", "verify",
        *last, "settle", "write=100", "verify",
        procs=2, pages=PAGES,
    )  # fmt: skip


@pytest.mark.regression("R20")
@pytest.mark.regression("R21")
@pytest.mark.regression("R22")
@pytest.mark.regression("R46")
@pytest.mark.regression("R52")
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("moment", ["hashed", "lookup", "found", "frozen"])
def test_whatever_a_process_does_meanwhile(still: Guest, moment: str, who: int) -> None:
    """R20 to R22, R46: every byte is right, and what is equal in the end is merged.

    R52: and when all of it has gone, each counter is what it was.
    """
    before = baseline(settle(still))
    for name, (acts, merged) in ACTS.items():
        report = interrupted(still, moment, who, acts)
        assert report.raw["wrong"] == 0, name
        if merged == NONE and (moment, who) == ("frozen", 0):
            # The other process may go on alone with the page that was kept still for it.
            assert report["after"].sharing == 0, name
        elif merged is not None:
            assert report["after"]["merged_ptes"] == merged, name
        still.run(["pksmwait", "--until", "stable_nodes==0"])
        assert baseline(settle(still)) == before, name


def swapped_out(guest: Guest, *operations: str) -> Report:
    """Do *operations* when 64 merged pages are nowhere but in the swap cache."""
    report = pageops(
        guest, "madvise=mergeable", "fill=dup", "settle", "@1:write=100", "settle", "stat=single",
        "@0:madvise=pageout", "stat=out", *operations, procs=2, pages=64,
    )  # fmt: skip
    assert report["single"].counters["pages_shared"] == 64
    assert report["out"]["swapped"] == 64
    assert report["out"].counters["stable_nodes"] == 64, (
        "the swap cache has given them up: the test tested nothing"
    )
    return report


def test_what_a_child_has_lent_is_not_written_to_when_the_engine_lets_go(still: Guest) -> None:
    """The page was kept still for nothing: it is not its owner's own while a pipe has it.

    The child was born, and has gone, while nobody could write to the page. Its parent
    writes to it afterwards, and that must not come out of the pipe.
    """
    before = baseline(settle(still))
    report = pageops(
        still, "madvise=mergeable", "@0:fill=dup", "settle", "hold=frozen", "@1:fill=dup", "held",
        "&@0:pin=child", "&@1:poke=4095", "@0:done", "@1:done", "hold=off", "join", "settle",
        "stat=apart",
        "@0:poke=7", "@0:unpin=old", "verify",
        procs=2, pages=1,
    )  # fmt: skip
    assert report["apart"]["merged_ptes"] == 0
    assert baseline(settle(still)) == before


def test_who_forbids_merging_while_a_page_is_swapped_out_gets_a_copy_of_it(still: Guest) -> None:
    """The swap cache has the merged page still; it is not mapped again where it must not be."""
    before = baseline(settle(still))
    report = swapped_out(still, "@0:madvise=unmergeable", "@0:touch=read", "stat=back", "verify")
    assert report["back"]["present"] == 2 * 64 and report["back"]["merged_ptes"] == 0
    # The swap cache keeps them until their memory is wanted.
    still.run(["swapoff", swap_device(still)])
    assert baseline(settle(still)) == before


@pytest.mark.regression("R9")
@pytest.mark.regression("R18")
def test_r9_r18_a_child_born_behind_the_back_of_the_visitor_is_unmerged(guest: Guest) -> None:
    """R9, R18: it has a lower number than its parent, who has not been visited yet."""
    guest.sh("true; true | true")  # numbers that are free again
    report = pageops(
        guest, "fill=dup", "settle", "stat=merged", "hold=visit:@0", f"&@2:self={RUN}:2", "held",
        "@1:bear", "hold=off", "join", "stat=unmerged", "@1:bury", "verify",
        procs=3, pages=64,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * 64
    left = report["unmerged"].counters
    assert (left["pages_shared"], left["pages_sharing"]) == (0, 0)


@pytest.mark.regression("R10")
def test_r10_a_page_on_the_move_is_unmerged_too(boot_fresh: BootFresh) -> None:
    """R10: MADV_UNMERGEABLE meets migration entries, and waits for what they stand for.

    Where the pages lie is chance, so that now and then there is nothing to move them for:
    then once more in a new guest, of less memory, in which compaction comes further.
    """
    for tries_left in reversed(range(TRIES)):
        guest = boot_fresh(mem="256M" if tries_left == TRIES - 1 else "128M")
        before = baseline(settle(guest))
        try:
            report = pageops(
                guest,
                # Who is to end the hold is not to wait for a page that is moved with those.
                "stay", "file=/proc/sys/vm/compact_unevictable_allowed:0",
                *ISLANDS, "settle", "stat=merged", "@0:exit", "hold=migrate",
                "&@5:self=/proc/sys/vm/compact_memory:1", "held",
                *(f"&@{process}:madvise=unmergeable" for process in (1, 2, 3, 4)),
                "sleep=100", "hold=off", "join", "stat=unmerged", "verify",
                procs=6, pages=FILLER,
            )  # fmt: skip
            break
        except AssertionError as error:
            if tries_left == 0 or "nobody came to where" not in str(error):
                raise
            guest.write_file(HOLD, "off")
            guest.power_off()
    assert report["merged"]["merged_ptes"] > 0
    assert report["unmerged"]["merged_ptes"] == 0
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R9")
def test_r9_pages_that_only_the_swap_cache_has_are_unmerged_too(still: Guest) -> None:
    """R9: nobody maps them, so no visit finds them; they come back as ordinary pages."""
    before = baseline(settle(still))
    report = swapped_out(still, f"@1:self={RUN}:2", "stat=back", "verify", "stat=verified")
    assert report["back"].counters["stable_nodes"] == 0
    assert report["verified"]["merged_ptes"] == 0
    still.set_pksm("run", 1)
    assert baseline(settle(still)) == before


def test_a_page_of_zeroes_that_is_written_to_meanwhile_is_not_the_zero_page(still: Guest) -> None:
    """It was read as one of zeroes, and is none when it is frozen."""
    before = baseline(settle(still))
    report = pageops(
        still, "madvise=mergeable", "hold=hashed", "fill=zero", "held", "&poke=4095", "done",
        "hold=off", "join", "settle", "stat=after", "verify",
        procs=1, pages=1,
    )  # fmt: skip
    assert report.raw["wrong"] == 0
    assert report["after"].counters["zero_pages"] == before["zero_pages"]
    assert baseline(settle(still)) == before


@pytest.mark.real_time  # that of a guest in which all wait would leap over hours
def test_who_is_held_can_be_let_go_and_the_next_is_held(guest: Guest) -> None:
    """run=2 visits one address space after the other."""
    guest.write_file(HOLD, "visit")
    job = guest.start(["sh", "-c", f"echo 2 > {RUN}"])
    seen = []
    for _ in range(2):
        guest.sh(f"until grep -q held {HOLD}; do sleep 0.01; done")
        seen.append(guest.read_file(HOLD).split()[1])
        guest.write_file(HOLD, "step")
    assert len(set(seen)) == 2
    guest.write_file(HOLD, "off")
    assert job.wait(WORKLOAD_SECONDS).status == 0
    assert counters(guest)["run"] == 2
    guest.set_pksm("run", 1)


def test_only_what_has_a_name_can_be_held(guest: Guest) -> None:
    """The file takes a moment, a number with it, step and off; the rest is EINVAL."""
    for nonsense in ("on", "found x", "found 1 2", "off 1", "step 1", "x" * 100):
        with pytest.raises(OSError):
            guest.write_file(HOLD, nonsense)
    for text, said in (("found", "found"), ("frozen 0x1f", "frozen 0x1f"), ("off", "off")):
        guest.write_file(HOLD, text)
        assert guest.read_file(HOLD).strip() == said


def killed_when_held(guest: Guest, text: str, path: str) -> int:
    """Have a process write *text* to *path*, kill it when it is held, and return its status.

    All by one command: between two of them nobody has anything to do, time leaps, and the
    kernel complains of pksmd, which waits for who is held.
    """
    guest.write_file(HOLD, "visit")
    done = guest.sh(
        f"(echo {text} > {path}) & writer=$!; until grep -q held {HOLD}; do sleep 0.01; done; "
        f"kill -9 $(cut -d' ' -f4 {HOLD}); wait $writer; echo $?"
    )
    return int(done.stdout)


def test_a_process_that_is_held_can_be_killed(guest: Guest) -> None:
    """Nor does what it leaves behind keep others from being held."""
    assert killed_when_held(guest, "2", RUN) == 128 + 9
    assert guest.read_file(HOLD).strip() == "visit"
    guest.write_file(HOLD, "off")
    guest.set_pksm("run", 1)
    assert counters(guest)["run"] == 1


@pytest.mark.parametrize(("name", "value"), [("domain", "global"), ("scope", "madvise")])
def test_a_control_is_as_it_was_when_its_writer_is_killed(
    guest: Guest, name: str, value: str
) -> None:
    """There were pages to unmerge yet; those that were unmerged are merged by the old value."""
    job = hold_memdup(guest, "--procs", "2", "--mib", "1", "--dup", "100", "--unique", "0")
    path = f"/sys/kernel/mm/pksm/{name}"
    before = guest.read_file(path)
    assert pagestat(guest)["merged_ptes"] > 2 * 200
    assert killed_when_held(guest, value, path) == 128 + 9
    guest.write_file(HOLD, "off")
    assert guest.read_file(path) == before
    # A change of the domain that failed may leave the engine stopped.
    guest.set_pksm("run", 1)
    settle(guest)
    assert pagestat(guest)["merged_ptes"] > 2 * 200
    release(job)

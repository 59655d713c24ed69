# SPDX-License-Identifier: GPL-2.0-only
"""Memory that goes offline and comes back, or comes late, and its records with it.

User-Mode Linux cannot take memory away: these tests run with --arch x86_64.
"""

from __future__ import annotations

import pytest
from lab import (
    WORKLOAD_SECONDS,
    BootFresh,
    baseline,
    counters,
    hold_memdup,
    pageops,
    parse_report,
    release,
    settle,
)
from linux_um.guest import Guest
from test_moments import HOLD

pytestmark = [pytest.mark.needs_pksm, pytest.mark.needs_config("CONFIG_MEMORY_HOTREMOVE")]

BLOCKS = "/sys/devices/system/memory"
# Prints the numbers of the blocks that were changed. Those with movable pages only can
# be taken away, but for some: the kernel keeps tables in the last one of each node.
CHANGE = """
for block in {blocks}/memory[0-9]*; do
	grep -q "{zones}" $block/valid_zones || continue
	echo {state} > $block/state && echo ${{block##*memory}}
done 2> /dev/null
true
"""


# Prints the number of the block that was not there at boot, once the kernel has found it.
PLUGGED = f"""
until [ $(ls -d {BLOCKS}/memory[0-9]* | wc -l) -gt {{known}} ]; do sleep 1; done
ls -d {BLOCKS}/memory[0-9]* | grep -o '[0-9]*$' | sort -n | tail -n 1
"""
# Waits until a command succeeds, at most a minute.
SOON = "for i in $(seq 600); do {command} 2> /dev/null && exit; sleep 0.1; done; exit 1"
# The least that there is of it, one block.
DIMM = "128M"


@pytest.fixture
def movable(boot_fresh: BootFresh) -> Guest:
    """Return a guest with most of its memory in zones that can be taken offline."""
    return boot_fresh(mem="1280M", append=["movablecore=768M"])


def change(guest: Guest, state: str) -> list[int]:
    """Set the state of all blocks that are movable; return their numbers."""
    zones = "Movable" if state.startswith("online") else "^Movable$"
    done = guest.sh(CHANGE.format(blocks=BLOCKS, state=state, zones=zones))
    return [int(line) for line in done.stdout.split()]


@pytest.mark.regression("R11")
def test_memory_goes_offline_under_merged_and_watched_pages(movable: Guest) -> None:
    """They are migrated; what is left of them in queues and in the index goes as well."""
    before = baseline(settle(movable))
    job = hold_memdup(movable, "--procs", "3", "--mib", "24", "--dup", "40", "--zero", "10",
                      "--rewrite", "0")  # fmt: skip
    merged = settle(movable)
    blocks = change(movable, "offline")
    assert blocks
    moved = settle(movable)
    assert moved["pages_sharing"] >= merged["pages_sharing"] - 16
    assert release(job).raw["ok"] is True
    assert baseline(settle(movable)) == before
    assert change(movable, "online_movable") == blocks
    pageops(movable, "fill=dup", "settle", "verify", procs=3, pages=4096)
    assert baseline(settle(movable)) == before


@pytest.mark.needs_config("CONFIG_MEMORY_FAILURE")
@pytest.mark.parametrize("options", ["", "--unique"])
def test_memory_that_has_gone_bad_goes_offline_with_what_the_engine_knows_of_it(
    movable: Guest, options: str
) -> None:
    """Such a page is in use still: of a merged one there is a node, of others a record."""
    before = baseline(settle(movable))
    # At once, before pksmd has seen any of it.
    movable.sh(
        f"for i in $(seq 8); do poison {options} --procs 2 --pages 64 --page $i >/dev/null || exit; "
        f"done\n{CHANGE.format(blocks=BLOCKS, zones='^Movable$', state='offline')}"
    )
    movable.set_pksm("run", 2)
    movable.set_pksm("run", 1)
    assert baseline(settle(movable)) == before
    change(movable, "online_movable")
    pageops(movable, "fill=dup", "settle", "verify", procs=3, pages=4096)
    assert baseline(settle(movable)) == before


def test_memory_goes_offline_again_and_again_while_pages_come_and_go(movable: Guest) -> None:
    """Records die in the queues all the time."""
    movable.set_pksm("settle_millisecs", 0)
    job = movable.start(["churn", "--procs", "4", "--rounds", "400", "--pause-ms", "20"])
    for _ in range(3):
        assert change(movable, "offline")
        assert change(movable, "online_movable")
    # Or nothing came and went meanwhile.
    assert job.poll() is None, job.stderr
    assert job.wait(240).status == 0
    settle(movable)
    assert counters(movable)["pages_new"] < 64


def nr_blocks(guest: Guest) -> int:
    """Return how many blocks of memory the kernel knows."""
    return len(guest.sh(f"ls -d {BLOCKS}/memory[0-9]*").stdout.split())


def plug(guest: Guest) -> tuple[str, int]:
    """Plug the memory module in and bring it online; return its block, and its first page frame.

    All new anonymous pages come from there then, as long as there are free ones.
    """
    known = nr_blocks(guest)
    guest.plug_memory()
    block = f"{BLOCKS}/memory{guest.sh(PLUGGED.format(known=known)).stdout.strip()}"
    guest.write_file(f"{block}/state", "online_movable")
    size = int(guest.read_file(f"{BLOCKS}/block_size_bytes"), 16)
    index = int(guest.read_file(f"{block}/phys_index"), 16)
    return block, index * size // 4096


def test_memory_that_is_plugged_in_is_tracked_and_can_be_taken_out(boot_fresh: BootFresh) -> None:
    """It has no records before, and no struct page afterwards."""
    guest = boot_fresh(mem="320M", cpus=1, dimm=DIMM)
    before = baseline(settle(guest))
    known = nr_blocks(guest)
    # It has looked at all page frames once, those that there are.
    for run in (2, 1):
        guest.set_pksm("run", run)
    settle(guest)
    block, first = plug(guest)
    report = pageops(
        guest, "fill=dup", "settle", "stat=born", "verify", "set=run:2", "stat=given-back",
        "set=run:1", "settle", "sleep=10000", "settle", "stat=swept", "verify",
        procs=3, pages=4096,
    )  # fmt: skip
    for name in ("born", "swept"):
        stage = report[name]
        assert (stage["merged_ptes"], stage["merged_pages"]) == (3 * 4096, 4096)
        # All other memory has lower page frames by far.
        assert stage["merged_pfn_sum"] >= 4096 * first
    assert report["given-back"]["merged_ptes"] == 0
    assert baseline(settle(guest)) == before
    job = hold_memdup(guest, "--procs", "3", "--mib", "16", "--dup", "40", "--zero", "10",
                      "--rewrite", "0")  # fmt: skip
    merged = settle(guest)
    guest.write_file(f"{block}/state", "offline")
    moved = settle(guest)
    assert moved["pages_sharing"] >= merged["pages_sharing"] - 16
    guest.unplug_memory()
    assert nr_blocks(guest) == known
    # Whatever still points there is followed now.
    settle(guest)
    assert release(job).raw["ok"] is True
    assert baseline(settle(guest)) == before
    assert plug(guest) == (block, first)
    report = pageops(guest, "fill=dup", "settle", "stat=again", "verify", procs=3, pages=4096)
    assert report["again"]["merged_ptes"] == 3 * 4096
    assert report["again"]["merged_pfn_sum"] >= 4096 * first
    # It is offline by itself before it is taken out.
    guest.unplug_memory()
    assert nr_blocks(guest) == known
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R11")
@pytest.mark.parametrize(
    ("moment", "sharers"),
    [("hashed", 1), ("lookup", 1), ("found", 1), ("frozen", 1), ("lookup", 2), ("found", 2)],
)
def test_memory_goes_for_good_while_the_engine_is_about_a_page_of_it(
    boot_fresh: BootFresh, moment: str, sharers: int
) -> None:
    """R11: the page that it has found, or is about to look for, is in a module.

    One process has it, or two share it. What the engine has locked is migrated when it lets
    go. At "lookup" it has nothing of it: the page moves, and its node and its record stay
    until the engine is done with them.
    """
    guest = boot_fresh(mem="320M", dimm=DIMM)
    guest.set_pksm("scope", "madvise")
    before = baseline(settle(guest))
    known = nr_blocks(guest)
    block, first = plug(guest)
    # The module is in node 0; at "lookup", the page that is compared with it is elsewhere.
    cpus = ["cpu=0", *([f"@{sharers}:cpu=1"] if moment == "lookup" else [])]
    job = guest.start(
        ["pageops", "--procs", str(sharers + 1), "--pages", "1", *cpus, "madvise=mergeable",
         *(f"@{process}:fill=dup" for process in range(sharers)), "settle", f"hold={moment}",
         f"@{sharers}:fill=dup", "held", "settle", "stat=after", "verify"]
    )  # fmt: skip
    held = guest.sh(SOON.format(command=f"grep held {HOLD}")).stdout.split()
    assert int(held[1], 16) >= first
    offline = guest.start(["sh", "-c", f"echo offline > {block}/state"])
    waits = "pksm_memory_callback" if moment == "lookup" else "migrate_pages"
    guest.sh(SOON.format(command=f"grep -q {waits} /proc/[0-9]*/stack"))
    assert offline.poll() is None
    guest.write_file(HOLD, "off")
    done = offline.wait(60)
    assert done.status == 0, done.stderr
    guest.unplug_memory()
    assert nr_blocks(guest) == known
    report = parse_report(job.wait(WORKLOAD_SECONDS).stdout)
    assert (report.raw["wrong"], report["after"]["merged_ptes"]) == (0, sharers + 1)
    assert baseline(settle(guest)) == before

# SPDX-License-Identifier: GPL-2.0-only
"""Memory that goes offline and comes back, and its records with it.

User-Mode Linux cannot take memory away: these tests run with --arch x86_64.
"""

from __future__ import annotations

import pytest
from lab import BootFresh, baseline, counters, hold_memdup, pageops, release, settle
from linux_um.guest import Guest

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

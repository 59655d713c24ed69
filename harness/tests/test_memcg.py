# SPDX-License-Identifier: GPL-2.0-only
"""Memory cgroups: who is charged for a merged page, and unmerging at a limit."""

from __future__ import annotations

import pytest
from lab import GROUP, baseline, group, hold_memdup, in_group, pageops, release, settle
from linux_um.agent import PKSM_DIR
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

MIB = 1 << 20
# Three processes with 12 MiB each of the same data: 36 MiB apart, 12 MiB and some page
# tables when merged, so that this limit leaves room for neither two copies nor three.
PAGES = 12 * 256
LIMIT = f"file={GROUP}/memory.max:22M"
# When nothing is left below the limit, and nobody may be killed, the workers cannot even
# write to their stacks, which are merged as well.
A_BIT_MORE = f"file={GROUP}/memory.max:24M"
NO_LIMIT = f"file={GROUP}/memory.max:max"
# The engine stops meanwhile: a busy host may keep a process for long from a page that it has
# begun to write, and all are counted.
FILL = ("set=run:0", "fill=dup", "set=run:1")


def charged(guest: Guest) -> int:
    """Return the bytes that the cgroup is charged with."""
    return int(guest.read_file(f"{GROUP}/memory.current"))


def events(guest: Guest, name: str) -> int:
    """Return a line of the cgroup's memory.events."""
    words = guest.read_file(f"{GROUP}/memory.events").split()
    return int(words[words.index(name) + 1])


def test_merging_gives_the_charge_back_and_exit_the_rest(guest: Guest) -> None:
    """One copy of four is charged; nothing is once the processes have gone."""
    group(guest)
    guest.set_pksm("run", 0)
    job = hold_memdup(guest, "--procs", "4", "--mib", "8", "--dup", "100", "--rewrite", "0",
                      "--no-wait", group=GROUP)  # fmt: skip
    apart = charged(guest)
    assert apart >= 32 * MIB
    guest.set_pksm("run", 1)
    settle(guest)
    # The statistics lag behind by what each CPU keeps for itself: a few dozen pages.
    assert apart - charged(guest) >= 24 * MIB - MIB // 2
    release(job)
    assert charged(guest) < MIB
    guest.sh(f"rmdir {GROUP}")


def test_a_page_shared_by_two_cgroups_is_charged_to_one_of_them(guest: Guest) -> None:
    """When the one that is charged goes, the other's pages stay, and the group can be removed."""
    group(guest)
    options = ("--procs", "2", "--mib", "4", "--dup", "100", "--rewrite", "0", "--stopped")
    inside = hold_memdup(guest, *options, group=GROUP)
    outside = hold_memdup(guest, *options)
    assert settle(guest)["pages_sharing"] >= 3 * 1024
    assert charged(guest) >= 4 * MIB - MIB // 2
    release(inside)
    guest.sh(f"rmdir {GROUP}")
    settle(guest)
    assert guest.pksm("pages_sharing") >= 1024
    release(outside)


# The workers are in the cgroup, the process that unmerges everything is not: run=2 makes
# its writer the first victim of the OOM killer. Nobody else there may be chosen either.
JOIN = (f"self={GROUP}/cgroup.procs:0", "self=/proc/self/oom_score_adj:-1000")


@pytest.mark.regression("R34")
@pytest.mark.parametrize(
    # madvise(2) says EAGAIN in place of ENOMEM.
    ("way", "failing"),
    [
        ("@0:madvise=unmergeable", "fails=EAGAIN:@0:madvise=unmergeable"),
        ("set=run:2", "fails=ENOMEM:set=run:2"),
        ("@0:merge=0", "fails=ENOMEM:@0:merge=0"),
    ],
)
def test_r34_unmerging_at_a_limit_fails_cleanly_and_succeeds_later(
    guest: Guest, way: str, failing: str
) -> None:
    """R34: no byte and no page lost; with the limit raised the same call succeeds."""
    group(guest)
    before = baseline(settle(guest))
    report = pageops(
        guest, *JOIN, "madvise=mergeable", *FILL, "settle", "stat=merged", LIMIT, failing,
        A_BIT_MORE, "stat=failed", "verify", NO_LIMIT, way, "stat=unmerged", "verify", "set=run:1", "poke=9",
        "verify",
        procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * PAGES
    failed, unmerged = report["failed"], report["unmerged"]
    assert failed["present"] == 3 * PAGES
    # It went as far as there was room.
    assert 0 < failed["anon"] < PAGES
    assert failed["merged_ptes"] == 3 * PAGES - failed["anon"]
    assert unmerged["merged_ptes"] == (2 * PAGES if way.startswith("@0") else 0)
    assert events(guest, "max") > 0
    assert events(guest, "oom_kill") == 0
    assert baseline(settle(guest)) == before


@pytest.mark.regression("R34")
def test_r34_after_a_failure_the_engine_can_be_started_again(guest: Guest) -> None:
    """R34: run=2 that failed leaves the engine stopped; run=1 merges what it had broken."""
    group(guest)
    report = pageops(
        guest, *JOIN, *FILL, "settle", LIMIT, "fails=ENOMEM:set=run:2", A_BIT_MORE,
        "stat=failed", "set=run:1", "settle", "stat=again", "verify",
        procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["failed"].counters["run"] == 0
    assert report["again"]["merged_ptes"] == 3 * PAGES


@pytest.mark.regression("R34")
@pytest.mark.parametrize(("name", "value"), [("domain", "global"), ("scope", "madvise")])
def test_r34_a_control_that_cannot_unmerge_at_a_limit_is_as_it_was(
    guest: Guest, name: str, value: str
) -> None:
    """R34: its writer is told; what was unmerged is merged again, and with room it can be set."""
    group(guest)
    path = f"{PKSM_DIR}/{name}"
    was = guest.read_file(path)
    report = pageops(
        guest, *JOIN, *FILL, "settle", "stat=merged", LIMIT, f"fails=ENOMEM:set={name}:{value}",
        A_BIT_MORE, "stat=failed", "verify", NO_LIMIT, "set=run:1", "settle", "stat=again", "verify",
        procs=3, pages=PAGES,
    )  # fmt: skip
    assert guest.read_file(path) == was
    assert report["merged"]["merged_ptes"] == report["again"]["merged_ptes"] == 3 * PAGES
    assert 0 < report["failed"]["anon"] < PAGES
    guest.set_pksm(name, value)
    assert guest.read_file(path).strip() != was.strip()


def test_what_the_kernel_writes_at_a_limit_is_not_written_to_a_page_that_others_share(
    guest: Guest,
) -> None:
    """read(2) says EFAULT when there is no memory for a copy, and nobody's page has changed."""
    group(guest)
    before = baseline(settle(guest))
    report = pageops(
        guest, *JOIN, *FILL, "settle", "stat=merged", LIMIT, "fails=EFAULT:@0:receive=9",
        A_BIT_MORE, "stat=failed", "verify", NO_LIMIT, "@1:receive=9", "verify",
        procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["merged"]["merged_ptes"] == 3 * PAGES
    # It went as far as there was room.
    assert 0 < 3 * PAGES - report["failed"]["merged_ptes"] < PAGES
    assert events(guest, "oom_kill") == 0
    assert baseline(settle(guest)) == before


def test_writing_to_merged_pages_at_a_limit_ends_in_the_oom_killer_not_in_a_wrong_byte(
    guest: Guest,
) -> None:
    """A write that finds no memory kills the writer, as with any page; the others go on."""
    group(guest)
    before = baseline(settle(guest))
    job = hold_memdup(guest, "--procs", "2", "--mib", "12", "--dup", "100", "--rewrite", "0")
    report = in_group(
        guest, "sh", "-c",
        # The child that is killed is pageops; what remains says so in its place.
        f"pageops --procs 2 --pages {PAGES} fill=dup settle {LIMIT} fill=unique && exit 1; "
        'echo \'{"ok": true}\'',
    )  # fmt: skip
    assert report.raw["ok"] is True
    assert events(guest, "oom_kill") > 0
    release(job)
    assert baseline(settle(guest)) == before

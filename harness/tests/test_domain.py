# SPDX-License-Identifier: GPL-2.0-only
"""Pages are merged within a domain only: what another has cannot be told."""

from __future__ import annotations

import pytest
from lab import GROUP, group, hold_memdup, memdup, pageops, release, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

MIB = 2
PAGES = MIB * 256
ALIKE = ("--mib", str(MIB), "--dup", "100", "--unique", "0", "--rewrite", "0")


def sharing(guest: Guest, *options: str) -> tuple[int, int]:
    """Return how many pages a memdup had merged, and how many PTEs pointed at them."""
    stage = memdup(guest, *ALIKE, *options)["settled"]
    return stage.map["merged_pages"], stage.map["merged_ptes"]


def test_pages_of_a_user_are_merged(guest: Guest) -> None:
    assert guest.read_file("/sys/kernel/mm/pksm/domain").strip() == "user"
    assert sharing(guest, "--procs", "4") == (PAGES, 4 * PAGES)


def test_users_share_among_themselves_only(guest: Guest) -> None:
    """Four processes of two users: two sets of merged pages, of two PTEs each."""
    assert sharing(guest, "--procs", "4", "--users", "2") == (2 * PAGES, 4 * PAGES)


def test_groups_of_a_user_share_among_themselves_only(guest: Guest) -> None:
    """None of them may read the other group's by ptrace(), as after `sg` or `newgrp`."""
    report = pageops(
        guest, "@0:group=5", "@1:group=5", "@2:group=6", "@3:group=6", "user=7", "fill=dup",
        "settle", "stat=merged", "verify", procs=4, pages=64,
    )  # fmt: skip
    merged = report["merged"]
    assert (merged["merged_pages"], merged["merged_ptes"]) == (2 * 64, 4 * 64)


def test_what_another_user_has_is_not_found(guest: Guest) -> None:
    """Each has the same, and nothing is merged: there is no slow write to learn from."""
    broken = guest.pksm("pages_broken")
    assert sharing(guest, "--procs", "4", "--users", "4") == (0, 0)
    memdup(guest, "--procs", "2", "--users", "2", "--mib", "2", "--dup", "100", "--unique", "0",
           "--rewrite", "50")  # fmt: skip
    # The program's own pages, of the same user, may have been broken meanwhile.
    assert guest.pksm("pages_broken") - broken < 16


def test_a_process_that_its_user_may_not_read_shares_with_none(guest: Guest) -> None:
    """As after setuid() without exec: its memory may hold what it came by before."""
    assert sharing(guest, "--procs", "4", "--users", "1", "--guarded") == (0, 0)
    assert sharing(guest, "--procs", "4", "--users", "1") == (PAGES, 4 * PAGES)


@pytest.mark.parametrize("name", ["euid", "suid", "egid", "sgid"])
def test_a_process_with_an_id_of_somebody_else_shares_with_none(guest: Guest, name: str) -> None:
    """As one that is setuid or setgid, or may be so again: not even with its own kind."""
    assert sharing(guest, "--procs", "4", "--users", "1", "--odd-id", name) == (0, 0)


def test_global_lets_everybody_share(guest: Guest) -> None:
    guest.set_pksm("domain", "global")
    assert sharing(guest, "--procs", "4", "--users", "4") == (PAGES, 4 * PAGES)


def test_a_process_may_share_with_none_but_itself(guest: Guest) -> None:
    guest.set_pksm("domain", "process")
    assert sharing(guest, "--procs", "4") == (0, 0)


def test_cgroups_do_not_share_with_one_another(guest: Guest) -> None:
    group(guest)
    guest.set_pksm("domain", "memcg")
    before = settle(guest)["pages_sharing"]
    inside = hold_memdup(guest, "--procs", "2", *ALIKE, group=GROUP)
    outside = hold_memdup(guest, "--procs", "2", *ALIKE)
    now = settle(guest)
    # One set of pages inside, another outside; all four alike would save three quarters.
    assert 2 * PAGES <= now["pages_sharing"] - before < 2 * PAGES + 64
    release(inside)
    release(outside)


@pytest.mark.parametrize("domain", ["user", "memcg", "process", "global"])
def test_zeroes_are_given_back_in_every_domain(guest: Guest, domain: str) -> None:
    guest.set_pksm("domain", domain)
    report = memdup(guest, "--procs", "2", "--users", "2", "--mib", "2", "--zero", "100",
                    "--unique", "0", "--rewrite", "0")  # fmt: skip
    assert report["settled"].map["zero"] == 2 * PAGES


def test_a_change_of_domain_unmerges_what_may_not_share_any_more(guest: Guest) -> None:
    guest.set_pksm("domain", "global")
    job = hold_memdup(guest, "--procs", "4", "--users", "4", *ALIKE)
    assert settle(guest)["pages_sharing"] >= 3 * PAGES
    # By one command: in between, what its users have alike would be merged again.
    done = guest.sh("cd /sys/kernel/mm/pksm && echo user >domain && cat pages_sharing")
    assert done.stdout == "0\n"
    assert settle(guest)["pages_sharing"] < 64
    guest.set_pksm("domain", "global")
    assert settle(guest)["pages_sharing"] >= 3 * PAGES
    release(job)


def test_a_change_of_domain_does_not_start_the_engine(guest: Guest) -> None:
    """Nor does it end the intake: pages born meanwhile wait for run=1."""
    guest.set_pksm("run", 0)
    guest.set_pksm("domain", "process")
    assert guest.pksm("run") == 0
    before = guest.pksm("pages_new")
    job = hold_memdup(guest, "--procs", "1", *ALIKE, "--no-wait")
    assert guest.pksm("pages_new") - before >= PAGES
    guest.set_pksm("run", 1)
    release(job)


@pytest.mark.parametrize("text", ["\n", "users", "0", "user user", "GLOBAL", "x" * 5000])
def test_no_other_domain_is_taken(guest: Guest, text: str) -> None:
    with pytest.raises(OSError):
        guest.set_pksm("domain", text)
    assert guest.read_file("/sys/kernel/mm/pksm/domain").strip() == "user"

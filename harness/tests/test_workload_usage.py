# SPDX-License-Identifier: GPL-2.0-only
"""What the workloads say to somebody who does not know their arguments yet."""

from __future__ import annotations

import re

import pytest
from lab import BootFresh, settle
from linux_um.bench_lab import hoard
from linux_um.guest import Guest
from linux_um.paths import repo_root

PROGRAMS = sorted(path.stem for path in (repo_root() / "rootfs" / "workloads").glob("*.c"))
EXIT_USAGE = 2


def complaint(guest: Guest, *argv: str) -> str:
    """Run a workload with arguments that are wrong; return the one line that says so."""
    done = guest.run(argv, check=False)
    assert (done.status, done.stdout) == (EXIT_USAGE, ""), done
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[1] == f"try: {argv[0]} --help", done.stderr
    assert lines[0].startswith(f"{argv[0]}: "), done.stderr
    return lines[0]


def test_a_usage_error_is_one_line_and_where_to_look(guest: Guest) -> None:
    """The usage text is on standard output, for who asks for it, and not in the way else."""
    for program in PROGRAMS:
        complaint(guest, program, "--nosuch")
        done = guest.run([program, "--help"])
        assert done.stdout.startswith(f"usage: {program}"), done.stdout
        assert done.stderr == ""


def test_a_usage_error_says_what_is_wrong(guest: Guest) -> None:
    """By the word that is wrong, or that is missing."""
    assert complaint(guest, "pageops", "--nosuch").endswith("'--nosuch'")
    assert complaint(guest, "pageops").endswith("no OPERATION given")
    assert complaint(guest, "births", "nosuch").endswith('no way "nosuch"')
    assert complaint(guest, "births", "write", "zero").endswith('no use for "zero"')
    assert complaint(guest, "mmrace", "nosuch").endswith('no scenario "nosuch"')
    assert complaint(guest, "pagestat").endswith("give either --pid or --all")
    assert complaint(guest, "directio", "write").endswith("no --file given")
    done = guest.run(["pageops", "nosuch"], check=False)
    assert done.status == EXIT_USAGE
    assert len(done.stderr.splitlines()) == 1 and "nosuch" in done.stderr, done.stderr


@pytest.mark.needs_pksm
def test_two_hoards_have_no_more_in_common_than_is_said(guest: Guest) -> None:
    """Their duplicates; what is unique in one is not in the other, by another seed."""
    before = settle(guest)["pages_sharing"]
    with hoard(guest, 4, 2, dup=50) as one, hoard(guest, 4, 2, dup=50, unique_seed=2) as other:
        duplicates = sum(each.order("fill")["dup"] for each in (one, other))
        # The programs themselves have some pages in common.
        assert settle(guest)["pages_sharing"] - before == pytest.approx(duplicates * 3 / 4, abs=64)
        for each in (one, other):
            each.order("verify")


@pytest.mark.needs_pksm
def test_births_says_how_its_ways_by_swap_are_run(boot_fresh: BootFresh) -> None:
    """By commands that work."""
    guest = boot_fresh(swap="64M")
    text = guest.run(["births", "--help"]).stdout
    commands = re.search(r"^  cd /sys/fs/cgroup .*\n(?:  .*\n)+", text, re.M)
    assert commands is not None, text
    assert '"tool": "births"' in guest.sh(commands[0]).stdout

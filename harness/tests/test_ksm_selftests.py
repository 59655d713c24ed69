# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own KSM selftests, unmodified, say of PKSM what they say of stock KSM.

ksm_functional_tests and ksm_tests poll full_scans until KSM has looked at
everything, so they run in real time. Where stock KSM fails or is not able to
run a test on this machine, so does PKSM: the results are compared, test by
test, and not with a list of what ought to pass.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab import BootFresh
from linux_um import build
from linux_um.guest import Completed, Guest
from linux_um.selftests import build_selftest
from linux_um.source import default_kernel
from linux_um.term import Term

pytestmark = [pytest.mark.needs_pksm, pytest.mark.real_time]

SECONDS = 300.0
# The runs of ksm_tests in run_vmtests.sh (with less memory), and what it does not run there.
KSM_TESTS = (
    "-M -p 10",
    "-M -p 257",
    "-M -t 1 -p 10",
    "-U",
    "-Z -p 10 -z 0",
    "-Z -p 10 -z 1",
    "-N -m 1",
    "-N -m 0",
    "-P -s 8",
    "-H -s 8",
    "-D -s 8",
    "-C",
)


BY_CHANCE = "test_prctl_fork_exec"


@pytest.fixture(scope="module")
def programs() -> Path:
    """Return the directory of the selftests, built from the tree of the kernel."""
    term = Term()
    tree = build.ensure_tree("fast", default_kernel(), term=term)
    names = ["ksm_functional_tests", "ksm_tests"]
    return build_selftest(tree, "mm", names, term=term)[names[0]].parent


@pytest.fixture
def both(boot_fresh: BootFresh, programs: Path) -> tuple[Guest, Guest]:
    """Return a guest with PKSM that merges what asks for it, and one with stock KSM."""
    shares = [(str(programs), "/share")]
    pksm = boot_fresh(shares=shares)
    pksm.set_pksm("scope", "madvise")
    return pksm, boot_fresh(profile="ksm", shares=shares)


def run(guest: Guest, command: str) -> Completed:
    """Run a selftest in its directory, where one of them looks for itself."""
    return guest.sh(f"cd /share && ./{command}", timeout=SECONDS, check=False)


def by_name(output: str) -> dict[str, str]:
    """Return the result of each test of ksm_functional_tests by its name; "none" without one."""
    found: dict[str, str] = {}
    name = ""
    for line in output.splitlines():
        started = re.match(r"# \[RUN\] (\w+)", line)
        result = re.match(r"(not ok|ok) \d+ ?(# SKIP)? ?(.*)", line)
        if started is not None:
            name = started.group(1)
            found[name] = "none"
        elif result is not None:
            kind = "skip" if result.group(2) else result.group(1)
            found[name] = f"{kind}: {result.group(3)}"
    return found


def test_ksm_functional_tests_give_the_same_results(both: tuple[Guest, Guest]) -> None:
    done = [run(guest, "ksm_functional_tests") for guest in both]
    pksm, stock = (by_name(each.stdout) for each in done)
    # What shows that they were run at all, and that stock KSM passes them.
    for name in (
        "test_unmerge", "test_unmerge_zero_pages", "test_unmerge_discarded", "test_prot_none",
        "test_prctl", "test_prctl_unmerge",
    ):  # fmt: skip
        assert stock[name].startswith("ok"), done[1].stdout
    # Where stock KSM is too slow for a test ("No pages got merged") that has no result.
    same = {name: result for name, result in stock.items() if result != "none"}
    # The arguments of its exec() do not end with a NULL: what is behind them on the stack
    # decides whether it fails. Then the child goes on, and reaches the end as well.
    if any(each.stdout.count("# Totals") > 1 for each in done):
        same.pop(BY_CHANCE, None)
    better = {name: pksm[name] for name in stock.keys() - same.keys()}
    assert pksm.keys() == stock.keys()
    assert {name: pksm[name] for name in same} == same, (
        f"PKSM:\n{done[0].stdout}\nKSM:\n{done[1].stdout}"
    )
    assert all(result == "none" or result.startswith("ok") for result in better.values()), better
    assert done[0].status == done[1].status


def ksm_test(guest: Guest, options: str, tries: int) -> str:
    """Run ksm_tests until it succeeds, at most so often; return its status and what it says."""
    said = ""
    for _ in range(tries):
        done = run(guest, f"ksm_tests {options} -l 60")
        result = re.search(r"^(?:not ok|ok).*", done.stdout, re.MULTILINE)
        said = f"{done.status}: {result.group(0) if result else done.stderr}"
        if done.status == 0:
            break
    return said


def test_ksm_tests_give_the_same_results(both: tuple[Guest, Guest]) -> None:
    """Stock KSM has several tries: on a busy host it may not be done within the 60 seconds."""
    pksm, stock = (
        {options: ksm_test(guest, options, tries) for options in KSM_TESTS}
        for guest, tries in zip(both, (1, 3), strict=True)
    )
    for options in ("-M -p 10", "-U", "-Z -p 10 -z 0", "-Z -p 10 -z 1", "-P -s 8", "-C"):
        assert stock[options].startswith("0: ok"), stock
    # KSM may be too slow for a test on a machine that is emulated.
    assert not [
        (options, pksm[options], stock[options])
        for options in KSM_TESTS
        if pksm[options] != stock[options] and not pksm[options].startswith("0: ok")
    ]


def test_the_selftests_leave_the_controls_as_they_were(both: tuple[Guest, Guest]) -> None:
    """ksm_tests saves and restores them: run, use_zero_pages, and what has no meaning here."""
    guest = both[0]
    before = guest.sh("cd /sys/kernel/mm/ksm; cat run use_zero_pages max_page_sharing pages_to_scan "
                      "sleep_millisecs stable_node_chains_prune_millisecs").stdout  # fmt: skip
    run(guest, "ksm_tests -Z -p 10 -z 0")
    after = guest.sh("cd /sys/kernel/mm/ksm; cat run use_zero_pages max_page_sharing pages_to_scan "
                     "sleep_millisecs stable_node_chains_prune_millisecs").stdout  # fmt: skip
    assert before == after

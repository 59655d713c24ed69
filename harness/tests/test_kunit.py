# SPDX-License-Identifier: GPL-2.0-only
"""The engine's unit tests, which run in the kernel while it boots."""

from __future__ import annotations

import functools

import pytest
from ktaplab import Run, console_of, judge, judge_whole, listed, run_of
from lab import BootFresh, memdup, settle
from linux_um.errors import LinuxUmError
from linux_um.guest import boot_guest
from linux_um.ktap import Status

# A guest for each worker that has one of these: let it be one worker if it can.
pytestmark = [pytest.mark.needs_pksm, pytest.mark.xdist_group("kunit")]

SOURCE = "mm/pksm/tests/pksm_test.c"
CASES = listed(SOURCE, r"^\tKUNIT_CASE\w*\((\w+)")
WORDS = ("kunit.enable=1", "kunit.autorun=1", "kunit.filter_glob=pksm")


@functools.cache
def run_suite(profile: str) -> Run:
    """Boot a kernel that runs the suite; return what it printed, also when it fell."""
    try:
        with boot_guest(profile, append=WORDS, name="kunit") as guest:
            console = guest.console()
    except LinuxUmError as error:
        return run_of(profile, console_of(error), error=error)
    return run_of(profile, console)


@pytest.fixture
def suite(request: pytest.FixtureRequest) -> Run:
    """The suite, after it has run."""
    return run_suite(request.config.getoption("--profile"))


@pytest.mark.parametrize("name", CASES)
def test_unit(suite: Run, name: str) -> None:
    """One unit test of the kernel."""
    judge(suite, name)


def test_the_suite_is_what_its_source_lists(suite: Run) -> None:
    judge_whole(suite, CASES)


def test_none_is_skipped_at_boot(suite: Run) -> None:
    assert [case for case in suite.results.cases if case.status is Status.SKIPPED] == []


def test_an_ordinary_boot_runs_no_unit_tests(boot_fresh: BootFresh) -> None:
    guest = boot_fresh()
    assert "KTAP version" not in guest.console()
    # Bit 18, N: an in-kernel test has been run.
    assert int(guest.read_file("/proc/sys/kernel/tainted")) & 1 << 18 == 0


def test_the_engine_is_none_the_worse_for_it(boot_fresh: BootFresh) -> None:
    """Its counters are those of another guest, and it merges; the rack checks the laws."""
    tested, other = boot_fresh(append=WORDS), boot_fresh()
    assert int(tested.read_file("/proc/sys/kernel/tainted")) & 1 << 18
    gauges = ("pages_shared", "pages_sharing", "rmap_items", "stable_nodes")
    after, without = settle(tested), settle(other)
    assert {name: after[name] for name in gauges} == {name: without[name] for name in gauges}
    report = memdup(tested, "--procs", "2", "--mib", "2", "--dup", "100")
    assert report["settled"].sharing == 2 * 256

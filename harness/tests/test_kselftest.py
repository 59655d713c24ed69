# SPDX-License-Identifier: GPL-2.0-only
"""The kselftest of PKSM, built from the patched kernel tree and run as a user would."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from ktaplab import Run, console_of, judge, judge_whole, listed, parser_of, run_of
from lab import WORKLOAD_SECONDS, BootFresh
from linux_um import ktap
from linux_um.build import ensure_tree
from linux_um.errors import LinuxUmError
from linux_um.guest import boot_guest
from linux_um.selftests import build_selftest
from linux_um.source import default_kernel
from linux_um.term import Term

pytestmark = pytest.mark.xdist_group("kselftest")

TARGET = "pksm"
PROGRAM = "pksm_tests"
CASES = listed(f"tools/testing/selftests/{TARGET}/{PROGRAM}.c", r"^\tTEST\((\w+)\)")
# Needs a swap device, and with it real time.
SWAPPING = ("merged_pages_are_swapped",)
OTHERS = tuple(name for name in CASES if name not in SWAPPING)
# Exit statuses of kselftests.
PASS, FAIL, SKIP = 0, 1, 4
CONTROLS = "run scope domain settle_millisecs rescan_seconds max_cpu max_page_sharing use_zero_pages"


@functools.cache
def program() -> Path:
    """Build the selftest; return where it is."""
    term = Term(quiet=True)
    tree = ensure_tree("fast", default_kernel(), term=term)
    return build_selftest(tree, TARGET, [PROGRAM], term=term)[PROGRAM]


@functools.cache
def run_cases(profile: str, names: tuple[str, ...], swap: str | None) -> Run:
    """Run the cases *names* in a guest of their own."""
    output, status = "", 0
    try:
        with boot_guest(
            profile,
            name=PROGRAM,
            shares=[str(program().parent)],
            swap=swap,
            time_travel=None if swap is None else False,
            timeout=WORKLOAD_SECONDS,
        ) as guest:
            show = f"cd /sys/kernel/mm/pksm && grep -H . {CONTROLS}"
            before = guest.sh(show).stdout
            done = guest.run([f"/share/{PROGRAM}", *names], timeout=WORKLOAD_SECONDS, check=False)
            output, status = done.stdout + done.stderr, done.status
            assert guest.sh(show).stdout == before, "the settings are not what they were"
    except (LinuxUmError, AssertionError) as error:
        if not output and isinstance(error, LinuxUmError):
            output = console_of(error)
        return run_of(profile, output, status=status, error=error)
    return run_of(profile, output, status=status)


def run_of_case(request: pytest.FixtureRequest, name: str) -> Run:
    """Return the run in which the case *name* was."""
    profile = request.config.getoption("--profile")
    if name in SWAPPING:
        return run_cases(profile, SWAPPING, "64M")
    return run_cases(profile, OTHERS, None)


@pytest.mark.needs_pksm
@pytest.mark.parametrize("name", CASES)
def test_case(request: pytest.FixtureRequest, name: str) -> None:
    """One case of the selftest."""
    judge(run_of_case(request, name), name)


@pytest.mark.needs_pksm
@pytest.mark.parametrize("names", [OTHERS, SWAPPING], ids=["most", "swapping"])
def test_the_selftest_runs_what_its_source_lists(
    request: pytest.FixtureRequest, names: tuple[str, ...]
) -> None:
    run = run_of_case(request, names[0])
    judge_whole(run, names)
    assert run.status == PASS, run.tail()


@pytest.mark.needs_pksm
def test_it_skips_what_it_cannot_do_and_refuses_what_it_does_not_know(
    boot_fresh: BootFresh,
) -> None:
    guest = boot_fresh(shares=[str(program().parent)])
    done = guest.run(["su", "nobody", "-s", "/bin/sh", "-c", f"/share/{PROGRAM}"], check=False)
    assert done.status == SKIP
    assert ktap.parse(done.stdout, parser_of("fast")).skipped == "only root may do this"
    done = guest.run([f"/share/{PROGRAM}", *SWAPPING], check=False)
    results = ktap.parse(done.stdout, parser_of("fast"))
    assert results[SWAPPING[0]].reason == "there is no swap"
    assert guest.run([f"/share/{PROGRAM}", "nothing"], check=False).status == FAIL


@pytest.mark.needs_ksm
def test_it_skips_where_there_is_no_pksm(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(profile="ksm", shares=[str(program().parent)])
    done = guest.run([f"/share/{PROGRAM}"], check=False)
    assert done.status == SKIP
    assert "not PKSM" in ktap.parse(done.stdout, parser_of("ksm")).skipped

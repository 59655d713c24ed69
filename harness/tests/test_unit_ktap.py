# SPDX-License-Identifier: GPL-2.0-only
"""Reading KTAP: logs of all sorts, of KUnit and of kselftests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from linux_um import ktap
from linux_um.errors import LinuxUmError
from linux_um.guest import finished_image
from linux_um.ktap import Case, Results, Status
from linux_um.source import DEFAULT_KERNEL
from linux_um.term import Term

KUNIT_LOG = """\
[    0.010000] Linux version 6.12.117-pksm
[    0.100000] KTAP version 1
[    0.100000] 1..1
[    0.110000]     KTAP version 1
[    0.110000]     # Subtest: pksm
[    0.110000]     # module: pksm_test
[    0.110000]     1..3
[    0.120000]     ok 1 pksm_test_one
[    0.130000] pksm: something else says something
[    0.130000]     # pksm_test_two: EXPECTATION FAILED at mm/pksm/tests/two.c:7
[    0.130000]     Expected 1 == 2, but
[    0.140000]     not ok 2 pksm_test_two
[    0.150000]     ok 3 pksm_test_three # SKIP no #5 here
[    0.150000] # pksm: pass:1 fail:1 skip:1 total:3
[    0.160000] not ok 1 pksm
[    0.200000] Run /init as init process
"""

PARAMETERISED_LOG = """\
KTAP version 1
1..2
    KTAP version 1
    # Subtest: first
    1..2
        KTAP version 1
        # Subtest: many
        ok 1 zero
        not ok 2 one
        ok 3 two
    # many: pass:2 fail:1 skip:0 total:3
    not ok 1 many
    ok 2 single
not ok 1 first
    KTAP version 1
    # Subtest: second
    1..1
    ok 1 only
ok 2 second
"""

KSELFTEST_OUTPUT = """\
TAP version 13
1..6
# [RUN] test_unmerge
ok 1 Pages were unmerged
# line 7: not true: x == y
not ok 2 page #2 differs
ok 3 # SKIP swap: there is none
ok 4 # XFAIL known to fail
ok 5 reads_back # SKIP too old
ok 6 last
# Totals: pass:2 fail:1 xfail:1 xpass:0 skip:2 error:0
"""


@pytest.fixture(scope="module")
def tools() -> Path:
    """The kernel's parser."""
    return finished_image("fast", DEFAULT_KERNEL, Term(quiet=True)).kunit_tools


def statuses(results: Results) -> dict[str, Status]:
    """Return what became of each case."""
    return {case.name: case.status for case in results.cases}


def test_a_suite_of_kunit_with_every_result(tools: Path) -> None:
    results = ktap.parse(KUNIT_LOG, tools)
    assert statuses(results) == {
        "pksm_test_one": Status.PASSED,
        "pksm_test_two": Status.FAILED,
        "pksm_test_three": Status.SKIPPED,
    }
    assert results.errors == ()
    assert "EXPECTATION FAILED at mm/pksm/tests/two.c:7" in results["pksm_test_two"].log
    assert "Expected 1 == 2" in results["pksm_test_two"].log
    assert results["pksm_test_one"].log == ""
    assert results["pksm_test_three"].reason == "no #5 here"


def test_nothing_is_printed(tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ktap.parse(KUNIT_LOG, tools)
    ktap.parse(KUNIT_LOG.replace("1..3", "1..9"), tools)
    assert capsys.readouterr() == ("", "")
    assert "kunit_printer" not in sys.modules


def test_nested_tests_become_a_flat_list(tools: Path) -> None:
    results = ktap.parse(PARAMETERISED_LOG, tools)
    assert [(case.name, case.status) for case in results.cases] == [
        ("zero", Status.PASSED),
        ("one", Status.FAILED),
        ("two", Status.PASSED),
        ("single", Status.PASSED),
        ("only", Status.PASSED),
    ]
    assert results.errors == ()


def test_a_suite_that_crashes_in_the_middle(tools: Path) -> None:
    """What passed before passed; what did not come is not taken for passed."""
    log = KUNIT_LOG[: KUNIT_LOG.index("[    0.140000]")]
    log += "[    0.140000] Kernel panic - not syncing: Segfault with no mm\n"
    results = ktap.parse(log, tools)
    assert results["pksm_test_one"].status is Status.PASSED
    assert "pksm_test_two" not in results.names
    assert "pksm_test_three" not in results.names
    assert Status.CRASHED in {case.status for case in results.cases}
    assert any("missing" in error for error in results.errors)
    assert any("Segfault with no mm" in case.log for case in results.cases)


def test_a_run_that_was_cut_off_in_the_first_line(tools: Path) -> None:
    """As after a time-out."""
    log = KUNIT_LOG[: KUNIT_LOG.index("[    0.120000]")]
    results = ktap.parse(log, tools)
    assert results.names == []
    assert results.errors


def test_a_case_too_few_and_a_case_too_many(tools: Path) -> None:
    few = ktap.parse(KUNIT_LOG.replace("1..3", "1..4"), tools)
    assert few.errors and Status.CRASHED in statuses(few).values()
    many = ktap.parse(KUNIT_LOG.replace("1..3", "1..2"), tools)
    assert many.errors


def test_a_suite_without_a_plan_is_read_to_its_end(tools: Path) -> None:
    lines = [line for line in KUNIT_LOG.splitlines(keepends=True) if "1..3" not in line]
    results = ktap.parse("".join(lines), tools)
    assert results.names == ["pksm_test_one", "pksm_test_two", "pksm_test_three"]


def test_a_result_with_another_number_is_an_error(tools: Path) -> None:
    results = ktap.parse(KUNIT_LOG.replace("ok 3 pksm", "ok 4 pksm"), tools)
    assert any("Expected test number 3 but found 4" in error for error in results.errors)


def test_a_log_without_any_results(tools: Path) -> None:
    results = ktap.parse("[    0.010000] Linux version 6.12\n", tools)
    assert results.cases == ()
    assert any("Could not find any KTAP output" in error for error in results.errors)


def test_a_suite_in_which_nothing_ran(tools: Path) -> None:
    log = "KTAP version 1\n1..0\n"
    results = ktap.parse(log, tools)
    assert results.cases == () and results.errors and not results.skipped


def test_a_kselftest_with_every_result(tools: Path) -> None:
    results = ktap.parse(KSELFTEST_OUTPUT, tools)
    assert statuses(results) == {
        "Pages were unmerged": Status.PASSED,
        "page _2 differs": Status.FAILED,
        "swap: there is none": Status.SKIPPED,
        "known to fail": Status.PASSED,
        "reads_back": Status.SKIPPED,
        "last": Status.PASSED,
    }
    assert results.errors == ()
    assert "not true: x == y" in results["page _2 differs"].log
    assert results["reads_back"].reason == "too old"


def test_a_kselftest_that_gives_up(tools: Path) -> None:
    cut = KSELFTEST_OUTPUT.index("ok 3")
    results = ktap.parse(KSELFTEST_OUTPUT[:cut] + "Bail out! mmap: no memory\n", tools)
    assert results.names == ["Pages were unmerged", "page _2 differs"]
    assert results.errors


def test_a_kselftest_that_cannot_run(tools: Path) -> None:
    results = ktap.parse("TAP version 13\n1..0 # SKIP only root may do this\n", tools)
    assert results == Results((), (), "only root may do this")


def test_a_case_that_did_not_run_has_no_result(tools: Path) -> None:
    results = ktap.parse(KUNIT_LOG, tools)
    assert results["pksm_test_one"] == Case("pksm_test_one", Status.PASSED)
    with pytest.raises(KeyError):
        results["pksm_test_four"]


def test_a_parser_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LinuxUmError, match="kunit_printer.py is missing"):
        ktap.parse(KUNIT_LOG, tmp_path)

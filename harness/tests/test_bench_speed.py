# SPDX-License-Identifier: GPL-2.0-only
"""The bench is no decoration: what it measures tells a slow engine from one that is not.

A mutant that hashes each page eight times has to fail here, by what the report says of it.
What is compared is CPU time, with that of stock KSM in the same minute, so that another
host, or a busy one, does not matter: the other run of the report is one in which PKSM has
cost a share of what KSM has cost now.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from linux_um import bench_engine, bench_lab, bench_table
from linux_um.bench_facts import Results, Stat
from linux_um.bench_results import results_of
from linux_um.source import default_kernel
from linux_um.term import Term

pytestmark = [
    pytest.mark.needs_pksm,
    pytest.mark.needs_ksm,
    pytest.mark.real_time,
    # What is measured is the CPU time of a process of the host.
    pytest.mark.um_only,
    # KSM is measured in the profile ksm, which has no checkers and one CPU, as these have.
    pytest.mark.only_profile("fast", "mutant"),
]

MIB = 16
TURNS = 3
# Of KSM's cost: a fifth is usual, and half or more with eight hashes, seven of which are of
# a page that is in the cache by then.
LIMIT = 0.35


def test_an_unmatched_page_costs_much_less_than_under_ksm(request: pytest.FixtureRequest) -> None:
    """KSM reads such a page twice, and compares it with others.

    PKSM reads it once, and once more when it has not changed for some time; never again.
    """
    ours = replace(bench_lab.PKSM_FULL, profile=request.config.getoption("--profile"))
    lab = bench_lab.Lab(default_kernel(), Term(quiet=True))
    samples = []
    for _ in range(TURNS):
        for setting in (ours, bench_lab.KSM_FULL):
            with lab.guest(setting.profile, MIB) as guest:
                bench_lab.tune(guest, setting)
                samples += bench_engine.unmatched(guest, setting, MIB, 8)
    results = results_of(samples)
    now, theirs = (results.last("unmatched", name) for name in (ours.name, "ksm-full"))
    assert now is not None and theirs is not None
    # The other run: what PKSM is to cost at most.
    most = replace(now, stat=Stat.of([LIMIT * theirs.stat.median] * TURNS))
    said = bench_table.changes_table(Results([now]), Results([most]), colour=False)
    assert "slower" not in said, said
    reads = results.value("reads per unmatched page", ours.name)
    assert reads is not None and reads < 1.2
    again = results.value("reads per watched page", ours.name)
    assert again is not None and 0.9 < again < 1.2

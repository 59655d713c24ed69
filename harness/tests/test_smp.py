# SPDX-License-Identifier: GPL-2.0-only
"""More than one CPU: that a PTE was write-protected has to reach whoever writes.

The engine may be PKSM or stock KSM. Without the patches to arch/um a process goes on
writing to a page that was merged meanwhile, for as long as it is let run: both engines
lose bytes then, within seconds.
"""

from __future__ import annotations

import pytest
from lab import BootFresh, has_file, pageops, vmstat, workload
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_smp, pytest.mark.regression("R19")]

KSM = "/sys/kernel/mm/ksm"
PKSM = "/sys/kernel/mm/pksm"
SECONDS = 5


def at_full_speed(guest: Guest) -> None:
    """Let the engine, whichever it is, merge as fast as it can."""
    if has_file(guest, PKSM):
        settings = {f"{PKSM}/settle_millisecs": 0, f"{PKSM}/max_cpu": 100}
    else:
        settings = {f"{KSM}/pages_to_scan": 5000, f"{KSM}/sleep_millisecs": 0,
                    f"{KSM}/smart_scan": 0, f"{KSM}/run": 1}  # fmt: skip
    for path, value in settings.items():
        guest.write_file(path, str(value))


@pytest.mark.parametrize("procs", [2, 4])
@pytest.mark.parametrize("pages", [4, 8, 16])
def test_r19_writers_on_other_cpus_lose_nothing(boot_fresh: BootFresh, procs: int, pages: int) -> None:
    """R19: processes that never stop writing to pages that are merged all the time."""
    guest = boot_fresh()
    assert int(guest.sh("nproc").stdout) >= 2
    at_full_speed(guest)
    report = workload(
        guest,
        ["hammer", "--procs", str(procs), "--pages", str(pages), "--seconds", str(SECONDS)],
    )
    assert report.raw["wrong"] == 0
    assert vmstat(guest, "cow_ksm") > 4, "little was merged: the test tested nothing"


def test_what_a_process_is_sent_lands_in_its_own_page(boot_fresh: BootFresh) -> None:
    """The same for what the kernel writes for a process: read(2) into pages that merge."""
    guest = boot_fresh()
    at_full_speed(guest)
    report = workload(guest, ["hammer", "--receive", "--pages", "8", "--seconds", str(SECONDS)])
    assert report.raw["wrong"] == 0
    assert vmstat(guest, "cow_ksm") > 4, "little was merged: the test tested nothing"


@pytest.mark.needs_pksm
@pytest.mark.needs_config("CONFIG_TRANSPARENT_HUGEPAGE")
def test_what_is_made_read_only_meanwhile_is_not_written_to_any_more(
    boot_fresh: BootFresh,
) -> None:
    """Also where PTEs of a large folio are read-only already, and a CPU does not know it yet.

    The engine flushes the TLB when it has dropped the lock under which it has
    write-protected them; who finds them so must not believe that this is done.
    """
    guest = boot_fresh(mem="512M")
    guest.write_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")
    guest.set_pksm("settle_millisecs", 20)
    report = pageops(
        guest, "--huge", "fill=unique", "range=0-1", "mprotect=ro", "mprotect=rw", "range=all",
        "stat=mapped", "hold=unflushed", "&@0:stale=60", "held", "sleep=1000", "hold=off", "join",
        "verify", procs=1, pages=512,
    )  # fmt: skip
    assert report["mapped"]["large"] == 512
    assert report.raw["wrong"] == 0

# SPDX-License-Identifier: GPL-2.0-only
"""pksm=on and pksm=off on the kernel's command line."""

from __future__ import annotations

import errno

import pytest
from lab import BootFresh, pageops

pytestmark = pytest.mark.needs_pksm

# Nothing is read before it is full: a CPU may be held up for long. The engine goes on.
FILL = ("set=settle_millisecs:10000", "fill=dup", "set=settle_millisecs:50", "settle")


def test_off_from_boot_nothing_is_tracked_and_nothing_merges(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(append=("pksm=off",))
    assert guest.pksm("run") == 0
    report = pageops(guest, "fill=dup", "sleep=20000", "stat=end", "verify", procs=3, pages=64)
    assert report["end"]["merged_ptes"] == 0
    for name in ("pages_shared", "pages_sharing", "pages_scanned", "pages_merged"):
        assert report["end"].counters[name] == 0, name


def test_off_from_boot_can_be_switched_on(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(append=("pksm=off",))
    report = pageops(
        guest, "set=run:1", *FILL, "stat=end", "verify", procs=3, pages=64
    )
    assert report["end"].sharing == 2 * 64


@pytest.mark.parametrize("append", [(), ("pksm=on",)])
def test_on_is_the_default_of_a_guest(boot_fresh: BootFresh, append: tuple[str, ...]) -> None:
    guest = boot_fresh(append=append)
    assert guest.pksm("run") == 1


def test_nonsense_is_said_and_ignored(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(append=("pksm=perhaps",))
    assert guest.pksm("run") == 1


@pytest.mark.needs_config("CONFIG_PKSM_DEBUG")
def test_before_it_was_ever_started_there_is_nothing_to_look_at(boot_fresh: BootFresh) -> None:
    """Its indexes are made when it is started; until then the files for debugging are empty."""
    guest = boot_fresh(append=("pksm=off",))
    index = dict(
        line.split() for line in guest.read_file("/sys/kernel/debug/pksm/index").splitlines()
    )
    assert set(index.values()) == {"0"}
    assert guest.read_file("/sys/kernel/debug/pksm/check") == "fine\n"
    ages = guest.read_file("/sys/kernel/debug/pksm/ages").split()
    assert sum(int(word) for word in ages if word.isdigit()) == 0
    # Nor is there anything to unmerge.
    guest.set_pksm("run", 2)
    guest.set_pksm("run", 1)
    report = pageops(guest, *FILL, "stat=end", "verify", procs=2, pages=64)
    assert report["end"]["merged_ptes"] == 2 * 64


@pytest.mark.needs_config("CONFIG_PKSM_DEBUG")
@pytest.mark.parametrize("word", ["pksm_secret", "pksm_secret=none"])
def test_a_secret_that_is_none_is_not_taken(boot_fresh: BootFresh, word: str) -> None:
    """It is said, and a random one is taken: everything merges."""
    guest = boot_fresh(append=(word,))
    assert "Malformed early option 'pksm_secret'" in guest.console()
    report = pageops(guest, *FILL, "stat=end", "verify", procs=2, pages=64)
    assert report["end"]["merged_ptes"] == 2 * 64


def test_without_memory_cgroups_there_are_no_domains_of_them(boot_fresh: BootFresh) -> None:
    """The domain memcg is refused, and stays what it was."""
    guest = boot_fresh(append=("cgroup_disable=memory",))
    with pytest.raises(OSError) as caught:
        guest.set_pksm("domain", "memcg")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert guest.read_file("/sys/kernel/mm/pksm/domain").strip() == "user"
    report = pageops(guest, *FILL, "stat=end", "verify", procs=2, pages=64)
    assert report["end"]["merged_ptes"] == 2 * 64

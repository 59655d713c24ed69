# SPDX-License-Identifier: GPL-2.0-only
"""Whoever waits for the engine can be interrupted, and nothing has happened then."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from lab import LOOKS, hold_memdup, release, settle
from linux_um.agent import PKSM_DIR
from linux_um.guest import Guest
from test_moments import HOLD

pytestmark = [pytest.mark.needs_pksm, pytest.mark.needs_config("CONFIG_PKSM_DEBUG")]

DEBUG = "/sys/kernel/debug/pksm"
# Files that wait for the engine, and what to write to them.
CONTROLS = {
    "run": "1", "scope": "madvise", "domain": "global", "rescan_seconds": "7",
    "settle_millisecs": "7",
}  # fmt: skip
READ = (f"{DEBUG}/index", f"{DEBUG}/ages", f"{DEBUG}/check", f"{PKSM_DIR}/stable_items")


@pytest.fixture
def held(guest: Guest) -> Iterator[Guest]:
    """Return a guest where run=2 is held while it has the engine's lock; let it go in the end."""
    guest.write_file(HOLD, "visit")
    job = guest.start(["sh", "-c", f"echo 2 > {PKSM_DIR}/run"])
    guest.sh(f"until grep -q held {HOLD}; do sleep 0.01; done")
    yield guest
    guest.write_file(HOLD, "off")
    assert job.wait(60).status == 0
    guest.set_pksm("run", 1)


def interrupt(guest: Guest, command: str) -> None:
    """Run a command that has to wait, and interrupt it.

    Not cat: it has the kernel write into the pipe (sendfile), which the agent then waits for.
    """
    job = guest.start(["sh", "-c", f"echo begun; {command}"])
    job.wait_output("begun")
    guest.sh("sleep 1")
    assert job.poll() is None, f"{command} did not wait: {job.stderr}"
    job.signal(signal.SIGINT)
    assert job.wait(60).status == 128 + signal.SIGINT


@pytest.mark.real_time  # that of a guest in which all wait would leap over hours
@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_waits_is_not_set_when_interrupted(held: Guest, name: str) -> None:
    """Each of those that take the engine's lock."""
    before = held.read_file(f"{PKSM_DIR}/{name}")
    interrupt(held, f"echo {CONTROLS[name]} > {PKSM_DIR}/{name}")
    assert held.read_file(f"{PKSM_DIR}/{name}") == before


@pytest.mark.real_time
@pytest.mark.parametrize("path", READ)
def test_a_reader_that_waits_can_be_interrupted(held: Guest, path: str) -> None:
    """The files of debugfs that go over all that the engine has, and a sum of two counters."""
    interrupt(held, f"exec dd if={path}")


@pytest.mark.real_time
@pytest.mark.needs_config("CONFIG_PKSM_KSM_COMPAT")
@pytest.mark.parametrize("name", ["stable_node_chains", "stable_node_dups"])
def test_who_has_chains_counted_can_be_interrupted(guest: Guest, name: str) -> None:
    """There are some, or there would be nothing to count."""
    guest.set_pksm("max_page_sharing", 2)
    pages = hold_memdup(guest, "--procs", "6", "--mib", "1", "--dup", "100")
    path = f"/sys/kernel/mm/ksm/{name}"
    assert int(guest.read_file(path)) > 0
    guest.write_file(HOLD, "visit")
    job = guest.start(["sh", "-c", f"echo 2 > {PKSM_DIR}/run"])
    guest.sh(f"until grep -q held {HOLD}; do sleep 0.01; done")
    interrupt(guest, f"exec dd if={path}")
    guest.write_file(HOLD, "off")
    assert job.wait(60).status == 0
    assert int(guest.read_file(path)) == 0
    release(pages)
    guest.set_pksm("run", 1)


def test_the_files_for_those_who_work_on_it_say_what_the_counters_say(guest: Guest) -> None:
    """index: each bucket has one length; ages: each page that waits or was read is in one place."""
    job = hold_memdup(guest, "--procs", "2", "--mib", "1", "--dup", "50", "--unique", "50")
    settle(guest)
    # One program reads them all, and makes no page meanwhile: a word from the host would
    # make the clock leap, and pksmd work.
    names = ("pages_unshared", "stable_nodes")
    files = (*(f"{PKSM_DIR}/{name}" for name in names), f"{DEBUG}/index", f"{DEBUG}/ages")
    for _ in range(LOOKS):
        lines = guest.run(["cat", *files, *files[: len(names)]]).stdout.splitlines()
        before, after = lines[: len(names)], lines[-len(names) :]
        if before == after:
            break
    assert before == after, f"{names} changed during each look"
    now = dict(zip(names, map(int, before), strict=True))
    rest = lines[len(names) : -len(names)]
    first = next(nr for nr, line in enumerate(rest) if line.startswith("level_0"))
    texts = [rest[:first], rest[first:]]
    index = {
        name: int(value)
        for name, value in map(str.split, texts[0])
    }
    lengths = {
        int(name.rpartition("_")[2]): nr
        for name, nr in index.items() if name.startswith("unstable_length_")
    }  # fmt: skip
    assert sum(lengths.values()) == index["unstable_buckets"]
    assert index["unstable_entries"] >= now["pages_unshared"] > 0
    # A length stands for all from it up to the next.
    assert max(lengths) <= index["unstable_longest"] < 2 * max(lengths)
    assert index["stable_nodes"] == now["stable_nodes"]
    ages = {
        words[0]: sum(map(int, words[1:]))
        for words in map(str.split, texts[1])
    }
    # Some of those in the index have been freed, and a few of their frames are new pages.
    in_index = ages["hashed"] + ages["watched"]
    assert now["pages_unshared"] <= in_index <= index["unstable_entries"]
    release(job)

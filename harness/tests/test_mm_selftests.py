# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's own selftests of mm, unmodified, find under PKSM what they find without.

They know nothing of page merging, and PKSM merges whatever it can meanwhile: all
settings are at their most eager, pksmd is woken all the time, and another program
holds a page of each byte, so that what a test fills with memset() has an equal. The results are compared
subtest by subtest with those of the stock kernel: what a machine cannot run or fails
by itself is so under both. In real time, where pksmd takes turns with what is tested.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import MOST_EAGER, BootFresh, check_structures, machine_of
from linux_um import build
from linux_um.guest import Completed, Guest
from linux_um.selftests import build_selftest
from linux_um.source import default_kernel
from linux_um.term import Term

pytestmark = [pytest.mark.needs_pksm, pytest.mark.real_time]

SECONDS = 600.0
SKIP = 4
# Some write files where they are, and some want a tmpfs.
WHERE = "/tmp/selftest"
HUGE_PAGES = 64
# How often at most the rounds of one are repeated until pages of it have been merged.
MOST_TURNS = 10
# One CPU has to be shared with pksmd; two take turns by themselves, and slowly, emulated.
POKE_MS, SLOW_POKE_MS = 1, 20
# A program asks twice what a page is, and gives up when it hears two things: between them
# a large folio may have been split, while which migration entries stand for its pages.
UNMATCHED = "read and ioctl return unmatched results"
MOST_UNMATCHED = 12
GOOD = ("ok", "done")
# The result of a line that sums up.
END = "end"

# What mrelease_test and pagemap_ioctl tell of a run beside the name of a subtest.
MEASURED = re.compile(r"(child with|Extra pages|extra thread faults) [\d.]+(?:MB| \([\d.]+%\))?")

Subtests = list[tuple[str, str]]


@dataclass(frozen=True)
class Selftest:
    """A program with its arguments, and with which settings it is run under PKSM.

    It is run ``rounds`` times, or once by a machine that is slow. ``merges`` says that pages of it are merged. ``excused`` has texts of subtests
    that may be skipped there, since what they prepare is undone before they come to their
    point, or here, since it is not.
    """

    command: str
    rounds: int = 1
    merges: bool = True
    excused: tuple[str, ...] = ()
    cpus: int | None = None
    settings: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """The name of the program."""
        return self.command.split()[0]


def case(
    command: str,
    *needs: str,
    settings: dict[str, int] | None = None,
    long: bool = False,
    **how: Any,
) -> Any:
    """Return a parameter: a program, and the symbols without which all of it is skipped.

    It is as well if it is *long*, and the machine may be emulated.
    """
    marks = [pytest.mark.needs_config(symbol) for symbol in needs]
    if long:
        marks.append(pytest.mark.fast_machine)
    return pytest.param(
        Selftest(command, settings=tuple((settings or {}).items()), **how),
        marks=marks,
        id=re.sub(r"[^\w-]+", "-", command),
    )


# Not khugepaged and split_huge_page_test: they look for huge pages where they made some,
# and PKSM splits what has an equal. test_large_folios.py has both.
SELFTESTS = [
    # MADV_PAGEOUT leaves alone what others map as well. MADV_COLLAPSE says EAGAIN for a page
    # that pksmd just looks at; and EINVAL, on the stock kernel, where fork has left nothing
    # writable: what was merged is given back writable.
    case("cow", rounds=3, excused=("MADV_PAGEOUT did not work", "MADV_COLLAPSE failed")),
    case("gup_longterm", rounds=3),
    case("gup_test -ct -F 0x1 0 19 0x1000"),
    case("mkdirty", rounds=10),
    case("madv_populate", rounds=3),
    case("mremap_test -t 4"),
    case("mremap_dontunmap", rounds=10),
    # All of them take a PC that is emulated many minutes.
    case("uffd-unit-tests", long=True),
    # The one above gives up before it comes to this, where an address is taken.
    case("uffd-unit-tests -f poison"),
    case("uffd-unit-tests -f move", "CONFIG_MEM_SOFT_DIRTY"),
    case("uffd-unit-tests -f wp-", "CONFIG_PTE_MARKER_UFFD_WP"),
    case("uffd-stress anon 20 4"),
    case("uffd-stress shmem-private 20 4"),
    case("uffd-stress hugetlb-private 32 4", "CONFIG_HUGETLBFS"),
    case("pagemap_ioctl", "CONFIG_PTE_MARKER_UFFD_WP"),
    # A huge page is split when half of it are zeroes.
    case("soft-dirty", "CONFIG_MEM_SOFT_DIRTY", excused=("test_hugepage",)),
    case("mlock-random-test", rounds=3),
    # It takes Rss for what is locked, and the zero page does not count there.
    case("mlock2-tests", rounds=3, settings={"use_zero_pages": 0}),
    case("map_populate", rounds=5),
    case("mrelease_test", rounds=3),
    case("map_fixed_noreplace", rounds=3, merges=False),
    case("mseal_test", rounds=3),
    case("mdwe_test", rounds=2),
    case("droppable", merges=False),
    case("migration -t private_anon -t private_anon_thp", "CONFIG_NUMA", cpus=4),
    case("transhuge-stress -d 3 64", "CONFIG_TRANSPARENT_HUGEPAGE"),
]


@functools.cache
def programs() -> Path:
    """Return the directory of the programs, built from the tree of the kernel."""
    term = Term()
    tree = build.ensure_tree("fast", default_kernel(), term=term)
    names = sorted({each.values[0].name for each in SELFTESTS})
    directory: Path = build_selftest(tree, "mm", names, term=term)[names[0]].parent
    return directory


def subtests(output: str) -> Subtests:
    """Return the subtests of a program and their results, in their order.

    In TAP, with what is being run from comments; and as userfaultfd's tests write them,
    "Testing THIS... done". A number that was measured is no part of a name; why a subtest
    was skipped is, where that is said just before.
    """
    found: Subtests = []
    context = reason = ""
    for line in output.splitlines():
        if match := re.match(r"# \[RUN\] *(.*)", line):
            context, reason = match[1], ""
        elif match := re.match(r"# (?!Totals:)(.*)", line):
            reason = re.sub(r"0x[\da-f]+|\d+", "N", match[1])
        elif match := re.match(r"(ok|not ok) \d+ ?(?:- )?(.*)", line):
            name, _, directive = f" {match[2]}".partition(" # ")
            result = directive.split()[0].lower() if directive else match[1]
            name = MEASURED.sub(r"\1 some", name)
            name = name.strip() or directive
            if result == "skip":
                name = f"{reason} {name}".strip()
            found.append((f"{context} {name}".strip(), result))
            reason = ""
        elif match := re.match(r"Testing (.*?)\.\.\. *(\w+)?", line):
            found.append((f"{context} {match[1]}".strip(), (match[2] or "none").lower()))
        elif match := re.match(r"bounces: (\d+), mode: ([a-z ]+),", line):
            found.append((f"{match[1]} {match[2]}", "done"))
        elif match := re.match(r"Bail out!|# Totals:.*", line):
            found.append((match[0], END))
    return found


def differences(stock: Subtests, pksm: Subtests, excused: tuple[str, ...]) -> list[str]:
    """Return where *pksm* is not as *stock*, but for what is excused from that."""
    if len(stock) != len(pksm):
        return [f"{len(stock)} subtests, and {len(pksm)} under PKSM"]
    found, left_out = [], False
    for one, other in zip(stock, pksm, strict=True):
        skipped = [each[0] for each in (one, other) if each[1] == "skip"]
        if any(text in name for text in excused for name in skipped):
            left_out = left_out or one != other
        elif one != other and not (left_out and one[1] == other[1] == END):
            found.append(f"{one}, and {other} under PKSM")
    return found


def prepare(boot_fresh: BootFresh, selftest: Selftest, **options: Any) -> Guest:
    """Boot a guest for a program."""
    if selftest.cpus is not None:
        options["cpus"] = selftest.cpus
    guest = boot_fresh(mem="1G", swap="64M", shares=[(str(programs()), "/share")], **options)
    guest.sh(
        f"mkdir -p {WHERE} && h=/proc/sys/vm/nr_hugepages && "
        f"if [ -e $h ]; then echo {HUGE_PAGES} > $h; fi"
    )
    return guest


def run(guest: Guest, selftest: Selftest) -> Completed:
    """Run a program once."""
    command = f"cd {WHERE} && exec /share/{selftest.command}"
    return guest.sh(command, timeout=SECONDS, check=False)


def run_matched(guest: Guest, selftest: Selftest) -> Completed:
    """Run a program until it has not given up for UNMATCHED, at most MOST_UNMATCHED times."""
    for _ in range(MOST_UNMATCHED):
        done = run(guest, selftest)
        if UNMATCHED not in done.stdout:
            break
    return done


def show(done: Completed) -> str:
    """Return all that a program has written."""
    return f"status {done.status}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("selftest", SELFTESTS)
def test_each_subtest_ends_as_on_the_stock_kernel(
    request: pytest.FixtureRequest, boot_fresh: BootFresh, selftest: Selftest
) -> None:
    slow = machine_of(request.config).slow
    stock = run(prepare(boot_fresh, selftest, profile="ksm"), selftest)
    expected = subtests(stock.stdout)
    assert stock.status != SKIP and any(result in GOOD for _, result in expected), (
        f"the stock kernel passes nothing: {show(stock)}"
    )

    guest = prepare(boot_fresh, selftest)
    for name, value in {**MOST_EAGER, **dict(selftest.settings)}.items():
        guest.set_pksm(name, value)
    guest.sh("renice -n -20 -p $(pidof pksmd)")
    decoy = guest.start(["everybyte", "--poke", str(SLOW_POKE_MS if slow else POKE_MS)])
    decoy.wait_output("holding")
    before = {name: guest.pksm(name) for name in ("pages_scanned", "pages_merged")}
    rounds = 1 if slow else selftest.rounds
    for turn in range(MOST_TURNS * rounds):
        # Where the clock does not wait for pksmd, a short program may have ended before it.
        merged = guest.pksm("pages_merged") > before["pages_merged"]
        if turn >= rounds and (merged or not selftest.merges):
            break
        done = run_matched(guest, selftest)
        found = differences(expected, subtests(done.stdout), selftest.excused)
        assert not found, f"{found}\nPKSM: {show(done)}\nstock: {show(stock)}"
        assert done.status == stock.status
    did = {name: guest.pksm(name) - number for name, number in before.items()}
    print(f"{selftest.command}: {len(expected)} subtests, {did}")
    assert did["pages_scanned"] > 0 and (did["pages_merged"] > 0 or not selftest.merges), did
    check_structures(guest)
    decoy.close_stdin()
    # Nobody has written to a page that was merged with one of another.
    assert decoy.wait().check().stdout == "holding\n"

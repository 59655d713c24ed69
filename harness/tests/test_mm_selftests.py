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
from lab import MOST_EAGER, BootFresh, check_structures
from linux_um import build
from linux_um.guest import Completed, Guest
from linux_um.selftests import build_selftest
from linux_um.source import default_kernel
from linux_um.term import Term

pytestmark = [pytest.mark.needs_pksm, pytest.mark.real_time]

SECONDS = 400.0
SKIP = 4
# Some write files where they are, and some want a tmpfs.
WHERE = "/tmp/selftest"
HUGE_PAGES = 64
POKE_MS = 1
# It uses a name of kselftest.h, which it does not include.
FLAGS = {"khugepaged": ["-DKSFT_SKIP=4"]}
GOOD = ("ok", "done")

Subtests = list[tuple[str, str]]


@dataclass(frozen=True)
class Selftest:
    """A program with its arguments, how often it is run under PKSM, and with which settings.

    ``merges`` says that pages of it are merged.
    """

    command: str
    rounds: int = 1
    merges: bool = True
    settings: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """The name of the program."""
        return self.command.split()[0]


def case(command: str, *needs: str, rounds: int = 1, merges: bool = True, **settings: int) -> Any:
    """Return a parameter: a program, and the symbols without which all of it is skipped."""
    return pytest.param(
        Selftest(command, rounds, merges, tuple(settings.items())),
        marks=[pytest.mark.needs_config(symbol) for symbol in needs],
        id=re.sub(r"[^\w-]+", "-", command),
    )


SELFTESTS = [
    case("cow", rounds=3),
    case("gup_longterm", rounds=3),
    case("gup_test -ct -F 0x1 0 19 0x1000"),
    case("mkdirty", rounds=10),
    case("madv_populate", rounds=3),
    case("mremap_test -t 4"),
    case("mremap_dontunmap", rounds=10),
    case("uffd-unit-tests"),
    case("uffd-stress anon 20 4"),
    case("uffd-stress shmem-private 20 4"),
    case("uffd-stress hugetlb-private 32 4", "CONFIG_HUGETLBFS"),
    case("pagemap_ioctl", "CONFIG_PTE_MARKER_UFFD_WP"),
    case("soft-dirty", "CONFIG_MEM_SOFT_DIRTY"),
    case("mlock-random-test", rounds=3),
    # It takes Rss for what is locked, and the zero page does not count there.
    case("mlock2-tests", rounds=3, use_zero_pages=0),
    case("map_populate", rounds=5),
    case("mrelease_test", rounds=3),
    case("map_fixed_noreplace", rounds=3, merges=False),
    case("mseal_test", rounds=3),
    case("mdwe_test", rounds=2),
    case("droppable", merges=False),
    case("migration -t private_anon -t private_anon_thp", "CONFIG_NUMA"),
    case("transhuge-stress -d 3 64", "CONFIG_TRANSPARENT_HUGEPAGE"),
    case("split_huge_page_test", "CONFIG_TRANSPARENT_HUGEPAGE"),
    case("khugepaged", "CONFIG_TRANSPARENT_HUGEPAGE"),
]


@functools.cache
def programs(name: str) -> Path:
    """Return the directory of the program *name*, built from the tree of the kernel."""
    term = Term()
    tree = build.ensure_tree("fast", default_kernel(), term=term)
    names = sorted({each.values[0].name for each in SELFTESTS} - set(FLAGS))
    if name in FLAGS:
        return build_selftest(tree, "mm", [name], term=term, flags=FLAGS[name])[name].parent
    return build_selftest(tree, "mm", names, term=term)[name].parent


def subtests(output: str) -> Subtests:
    """Return the subtests of a program and their results, in their order.

    In TAP, with what is being run from comments; as userfaultfd's tests write them,
    "Testing THIS... done"; and as khugepaged does.
    """
    found: Subtests = []
    context = ""
    for line in re.sub(r"\033\[\d+m|\r", "", output).splitlines():
        if match := re.match(r"(?:# \[RUN\]|Run test:) *(.*)", line):
            context = match[1]
        elif match := re.match(r"(ok|not ok) \d+ ?(?:- )?(.*)", line):
            name, _, directive = f" {match[2]}".partition(" # ")
            result = directive.split()[0].lower() if directive else match[1]
            found.append((f"{context} {name.strip() or directive}".strip(), result))
        elif match := re.match(r"(?:Testing )?(.*?)\.\.\. *(\w+)?", line):
            found.append((f"{context} {match[1]}".strip(), (match[2] or "none").lower()))
        elif match := re.match(r"bounces: (\d+), mode: ([a-z ]+),", line):
            found.append((f"{match[1]} {match[2]}", "done"))
        elif match := re.match(r"Bail out!|# Totals:.*", line):
            found.append((match[0], "end"))
    return found


def prepare(boot_fresh: BootFresh, profile: str | None, directory: Path) -> Guest:
    """Boot a guest for the programs of *directory*; with PKSM where there is no *profile*."""
    options = {} if profile is None else {"profile": profile}
    guest = boot_fresh(mem="1G", swap="64M", shares=[(str(directory), "/share")], **options)
    guest.sh(
        f"mkdir -p {WHERE} && h=/proc/sys/vm/nr_hugepages && "
        f"if [ -e $h ]; then echo {HUGE_PAGES} > $h; fi"
    )
    return guest


def run(guest: Guest, selftest: Selftest) -> Completed:
    """Run a program once."""
    command = f"cd {WHERE} && exec /share/{selftest.command}"
    return guest.sh(command, timeout=SECONDS, check=False)


def show(done: Completed) -> str:
    """Return all that a program has written."""
    return f"status {done.status}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("selftest", SELFTESTS)
def test_each_subtest_ends_as_on_the_stock_kernel(
    boot_fresh: BootFresh, selftest: Selftest
) -> None:
    directory = programs(selftest.name)
    stock = run(prepare(boot_fresh, "ksm", directory), selftest)
    expected = subtests(stock.stdout)
    assert stock.status != SKIP and any(result in GOOD for _, result in expected), (
        f"the stock kernel passes nothing: {show(stock)}"
    )

    guest = prepare(boot_fresh, None, directory)
    for name, value in {**MOST_EAGER, **dict(selftest.settings)}.items():
        guest.set_pksm(name, value)
    guest.sh("renice -n -20 -p $(pidof pksmd)")
    decoy = guest.start(["everybyte", "--poke", str(POKE_MS)])
    decoy.wait_output("holding")
    before = {name: guest.pksm(name) for name in ("pages_scanned", "pages_merged")}
    for _ in range(selftest.rounds):
        done = run(guest, selftest)
        assert subtests(done.stdout) == expected, f"PKSM: {show(done)}\nstock: {show(stock)}"
        assert done.status == stock.status
    did = {name: guest.pksm(name) - number for name, number in before.items()}
    print(f"{selftest.command}: {len(expected)} subtests, {did}")
    assert did["pages_scanned"] > 0 and (did["pages_merged"] > 0 or not selftest.merges), did
    check_structures(guest)
    decoy.close_stdin()
    # Nobody has written to a page that was merged with one of another.
    assert decoy.wait().check().stdout == "holding\n"

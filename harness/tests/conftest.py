# SPDX-License-Identifier: GPL-2.0-only
"""Fixtures of the guest tests: a fresh guest for each test, judged at its end.

A test asks for ``guest`` (one guest of the default kind) or for
``boot_fresh`` (any number, of any kind). When the test has passed, the
conservation laws of the engine's counters are checked in every guest that
still runs; leaving the guest looks for oopses in its log. When it has failed,
what matters of the kernel's log and its path are added to the report.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from _pytest.junitxml import xml_key

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lab  # noqa: E402
import where_table  # noqa: E402
from lab import BootFresh  # noqa: E402
from linux_um import build, kconfig  # noqa: E402
from linux_um.errors import LinuxUmError, UsageError  # noqa: E402
from linux_um.guest import MACHINES, Guest, boot_guest  # noqa: E402
from linux_um.mutants import share_of  # noqa: E402
from linux_um.options import default_arch, parse_size  # noqa: E402
from linux_um.outcome import excerpt  # noqa: E402
from linux_um.paths import repo_root  # noqa: E402
from linux_um.prove import state_of  # noqa: E402
from linux_um.source import default_kernel  # noqa: E402
from linux_um.term import Term  # noqa: E402

# How the names of properties begin that are shown at the end of a run.
FIGURE = "figure: "

_report_key = pytest.StashKey[pytest.TestReport]()
_guests_key = pytest.StashKey["list[Guest]"]()

MARKERS = (
    "needs_pksm: the guest's kernel must have PKSM",
    "needs_ksm: boots the profile with stock KSM",
    "needs_debug_info: gdb looks at the kernel, as it does in each test_gdb_*.py",
    "real_time: the guest runs in real time",
    "needs_smp: the guest has more than one CPU",
    "needs_config(symbol, ...): the guest's kernel has each of these symbols, !symbol: has it not",
    "only_profile(name, ...): says nothing of kernels of other profiles",
    "exact_time: the guest's clock must not depend on what else the host does",
    "fast_machine: takes many minutes where the machine may be emulated",
    "um_only: about User-Mode Linux itself, or what only its guests have",
    "time_travel: takes too long where the guest's clock is the host's",
    "regression(number): covers that class of bug (R1, R2, ...)",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --profile and --update-walkthrough, and let usage errors name the launcher."""
    if "LINUX_UM_PROFILE" in os.environ:
        parser.prog = "linux-um test"
        parser.extra_info = {"see": "./linux-um test --help"}
    parser.addoption(
        "--profile",
        default=os.environ.get("LINUX_UM_PROFILE", "fast"),
        help="kernel configuration of the guests (default: $LINUX_UM_PROFILE or fast)",
    )
    parser.addoption(
        "--arch",
        default=default_arch(),
        choices=kconfig.ARCHES,
        help="the machine of the guests (default: $LINUX_UM_ARCH or um)",
    )
    parser.addoption(
        "--share",
        metavar="K/N",
        default="1/1",
        help="run the Kth of N shares of the tests, so that several runs make up the whole",
    )
    parser.addoption(
        "--update-walkthrough",
        action="store_true",
        help="write the sessions that gdb prints now into gdb-scripts/walkthrough.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and let programs that tests start be interrupted.

    A shell's background job ignores SIGINT, and so would all that it starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Write down of which state of the tree the results are, for where_table.py."""
    results = session.config.stash.get(xml_key, None)
    if results is not None:
        state = state_of(repo_root(), repo_root()).name
        if state:
            results.add_global_property(where_table.STATE, state)


class Offer:
    """What the kernel and the guests of a profile and a machine have, for tests to ask for."""

    def __init__(self, profile: str, arch: str, *, build: bool = True) -> None:
        """Without *build* no kernel is made for what only a finished one can say."""
        self._profile, self._arch, self._build = profile, arch, build
        self._wishes = kconfig.wishes_of(profile, arch)

    def lacks(self, item: pytest.Item) -> str:
        """Return why *item* cannot run here, or nothing when it can.

        That the guests' clock is the host's comes last: no test would run for another one
        where something else is missing as well.
        """
        of_gdb = item.path.name.startswith("test_gdb_")
        of_gdb = of_gdb or item.get_closest_marker("needs_debug_info") is not None
        if item.get_closest_marker("needs_pksm") and self._wishes.get("CONFIG_PKSM") != "y":
            return f"profile {self._profile} has stock KSM in place of PKSM"
        if self._arch != kconfig.UM and item.get_closest_marker("um_only"):
            return "it is about User-Mode Linux itself"
        if self._arch != kconfig.UM and of_gdb:
            return "gdb looks at a process that is User-Mode Linux"
        only = item.get_closest_marker("only_profile")
        if only is not None and self._profile not in only.args:
            return f"it says nothing of a kernel of profile {self._profile}"
        machine = MACHINES[self._arch]
        if item.get_closest_marker("exact_time") and not machine.exact_time:
            return "the guest's time depends on what else the host does"
        if item.get_closest_marker("fast_machine") and machine.slow:
            return "it takes this machine many minutes"
        # What all tests of a file need comes before what one of them needs.
        for marker in reversed(list(item.iter_markers("needs_config"))):
            for symbol in marker.args:
                name = symbol.removeprefix("!")
                if self._has(name) == (name != symbol):
                    has = f"has no {name}" if name == symbol else f"has {name}"
                    return f"the kernel of profile {self._profile}, {self._arch}, {has}"
        if of_gdb and not kconfig.for_debugger(self._wishes):
            return f"the kernel of profile {self._profile} has no debug info"
        if item.get_closest_marker("needs_smp") and kconfig.cpus_of(self._profile, self._arch) == 1:
            return f"guests of profile {self._profile} have one CPU"
        travels = kconfig.time_travels(self._profile, self._arch)
        if item.get_closest_marker("time_travel") and not travels:
            return f"guests of profile {self._profile} cannot travel in time"
        return ""

    def _has(self, symbol: str) -> bool:
        """Return whether the kernel has *symbol*: as the profile wishes, or by Kconfig's choice."""
        if symbol in self._wishes:
            return self._wishes[symbol] == "y"
        return self._build and self._finished.get(symbol) == "y"

    @functools.cached_property
    def _finished(self) -> dict[str, str]:
        """The configuration of the finished kernel, which is made when it is not there."""
        try:
            image = build.ensure_image(
                self._profile, default_kernel(), term=Term(), arch=self._arch
            )
            return kconfig.parse(image.config.read_text())
        except LinuxUmError as error:
            raise pytest.UsageError(error.line()) from error


# Last: only what is left to be run may ask for a kernel.
@pytest.hookimpl(trylast=True)  # type: ignore[misc]
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave a share of the tests, and skip what the chosen profile or machine cannot run."""
    leave_share(config, items)
    offer = Offer(
        config.getoption("--profile"), config.getoption("--arch"),
        build=not config.option.collectonly,
    )  # fmt: skip
    for item in items:
        reason = offer.lacks(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def leave_share(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take out of *items* what is not of the share that was asked for.

    A share is in one piece, since tests of a file have guests in common.
    """
    try:
        (number, shares), _ = share_of([f"--share={config.getoption('--share')}"])
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    begin, end = (len(items) * part // shares for part in (number - 1, number))
    others = items[:begin] + items[end:]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = items[begin:end]


@pytest.hookimpl(hookwrapper=True)  # type: ignore[misc]
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep the outcome of the test for its fixtures; on failure add the logs."""
    outcome: Any = yield
    report: pytest.TestReport = outcome.get_result()
    if report.when == "call":
        item.stash[_report_key] = report
    if report.failed:
        for guest in item.stash.get(_guests_key, []):
            try:
                which, lines = excerpt(guest.own_log())
            except OSError as error:
                which, lines = "which cannot be read", [str(error)]
            title = f"log of a guest, {which} (all of it: {guest.rundir}/console.log)"
            report.sections.append((title, "\n".join(lines)))


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Return a function that records a figure of the test: a name, and a value with its unit."""
    return lambda name, value: record_property(FIGURE + name, value)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the figures of the tests that have passed."""
    found = [
        (name.removeprefix(FIGURE), value)
        for report in terminalreporter.stats.get("passed", [])
        for name, value in report.user_properties
        if name.startswith(FIGURE)
    ]
    if found:
        terminalreporter.section("figures")
        for name, value in sorted(found):
            terminalreporter.line(f"{name}: {value}")


def _failed(item: pytest.Item) -> bool:
    report = item.stash.get(_report_key, None)
    return report is None or report.failed


def with_shadow(size: int, cpus: int) -> int:
    """Return how many bytes a guest has to have for as much to be free under KASAN as else.

    Measured, of guests of 96 to 512 MiB with the profiles debug and smp-debug.
    """
    return size + size // 24 + (48 << 20) + (cpus - 1) * (22 << 20)


class GuestRack:
    """The guests of one test."""

    def __init__(self, item: pytest.Item, profile: str, arch: str) -> None:
        self._item = item
        self._profile = profile
        self._arch = arch
        self._open: list[tuple[AbstractContextManager[Guest], Guest, str]] = []
        guests: list[Guest] = []
        item.stash[_guests_key] = guests

    def boot(self, **options: Any) -> Guest:
        """Boot a guest; *options* are those of boot_guest().

        With a swap device it runs in real time: time travel does not wait for the
        host's disk, and leaps over minutes while a page is read. So does one that needs
        several CPUs: under time travel QEMU lets them take turns.
        """
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self._item.name).strip("-")
        options.setdefault("profile", self._profile)
        options.setdefault("arch", self._arch)
        real_time = "swap" in options or any(
            self._item.get_closest_marker(name) for name in ("real_time", "needs_smp")
        )
        options.setdefault("time_travel", False if real_time else None)
        options.setdefault("name", name)
        options.setdefault("timeout", lab.WORKLOAD_SECONDS)
        # KASAN takes what SLUB's own checks write around objects for a fault, and finds by
        # itself what they are asked for.
        if kconfig.wishes_of(options["profile"], options["arch"]).get("CONFIG_KASAN") == "y":
            if "mem" in options:
                cpus = kconfig.cpus_of(options["profile"], options["arch"])
                options["mem"] = str(with_shadow(parse_size(options["mem"]), cpus))
            words = options.get("append", ())
            words = (words,) if isinstance(words, str) else words
            options["append"] = [word for word in words if not word.startswith("slub_debug=")]
        manager = boot_guest(**options)
        guest = manager.__enter__()
        self._open.append((manager, guest, options["profile"]))
        self._item.stash[_guests_key].append(guest)
        return guest

    def close(self) -> None:
        """End the guests in reverse order; raises what was first found wrong."""
        first: BaseException | None = None
        for manager, guest, profile in reversed(self._open):
            problem: BaseException | None = None
            if _failed(self._item):
                problem = AssertionError("the test failed")
            elif kconfig.wishes_of(profile).get("CONFIG_PKSM") == "y" and guest.alive:
                try:
                    lab.check_laws(guest)
                except BaseException as error:  # noqa: BLE001 - raised again below
                    problem = first = first or error
            try:
                if problem is None:
                    manager.__exit__(None, None, None)
                else:
                    manager.__exit__(type(problem), problem, problem.__traceback__)
            except BaseException as error:  # noqa: BLE001 - raised again below
                if error is not problem:
                    first = first or error
        if first is not None:
            raise first


@pytest.fixture
def boot_fresh(request: pytest.FixtureRequest) -> Iterator[BootFresh]:
    """Return a function that boots a guest: boot_fresh(mem="128M", swap="256M", ...)."""
    config = request.config
    rack = GuestRack(request.node, config.getoption("--profile"), config.getoption("--arch"))
    yield rack.boot
    rack.close()


@pytest.fixture
def guest(boot_fresh: BootFresh) -> Guest:
    """Return a fresh guest of the default kind: 256 MiB, time travel, PKSM running."""
    return boot_fresh()

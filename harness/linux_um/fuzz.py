# SPDX-License-Identifier: GPL-2.0-only
"""Runs of fuzzmm, each in a fresh guest, and what becomes of those that fail.

A run is a seed or a list of operations. When fuzzmm has done them all and still holds
its memory, the laws of the engine's counters are checked: first with swap, then with
everything back in memory, at last when all its processes have ended.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import kconfig, laws
from .errors import BootError, HostError, LinuxUmError
from .fuzz_shrink import Shrinker, about, pages_of
from .guest import CONSOLE, MACHINES, BootOptions, Guest, boot
from .guest_setup import RAM_SWAP_DEVICE, memory_group, ram_swap
from .outcome import CommandFailed, GuestOops, outcome_of
from .paths import cache_root, ensure_dir
from .term import Term

# Where fuzzmm finds its list, and leaves the number of the operation it has come to.
SHARE = "/share"
SCRIPT, PROGRESS = "script", "progress"
GROUPS = ("/sys/fs/cgroup/fuzz", "/sys/fs/cgroup/fuzz2")
SWAP_MIB = 32
# Exit statuses of fuzzmm.
STATUS_WRONG, STATUS_ENV = 3, 1
# Of the whole command, when bytes or counters are wrong and the kernel lives.
EXIT_FOUND = 1
# The word of fuzzmm's line of JSON by which it is known.
_REPORT = '"tool": "fuzzmm"'
# Places on the swap device are not to be chosen at random, and addresses are not to be,
# either.
SETUP = f"""
echo 0 > /proc/sys/kernel/randomize_va_space
{ram_swap(SWAP_MIB, rotational=True)} || exit {STATUS_ENV}
{memory_group(" ".join(GROUPS))} || exit {STATUS_ENV}
exec fuzzmm --group {" --group ".join(GROUPS)} --progress {SHARE}/{PROGRESS} --hold "$@"
"""
# The order of pksmd's work does not depend on chance, either.
SECRET = "pksm_secret=1"


class FuzzError(LinuxUmError):
    """fuzzmm could not be run."""


@dataclass(frozen=True)
class Result:
    """What became of one run.

    ``kind`` is empty when all went well, else what failed: "wrong byte", "laws", or an
    outcome of the guest. ``said`` is what a person needs to see of it.
    """

    kind: str
    said: str
    exit_status: int
    report: dict[str, Any]
    seconds: float
    reached: int
    console: str = ""

    @property
    def operation(self) -> int:
        """The operation that was carried out last, as far as is known."""
        wrong = self.report.get("wrong")
        return int(wrong["operation"]) if wrong else self.reached


@dataclass
class Fuzzer:
    """Boots guests of one sort and lets fuzzmm run in them; *sizes* are options of it."""

    options: BootOptions
    sizes: Sequence[str] = ()
    term: Term = field(default_factory=Term)
    timeout: float = 600.0

    def seed(self, seed: int, ops: int, shown: Callable[[int], None] = lambda _: None) -> Result:
        """Run *ops* operations of *seed*; *shown* is told how far it has come."""
        return self._run(["--seed", str(seed), "--ops", str(ops)], None, shown)

    def script(self, lines: Sequence[str], shown: Callable[[int], None] = lambda _: None) -> Result:
        """Run a list of operations."""
        return self._run(["--from-script", f"{SHARE}/{SCRIPT}"], lines, shown)

    def list_of(self, seed: int, ops: int) -> list[str]:
        """Return the operations of a seed, after the line with the sizes."""
        with self._guest(None) as (guest, _):
            argv = ["fuzzmm", "--print-script", "--seed", str(seed), "--ops", str(ops)]
            done = guest.run([*argv, *self.sizes], timeout=self.timeout)
        return done.stdout.splitlines()

    @contextmanager
    def _guest(self, lines: Sequence[str] | None) -> Iterator[tuple[Guest, Path]]:
        with tempfile.TemporaryDirectory(prefix="linux-um-fuzz-") as name:
            share = Path(name)
            if lines is not None:
                (share / SCRIPT).write_text("".join(f"{line}\n" for line in lines))
            options = replace(self.options, shares=[(name, SHARE)])
            if MACHINES[options.arch].repeatable:
                options = replace(options, append=(*options.append, SECRET))
            with boot(options, term=self.term) as guest:
                yield guest, share

    def _run(
        self, arguments: list[str], lines: Sequence[str] | None, shown: Callable[[int], None]
    ) -> Result:
        begun = time.monotonic()
        kind, said, status, console = "", "", 0, ""
        report: dict[str, Any] = {}
        reached = 0

        def look(share: Path) -> None:
            nonlocal reached
            reached = max(reached, _number_in(share / PROGRESS))
            shown(reached)

        try:
            with self._guest(lines) as (guest, share):
                try:
                    kind, said = self._in_guest(guest, arguments, report, lambda: look(share))
                finally:
                    look(share)
                console = guest.console()
        except (BootError, HostError, FuzzError):
            raise
        except LinuxUmError as error:
            # What is wrong with a byte says more than what the log says afterwards.
            if not kind:
                kind, said, status = outcome_of(error).value, error.line(), error.exit_status
            console = getattr(error, CONSOLE, console)
        if kind and not status:
            status = EXIT_FOUND
        seconds = time.monotonic() - begun
        return Result(kind, said, status, report, seconds, reached, console)

    def _in_guest(
        self,
        guest: Guest,
        arguments: list[str],
        report: dict[str, Any],
        look: Callable[[], None],
    ) -> tuple[str, str]:
        """Return what failed, and what there is to be said; fill *report*."""
        argv = ["sh", "-c", SETUP, "sh", *arguments]
        job = guest.start([*argv, *(self.sizes if "--seed" in arguments else ())])

        def done() -> bool:
            look()
            # Whoever oopses may hold a lock for ever: do not wait for the others then.
            if guest.findings():
                return True
            return _REPORT in job.stdout and job.stdout.endswith("\n") or job.status is not None

        guest.wait_for(
            done,
            time.monotonic() + self.timeout,
            f"fuzzmm did not end within {self.timeout:g} s",
        )
        if guest.findings():
            first = guest.findings()[0]
            raise GuestOops(f"the kernel's log has a {first.kind}: {first.text}", "see the trace")
        if _REPORT in job.stdout:
            report.update(json.loads(job.stdout.strip().splitlines()[-1]))
        if not report:
            raise FuzzError(f"fuzzmm cannot run (status {job.status}): {job.stderr.strip()}")
        if report["ok"]:
            try:
                self._check(guest, report)
            except (AssertionError, CommandFailed) as error:
                return "laws", str(error)
            job.close_stdin()
        ended = job.wait(self.timeout)
        if not report["ok"] or ended.status == STATUS_WRONG:
            return "wrong byte", ended.stderr.strip()
        ended.check()
        if self.has_laws():
            try:
                laws.check_laws(guest)
            except (AssertionError, CommandFailed) as error:
                return "laws", f"after the end of all processes: {error}"
        return "", ""

    def has_laws(self) -> bool:
        """Return whether the guests' kernel has PKSM."""
        wishes = kconfig.wishes_of(self.options.profile, self.options.arch)
        return wishes.get("CONFIG_PKSM") == "y"

    def _check(self, guest: Guest, report: dict[str, Any]) -> None:
        """While all memory is held: with swap as it is, and without."""
        if self.has_laws():
            for name, value in (("run", 1), ("settle_millisecs", 5), ("max_cpu", 100)):
                guest.set_pksm(name, value)
            laws.check_laws(guest)
        guest.sh(f"swapoff {RAM_SWAP_DEVICE}")
        if self.has_laws():
            laws.check_laws(guest)
            report["settled"] = laws.settle(guest)


def _number_in(path: Path) -> int:
    try:
        return int(path.read_text() or 0)
    except (OSError, ValueError):
        return 0


@dataclass(frozen=True)
class Find:
    """A failure, made as small as could be, and where it was put."""

    directory: Path
    lines: list[str]
    tries: int
    repeats: bool


def keep(
    fuzzer: Fuzzer,
    result: Result,
    lines: Sequence[str],
    name: str,
    *,
    shrink: bool,
    seconds: float,
    term: Term,
) -> Find:
    """Put a failed list of operations away, with the log; shrink it, for *seconds* at most."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    directory = ensure_dir(cache_root() / "fuzz" / f"{stamp}-{name}")
    lines = list(lines)
    sizes, ops = lines[:1], lines[1:]
    # Nothing behind the failure can have to do with it.
    if result.kind == "wrong byte":
        ops = ops[: result.operation + 1]
    _save(directory, result, [*sizes, *ops])
    if not shrink:
        return Find(directory, [*sizes, *ops], 0, False)
    limit = time.monotonic() + seconds
    smallest = result

    with term.step("shrinking the list of operations") as step:

        def fails(part: Sequence[str]) -> bool:
            nonlocal smallest
            step.update(f"{len(part)} operations")
            other = fuzzer.script([*sizes, *part])
            if other.kind != result.kind:
                return False
            smallest = other
            return True

        shrinker = Shrinker(fails, lambda: time.monotonic() > limit)
        if not fails(ops):
            return Find(directory, [*sizes, *ops], 1, False)
        ops = shrinker.shrink(ops, guesses(ops, smallest))
    _save(directory, smallest, [*sizes, *ops])
    return Find(directory, [*sizes, *ops], shrinker.tries + 1, True)


def guesses(ops: Sequence[str], result: Result) -> list[list[str]]:
    """Return parts of *ops* that may be enough for a wrong byte, from large ones to small.

    fuzzmm names the last operations on its page, which may have been moved meanwhile.
    """
    wrong = result.report.get("wrong") or {}
    pages = {int(wrong["page"])} if "page" in wrong else set()
    named = [line for line in result.said.splitlines() if line.startswith("  ")]
    for line in named:
        pages.update(pages_of(line))
    if not pages:
        return []
    close = about(ops, pages)
    return [close, *(close[-n:] for n in (2000, 500, 100)), about(ops[-2000:], pages)]


def _save(directory: Path, result: Result, lines: Sequence[str]) -> None:
    (directory / SCRIPT).write_text("".join(f"{line}\n" for line in lines))
    (directory / "said").write_text(result.said + "\n")
    (directory / "console.log").write_text(result.console)
    (directory / "report.json").write_text(json.dumps(result.report, indent=1) + "\n")

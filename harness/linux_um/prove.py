# SPDX-License-Identifier: GPL-2.0-only
"""The command ``prove``: all the evidence there is, run part by part, and one page of it.

A part is a command of this launcher that anybody can type. Its output is kept; the page
says of each part what was run, on what, how it ended and what it printed at its end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .accel import ENV_ACCEL
from .commands_run import ENV_PROFILE
from .coverage import ENV_COVERAGE
from .errors import LinuxUmError, UsageError
from .mutants import PARTS
from .options import ENV_ARCH
from .paths import repo_root
from .source import ENV_KERNEL
from .term import Step, Term, format_seconds

DEFAULT_DIRECTORY = "proof"
JSON_NAME, PAGE_NAME = "prove.json", "proven.md"
# How many lines of a part's end the page shows; and where it begins, if there is such a line.
SHOWN_LINES = 6
MOST_LINES = 40
_BEGINS = re.compile(r"=+ figures =+$")
_TESTS = "harness/tests"
_LOOK_SECONDS = 0.5
# How long a part may take to end its guests when it is told to.
_END_SECONDS = 60.0
# What would change what a part does, without a word in its command.
NOT_INHERITED = (
    ENV_PROFILE, ENV_KERNEL, ENV_ARCH, ENV_ACCEL, ENV_COVERAGE, "KERNEL_SRC", "LINUX_UM_TARBALL",
    "CC", "PYTEST_ADDOPTS",
)  # fmt: skip
# What evidence is about; and what is made from evidence, and proves nothing.
_WORKS = (*PARTS, ":!harness/tests/where.md")

EPILOG = f"""\
Leaves {PAGE_NAME} (the page), {JSON_NAME}, and a log of each part. Parts that passed on
the same engine, hooks, guest and harness are not run again with --resume.
Exit status: 0; 1 when a part has failed.

  ./linux-um prove --list
  ./linux-um prove --short           # the parts that have a short form
  ./linux-um prove                   # everything: many hours
  ./linux-um prove --only soak,fuzz"""


class ProveError(LinuxUmError):
    """A part could not be run at all, or the report not be written."""


@dataclass(frozen=True)
class Part:
    """One piece of evidence: the launcher's words that bring it, and those of a short form.

    Without words for the short form the part is left out of it.
    """

    name: str
    shows: str
    words: tuple[str, ...]
    short: tuple[str, ...] = ()


def _tests(*names: str) -> tuple[str, ...]:
    return tuple(f"{_TESTS}/test_{name}.py" for name in names)


def parts(directory: Path) -> list[Part]:
    """Return all parts, the quickest to fail first; reports of theirs go into *directory*."""
    soak = ("soak", "-o", str(directory / "soak"))
    coverage = ("cov", "-o", str(directory / "coverage"))
    selftests = ("test", *_tests("kselftest", "ksm_selftests", "mm_selftests", "kunit"))
    load = ("test", *_tests("stress_ng"))
    faults = ("test", *_tests("fault_injection"))
    attacks = ("side_channel", "security", "domain", "regression_storm", "content")
    security = ("test", *_tests(*attacks))
    bad = ("test", *_tests(
        "unit_host", "unit_build", "unit_intact", "unit_source", "words", "workload_usage",
        "machine", "bad_machine", "bad_host", "host_limits", "run_control", "sysfs_nonsense",
        "ksm_compat", "rescan", "pace", "boot_param", "top", "gdb_session",
    ))  # fmt: skip
    meetings = _tests(
        "smp", "churn", "moments", "pins", "fork", "cow", "swap", "migrate", "intake",
        "regression_mm", "run_control",
    )  # fmt: skip
    newest = ("--kernel", "7.3")
    # Guests with two CPUs wait for each other most of the time.
    smp = (*newest, "--profile", "smp", "-n", "4")
    smp_ksm = (*newest, "--profile", "smp-ksm")
    return [
        Part("suite", "every promise, in the default profile", ("test",), ("test",)),
        Part("control", "what applies to stock KSM, on stock KSM", ("test", "--profile", "ksm")),
        Part("bad-input", "nonsense gets one line and leaves nothing behind", bad, bad),
        Part("faults", "each allocation fails, in turn and at random", faults, faults),
        Part("selftests", "the kernel's own tests say the same as on stock KSM", selftests,
             selftests),
        Part("load", "stress-ng verifies the same as on stock KSM", load, load),
        Part("security", "what others can learn, and what they can exhaust", security, security),
        Part("fuzz", "random operations against a model of every byte",
             ("fuzz", "--ops", "1000000"), ("fuzz", "--ops", "40000")),
        Part("soak", "memory and counters are flat, cycle after cycle", (*soak, "--cycles", "300"),
             (*soak, "--cycles", "12")),
        Part("debug", "the suite under KASAN, lockdep, DEBUG_VM, kmemleak and UBSAN",
             ("test", "--profile", "debug")),
        Part("fuzz-debug", "random operations under the kernel's checkers",
             ("fuzz", "--profile", "debug", "--ops", "1000000"),
             ("fuzz", "--profile", "debug", "--ops", "10000")),
        Part("soak-debug", "the soak under the kernel's checkers",
             ("soak", "--profile", "debug", "-o", str(directory / "soak-debug"))),
        Part("mutants", "each broken engine is found out", ("test", "--mutants")),
        Part("coverage", "what of the engine the suite executes", coverage),
        Part("smp", "two CPUs, Linux 7.3", ("test", *smp),
             ("test", *smp, *_tests("smp", "kunit", "cow", "counters"))),
        Part("newest", "Linux 7.3, in the default profile", ("test", *newest)),
        Part("smp-ksm", "stock KSM loses no byte on two CPUs, with the patches to arch/um",
             ("test", *smp_ksm, *_tests("smp"))),
        Part("smp-mutants", "what only two CPUs can find out, broken",
             ("test", *newest, "--mutants", "smp-*")),
        Part("ksm-mutants", "without the first of them stock KSM loses bytes as well",
             ("test", *smp_ksm, "--mutants", "smp-no-shootdown")),
        Part("pc", "x86_64 under QEMU: large folios, NUMA, poison, hotplug",
             ("test", "--arch", "x86_64")),
        Part("pc-newest", "x86_64 under QEMU, Linux 7.3",
             ("test", "--arch", "x86_64", *newest, *_tests("pte_bits", "large_folios", "smp"))),
        Part("pc-mutants", "each engine broken on x86_64 is found out",
             ("test", "--arch", "x86_64", "--mutants")),
        Part("races", "two CPUs under KCSAN",
             ("test", "--arch", "x86_64", "--profile", "kcsan", "-n", "1", *meetings)),
        Part("smp-debug", "two CPUs under KASAN and lockdep, Linux 7.3",
             ("test", *newest, "--profile", "smp-debug", "-n", "1", *meetings)),
    ]  # fmt: skip


@dataclass(frozen=True)
class State:
    """A state of the tree.

    ``name`` is the commit, and a hash of what is changed; ``works`` a hash of the contents
    of what evidence is about, which no change of a document is. Both are empty without git.
    """

    name: str
    works: str


@dataclass(frozen=True)
class Evidence:
    """What became of a part; ``end`` is what it printed last, seconds are wall-clock time.

    ``state`` and ``works`` are those of :class:`State`.
    """

    name: str
    shows: str
    command: str
    status: int
    seconds: float
    when: str
    state: str
    works: str
    end: list[str]

    @property
    def passed(self) -> bool:
        """Whether the command ended with status 0."""
        return self.status == 0

    def stands(self, command: str, state: State) -> bool:
        """Return whether *command* need not be run again on *state*; an unknown one is no state."""
        same = (self.command, self.works) == (command, state.works)
        return self.passed and bool(state.works) and same


def add_parsers(subparsers: Any) -> None:
    """Add the parser of this module's command."""
    parser = subparsers.add_parser(
        "prove",
        help="all the evidence, part by part, and a page of it",
        description="Run the suite in the profiles and on the machines that --list names, in some "
        "of them as a whole and in others a few files of it, the mutants, fault injection, "
        "coverage, the kernel's selftests, stress-ng, the fuzzer and the soak, each by its own "
        "command; leave a page that says what was run, how it ended, and what it printed last.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="short forms, and no part without one")
    parser.add_argument("--only", metavar="PART,...", help="only these parts, see --list")
    parser.add_argument("--list", action="store_true", help="say what the parts are, run none")
    parser.add_argument(
        "--resume", action="store_true", help="keep what has passed on this state of the tree"
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=Path(DEFAULT_DIRECTORY),
        help="where the report goes (default %(default)s)",
    )  # fmt: skip
    parser.set_defaults(handler=prove_command)


def prove_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um prove``: return 0 when all parts have passed, or 1."""
    directory: Path = arguments.output
    chosen = choose(parts(from_root(directory)), arguments.only, short=arguments.short)
    if arguments.list:
        for part, words in chosen:
            print(f"{part.name:12} {part.shows}\n{'':12} {command_of(words)}")
        return 0
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProveError(f"--output {directory}: {error.strerror}", "name another") from error
    state = state_of(repo_root(), directory)
    before = read(directory / JSON_NAME) if (directory / JSON_NAME).exists() else []
    found = {each.name: each for each in before}
    for part, words in chosen:
        old = found.get(part.name)
        if arguments.resume and old is not None and old.stands(command_of(words), state):
            # What it shows may be said in other words by now.
            found[part.name] = replace(old, shows=part.shows)
            print(line_of(old, term, note="kept"), flush=True)
            continue
        with term.step(f"{part.name}: {part.shows}") as step:
            found[part.name] = run(part, words, directory / f"{part.name}.log", state, step)
        now = state_of(repo_root(), directory)
        if now != state:
            # What was run is neither the one nor the other.
            changed = replace(found[part.name], state="changed meanwhile", works="")
            found[part.name] = changed
            state = now
        print(line_of(found[part.name], term), flush=True)
        keep(order(found.values(), directory), directory)
    keep(order(found.values(), directory), directory)
    results = [found[part.name] for part, _ in chosen]
    failed = [each.name for each in results if not each.passed]
    print(f"{len(results) - len(failed)} of {len(results)} parts passed; {directory / PAGE_NAME}")
    return 1 if failed else 0


def from_root(directory: Path) -> Path:
    """Return *directory* as a command names it that is typed where ``linux-um`` lies."""
    absolute = directory.absolute()
    inside = absolute.is_relative_to(repo_root())
    return absolute.relative_to(repo_root()) if inside else absolute


def choose(
    known: Sequence[Part], only: str | None, *, short: bool
) -> list[tuple[Part, tuple[str, ...]]]:
    """Return the parts that are asked for with the words of each. Raises UsageError."""
    names = [] if only is None else only.split(",")
    for name in names:
        if name not in {part.name for part in known}:
            raise UsageError(
                f"--only {name}: there is no such part",
                f"there are: {', '.join(part.name for part in known)}",
            )
    chosen = [part for part in known if only is None or part.name in names]
    if not short:
        return [(part, part.words) for part in chosen]
    return [(part, part.short or part.words) for part in chosen if part.short or names]


def command_of(words: Sequence[str]) -> str:
    """Return what a person types for a part."""
    return shlex.join(["./linux-um", *words])


def state_of(root: Path, report: Path) -> State:
    """Return what names the state of the tree at *root*.

    What lies in the directory *report* does not count: each part adds to it.
    """
    inside = report.absolute()
    besides = ["--", "."]
    if inside != root and inside.is_relative_to(root):
        besides.append(f":(exclude,literal){inside.relative_to(root)}")

    def git(*words: str) -> bytes:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, check=True
        ).stdout

    def contents(*words: str) -> bytes:
        names = sorted(filter(None, git("ls-files", "-z", *words).split(b"\0")))
        paths = [(name, root / os.fsdecode(name)) for name in names]
        return b"".join(
            b"%s\0%s" % (name, hashlib.sha256(path.read_bytes()).digest())
            for name, path in paths
            if path.is_file()
        )

    try:
        commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
        strangers = contents("--others", "--exclude-standard", *besides)
        changed = git("diff", "HEAD", "--binary", *besides) + strangers
        works = contents("--cached", "--others", "--exclude-standard", "--", *_WORKS)
    except (OSError, subprocess.CalledProcessError):
        return State("", "")
    name = f"{commit}+{_short(changed)}" if changed else commit
    return State(name, _short(works) if works else "")


def _short(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:12]


def run(part: Part, words: Sequence[str], log: Path, state: State, step: Step) -> Evidence:
    """Run a part and return what became of it; *step* shows its latest line.

    Raises ProveError when it cannot be started.
    """
    begun, when = time.monotonic(), time.strftime("%Y-%m-%d %H:%M")
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(
                [repo_root() / "linux-um", *words],
                env=environment(),
                # Words such as harness/tests/... are typed there.
                cwd=repo_root(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for this process, which ends the other in order.
                start_new_session=True,
            )
    except OSError as error:
        raise ProveError(f"cannot run {part.name}: {error.strerror}", "mend that") from error
    try:
        while True:
            try:
                status = process.wait(_LOOK_SECONDS)
                break
            except subprocess.TimeoutExpired:
                lines = end_of(log, 1)
                step.update(lines[-1] if lines else "")
    except BaseException:
        # It ends its guests.
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_SECONDS)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        raise
    return Evidence(
        name=part.name,
        shows=part.shows,
        command=command_of(words),
        status=status if status >= 0 else 128 - status,
        seconds=time.monotonic() - begun,
        when=when,
        state=state.name,
        works=state.works,
        end=shown_of(end_of(log, MOST_LINES)),
    )


def environment() -> dict[str, str]:
    """Return the environment of a part: its words alone say what it does."""
    kept = {name: text for name, text in os.environ.items() if name not in NOT_INHERITED}
    return {**kept, "LINUX_UM_PYTHON": sys.executable, "TERM": "dumb"}


def end_of(log: Path, lines: int) -> list[str]:
    """Return the last lines of a log that have something on them."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    found = [line.rstrip() for line in text.splitlines() if line.strip()]
    return found[-lines:]


def shown_of(lines: Sequence[str]) -> list[str]:
    """Return those of the last lines that the page shows: the figures and all behind, or some."""
    for place, line in enumerate(lines):
        if _BEGINS.match(line):
            return list(lines[place:])
    return list(lines[-SHOWN_LINES:])


def line_of(each: Evidence, term: Term, *, note: str = "") -> str:
    """Return a line on a part for the terminal."""
    colours = os.isatty(1) and term.colour
    verdict = "passed" if each.passed else f"FAILED ({each.status})"
    if colours:
        verdict = f"\033[{32 if each.passed else 31}m{verdict}\033[0m"
    last = each.end[-1].strip("= ") if each.end else ""
    return f"{each.name:12} {note or verdict}, {format_seconds(each.seconds)}: {last}"


def order(found: Iterable[Evidence], directory: Path) -> list[Evidence]:
    """Return the evidence in the order of the parts."""
    by_name = {each.name: each for each in found}
    return [by_name[part.name] for part in parts(directory) if part.name in by_name]


def keep(found: Sequence[Evidence], directory: Path) -> None:
    """Write the report as far as it has come. Raises ProveError when that fails."""
    about = {
        "host": f"{cpus()} CPUs, Linux {platform.release()}",
        "parts": [asdict(each) for each in found],
    }
    try:
        (directory / JSON_NAME).write_text(json.dumps(about, indent=1) + "\n")
        (directory / PAGE_NAME).write_text(page(found, str(about["host"])))
    except OSError as error:
        raise ProveError(f"cannot write the report: {error}", "mend that") from error


def cpus() -> int:
    """Return how many CPUs of the host this process may use."""
    return len(os.sched_getaffinity(0))


def read(path: Path) -> list[Evidence]:
    """Return what an earlier run has left. Raises UsageError for a file that is none."""
    try:
        document: Mapping[str, Any] = json.loads(path.read_text())
        return [Evidence(**each) for each in document["parts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: {error}", "remove it, or name another --output") from error


HEAD = """\
# How this was proven

Made by `./linux-um prove` from what its parts printed. Each is a command that can be
typed; one that failed is here as such.

"""


def page(found: Sequence[Evidence], host: str) -> str:
    """Return the page: a table of the parts, and how each of them ended."""
    lines = [HEAD + f"Machine: {host}.", ""]
    lines += ["| part | what it shows | command | result | time | state |"]
    lines += ["|---|---|---|---|---|---|"]
    for each in found:
        verdict = "passed" if each.passed else f"**FAILED** ({each.status})"
        lines.append(
            f"| {each.name} | {each.shows if each.passed else 'nothing'} "
            f"| `{each.command}` | {verdict} "
            f"| {format_seconds(each.seconds)} | {each.when}, {each.state or 'no git'} |"
        )
    for each in found:
        lines += ["", f"## {each.name}", "", "```", f"$ {each.command}"]
        lines += [each_line[:160] for each_line in each.end]
        lines += ["```"]
    return "\n".join(lines) + "\n"

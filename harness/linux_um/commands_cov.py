# SPDX-License-Identifier: GPL-2.0-only
"""The command ``cov``: the suite on a kernel that counts, and a report of what has run."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from . import build, coverage, coverage_report, kconfig, packages, patches, paths, rootfs
from .commands_run import ENV_PROFILE, check_tests, pytest_command, run_pytest
from .coverage import CoverageError
from .coverage_report import FileShare, Verdict
from .errors import UsageError
from .guest import MACHINES
from .options import ENV_ARCH, add_kernel_options, finite
from .source import ENV_KERNEL
from .term import PROGRAM, Term

PROFILE = "cov"
DEFAULT_DIRECTORY = "coverage-report"
COUNTS = "counts"
COVERAGE_LOCK = "coverage"
LINES_PERCENT, BRANCHES_PERCENT = 95.0, 85.0
# A threshold is missed, or the list of what is not covered is not true.
EXIT_MISSED = 72
# How much is shown of what is in the file NOT_LISTED.
SHOWN = 20
NOT_LISTED = "not-listed.txt"


def add_parsers(subparsers: Any) -> None:
    """Add the parser of this module's command."""
    parser = subparsers.add_parser(
        "cov",
        help="which lines and branches of the engine the suite reaches",
        usage=f"{PROGRAM} cov [OPTION...] [PYTEST ARGUMENT...]",
        description="Run the suite, or the part of it that PYTEST ARGUMENTs choose, on a kernel "
        "that counts how often each line and branch of the engine and of the hooks has run. "
        "Prints the figures of each file, and leaves a report in HTML. Lines that are not "
        "covered have to be listed, with the reason, in harness/tests/uncovered.txt. Arguments "
        "that this command does not know are pytest's own.",
        epilog=f"Exit status: pytest's own when it is not 0; else {EXIT_MISSED} a threshold is "
        "missed, or the list is not true; 0 when all is well.",
        allow_abbrev=False,
    )
    add_kernel_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=Path(DEFAULT_DIRECTORY),
        help="where the report and the counts go (default %(default)s)",
    )  # fmt: skip
    for what, default in (("lines", LINES_PERCENT), ("branches", BRANCHES_PERCENT)):
        parser.add_argument(
            f"--{what}", metavar="PERCENT", type=finite, default=default,
            help=f"how many {what} have to be covered (default %(default)g)",
        )  # fmt: skip
    parser.add_argument(
        "--more", action="store_true",
        help="add to the counts in DIR, also to those of another machine (--arch)",
    )  # fmt: skip
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing: the report of the counts in DIR"
    )
    parser.set_defaults(handler=cov_command, profile=PROFILE, pytest_arguments=[])


def cov_command(arguments: argparse.Namespace, term: Term) -> int:
    """``linux-um cov``: run the suite, report; return the exit status."""
    for what in ("lines", "branches"):
        if not 0 <= getattr(arguments, what) <= 100:
            raise UsageError(f"--{what} {getattr(arguments, what):g}", "give 0 to 100 per cent")
    if kconfig.wishes_of(arguments.profile, arguments.arch).get(coverage.SYMBOL) != "y":
        raise UsageError(
            f"the kernel of profile {arguments.profile} counts nothing", "leave out --profile"
        )
    packages.ensure("coverage", term=term)
    directory = arguments.output.absolute()
    counts = directory / COUNTS
    status = 0
    if not arguments.report_only:
        status = _run_suite(arguments, counts, term)
        term.info(f"the suite ended with status {status}")
    recipe = build.read_recipe(
        arguments.profile, arguments.kernel, term=term, arch=arguments.arch
    )
    missed = report(recipe, directory, (arguments.lines, arguments.branches), term)
    return status or (EXIT_MISSED if missed else 0)


def _run_suite(arguments: argparse.Namespace, counts: Path, term: Term) -> int:
    """Run the suite on guests that leave their counts; return pytest's exit status."""
    given = list(arguments.pytest_arguments)
    check_tests(given)
    packages.ensure("test", term=term)
    packages.ensure(*MACHINES[arguments.arch].stages, term=term)
    build.ensure_image(arguments.profile, arguments.kernel, term=term, arch=arguments.arch)
    rootfs.ensure_rootfs(term=term, kernel=arguments.kernel)
    if not arguments.more:
        shutil.rmtree(counts, ignore_errors=True)
    paths.ensure_dir(counts)
    environment = {
        **os.environ,
        ENV_PROFILE: arguments.profile,
        ENV_KERNEL: arguments.kernel,
        ENV_ARCH: arguments.arch,
        coverage.ENV_COVERAGE: str(counts),
    }
    return run_pytest(pytest_command(given), environment)


def report(
    recipe: build.Recipe, directory: Path, bounds: tuple[float, float], term: Term
) -> list[str]:
    """Write the report of the counts in *directory*, and print what it comes to.

    *bounds* are the per cents of lines and of branches that are asked for. Returns a
    text for whatever is not as it should be. Raises CoverageError without counts.
    """
    wanted, sources = _measured(recipe)
    # gcov leaves its files in the build directory for a moment.
    with (
        paths.lock(COVERAGE_LOCK, term=term),
        term.step("reading what the guests counted") as step,
    ):
        documents = []
        guests = 0
        for place in sorted(path for path in (directory / COUNTS).glob("*") if path.is_dir()):
            facts = _facts(place, recipe)
            if facts is None:
                term.warn(f"{place.name} is of another kernel or engine, and left out")
                continue
            step.update(place.name)
            guests += coverage.guest_count(place)
            document = _read(place, facts, recipe)
            documents.append(coverage_report.narrow(document, sources, wanted))
        if not documents:
            raise CoverageError(
                f"no guest of this kernel has left counts in {directory / COUNTS}",
                "run ./linux-um cov with tests that boot guests",
            )
        files = coverage_report.write_report(documents, recipe.tree, directory, bounds)
    present = {each.name for each in files}
    absent = [
        name for name in coverage.engine_files(recipe.snapshot)
        if name.endswith(".c") and name not in present
    ]  # fmt: skip
    verdict = coverage_report.judge(
        coverage_report.lines_of(coverage_report.merged(documents), sources, absent),
        coverage_report.read_list(list_file().read_text()),
    )
    return _say(files, absent, verdict, guests, bounds, directory, term)


def list_file() -> Path:
    """Return the list of what is not covered."""
    return paths.repo_root() / "harness" / "tests" / coverage_report.LIST_NAME


def _measured(recipe: build.Recipe) -> tuple[dict[str, set[int] | None], dict[str, str]]:
    """Return the files that are measured, each with the lines of it that are, and their texts."""
    wanted: dict[str, set[int] | None] = {
        name: None for name in coverage.engine_files(recipe.snapshot)
    }
    target = patches.patched_files(recipe.source.directory, recipe.snapshot)
    sources = {name: (target[name] or b"").decode(errors="replace") for name in wanted}
    with tempfile.TemporaryDirectory(prefix="linux-um-cov-") as temporary:
        for name in coverage.hook_files(recipe.snapshot):
            data = target[name]
            if data is None or name in wanted:
                continue
            new = Path(temporary) / "new"
            new.write_bytes(data)
            wanted[name] = coverage_report.added_lines(recipe.source.directory / name, new)
            sources[name] = data.decode(errors="replace")
    return wanted, sources


def _facts(place: Path, recipe: build.Recipe) -> dict[str, Any] | None:
    """Return what the kernel was built from that left the counts in *place*.

    None when it is not of the sources of *recipe*, or there no more.
    """
    try:
        facts = json.loads((paths.image_root() / place.name / build.INFO_NAME).read_text())
        same = (
            facts["source"]["content"] == recipe.source.content
            and facts["patches"] == recipe.snapshot.patches_hash
            and facts["engine"] == recipe.snapshot.engine_hash
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(facts) if same else None


def _read(place: Path, facts: dict[str, Any], recipe: build.Recipe) -> dict[str, Any]:
    """Return gcovr's document of the counts in *place*. Raises CoverageError."""
    notes = paths.image_root() / place.name / coverage.NOTES_DIR
    built = paths.build_dir(recipe.source.key, str(facts["profile"]), str(facts["arch"]))
    with tempfile.TemporaryDirectory(prefix="linux-um-cov-") as temporary:
        both = Path(temporary) / "both"
        shutil.copytree(notes, both)
        shutil.copytree(place / coverage.COUNTS, both, dirs_exist_ok=True)
        return coverage_report.read_counts(both, built, recipe.tree)


def _say(
    files: list[FileShare],
    absent: list[str],
    verdict: Verdict,
    guests: int,
    bounds: tuple[float, float],
    directory: Path,
    term: Term,
) -> list[str]:
    """Print the figures and what is wrong with them; return the latter."""
    print(coverage_report.table(files))
    if absent:
        print(f"in no kernel that was measured: {' '.join(absent)}")
    wrong = coverage_report.missed(files, *bounds)
    not_listed = directory / NOT_LISTED
    not_listed.write_text("".join(f"{line}\n" for line in verdict.unlisted))
    name = coverage_report.LIST_NAME
    if verdict.unlisted:
        wrong.append(f"{len(verdict.unlisted)} lines are neither covered nor in {name}")
        for line in verdict.unlisted[:SHOWN]:
            print(f"not covered: {line}")
        if len(verdict.unlisted) > SHOWN:
            print(f"not covered: {len(verdict.unlisted) - SHOWN} more, see {not_listed}")
    for entry in verdict.stale:
        text = f"{entry.file} | {entry.function} | {entry.part}"
        print(f"{name}:{entry.number}: nothing uncovered is named by {text}")
    if verdict.stale:
        wrong.append(f"{len(verdict.stale)} lines of {name} are stale")
    print(f"{guests} guests; {verdict.listed} lines are not covered for a reason in {name}")
    for text in wrong:
        term.error(text)
    term.info(f"the report is {directory / 'index.html'}")
    return wrong

# SPDX-License-Identifier: GPL-2.0-only
"""What guests counted, as a report: lines and branches, by file, and what is not covered.

gcovr reads the counts, merges them over kernels and writes the HTML. In between
everything is taken out that is not to be measured: of a file that is patched, all
lines but those that patches add; a line that is but a label; the branches of a
check such as WARN_ON(), whose other side no correct kernel takes; and those of macros
such as ilog2(), which the compiler takes.

``harness/tests/uncovered.txt`` lists what no test reaches, one in a line::

    FILE | FUNCTION | PART OF THE LINE | REASON

``*`` stands for any function, or any line. A reason that begins with
``sometimes:`` is of lines that depend on chance: they may be covered. All other
listed lines must not be, or the list is stale.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .coverage import CoverageError, run_tool

# The format of gcovr's JSON that is understood.
FORMATS = ("0.2", "0.3", "0.4", "0.5")
LIST_NAME = "uncovered.txt"
SOMETIMES = "sometimes:"
ANY = "*"
# Checks of what must never happen; pksm_expect() is that of the engine's own search for
# contradictions. And macros whose branches the compiler chooses from, not the kernel.
_CHECK = re.compile(
    r"\b(?:(?:VM_)?(?:WARN|BUG)_ON(?:_[A-Z]+)*|pksm_expect|test_bit|ilog2)\s*\("
)
# No code of its own: what GCC counts there is a jump.
_LABEL = re.compile(r"\s*\w+:\s*")
_HUNK = re.compile(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", re.MULTILINE)


@dataclass(frozen=True)
class Share:
    """How many of all there are have run."""

    covered: int
    total: int

    @property
    def percent(self) -> float:
        """Return the part that has run, in per cent; all of nothing is 100."""
        return 100.0 * self.covered / self.total if self.total else 100.0

    def __add__(self, other: Share) -> Share:
        return Share(self.covered + other.covered, self.total + other.total)


@dataclass(frozen=True)
class FileShare:
    """One file: its lines and branches."""

    name: str
    lines: Share
    branches: Share


@dataclass(frozen=True)
class Line:
    """One line of a source file; ``function`` is empty outside of any."""

    file: str
    number: int
    function: str
    text: str

    def __str__(self) -> str:
        inside = f"{self.function}(): " if self.function else ""
        return f"{self.file}:{self.number}: {inside}{self.text}"


@dataclass(frozen=True)
class Entry:
    """A line of the list of what is not covered, and its number in it."""

    number: int
    file: str
    function: str
    part: str
    reason: str

    @property
    def sometimes(self) -> bool:
        """Whether what it names may be covered."""
        return self.reason.startswith(SOMETIMES)

    def names(self, line: Line) -> bool:
        """Return whether it is about *line*."""
        return (
            self.file == line.file
            and self.function in (ANY, line.function)
            and (self.part == ANY or self.part in line.text)
        )


@dataclass
class Verdict:
    """What is to be said besides the figures.

    ``unlisted`` lines are neither covered nor listed; of a ``stale`` entry every
    line is covered, or there is none; ``listed`` is how many lines the list explains.
    """

    unlisted: list[Line] = field(default_factory=list)
    stale: list[Entry] = field(default_factory=list)
    listed: int = 0


# What is measured


def added_lines(old: Path, new: Path) -> set[int] | None:
    """Return the numbers of the lines that *new* has and *old* has not; None: all are new.

    Raises CoverageError when diff does not do its work.
    """
    if not old.exists():
        return None
    # diff ends with 1 when there is a difference.
    command = ["sh", "-c", 'diff -U0 -- "$0" "$1" || [ $? -eq 1 ]', str(old), str(new)]
    numbers: set[int] = set()
    for match in _HUNK.finditer(run_tool(command)):
        first, count = int(match.group(1)), int(match.group(2) or 1)
        numbers.update(range(first, first + count))
    return numbers


def check_lines(text: str) -> set[int]:
    """Return the numbers of the lines of C code *text* whose branches do not count."""
    numbers: set[int] = set()
    for match in _CHECK.finditer(text):
        depth, end = 0, match.end() - 1
        for end in range(match.end() - 1, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                break
        first = text.count("\n", 0, match.start()) + 1
        numbers.update(range(first, first + text.count("\n", match.start(), end) + 1))
    return numbers


def narrow(
    document: Mapping[str, Any], sources: Mapping[str, str], wanted: Mapping[str, set[int] | None]
) -> dict[str, Any]:
    """Return gcovr's JSON *document* with nothing in it but what is to be measured.

    *wanted* are files, each with the numbers of the lines that count (None: all);
    *sources* are their texts. Raises CoverageError for a document of another kind.
    """
    if document.get("gcovr/format_version") not in FORMATS:
        raise CoverageError(
            f"gcovr writes format {document.get('gcovr/format_version')!r}",
            f"use one that writes {' or '.join(FORMATS)}",
        )
    files = []
    for each in document["files"]:
        name = each["file"]
        if name not in wanted:
            continue
        only, checks = wanted[name], check_lines(sources[name])
        texts = sources[name].splitlines()
        lines = [
            {**line, "branches": []} if line["line_number"] in checks else line
            for line in each["lines"]
            if (only is None or line["line_number"] in only)
            and not _LABEL.fullmatch(texts[line["line_number"] - 1])
        ]
        if any(not line.get("gcovr/noncode") for line in lines):
            files.append({**each, "lines": lines})
    return {**document, "files": files}


# What is said of it


def shares(summary: Mapping[str, Any]) -> list[FileShare]:
    """Return the figures of gcovr's JSON summary, file by file. Raises CoverageError."""
    try:
        return [
            FileShare(
                each["filename"],
                Share(each["line_covered"], each["line_total"]),
                Share(each["branch_covered"], each["branch_total"]),
            )
            for each in sorted(summary["files"], key=lambda each: str(each["filename"]))
        ]
    except (KeyError, TypeError) as error:
        raise CoverageError(f"gcovr's summary has no {error}", "use gcovr 5 or newer") from error


def total(files: Iterable[FileShare]) -> FileShare:
    """Return the sum of *files*."""
    lines = branches = Share(0, 0)
    for each in files:
        lines, branches = lines + each.lines, branches + each.branches
    return FileShare("all", lines, branches)


def table(files: Sequence[FileShare]) -> str:
    """Return *files* and their sum as a table."""
    rows = [["", "lines", "", "branches", ""]]
    for each in [*files, total(files)]:
        row = [each.name]
        for share in (each.lines, each.branches):
            row += [f"{share.covered} of {share.total}", f"{share.percent:.1f} %"]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])] + [row[n].rjust(widths[n]) for n in range(1, 5)]
        ).rstrip()
        for row in rows
    )


def missed(files: Sequence[FileShare], lines: float, branches: float) -> list[str]:
    """Return one text for each threshold, in per cent, that the sum of *files* misses."""
    sums = total(files)
    asked = (("lines", sums.lines, lines), ("branches", sums.branches, branches))
    return [
        f"{share.percent:.1f} % of {what}, and {least:g} % are asked for"
        for what, share, least in asked
        if share.percent < least
    ]


# What is not covered


def lines_of(
    document: Mapping[str, Any], sources: Mapping[str, str], absent: Iterable[str]
) -> Iterator[tuple[Line, bool]]:
    """Yield each measured line of a narrowed *document*, and whether it has run.

    A file that is in no kernel which has been measured (*absent*) is its line 0.
    """
    for each in document["files"]:
        texts = sources[each["file"]].splitlines()
        starts = sorted((f["lineno"], f["name"]) for f in each.get("functions", []))
        for line in each["lines"]:
            if line.get("gcovr/noncode"):
                continue
            number = line["line_number"]
            before = bisect_right(starts, number, key=lambda start: int(start[0]))
            function = starts[before - 1][1] if before else ""
            yield Line(each["file"], number, function, texts[number - 1].strip()), line["count"] > 0
    for name in absent:
        yield Line(name, 0, "", "is in no kernel that was measured"), False


def read_list(text: str) -> list[Entry]:
    """Return the entries of the list of what is not covered. Raises CoverageError."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = [word.strip() for word in line.split(" | ", 3)]
        if len(words) != 4 or not all(words):
            raise CoverageError(
                f"{LIST_NAME}:{number}: {line!r}", "write FILE | FUNCTION | PART OF LINE | REASON"
            )
        entries.append(Entry(number, *words))
    return entries


def judge(lines: Iterable[tuple[Line, bool]], entries: Sequence[Entry]) -> Verdict:
    """Compare what has not run with the list of what is not covered."""
    verdict = Verdict()
    used: set[int] = set()
    for line, covered in lines:
        if covered:
            continue
        about = [entry.number for entry in entries if entry.names(line)]
        used.update(about)
        if about:
            verdict.listed += 1
        else:
            verdict.unlisted.append(line)
    verdict.stale = [
        entry for entry in entries if entry.number not in used and not entry.sometimes
    ]
    return verdict


# gcovr


def read_counts(counts: Path, build: Path, tree: Path) -> dict[str, Any]:
    """Return gcovr's JSON document of what guests of one kernel counted.

    *counts* has them and the compiler's notes, laid out as *build* is, from where the
    compiler ran; the sources are in *tree*. Raises CoverageError.
    """
    said = run_tool(
        ["gcovr", "--root", str(tree), "--object-directory", str(build), "--json", "-",
         "--gcov-ignore-parse-errors", str(counts)],
        cwd=build,
    )  # fmt: skip
    document = json.loads(said)
    assert isinstance(document, dict)
    return document


def merged(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one document with the files, functions and lines of all narrowed *documents*.

    The counts of a line are added; of branches nothing is left.
    """
    functions: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    lines: dict[str, dict[int, dict[str, Any]]] = {}
    for document in documents:
        for each in document["files"]:
            name = each["file"]
            functions.setdefault(name, {}).update(
                {(one["name"], one["lineno"]): one for one in each.get("functions", [])}
            )
            known = lines.setdefault(name, {})
            for line in each["lines"]:
                if line.get("gcovr/noncode"):
                    continue
                number = line["line_number"]
                count = line["count"] + (known[number]["count"] if number in known else 0)
                known[number] = {"line_number": number, "count": count}
    return {
        "files": [
            {
                "file": name,
                "functions": list(functions[name].values()),
                "lines": [known[number] for number in sorted(known)],
            }
            for name, known in lines.items()
        ]
    }


def without_rivals(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return *documents* without the functions that two kernels have in different lines.

    gcovr cannot merge those; their lines stay.
    """
    places: dict[tuple[str, str], set[int]] = {}
    for document in documents:
        for each in document["files"]:
            for one in each.get("functions", []):
                places.setdefault((each["file"], one["name"]), set()).add(one["lineno"])
    return [
        {
            **document,
            "files": [
                {
                    **each,
                    "functions": [
                        one for one in each.get("functions", [])
                        if len(places[each["file"], one["name"]]) == 1
                    ],
                }
                for each in document["files"]
            ],
        }
        for document in documents
    ]  # fmt: skip


def write_report(
    documents: Sequence[Mapping[str, Any]], tree: Path, directory: Path, bounds: tuple[float, float]
) -> list[FileShare]:
    """Write the HTML of narrowed *documents*, merged, into *directory*; return the figures.

    *bounds* are the per cents of lines and branches that are asked for, for its
    colours. Raises CoverageError.
    """
    for old in directory.glob("index*"):
        old.unlink()
    command = ["gcovr", "--root", str(tree), "--html-title", "Coverage of PKSM",
               "--html-details", str(directory / "index.html"),
               "--html-high-threshold", f"{max(bounds[0], 1):g}",
               "--html-medium-threshold", f"{max(min(bounds), 1):g}",
               "--json-summary", str(directory / "summary.json")]  # fmt: skip
    for number, document in enumerate(without_rivals(documents)):
        file = directory / f"coverage-{number}.json"
        file.write_text(json.dumps(document))
        command += ["--add-tracefile", str(file)]
    run_tool(command, cwd=tree)
    return shares(json.loads((directory / "summary.json").read_text()))

# SPDX-License-Identifier: GPL-2.0-only
"""What ``./linux-um top`` knows: samples of the counters, their rates, and their texts.

The files of the engine's directory are what there is to show: those that can be
written are controls, the others counters. Only the grouping of the names that
are known is laid down here; a counter that is new shows up under "other".
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PKSM_DIR = "/sys/kernel/mm/pksm"
KSM_DIR = "/sys/kernel/mm/ksm"
_UPTIME, _MEMINFO, _CMDLINE = "/proc/uptime", "/proc/meminfo", "/proc/cmdline"
# What to ask an engine's guest for, besides the engine's directory.
AROUND = (_UPTIME, _MEMINFO, _CMDLINE)
PAGE_SIZE = 4096
# A line of the table has its headings above it at least every so many lines.
HEADING_EVERY = 20


@dataclass(frozen=True)
class Kind:
    """A group of counters: what they count, and how they are written."""

    title: str
    names: tuple[str, ...]
    # Their value is a size in this many bytes each; 0 means it is none.
    unit: int = 0
    # They only ever grow, so that what matters is how many there are in a second.
    events: bool = False


PAGES = Kind(
    "pages", ("pages_new", "pages_unshared", "pages_volatile", "pages_shared"), unit=PAGE_SIZE
)
SAVED = Kind("saved", ("pages_sharing", "zero_pages", "ksm_zero_pages"), unit=PAGE_SIZE)
PROFIT = Kind("profit", ("general_profit",), unit=1)
EVENTS = Kind(
    "events",
    (
        "pages_scanned", "pages_merged", "pages_broken", "pages_skipped",
        "full_scans", "folios_split",
    ),  # fmt: skip
    events=True,
)
RECORDS = Kind(
    "records",
    ("rmap_items", "stable_items", "stable_nodes", "stable_node_chains", "stable_node_dups"),
)
DAEMON = Kind("daemon", ("cpu_usecs",), events=True)
OTHER = Kind("other", ())
KINDS = (PAGES, SAVED, PROFIT, EVENTS, RECORDS, DAEMON, OTHER)


def kind_of(name: str) -> Kind:
    """Return the group a counter belongs to."""
    return next((kind for kind in KINDS if name in kind.names), OTHER)


def in_order(names: Sequence[str]) -> list[str]:
    """Return counters in the order of their groups, those nobody knows at the end by name."""
    known = [name for kind in KINDS for name in kind.names]
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


@dataclass(frozen=True)
class Sample:
    """The files of the engine at one moment.

    ``when`` is on the host's monotonic clock, ``uptime`` on the guest's clock,
    both in seconds; ``memory`` and ``available`` are bytes of the guest.
    """

    when: float
    engine: str
    counters: Mapping[str, int]
    controls: Mapping[str, str]
    uptime: float = 0.0
    memory: int = 0
    available: int = 0
    time_travel: bool = False

    @property
    def saved(self) -> int:
        """The bytes that merging saves: a page for each entry beyond the first, or of zeroes."""
        return sum(self.counters.get(name, 0) for name in SAVED.names) * PAGE_SIZE


def engine_paths(engine: str) -> list[str]:
    """Return what to ask a guest for, to make a sample of *engine*, ``pksm`` or ``ksm``."""
    return [PKSM_DIR if engine == "pksm" else KSM_DIR, *AROUND]


def parse_sample(files: Mapping[str, tuple[int, str]], when: float) -> Sample | None:
    """Return the sample that *files*, path to mode and text, make; None without an engine."""
    for engine, directory in (("pksm", PKSM_DIR), ("ksm", KSM_DIR)):
        found = {
            path.rpartition("/")[2]: (mode, " ".join(text.split()))
            for path, (mode, text) in files.items()
            if path.rpartition("/")[0] == directory
        }
        if found:
            break
    else:
        return None
    counters, controls = {}, {}
    for name, (mode, text) in found.items():
        if not mode & stat.S_IWUSR and text.lstrip("-").isdigit():
            counters[name] = int(text)
        else:
            controls[name] = text
    meminfo = _numbers(files.get(_MEMINFO, (0, ""))[1])
    uptime = files.get(_UPTIME, (0, ""))[1].split()
    return Sample(
        when=when,
        engine=engine,
        counters={name: counters[name] for name in in_order(list(counters))},
        controls=dict(sorted(controls.items(), key=lambda item: (item[0] != "run", item[0]))),
        uptime=float(uptime[0]) if uptime else 0.0,
        memory=meminfo.get("MemTotal", 0) * 1024,
        available=meminfo.get("MemAvailable", 0) * 1024,
        time_travel="time-travel=" in files.get(_CMDLINE, (0, ""))[1],
    )


def _numbers(meminfo: str) -> dict[str, int]:
    pairs = (line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    return {name: int(rest.split()[0]) for name, rest in pairs if rest.split()}


def rates(before: Sample | None, now: Sample) -> dict[str, float]:
    """Return by how much each counter changed in a second of the host's clock.

    The host's, since under time travel the guest's stands still and leaps. A
    counter that was not there before has no rate.
    """
    if before is None or now.when <= before.when:
        return {}
    elapsed = now.when - before.when
    return {
        name: (value - before.counters[name]) / elapsed
        for name, value in now.counters.items()
        if name in before.counters
    }


def cpu_percent(rate: Mapping[str, float]) -> float | None:
    """Return how much of one CPU the engine's daemon takes; None when that is not known."""
    used = rate.get("cpu_usecs")
    return None if used is None else used / 1e4


# Texts


def human_bytes(count: float) -> str:
    """Return bytes as people write them: ``0``, ``4.0 KiB``, ``-63.5 MiB``."""
    sign, size = ("-" if count < 0 else ""), abs(count)
    for unit in ("", " KiB", " MiB", " GiB"):
        if size < 1024:
            return f"{sign}{size:.0f}{unit}" if not unit or size >= 100 else f"{sign}{size:.1f}{unit}"
        size /= 1024
    return f"{sign}{size:.1f} TiB"


def short_bytes(count: float) -> str:
    """Return bytes for a narrow column: ``4.0K``, ``63.5M``."""
    return human_bytes(count).replace(" ", "").replace("iB", "")


def short_number(value: float, *, signed: bool = False) -> str:
    """Return a number in at most six characters, seven with *signed*: ``12.5``, ``+65536``."""
    sign = "+" if signed and value > 0 else ""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 99.95:
        return f"{sign}{value:.1f}"
    for limit, divisor, unit in ((99999.5, 1, ""), (1e7, 1e3, "k"), (1e10, 1e6, "M")):
        if size < limit:
            return f"{sign}{value / divisor:.0f}{unit}"
    return f"{sign}{value:.0e}"


def duration(seconds: float) -> str:
    """Return a guest's uptime: ``12.3 s``, ``4 min 05 s``, ``3 h 02 min``, ``12 d 01 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for size, unit, part, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part:02} {small}"
    return f"{whole} s"


# Lines for a pipe


def json_line(sample: Sample, rate: Mapping[str, float], clock: float) -> str:
    """Return a sample as one line of JSON; *clock* is the host's time since the epoch."""
    percent = cpu_percent(rate)
    value: dict[str, Any] = {
        "time": round(clock, 3),
        "uptime": sample.uptime,
        "engine": sample.engine,
        "saved_bytes": sample.saved,
        "memory_bytes": sample.memory,
        "available_bytes": sample.available,
        "cpu_percent": None if percent is None else round(percent, 2),
        "counters": dict(sample.counters),
        "per_second": {name: round(number, 2) for name, number in rate.items()},
        "controls": dict(sample.controls),
    }
    return json.dumps(value)


class Table:
    """Lines of a table: a column for each counter, headings now and then.

    What happens (events) is shown per second, all else as it is.
    """

    def __init__(self) -> None:
        self._columns: list[str] = []
        self._lines = 0

    def lines(self, sample: Sample, rate: Mapping[str, float], clock: str) -> list[str]:
        """Return the line for a sample, after a line of headings when one is due."""
        cells = {"time": clock, "uptime": f"{sample.uptime:.1f}", "saved": short_bytes(sample.saved)}
        for name, value in sample.counters.items():
            kind = kind_of(name)
            heading, text = _heading(name), str(value)
            if kind is DAEMON:
                percent = cpu_percent(rate)
                heading, text = "cpu%", "-" if percent is None else f"{percent:.1f}"
            elif kind is PROFIT:
                heading, text = "profit", short_bytes(value)
            elif kind.events:
                heading += "/s"
                text = short_number(rate[name]) if name in rate else "-"
            cells[name if heading in cells else heading] = text
        due = self._lines % HEADING_EVERY == 0 or list(cells) != self._columns
        if due:
            self._columns, self._lines = list(cells), 0
        self._lines += 1
        width = {name: max(len(name), 8 if name == "time" else 7) for name in cells}
        heading = " ".join(name.rjust(width[name]) for name in cells)
        line = " ".join(text.rjust(width[name]) for name, text in cells.items())
        return [heading, line] if due else [line]


def _heading(name: str) -> str:
    for prefix in ("pages_", "ksm_"):
        name = name.removeprefix(prefix)
    return name.removesuffix("_pages")

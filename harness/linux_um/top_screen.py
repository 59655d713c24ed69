# SPDX-License-Identifier: GPL-2.0-only
"""What the screen of ``./linux-um top`` has on it: lines of text, made without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations

from .top import (
    DAEMON,
    EVENTS,
    KINDS,
    PAGES,
    PROFIT,
    SAVED,
    Kind,
    Sample,
    cpu_percent,
    duration,
    human_bytes,
    kind_of,
    rates,
    short_bytes,
    short_number,
)

# Samples whose savings are remembered: more than a terminal has columns.
HISTORY = 512
# A block is at least so wide that counters, sizes and rates have a column each.
_WITH_RATES = 50
_TALLEST_CHART = 16
# Columns between blocks.
_GAP = 3

HELP = """\
pages    the engine's pages by class: new (born, not read yet), unshared (like no
         other), volatile (changed or in use), shared (merged pages)
saved    page table entries that cost no page of their own any more
events   since boot, and in each second
records  what the engine keeps in memory
controls files that can be written; see ./linux-um boot, then /sys/kernel/mm

Seconds are the host's, since under time travel the guest's leap.

q  quit            space  hold still, and go on
+  less often      -      more often
up, down, page up, page down  the lines that do not fit
h  this text"""


class Style(Enum):
    """How a piece of a line is to look."""

    PLAIN = "plain"
    TITLE = "title"
    HEAD = "head"
    DIM = "dim"
    STRONG = "strong"
    BAR = "bar"
    ALARM = "alarm"


Span = tuple[str, Style]
Line = list[Span]


@dataclass(frozen=True)
class Glyphs:
    """The characters of charts and bars, from nothing to a full cell."""

    levels: str
    bar: str
    rest: str

    @classmethod
    def for_encoding(cls, encoding: str) -> Glyphs:
        """Return block elements where the terminal has them, else ASCII."""
        if encoding.lower().replace("-", "").startswith("utf"):
            return cls(" ▁▂▃▄▅▆▇█", "█", "·")
        return cls(" .:-=+*#", "#", ".")


@dataclass
class State:
    """What the screen shows, and how far it has been scrolled."""

    name: str
    release: str
    interval: float
    glyphs: Glyphs
    sample: Sample | None = None
    before: Sample | None = None
    history: list[int] = field(default_factory=list)
    message: str = ""
    alarm: bool = False
    help: bool = False
    scroll: int = 0

    def take(self, sample: Sample) -> None:
        """Show *sample* from now on."""
        self.before, self.sample = self.sample, sample
        self.history = [*self.history[-HISTORY + 1 :], sample.saved]


def text_of(line: Line) -> str:
    """Return a line without its styles."""
    return "".join(text for text, _ in line)


def compose(state: State, rows: int, columns: int) -> list[Line]:
    """Return the *rows* lines of a screen, each of *columns* characters at most.

    Sets ``state.scroll`` to what is possible.
    """
    if rows < 1 or columns < 1:
        return []
    lines: list[Line] = [_title(state, columns)]
    if state.help:
        lines += [[], *([(line, Style.PLAIN)] for line in HELP.splitlines())]
    elif state.sample is not None:
        lines += _body(state, state.sample, rows - 2, columns)
    lines = lines[: rows - 1]
    lines += [[]] * (rows - 1 - len(lines))
    # The last cell of a terminal is left alone: some scroll when it is written.
    return [*(_cut(line, columns) for line in lines), _cut(_foot(state, columns - 1), columns - 1)]


def _body(state: State, sample: Sample, rows: int, columns: int) -> list[Line]:
    rate = rates(state.before, sample)
    blocks = arrange(make_blocks(sample, rate), columns)
    top = [_summary(sample, rate, columns)]
    room = rows - len(top) - len(blocks) - 2
    tall = max(1, min(_TALLEST_CHART, room))
    graph: list[Line] = [
        [(line, Style.BAR)] for line in chart(state.history, columns, tall, state.glyphs.levels)
    ]
    top += [_savings(state, sample, columns), *graph]
    visible = max(rows - len(top) - 1, 0)
    state.scroll = max(0, min(state.scroll, len(blocks) - visible))
    return [*top, [], *blocks[state.scroll : state.scroll + visible]]


def _cut(line: Line, columns: int) -> Line:
    """Return as much of a line as there is room for."""
    result, left = [], columns
    for text, style in line:
        if left <= 0:
            break
        result.append((text[:left], style))
        left -= len(text)
    return result


def _apart(left: Line, right: Line, columns: int) -> Line:
    """Return a line whose *right* part ends at the last column; it goes when there is no room."""
    gap = columns - len(text_of(left)) - len(text_of(right))
    return [*left, (" " * gap, Style.PLAIN), *right] if gap > 0 else left


# The lines above the counters


def _title(state: State, columns: int) -> Line:
    right: Line = []
    if state.sample is not None:
        pace = "time travel" if state.sample.time_travel else "up"
        leap = ""
        if state.sample.time_travel and state.before is not None:
            leap = f" (+{duration(state.sample.uptime - state.before.uptime)})"
        right = [(f"{pace} {duration(state.sample.uptime)}{leap}", Style.PLAIN)]
    left: Line = [(state.name, Style.TITLE), (f"  {state.release}", Style.PLAIN)]
    return _apart(left, right, columns)


def _summary(sample: Sample, rate: dict[str, float], columns: int) -> Line:
    """Return what the engine does, what its daemon takes, and the guest's memory."""
    run = {"0": "stopped", "1": "running", "2": "stopped, all unmerged"}
    state = run.get(sample.controls.get("run", ""), "")
    left: Line = [(f"{sample.engine.upper()} {state}".strip(), Style.STRONG)]
    percent = cpu_percent(rate)
    if "cpu_usecs" in sample.counters:
        used = "  - " if percent is None else f"{percent:5.1f}"
        left.append((f"   {sample.engine}d {used} % of a CPU", Style.PLAIN))
    used_bytes = human_bytes(sample.memory - sample.available)
    right: Line = [(f"memory {used_bytes} used of {human_bytes(sample.memory)}", Style.PLAIN)]
    return _apart(left, right if sample.memory else [], columns)


def _savings(state: State, sample: Sample, columns: int) -> Line:
    left: Line = [("saved ", Style.HEAD), (human_bytes(sample.saved), Style.STRONG)]
    # What would be in use without the engine is the whole.
    whole = sample.saved + sample.memory - sample.available
    if sample.memory and whole > 0:
        share = sample.saved / whole
        left.append((f"  {100 * share:.1f} %  ", Style.PLAIN))
        left += bar(share, 20, state.glyphs)
    right: Line = [(f"most {human_bytes(max(state.history, default=0))}", Style.DIM)]
    return _apart(left, right, columns)


def bar(share: float, width: int, glyphs: Glyphs) -> Line:
    """Return a bar that is filled to *share*, 0 to 1."""
    full = round(max(0.0, min(share, 1.0)) * width)
    return [(glyphs.bar * full, Style.BAR), (glyphs.rest * (width - full), Style.DIM)]


def chart(values: Sequence[int], width: int, height: int, levels: str) -> list[str]:
    """Return *height* lines with a column for each of the last *width* values.

    The highest value of these reaches the top, and whatever is above 0 is seen.
    """
    last = [max(value, 0) for value in values[-width:]]
    most = max(last, default=0)
    steps = len(levels) - 1
    lines = []
    for row in reversed(range(height)):
        cells = []
        for value in last:
            filled = -(-value * height * steps // most) if most else 0
            cells.append(levels[max(0, min(filled - row * steps, steps))])
        lines.append("".join(cells).rjust(width))
    return lines


def _foot(state: State, columns: int) -> Line:
    if state.message:
        return [(state.message, Style.ALARM if state.alarm else Style.STRONG)]
    keys: Line = []
    for key, what in (("q", "quit"), ("space", "hold"), ("+ -", "interval"), ("h", "help")):
        keys += [(key, Style.STRONG), (f" {what}   ", Style.DIM)]
    return _apart(keys, [(f"every {state.interval:g} s", Style.DIM)], columns)


# The counters


@dataclass(frozen=True)
class Row:
    """A counter or a control: its name, its value, a size or rate beside it, its change."""

    name: str
    value: str
    beside: str = ""
    change: str = ""


@dataclass(frozen=True)
class Block:
    """A group of rows under the headings of their columns."""

    head: Row
    rows: tuple[Row, ...]


def make_blocks(sample: Sample, rate: dict[str, float]) -> list[Block]:
    """Return the groups that a sample has something in."""
    blocks = []
    for kind in KINDS:
        names = [name for name in sample.counters if kind_of(name) is kind]
        if kind in (PROFIT, DAEMON):
            # Shown with their likes.
            continue
        if kind is SAVED:
            names += [name for name in PROFIT.names if name in sample.counters]
        if kind is EVENTS:
            names += [name for name in DAEMON.names if name in sample.counters]
        if names:
            rows = tuple(_row(name, sample.counters[name], kind_of(name), rate) for name in names)
            blocks.append(Block(_head(kind), rows))
    if sample.controls:
        rows = tuple(Row(name, text) for name, text in sample.controls.items())
        blocks.append(Block(Row("controls", ""), rows))
    return blocks


def _head(kind: Kind) -> Row:
    if kind in (PAGES, SAVED):
        return Row(kind.title, "count", "size", "change/s")
    return Row(kind.title, "count", "per second")


def _row(name: str, value: int, kind: Kind, rate: dict[str, float]) -> Row:
    change = rate.get(name)
    if kind is PROFIT:
        changed = "" if change is None else "+" * (change > 0) + short_bytes(change)
        return Row(name, "", human_bytes(value), changed)
    text = "" if change is None else short_number(change, signed=not kind.events)
    if kind.unit:
        return Row(name, str(value), human_bytes(value * kind.unit), text)
    return Row(name, str(value), text)


def arrange(blocks: Sequence[Block], columns: int) -> list[Line]:
    """Return the lines of blocks, side by side in as many columns as there is room for."""
    count = min(1 if columns < 72 else 2 if columns < 150 else 3, max(1, len(blocks)))
    width = (columns - _GAP * (count - 1)) // count
    drawn = [_draw(block, width) for block in blocks]
    # In the order given: the division into columns whose highest is lowest.
    cuts = min(
        combinations(range(1, len(drawn)), count - 1),
        key=lambda cuts: max(_height(part) for part in _parts(drawn, cuts)),
    )
    parts = [_stacked(part) for part in _parts(drawn, cuts)]
    lines: list[Line] = []
    for number in range(max(len(part) for part in parts)):
        line: Line = []
        for part in parts:
            piece = part[number] if number < len(part) else []
            line += [*piece, (" " * (width + _GAP - len(text_of(piece))), Style.PLAIN)]
        lines.append(line)
    return lines


def _parts(drawn: list[list[Line]], cuts: tuple[int, ...]) -> list[list[list[Line]]]:
    bounds = (0, *cuts, len(drawn))
    return [drawn[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]


def _height(part: list[list[Line]]) -> int:
    return sum(len(block) + 1 for block in part) - 1


def _stacked(part: list[list[Line]]) -> list[Line]:
    lines: list[Line] = []
    for block in part:
        if lines:
            lines.append([])
        lines += block
    return lines


def _draw(block: Block, width: int) -> list[Line]:
    """Return the lines of a block; the change of counters only where there is room."""
    changes = width >= _WITH_RATES and any(row.change for row in (block.head, *block.rows))
    beside = any(row.beside for row in (block.head, *block.rows))
    fields: list[tuple[Callable[[Row], str], int]] = []
    if beside:
        fields += [(lambda row: row.value, 9), (lambda row: row.beside, 10)]
    if changes:
        fields.append((lambda row: row.change, 9))

    def one(row: Row, style: Style) -> Line:
        if not fields:
            # A name and a text: each may be long.
            name = row.name[: max(width - len(row.value) - 1, 8)]
            value = row.value[: width - len(name) - 1]
            return [(name, style), (value.rjust(width - len(name)), Style.PLAIN)]
        texts = "".join(f" {pick(row):>{size}}" for pick, size in fields)
        room = width - len(texts)
        return [(row.name[:room].ljust(room), style), (texts, _value_style(style))]

    return [one(block.head, Style.HEAD), *(one(row, Style.PLAIN) for row in block.rows)]


def _value_style(style: Style) -> Style:
    return Style.DIM if style is Style.HEAD else Style.PLAIN

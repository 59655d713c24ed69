# SPDX-License-Identifier: GPL-2.0-only
"""``pksm new``, ``pksm unstable``, ``pksm stable`` and ``pksm sharers``: what is in which list."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gdb

from . import command, index, kernel, memory, record, rmap, space, target, tasks
from .record import Record

LIMIT = 20
_LIMITS = {"--limit": True, "--all": False}
_FILTERS = {"--pid": True, "--pfn": True}
CLASSES = record.CLASSES[1:]
DEAD = "freed"


class Places:
    """Where pages are mapped, for a line each."""

    def __init__(self) -> None:
        self._names = space.spaces()
        self._tables = space.PageTables(list(self._names))

    def of(self, pfn: int) -> list[space.Place]:
        """Return the PTEs that map a page."""
        return self._tables.of(pfn)

    def name(self, place: space.Place) -> str:
        """Return a PTE as PROCESS:ADDRESS."""
        return f"{self._names[place.mm]}:{place.address:#x}"

    def text(self, pfn: int) -> str:
        """Return where a page is mapped: the first place, and how many more."""
        found = self.of(pfn)
        if not found:
            return "not mapped"
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return self.name(found[0]) + more


class Filter:
    """What of a list is wanted, by the options of the command."""

    def __init__(self, words: command.Words, places: Places) -> None:
        if words.rest:
            raise gdb.GdbError(f"'{words.rest[0]}' is not expected here")
        self._places = places
        self.limit = None if "--all" in words.options else words.number("--limit", LIMIT)
        self.dead = "--dead" in words.options
        self.min_sharers = words.number("--min-sharers", 0)
        self._mm = 0
        if "--pid" in words.options:
            task = tasks.find(words.options["--pid"])
            if not task.mm:
                raise gdb.GdbError(f"{task} is a kernel thread and has no address space")
            self._mm = task.mm
        self._range = _frames(words.options["--pfn"]) if "--pfn" in words.options else None
        self._class = words.options.get("--class")
        if self._class not in (None, *CLASSES):
            raise gdb.GdbError(f"no such class: {self._class}; there are: {', '.join(CLASSES)}")

    def wants_page(self, pfn: int) -> bool:
        """Return whether a page is wanted, by its number and by who maps it."""
        if self._range and not self._range[0] <= pfn <= self._range[1]:
            return False
        return not self._mm or any(place.mm == self._mm for place in self._places.of(pfn))

    def wants(self, entry: Record) -> bool:
        """Return whether a record is wanted."""
        if self.dead and entry.live:
            return False
        if self._class and entry.page_class != self._class:
            return False
        return self.wants_page(entry.pfn)


def _frames(text: str) -> tuple[int, int]:
    """Return the range of page frames of ``A-B``, or of one."""
    first, dash, last = text.partition("-")
    low = kernel.evaluate_number(first)
    high = kernel.evaluate_number(last) if dash else low
    if low > high:
        raise gdb.GdbError(f"--pfn {text}: the range is empty")
    return memory.check_pfn(low), memory.check_pfn(high)


def show(
    lines: Iterator[Sequence[str]], wanted: Filter, head: Sequence[str], right: str, what: str
) -> None:
    """Print as many lines as are wanted, and how many there are."""
    limit = wanted.limit
    shown = list(itertools.islice(lines, limit))
    total = len(shown) + sum(1 for _ in lines)
    if shown:
        print("\n".join(command.table([head, *shown], right)))
    if total > len(shown):
        print(f"{len(shown)} of {total} {what} shown; --all shows them all")
    else:
        print(f"{total} {what}")


def class_of(entry: Record) -> str:
    """Return the class of a record that is in a list; a dead one is ``freed``."""
    return entry.page_class if entry.live else DEAD


@dataclass(frozen=True)
class Turn:
    """When the chains of a queue get ripe, in jiffies from now."""

    name: str
    wait: str


def turns() -> list[Turn]:
    """Return each chain of the queues in the order of index.queues(), with its time."""
    now = kernel.variable("jiffies_64")
    hz = jiffies_per_second()
    base = kernel.address("pksm_queues")
    stride = kernel.size("struct pksm_queue")
    found = []
    for number, chain in enumerate(index.queues()):
        level, kind = divmod(number, len(index.CHAINS))
        due = kernel.member(base + level * stride, "struct pksm_queue", "due")
        interval = -(-index.interval_millisecs(level) * hz // 1000)
        left = due - now + (interval if index.CHAINS[kind] == "filling" else 0)
        wait = "ripe" if index.CHAINS[kind] == "ripe" else str(max(left, 0))
        found.append(Turn(chain.name, wait))
    return found


def jiffies_per_second() -> int:
    """Return HZ, from a constant that the kernel keeps in memory."""
    # kernel/time/jiffies.c: clocksource_jiffies.mult is (NSEC_PER_SEC / HZ) << JIFFIES_SHIFT, 8.
    mult = int(kernel.symbol("clocksource_jiffies")["mult"])
    return round(1e9 / (mult / 256))


class PksmNew(command.Command):
    """List the pages that wait: the new list of each CPU, and the queues.

    pksm new [--limit N | --all] [--pid PID|COMM] [--class new|volatile] [--pfn A-B] [--dead]

A line each: page frame, class, level (which queue it is for: how often it was put
back, or what is due to its age), age (how often it had changed), its chain, jiffies until the chain is ripe (a page waits in filling for two turns, in
ripening for one), where it is mapped. --dead: only records whose page was
freed meanwhile. Without --all the first 20 are shown."""

    NAME = "new"
    OPTIONS = {**_LIMITS, **_FILTERS, "--class": True, "--dead": False}

    def run(self, words: command.Words) -> None:
        """Print the lines."""
        kernel.need_memory()
        places = Places()
        wanted = Filter(words, places)
        chains = [(chain, "-") for chain in index.new_lists()]
        chains += [(chain, turn.wait) for chain, turn in zip(index.queues(), turns())]
        table = record.Table()

        def lines() -> Iterator[Sequence[str]]:
            for chain, wait in chains:
                for entry in index.follow(table, chain.first):
                    if wanted.wants(entry):
                        mapped = places.text(entry.pfn) if entry.live else "-"
                        level = str(entry.level)
                        kind, age = class_of(entry), str(entry.age)
                        yield f"{entry.pfn:#x}", kind, level, age, chain.name, wait, mapped

        head = ("pfn", "class", "level", "age", "chain", "jiffies", "mapped at")
        show(lines(), wanted, head, "rlrrlrl", "records")


class PksmUnstable(command.Command):
    """List the unstable index: pages that were hashed and are unique so far.

    pksm unstable [--limit N | --all] [--pid PID|COMM] [--class CLASS] [--pfn A-B] [--dead]

A line each: page frame, class, age (how often it had changed), bucket, the bits of
the hash that the record keeps, where it is mapped. The classes: unshared; watched
(it was read again and is write-protected, so that the next write is told); volatile
(it was watched, and written to since); new (another page was born in the frame since).
--dead: only records whose page was freed. Without --all the first 20 are shown."""

    NAME = "unstable"
    OPTIONS = {**_LIMITS, **_FILTERS, "--class": True, "--dead": False}

    def run(self, words: command.Words) -> None:
        """Print the lines."""
        kernel.need_memory()
        places = Places()
        wanted = Filter(words, places)
        table = record.Table()

        def lines() -> Iterator[Sequence[str]]:
            for bucket, first in index.unstable_buckets():
                for entry in index.follow(table, first):
                    if wanted.wants(entry):
                        kind = class_of(entry)
                        mapped = places.text(entry.pfn) if entry.live else "-"
                        age, tag = str(entry.age), f"{entry.tag or 0:#08x}"
                        yield f"{entry.pfn:#x}", kind, age, f"{bucket:#x}", tag, mapped

        head = ("pfn", "class", "age", "bucket", "hash bits", "mapped at")
        show(lines(), wanted, head, "rlrrr", "records")


class PksmStable(command.Command):
    """List the stable index: merged pages.

    pksm stable [--limit N | --all] [--pid PID|COMM] [--pfn A-B] [--min-sharers N] [--dead]

A line each: page frame, node, hash, how many PTEs map it, how many sharers it
has, where it is mapped. --dead: only nodes whose page was freed, which wait
for pksmd. Without --all the first 20 are shown."""

    NAME = "stable"
    OPTIONS = {**_LIMITS, **_FILTERS, "--min-sharers": True, "--dead": False}

    def run(self, words: command.Words) -> None:
        """Print the lines."""
        kernel.need_memory()
        places = Places()
        wanted = Filter(words, places)
        dead = set(index.dead_nodes())

        def lines() -> Iterator[Sequence[str]]:
            for _, node in index.stable_nodes():
                gone = node.address in dead
                if (wanted.dead and not gone) or node.nr_sharers < wanted.min_sharers:
                    continue
                if not wanted.wants_page(node.pfn):
                    continue
                # A dead node has a link where its hash was.
                value = "-" if gone else f"{node.hash:#018x}"
                count = "-" if gone else str(memory.read_page(node.pfn).mapcount)
                mapped = "page freed" if gone else places.text(node.pfn)
                number = str(node.nr_sharers)
                yield f"{node.pfn:#x}", f"{node.address:#x}", value, count, number, mapped

        head = ("pfn", "node", "hash", "PTEs", "sharers", "mapped at")
        show(lines(), wanted, head, "rrrrr", "stable nodes")


class PksmSharers(command.Command):
    """List who shares a merged page.

    pksm sharers PFN | PAGE | PID:ADDRESS | COMM:ADDRESS [--limit N | --all]

The first line is the page before it was merged, each other a page that it
absorbed: the anon_vma and the page offset at which its PTEs are, and the PTEs
that are there. A sharer without any is stale: its process has exited, or has
written to the page. pksmd drops such ones a second later, unless the page is mapped
more often than it has sharers; the page's own place stays."""

    NAME = "sharers"
    OPTIONS = _LIMITS

    def run(self, words: command.Words) -> None:
        """Print the lines."""
        page = memory.read_page(target.resolve(" ".join(words.rest)).pfn)
        if page.kind != "ksm":
            raise gdb.GdbError(f"pfn {page.pfn:#x} is no merged page; see pksm page {page.pfn:#x}")
        if not page.owner:
            raise gdb.GdbError(f"pfn {page.pfn:#x} has lost its node: the swap cache alone has it")
        words.rest.clear()
        places = Places()
        wanted = Filter(words, places)
        node = index.read_node(page.owner)
        there = {(place.mm, place.address): place for place in places.of(page.pfn)}
        print(f"pfn {page.pfn:#x}, node {node.address:#x}, {len(there)} PTEs")

        def line(name: str, anon_vma: int, offset: int) -> Sequence[str]:
            found = [there[spot] for spot in rmap.spots(anon_vma, offset) if spot in there]
            text = " ".join(places.name(place) for place in found) or "none: stale"
            return name, f"{anon_vma:#x}", f"{offset:#x}", text

        def lines() -> Iterator[Sequence[str]]:
            yield line("itself", node.anon_vma, page.index)
            for sharer in index.sharers(node):
                yield line(f"{sharer.address:#x}", sharer.anon_vma, sharer.index)

        show(lines(), wanted, ("sharer", "anon_vma", "index", "PTEs"), "", "places")


for _command in (PksmNew, PksmUnstable, PksmStable, PksmSharers):
    _command()

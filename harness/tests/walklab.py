# SPDX-License-Identifier: GPL-2.0-only
"""The captures of the walk-through: sessions of gdb, made anew from its scripts.

Each capture is a script in gdb-scripts/walkthrough. It runs while pagestep, in
a guest, carries out orders; the script finds the process, the address and the
page in $pid, $address and $pfn. What gdb prints is the text between two
markers in gdb-scripts/walkthrough.md.
"""

from __future__ import annotations

import fcntl
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gdblab
from lab import BootFresh
from linux_um.paths import repo_root
from steplab import READY, SAY_READY, Pages, await_swap_out, watch

WALKTHROUGH = repo_root() / "gdb-scripts" / "walkthrough.md"
SCRIPTS = repo_root() / "gdb-scripts" / "walkthrough"
END_OF_INPUT = "end of input"
RUN = "run"


@dataclass(frozen=True)
class Capture:
    """A session.

    ``page`` is the page of pagestep's region (of its file's mapping, with
    ``file``) that the script is about. ``before`` are orders that are carried
    out before gdb comes, after which pages are watched if ``watch`` says so;
    those that follow STOPPED while pksmd is stopped.
    ``trigger`` is the order, END_OF_INPUT, or RUN, which lets pksmd run again,
    that makes the script's breakpoints hit; none for a script that only looks.
    """

    name: str
    page: int
    trigger: str = ""
    before: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    file: bool = False
    swap: bool = False
    watch: bool = False


CAPTURES = (
    Capture("user-fault", 5, "write 5 1"),
    Capture("user-path", 5, "write 5 1"),
    Capture("gup-path", 6, "populate 6"),
    Capture("kernel-path", 7, "kernel 7 1"),
    Capture("file-copy", 8, "file 8 1", file=True),
    Capture("swap-in", 9, "read 9", before=("write 9 1", "settle", "pageout 9"), swap=True),
    Capture("fork-copy", 10, "child 10 2", before=("write 10 1",)),
    Capture("merge", 12, RUN, before=("write 11 1", "settle"), stopped=("write 12 1",)),
    Capture("merged-page", 12, before=("write 11 1", "write 12 1", "settle")),
    Capture("stat", 12, before=("write 11 1", "write 12 1", "settle")),
    Capture("break", 12, "write 12 2", before=("write 11 1", "write 12 1", "settle")),
    Capture("watched", 12, "write 12 2", before=("write 12 1", "settle"), watch=True),
    Capture("free-one", 13, "free 13", before=("write 13 1", "settle")),
    Capture("free-batch", 14, END_OF_INPUT, before=("write 14 1", "write 15 2", "settle")),
    Capture("free-batch-path", 14, END_OF_INPUT, before=("write 14 1", "write 15 2", "settle")),
    Capture("free-high-order", 16, "block 16"),
)


def commands(name: str) -> list[str]:
    """Return the gdb commands of a script, without its comments."""
    lines = (SCRIPTS / f"{name}.gdb").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def record(capture: Capture, boot_fresh: BootFresh) -> str:
    """Make the session in a fresh guest, and return what was typed and printed."""
    options: dict[str, Any] = {"swap": "64M"} if capture.swap else {}
    guest = boot_fresh(append=["norandmaps"], **options)
    # Whether a page is watched by now would be a matter of chance.
    guest.set_pksm("rescan_seconds", 0)
    pages = Pages(guest)
    for order in capture.before:
        pages.do(order)
    if capture.swap:
        await_swap_out(guest)
    if capture.watch:
        watch(guest)
    if capture.stopped:
        guest.set_pksm("run", 0)
    for order in capture.stopped:
        pages.do(order)
    touched = [order for order in capture.before + capture.stopped if order.startswith("write")]
    pfn = pages.do(f"show {capture.page}").pfn if touched else 0
    values = {"$pid": f"{pages.pid}", "$pfn": f"{pfn:#x}"}
    values["$address"] = f"{pages.address(capture.page, file=capture.file):#x}"
    script = "".join(f"set {name} = {value}\n" for name, value in values.items()) + SAY_READY
    for line in commands(capture.name):
        typed = line
        for name, value in values.items():
            typed = typed.replace(name, value)
        script += f"echo (gdb) {typed}\\n\n{line}\n"
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for(READY)
        if capture.trigger == RUN:
            guest.start(["sh", "-c", "echo 1 > /sys/kernel/mm/pksm/run"])
        elif capture.trigger == END_OF_INPUT:
            pages.close()
        elif capture.trigger:
            pages.order(capture.trigger)
        text = gdb.finish()
    if capture.trigger == END_OF_INPUT:
        pages.await_end()
    else:
        pages.finish()
    return tidy(text)


def tidy(text: str) -> str:
    """Return what is of interest in gdb's output."""
    text = text.split(f"{READY}\n", 1)[1]
    text = re.sub(r"^\[Inferior .* detached\]\n", "", text, flags=re.MULTILINE)
    # Where the kernel's source lies is nobody's business.
    text = re.sub(r"(\.\./)+tree/[^/\s]+/|/\S*/tree/[^/\s]+/", "", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


# Numbers that belong to what happens.
_KEPT = re.compile(r"\b(refcount|mapcount|order|returns) +(\d)")


def mask(text: str) -> list[str]:
    """Return the lines of a session without what differs from one guest to the next.

    Addresses, page frames, process numbers and counts go, and with them the
    width of columns; names, flags, stages and their order stay, and reference
    and map counts. A page may have had to wait for another turn.
    """
    lines = []
    for line in text.splitlines():
        # What is inlined where is the compiler's choice.
        line = re.sub(r", inlined into \w+\(\)|  \(inlined\)", "", line)
        line = re.sub(r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8,}\b", "#", line)
        line = re.sub(r"(?<=\w)\[\d+\]", "[#]", line)
        line = re.sub(r"(?<![\w.\[])-?\d+(\.\d+)?(?![\w\]])", "#", _KEPT.sub(r"\1_\2", line))
        line = re.sub(r"\b(new|volatile), waiting", "waiting", line)
        lines.append(re.sub(r"\s+", " ", line).strip())
    return lines


def _block(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"(<!-- capture: {re.escape(name)} -->\n```text\n)(.*?)(\n```\n<!-- end -->)", re.DOTALL
    )


def written(name: str, document: str) -> str:
    """Return the capture as the document has it. Raises KeyError when it has none."""
    found = _block(name).search(document)
    if found is None:
        raise KeyError(name)
    return found.group(2)


def rewrite(name: str, text: str, path: Path = WALKTHROUGH) -> None:
    """Put a capture into the document in place of the one that is there."""
    with path.open("r+") as file:
        # Other captures are made at the same time.
        fcntl.flock(file, fcntl.LOCK_EX)
        document = file.read()
        written(name, document)
        file.seek(0)
        file.write(_block(name).sub(lambda m: m.group(1) + text + m.group(3), document))
        file.truncate()

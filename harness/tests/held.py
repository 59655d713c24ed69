# SPDX-License-Identifier: GPL-2.0-only
"""Pages in known states for the tests that look with gdb: holdpages in a guest."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import gdblab
from lab import one_cpu
from linux_um.guest import Guest, Process

# Wall-clock seconds for an answer.
ANSWER_SECONDS = 120.0
# Runs a command and prints what it says, or its error, so that a script goes on.
PRELUDE = """
python
def say(command):
    print(f"<<{command}>>")
    try:
        gdb.execute(command)
    except gdb.error as error:
        print(f"error: {error}")
    print("<<end>>")
end
"""


@dataclass(frozen=True)
class HeldPage:
    """A page of holdpages, as the page map has it; pfn is -1 where there is none."""

    process: int
    pid: int
    name: str
    address: int
    pfn: int
    count: int
    flags: int


class Held:
    """A holdpages that runs in a guest."""

    def __init__(self, guest: Guest, *options: str) -> None:
        self.guest = guest
        self._lines = 0
        one_cpu(guest)
        self.job: Process = guest.start(["holdpages", *options])
        self.pages = self._answer()

    def _answer(self) -> list[HeldPage]:
        """Wait for the next line, and return the pages."""
        self._lines += 1
        self.guest.wait_for(
            lambda: self.job.stdout.count("\n") >= self._lines or self.job.status is not None,
            time.monotonic() + ANSWER_SECONDS,
            "holdpages does not answer",
        )
        lines = self.job.stdout.splitlines()
        assert len(lines) >= self._lines, f"holdpages: {self.job.status} {self.job.stderr}"
        raw: dict[str, Any] = json.loads(lines[self._lines - 1])
        return [
            HeldPage(
                one["process"], one["pid"], one["page"], one["address"],
                one.get("pfn", -1), one.get("count", 0), one.get("flags", 0),
            )
            for one in raw["pages"]
        ]  # fmt: skip

    def order(self, line: str) -> None:
        """Give an order, such as "write 0 same", and take in where the pages are then."""
        self.job.write(f"{line}\n".encode())
        self.pages = self._answer()

    def page(self, process: int, name: str) -> HeldPage:
        """Return a page of a process."""
        return next(p for p in self.pages if p.process == process and p.name == name)

    def finish(self) -> None:
        """Let it verify its pages and end."""
        self.job.close_stdin()
        done = self.job.wait(ANSWER_SECONDS)
        assert done.status == 0, done.stderr


def ask(guest: Guest, *commands: str) -> list[str]:
    """Attach gdb, and return what each command printed; "error: ..." when it failed."""
    script = PRELUDE + "\n".join(f"python say({command!r})" for command in commands)
    return parse_answers(gdblab.run_script(guest, script + "\n"), len(commands))


def parse_answers(text: str, number: int) -> list[str]:
    """Return what each of *number* commands printed by way of PRELUDE."""
    found = re.findall(r"^<<.*?>>\n(.*?)^<<end>>$", text, re.M | re.S)
    assert len(found) == number, text
    return [one.strip("\n") for one in found]


def field(text: str, name: str) -> str:
    """Return the line of that name of `pksm page`."""
    found = re.search(rf"^  {re.escape(name)} +(.*)$", text, re.M)
    assert found is not None, f"no '{name}' in:\n{text}"
    return found[1]

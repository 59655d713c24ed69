# SPDX-License-Identifier: GPL-2.0-only
"""The commands of the guided steps: pksm fault, free, merge, cow, next and quit."""

from __future__ import annotations

import gdb

from . import command, fault, free, guide, kernel, memory, merge, target, tasks


def process(word: str) -> str:
    """Return a process as the guides compare it. Raises GdbError when there is none."""
    comm = word[: tasks.COMM_LEN - 1]
    found = [task for task in tasks.tasks() if task.comm == comm or str(task.pid) == word]
    if not found and not word.isdigit():
        raise gdb.GdbError(f"no process {word} in the guest yet; with --wait it may still come")
    task = found[0] if found else tasks.find(word)
    if not task.mm:
        raise gdb.GdbError(f"{task} is a kernel thread and has no address space")
    return str(task.pid) if word.isdigit() else comm


class GuideCommand(command.Command):
    """A command that begins a guide, or goes on with one."""

    LIVE = True
    OPTIONS = {"--all": False}


class FaultCommand(GuideCommand):
    """Follow one page fault from stage to stage.

    pksm fault [PID|COMM] [ADDRESS] [--all] [--wait]
    pksm fault --abandon

The guest runs until that process (any, when none is given) faults at the page
of that address (any), and stops at the first stage: the arch handler, or
get_user_pages(), or handle_mm_fault(). `pksm next' goes on to the next one:
the page tables, the PTE, the case that was chosen and why, the page that was
allocated, rmap, the hook of PKSM, the PTE that is written, the result. Faults
of other tasks do not stop. --all goes through all stages without a stop.
--wait: the process may be one that is still to come. --abandon: as pksm quit."""

    NAME = "fault"
    OPTIONS = {"--all": False, "--wait": False, "--abandon": False}

    def run(self, words: command.Words) -> None:
        """Begin."""
        if "--abandon" in words.options:
            Quit.give_up()
            return
        guide.begin(self.make(words), through="--all" in words.options)

    def make(self, words: command.Words) -> guide.Guide:
        """Return the guide that the words ask for. Raises GdbError."""
        who, address = self.target(words)
        return fault.FaultGuide(who, address)

    @staticmethod
    def target(words: command.Words) -> tuple[str | None, int | None]:
        """Return the process and the address that the words name. Raises GdbError."""
        kernel.need_live()
        if len(words.rest) > 2:
            raise gdb.GdbError("at most a process and an address; see help pksm fault")
        who = words.rest[0] if words.rest else None
        if who is not None and (who.isdigit() or "--wait" not in words.options):
            who = process(who)
        elif who is not None:
            who = who[: tasks.COMM_LEN - 1]
        address = kernel.evaluate_number(words.rest[1]) if len(words.rest) > 1 else None
        if address is not None:
            tasks.check_address(address)
        return who, address


class CowCommand(FaultCommand):
    """Follow one copy-on-write break of a merged page from stage to stage.

    pksm cow [PID|COMM] [ADDRESS] [--all] [--wait]

The guest runs until that process (any, when none is given) writes to a merged
page at that address (any). The stages are those of pksm fault: do_wp_page(), why
the page is not reused, the new page, the copy, the old PTE cleared,
__pksm_page_broken(), the hook, the new PTE, the old page's mappings, the result."""

    NAME = "cow"
    OPTIONS = {"--all": False, "--wait": False}

    def make(self, words: command.Words) -> guide.Guide:
        """Return the guide that the words ask for. Raises GdbError."""
        who, address = self.target(words)
        return fault.CowGuide(who, address)


def tracked_page(words: command.Words) -> int | None:
    """Return the page that the words name, None without. Raises GdbError if it is not tracked."""
    kernel.need_live()
    if not words.rest:
        return None
    text = words.raw.replace("--all", "").strip()
    pfn = target.resolve(text).pfn
    page = memory.read_page(pfn)
    if not page.has("pksm"):
        kind = {"kernel": "the kernel's", "file": "of a file"}.get(page.kind, page.kind)
        raise gdb.GdbError(f"pfn {pfn:#x} is not tracked by PKSM: the page is {kind}")
    return pfn


class FreeCommand(GuideCommand):
    """Follow the free of one tracked page from stage to stage.

    pksm free [PFN | struct page * | PID:ADDRESS] [--all]

The guest runs until that page (the next that is freed, when none is given) loses
its last PTE. The stages: the batch in which it waits for the flush of the TLB,
the references that are put, free_pages_prepare(), the hook with the record
before and after and what is left to pksmd, and the list that the page goes to."""

    NAME = "free"

    def run(self, words: command.Words) -> None:
        """Begin."""
        guide.begin(free.FreeGuide(tracked_page(words)), through="--all" in words.options)


class MergeCommand(GuideCommand):
    """Follow what pksmd does with one page from stage to stage.

    pksm merge [PFN | struct page * | PID:ADDRESS] [--all]

The guest runs until pksmd considers that page (the next one, when none is given).
The stages: the candidate, its hash, where an equal page was looked for and what
was found, the partner that is frozen, the critical section (the PTE cleared and
flushed, references, comparison), the new PTE, the result, and what becomes of the
page. A page that finds no equal, or is busy, has fewer stages, and they say so."""

    NAME = "merge"

    def run(self, words: command.Words) -> None:
        """Begin."""
        guide.begin(merge.MergeGuide(tracked_page(words)), through="--all" in words.options)


class Next(GuideCommand):
    """Go on to the next stage of what is followed.

    pksm next [--all]

See pksm fault, free, merge and cow. --all goes through all stages that are left."""

    NAME = "next"

    def run(self, words: command.Words) -> None:
        """Go on."""
        if words.rest:
            raise gdb.GdbError("no argument but --all; see help pksm next")
        kernel.need_live()
        guide.go_on(through="--all" in words.options)


class Quit(GuideCommand):
    """Give up what is followed, and remove its breakpoints. The guest stays where it is.

    pksm quit"""

    NAME = "quit"
    OPTIONS = {}

    def run(self, words: command.Words) -> None:
        """Give up."""
        self.give_up()

    @staticmethod
    def give_up() -> None:
        """Remove the breakpoints of the guide that is on."""
        print("Nothing is followed any more." if guide.end() else "Nothing was followed.")


FaultCommand()
FreeCommand()
MergeCommand()
CowCommand()
Next()
Quit()

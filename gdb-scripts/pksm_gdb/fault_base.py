# SPDX-License-Identifier: GPL-2.0-only
"""What every guided fault has: how it begins, whose it is, and how it ends.

The functions are those of arch/um/kernel/trap.c, mm/gup.c and mm/memory.c of
6.12. What the compiler has optimised out is taken from elsewhere: arguments
from the registers where a function begins, the rest from struct vm_fault,
which lies on the stack of __handle_mm_fault().
"""

from __future__ import annotations

import errno

import gdb

from . import code, guide, kernel, memory, show, tasks, ways
from .guide import Facts, Stage

PAGE_MASK = ~(memory.PAGE_SIZE - 1)
FAULT_WRITE = "FAULT_FLAG_WRITE"
# gup_flags of include/linux/mm_types.h.
FOLL_WRITE = 1


class FaultBase(guide.Guide):
    """Follows one page fault from the way in to its result."""

    NAME = "fault"

    def __init__(self, who: str | None, address: int | None) -> None:
        super().__init__()
        self.who = who
        self.wanted = address & PAGE_MASK if address is not None else None
        # Of the fault, once it has begun.
        self.address = 0
        self.mm = 0
        self.vma = 0
        self.vmf = 0
        self._arch_stack: int | None = None
        self._gup_stack: int | None = None
        self._stack: int | None = None
        self._reached_mm = False

    def waits_for(self) -> str:
        """Return what is waited for."""
        who = f"process {self.who}" if self.who else "any process"
        where = f" at {self.wanted:#x}" if self.wanted is not None else ""
        return f"a {self.NAME} of {who}{where}"

    def first_stages(self) -> list[Stage]:
        """Return the stages down to handle_mm_fault()."""
        return [
            Stage("arch", code.entries("handle_page_fault"), self._at_arch, self._show_arch,
                  first=True),
            Stage("refused", code.exits("handle_page_fault"), self._is_refused,
                  self._show_refused),
            Stage("gup", code.entries("__get_user_pages"), self._at_gup, self._show_gup,
                  first=True),
            Stage("no fault", code.exits("__get_user_pages"), self._is_not_needed,
                  self._show_not_needed),
            Stage("mm", code.entries("handle_mm_fault"), self._at_mm, self._show_mm,
                  first=True),
        ]  # fmt: skip

    def last_stages(self) -> list[Stage]:
        """Return the stages in which the fault ends."""
        return [
            Stage("return", code.exits("handle_mm_fault"), self._at_return, self._show_return),
            Stage("end of the process", code.entries("do_exit"), self._at_exit, self._show_exit,
                  first=True),
        ]

    # Which fault it is

    def begins(self, mm: int, address: int, write: bool) -> bool:
        """Return whether the fault that begins here is one to follow."""
        if self.wanted is not None and address & PAGE_MASK != self.wanted:
            return False
        return self.who is None or self._is_process(mm)

    def _is_process(self, mm: int) -> bool:
        """Return whether the process asked for runs, or has its memory touched by another."""
        task = tasks.current()
        if self.who in (str(task.pid), task.comm):
            return True
        return any(self.who in (str(user.pid), user.comm) for user in tasks.users(mm))

    def _bind(self, mm: int, address: int) -> None:
        self.task = tasks.current().address
        self.mm = mm
        self.address = address

    def in_fault(self) -> bool:
        return self._reached_mm and self.mine()

    # The ways in

    def _at_arch(self) -> bool:
        address, write = code.argument(0), bool(code.argument(2) & 0xFFFFFFFF)
        mm = tasks.current().mm
        if self.task is not None or not self.begins(mm, address, write):
            return False
        self._bind(mm, address)
        self._arch_stack = code.stack_pointer()
        return True

    def _show_arch(self) -> None:
        levels = code.chain()
        is_write = code.argument(2) & 0xFFFFFFFF
        caller = "a fault that the host reported for the process"
        facts: Facts = [
            ("task", str(tasks.current())),
            ("address", f"{self.address:#x}, in the page {self.address & PAGE_MASK:#x}"),
            ("access", "write" if is_write else "read"),
        ]
        if code.find(levels, *ways.KERNEL_ACCESS) is not None:
            caller = "the kernel itself wants to touch the user's memory"
            call = ways.syscall(levels)
            facts.append(("for", f"the system call {call}()" if call else "the kernel"))
        else:
            facts.append(("ip", f"{code.argument(1):#x}"))
        self.say("handle_page_fault", f"The arch handler: {caller}.", facts)

    def _is_refused(self) -> bool:
        return (
            not self._reached_mm and self.mine() and code.stack_pointer() == self._arch_stack
        )

    def _show_refused(self) -> bool:
        try:
            found = tasks.find_vma(self.mm, self.address)
            area = show.vma(found.address) if found is not None else "none"
        except gdb.GdbError as error:
            area = f"unknown: {error}"
        value = (code.result() or 0) & 0xFFFFFFFF
        error_number = (1 << 32) - value if value else 0
        self.say(
            "handle_page_fault",
            "The address is in no area, or its area does not allow this: no page is made.",
            [("area", area), ("returns", f"-{error_number} ({errno.errorcode[error_number]})"
                              if error_number in errno.errorcode else f"{value:#x}")],
        )  # fmt: skip
        print("The fault is over: it is refused.")
        return True

    def _at_gup(self) -> bool:
        if self.task is not None:
            return False
        mm, start, count = code.argument(0), code.argument(1), code.argument(2)
        address = self.wanted if self.wanted is not None else start
        if not start & PAGE_MASK <= address < (start & PAGE_MASK) + count * memory.PAGE_SIZE:
            return False
        write = bool(code.argument(3) & FOLL_WRITE)
        entry = tasks.walk(mm, address)
        there = entry is not None and entry.present and (entry.writable or not write)
        if there or not self.begins(mm, address, write):
            return False
        self._bind(mm, address)
        self._gup_stack = code.stack_pointer()
        return True

    def _show_gup(self) -> None:
        count = code.argument(2)
        self.say(
            "__get_user_pages",
            "get_user_pages() wants pages; one is not there, and it makes a fault by itself.",
            [
                ("task", str(tasks.current())),
                ("pages", f"{count} from {code.argument(1):#x} on, of {tasks.name_of(self.mm)}"),
                ("address", f"{self.address:#x}, of a page that is not there"),
                ("to", "write" if code.argument(3) & FOLL_WRITE else "read"),
                ("way", ways.current().text.removeprefix("The way in: ")),
            ],
        )

    def _is_not_needed(self) -> bool:
        return (
            not self._reached_mm
            and self.mine()
            and self._gup_stack is not None
            and code.stack_pointer() == self._gup_stack
        )

    def _show_not_needed(self) -> None:
        print(f"get_user_pages() ends without a fault there; it waits for {self.waits_for()}.")
        self.task = self._gup_stack = None
        self.number = 0
        self.again()

    # mm/memory.c

    def _at_mm(self) -> bool:
        area, address, flags = code.argument(0), code.argument(1), code.argument(2)
        mm = kernel.member(area, "struct vm_area_struct", "vm_mm")
        if self.task is None:
            write = bool(flags & kernel.enum("fault_flag")[FAULT_WRITE])
            if not self.begins(mm, address, write):
                return False
            self._bind(mm, address)
        elif not self.mine() or (address ^ self.address) & PAGE_MASK:
            return False
        self.vma = area
        self._stack = code.stack_pointer()
        self._reached_mm = True
        return True

    def _show_mm(self) -> None:
        self.say(
            "handle_mm_fault",
            "Independent of the architecture from here on: may the area be touched like this?",
            [
                ("task", str(tasks.current())),
                ("address", f"{self.address:#x}"),
                ("area", show.vma(self.vma)),
                ("flags", show.fault_flags(code.argument(2) & 0xFFFFFFFF)),
            ],
        )

    def entry(self) -> tasks.Pte | None:
        """Return the PTE as it is now."""
        return tasks.walk(self.mm, self.address)

    def of_vmf(self, member: str, length: int = kernel.WORD) -> int:
        """Return a member of the fault's struct vm_fault; 0 when that could not be found."""
        return kernel.member(self.vmf, "struct vm_fault", member, length) if self.vmf else 0

    def _at_return(self) -> bool:
        return self.in_fault() and code.stack_pointer() == self._stack

    def summary(self) -> Facts:
        """Return what is different at the end."""
        entry = self.entry()
        facts: Facts = [("pte now", show.pte(entry))]
        if entry is not None and entry.present:
            facts.append(("page", show.page(entry.pfn)))
            facts.append(("record after", show.record_of(entry.pfn)))
        return facts

    def _show_return(self) -> bool:
        value = code.result()
        retry = bool((value or 0) & kernel.enum("vm_fault_reason")["VM_FAULT_RETRY"])
        returned = show.fault_result(value & 0xFFFFFFFF) if value is not None else show.GONE
        self.say(
            "handle_mm_fault",
            "The fault was dealt with." if not retry else "It gives up for now, to be tried again.",
            [("returns", returned), *self.summary()],
        )
        if retry:
            # A signal that was pending lets gdb come by here once more before it goes on.
            self._stack = None
            self.again()
            return False
        print(f"The {self.NAME} is over.")
        return True

    # The end of the process

    def _at_exit(self) -> bool:
        if self.task is not None:
            return self.mine()
        task = tasks.current()
        return self.who == str(task.pid)

    def _show_exit(self) -> bool:
        print(f"{tasks.current()} ends; the {self.NAME} is not followed any more.")
        return True

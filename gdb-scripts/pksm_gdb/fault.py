# SPDX-License-Identifier: GPL-2.0-only
"""pksm fault and pksm cow: one page fault, from the arch handler to the PTE.

The functions are those of mm/memory.c of 6.12; see fault_base.py for how a
fault is found and followed.
"""

from __future__ import annotations

import gdb

from . import code, guide, index, kernel, memory, record, show, tasks, ways
from .fault_base import FAULT_WRITE, PAGE_MASK, FaultBase
from .guide import Facts, Stage

# The functions in whose bodies the cases of a fault lie.
BODIES = ("__handle_mm_fault", "handle_pte_fault", "do_pte_missing", "do_anonymous_page",
          "do_fault", "do_cow_fault", "do_swap_page", "do_wp_page", "wp_page_copy",
          "alloc_anon_folio", "folio_prealloc")  # fmt: skip
# Those that write the PTE in the end.
PTE_BODIES = (*BODIES, "set_pte_range", "ptep_set_access_flags", "wp_page_reuse",
              "__map_anon_folio_pte")  # fmt: skip
# Bounds what is unwound for a condition.
TOP = frozenset({"handle_mm_fault"})
# The cases, and why each is chosen: see handle_pte_fault(), do_pte_missing() and do_fault().
CASES = {
    "do_anonymous_page": "The PTE is empty and the area is anonymous (it has no vm_ops).",
    "do_read_fault": "The PTE is empty, the area maps a file, and the access is a read: "
    "the file's page is mapped.",
    "do_cow_fault": "The PTE is empty, the area maps a file privately, and the access is a "
    "write: the file's page is copied at once.",
    "do_shared_fault": "The PTE is empty, the area maps a file shared, and the access is a "
    "write: the file's page is mapped writable.",
    "do_swap_page": "The PTE is not empty, but not present: a swap entry, or a marker "
    "(migration).",
    "do_wp_page": "The PTE is present, but read-only, and the access is a write.",
}


class FaultGuide(FaultBase):
    """Follows one page fault, whichever case it is."""

    def __init__(self, who: str | None, address: int | None) -> None:
        super().__init__(who, address)
        self.new: int | None = None
        self.old: int | None = None

    def stages(self) -> list[Stage]:
        """Return the stages of a fault."""
        def case(name: str) -> Stage:
            return Stage(name, self._places(name), lambda: self._is_case(name),
                         lambda: self._show_case(name))  # fmt: skip

        return [
            *self.first_stages(),
            Stage("tables", code.entries("__handle_mm_fault"), self.in_fault, self._show_tables),
            Stage("pmd", code.entries("__pmd_alloc"), self.in_fault, self._show_pmd_alloc),
            Stage("table", code.entries("__pte_alloc"), self.in_fault, self._show_pte_alloc),
            Stage("pte", self._places("handle_pte_fault"), self._at_pte, self._show_pte),
            *(case(name) for name in CASES),
            Stage("flags", code.entries("ptep_set_access_flags"), self._only_flags,
                  self._show_flags),
            Stage("reuse", code.copies("wp_page_reuse", "do_wp_page"), self.in_fault,
                  self._show_reuse),
            Stage("no reuse", code.entries("__folio_alloc_noprof"), self._in_copy,
                  self._show_no_reuse),
            Stage("swapped in", code.exits("swapin_readahead"), self._comes_back,
                  self._show_swapped_in),
            Stage("allocation", code.exits("__folio_alloc_noprof"), self._comes_back,
                  self._show_allocation),
            # Code of its caller may have been moved to where it begins.
            Stage("copy", [*self._places("__wp_page_copy_user"),
                           *code.copies("copy_mc_user_highpage", "__wp_page_copy_user")],
                  self.in_fault, self._show_copy),
            Stage("finish", code.entries("finish_fault"), self.in_fault, self._show_finish),
            Stage("clear", code.entries("ptep_clear_flush"), self._at_clear, self._show_clear),
            Stage("rmap", code.entries("folio_add_new_anon_rmap"), self._at_rmap, self._show_rmap),
            Stage("file rmap", code.entries("folio_add_anon_rmap_ptes",
                                            "folio_add_file_rmap_ptes"),
                  self._at_set_rmap, self._show_rmap),
            Stage("written", code.entries("__pksm_page_written"), self.in_fault,
                  self._show_written),
            Stage("broken", code.entries("__pksm_page_broken"), self.in_fault, self._show_broken),
            Stage("unmapped", code.entries("__pksm_page_unmapped"), self.in_fault,
                  self._show_unmapped),
            Stage("hook", code.entries("pksm_add_new_anon_page"), self.in_fault, self._show_hook),
            Stage("broken off", code.entries("__pksm_add_broken_off"), self.in_fault,
                  self._show_broken_off),
            Stage("swap hook", code.entries("__pksm_add_swapped_in"), self.in_fault,
                  self._show_swap_hook),
            Stage("taken in", code.entries("pksm_add_moved_page"), self.in_fault,
                  self._show_taken_in),
            Stage("set_pte", [where for where in code.inlined("set_pte")
                              if code.blocks_at(where)[-1] in PTE_BODIES],
                  self._at_set_pte, self._show_set_pte),
            Stage("old page", code.entries("folio_remove_rmap_ptes"), self._at_old_page,
                  self._show_old_page),
            *self.last_stages(),
        ]  # fmt: skip

    @staticmethod
    def _places(name: str) -> list[int]:
        return list(code.inlined(name)) + code.entries(name)

    def _show_tables(self) -> None:
        found = tasks.upper_levels(self.mm, self.address)
        facts = []
        for name, entry in found:
            there = entry & tasks.TABLE_PRESENT
            facts.append((name, f"{entry:#x}" if there else "empty: its table is to be allocated"))
        if len(found) < 2:
            facts.append(("pmd", "in that table"))
        entry_now = self.entry()
        facts.append(("pte", show.pte(entry_now)))
        self.say(
            "__handle_mm_fault",
            "The page tables are walked from the PGD down; what is missing is allocated.",
            facts,
        )

    def _show_pmd_alloc(self) -> None:
        self.say("__pmd_alloc", "A table of PMDs is missing, and is allocated.", [])

    def _show_pte_alloc(self) -> None:
        self.say("__pte_alloc", "A page table (of PTEs) is missing, and is allocated.", [])

    def _at_pte(self) -> bool:
        if not self.in_fault():
            return False
        self.vmf = ways.vm_fault(code.chain(TOP)) or 0
        return True

    def _show_pte(self) -> None:
        self.say(
            "handle_pte_fault",
            "The PTE decides which case this is.",
            [("pte", show.pte(self.entry())),
             ("vm_fault", f"{self.vmf:#x}" if self.vmf else show.GONE)],
            within=guide.inside("handle_pte_fault"),
        )  # fmt: skip

    def _is_case(self, name: str) -> bool:
        """Return whether it is this case; code of another may have been moved to its beginning."""
        if not self.in_fault():
            return False
        entry = self.entry()
        empty = entry is None or entry.none
        area = tasks.read_vma(self.vma)
        anonymous = not kernel.member(self.vma, "struct vm_area_struct", "vm_ops")
        shared = bool(area.flags & show.VM_SHARED)
        write = bool(self.of_vmf("flags", 4) & kernel.enum("fault_flag")[FAULT_WRITE])
        return {
            "do_anonymous_page": empty and anonymous,
            "do_read_fault": empty and not anonymous and not write,
            "do_cow_fault": empty and not anonymous and write and not shared,
            "do_shared_fault": empty and not anonymous and write and shared,
            "do_swap_page": not empty and entry is not None and not entry.present,
            "do_wp_page": not empty and entry is not None and entry.present,
        }[name]

    def _show_case(self, name: str) -> None:
        sentence = CASES[name]
        if name == "do_anonymous_page" and self.vmf:
            write = self.of_vmf("flags", 4) & kernel.enum("fault_flag")[FAULT_WRITE]
            sentence += (
                " It is a write: a page of its own is allocated."
                if write
                else " It is a read: the zero page is mapped, and nothing enters PKSM."
            )
        facts: Facts = [("area", show.vma(self.vma)), ("pte", show.pte(self.entry()))]
        if name == "do_wp_page":
            entry = self.entry()
            if entry is not None and entry.present:
                facts.append(("page", show.page(entry.pfn)))
        self.say(name, sentence, facts, within=guide.inside(name))

    def _show_reuse(self) -> None:
        entry = self.entry()
        facts: Facts = []
        if entry is not None and entry.present:
            exclusive = memory.read_page(entry.pfn).has("owner_2")
            why = "it is marked as this process's own (anon_exclusive)" if exclusive else (
                "no other PTE and no other reference has it"
            )
            facts = [("page", show.page(entry.pfn)), ("why", why)]
        self.say("wp_page_reuse", "The page is reused: its PTE is made writable.", facts,
                 within=guide.inside("wp_page_reuse"))  # fmt: skip

    def _comes_back(self) -> bool:
        """Return whether a function comes back to one that handles the fault."""
        return self.in_fault() and code.returns_to() in BODIES

    def _in_copy(self) -> bool:
        # The first that wp_page_copy() does; where it begins, inlined, is not clear-cut.
        return self.in_fault() and code.find(code.chain(TOP), "wp_page_copy") is not None

    def _show_no_reuse(self) -> None:
        page = self.of_vmf("page")
        self.old = memory.page_to_pfn(page) if page else None
        facts: Facts = []
        if self.old is None:
            why = "the zero page is everybody's"
        else:
            seen = memory.read_page(self.old)
            facts = [("old page", show.page(self.old)), ("its record", show.record_of(self.old))]
            why = {
                "ksm": "folio_test_ksm(): a merged page is never written to, "
                "even with one mapping left",
                "anon": "other PTEs or references have it, and it is not anon_exclusive",
            }.get(seen.kind, "it is a page of a file, and the mapping is private")
        self.say("wp_page_copy", "The page cannot be reused, and is copied.",
                 [*facts, ("why", why)], within="do_wp_page")  # fmt: skip

    def _show_copy(self) -> None:
        facts: Facts = []
        if self.old is not None:
            facts.append(("from", show.page(self.old)))
        if self.new is not None:
            facts.append(("to", f"pfn {self.new:#x}"))
        self.say("__wp_page_copy_user", "The contents are copied to the new page.", facts,
                 within=guide.inside("__wp_page_copy_user"))  # fmt: skip

    def _only_flags(self) -> bool:
        if not self.in_fault():
            return False
        names = {level.name for level in code.chain(TOP)}
        return not names & {"do_wp_page", "wp_page_reuse"}

    def _show_flags(self) -> None:
        self.say(
            "ptep_set_access_flags",
            "The PTE is there and allows the access: only its accessed and dirty bits are set.",
            [("pte", show.pte(self.entry()))],
        )

    def _show_swapped_in(self) -> None:
        folio = code.register("rax")
        what = show.page(memory.page_to_pfn(folio)) if folio else "none: no memory"
        self.say(
            "do_swap_page", "The page was read from the swap device.", [("page", what)]
        )

    def _show_allocation(self) -> None:
        folio = code.register("rax")
        if not folio:
            self.say("__folio_alloc_noprof", "There is no memory: the fault fails.", [])
            return
        self.new = memory.page_to_pfn(folio)
        levels = [level.name for level in code.chain(frozenset({"__handle_mm_fault"}))]
        wanted = next((name for name in levels if name in (*CASES, "wp_page_copy")), levels[0])
        self.say(
            "__folio_alloc_noprof",
            f"A page has come from the page allocator, for {wanted}().",
            [("page", f"pfn {self.new:#x}, struct page {folio:#x}"),
             ("flags", show.flags(self.new)),
             ("record", show.record_of(self.new))],
        )  # fmt: skip

    def _show_finish(self) -> None:
        facts: Facts = []
        for label, member in (("file's page", "page"), ("copy", "cow_page")):
            where = self.of_vmf(member)
            if where:
                facts.append((label, show.page(memory.page_to_pfn(where))))
        self.say("finish_fault", "The page of the file is there; it is to be mapped.", facts)

    def _at_clear(self) -> bool:
        return self.in_fault() and not (code.argument(1) ^ self.address) & PAGE_MASK

    def _show_clear(self) -> None:
        self.say(
            "ptep_clear_flush",
            "The old PTE is cleared and the TLB flushed, before the new one is written.",
            [("pte before", show.pte(self.entry()))],
        )

    def _at_rmap(self) -> bool:
        return self.in_fault() and not (code.argument(2) ^ self.address) & PAGE_MASK

    def _at_set_rmap(self) -> bool:
        # Pages of a file that are mapped around the address are no part of this fault.
        names = {level.name for level in code.chain(TOP)}
        return self.in_fault() and not names & {"do_fault_around", "filemap_map_pages"}

    def _show_rmap(self) -> None:
        function = code.blocks_at(gdb.newest_frame().pc())[-1]
        sentence = "The page is joined to the area: its PTEs can be found from it (rmap)."
        if function == "folio_add_new_anon_rmap":
            sentence = "The page becomes anonymous: it gets its anon_vma and index (rmap)."
        pfn = memory.page_to_pfn(code.argument(0))
        area = tasks.read_vma(self.vma)
        facts = [("page", show.page(pfn)), ("anon_vma", f"{area.anon_vma:#x}")]
        self.say(function, sentence, facts)

    def _show_hook(self) -> None:
        pfn = memory.page_to_pfn(code.argument(0))
        self.new = pfn
        self.say(
            "pksm_add_new_anon_page",
            "The hook: PKSM takes the page in. It is private still, and in no page table.",
            [
                ("page", show.page(pfn)),
                ("rmap_item", f"{code.argument(1):#x}"),
                ("anon_vma", f"{code.argument(2):#x}"),
                ("record before", show.record_of(pfn)),
            ],
        )

    def _show_swap_hook(self) -> None:
        pfn = memory.page_to_pfn(code.argument(0))
        tracked = "PKSM has tracked it all the time, in the swap cache."
        if not memory.read_page(pfn).has("pksm"):
            tracked = "PKSM does not track it (any more)."
        self.say(
            "__pksm_add_swapped_in",
            f"The hook: a page has come back from swap. {tracked}",
            [("page", show.page(pfn)), ("record before", show.record_of(pfn))],
        )

    def _show_taken_in(self) -> None:
        pfn = memory.page_to_pfn(code.argument(0))
        self.say(
            "pksm_add_moved_page",
            "PKSM takes the page in.",
            [("page", show.page(pfn)), ("record before", show.record_of(pfn))],
        )

    def _at_set_pte(self) -> bool:
        if not self.in_fault():
            return False
        level = code.find(code.chain(TOP), "set_pte")
        where = level.number("pteptr") if level is not None else None
        entry = self.entry()
        return where is None or entry is None or where == entry.address

    def _show_set_pte(self) -> None:
        levels = code.chain(TOP)
        facts: Facts = [("pte before", show.pte(self.entry()))]
        for name, variable in (("set_pte", "pteval"), ("set_ptes", "pte"),
                               ("wp_page_copy", "entry"), ("do_anonymous_page", "entry"),
                               ("do_swap_page", "pte"), ("set_pte_range", "entry")):  # fmt: skip
            level = code.find(levels, name)
            value = show.pte_value(level.value(variable)) if level is not None else None
            if value is not None:
                facts.append(("pte to be", value))
                break
        else:
            facts.append(("pte to be", f"{show.GONE}; the last stage shows it"))
        self.say(
            "set_pte",
            "The PTE is written: from now on the process has the page.",
            facts,
            within=guide.inside("set_pte"),
        )

    def _at_old_page(self) -> bool:
        return (
            self.in_fault()
            and self.old is not None
            and memory.page_to_pfn(code.argument(1)) == self.old
        )

    def _show_old_page(self) -> None:
        assert self.old is not None
        left = memory.read_page(self.old).mapcount - 1
        self.say(
            "folio_remove_rmap_ptes",
            "The new PTE is there, so the old page loses this mapping.",
            [("old page", show.page(self.old)), ("mappings", f"{left + 1}, then {left}")],
        )

    def _show_written(self) -> None:
        pfn = memory.page_to_pfn(code.argument(0))
        watched = record.read_record(pfn).page_class == record.WATCHED
        if code.called_by() == "__pksm_add_swapped_in":
            sentence = "Its PTE may be writable, but PKSM does not watch it: nothing happens."
            if watched:
                sentence = (
                    "PKSM watches the page, but its PTE may be writable: it counts as written to."
                )
        elif watched:
            sentence = "PKSM watches the page, and is told of the write: its hash is outdated."
        else:
            sentence = "PKSM is told of the write, but does not watch the page: nothing happens."
        facts = [("page", show.page(pfn)), ("record before", show.record_of(pfn))]
        self.say("__pksm_page_written", sentence, facts)

    def _show_broken(self) -> None:
        pfn = memory.page_to_pfn(code.argument(0))
        facts = [("old page", show.page(pfn)), ("its record", show.record_of(pfn))]
        self.say("__pksm_page_broken", "PKSM counts the break of a merged page.", facts)

    def _show_unmapped(self) -> None:
        page = memory.read_page(memory.page_to_pfn(code.argument(0)))
        facts: Facts = []
        if page.kind == "ksm" and page.owner:
            node = index.read_node(page.owner)
            facts = [("node", f"{node.address:#x}, {node.nr_sharers} sharers")]
        self.say(
            "__pksm_page_unmapped",
            "A mapping of the merged page goes: its node is noted, so that pksmd looks for a "
            "sharer that is stale now.",
            facts,
        )

    def _show_broken_off(self) -> None:
        pfn = memory.page_to_pfn(code.argument(0))
        self.new = pfn
        self.say(
            "__pksm_add_broken_off",
            "The hook: PKSM takes the copy in. It waits longer than a new page: it may be written "
            "to again.",
            [
                ("page", show.page(pfn)),
                ("rmap_item", f"{code.argument(1):#x}"),
                ("record before", show.record_of(pfn)),
            ],
        )

    def summary(self) -> Facts:
        """Return what is different at the end, with what is left of a copied page."""
        facts = super().summary()
        if self.old is not None:
            facts += [("old page", show.page(self.old)), ("its record", show.record_of(self.old))]
        return facts


class CowGuide(FaultGuide):
    """Follows one copy-on-write break of a merged page."""

    NAME = "break"

    def begins(self, mm: int, address: int, write: bool) -> bool:
        """Return whether a write begins here to a page that is merged."""
        if not write or not super().begins(mm, address, write):
            return False
        entry = tasks.walk(mm, address)
        if entry is None or not entry.present or entry.pfn == memory.zero_pfn():
            return False
        return memory.read_page(entry.pfn).kind == "ksm"

    def waits_for(self) -> str:
        """Return what is waited for."""
        return f"{super().waits_for()}, where a merged page is written to"

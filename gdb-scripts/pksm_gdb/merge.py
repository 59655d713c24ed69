# SPDX-License-Identifier: GPL-2.0-only
"""pksm merge: what pksmd does with one page, from candidate to the PTE.

The functions are those of mm/pksm/match.c and mm/pksm/merge.c.
"""

from __future__ import annotations

from collections.abc import Callable

from . import code, counters, domain, guide, index, kernel, memory, record, rmap, show, tasks
from .guide import Facts, Stage

CONSIDER = "pksm_consider"
# Who calls what the stages look for: the compiler makes one function of some of these.
CONSIDERING = frozenset(
    (CONSIDER, "pksm_try", "pksm_try_stable", "pksm_try_unstable", "pksm_try_candidate")
)
FREEZING = frozenset(("pksm_freeze",))
MERGING = frozenset(("pksm_merge_one", "pksm_merge_pte"))
MERGED = 0
ATTEMPTS = ("pksm_merge_with_zero", "pksm_merge_with_stable", "pksm_merge_with_unstable")
COUNTED = ("pages_scanned", "pages_merged")


class MergeGuide(guide.Guide):
    """Follows one page through pksmd's hands."""

    NAME = "merge"

    def __init__(self, pfn: int | None) -> None:
        super().__init__()
        self.wanted = pfn
        self.pfn = 0
        self.page = 0
        self.partner: int | None = None
        # The PTE in whose critical section it is: address space and address.
        self.place: tuple[int, int] | None = None
        self._stack: int | None = None
        self._before: dict[str, int] = {}
        self._fits = 0
        self._restores = False

    def waits_for(self) -> str:
        """Return what is waited for."""
        what = f"pfn {self.wanted:#x}" if self.wanted is not None else "a page"
        return f"pksmd to consider {what}"

    def stages(self) -> list[Stage]:
        """Return the stages of a merge."""
        def after(
            callee: str,
            show: Callable[[], None],
            *,
            within: frozenset[str] = CONSIDERING,
            repeated: bool = False,
        ) -> Stage:
            return Stage(f"after {callee}", code.exits(callee),
                         lambda: self.mine() and bool(code.returns_into() & within), show,
                         repeated=repeated)  # fmt: skip

        def result(name: str) -> Stage:
            return after(name, lambda: self._show_result(name))

        mine = self.mine
        return [
            Stage("consider", code.entries(CONSIDER), self._at_consider, self._show_consider,
                  first=True),
            Stage("freed", code.entries("pksm_del_anon_page"), self._is_freed_before,
                  self._show_freed_before, first=True),
            after("pksm_get_tracked", self._show_get),
            after("pksm_folio_fit", self._show_fit, repeated=True),
            after("pksm_folio_survey", self._show_survey),
            after("pksm_clean", self._show_clean, repeated=True),
            after("pksm_hash_page", self._show_hash, repeated=True),
            Stage("zero", code.entries("pksm_merge_with_zero"), mine, self._show_zero),
            after("pksm_stable_next", self._show_stable, repeated=True),
            after("pksm_unstable_next", self._show_unstable),
            Stage("with stable", code.entries("pksm_merge_with_stable"), mine,
                  lambda: self._show_with("pksm_merge_with_stable")),
            Stage("with unstable", code.entries("pksm_merge_with_unstable"), mine,
                  lambda: self._show_with("pksm_merge_with_unstable")),
            Stage("freeze", code.entries("pksm_freeze_one"), mine, self._show_freeze,
                  repeated=True),
            after("rmap_walk", self._show_frozen, within=FREEZING),
            Stage("critical", code.entries("pksm_merge_one"), mine, self._show_critical,
                  repeated=True),
            after("ptep_clear_flush", self._show_cleared, within=MERGING, repeated=True),
            after("pksm_pages_equal", self._show_compared, within=MERGING, repeated=True),
            Stage("set_pte", code.copies("set_pte", "pksm_merge_pte"), mine, self._show_set_pte),
            Stage("unmapped", code.entries("folio_remove_rmap_ptes"), self._is_unmapped,
                  self._show_unmapped, repeated=True),
            *(result(name) for name in ATTEMPTS),
            Stage("dropped", code.entries("pksm_queue_drop"), self._is_dropped,
                  self._show_dropped),
            Stage("inserted", code.entries("pksm_unstable_insert"), mine, self._show_inserted),
            Stage("put back", code.entries("pksm_queue_add"), self._is_put_back,
                  self._show_put_back),
            Stage("changed", code.entries("pksm_queue_changed"), self._is_put_back,
                  self._show_changed),
            Stage("last reference", code.entries("__folio_put"), self._is_last,
                  self._show_last),
            Stage("end", code.exits(CONSIDER), self._at_end, self._show_end),
        ]  # fmt: skip

    # Conditions

    def _at_consider(self) -> bool:
        if self.task is not None:
            return False
        pfn = code.argument(0)
        if self.wanted is not None and pfn != self.wanted:
            return False
        self.task = tasks.current().address
        self.pfn, self.page = pfn, memory.pfn_to_page(pfn)
        self._stack = code.stack_pointer()
        return True

    def _is_freed_before(self) -> bool:
        if self.task is not None or self.wanted is None:
            return False
        return code.argument(0) == memory.pfn_to_page(self.wanted)

    def _is_unmapped(self) -> bool:
        return self.mine() and code.argument(1) == self.page

    def _is_dropped(self) -> bool:
        return self.mine() and code.argument(0) == self.page

    def _is_put_back(self) -> bool:
        return self.mine() and code.argument(0) == self.pfn

    def _is_last(self) -> bool:
        return self.mine() and code.argument(0) == self.page

    def _at_end(self) -> bool:
        return self.mine() and code.stack_pointer() == self._stack

    # What is printed

    def _facts(self) -> Facts:
        return [("page", show.page(self.pfn)), ("record", show.record_of(self.pfn))]

    def _result(self) -> str:
        return show.enumerator(code.register("rax") & 0xFFFFFFFF, "pksm_result", "PKSM_")

    def _pte(self) -> str:
        assert self.place is not None
        return show.pte(tasks.walk(*self.place))

    def _show_consider(self) -> None:
        self._before = {name: counters.event_sum(counters.EVENTS[name]) for name in COUNTED}
        page = memory.read_page(self.pfn)
        facts = self._facts()
        for mapping in rmap.mappings(page)[:4]:
            facts.append(("mapped by", f"{mapping.process} at {mapping.address:#x}: {mapping.pte}"))
        self.say(CONSIDER, "pksmd takes a page in hand that has settled.", facts)

    def _show_freed_before(self) -> bool:
        print(f"pfn {self.wanted:#x} is freed before pksmd has considered it; nothing to follow.")
        return True

    def _show_get(self) -> None:
        if code.register("rax"):
            sentence = "pksmd has a reference of its own: the page cannot be freed meanwhile."
        else:
            sentence = "There is no reference to be had: the page is being freed, or migrated."
        self.say("pksm_get_tracked", sentence, self._facts())

    def _show_fit(self) -> None:
        self._fits += 1
        result = code.register("rax") & 0xFFFFFFFF
        whose = "The page" if self._fits == 1 else "The partner"
        if result == MERGED:
            sentence = f"{whose} is locked, and its state allows to merge it."
        else:
            sentence = f"{whose} cannot be merged: it is {self._result()}."
        self.say("pksm_folio_fit", sentence, [])

    def _show_survey(self) -> None:
        result = code.register("rax") & 0xFFFFFFFF
        mixed = domain.of_page(memory.read_page(self.pfn))
        facts: Facts = []
        if mixed == domain.NOBODY:
            facts = [("domain", "none: nobody's, or of several")]
        elif result == MERGED:
            facts = [("domain", domain.name(mixed))]
        sentence = "All that map the page are asked: an area of theirs may be merged (VM_MERGEABLE)."
        if result != MERGED:
            sentence = f"All that map the page are asked, and it cannot be merged: {self._result()}."
        self.say("pksm_folio_survey", sentence, facts)

    def _show_clean(self) -> None:
        dirty = code.register("rax") & 0xFF
        sentence = "No PTE of a page is dirty: that says nothing of whether it was written to."
        if dirty:
            sentence = "A PTE of a page was dirty, and is cleaned: the next write will be seen there."
        self.say("pksm_clean", sentence, [])

    def _show_hash(self) -> None:
        value = code.register("rax")
        zero = kernel.variable("pksm_hash_of_zero")
        facts: Facts = [("hash", f"{value:#018x}" + (", that of zeroes" if value == zero else ""))]
        self.say("pksm_hash_page", "A page is read, all of it, and hashed with the key.", facts)

    def _show_zero(self) -> None:
        self.say("pksm_merge_with_zero", "A page of zeroes: the zero page takes its place.", [])

    def _show_stable(self) -> None:
        where = code.register("rax")
        if where:
            node = index.read_node(where)
            self.say(
                "pksm_stable_next",
                "The stable index has a merged page of this hash.",
                [("node", f"{where:#x}, {node.nr_sharers} sharers"),
                 ("its page", show.page(node.pfn))],
            )  # fmt: skip
        else:
            self.say("pksm_stable_next", "The stable index has no (other) page of this hash.", [])

    def _show_unstable(self) -> None:
        pfn = code.register("rax") & 0xFFFFFFFF
        if pfn == record.END:
            self.say("pksm_unstable_next", "The unstable index has no page of this hash.", [])
        else:
            self.say(
                "pksm_unstable_next",
                "The unstable index has a page whose hash has the same "
                f"{record.layout('HASH_BITS')} bits.",
                [("candidate", show.page(pfn)), ("record", show.record_of(pfn))],
            )

    def _show_with(self, function: str) -> None:
        self.partner = memory.page_to_pfn(code.argument(1))
        stable = function == "pksm_merge_with_stable"
        kind = "the merged page" if stable else "the page of the unstable index, which is to "
        self.say(
            function,
            f"The attempt: {kind}{'' if stable else 'become the merged one'}, takes its place.",
            [("partner", show.page(self.partner)), ("its record", show.record_of(self.partner)),
             ("page", show.page(self.pfn))],
        )  # fmt: skip

    def _show_freeze(self) -> None:
        area, address = code.argument(1), code.argument(2)
        mm = kernel.member(area, "struct vm_area_struct", "vm_mm")
        self.say(
            "pksm_freeze_one",
            "The partner is frozen: this PTE of it is about to be write-protected.",
            [("at", f"{tasks.name_of(mm)}, {address:#x}"),
             ("pte before", show.pte(tasks.walk(mm, address)))],
        )  # fmt: skip

    def _show_frozen(self) -> None:
        assert self.partner is not None
        facts: Facts = [("partner", show.page(self.partner))]
        writable = 0
        for mapping in rmap.mappings(memory.read_page(self.partner)):
            writable += mapping.pte.writable
            facts.append(("pte now", f"{mapping.process}, {mapping.address:#x}: {mapping.pte}"))
        sentence = "All PTEs of the partner are read-only: it cannot change while it is locked."
        if writable:
            sentence = "The partner could not be frozen: a PTE of it is writable."
        self.say("pksm_freeze", sentence, facts, within=code.returns_to())

    def _show_critical(self) -> None:
        area, address = code.argument(1), code.argument(2)
        self.place = (kernel.member(area, "struct vm_area_struct", "vm_mm"), address)
        self.say(
            "pksm_merge_one",
            "The critical section of one PTE that maps the page, under its page table lock.",
            [("at", f"{tasks.name_of(self.place[0])}, {address:#x}"), ("pte before", self._pte())],
        )

    def _show_cleared(self) -> None:
        page = memory.read_page(self.pfn)
        beyond = page.refcount - page.mapcount - 1
        self._restores = beyond != 0
        verdict = f"{beyond} foreign: it is left alone" if beyond else "nobody else has the page"
        self.say(
            "ptep_clear_flush",
            "The PTE is cleared and the TLB flushed: nobody can write, or get a reference by it.",
            [
                ("pte now", self._pte()),
                ("references", f"{page.refcount} = {page.mapcount} of mappings + 1 of pksmd"
                 f"{f' + {beyond}' if beyond else ''}: {verdict}"),
            ],
        )  # fmt: skip

    def _show_compared(self) -> None:
        equal = bool(code.register("rax") & 0xFF)
        self._restores = not equal
        verdict = "they are equal" if equal else "they differ: the old PTE is put back"
        partner = f"pfn {self.partner:#x}" if self.partner is not None else "the zero page"
        self.say("pksm_pages_equal", f"All bytes are compared with {partner}: {verdict}.", [])

    def _show_set_pte(self) -> None:
        levels = code.chain(frozenset({"pksm_merge_one"}))
        level = code.find(levels, "set_pte", "set_ptes")
        value = None
        if level is not None:
            value = show.pte_value(level.value("pteval") or level.value("pte"))
        self.say(
            "set_pte",
            "The old PTE is put back." if self._restores else "The new PTE is written.",
            [("pte to be", value or f"{show.GONE}; the last stage shows it")],
            within=guide.inside("set_pte"),
        )

    def _show_unmapped(self) -> None:
        facts: Facts = [("page", show.page(self.pfn))]
        if self.place is not None:
            facts.insert(0, ("pte now", self._pte()))
        if self.partner is not None:
            facts.append(("partner", show.page(self.partner)))
        self.say("folio_remove_rmap_ptes", "The page loses the mapping it had there.", facts)

    def _show_result(self, function: str) -> None:
        result = self._result()
        sentence = {
            "merged": "The page was absorbed: nothing maps it any more.",
            "differs": "The two pages are not equal.",
            "busy": "The page was locked, referenced or changing; nothing was changed.",
        }.get(result, "Nothing was changed.")
        facts: Facts = [("result", result)]
        if self.partner is not None:
            page = memory.read_page(self.partner)
            facts += [("partner", show.page(self.partner)),
                      ("its record", show.record_of(self.partner))]  # fmt: skip
            if page.kind == "ksm" and page.owner:
                node = index.read_node(page.owner)
                facts.append(("node", f"{node.address:#x}, {node.nr_sharers} sharers"))
        self.say(function, sentence, facts)

    def _show_dropped(self) -> None:
        self.say(
            "pksm_queue_drop",
            "PKSM does not track the page any more.",
            [("record before", show.record_of(self.pfn))],
        )

    def _show_inserted(self) -> None:
        bucket = index.bucket_of(code.argument(2) >> 64 - record.layout("HASH_BITS"))
        self.say(
            "pksm_unstable_insert",
            "No equal was found: the page joins the unstable index, for others to find it.",
            [("bucket", f"{bucket:#x}")],
        )

    def _show_put_back(self) -> None:
        level = code.argument(2) & 0xFFFFFFFF
        self.say(
            "pksm_queue_add",
            "The page was busy: it waits for another try.",
            self._wait(level, code.argument(3) & 0xFFFFFFFF),
        )

    def _show_changed(self) -> None:
        age = min(code.argument(2) & 0xFFFFFFFF, record.max_age())
        self.say(
            "pksm_queue_changed",
            "The page has changed: it waits, the longer the older it is.",
            self._wait(record.age_level(age), age),
        )

    @staticmethod
    def _wait(level: int, age: int) -> Facts:
        wait = index.interval_millisecs(level)
        return [("level", f"{level}: {wait} ms or twice that"), ("age", str(age))]

    def _show_last(self) -> None:
        self.say(
            "__folio_put",
            "pksmd's reference was the last: the absorbed page is freed.",
            [("page", show.page(self.pfn))],
        )

    def _show_end(self) -> bool:
        facts: Facts = [("record after", show.record_of(self.pfn))]
        if self.place is not None:
            mm, address = self.place
            facts.append(("pte now", f"{tasks.name_of(mm)}, {address:#x}: {self._pte()}"))
        if self.partner is not None:
            facts.append(("partner", show.page(self.partner)))
        for name, before in self._before.items():
            now = counters.event_sum(counters.EVENTS[name])
            facts.append((name, f"{before} -> {now}"))
        self.say(CONSIDER, "pksmd is done with the page.", facts)
        print("The merge is over.")
        return True

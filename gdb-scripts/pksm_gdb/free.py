# SPDX-License-Identifier: GPL-2.0-only
"""pksm free: the free of one page, from its last PTE to the list it is put on.

The functions are those of mm/memory.c, mm/mmu_gather.c, mm/swap_state.c,
mm/swap.c and mm/page_alloc.c of 6.12, and of 7.3 where they were renamed.
"""

from __future__ import annotations

from . import code, guide, index, kernel, memory, record, show, tasks, ways
from .guide import Facts, Stage

# What encode_page() keeps in the low bits of a struct page's address (include/linux/mm_types.h).
ENCODED_PAGE_BITS = 3
HOOK = "pksm_del_anon_page"
# What 7.3 calls these functions of 6.12.
LATER = {
    "free_unref_page": "__free_frozen_pages",
    "free_unref_page_commit": "free_frozen_page_commit",
    "free_pages_prepare": "__free_pages_prepare",
}


def name_here(function: str) -> str:
    """Return what this kernel calls a function of 6.12."""
    later = LATER[function]
    there = code.function_address(later) is not None or bool(code.inlined(later))
    return later if there else function


def batch_pages(where: int) -> list[int]:
    """Return the struct pages of the folio_batch at *where*."""
    name = "struct folio_batch"
    count = kernel.member(where, name, "nr", 1)
    first = where + kernel.offset(name, "folios")
    return [kernel.number(first + kernel.WORD * i) for i in range(count)]


class FreeGuide(guide.Guide):
    """Follows the free of one page."""

    NAME = "free"

    def __init__(self, pfn: int | None) -> None:
        super().__init__()
        self.wanted = pfn
        self.pfn: int | None = None
        self.page = 0
        self._hook_stack: int | None = None

    def waits_for(self) -> str:
        """Return what is waited for."""
        if self.wanted is None:
            return "the next free of a tracked page"
        return f"the free of pfn {self.wanted:#x}"

    def stages(self) -> list[Stage]:
        """Return the stages of a free."""
        return [
            Stage("unmap", code.entries("folio_remove_rmap_ptes"), self._at_unmap,
                  self._show_unmap, first=True),
            Stage("forget", code.entries("pksm_forget"), lambda: self._is_argument(0),
                  self._show_forget, first=True),
            Stage("gather", code.entries("__tlb_remove_folio_pages"),
                  lambda: self._is_argument(1), self._show_gather),
            Stage("flush", code.entries("free_pages_and_swap_cache"), self._at_flush,
                  self._show_flush),
            Stage("put batch", code.entries("folios_put_refs"), lambda: self._in_batch(False),
                  self._show_put_batch),
            Stage("free batch", code.entries("free_unref_folios"), lambda: self._in_batch(True),
                  self._show_free_batch, first=True),
            Stage("put", code.entries("__folio_put"), lambda: self._begins(code.argument(0)),
                  self._show_put, first=True),
            Stage("free one", code.entries(name_here("free_unref_page")),
                  lambda: self._begins(code.argument(0)), self._show_free_one, first=True),
            Stage("free block", code.entries("__free_pages_ok"),
                  lambda: self._begins(code.argument(0)), self._show_free_block, first=True),
            Stage("hook", code.entries(HOOK), self._at_hook, self._show_hook, first=True),
            Stage("hook's end", code.exits(HOOK), self._at_hook_end, self._show_hook_end),
            Stage("per-CPU list", code.entries(name_here("free_unref_page_commit")),
                  lambda: self._is_argument(2), self._show_pcp),
            Stage("buddy", code.entries("__free_one_page"), lambda: self._is_argument(0),
                  self._show_buddy),
        ]  # fmt: skip

    # Which page it is

    def _begins(self, page: int) -> bool:
        """Return whether *page* is the one, or may become it: a tracked page is freed."""
        if self.page:
            return page == self.page
        pfn = memory.page_to_pfn(page)
        if self.wanted is not None and pfn != self.wanted:
            return False
        if self.wanted is None and not memory.read_page(pfn).has("pksm"):
            return False
        self.pfn, self.page = pfn, page
        return True

    def _is_argument(self, number: int) -> bool:
        """Return whether the page is that argument of the function that begins here."""
        wanted = self.page or (memory.pfn_to_page(self.wanted) if self.wanted is not None else 0)
        return bool(wanted) and code.argument(number) == wanted and self._begins(wanted)

    def _at_unmap(self) -> bool:
        page = code.argument(1)
        seen = memory.read_page(memory.page_to_pfn(page))
        if seen.mapcount != 1:
            return False
        if self.wanted is None and not self.page and seen.refcount != 1:
            return False
        return self._begins(page)

    def _in_batch(self, freed: bool) -> bool:
        pages = batch_pages(code.argument(0))
        if self.page:
            return self.page in pages
        return freed and any(self._begins(page) for page in pages)

    def _at_flush(self) -> bool:
        if not self.page:
            return False
        first, count = code.argument(0), code.argument(1) & 0xFFFFFFFF
        return any(
            kernel.number(first + kernel.WORD * i) & ~ENCODED_PAGE_BITS == self.page
            for i in range(count)
        )

    def _at_hook(self) -> bool:
        if not self._begins(code.argument(0)):
            return False
        self._hook_stack = code.stack_pointer()
        return True

    def _at_hook_end(self) -> bool:
        return self._hook_stack is not None and code.stack_pointer() == self._hook_stack

    # What is printed

    def _facts(self) -> Facts:
        assert self.pfn is not None
        return [("page", show.page(self.pfn)), ("record", show.record_of(self.pfn))]

    def _show_unmap(self) -> None:
        assert self.pfn is not None
        area = tasks.read_vma(code.argument(3))
        page = memory.read_page(self.pfn)
        address = area.place(page.index) if page.kind == "anon" else None
        facts = [("task", str(tasks.current())), *self._facts(), ("area", show.vma(area.address))]
        if address is not None:
            entry = tasks.walk(area.mm, address)
            facts.append(("address", f"{address:#x}, whose PTE is {show.pte(entry)} now"))
        beyond = page.refcount - page.mapcount
        if beyond:
            facts.append(("but", f"{beyond} more have a reference: it is not freed before they go"))
        self.say("folio_remove_rmap_ptes", "The last PTE that mapped the page is gone.", facts)

    def _show_forget(self) -> None:
        self.say(
            "pksm_forget",
            "PKSM lets go of the page while it is still in use: its free passes no hook.",
            self._facts(),
        )

    def _show_gather(self) -> None:
        name = "struct mmu_gather_batch"
        batch = kernel.member(code.argument(0), "struct mmu_gather", "active")
        count = kernel.member(batch, name, "nr", 4)
        room = kernel.member(batch, name, "max", 4)
        self.say(
            "__tlb_remove_folio_pages",
            "The page joins a batch, to be freed when the TLB has been flushed.",
            [("batch", f"{count} pages are in it, of at most {room}"), *self._facts()],
        )

    def _show_flush(self) -> None:
        self.say(
            "free_pages_and_swap_cache",
            "The TLB was flushed. The batch is worked off: first each page's swap cache.",
            [("batch", f"{code.argument(1) & 0xFFFFFFFF} pages"), *self._facts()],
        )

    def _show_put_batch(self) -> None:
        pages = batch_pages(code.argument(0))
        self.say(
            "folios_put_refs",
            "The references are put; a page whose count goes to 0 leaves the LRU.",
            [("batch", f"{len(pages)} folios in this round"), *self._facts()],
        )

    def _show_free_batch(self) -> None:
        pages = batch_pages(code.argument(0))
        self.say(
            "free_unref_folios",
            "Nobody has a reference any more: these pages go to the page allocator together.",
            [("batch", f"{len(pages)} folios"), *self._facts()],
        )

    def _show_put(self) -> None:
        self.say(
            "__folio_put",
            "The last reference was put: the page leaves the LRU, and is freed alone.",
            [*self._facts(), ("way", ways.current().text)],
        )

    def _show_free_one(self) -> None:
        order = code.argument(1) & 0xFFFFFFFF
        self.say(
            name_here("free_unref_page"),
            "The page goes to the page allocator, alone.",
            [("order", str(order)), *self._facts()],
        )

    def _show_free_block(self) -> None:
        order = code.argument(1) & 0xFFFFFFFF
        self.say(
            "__free_pages_ok",
            "The block goes to the buddy allocator, past the per-CPU lists.",
            [("order", f"{order}, {1 << order} pages"), *self._facts()],
        )

    def _show_hook(self) -> None:
        assert self.pfn is not None
        # It is inlined wherever it is used, and has no beginning of its own to stop at.
        self.say(
            name_here("free_pages_prepare"),
            "Every free comes by here. PagePKSM() says that the hook is to be called.",
            [("flags", show.flags(self.pfn))],
            within=code.called_by(),
        )
        self.say(
            HOOK,
            "The hook: PKSM forgets the page, in any context and at once.",
            [("page", show.page(self.pfn)), ("record before", show.record_of(self.pfn))],
        )

    def _show_hook_end(self) -> None:
        assert self.pfn is not None
        self.say(
            HOOK,
            "The hook has done its work.",
            [("record after", show.record_of(self.pfn)), ("left to pksmd", self._left())],
        )

    def _left(self) -> str:
        """Return what the hook has left to pksmd."""
        assert self.pfn is not None
        entry = record.read_record(self.pfn)
        if entry.where == "list":
            return "the record stays in its list; pksmd drops it when it gets there"
        if entry.where == "index":
            bucket = index.bucket_of(entry.tag or 0)
            marked = index.read_marks("pksm_dead").lacks(bucket) is None
            mark = "is marked, so that pksmd finds it" if marked else "is not marked"
            return f"the record stays in bucket {bucket:#x} of the unstable index, which {mark}"
        page = memory.read_page(self.pfn)
        if page.mapping & memory.MAPPING_FLAGS == memory.MAPPING_FLAGS and page.owner:
            queued = page.owner in index.dead_nodes()
            where = "is queued as dead" if queued else "is not queued"
            return f"the stable node {page.owner:#x}, which {where}, for pksmd to free"
        return "nothing: the record is linked nowhere"

    def _show_pcp(self) -> bool:
        name = "struct per_cpu_pages"
        where = code.argument(1)
        kind = show.enumerator(code.argument(3) & 0xFFFFFFFF, "migratetype", "MIGRATE_")
        self.say(
            name_here("free_unref_page_commit"),
            "The page is put on a per-CPU list, from which it is soon taken again.",
            [
                ("list", f"{kind} pages of order {code.argument(4) & 0xFFFFFFFF}"),
                ("in the lists", f"{kernel.member(where, name, 'count', 4)} pages, "
                 f"of at most {kernel.member(where, name, 'high', 4)}"),
                *self._facts(),
            ],
        )  # fmt: skip
        return self._over()

    def _show_buddy(self) -> bool:
        kind = show.enumerator(code.argument(4) & 0xFFFFFFFF, "migratetype", "MIGRATE_")
        self.say(
            "__free_one_page",
            "The page joins the free list of the buddy allocator, merged with its buddies.",
            [("list", f"{kind} pages, from order {code.argument(3) & 0xFFFFFFFF} on"),
             *self._facts()],
        )  # fmt: skip
        return self._over()

    def _over(self) -> bool:
        print("The free is over.")
        return True

# SPDX-License-Identifier: GPL-2.0-only
"""pksm path: each way in and out is told apart, and shown as the chain it is."""

from __future__ import annotations

import re

import gdblab
import pytest
from lab import BootFresh
from linux_um.guest import Guest
from steplab import READY, SAY_READY, Pages, here, in_612, order_when_ready
from test_migrate import COMPACT, FILLER, ISLANDS

pytestmark = pytest.mark.needs_pksm

HOOK = "pksm_add_new_anon_page"
# That of the copy of a merged page.
BROKEN_OFF = "__pksm_add_broken_off"


# $current_task(): whose turn it is. Others may come by a place while a task waits.
CURRENT_TASK = """\
python
from pksm_gdb import tasks
class CurrentTask(gdb.Function):
    def invoke(self):
        return tasks.current().address
CurrentTask("current_task")
end
"""


def at_hook(address: int, *, at: str = HOOK, label: str) -> str:
    """Return commands that show the path of pagestep's next fault at an address.

    They need CURRENT_TASK.
    """
    return (
        f"pksm fault pagestep {address:#x}\npksm quit\nset $task = $current_task()\n"
        f"tbreak {at} if $current_task() == $task\ncontinue\n"
        f"echo begin {label}\\n\npksm path\necho end {label}\\n\n"
    )


def section(text: str, label: str) -> list[str]:
    """Return the lines between the marks of a label."""
    found = re.search(rf"^begin {label}\n(.*?)^end {label}$", text, re.M | re.S)
    assert found, text
    return found.group(1).splitlines()


def functions(lines: list[str]) -> list[str]:
    """Return the functions of a chain, outermost first; its indentation is checked."""
    names = []
    for depth, line in enumerate(lines):
        arrow = "" if not depth else "-> " if depth == 1 else "  " * (depth - 1) + "--> "
        assert line.startswith(arrow), line
        match = re.match(r"(\w+)\(\)  +\S+\.[chS](  \(inlined\))?$", line[len(arrow) :])
        assert match, line
        names.append(in_612(match.group(1)))
    return names


def in_order(names: list[str], *wanted: str) -> bool:
    """Return whether *wanted* are in a chain in that order."""
    rest = iter(names)
    return all(name in rest for name in wanted)


def test_the_ways_in_are_told_apart(guest: Guest) -> None:
    """The notes' two ways in, the kernel's own access, and the copies of the copy-on-writes."""
    pages = Pages(guest)
    fault = ("handle_mm_fault", "__handle_mm_fault", "handle_pte_fault")
    expected = [
        ("write", 1, "a user fault, the first touch of anonymous memory", "writes to",
         ("segv_handler", "segv", "handle_page_fault", *fault, "do_anonymous_page", HOOK)),
        ("populate", 2, "GUP, for madvise(MADV_POPULATE_READ or _WRITE)", "",
         ("do_madvise", "__get_user_pages", "faultin_page", *fault, "do_anonymous_page", HOOK)),
        ("mlock", 3, "GUP, for mlock(), which populates memory", "",
         ("do_mlock", "populate_vma_page_range", "__get_user_pages", *fault, HOOK)),
        ("kernel", 4, "a kernel access to user memory in pread64()", "writes to",
         ("vfs_read", "raw_copy_to_user", "maybe_map", "handle_page_fault", *fault, HOOK)),
        ("remote", 5, "GUP, for process_vm_readv() or process_vm_writev()", "",
         ("process_vm_rw", "__get_user_pages", *fault, HOOK)),
        ("child", 1, "a user fault, copy-on-write of an anonymous page that others share",
         "writes to", ("segv_handler", *fault, "do_wp_page", "wp_page_copy", HOOK)),
    ]  # fmt: skip
    orders = [f"{op} {page} 7" for op, page, *_ in expected]
    script = CURRENT_TASK + SAY_READY
    script += "".join(at_hook(pages.address(page), label=op) for op, page, *_ in expected)
    # A page that was read first: the write copies the zero page.
    orders += ["read 8", "write 8 9"]
    zero = pages.address(8)
    script += f"pksm fault pagestep {zero:#x} --all\n" + at_hook(zero, label="zero")
    orders.append("file 9 1")
    script += at_hook(pages.address(9, file=True), label="file")
    with gdblab.session(guest, script) as gdb:
        order_when_ready(gdb, pages, *orders)
        text = gdb.finish()
    answers = {(answer.op, answer.page): answer for answer in pages.answers()}
    for op, page, way, verb, chain in expected:
        lines = section(text, op)
        assert lines[0].startswith(f"The way in: {way}"), lines[0]
        assert f"{verb} {answers[op, page].address:#x}" in lines[0]
        assert "pagestep[" in lines[0]
        assert in_order(functions(lines[1:]), *chain), lines
    zero_path = section(text, "zero")
    assert "copy-on-write of the zero page" in zero_path[0]
    assert in_order(functions(zero_path[1:]), "do_wp_page", "wp_page_copy", HOOK)
    file_path = section(text, "file")
    assert "copy-on-write of a page of a private file mapping, on its first" in file_path[0]
    assert in_order(functions(file_path[1:]), "do_fault", "do_cow_fault", "finish_fault", HOOK)
    pages.finish()


def test_a_merged_page_and_exec(guest: Guest) -> None:
    """A write to a merged page; and exec, whose first page comes by GUP."""
    pages = Pages(guest)
    pages.order("write 1 5", "write 2 5", "settle")
    pages.answers()
    assert guest.pksm("pages_shared") >= 1
    script = CURRENT_TASK + SAY_READY + at_hook(pages.address(2), at=BROKEN_OFF, label="merged")
    # pagestep goes on meanwhile, where there is another CPU.
    script += "tbreak get_arg_page\ncontinue\nset $task = $current_task()\n"
    script += f"tbreak {HOOK} if $current_task() == $task\ncontinue\n"
    script += "echo begin exec\\n\npksm path --lines\necho end exec\\n\n"
    with gdblab.session(guest, script) as gdb:
        order_when_ready(gdb, pages, "write 2 6")
        gdb.wait_for("end merged")
        started = guest.start(["true"])
        text = gdb.finish()
    merged = section(text, "merged")
    assert "copy-on-write of a merged page: pagestep" in merged[0]
    assert in_order(functions(merged[1:]), "do_wp_page", "wp_page_copy", BROKEN_OFF)
    assert f"writes to {pages.address(2):#x}" in merged[0]
    exec_path = section(text, "exec")
    assert exec_path[0].startswith("The way in: GUP, for exec's arguments")
    assert re.search(r"get_user_pages_remote\(\) +mm/gup\.c:\d+", "\n".join(exec_path))
    assert started.wait().status == 0
    pages.finish()


def test_swap_in(boot_fresh: BootFresh) -> None:
    """A page that comes back from the swap device."""
    guest = boot_fresh(swap="64M")
    pages = Pages(guest)
    pages.order("write 1 5", "pageout 1")
    assert pages.answers()[-1].pfn == 0
    script = CURRENT_TASK + SAY_READY + at_hook(pages.address(1), at="do_swap_page", label="swap")
    with gdblab.session(guest, script) as gdb:
        order_when_ready(gdb, pages, "read 1")
        text = gdb.finish()
    lines = section(text, "swap")
    assert "a user fault, swap-in: pagestep" in lines[0]
    assert f"reads from {pages.address(1):#x}" in lines[0]
    assert in_order(functions(lines[1:]), "segv_handler", "handle_pte_fault", "do_swap_page")
    pages.finish()


def test_the_ways_out_are_told_apart(guest: Guest) -> None:
    """A batch by madvise and by exit, a single page, and a block of higher order."""
    pages = Pages(guest)
    # Two equal pages: one is absorbed, and freed alone.
    first, second, third = (pages.do(f"write {n} {n}").pfn for n in (1, 2, 3))
    pages.do("settle")
    hook = "tbreak pksm_del_anon_page if $rdi == (long)$pfn_to_page({pfn})\ncontinue\n"
    show = "echo begin {label}\\n\npksm path\necho end {label}\\n\n"
    script = SAY_READY
    script += hook.format(pfn=first) + show.format(label="madvise")
    script += 'tbreak __folio_put if $_any_caller_is("pksm_consider", 6)\ncontinue\n'
    script += show.format(label="single")
    script += f"tbreak {here('free_unref_page')} if $rsi > 0\ncontinue\n" + show.format(label="order")
    script += hook.format(pfn=second) + show.format(label="exit")
    with gdblab.session(guest, script) as gdb:
        order_when_ready(gdb, pages, "free 1", "write 10 3", "settle", "child 11 1")
        gdb.wait_for("end order")
        pages.finish()
        text = gdb.finish()
    assert third
    madvise = section(text, "madvise")
    assert madvise[0].startswith("The way out: a batch of pages (1 in this round), gathered while")
    assert "by madvise(MADV_DONTNEED or MADV_FREE): pagestep[" in madvise[0]
    batch = ("tlb_batch_pages_flush", "free_pages_and_swap_cache", "folios_put_refs",
             "free_unref_folios", "free_pages_prepare", "pksm_del_anon_page")  # fmt: skip
    # 7.3 frees what it has unmapped when it is done with all ranges.
    unmapping = ("zap_page_range_single", "madvise_finish_tlb")
    assert any(in_order(functions(madvise[1:]), "do_madvise", name, *batch) for name in unmapping)
    exited = section(text, "exit")
    assert "by the end of an address space (exit): pagestep[" in exited[0]
    assert in_order(functions(exited[1:]), "exit_mmap", *batch)
    single = section(text, "single")
    assert single[0].startswith("The way out: a single page; by pksmd")
    assert functions(single[1:])[0] == "pksmd"
    order = section(text, "order")
    assert re.match(r"The way out: a block of \d+ pages \(order [1-9]\)", order[0])


def path_of(guest: Guest, place: str, argv: list[str]) -> list[str]:
    """Run a program until it comes to a place, a location of gdb's; return the path there."""
    script = f"tbreak {place}\n{SAY_READY}continue\necho begin x\\n\npksm path\necho end x\\n\n"
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for(READY)
        job = guest.start(argv)
        text = gdb.finish()
    # births waits for a minute where pages are pinned, and the guest's may be the host's.
    done = job.wait(gdblab.SCRIPT_SECONDS)
    assert done.status == 0, done.stderr
    return section(text, "x")


def called_by(function: str) -> str:
    """Return a condition of gdb's: that function is among the callers."""
    return f'$_any_caller_is("{function}", 20)'


@pytest.mark.parametrize(
    ("argv", "place", "way", "chain"),
    [
        (["births", "--pages", "4", "fork-pinned"], f"{HOOK} if {called_by('copy_page_range')}",
         "The way in: fork, which copies a page that is pinned: births[",
         ("kernel_clone", "dup_mmap", "copy_page_range", "copy_present_page", HOOK)),
        (["births", "--pages", "4", "uffd"], f"{HOOK} if {called_by('mfill_atomic_install_pte')}",
         "The way in: userfaultfd, which fills a page: births[",
         ("userfaultfd_ioctl", "mfill_atomic_install_pte", HOOK)),
        (["sh", "-c", "cd /sys/kernel/mm/pksm; echo 2 >run; echo 1 >run"], "pksm_add_moved_page",
         "The way in: the sweep, in which pksmd takes in the pages that were there before: pksmd[",
         ("pksmd", "pksm_sweep", "pksm_add_moved_page")),
        (["pageops", "--procs", "2", "--pages", "64", "fill=dup", "settle", "set=run:2", "verify",
          "set=run:1"], "ptep_clear_flush if " + called_by("pksm_unmerge_range"),
         "The way in: unmerging, by a fault of PKSM's own, copy-on-write of ",
         ("run_store", "pksm_set_run", "pksm_unmerge_range", "handle_mm_fault", "do_wp_page")),
        (["pageops", "--procs", "5", "--pages", str(FILLER), *ISLANDS, "settle", "@0:exit",
          COMPACT],
         "pksm_add_moved_page if " + called_by("folio_migrate_ksm"),
         "The way in: migration; a page moves to another frame, for compaction: pageops[",
         ("compact_zone", "migrate_pages", "folio_migrate_ksm", "pksm_add_moved_page")),
    ],
    ids=["fork-pinned", "uffd", "sweep", "unmerge", "migration"],
)  # fmt: skip
def test_the_rarer_ways_in(
    guest: Guest, argv: list[str], place: str, way: str, chain: tuple[str, ...]
) -> None:
    """Fork of a pinned page, userfaultfd, pksmd's sweep, unmerging, and migration."""
    lines = path_of(guest, place, argv)
    assert lines[0].startswith(way), lines[0]
    assert in_order(functions(lines[1:]), *chain), lines


def test_elsewhere_no_way_leads(guest: Guest) -> None:
    """An unrelated place says so, and is shown as it is."""
    lines = path_of(guest, "do_syslog", ["dmesg"])
    assert lines[0] == "No path to a hook of PKSM leads here."
    assert functions(lines[1:])[-1] == "do_syslog"


def test_wrong_arguments_are_one_line(guest: Guest) -> None:
    """An argument that it does not know."""
    text = gdblab.run_script(guest, "pksm path everywhere\n", status=1)
    assert text.splitlines()[-1] == "pksm path: what is 'everywhere'? Write: pksm path [--lines]"

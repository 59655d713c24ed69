# SPDX-License-Identifier: GPL-2.0-only
"""pksm page, the lists, pksm stat and the functions, against what the guest itself says."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gdblab
import lab
import pytest
from held import PRELUDE, Held, HeldPage, ask, field, parse_answers
from lab import BootFresh
from linux_um.agent import PKSM_DIR
from linux_um.guest import Guest
from linux_um.paths import repo_root
from steplab import READY, SAY_READY, watch

pytestmark = pytest.mark.needs_pksm

# How often two looks at the same counter are taken until they agree.
LOOKS = 5
# Bits of /proc/kpageflags, and what enum pageflags calls them.
KPF = {0: "locked", 2: "referenced", 3: "uptodate", 4: "dirty", 5: "lru", 14: "swapbacked"}


@pytest.fixture
def held(guest: Guest) -> Held:
    """Return a guest in which holdpages holds its pages; they stay unwatched."""
    guest.set_pksm("rescan_seconds", 0)
    return Held(guest)


def same_pages(held: Held, name: str) -> list[HeldPage]:
    """Return the page of that name in each process that has it at the same frame as the first."""
    pfn = held.page(0, name).pfn
    return [page for page in held.pages if page.pfn == pfn]


def places(text: str) -> set[tuple[int, int]]:
    """Return (pid, address) of every PTE in the text of `pksm page`."""
    found = re.findall(r"\w+\[(\d+)\] (0x[0-9a-f]+): pfn", text)
    return {(int(pid), int(address, 16)) for pid, address in found}


def test_a_merged_page_is_shown_as_the_page_map_has_it(held: Held) -> None:
    page = held.page(1, "same")
    by_name, by_pid, by_pfn, by_pointer = ask(
        held.guest,
        f"pksm page hold1:{page.address}",
        f"pksm page {page.pid}:{page.address + 77:#x}",
        f"pksm page {page.pfn}",
        f"pksm page (struct folio *)$pfn_to_page({page.pfn})",
    )
    assert by_name == by_pid == by_pfn == by_pointer
    assert by_name.startswith(f"pfn {page.pfn:#x}, ")
    sharing = same_pages(held, "same")
    assert page.count == len(sharing) == 3
    assert places(by_name) == {(one.pid, one.address) for one in sharing}
    assert field(by_name, "kind").startswith("merged, stable node 0x")
    assert "count 3, mapped 3 times, 0 references beyond" in field(by_name, "references")
    assert field(by_name, "record").startswith("shared (state 0x3)")
    assert field(by_name, "sharers").startswith("2, none of them stale")
    assert "in bucket" in field(by_name, "node") and "NOT" not in by_name
    assert "anonymous read write" in by_name and "BROKEN" not in by_name
    node_hash = re.search(r"hash (0x[0-9a-f]{16}),", field(by_name, "node"))
    assert node_hash is not None and node_hash[1] in field(by_name, "hash now")
    held.finish()


def test_flags_are_those_of_kpageflags(held: Held) -> None:
    wanted = [held.page(0, name) for name in ("same", "unique", "zero")]
    for page, text in zip(wanted, ask(held.guest, *(f"pksm page {p.pfn}" for p in wanted))):
        named = field(text, "flags").split()
        for bit, name in KPF.items():
            assert (name in named) == bool(page.flags >> bit & 1), (name, page, text)
        assert ("pksm" in named) == (page.name != "zero")
    held.finish()


def block_at(frames: Sequence[int], pfn: int) -> int:
    """Return the size in pages of the largest block that can begin at *pfn*.

    It is aligned to its size, and all frames that follow in it have no flag; but such frames
    may be the kernel's as well.
    """
    free = next((i for i, flags in enumerate(frames[pfn + 1 :]) if flags), len(frames) - pfn - 1)
    return min(1 << (free + 1).bit_length() - 1, pfn & -pfn or len(frames))


def test_each_kind_of_page_is_known(held: Held) -> None:
    """One of each kind that /proc/kpageflags tells apart."""
    raw = held.guest.run(["cat", "/proc/kpageflags"]).stdout_bytes
    frames = memoryview(raw).cast("Q").tolist()
    lru, slab, buddy, mmap, anon, head, tail = (1 << bit for bit in (5, 7, 10, 11, 12, 15, 16))
    kinds = {
        slab: (slab | tail, "the kernel's own (slab)"),
        tail: (slab | tail, "tail page of the folio at pfn 0x"),
        # A page of the vdso is mapped as well, but on no list.
        mmap | lru: (mmap | lru | anon | head | tail, "file '"),
    }
    # The head of a free block alone has the mark. It is still one when gdb looks: that of the
    # largest block, which is the last to be given out, and merged with no other.
    heads = [pfn for pfn, flags in enumerate(frames) if flags & buddy]
    assert heads, "the guest has no free block"
    largest = max(heads, key=lambda pfn: block_at(frames, pfn))
    wanted = {largest: "free, in the buddy allocator, order "}
    for pfn, flags in enumerate(frames):
        for bit, (mask, text) in list(kinds.items()):
            if flags & mask == bit:
                wanted[pfn] = text
                del kinds[bit]
    assert not kinds, "the guest has no such pages"
    answers = ask(held.guest, *(f"pksm page {pfn}" for pfn in wanted))
    for (pfn, text), said in zip(wanted.items(), answers):
        assert field(said, "kind").startswith(text), (pfn, text, said)
        assert field(said, "record").startswith("untracked"), said
    held.finish()


def test_a_unique_page_lies_in_the_bucket_of_its_hash_until_it_changes(held: Held) -> None:
    page = held.page(2, "unique")
    (text,) = ask(held.guest, f"pksm page hold2:{page.address}")
    assert field(text, "record").startswith("unshared, in the unstable index, hash bits 0x")
    assert re.match(r"bucket 0x[0-9a-f]+ of the unstable", field(text, "linked in"))
    bits = re.search(r"hash bits (0x[0-9a-f]+)", text)
    assert bits is not None and field(text, "hash now").endswith(f"keeps {bits[1]}")
    assert "have changed" not in text
    assert places(text) == {(page.pid, page.address)}
    held.order("write 2 unique")
    assert held.page(2, "unique").pfn == page.pfn
    (text,) = ask(held.guest, f"pksm page hold2:{page.address}")
    assert "its contents have changed since it was hashed" in text
    held.finish()


def test_a_watched_page_is_said_to_be_until_it_is_written_to(held: Held) -> None:
    guest, page = held.guest, held.page(2, "unique")
    watch(guest)
    text, unstable, check = ask(
        guest, f"pksm page {page.pfn}", "pksm unstable --all --class watched", "pksm check"
    )
    assert field(text, "record").startswith("watched, in the unstable index, hash bits 0x")
    assert "the next write is a fault that is told" in text
    assert "write" not in field(text, "mapped by").split(";")[0].split()
    assert f"{page.pfn:#x}" in {words[0] for words in lines_of(unstable)}
    assert {words[1] for words in lines_of(unstable)} == {"watched"}
    assert check.startswith("all is well: ")
    # pksmd takes the record out of its bucket at once, even when it is stopped: look
    # at the page before anything else runs.
    script = f"{SAY_READY}pksm fault hold2 {page.address:#x} --all\n{PRELUDE}"
    script += f"python say('pksm page {page.pfn}')\n"
    with gdblab.session(guest, script) as gdb:
        gdb.wait_for(READY)
        held.order("write 2 unique")
        (text,) = parse_answers(gdb.finish(), 1)
    assert field(text, "record").startswith("volatile, in the unstable index")
    assert "it was watched, and written to: pksmd is to look at it again" in text
    assert held.page(2, "unique").pfn == page.pfn
    (text,) = ask(guest, f"pksm page {page.pfn}")
    assert "watched" not in text
    held.finish()


def test_the_zero_page_and_pages_that_are_nobodys(held: Held) -> None:
    page = held.page(0, "zero")
    # While gdb is started pages of zeroes may come and go: it counts them, and is told as well.
    before = held.guest.pksm("zero_pages")
    zero, kernel, counter = ask(
        held.guest, f"pksm page hold0:{page.address}", "pksm page 0", "p ksm_zero_pages.counter"
    )
    low, high = sorted((before, held.guest.pksm("zero_pages")))
    zero_pages = int(counter.rpartition("= ")[2])
    assert low <= zero_pages <= high
    assert zero.startswith(f"pfn {page.pfn:#x}, ")
    assert field(zero, "kind") == "the kernel's page of zeroes"
    assert field(zero, "mapped by").endswith(f", {zero_pages} of them thanks to PKSM")
    assert field(zero, "contents") == "all zero"
    assert field(kernel, "kind").startswith("the kernel's own")
    assert field(kernel, "record").startswith("untracked")
    held.finish()


def test_a_freed_page_is_free_and_a_broken_one_leaves_a_stale_sharer(held: Held) -> None:
    merged, old = held.page(0, "same"), held.page(1, "unique")
    held.order("write 0 same")
    assert held.page(0, "same").pfn != merged.pfn
    held.order("drop 1 unique")
    held.order("settle")
    text, sharers, free = ask(
        held.guest, f"pksm page {merged.pfn}", f"pksm sharers {merged.pfn}", f"pksm page {old.pfn}"
    )
    rest = [held.page(1, "same"), held.page(2, "same")]
    assert rest[0].pfn == rest[1].pfn == merged.pfn
    assert places(text) == {(one.pid, one.address) for one in rest}
    # The page that was written to is either the node's own place, or a sharer's.
    # Either is noted, and a second later pksmd drops the sharer.
    stale = sharers.count("none: stale")
    assert stale <= 1
    for one in rest:
        assert f"hold{one.process}[{one.pid}]:{one.address:#x}" in sharers
    assert sharers.endswith(("3 places", f"{2 + stale} places"))
    assert field(free, "kind").startswith("free, in ")
    assert field(free, "record").startswith("untracked")
    held.finish()


def test_the_functions_agree_with_the_page_map(held: Held) -> None:
    page, merged = held.page(0, "unique"), held.page(0, "same")
    pfn, entry, item, owner, node_owner, symmetric = ask(
        held.guest,
        f"p $page_to_pfn($pfn_to_page({page.pfn}))",
        f'p/x $pte("hold0", {page.address})->pte >> 12',
        f"p $pksm_item({page.pfn})->state & PKSM_LIVE",
        f"p (long)$anon_vma({page.pfn}) == ((long)$pfn_to_page({page.pfn})->mapping & ~3)",
        f"p $anon_vma({merged.pfn}) == "
        f"((struct pksm_stable_node *)((long)$pfn_to_page({merged.pfn})->mapping & ~3))->anon_vma",
        f"p $page_to_pfn($pfn_to_page({page.pfn})) == $page_to_pfn({page.pfn})",
    )
    assert pfn.endswith(f"= {page.pfn}")
    assert entry.endswith(f"= {page.pfn:#x}")
    assert item.endswith("= 1") and owner.endswith("= 1")
    assert node_owner.endswith("= 1") and symmetric.endswith("= 1")
    held.finish()


def lines_of(text: str) -> list[list[str]]:
    """Return the words of each line of a list, without its head and its summary."""
    return [line.split() for line in text.splitlines()[1:-1]]


def test_the_lists_have_as_many_lines_as_the_counters_say(held: Held) -> None:
    guest = held.guest
    # From now on nothing moves between the classes while gdb is started.
    guest.set_pksm("run", 0)
    now = {name: guest.pksm(name) for name in ("stable_nodes", "pages_unshared")}
    stable, unstable, mine = ask(
        guest, "pksm stable --all", "pksm unstable --all", "pksm unstable --all --pid hold1"
    )
    assert stable.endswith(f"{now['stable_nodes']} stable nodes")
    assert len(lines_of(stable)) == now["stable_nodes"]
    merged = held.page(0, "same")
    (line,) = [words for words in lines_of(stable) if words[0] == f"{merged.pfn:#x}"]
    assert line[3:5] == ["3", "2"]
    live = [words for words in lines_of(unstable) if words[1] in ("unshared", "watched")]
    assert len(live) == now["pages_unshared"]
    unique = held.page(1, "unique")
    assert f"{unique.pfn:#x}" in {words[0] for words in lines_of(mine)}
    assert f"{held.page(2, 'unique').pfn:#x}" not in {words[0] for words in lines_of(mine)}
    guest.set_pksm("run", 1)
    held.finish()


def test_limits_and_filters(held: Held) -> None:
    held.guest.set_pksm("run", 0)
    total = held.guest.pksm("pages_unshared")
    page, pair = held.page(0, "unique"), held.page(0, "pair")
    few, none, one, many, dead = ask(
        held.guest,
        "pksm unstable --limit 2",
        "pksm unstable --limit 0",
        f"pksm unstable --pfn {page.pfn}-{page.pfn}",
        "pksm stable --min-sharers 2 --all",
        "pksm stable --dead",
    )
    assert len(lines_of(few)) == 2
    assert re.search(rf"2 of {total} records shown; --all shows them all$", few)
    assert none == f"0 of {total} records shown; --all shows them all"
    assert [words[0] for words in lines_of(one)] == [f"{page.pfn:#x}"]
    numbers = [words[4] for words in lines_of(many)]
    assert numbers and all(int(number) >= 2 for number in numbers)
    assert f"{pair.pfn:#x}" not in {words[0] for words in lines_of(many)}
    assert dead == "0 stable nodes"
    held.guest.set_pksm("run", 1)
    held.finish()


def test_new_lists_pages_where_they_are_mapped_and_then_those_that_were_freed(held: Held) -> None:
    """Stopped, so that pages stay where the fault path has put them."""
    guest = held.guest
    guest.set_pksm("run", 0)
    names = ("same", "pair", "zero", "unique")
    for name in names:
        held.order(f"drop 1 {name}")
        # Else the same frame may come back before pksmd has taken its record out of the index.
        guest.sh("sleep 1")
        held.order(f"write 1 {name}")
    born = [held.page(1, name) for name in names]
    # Whoever asks has pages of his own, which come and go between one look and the next.
    for _ in range(LOOKS):
        before = guest.pksm("pages_new")
        everything, mine = ask(guest, "pksm new --all --class new", "pksm new --all --pid hold1")
        low, high = sorted((before, guest.pksm("pages_new")))
        if low <= len(lines_of(everything)) <= high:
            break
    else:
        pytest.fail(f"{low} to {high} new pages, but {len(lines_of(everything))} are listed")
    lines = {words[0]: words for words in lines_of(mine)}
    for page in born:
        words = lines[f"{page.pfn:#x}"]
        assert words[1:4] == ["new", "0", "0"]
        assert words[-1] == f"hold1[{page.pid}]:{page.address:#x}"
    held.order("end 1")
    (dead,) = ask(guest, "pksm new --all --dead")
    assert all(words[1] == "freed" for words in lines_of(dead)), dead
    gone = {words[0] for words in lines_of(dead)}
    # One or the other frame may have a new page by now.
    assert gone & {f"{page.pfn:#x}" for page in born}
    guest.set_pksm("run", 1)
    held.finish()


def test_stat_says_what_sysfs_says(held: Held) -> None:
    held.guest.set_pksm("run", 0)
    before = lab.counters(held.guest)
    (text,) = ask(held.guest, "pksm stat")
    after = lab.counters(held.guest)
    table = {
        words[0]: words[1:] for words in map(str.split, text.split("\n\n")[0].splitlines()[1:])
    }
    for name in ("domain", "scope"):
        assert table.pop(name)[0] == held.guest.read_file(f"{PKSM_DIR}/{name}").strip()
    watched = table.pop("+watched")
    assert watched[0] == watched[1] and int(watched[0]) <= int(table["pages_unshared"][0])
    assert set(table) == set(before)
    for name, (shown, walked) in table.items():
        low, high = sorted((before[name], after[name]))
        assert low <= int(shown) <= high, name
        assert walked in ("-", shown), name
    laws = text.split("\n\n")[1].splitlines()
    assert len(laws) >= 10 and all(law.startswith("ok ") for law in laws), text
    held.guest.set_pksm("run", 1)
    held.finish()


# What a user may type wrong, and what the one line has to say.
MISTAKES = (
    ("pksm page nobody:0", "no process nobody in the guest; there are: init"),
    ("pksm page 4711:0", "no process 4711 in the guest"),
    ("pksm page cat:0", "several processes are called cat; name one by its pid: "),
    ("pksm page 0x7fffffff", "pfn 0x7fffffff is out of range: the guest has 0 to 0x"),
    ("pksm page hold0:{untouched}", "has no page at {untouched}: the PTE is empty"),
    ("pksm page hold0:0x300000000", "has no page table for 0x300000000: nothing was touched"),
    ("pksm page 2:0", "is a kernel thread and has no address space"),
    ("pksm page &pksm_mutex", "mutex *' is no page; give a page frame number"),
    ("pksm page nonsense", 'No symbol "nonsense"'),
    ("pksm page (struct page *)1", "0x1 is not the address of a struct page"),
    ("pksm page", "which page? Give a pfn"),
    ("pksm sharers 0", "pfn 0x0 is no merged page"),
    ("pksm stable --limit x", 'No symbol "x"'),
    ("pksm stable --pfn 5-1", "the range is empty"),
    ("pksm new --class odd", "no such class: odd; there are: new"),
    ("pksm unstable --odd", "no such option: --odd"),
    ("pksm stat now", "'now' is not expected here"),
    ("p $pte(1)", "write: $pte("),
    ("p $anon_vma(0)", "pfn 0x0 is not anonymous, but kernel: it has no anon_vma"),
    ("p $pksm_item(-1)", "is out of range"),
)


def test_errors_are_one_line(held: Held) -> None:
    # They wait for input: under time travel a sleep of any length is soon over.
    waiting = [held.guest.start(["cat"]) for _ in range(2)]
    for job in waiting:
        job.write(b"here\n")
        job.wait_output("here")
    known = {"untouched": hex(held.page(0, "untouched").address)}
    answers = ask(held.guest, *(command.format(**known) for command, _ in MISTAKES))
    for said, (command, wanted) in zip(answers, MISTAKES):
        assert said.startswith("error: ") and wanted.format(**known) in said, (command, said)
        assert len(said.splitlines()) == 1, (command, said)
    for job in waiting:
        job.close_stdin()
    held.finish()


def test_a_kernel_without_a_guest_is_named(guest: Guest) -> None:
    kernel = Path(f"/proc/{guest.pid}/exe").resolve()
    commands = ("pksm stat", "pksm check", "pksm page 5", "pksm stable", "p $pfn_to_page(1)")
    answers = ask_without_guest(kernel, commands)
    for command, said in zip(commands, answers):
        assert "there is no guest; start one by ./linux-um gdb" in said, (command, said)
        assert len(said.splitlines()) == 1


@pytest.mark.needs_ksm
def test_a_kernel_without_pksm_is_named(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(profile="ksm")
    commands = ("pksm stat", "pksm check", "pksm page 5", "pksm new", "p $pksm_item(1)")
    for command, said in zip(commands, ask(guest, *commands)):
        assert said.endswith("this kernel was built without CONFIG_PKSM"), (command, said)
        assert len(said.splitlines()) == 1


def ask_without_guest(kernel: Path, commands: Sequence[str]) -> list[str]:
    """Return what gdb says to each command with a kernel, and no process of it."""
    words = ["gdb", "-nx", "-q", "-batch", "-ex", "set width 0"]
    words += ["-x", str(repo_root() / "gdb-scripts" / "session.gdb")]
    with tempfile.NamedTemporaryFile("w", suffix=".gdb") as script:
        script.write(PRELUDE + "\n".join(f"python say({command!r})" for command in commands))
        script.flush()
        done = subprocess.run(
            [*words, "-x", script.name, str(kernel)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1"},
            text=True, timeout=gdblab.SCRIPT_SECONDS, check=True,
        )  # fmt: skip
    return parse_answers(done.stdout, len(commands))

# SPDX-License-Identifier: GPL-2.0-only
"""The engine without memory: each of its allocations fails, every time, in turn and at random.

/sys/kernel/debug/pksm/fail lets them; in the profile debug the kernel's own injection of
faults does, too. A workload that reaches the call, for each: no byte is wrong, what cannot
be merged is not, what cannot be given back is an error, and nothing is left over. With
memory again everything merges that would have.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lab import (
    MOST_EAGER,
    BootFresh,
    Counters,
    Report,
    baseline,
    counters,
    has_file,
    hold_memdup,
    pageops,
    ram_swap,
    release,
    settle,
    workload,
)
from linux_um import commands_fuzz, kconfig, qemu
from linux_um.fuzz import Fuzzer
from linux_um.guest import BootOptions, Guest
from linux_um.laws import free_kib
from linux_um.leaks import check_leaks
from linux_um.paths import repo_root
from linux_um.source import default_kernel

pytestmark = pytest.mark.needs_pksm

FAIL = "/sys/kernel/debug/pksm/fail"
RUN = "/sys/kernel/mm/pksm/run"
ENGINE = repo_root() / "pksm" / "mm" / "pksm"
PAGES = 64
# Pages that could not be merged are tried again after 26 seconds at most.
AGAIN = "sleep=30000"
# Records that point at each other; debugged, the count of their objects is exact.
CACHES = ("anon_vma", "pksm_sharer", "pksm_stable_node")
# In KiB: what the kernel itself takes or gives meanwhile. A leak is made to be more.
NOISE = 1024
# How often what may be noise has to be seen to be a leak.
LEAKS = 3

# On a PC: the agent's own pages are equal to others now and then.
OF_THE_AGENT = 8

# How each of them is made to fail: always, in turn, at random.
ALWAYS = "every 1"
HOWS = (ALWAYS, "every 2", "every 3", "percent 50")
# Controls that fuzzmm sets to anything.
USUAL: dict[str, int | str] = {
    "scope": "all",
    "domain": "user",
    "max_page_sharing": 256,
    "settle_millisecs": 50,
}
# What is called again and again while processes do whatever they do.
RANDOM = ("node", "sharer", "sort", "copy", "charge", "unshare", "move")


def sites() -> list[str]:
    """Return the names of all that can fail, as the engine's source has them."""
    return re.findall(r'\[PKSM_FAIL_\w+\]\s*= "(\w+)",\s*$', names_in_source(), re.M)


def names_in_source() -> str:
    """Return the table of names in fail.c."""
    text = (ENGINE / "fail.c").read_text()
    return text[text.index("pksm_fail_names[") : text.index("};")]


@dataclass(frozen=True)
class Site:
    """How often a call was reached while anything was armed, and how often it failed."""

    reached: int
    failed: int
    how: str


def read_sites(guest: Guest) -> dict[str, Site]:
    """Return what the kernel says of each call that can fail."""
    return parse_sites(guest.read_file(FAIL))


def parse_sites(text: str) -> dict[str, Site]:
    """Return what is said in the file of each call that can fail."""
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+) reached (\d+) failed (\d+) (\w+(?: \d+)?)", line)
        assert match is not None, line
        found[match[1]] = Site(int(match[2]), int(match[3]), match[4])
    return found


def arm(site: str, how: str) -> str:
    """Return the operation of pageops that lets a call fail."""
    return f"file={FAIL}:{site} {how}"


@contextmanager
def failing(guest: Guest, site: str, how: str) -> Iterator[None]:
    """Let a call fail meanwhile; it must have been reached, and have failed."""
    before = read_sites(guest)[site]
    guest.write_file(FAIL, f"{site} {how}")
    yield
    must_have_failed(guest, site, before)
    guest.write_file(FAIL, f"{site} off")


def must_have_failed(guest: Guest, site: str, before: Site | None = None) -> None:
    """See that a call was reached and has failed, and that it did not always if it need not."""
    now = read_sites(guest)[site]
    reached, failed = now.reached, now.failed
    if before is not None:
        reached, failed = reached - before.reached, failed - before.failed
    assert reached > 0, f"{site} was not reached: the test tested nothing"
    assert 0 < failed <= reached, f"{site} did not fail: the test tested nothing"


@dataclass
class Lab:
    """A guest, and what there has to be the same in the end."""

    guest: Guest
    boot: BootFresh
    before: Counters
    slabs: dict[str, int]
    # How many of the pages of the agent may have found an equal meanwhile, or lost it.
    slack: int

    def nothing_left(self) -> None:
        """See that no record, no counter and no reference is left of what has ended."""
        self.guest.write_file(FAIL, "all off")
        most = self.before["stable_nodes"] + self.slack
        self.guest.run(["pksmwait", "--until", f"stable_nodes<={most}"])
        self._same(baseline(settle(self.guest)), self.before)
        self._same(objects(self.guest), self.slabs)

    def _same(self, now: Mapping[str, int], then: Mapping[str, int]) -> None:
        wrong = {name: now[name] for name in then if abs(now[name] - then[name]) > self.slack}
        assert not wrong, f"{now}, and before: {then}"


def objects(guest: Guest) -> dict[str, int]:
    """Return how many objects each of CACHES has, without those that KASAN holds back."""
    for cache in CACHES:
        guest.write_file(f"/sys/kernel/slab/{cache}/shrink", "1")
    return {
        cache: int(guest.read_file(f"/sys/kernel/slab/{cache}/objects").split()[0])
        for cache in CACHES
    }


def free_memory(guest: Guest) -> int:
    """Return how much memory is free, in KiB, with that in caches that can be dropped."""
    guest.write_file("/proc/sys/vm/drop_caches", "3")
    return free_kib(guest)


def boot_lab(boot_fresh: BootFresh, *append: str, **options: Any) -> Lab:
    """Return a lab in which nothing is merged but what asks for it, with some swap."""
    debug = f"slub_debug=FZU,{','.join(CACHES)}"
    guest = boot_fresh(append=[debug, *append], **options)
    ram_swap(guest, 32)
    guest.set_pksm("scope", "madvise")
    # Once for nothing: what the first run leaves in caches is no leak.
    if guest.pksm("run") == 1:
        pageops(guest, "madvise=mergeable", "fill=dup", "settle", pages=4)
    slack = OF_THE_AGENT if has_file(guest, qemu.LINE) else 0
    return Lab(guest, boot_fresh, baseline(settle(guest)), objects(guest), slack)


# ---- what reaches each call ------------------------------------------------------


def records(site: str, how: str, boot_fresh: BootFresh) -> None:
    """Pages for which there is no record stay their owners', and are merged later.

    One that forks, and one that is written to, while they wait.
    """
    lab = boot_lab(boot_fresh)
    report = pageops(
        lab.guest, "madvise=mergeable", arm(site, how), "fill=dup", "sleep=5000", "stat=short",
        "fork=write", "verify", "@2:poke=7", "verify", AGAIN, "@2:poke=7", "verify", "stat=still",
        arm(site, "off"), AGAIN, "settle", "stat=again", "verify", "write=50", "verify",
        procs=3, pages=PAGES,
    )  # fmt: skip
    must_have_failed(lab.guest, site)
    if how == ALWAYS:
        assert report["short"]["merged_ptes"] == report["still"]["merged_ptes"] == 0
        # Nobody has lost sight of them: one of each three is what the others would be merged with.
        assert report["still"].counters["pages_volatile"] >= 2 * PAGES
    for stage in ("short", "still"):
        assert report[stage].counters["rmap_items"] <= lab.before["rmap_items"] + 3 * PAGES, stage
    assert report["again"]["merged_ptes"] == 3 * PAGES
    assert report["again"]["merged_pages"] == PAGES
    lab.nothing_left()


def sorting(site: str, how: str, boot_fresh: BootFresh) -> None:
    """Sharers that say the same stay, until there is memory to tell them apart; then they go."""
    lab = boot_lab(boot_fresh)
    # So soon, one after the other, that what is stale is looked at when the place is in use again.
    turns = ["@1:madvise=dontneed", "@1:fill=dup", "sleep=100"] * 60
    report = pageops(
        lab.guest, "set=settle_millisecs:10", "madvise=mergeable", "fill=dup", "settle",
        arm(site, how), *turns, "sleep=5000", "stat=turned", "verify", arm(site, "off"),
        "sleep=5000", "stat=again", "verify",
        procs=4, pages=PAGES,
    )  # fmt: skip
    must_have_failed(lab.guest, site)
    turned, again = report["turned"], report["again"]
    assert turned["merged_ptes"] == again["merged_ptes"] == 4 * PAGES
    assert turned["merged_pages"] == again["merged_pages"] == PAGES
    if how == ALWAYS:
        assert turned.counters["rmap_items"] - lab.before["rmap_items"] > 4 * PAGES
    # No page was written to or unmapped since.
    assert again.counters["rmap_items"] - lab.before["rmap_items"] <= 4 * PAGES
    lab.nothing_left()


def swapping_in(site: str, how: str, boot_fresh: BootFresh) -> None:
    """Who touches a page of which there can be no copy waits until there can; nobody is killed.

    They are merged pages that only the swap cache has, when everything is unmerged.
    """
    pages = 2048
    lab = boot_lab(boot_fresh)

    def run(how: str) -> tuple[Report, int]:
        """Return also what is free afterwards: the swap cache keeps what nobody needs till then."""
        report = pageops(
            lab.guest, "madvise=mergeable", "fill=dup", "settle", "@1:write=100", "settle",
            "@0:madvise=pageout", "stat=out", f"@1:self={RUN}:2", arm(site, how), "verify",
            "stat=in", "verify", arm(site, "off"), "set=run:1", "write=100", "fill=dup", "settle",
            "stat=again", "verify",
            procs=2, pages=pages,
        )  # fmt: skip
        lab.guest.sh("swapoff /dev/loop0")
        free = free_memory(lab.guest)
        lab.guest.sh("swapon /dev/loop0")
        return report, free

    # What the first of them leaves with each CPU is no leak.
    _, free = run("off")
    # Nor is what one of them lacks, and the next one does not: what leaks does so each time.
    for _ in range(LEAKS):
        report, free_after = run(how)
        lost, free = free - free_after, free_after
        if lost < 2 * NOISE:
            break
    must_have_failed(lab.guest, site)
    assert read_sites(lab.guest)[site].failed > pages // 5
    assert report["out"]["swapped"] == pages
    assert report["out"].counters["stable_nodes"] >= pages, "the swap cache has given them up"
    assert report["in"]["swapped"] == report["in"]["merged_ptes"] == 0
    assert report["again"]["merged_ptes"] == 2 * pages
    lab.nothing_left()
    assert lost < 2 * NOISE


def unmerging(site: str, how: str, boot_fresh: BootFresh) -> None:
    """Whoever wants a page back that there is no memory for is told so, and may ask again.

    By madvise(), which says EAGAIN, by prctl(), and for the whole system.
    """
    lab = boot_lab(boot_fresh)
    never = how == ALWAYS
    # One page in the first try, more in the others, and all of them in the end.
    some = "percent 20" if how.startswith("percent") else f"every {8 * int(how.split()[1])}"
    ways = (
        ("EAGAIN", "@0:madvise=unmergeable", "@0:madvise=mergeable"),
        ("ENOMEM", "@0:merge=0", "@0:merge=1"),
        ("ENOMEM", "set=run:2", "set=run:1"),
        ("ENOMEM", "set=domain:process", "set=domain:user"),
        ("ENOMEM", "set=scope:madvise", "set=scope:all"),
    )
    for error, way, back in ways:
        steps = [] if "domain" not in way else ["set=run:1"]
        start = ["set=scope:all"] if "scope" in way else ["madvise=mergeable"]
        if "merge=0" in way:
            start = ["merge=1"]
        report = pageops(
            lab.guest, *start, "fill=dup", "settle", "stat=merged",
            arm(site, ALWAYS if never else some), f"fails={error}:{way}", arm(site, "off"),
            "stat=failed", "verify", "set=run:1", *steps, way, "stat=unmerged", "verify", back,
            "set=run:1", "write=100", "fill=dup", "settle", "stat=again", "verify",
            procs=3, pages=PAGES,
        )  # fmt: skip
        must_have_failed(lab.guest, site)
        assert report["merged"]["merged_ptes"] == 3 * PAGES, way
        broken = 3 * PAGES - report["failed"]["merged_ptes"]
        assert broken == 0 if never else broken < 3 * PAGES, way
        alone = way.startswith("@0")
        assert report["unmerged"]["merged_ptes"] == (2 * PAGES if alone else 0), way
        assert report["again"]["merged_ptes"] == 3 * PAGES, way
        lab.guest.set_pksm("scope", "madvise")
        lab.nothing_left()


def moving(site: str, how: str, boot_fresh: BootFresh) -> None:
    """UFFDIO_MOVE of a merged page says ENOMEM, and the page is where it was."""
    lab = boot_lab(boot_fresh)
    # Processes 0 and 2, since 1 is another user's.
    steps = ["sizes 3 32", "map 0 0+32 0", "map 2 0+32 0", "mergeable 0 0+32", "mergeable 2 0+32"]
    steps += ["dup 0 0+16 1", "dup 2 0+16 1", *["sleep 100"] * 20]
    moves = [f"uffd_move 0 {page}+1 {page + 16}" for page in range(16)]
    lab.guest.run(["sh", "-c", "cat >/list"],
                  input="".join(f"{line}\n" for line in [*steps, *moves, "verify_all"]).encode())
    with failing(lab.guest, site, how):
        report = workload(lab.guest, ["fuzzmm", "--from-script", "/list"]).raw
    assert report["counters"]["pages_merged"] >= 16
    done, refused = report["by_kind"]["uffd_move"][:2]
    assert done + refused == 16
    assert refused == read_sites(lab.guest)[site].failed
    assert (done == 0) == (how == ALWAYS)
    lab.nothing_left()


def starting(site: str, how: str, boot_fresh: BootFresh) -> None:
    """Without its indexes the engine stays off and says ENOMEM; with them it starts.

    Each is made once. What the others have taken by then is given back, each time.
    """
    lab = boot_lab(boot_fresh, "pksm=off")
    free = free_memory(lab.guest)
    tries = 0
    with failing(lab.guest, site, how):
        while lab.guest.pksm("run") == 0 and tries < 3:
            try:
                lab.guest.set_pksm("run", 1)
            except OSError as error:
                assert error.errno == errno.ENOMEM
                assert lab.guest.pksm("run") == 0
            tries += 1
        if not how.startswith("percent"):
            assert lab.guest.pksm("run") == 0
            lab.guest.sh(f"for i in $(seq 2000); do echo 1 > {RUN} && exit 1; done; true")
            # To leak the marks of the larger index each time would be twice as much.
            assert free - free_memory(lab.guest) < 2 * NOISE
            report = pageops(lab.guest, "madvise=mergeable", "fill=dup", "sleep=9000", "stat=off",
                             "verify")  # fmt: skip
            assert report["off"]["merged_ptes"] == 0
            assert report["off"].counters["pages_new"] == 0
    lab.guest.set_pksm("run", 1)
    report = pageops(lab.guest, "madvise=mergeable", "fill=dup", "settle", "stat=on", "verify")
    assert report["on"]["merged_ptes"] == 2 * PAGES
    # Another CPU may still be about to forget what has ended.
    lab.guest.run(["pksmwait", "--until", f"stable_nodes<={lab.before['stable_nodes']}"])
    assert baseline(settle(lab.guest)) == lab.before


def booting(site: str, how: str, boot_fresh: BootFresh) -> None:
    """The kernel boots, without the engine: whoever wants to start it hears that there is none."""
    guest = boot_fresh(append=[f"pksm_fail={site},{how.replace(' ', ',')}"])
    must_have_failed(guest, site)
    guest.write_file(FAIL, "all off")
    assert guest.pksm("run") == 0
    settings: list[tuple[str, int | str]] = [
        ("run", 1), ("run", 2), ("domain", "global"), ("scope", "madvise"),
    ]  # fmt: skip
    for control, value in settings:
        with pytest.raises(OSError) as caught:
            guest.set_pksm(control, value)
        assert caught.value.errno == errno.ENODEV, control
    ram_swap(guest, 16)
    report = pageops(
        guest, "madvise=mergeable", "merge=1", "fill=dup", "@1:fill=zero", "fork=write",
        "madvise=pageout", "verify", "mremap", "file=/proc/sys/vm/compact_memory:1", "verify",
        "merge=0", "madvise=unmergeable", "stat=end", "verify",
        procs=3, pages=PAGES,
    )  # fmt: skip
    assert report["end"]["merged_ptes"] == 0
    now = counters(guest)
    assert not any(value for name, value in now.items() if name.startswith("pages_")), now


def without_files(site: str, how: str, boot_fresh: BootFresh) -> None:
    """The engine works, and nobody can say anything to it; the other directory is there."""
    guest = boot_fresh(append=[f"pksm_fail={site},{how.replace(' ', ',')}"])
    must_have_failed(guest, site)
    missing, there = ("pksm", "ksm") if site == "sysfs" else ("ksm", "pksm")
    assert not has_file(guest, f"/sys/kernel/mm/{missing}")
    assert int(guest.read_file(f"/sys/kernel/mm/{there}/run")) == 1
    guest.sh("memdup --procs 2 --mib 1 --dup 100 --no-wait --rewrite 0 >/dev/null")
    if there == "pksm":
        report = pageops(guest, "fill=dup", "settle", "stat=merged", "verify")
        assert report["merged"]["merged_ptes"] == 2 * PAGES
    else:
        before = int(guest.read_file(f"/sys/kernel/mm/{there}/pages_scanned"))
        guest.sh("births --help >/dev/null; sleep 5")
        assert int(guest.read_file(f"/sys/kernel/mm/{there}/pages_scanned")) > before
        # The laws are of files that are missing.
        guest.power_off()


def splitting(site: str, how: str, boot_fresh: BootFresh) -> None:
    """Large folios that cannot be split stay what they are, until they can."""
    lab = boot_lab(boot_fresh, mem="512M")
    lab.guest.write_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")
    report = pageops(
        lab.guest, "--huge", "madvise=mergeable", arm(site, how), "fill=dup", "stat=filled",
        "settle", "sleep=60000", "stat=short", "verify", arm(site, "off"), "sleep=3600000",
        "settle", "sleep=60000", "settle", "stat=again", "verify",
        procs=2, pages=1024,
    )  # fmt: skip
    must_have_failed(lab.guest, site)
    assert report["filled"]["large"] == 2048
    if how == ALWAYS:
        assert report["short"]["large"] == 2048
        assert report["short"]["merged_ptes"] == 0
    assert report["again"]["large"] == 0
    assert report["again"]["merged_ptes"] == 2048
    lab.nothing_left()


Work = Callable[[str, str, BootFresh], None]

# What is called once has one turn, and those who wait for a page need not wait for ever.
ONCE = (ALWAYS,)
AT_START = (ALWAYS, "percent 90")
NOT_ALWAYS = HOWS[1:]

# What reaches each of them, and how it fails meanwhile.
WORK: dict[str, tuple[Work, tuple[str, ...]]] = {
    "node_cache": (booting, ONCE),
    "sharer_cache": (booting, ONCE),
    "daemon": (booting, ONCE),
    "sysfs": (without_files, ONCE),
    "ksm_sysfs": (without_files, ONCE),
    "unstable": (starting, AT_START),
    "stable": (starting, AT_START),
    "marks": (starting, (*AT_START, "every 2")),
    "mark_words": (starting, (*AT_START, "every 2")),
    "node": (records, HOWS),
    "sharer": (records, HOWS),
    "sort": (sorting, HOWS),
    "copy": (swapping_in, NOT_ALWAYS),
    "charge": (swapping_in, NOT_ALWAYS),
    "unshare": (unmerging, HOWS),
    "move": (moving, HOWS),
    "split": (splitting, HOWS),
}
NEEDS = {"split": pytest.mark.needs_config("CONFIG_TRANSPARENT_HUGEPAGE")}


@pytest.mark.time_travel
@pytest.mark.parametrize(
    ("site", "how"),
    [
        pytest.param(site, how, id=f"{site}-{how.replace(' ', '-')}", marks=NEEDS.get(site, ()))
        for site in sites()
        for how in WORK.get(site, (None, HOWS))[1]
    ],
)
def test_without_memory_nothing_is_lost_and_with_it_all_is_merged(
    boot_fresh: BootFresh, site: str, how: str
) -> None:
    """Each call, in each way; see the function that reaches it."""
    assert site in WORK, "nothing is known that reaches it"
    WORK[site][0](site, how, boot_fresh)


# ---- all of them, among everything that processes do -----------------------------


# What hardly ever happens by chance.
UNLIKELY = 1e-3


class FailingFuzzer(Fuzzer):
    """Runs fuzzmm while the engine has no memory, now and then, and looks at it with memory."""

    def _check(self, guest: Guest, report: dict[str, Any]) -> None:
        report["sites"] = guest.read_file(FAIL)
        guest.write_file(FAIL, "all off")
        super()._check(guest, report)
        for name, value in USUAL.items():
            guest.set_pksm(name, value)
        # Of other contents than fuzzmm's, some of which may be pinned.
        again = pageops(guest, "fill=dup", "settle", "stat=again", "verify", procs=3, seed=99)
        assert again["again"]["merged_ptes"] == 3 * PAGES, "it does not merge as ever"


@pytest.mark.time_travel
@pytest.mark.parametrize(("seed", "percent"), [(14, 10), (12, 30), (13, 60)])
def test_random_operations_without_memory_leave_every_byte_and_every_law(
    request: pytest.FixtureRequest, seed: int, percent: int
) -> None:
    """fuzzmm knows every byte; what is refused for lack of memory is an operation not done."""
    arch = request.config.getoption("--arch")
    profile = request.config.getoption("--profile")
    options = BootOptions(
        profile=profile,
        kernel=default_kernel(),
        arch=arch,
        time_travel=kconfig.time_travels(profile, arch),
        timeout=600.0,
        name="fuzz",
        append=[f"pksm_fail={site},percent,{percent}" for site in RANDOM],
    )
    fuzzer = FailingFuzzer(options, ["--pages", str(commands_fuzz.PAGES[arch])])
    result = fuzzer.seed(seed, 5000)
    assert not result.kind, f"{result.kind}: {result.said}"
    seen = parse_sites(result.report["sites"])
    # A page is rarely moved while it is merged, and sharers are many only after long.
    for site in ("node", "sharer"):
        assert 0 < seen[site].failed < seen[site].reached, site
    # These may be so few that all of them, or none, fail by chance.
    for site in ("copy", "unshare"):
        reached, failed = seen[site].reached, seen[site].failed
        assert reached > 0, site
        assert failed > 0 or (1 - percent / 100) ** reached > UNLIKELY, (site, reached)
        assert failed < reached or (percent / 100) ** reached > UNLIKELY, (site, reached)
    assert result.report["counters"]["pages_merged"] > 100


@pytest.mark.time_travel
@pytest.mark.parametrize("percent", [1, 10, 50, 90])
def test_churn_without_memory_loses_nothing(boot_fresh: BootFresh, percent: int) -> None:
    """Pages come, go, fork and are written to while pksmd has a record only now and then."""
    lab = boot_lab(boot_fresh)
    for name, value in MOST_EAGER.items():
        lab.guest.set_pksm(name, value)
    lab.guest.write_file(FAIL, f"all percent {percent}")
    report = workload(
        lab.guest, ["churn", "--procs", "4", "--rounds", "100", "--pause-ms", "40",
                    "--seed", str(percent)],
    ).raw  # fmt: skip
    seen = read_sites(lab.guest)
    assert seen["node"].failed + seen["sharer"].failed > 0
    assert report["after"]["pages_merged"] > report["before"]["pages_merged"]
    lab.guest.write_file(FAIL, "all off")
    # With memory again, the next is merged as ever.
    again = pageops(lab.guest, "fill=dup", "settle", "stat=again", "verify", procs=3)
    assert again["again"]["merged_ptes"] == 3 * PAGES
    lab.guest.set_pksm("domain", "user")
    lab.guest.set_pksm("scope", "madvise")
    lab.nothing_left()


# ---- the kernel's own injection of faults -----------------------------------------

OF_SLABS = "/sys/kernel/debug/failslab"
OF_PAGES = "/sys/kernel/debug/fail_page_alloc"
# More than ever fail: what is left of it says how many have.
TIMES = 1_000_000_000
# Of a shell that unmerges everything, and goes on until it can.
UNTIL_UNMERGED = f"""
tries=0
echo 1 > /proc/self/make-it-fail
until echo 2 > {RUN}; do tries=$((tries + 1)); done 2>/dev/null
echo 0 > /proc/self/make-it-fail
echo $tries
"""


@contextmanager
def kernel_fails(guest: Guest, attribute: str, percent: int) -> Iterator[None]:
    """Let allocations of marked tasks fail with a probability; some must have."""
    for name, value in (
        ("verbose", "0"), ("task-filter", "Y"), ("ignore-gfp-wait", "N"), ("times", str(TIMES)),
        ("probability", str(percent)),
    ):  # fmt: skip
        guest.write_file(f"{attribute}/{name}", value)
    if attribute == OF_PAGES:
        guest.write_file(f"{attribute}/min-order", "0")
        guest.write_file(f"{attribute}/ignore-gfp-highmem", "N")
    yield
    guest.write_file(f"{attribute}/probability", "0")
    left = int(guest.read_file(f"{attribute}/times"))
    assert left < TIMES, "nothing failed: the test tested nothing"


@pytest.mark.time_travel
@pytest.mark.needs_config("CONFIG_FAILSLAB")
@pytest.mark.parametrize("percent", [10, 50, 100])
def test_pksmd_goes_on_when_slabs_fail_it(boot_fresh: BootFresh, percent: int) -> None:
    """Whatever it allocates, and whoever does so for it."""
    lab = boot_lab(boot_fresh)
    pksmd = lab.guest.sh("pidof pksmd").stdout.strip()
    lab.guest.write_file(f"/proc/{pksmd}/make-it-fail", "1")
    with kernel_fails(lab.guest, OF_SLABS, percent):
        report = pageops(
            lab.guest, "madvise=mergeable", "fill=dup", "sleep=5000", "fork=write", "verify",
            "write=50", "verify", "fill=dup:3", AGAIN, "stat=short", "verify",
            f"file={OF_SLABS}/probability:0", AGAIN, "settle", "stat=again", "verify",
            procs=3, pages=PAGES,
        )  # fmt: skip
    if percent == 100:
        assert report["short"]["merged_ptes"] == 0
    assert report["again"]["merged_ptes"] == 3 * PAGES
    lab.nothing_left()


@pytest.mark.time_travel
@pytest.mark.needs_config("CONFIG_FAIL_PAGE_ALLOC")
@pytest.mark.parametrize("percent", [2, 20])
def test_unmerging_goes_on_from_where_pages_failed_it(guest: Guest, percent: int) -> None:
    """Each failure is told, and each try takes some more pages back, until there are none."""
    before = baseline(settle(guest))
    job = hold_memdup(guest, "--procs", "3", "--mib", "2", "--dup", "80", "--zero", "20",
                      "--rewrite", "0")  # fmt: skip
    assert settle(guest)["pages_sharing"] > 512
    with kernel_fails(guest, OF_PAGES, percent):
        tries = int(guest.sh(UNTIL_UNMERGED).stdout)
    assert tries > 0, "it was never told"
    now = counters(guest)
    assert now["run"] == 2
    assert not any(now[name] for name in ("pages_sharing", "stable_nodes", "zero_pages"))
    guest.set_pksm("run", 1)
    assert settle(guest)["pages_sharing"] > 512
    release(job)
    assert baseline(settle(guest)) == before


@pytest.mark.time_travel
@pytest.mark.needs_config("CONFIG_DEBUG_KMEMLEAK")
def test_kmemleak_finds_nothing_of_the_engine_after_all_has_failed(boot_fresh: BootFresh) -> None:
    """Records and indexes that were half made."""
    guest = boot_fresh(append=["pksm=off", "kmemleak=on"])
    for site in ("unstable", "stable", "marks", "mark_words"):
        for how in (ALWAYS, "every 2"):
            guest.write_file(FAIL, f"{site} {how}")
            guest.sh(f"for i in 1 2 3; do echo 1 > {RUN}; echo 0 > {RUN}; done 2>/dev/null; true")
            guest.write_file(FAIL, "all off")
    guest.set_pksm("run", 1)
    guest.write_file(FAIL, "all percent 40")
    workload(guest, ["churn", "--procs", "3", "--rounds", "60", "--pause-ms", "40"])
    guest.write_file(FAIL, "all off")
    settle(guest)
    check_leaks(guest)


# ---- the file --------------------------------------------------------------------


def test_every_call_that_the_kernel_knows_has_a_workload(guest: Guest) -> None:
    """The names are those of the kernel that runs, not only of the source."""
    assert sorted(read_sites(guest)) == sorted(WORK)
    assert sites() == list(read_sites(guest))


def test_only_what_has_a_name_can_be_made_to_fail(guest: Guest) -> None:
    """The file takes a name, or all, and how; the rest is EINVAL and changes nothing."""
    for nonsense in (
        "node", "nobody every 2", "node every", "node every 0", "node every x", "node every 1 2",
        "node percent 0", "node percent 101", "node off 1", "off", "all", "node sometimes 2",
        "node every 99999999999", "x" * 100,
    ):  # fmt: skip
        with pytest.raises(OSError) as caught:
            guest.write_file(FAIL, nonsense)
        assert caught.value.errno in (errno.EINVAL, errno.ERANGE), nonsense
    assert {site.how for site in read_sites(guest).values()} == {"off"}
    guest.write_file(FAIL, "sort every 3")
    guest.write_file(FAIL, "node percent 100")
    now = read_sites(guest)
    hows = [now[name].how for name in ("sort", "node", "sharer")]
    assert hows == ["every 3", "percent 100", "off"]
    guest.write_file(FAIL, "all off")
    assert {site.how for site in read_sites(guest).values()} == {"off"}


def test_what_is_armed_fails_as_often_as_it_is_told_to(guest: Guest) -> None:
    """One of so many, and with about that probability; when nothing is armed, nothing counts."""
    settle(guest)
    report = []
    for how in ("every 4", "percent 30"):
        before = read_sites(guest)["sharer"]
        pageops(guest, arm("sharer", how), "fill=dup", "settle", AGAIN, "settle",
                arm("sharer", "off"), procs=4, pages=512)  # fmt: skip
        now = read_sites(guest)["sharer"]
        report.append((now.reached - before.reached, now.failed - before.failed))
    (reached, failed), (random_reached, random_failed) = report
    assert reached > 1024 and failed == reached // 4
    assert random_reached > 1024 and 0.2 < random_failed / random_reached < 0.4
    pageops(guest, "fill=dup", "settle", procs=3)
    assert read_sites(guest)["sharer"].reached == reached + random_reached


def test_nonsense_at_boot_is_said_and_ignored(boot_fresh: BootFresh) -> None:
    guest = boot_fresh(append=["pksm_fail=node,never"])
    assert "Malformed early option 'pksm_fail'" in guest.own_log()
    assert {site.how for site in read_sites(guest).values()} == {"off"}
    assert guest.pksm("run") == 1


# ---- the source ------------------------------------------------------------------

# Whatever is called something with alloc, and what allocates, or may, under another name.
ALLOCATES = re.compile(
    r"\b(\w*alloc\w*|KMEM_CACHE|kmem_cache_create\w*|kstrdup\w*|kasprintf|kmemdup\w*|vmap"
    r"|mem_cgroup_charge\w*|handle_mm_fault|fixup_user_fault|get_user_pages\w*|pin_user_pages\w*"
    r"|split_folio\w*|split_huge_\w*|folio_split\w*|migrate_pages|anon_vma_(?:prepare|clone|fork)"
    r"|xa_(?:store|insert|cmpxchg)\w*|radix_tree_insert|idr_\w+|mempool_create\w*"
    r"|kthread_(?:run|create)\w*|sysfs_create_\w+|kobject_(?:create|init)_and_add"
    r"|swap_duplicate|add_to_swap|get_page_from_freelist|alloc_workqueue)\s*\("
)
# Functions of the engine's own, whose call of the kernel is a site.
OWN = {"pksm_index_alloc", "pksm_marks_alloc", "pksm_node_alloc", "pksm_sharer_alloc"}
# They measure a machine, or test the engine; the wrapper in compat.h is called at a site.
NOT_THE_ENGINE = {"bench.c", "compat.h"}


def code_of(path: Path) -> str:
    """Return a source file without comments and texts."""
    text = re.sub(r"/\*.*?\*/", " ", path.read_text(), flags=re.S)
    return re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', text)


def unguarded(code: str) -> list[str]:
    """Return the calls that allocate and cannot be made to fail."""
    found = []
    for call in ALLOCATES.finditer(code):
        if call[1] in OWN:
            continue
        statement = re.split(r"[;{}]", code[: call.start()])[-1]
        if "pksm_should_fail(" not in statement:
            found.append(call[1])
    return found


def test_every_allocation_of_the_engine_can_be_made_to_fail() -> None:
    files = sorted(path for path in ENGINE.glob("*.[ch]") if path.name not in NOT_THE_ENGINE)
    assert len(files) > 20
    missing = {path.name: unguarded(code_of(path)) for path in files}
    assert not any(missing.values()), {name: calls for name, calls in missing.items() if calls}


def test_every_name_is_of_one_call() -> None:
    """And every call has a name of its own."""
    used = [
        name
        for path in sorted(ENGINE.glob("*.c"))
        for name in re.findall(r"pksm_should_fail\(PKSM_FAIL_(\w+)\)", code_of(path))
    ]
    header = code_of(ENGINE / "fail.h")
    listed = re.findall(r"PKSM_FAIL_(\w+),", header)
    assert sorted(used) == sorted(listed) and len(set(used)) == len(used)
    assert len(sites()) == len(listed)


def test_an_allocation_without_a_name_is_found() -> None:
    """Else the test above could not fail."""
    assert unguarded("a = kmalloc(4, GFP_KERNEL);") == ["kmalloc"]
    assert unguarded("if (x) { b = vma_alloc_folio(gfp, 0, vma, addr); }") == ["vma_alloc_folio"]
    assert unguarded("c = pksm_should_fail(PKSM_FAIL_X) ? NULL : kzalloc(4, gfp);") == []
    assert unguarded("pksm_should_fail(PKSM_FAIL_X); d = kzalloc(4, gfp);") == ["kzalloc"]
    for path in (ENGINE / "stable.c", ENGINE / "unmerge.c", ENGINE / "index.c"):
        code = re.sub(r"pksm_should_fail\(\w+\)", "false", code_of(path))
        assert len(unguarded(code)) >= 2, path.name

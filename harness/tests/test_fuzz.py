# SPDX-License-Identifier: GPL-2.0-only
"""Random operations on memory against a model of every byte; see ``./linux-um fuzz``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from lab import BootFresh
from linux_um import cli, commands_fuzz, fuzz, kconfig
from linux_um.errors import UsageError
from linux_um.fuzz import Fuzzer, Result
from linux_um.fuzz_shrink import Shrinker, about, kind_of, process_of
from linux_um.guest import BootOptions, Guest, Process
from linux_um.source import default_kernel
from linux_um.term import Term

OPS = 5000
# Pages of the guest's agent that may have an equal, or none, from run to run.
OF_THE_AGENT = 4
# What the contents of all pages decide alone, once everything has settled.
SETTLED = ("pages_shared", "pages_sharing", "zero_pages")
# What depends on which page frames there are, or on what else runs.
BY_CHANCE = ("reclaim", "audit")
# What any machine has, and what the settings of the engine do not keep from being done.
EVERYWHERE = (
    "flag", "dontneed_locked", "pin", "pin_long", "unpin", "share_dup", "share_poke",
    "share_verify", "share_advise", "advise_other", "user", "join", "uffd_copy",
)  # fmt: skip
BASE_PAGE = 0x2000000000 // 4096

RunSeed = Callable[[int, int], Result]


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest) -> Fuzzer:
    """Return what runs fuzzmm in guests of the kind that is asked for."""
    profile = request.config.getoption("--profile")
    arch = request.config.getoption("--arch")
    travels = kconfig.time_travels(profile, arch)
    options = BootOptions(
        profile=profile,
        kernel=default_kernel(),
        arch=arch,
        time_travel=travels,
        timeout=600.0,
        name="fuzz",
    )
    pages = commands_fuzz.PAGES[arch]
    return Fuzzer(options, ["--pages", str(pages)])


@pytest.fixture
def run_seed(fuzzer: Fuzzer) -> RunSeed:
    """Return a function that runs so many operations of a seed."""
    return fuzzer.seed


@pytest.mark.parametrize(
    ("total", "done", "merged", "said"),
    [
        (20000, 4000, 9, "only 4000 of 20000 operations could be done"),
        (20000, 10000, 0, "no page was merged in 20000 operations"),
        (20000, 10000, 9, ""),
        (20000, 10000, None, ""),
        (100, 0, 0, ""),
    ],
)
def test_a_run_in_which_nothing_was_done_is_no_success(
    total: int, done: int, merged: int | None, said: str
) -> None:
    assert commands_fuzz.idleness(total, done, merged) == said


@pytest.mark.parametrize(("done", "status"), [(4000, 1), (12000, 0)])
def test_the_status_of_fuzz_says_so(
    fuzzer: Fuzzer, monkeypatch: pytest.MonkeyPatch, done: int, status: int
) -> None:
    report = {"ops": 20000, "done": done, "digest": "0", "counters": {"pages_merged": 1}}
    monkeypatch.setattr(fuzzer, "seed", lambda *_: Result("", "", 0, report, 1.0, 20000))
    monkeypatch.setattr(commands_fuzz, "fuzzer_of", lambda *_: fuzzer)
    words = cli.build_parser().parse_args(["fuzz", "--runs", "2"])
    assert commands_fuzz.fuzz_command(words, Term(quiet=True)) == status


# ---- the engine ------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_operations_leave_every_byte_and_every_law(run_seed: RunSeed, seed: int) -> None:
    result = run_seed(seed, OPS)
    assert not result.kind, f"{result.kind}: {result.said}"
    report = result.report
    assert report["ops"] == OPS
    # Else it tested nothing.
    assert report["done"] > OPS / 4
    assert [name for name in EVERYWHERE if not report["by_kind"][name][0]] == []
    if report["engine"] == "pksm":
        assert report["counters"]["pages_merged"] > 100
        assert report["counters"]["pages_broken"] > 100


@pytest.mark.needs_pksm
@pytest.mark.time_travel
@pytest.mark.um_only
def test_a_seed_repeats_itself(fuzzer: Fuzzer) -> None:
    """Operation by operation, in what came of each."""
    first, second = fuzzer.seed(4, OPS), fuzzer.seed(4, OPS)
    assert not first.kind and not second.kind, f"{first.said}{second.said}"
    assert first.report["digest"] == second.report["digest"]
    kinds = [run.report["by_kind"] for run in (first, second)]
    for each in kinds:
        for name in BY_CHANCE:
            del each[name]
    assert kinds[0] == kinds[1]
    assert fuzzer.seed(5, 200).report["digest"] != fuzzer.seed(6, 200).report["digest"]


@pytest.mark.needs_pksm
@pytest.mark.time_travel
@pytest.mark.um_only
def test_a_seed_comes_to_the_same_savings(fuzzer: Fuzzer) -> None:
    """Where no content depends on what reclaim has dropped, and no setting keeps pages apart."""
    fuzzer.sizes = [*fuzzer.sizes, "--without", f"free,set,{','.join(BY_CHANCE)}"]
    first, second = fuzzer.seed(4, OPS), fuzzer.seed(4, OPS)
    assert not first.kind and not second.kind, f"{first.said}{second.said}"
    assert first.report["digest"] == second.report["digest"]
    settled = [{name: run.report["settled"][name] for name in SETTLED} for run in (first, second)]
    # But for a page or two of the agent, which waits for the host as long as that takes.
    assert settled[0] == pytest.approx(settled[1], abs=OF_THE_AGENT)
    # Of two users each has some pages that others of his have, too.
    assert settled[0]["pages_sharing"] > 5 * OF_THE_AGENT


def across(fuzzer: Fuzzer, domain: str, other: int) -> int:
    """Return what is saved when process 0 and another have the same pages."""
    script = ["sizes 3 48", f"set domain={domain}"]
    script += [f"{kind} {proc} 0+48 1" for proc in (0, other) for kind in ("map", "dup")]
    result = fuzzer.script([*script, "sleep 100", "verify_all"])
    assert not result.kind, f"{result.kind}: {result.said}"
    return int(result.report["settled"]["pages_sharing"])


@pytest.mark.needs_pksm
@pytest.mark.time_travel
@pytest.mark.parametrize(
    ("domain", "with_1", "with_2"), [("user", 0, 48), ("memcg", 48, 0), ("global", 48, 48)]
)
def test_the_processes_are_of_two_users_and_two_groups(
    fuzzer: Fuzzer, domain: str, with_1: int, with_2: int
) -> None:
    """Process 1 is another user's than 0, and 2 is in another group: else domains are all one."""
    difference = across(fuzzer, domain, 2) - across(fuzzer, domain, 1)
    assert difference == pytest.approx(with_2 - with_1, abs=2 * OF_THE_AGENT)


# What was found, made as short as it could be.
GIVEN_UP = """\
sizes 2 4
map 0 0+2 0
dup 0 0+1 1
dup 0 1+1 1
sleep 100
sleep 100
unmergeable 0 0+2
fork 0 1
free 1 0+2
drop
reclaim 31
reclaim 31
verify 0 0+2
"""


@pytest.mark.needs_pksm
@pytest.mark.time_travel
def test_what_was_unmerged_is_not_lost_when_a_relative_gives_it_up(fuzzer: Fuzzer) -> None:
    """The copy that unmerging makes is nobody's to drop but all's who share it after a fork."""
    result = fuzzer.script(GIVEN_UP.splitlines())
    assert not result.kind, f"{result.kind}: {result.said}"
    assert result.report["by_kind"]["unmergeable"][0] == 1
    assert result.report["counters"]["pages_broken"] >= 2


# ---- fuzzmm itself ------------------------------------------------------------

SCRIPT = """\
# a page of each sort
sizes 2 8
map 0 0+4 1
dup 0 0+2 3
zero 0 2+1
poke 0 1+1 8200
fork 0 1
verify 1 0+4
sleep 100
"""


def put(guest: Guest, path: str, text: str) -> None:
    """Make a file of the guest."""
    guest.run(["sh", "-c", f"cat >{path}"], input=text.encode())


def spoil(guest: Guest, job: Process, pid: int, address: int) -> str:
    """Write one byte into a process of fuzzmm, and return what that says of it when it ends."""
    guest.sh(
        f"printf '\\377' | dd of=/proc/{pid}/mem bs=1 seek={address} conv=notrunc 2>/dev/null"
    )
    job.close_stdin()
    done = job.wait(60)
    assert done.status == fuzz.STATUS_WRONG
    return done.stderr


def test_a_byte_that_somebody_else_writes_is_found(boot_fresh: BootFresh) -> None:
    """fuzzmm says where it is, what was to be there, and what was done to that page last."""
    guest = boot_fresh()
    put(guest, "/script", SCRIPT)
    job = guest.start(["fuzzmm", "--from-script", "/script", "--hold"])
    report = json.loads(job.wait_output("}}\n"))
    assert report["ok"] and report["ops"] == 7, report
    child = guest.sh("pidof fuzzmm").stdout.split()
    victim = max(int(pid) for pid in child)
    said = spoil(guest, job, victim, (BASE_PAGE + 1) * 4096 + 8)
    lines = said.splitlines()
    assert "wrong byte" in lines[0] and f"pid {victim}" in lines[0], said
    assert "page 1 address 0x2000001008 offset 8: expected 0x02, got 0xff" in lines[0]
    assert [line.split() for line in lines[2:]][:3] == [
        ["0", "map", "0", "0+4", "1"],
        ["1", "dup", "0", "0+2", "3"],
        ["3", "poke", "0", "1+1", "8200"],
    ]


def test_a_shared_byte_that_somebody_else_writes_is_found(boot_fresh: BootFresh) -> None:
    """All processes see it, whoever has written it: the one that verifies first tells."""
    guest = boot_fresh()
    put(guest, "/script", "sizes 2 4\nshare_dup 0 0+4 3\nshare_poke 1 1+1 8200\ncheck\n")
    job = guest.start(["fuzzmm", "--from-script", "/script", "--hold"])
    report = json.loads(job.wait_output("}}\n"))
    assert report["ok"] and report["ops"] == 3, report
    pid = int(guest.sh("pidof fuzzmm").stdout.split()[0])
    # Of what is shared, these pages were made last.
    maps = guest.read_file(f"/proc/{pid}/maps")
    shared = re.findall(r"^(\w+)-\w+ rw-s \S+ \S+ (\d+)", maps, re.MULTILINE)
    start = int(max(shared, key=lambda place: int(place[1]))[0], 16)
    said = spoil(guest, job, pid, start + 4096 + 8)
    assert "wrong byte 8 of shared page 1: at operation 2" in said


def test_a_printed_list_is_the_same_run(boot_fresh: BootFresh) -> None:
    guest = boot_fresh()
    only = "--only map,dup,zero,poke,verify,fork,protect,move"
    guest.sh(f"fuzzmm --seed 9 --ops 400 {only} --print-script >/list")
    by_seed = json.loads(guest.sh(f"fuzzmm --seed 9 --ops 400 {only}").stdout)
    by_list = json.loads(guest.sh("fuzzmm --from-script /list").stdout)
    assert by_seed["digest"] == by_list["digest"]
    assert by_seed["by_kind"] == by_list["by_kind"]
    kinds = {line.split()[0] for line in guest.read_file("/list").splitlines()}
    assert kinds == {"sizes", *only.split()[1].split(",")}


def test_a_list_that_is_none_is_refused_in_a_line(boot_fresh: BootFresh) -> None:
    guest = boot_fresh()
    for text, complaint in (
        ("nosuch 1\n", '/list:1: there is no operation "nosuch"'),
        ("sizes 2 8\nmap 0 7+4 1\n", '/list:2: "map 0 7+4 1": not what map takes'),
        ("set run=7\n", '/list:1: "set run=7": not what set takes'),
        ("sizes 0 8\n", '/list:1: not "sizes PROCESSES PAGES"'),
        ("# nothing\n", "/list: there is no operation in it"),
    ):
        put(guest, "/list", text)
        done = guest.run(["fuzzmm", "--from-script", "/list"], check=False)
        assert (done.status, done.stderr) == (2, f"fuzzmm: {complaint}\n")


# ---- the shrinker ---------------------------------------------------------------


def shrink(lines: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> list[str]:
    """Shrink *lines*; what is left must fail, and nothing that is tried may be more."""

    def watched(part: Sequence[str]) -> bool:
        assert len(part) <= len(lines)
        return fails(part)

    left = Shrinker(watched).shrink(lines)
    assert fails(left)
    return left


NOISE = [f"{kind} {n % 4} {n}+3" for n in range(40) for kind in ("dup", "poke", "verify")]


def test_what_is_left_is_what_it_takes() -> None:
    lines = [*NOISE[:50], "map 2 8+1 0", *NOISE[50:90], "fork 2 3", "sleep 20", *NOISE[90:]]
    needed = ["map 2 8+1 0", "fork 2 3", "sleep 20"]
    left = shrink(lines, lambda part: all(line in part for line in needed))
    assert left == needed


def test_the_order_is_kept_and_ranges_become_single_pages() -> None:
    def fails(part: Sequence[str]) -> bool:
        kinds = [kind_of(line) for line in part]
        return "dup" in kinds and "verify" in kinds[kinds.index("dup") :]

    left = shrink(NOISE, fails)
    assert [kind_of(line) for line in left] == ["dup", "verify"]
    assert all(line.endswith("+1") for line in left)


def test_one_line_that_fails_alone_stays() -> None:
    assert shrink(["sleep 5"], lambda part: bool(part)) == ["sleep 5"]


def test_a_failure_that_takes_everything_stays_as_it_is() -> None:
    lines = [f"spawn {n}" for n in range(10)]
    assert shrink(lines, lambda part: len(part) == len(lines)) == lines


def test_many_lines_take_few_tries() -> None:
    lines = [f"dup {n % 4} {n % 96}+1" for n in range(5000)] + ["fork 1 2"]
    shrinker = Shrinker(lambda part: "fork 1 2" in part)
    assert shrinker.shrink(lines) == ["fork 1 2"]
    assert shrinker.tries < 60


def test_shrinking_ends_when_it_is_told_to() -> None:
    tried: list[int] = []

    def fails(part: Sequence[str]) -> bool:
        tried.append(len(part))
        return True

    left = Shrinker(fails, lambda: len(tried) >= 2).shrink(NOISE)
    assert len(tried) == 2 and len(left) == tried[-1]


def test_a_guess_that_fails_is_where_shrinking_begins() -> None:
    tried: list[int] = []

    def fails(part: Sequence[str]) -> bool:
        tried.append(len(part))
        return "fork 1 2" in part

    lines = [*NOISE, "fork 1 2", *NOISE]
    shrinker = Shrinker(fails)
    assert shrinker.shrink(lines, [lines[-5:], lines[115:125]]) == ["fork 1 2"]
    assert tried[:2] == [5, 10] and max(tried[2:]) < 10


def test_a_guess_has_what_is_about_the_pages_that_are_named() -> None:
    lines = ["map 0 0+8 1", "dup 0 9+2 3", "sleep 5", "poke 1 3+1 7", "fork 0 1"]
    assert about(lines, {3}) == ["map 0 0+8 1", "sleep 5", "poke 1 3+1 7", "fork 0 1"]
    said = "fuzzmm: wrong byte\nfuzzmm: the last operations on that page:\n     1 dup 0 9+2 3\n"
    wrong = {"wrong": {"operation": 4, "page": 12, "process": 0}}
    result = Result("wrong byte", said, 1, wrong, 1.0, 0)
    assert fuzz.guesses(lines, result)[0] == ["dup 0 9+2 3", "sleep 5", "fork 0 1"]


def test_groups_are_by_name_and_by_process() -> None:
    assert kind_of("dup 3 1+2 5") == "dup" and kind_of("compact") == "compact"
    assert process_of("dup 3 1+2 5") == "3" and process_of("sleep 20") == ""
    assert process_of("set run=1") == "" and process_of("drop") == ""


# ---- what is kept of a failure ------------------------------------------------------


class FailingFuzzer(Fuzzer):
    """Boots no guest: a byte is wrong as soon as the lines NEEDED have been, in their order."""

    def __init__(self) -> None:
        super().__init__(BootOptions(profile="fast"))
        self.runs: list[list[str]] = []

    def script(self, lines: Sequence[str], shown: Callable[[int], None] = lambda _: None) -> Result:
        """Say what comes of *lines*."""
        assert lines[0] == "sizes 4 96"
        self.runs.append(list(lines))
        left = list(NEEDED)
        for number, line in enumerate(lines[1:]):
            if line == left[0]:
                del left[0]
            if not left:
                report = {"wrong": {"operation": number, "page": 8, "process": 2}}
                return Result("wrong byte", f"at {line}", 1, report, 0.1, number, f"{number}\n")
        return Result("", "", 0, {}, 0.1, len(lines) - 1)


NEEDED = ["map 2 8+4 0", "fork 2 3", "sleep 20"]
FAILING = ["sizes 4 96", *NOISE[:50], NEEDED[0], *NOISE[50:90], *NEEDED[1:], *NOISE[90:]]
COMMAND = ["fuzz", "--real-time", "--append", "a=b"]
KeepFailure = Callable[..., tuple[FailingFuzzer, Path]]


@pytest.fixture
def keep_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> KeepFailure:
    """Return a function that lets the command deal with a list that has failed.

    It returns what was run for that, and where the list was put.
    """

    def keep(*options: str, kind: str = "wrong byte") -> tuple[FailingFuzzer, Path]:
        monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
        arguments = cli.build_parser().parse_args([*COMMAND, *options])
        fuzzer = FailingFuzzer()
        first = replace(fuzzer.script(FAILING), kind=kind)
        fuzzer.runs.clear()
        assert commands_fuzz.failed(arguments, fuzzer, first, FAILING, "seed-9", Term()) == 1
        (directory,) = (tmp_path / "fuzz").iterdir()
        assert directory.name.endswith("-seed-9")
        return fuzzer, directory

    return keep


def test_a_failure_is_shrunk_and_kept_with_the_command_that_repeats_it(
    keep_failure: KeepFailure, capsys: pytest.CaptureFixture[str]
) -> None:
    fuzzer, directory = keep_failure()
    # What came behind the failure was not tried once more.
    assert fuzzer.runs[0] == FAILING[: FAILING.index("sleep 20") + 1]
    left = ["sizes 4 96", *NEEDED]
    assert commands_fuzz.read_script(directory / "script") == left
    assert fuzzer.script(left).kind == "wrong byte"
    # All else is of the shortest run.
    assert (directory / "said").read_text() == "at sleep 20\n"
    assert (directory / "console.log").read_text() == "2\n"
    assert json.loads((directory / "report.json").read_text())["wrong"]["operation"] == 2
    said = capsys.readouterr()
    assert said.err.startswith("at sleep 20\n")
    lines = said.out.splitlines()
    assert lines[0] == f"3 operations are left, after {len(fuzzer.runs) - 1} runs:"
    assert lines[1:5] == [f"  {line}" for line in left]
    assert lines[5].startswith(f"kept in {directory}; repeat by: ./linux-um fuzz --from-script")
    assert lines[5].endswith("--real-time --append a=b")


def test_what_fails_in_another_way_is_not_taken_for_it(
    keep_failure: KeepFailure, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is a list shrunk that does not fail once more as it did: all of it is kept."""
    fuzzer, directory = keep_failure(kind="oops")
    assert fuzzer.runs == [FAILING]
    assert commands_fuzz.read_script(directory / "script") == FAILING
    assert "takes more than its operations" in capsys.readouterr().err


def test_nothing_is_shrunk_for_who_does_not_want_it(keep_failure: KeepFailure) -> None:
    fuzzer, directory = keep_failure("--no-shrink")
    assert fuzzer.runs == []
    assert commands_fuzz.read_script(directory / "script")[-1] == "sleep 20"


# ---- the command ------------------------------------------------------------------


def test_a_million_operations_are_dealt_out_to_seeds() -> None:
    dealt = list(commands_fuzz.seeds_of(5, 1_000_000, 1))
    assert sum(ops for _, ops in dealt) == 1_000_000
    assert [seed for seed, _ in dealt] == list(range(5, 5 + len(dealt)))
    assert list(commands_fuzz.seeds_of(3, 100, 2)) == [(3, 100), (4, 100)]


def test_a_list_is_read_without_its_remarks(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text(SCRIPT)
    assert commands_fuzz.read_script(path)[:2] == ["sizes 2 8", "map 0 0+4 1"]
    path.write_text("compact\n")
    assert commands_fuzz.read_script(path) == ["sizes 4 96", "compact"]
    path.write_text("# nothing\n")
    with pytest.raises(UsageError, match="no operation in it"):
        commands_fuzz.read_script(path)
    with pytest.raises(UsageError, match="name a list"):
        commands_fuzz.read_script(tmp_path / "nosuch")

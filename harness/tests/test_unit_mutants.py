# SPDX-License-Identifier: GPL-2.0-only
"""Mutants without a guest: their patches, their heads, choosing them, and what counts as killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux_um import build, kconfig, mutants, patches  # noqa: E402
from linux_um.errors import EXIT_LAUNCHER, PatchError, UsageError  # noqa: E402
from linux_um.paths import repo_root  # noqa: E402
from linux_um.source import DEFAULT_KERNEL  # noqa: E402
from linux_um.term import Term  # noqa: E402

HERE = Path(__file__).resolve().parent


def mutant(name: str) -> mutants.Mutant:
    """Return a mutant of which only the name matters."""
    return mutants.Mutant(name, Path(f"{name}.patch"), "something", ("test_x.py",))


# Where the mutants are, by the kernel and the machine that they are for.
SETS = [(DEFAULT_KERNEL, kconfig.UM), ("7.3", kconfig.UM), (DEFAULT_KERNEL, kconfig.X86_64)]
ALL = [mutant(name) for name in ("no-hook", "no-sweep", "one-domain")]


def names(patterns: list[str]) -> list[str]:
    """Return the names of the mutants that patterns choose."""
    return [chosen.name for chosen in mutants.select(ALL, patterns)]


def test_every_mutant_of_the_repository_names_tests_that_exist() -> None:
    found = [mutants.load(mutants.directory_of(kernel, arch)) for kernel, arch in SETS]
    assert len(found[0]) > 10 and all(found)
    for each in (each for those in found for each in those):
        for killer in each.killers:
            file, _, name = killer.partition("::")
            text = (HERE / file).read_text()
            assert not name or f"def {name.partition('[')[0]}(" in text, f"{each.name}: {killer}"


def test_each_machine_has_mutants_of_its_own_or_none() -> None:
    directory = HERE / "mutants"
    assert [mutants.directory_of(kernel, arch) for kernel, arch in SETS] == [
        directory, directory / "7.3", directory / "x86_64",
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no mutants of kernel 7.3 for x86_64"):
        mutants.directory_of("7.3", kconfig.X86_64)


@pytest.mark.parametrize("arch", kconfig.ARCHES)
def test_every_mutant_of_the_repository_fits_the_kernel(tmp_path: Path, arch: str) -> None:
    """As it is patched here: the work tree may be another checkout's by now."""
    term = Term(quiet=True)
    build.ensure_tree("fast", DEFAULT_KERNEL, term=term)
    recipe = build.read_recipe("fast", DEFAULT_KERNEL, term=term)
    patched = patches.patched_files(recipe.source.directory, recipe.snapshot)
    misfits = []
    for each in mutants.load(mutants.directory_of(DEFAULT_KERNEL, arch)):
        patch = patches.Patch(each.patch.name, each.patch.read_bytes())
        directory = tmp_path / each.name
        for name in patches.touched_files(patch.data):
            data = patched.get(name)
            if name not in patched:
                data = (recipe.source.directory / name).read_bytes()
            if data is not None:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                (directory / name).write_bytes(data)
        try:
            patches.apply_patch(directory, patch)
        except PatchError as error:
            misfits.append(error.line())
    assert not misfits


def test_a_head_that_says_too_little_is_refused(tmp_path: Path) -> None:
    patch = tmp_path / "x.patch"
    patch.write_text("Breaks: all\nKilled-by: test_x.py test_y.py::test_z\n\n--- a/x\n+++ b/x\n")
    read = mutants.parse(patch)
    assert (read.name, read.breaks) == ("x", "all")
    assert read.killers == ("test_x.py", "test_y.py::test_z")
    # What looks like a head below the patch's first line is none.
    patch.write_text("Breaks: all\n\n--- a/x\n+++ b/x\n+Killed-by: test_x.py\n")
    with pytest.raises(mutants.MutantError, match="Killed-by"):
        mutants.parse(patch)


def test_names_and_patterns_choose_each_mutant_once() -> None:
    assert names([]) == ["no-hook", "no-sweep", "one-domain"]
    assert names(["one-domain", "no-hook"]) == ["one-domain", "no-hook"]
    assert names(["no-*"]) == ["no-hook", "no-sweep"]
    assert names(["*-sweep", "no-*"]) == ["no-sweep", "no-hook"]
    assert names(["*"]) == names([])


@pytest.mark.parametrize("pattern", ["none", "x*", ""])
def test_a_pattern_without_a_mutant_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="there are: no-hook no-sweep one-domain"):
        names([pattern])


def pytest_results(tmp_path: Path, *options: str) -> tuple[int, str]:
    """Return pytest's status and results for a file with a test of each kind."""
    test = tmp_path / "tests" / "test_kinds.py"
    test.parent.mkdir(exist_ok=True)
    test.write_text(
        f"import sys\nsys.path.insert(0, {str(repo_root() / 'harness')!r})\n"
        "import pytest\nfrom linux_um.errors import BootError\n"
        "@pytest.fixture\ndef early(): raise BootError('no boot')\n"
        "@pytest.fixture\ndef late():\n    yield\n    raise AssertionError('laws broken')\n"
        "def test_passes(): pass\n"
        "def test_skips(): pytest.skip('no need')\n"
        "def test_setup(early): pass\n"
        "def test_boot(): raise BootError('no boot')\n"
        "def test_teardown(late): pass\n"
        "@pytest.mark.parametrize('x', [1])\ndef test_fails(x): assert not x\n"
    )
    junit = tmp_path / "junit.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider",
         f"--junitxml={junit}", *options, str(test)],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode, junit.read_text()


@pytest.mark.parametrize(
    ("chosen", "options", "killer"),
    [
        ("passes or skips", (), ""),
        ("fails", (), "test_kinds.py::test_fails[1]"),
        ("teardown", (), "test_kinds.py::test_teardown"),
        ("teardown or fails or setup", (), "test_kinds.py::test_teardown"),
        ("passes or skips", ("-n", "2", "-x"), ""),
        ("passes or fails", ("-n", "2", "-x"), "test_kinds.py::test_fails[1]"),
        ("passes or teardown", ("-n", "2", "-x"), "test_kinds.py::test_teardown"),
    ],
)
def test_a_failure_or_an_unwell_guest_is_a_kill(
    tmp_path: Path, chosen: str, options: tuple[str, ...], killer: str
) -> None:
    """As pytest itself says it, also when it stops at the first."""
    status, junit = pytest_results(tmp_path, "-k", chosen, *options)
    assert mutants.verdict_of("x", status, junit, "") == killer


@pytest.mark.parametrize("chosen", ["setup", "boot"])
def test_a_guest_that_does_not_boot_kills_nothing(tmp_path: Path, chosen: str) -> None:
    status, junit = pytest_results(tmp_path, "-k", chosen)
    with pytest.raises(mutants.MutantError, match="could not be tried"):
        mutants.verdict_of("x", status, junit, "1 failed\n")


def test_a_mutant_whose_tests_are_all_skipped_was_not_tried(tmp_path: Path) -> None:
    """It has not survived either: nobody has looked."""
    status, junit = pytest_results(tmp_path, "-k", "skips")
    assert status == 0
    with pytest.raises(mutants.MutantError, match="mutant x: its tests were skipped: no need"):
        mutants.verdict_of("x", status, junit, "1 skipped\n")


def test_without_results_the_last_words_say_why() -> None:
    with pytest.raises(mutants.MutantError, match="125.*: linux-um: x does not fit; see that"):
        mutants.verdict_of("x", 125, "", "something\nlinux-um: x does not fit\n\n")
    with pytest.raises(mutants.MutantError, match="no results"):
        mutants.verdict_of("x", 1, "<testsuites", "")


@pytest.mark.parametrize(
    ("killers", "status", "last"),
    [
        ({"no-hook": "test_x.py::test_y"}, 1, "1 killed, 1 survived, 1 not tried"),
        ({"no-hook": "t", "no-sweep": "t"}, EXIT_LAUNCHER, "2 killed, 0 survived, 1 not tried"),
    ],
)
def test_each_mutant_gets_a_line_and_none_ends_the_others(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    killers: dict[str, str],
    status: int,
    last: str,
) -> None:
    profiles, arches = [], []

    def fake(crew: mutants.Crew, tried: mutants.Mutant, _place: mutants.Place) -> str:
        profiles.append(crew.profile)
        arches.append(crew.arch)
        if tried.name == "one-domain":
            raise mutants.MutantError("it does not fit", "mend it")
        return killers.get(tried.name, "")

    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    monkeypatch.setattr(mutants, "load", lambda _directory: ALL)
    monkeypatch.setattr(mutants.Crew, "_try", fake)
    assert mutants.run([], "fast", "6.12", term=Term(quiet=True)) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["no-hook", "killed", "by", killers["no-hook"]]
    assert ("SURVIVED" in lines[1]) == ("no-sweep" not in killers)
    assert lines[2].endswith("NOT TRIED: it does not fit; mend it")
    assert lines[3] == last
    assert set(profiles) == {mutants.MUTANT_PROFILE}
    assert set(arches) == {kconfig.UM}
    assert mutants.run(["no-hook"], "debug", "6.12", term=Term(quiet=True), arch="x86_64") == 0
    assert (profiles[-1], arches[-1]) == ("debug", "x86_64")


@pytest.mark.parametrize("arch", kconfig.ARCHES)
def test_a_mutant_is_built_and_tested_for_its_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arch: str
) -> None:
    """A launcher that only says what it was asked for stands for the copy's."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))

    def copy_repository(_source: Path, copy: Path) -> None:
        (copy / "linux-patches" / "6.12").mkdir(parents=True)
        (copy / "linux-um").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\n')
        (copy / "linux-um").chmod(0o755)

    monkeypatch.setattr(mutants, "copy_repository", copy_repository)
    each = mutants.load(mutants.directory_of(DEFAULT_KERNEL, arch))[0]
    crew = mutants.Crew("mutant", DEFAULT_KERNEL, arch, 1, Term(quiet=True))
    assert list(crew.try_all([each])) == [(each, "")]
    words = (tmp_path / "asked").read_text().split()
    assert words[words.index("--arch") + 1] == arch
    assert words[-1].endswith(each.killers[-1])


@pytest.mark.parametrize(
    ("asked", "kernel", "arch", "name", "profile"),
    [
        ("mutant", "7.3", "um", "smp-no-shootdown", "smp"),
        ("ksm", "7.3", "um", "smp-no-shootdown", "smp-ksm"),
        ("smp-ksm", "7.3", "um", "smp-no-shootdown", "smp-ksm"),
        ("debug", "7.3", "um", "smp-user-memory-unlocked", "smp-debug"),
        ("mutant", DEFAULT_KERNEL, "um", "no-memcmp", "mutant"),
        # A PC has two CPUs in each profile.
        ("mutant", DEFAULT_KERNEL, "x86_64", "smp-of-a-pc", "mutant"),
    ],
)
def test_what_takes_two_cpus_to_be_found_gets_them(
    asked: str, kernel: str, arch: str, name: str, profile: str
) -> None:
    found = mutants.profile_of(mutant(name), asked, arch)
    assert found == profile
    if name.startswith(mutants.SMP_PREFIX):
        assert kconfig.cpus_of(found, arch) > 1
        assert kconfig.texts_of(found, kernel, arch)


def test_the_mutants_of_two_cpus_are_named_so() -> None:
    """All of a series that has SMP, whose tests need it."""
    for each in mutants.load(HERE / "mutants" / "7.3"):
        needs = [killer for killer in each.killers if killer.startswith("test_smp.py")]
        assert bool(needs) is each.name.startswith(mutants.SMP_PREFIX)


def test_a_mutant_of_two_cpus_is_tested_in_their_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the command is typed, without any profile."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))

    def copy_repository(_source: Path, copy: Path) -> None:
        (copy / "linux-patches" / "7.3").mkdir(parents=True, exist_ok=True)
        (copy / "linux-um").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
        (copy / "linux-um").chmod(0o755)

    monkeypatch.setattr(mutants, "copy_repository", copy_repository)
    mutants.run(["smp-*"], "fast", "7.3", term=Term(quiet=True))
    lines = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    chosen = mutants.select(mutants.load(HERE / "mutants" / "7.3"), ["smp-*"])
    assert len(chosen) > 1
    assert [words[words.index("--profile") + 1] for words in lines] == ["smp"] * len(chosen)


@pytest.fixture
def launchers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a directory; a launcher there stands for that of each copy, and is yet to be written.

    It is executed with the cache of its worker as a word.
    """
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "src").mkdir(parents=True)

    def copy_repository(_source: Path, copy: Path) -> None:
        (copy / "linux-patches" / "6.12").mkdir(parents=True, exist_ok=True)
        launcher = copy / "linux-um"
        launcher.write_text(f'#!/bin/sh\nexec sh {tmp_path}/launcher "$LINUX_UM_CACHE"\n')
        launcher.chmod(0o755)

    monkeypatch.setattr(mutants, "copy_repository", copy_repository)
    monkeypatch.setattr(build, "ensure_tree", lambda *_, **__: tmp_path)
    return tmp_path


def many(directory: Path, number: int) -> list[mutants.Mutant]:
    """Return *number* mutants whose patches are there."""
    found = [mutants.Mutant(f"m{i}", directory / f"m{i}", "x", ("t.py",)) for i in range(number)]
    for each in found:
        each.patch.touch()
    return found


def test_two_workers_try_at_the_same_time_each_with_a_cache_of_its_own(launchers: Path) -> None:
    """Each waits for the other to have begun: one after the other they would wait for ever."""
    (launchers / "launcher").write_text(
        f'cd {launchers}; name=$(basename "$1"); touch began-$name\n'
        "for i in $(seq 300); do [ $(ls began-* | wc -l) = 2 ] && exit 0; sleep 0.1; done; exit 1\n"
    )
    chosen = many(launchers, 2)
    crew = mutants.Crew("mutant", DEFAULT_KERNEL, kconfig.UM, 2, Term(quiet=True))
    assert sorted(each.name for each, killer in crew.try_all(chosen) if killer == "") == [
        "m0", "m1",
    ]  # fmt: skip
    assert sorted(path.name for path in launchers.glob("began-*")) == [
        "began-cache", "began-worker-1",
    ]  # fmt: skip
    worker = launchers / "cache" / mutants.PLACE / "worker-1"
    assert (worker / "src").resolve() == launchers / "cache" / "src"


def test_who_is_ended_leaves_no_worker_behind(
    launchers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (launchers / "launcher").write_text(f"touch {launchers}/began-$$; exec sleep 300\n")

    def interrupted(*_: object, **__: object) -> None:
        deadline = time.monotonic() + 30
        while len(list(launchers.glob("began-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(mutants, "wait", interrupted)
    crew = mutants.Crew("mutant", DEFAULT_KERNEL, kconfig.UM, 2, Term(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        list(crew.try_all(many(launchers, 3)))
    pids = [path.name.partition("-")[2] for path in launchers.glob("began-*")]
    assert len(pids) == 2
    assert not [pid for pid in pids if Path("/proc", pid).exists()]


def test_as_many_workers_as_are_asked_for_and_are_worth_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crews = []

    def try_all(_crew: mutants.Crew, chosen: list[mutants.Mutant]) -> list[tuple[object, str]]:
        return [(each, "t.py::test_x") for each in chosen]

    def remember(*words: object) -> mutants.Crew:
        crews.append(words[3])
        return crew(*words)  # type: ignore[arg-type]

    crew = mutants.Crew
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    monkeypatch.setattr(mutants.Crew, "try_all", try_all)
    monkeypatch.setattr(mutants, "Crew", remember)
    for number in (1, 2 * mutants.WORTH_A_WORKER - 1, 2 * mutants.WORTH_A_WORKER):
        monkeypatch.setattr(mutants, "load", lambda _: many(tmp_path, number))  # noqa: B023
        assert mutants.run([], "fast", DEFAULT_KERNEL, term=Term(quiet=True), jobs=4) == 0
    assert crews == [1, 1, 2]


def test_how_many_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert mutants.jobs_of(["no-*", "x"]) == (2, ["no-*", "x"])
    assert mutants.jobs_of(["-n", "3", "no-*"]) == (3, ["no-*"])
    assert mutants.jobs_of(["no-*", "-n12"]) == (12, ["no-*"])
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert mutants.jobs_of([]) == (1, [])
    for words in (["-n"], ["-n", "0"], ["-n", "x"], ["-x"], ["a", "-k", "b"]):
        with pytest.raises(UsageError, match="mutants have no such option"):
            mutants.jobs_of(words)


def test_shares_are_of_different_mutants_and_have_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mutants.share_of(["a", "-n2"]) == ((1, 1), ["a", "-n2"])
    assert mutants.share_of(["a", "--share=2/3"]) == ((2, 3), ["a"])
    for word in ("--share", "--share=3", "--share=0/2", "--share=3/2", "--shares=1/2"):
        with pytest.raises(UsageError, match="no such share"):
            mutants.share_of([word])

    def try_all(_: mutants.Crew, chosen: Sequence[mutants.Mutant]) -> Iterator[tuple[mutants.Mutant, str]]:
        yield from ((mutant, "test") for mutant in chosen)

    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path))
    monkeypatch.setattr(mutants.Crew, "try_all", try_all)
    monkeypatch.setattr(mutants, "load", lambda _: many(tmp_path, 10))
    tried = []
    for number in (1, 2, 3):
        assert mutants.run([], "fast", DEFAULT_KERNEL, term=Term(quiet=True), share=(number, 3)) == 0
        *lines, last = capsys.readouterr().out.splitlines()
        assert last.endswith(f", share {number} of 3")
        tried += [line.split()[0] for line in lines]
    assert sorted(tried) == sorted(mutant.name for mutant in many(tmp_path, 10))


def test_the_copy_keeps_what_was_compiled_from_it_valid(tmp_path: Path) -> None:
    """Same place, same times: else each mutant would compile the harness anew."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    for part in mutants.PARTS[1:]:
        (source / part).mkdir(parents=True)
    (source / "linux-um").write_text("#!/bin/sh\n")
    (source / "linux-um").chmod(0o755)
    module = source / "harness" / "module.py"
    module.write_text("x = 1\n")
    (source / "cache").mkdir()
    (source / "harness" / "__pycache__").mkdir()
    before = time.time() - 1000
    os.utime(module, (before, before))
    copy.mkdir()
    (copy / "left behind").touch()
    mutants.copy_repository(source, copy)
    assert sorted(path.name for path in copy.iterdir()) == sorted(mutants.PARTS)
    assert (copy / "harness" / "module.py").stat().st_mtime == pytest.approx(before)
    assert not (copy / "harness" / "__pycache__").exists()
    assert (copy / "linux-um").stat().st_mode & 0o100


def test_everything_a_mutant_is_made_of_is_copied() -> None:
    for part in mutants.PARTS:
        assert (repo_root() / part).exists()


def test_the_profile_of_mutants_is_fast_with_checks_and_without_debug_info() -> None:
    fast, mutant_ = (kconfig.wishes_of(name) for name in ("fast", mutants.MUTANT_PROFILE))
    assert not kconfig.for_debugger(mutant_) and kconfig.for_debugger(fast)
    differ = {name for name in fast | mutant_ if fast.get(name, "n") != mutant_.get(name, "n")}
    known = ("CONFIG_GDB_SCRIPTS", "CONFIG_KALLSYMS_ALL", "CONFIG_DEBUG_VM")
    assert all("DEBUG_INFO" in name or name in known for name in differ), differ

# SPDX-License-Identifier: GPL-2.0-only
"""Coverage without a guest: what is measured, sums of counts, thresholds, the list.

The counts are of a program of a few lines that runs on the host; all but the kernel
is the real thing, gcov-tool and gcovr too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux_um import build, cli, commands_cov, coverage, coverage_report  # noqa: E402
from linux_um import errors, kconfig, patches, paths, source  # noqa: E402
from linux_um.coverage import CoverageError  # noqa: E402
from linux_um.coverage_report import Entry, FileShare, Line, Share  # noqa: E402
from linux_um.term import Term  # noqa: E402



def gcovr_is_known() -> bool:
    """Return whether there is a gcovr of the series whose JSON is understood."""
    try:
        done = subprocess.run(["gcovr", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return done.stdout.startswith("gcovr 5.")


pytestmark = pytest.mark.skipif(not gcovr_is_known(), reason="there is no gcovr 5 here")

HOOK = """\
--- a/mm/memory.c
+++ b/mm/memory.c
@@ -1,4 +1,5 @@
 int fault(int page)
 {
+	page += 1;
 	return page;
 }
"""
MEMORY = "int fault(int page)\n{\n\treturn page;\n}\n"
# With and without an argument it runs all but what NOT_COVERED names.
ENGINE = """\
#define WARN_ON(x) ((x) ? 1 : 0)

static int twice(int n)
{
	return 2 * n;
}

static int never(int n)
{
	return n;
}

int fault(int page);

int main(int argc, char **argv)
{
	(void)argv;
	if (WARN_ON(argc >
		    9))
		return 9;
	if (argc > 1)
		return twice(argc) - fault(4) < 0;
	return argc > 5 ? never(3) : 0;
}
"""
NOT_COVERED = (
    "mm/pksm/a.c | never | * | nobody calls it\n"
    "mm/pksm/a.c | main | return 9; | a WARN_ON() that never fires\n"
    "mm/pksm/gone.c | * | * | not for this machine\n"
)


def snapshot(*names: str, hooks: str = HOOK) -> patches.Snapshot:
    """Return a made-up engine of files that are empty, but for a.c, and its hooks."""
    overlay = {name: ENGINE.encode() if name == "mm/pksm/a.c" else b"" for name in names}
    return patches.Snapshot((), (patches.Patch("hooks", hooks.encode()),), overlay)


def program(place: Path) -> tuple[Path, Path]:
    """Build the program, as make builds a kernel; return its build directory and its tree."""
    tree, made = place / "tree", place / "build"
    texts = {"mm/pksm/a.c": ENGINE, "mm/memory.c": MEMORY.replace("{\n", "{\n\tpage += 1;\n")}
    for name, text in texts.items():
        for directory in (tree, made):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
        stem = name.removesuffix(".c")
        command = ["gcc", "--coverage", "-c", str(tree / name), "-o", f"{stem}.o"]
        subprocess.run(command, cwd=made, check=True)
    command = ["gcc", "--coverage", "mm/pksm/a.o", "mm/memory.o", "-o", "linux"]
    subprocess.run(command, cwd=made, check=True)
    return made, tree


def run(made: Path, *words: str) -> dict[str, bytes]:
    """Run the program once; return the files of counts that this leaves, as a guest has them."""
    for old in made.rglob("*.gcda"):
        old.unlink()
    subprocess.run([str(made / "linux"), *words], check=False)
    return {f"{coverage.GCOV_DIR}{file}": file.read_bytes() for file in made.rglob("*.gcda")}


def calls(counts: Path, made: Path, function: str) -> int:
    """Return how often *function* has been called, as gcov reads *counts*."""
    gcov = ["gcov", "--json-format", "--stdout", "-o", str(made / "mm/pksm/a.gcno")]
    for file in counts.rglob("*.gcda"):
        (made / file.relative_to(counts)).write_bytes(file.read_bytes())
    done = subprocess.run([*gcov, "a.c"], cwd=made, capture_output=True, text=True, check=True)
    found = [
        each["execution_count"]
        for file in json.loads(done.stdout)["files"]
        for each in file["functions"]
        if each["name"] == function
    ]
    return int(found[0])


# What is measured


def test_the_engine_and_the_files_with_hooks_count_and_no_others() -> None:
    hooks = "".join(
        f"--- a/{name}\n+++ b/{name}\n"
        for name in ("mm/memory.c", "include/linux/mm.h", "arch/um/kernel/tlb.c", "mm/Kconfig",
                     "tools/testing/x.c", "kernel/gcov/gcc_base.c", "mm/memory.c")
    )  # fmt: skip
    made = snapshot(
        "mm/pksm/a.c", "mm/pksm/internal.h", "mm/pksm/tests/unit.c", "mm/pksm/Makefile",
        "include/linux/pksm.h", "include/trace/events/pksm.h", "tools/testing/selftests/t.c",
        hooks=hooks,
    )  # fmt: skip
    assert coverage.hook_files(made) == ["include/linux/mm.h", "mm/memory.c"]
    assert coverage.engine_files(made) == [
        "include/linux/pksm.h", "mm/pksm/a.c", "mm/pksm/internal.h",
    ]  # fmt: skip
    assert coverage.objects(made) == ["mm/pksm/a.o", "mm/memory.o"]
    word, flags = coverage.make_words(made)
    assert flags.startswith("CFLAGS_GCOV=-fprofile-arcs -ftest-coverage ")
    makefile = (
        ".PHONY: all\nall: mm/memory.o mm/pksm/a.o lib/a.o\n\t@:\n"
        "%.o:\n\t@echo $@ $(GCOV_PROFILE)\n"
    )
    done = subprocess.run(
        ["make", "-s", "-f", "-", word], input=makefile, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["mm/memory.o y", "mm/pksm/a.o y", "lib/a.o"]


def test_only_a_kernel_that_counts_has_them_in_its_key() -> None:
    found = source.Source("k", "k", "6.12", "6.12.1", "Debian package")
    made = snapshot("mm/pksm/a.c")
    plain = build.Recipe(found, "cov", made, ("CONFIG_A=y",), "gcc 12")
    counting = build.Recipe(found, "cov", made, ("CONFIG_GCOV_KERNEL=y",), "gcc 12")
    assert (plain.counts, counting.counts) == (False, True)
    assert kconfig.wishes_of("cov")[coverage.SYMBOL] == "y"
    assert coverage.SYMBOL not in kconfig.wishes_of("fast")


def test_of_a_patched_file_the_lines_count_that_the_patch_adds(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("a\nb\nc\nd\n")
    new.write_text("a\nx\ny\nc\nd\nz\n")
    assert coverage_report.added_lines(old, new) == {2, 3, 6}
    assert coverage_report.added_lines(old, old) == set()
    assert coverage_report.added_lines(tmp_path / "none", new) is None
    with pytest.raises(CoverageError, match="No such file"):
        coverage_report.added_lines(old, tmp_path / "none")


def test_labels_and_the_branches_of_a_check_do_not_count() -> None:
    text = (
        "a();\nif (WARN_ON_ONCE(x &&\n    f(y)) || z)\n\treturn;\n"
        "VM_WARN_ON(b);\nWARN_ONLY(c);\nout:\nilog2(d);\n"
    )
    assert coverage_report.check_lines(text) == {2, 3, 5, 8}
    branches = [{"count": 0, "fallthrough": False, "throw": False}]
    lines = [{"line_number": n, "count": 1, "branches": branches} for n in range(1, 8)]
    document = {
        "gcovr/format_version": "0.3",
        "files": [
            {"file": name, "functions": [], "lines": lines} for name in ("a.c", "b.c", "m.c")
        ],
    }
    narrowed = coverage_report.narrow(
        document, {"a.c": text, "m.c": text}, {"a.c": None, "m.c": {5, 6, 7}}
    )
    assert [each["file"] for each in narrowed["files"]] == ["a.c", "m.c"]
    left = [[(line["line_number"], len(line["branches"])) for line in each["lines"]]
            for each in narrowed["files"]]  # fmt: skip
    assert left == [[(1, 1), (2, 0), (3, 0), (4, 1), (5, 0), (6, 1)], [(5, 0), (6, 1)]]
    with pytest.raises(CoverageError, match="format '9'"):
        coverage_report.narrow({**document, "gcovr/format_version": "9"}, {}, {})


# Sums


def test_the_counts_of_guests_are_added_whoever_comes_first(tmp_path: Path) -> None:
    made, _ = program(tmp_path)
    one, other = run(made, "x"), run(made)
    notes, target = tmp_path / "notes", tmp_path / "counts"
    coverage.keep_notes(snapshot("mm/pksm/a.c", "mm/pksm/absent.c"), made, notes)
    assert coverage.counted_names(notes) == ["mm/memory", "mm/pksm/a"]
    guests = [one, other, one, one, other, one]
    with ThreadPoolExecutor(len(guests)) as pool:
        for done in [
            pool.submit(coverage.collect, guest.__getitem__, "key", made, notes, target)
            for guest in guests
        ]:
            done.result()
    assert coverage.guest_count(target / "key") == 6
    sums = target / "key" / coverage.COUNTS
    assert (calls(sums, made, "main"), calls(sums, made, "twice")) == (6, 4)
    assert calls(sums, made, "never") == 0
    assert sorted(path.name for path in (target / "key").iterdir()) == ["counts", "guests", "lock"]


def test_a_guest_that_cannot_be_read_changes_no_sum(tmp_path: Path) -> None:
    made, _ = program(tmp_path)
    counts = run(made, "x")
    notes, target = tmp_path / "notes", tmp_path / "counts"
    coverage.keep_notes(snapshot("mm/pksm/a.c"), made, notes)
    coverage.collect(counts.__getitem__, "key", made, notes, target)
    del counts[f"{coverage.GCOV_DIR}{made}/mm/pksm/a.gcda"]
    with pytest.raises(KeyError):
        coverage.collect(counts.__getitem__, "key", made, notes, target)
    broken = tmp_path / "broken"
    (broken / "mm" / "pksm").mkdir(parents=True)
    (broken / "mm" / "pksm" / "a.gcda").write_bytes(b"not one")
    sums = target / "key" / coverage.COUNTS
    with pytest.raises(CoverageError):
        coverage.add(sums, broken)
    assert coverage.guest_count(target / "key") == 1
    assert calls(sums, made, "main") == 1


def test_a_kernel_that_counts_nowhere_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(CoverageError, match="counts in no file"):
        coverage.collect(
            dict[str, bytes]().__getitem__, "key", tmp_path, tmp_path / "notes", tmp_path / "c"
        )


# Thresholds and the table


FILES = [
    FileShare("a.c", Share(90, 100), Share(8, 10)),
    FileShare("b.c", Share(10, 10), Share(0, 0)),
]


def test_a_threshold_is_met_by_the_sum_of_all_files() -> None:
    assert coverage_report.missed(FILES, 90.9, 80) == []
    assert coverage_report.missed(FILES, 95, 85) == [
        "90.9 % of lines, and 95 % are asked for", "80.0 % of branches, and 85 % are asked for",
    ]  # fmt: skip
    assert coverage_report.missed(FILES, 91, 0) == ["90.9 % of lines, and 91 % are asked for"]
    assert coverage_report.missed([], 100, 100) == []


def test_the_table_has_each_file_and_the_sum() -> None:
    rows = coverage_report.table(FILES).splitlines()
    assert [row.split() for row in rows[1:]] == [
        "a.c 90 of 100 90.0 % 8 of 10 80.0 %".split(),
        "b.c 10 of 10 100.0 % 0 of 0 100.0 %".split(),
        "all 100 of 110 90.9 % 8 of 10 80.0 %".split(),
    ]
    assert len({row.rindex("%") for row in rows[1:]}) == 1


def test_another_gcovr_is_an_error_in_one_line() -> None:
    with pytest.raises(CoverageError, match="'branch_total'"):
        coverage_report.shares({"files": [{"filename": "a", "line_covered": 1, "line_total": 1,
                                           "branch_covered": 0}]})  # fmt: skip


# The list


def line(number: int, text: str, function: str = "f", file: str = "a.c") -> Line:
    """Return a line of a file."""
    return Line(file, number, function, text)


def test_what_is_not_covered_has_to_be_listed_and_what_is_listed_not_covered() -> None:
    entries = coverage_report.read_list(
        "# FILE | FUNCTION | PART | REASON\n\n"
        "a.c | f | return -ENOMEM; | no memory | none at all\n"
        "a.c | * | goto out; | stale by now\n"
        "a.c | g | * | sometimes: a race\n"
        "b.c | * | * | in no kernel\n"
    )
    assert entries[0] == Entry(3, "a.c", "f", "return -ENOMEM;", "no memory | none at all")
    verdict = coverage_report.judge(
        [
            (line(1, "return -ENOMEM;"), False), (line(2, "goto out;"), True),
            (line(3, "x();", "g"), True), (line(4, "return -ENOMEM;", "h"), False),
            (line(0, "is in no kernel", "", "b.c"), False),
        ],
        entries,
    )  # fmt: skip
    assert [str(each) for each in verdict.unlisted] == ["a.c:4: h(): return -ENOMEM;"]
    assert [entry.number for entry in verdict.stale] == [4]
    assert verdict.listed == 2


@pytest.mark.parametrize("text", ["a.c | f | x", "a.c | f |  | why", "a.c: f: x: why"])
def test_an_entry_without_a_reason_is_an_error_that_names_its_line(text: str) -> None:
    with pytest.raises(CoverageError, match=r"uncovered\.txt:2: "):
        coverage_report.read_list(f"# a list\n{text}\n")


def test_the_list_of_the_repository_names_files_and_functions_that_exist() -> None:
    entries = coverage_report.read_list(commands_cov.list_file().read_text())
    snap = patches.take_snapshot(paths.patches_dir(source.DEFAULT_KERNEL), paths.overlay_dir())
    hooked = b"\n".join(patch.data for patch in snap.patches).decode(errors="replace")
    for entry in entries:
        text = snap.overlay.get(entry.file, b"").decode()
        assert text or entry.file in coverage.hook_files(snap), entry
        for word in (entry.function, entry.part):
            assert word == coverage_report.ANY or word in (text or hooked), entry


# All of it


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> build.Recipe:
    """Return the recipe of the program, which has been built and has an image in a cache."""
    monkeypatch.setenv("LINUX_UM_CACHE", str(tmp_path / "cache"))
    found = source.Source("k", "k", "6.12", "6.12.1", "Debian package")
    made = build.Recipe(
        found, "cov", snapshot("mm/pksm/a.c", "mm/pksm/gone.c"), ("CONFIG_GCOV_KERNEL=y",), "gcc"
    )
    built, tree = program(tmp_path)
    made.build_dir.parent.mkdir(parents=True)
    made.tree.parent.mkdir(parents=True)
    built.rename(made.build_dir)
    tree.rename(made.tree)
    # Once more, where the names of files are what they will stay.
    for name in ("mm/pksm/a", "mm/memory"):
        command = ["gcc", "--coverage", "-c", str(made.tree / f"{name}.c"), "-o", f"{name}.o"]
        subprocess.run(command, cwd=made.build_dir, check=True)
    command = ["gcc", "--coverage", "mm/pksm/a.o", "mm/memory.o", "-o", "linux"]
    subprocess.run(command, cwd=made.build_dir, check=True)
    (found.directory / "mm").mkdir(parents=True)
    (found.directory / "mm" / "memory.c").write_text(MEMORY)
    image = paths.image_root() / made.key
    coverage.keep_notes(made.snapshot, made.build_dir, image / coverage.NOTES_DIR)
    facts: dict[str, Any] = {
        "source": {"content": "k"}, "patches": made.snapshot.patches_hash,
        "engine": made.snapshot.engine_hash, "profile": "cov", "arch": kconfig.UM,
    }  # fmt: skip
    (image / build.INFO_NAME).write_text(json.dumps(facts))
    listed = tmp_path / "uncovered.txt"
    listed.write_text(NOT_COVERED)
    monkeypatch.setattr(commands_cov, "list_file", lambda: listed)
    monkeypatch.setattr(build, "read_recipe", lambda *_args, **_options: made)
    return made


def guest(recipe: build.Recipe, directory: Path, *words: str) -> None:
    """Run the program once and let it leave its counts below *directory*."""
    counts = run(recipe.build_dir, *words)
    notes = paths.image_root() / recipe.key / coverage.NOTES_DIR
    target = directory / commands_cov.COUNTS
    coverage.collect(counts.__getitem__, recipe.key, recipe.build_dir, notes, target)


def cov(directory: Path, *words: str) -> int:
    """Run ``linux-um cov --report-only`` and return its exit status."""
    return cli.main(["cov", "--report-only", "-o", str(directory), *words])


def test_a_threshold_that_is_missed_gives_an_exit_status_of_its_own(
    recipe: build.Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guest(recipe, tmp_path)
    guest(recipe, tmp_path, "x")
    assert cov(tmp_path, "--lines", "70", "--branches", "70") == 0
    said = capfd.readouterr()
    assert "2 guests; 4 lines are not covered for a reason" in said.out
    assert "in no kernel that was measured: mm/pksm/gone.c" in said.out
    rows = {words[0]: words[1:] for words in map(str.split, said.out.splitlines()) if words}
    assert rows["mm/memory.c"][:4] == ["1", "of", "1", "100.0"]
    assert rows["all"][2] == str(int(rows["mm/pksm/a.c"][2]) + 1)
    covered = 100 * int(rows["all"][0]) / int(rows["all"][2])
    assert 70 <= covered < 100
    page = (tmp_path / "index.html").read_text()
    assert "Coverage of PKSM" in page and f"{covered:.1f}" in page and "a.c" in page

    assert cov(tmp_path, "--lines", "99", "--branches", "70") == commands_cov.EXIT_MISSED
    assert f"{covered:.1f} % of lines, and 99 % are asked for" in capfd.readouterr().err
    assert cov(tmp_path, "--lines", "70", "--branches", "99") == commands_cov.EXIT_MISSED
    assert "% of branches, and 99 % are asked for" in capfd.readouterr().err
    assert commands_cov.EXIT_MISSED not in (0, 1, 2, 5, errors.EXIT_LAUNCHER)


def test_a_list_that_is_not_true_gives_that_exit_status(
    recipe: build.Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guest(recipe, tmp_path)
    loose = ("--lines", "0", "--branches", "0")
    # Without an argument twice() is not called, nor fault().
    assert cov(tmp_path, *loose) == commands_cov.EXIT_MISSED
    said = capfd.readouterr()
    assert "not covered: mm/pksm/a.c:5: twice(): return 2 * n;" in said.out
    assert "not covered: mm/memory.c:3: fault(): page += 1;" in said.out
    assert "lines are neither covered nor in uncovered.txt" in said.err
    assert "twice(): return 2 * n;" in (tmp_path / commands_cov.NOT_LISTED).read_text()

    guest(recipe, tmp_path, "x")
    listed = tmp_path / "uncovered.txt"
    listed.write_text(NOT_COVERED + "mm/pksm/a.c | twice | * | once it was so\n")
    assert cov(tmp_path, *loose) == commands_cov.EXIT_MISSED
    said = capfd.readouterr()
    assert "uncovered.txt:4: nothing uncovered is named by mm/pksm/a.c | twice | *" in said.out
    assert "1 lines of uncovered.txt are stale" in said.err


def test_a_function_may_be_in_another_line_of_another_kernel(tmp_path: Path) -> None:
    """As those are that an #ifdef chooses from; the lines of both count."""
    (tmp_path / "a.c").write_text("#ifdef A\nint f;\n#else\nint f;\n#endif\n")
    documents = []
    for at, count in ((2, 1), (4, 0)):
        one = {"line_number": at, "count": count, "branches": []}
        one |= {"gcovr/noncode": False, "gcovr/excluded": False}
        function = {"name": "f", "lineno": at, "execution_count": count}
        file = {"file": "a.c", "functions": [function], "lines": [one]}
        documents.append({"gcovr/format_version": "0.3", "files": [file]})
    (share,) = coverage_report.write_report(documents, tmp_path, tmp_path, (95, 85))
    assert (share.name, share.lines) == ("a.c", Share(1, 2))
    both = coverage_report.merged(documents)
    found = list(coverage_report.lines_of(both, {"a.c": (tmp_path / "a.c").read_text()}, []))
    assert [(line.number, line.function, ran) for line, ran in found] == [
        (2, "f", True), (4, "f", False),
    ]  # fmt: skip


def test_counts_of_another_engine_are_left_out(
    recipe: build.Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guest(recipe, tmp_path)
    info = paths.image_root() / recipe.key / build.INFO_NAME
    info.write_text(json.dumps({**json.loads(info.read_text()), "engine": "another"}))
    assert cov(tmp_path) == errors.EXIT_LAUNCHER
    said = capfd.readouterr().err
    assert f"{recipe.key} is of another kernel or engine, and left out" in said
    assert "no guest of this kernel has left counts" in said.splitlines()[-1]


def test_the_status_of_the_suite_comes_first(
    recipe: build.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suite(arguments: argparse.Namespace, counts: Path, _term: Term) -> int:
        assert (arguments.profile, arguments.pytest_arguments) == ("cov", ["-k", "swap"])
        assert counts == tmp_path / commands_cov.COUNTS
        guest(recipe, tmp_path)
        return 1

    monkeypatch.setattr(commands_cov, "_run_suite", suite)
    assert cli.main(["cov", "-o", str(tmp_path), "--lines", "99", "-k", "swap"]) == 1


def test_a_profile_that_counts_nothing_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cov", "--profile", "fast"]) == errors.EXIT_LAUNCHER
    assert "the kernel of profile fast counts nothing" in capfd.readouterr().err


def test_without_gcovr_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("linux_um.packages.os.geteuid", lambda: 1000)
    monkeypatch.setattr(
        "linux_um.packages.shutil.which", lambda name: None if name == "gcovr" else name
    )
    assert cli.main(["cov", "--report-only"]) == errors.EXIT_LAUNCHER
    (said,) = capfd.readouterr().err.splitlines()
    assert "missing packages: gcovr; run: " in said and "apt-get install" in said

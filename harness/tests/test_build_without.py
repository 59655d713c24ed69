# SPDX-License-Identifier: GPL-2.0-only
"""The patched tree without PKSM: everything that the hooks touch compiles, and calls no engine.

Each configuration has a build directory of its own, beside those of the profiles, so that
only the first run compiles everything. The link is left to the profile ksm.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from linux_um import build, kconfig, paths
from linux_um.make import Make
from linux_um.patches import touched_files
from linux_um.source import default_kernel, series_of
from linux_um.term import Term

# What CONFIG_KSM is in place of PKSM.
WISHES = {
    "off": "# CONFIG_KSM is not set\n",
    "classic": "CONFIG_KSM=y\nCONFIG_KSM_CLASSIC=y\n# CONFIG_PKSM is not set\n",
}
NO_DEBUG_INFO = """\
CONFIG_DEBUG_INFO_NONE=y
# CONFIG_DEBUG_INFO_DWARF5 is not set
# CONFIG_GDB_SCRIPTS is not set
"""
# mm/page_ext.c is compiled with PKSM, or with this.
FOR_PAGE_EXT = "CONFIG_PAGE_OWNER=y\n"
# UML has no uprobes, the 32-bit kernel of the same compiler has.
UPROBES = "kernel/events/uprobes.c"
FOR_UPROBES = """\
CONFIG_PERF_EVENTS=y
CONFIG_FTRACE=y
CONFIG_UPROBES=y
CONFIG_UPROBE_EVENTS=y
"""
# Nor has it large folios, memory that goes bad, or memory of devices.
LARGE = ("mm/huge_memory.c", "mm/khugepaged.c", "mm/memory-failure.c", "mm/migrate_device.c")
FOR_BAD_AND_DEVICE_MEMORY = """\
CONFIG_X86_MCE=y
CONFIG_MEMORY_FAILURE=y
CONFIG_SPARSEMEM_VMEMMAP=y
CONFIG_MEMORY_HOTPLUG=y
CONFIG_MEMORY_HOTREMOVE=y
CONFIG_ZONE_DEVICE=y
CONFIG_DEVICE_PRIVATE=y
"""
FOR_LARGE = f"""\
{FOR_BAD_AND_DEVICE_MEMORY}CONFIG_64BIT=y
CONFIG_SMP=y
CONFIG_SHMEM=y
CONFIG_COMPACTION=y
CONFIG_TRANSPARENT_HUGEPAGE=y
# CONFIG_CPU_MITIGATIONS is not set
"""
# Compiled where there is more than one CPU, which these kernels do not have.
OF_SMP = "arch/um/os-Linux/smp.c"
# Other files with what <linux/ksm.h> declares.
USERS = ("fs/proc/task_mmu.c", "kernel/sys.c", "mm/madvise.c", "mm/migrate.c")


def recipe_of(request: pytest.FixtureRequest) -> build.Recipe:
    """Return from what the kernel under test is made."""
    profile = request.config.getoption("--profile")
    return build.read_recipe(profile, default_kernel(), term=Term(quiet=True))


def hooked(recipe: build.Recipe) -> list[str]:
    """Return the source files that the hooks are in."""
    names = {name for patch in recipe.snapshot.patches for name in touched_files(patch.data)}
    return sorted(name for name in names if name.endswith(".c") and not name.startswith("tools/"))


def compile_objects(
    recipe: build.Recipe, arch: str, place: str, texts: Sequence[str], names: Sequence[str]
) -> list[Path]:
    """Compile the source files *names* in the build directory *place*; return the objects."""
    term = Term(quiet=True)
    with paths.lock(place, term=term):
        tree = build.ensure_tree(recipe.profile, default_kernel(), term=term)
        directory = paths.build_dir(recipe.source.key, place)
        build.discard_stale(tree, directory)
        make = Make(tree, paths.ensure_dir(directory), arch)

        def run(targets: Sequence[str], environment: Mapping[str, str]) -> None:
            make.run(targets, environment=environment)

        kconfig.configure(make.build_dir, texts, run)
        targets = [str(Path(name).with_suffix(".o")) for name in names]
        for target in targets:
            (make.build_dir / target).unlink(missing_ok=True)
        make.run(["prepare", *targets])
        return [make.build_dir / target for target in targets]


def wanted_of_engine(compiled: Path) -> list[str]:
    """Return the symbols of the engine that an object file needs or has."""
    symbols = subprocess.run(["nm", str(compiled)], capture_output=True, text=True, check=True)
    return re.findall(r"\b\w*pksm\w*", symbols.stdout)


@pytest.mark.regression("R50")
@pytest.mark.parametrize("wish", WISHES)
def test_r50_without_pksm_every_hook_compiles_to_nothing(
    request: pytest.FixtureRequest, wish: str
) -> None:
    """R50: with CONFIG_KSM off, and with stock KSM."""
    recipe = recipe_of(request)
    names = sorted({*hooked(recipe), *USERS} - {UPROBES, OF_SMP, *LARGE})
    assert len(names) > len(USERS) + 10
    if wish == "classic":
        names.append("mm/ksm.c")
    base = "".join(kconfig.texts_of("fast", series_of(default_kernel()))[:-1])
    fragments = [base, NO_DEBUG_INFO, FOR_PAGE_EXT, WISHES[wish]]
    for compiled in compile_objects(recipe, "um", f"without-{wish}", fragments, names):
        assert not wanted_of_engine(compiled), compiled.name


@pytest.mark.regression("R50")
@pytest.mark.parametrize("wish", WISHES)
def test_r50_without_pksm_the_hook_that_uml_has_not_compiles_to_nothing(
    request: pytest.FixtureRequest, wish: str
) -> None:
    """R50: uprobes write to anonymous pages."""
    recipe = recipe_of(request)
    assert UPROBES in hooked(recipe)
    fragments = [FOR_UPROBES, WISHES[wish]]
    (compiled,) = compile_objects(recipe, "i386", f"without-{wish}-32", fragments, [UPROBES])
    assert not wanted_of_engine(compiled)


@pytest.mark.regression("R50")
@pytest.mark.parametrize("wish", WISHES)
def test_r50_without_pksm_the_hooks_of_large_folios_compile_to_nothing(
    request: pytest.FixtureRequest, wish: str
) -> None:
    """R50: large folios are split and made of small pages."""
    recipe = recipe_of(request)
    assert set(hooked(recipe)).issuperset(LARGE)
    fragments = [FOR_LARGE, WISHES[wish]]
    for compiled in compile_objects(recipe, "x86_64", f"without-{wish}-64", fragments, LARGE):
        assert not wanted_of_engine(compiled), compiled.name

# SPDX-License-Identifier: GPL-2.0-only
"""Large folios, which User-Mode Linux does not have: the engine and its hooks compile for x86-64.

With transparent huge pages, NUMA balancing and hardware poison, each of which brings
code that no other build compiles.
"""

from __future__ import annotations

import re
import subprocess

import pytest
from linux_um import kconfig, paths
from linux_um.source import default_kernel, series_of
from test_build_without import FOR_BAD_AND_DEVICE_MEMORY, LARGE, compile_objects, hooked, recipe_of

pytestmark = pytest.mark.needs_pksm

WISHES = f"""\
{FOR_BAD_AND_DEVICE_MEMORY}CONFIG_64BIT=y
CONFIG_SMP=y
CONFIG_NUMA=y
CONFIG_NUMA_BALANCING=y
CONFIG_BLOCK=y
CONFIG_SWAP=y
CONFIG_SHMEM=y
CONFIG_PROC_FS=y
CONFIG_SYSFS=y
CONFIG_DEBUG_FS=y
CONFIG_CGROUPS=y
CONFIG_MEMCG=y
CONFIG_USERFAULTFD=y
CONFIG_COMPACTION=y
CONFIG_MIGRATION=y
CONFIG_TRANSPARENT_HUGEPAGE=y
CONFIG_PERF_EVENTS=y
CONFIG_FTRACE=y
CONFIG_UPROBES=y
CONFIG_UPROBE_EVENTS=y
CONFIG_DEBUG_KERNEL=y
CONFIG_DEBUG_VM=y
CONFIG_KSM=y
CONFIG_PKSM=y
CONFIG_PKSM_DEBUG=y
# CONFIG_CPU_MITIGATIONS is not set
"""
# What 7.x asks beside that.
SINCE_7 = "CONFIG_NUMA_MIGRATION=y\n"
# Calls of each other that a THP kernel has to have.
CALLS = {
    "mm/huge_memory.o": ("pksm_add_new_anon_page", "__pksm_add_split_off"),
    "mm/khugepaged.o": ("__pksm_add_collapsed", "__pksm_page_unmapped"),
    "mm/pksm/match.o": ("pksm_consider_large", "pksm_large_wanted"),
    "mm/pksm/large.o": ("split_folio_to_list",),
}
# In 7.x what khugepaged has made is mapped by the code that maps any such folio.
CALLS_SINCE_7 = {
    **CALLS,
    "mm/huge_memory.o": (*CALLS["mm/huge_memory.o"], "__pksm_add_collapsed"),
    "mm/memory.o": ("__pksm_add_collapsed",),
    "mm/khugepaged.o": ("__pksm_page_unmapped",),
}


def test_what_is_about_large_folios_compiles(request: pytest.FixtureRequest) -> None:
    """The engine, every file with a hook, and each finds in the other what it calls."""
    recipe = recipe_of(request)
    engine = {f"mm/pksm/{path.name}" for path in (paths.overlay_dir() / "mm/pksm").glob("*.c")}
    hooks = {name for name in hooked(recipe) if not name.startswith("arch/")}
    names = sorted({*engine, *hooks, *LARGE} - {"mm/pksm/ksm_compat.c"})
    new = kconfig.numbers(series_of(default_kernel())) >= (7,)
    wishes = [WISHES, SINCE_7] if new else [WISHES]
    objects = compile_objects(recipe, "x86_64", "large", wishes, names)
    by_name = {name.replace(".c", ".o"): path for name, path in zip(names, objects, strict=True)}
    for name, calls in (CALLS_SINCE_7 if new else CALLS).items():
        symbols = subprocess.run(["nm", str(by_name[name])], capture_output=True, text=True, check=True)
        wanted = set(re.findall(r" U (\w+)$", symbols.stdout, re.MULTILINE))
        assert wanted.issuperset(calls), f"{name} calls {sorted(wanted)}"

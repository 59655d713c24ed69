# SPDX-License-Identifier: GPL-2.0-only
"""Domains: whose pages are merged with whose. See mm/pksm/domain.c."""

from __future__ import annotations

from . import kernel, rmap
from .memory import Page

NAMES = {
    "PKSM_DOMAIN_USER": "user",
    "PKSM_DOMAIN_MEMCG": "memcg",
    "PKSM_DOMAIN_PROCESS": "process",
    "PKSM_DOMAIN_GLOBAL": "global",
}
_MASK = (1 << 64) - 1
_C1 = 0xFF51AFD7ED558CCD
_C2 = 0xC4CEB9FE1A85EC53
NOBODY = _MASK


def kind() -> str:
    """Return what /sys/kernel/mm/pksm/domain says."""
    number = kernel.number(kernel.address("pksm_domain_kind"), 4)
    for name, value in kernel.enum("pksm_domain_kind").items():
        if value == number:
            return NAMES.get(name, name)
    return f"unknown ({number})"


def mix(number: int) -> int:
    """Return what pksm_mix() makes of a number."""
    number ^= number >> 33
    number = number * _C1 & _MASK
    number ^= number >> 33
    number = number * _C2 & _MASK
    return number ^ number >> 33


def unmix(mixed: int) -> int:
    """Return the number that mix() made *mixed* of."""
    number = mixed ^ mixed >> 33
    number = number * pow(_C2, -1, 1 << 64) & _MASK
    number ^= number >> 33
    number = number * pow(_C1, -1, 1 << 64) & _MASK
    return number ^ number >> 33


def of_mm(mm: int) -> int:
    """Return what pksm_mm_domain() says of an address space."""
    what = kind()
    if what == "global":
        return 0
    owner = kernel.member(mm, "struct mm_struct", "owner")
    if not owner:
        return NOBODY
    task = "struct task_struct"
    if what == "user":
        cred = kernel.member(owner, task, "real_cred")
        return mix(kernel.member(cred, "struct cred", "euid.val", 4) + 1)
    if what == "memcg":
        groups = kernel.member(owner, task, "cgroups")
        slot = kernel.enum("cgroup_subsys_id")["memory_cgrp_id"] * kernel.WORD
        state = kernel.number(groups + kernel.offset("struct css_set", "subsys") + slot)
        return mix(kernel.member(state, "struct cgroup_subsys_state", "serial_nr") + 1)
    leader = kernel.member(owner, task, "group_leader")
    return mix(mix(mm) ^ kernel.member(leader, task, "start_boottime"))


def of_page(page: Page) -> int:
    """Return the domain of the first address space that is found to map a page."""
    for mapping in rmap.mappings(page):
        found = of_mm(mapping.vma.mm)
        if found != NOBODY:
            return found
    return NOBODY


def plausible(mixed: int) -> bool:
    """Return whether *mixed* can be a domain.

    A process may have changed its user or cgroup since its page was merged, so
    what it belongs to now does not decide.
    """
    what = kind()
    if what == "global":
        return mixed == 0
    if what == "process":
        return True
    return 0 < unmix(mixed) <= 1 << 32


def name(mixed: int) -> str:
    """Return a domain in words."""
    what = kind()
    if what == "user":
        return f"of user {unmix(mixed) - 1}"
    if what == "memcg":
        return f"of the memory cgroup with serial number {unmix(mixed) - 1}"
    return "of all" if what == "global" else "of the process"

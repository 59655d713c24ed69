# SPDX-License-Identifier: GPL-2.0-only
"""Domains: whose pages are merged with whose. See mm/pksm/domain.c."""

from __future__ import annotations

from collections.abc import Iterator

from . import kernel, rmap, tasks
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
PROCESS_ID = 1 << 63
# include/linux/sched.h; include/linux/sched/coredump.h, or since 7.2 exec_state.h
TASK_NEW = 0x800
DUMPABLE_MASK, DUMPABLE_USER = 3, 1


def kind() -> str:
    """Return what /sys/kernel/mm/pksm/domain says."""
    number = kernel.number(kernel.address("pksm_domain_kind"), 4)
    for name, value in kernel.enum("pksm_domain_kind").items():
        if value == number:
            return NAMES.get(name, name)
    return f"unknown ({number})"


def scope() -> str:
    """Return what /sys/kernel/mm/pksm/scope says."""
    number = kernel.number(kernel.address("pksm_scope"), 4)
    for name, value in kernel.enum("pksm_scope").items():
        if value == number:
            return name.removeprefix("PKSM_SCOPE_").lower()
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


def _user(uid: int, gid: int) -> int:
    return mix(mix(uid + 1) ^ gid)


def _groups() -> Iterator[int]:
    """Return the group ids that there are, that of root first; some more than once."""
    yield 0
    for task in tasks.tasks():
        cred = kernel.member(task.address, "struct task_struct", "real_cred")
        if cred:
            yield kernel.member(cred, "struct cred", "gid.val", 4)


def _user_of(mixed: int) -> tuple[int, int] | None:
    """Return the user and the group whose domain *mixed* is, if it is that of any."""
    for gid in _groups():
        uid = unmix(unmix(mixed) ^ gid) - 1
        if 0 <= uid < 1 << 32:
            return uid, gid
    return None


def _process(mm: int) -> int:
    return mix(kernel.member(mm, "struct mm_struct", "pksm_id") | PROCESS_ID)


def _dumpable(mm: int, owner: int) -> int:
    task = "struct task_struct"
    if not kernel.has_member(task, "exec_state"):
        return kernel.member(mm, "struct mm_struct", "flags") & DUMPABLE_MASK
    state = kernel.member(owner, task, "exec_state")
    return kernel.member(state, "struct task_exec_state", "dumpable", 4) if state else 0


def _is_users_own(mm: int, owner: int, cred: int) -> bool:
    """Return what pksm_is_users_own() says."""

    def ids(what: str) -> set[int]:
        names = (f"{what}.val", f"e{what}.val", f"s{what}.val")
        return {kernel.member(cred, "struct cred", name, 4) for name in names}

    readable = _dumpable(mm, owner) == DUMPABLE_USER
    return len(ids("uid")) == 1 and len(ids("gid")) == 1 and readable


def of_mm(mm: int) -> int:
    """Return what pksm_mm_domain() says of an address space."""
    what = kind()
    if what == "global":
        return 0
    owner = kernel.member(mm, "struct mm_struct", "owner")
    task = "struct task_struct"
    if not owner or kernel.member(owner, task, "__state", 4) & TASK_NEW:
        return NOBODY
    if what == "user":
        cred = kernel.member(owner, task, "real_cred")
        if not cred:
            return NOBODY
        if _is_users_own(mm, owner, cred):
            name = "struct cred"
            return _user(*(kernel.member(cred, name, each, 4) for each in ("uid.val", "gid.val")))
    if what == "memcg":
        groups = kernel.member(owner, task, "cgroups")
        slot = kernel.enum("cgroup_subsys_id")["memory_cgrp_id"] * kernel.WORD
        state = kernel.number(groups + kernel.offset("struct css_set", "subsys") + slot)
        return mix(kernel.member(state, "struct cgroup_subsys_state", "serial_nr") + 1)
    return _process(mm)


def of_page(page: Page) -> int:
    """Return what pksm_folio_survey() says of the domain of a page."""
    found = {of_mm(mapping.vma.mm) for mapping in rmap.mappings(page)}
    return found.pop() if len(found) == 1 else NOBODY


def plausible(mixed: int) -> bool:
    """Return whether *mixed* can be a domain.

    A process may have changed its user or cgroup since its page was merged, so
    what it belongs to now does not decide; only a group has to be one that there is.
    """
    if kind() == "global":
        return mixed == 0
    if kind() == "user" and _user_of(mixed) is not None:
        return True
    number = unmix(mixed)
    if kind() == "user" and not number & PROCESS_ID:
        return False
    return 0 < number & ~PROCESS_ID <= 1 << 32


def name(mixed: int) -> str:
    """Return a domain in words."""
    number = unmix(mixed)
    if kind() == "global":
        return "of all"
    user = _user_of(mixed) if kind() == "user" else None
    if user is not None:
        return f"of user {user[0]}, group {user[1]}"
    if number & PROCESS_ID:
        return f"of the address space {number & ~PROCESS_ID}"
    return f"of the memory cgroup with serial number {number - 1}"

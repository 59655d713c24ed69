# SPDX-License-Identifier: GPL-2.0-only
"""Scripts for the guest's shell that give it what some work needs: swap, a memory cgroup.

They end with the status of what has failed, and can be joined by ``&&``.
"""

from __future__ import annotations

# The device that ram_swap() swaps to.
RAM_SWAP_DEVICE = "/dev/loop0"


def ram_swap(mib: int, *, rotational: bool = False) -> str:
    """Return what adds *mib* MiB of swap that lie in the guest's own memory.

    No disk of the host is waited for, so that time travel does no harm. Where it is
    *rotational* the kernel does not choose places on it at random.
    """
    turns = "echo 1 > /sys/block/loop0/queue/rotational && " if rotational else ""
    return (
        "mkdir -p /mnt/ram && mount -t ramfs none /mnt/ram && "
        f"dd if=/dev/zero of=/mnt/ram/swap bs=1M count={mib} 2>/dev/null && "
        f"losetup {RAM_SWAP_DEVICE} /mnt/ram/swap && {turns}"
        f"mkswap {RAM_SWAP_DEVICE} >/dev/null && swapon {RAM_SWAP_DEVICE}"
    )


def memory_group(path: str) -> str:
    """Return what makes the memory cgroup *path*, below /sys/fs/cgroup, if there is none."""
    return (
        "{ grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts || "
        "mount -t cgroup2 none /sys/fs/cgroup; } && "
        f"echo +memory > /sys/fs/cgroup/cgroup.subtree_control && mkdir -p {path}"
    )

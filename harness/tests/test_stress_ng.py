# SPDX-License-Identifier: GPL-2.0-only
"""stress-ng, a load that others wrote, comes to the same end under PKSM as without.

The host's own program runs in a guest that sees the host's /usr. It checks what it has
written where it can (--verify), does a given number of operations, and is told to do
the same under the stock kernel. PKSM is at its most eager meanwhile.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from lab import MOST_EAGER, BootFresh, check_structures, machine_of
from linux_um import kconfig
from linux_um.guest import Guest

pytestmark = [pytest.mark.needs_pksm, pytest.mark.real_time]

ROOT = "/tmp/root"
# On a file system of its own, since a swap file cannot be on tmpfs.
DISK_MIB = 24
# Wall-clock seconds for one class, the longest of which take 3 on an idle machine.
SECONDS = 200
POKE_MS = 1

# By what they are about: how many operations each class does, and its other options.
GROUPS: dict[str, dict[str, tuple[int, str]]] = {
    "contents": {
        "vm": (1500, "--vm-bytes 4M --vm-method all"),
        "vm-rw": (20, "--vm-rw-bytes 4M"),
        "vm-splice": (100, "--vm-splice-bytes 1M"),
        "memthrash": (1, ""),
        "malloc": (1000, "--malloc-bytes 4M --malloc-max 64"),
        "brk": (1000, ""),
        "stack": (2, ""),
        "bigheap": (200, "--bigheap-growth 64K"),
        "tree": (2, "--tree-size 5000"),
        "qsort": (5, "--qsort-size 10000"),
    },
    "mappings": {
        "mmap": (10, "--mmap-bytes 2M"),
        "mmapmany": (1000, ""),
        "mmapaddr": (200, ""),
        "mremap": (10, "--mremap-bytes 2M"),
        "mprotect": (500, ""),
        "mlock": (300, ""),
        "mincore": (50, ""),
        "munmap": (2, ""),
        "stackmmap": (8, ""),
        "shm": (4, "--shm-bytes 2M"),
        "memfd": (2, "--memfd-bytes 4M"),
        "madvise": (1, ""),
    },
    "processes": {
        "fork": (40, ""),
        "vfork": (40, ""),
        "clone": (40, ""),
        "zombie": (40, ""),
        "pthread": (40, ""),
        "vm-addr": (2, ""),
        "vm-segv": (4, ""),
        "fault": (100, ""),
        "sigsegv": (100, ""),
    },
    "paging": {
        "userfaultfd": (1000, "--userfaultfd-bytes 1M"),
        "pageswap": (500, ""),
        "swap": (2, ""),
        "stack": (2, "--stack-pageout"),
    },
}

# It has 256 MiB: merged, these would take more mappings of the host than a process may have.
MANY_MAPPINGS = ("memthrash",)
# It has memory go bad under itself, where that can be, and fails with SIGBUS or not, by whether
# the page lies in swap at that time.
BAD_MEMORY = ("madvise",)


def prepare(boot_fresh: BootFresh, **options: Any) -> Guest:
    """Boot a guest with the host's programs in a root of their own."""
    guest = boot_fresh(mem="1G", swap="128M", shares=[("/usr", f"{ROOT}/usr")], **options)
    guest.sh(
        f"cd {ROOT} && mkdir -p proc sys dev etc tmp && mount -t proc none proc && "
        "mount -t sysfs none sys && mount -t devtmpfs none dev && "
        "mkdir -p dev/shm && mount -t tmpfs none dev/shm && cat /etc/passwd > etc/passwd && "
        "for name in bin sbin lib lib64; do [ -e usr/$name ] && ln -s usr/$name $name; done; "
        f"dd if=/dev/zero of=/disk bs=1M count={DISK_MIB} 2>/dev/null && "
        "losetup /dev/loop0 /disk && mke2fs -F /dev/loop0 >/dev/null && "
        "mount -t ext2 /dev/loop0 tmp && chmod 1777 tmp"
    )
    return guest


def stress(guest: Guest, name: str, operations: int, options: str) -> tuple[int, list[str]]:
    """Run one class; return the exit status, and what was said but times and numbers."""
    done = guest.run(
        ["chroot", ROOT, "/usr/bin/stress-ng", "--verify", "--no-rand-seed", "--metrics-brief",
         "--temp-path", "/tmp", "--timeout", str(SECONDS), f"--{name}", "1",
         f"--{name}-ops", str(operations), *options.split()],
        timeout=SECONDS + 60, check=False, env={"PATH": "/bin:/usr/bin"},
    )  # fmt: skip
    output = done.stdout + done.stderr
    count = re.search(rf"metrc: \[\d+\] {name} +(\d+)", output)
    assert count is not None and int(count[1]) >= operations, output
    # "stress-ng: info:  [12] vm: ... 1.2s (1 min, ...)" without numbers, and what it measured.
    said = re.findall(r"^stress-ng: (?!metrc)(\w+): +\[\d+\] (.*)$", output, re.MULTILINE)
    brief = [re.sub(r" \(.*secs\)", "", ": ".join(line)) for line in said]
    return done.status, [re.sub(r"\d+(\.\d+)?", "N", line) for line in brief]


@pytest.mark.parametrize("group", GROUPS)
def test_each_class_of_load_ends_as_on_the_stock_kernel(
    request: pytest.FixtureRequest, boot_fresh: BootFresh, group: str
) -> None:
    profile, arch = (request.config.getoption(name) for name in ("--profile", "--arch"))
    left_out = MANY_MAPPINGS if machine_of(request.config).host_mappings else ()
    if kconfig.wishes_of(profile, arch).get("CONFIG_MEMORY_FAILURE") == "y":
        left_out += BAD_MEMORY
    classes = {name: how for name, how in GROUPS[group].items() if name not in left_out}
    stock = prepare(boot_fresh, profile="ksm")
    expected = {name: stress(stock, name, *how) for name, how in classes.items()}
    for status, said in expected.values():
        assert status == 0 and any("successful run completed" in line for line in said), expected

    guest = prepare(boot_fresh)
    for name, value in MOST_EAGER.items():
        guest.set_pksm(name, value)
    guest.sh("renice -n -20 -p $(pidof pksmd)")
    decoy = guest.start(["everybyte", "--poke", str(POKE_MS)])
    decoy.wait_output("holding")
    merged = guest.pksm("pages_merged")
    for name, how in classes.items():
        assert stress(guest, name, *how) == expected[name]
    did = guest.pksm("pages_merged") - merged
    print(f"{group}: {did} pages merged")
    # Many times over what the decoy and the programs' own data have alike.
    assert did > 256
    check_structures(guest)
    decoy.close_stdin()
    assert decoy.wait().check().stdout == "holding\n"

# SPDX-License-Identifier: GPL-2.0-only
"""Tools made for KSM find what they look for: each does here what its source does.

The tools themselves need more of a system than the guest has. What they do to
the kernel is a few lines each, repeated here with where it comes from.
"""

from __future__ import annotations

import re

import pytest
from lab import PAGES_PER_MIB, hold_memdup, memdup, pageops, parse_report, release, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

KSM = "/sys/kernel/mm/ksm"

# Debian's package ksmtuned, /usr/sbin/ksmtuned: KSMCTL(), free_memory(), increase_npages() and
# adjust(), with the memory committed to qemu as a parameter, and without bash's own arithmetic.
KSMTUNED = r"""
committed=$1 npages=$2
total=$(awk '/^MemTotal:/ {print $2}' /proc/meminfo)
sleep=$((10 * 16 * 1024 * 1024 / total))
[ $sleep -le 10 ] && sleep=10
thres=$((total * 20 / 100))
[ 2048 -gt $thres ] && thres=2048
free=$(awk '/^(MemFree|Buffers|Cached):/ {free += $2}; END {print free}' /proc/meminfo)
if [ $((committed + thres)) -lt $total -a $free -gt $thres ]; then
    echo 0 > /sys/kernel/mm/ksm/run
    echo stop
    exit
fi
if [ $free -lt $thres ]; then delta=300; else delta=-50; fi
npages=$((npages + delta))
[ $npages -lt 64 ] && npages=64
[ $npages -gt 1250 ] && npages=1250
echo $npages > /sys/kernel/mm/ksm/pages_to_scan
echo $sleep > /sys/kernel/mm/ksm/sleep_millisecs
echo 1 > /sys/kernel/mm/ksm/run
echo start $npages $sleep
"""


def read(guest: Guest, name: str) -> str:
    """Return what a file of KSM says."""
    return guest.read_file(f"{KSM}/{name}").strip()


def test_ksmtuned_starts_tunes_and_stops(guest: Guest) -> None:
    def adjust(committed: int, npages: int) -> list[str]:
        done = guest.run(["sh", "-ec", KSMTUNED, "ksmtuned", str(committed), str(npages)])
        assert not done.stderr
        return done.stdout.split()

    assert adjust(0, 0) == ["stop"]
    assert read(guest, "run") == "0"
    report = memdup(guest, "--procs", "2", "--mib", "1", "--dup", "100", "--no-wait", "--rewrite", "0")
    assert report["settled"].map["merged_ptes"] == 0

    said = adjust(10_000_000, 500)
    assert said[:2] == ["start", "450"]
    assert [read(guest, name) for name in ("pages_to_scan", "sleep_millisecs", "run")] == [
        "450", said[2], "1",
    ]  # fmt: skip
    report = memdup(guest, "--procs", "2", "--mib", "1", "--dup", "100", "--rewrite", "0")
    assert report["settled"].sharing == PAGES_PER_MIB

    for npages, expected in ((70, "64"), (5000, "1250")):
        assert adjust(10_000_000, npages)[1] == expected == read(guest, "pages_to_scan")
    assert adjust(0, 0) == ["stop"]
    assert read(guest, "run") == "0"
    guest.set_pksm("run", 1)


def test_ksm_service_of_debian_starts_ksm(guest: Guest) -> None:
    """ksmctl start and stop: max_kernel_pages is written if it is there, then run."""
    guest.set_pksm("run", 2)
    assert not guest.sh(f"ls {KSM}/max_kernel_pages", check=False).stdout
    guest.sh(f"printf '1\\n' > {KSM}/run")
    assert guest.pksm("run") == 1
    guest.sh(f"printf '0\\n' > {KSM}/run")
    assert guest.pksm("run") == 0
    guest.set_pksm("run", 1)


def test_node_exporter_reads_numbers(guest: Guest) -> None:
    """collector/ksmd_linux.go: nine files, each an unsigned number of 64 bits, or none at all.

    merge_across_nodes is there with CONFIG_NUMA only, under KSM as well.
    """
    job = hold_memdup(guest, "--procs", "2", "--mib", "1", "--dup", "100", "--rewrite", "0")
    settle(guest)
    files = ("full_scans", "pages_shared", "pages_sharing", "pages_to_scan", "pages_unshared",
             "pages_volatile", "run", "sleep_millisecs")  # fmt: skip
    first = {name: read(guest, name) for name in files}
    second = {name: read(guest, name) for name in files}
    for name in files:
        # strconv.ParseUint() of the trimmed text.
        assert re.fullmatch(r"[0-9]+", first[name]) and int(first[name]) < 1 << 64, name
    # A counter never falls.
    assert int(second["full_scans"]) >= int(first["full_scans"])
    assert int(first["pages_sharing"]) >= PAGES_PER_MIB
    release(job)


def test_every_number_in_the_directory_is_one(guest: Guest) -> None:
    """Collectors that read whatever is there: all files but advisor_mode are numbers."""
    for name in guest.sh(f"ls {KSM}").stdout.split():
        if name == "advisor_mode":
            assert read(guest, name) in ("[none] scan-time", "none [scan-time]")
        else:
            assert re.fullmatch(r"-?[0-9]+", read(guest, name)), name


def test_libvirt_reads_and_writes_the_node_parameters(guest: Guest) -> None:
    """virHostMemGetParameters() and virHostMemSetParameters(): shm_* are these files.

    It leaves out a file that is not there (merge_across_nodes without NUMA), and
    fails as a whole when one does not parse as a number with at most a newline
    behind it. It writes decimal digits without one.
    """
    names = ("pages_to_scan", "sleep_millisecs", "pages_shared", "pages_sharing",
             "pages_unshared", "pages_volatile", "full_scans", "merge_across_nodes")  # fmt: skip
    present = set(guest.sh(f"ls {KSM}").stdout.split())
    found = {}
    for name in names:
        if name in present:
            text = guest.read_file(f"{KSM}/{name}")
            assert re.fullmatch(r"[0-9]+\n", text), (name, text)
            found[f"shm_{name}"] = int(text)
    assert len(found) >= 7
    for name, value in (("pages_to_scan", 200), ("sleep_millisecs", 40)):
        guest.write_file(f"{KSM}/{name}", str(value))
        assert read(guest, name) == str(value)


def service(guest: Guest, memory_ksm: str) -> int:
    """Run a service of two processes; return how many of their pages are saved.

    systemd's exec_invoke() calls prctl(PR_SET_MEMORY_MERGE, MemoryKSM=) in the
    child that then executes the service, if the unit has such a line.
    """
    command = ["memdup", "--procs", "2", "--mib", "1", "--dup", "100", "--rewrite", "0"]
    if memory_ksm:
        command = ["mergectl", {"yes": "1", "no": "0"}[memory_ksm], *command]
    return parse_report(guest.run(command, timeout=240).stdout)["settled"].sharing


def test_memory_ksm_of_systemd_makes_a_service_merge(guest: Guest) -> None:
    """Its processes inherit the setting; others are left alone."""
    guest.set_pksm("scope", "madvise")
    assert service(guest, "yes") == PAGES_PER_MIB
    assert service(guest, "no") == 0
    assert service(guest, "") == 0


def test_memory_ksm_no_keeps_a_service_out_where_all_are_merged(guest: Guest) -> None:
    """scope=all: MemoryKSM=no is an opt-out, and inherited too."""
    assert service(guest, "no") == 0
    assert service(guest, "") == PAGES_PER_MIB
    assert service(guest, "yes") == PAGES_PER_MIB


def test_mem_merge_of_qemu_merges_a_populated_range(guest: Guest) -> None:
    """memory_try_enable_merging(): madvise(MADV_MERGEABLE) on guest memory, which may be
    populated already (prealloc=on); with mem-merge=off nothing is called."""
    guest.set_pksm("scope", "madvise")
    report = pageops(
        guest, "fill=dup", "settle", "stat=off", "madvise=mergeable", "settle", "stat=on",
        "verify", "@0:poke=3", "verify",
        procs=3, pages=256,
    )  # fmt: skip
    assert report["off"]["merged_ptes"] == 0
    assert report["on"].sharing == 2 * 256


def test_mem_merge_of_qemu_merges_what_the_guest_touches_later(guest: Guest) -> None:
    guest.set_pksm("scope", "madvise")
    report = pageops(
        guest, "madvise=mergeable", "fill=dup", "settle", "stat=on", "verify",
        procs=3, pages=256,
    )  # fmt: skip
    assert report["on"].sharing == 2 * 256

# SPDX-License-Identifier: GPL-2.0-only
"""The files of /sys/kernel/mm/ksm are KSM's, one by one, and full_scans keeps its promise.

What is written, refused and read back is compared with stock KSM of the same
kernel, in a guest of the profile ksm, and not with what this file believes.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import pytest
from lab import BootFresh, baseline, counters, hold_memdup, memdup, pageops, release, settle
from linux_um.guest import Guest

pytestmark = pytest.mark.needs_pksm

KSM = "/sys/kernel/mm/ksm"
# The controls whose defaults are PKSM's own: they are the same things as in its directory.
SHARED_CONTROLS = ("run", "use_zero_pages", "max_page_sharing")
NUMBERS = ("0", "1", "2", "7", "100", "4294967295", "4294967296", "99999999999999999999",
           "-1", "x", "1x", "", " 5", "0x10", "010", "+3", "1\n", "1.5")  # fmt: skip
WORDS = ("y", "n", "Y", "on", "off", "none", "scan-time", "scan-time\n", "scan", "[none]")


def read(guest: Guest, name: str) -> str:
    """Return what a file of KSM says, without its newline."""
    return guest.read_file(f"{KSM}/{name}").rstrip("\n")


def write(guest: Guest, name: str, text: str | int) -> None:
    """Write to a file of KSM. Raises OSError."""
    guest.write_file(f"{KSM}/{name}", str(text))


def scans(guest: Guest) -> int:
    """Read full_scans once."""
    return int(read(guest, "full_scans"))


def wait_scans(guest: Guest, more: int, *, seconds: int = 60) -> int:
    """Wait as programs do until full_scans has grown; how far it came in *seconds* of guest time."""
    done = guest.sh(
        f"cd {KSM}; first=$(cat full_scans); n=0; "
        f"while [ $n -lt {seconds * 20} ]; do now=$(cat full_scans); "
        f"[ $((now - first)) -ge {more} ] && break; sleep 0.05; n=$((n + 1)); done; "
        "echo $((now - first))",
        timeout=240,
    )
    return int(done.stdout)


@pytest.fixture
def both(boot_fresh: BootFresh, guest: Guest) -> tuple[Guest, Guest]:
    """Return a guest with PKSM that is stopped, as stock KSM is, and one with stock KSM."""
    stock = boot_fresh(profile="ksm")
    write(guest, "run", 2)
    return guest, stock


# === the files ===


def listing(guest: Guest) -> list[str]:
    """Return name, mode, owner and size of the files."""
    lines = guest.sh(f"ls -l {KSM}").stdout.splitlines()[1:]
    found = []
    for line in lines:
        words = line.split()
        found.append(f"{words[-1]} {words[0]} {words[2]} {words[3]} {words[4]}")
    return sorted(found)


def test_there_are_the_files_that_ksm_has(both: tuple[Guest, Guest]) -> None:
    pksm, stock = both
    assert listing(pksm) == listing(stock)
    assert len(listing(pksm)) >= 23


def test_nothing_merged_the_files_say_what_ksms_say(both: tuple[Guest, Guest]) -> None:
    pksm, stock = both
    for line in listing(stock):
        name = line.split()[0]
        if name in SHARED_CONTROLS or name in ("full_scans", "pages_scanned", "general_profit"):
            assert re.fullmatch(r"-?\d+", read(pksm, name)), name
        else:
            assert read(pksm, name) == read(stock, name), name


def try_write(guest: Guest, name: str, text: str) -> str:
    """Write, and return what came of it: the error, or what the file says then."""
    try:
        write(guest, name, text)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return read(guest, name)


def test_what_is_written_is_taken_or_refused_as_by_ksm(both: tuple[Guest, Guest]) -> None:
    """Every file that can be written, with numbers, bounds, words and nonsense."""
    pksm, stock = both
    names = [line.split()[0] for line in listing(stock) if line.split()[1][2] == "w"]
    assert len(names) >= 12, names
    different = {}
    for name in names:
        if name == "run":
            texts = tuple(text for text in NUMBERS + WORDS if text.strip() not in ("1", "+1"))
        else:
            texts = NUMBERS + WORDS
        for text in texts:
            seen = (try_write(pksm, name, text), try_write(stock, name, text))
            if seen[0] != seen[1]:
                different[f"{name} {text!r}"] = seen
    assert not different, "PKSM, KSM: " + repr(different)


def test_what_cannot_be_written_cannot_be_written(guest: Guest) -> None:
    for line in listing(guest):
        name, mode = line.split()[:2]
        if mode[2] == "w":
            continue
        # Root may open it for writing, but there is nothing to take it.
        with pytest.raises(OSError):
            write(guest, name, 1)


def test_the_advisor_sets_pages_to_scan_as_ksms_does(both: tuple[Guest, Guest]) -> None:
    for guest in both:
        write(guest, "pages_to_scan", 321)
        write(guest, "advisor_min_pages_to_scan", 444)
        write(guest, "advisor_mode", "scan-time")
        assert read(guest, "advisor_mode") == "none [scan-time]"
        assert read(guest, "pages_to_scan") == "444"
        with pytest.raises(OSError) as caught:
            write(guest, "pages_to_scan", 5)
        assert caught.value.errno == errno.EINVAL
        write(guest, "advisor_mode", "none")
        assert read(guest, "pages_to_scan") == "100"


def test_the_advisors_limit_is_the_engines_while_the_advisor_is_on(guest: Guest) -> None:
    guest.set_pksm("max_cpu", 33)
    write(guest, "advisor_max_cpu", 44)
    assert guest.pksm("max_cpu") == 33
    write(guest, "advisor_mode", "scan-time")
    assert guest.pksm("max_cpu") == 44
    for written, limit in ((12, 12), (0, 1), (4000, 100)):
        write(guest, "advisor_max_cpu", written)
        assert guest.pksm("max_cpu") == limit
        assert read(guest, "advisor_max_cpu") == str(written)
    write(guest, "advisor_mode", "none")
    assert guest.pksm("max_cpu") == 33
    # Somebody who writes max_cpu while the advisor is on has the last word.
    write(guest, "advisor_mode", "scan-time")
    guest.set_pksm("max_cpu", 55)
    write(guest, "advisor_mode", "none")
    assert guest.pksm("max_cpu") == 55


def test_two_names_for_one_control(guest: Guest) -> None:
    for name, values in (("run", (0, 2, 1)), ("use_zero_pages", (0, 1)), ("max_page_sharing", (7, 256))):
        for value in values:
            write(guest, name, value)
            assert guest.pksm(name) == value
        for value in values:
            guest.set_pksm(name, value)
            assert read(guest, name) == str(value)
    write(guest, "use_zero_pages", "n")
    assert guest.pksm("use_zero_pages") == 0
    write(guest, "use_zero_pages", "on")
    assert guest.pksm("use_zero_pages") == 1


def test_run_2_unmerges_everything(guest: Guest) -> None:
    job = hold_memdup(guest, "--procs", "2", "--mib", "1", "--dup", "100", "--rewrite", "0")
    settle(guest)
    assert int(read(guest, "pages_sharing")) >= 256
    write(guest, "run", 2)
    assert read(guest, "pages_sharing") == read(guest, "pages_shared") == "0"
    assert guest.pksm("run") == 2
    release(job)
    write(guest, "run", 1)


def test_the_counters_are_the_engines(guest: Guest) -> None:
    job = hold_memdup(
        guest, "--procs", "3", "--mib", "2", "--dup", "60", "--zero", "20", "--unique", "20",
        "--rewrite", "0",
    )  # fmt: skip
    now = settle(guest)
    # Both by one command: between two of them time leaps, and pages are looked at. So they
    # are between two files as well, in real time, unless the engine stops.
    text = guest.sh(
        "cd /sys/kernel/mm && echo 0 > pksm/run && grep -H . ksm/* pksm/* && echo 1 > pksm/run"
    ).stdout
    seen = dict(line.split(":", 1) for line in text.splitlines())
    for theirs, ours in (
        ("pages_shared", "pages_shared"), ("pages_sharing", "pages_sharing"),
        ("pages_unshared", "pages_unshared"), ("pages_volatile", "pages_volatile"),
        ("pages_scanned", "pages_scanned"), ("ksm_zero_pages", "zero_pages"),
        ("general_profit", "general_profit"), ("max_page_sharing", "max_page_sharing"),
    ):  # fmt: skip
        assert seen[f"ksm/{theirs}"] == seen[f"pksm/{ours}"], theirs
    assert now["pages_sharing"] >= 2 * 2 * 256 * 6 // 10
    assert now["zero_pages"] > 0
    release(job)


def test_chains_are_pages_with_the_same_contents(guest: Guest) -> None:
    """What KSM calls a chain: pages that could not be one, since max_page_sharing is too small."""
    settle(guest)
    assert read(guest, "stable_node_chains") == read(guest, "stable_node_dups") == "0"
    write(guest, "max_page_sharing", 4)
    job = hold_memdup(guest, "--procs", "8", "--mib", "1", "--dup", "100", "--unique", "0", "--rewrite", "0")
    settle(guest)
    chains, dups = int(read(guest, "stable_node_chains")), int(read(guest, "stable_node_dups"))
    # Eight processes, four PTEs a page: two pages for each of the 256 contents.
    assert 256 <= chains <= 256 + 48
    assert 2 * chains <= dups <= 2 * chains + 64
    # Pages that two processes have are no chain.
    pair = hold_memdup(guest, "--procs", "2", "--mib", "1", "--dup", "100", "--unique", "0",
                       "--seed", "9")  # fmt: skip
    settle(guest)
    assert abs(int(read(guest, "stable_node_chains")) - chains) < 32
    release(pair)
    release(job)
    settle(guest)
    guest.run(["pksmwait", "--until", "pages_new==0"])
    # What was counted is good for nine times as long as that took, on a busy host for long.
    for _ in range(120):
        left = int(read(guest, "stable_node_dups"))
        if left < dups:
            break
        guest.sh("sleep 0.5")
    assert left < dups


def test_max_page_sharing_can_be_set_at_any_time(guest: Guest) -> None:
    """KSM says EBUSY while anything is merged; here the engine may run from boot."""
    job = hold_memdup(guest, "--procs", "3", "--mib", "1", "--dup", "100", "--rewrite", "0")
    settle(guest)
    write(guest, "max_page_sharing", 2)
    assert guest.pksm("max_page_sharing") == 2
    assert int(read(guest, "pages_sharing")) >= 2 * 256
    release(job)


# === full_scans ===


def test_a_scan_over_nothing_takes_no_time(guest: Guest) -> None:
    settle(guest)
    assert wait_scans(guest, 5, seconds=5) >= 5


@pytest.mark.time_travel
def test_nobody_reads_nobody_scans(guest: Guest) -> None:
    """The counter does not tick by itself, and pksmd sleeps."""
    settle(guest)
    wait_scans(guest, 2)
    scans(guest)
    guest.sh("sleep 5")
    first = scans(guest)
    before = guest.pksm("cpu_usecs")
    guest.sh("sleep 300")
    assert guest.pksm("cpu_usecs") - before < 20000
    assert scans(guest) - first <= 1


@pytest.mark.parametrize("run", [0, 2])
def test_stopped_there_are_no_scans(guest: Guest, run: int) -> None:
    settle(guest)
    write(guest, "run", run)
    guest.sh("sleep 1")
    first = scans(guest)
    assert wait_scans(guest, 1, seconds=5) == 0
    assert scans(guest) == first
    write(guest, "run", 1)
    assert wait_scans(guest, 2) >= 2


@pytest.mark.real_time
def test_new_pages_hold_the_scan_up_until_they_were_looked_at(guest: Guest) -> None:
    settle(guest)
    wait_scans(guest, 2)
    # The most there is: on a busy host what follows takes long.
    guest.set_pksm("settle_millisecs", 3600000)
    job = hold_memdup(guest, "--procs", "2", "--mib", "2", "--dup", "100", "--rewrite", "0", "--no-wait")
    # Whatever scan was asked for before they were there may end yet.
    wait_scans(guest, 1, seconds=1)
    # With those of the agent and of what it starts, which come and go.
    assert guest.pksm("pages_new") >= 2 * 2 * 256
    assert wait_scans(guest, 1, seconds=3) == 0
    assert guest.pksm("pages_new") >= 2 * 2 * 256
    guest.set_pksm("settle_millisecs", 50)
    assert wait_scans(guest, 2) >= 2
    # What has died may be in the batch of another CPU still, and what the agent has touched
    # since may be new.
    guest.write_file("/proc/sys/vm/drop_caches", "1")
    assert guest.pksm("pages_new") < 32
    assert int(read(guest, "pages_sharing")) >= 2 * 256
    release(job)


@pytest.mark.real_time
def test_two_scans_after_the_start_everything_is_merged(guest: Guest) -> None:
    """What ksm_functional_tests rely on, pages from before the start included.

    pksmd is made slow, so that somebody looks at the counter while it takes them in.
    """
    guest.set_pksm("max_cpu", 1)
    guest.set_pksm("settle_millisecs", 0)
    write(guest, "run", 2)
    job = hold_memdup(
        guest, "--procs", "2", "--mib", "4", "--dup", "75", "--zero", "25", "--unique", "0",
        "--rewrite", "0", "--no-wait",
    )  # fmt: skip
    # More than once: on a busy host pksmd may be done before anybody has looked.
    done = guest.sh(
        f"cd {KSM}; for i in 1 2 3 4 5; do echo 2 > run; first=$(cat full_scans); echo 1 > run; "
        "while [ $(cat full_scans) -lt $((first + 2)) ]; do :; done; "
        "cat pages_sharing ksm_zero_pages; done"
    )
    words = [int(word) for word in done.stdout.split()]
    assert len(words) == 10
    assert min(words[::2]) >= 4 * 256 * 3 // 4
    assert min(words[1::2]) >= 2 * 4 * 256 // 4
    guest.set_pksm("max_cpu", 50)
    release(job)


def test_new_pages_without_end_do_not_hold_it_up(guest: Guest) -> None:
    """A scan is over when what was there at its start was looked at."""
    job = guest.start(["sh", "-c", "while :; do memdup --procs 1 --mib 2 --no-wait >/dev/null; sleep 0.05; done"])
    grown = wait_scans(guest, 4, seconds=120)
    new = [guest.pksm("pages_new") for _ in range(20)]
    job.signal(9)
    job.wait()
    assert grown >= 4
    # There was always something new.
    assert max(new) > 0


# In one program of the guest: words from the host make the clock leap, and the
# pages would be let go meanwhile.
SCANS_WHILE_PINNED = f"""
pinpages --mode vmsplice --pages 64 > /dev/null &
pksmwait --until 'pages_volatile>=64' > /dev/null
first=$(cat {KSM}/full_scans)
for look in $(seq 300); do
	[ $(cat {KSM}/full_scans) -lt $((first + 3)) ] || break
	sleep 0.1
done
echo $(($(cat {KSM}/full_scans) - first)) $(cat {KSM}/pages_volatile)
wait $!
"""


def test_pinned_pages_do_not_hold_it_up(guest: Guest) -> None:
    settle(guest)
    done = guest.sh(SCANS_WHILE_PINNED)
    assert done.status == 0
    scans, changing = (int(word) for word in done.stdout.split())
    assert scans >= 3
    assert changing >= 64


def test_anybody_may_read_it_and_nothing_more(guest: Guest) -> None:
    """A reader without rights asks for scans, which cost nothing where nothing waits."""
    settle(guest)
    before = baseline(counters(guest))
    done = guest.sh(
        f"su nobody -s /bin/sh -c 'cat {KSM}/full_scans {KSM}/full_scans; echo 1 > {KSM}/run'", check=False
    )
    assert len(done.stdout.split()) == 2
    assert done.status != 0
    assert baseline(counters(guest)).keys() == before.keys()


def test_memdup_verifies_while_somebody_polls(guest: Guest) -> None:
    """Polling makes pksmd look again and again, and does no harm."""
    # Nothing is forked, which would be new pages without end.
    job = guest.start(["sh", "-c", f"while :; do read -r n <{KSM}/full_scans; read -t 0.05 n; done"])
    memdup(guest, "--procs", "2", "--mib", "1", "--dup", "60", "--rewriters", "all")
    pageops(guest, "fill=dup", "settle", "poke=3", "verify", procs=2, pages=64)
    job.signal(9)
    job.wait()


@pytest.fixture(autouse=True)
def defaults_again(guest: Guest) -> Iterator[None]:
    """The laws that are checked at the end of each test want a running engine."""
    yield
    write(guest, "run", 1)
    guest.set_pksm("settle_millisecs", 50)

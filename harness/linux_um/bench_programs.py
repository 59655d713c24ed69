# SPDX-License-Identifier: GPL-2.0-only
"""What is saved of real programs: the host's own, in a guest that sees the host's /usr.

The guest can read it, and not write to it. KSM is asked for by prctl(), as systemd's
MemoryKSM= does it, and inherited; PKSM needs no asking, and gets the same for fairness.

The guest's clock skips what nobody waits for, so that minutes of it take seconds: what
programs and engines compute takes none of its time.
"""

from __future__ import annotations

import shlex
import shutil

from .agent import Guest
from .bench_engine import Sample, saved
from .bench_lab import BenchError, Hoard, Lab, Setting, counters, kernel_cpu_ns, set_engine, tune

ROOT = "/tmp/root"
PYTHON = "/usr/bin/python3"
MIB = 512
# Guest seconds: until pages that had changed are tried again.
SECONDS = 300
SAMPLE_MS = 500

_ROWS = "[(i, f'name {i}', i * 7919 % 10007, 'x' * 40) for i in range(20000)]"
_MODULES = "json, re, http.client, decimal, email.mime.text, asyncio, xml.etree.ElementTree, csv"
# Not for some time: the clock leaps to the end of that while the host is not looking.
_SLEEP = "import signal; signal.pause()"
_SQLITE = (
    "import sqlite3; d = sqlite3.connect(':memory:'); "
    "d.execute('create table t (i integer primary key, name text, number integer, rest text)'); "
    f"d.executemany('insert into t values (?, ?, ?, ?)', {_ROWS}); "
    f"d.execute('create index n on t (number)'); d.commit(); {_SLEEP}"
)
_SERVER = (
    f"import os, {_MODULES}\nrows = {_ROWS}\n"
    "for _ in range(6):\n    if not os.fork():\n"
    "        own = [row for row in rows if row[2] % 3]\n        copies = dict(enumerate(own))\n"
    f"        break\n{_SLEEP}\n"
)
_FILL_REDIS = (
    "import socket, time\ntime.sleep(1)\nfor port in range(7000, 7004):\n"
    "    s = socket.create_connection(('127.0.0.1', port)); f = s.makefile('rb')\n"
    "    for i in range(20000):\n"
    "        k, v = b'key:%d' % (i + port % 7000 * 2000), b'value %d ' % i * 12\n"
    "        s.sendall(b'*3\\r\\n$3\\r\\nSET\\r\\n$%d\\r\\n%s\\r\\n$%d\\r\\n%s\\r\\n'"
    " % (len(k), k, len(v), v)); f.readline()\n"
)
# The same file as redis-server: it is which of them it was called.
_REDIS = "/usr/bin/redis-check-rdb"
_CALLED = ["/bin/bash", "-c", 'exec -a redis-server "$0" "$@"', _REDIS]

# The one of them that is not there wherever this runs.
PACKAGED = "redis"
# The commands that are started, one after the other, and the program that they need.
PROGRAMS: dict[str, tuple[str, list[list[str]]]] = {
    "python": (
        PYTHON,
        [[PYTHON, "-S", "-B", "-c", f"import {_MODULES}; rows = {_ROWS}; {_SLEEP}"]] * 6,
    ),
    "sqlite": (PYTHON, [[PYTHON, "-S", "-B", "-c", _SQLITE]] * 6),
    "fork server": (PYTHON, [[PYTHON, "-S", "-B", "-c", _SERVER]]),
    PACKAGED: (
        _REDIS,
        [
            [*_CALLED, "--port", str(port), "--save", "", "--daemonize", "no", "--dir", "/tmp"]
            for port in range(7000, 7004)
        ]
        + [[PYTHON, "-S", "-B", "-c", _FILL_REDIS]],
    ),
}  # fmt: skip


def _prepare(guest: Guest) -> None:
    """Make a root in the guest with the host's /usr in it."""
    guest.sh(
        f"mkdir -p {ROOT} && cd {ROOT} && mkdir usr tmp proc dev etc && chmod 1777 tmp && "
        "mount -t hostfs -o ro,/usr none usr && mount -t proc none proc && "
        "mount -t devtmpfs none dev && ip link set lo up && "
        "for name in bin sbin lib lib64; do [ -e usr/$name ] && ln -s usr/$name $name; done; "
        "cat /etc/passwd > etc/passwd"
    )


def program(lab: Lab, setting: Setting, name: str) -> list[Sample]:
    """Follow what is saved of the program *name*. Raises BenchError where there is none."""
    needed, commands = PROGRAMS[name]
    if not shutil.which(needed):
        raise BenchError(f"{name}: the host has no {needed}", "install it")
    with lab.guest(setting.profile, MIB, time_travel=True) as guest:
        tune(guest, setting)
        _prepare(guest)
        before = saved(guest, setting)
        set_engine(guest, setting, "run", "1")
        start = kernel_cpu_ns(guest)
        script = " & ".join(
            shlex.join(["mergectl", "1", "chroot", ROOT, *command]) for command in commands
        )
        running = guest.start(
            ["sh", "-c", f"{script} & wait"], env={"PATH": "/bin:/usr/bin", "PYTHONHASHSEED": "0"}
        )
        with Hoard(guest, 1, 2) as sampler:
            raw = sampler.order(f"sample {SAMPLE_MS} {1000 * SECONDS}")["samples"]
        complaint = running.stderr.strip()
        if complaint or running.poll() is not None:
            raise BenchError(f"{name}: {complaint or 'has ended'}", "try it on the host")
        found: Sample = {
            "what": "programs", "engine": setting.name, "program": name,
            "samples": [[when - raw[0][0], more + zero - before] for when, more, zero in raw],
            "cpu_ns": kernel_cpu_ns(guest) - start, "counters": counters(guest, setting),
        }  # fmt: skip
        guest.sh("killall -9 python3 redis-server redis-check-rdb; true", check=False)
    return [found]


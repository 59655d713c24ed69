# SPDX-License-Identifier: GPL-2.0-only
"""What is saved of real programs: the host's own, in a guest that sees the host's /usr.

The guest can read it, and not write to it. KSM is asked for by prctl(), as systemd's
MemoryKSM= does it, and inherited; PKSM needs no asking, and gets the same for fairness.
"""

from __future__ import annotations

import shlex
import shutil
import time

from .agent import Guest
from .bench_engine import Sample
from .bench_lab import Lab, Setting, counters, kernel_cpu_ns, set_engine, tune

ROOT = "/tmp/root"
PYTHON = "/usr/bin/python3"
MIB = 512
SECONDS = 40
SAMPLE_SECONDS = 0.5

_ROWS = "[(i, f'name {i}', i * 7919 % 10007, 'x' * 40) for i in range(20000)]"
_MODULES = "json, re, http.client, decimal, email.mime.text, asyncio, xml.etree.ElementTree, csv"
_SLEEP = f"import time; time.sleep({SECONDS + 60})"
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
    "import socket\nfor port in range(7000, 7004):\n"
    "    s = socket.create_connection(('127.0.0.1', port)); f = s.makefile('rb')\n"
    "    for i in range(20000):\n"
    "        k, v = b'key:%d' % (i + port % 7000 * 2000), b'value %d ' % i * 12\n"
    "        s.sendall(b'*3\\r\\n$3\\r\\nSET\\r\\n$%d\\r\\n%s\\r\\n$%d\\r\\n%s\\r\\n'"
    " % (len(k), k, len(v), v)); f.readline()\n"
)
_REDIS = "/usr/bin/redis-server"

# The commands that are started, one after the other, and the program that they need.
PROGRAMS: dict[str, tuple[str, list[list[str]]]] = {
    "python": (PYTHON, [[PYTHON, "-B", "-c", f"import {_MODULES}; rows = {_ROWS}; {_SLEEP}"]] * 6),
    "sqlite": (PYTHON, [[PYTHON, "-B", "-c", _SQLITE]] * 6),
    "fork server": (PYTHON, [[PYTHON, "-B", "-c", _SERVER]]),
    "redis": (
        _REDIS,
        [
            [_REDIS, "--port", str(port), "--save", "", "--daemonize", "no", "--dir", "/tmp"]
            for port in range(7000, 7004)
        ]
        + [[PYTHON, "-B", "-c", _FILL_REDIS]],
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
    """Follow what is saved of the program *name*; nothing where the host does not have it."""
    needed, commands = PROGRAMS[name]
    if not shutil.which(needed):
        return []
    with lab.guest(setting.profile, MIB) as guest:
        tune(guest, setting)
        _prepare(guest)
        before = _saved(guest, setting)
        set_engine(guest, setting, "run", "1")
        start, began = kernel_cpu_ns(guest), time.monotonic()
        running = [
            guest.start(["sh", "-c", f"exec mergectl 1 chroot {ROOT} {shlex.join(command)}"],
                        env={"PATH": "/bin:/usr/bin", "PYTHONHASHSEED": "0"})
            for command in commands
        ]  # fmt: skip
        samples = []
        while time.monotonic() < began + SECONDS:
            time.sleep(SAMPLE_SECONDS)
            saved = _saved(guest, setting) - before
            samples.append([round(1000 * (time.monotonic() - began)), saved])
        alive = [process.poll() is None for process in running]
        found: Sample = {
            "what": "programs", "engine": setting.name, "program": name, "samples": samples,
            "cpu_ns": kernel_cpu_ns(guest) - start, "alive": sum(alive),
            "counters": counters(guest, setting),
            "complaints": [process.stderr.strip()[-200:] for process in running if process.stderr],
        }  # fmt: skip
        guest.sh("killall -9 python3 redis-server; true", check=False)
    return [found]


def _saved(guest: Guest, setting: Setting) -> int:
    """Return how many pages are saved now."""
    zero = "zero_pages" if setting.is_pksm else "ksm_zero_pages"
    return sum(
        int(guest.read_file(f"{setting.directory}/{each}")) for each in ("pages_sharing", zero)
    )

# SPDX-License-Identifier: GPL-2.0-only
"""The commands ``pksm ...`` of gdb; `help pksm` lists them.

The modules: kernel, memory, record, tasks, rmap and index read the guest;
each of the others holds commands, a class for each. session joins gdb to a
guest that ./linux-um has booted.
"""

from __future__ import annotations

import importlib
import importlib.util

import gdb

COMMANDS = ("functions", "page", "lists", "stat", "check", "hooks", "path", "steps", "session")


class Pksm(gdb.Command):
    """Look into PKSM, and step through its hooks.

    pksm COMMAND [ARGUMENT...]

The commands work on a live guest, and where nothing has to run on a core dump."""

    def __init__(self) -> None:
        super().__init__("pksm", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)

    def invoke(self, argument: str, from_tty: bool) -> None:
        """Complain: there is no such subcommand."""
        if argument:
            raise gdb.GdbError(f"no such command: pksm {argument.split()[0]}; see help pksm")
        gdb.execute("help pksm")


Pksm()
for _name in COMMANDS:
    if importlib.util.find_spec(f"{__name__}.{_name}"):
        importlib.import_module(f"{__name__}.{_name}")

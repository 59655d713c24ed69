# SPDX-License-Identifier: GPL-2.0-only
"""``python3 -m linux_um`` is what the ``linux-um`` script executes."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))

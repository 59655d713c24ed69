# SPDX-License-Identifier: GPL-2.0-only
# The kernel is the first to touch the page: read(2) into it.
pksm hooks stop --pid pagestep
continue
pksm path
pksm hooks off

# SPDX-License-Identifier: GPL-2.0-only
# The same: the chain of calls.
pksm hooks stop --pid pagestep
continue
pksm path
pksm hooks off

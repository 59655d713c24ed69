# SPDX-License-Identifier: GPL-2.0-only
# The same: the chain of calls that leads to the hook.
pksm hooks stop --pid pagestep
continue
pksm path
pksm hooks off

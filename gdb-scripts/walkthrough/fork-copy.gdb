# SPDX-License-Identifier: GPL-2.0-only
# A forked child writes to a page that it shares with its parent.
pksm fault pagestep $address --all

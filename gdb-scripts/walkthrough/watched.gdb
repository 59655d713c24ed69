# SPDX-License-Identifier: GPL-2.0-only
# The process writes to a page that is watched.
pksm fault pagestep $address --all

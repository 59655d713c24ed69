# SPDX-License-Identifier: GPL-2.0-only
# The process writes to the merged page.
pksm cow pagestep $address --all

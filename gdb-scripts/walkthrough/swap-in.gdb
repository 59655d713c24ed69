# SPDX-License-Identifier: GPL-2.0-only
# A page that was swapped out is touched.
pksm fault pagestep $address --all

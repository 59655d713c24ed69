# SPDX-License-Identifier: GPL-2.0-only
# A first write to a page of a private file mapping.
pksm fault pagestep $address --all

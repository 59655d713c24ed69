# SPDX-License-Identifier: GPL-2.0-only
# What there is to know of the page that two now share.
pksm page $pfn

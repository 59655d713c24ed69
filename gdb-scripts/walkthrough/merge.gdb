# SPDX-License-Identifier: GPL-2.0-only
# pksmd considers a page that has an equal, and merges it.
pksm merge $pfn --all

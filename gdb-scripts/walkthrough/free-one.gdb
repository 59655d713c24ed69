# SPDX-License-Identifier: GPL-2.0-only
# madvise(MADV_DONTNEED) of one page.
pksm free $pfn --all

# SPDX-License-Identifier: GPL-2.0-only
# The process exits, with all of its pages.
pksm free $pfn --all

# SPDX-License-Identifier: GPL-2.0-only
# get_user_pages() makes the page: madvise(MADV_POPULATE_WRITE).
pksm hooks stop --pid pagestep
continue
pksm path
pksm hooks off

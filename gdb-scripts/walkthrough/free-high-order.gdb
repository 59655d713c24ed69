# SPDX-License-Identifier: GPL-2.0-only
# A block of several pages is freed: those of the stub, when an address space goes.
break free_unref_page if order > 0
continue
pksm path

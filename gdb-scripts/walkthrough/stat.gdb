# SPDX-License-Identifier: GPL-2.0-only
# The counters, and the laws that they obey.
pksm stat

# SPDX-License-Identifier: GPL-2.0-only
# A first write to anonymous memory, stage by stage.
pksm fault pagestep $address --all

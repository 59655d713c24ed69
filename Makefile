# SPDX-License-Identifier: GPL-2.0-only
#
# Thin targets over ./linux-um. ARGS is passed on, as in
# `make test ARGS='-k cow'`; PROFILE and KERNEL name another kernel.

LINUX_UM := ./linux-um
ARGS ?=
export LINUX_UM_PROFILE := $(or $(PROFILE),$(LINUX_UM_PROFILE),fast)
export LINUX_UM_KERNEL := $(or $(KERNEL),$(LINUX_UM_KERNEL),6.12)

.PHONY: all boot test cov top gdb bench lint patches doctor clean

all:
	$(LINUX_UM) build $(ARGS)

boot:
	$(LINUX_UM) boot $(ARGS)

test:
	$(LINUX_UM) test $(ARGS)

cov:
	$(LINUX_UM) cov $(ARGS)

top:
	$(LINUX_UM) top $(ARGS)

gdb:
	$(LINUX_UM) gdb $(ARGS)

bench:
	$(LINUX_UM) bench $(ARGS)

lint:
	harness/lint.sh $(ARGS)

patches:
	$(LINUX_UM) patches $(ARGS)

doctor:
	$(LINUX_UM) doctor $(ARGS)

clean:
	$(LINUX_UM) clean $(ARGS)

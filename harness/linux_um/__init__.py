# SPDX-License-Identifier: GPL-2.0-only
"""The PKSM development harness: builds, boots, drives and reports on UML guests."""

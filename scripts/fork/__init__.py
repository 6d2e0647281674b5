# SPDX-License-Identifier: GPL-2.0-or-later
"""The fork command: applies, builds, tests and keeps up the patch series."""

# SPDX-License-Identifier: GPL-2.0-or-later
"""What the series costs: stock and patched QEMU in turn, as ratios."""

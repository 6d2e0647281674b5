# SPDX-License-Identifier: GPL-2.0-or-later
"""
Move devices from IOThreads that are full to those that have time

plan.py  what is moved, and when: no I/O
main.py  the command line

Load, holders and the connection to QEMU are those of iothread_top/.
"""

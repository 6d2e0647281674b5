# SPDX-License-Identifier: GPL-2.0-or-later
"""
Show how busy the event loops of QEMU are, and who uses them

answer.py   what is used of QEMU's answers, and of which types it has to be
load.py     figures from two answers of one QEMU
monitor.py  the connection to a QEMU; iothread-exporter uses it too
vm.py       a QEMU, and its threads
text.py     tables and JSON
live.py     the view on a terminal
svg.py      the picture
main.py     the command line
command.py  what it shares with that of iothread-balance
"""

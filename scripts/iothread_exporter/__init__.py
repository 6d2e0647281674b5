# SPDX-License-Identifier: GPL-2.0-or-later
"""
Tell Prometheus how busy the event loops of QEMUs are, and who uses them

metrics.py  what is told: families of metrics from QEMU's answers
fleet.py    the QEMUs: who is there, and asking all of them at once
main.py     the command line, the HTTP server and the file

iothread_top has the connection to a QEMU.  What Prometheus reads is made and
served by prometheus_client.
"""

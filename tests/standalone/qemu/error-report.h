/*
 * Stand-in for QEMU's error-report.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_ERROR_REPORT_H
#define QEMU_ERROR_REPORT_H

#define error_report(...) (g_printerr(__VA_ARGS__), g_printerr("\n"))

#endif

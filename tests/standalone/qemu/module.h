/*
 * Stand-in for QEMU's module.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MODULE_H
#define QEMU_MODULE_H

#define module_call_init(type)

#endif

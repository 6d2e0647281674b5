/*
 * Stand-in for QEMU's error.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef ERROR_H
#define ERROR_H

typedef struct Error Error;

/* Nothing fails here */
static Error *error_abort __attribute__((unused));

#define error_setg(errp, ...) g_assert_not_reached()

#endif

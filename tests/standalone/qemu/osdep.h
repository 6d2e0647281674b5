/*
 * Stand-in for QEMU's osdep.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_OSDEP_H
#define QEMU_OSDEP_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <glib.h>

typedef struct AioContext AioContext;

#define ARRAY_SIZE(x) (sizeof(x) / sizeof((x)[0]))

#endif

/*
 * Stand-in for QEMU's qapi-visit-iothread.h, for units built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QAPI_VISIT_IOTHREAD_H
#define QAPI_VISIT_IOTHREAD_H

#include "qapi/qapi-types-iothread.h"

#endif

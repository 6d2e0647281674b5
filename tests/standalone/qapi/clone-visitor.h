/*
 * Stand-in for QEMU's clone-visitor.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QAPI_CLONE_VISITOR_H
#define QAPI_CLONE_VISITOR_H

/* QAPI_CLONE() is with the types */

#endif

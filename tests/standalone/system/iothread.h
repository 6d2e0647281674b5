/*
 * Stand-in for QEMU's iothread.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IOTHREAD_H
#define IOTHREAD_H

#include "qom/object.h"

typedef struct Error Error;

#include "system/iothread-holder.h"

#define TYPE_IOTHREAD "iothread"
#define IOTHREAD(obj) ((IOThread *)(obj))

struct IOThread {
    Object parent_obj;
    AioContext *ctx;
    bool stopping;
    GQueue holds;
};

void iothread_tell_holders_changed(IOThread *iothread);

#endif

/*
 * Devices as holders of IOThreads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/qdev-iothread.h"
#include "system/iothread-holder.h"

IOThreadHolderState *qdev_new_iothread_holder(DeviceState *dev)
{
    const char *id = NULL;

    for (Object *obj = OBJECT(dev); obj && !id; obj = obj->parent) {
        if (object_dynamic_cast(obj, TYPE_DEVICE)) {
            id = DEVICE(obj)->id;
        }
    }
    return iothread_holder_new_qom_object(OBJECT(dev), id);
}

/*
 * Devices as holders of IOThreads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_QDEV_IOTHREAD_H
#define HW_QDEV_IOTHREAD_H

#include "hw/qdev-core.h"
#include "system/iothread-holder.h"

/**
 * qdev_new_iothread_holder:
 * @dev: a device that is being realized, so it has a place in the QOM tree
 *
 * The holder is reported under the ID of @dev or, where @dev is a part of
 * another device, as a "virtio-backend" is of its transport, of the nearest
 * device around it that has an ID.
 *
 * Context: the BQL is held.
 * Returns: a holder, owned by the caller; free it with
 * iothread_holder_drop().
 */
IOThreadHolderState *qdev_new_iothread_holder(DeviceState *dev);

#endif /* HW_QDEV_IOTHREAD_H */

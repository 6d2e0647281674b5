/*
 * Holders of IOThreads: who they are, and how the monitor is told
 *
 * A user of an IOThread makes a holder with one of the functions here, takes
 * the IOThread with iothread_get_aio_context(), gives it back with
 * iothread_put_aio_context() and frees the holder with iothread_holder_free().
 * Who the holder is gets recorded when it is made, and is not looked up again.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_IOTHREAD_HOLDER_H
#define SYSTEM_IOTHREAD_HOLDER_H

#include "qapi/qapi-types-iothread.h"
#include "system/iothread-holds.h"

/**
 * iothread_holder_new_qom_object:
 * @obj: the object, which must have a place in the QOM tree
 * @device: the ID that the user gave to the device; NULL where there is none
 *
 * Devices use qdev_new_iothread_holder(), which finds out @device.
 *
 * Context: the BQL is held.
 * Returns: a holder, owned by the caller.
 */
IOThreadHolderState *iothread_holder_new_qom_object(Object *obj,
                                                    const char *device);

/**
 * iothread_holds_query:
 *
 * Context: any thread.
 * Returns: the holds in the order in which they were taken, owned by the
 * caller; NULL, which is an empty list, when there are none.
 */
IOThreadHolderList *iothread_holds_query(const IOThreadHolds *holds);

#endif /* SYSTEM_IOTHREAD_HOLDER_H */

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

#include "system/iothread-holds.h"

typedef struct IOThread IOThread;
typedef struct IOThreadHolderList IOThreadHolderList;   /* a QAPI type */

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
 * iothread_get_aio_context:
 * @iothread: the IOThread to use
 * @holder: who is going to use it
 *
 * Take @iothread for @holder, until iothread_put_aio_context().  The IOThread
 * stays alive and cannot be deleted by the user meanwhile, and the monitor
 * tells who holds it.  There is no other way to get at the AioContext.
 *
 * A holder may hold several IOThreads, and one IOThread more than once.
 * Reading the AioContext again takes no second hold: remember it.
 *
 * Context: the BQL is held.
 * Returns: the AioContext, which belongs to @iothread.
 */
AioContext *iothread_get_aio_context(IOThread *iothread,
                                     IOThreadHolderState *holder);

/**
 * iothread_get_aio_context_vqs:
 * @vqs: the virtqueues that run in @iothread; copied
 * @num_vqs: their number, which may be 0
 *
 * The same as iothread_get_aio_context() for a device that assigns its
 * virtqueues to IOThreads.
 */
AioContext *iothread_get_aio_context_vqs(IOThread *iothread,
                                         IOThreadHolderState *holder,
                                         const uint16_t *vqs, size_t num_vqs);

/**
 * iothread_put_aio_context:
 * @iothread: the IOThread that was taken
 * @holder: the holder that took it
 *
 * Give back the latest hold of @holder on @iothread.  Nothing of the holder
 * may run in the IOThread any more.  A put without its get aborts, and names
 * the holder.
 *
 * Context: the BQL is held.
 */
void iothread_put_aio_context(IOThread *iothread, IOThreadHolderState *holder);

/**
 * iothread_ctx_unrecorded:
 *
 * For users that do not record themselves as holders yet.  New code must not
 * call it.
 */
AioContext *iothread_ctx_unrecorded(IOThread *iothread);

/**
 * iothread_holds_query:
 *
 * Context: any thread.
 * Returns: the holds in the order in which they were taken, owned by the
 * caller; NULL, which is an empty list, when there are none.
 */
IOThreadHolderList *iothread_holds_query(const IOThreadHolds *holds);

#endif /* SYSTEM_IOTHREAD_HOLDER_H */

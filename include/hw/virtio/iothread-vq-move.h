/*
 * Devices whose virtqueues run in IOThreads, and can move to others
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOTHREAD_VQ_MOVE_H
#define HW_VIRTIO_IOTHREAD_VQ_MOVE_H

#include "block/move.h"
#include "hw/virtio/virtio.h"
#include "qapi/qapi-types-virtio.h"
#include "system/iothread.h"

#define TYPE_IOTHREAD_VQ_DEVICE "iothread-vq-device"
typedef struct IOThreadVqDeviceClass IOThreadVqDeviceClass;
DECLARE_CLASS_CHECKERS(IOThreadVqDeviceClass, IOTHREAD_VQ_DEVICE,
                       TYPE_IOTHREAD_VQ_DEVICE)

/* Where a device keeps what it knows of its IOThreads */
typedef struct IOThreadVqs {
    /* the properties "iothread" and "iothread-vq-mapping" */
    IOThread **iothread;
    IOThreadVirtQueueMappingList **mapping;

    /* the AioContext of each virtqueue, and who the device is */
    AioContext ***vq_aio_context;
    IOThreadHolderState **holder;

    /* so many virtqueues always run in the main loop; the others follow */
    unsigned num_fixed;
    unsigned num_queues;
} IOThreadVqs;

/* All are called in the main thread, or with the BQL held */
struct IOThreadVqDeviceClass {
    InterfaceClass parent;

    void (*get_vqs)(VirtIODevice *vdev, IOThreadVqs *vqs);

    /*
     * Where the nodes of the device have to be if its first queue that can
     * move runs in @ctx; NULL if they stay where they are
     */
    AioContext *(*get_node_context)(VirtIODevice *vdev, AioContext *ctx);

    /* Add the device's BlockBackends */
    void (*add_blks)(VirtIODevice *vdev, BlkMove *move);

    /*
     * Take the virtqueues out of the event loops, and keep them out until
     * @attach, whatever drained sections end.  False if it cannot be now.
     */
    bool (*detach)(VirtIODevice *vdev, Error **errp);

    /* Put them into the event loops where they have to be, unless drained */
    void (*attach)(VirtIODevice *vdev);

    /*
     * Whether a request runs that the block layer does not know of, as it
     * waits for memory.  The virtqueues are detached.  May be NULL.
     */
    bool (*is_busy)(VirtIODevice *vdev);

    /* There is a new table, and no request runs.  May be NULL. */
    void (*moved)(VirtIODevice *vdev);
};

/**
 * iothread_vqs_init:
 * @vdev: a device that is being realized
 *
 * Take the IOThreads of the properties for the virtqueues of @vdev.
 *
 * Returns: true, and sets the table and the holder of @vqs, which
 * iothread_vqs_cleanup() frees.  Otherwise false, and sets @errp; both are
 * NULL.
 */
bool iothread_vqs_init(VirtIODevice *vdev, const IOThreadVqs *vqs,
                       Error **errp);

/**
 * iothread_vqs_cleanup:
 *
 * Give back the IOThreads.  Nothing of the device runs in them any more.
 */
void iothread_vqs_cleanup(const IOThreadVqs *vqs);

/* The default of the QMP command's timeout */
#define IOTHREAD_VQS_MOVE_TIMEOUT_MS 5000

/* Called once, in the main thread.  @err is NULL on success; it is given. */
typedef void IOThreadVqsMoved(void *opaque, Error *err);

/**
 * iothread_vqs_move:
 * @device: the ID or QOM path of a device of type TYPE_IOTHREAD_VQ_DEVICE, or
 *     of its transport
 * @mapping: the new value of the property "iothread-vq-mapping"; copied
 * @timeout_ms: how long to wait for requests in flight, in milliseconds
 * @block: whether the main loop waits; otherwise it does so for 5 ms only
 * @cb: called at the end, perhaps before this function returns
 *
 * Move the virtqueues and the nodes of @device, while the guest uses them.  No
 * other device waits, but for those that share nodes with @device.  The
 * property "iothread" is empty afterwards.
 *
 * The device takes no requests until the move has ended.  On failure all is as
 * it was.  In the main thread only, and not in a coroutine.
 */
void iothread_vqs_move(const char *device,
                       IOThreadVirtQueueMappingList *mapping,
                       uint32_t timeout_ms, bool block,
                       IOThreadVqsMoved *cb, void *opaque);

/**
 * iothread_vqs_interrupt_move:
 *
 * @vdev is about to start or to stop ioeventfd.  If it waits in a move, attach
 * its virtqueues, and end the drained sections.  The move begins anew later.
 * To be called with the BQL held.
 */
void iothread_vqs_interrupt_move(VirtIODevice *vdev);

#endif /* HW_VIRTIO_IOTHREAD_VQ_MOVE_H */

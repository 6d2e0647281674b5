/*
 * Virtqueues in IOThreads: taking the IOThreads and giving them back
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_IOTHREAD_VQ_HOLDER_H
#define HW_VIRTIO_IOTHREAD_VQ_HOLDER_H

#include "system/iothread.h"

/**
 * iothread_vq_get_all:
 * @iothread: the IOThread that is to serve all virtqueues
 * @holder: the device
 * @vq_aio_context: filled in with the IOThread's AioContext
 * @num_queues: the length of @vq_aio_context
 *
 * Take @iothread for the virtqueues 0 to @num_queues - 1.  The counterpart
 * for a mapping is iothread_vq_mapping_apply().
 *
 * Context: the BQL is held.
 */
void iothread_vq_get_all(IOThread *iothread, IOThreadHolderState *holder,
                         AioContext **vq_aio_context, uint16_t num_queues);

/**
 * iothread_vq_put_all:
 * @holder: the device, or NULL
 *
 * Give back every IOThread that @holder holds, and free @holder.  It works
 * from what was recorded when they were taken: the IOThreads' names may be
 * gone by now, or name other IOThreads.
 *
 * Context: the BQL is held, and nothing of the device runs in the IOThreads.
 */
void iothread_vq_put_all(IOThreadHolderState *holder);

#endif /* HW_VIRTIO_IOTHREAD_VQ_HOLDER_H */

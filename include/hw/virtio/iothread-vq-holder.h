/*
 * Virtqueues in IOThreads
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
 * Returns: true on success.  False, with @errp set and nothing taken, when
 * @iothread was deleted.
 *
 * Context: the BQL is held.
 */
bool iothread_vq_get_all(IOThread *iothread, IOThreadHolderState *holder,
                         AioContext **vq_aio_context, uint16_t num_queues,
                         Error **errp);

#endif /* HW_VIRTIO_IOTHREAD_VQ_HOLDER_H */

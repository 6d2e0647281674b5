/*
 * Virtqueues in IOThreads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/virtio/iothread-vq-holder.h"

bool iothread_vq_get_all(IOThread *iothread, IOThreadHolderState *holder,
                         AioContext **vq_aio_context, uint16_t num_queues,
                         Error **errp)
{
    g_autofree uint16_t *vqs = g_new(uint16_t, num_queues);
    AioContext *ctx;

    if (!iothread_check_running(iothread, errp)) {
        return false;
    }
    for (unsigned i = 0; i < num_queues; i++) {
        vqs[i] = i;
    }
    ctx = iothread_get_aio_context_vqs(iothread, holder, vqs, num_queues);
    for (unsigned i = 0; i < num_queues; i++) {
        vq_aio_context[i] = ctx;
    }
    return true;
}

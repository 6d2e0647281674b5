/*
 * Holders of IOThreads: who they are, and how the monitor is told
 *
 * The C side of iothread.cc: it knows QOM, AioContexts and QAPI.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/qapi-visit-iothread.h"
#include "qom/object.h"
#include "system/iothread.h"
#include "system/iothread-holder.h"

static void free_info(void *info)
{
    qapi_free_IOThreadHolder(info);
}

IOThreadHolderState *iothread_holder_new_qom_object(Object *obj,
                                                    const char *device)
{
    IOThreadHolder *info = g_new0(IOThreadHolder, 1);
    char *path = object_get_canonical_path(obj);
    g_autofree char *name = NULL;

    assert(path);
    info->type = IO_THREAD_HOLDER_TYPE_QOM_OBJECT;
    info->u.qom_object.qom_path = path;
    info->u.qom_object.device = g_strdup(device);

    name = device ? g_strdup_printf("device '%s' (%s)", device, path)
                  : g_strdup(path);
    return iothread_holder_new(name, info, free_info);
}

AioContext *iothread_get_aio_context(IOThread *iothread,
                                     IOThreadHolderState *holder)
{
    iothread_holds_get(iothread->holds, holder, false, NULL, 0);
    object_ref(OBJECT(iothread));
    return iothread->ctx;
}

AioContext *iothread_get_aio_context_vqs(IOThread *iothread,
                                         IOThreadHolderState *holder,
                                         const uint16_t *vqs, size_t num_vqs)
{
    iothread_holds_get(iothread->holds, holder, true, vqs, num_vqs);
    object_ref(OBJECT(iothread));
    return iothread->ctx;
}

void iothread_put_aio_context(IOThread *iothread, IOThreadHolderState *holder)
{
    iothread_holds_put(iothread->holds, holder);
    object_unref(OBJECT(iothread));
}

AioContext *iothread_ctx_unrecorded(IOThread *iothread)
{
    return iothread->ctx;
}

static void query_one_hold(const void *info, bool has_vqs, const uint16_t *vqs,
                           size_t num_vqs, void *opaque)
{
    IOThreadHolderList ***tail = opaque;
    IOThreadHolder *holder = QAPI_CLONE(IOThreadHolder,
                                        (IOThreadHolder *)info);

    if (has_vqs) {
        uint16List **vqs_tail = &holder->u.qom_object.vqs;

        assert(holder->type == IO_THREAD_HOLDER_TYPE_QOM_OBJECT);
        holder->u.qom_object.has_vqs = true;
        for (size_t i = 0; i < num_vqs; i++) {
            QAPI_LIST_APPEND(vqs_tail, vqs[i]);
        }
    }
    QAPI_LIST_APPEND(*tail, holder);
}

IOThreadHolderList *iothread_holds_query(const IOThreadHolds *holds)
{
    IOThreadHolderList *list = NULL;
    IOThreadHolderList **tail = &list;

    iothread_holds_foreach(holds, query_one_hold, &tail);
    return list;
}

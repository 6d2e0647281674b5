/*
 * Holders of IOThreads: who they are, and how the monitor is told
 *
 * The C side of iothread.cc: it knows QOM, AioContexts and QAPI.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-iothread.h"
#include "qemu/lockable.h"
#include "qom/object.h"
#include "system/iothread.h"
#include "system/iothread-holder.h"

/* What messages call nodes that the user has given no name, a number of them */
#define IMPLICIT_NODE "implicit block node"

/* What a holder is to the registry: an opaque info */
typedef struct HolderInfo {
    IOThreadHolder *holder;
    IOThreadHolderUpdate *update;
} HolderInfo;

static void free_info(void *opaque)
{
    HolderInfo *info = opaque;

    qapi_free_IOThreadHolder(info->holder);
    g_free(info);
}

/* Takes over @holder and @name */
static IOThreadHolderState *new_holder(IOThreadHolder *holder, char *name,
                                       IOThreadHolderUpdate *update)
{
    HolderInfo *info = g_new(HolderInfo, 1);
    IOThreadHolderState *state;

    info->holder = holder;
    info->update = update;
    state = iothread_holder_new(name, info, free_info);
    g_free(name);
    return state;
}

IOThreadHolderState *iothread_holder_new_qom_object(Object *obj,
                                                    const char *device)
{
    IOThreadHolder *holder = g_new0(IOThreadHolder, 1);
    char *path = object_get_canonical_path(obj);

    assert(path);
    holder->type = IO_THREAD_HOLDER_TYPE_QOM_OBJECT;
    holder->u.qom_object.qom_path = path;
    holder->u.qom_object.device = g_strdup(device);
    return new_holder(holder,
                      device ? g_strdup_printf("device '%s' (%s)", device, path)
                             : g_strdup(path),
                      NULL);
}

IOThreadHolderState *iothread_holder_new_block_export(
    const char *id, const char *node_name, IOThreadHolderUpdate *update)
{
    IOThreadHolder *holder = g_new0(IOThreadHolder, 1);

    holder->type = IO_THREAD_HOLDER_TYPE_BLOCK_EXPORT;
    holder->u.block_export.id = g_strdup(id);
    holder->u.block_export.node_name = g_strdup(node_name);
    return new_holder(holder, g_strdup_printf("block export '%s'", id),
                      update);
}

IOThreadHolderState *iothread_holder_new_block_node(const char *node_name)
{
    IOThreadHolder *holder = g_new0(IOThreadHolder, 1);
    IOThreadHolderState *state;

    holder->type = IO_THREAD_HOLDER_TYPE_BLOCK_NODE;
    holder->u.block_node.node_name = g_strdup(node_name);
    state = new_holder(holder, g_strdup_printf("block node '%s'", node_name),
                       NULL);
    iothread_holder_set_minor(state,
                              node_name[0] == '#' ? IMPLICIT_NODE : NULL);
    return state;
}

IOThreadHolderState *iothread_holder_new_job(const char *id)
{
    IOThreadHolder *holder = g_new0(IOThreadHolder, 1);

    holder->type = IO_THREAD_HOLDER_TYPE_JOB;
    holder->u.job.id = g_strdup(id);
    return new_holder(holder, g_strdup_printf("job '%s'", id), NULL);
}

IOThreadHolderState *iothread_holder_new_monitor(const char *id)
{
    IOThreadHolder *holder = g_new0(IOThreadHolder, 1);

    holder->type = IO_THREAD_HOLDER_TYPE_MONITOR;
    holder->u.monitor.id = g_strdup(id);
    return new_holder(holder, g_strdup_printf("monitor '%s'", id), NULL);
}

bool iothread_check_running(IOThread *iothread, Error **errp)
{
    if (iothread->stopping) {
        error_setg(errp, "the IOThread was deleted");
        return false;
    }
    return true;
}

AioContext *iothread_get_aio_context(IOThread *iothread,
                                     IOThreadHolderState *holder)
{
    assert(!iothread->stopping);
    iothread_holds_get(iothread->holds, holder, false, NULL, 0);
    object_ref(OBJECT(iothread));
    return iothread->ctx;
}

AioContext *iothread_get_aio_context_vqs(IOThread *iothread,
                                         IOThreadHolderState *holder,
                                         const uint16_t *vqs, size_t num_vqs)
{
    assert(!iothread->stopping);
    iothread_holds_get(iothread->holds, holder, true, vqs, num_vqs);
    object_ref(OBJECT(iothread));
    return iothread->ctx;
}

void iothread_put_aio_context(IOThread *iothread, IOThreadHolderState *holder)
{
    iothread_holds_put(iothread->holds, holder);
    object_unref(OBJECT(iothread));
}

static void put_all(IOThreadHolderState *holder)
{
    IOThread *iothread;

    while ((iothread = iothread_holder_any(holder))) {
        iothread_put_aio_context(iothread, holder);
    }
}

void iothread_holder_drop(IOThreadHolderState *holder)
{
    if (holder) {
        put_all(holder);
        iothread_holder_free(holder);
    }
}

/* Which IOThread runs an AioContext */
static GHashTable *iothread_of_ctx;
static QemuMutex iothread_of_ctx_lock;

static void __attribute__((__constructor__)) init_iothread_of_ctx(void)
{
    iothread_of_ctx = g_hash_table_new(NULL, NULL);
    qemu_mutex_init(&iothread_of_ctx_lock);
}

void iothread_started(IOThread *iothread)
{
    QEMU_LOCK_GUARD(&iothread_of_ctx_lock);
    g_hash_table_insert(iothread_of_ctx, iothread->ctx, iothread);
}

void iothread_stopped(IOThread *iothread)
{
    QEMU_LOCK_GUARD(&iothread_of_ctx_lock);
    g_hash_table_remove(iothread_of_ctx, iothread->ctx);
}

static IOThread *find_by_ctx(AioContext *ctx)
{
    QEMU_LOCK_GUARD(&iothread_of_ctx_lock);
    return g_hash_table_lookup(iothread_of_ctx, ctx);
}

bool iothread_is_ctx(AioContext *ctx)
{
    return find_by_ctx(ctx) != NULL;
}

void iothread_holder_follow(IOThreadHolderState *holder, AioContext *ctx)
{
    IOThread *iothread = find_by_ctx(ctx);

    if (iothread == iothread_holder_any(holder)) {
        return;
    }
    put_all(holder);
    if (iothread) {
        iothread_get_aio_context(iothread, holder);
    }
}

/* A hold as it is told, and how to bring that up to date */
typedef struct Told {
    IOThreadHolder *holder;
    IOThreadHolderUpdate *update;
} Told;

static void tell_hold(const void *opaque_info, bool has_vqs,
                      const uint16_t *vqs, size_t num_vqs, void *opaque)
{
    const HolderInfo *info = opaque_info;
    GArray *told = opaque;
    Told hold = {
        .holder = QAPI_CLONE(IOThreadHolder, info->holder),
        .update = info->update,
    };

    if (has_vqs) {
        uint16List **tail = &hold.holder->u.qom_object.vqs;

        assert(hold.holder->type == IO_THREAD_HOLDER_TYPE_QOM_OBJECT);
        hold.holder->u.qom_object.has_vqs = true;
        for (size_t i = 0; i < num_vqs; i++) {
            QAPI_LIST_APPEND(tail, vqs[i]);
        }
    }
    g_array_append_val(told, hold);
}

IOThreadHolderList *iothread_holds_query(const IOThreadHolds *holds)
{
    g_autoptr(GArray) told = g_array_new(false, false, sizeof(Told));
    IOThreadHolderList *list = NULL;
    IOThreadHolderList **tail = &list;

    /* the registry is locked meanwhile, so no callback of others in there */
    iothread_holds_foreach(holds, tell_hold, told);
    for (guint i = 0; i < told->len; i++) {
        Told *hold = &g_array_index(told, Told, i);

        if (hold->update) {
            hold->update(hold->holder);
        }
        QAPI_LIST_APPEND(tail, hold->holder);
    }
    return list;
}

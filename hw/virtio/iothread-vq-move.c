/*
 * Devices whose virtqueues run in IOThreads, and can move to others
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "hw/boards.h"
#include "hw/qdev-iothread.h"
#include "hw/virtio/iothread-vq-holder.h"
#include "hw/virtio/iothread-vq-mapping.h"
#include "hw/virtio/iothread-vq-move.h"
#include "hw/virtio/virtio-bus.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-virtio.h"
#include "qapi/qapi-visit-virtio.h"
#include "qemu/main-loop.h"
#include "qemu/notify.h"
#include "qemu/queue.h"
#include "qemu/timer.h"
#include "system/runstate.h"
#include "system/runstate-action.h"
#include "trace.h"

/* How long the main loop waits before it does other things meanwhile */
#define BLOCK_NS (5 * SCALE_MS)

/* How long it then does these before it looks again: ever longer up to this */
#define MAX_DELAY_MS 8

/* A move that has begun.  All is protected by the BQL. */
typedef struct Move {
    QLIST_ENTRY(Move) next;
    IOThreadVirtQueueMappingList *mapping;
    IOThreadVqsMoved *cb;
    void *opaque;

    /* References to both, as one may be part of the other */
    VirtIODevice *vdev;
    DeviceState *transport;

    /*
     * What moves.  While @held, the virtqueues are detached and the drained
     * sections have begun.
     */
    BlkMove *blk_move;
    bool held;
    int64_t held_since;
    int64_t handlers_ended; /* until then, they may have taken requests */

    /*
     * Looking again is for when no command is executed: in the main loop's
     * own timers.  But a time limit also holds where somebody else waits, in
     * an event loop of the AioContext, for something that cannot go on in a
     * drained section.
     */
    QEMUTimer look;
    int delay_ms;
    QEMUTimer limit;
    uint32_t timeout_ms;
    bool expired;
} Move;

static QLIST_HEAD(, Move) moves = QLIST_HEAD_INITIALIZER(moves);

/* From now on nobody looks again */
static bool shutting_down;

/* What to take: @iothread, or what @mapping says, or neither */
static bool take_iothreads(VirtIODevice *vdev, const IOThreadVqs *vqs,
                           IOThread *iothread,
                           IOThreadVirtQueueMappingList *mapping,
                           AioContext ***vq_aio_context,
                           IOThreadHolderState **holder, Error **errp)
{
    VirtioBusClass *k = VIRTIO_BUS_GET_CLASS(qdev_get_parent_bus(DEVICE(vdev)));
    unsigned total = vqs->num_fixed + vqs->num_queues;
    bool ok = true;

    if (iothread || mapping) {
        if (!k->set_guest_notifiers || !k->ioeventfd_assign) {
            error_setg(errp,
                       "device is incompatible with iothread "
                       "(transport does not support notifiers)");
            return false;
        }
        if (!virtio_device_ioeventfd_enabled(vdev)) {
            error_setg(errp, "ioeventfd is required for iothread");
            return false;
        }
    }

    *vq_aio_context = g_new(AioContext *, total);
    *holder = qdev_new_iothread_holder(DEVICE(vdev));
    for (unsigned i = 0; i < total; i++) {
        (*vq_aio_context)[i] = qemu_get_aio_context();
    }

    if (mapping) {
        ok = iothread_vq_mapping_apply(mapping, *holder,
                                       *vq_aio_context + vqs->num_fixed,
                                       vqs->num_queues, errp);
    } else if (iothread) {
        ok = iothread_vq_get_all(iothread, *holder,
                                 *vq_aio_context + vqs->num_fixed,
                                 vqs->num_queues, errp);
    }
    if (!ok) {
        g_clear_pointer(holder, iothread_holder_drop);
        g_clear_pointer(vq_aio_context, g_free);
    }
    return ok;
}

bool iothread_vqs_init(VirtIODevice *vdev, const IOThreadVqs *vqs,
                       Error **errp)
{
    if (*vqs->iothread && *vqs->mapping) {
        error_setg(errp,
                   "iothread and iothread-vq-mapping properties cannot be set "
                   "at the same time");
        return false;
    }
    return take_iothreads(vdev, vqs, *vqs->iothread, *vqs->mapping,
                          vqs->vq_aio_context, vqs->holder, errp);
}

void iothread_vqs_cleanup(const IOThreadVqs *vqs)
{
    g_clear_pointer(vqs->holder, iothread_holder_drop);
    g_clear_pointer(vqs->vq_aio_context, g_free);
}

/* Let the device go on, where its table says */
static void release(Move *m, bool moved)
{
    if (m->held) {
        m->held = false;
        blk_move_end(m->blk_move);
        IOTHREAD_VQ_DEVICE_GET_CLASS(m->vdev)->attach(m->vdev);
        trace_iothread_vqs_move(m->vdev, moved, get_clock() - m->held_since,
                                m->handlers_ended - m->held_since);
    }
}

/* Have the device take no requests, and the nodes neither, without waiting */
static bool hold(Move *m, const IOThreadVqs *vqs, Error **errp)
{
    if (!blk_move_check(m->blk_move, errp)) {
        return false;
    }
    m->held_since = get_clock();
    if (!IOTHREAD_VQ_DEVICE_GET_CLASS(m->vdev)->detach(m->vdev, errp)) {
        return false;
    }
    m->held = true;

    /* Handlers have returned: the block layer knows of all requests */
    iothread_vq_sync(*vqs->vq_aio_context, vqs->num_fixed + vqs->num_queues);
    m->handlers_ended = get_clock();
    if (m->held) {
        /*
         * Without ioeventfd, the guest's requests come although nothing is
         * attached, and have to be held back.
         */
        blk_move_begin(m->blk_move,
                       VIRTIO_BUS(qdev_get_parent_bus(DEVICE(m->vdev)))
                       ->ioeventfd_started);
    }
    return true;
}

/* The new table and holder become those of the device, and the other way */
static void swap_iothreads(Move *m, const IOThreadVqs *vqs,
                           AioContext ***vq_aio_context,
                           IOThreadHolderState **holder)
{
    IOThreadVqDeviceClass *klass = IOTHREAD_VQ_DEVICE_GET_CLASS(m->vdev);
    IOThread *old_iothread = *vqs->iothread;
    AioContext **old_table = *vqs->vq_aio_context;
    IOThreadHolderState *old_holder = *vqs->holder;

    *vqs->iothread = NULL;
    object_unref(old_iothread);
    qapi_free_IOThreadVirtQueueMappingList(*vqs->mapping);
    *vqs->mapping = QAPI_CLONE(IOThreadVirtQueueMappingList, m->mapping);

    *vqs->vq_aio_context = *vq_aio_context;
    *vq_aio_context = old_table;
    *vqs->holder = *holder;
    *holder = old_holder;
    if (klass->moved) {
        klass->moved(m->vdev);
    }
}

typedef enum {
    MOVE_DONE,
    MOVE_FAILED,
    MOVE_BUSY,
} MoveResult;

/*
 * Move the device if it can be done within @block_ns.  If it is busy, it is
 * held afterwards, unless something has let it go on; anything may happen then
 * before the next call.
 */
static MoveResult try_move(Move *m, int64_t block_ns, Error **errp)
{
    IOThreadVqDeviceClass *klass = IOTHREAD_VQ_DEVICE_GET_CLASS(m->vdev);
    MoveResult result = MOVE_BUSY;
    IOThreadVqs vqs;
    IOThreadHolderState *holder;
    AioContext **vq_aio_context, *node_ctx;
    BlkMove *blk_move;

    if (!DEVICE(m->vdev)->realized || !m->transport->realized) {
        error_setg(errp, "The device has been unplugged");
        return MOVE_FAILED;
    }
    if (m->held && blk_move_is_busy(m->blk_move)) {
        return MOVE_BUSY;
    }

    /*
     * These are taken anew each time: a device that waits is not yet a holder
     * of its new IOThreads, which may go away.
     */
    klass->get_vqs(m->vdev, &vqs);
    if (!take_iothreads(m->vdev, &vqs, NULL, m->mapping, &vq_aio_context,
                        &holder, errp)) {
        return MOVE_FAILED;
    }
    node_ctx = klass->get_node_context(m->vdev, vq_aio_context[vqs.num_fixed]);
    blk_move = blk_move_new(node_ctx);
    klass->add_blks(m->vdev, blk_move);

    if (m->held && blk_move_is_same(m->blk_move, blk_move)) {
        blk_move_free(blk_move);
    } else {
        release(m, false);
        blk_move_free(m->blk_move);
        m->blk_move = blk_move;
        if (!hold(m, &vqs, errp)) {
            result = MOVE_FAILED;
            goto out;
        }
    }

    if (!m->held || !blk_move_wait(m->blk_move, block_ns)) {
        goto out;
    }

    /*
     * The old threads have raised the interrupts, and have run the bottom
     * halves.  After this nothing of the device is in them.
     */
    iothread_vq_sync(*vqs.vq_aio_context, vqs.num_fixed + vqs.num_queues);

    /* Incoming migration goes on while this waits, and may start the device */
    if (!m->held || !blk_move_wait(m->blk_move, 0) ||
        (klass->is_busy && klass->is_busy(m->vdev)) ||
        klass->get_node_context(m->vdev, vq_aio_context[vqs.num_fixed]) !=
        node_ctx) {
        goto out;
    }
    if (!blk_move_commit(m->blk_move, errp)) {
        result = MOVE_FAILED;
        goto out;
    }
    swap_iothreads(m, &vqs, &vq_aio_context, &holder);
    release(m, true);
    result = MOVE_DONE;

out:
    iothread_holder_drop(holder);
    g_free(vq_aio_context);
    return result;
}

static void end_move(Move *m, Error *err)
{
    IOThreadVqsMoved *cb = m->cb;
    void *opaque = m->opaque;

    QLIST_REMOVE(m, next);
    timer_del(&m->look);
    timer_del(&m->limit);
    release(m, false);
    blk_move_free(m->blk_move);
    object_unref(m->vdev);
    object_unref(m->transport);
    qapi_free_IOThreadVirtQueueMappingList(m->mapping);
    g_free(m);

    cb(opaque, err);
}

static void look(Move *m, int64_t block_ns)
{
    Error *err = NULL;

    if (try_move(m, block_ns, &err) == MOVE_BUSY) {
        if (shutting_down) {
            error_setg(&err, "QEMU is shutting down");
        } else if (m->expired) {
            error_setg(&err, "Requests have not ended within %" PRIu32 " ms",
                       m->timeout_ms);
        } else {
            timer_mod(&m->look, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                m->delay_ms);
            m->delay_ms = MIN(m->delay_ms * 2, MAX_DELAY_MS);
            return;
        }
    }
    end_move(m, err);
}

static void look_again(void *opaque)
{
    look(opaque, 0);
}

static void limit_reached(void *opaque)
{
    Move *m = opaque;

    /* Others may be waiting for something in the drained section */
    m->expired = true;
    release(m, false);
}

static void give_up(Notifier *notifier, void *data)
{
    Move *m, *next;

    if (shutdown_action == SHUTDOWN_ACTION_PAUSE) {
        return; /* QEMU goes on */
    }
    shutting_down = true;
    QLIST_FOREACH_SAFE(m, &moves, next, next) {
        Error *err = NULL;

        error_setg(&err, "QEMU is shutting down");
        end_move(m, err);
    }
}

static Move *find_move(VirtIODevice *vdev)
{
    Move *m;

    QLIST_FOREACH(m, &moves, next) {
        if (m->vdev == vdev) {
            break;
        }
    }
    return m;
}

void iothread_vqs_interrupt_move(VirtIODevice *vdev)
{
    Move *m = find_move(vdev);

    GLOBAL_STATE_CODE();

    if (m) {
        release(m, false);
    }
}

static VirtIODevice *find_virtio_device(const char *id, Error **errp)
{
    Object *peripheral = machine_get_container("peripheral");
    Object *obj = object_resolve_path_at(peripheral, id);
    VirtIODevice *vdev = NULL;
    DeviceState *dev;
    BusState *bus;

    if (!obj) {
        error_set(errp, ERROR_CLASS_DEVICE_NOT_FOUND,
                  "Device '%s' not found", id);
        return NULL;
    }
    dev = (DeviceState *)object_dynamic_cast(obj, TYPE_DEVICE);
    if (!dev) {
        error_setg(errp, "%s is not a device", id);
        return NULL;
    }

    if (object_dynamic_cast(obj, TYPE_VIRTIO_DEVICE)) {
        vdev = VIRTIO_DEVICE(obj);
    }
    /* A transport has a bus with one device */
    QLIST_FOREACH(bus, &dev->child_bus, sibling) {
        if (!vdev && object_dynamic_cast(OBJECT(bus), TYPE_VIRTIO_BUS)) {
            vdev = virtio_bus_get_device(VIRTIO_BUS(bus));
        }
    }
    if (!vdev || !object_dynamic_cast(OBJECT(vdev), TYPE_IOTHREAD_VQ_DEVICE)) {
        error_setg(errp, "Device '%s' has no virtqueues that can move", id);
        return NULL;
    }

    if (!dev->realized || !DEVICE(vdev)->realized) {
        error_setg(errp, "Device '%s' is not realized", id);
        return NULL;
    }
    return vdev;
}

void iothread_vqs_move(const char *device,
                       IOThreadVirtQueueMappingList *mapping,
                       uint32_t timeout_ms, bool block,
                       IOThreadVqsMoved *cb, void *opaque)
{
    int64_t timeout_ns = timeout_ms * (int64_t)SCALE_MS;
    Error *err = NULL;
    VirtIODevice *vdev = find_virtio_device(device, &err);
    Move *m;

    GLOBAL_STATE_CODE();

    if (vdev && find_move(vdev)) {
        error_setg(&err, "A move of device '%s' is under way", device);
    }
    if (err) {
        cb(opaque, err);
        return;
    }

    m = g_new(Move, 1);
    *m = (Move) {
        .mapping = QAPI_CLONE(IOThreadVirtQueueMappingList, mapping),
        .cb = cb,
        .opaque = opaque,
        .vdev = VIRTIO_DEVICE(object_ref(OBJECT(vdev))),
        .transport = DEVICE(object_ref(
            OBJECT(qdev_get_parent_bus(DEVICE(vdev))->parent))),
        .delay_ms = 1,
        .timeout_ms = timeout_ms,
        .expired = block || !timeout_ms,
    };
    QLIST_INSERT_HEAD(&moves, m, next);
    timer_init_ms(&m->look, QEMU_CLOCK_REALTIME, look_again, m);
    aio_timer_init(qemu_get_aio_context(), &m->limit, QEMU_CLOCK_REALTIME,
                   SCALE_NS, limit_reached, m);
    if (!m->expired) {
        timer_mod(&m->limit, qemu_clock_get_ns(QEMU_CLOCK_REALTIME) +
                             timeout_ns);
    }
    look(m, block ? timeout_ns : MIN(timeout_ns, BLOCK_NS));
}

typedef struct QMPMove {
    Coroutine *co;
    const char *device;
    IOThreadVirtQueueMappingList *mapping;
    uint32_t timeout_ms;
    Error *err;
} QMPMove;

static void qmp_move_done(void *opaque, Error *err)
{
    QMPMove *qmp_move = opaque;

    qmp_move->err = err;
    aio_co_wake(qmp_move->co);
}

static void qmp_move_bh(void *opaque)
{
    QMPMove *qmp_move = opaque;

    iothread_vqs_move(qmp_move->device, qmp_move->mapping,
                      qmp_move->timeout_ms, false, qmp_move_done, qmp_move);
}

void coroutine_fn
qmp_set_iothread_vq_mapping(const char *device,
                            IOThreadVirtQueueMappingList *mapping,
                            bool has_timeout, uint32_t timeout, Error **errp)
{
    QMPMove qmp_move = {
        .co = qemu_coroutine_self(),
        .device = device,
        .mapping = mapping,
        .timeout_ms = has_timeout ? timeout : IOTHREAD_VQS_MOVE_TIMEOUT_MS,
    };

    /* Where other commands run: never while somebody waits for something */
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), qmp_move_bh,
                            &qmp_move);
    qemu_coroutine_yield();
    error_propagate(errp, qmp_move.err);
}

static const TypeInfo iothread_vq_device_info = {
    .name = TYPE_IOTHREAD_VQ_DEVICE,
    .parent = TYPE_INTERFACE,
    .class_size = sizeof(IOThreadVqDeviceClass),
};

static Notifier shutdown_notifier = { .notify = give_up };

static void iothread_vq_device_register_types(void)
{
    qemu_register_shutdown_notifier(&shutdown_notifier);
    type_register_static(&iothread_vq_device_info);
}

type_init(iothread_vq_device_register_types)

/*
 * Devices whose virtqueues run in IOThreads, and can move to others
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
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
#include "qemu/timer.h"
#include "trace.h"

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

/* The rest of iothread_vqs_move(): the virtqueues are detached */
static bool move_detached(VirtIODevice *vdev, const IOThreadVqs *vqs,
                          AioContext **vq_aio_context, BlkMove *move,
                          AioContext *node_ctx, Error **errp)
{
    IOThreadVqDeviceClass *klass = IOTHREAD_VQ_DEVICE_GET_CLASS(vdev);
    unsigned total = vqs->num_fixed + vqs->num_queues;

    /* Handlers have returned: the block layer knows of all requests */
    iothread_vq_sync(*vqs->vq_aio_context, total);

    blk_move_drain(move);

    /*
     * The old threads have raised the interrupts, and have run the bottom
     * halves.  After this nothing of the device is in them.
     */
    iothread_vq_sync(*vqs->vq_aio_context, total);

    /* Incoming migration goes on while this waits, and may start the device */
    if (klass->get_node_context(vdev, vq_aio_context[vqs->num_fixed]) !=
        node_ctx) {
        error_setg(errp, "The device has just been started or stopped");
        return false;
    }
    return blk_move_commit(move, errp);
}

bool iothread_vqs_move(VirtIODevice *vdev,
                       IOThreadVirtQueueMappingList *mapping, Error **errp)
{
    IOThreadVqDeviceClass *klass = IOTHREAD_VQ_DEVICE_GET_CLASS(vdev);
    BlkMove *move;
    IOThreadHolderState *holder;
    AioContext **vq_aio_context, *node_ctx;
    IOThreadVqs vqs;
    int64_t start;
    bool ok;

    GLOBAL_STATE_CODE();

    klass->get_vqs(vdev, &vqs);
    if (!take_iothreads(vdev, &vqs, NULL, mapping, &vq_aio_context, &holder,
                        errp)) {
        return false;
    }

    node_ctx = klass->get_node_context(vdev, vq_aio_context[vqs.num_fixed]);
    move = blk_move_new(node_ctx);
    klass->add_blks(vdev, move);

    start = get_clock();
    ok = blk_move_check(move, errp) && klass->detach(vdev, errp);
    if (ok) {
        ok = move_detached(vdev, &vqs, vq_aio_context, move, node_ctx, errp);
        if (ok) {
            IOThread *old_iothread = *vqs.iothread;
            AioContext **old_table = *vqs.vq_aio_context;
            IOThreadHolderState *old_holder = *vqs.holder;

            *vqs.iothread = NULL;
            object_unref(old_iothread);
            qapi_free_IOThreadVirtQueueMappingList(*vqs.mapping);
            *vqs.mapping = QAPI_CLONE(IOThreadVirtQueueMappingList, mapping);

            /* What is dropped below is the old one */
            *vqs.vq_aio_context = vq_aio_context;
            vq_aio_context = old_table;
            *vqs.holder = holder;
            holder = old_holder;
            if (klass->moved) {
                klass->moved(vdev);
            }
        }
        blk_move_free(move);
        klass->attach(vdev);
    } else {
        blk_move_free(move);
    }
    trace_iothread_vqs_move(vdev, ok, get_clock() - start);

    iothread_holder_drop(holder);
    g_free(vq_aio_context);
    return ok;
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
    dev = qdev_get_parent_bus(DEVICE(vdev))->parent;
    if (DEVICE(vdev)->pending_deleted_event || dev->pending_deleted_event) {
        error_setg(errp, "Device '%s' is in the process of unplug", id);
        return NULL;
    }
    return vdev;
}

void qmp_set_iothread_vq_mapping(const char *device,
                                 IOThreadVirtQueueMappingList *mapping,
                                 Error **errp)
{
    VirtIODevice *vdev = find_virtio_device(device, errp);

    if (vdev) {
        iothread_vqs_move(vdev, mapping, errp);
    }
}

static const TypeInfo iothread_vq_device_info = {
    .name = TYPE_IOTHREAD_VQ_DEVICE,
    .parent = TYPE_INTERFACE,
    .class_size = sizeof(IOThreadVqDeviceClass),
};

static void iothread_vq_device_register_types(void)
{
    type_register_static(&iothread_vq_device_info);
}

type_init(iothread_vq_device_register_types)

/*
 * HMP: "info iothreads"
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/qapi-commands-iothread.h"

static void print_qom_object(Monitor *mon, const IOThreadHolderQomObject *obj)
{
    monitor_printf(mon, " qom-path=%s", obj->qom_path);
    if (obj->device) {
        monitor_printf(mon, " device=%s", obj->device);
    }
    if (obj->has_vqs) {
        const char *separator = "";

        monitor_printf(mon, " vqs=");
        for (uint16List *vq = obj->vqs; vq; vq = vq->next) {
            monitor_printf(mon, "%s%u", separator, vq->value);
            separator = ",";
        }
    }
}

static void print_holder(Monitor *mon, const IOThreadHolder *holder)
{
    monitor_printf(mon, "    type=%s", IOThreadHolderType_str(holder->type));
    switch (holder->type) {
    case IO_THREAD_HOLDER_TYPE_QOM_OBJECT:
        print_qom_object(mon, &holder->u.qom_object);
        break;
    case IO_THREAD_HOLDER_TYPE_BLOCK_EXPORT:
        monitor_printf(mon, " id=%s node-name=%s", holder->u.block_export.id,
                       holder->u.block_export.node_name);
        break;
    case IO_THREAD_HOLDER_TYPE_BLOCK_NODE:
        monitor_printf(mon, " node-name=%s", holder->u.block_node.node_name);
        break;
    case IO_THREAD_HOLDER_TYPE_MONITOR:
        monitor_printf(mon, " id=%s", holder->u.monitor.id);
        break;
    default:
        g_assert_not_reached();
    }
    monitor_printf(mon, "\n");
}

void hmp_info_iothreads(Monitor *mon, const QDict *qdict)
{
    g_autoptr(IOThreadInfoList) list = qmp_query_iothreads(NULL);

    for (IOThreadInfoList *node = list; node; node = node->next) {
        const IOThreadInfo *info = node->value;

        monitor_printf(mon, "%s:\n", info->id);
        monitor_printf(mon, "  thread_id=%" PRId64 "\n", info->thread_id);
        monitor_printf(mon, "  poll-max-ns=%" PRId64 "\n", info->poll_max_ns);
        monitor_printf(mon, "  poll-grow=%" PRId64 "\n", info->poll_grow);
        monitor_printf(mon, "  poll-shrink=%" PRId64 "\n", info->poll_shrink);
        monitor_printf(mon, "  aio-max-batch=%" PRId64 "\n",
                       info->aio_max_batch);
        monitor_printf(mon, "  holders:%s\n", info->holders ? "" : " none");
        for (IOThreadHolderList *holder = info->holders; holder;
             holder = holder->next) {
            print_holder(mon, holder->value);
        }
    }
}

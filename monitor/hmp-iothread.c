/*
 * HMP: "info iothreads"
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/qapi-commands-iothread.h"

/* IDs and paths may contain anything: none of it shall look like a new line */
static void print_member(Monitor *mon, const char *name, const char *value)
{
    char beyond_ascii[UCHAR_MAX - SCHAR_MAX + 1] = "";
    g_autofree char *escaped = NULL;

    for (int c = SCHAR_MAX + 1; c <= UCHAR_MAX; c++) {
        beyond_ascii[c - SCHAR_MAX - 1] = c;
    }
    escaped = g_strescape(value, beyond_ascii);
    monitor_printf(mon, " %s=%s", name, escaped);
}

static void print_qom_object(Monitor *mon, const IOThreadHolderQomObject *obj)
{
    print_member(mon, "qom-path", obj->qom_path);
    if (obj->device) {
        print_member(mon, "device", obj->device);
    }
    if (obj->has_vqs) {
        const char *separator = "";
        uint16List *vq;

        monitor_printf(mon, " vqs=");
        for (vq = obj->vqs; vq; vq = vq->next) {
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
        print_member(mon, "id", holder->u.block_export.id);
        print_member(mon, "node-name", holder->u.block_export.node_name);
        break;
    case IO_THREAD_HOLDER_TYPE_BLOCK_NODE:
        print_member(mon, "node-name", holder->u.block_node.node_name);
        break;
    case IO_THREAD_HOLDER_TYPE_MONITOR:
        print_member(mon, "id", holder->u.monitor.id);
        break;
    case IO_THREAD_HOLDER_TYPE_JOB:
        print_member(mon, "id", holder->u.job.id);
        break;
    default:
        g_assert_not_reached();
    }
    monitor_printf(mon, "\n");
}

void hmp_info_iothreads(Monitor *mon, const QDict *qdict)
{
    g_autoptr(IOThreadInfoList) list = qmp_query_iothreads(false, false, NULL);

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

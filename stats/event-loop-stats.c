/*
 * Statistics of event loops: IOThreads and the main loop
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/util.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qom/object.h"
#include "system/iothread.h"
#include "system/stats.h"

typedef struct EventLoopStat {
    const char *name;
    bool is_time;
    /* Where in AioLoadFigures; that of CPU time is not there */
    ptrdiff_t offset;
} EventLoopStat;

#define CPU_TIME (-1)

static const EventLoopStat event_loop_stats[] = {
    { "busy-time", true, offsetof(AioLoadFigures, busy_ns) },
    { "poll-hit-time", true, offsetof(AioLoadFigures, poll_hit_ns) },
    { "poll-miss-time", true, offsetof(AioLoadFigures, poll_miss_ns) },
    { "blocked-time", true, offsetof(AioLoadFigures, blocked_ns) },
    { "cpu-time", true, CPU_TIME },
    { "iterations", false, offsetof(AioLoadFigures, iterations) },
    { "events", false, offsetof(AioLoadFigures, events) },
    { "wakeups", false, offsetof(AioLoadFigures, wakeups) },
};

static StatsList *event_loop_stats_list(AioContext *ctx, strList *names)
{
    AioLoadFigures *figures = &ctx->load->reported;
    StatsList *list = NULL;
    StatsList **tail = &list;

    aio_load_read(ctx, figures);

    for (int i = 0; i < ARRAY_SIZE(event_loop_stats); i++) {
        const EventLoopStat *stat = &event_loop_stats[i];
        uint64_t value;
        Stats *stats;

        if (!apply_str_list_filter(stat->name, names)) {
            continue;
        }
        if (stat->offset == CPU_TIME) {
            int64_t ns;

            if (!aio_load_cpu_time(ctx, &ns)) {
                continue;
            }
            value = ns;
        } else {
            value = *(uint64_t *)((char *)figures + stat->offset);
        }

        stats = g_new0(Stats, 1);
        stats->name = g_strdup(stat->name);
        stats->value = g_new0(StatsValue, 1);
        stats->value->type = QTYPE_QNUM;
        stats->value->u.scalar = value;
        QAPI_LIST_APPEND(tail, stats);
    }
    return list;
}

static void event_loop_stats_add(StatsResultList **result, AioContext *ctx,
                                 const char *qom_path, strList *names)
{
    StatsList *list = event_loop_stats_list(ctx, names);

    if (list) {
        add_stats_entry(result, STATS_PROVIDER_EVENT_LOOP, qom_path, list);
    }
}

typedef struct EventLoopIOThread {
    AioContext *ctx;
    char *path;
} EventLoopIOThread;

static void event_loop_iothread_clear(void *opaque)
{
    EventLoopIOThread *iothread = opaque;

    g_free(iothread->path);
}

/* Append those in @container, whose path is @path, to @iothreads */
static void event_loop_find_iothreads(GArray *iothreads, Object *container,
                                      const char *path, strList *targets)
{
    ObjectPropertyIterator iter;
    ObjectProperty *prop;

    object_property_iter_init(&iter, container);
    while ((prop = object_property_iter_next(&iter))) {
        EventLoopIOThread iothread;
        Object *obj;

        if (!g_str_equal(prop->type, "child<" TYPE_IOTHREAD ">")) {
            continue;
        }
        obj = object_resolve_path_component(container, prop->name);
        iothread.ctx = IOTHREAD(obj)->ctx;
        iothread.path = g_strdup_printf("%s/%s", path, prop->name);
        /* While an IOThread is being created it has no context yet */
        if (iothread.ctx && apply_str_list_filter(iothread.path, targets)) {
            g_array_append_val(iothreads, iothread);
        } else {
            g_free(iothread.path);
        }
    }
}

static void event_loop_stats_iothreads(StatsResultList **result,
                                       strList *names, strList *targets)
{
    g_autoptr(GArray) iothreads =
        g_array_new(false, false, sizeof(EventLoopIOThread));

    g_array_set_clear_func(iothreads, event_loop_iothread_clear);
    event_loop_find_iothreads(iothreads, object_get_objects_root(),
                              "/objects", targets);
    /* They are not in the QOM tree.  No object there has such a path. */
    event_loop_find_iothreads(iothreads, object_get_internal_root(),
                              "/internal", targets);

    /* Each is put in front of the others */
    for (int i = iothreads->len - 1; i >= 0; i--) {
        EventLoopIOThread *iothread =
            &g_array_index(iothreads, EventLoopIOThread, i);

        event_loop_stats_add(result, iothread->ctx, iothread->path, names);
    }
}

static void event_loop_stats_cb(StatsResultList **result, StatsTarget target,
                                strList *names, strList *targets,
                                Error **errp)
{
    GLOBAL_STATE_CODE();

    switch (target) {
    case STATS_TARGET_VM:
        event_loop_stats_add(result, qemu_get_aio_context(), NULL, names);
        break;
    case STATS_TARGET_IOTHREAD:
        event_loop_stats_iothreads(result, names, targets);
        break;
    default:
        break;
    }
}

static StatsSchemaValueList *event_loop_schema(void)
{
    StatsSchemaValueList *list = NULL;
    StatsSchemaValueList **tail = &list;

    for (int i = 0; i < ARRAY_SIZE(event_loop_stats); i++) {
        const EventLoopStat *stat = &event_loop_stats[i];
        StatsSchemaValue *value = g_new0(StatsSchemaValue, 1);
        int64_t ns;

        if (stat->offset == CPU_TIME &&
            !aio_load_cpu_time(qemu_get_aio_context(), &ns)) {
            g_free(value);
            continue;
        }
        value->name = g_strdup(stat->name);
        value->type = STATS_TYPE_CUMULATIVE;
        if (stat->is_time) {
            value->has_unit = true;
            value->unit = STATS_UNIT_SECONDS;
            value->has_base = true;
            value->base = 10;
            value->exponent = -9;
        }
        QAPI_LIST_APPEND(tail, value);
    }
    return list;
}

static void event_loop_schemas_cb(StatsSchemaList **result, Error **errp)
{
    add_stats_schema(result, STATS_PROVIDER_EVENT_LOOP, STATS_TARGET_IOTHREAD,
                     event_loop_schema());
    add_stats_schema(result, STATS_PROVIDER_EVENT_LOOP, STATS_TARGET_VM,
                     event_loop_schema());
}

static void event_loop_stats_register(void)
{
    add_stats_callbacks(STATS_PROVIDER_EVENT_LOOP, event_loop_stats_cb,
                        event_loop_schemas_cb);
}

type_init(event_loop_stats_register)

/*
 * Statistics of event loops: IOThreads and the main loop
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/cxx-begin.h"
#include "block/aio.h"
#include "qapi/util.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qom/object.h"
#include "system/iothread.h"
#include "system/stats.h"
#include "qemu/cxx-end.h"

namespace {

struct EventLoopStat {
    const char *name;
    bool is_time;
    /* NULL for CPU time, which the loop does not count itself */
    uint64_t AioLoadFigures::*figure;

    /* Returns: whether there is a @value, which CPU time may lack */
    bool read(AioContext *ctx, uint64_t *value) const
    {
        int64_t ns = 0;

        if (figure) {
            *value = ctx->load->reported.*figure;
            return true;
        }
        if (!aio_load_cpu_time(ctx, &ns)) {
            return false;
        }
        *value = ns;
        return true;
    }
};

constexpr EventLoopStat event_loop_stats[] = {
    {"busy-time", true, &AioLoadFigures::busy_ns},
    {"poll-hit-time", true, &AioLoadFigures::poll_hit_ns},
    {"poll-miss-time", true, &AioLoadFigures::poll_miss_ns},
    {"blocked-time", true, &AioLoadFigures::blocked_ns},
    {"cpu-time", true, nullptr},
    {"iterations", false, &AioLoadFigures::iterations},
    {"events", false, &AioLoadFigures::events},
    {"wakeups", false, &AioLoadFigures::wakeups},
};

/* All that is counted is told, and the CPU time */
static_assert(sizeof(event_loop_stats) / sizeof(event_loop_stats[0]) ==
              sizeof(AioLoadFigures) / sizeof(uint64_t) + 1);

void add_event_loop(StatsResultList **result, AioContext *ctx,
                    const char *qom_path, strList *names)
{
    StatsList *list = nullptr, **tail = &list;

    aio_load_read(ctx, &ctx->load->reported);
    for (const EventLoopStat &stat : event_loop_stats) {
        uint64_t value = 0;

        if (apply_str_list_filter(stat.name, names) && stat.read(ctx, &value)) {
            Stats *stats = g_new0(Stats, 1);

            stats->name = g_strdup(stat.name);
            stats->value = g_new0(StatsValue, 1);
            stats->value->type = QTYPE_QNUM;
            stats->value->u.scalar = value;
            QAPI_LIST_APPEND(tail, stats);
        }
    }
    if (list) {
        add_stats_entry(result, STATS_PROVIDER_EVENT_LOOP, qom_path, list);
    }
}

/* Those in @container, whose path is @path */
void add_iothreads(StatsResultList **result, Object *container,
                   const char *path, strList *names, strList *targets)
{
    ObjectPropertyIterator iter;

    object_property_iter_init(&iter, container);
    while (ObjectProperty *prop = object_property_iter_next(&iter)) {
        if (g_str_equal(prop->type, "child<" TYPE_IOTHREAD ">")) {
            Object *obj = object_resolve_path_component(container, prop->name);
            AioContext *ctx = IOTHREAD(obj)->ctx;
            g_autofree char *name = g_strdup_printf("%s/%s", path, prop->name);

            /* While an IOThread is being created it has no context yet */
            if (ctx && apply_str_list_filter(name, targets)) {
                add_event_loop(result, ctx, name, names);
            }
        }
    }
}

void add_all_iothreads(StatsResultList **result, strList *names,
                       strList *targets)
{
    StatsResultList *added = nullptr;

    add_iothreads(&added, object_get_objects_root(), "/objects", names,
                  targets);
    /* They are not in the QOM tree.  No object there has such a path. */
    add_iothreads(&added, object_get_internal_root(), "/internal", names,
                  targets);

    /* Each was put in front of the one before: turn them round */
    while (added) {
        StatsResultList *first = added;

        added = first->next;
        first->next = *result;
        *result = first;
    }
}

void event_loop_stats_cb(StatsResultList **result, StatsTarget target,
                         strList *names, strList *targets, Error **errp)
{
    GLOBAL_STATE_CODE();

    if (target == STATS_TARGET_VM) {
        add_event_loop(result, qemu_get_aio_context(), nullptr, names);
    } else if (target == STATS_TARGET_IOTHREAD) {
        add_all_iothreads(result, names, targets);
    }
}

StatsSchemaValueList *event_loop_schema()
{
    StatsSchemaValueList *list = nullptr, **tail = &list;

    for (const EventLoopStat &stat : event_loop_stats) {
        uint64_t any;

        if (stat.read(qemu_get_aio_context(), &any)) {
            StatsSchemaValue *value = g_new0(StatsSchemaValue, 1);

            value->name = g_strdup(stat.name);
            value->type = STATS_TYPE_CUMULATIVE;
            if (stat.is_time) {
                value->has_unit = true;
                value->unit = STATS_UNIT_SECONDS;
                value->has_base = true;
                value->base = 10;
                value->exponent = -9;
            }
            QAPI_LIST_APPEND(tail, value);
        }
    }
    return list;
}

void event_loop_schemas_cb(StatsSchemaList **result, Error **errp)
{
    add_stats_schema(result, STATS_PROVIDER_EVENT_LOOP, STATS_TARGET_IOTHREAD,
                     event_loop_schema());
    add_stats_schema(result, STATS_PROVIDER_EVENT_LOOP, STATS_TARGET_VM,
                     event_loop_schema());
}

void event_loop_stats_register()
{
    add_stats_callbacks(STATS_PROVIDER_EVENT_LOOP, event_loop_stats_cb,
                        event_loop_schemas_cb);
}

} /* namespace */

type_init(event_loop_stats_register)

/*
 * The layout of types that C++ code looks into
 *
 * Included by a C and by a C++ file, which thereby make the same table each.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef CXX_LAYOUT_H
#define CXX_LAYOUT_H

#include "block/aio.h"
#include "block/block_int.h"
#include "block/blockjob_int.h"
#include "block/export.h"
#include "hw/qdev-core.h"
#include "monitor/hmp.h"
#include "monitor/monitor.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-builtin-types.h"
#include "qapi/qapi-types-block-export.h"
#include "qapi/qapi-types-stats.h"
#include "qapi/util.h"
#include "qemu/error-report.h"
#include "qemu/job.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/rcu.h"
#include "qom/object.h"
#include "qom/object_interfaces.h"
#include "system/block-backend.h"
#include "system/iothread.h"
#include "system/stats.h"

typedef struct CxxLayout {
    const char *what;
    size_t value;
} CxxLayout;

#define LAYOUT_SIZE(type) { "size of " #type, sizeof(type) }
#define LAYOUT_MEMBER(type, member) \
    { "offset of " #member " in " #type, offsetof(type, member) }

#define LAYOUT_TABLE {                                  \
    LAYOUT_SIZE(AioContext),                            \
    LAYOUT_MEMBER(AioContext, list_lock),               \
    LAYOUT_MEMBER(AioContext, tlg),                     \
    LAYOUT_MEMBER(AioContext, epollfd),                 \
    LAYOUT_SIZE(BdrvChild),                             \
    LAYOUT_MEMBER(BdrvChild, klass),                    \
    LAYOUT_MEMBER(BdrvChild, next_parent),              \
    LAYOUT_SIZE(BdrvChildClass),                        \
    LAYOUT_MEMBER(BdrvChildClass, get_name),            \
    LAYOUT_SIZE(BlockDriverState),                      \
    LAYOUT_MEMBER(BlockDriverState, aio_context),       \
    LAYOUT_MEMBER(BlockDriverState, in_flight),         \
    LAYOUT_MEMBER(BlockDriverState, parents),           \
    LAYOUT_MEMBER(BlockDriverState, quiesce_counter),   \
    LAYOUT_SIZE(BlockExport),                           \
    LAYOUT_MEMBER(BlockExport, blk),                    \
    LAYOUT_SIZE(BlockJob),                              \
    LAYOUT_MEMBER(BlockJob, nodes),                     \
    LAYOUT_SIZE(BlockJobDriver),                        \
    LAYOUT_SIZE(CoMutex),                               \
    LAYOUT_SIZE(DeviceState),                           \
    LAYOUT_MEMBER(DeviceState, id),                     \
    LAYOUT_SIZE(EventLoopBase),                         \
    LAYOUT_SIZE(IOThread),                              \
    LAYOUT_MEMBER(IOThread, ctx),                       \
    LAYOUT_MEMBER(IOThread, stopping),                  \
    LAYOUT_SIZE(Job),                                   \
    LAYOUT_MEMBER(Job, aio_context),                    \
    LAYOUT_MEMBER(Job, busy),                           \
    LAYOUT_MEMBER(Job, driver),                         \
    LAYOUT_MEMBER(Job, pause_count),                    \
    LAYOUT_SIZE(JobDriver),                             \
    LAYOUT_MEMBER(JobDriver, free),                     \
    LAYOUT_SIZE(Object),                                \
    LAYOUT_MEMBER(Object, class),                       \
    LAYOUT_MEMBER(Object, parent),                      \
    LAYOUT_SIZE(ObjectClass),                           \
    LAYOUT_SIZE(ObjectProperty),                        \
    LAYOUT_MEMBER(ObjectProperty, type),                \
    LAYOUT_SIZE(ObjectPropertyIterator),                \
    LAYOUT_SIZE(QEMUIOVector),                          \
    LAYOUT_SIZE(QEMUTimer),                             \
    LAYOUT_SIZE(QemuLockable),                          \
    LAYOUT_SIZE(QemuMutex),                             \
    LAYOUT_SIZE(QemuRecMutex),                          \
    LAYOUT_SIZE(QemuSpin),                              \
    LAYOUT_SIZE(Stats),                                 \
    LAYOUT_SIZE(StatsSchemaValue),                      \
    LAYOUT_MEMBER(StatsSchemaValue, exponent),          \
    LAYOUT_SIZE(StatsValue),                            \
    LAYOUT_MEMBER(StatsValue, u),                       \
    { NULL, 0 },                                        \
}

extern const CxxLayout cxx_layout[];

/* How guards of C++ lock and unlock @mutex; see test_guards() */
void cxx_guards(QemuMutex *mutex, void (*locked)(void));

/* Returns: 1, 2 and 3 */
uint16List *cxx_list(void);

#endif /* CXX_LAYOUT_H */

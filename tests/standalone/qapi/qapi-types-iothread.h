/*
 * Stand-in for QEMU's qapi-types-iothread.h, for units built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QAPI_TYPES_IOTHREAD_H
#define QAPI_TYPES_IOTHREAD_H

#define QAPI_LIST_APPEND(tail, element) do { \
    *(tail) = (__typeof__(*(tail)))g_malloc0(sizeof(**(tail))); \
    (*(tail))->value = (element); \
    (tail) = &(*(tail))->next; \
} while (0)

#define QAPI_CLONE(type, src) clone_##type(src)

typedef struct uint16List {
    struct uint16List *next;
    uint16_t value;
} uint16List;

typedef enum IOThreadHolderType {
    IO_THREAD_HOLDER_TYPE_QOM_OBJECT,
    IO_THREAD_HOLDER_TYPE_BLOCK_EXPORT,
    IO_THREAD_HOLDER_TYPE_BLOCK_NODE,
    IO_THREAD_HOLDER_TYPE_MONITOR,
    IO_THREAD_HOLDER_TYPE_JOB,
    IO_THREAD_HOLDER_TYPE__MAX,
} IOThreadHolderType;

typedef struct IOThreadHolderQomObject {
    char *qom_path;
    char *device;
    bool has_vqs;
    uint16List *vqs;
} IOThreadHolderQomObject;

typedef struct IOThreadHolder {
    IOThreadHolderType type;
    /* QAPI has a union here: there are no two of them that are set */
    struct {
        IOThreadHolderQomObject qom_object;
        struct {
            char *id;
            char *node_name;
        } block_export;
        struct {
            char *node_name;
        } block_node;
        struct {
            char *id;
        } monitor, job;
    } u;
} IOThreadHolder;

typedef struct IOThreadHolderList {
    struct IOThreadHolderList *next;
    IOThreadHolder *value;
} IOThreadHolderList;

static inline void qapi_free_uint16List(uint16List *list)
{
    while (list) {
        uint16List *next = list->next;

        g_free(list);
        list = next;
    }
}

static inline uint16List *clone_uint16List(const uint16List *list)
{
    uint16List *copy = NULL, **tail = &copy;

    for (; list; list = list->next) {
        QAPI_LIST_APPEND(tail, list->value);
    }
    return copy;
}

static inline void qapi_free_IOThreadHolder(IOThreadHolder *holder)
{
    g_free(holder->u.qom_object.qom_path);
    g_free(holder->u.qom_object.device);
    qapi_free_uint16List(holder->u.qom_object.vqs);
    g_free(holder->u.block_export.id);
    g_free(holder->u.block_export.node_name);
    g_free(holder->u.block_node.node_name);
    g_free(holder->u.monitor.id);
    g_free(holder->u.job.id);
    g_free(holder);
}

static inline IOThreadHolder *clone_IOThreadHolder(const IOThreadHolder *holder)
{
    IOThreadHolder *copy = g_new(IOThreadHolder, 1);

    *copy = *holder;
    copy->u.qom_object.qom_path = g_strdup(holder->u.qom_object.qom_path);
    copy->u.qom_object.device = g_strdup(holder->u.qom_object.device);
    copy->u.qom_object.vqs = clone_uint16List(holder->u.qom_object.vqs);
    copy->u.block_export.id = g_strdup(holder->u.block_export.id);
    copy->u.block_export.node_name = g_strdup(holder->u.block_export.node_name);
    copy->u.block_node.node_name = g_strdup(holder->u.block_node.node_name);
    copy->u.monitor.id = g_strdup(holder->u.monitor.id);
    copy->u.job.id = g_strdup(holder->u.job.id);
    return copy;
}

static inline void qapi_free_IOThreadHolderList(IOThreadHolderList *list)
{
    while (list) {
        IOThreadHolderList *next = list->next;

        qapi_free_IOThreadHolder(list->value);
        g_free(list);
        list = next;
    }
}

G_DEFINE_AUTOPTR_CLEANUP_FUNC(IOThreadHolderList, qapi_free_IOThreadHolderList)

#endif

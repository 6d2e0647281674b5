/*
 * Who holds which IOThread
 *
 * The interface and its contract are in "system/iothread-holder.h".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/cxx-begin.h"
#include "block/aio-check.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-iothread.h"
#include "qemu/lockable.h"
#include "qom/object.h"
#include "system/iothread.h"
#include "qemu/cxx-end.h"

/*
 * Nothing here needs the C++ run-time library: containers and memory are
 * GLib's, which aborts when there is no memory.  A QEMU that would load
 * libstdc++ for this alone would take longer to start, and more memory.
 */

namespace {

#ifdef CONFIG_DEBUG_MUTEX
constexpr bool check_unused = true;
#else
constexpr bool check_unused = false;
#endif

struct InGLibMemory {
    static void *operator new(size_t size)
    {
        return g_malloc(size);
    }

    static void operator delete(void *memory)
    {
        g_free(memory);
    }
};

/* A GHashTable with types, from pointer to pointer */
template <typename Key, typename Value> struct Table {
    Table() = default;
    Table(const Table &) = delete;

    ~Table()
    {
        g_hash_table_unref(table);
    }

    Value *find(const Key *key) const
    {
        return static_cast<Value *>(g_hash_table_lookup(table, key));
    }

    /* NULL takes it out */
    void set(Key *key, Value *value)
    {
        if (value) {
            g_hash_table_insert(table, key, value);
        } else {
            g_hash_table_remove(table, key);
        }
    }

    /* Any key, NULL when there is none */
    Key *any() const
    {
        GHashTableIter iter;
        gpointer key;

        g_hash_table_iter_init(&iter, table);
        return g_hash_table_iter_next(&iter, &key, nullptr)
                   ? static_cast<Key *>(key)
                   : nullptr;
    }

    GHashTable *const table = g_hash_table_new(nullptr, nullptr);
};

/*
 * One lock for all lists and holders: a hold belongs to one of each, and holds
 * are taken and given back at plug and unplug, not in the I/O path.
 */
struct Registry : InGLibMemory {
    Registry()
    {
        qemu_mutex_init(&lock);
    }

    QemuMutex lock;
    Table<AioContext, IOThread> by_ctx;
};

/* It is never freed, as threads may still run when the program exits */
Registry &registry = *new Registry;

struct Hold;

} /* namespace */

struct IOThreadHolderState : InGLibMemory {
    explicit IOThreadHolderState(IOThreadHolderType type)
        : who(g_new0(IOThreadHolder, 1))
    {
        who->type = type;
    }

    ~IOThreadHolderState()
    {
        qapi_free_IOThreadHolder(who);
    }

    char *name() const;
    [[noreturn]] void die(const char *what) const;

    /* What is known of it before it takes an IOThread */
    IOThreadHolder *const who;
    /* The latest hold on each IOThread that it holds */
    Table<IOThread, Hold> latest;
};

namespace {

/* It owns a reference to the IOThread, and is in two lists: see take() */
struct Hold : InGLibMemory {
    Hold(IOThread *iothread, IOThreadHolderState *holder)
        : iothread(iothread), holder(holder)
    {
        object_ref(OBJECT(iothread));
        link.data = this;
    }

    Hold(const Hold &) = delete;

    ~Hold()
    {
        qapi_free_uint16List(vqs);
        object_unref(OBJECT(iothread));
    }

    void take()
    {
        QEMU_LOCK_GUARD(&registry.lock);
        g_queue_push_tail_link(&iothread->holds, &link);
        earlier = holder->latest.find(iothread);
        holder->latest.set(iothread, this);
    }

    IOThreadHolder *told() const
    {
        IOThreadHolder *told = QAPI_CLONE(IOThreadHolder, holder->who);

        if (has_vqs) {
            assert(told->type == IO_THREAD_HOLDER_TYPE_QOM_OBJECT);
            told->u.qom_object.has_vqs = true;
            told->u.qom_object.vqs = QAPI_CLONE(uint16List, vqs);
        }
        return told;
    }

    IOThread *const iothread;
    IOThreadHolderState *const holder;
    bool has_vqs = false;
    uint16List *vqs = nullptr;

    /* In the list of the IOThread, in the order of attachment */
    GList link = {};
    /* The hold of this holder before this one, on the same IOThread */
    Hold *earlier = nullptr;
};

template <typename Func> void for_each(const IOThread *iothread, Func func)
{
    for (GList *link = iothread->holds.head; link; link = link->next) {
        func(*static_cast<const Hold *>(link->data));
    }
}

IOThread *find_by_ctx(AioContext *ctx)
{
    QEMU_LOCK_GUARD(&registry.lock);
    return registry.by_ctx.find(ctx);
}

/* Any of the IOThreads that @holder holds */
IOThread *any_held(const IOThreadHolderState *holder)
{
    QEMU_LOCK_GUARD(&registry.lock);
    return holder->latest.any();
}

void put_all(IOThreadHolderState *holder)
{
    while (IOThread *iothread = any_held(holder)) {
        iothread_put_aio_context(iothread, holder);
    }
}

/* "a", "a and b", "a, b and c" */
char *enumerate(const GPtrArray *parts)
{
    GString *text = g_string_new("");

    for (guint i = 0; i < parts->len; i++) {
        const bool last = i + 1 == parts->len;

        g_string_append(text, i == 0 ? "" : last ? " and " : ", ");
        g_string_append(text, static_cast<char *>(parts->pdata[i]));
    }
    return g_string_free(text, false);
}

} /* namespace */

char *IOThreadHolderState::name() const
{
    switch (who->type) {
    case IO_THREAD_HOLDER_TYPE_QOM_OBJECT: {
        const IOThreadHolderQomObject &object = who->u.qom_object;

        return object.device ? g_strdup_printf("device '%s' (%s)",
                                               object.device, object.qom_path)
                             : g_strdup(object.qom_path);
    }
    case IO_THREAD_HOLDER_TYPE_BLOCK_EXPORT:
        return g_strdup_printf("block export '%s'", who->u.block_export.id);
    case IO_THREAD_HOLDER_TYPE_BLOCK_NODE:
        return g_strdup_printf("block node '%s'", who->u.block_node.node_name);
    case IO_THREAD_HOLDER_TYPE_MONITOR:
        return g_strdup_printf("monitor '%s'", who->u.monitor.id);
    case IO_THREAD_HOLDER_TYPE_JOB:
        return g_strdup_printf("job '%s'", who->u.job.id);
    case IO_THREAD_HOLDER_TYPE__MAX:
        break;
    }
    g_assert_not_reached();
}

void IOThreadHolderState::die(const char *what) const
{
    fprintf(stderr, "%s %s\n", name(), what);
    abort();
}

IOThreadHolderState *iothread_holder_new_qom_object(Object *obj,
                                                    const char *device)
{
    auto *holder = new IOThreadHolderState(IO_THREAD_HOLDER_TYPE_QOM_OBJECT);
    IOThreadHolderQomObject &object = holder->who->u.qom_object;

    object.qom_path = object_get_canonical_path(obj);
    assert(object.qom_path);
    object.device = g_strdup(device);
    return holder;
}

IOThreadHolderState *iothread_holder_new_block_export(const char *id,
                                                      const char *node_name)
{
    auto *holder = new IOThreadHolderState(IO_THREAD_HOLDER_TYPE_BLOCK_EXPORT);

    holder->who->u.block_export.id = g_strdup(id);
    holder->who->u.block_export.node_name = g_strdup(node_name);
    return holder;
}

IOThreadHolderState *iothread_holder_new_block_node(const char *node_name)
{
    auto *holder = new IOThreadHolderState(IO_THREAD_HOLDER_TYPE_BLOCK_NODE);

    holder->who->u.block_node.node_name = g_strdup(node_name);
    return holder;
}

IOThreadHolderState *iothread_holder_new_job(const char *id)
{
    auto *holder = new IOThreadHolderState(IO_THREAD_HOLDER_TYPE_JOB);

    holder->who->u.job.id = g_strdup(id);
    return holder;
}

IOThreadHolderState *iothread_holder_new_monitor(const char *id)
{
    auto *holder = new IOThreadHolderState(IO_THREAD_HOLDER_TYPE_MONITOR);

    holder->who->u.monitor.id = g_strdup(id);
    return holder;
}

void iothread_holder_drop(IOThreadHolderState *holder)
{
    if (holder) {
        put_all(holder);
        delete holder;
    }
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
    (new Hold(iothread, holder))->take();
    iothread_tell_holders_changed(iothread);
    return iothread->ctx;
}

AioContext *iothread_get_aio_context_vqs(IOThread *iothread,
                                         IOThreadHolderState *holder,
                                         const uint16_t *vqs, size_t num_vqs)
{
    Hold *hold = new Hold(iothread, holder);
    uint16List **tail = &hold->vqs;

    assert(!iothread->stopping);
    hold->has_vqs = true;
    for (size_t i = 0; i < num_vqs; i++) {
        QAPI_LIST_APPEND(tail, vqs[i]);
    }
    hold->take();
    iothread_tell_holders_changed(iothread);
    return iothread->ctx;
}

void iothread_put_aio_context(IOThread *iothread, IOThreadHolderState *holder)
{
    Hold *hold = nullptr;
    bool last = false;

    WITH_QEMU_LOCK_GUARD(&registry.lock) {
        hold = holder->latest.find(iothread);
        if (!hold) {
            holder->die("puts an IOThread that it does not hold");
        }
        g_queue_unlink(&iothread->holds, &hold->link);
        holder->latest.set(iothread, hold->earlier);
        last = g_queue_is_empty(&iothread->holds);
    }
    /* Unit tests have IOThreads without an AioContext */
    if (check_unused && last && iothread->ctx &&
        !aio_context_is_unused(iothread->ctx)) {
        holder->die("puts an IOThread where handlers are left");
    }
    iothread_tell_holders_changed(iothread);
    delete hold;
}

void iothread_holder_follow(IOThreadHolderState *holder, AioContext *ctx)
{
    IOThread *iothread = find_by_ctx(ctx);

    if (iothread == any_held(holder)) {
        return;
    }
    put_all(holder);
    if (iothread) {
        iothread_get_aio_context(iothread, holder);
    }
}

bool iothread_is_ctx(AioContext *ctx)
{
    return find_by_ctx(ctx);
}

void iothread_started(IOThread *iothread)
{
    QEMU_LOCK_GUARD(&registry.lock);
    registry.by_ctx.set(iothread->ctx, iothread);
}

void iothread_stopped(IOThread *iothread)
{
    QEMU_LOCK_GUARD(&registry.lock);
    registry.by_ctx.set(iothread->ctx, nullptr);
}

bool iothread_is_held(const IOThread *iothread)
{
    QEMU_LOCK_GUARD(&registry.lock);
    return iothread->holds.head;
}

bool iothread_is_held_by(const IOThread *iothread,
                         const IOThreadHolderState *holder)
{
    QEMU_LOCK_GUARD(&registry.lock);
    return holder->latest.find(iothread);
}

IOThreadHolderList *iothread_query_holders(const IOThread *iothread)
{
    IOThreadHolderList *list = nullptr, **tail = &list;

    QEMU_LOCK_GUARD(&registry.lock);
    for_each(iothread,
             [&](const Hold &hold) { QAPI_LIST_APPEND(tail, hold.told()); });
    return list;
}

char *iothread_describe_holders(const IOThread *iothread, size_t max)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(nullptr, nullptr);
    g_autoptr(GPtrArray) parts = g_ptr_array_new_with_free_func(g_free);
    guint more = 0, implicit = 0;

    QEMU_LOCK_GUARD(&registry.lock);
    /* Nobody can end a node, so these come after all others */
    for (int nodes = 0; nodes < 2; nodes++) {
        for_each(iothread, [&](const Hold &hold) {
            const IOThreadHolder *who = hold.holder->who;
            const bool is_node = who->type == IO_THREAD_HOLDER_TYPE_BLOCK_NODE;

            if (is_node != nodes || !g_hash_table_add(seen, hold.holder)) {
                return;
            }
            if (is_node && who->u.block_node.node_name[0] == '#') {
                implicit++;
            } else if (parts->len < max) {
                g_ptr_array_add(parts, hold.holder->name());
            } else {
                more++;
            }
        });
    }
    if (more > 0) {
        g_ptr_array_add(
            parts, g_strdup_printf(parts->len > 0 ? "%u more" : "%u", more));
    }
    if (implicit > 0) {
        g_ptr_array_add(parts,
                        g_strdup_printf("%u implicit block node%s", implicit,
                                        implicit > 1 ? "s" : ""));
    }
    return enumerate(parts);
}

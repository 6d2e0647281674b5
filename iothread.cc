/*
 * Who holds which IOThread: the registry of holds
 *
 * The interface and its contract are in "system/iothread-holds.h".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
extern "C" {
#include "qemu/thread.h"
}
#include "system/iothread-holds.h"

/*
 * Nothing here needs the C++ run-time library: containers and memory are
 * GLib's, which aborts when there is no memory.  A QEMU that would load
 * libstdc++ for this alone would take longer to start, and more memory.
 */

namespace {

struct Hold {
    Hold(IOThreadHolderState *holder, bool has_vqs, const uint16_t *vqs,
         size_t num_vqs)
        : holder(holder), has_vqs(has_vqs), num_vqs(num_vqs),
          vqs(static_cast<uint16_t *>(g_memdup2(vqs, num_vqs * sizeof(*vqs))))
    {
        link.data = this;
    }

    Hold(const Hold &) = delete;

    ~Hold()
    {
        g_free(vqs);
    }

    static void *operator new(size_t size)
    {
        return g_malloc(size);
    }

    static void operator delete(void *hold)
    {
        g_free(hold);
    }

    IOThreadHolderState *const holder;
    const bool has_vqs;
    const size_t num_vqs;
    uint16_t *const vqs;

    /* in the list of the IOThread */
    GList link = {};
    /* the hold of this holder before this one, in the same list */
    Hold *earlier = nullptr;
};

/*
 * One lock for all lists and holders: a hold belongs to one of each, and holds
 * are taken and given back at plug and unplug, not in the I/O path.
 */
struct Lock {
    Lock()
    {
        qemu_mutex_init(&mutex);
    }

    QemuMutex mutex;
};

Lock registry_lock;

struct Guard {
    Guard()
    {
        qemu_mutex_lock_impl(&registry_lock.mutex, __FILE__, __LINE__);
    }

    Guard(const Guard &) = delete;

    ~Guard()
    {
        qemu_mutex_unlock_impl(&registry_lock.mutex, __FILE__, __LINE__);
    }
};

} /* namespace */

struct IOThreadHolds {
    void *owner;
    /* in the order of attachment; put takes a hold out in constant time */
    GQueue list;
};

struct IOThreadHolderState {
    char *name;
    void *info;
    void (*free_info)(void *info);

    /* IOThreadHolds to the latest Hold of this holder in it */
    GHashTable *latest;
};

namespace {

[[noreturn]] void die(const char *function, const char *name, const char *what)
{
    fprintf(stderr, "%s: %s %s\n", function, name, what);
    abort();
}

template <typename Func> void for_each(const IOThreadHolds *holds, Func func)
{
    for (GList *link = holds->list.head; link; link = link->next) {
        func(static_cast<const Hold *>(link->data));
    }
}

char *describe(const IOThreadHolds *holds, size_t max)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(nullptr, nullptr);
    g_autoptr(GPtrArray) names = g_ptr_array_new();
    GString *text = g_string_new("");

    for_each(holds, [&](const Hold *hold) {
        if (g_hash_table_add(seen, hold->holder) && names->len < max) {
            g_ptr_array_add(names, hold->holder->name);
        }
    });

    const guint more = g_hash_table_size(seen) - names->len;

    for (guint i = 0; i < names->len; i++) {
        if (i > 0) {
            const bool last = i + 1 == names->len && more == 0;

            g_string_append(text, last ? " and " : ", ");
        }
        g_string_append(text, static_cast<char *>(names->pdata[i]));
    }
    if (more > 0) {
        const bool none = names->len == 0;

        g_string_append_printf(text, none ? "%u" : " and %u more", more);
    }
    return g_string_free(text, FALSE);
}

} /* namespace */

IOThreadHolderState *iothread_holder_new(const char *name, void *info,
                                         void (*free_info)(void *)) noexcept
{
    IOThreadHolderState *holder = g_new(IOThreadHolderState, 1);

    *holder = {g_strdup(name), info, free_info,
               g_hash_table_new(nullptr, nullptr)};
    return holder;
}

void iothread_holder_free(IOThreadHolderState *holder) noexcept
{
    if (!holder) {
        return;
    }
    {
        Guard guard;

        if (g_hash_table_size(holder->latest) > 0) {
            die(__func__, holder->name, "still holds an IOThread");
        }
    }
    if (holder->free_info) {
        holder->free_info(holder->info);
    }
    g_hash_table_unref(holder->latest);
    g_free(holder->name);
    g_free(holder);
}

const char *iothread_holder_name(const IOThreadHolderState *holder) noexcept
{
    return holder->name;
}

void *iothread_holder_any(const IOThreadHolderState *holder) noexcept
{
    Guard guard;

    GHashTableIter iter;
    gpointer holds;

    g_hash_table_iter_init(&iter, holder->latest);
    return g_hash_table_iter_next(&iter, &holds, nullptr)
               ? static_cast<IOThreadHolds *>(holds)->owner
               : nullptr;
}

IOThreadHolds *iothread_holds_new(void *owner) noexcept
{
    IOThreadHolds *holds = g_new(IOThreadHolds, 1);

    *holds = {owner, G_QUEUE_INIT};
    return holds;
}

void iothread_holds_free(IOThreadHolds *holds) noexcept
{
    if (!holds) {
        return;
    }
    {
        Guard guard;

        if (!g_queue_is_empty(&holds->list)) {
            die(__func__, describe(holds, SIZE_MAX), "still in the list");
        }
    }
    g_free(holds);
}

void iothread_holds_get(IOThreadHolds *holds, IOThreadHolderState *holder,
                        bool has_vqs, const uint16_t *vqs,
                        size_t num_vqs) noexcept
{
    Hold *hold = new Hold(holder, has_vqs, vqs, num_vqs);
    Guard guard;

    g_queue_push_tail_link(&holds->list, &hold->link);
    hold->earlier =
        static_cast<Hold *>(g_hash_table_lookup(holder->latest, holds));
    g_hash_table_insert(holder->latest, holds, hold);
}

void iothread_holds_put(IOThreadHolds *holds,
                        IOThreadHolderState *holder) noexcept
{
    Guard guard;
    Hold *hold =
        static_cast<Hold *>(g_hash_table_lookup(holder->latest, holds));

    if (!hold) {
        die(__func__, holder->name, "puts an IOThread that it does not hold");
    }
    g_queue_unlink(&holds->list, &hold->link);
    if (hold->earlier) {
        g_hash_table_insert(holder->latest, holds, hold->earlier);
    } else {
        g_hash_table_remove(holder->latest, holds);
    }
    delete hold;
}

size_t iothread_holds_count(const IOThreadHolds *holds) noexcept
{
    Guard guard;

    return holds->list.length;
}

void iothread_holds_foreach(const IOThreadHolds *holds, IOThreadHoldFunc *func,
                            void *opaque) noexcept
{
    Guard guard;

    for_each(holds, [=](const Hold *hold) {
        func(hold->holder->info, hold->has_vqs, hold->vqs, hold->num_vqs,
             opaque);
    });
}

char *iothread_holds_describe(const IOThreadHolds *holds, size_t max) noexcept
{
    Guard guard;

    return describe(holds, max);
}

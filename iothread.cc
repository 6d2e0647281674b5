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
    /* see iothread_holder_set_minor() */
    bool minor;
    const char *sum;
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

/* What is found in a list: names to tell, and numbers of what is not named */
struct Description {
    explicit Description(size_t max) : max(max) {}

    Description(const Description &) = delete;

    ~Description()
    {
        g_ptr_array_unref(parts);
    }

    void add(const IOThreadHolderState *holder)
    {
        if (holder->sum) {
            sum = holder->sum;
            summed++;
        } else if (parts->len < max) {
            g_ptr_array_add(parts, g_strdup(holder->name));
        } else {
            more++;
        }
    }

    char *text()
    {
        if (more > 0) {
            const bool none = parts->len == 0;

            g_ptr_array_add(parts,
                            g_strdup_printf(none ? "%u" : "%u more", more));
        }
        if (summed > 0) {
            g_ptr_array_add(parts, g_strdup_printf("%u %s%s", summed, sum,
                                                   summed > 1 ? "s" : ""));
        }

        GString *joined = g_string_new("");

        for (guint i = 0; i < parts->len; i++) {
            const bool last = i + 1 == parts->len;

            g_string_append(joined, i == 0 ? "" : last ? " and " : ", ");
            g_string_append(joined, static_cast<char *>(parts->pdata[i]));
        }
        return g_string_free(joined, FALSE);
    }

    const size_t max;
    GPtrArray *const parts = g_ptr_array_new_with_free_func(g_free);
    guint more = 0;
    const char *sum = nullptr;
    guint summed = 0;
};

char *describe(const IOThreadHolds *holds, size_t max)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(nullptr, nullptr);
    Description description(max);

    for (int pass = 0; pass < 2; pass++) {
        for_each(holds, [&](const Hold *hold) {
            if (hold->holder->minor == (pass == 1) &&
                g_hash_table_add(seen, hold->holder)) {
                description.add(hold->holder);
            }
        });
    }
    return description.text();
}

} /* namespace */

IOThreadHolderState *iothread_holder_new(const char *name, void *info,
                                         void (*free_info)(void *)) noexcept
{
    IOThreadHolderState *holder = g_new(IOThreadHolderState, 1);

    *holder = {g_strdup(name), false,     nullptr,
               info,           free_info, g_hash_table_new(nullptr, nullptr)};
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

void iothread_holder_set_minor(IOThreadHolderState *holder,
                               const char *sum) noexcept
{
    holder->minor = true;
    holder->sum = sum;
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

bool iothread_holder_holds(const IOThreadHolderState *holder,
                           const IOThreadHolds *holds) noexcept
{
    Guard guard;

    return g_hash_table_contains(holder->latest, holds);
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

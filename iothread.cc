/*
 * Who holds which IOThread: the registry of holds
 *
 * The interface and its contract are in "system/iothread-holds.h".
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/iothread-holds.h"

#include <list>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

struct Hold {
    IOThreadHolderState *holder;
    bool has_vqs;
    std::vector<uint16_t> vqs;
};

/*
 * A list keeps the order of attachment, and its iterators stay valid while
 * others come and go: that is what makes put a matter of constant time.
 */
using HoldList = std::list<Hold>;

/*
 * One lock for all lists and holders: a hold belongs to one of each, and holds
 * are taken and given back at plug and unplug, not in the I/O path.
 */
std::mutex registry_lock;

using Guard = std::lock_guard<std::mutex>;

} /* namespace */

struct IOThreadHolds {
    void *const owner;
    HoldList list;
};

struct IOThreadHolderState {
    const std::string name;
    void *const info;
    void (*const free_info)(void *info);

    /* the holds in each list, in the order in which they were taken */
    std::unordered_map<IOThreadHolds *, std::vector<HoldList::iterator>> held;
};

namespace {

[[noreturn]] void die(const char *function, const char *name, const char *what)
{
    fprintf(stderr, "%s: %s %s\n", function, name, what);
    abort();
}

std::string describe(const IOThreadHolds *holds, size_t max)
{
    std::unordered_set<const IOThreadHolderState *> seen;
    std::vector<const std::string *> names;

    for (const Hold &hold : holds->list) {
        if (seen.insert(hold.holder).second && names.size() < max) {
            names.push_back(&hold.holder->name);
        }
    }

    const size_t more = seen.size() - names.size();
    std::string text;

    for (size_t i = 0; i < names.size(); i++) {
        if (i > 0) {
            text += i + 1 == names.size() && more == 0 ? " and " : ", ";
        }
        text += *names[i];
    }
    if (more > 0) {
        text += names.empty() ? "" : " and ";
        text += std::to_string(more);
        text += names.empty() ? "" : " more";
    }
    return text;
}

} /* namespace */

IOThreadHolderState *iothread_holder_new(const char *name, void *info,
                                         void (*free_info)(void *)) noexcept
{
    return new IOThreadHolderState{name, info, free_info, {}};
}

void iothread_holder_free(IOThreadHolderState *holder) noexcept
{
    if (!holder) {
        return;
    }
    {
        Guard guard(registry_lock);

        if (!holder->held.empty()) {
            die(__func__, holder->name.c_str(), "still holds an IOThread");
        }
    }
    if (holder->free_info) {
        holder->free_info(holder->info);
    }
    delete holder;
}

const char *iothread_holder_name(const IOThreadHolderState *holder) noexcept
{
    return holder->name.c_str();
}

void *iothread_holder_any(const IOThreadHolderState *holder) noexcept
{
    Guard guard(registry_lock);

    return holder->held.empty() ? nullptr : holder->held.begin()->first->owner;
}

IOThreadHolds *iothread_holds_new(void *owner) noexcept
{
    return new IOThreadHolds{owner, {}};
}

void iothread_holds_free(IOThreadHolds *holds) noexcept
{
    if (!holds) {
        return;
    }
    {
        Guard guard(registry_lock);

        if (!holds->list.empty()) {
            die(__func__, describe(holds, SIZE_MAX).c_str(),
                "still in the list");
        }
    }
    delete holds;
}

void iothread_holds_get(IOThreadHolds *holds, IOThreadHolderState *holder,
                        bool has_vqs, const uint16_t *vqs,
                        size_t num_vqs) noexcept
{
    Hold hold{holder, has_vqs, std::vector<uint16_t>(vqs, vqs + num_vqs)};
    Guard guard(registry_lock);

    holds->list.push_back(std::move(hold));
    holder->held[holds].push_back(std::prev(holds->list.end()));
}

void iothread_holds_put(IOThreadHolds *holds,
                        IOThreadHolderState *holder) noexcept
{
    Guard guard(registry_lock);
    auto held = holder->held.find(holds);

    if (held == holder->held.end()) {
        die(__func__, holder->name.c_str(),
            "puts an IOThread that it does not hold");
    }
    holds->list.erase(held->second.back());
    held->second.pop_back();
    if (held->second.empty()) {
        holder->held.erase(held);
    }
}

size_t iothread_holds_count(const IOThreadHolds *holds) noexcept
{
    Guard guard(registry_lock);

    return holds->list.size();
}

void iothread_holds_foreach(const IOThreadHolds *holds, IOThreadHoldFunc *func,
                            void *opaque) noexcept
{
    Guard guard(registry_lock);

    for (const Hold &hold : holds->list) {
        func(hold.holder->info, hold.has_vqs, hold.vqs.data(), hold.vqs.size(),
             opaque);
    }
}

char *iothread_holds_describe(const IOThreadHolds *holds, size_t max) noexcept
{
    std::string text;
    {
        Guard guard(registry_lock);

        text = describe(holds, max);
    }
    return g_strdup(text.c_str());
}

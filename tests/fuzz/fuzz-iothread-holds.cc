/*
 * libFuzzer: who holds which IOThread, against plain vectors
 *
 * The input is a sequence of operations, a few bytes each.  Operations that
 * would break the contract are left out: that they abort is shown by the unit
 * test.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/cxx-begin.h"
#include "qapi/qapi-types-iothread.h"
#include "qom/object.h"
#include "system/iothread.h"
#include "qemu/cxx-end.h"

#include <algorithm>
#include <string>
#include <vector>

using std::string;
using Vqs = std::vector<uint16_t>;

void iothread_tell_holders_changed(IOThread *iothread)
{
    /* There is no monitor */
}

namespace {

constexpr int IOTHREADS = 3, HOLDERS = 5;
constexpr size_t MAX_VQS = 7, MAX_SIZE = 512;

struct Hold {
    int holder;
    bool has_vqs;
    Vqs vqs;
};

/* The odd ones are nodes, the last of them without a name of the user's */
struct Holder {
    explicit Holder(int h)
        : node(h % 2), name(h == 3 ? "#3" : string(1, 'a' + h))
    {
        Object obj = {1, &name[0]};

        state = node ? iothread_holder_new_block_node(name.c_str())
                     : iothread_holder_new_qom_object(&obj, nullptr);
    }

    bool node;
    string name;
    IOThreadHolderState *state;
};

struct Thread {
    IOThread *iothread;
    std::vector<Hold> model;

    auto latest(int holder)
    {
        return std::find_if(
            model.rbegin(), model.rend(),
            [=](const Hold &hold) { return hold.holder == holder; });
    }
};

void get(Thread &thread, const Holder &holder, const Hold &hold)
{
    thread.model.push_back(hold);
    if (hold.has_vqs) {
        iothread_get_aio_context_vqs(thread.iothread, holder.state,
                                     hold.vqs.data(), hold.vqs.size());
    } else {
        iothread_get_aio_context(thread.iothread, holder.state);
    }
}

/* The latest hold of the holder goes, where there is one */
void put(Thread &thread, const Holder &holder, int h)
{
    auto latest = thread.latest(h);

    if (latest != thread.model.rend()) {
        iothread_put_aio_context(thread.iothread, holder.state);
        thread.model.erase(std::next(latest).base());
    }
}

void check(Thread &thread, const std::vector<Holder> &holders)
{
    g_autoptr(IOThreadHolderList) list =
        iothread_query_holders(thread.iothread);
    IOThreadHolderList *node = list;

    for (const Hold &hold : thread.model) {
        const Holder &holder = holders[hold.holder];
        const auto &u = node->value->u;
        Vqs vqs;

        g_assert_cmpstr(holder.name.c_str(), ==,
                        holder.node ? u.block_node.node_name
                                    : u.qom_object.qom_path);
        g_assert_cmpint(u.qom_object.has_vqs, ==, hold.has_vqs);
        for (uint16List *vq = u.qom_object.vqs; vq; vq = vq->next) {
            vqs.push_back(vq->value);
        }
        g_assert_true(vqs == hold.vqs);
        node = node->next;
    }
    g_assert_null(node);
    g_assert_cmpuint(OBJECT(thread.iothread)->ref, ==, 1 + thread.model.size());
}

/* As in "a, b and 3 more" */
void check_description(const Thread &thread, const std::vector<Holder> &holders,
                       size_t max)
{
    g_autofree char *text = iothread_describe_holders(thread.iothread, max);
    std::vector<string> parts;
    size_t more = 0, implicit = 0;
    string expected;

    for (bool nodes : {false, true}) {
        bool seen[HOLDERS] = {};

        for (const Hold &hold : thread.model) {
            const Holder &holder = holders[hold.holder];

            if (holder.node != nodes || seen[hold.holder]) {
                continue;
            }
            seen[hold.holder] = true;
            if (holder.name[0] == '#') {
                implicit++;
            } else if (parts.size() < max) {
                parts.push_back(nodes ? "block node '" + holder.name + "'"
                                      : holder.name);
            } else {
                more++;
            }
        }
    }
    if (more) {
        parts.push_back(std::to_string(more) + (parts.empty() ? "" : " more"));
    }
    if (implicit) {
        parts.push_back("1 implicit block node");
    }
    for (size_t i = 0; i < parts.size(); i++) {
        expected += i == 0 ? "" : i + 1 == parts.size() ? " and " : ", ";
        expected += parts[i];
    }
    g_assert_cmpstr(text, ==, expected.c_str());
}

} /* namespace */

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const TypeInfo info = {TYPE_IOTHREAD, TYPE_OBJECT, sizeof(IOThread)};
    std::vector<Thread> threads(IOTHREADS);
    std::vector<Holder> holders;

    if (size > MAX_SIZE) {
        return -1; /* not to be kept in the corpus */
    }
    type_register_static(&info);
    for (Thread &thread : threads) {
        thread.iothread = IOTHREAD(object_new(TYPE_IOTHREAD));
    }
    for (int h = 0; h < HOLDERS; h++) {
        holders.push_back(Holder(h));
    }

    for (size_t i = 0; i + 1 < size;) {
        const int h = data[i] % HOLDERS;
        Thread &thread = threads[data[i++] / HOLDERS % IOTHREADS];
        const uint8_t operation = data[i++];
        const size_t num_vqs =
            std::min(operation / 8 % (MAX_VQS + 1), size - i);

        switch (operation % 8) {
        case 0:
        case 1:
            get(thread, holders[h], {h, false, {}});
            break;
        case 2:
            if (!holders[h].node) {
                get(thread, holders[h],
                    {h, true, Vqs(data + i, data + i + num_vqs)});
            }
            i += num_vqs;
            break;
        case 3:
        case 4:
            put(thread, holders[h], h);
            break;
        case 5:
            check(thread, holders);
            check_description(thread, holders, operation / 8 % (HOLDERS + 2));
            break;
        case 6:
        case 7:
            iothread_holder_drop(holders[h].state);
            holders[h] = Holder(h);
            for (Thread &held : threads) {
                std::erase_if(held.model, [=](const Hold &hold) {
                    return hold.holder == h;
                });
            }
            break;
        }
        g_assert_cmpint(iothread_is_held(thread.iothread), ==,
                        !thread.model.empty());
        g_assert_cmpint(iothread_is_held_by(thread.iothread, holders[h].state),
                        ==, thread.latest(h) != thread.model.rend());
    }
    for (Thread &thread : threads) {
        check(thread, holders);
    }

    for (Holder &holder : holders) {
        iothread_holder_drop(holder.state);
    }
    for (Thread &thread : threads) {
        g_assert_cmpuint(OBJECT(thread.iothread)->ref, ==, 1);
        object_unref(OBJECT(thread.iothread));
    }
    return 0;
}

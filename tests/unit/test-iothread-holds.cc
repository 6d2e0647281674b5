/*
 * Unit tests of who holds which IOThread (iothread.cc)
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/cxx-begin.h"
#include "block/aio.h"
#include "qapi/error.h"
#include "qapi/qapi-types-iothread.h"
#include "qemu/module.h"
#include "qom/object.h"
#include "system/iothread.h"
#include "system/iothread-holder.h"
#ifdef CONFIG_DEBUG_MUTEX
#include "qemu/event_notifier.h"
#include "qemu/timer.h"
#endif
#include "qemu/cxx-end.h"

#include <string>
#include <thread>
#include <vector>

using std::string;

void iothread_tell_holders_changed(IOThread *iothread)
{
    /* There is no monitor */
}

namespace {

/* An IOThread without a thread */
struct TestIOThread {
    TestIOThread() = default;
    TestIOThread(const TestIOThread &) = delete;

    ~TestIOThread()
    {
        g_assert_false(iothread_is_held(iothread));
        g_assert_cmpuint(OBJECT(iothread)->ref, ==, 1);
        object_unref(OBJECT(iothread));
    }

    operator IOThread *() const
    {
        return iothread;
    }

    IOThread *const iothread = IOTHREAD(object_new(TYPE_IOTHREAD));
};

/* A job, unless its name is that of a node: n0, #0 */
struct TestHolder {
    explicit TestHolder(const string &name)
        : state(strchr("n#", name[0])
                    ? iothread_holder_new_block_node(name.c_str())
                    : iothread_holder_new_job(name.c_str()))
    {
    }

    explicit TestHolder(Object *obj)
        : state(iothread_holder_new_qom_object(obj, nullptr))
    {
    }

    TestHolder(const TestHolder &) = delete;

    ~TestHolder()
    {
        iothread_holder_drop(state);
    }

    void get(IOThread *iothread)
    {
        iothread_get_aio_context(iothread, state);
    }

    void get(IOThread *iothread, const std::vector<uint16_t> &vqs)
    {
        iothread_get_aio_context_vqs(iothread, state, vqs.data(), vqs.size());
    }

    void put(IOThread *iothread)
    {
        iothread_put_aio_context(iothread, state);
    }

    IOThreadHolderState *const state;
};

/* As in "a b /c:0,1" */
string holds(IOThread *iothread)
{
    g_autoptr(IOThreadHolderList) list = iothread_query_holders(iothread);
    string words;

    g_assert_cmpint(iothread_is_held(iothread), ==, list != nullptr);
    for (IOThreadHolderList *node = list; node; node = node->next) {
        const IOThreadHolder *told = node->value;

        words += words.empty() ? "" : " ";
        if (told->type == IO_THREAD_HOLDER_TYPE_JOB) {
            words += told->u.job.id;
        } else if (told->type == IO_THREAD_HOLDER_TYPE_BLOCK_NODE) {
            words += told->u.block_node.node_name;
        } else {
            words += told->u.qom_object.qom_path;
            words += told->u.qom_object.has_vqs ? ":" : "";
            for (uint16List *vq = told->u.qom_object.vqs; vq; vq = vq->next) {
                words += vq == told->u.qom_object.vqs ? "" : ",";
                words += std::to_string(vq->value);
            }
        }
    }
    return words;
}

string described(IOThread *iothread, size_t max)
{
    g_autofree char *text = iothread_describe_holders(iothread, max);

    return text;
}

void is(const string &actual, const string &expected)
{
    g_assert_cmpstr(actual.c_str(), ==, expected.c_str());
}

void test_order()
{
    TestIOThread io;
    TestHolder a("a"), b("b"), c("c");

    is(holds(io), "");
    b.get(io);
    a.get(io);
    c.get(io);
    is(holds(io), "b a c");

    /* from the middle, and to the end again */
    a.put(io);
    is(holds(io), "b c");
    a.get(io);
    is(holds(io), "b c a");

    b.put(io);
    a.put(io);
    c.put(io);
    is(holds(io), "");
}

/* Two IOThreads, one of them held twice by one holder */
void test_many_to_many()
{
    TestIOThread io0, io1;
    TestHolder a("a"), b("b");

    a.get(io0);
    a.get(io1);
    b.get(io1);
    a.get(io1);
    is(holds(io0), "a");
    is(holds(io1), "a b a");
    g_assert_cmpuint(OBJECT(io1.iothread)->ref, ==, 4);

    /* the latest one of the two goes first */
    a.put(io1);
    is(holds(io1), "a b");
    a.put(io0);
    g_assert_false(iothread_is_held_by(io0, a.state));
    g_assert_true(iothread_is_held_by(io1, a.state));
    a.put(io1);
    g_assert_false(iothread_is_held_by(io1, a.state));
    is(holds(io1), "b");
}

/* The end of a holder gives back all that it holds */
void test_drop()
{
    TestIOThread io0, io1;
    TestHolder b("b");

    {
        TestHolder a("a");

        a.get(io0);
        b.get(io1);
        a.get(io1);
        a.get(io1);
    }
    is(holds(io0), "");
    is(holds(io1), "b");
    iothread_holder_drop(nullptr);
}

void test_follow()
{
    TestIOThread io0, io1;
    TestHolder a("a");
    AioContext *ctx0 = aio_context_new(&error_abort);
    AioContext *ctx1 = aio_context_new(&error_abort);

    io0.iothread->ctx = ctx0;
    io1.iothread->ctx = ctx1;
    iothread_started(io0);
    g_assert_true(iothread_is_ctx(ctx0));
    g_assert_false(iothread_is_ctx(ctx1));
    g_assert_false(iothread_is_ctx(nullptr));

    iothread_holder_follow(a.state, ctx0);
    iothread_holder_follow(a.state, ctx0);
    is(holds(io0), "a");
    iothread_holder_follow(a.state, ctx1);
    is(holds(io0), "");
    iothread_started(io1);
    iothread_holder_follow(a.state, ctx1);
    is(holds(io1), "a");
    iothread_holder_follow(a.state, ctx0);
    is(holds(io1), "");
    is(holds(io0), "a");
    iothread_holder_follow(a.state, nullptr);
    is(holds(io0), "");

    iothread_stopped(io0);
    iothread_stopped(io1);
    g_assert_false(iothread_is_ctx(ctx0));
    io0.iothread->ctx = io1.iothread->ctx = nullptr;
    aio_context_unref(ctx0);
    aio_context_unref(ctx1);
}

void test_vqs()
{
    TestIOThread io;
    Object *obj = object_new(TYPE_IOTHREAD);
    std::vector<uint16_t> vqs = {3, 0, UINT16_MAX};

    object_property_add_child(object_get_root(), "a", obj);
    {
        TestHolder a(obj);

        a.get(io, vqs);
        vqs[0] = 7;
        a.get(io, {});
        a.get(io);
        is(holds(io), "/a:3,0,65535 /a: /a");
        a.put(io);
        is(holds(io), "/a:3,0,65535 /a:");
    }
    object_unparent(obj);
    object_unref(obj);
}

void test_describe()
{
    TestIOThread io;
    TestHolder a("a"), b("b"), c("c");

    is(described(io, 8), "");
    a.get(io);
    is(described(io, 8), "job 'a'");
    is(described(io, 0), "1");
    b.get(io);
    a.get(io);
    is(described(io, 8), "job 'a' and job 'b'");
    c.get(io);
    is(described(io, 8), "job 'a', job 'b' and job 'c'");
    is(described(io, 3), "job 'a', job 'b' and job 'c'");
    is(described(io, 2), "job 'a', job 'b' and 1 more");
    is(described(io, 1), "job 'a' and 2 more");
}

/* Named after all others, or only counted */
void test_nodes()
{
    TestIOThread io;
    TestHolder n0("n0"), h1("#1"), a("a"), h2("#2"), n1("n1"), b("b");

    n0.get(io);
    h1.get(io);
    is(described(io, 8), "block node 'n0' and 1 implicit block node");
    for (TestHolder *holder : {&a, &h2, &n1, &b}) {
        holder->get(io);
    }
    is(holds(io), "n0 #1 a #2 n1 b");
    is(described(io, 8), "job 'a', job 'b', block node 'n0', block node 'n1' "
                         "and 2 implicit block nodes");
    is(described(io, 3), "job 'a', job 'b', block node 'n0', 1 more "
                         "and 2 implicit block nodes");
    is(described(io, 0), "4 and 2 implicit block nodes");
}

/* Random gets and puts against strings that say what is right */
void test_random()
{
    TestIOThread io[3];
    TestHolder holders[] = {TestHolder("a"), TestHolder("b"), TestHolder("c"),
                            TestHolder("d"), TestHolder("e")};
    string model[3];

    for (int step = 0; step < 20000; step++) {
        const int i = g_test_rand_int_range(0, 3);
        const int h = g_test_rand_int_range(0, 5);
        const size_t latest = model[i].rfind('a' + h);
        string expected;

        /* a little more puts than gets keep the lists short */
        if (latest != string::npos && g_test_rand_int_range(0, 100) < 55) {
            holders[h].put(io[i]);
            model[i].erase(latest, 1);
        } else {
            holders[h].get(io[i]);
            model[i] += 'a' + h;
        }
        for (char name : model[i]) {
            expected += expected.empty() ? "" : " ";
            expected += name;
        }
        is(holds(io[i]), expected);
    }
}

void test_threads()
{
    TestIOThread io;
    std::vector<std::thread> threads;

    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&] {
            TestHolder holder("t");

            for (int round = 0; round < 2000; round++) {
                holder.get(io);
                described(io, 2);
                g_assert_true(iothread_is_held(io));
                holder.put(io);
            }
        });
    }
    for (std::thread &thread : threads) {
        thread.join();
    }
}

/* Broken contracts: each must abort, and say who broke it */

void put_without_get()
{
    TestIOThread io;

    TestHolder("disk7").put(io);
}

void put_once_too_often()
{
    TestIOThread io;
    TestHolder holder("disk7");

    holder.get(io);
    holder.put(io);
    holder.put(io);
}

void put_elsewhere()
{
    TestIOThread io0, io1;
    TestHolder holder("disk7");

    holder.get(io0);
    holder.put(io1);
}

#ifdef CONFIG_DEBUG_MUTEX
void do_nothing(void *opaque) {}

/* Nothing of the last holder may be left, as the IOThread may go then */
template <bool timer_left, bool handler_left> void put_in_use()
{
    TestIOThread io;
    TestHolder holder("disk7");
    QEMUTimer timer;
    EventNotifier notifier;

    io.iothread->ctx = aio_context_new(&error_abort);
    holder.get(io);
    aio_timer_init(io.iothread->ctx, &timer, QEMU_CLOCK_REALTIME, SCALE_MS,
                   do_nothing, nullptr);
    timer_mod(&timer, INT64_MAX / SCALE_MS);
    event_notifier_init(&notifier, 0);
    aio_set_fd_handler(io.iothread->ctx, event_notifier_get_fd(&notifier),
                       do_nothing, nullptr, nullptr, nullptr, nullptr);
    if (!handler_left) {
        aio_set_fd_handler(io.iothread->ctx, event_notifier_get_fd(&notifier),
                           nullptr, nullptr, nullptr, nullptr, nullptr);
    }
    if (!timer_left) {
        timer_del(&timer);
    }
    holder.put(io);

    event_notifier_cleanup(&notifier);
    aio_context_unref(io.iothread->ctx);
    io.iothread->ctx = nullptr;
}
#endif

template <void (*broken)()> void test_abort()
{
    if (g_test_subprocess()) {
        broken();
        return;
    }
    g_test_trap_subprocess(nullptr, 0, GTestSubprocessFlags(0));
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*disk7*");
}

} /* namespace */

int main(int argc, char **argv)
{
    const TypeInfo iothread_info = {
        .name = TYPE_IOTHREAD,
        .parent = TYPE_OBJECT,
        .instance_size = sizeof(IOThread),
    };

    g_test_init(&argc, &argv, nullptr);
    module_call_init(MODULE_INIT_QOM);
    type_register_static(&iothread_info);

    g_test_add_func("/iothread-holds/order", test_order);
    g_test_add_func("/iothread-holds/many-to-many", test_many_to_many);
    g_test_add_func("/iothread-holds/drop", test_drop);
    g_test_add_func("/iothread-holds/follow", test_follow);
    g_test_add_func("/iothread-holds/vqs", test_vqs);
    g_test_add_func("/iothread-holds/describe", test_describe);
    g_test_add_func("/iothread-holds/nodes", test_nodes);
    g_test_add_func("/iothread-holds/random", test_random);
    g_test_add_func("/iothread-holds/threads", test_threads);
    g_test_add_func("/iothread-holds/abort/put-without-get",
                    test_abort<put_without_get>);
    g_test_add_func("/iothread-holds/abort/put-once-too-often",
                    test_abort<put_once_too_often>);
    g_test_add_func("/iothread-holds/abort/put-elsewhere",
                    test_abort<put_elsewhere>);
#ifdef CONFIG_DEBUG_MUTEX
    g_test_add_func("/iothread-holds/put-unused", put_in_use<false, false>);
    g_test_add_func("/iothread-holds/abort/put-with-handler",
                    test_abort<put_in_use<false, true>>);
    g_test_add_func("/iothread-holds/abort/put-with-timer",
                    test_abort<put_in_use<true, false>>);
#endif
    return g_test_run();
}

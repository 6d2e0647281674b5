/*
 * Benchmark of the holders of an IOThread (iothread.cc)
 *
 * Shows what one more hold costs on an IOThread that has many already, and
 * what it costs to tell of all of them.  The first must not depend on their
 * number.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/qapi-types-iothread.h"
#include "qemu/module.h"
#include "system/iothread.h"

enum { PAIRS = 200000 };

void iothread_tell_holders_changed(IOThread *iothread)
{
    /* There is no monitor */
}

static void bench_holds(gconstpointer opaque)
{
    const size_t num_holds = GPOINTER_TO_SIZE(opaque);
    IOThread *iothread = IOTHREAD(object_new(TYPE_IOTHREAD));
    IOThreadHolderState *another = iothread_holder_new_job("another");
    g_autofree IOThreadHolderState **holders =
        g_new(IOThreadHolderState *, num_holds);
    IOThreadHolderList *list, *node;
    size_t seen = 0;
    double pair, query;

    for (size_t i = 0; i < num_holds; i++) {
        holders[i] = iothread_holder_new_job("holder");
        iothread_get_aio_context(iothread, holders[i]);
    }

    g_test_timer_start();
    for (size_t i = 0; i < PAIRS; i++) {
        iothread_get_aio_context(iothread, another);
        iothread_put_aio_context(iothread, another);
    }
    pair = g_test_timer_elapsed();

    g_test_timer_start();
    list = iothread_query_holders(iothread);
    query = g_test_timer_elapsed();
    for (node = list; node; node = node->next) {
        seen++;
    }
    qapi_free_IOThreadHolderList(list);
    g_assert_cmpuint(seen, ==, num_holds);

    g_test_message("%zu holds: %.0f ns for a get and a put, %.3f ms to tell",
                   num_holds, pair * 1e9 / PAIRS, query * 1e3);

    for (size_t i = 0; i < num_holds; i++) {
        iothread_holder_drop(holders[i]);
    }
    iothread_holder_drop(another);
    object_unref(OBJECT(iothread));
}

int main(int argc, char **argv)
{
    static const TypeInfo iothread_info = {
        .name = TYPE_IOTHREAD,
        .parent = TYPE_OBJECT,
        .instance_size = sizeof(IOThread),
    };

    g_test_init(&argc, &argv, NULL);
    module_call_init(MODULE_INIT_QOM);
    type_register_static(&iothread_info);
    g_test_add_data_func("/iothread-holds/bench/10",
                         GSIZE_TO_POINTER(10), bench_holds);
    g_test_add_data_func("/iothread-holds/bench/1000",
                         GSIZE_TO_POINTER(1000), bench_holds);
    g_test_add_data_func("/iothread-holds/bench/100000",
                         GSIZE_TO_POINTER(100000), bench_holds);
    return g_test_run();
}

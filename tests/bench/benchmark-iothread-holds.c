/*
 * Benchmark of the registry of IOThread holds (iothread.cc)
 *
 * Shows what one more hold costs on an IOThread that has many already, and
 * what it costs to walk all of them.  The first must not depend on their
 * number.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/iothread-holds.h"

enum { PAIRS = 200000 };

static void count_hold(const void *info, bool has_vqs, const uint16_t *vqs,
                       size_t num_vqs, void *opaque)
{
    (*(size_t *)opaque)++;
}

static void bench_holds(gconstpointer opaque)
{
    const size_t num_holds = GPOINTER_TO_SIZE(opaque);
    IOThreadHolds *holds = iothread_holds_new(NULL);
    IOThreadHolderState *another = iothread_holder_new("another", NULL, NULL);
    g_autofree IOThreadHolderState **holders =
        g_new(IOThreadHolderState *, num_holds);
    size_t seen = 0;
    double pair, walk;

    for (size_t i = 0; i < num_holds; i++) {
        holders[i] = iothread_holder_new("holder", NULL, NULL);
        iothread_holds_get(holds, holders[i], false, NULL, 0);
    }

    g_test_timer_start();
    for (size_t i = 0; i < PAIRS; i++) {
        iothread_holds_get(holds, another, false, NULL, 0);
        iothread_holds_put(holds, another);
    }
    pair = g_test_timer_elapsed();

    g_test_timer_start();
    iothread_holds_foreach(holds, count_hold, &seen);
    walk = g_test_timer_elapsed();
    g_assert_cmpuint(seen, ==, num_holds);

    g_test_message("%zu holds: %.0f ns for a get and a put, %.3f ms to walk",
                   num_holds, pair * 1e9 / PAIRS, walk * 1e3);

    for (size_t i = 0; i < num_holds; i++) {
        iothread_holds_put(holds, holders[i]);
        iothread_holder_free(holders[i]);
    }
    iothread_holder_free(another);
    iothread_holds_free(holds);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_data_func("/iothread-holds/bench/10",
                         GSIZE_TO_POINTER(10), bench_holds);
    g_test_add_data_func("/iothread-holds/bench/1000",
                         GSIZE_TO_POINTER(1000), bench_holds);
    g_test_add_data_func("/iothread-holds/bench/100000",
                         GSIZE_TO_POINTER(100000), bench_holds);
    return g_test_run();
}

/*
 * Benchmark of bare aio_poll()
 *
 * Handlers do nothing here, so this shows what the event loop itself costs,
 * and what counting its load adds.  To see the latter compare with a build of
 * this file in a tree without the counters, running the two in turn.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"

enum {
    ROUNDS = 501,
    ROUND_MS = 2,
    BATCH = 100,
    WARM_UP = 1000,
};

static AioContext *ctx;
static QEMUBH *bh;
static uint64_t calls;

static void count_bh(void *opaque)
{
    calls++;
}

static void count_event(EventNotifier *e)
{
    /* still set, so that it is ready at once the next time */
    calls++;
}

static void clear_event(EventNotifier *e)
{
    /* what is ready in the kernel would end polling, so only poll_true() is */
    event_notifier_test_and_clear(e);
    calls++;
}

static bool poll_true(void *opaque)
{
    return true;
}

static void poll_nonblocking(void)
{
    qemu_bh_schedule(bh);
    aio_poll(ctx, false);
}

static void poll_blocking(void)
{
    aio_poll(ctx, true);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void measure(const char *what, void (*once)(void))
{
    double ns[ROUNDS];

    for (int i = 0; i < WARM_UP; i++) {
        once();
    }
    for (int i = 0; i < ROUNDS; i++) {
        int64_t start = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        int64_t end = start;
        uint64_t before = calls;
        uint64_t turns = 0;

        while (end < start + ROUND_MS * SCALE_MS) {
            for (int j = 0; j < BATCH; j++) {
                once();
            }
            turns += BATCH;
            end = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
        }
        g_assert_cmpuint(calls - before, >=, turns);
        ns[i] = (double)(end - start) / turns;
    }
    qsort(ns, ROUNDS, sizeof(ns[0]), compare);
    g_test_message("%s: %.2f ns at best, %.2f ns in the median", what, ns[0],
                   ns[ROUNDS / 2]);
}

static void bench_nonblocking(void)
{
    bh = aio_bh_new(ctx, count_bh, NULL);
    measure("non-blocking, with a bottom half", poll_nonblocking);
    qemu_bh_delete(bh);
    aio_poll(ctx, false);
}

static void bench_polling(void)
{
    EventNotifier e;

    event_notifier_init(&e, true);
    aio_set_event_notifier(ctx, &e, clear_event, poll_true, count_event);
    aio_context_set_poll_params(ctx, 1000000, 0, 0, &error_abort);
    /* polling begins when there has been an event, and nothing is pending */
    for (int i = 0; i < 10; i++) {
        aio_poll(ctx, false);
    }
    measure("blocking, polling finds work", poll_blocking);
    aio_context_set_poll_params(ctx, 0, 0, 0, &error_abort);
    aio_set_event_notifier(ctx, &e, NULL, NULL, NULL);
    aio_poll(ctx, false);
    event_notifier_cleanup(&e);
}

static void bench_waiting(void)
{
    EventNotifier e;

    event_notifier_init(&e, true);
    aio_set_event_notifier(ctx, &e, count_event, NULL, NULL);
    measure("blocking without polling, event ready", poll_blocking);
    aio_set_event_notifier(ctx, &e, NULL, NULL, NULL);
    aio_poll(ctx, false);
    event_notifier_cleanup(&e);
}

int main(int argc, char **argv)
{
    qemu_init_main_loop(&error_abort);
    ctx = qemu_get_aio_context();

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/aio-load/bench/nonblocking", bench_nonblocking);
    g_test_add_func("/aio-load/bench/polling", bench_polling);
    g_test_add_func("/aio-load/bench/waiting", bench_waiting);
    return g_test_run();
}

/*
 * Counting how busy event loops are: the hot path
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * All of this is called by the writer of the counters only, see
 * "qemu/aio-load.h".  Times are those of aio_load_clock().
 */

#ifndef UTIL_AIO_LOAD_COUNT_H
#define UTIL_AIO_LOAD_COUNT_H

#include "block/aio.h"
#include "qemu/timer.h"

/* The clock of QEMU_CLOCK_REALTIME, so that its readings can be reused */
static inline int64_t aio_load_clock(void)
{
    return get_clock();
}

static inline void aio_load_add_ns(int64_t *counter, int64_t ns)
{
    qatomic_set_i64(counter, *counter + ns);
}

static inline void aio_load_add(uint64_t *counter, uint64_t n)
{
    qatomic_set_u64(counter, *counter + n);
}

static inline void aio_load_iteration(AioContext *ctx)
{
    aio_load_add(&ctx->load->iterations, 1);
}

/* @n handlers or callbacks have been run */
static inline void aio_load_events(AioContext *ctx, unsigned n)
{
    if (n) {
        aio_load_add(&ctx->load->events, n);
    }
}

/*
 * False while a vCPU thread, which has the BQL, runs the main loop's context
 * and the main thread waits: then the main thread's time is counted already.
 */
static inline bool aio_load_is_busy(AioLoad *load)
{
    return load->busy_ns < 0;
}

/*
 * The thread begins to wait.
 * @now: a reading of the clock from this iteration, or 0 if there is none
 *
 * Returns: true if aio_load_wait_end() has to be called.
 */
static inline bool aio_load_wait_begin(AioContext *ctx, int64_t now)
{
    AioLoad *load = ctx->load;

    if (!aio_load_is_busy(load)) {
        return false;
    }
    /* It may have polled since that reading */
    now = now ? MAX(now, load->poll_end_ns) : aio_load_clock();
    aio_load_add_ns(&load->busy_ns, now);
    aio_load_add_ns(&load->blocked_ns, -now);
    return true;
}

/* The wait ended at @now, or, if that is 0, just now */
static inline void aio_load_wait_end(AioContext *ctx, int64_t now)
{
    AioLoad *load = ctx->load;

    now = now ?: aio_load_clock();
    aio_load_add_ns(&load->blocked_ns, now);
    aio_load_add_ns(&load->busy_ns, -now);
    load->waited_iteration = load->iterations;
}

/*
 * There was an aio_notify().  It has not ended a wait if it came from a handler
 * of this thread, as it can with glib.
 */
static inline void aio_load_notified(AioContext *ctx)
{
    AioLoad *load = ctx->load;

    if (load->waited_iteration == load->iterations) {
        aio_load_add(&load->wakeups, 1);
    }
}

/* A polling phase begins.  The main loop's context does not poll. */
static inline void aio_load_poll_begin(AioContext *ctx, int64_t now)
{
    aio_load_add_ns(&ctx->load->busy_ns, now);
}

/* The polling phase that began @elapsed ago ended at @now */
static inline void aio_load_poll_end(AioContext *ctx, int64_t now,
                                     int64_t elapsed, bool hit)
{
    AioLoad *load = ctx->load;

    if (hit) {
        aio_load_add_ns(&load->poll_hit_ns, elapsed);
    } else {
        aio_load_add_ns(&load->poll_miss_ns, elapsed);
        load->poll_end_ns = now;
    }
    aio_load_add_ns(&load->busy_ns, -now);
}

#endif /* UTIL_AIO_LOAD_COUNT_H */

/*
 * How busy event loops are
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each AioContext counts what its home thread does.  The thread itself counts,
 * without locks or atomic read-modify-write operations; any thread may read.
 * docs/devel/event-loop-load.rst says what the figures mean.
 */

#ifndef QEMU_AIO_LOAD_H
#define QEMU_AIO_LOAD_H

#include "qemu/atomic.h"

#ifndef _WIN32
#include <time.h>
#endif

/*
 * The figures of one reader, see aio_load_read().  Times are in nanoseconds.
 */
typedef struct AioLoadFigures {
    uint64_t busy_ns;       /* all that is not in the three others */
    uint64_t poll_hit_ns;   /* polling phases that found something to do */
    uint64_t poll_miss_ns;  /* polling phases that found nothing */
    uint64_t blocked_ns;    /* waiting in the kernel */
    uint64_t iterations;    /* turns of the event loop */
    uint64_t events;        /* handlers and callbacks that were run */
    uint64_t wakeups;       /* waits that aio_notify() ended */
} AioLoadFigures;

/*
 * The counters.  Only the functions in util/aio-load*.[ch] access them.
 *
 * busy_ns and blocked_ns are stopwatches in one word, so that readers cannot
 * see half of a change.  One that stands holds its total.  One that runs holds
 * its total minus the time at which it was started; that is negative, because
 * the clock counts from a time before the thread existed.
 *
 * There is one writer: the home thread.  In the case of the main loop this is
 * whoever has the BQL, because vCPU threads may call aio_poll() then.
 */
typedef struct AioLoad {
    aligned_int64_t busy_ns;
    aligned_int64_t blocked_ns;
    aligned_int64_t poll_hit_ns;
    aligned_int64_t poll_miss_ns;
    aligned_uint64_t iterations;
    aligned_uint64_t events;
    aligned_uint64_t wakeups;

    /* Used by the writer only: when the last polling phase ended */
    int64_t poll_end_ns;
    /* Used by the writer only: the iteration that was the last to wait */
    uint64_t waited_iteration;

#ifndef _WIN32
    /* The home thread's CPU time, if has_cpu_clock.  Constant once started. */
    bool has_cpu_clock;
    clockid_t cpu_clock;
#endif

    /* What query-stats has reported last.  Protected by the BQL. */
    AioLoadFigures reported;
} AioLoad;

/*
 * aio_load_start: begin to count, as busy
 *
 * Called once, in the thread that will run @ctx, before it does.
 */
void aio_load_start(AioContext *ctx);

/*
 * aio_load_share: let @ctx count into the counters of @other
 *
 * For two contexts that one thread runs.  Called before @ctx is run, by the
 * thread that runs both.  @other must live as long as @ctx.
 */
void aio_load_share(AioContext *ctx, AioContext *other);

/*
 * aio_load_watch_g_main_context: count what @context waits
 *
 * Called before @context is run.  It may only be run by threads that have a
 * current AioContext: theirs are the counters.  Replaces the poll function of
 * @context.
 */
void aio_load_watch_g_main_context(GMainContext *context);

/*
 * aio_load_event: count a handler that glib calls
 *
 * For sources that belong to no AioContext.  It is counted by the current
 * AioContext of the thread, if there is one.
 */
void aio_load_event(void);

/*
 * aio_load_read: bring the figures of a reader up to date
 * @figures: all zero, or the result of the last call for the same @ctx
 *
 * Called by any thread that has a reference to @ctx.  Takes no lock; callers
 * that share @figures have to.
 *
 * No figure ever goes back from one call to the next.  A polling phase is
 * counted when it has ended.  Busy and blocked time are counted as they pass.
 */
void aio_load_read(AioContext *ctx, AioLoadFigures *figures);

/*
 * aio_load_cpu_time: the CPU time of the thread that runs @ctx
 * @ns: set to nanoseconds since the thread began, unless false is returned
 *
 * Called by any thread, while the home thread of @ctx exists.
 *
 * Returns: false if the host cannot tell.
 */
bool aio_load_cpu_time(AioContext *ctx, int64_t *ns);

#endif /* QEMU_AIO_LOAD_H */

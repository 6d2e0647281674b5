/*
 * How busy event loops are
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "aio-load-count.h"

/* POSIX: -1, or not defined, if there is no pthread_getcpuclockid() */
#if !defined(_WIN32) && \
    defined(_POSIX_THREAD_CPUTIME) && _POSIX_THREAD_CPUTIME >= 0
#define HAVE_THREAD_CPU_CLOCK
#endif

void aio_load_start(AioContext *ctx)
{
    AioLoad *load = ctx->load;

#ifdef HAVE_THREAD_CPU_CLOCK
    bool found = !pthread_getcpuclockid(pthread_self(), &load->cpu_clock);

    /* Readers may come before anything else has told them of this thread */
    qatomic_store_release(&load->has_cpu_clock, found);
#endif
    qatomic_set_i64(&load->busy_ns, -aio_load_clock());
}

void aio_load_share(AioContext *ctx, AioContext *other)
{
    ctx->load = other->load;
}

static gint aio_load_g_poll(GPollFD *fds, guint nfds, gint timeout)
{
    AioContext *ctx = qemu_get_current_aio_context();
    bool waited;
    gint ret;

    aio_load_iteration(ctx);
    waited = timeout && aio_load_wait_begin(ctx, 0);
    ret = g_poll(fds, nfds, timeout);
    if (waited) {
        aio_load_wait_end(ctx, 0);
    }
    return ret;
}

void aio_load_watch_g_main_context(GMainContext *context)
{
    g_main_context_set_poll_func(context, aio_load_g_poll);
}

void aio_load_event(void)
{
    AioContext *ctx = qemu_get_current_aio_context();

    if (ctx) {
        aio_load_events(ctx, 1);
    }
}

/* What a stopwatch shows at @now; it may have been started after that */
static int64_t aio_load_show(const int64_t *stopwatch, int64_t now)
{
    int64_t value = qatomic_read_i64(stopwatch);

    return value < 0 ? value + now : value;
}

/*
 * Whatever a reader sees while the writer is between two words, or between
 * reading the clock and writing a word, it does not see time run backwards.
 */
static void aio_load_raise(uint64_t *figure, int64_t value)
{
    if (value > 0 && *figure < value) {
        *figure = value;
    }
}

void aio_load_read(AioContext *ctx, AioLoadFigures *figures)
{
    const AioLoad *load = ctx->load;
    /* Before the words: time that is not over is not reported */
    int64_t now = aio_load_clock();

    aio_load_raise(&figures->busy_ns, aio_load_show(&load->busy_ns, now));
    aio_load_raise(&figures->blocked_ns,
                   aio_load_show(&load->blocked_ns, now));
    aio_load_raise(&figures->poll_hit_ns, qatomic_read_i64(&load->poll_hit_ns));
    aio_load_raise(&figures->poll_miss_ns,
                   qatomic_read_i64(&load->poll_miss_ns));
    figures->iterations = qatomic_read_u64(&load->iterations);
    figures->events = qatomic_read_u64(&load->events);
    figures->wakeups = qatomic_read_u64(&load->wakeups);
}

bool aio_load_cpu_time(AioContext *ctx, int64_t *ns)
{
#ifdef HAVE_THREAD_CPU_CLOCK
    const AioLoad *load = ctx->load;
    struct timespec ts;

    if (qatomic_load_acquire(&load->has_cpu_clock) &&
        clock_gettime(load->cpu_clock, &ts) == 0) {
        *ns = ts.tv_sec * NANOSECONDS_PER_SECOND + ts.tv_nsec;
        return true;
    }
#endif
    return false;
}

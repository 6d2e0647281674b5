/*
 * Test the counters of how busy event loops are
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Each way of waiting is tested: aio_poll() with io_uring, epoll and ppoll, a
 * GMainContext, and the main loop.  An AioContext picks io_uring where the
 * host has it.  The others are brought about with the functions that QEMU
 * itself uses to fall back: fdmon_io_uring_destroy() leaves ppoll, and from 64
 * file descriptors on that becomes epoll.
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "io/channel-file.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/rcu.h"
#include "util/aio-posix.h"

typedef enum {
    WAIT_IO_URING,
    WAIT_EPOLL,
    WAIT_PPOLL,
    WAIT_GLIB,
} Way;

static const char *const way_names[] = {
    [WAIT_IO_URING] = "io_uring",
    [WAIT_EPOLL] = "epoll",
    [WAIT_PPOLL] = "ppoll",
    [WAIT_GLIB] = "glib",
};

enum {
    EPOLL_FDS = 70,
    INTERVAL_MS = 200,
    ATTEMPTS = 10,
};

/* How long to wait for what has to happen */
#define PATIENCE_NS (10 * NANOSECONDS_PER_SECOND)

/* A thread that runs an AioContext */
typedef struct {
    Way way;
    int64_t start_ns;           /* when it was made */
    AioContext *ctx;
    GMainContext *g_context;
    QemuThread thread;
    QemuSemaphore ready;
    bool stop;
    EventNotifier fds[EPOLL_FDS];
    int handled;
} Loop;

static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static void spin(int64_t ns)
{
    int64_t end = now_ns() + ns;

    while (now_ns() < end) {
        /* this is work */
    }
}

static void count_handled(EventNotifier *e)
{
    Loop *loop = container_of(e, Loop, fds[0]);

    event_notifier_test_and_clear(e);
    qatomic_inc(&loop->handled);
}

static void never_handled(EventNotifier *e)
{
    g_assert_not_reached();
}

static void *loop_run(void *opaque)
{
    Loop *loop = opaque;

    rcu_register_thread();
    qemu_set_current_aio_context(loop->ctx);
    if (loop->g_context) {
        aio_load_watch_g_main_context(loop->g_context);
    }
    qemu_sem_post(&loop->ready);

    while (!qatomic_read(&loop->stop)) {
        if (loop->g_context) {
            g_main_context_iteration(loop->g_context, true);
        } else {
            aio_poll(loop->ctx, true);
        }
    }
    rcu_unregister_thread();
    return NULL;
}

static bool is_blocked(Loop *loop)
{
    AioLoadFigures a = {}, b = {};

    aio_load_read(loop->ctx, &a);
    g_usleep(200);
    aio_load_read(loop->ctx, &b);
    return a.busy_ns == b.busy_ns && b.blocked_ns > a.blocked_ns;
}

static void wait_blocked(Loop *loop)
{
    int64_t end = now_ns() + PATIENCE_NS;

    while (!is_blocked(loop)) {
        /* it has something to do */
        g_assert_cmpint(now_ns(), <, end);
    }
}

/* Returns: NULL if the host does not have this way of waiting */
static Loop *loop_new(Way way)
{
    Loop *loop = g_new0(Loop, 1);
    int num_fds = way == WAIT_EPOLL ? EPOLL_FDS : 1;

    loop->way = way;
    loop->start_ns = now_ns();
    loop->ctx = aio_context_new(&error_abort);
    if (way == WAIT_IO_URING && loop->ctx->fdmon_ops == &fdmon_poll_ops) {
        g_test_skip("no io_uring");
        aio_context_unref(loop->ctx);
        g_free(loop);
        return NULL;
    }
#ifdef CONFIG_LINUX_IO_URING
    if ((way == WAIT_EPOLL || way == WAIT_PPOLL) &&
        loop->ctx->fdmon_ops != &fdmon_poll_ops) {
        fdmon_io_uring_destroy(loop->ctx);
        fdmon_epoll_setup(loop->ctx);
    }
#endif
    if (way == WAIT_GLIB) {
        GSource *source = aio_get_g_source(loop->ctx);

        loop->g_context = g_main_context_new();
        g_source_attach(source, loop->g_context);
        g_source_unref(source);
    }
    for (int i = 0; i < num_fds; i++) {
        event_notifier_init(&loop->fds[i], false);
        aio_set_event_notifier(loop->ctx, &loop->fds[i],
                               i ? never_handled : count_handled, NULL, NULL);
    }
    qemu_sem_init(&loop->ready, 0);
    qemu_thread_create(&loop->thread, "loop", loop_run, loop,
                       QEMU_THREAD_JOINABLE);
    qemu_sem_wait(&loop->ready);
    wait_blocked(loop);

    if (way == WAIT_EPOLL &&
        (loop->ctx->epollfd == -1 || loop->ctx->fdmon_ops == &fdmon_poll_ops)) {
        g_test_skip("no epoll");
        /* the caller does nothing, so leave the thread alone */
        return NULL;
    }
    if (way == WAIT_PPOLL) {
        g_assert(loop->ctx->fdmon_ops == &fdmon_poll_ops);
    }
    return loop;
}

static void loop_free(Loop *loop)
{
    int num_fds = loop->way == WAIT_EPOLL ? EPOLL_FDS : 1;

    qatomic_set(&loop->stop, true);
    aio_notify(loop->ctx);
    if (loop->g_context) {
        g_main_context_wakeup(loop->g_context);
    }
    qemu_thread_join(&loop->thread);
    for (int i = 0; i < num_fds; i++) {
        aio_set_event_notifier(loop->ctx, &loop->fds[i], NULL, NULL, NULL);
        event_notifier_cleanup(&loop->fds[i]);
    }
    if (loop->g_context) {
        g_source_destroy(&loop->ctx->source);
    }
    aio_context_unref(loop->ctx);
    if (loop->g_context) {
        g_main_context_unref(loop->g_context);
    }
    qemu_sem_destroy(&loop->ready);
    g_free(loop);
}

/* What happened in an interval, times in percent of its length, and in ns */
typedef struct {
    double busy, hit, miss, blocked;
    uint64_t busy_ns, blocked_ns;
    uint64_t iterations, events, wakeups;
} Shares;

/*
 * The sum of all times is checked here.  A host that stops one of the threads
 * in between makes a single interval worthless, but not all.
 */
static Shares measure(AioContext *ctx, void (*work)(void *), void *opaque)
{
    double sum = 0;

    for (int i = 0; i < ATTEMPTS; i++) {
        AioLoadFigures a = {}, b;
        int64_t start, end;
        Shares shares;

        aio_load_read(ctx, &a);
        start = now_ns();
        if (work) {
            work(opaque);
        } else {
            g_usleep(INTERVAL_MS * 1000);
        }
        b = a;
        aio_load_read(ctx, &b);
        end = now_ns();

        shares = (Shares) {
            .busy = 100.0 * (b.busy_ns - a.busy_ns) / (end - start),
            .hit = 100.0 * (b.poll_hit_ns - a.poll_hit_ns) / (end - start),
            .miss = 100.0 * (b.poll_miss_ns - a.poll_miss_ns) / (end - start),
            .blocked = 100.0 * (b.blocked_ns - a.blocked_ns) / (end - start),
            .busy_ns = b.busy_ns - a.busy_ns,
            .blocked_ns = b.blocked_ns - a.blocked_ns,
            .iterations = b.iterations - a.iterations,
            .events = b.events - a.events,
            .wakeups = b.wakeups - a.wakeups,
        };
        sum = shares.busy + shares.hit + shares.miss + shares.blocked;
        if (sum >= 98 && sum <= 102) {
            g_test_message("busy %.2f, hit %.2f, miss %.2f, blocked %.2f %%; "
                           "%" PRIu64 " iterations, %" PRIu64 " events, "
                           "%" PRIu64 " wakeups", shares.busy, shares.hit,
                           shares.miss, shares.blocked, shares.iterations,
                           shares.events, shares.wakeups);
            return shares;
        }
        g_test_message("the times add up to %.2f %%", sum);
    }
    g_error("the times never add up, last to %.2f %%", sum);
}

/*
 * A thread that the host does not let run stays what it was, so on a loaded
 * host the times are not always what they should be.  Once they have to.
 */
static void measure_until(AioContext *ctx, void (*work)(void *), void *opaque,
                          bool (*good)(const Shares *shares))
{
    for (int i = 0; i < ATTEMPTS; i++) {
        Shares shares = measure(ctx, work, opaque);

        if (good(&shares)) {
            return;
        }
    }
    g_error("the times are never good");
}

static void test_idle(Loop *loop)
{
    Shares shares;

    shares = measure(loop->ctx, NULL, NULL);
    g_assert_cmpfloat(shares.blocked, >=, 95);
    g_assert_cmpfloat(shares.hit + shares.miss, ==, 0);
    g_assert_cmpuint(shares.iterations, ==, 0);
    g_assert_cmpuint(shares.events, ==, 0);
    g_assert_cmpuint(shares.wakeups, ==, 0);
}

typedef struct {
    QEMUBH *bh;
    bool started;
    bool stop;
} Spinner;

static void wait_started(Spinner *spinner)
{
    while (!qatomic_read(&spinner->started)) {
        g_usleep(100);
    }
}

static void spin_bh(void *opaque)
{
    Spinner *spinner = opaque;

    qatomic_set(&spinner->started, true);
    spin(SCALE_MS);
    if (!qatomic_read(&spinner->stop)) {
        qemu_bh_schedule(spinner->bh);
    }
}

/* Bottom halves that never leave the thread alone: it does not wait */
static void test_busy(Loop *loop)
{
    Spinner spinner = {};
    Shares shares;

    spinner.bh = aio_bh_new(loop->ctx, spin_bh, &spinner);
    qemu_bh_schedule(spinner.bh);
    wait_started(&spinner);
    shares = measure(loop->ctx, NULL, NULL);
    g_assert_cmpfloat(shares.busy, >=, 95);
    g_assert_cmpuint(shares.events, >, 1);
    g_assert_cmpuint(shares.events, <=, INTERVAL_MS * ATTEMPTS);
    g_assert_cmpuint(shares.iterations, >=, shares.events - 1);
    /* the first one may have been scheduled while the thread waited */
    g_assert_cmpuint(shares.wakeups, <=, 1);

    qatomic_set(&spinner.stop, true);
    wait_blocked(loop);
    qemu_bh_delete(spinner.bh);
}

static void spin_long(void *opaque)
{
    Spinner *spinner = opaque;

    qatomic_set(&spinner->started, true);
    while (!qatomic_read(&spinner->stop)) {
        /* this is work */
    }
}

/* One handler that does not return: the time counts as it passes */
static void test_busy_under_way(Loop *loop)
{
    Spinner spinner = {};
    Shares shares;

    aio_bh_schedule_oneshot(loop->ctx, spin_long, &spinner);
    wait_started(&spinner);
    shares = measure(loop->ctx, NULL, NULL);
    g_assert_cmpfloat(shares.busy, >=, 98);
    g_assert_cmpuint(shares.iterations, ==, 0);
    qatomic_set(&spinner.stop, true);
    wait_blocked(loop);
}

enum { KICKS = 20 };

static void kick(void *opaque)
{
    int64_t end = now_ns() + PATIENCE_NS;
    Loop *loop = opaque;

    for (int i = 0; i < KICKS; i++) {
        AioLoadFigures before = {}, after = {};

        wait_blocked(loop);
        aio_load_read(loop->ctx, &before);
        aio_notify(loop->ctx);
        do {
            g_assert_cmpint(now_ns(), <, end);
            g_usleep(50);
            aio_load_read(loop->ctx, &after);
        } while (after.iterations == before.iterations);
    }
    wait_blocked(loop);
}

static void test_kicks(Loop *loop)
{
    Shares shares;

    shares = measure(loop->ctx, kick, loop);
    g_assert_cmpuint(shares.wakeups, ==, KICKS);
    g_assert_cmpuint(shares.events, ==, 0);
    g_assert_cmpuint(shares.iterations, >=, KICKS);
    g_assert_cmpfloat(shares.blocked, >=, 50);
}

static void set_fds(void *opaque)
{
    Loop *loop = opaque;

    for (int i = 0; i < KICKS; i++) {
        int handled = qatomic_read(&loop->handled);

        wait_blocked(loop);
        event_notifier_set(&loop->fds[0]);
        while (qatomic_read(&loop->handled) == handled) {
            g_usleep(50);
        }
    }
    wait_blocked(loop);
}

static void test_handlers(Loop *loop)
{
    Shares shares;

    shares = measure(loop->ctx, set_fds, loop);
    g_assert_cmpuint(shares.events, ==, KICKS);
    g_assert_cmpuint(shares.wakeups, ==, 0);
}

typedef struct {
    QEMUTimer *timer;
    int left;
    bool done;
} Timers;

static void timer_cb(void *opaque)
{
    Timers *timers = opaque;

    if (--timers->left) {
        timer_mod(timers->timer, now_ns() + 2 * SCALE_MS);
    } else {
        qatomic_store_release(&timers->done, true);
    }
}

static void run_timers(void *opaque)
{
    Timers *timers = opaque;

    timers->left = KICKS;
    timers->done = false;
    /* from now on they are the loop's */
    timer_mod(timers->timer, now_ns() + 2 * SCALE_MS);
    while (!qatomic_load_acquire(&timers->done)) {
        g_usleep(100);
    }
}

static void test_timers(Loop *loop)
{
    Timers timers;
    Shares shares;

    timers.timer = aio_timer_new(loop->ctx, QEMU_CLOCK_REALTIME, SCALE_NS,
                                 timer_cb, &timers);
    shares = measure(loop->ctx, run_timers, &timers);
    /* the last one may not have been counted yet */
    g_assert_cmpuint(shares.events, >=, KICKS - 1);
    g_assert_cmpuint(shares.events, <=, KICKS);
    g_assert_cmpfloat(shares.blocked, >=, 50);
    wait_blocked(loop);
    timer_free(timers.timer);
}

#define NESTED_WAIT_NS (120 * SCALE_MS)
#define NESTED_SPIN_NS (40 * SCALE_MS)

typedef struct {
    AioContext *ctx;
    QEMUTimer *timer;
    bool fired;
    bool done;
} Nested;

static void nested_timer_cb(void *opaque)
{
    ((Nested *)opaque)->fired = true;
}

/* Run the event loop inside a handler until a timer fires */
static void nested_bh(void *opaque)
{
    Nested *nested = opaque;

    spin(NESTED_SPIN_NS);
    nested->fired = false;
    timer_mod(nested->timer, now_ns() + NESTED_WAIT_NS);
    while (!nested->fired) {
        aio_poll(nested->ctx, true);
    }
    spin(NESTED_SPIN_NS);
    qatomic_store_release(&nested->done, true);
}

static void run_nested(void *opaque)
{
    Nested *nested = opaque;

    nested->done = false;
    aio_bh_schedule_oneshot(nested->ctx, nested_bh, nested);
    while (!qatomic_load_acquire(&nested->done)) {
        g_usleep(100);
    }
}

static bool nested_good(const Shares *shares)
{
    return shares->busy_ns >= 2 * NESTED_SPIN_NS &&
           shares->blocked_ns >= NESTED_WAIT_NS / 100 * 98;
}

static void test_nested(Loop *loop)
{
    Nested nested;

    nested.ctx = loop->ctx;
    nested.timer = aio_timer_new(loop->ctx, QEMU_CLOCK_REALTIME, SCALE_NS,
                                 nested_timer_cb, &nested);
    measure_until(loop->ctx, run_nested, &nested, nested_good);
    wait_blocked(loop);
    timer_free(nested.timer);
}

/* --- Polling --- */

typedef struct {
    AioContext *ctx;
    QEMUTimer *timer;
    EventNotifier fd;
    int64_t poll_ns;
    int64_t timer_ns;
    bool work;
    bool ready;
} Poller;

static bool poll_work(void *opaque)
{
    Poller *poller = container_of((EventNotifier *)opaque, Poller, fd);

    return qatomic_read(&poller->work);
}

static void poll_ready(EventNotifier *e)
{
    Poller *poller = container_of(e, Poller, fd);

    qatomic_set(&poller->work, false);
}

static void poller_timer_cb(void *opaque)
{
    Poller *poller = opaque;

    timer_mod(poller->timer, now_ns() + poller->timer_ns);
}

/* What the event loop would come to when events follow each other fast */
static void poller_bh(void *opaque)
{
    Poller *poller = opaque;
    AioHandler *node;

    QLIST_FOREACH(node, &poller->ctx->aio_handlers, node) {
        node->poll.ns = poller->poll_ns;
        if (node->io_poll && !QLIST_IS_INSERTED(node, node_poll)) {
            QLIST_INSERT_HEAD(&poller->ctx->poll_aio_handlers, node,
                              node_poll);
        }
    }
    if (poller->timer_ns) {
        poller_timer_cb(poller);
    }
    qatomic_set(&poller->ready, true);
}

static void poller_start(Poller *poller, Loop *loop)
{
    poller->ctx = loop->ctx;
    /* the one handler that cannot be polled would prevent polling */
    aio_set_event_notifier(loop->ctx, &loop->fds[0], NULL, NULL, NULL);
    event_notifier_init(&poller->fd, false);
    aio_set_event_notifier(loop->ctx, &poller->fd, never_handled, poll_work,
                           poll_ready);
    poller->timer = aio_timer_new(loop->ctx, QEMU_CLOCK_REALTIME, SCALE_NS,
                                  poller_timer_cb, poller);
    /* shrink by the factor 1: do not */
    aio_context_set_poll_params(loop->ctx, poller->poll_ns, 0, 1,
                                &error_abort);
    aio_bh_schedule_oneshot(loop->ctx, poller_bh, poller);
    while (!qatomic_read(&poller->ready)) {
        g_usleep(100);
    }
}

static void poller_end_bh(void *opaque)
{
    Poller *poller = opaque;

    timer_del(poller->timer);
    qatomic_set(&poller->ready, false);
}

static void poller_end(Poller *poller, Loop *loop)
{
    aio_bh_schedule_oneshot(loop->ctx, poller_end_bh, poller);
    while (qatomic_read(&poller->ready)) {
        g_usleep(100);
    }
    aio_context_set_poll_params(loop->ctx, 0, 0, 0, &error_abort);
    wait_blocked(loop);
    aio_set_event_notifier(loop->ctx, &poller->fd, NULL, NULL, NULL);
    aio_set_event_notifier(loop->ctx, &loop->fds[0], count_handled, NULL,
                           NULL);
    timer_free(poller->timer);
    event_notifier_cleanup(&poller->fd);
}

static bool miss_good(const Shares *shares)
{
    return shares->miss >= 90 && shares->hit <= 1 && shares->busy <= 5 &&
           shares->wakeups == 0;
}

/* Polls from one timer to the next */
static void test_poll_miss(Loop *loop)
{
    Poller poller = { .poll_ns = 100 * SCALE_MS, .timer_ns = SCALE_MS };

    poller_start(&poller, loop);
    measure_until(loop->ctx, NULL, NULL, miss_good);
    poller_end(&poller, loop);
}

static bool miss_and_wait_good(const Shares *shares)
{
    return shares->miss >= 25 && shares->blocked >= 25 && shares->hit <= 1 &&
           shares->busy <= 5;
}

/* Polls for a while, then waits for the timer */
static void test_poll_miss_and_wait(Loop *loop)
{
    Poller poller = { .poll_ns = 2 * SCALE_MS, .timer_ns = 4 * SCALE_MS };

    poller_start(&poller, loop);
    measure_until(loop->ctx, NULL, NULL, miss_and_wait_good);
    poller_end(&poller, loop);
}

static void give_work(void *opaque)
{
    Poller *poller = opaque;
    int64_t end = now_ns() + INTERVAL_MS * SCALE_MS;

    while (now_ns() < end) {
        qatomic_set(&poller->work, true);
        g_usleep(500);
    }
}

static void notify_bh(void *opaque)
{
    aio_notify(opaque);
}

/*
 * After an event in the kernel, such as a kick that ends a wait, io_uring has
 * something to submit, for which it waits once more although polling is
 * enabled.  It does not wait if the thread has kicked itself meanwhile.
 */
static void wait_polling(Loop *loop)
{
    int64_t end = now_ns() + PATIENCE_NS;
    AioLoadFigures a, b;

    do {
        g_assert_cmpint(now_ns(), <, end);
        aio_bh_schedule_oneshot(loop->ctx, notify_bh, loop->ctx);
        g_usleep(1000);
        a = (AioLoadFigures) {};
        aio_load_read(loop->ctx, &a);
        g_usleep(1000);
        b = (AioLoadFigures) {};
        aio_load_read(loop->ctx, &b);
    } while (a.busy_ns != b.busy_ns || a.blocked_ns != b.blocked_ns);
}

static bool hit_good(const Shares *shares)
{
    return shares->hit >= 90 && shares->miss <= 1 && shares->busy <= 5 &&
           shares->events > 1 && shares->events <= INTERVAL_MS * 2 + 1;
}

/* Polls from one piece of work to the next */
static void test_poll_hit(Loop *loop)
{
    Poller poller = { .poll_ns = 10 * NANOSECONDS_PER_SECOND };

    poller_start(&poller, loop);
    wait_polling(loop);
    measure_until(loop->ctx, give_work, &poller, hit_good);
    poller_end(&poller, loop);
}

/* --- Readers --- */

typedef struct {
    AioContext *ctx;
    QemuThread thread;
    int64_t start;
    uint64_t reads;
    bool stop;
} Reader;

/*
 * Every reading begins from nothing, so that aio_load_read() cannot correct
 * it.  Figures go back by the few instructions between two words, or longer if
 * the host stops a thread there, but no word is ever seen half changed, and a
 * stopwatch is not read as a total.
 */
static void *reader_run(void *opaque)
{
    const uint64_t slack = 100 * SCALE_MS;
    Reader *reader = opaque;
    AioLoadFigures kept = {}, before = {};

    while (!qatomic_read(&reader->stop)) {
        AioLoadFigures fresh = {};
        AioLoadFigures last = kept;
        uint64_t wall, sum;

        aio_load_read(reader->ctx, &fresh);
        wall = now_ns() - reader->start;
        sum = fresh.busy_ns + fresh.poll_hit_ns + fresh.poll_miss_ns +
              fresh.blocked_ns;
        g_assert_cmpuint(sum, <=, wall + slack);
        g_assert_cmpuint(fresh.busy_ns + slack, >=, before.busy_ns);
        g_assert_cmpuint(fresh.blocked_ns + slack, >=, before.blocked_ns);
        g_assert_cmpuint(fresh.poll_hit_ns, >=, before.poll_hit_ns);
        g_assert_cmpuint(fresh.poll_miss_ns, >=, before.poll_miss_ns);
        before = fresh;

        aio_load_read(reader->ctx, &kept);
        g_assert_cmpuint(kept.busy_ns, >=, last.busy_ns);
        g_assert_cmpuint(kept.blocked_ns, >=, last.blocked_ns);
        g_assert_cmpuint(kept.poll_hit_ns, >=, last.poll_hit_ns);
        g_assert_cmpuint(kept.poll_miss_ns, >=, last.poll_miss_ns);
        g_assert_cmpuint(kept.iterations, >=, last.iterations);
        g_assert_cmpuint(kept.events, >=, last.events);
        g_assert_cmpuint(kept.wakeups, >=, last.wakeups);
        reader->reads++;
    }
    return NULL;
}

static void nop_bh(void *opaque)
{
}

static void test_readers(Loop *loop)
{
    Reader reader = { .start = loop->start_ns };
    Poller poller = { .poll_ns = 100 * SCALE_US, .timer_ns = 150 * SCALE_US };
    int64_t end;

    poller_start(&poller, loop);
    reader.ctx = loop->ctx;
    qemu_thread_create(&reader.thread, "reader", reader_run, &reader,
                       QEMU_THREAD_JOINABLE);

    end = now_ns() + 2 * INTERVAL_MS * SCALE_MS;
    for (int i = 0; now_ns() < end; i++) {
        aio_context_set_poll_params(loop->ctx, i % 3 * 50 * SCALE_US, 0,
                                    i % 2, &error_abort);
        aio_bh_schedule_oneshot(loop->ctx, nop_bh, NULL);
        qatomic_set(&poller.work, true);
        g_usleep(i % 7 * 50);
    }
    qatomic_set(&reader.stop, true);
    qemu_thread_join(&reader.thread);
    g_test_message("%" PRIu64 " readings", reader.reads);
    g_assert_cmpuint(reader.reads, >, 100);

    poller_end(&poller, loop);
}

/* Contexts begin at zero, and know their thread's CPU time */
static void test_start(void)
{
    AioContext *ctx = aio_context_new(&error_abort);
    AioLoadFigures figures = {};
    int64_t cpu_ns = -1;
    Loop *loop;

    /* no thread runs it yet */
    aio_load_read(ctx, &figures);
    g_assert_cmpuint(figures.busy_ns, ==, 0);
    g_assert_cmpuint(figures.blocked_ns, ==, 0);
    g_assert_cmpuint(figures.iterations, ==, 0);
    g_assert_false(aio_load_cpu_time(ctx, &cpu_ns));
    aio_context_unref(ctx);

    loop = loop_new(WAIT_PPOLL);
    if (aio_load_cpu_time(loop->ctx, &cpu_ns)) {
        Spinner spinner = {};
        int64_t later_ns;

        g_assert_cmpint(cpu_ns, >=, 0);
        g_assert_cmpint(cpu_ns, <, NANOSECONDS_PER_SECOND);
        aio_bh_schedule_oneshot(loop->ctx, spin_long, &spinner);
        do {
            g_usleep(1000);
            g_assert_true(aio_load_cpu_time(loop->ctx, &later_ns));
        } while (later_ns < cpu_ns + 50 * SCALE_MS);
        qatomic_set(&spinner.stop, true);
        wait_blocked(loop);
    } else {
        g_test_message("the host does not tell CPU time");
    }
    loop_free(loop);
}

/* --- The main loop --- */

typedef struct {
    QEMUTimer *timer;
    int64_t spin_ns;
    int left;
} MainWork;

static void main_timer_cb(void *opaque)
{
    MainWork *work = opaque;

    spin(work->spin_ns);
    if (--work->left) {
        timer_mod(work->timer, now_ns() + 2 * SCALE_MS);
    }
}

static void run_main(void *opaque)
{
    MainWork *work = opaque;

    work->left = KICKS;
    timer_mod(work->timer, now_ns() + 2 * SCALE_MS);
    while (work->left) {
        main_loop_wait(false);
    }
}

static void main_fd_read(void *opaque)
{
    char byte;

    g_assert_cmpint(read(GPOINTER_TO_INT(opaque), &byte, 1), ==, 1);
}

static gboolean main_channel_read(QIOChannel *ioc, GIOCondition condition,
                                  gpointer data)
{
    char byte;

    g_assert_cmpint(qio_channel_read(ioc, &byte, 1, &error_abort), ==, 1);
    return G_SOURCE_CONTINUE;
}

static void test_main_loop(void)
{
    AioContext *ctx = qemu_get_aio_context();
    MainWork work = { };
    AioLoadFigures a = {}, b;
    Shares shares;
    QIOChannel *ioc;
    guint watch;
    int fds[2];

    work.timer = timer_new_ns(QEMU_CLOCK_REALTIME, main_timer_cb, &work);
    shares = measure(ctx, run_main, &work);
    g_assert_cmpfloat(shares.blocked, >=, 60);
    g_assert_cmpuint(shares.blocked_ns, >=, KICKS * 2 * SCALE_MS / 100 * 98);
    g_assert_cmpuint(shares.events, >=, KICKS);
    g_assert_cmpuint(shares.iterations, >=, KICKS);

    work.spin_ns = 8 * SCALE_MS;
    shares = measure(ctx, run_main, &work);
    g_assert_cmpuint(shares.busy_ns, >=, KICKS * work.spin_ns);
    g_assert_cmpuint(shares.blocked_ns, >=, KICKS * SCALE_MS);
    timer_free(work.timer);

    /* File descriptor handlers are in another AioContext of this thread */
    g_assert(g_unix_open_pipe(fds, O_CLOEXEC, NULL));
    qemu_set_fd_handler(fds[0], main_fd_read, NULL, GINT_TO_POINTER(fds[0]));
    main_loop_wait(true);
    aio_load_read(ctx, &a);
    b = a;
    for (int i = 0; i < KICKS; i++) {
        g_assert_cmpint(write(fds[1], "", 1), ==, 1);
        main_loop_wait(true);
    }
    aio_load_read(ctx, &b);
    g_assert_cmpuint(b.events - a.events, ==, KICKS);
    g_assert_cmpuint(b.iterations - a.iterations, ==, KICKS);
    /* it never had to wait */
    g_assert_cmpuint(b.blocked_ns, ==, a.blocked_ns);
    qemu_set_fd_handler(fds[0], NULL, NULL, NULL);

    /* Those of channels, such as character devices have, are in none */
    ioc = QIO_CHANNEL(qio_channel_file_new_fd(fds[0]));
    watch = qio_channel_add_watch(ioc, G_IO_IN, main_channel_read, NULL, NULL);
    a = b;
    for (int i = 0; i < KICKS; i++) {
        g_assert_cmpint(write(fds[1], "", 1), ==, 1);
        main_loop_wait(true);
    }
    aio_load_read(ctx, &b);
    g_assert_cmpuint(b.events - a.events, ==, KICKS);
    g_source_remove(watch);
    object_unref(OBJECT(ioc));
    close(fds[1]);
}

typedef struct {
    Way way;
    void (*func)(Loop *loop);
} Case;

static void run_case(const void *opaque)
{
    const Case *c = opaque;
    Loop *loop = loop_new(c->way);

    if (loop) {
        c->func(loop);
        loop_free(loop);
    }
}

static void add(const char *name, unsigned ways, void (*func)(Loop *loop))
{
    for (int way = 0; way < ARRAY_SIZE(way_names); way++) {
        if (ways & (1 << way)) {
            g_autofree char *path = g_strdup_printf("/aio-load/%s/%s", name,
                                                    way_names[way]);
            Case *c = g_new(Case, 1);

            *c = (Case) { .way = way, .func = func };
            g_test_add_data_func_full(path, c, run_case, g_free);
        }
    }
}

int main(int argc, char **argv)
{
    const unsigned all = (1 << ARRAY_SIZE(way_names)) - 1;
    const unsigned polls = (1 << WAIT_IO_URING) | (1 << WAIT_PPOLL);

    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/aio-load/start", test_start);
    add("idle", all, test_idle);
    add("busy", all, test_busy);
    add("busy-under-way", all, test_busy_under_way);
    add("kicks", all, test_kicks);
    add("handlers", all, test_handlers);
    add("timers", all, test_timers);
    add("nested", all, test_nested);
    add("poll-miss", polls, test_poll_miss);
    add("poll-miss-and-wait", polls, test_poll_miss_and_wait);
    add("poll-hit", polls, test_poll_hit);
    add("readers", polls, test_readers);
    g_test_add_func("/aio-load/main-loop", test_main_loop);
    return g_test_run();
}

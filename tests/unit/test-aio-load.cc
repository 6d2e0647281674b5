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

#include "qemu/cxx-begin.h"
#include "aio-load-util.h"
#include "block/aio.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/rcu.h"
#include "qemu/cxx-end.h"

#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace {

enum Way { IO_URING, EPOLL, PPOLL, GLIB };

const std::vector<Way> all_ways = {IO_URING, EPOLL, PPOLL, GLIB};
const char *const way_names[] = {"io_uring", "epoll", "ppoll", "glib"};

constexpr int EPOLL_FDS = 70, INTERVAL_MS = 200, ATTEMPTS = 10, KICKS = 20;

/* How long to wait for what has to happen */
constexpr int64_t PATIENCE_NS = 10 * NANOSECONDS_PER_SECOND;

using Work = std::function<void()>;

int64_t now_ns()
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

/* This is work */
void spin_while(const std::function<bool()> &condition)
{
    while (condition()) {
        continue;
    }
}

void spin(int64_t ns)
{
    const int64_t end = now_ns() + ns;

    spin_while([=] { return now_ns() < end; });
}

void wait_until(const std::function<bool()> &condition, int us = 50)
{
    const int64_t end = now_ns() + PATIENCE_NS;

    while (!condition()) {
        g_assert_cmpint(now_ns(), <, end);
        g_usleep(us);
    }
}

/* aio_load_read() goes on from what was read before */
AioLoadFigures read_load(AioContext *ctx, AioLoadFigures before = {})
{
    aio_load_read(ctx, &before);
    return before;
}

/* A bottom half of an event loop */
struct BottomHalf {
    BottomHalf(AioContext *ctx, const Work &work)
        : work(work), bh(aio_bh_new(ctx, run, this))
    {
    }

    BottomHalf(const BottomHalf &) = delete;

    ~BottomHalf()
    {
        qemu_bh_delete(bh);
    }

    void schedule()
    {
        qemu_bh_schedule(bh);
    }

    static void run(void *opaque)
    {
        static_cast<BottomHalf *>(opaque)->work();
    }

    const Work work;
    QEMUBH *const bh;
};

void once(void *opaque)
{
    Work *work = static_cast<Work *>(opaque);

    (*work)();
    delete work;
}

/* Start @work in the thread of @ctx */
void start_in(AioContext *ctx, const Work &work)
{
    aio_bh_schedule_oneshot(ctx, once, new Work(work));
}

/* Let the thread of @ctx do @work */
void do_in(AioContext *ctx, const Work &work)
{
    std::atomic<bool> done = false;

    start_in(ctx, [&] {
        work();
        done = true;
    });
    wait_until([&] { return bool(done); }, 100);
}

/* A timer of an event loop; NULL is the main loop */
struct Timer {
    Timer(AioContext *ctx, const Work &work)
        : work(work),
          timer(timer_new_full(ctx ? &ctx->tlg : nullptr, QEMU_CLOCK_REALTIME,
                               SCALE_NS, 0, run, this))
    {
    }

    Timer(const Timer &) = delete;

    ~Timer()
    {
        timer_free(timer);
    }

    void start(int64_t ns)
    {
        timer_mod(timer, now_ns() + ns);
    }

    static void run(void *opaque)
    {
        static_cast<Timer *>(opaque)->work();
    }

    const Work work;
    QEMUTimer *const timer;
};

/* The test's own handlers; there is one loop at a time */
std::atomic<int> handled;

void count_handled(EventNotifier *e)
{
    event_notifier_test_and_clear(e);
    handled++;
}

void never_handled(EventNotifier *e)
{
    g_assert_not_reached();
}

/* A thread that runs an AioContext */
class Loop {
public:
    explicit Loop(Way way) : fds(way == EPOLL ? EPOLL_FDS : 1)
    {
        if (way == IO_URING && fdmon_is_poll(ctx)) {
            missing = "no io_uring";
        }
        if (way == EPOLL || way == PPOLL) {
            fdmon_forget_io_uring(ctx);
        }
        if (way == GLIB) {
            GSource *source = aio_get_g_source(ctx);

            g_context = g_main_context_new();
            g_source_attach(source, g_context);
            g_source_unref(source);
        }
        for (EventNotifier &fd : fds) {
            event_notifier_init(&fd, false);
            aio_set_event_notifier(
                ctx, &fd, &fd == &fds[0] ? count_handled : never_handled,
                nullptr, nullptr);
        }
        thread = std::thread([this] { run(); });
        wait_blocked();

        if (way == EPOLL && (ctx->epollfd == -1 || fdmon_is_poll(ctx))) {
            missing = "no epoll";
        }
        g_assert_true(way != PPOLL || fdmon_is_poll(ctx));
    }

    Loop(const Loop &) = delete;

    ~Loop()
    {
        stop = true;
        aio_notify(ctx);
        if (g_context) {
            g_main_context_wakeup(g_context);
        }
        thread.join();
        for (EventNotifier &fd : fds) {
            aio_set_event_notifier(ctx, &fd, nullptr, nullptr, nullptr);
            event_notifier_cleanup(&fd);
        }
        if (g_context) {
            g_source_destroy(&ctx->source);
        }
        aio_context_unref(ctx);
        if (g_context) {
            g_main_context_unref(g_context);
        }
    }

    void wait_blocked()
    {
        wait_until(
            [this] {
                const AioLoadFigures a = read_load(ctx);

                g_usleep(200);

                const AioLoadFigures b = read_load(ctx);

                return a.busy_ns == b.busy_ns && b.blocked_ns > a.blocked_ns;
            },
            0);
    }

    const int64_t start_ns = now_ns(); /* when it was made */
    AioContext *const ctx = aio_context_new(&error_abort);
    std::vector<EventNotifier> fds;
    /* The way of waiting, where the host does not have it */
    const char *missing = nullptr;

private:
    void run()
    {
        rcu_register_thread();
        qemu_set_current_aio_context(ctx);
        if (g_context) {
            aio_load_watch_g_main_context(g_context);
        }
        while (!stop) {
            if (g_context) {
                g_main_context_iteration(g_context, true);
            } else {
                aio_poll(ctx, true);
            }
        }
        rcu_unregister_thread();
    }

    GMainContext *g_context = nullptr;
    std::atomic<bool> stop = false;
    std::thread thread;
};

/* What happened in an interval, and times in percent of its length */
struct Shares : AioLoadFigures {
    Shares(const AioLoadFigures &a, const AioLoadFigures &b, double ns)
        : AioLoadFigures{b.busy_ns - a.busy_ns,
                         b.poll_hit_ns - a.poll_hit_ns,
                         b.poll_miss_ns - a.poll_miss_ns,
                         b.blocked_ns - a.blocked_ns,
                         b.iterations - a.iterations,
                         b.events - a.events,
                         b.wakeups - a.wakeups},
          busy(100 * busy_ns / ns), hit(100 * poll_hit_ns / ns),
          miss(100 * poll_miss_ns / ns), blocked(100 * blocked_ns / ns)
    {
    }

    double busy, hit, miss, blocked;
};

void sleep_interval()
{
    g_usleep(INTERVAL_MS * 1000);
}

/*
 * The sum of all times is checked here.  A host that stops one of the threads
 * in between makes a single interval worthless, but not all.
 */
Shares measure(AioContext *ctx, const Work &work = sleep_interval)
{
    double sum = 0;

    for (int i = 0; i < ATTEMPTS; i++) {
        const AioLoadFigures before = read_load(ctx);
        const int64_t start = now_ns();

        work();

        const AioLoadFigures after = read_load(ctx, before);
        const Shares shares(before, after, now_ns() - start);

        sum = shares.busy + shares.hit + shares.miss + shares.blocked;
        if (sum >= 98 && sum <= 102) {
            g_test_message("busy %.2f, hit %.2f, miss %.2f, blocked %.2f %%; "
                           "%" PRIu64 " iterations, %" PRIu64 " events, "
                           "%" PRIu64 " wakeups",
                           shares.busy, shares.hit, shares.miss, shares.blocked,
                           shares.iterations, shares.events, shares.wakeups);
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
template <typename Good>
void measure_until(Good good, AioContext *ctx,
                   const Work &work = sleep_interval)
{
    for (int i = 0; i < ATTEMPTS; i++) {
        if (good(measure(ctx, work))) {
            return;
        }
    }
    g_error("the times are never good");
}

void test_idle(Loop &loop)
{
    const Shares shares = measure(loop.ctx);

    g_assert_cmpfloat(shares.blocked, >=, 95);
    g_assert_cmpfloat(shares.hit + shares.miss, ==, 0);
    g_assert_cmpuint(shares.iterations, ==, 0);
    g_assert_cmpuint(shares.events, ==, 0);
    g_assert_cmpuint(shares.wakeups, ==, 0);
}

/* Bottom halves that never leave the thread alone: it does not wait */
void test_busy(Loop &loop)
{
    std::atomic<bool> started = false, stop = false;
    BottomHalf spinner(loop.ctx, [&] {
        started = true;
        spin(SCALE_MS);
        if (!stop) {
            spinner.schedule();
        }
    });

    spinner.schedule();
    wait_until([&] { return bool(started); });

    const Shares shares = measure(loop.ctx);

    g_assert_cmpfloat(shares.busy, >=, 95);
    g_assert_cmpuint(shares.events, >, 1);
    g_assert_cmpuint(shares.events, <=, INTERVAL_MS * ATTEMPTS);
    g_assert_cmpuint(shares.iterations, >=, shares.events - 1);
    /* the first one may have been scheduled while the thread waited */
    g_assert_cmpuint(shares.wakeups, <=, 1);

    stop = true;
    loop.wait_blocked();
}

/* What @func does while the loop is in one handler that does not return */
template <typename Func> void while_busy(Loop &loop, Func func)
{
    std::atomic<bool> started = false, stop = false;

    start_in(loop.ctx, [&] {
        started = true;
        spin_while([&] { return !stop; });
    });
    wait_until([&] { return bool(started); });
    func();
    stop = true;
    loop.wait_blocked();
}

/* The time of a handler counts as it passes */
void test_busy_under_way(Loop &loop)
{
    while_busy(loop, [&] {
        const Shares shares = measure(loop.ctx);

        g_assert_cmpfloat(shares.busy, >=, 98);
        g_assert_cmpuint(shares.iterations, ==, 0);
    });
}

void test_kicks(Loop &loop)
{
    const Shares shares = measure(loop.ctx, [&] {
        for (int i = 0; i < KICKS; i++) {
            loop.wait_blocked();

            const uint64_t before = read_load(loop.ctx).iterations;

            aio_notify(loop.ctx);
            wait_until(
                [&] { return read_load(loop.ctx).iterations != before; });
        }
        loop.wait_blocked();
    });

    g_assert_cmpuint(shares.wakeups, ==, KICKS);
    g_assert_cmpuint(shares.events, ==, 0);
    g_assert_cmpuint(shares.iterations, >=, KICKS);
    g_assert_cmpfloat(shares.blocked, >=, 50);
}

void test_handlers(Loop &loop)
{
    const Shares shares = measure(loop.ctx, [&] {
        for (int i = 0; i < KICKS; i++) {
            const int before = handled;

            loop.wait_blocked();
            event_notifier_set(&loop.fds[0]);
            wait_until([&] { return handled != before; });
        }
        loop.wait_blocked();
    });

    g_assert_cmpuint(shares.events, ==, KICKS);
    g_assert_cmpuint(shares.wakeups, ==, 0);
}

void test_timers(Loop &loop)
{
    std::atomic<int> left;
    Timer timer(loop.ctx, [&] {
        if (left > 1) {
            timer.start(2 * SCALE_MS);
        }
        left--;
    });
    const Shares shares = measure(loop.ctx, [&] {
        left = KICKS;
        timer.start(2 * SCALE_MS);
        wait_until([&] { return !left; }, 100);
    });

    /* the last one may not have been counted yet */
    g_assert_cmpuint(shares.events, >=, KICKS - 1);
    g_assert_cmpuint(shares.events, <=, KICKS);
    g_assert_cmpfloat(shares.blocked, >=, 50);
    loop.wait_blocked();
}

/* Run the event loop inside a handler until a timer fires */
void test_nested(Loop &loop)
{
    constexpr int64_t WAIT_NS = 120 * SCALE_MS, SPIN_NS = 40 * SCALE_MS;
    bool fired;
    Timer timer(loop.ctx, [&] { fired = true; });
    auto good = [](const Shares &shares) {
        return shares.busy_ns >= 2 * SPIN_NS &&
               shares.blocked_ns >= WAIT_NS / 100 * 98;
    };

    measure_until(good, loop.ctx, [&] {
        do_in(loop.ctx, [&] {
            spin(SPIN_NS);
            fired = false;
            timer.start(WAIT_NS);
            while (!fired) {
                aio_poll(loop.ctx, true);
            }
            spin(SPIN_NS);
        });
    });
    loop.wait_blocked();
}

/* --- Polling --- */

/* What a Poller's loop looks at when it polls */
std::atomic<bool> has_work;

/* The loop polls, and has a timer that fires again and again */
class Poller {
public:
    Poller(Loop &loop, int64_t poll_ns, int64_t timer_ns = 0)
        : loop(loop),
          timer(loop.ctx, [this, timer_ns] { timer.start(timer_ns); })
    {
        has_work = false;
        /* the one handler that cannot be polled would prevent polling */
        aio_set_event_notifier(loop.ctx, &loop.fds[0], nullptr, nullptr,
                               nullptr);
        event_notifier_init(&fd, false);
        aio_set_event_notifier(
            loop.ctx, &fd, never_handled, [](void *) { return bool(has_work); },
            [](EventNotifier *) { has_work = false; });
        /* shrink by the factor 1: do not */
        aio_context_set_poll_params(loop.ctx, poll_ns, 0, 1, &error_abort);
        do_in(loop.ctx, [&] {
            fdmon_set_polling(loop.ctx, poll_ns);
            if (timer_ns) {
                timer.start(timer_ns);
            }
        });
    }

    Poller(const Poller &) = delete;

    ~Poller()
    {
        do_in(loop.ctx, [&] { timer_del(timer.timer); });
        aio_context_set_poll_params(loop.ctx, 0, 0, 0, &error_abort);
        loop.wait_blocked();
        aio_set_event_notifier(loop.ctx, &fd, nullptr, nullptr, nullptr);
        aio_set_event_notifier(loop.ctx, &loop.fds[0], count_handled, nullptr,
                               nullptr);
        event_notifier_cleanup(&fd);
    }

private:
    Loop &loop;
    Timer timer;
    EventNotifier fd;
};

/* Polls from one timer to the next */
void test_poll_miss(Loop &loop)
{
    Poller poller(loop, 100 * SCALE_MS, SCALE_MS);
    auto good = [](const Shares &shares) {
        return shares.miss >= 90 && shares.hit <= 1 && shares.busy <= 5 &&
               shares.wakeups == 0;
    };

    measure_until(good, loop.ctx);
}

/* Polls for a while, then waits for the timer */
void test_poll_miss_and_wait(Loop &loop)
{
    Poller poller(loop, 2 * SCALE_MS, 4 * SCALE_MS);
    auto good = [](const Shares &shares) {
        return shares.miss >= 25 && shares.blocked >= 25 && shares.hit <= 1 &&
               shares.busy <= 5;
    };

    measure_until(good, loop.ctx);
}

/*
 * After an event in the kernel, such as a kick that ends a wait, io_uring has
 * something to submit, for which it waits once more although polling is
 * enabled.  It does not wait if the thread has kicked itself meanwhile.
 */
void wait_polling(Loop &loop)
{
    wait_until(
        [&] {
            start_in(loop.ctx, [&] { aio_notify(loop.ctx); });
            g_usleep(1000);

            const AioLoadFigures a = read_load(loop.ctx);

            g_usleep(1000);

            const AioLoadFigures b = read_load(loop.ctx);

            return a.busy_ns == b.busy_ns && a.blocked_ns == b.blocked_ns;
        },
        0);
}

/* Polls from one piece of work to the next */
void test_poll_hit(Loop &loop)
{
    Poller poller(loop, 10 * NANOSECONDS_PER_SECOND);
    auto good = [](const Shares &shares) {
        return shares.hit >= 90 && shares.miss <= 1 && shares.busy <= 5 &&
               shares.events > 1 && shares.events <= INTERVAL_MS * 2 + 1;
    };

    wait_polling(loop);
    measure_until(good, loop.ctx, [] {
        const int64_t end = now_ns() + INTERVAL_MS * SCALE_MS;

        while (now_ns() < end) {
            has_work = true;
            g_usleep(500);
        }
    });
}

/* --- Readers --- */

/*
 * Every reading begins from nothing, so that aio_load_read() cannot correct
 * it.  Figures go back by the few instructions between two words, or longer if
 * the host stops a thread there, but no word is ever seen half changed, and a
 * stopwatch is not read as a total.
 */
uint64_t read_until(const std::atomic<bool> &stop, const Loop &loop)
{
    constexpr uint64_t slack = 100 * SCALE_MS;
    AioLoadFigures kept = {}, before = {};
    uint64_t reads;

    for (reads = 0; !stop; reads++) {
        const AioLoadFigures fresh = read_load(loop.ctx), last = kept;
        const uint64_t wall = now_ns() - loop.start_ns;

        g_assert_cmpuint(fresh.busy_ns + fresh.poll_hit_ns +
                             fresh.poll_miss_ns + fresh.blocked_ns,
                         <=, wall + slack);
        g_assert_cmpuint(fresh.busy_ns + slack, >=, before.busy_ns);
        g_assert_cmpuint(fresh.blocked_ns + slack, >=, before.blocked_ns);
        g_assert_cmpuint(fresh.poll_hit_ns, >=, before.poll_hit_ns);
        g_assert_cmpuint(fresh.poll_miss_ns, >=, before.poll_miss_ns);
        before = fresh;

        kept = read_load(loop.ctx, last);
        for (auto figure :
             {&AioLoadFigures::busy_ns, &AioLoadFigures::poll_hit_ns,
              &AioLoadFigures::poll_miss_ns, &AioLoadFigures::blocked_ns,
              &AioLoadFigures::iterations, &AioLoadFigures::events,
              &AioLoadFigures::wakeups}) {
            g_assert_cmpuint(kept.*figure, >=, last.*figure);
        }
    }
    return reads;
}

void test_readers(Loop &loop)
{
    Poller poller(loop, 100 * SCALE_US, 150 * SCALE_US);
    const int64_t end = now_ns() + 2 * INTERVAL_MS * SCALE_MS;
    std::atomic<bool> stop = false;
    uint64_t reads = 0;
    std::thread reader([&] { reads = read_until(stop, loop); });

    for (int i = 0; now_ns() < end; i++) {
        aio_context_set_poll_params(loop.ctx, i % 3 * 50 * SCALE_US, 0, i % 2,
                                    &error_abort);
        start_in(loop.ctx, [] {});
        has_work = true;
        g_usleep(i % 7 * 50);
    }
    stop = true;
    reader.join();
    g_test_message("%" PRIu64 " readings", reads);
    g_assert_cmpuint(reads, >, 100);
}

/* Contexts begin at zero, and know their thread's CPU time */
void test_start()
{
    AioContext *ctx = aio_context_new(&error_abort);
    const AioLoadFigures figures = read_load(ctx);
    int64_t cpu_ns = -1, later_ns;

    /* no thread runs it yet */
    g_assert_cmpuint(figures.busy_ns, ==, 0);
    g_assert_cmpuint(figures.blocked_ns, ==, 0);
    g_assert_cmpuint(figures.iterations, ==, 0);
    g_assert_false(aio_load_cpu_time(ctx, &cpu_ns));
    aio_context_unref(ctx);

    Loop loop(PPOLL);

    if (!aio_load_cpu_time(loop.ctx, &cpu_ns)) {
        g_test_message("the host does not tell CPU time");
        return;
    }
    g_assert_cmpint(cpu_ns, >=, 0);
    g_assert_cmpint(cpu_ns, <, NANOSECONDS_PER_SECOND);
    while_busy(loop, [&] {
        wait_until(
            [&] {
                g_assert_true(aio_load_cpu_time(loop.ctx, &later_ns));
                return later_ns >= cpu_ns + 50 * SCALE_MS;
            },
            1000);
    });
}

/* --- The main loop --- */

void read_byte(void *fd)
{
    char byte;

    g_assert_cmpint(read(GPOINTER_TO_INT(fd), &byte, 1), ==, 1);
}

/* What the main loop counts when @fd is written to as often */
Shares write_bytes(int fd)
{
    AioContext *ctx = qemu_get_aio_context();
    const AioLoadFigures before = read_load(ctx);

    for (int i = 0; i < KICKS; i++) {
        g_assert_cmpint(write(fd, "", 1), ==, 1);
        main_loop_wait(true);
    }
    return Shares(before, read_load(ctx, before), 1);
}

void test_main_loop()
{
    AioContext *ctx = qemu_get_aio_context();
    int64_t spin_ns = 0;
    int left, fds[2];
    guint source;
    Timer timer(nullptr, [&] {
        spin(spin_ns);
        if (--left) {
            timer.start(2 * SCALE_MS);
        }
    });
    auto run = [&] {
        left = KICKS;
        timer.start(2 * SCALE_MS);
        while (left) {
            main_loop_wait(false);
        }
    };

    Shares shares = measure(ctx, run);
    g_assert_cmpfloat(shares.blocked, >=, 60);
    g_assert_cmpuint(shares.blocked_ns, >=, KICKS * 2 * SCALE_MS / 100 * 98);
    g_assert_cmpuint(shares.events, >=, KICKS);
    g_assert_cmpuint(shares.iterations, >=, KICKS);

    spin_ns = 8 * SCALE_MS;
    shares = measure(ctx, run);
    g_assert_cmpuint(shares.busy_ns, >=, KICKS * spin_ns);
    g_assert_cmpuint(shares.blocked_ns, >=, KICKS * SCALE_MS);

    /* File descriptor handlers are in another AioContext of this thread */
    g_assert_true(g_unix_open_pipe(fds, O_CLOEXEC, nullptr));
    qemu_set_fd_handler(fds[0], read_byte, nullptr, GINT_TO_POINTER(fds[0]));
    main_loop_wait(true);
    shares = write_bytes(fds[1]);
    g_assert_cmpuint(shares.events, ==, KICKS);
    g_assert_cmpuint(shares.iterations, ==, KICKS);
    /* it never had to wait */
    g_assert_cmpuint(shares.blocked_ns, ==, 0);
    qemu_set_fd_handler(fds[0], nullptr, nullptr, nullptr);

    /* Those of channels, such as character devices have, are in none */
    source = watch_channel(fds[0]);
    g_assert_cmpuint(write_bytes(fds[1]).events, ==, KICKS);
    g_source_remove(source);
    close(fds[1]);
}

struct Case {
    Way way;
    void (*func)(Loop &loop);
};

void run_case(const void *opaque)
{
    const Case *c = static_cast<const Case *>(opaque);
    Loop loop(c->way);

    if (loop.missing) {
        g_test_skip(loop.missing);
    } else {
        c->func(loop);
    }
}

void add(const std::string &name, void (*func)(Loop &loop),
         const std::vector<Way> &ways = all_ways)
{
    for (Way way : ways) {
        const std::string path = "/aio-load/" + name + "/" + way_names[way];

        g_test_add_data_func_full(
            path.c_str(), new Case{way, func}, run_case,
            [](void *opaque) { delete static_cast<Case *>(opaque); });
    }
}

} /* namespace */

int main(int argc, char **argv)
{
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);

    g_test_init(&argc, &argv, nullptr);
    g_test_add_func("/aio-load/start", test_start);
    add("idle", test_idle);
    add("busy", test_busy);
    add("busy-under-way", test_busy_under_way);
    add("kicks", test_kicks);
    add("handlers", test_handlers);
    add("timers", test_timers);
    add("nested", test_nested);
    add("poll-miss", test_poll_miss, {IO_URING, PPOLL});
    add("poll-miss-and-wait", test_poll_miss_and_wait, {IO_URING, PPOLL});
    add("poll-hit", test_poll_hit, {IO_URING, PPOLL});
    add("readers", test_readers, {IO_URING, PPOLL});
    g_test_add_func("/aio-load/main-loop", test_main_loop);
    return g_test_run();
}

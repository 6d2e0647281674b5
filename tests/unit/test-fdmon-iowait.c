/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Test what the host counts as waiting for I/O
 *
 * An event loop that sleeps until a file descriptor is ready, or until a timer
 * is due, is idle. One that has io_uring requests in flight waits for I/O.
 * The host says in /proc/stat how many tasks do.
 */
#include "qemu/osdep.h"
#include <poll.h>
#include "block/aio.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"

enum {
    LOOPS = 64,         /* many more than the other tasks that may wait */
    ATTEMPTS = 100,     /* of 20 ms */
};

#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17)
#endif

typedef struct Loop Loop;
struct Loop {
    /* Sleeps until the event loop is told to stop */
    void (*run)(Loop *loop);
    QemuThread thread;
    QemuSemaphore ready;
    EventNotifier stop;
    bool stopped;
    AioContext *ctx;

    /* A request: a read of a pipe */
    CqeHandler cqe_handler;
    int pipe[2];
    char byte;
    bool done;
};

/* Returns how many tasks of the host wait for I/O, or -1 */
static int tasks_waiting(void)
{
    g_autofree char *stat = NULL;
    const char *line;

    if (!g_file_get_contents("/proc/stat", &stat, NULL, NULL)) {
        return -1;
    }
    line = strstr(stat, "\nprocs_blocked ");
    return line ? atoi(line + strlen("\nprocs_blocked ")) : -1;
}

static void stop(EventNotifier *e)
{
    Loop *loop = container_of(e, Loop, stop);

    event_notifier_test_and_clear(e);
    loop->stopped = true;
}

static void setup(Loop *loop)
{
    loop->ctx = aio_context_new(&error_abort);
    qemu_set_current_aio_context(loop->ctx);
    aio_set_event_notifier(loop->ctx, &loop->stop, stop, NULL, NULL);
}

static void sleep_until_stopped(Loop *loop)
{
    qemu_sem_post(&loop->ready);
    while (!loop->stopped) {
        aio_poll(loop->ctx, true);
    }
}

static void teardown(Loop *loop)
{
    aio_set_event_notifier(loop->ctx, &loop->stop, NULL, NULL, NULL);
    aio_context_unref(loop->ctx);
}

static void run_idle(Loop *loop)
{
    setup(loop);
    sleep_until_stopped(loop);
    teardown(loop);
}

static void never(void *opaque)
{
    g_assert_not_reached();
}

static void run_timer(Loop *loop)
{
    QEMUTimer *timer;

    setup(loop);
    timer = aio_timer_new(loop->ctx, QEMU_CLOCK_REALTIME, SCALE_MS, never,
                          NULL);
    timer_mod(timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + 3600 * 1000);
    sleep_until_stopped(loop);
    timer_free(timer);
    teardown(loop);
}

static void prep_read(struct io_uring_sqe *sqe, void *opaque)
{
    Loop *loop = opaque;

    io_uring_prep_read(sqe, loop->pipe[0], &loop->byte, 1, 0);
}

static void read_done(CqeHandler *cqe_handler)
{
    Loop *loop = container_of(cqe_handler, Loop, cqe_handler);

    g_assert_cmpint(cqe_handler->cqe.res, ==, 1);
    g_assert_cmpint(loop->byte, ==, 'x');
    loop->done = true;
}

static void start_read(Loop *loop)
{
    g_assert_cmpint(pipe(loop->pipe), ==, 0);
    loop->cqe_handler.cb = read_done;
    aio_add_sqe(prep_read, loop, &loop->cqe_handler);
}

static void end_read(Loop *loop)
{
    g_assert_cmpint(write(loop->pipe[1], "x", 1), ==, 1);
    while (!loop->done) {
        aio_poll(loop->ctx, true);
    }
    close(loop->pipe[0]);
    close(loop->pipe[1]);
}

static void run_request(Loop *loop)
{
    setup(loop);
    start_read(loop);
    sleep_until_stopped(loop);
    end_read(loop);
    teardown(loop);
}

static void run_after_request(Loop *loop)
{
    setup(loop);
    start_read(loop);
    end_read(loop);
    sleep_until_stopped(loop);
    teardown(loop);
}

/* What QEMU has to keep off: the kernel counts a poll that is waited for */
static void run_poll(Loop *loop)
{
    struct io_uring ring;

    g_assert_cmpint(io_uring_queue_init(1, &ring, 0), ==, 0);
    io_uring_prep_poll_add(io_uring_get_sqe(&ring),
                           event_notifier_get_fd(&loop->stop), POLLIN);
    qemu_sem_post(&loop->ready);
    g_assert_cmpint(io_uring_submit_and_wait(&ring, 1), ==, 1);
    io_uring_queue_exit(&ring);
}

static void *loop_thread(void *opaque)
{
    Loop *loop = opaque;

    loop->run(loop);
    return NULL;
}

/* Returns whether the host comes to count at least half of LOOPS loops */
static bool are_counted(void (*run)(Loop *), bool expected)
{
    g_autofree Loop *loops = g_new0(Loop, LOOPS);
    int before = tasks_waiting();
    bool counted;

    for (int i = 0; i < LOOPS; i++) {
        loops[i].run = run;
        qemu_sem_init(&loops[i].ready, 0);
        g_assert_cmpint(event_notifier_init(&loops[i].stop, false), ==, 0);
        qemu_thread_create(&loops[i].thread, "loop", loop_thread, &loops[i],
                           QEMU_THREAD_JOINABLE);
    }
    for (int i = 0; i < LOOPS; i++) {
        qemu_sem_wait(&loops[i].ready);
    }

    for (int i = 0; i < ATTEMPTS; i++) {
        g_usleep(20 * 1000);
        counted = tasks_waiting() - before >= LOOPS / 2;
        if (counted == expected) {
            break;
        }
    }

    for (int i = 0; i < LOOPS; i++) {
        event_notifier_set(&loops[i].stop);
        qemu_thread_join(&loops[i].thread);
        event_notifier_cleanup(&loops[i].stop);
        qemu_sem_destroy(&loops[i].ready);
    }
    return counted;
}

/* Other tasks of the host may just have waited, and do not any more */
static bool come_to_be_counted(void (*run)(Loop *))
{
    for (int i = 0; i < 5; i++) {
        if (are_counted(run, true)) {
            return true;
        }
    }
    return false;
}

static bool host_can_tell(void)
{
    AioContext *ctx = qemu_get_aio_context();

    if (!aio_has_io_uring() ||
        !(ctx->fdmon_io_uring.features & IORING_FEAT_NO_IOWAIT)) {
        g_test_skip("needs an io_uring that can wait without iowait");
        return false;
    }
    if (tasks_waiting() < 0 || !come_to_be_counted(run_poll)) {
        g_test_skip("the host does not say which tasks wait for I/O");
        return false;
    }
    return true;
}

static void test_idle(void)
{
    if (host_can_tell()) {
        g_assert_false(are_counted(run_idle, false));
    }
}

static void test_timer(void)
{
    if (host_can_tell()) {
        g_assert_false(are_counted(run_timer, false));
    }
}

static void test_request(void)
{
    if (host_can_tell()) {
        g_assert_true(come_to_be_counted(run_request));
    }
}

static void test_after_request(void)
{
    if (host_can_tell()) {
        g_assert_false(are_counted(run_after_request, false));
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qemu_init_main_loop(&error_abort);
    g_test_add_func("/fdmon/iowait/idle", test_idle);
    g_test_add_func("/fdmon/iowait/timer", test_timer);
    g_test_add_func("/fdmon/iowait/request", test_request);
    g_test_add_func("/fdmon/iowait/after-request", test_after_request);
    return g_test_run();
}

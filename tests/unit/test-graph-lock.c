/*
 * The graph lock: a writer that sleeps is woken by the last reader
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block.h"
#include "block/graph-lock.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/rcu.h"

/* How long the writer may take once the reader has gone */
#define PATIENCE_MS 5000

typedef struct Scene {
    AioContext *ctx;
    QemuSemaphore locked;   /* the reader has the lock, ... */
    QemuSemaphore unlock;   /* ... is to give it back, ... */
    bool unlocked;          /* ... and has done so */
    QemuSemaphore written;  /* the writer had its turn */
    bool stuck;             /* it did not get it in time */
} Scene;

/* Runs the reader, and waits together with it */
static void *read_in_thread(void *opaque)
{
    Scene *s = opaque;

    rcu_register_thread();
    qemu_set_current_aio_context(s->ctx);
    while (!s->unlocked) {
        aio_poll(s->ctx, true);
    }
    rcu_unregister_thread();
    return NULL;
}

static void coroutine_fn reader(void *opaque)
{
    Scene *s = opaque;

    bdrv_graph_co_rdlock();
    qemu_sem_post(&s->locked);
    qemu_sem_wait(&s->unlock);
    bdrv_graph_co_rdunlock();
    s->unlocked = true;
}

/*
 * A thread that has the reader unlock as soon as the writer can not find out
 * by itself any more: it has looked at the readers, and is about to sleep.
 */
static void *conduct(void *opaque)
{
    Scene *s = opaque;

    while (!qatomic_read(&global_aio_wait.num_waiters) ||
           !qatomic_read(&qemu_get_aio_context()->notify_me)) {
        g_usleep(100);
    }
    qemu_sem_post(&s->unlock);
    if (qemu_sem_timedwait(&s->written, PATIENCE_MS)) {
        s->stuck = true;
        aio_wait_kick();
    }
    return NULL;
}

static void test_sleeping_writer(void)
{
    Scene s = { .ctx = aio_context_new(&error_abort) };
    QemuThread thread, conductor;

    qemu_sem_init(&s.locked, 0);
    qemu_sem_init(&s.unlock, 0);
    qemu_sem_init(&s.written, 0);

    aio_co_schedule(s.ctx, qemu_coroutine_create(reader, &s));
    qemu_thread_create(&thread, "reader", read_in_thread, &s,
                       QEMU_THREAD_JOINABLE);
    qemu_sem_wait(&s.locked);
    qemu_thread_create(&conductor, "conductor", conduct, &s,
                       QEMU_THREAD_JOINABLE);

    bdrv_graph_wrlock();
    bdrv_graph_wrunlock();

    qemu_sem_post(&s.written);
    qemu_thread_join(&conductor);
    qemu_thread_join(&thread);
    g_assert_false(s.stuck);

    aio_context_unref(s.ctx);
    qemu_sem_destroy(&s.locked);
    qemu_sem_destroy(&s.unlock);
    qemu_sem_destroy(&s.written);
}

int main(int argc, char **argv)
{
    bdrv_init();
    qemu_init_main_loop(&error_abort);

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/graph-lock/sleeping-writer", test_sleeping_writer);
    return g_test_run();
}

/*
 * A throttle group whose members live in several threads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/throttle-groups.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/rcu.h"
#include "qemu/throttle.h"
#include "system/block-backend.h"

#define MEMBERS     4
#define REQUESTS    4
#define SECONDS     0.7

typedef struct Member {
    QemuThread thread;
    AioContext *ctx;
    BlockBackend *blk;
    ThrottleGroupMember *tgm;
    int disabled;
} Member;

typedef struct Worker {
    Member *member;
    ThrottleDirection direction;
    unsigned int count;
} Worker;

static Member members[MEMBERS];
static Worker workers[MEMBERS][THROTTLE_MAX][REQUESTS];
static bool stop_workers;
static bool stop_threads;
static int running;

static void *member_thread(void *opaque)
{
    Member *m = opaque;

    rcu_register_thread();
    qemu_set_current_aio_context(m->ctx);
    while (!qatomic_read(&stop_threads)) {
        aio_poll(m->ctx, true);
    }
    rcu_unregister_thread();
    return NULL;
}

/* One throttled request after the other */
static void coroutine_fn worker_entry(void *opaque)
{
    Worker *w = opaque;

    /* Once at least: its thread may begin when the test is over */
    do {
        throttle_group_co_io_limits_intercept(w->member->tgm, 512,
                                              w->direction);
        qatomic_set(&w->count, w->count + 1);
    } while (!qatomic_read(&stop_workers));
    qatomic_dec(&running);
    aio_wait_kick();
}

static void set_limit(int member, uint64_t iops)
{
    ThrottleConfig cfg;

    throttle_config_init(&cfg);
    cfg.buckets[THROTTLE_OPS_READ].avg = iops;
    cfg.buckets[THROTTLE_OPS_WRITE].avg = iops;
    throttle_group_config(members[member].tgm, &cfg);
}

/* What a drained section does to a member */
static void disable_limits(Member *m)
{
    if (!m->disabled++) {
        qatomic_inc(&m->tgm->io_limits_disabled);
        throttle_group_restart_tgm(m->tgm);
    }
}

static void enable_limits(Member *m)
{
    if (m->disabled) {
        m->disabled = 0;
        qatomic_dec(&m->tgm->io_limits_disabled);
    }
}

static void start(void)
{
    int i, k;
    ThrottleDirection dir;

    stop_workers = stop_threads = false;
    memset(workers, 0, sizeof(workers));

    for (i = 0; i < MEMBERS; i++) {
        Member *m = &members[i];

        m->ctx = aio_context_new(&error_abort);
        m->blk = blk_new(m->ctx, 0, BLK_PERM_ALL);
        m->tgm = &blk_get_public(m->blk)->throttle_group_member;
        m->disabled = 0;
        throttle_group_register_tgm(m->tgm, "group", m->ctx);
        qemu_thread_create(&m->thread, "member", member_thread, m,
                           QEMU_THREAD_JOINABLE);
    }

    set_limit(0, 2000);

    for (i = 0; i < MEMBERS; i++) {
        for (dir = THROTTLE_READ; dir < THROTTLE_MAX; dir++) {
            for (k = 0; k < REQUESTS; k++) {
                Worker *w = &workers[i][dir][k];

                w->member = &members[i];
                w->direction = dir;
                running++;
                aio_co_enter(members[i].ctx,
                             qemu_coroutine_create(worker_entry, w));
            }
        }
    }
}

static void finish(void)
{
    int i, k;
    ThrottleDirection dir;

    /* Every request is run, whatever has happened to the timers */
    qatomic_set(&stop_workers, true);
    for (i = 0; i < MEMBERS; i++) {
        disable_limits(&members[i]);
    }
    AIO_WAIT_WHILE_UNLOCKED(NULL, qatomic_read(&running));

    for (i = 0; i < MEMBERS; i++) {
        Member *m = &members[i];

        throttle_group_unregister_tgm(m->tgm);
        enable_limits(m);
        for (dir = THROTTLE_READ; dir < THROTTLE_MAX; dir++) {
            for (k = 0; k < REQUESTS; k++) {
                g_assert_cmpint(workers[i][dir][k].count, >, 0);
            }
        }
    }

    qatomic_set(&stop_threads, true);
    for (i = 0; i < MEMBERS; i++) {
        Member *m = &members[i];

        aio_notify(m->ctx);
        qemu_thread_join(&m->thread);
        blk_unref(m->blk);
        aio_context_unref(m->ctx);
    }
}

/* The limits change while timers fire */
static void test_limits(void)
{
    int64_t end;

    start();
    end = g_get_monotonic_time() + SECONDS * G_USEC_PER_SEC;
    while (g_get_monotonic_time() < end) {
        set_limit(g_test_rand_int_range(0, MEMBERS),
                  g_test_rand_int_range(500, 5000));
        g_usleep(g_test_rand_int_range(0, 500));
    }
    finish();
}

/* Members begin and end drained sections meanwhile */
static void test_drain(void)
{
    int64_t end;

    start();
    end = g_get_monotonic_time() + SECONDS * G_USEC_PER_SEC;
    while (g_get_monotonic_time() < end) {
        Member *m = &members[g_test_rand_int_range(0, MEMBERS)];

        disable_limits(m);
        g_usleep(g_test_rand_int_range(0, 200));
        enable_limits(m);
        g_usleep(g_test_rand_int_range(0, 500));
    }
    finish();
}

/* Registered and unregistered, with timers that are still armed */
static void test_unregister(void)
{
    int64_t end = g_get_monotonic_time() + SECONDS * G_USEC_PER_SEC;

    while (g_get_monotonic_time() < end) {
        start();
        g_usleep(g_test_rand_int_range(20000, 40000));
        finish();
    }
}

int main(int argc, char **argv)
{
    qemu_init_main_loop(&error_fatal);
    bdrv_init();
    module_call_init(MODULE_INIT_QOM);

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/throttle-group/limits", test_limits);
    g_test_add_func("/throttle-group/drain", test_drain);
    g_test_add_func("/throttle-group/unregister", test_unregister);
    return g_test_run();
}

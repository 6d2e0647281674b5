/*
 * A thread pool that gets a thread for each piece of work
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/thread-pool.h"
#include "qemu/atomic.h"

enum { ROUNDS = 20000 };

static int done;

static int count(void *opaque)
{
    qatomic_inc(&done);
    return 0;
}

/* Work that is done before the number of threads is adjusted to it */
static void test_quick(void)
{
    ThreadPool *pool = thread_pool_new();
    int i;

    for (i = 0; i < ROUNDS; i++) {
        thread_pool_submit_immediate(pool, count, NULL, NULL);
        thread_pool_wait(pool);
    }
    thread_pool_free(pool);
    g_assert_cmpint(done, ==, ROUNDS);
}

/* With nothing to do the pool keeps a thread */
static void test_none(void)
{
    ThreadPool *pool = thread_pool_new();

    done = 0;
    g_assert_true(thread_pool_adjust_max_threads_to_work(pool));
    thread_pool_submit(pool, count, NULL, NULL);
    thread_pool_wait(pool);
    thread_pool_free(pool);
    g_assert_cmpint(done, ==, 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/thread-pool-immediate/quick", test_quick);
    g_test_add_func("/thread-pool-immediate/none", test_none);
    return g_test_run();
}

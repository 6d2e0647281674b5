/*
 * Statistics of block devices
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/accounting.h"
#include "qapi/qapi-builtin-types.h"
#include "qapi/util.h"
#include "qemu/main-loop.h"
#include "qemu/thread.h"

#define SECONDS 0.5

static BlockAcctStats stats;
static bool stop;

static void account_one(void)
{
    BlockAcctCookie cookie;

    block_acct_start(&stats, &cookie, 512, BLOCK_ACCT_READ);
    block_acct_done(&stats, &cookie);
}

static uint64List *boundaries(int n)
{
    uint64List *list = NULL;

    for (; n; n--) {
        QAPI_LIST_PREPEND(list, n);
    }
    return list;
}

static void set_histogram(int n)
{
    uint64List *list = boundaries(n);

    g_assert_cmpint(block_latency_histogram_set(&stats, BLOCK_ACCT_READ, list),
                    ==, 0);
    qapi_free_uint64List(list);
}

static uint64_t accounted(void)
{
    BlockLatencyHistogram *hist = &stats.latency_histogram[BLOCK_ACCT_READ];
    uint64_t sum = 0;
    int i;

    for (i = 0; i < hist->nbins; i++) {
        sum += hist->bins[i];
    }
    return sum;
}

/* Each request is in one interval, however many there are */
static void test_intervals(void)
{
    int n;

    memset(&stats, 0, sizeof(stats));
    block_acct_init(&stats);
    for (n = 0; n < 4; n++) {
        set_histogram(n);
        g_assert_cmpint(stats.latency_histogram[BLOCK_ACCT_READ].nbins, ==,
                        n + 1);
        account_one();
        account_one();
        g_assert_cmpint(accounted(), ==, 2);
    }
    block_latency_histograms_clear(&stats);
    account_one();
    g_assert_cmpint(accounted(), ==, 0);
    block_acct_cleanup(&stats);
}

static void *account_thread(void *opaque)
{
    while (!qatomic_read(&stop)) {
        account_one();
    }
    return NULL;
}

/* Requests in an IOThread while the monitor sets and removes histograms */
static void test_threads(void)
{
    int64_t end = g_get_monotonic_time() + SECONDS * G_USEC_PER_SEC;
    QemuThread thread;

    memset(&stats, 0, sizeof(stats));
    block_acct_init(&stats);
    stop = false;
    qemu_thread_create(&thread, "account", account_thread, NULL,
                       QEMU_THREAD_JOINABLE);
    while (g_get_monotonic_time() < end) {
        set_histogram(g_test_rand_int_range(0, 900));
        if (g_test_rand_int_range(0, 8) == 0) {
            block_latency_histograms_clear(&stats);
        }
    }
    qatomic_set(&stop, true);
    qemu_thread_join(&thread);
    block_latency_histograms_clear(&stats);
    block_acct_cleanup(&stats);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/block-accounting/intervals", test_intervals);
    g_test_add_func("/block-accounting/threads", test_threads);
    return g_test_run();
}

/*
 * Thousands of blocks of RAM
 *
 * Tests whose name ends in -stock show that the binary that
 * QTEST_QEMU_STOCK_BINARY names fails there. They are skipped where that is
 * not set.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <time.h>
#include "libqtest.h"

#define STOCK "QTEST_QEMU_STOCK_BINARY"
#define BLOCKS 1000
#define PART 50

/* Returns: microseconds that QEMU's threads have run, on a busy host too */
static int64_t cpu_time_us(QTestState *s)
{
    clockid_t clock;
    struct timespec now;

    g_assert_cmpint(clock_getcpuclockid(qtest_pid(s), &clock), ==, 0);
    g_assert_cmpint(clock_gettime(clock, &now), ==, 0);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static int64_t add(QTestState *s, int from, int to)
{
    int64_t start = cpu_time_us(s);

    for (int i = from; i < to; i++) {
        g_autofree char *id = g_strdup_printf("ram%d", i);

        qtest_qmp_assert_success(
            s, "{ 'execute': 'object-add', 'arguments': "
            "{ 'qom-type': 'memory-backend-ram', 'id': %s, 'size': 4096 } }",
            id);
    }
    return cpu_time_us(s) - start;
}

/* Returns: how much more the last blocks take than the first */
static double slowdown(QTestState *s)
{
    int64_t first = add(s, 0, PART), last;

    add(s, PART, BLOCKS - PART);
    last = add(s, BLOCKS - PART, BLOCKS);
    g_test_message("%d blocks: %.1f ms, and %.1f ms when there are %d", PART,
                   first / 1000.0, last / 1000.0, BLOCKS - PART);
    return (double)last / first;
}

static void test_add(void)
{
    QTestState *s = qtest_init("-machine none");

    g_assert_cmpfloat(slowdown(s), <, 4);
    qtest_quit(s);
}

static void test_add_stock(void)
{
    QTestState *s;

    if (!getenv(STOCK)) {
        g_test_skip(STOCK " is not set");
        return;
    }
    s = qtest_init_ext(STOCK, "-machine none", NULL, true);
    g_assert_cmpfloat(slowdown(s), >, 4);
    qtest_quit(s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/ram-blocks/add", test_add);
    qtest_add_func("/ram-blocks/add-stock", test_add_stock);
    return g_test_run();
}

/*
 * Tests that are run with stock QEMU too, to show that it fails them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "stock-twin.h"

bool dies_with_stock(void)
{
    if (!getenv(STOCK_BINARY)) {
        g_test_skip(STOCK_BINARY " is not set");
        return false;
    }
    if (g_test_subprocess()) {
        return true;
    }
    for (int i = 0; i < 3; i++) {
        g_test_trap_subprocess(NULL, 60 * G_USEC_PER_SEC, 0);
        if (!g_test_trap_has_passed()) {
            break;
        }
    }
    g_test_trap_assert_failed();
    return false;
}

void run_test(gconstpointer test)
{
    StockTest *func = test;

    func(NULL);
}

void run_stock(gconstpointer test)
{
    StockTest *func = test;

    if (dies_with_stock()) {
        func(STOCK_BINARY);
    }
}

void add_twins(const char *path, StockTest *test,
               void (*stock_run)(gconstpointer))
{
    g_autofree char *stock = g_strdup_printf("%s-stock", path);

    qtest_add_data_func(path, test, run_test);
    qtest_add_data_func(stock, test, stock_run);
}

/*
 * Tests that are run with stock QEMU too, to show that it fails them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef STOCK_TWIN_H
#define STOCK_TWIN_H

/* Names the binary of a QEMU without what the tests are for; may be unset */
#define STOCK_BINARY "QTEST_QEMU_STOCK_BINARY"

/* @binary is what qtest_init_ext() takes: NULL, or STOCK_BINARY */
typedef void StockTest(const char *binary);

/*
 * Returns true in a subprocess that is to take stock QEMU to its death. In the
 * test itself, runs that and checks that it fails: in one of three runs, as
 * where threads have to meet it may not fail in each. Skips the test where
 * there is no stock binary.
 */
bool dies_with_stock(void);

/* Run the StockTest @test; as what qtest_add_data_func() takes */
void run_test(gconstpointer test);
void run_stock(gconstpointer test);

/* Adds @test at @path; and at @path-stock, where @stock_run runs it */
void add_twins(const char *path, StockTest *test,
               void (*stock_run)(gconstpointer));

#endif

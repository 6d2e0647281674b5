/*
 * Calls that are deferred to the end of a section
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/defer-call.h"

static int count[64];

static void count_call(void *opaque)
{
    (*(int *)opaque)++;
}

static void test_once(void)
{
    memset(count, 0, sizeof(count));
    defer_call(count_call, &count[0]);
    g_assert_cmpint(count[0], ==, 1);

    defer_call_begin();
    defer_call_begin();
    defer_call(count_call, &count[0]);
    defer_call(count_call, &count[1]);
    defer_call(count_call, &count[0]);
    defer_call_end();
    g_assert_cmpint(count[0], ==, 1);
    defer_call_end();
    g_assert_cmpint(count[0], ==, 2);
    g_assert_cmpint(count[1], ==, 1);
}

/* Defers enough to make the list grow */
static void call_with_section(void *opaque)
{
    (*(int *)opaque)++;
    defer_call_begin();
    for (int i = 2; i < ARRAY_SIZE(count); i++) {
        defer_call(count_call, &count[i]);
    }
    defer_call_end();
}

/* A deferred call has a section of its own */
static void test_nested(void)
{
    for (int round = 1; round <= 3; round++) {
        memset(count, 0, sizeof(count));
        defer_call_begin();
        defer_call(call_with_section, &count[0]);
        defer_call(count_call, &count[1]);
        defer_call_end();
        for (int i = 0; i < ARRAY_SIZE(count); i++) {
            g_assert_cmpint(count[i], ==, 1);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/defer-call/once", test_once);
    g_test_add_func("/defer-call/nested", test_nested);
    return g_test_run();
}

/*
 * C and C++ agree on the layout of types, and on what macros do
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "cxx-layout.h"

static const CxxLayout c_layout[] = LAYOUT_TABLE;

static void test_layout(void)
{
    for (size_t i = 0; c_layout[i].what; i++) {
        g_test_message("%s: %zu", c_layout[i].what, c_layout[i].value);
        g_assert_cmpstr(cxx_layout[i].what, ==, c_layout[i].what);
        g_assert_cmpuint(cxx_layout[i].value, ==, c_layout[i].value);
    }
}

static QemuMutex mutex;
static unsigned times_locked;

static void count_locked(void)
{
    g_assert_cmpint(qemu_mutex_trylock(&mutex), !=, 0);
    times_locked++;
}

/* It is locked inside of each guard, and free after it, however it is left */
static void test_guards(void)
{
    qemu_mutex_init(&mutex);
    cxx_guards(&mutex, count_locked);
    g_assert_cmpuint(times_locked, ==, 3);
    g_assert_cmpint(qemu_mutex_trylock(&mutex), ==, 0);
    qemu_mutex_unlock(&mutex);
    qemu_mutex_destroy(&mutex);
}

static void test_list(void)
{
    g_autoptr(uint16List) list = cxx_list();

    g_assert_cmpuint(QAPI_LIST_LENGTH(list), ==, 3);
    g_assert_cmpuint(list->value, ==, 1);
    g_assert_cmpuint(list->next->value, ==, 2);
    g_assert_cmpuint(list->next->next->value, ==, 3);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/cxx/layout", test_layout);
    g_test_add_func("/cxx/guards", test_guards);
    g_test_add_func("/cxx/list", test_list);
    return g_test_run();
}

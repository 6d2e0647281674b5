/*
 * Unit tests of the registry of IOThread holds (iothread.cc)
 *
 * Being C, it also shows that the interface is C.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/iothread-holds.h"

static void count_free(void *info)
{
    (*(int *)info)++;
}

/* What the walk over a list saw, as "info:vqs" words */
static void append_hold(const void *info, bool has_vqs, const uint16_t *vqs,
                        size_t num_vqs, void *opaque)
{
    GString *seen = opaque;

    g_string_append_printf(seen, "%s%s", seen->len ? " " : "",
                           (const char *)info);
    if (has_vqs) {
        g_string_append_c(seen, ':');
    }
    for (size_t i = 0; i < num_vqs; i++) {
        g_string_append_printf(seen, "%s%u", i ? "," : "", vqs[i]);
    }
}

static void assert_holds(const IOThreadHolds *holds, const char *expected)
{
    g_autoptr(GString) seen = g_string_new("");

    iothread_holds_foreach(holds, append_hold, seen);
    g_assert_cmpstr(seen->str, ==, expected);
}

static void assert_described(const IOThreadHolds *holds, size_t max,
                             const char *expected)
{
    g_autofree char *text = iothread_holds_describe(holds, max);

    g_assert_cmpstr(text, ==, expected);
}

static IOThreadHolderState *new_holder(const char *name)
{
    return iothread_holder_new(name, (void *)name, NULL);
}

static void get(IOThreadHolds *holds, IOThreadHolderState *holder)
{
    iothread_holds_get(holds, holder, false, NULL, 0);
}

static void test_holder(void)
{
    int freed = 0;
    char name[] = "disk0";
    IOThreadHolderState *holder = iothread_holder_new(name, &freed, count_free);

    name[0] = 'x';
    g_assert_cmpstr(iothread_holder_name(holder), ==, "disk0");
    g_assert_null(iothread_holder_any(holder));
    iothread_holder_free(holder);
    g_assert_cmpint(freed, ==, 1);

    iothread_holder_free(NULL);
    iothread_holds_free(NULL);
}

static void test_order(void)
{
    IOThreadHolds *holds = iothread_holds_new(NULL);
    IOThreadHolderState *a = new_holder("a");
    IOThreadHolderState *b = new_holder("b");
    IOThreadHolderState *c = new_holder("c");

    assert_holds(holds, "");
    get(holds, b);
    get(holds, a);
    get(holds, c);
    assert_holds(holds, "b a c");

    /* from the middle, and to the end again */
    iothread_holds_put(holds, a);
    assert_holds(holds, "b c");
    get(holds, a);
    assert_holds(holds, "b c a");
    g_assert_cmpuint(iothread_holds_count(holds), ==, 3);

    iothread_holds_put(holds, b);
    iothread_holds_put(holds, a);
    iothread_holds_put(holds, c);
    assert_holds(holds, "");
    g_assert_cmpuint(iothread_holds_count(holds), ==, 0);

    iothread_holder_free(a);
    iothread_holder_free(b);
    iothread_holder_free(c);
    iothread_holds_free(holds);
}

/* A list each for two IOThreads, one of them held twice by one holder */
static void test_many_to_many(void)
{
    char owners[2];
    IOThreadHolds *holds[2] = {
        iothread_holds_new(&owners[0]),
        iothread_holds_new(&owners[1]),
    };
    IOThreadHolderState *a = new_holder("a");
    IOThreadHolderState *b = new_holder("b");

    get(holds[0], a);
    get(holds[1], a);
    get(holds[1], b);
    get(holds[1], a);
    assert_holds(holds[0], "a");
    assert_holds(holds[1], "a b a");

    /* the latest one of the two goes first */
    iothread_holds_put(holds[1], a);
    assert_holds(holds[1], "a b");
    iothread_holds_put(holds[0], a);
    g_assert_true(iothread_holder_any(a) == &owners[1]);
    iothread_holds_put(holds[1], a);
    g_assert_null(iothread_holder_any(a));
    assert_holds(holds[1], "b");
    iothread_holds_put(holds[1], b);

    iothread_holder_free(a);
    iothread_holder_free(b);
    iothread_holds_free(holds[0]);
    iothread_holds_free(holds[1]);
}

static void test_vqs(void)
{
    IOThreadHolds *holds = iothread_holds_new(NULL);
    IOThreadHolderState *a = new_holder("a");
    uint16_t vqs[] = { 3, 0, UINT16_MAX };

    iothread_holds_get(holds, a, true, vqs, ARRAY_SIZE(vqs));
    vqs[0] = 7;
    iothread_holds_get(holds, a, true, NULL, 0);
    iothread_holds_get(holds, a, false, NULL, 0);
    assert_holds(holds, "a:3,0,65535 a: a");

    iothread_holds_put(holds, a);
    assert_holds(holds, "a:3,0,65535 a:");
    iothread_holds_put(holds, a);
    iothread_holds_put(holds, a);
    iothread_holder_free(a);
    iothread_holds_free(holds);
}

static void test_describe(void)
{
    IOThreadHolds *holds = iothread_holds_new(NULL);
    IOThreadHolderState *a = new_holder("a");
    IOThreadHolderState *b = new_holder("b");
    IOThreadHolderState *c = new_holder("c");

    assert_described(holds, 8, "");
    get(holds, a);
    assert_described(holds, 8, "a");
    assert_described(holds, 0, "1");
    get(holds, b);
    get(holds, a);
    assert_described(holds, 8, "a and b");
    get(holds, c);
    assert_described(holds, 8, "a, b and c");
    assert_described(holds, 3, "a, b and c");
    assert_described(holds, 2, "a, b and 1 more");
    assert_described(holds, 1, "a and 2 more");

    iothread_holds_put(holds, a);
    iothread_holds_put(holds, a);
    iothread_holds_put(holds, b);
    iothread_holds_put(holds, c);
    iothread_holder_free(a);
    iothread_holder_free(b);
    iothread_holder_free(c);
    iothread_holds_free(holds);
}

/* Random gets and puts against a plain array that says what is right */
static void test_random(void)
{
    enum { LISTS = 3, HOLDERS = 5, STEPS = 20000 };
    static const char *const names[HOLDERS] = { "a", "b", "c", "d", "e" };
    IOThreadHolds *holds[LISTS];
    IOThreadHolderState *holders[HOLDERS];
    GString *model[LISTS];

    for (int i = 0; i < LISTS; i++) {
        holds[i] = iothread_holds_new(NULL);
        model[i] = g_string_new("");
    }
    for (int i = 0; i < HOLDERS; i++) {
        holders[i] = new_holder(names[i]);
    }

    for (int step = 0; step < STEPS; step++) {
        int l = g_test_rand_int_range(0, LISTS);
        int h = g_test_rand_int_range(0, HOLDERS);
        char *latest = strrchr(model[l]->str, names[h][0]);
        g_autoptr(GString) expected = g_string_new("");

        /* a little more puts than gets keep the lists short */
        if (latest && g_test_rand_int_range(0, 100) < 55) {
            iothread_holds_put(holds[l], holders[h]);
            g_string_erase(model[l], latest - model[l]->str, 1);
        } else {
            get(holds[l], holders[h]);
            g_string_append_c(model[l], names[h][0]);
        }
        for (size_t i = 0; i < model[l]->len; i++) {
            g_string_append_printf(expected, "%s%c", i ? " " : "",
                                   model[l]->str[i]);
        }
        assert_holds(holds[l], expected->str);
        g_assert_cmpuint(iothread_holds_count(holds[l]), ==, model[l]->len);
    }

    for (int l = 0; l < LISTS; l++) {
        for (size_t i = 0; i < model[l]->len; i++) {
            iothread_holds_put(holds[l], holders[model[l]->str[i] - 'a']);
        }
        iothread_holds_free(holds[l]);
        g_string_free(model[l], true);
    }
    for (int h = 0; h < HOLDERS; h++) {
        iothread_holder_free(holders[h]);
    }
}

/* Named after all others, or only counted */
static void test_minor(void)
{
    static const char *const names[] = { "n0", "#1", "a", "#2", "n1", "b" };
    IOThreadHolds *holds = iothread_holds_new(NULL);
    IOThreadHolderState *holders[ARRAY_SIZE(names)];

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        holders[i] = new_holder(names[i]);
        if (names[i][0] == '#') {
            iothread_holder_set_minor(holders[i], "hidden node");
        } else if (names[i][0] == 'n') {
            iothread_holder_set_minor(holders[i], NULL);
        }
        g_assert_false(iothread_holder_holds(holders[i], holds));
        get(holds, holders[i]);
        g_assert_true(iothread_holder_holds(holders[i], holds));
        if (i == 1) {
            assert_described(holds, 8, "n0 and 1 hidden node");
        }
    }
    assert_holds(holds, "n0 #1 a #2 n1 b");
    assert_described(holds, 8, "a, b, n0, n1 and 2 hidden nodes");
    assert_described(holds, 3, "a, b, n0, 1 more and 2 hidden nodes");
    assert_described(holds, 0, "4 and 2 hidden nodes");

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        iothread_holds_put(holds, holders[i]);
        g_assert_false(iothread_holder_holds(holders[i], holds));
        iothread_holder_free(holders[i]);
    }
    iothread_holds_free(holds);
}

enum { THREADS = 4, ROUNDS = 2000 };

static gpointer get_and_put(gpointer opaque)
{
    IOThreadHolds *holds = opaque;
    IOThreadHolderState *holder = new_holder("t");

    for (int i = 0; i < ROUNDS; i++) {
        get(holds, holder);
        g_free(iothread_holds_describe(holds, 2));
        g_assert_cmpuint(iothread_holds_count(holds), >=, 1);
        iothread_holds_put(holds, holder);
    }
    iothread_holder_free(holder);
    return NULL;
}

static void test_threads(void)
{
    IOThreadHolds *holds = iothread_holds_new(NULL);
    GThread *threads[THREADS];

    for (int i = 0; i < THREADS; i++) {
        threads[i] = g_thread_new(NULL, get_and_put, holds);
    }
    for (int i = 0; i < THREADS; i++) {
        g_thread_join(threads[i]);
    }
    g_assert_cmpuint(iothread_holds_count(holds), ==, 0);
    iothread_holds_free(holds);
}

/* Broken contracts: each must abort, and say who broke it */

static void put_without_get(void)
{
    iothread_holds_put(iothread_holds_new(NULL), new_holder("disk7"));
}

static void put_once_too_often(void)
{
    IOThreadHolds *holds = iothread_holds_new(NULL);
    IOThreadHolderState *holder = new_holder("disk7");

    get(holds, holder);
    iothread_holds_put(holds, holder);
    iothread_holds_put(holds, holder);
}

static void put_elsewhere(void)
{
    IOThreadHolds *holds = iothread_holds_new(NULL);
    IOThreadHolderState *holder = new_holder("disk7");

    get(holds, holder);
    iothread_holds_put(iothread_holds_new(NULL), holder);
}

static void free_holder_that_holds(void)
{
    IOThreadHolderState *holder = new_holder("disk7");

    get(iothread_holds_new(NULL), holder);
    iothread_holder_free(holder);
}

static void free_list_in_use(void)
{
    IOThreadHolds *holds = iothread_holds_new(NULL);

    get(holds, new_holder("disk7"));
    iothread_holds_free(holds);
}

static void test_abort(gconstpointer opaque)
{
    void (*const *broken)(void) = opaque;

    if (g_test_subprocess()) {
        (*broken)();
        return;
    }
    g_test_trap_subprocess(NULL, 0, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*disk7*");
}

int main(int argc, char **argv)
{
    static const struct {
        const char *path;
        void (*broken)(void);
    } aborts[] = {
        { "/iothread-holds/abort/put-without-get", put_without_get },
        { "/iothread-holds/abort/put-once-too-often", put_once_too_often },
        { "/iothread-holds/abort/put-elsewhere", put_elsewhere },
        { "/iothread-holds/abort/free-holder", free_holder_that_holds },
        { "/iothread-holds/abort/free-list", free_list_in_use },
    };

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/iothread-holds/holder", test_holder);
    g_test_add_func("/iothread-holds/order", test_order);
    g_test_add_func("/iothread-holds/many-to-many", test_many_to_many);
    g_test_add_func("/iothread-holds/vqs", test_vqs);
    g_test_add_func("/iothread-holds/describe", test_describe);
    g_test_add_func("/iothread-holds/random", test_random);
    g_test_add_func("/iothread-holds/minor", test_minor);
    g_test_add_func("/iothread-holds/threads", test_threads);
    for (size_t i = 0; i < ARRAY_SIZE(aborts); i++) {
        g_test_add_data_func(aborts[i].path, &aborts[i].broken, test_abort);
    }
    return g_test_run();
}

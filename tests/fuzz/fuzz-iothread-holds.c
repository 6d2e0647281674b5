/*
 * libFuzzer: the registry of IOThread holds, against plain arrays
 *
 * The input is a sequence of operations, a few bytes each.  Operations that
 * would break the registry's contract are left out: that they abort is shown
 * by the unit test.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "system/iothread-holds.h"

enum {
    LISTS = 3,
    HOLDERS = 5,
    MAX_VQS = 7,
    MAX_SIZE = 512,     /* bytes of input, so also holds in a list */
};

typedef struct Hold {
    int holder;
    bool has_vqs;
    size_t num_vqs;
    uint16_t vqs[MAX_VQS];
} Hold;

typedef struct List {
    IOThreadHolds *holds;
    Hold model[MAX_SIZE];
    size_t len;
} List;

static List lists[LISTS];
static IOThreadHolderState *holders[HOLDERS];
static int numbers[HOLDERS];    /* what the registry knows of a holder */
static int freed[HOLDERS];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void count_free(void *info)
{
    freed[*(int *)info]++;
}

static void new_holder(int h)
{
    char name[] = { 'a' + h, 0 };

    numbers[h] = h;
    freed[h] = 0;
    holders[h] = iothread_holder_new(name, &numbers[h], count_free);
}

static void free_holder(int h)
{
    iothread_holder_free(holders[h]);
    g_assert_cmpint(freed[h], ==, 1);
}

static void get(List *list, int h, bool has_vqs, const uint8_t *vqs,
                size_t num_vqs)
{
    Hold *hold = &list->model[list->len++];

    *hold = (Hold) { .holder = h, .has_vqs = has_vqs, .num_vqs = num_vqs };
    for (size_t i = 0; i < num_vqs; i++) {
        hold->vqs[i] = vqs[i] * 257;
    }
    iothread_holds_get(list->holds, holders[h], has_vqs, hold->vqs, num_vqs);
}

/* The latest hold of the holder goes, where there is one */
static void put(List *list, int h)
{
    for (size_t i = list->len; i-- > 0;) {
        if (list->model[i].holder == h) {
            iothread_holds_put(list->holds, holders[h]);
            list->len--;
            memmove(&list->model[i], &list->model[i + 1],
                    (list->len - i) * sizeof(Hold));
            return;
        }
    }
}

static bool holds_in(const List *list, int h)
{
    for (size_t i = 0; i < list->len; i++) {
        if (list->model[i].holder == h) {
            return true;
        }
    }
    return false;
}

static void check_holder(int h)
{
    List *any = iothread_holder_any(holders[h]);

    if (any) {
        g_assert_true(holds_in(any, h));
        return;
    }
    for (int l = 0; l < LISTS; l++) {
        g_assert_false(holds_in(&lists[l], h));
    }
}

static void check_hold(const void *info, bool has_vqs, const uint16_t *vqs,
                       size_t num_vqs, void *opaque)
{
    const Hold **next = opaque, *hold = (*next)++;

    g_assert_cmpint(*(const int *)info, ==, hold->holder);
    g_assert_cmpint(has_vqs, ==, hold->has_vqs);
    g_assert_cmpuint(num_vqs, ==, hold->num_vqs);
    g_assert_true(!num_vqs ||
                  !memcmp(vqs, hold->vqs, num_vqs * sizeof(*vqs)));
}

static void check_list(const List *list)
{
    const Hold *next = list->model;

    iothread_holds_foreach(list->holds, check_hold, &next);
    g_assert_true(next == list->model + list->len);
    g_assert_cmpuint(iothread_holds_count(list->holds), ==, list->len);
}

/* As in "a, b and 3 more" */
static void check_description(const List *list, size_t max)
{
    g_autofree char *text = iothread_holds_describe(list->holds, max);
    g_autoptr(GString) expected = g_string_new("");
    size_t named = 0, all = 0;

    for (int pass = 0; pass < 2; pass++) {
        bool seen[HOLDERS] = { false };

        for (size_t i = 0; i < list->len; i++) {
            int h = list->model[i].holder;

            if (seen[h]) {
                continue;
            }
            seen[h] = true;
            if (!pass) {
                all++;
            } else if (named < max) {
                named++;
                g_string_append_printf(
                    expected, "%s%c", named == 1 ? "" :
                    named == all ? " and " : ", ", 'a' + h);
            }
        }
    }
    if (all > named) {
        g_string_append_printf(expected, "%s%zu%s", named ? " and " : "",
                               all - named, named ? " more" : "");
    }
    g_assert_cmpstr(text, ==, expected->str);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size > MAX_SIZE) {
        return -1; /* not to be kept in the corpus */
    }
    for (int l = 0; l < LISTS; l++) {
        lists[l].holds = iothread_holds_new(&lists[l]);
    }
    for (int h = 0; h < HOLDERS; h++) {
        new_holder(h);
    }

    for (size_t i = 0; i + 1 < size;) {
        int h = data[i] % HOLDERS;
        List *list = &lists[data[i++] / HOLDERS % LISTS];
        uint8_t operation = data[i++];
        size_t vqs = MIN(operation / 8 % (MAX_VQS + 1), size - i);

        switch (operation % 8) {
        case 0:
        case 1:
            get(list, h, false, NULL, 0);
            break;
        case 2:
            get(list, h, true, &data[i], vqs);
            i += vqs;
            break;
        case 3:
        case 4:
            put(list, h);
            break;
        case 5:
            check_description(list, operation / 8 % (HOLDERS + 2));
            break;
        case 6:
            if (!iothread_holder_any(holders[h])) {
                free_holder(h);
                new_holder(h);
            }
            break;
        case 7:
            if (!list->len) {
                iothread_holds_free(list->holds);
                list->holds = iothread_holds_new(list);
            }
            break;
        }
        check_list(list);
        check_holder(h);
    }

    for (int l = 0; l < LISTS; l++) {
        while (lists[l].len) {
            put(&lists[l], lists[l].model[0].holder);
        }
        iothread_holds_free(lists[l].holds);
    }
    for (int h = 0; h < HOLDERS; h++) {
        free_holder(h);
    }
    return 0;
}

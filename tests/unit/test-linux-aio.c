/*
 * Linux AIO where requests complete as they are submitted
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "block/raw-aio.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/defer-call.h"
#include "qemu/iov.h"
#include "qemu/main-loop.h"

enum {
    ROUNDS = 20000,
    BYTES = 512,
};

static int fd;
static int rounds;
static bool done;

/* One read after the other, each from the completion of the one before */
static void coroutine_fn read_entry(void *opaque)
{
    uint8_t buf[BYTES];
    QEMUIOVector qiov;

    for (rounds = 0; rounds < ROUNDS; rounds++) {
        memset(buf, 0xff, sizeof(buf));
        qemu_iovec_init_buf(&qiov, buf, sizeof(buf));
        g_assert_cmpint(laio_co_submit(fd, 0, &qiov, QEMU_AIO_READ, 0, 0),
                        ==, 0);
        g_assert_cmpint(buf[0], ==, 0);
    }
    done = true;
}

/* A file in the page cache is read synchronously: this must not recurse */
static void test_chain(void)
{
    g_autofree char *path = NULL;
    int64_t end = g_get_monotonic_time() + 30 * G_USEC_PER_SEC;

    fd = g_file_open_tmp("test-linux-aio-XXXXXX", &path, NULL);
    g_assert_cmpint(fd, >=, 0);
    unlink(path);
    g_assert_cmpint(ftruncate(fd, BYTES), ==, 0);

    /* The first read is submitted when the coroutine has yielded */
    defer_call_begin();
    qemu_coroutine_enter(qemu_coroutine_create(read_entry, NULL));
    defer_call_end();

    while (!done) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        aio_poll(qemu_get_aio_context(), false);
    }
    g_assert_cmpint(rounds, ==, ROUNDS);
    close(fd);
}

int main(int argc, char **argv)
{
    Error *err = NULL;

    qemu_init_main_loop(&error_fatal);
    g_test_init(&argc, &argv, NULL);

    if (!aio_setup_linux_aio(qemu_get_aio_context(), &err)) {
        g_test_message("%s", error_get_pretty(err));
        error_free(err);
        return 77;
    }

    g_test_add_func("/linux-aio/chain", test_chain);
    return g_test_run();
}

/*
 * A socket chardev that is disconnected while it connects
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/un.h>
#include "chardev/char-fe.h"
#include "qapi/error.h"
#include "qemu/config-file.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "qemu/sockets.h"
#include "system/system.h"

static char *path;

static int listen_at(const char *at)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_strlcpy(addr.sun_path, at, sizeof(addr.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    g_assert_cmpint(listen(fd, 10), ==, 0);
    return fd;
}

static void turn_for(int ms)
{
    gint64 end = g_get_monotonic_time() + ms * 1000;

    do {
        main_loop_wait(true);
        g_usleep(1000);
    } while (g_get_monotonic_time() < end);
}

static void test(bool there)
{
    g_autofree char *name = g_strdup_printf("unix:%s,reconnect-ms=20", path);
    CharFrontend fe = { 0 };
    Chardev *chr;
    int fd = there ? listen_at(path) : -1;

    chr = qemu_chr_new("char", name, NULL);
    g_assert_nonnull(chr);
    g_assert_true(qemu_chr_fe_init(&fe, chr, &error_abort));

    for (int i = 0; i < 20; i++) {
        /* it connects in a thread; the result is for the main loop */
        qemu_chr_fe_disconnect(&fe);
        turn_for(i % 4 * 10);
    }
    turn_for(100);
    g_assert_true(chr->be_open == there);

    qemu_chr_fe_deinit(&fe, true);
    turn_for(50);
    if (there) {
        close(fd);
        g_unlink(path);
    }
}

static void test_there(void)
{
    test(true);
}

static void test_absent(void)
{
    test(false);
}

int main(int argc, char **argv)
{
    g_autofree char *dir = g_dir_make_tmp("test-char-disconnect-XXXXXX", NULL);
    int ret;

    qemu_init_main_loop(&error_abort);
    socket_init();
    g_test_init(&argc, &argv, NULL);
    module_call_init(MODULE_INIT_QOM);
    qemu_add_opts(&qemu_chardev_opts);
    path = g_build_filename(dir, "socket", NULL);

    g_test_add_func("/char/disconnect/there", test_there);
    g_test_add_func("/char/disconnect/absent", test_absent);
    ret = g_test_run();

    g_free(path);
    g_rmdir(dir);
    return ret;
}

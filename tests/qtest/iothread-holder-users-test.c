/*
 * Holders of IOThreads other than disks: balloon, colo-compare, block nodes,
 * block exports, monitors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/socket.h>
#include <sys/un.h>
#include "iothread-holder-utils.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"

#define SET_IOTHREAD(node, iothread) \
    "{ 'execute': 'x-blockdev-set-iothread', 'arguments': {" \
    " 'node-name': '" node "', 'iothread': " iothread " } }"

/*
 * Eject the balloon in slot 5 as a guest does through ACPI.  A reset would not
 * do: the balloon leaves the list of what is being reset, which aborts.
 */
static void eject_balloon(QTestState *s)
{
    qtest_qmp_device_del_send(s, "b0");
    qtest_outl(s, 0xae08, 1 << 5);
    qtest_qmp_eventwait(s, "DEVICE_DELETED");
}

static void test_balloon(void)
{
    QTestState *s = qtest_init(MACHINE TWO_IOTHREADS);

    /* an IOThread that is named but has nothing to do */
    qtest_qmp_assert_success(s,
        "{ 'execute': 'device_add', 'arguments': {"
        " 'driver': 'virtio-balloon-pci', 'id': 'b0', 'iothread': 'io0',"
        " 'addr': '5' } }");
    assert_holders(s, "", "");
    eject_balloon(s);

    for (int round = 0; round < 3; round++) {
        qtest_qmp_assert_success(s,
            "{ 'execute': 'device_add', 'arguments': {"
            " 'driver': 'virtio-balloon-pci', 'id': 'b0', 'iothread': 'io0',"
            " 'free-page-hint': true, 'addr': '5' } }");
        assert_holders(s, "b0", "");
        assert_object_del_fails(s, "io0", "device 'b0'");
        qtest_system_reset(s);
        assert_holders(s, "b0", "");
        eject_balloon(s);
        assert_holders(s, "", "");
    }

    /* after the IOThread was taken, the transport refuses the device */
    assert_error(qtest_qmp(s,
        "{ 'execute': 'device_add', 'arguments': {"
        " 'driver': 'virtio-balloon-pci', 'id': 'b0', 'iothread': 'io0',"
        " 'free-page-hint': true, 'iommu_platform': true,"
        " 'disable-legacy': 'off' } }"), "");
    assert_holders(s, "", "");
    object_del(s, "io0");
    qtest_quit(s);
}

/*
 * A balloon leaves that has hints to take when the VM runs again: the IOThread
 * does not wait for that, and nothing is left there when the hold ends.
 */
static void test_balloon_stopped(void)
{
    enum {
        IO = 0xc000, RING = 0x100000, BUFFER = 0x200000,
        FREE_PAGE_HINT = 1 << 3, SIZE = 1024,
    };
    QTestState *s = qtest_init(MACHINE TWO_IOTHREADS
                               "-blockdev null-co,node-name=n0 ");
    g_autofree char *task = task_of(s, "io0");
    const uint32_t config = 0x80000000 | 5 << 11;

    for (int round = 0; round < 2; round++) {
        qtest_qmp_assert_success(s,
            "{ 'execute': 'device_add', 'arguments': {"
            " 'driver': 'virtio-balloon-pci', 'id': 'b0', 'iothread': 'io0',"
            " 'free-page-hint': true, 'addr': '5' } }");

        /* what a driver does, as in the days before virtio 1.0 */
        qtest_outl(s, 0xcf8, config | 0x10);
        qtest_outl(s, 0xcfc, IO);
        qtest_outl(s, 0xcf8, config | 0x04);
        qtest_outw(s, 0xcfc, 5);
        qtest_outb(s, IO + 0x12, 3);
        g_assert_true(qtest_inl(s, IO) & FREE_PAGE_HINT);
        qtest_outl(s, IO + 0x04, FREE_PAGE_HINT | 1 << 1);
        qtest_outw(s, IO + 0x0e, 3);
        g_assert_cmpuint(qtest_inw(s, IO + 0x0c), ==, SIZE);
        qtest_memset(s, RING, 0, SIZE * 32);
        qtest_outl(s, IO + 0x08, RING >> 12);
        qtest_outb(s, IO + 0x12, 7);

        qtest_qmp_assert_success(s, "{ 'execute': 'stop' }");
        qtest_writeq(s, RING, BUFFER);
        qtest_writel(s, RING + 8, 4096);
        qtest_writew(s, RING + 12, 2); /* written by the device */
        qtest_writew(s, RING + SIZE * 16 + 2, 1);
        qtest_outw(s, IO + 0x10, 3);
        if (round > 0) {
            QDict *rsp;

            /* Others in the IOThread go on: a node's resize is refused there */
            qtest_qmp_assert_success(s, SET_IOTHREAD("n0", "'io0'"));
            rsp = qtest_qmp(s, "{ 'execute': 'block_resize', 'arguments': {"
                               " 'node-name': 'n0', 'size': 512 } }");
            g_assert_true(qdict_haskey(rsp, "error"));
            qobject_unref(rsp);
            qtest_qmp_assert_success(s, SET_IOTHREAD("n0", "null"));
        }
        assert_holders(s, "b0", "");

        eject_balloon(s);
        assert_holders(s, "", "");
        qtest_qmp_assert_success(s, "{ 'execute': 'cont' }");
    }

    object_del(s, "io0");
    g_assert_false(g_file_test(task, G_FILE_TEST_EXISTS));
    qtest_quit(s);
}

/* What only has a link to an IOThread does not keep the thread, unseen */
static void test_links(void)
{
    QTestState *s = qtest_init(MACHINE TWO_IOTHREADS);
    g_autofree char *task0 = task_of(s, "io0");
    g_autofree char *task1 = task_of(s, "io1");
    const char *set_realized = "{ 'execute': 'qom-set', 'arguments': {"
        " 'path': '/machine/peripheral/s0/virtio-backend',"
        " 'property': 'realized', 'value': %i } }";

    qtest_qmp_assert_success(s,
        "{ 'execute': 'device_add', 'arguments': {"
        " 'driver': 'virtio-balloon-pci', 'id': 'b0', 'iothread': 'io0' } }");
    assert_holders(s, "", "");
    object_del(s, "io0");
    g_assert_false(g_file_test(task0, G_FILE_TEST_EXISTS));

    qtest_qmp_assert_success(s,
        "{ 'execute': 'device_add', 'arguments': { 'num_queues': 1,"
        " 'driver': 'virtio-scsi-pci', 'id': 's0', 'iothread': 'io1' } }");
    assert_holders(s, NULL, "s0:0");
    qtest_qmp_assert_success(s, set_realized, false);
    assert_holders(s, NULL, "");
    g_assert_true(g_file_test(task1, G_FILE_TEST_EXISTS));
    object_del(s, "io1");
    g_assert_false(g_file_test(task1, G_FILE_TEST_EXISTS));
    /* QEMU never frees what the first realize made: leak checkers see that */
    if (!getenv("ASAN_OPTIONS")) {
        assert_error(qtest_qmp(s, set_realized, true), "was deleted");
    }
    qtest_quit(s);
}

/* A user's IOThread may be called as one of QEMU's own */
static void test_same_id(void)
{
    QTestState *s = qtest_init(MACHINE "-object iothread,id=mon_iothread");
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads',"
                              " 'arguments': { 'internal': true } }");
    bool seen[2] = { false };
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));
        bool internal = qdict_get_bool(info, "internal");

        if (!strcmp(qdict_get_str(info, "id"), "mon_iothread")) {
            g_assert_false(seen[internal]);
            seen[internal] = true;
        }
    }
    g_assert_true(seen[false] && seen[true]);
    qobject_unref(rsp);
    object_del(s, "mon_iothread");
    qtest_quit(s);
}

/* Three character devices that can be read in an IOThread: in0, in1, out */
static void add_chardevs(QTestState *s, const char *dir)
{
    static const char *const ids[] = { "in0", "in1", "out" };

    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        g_autofree char *path = g_strdup_printf("%s/%s", dir, ids[i]);

        qtest_qmp_assert_success(s,
            "{ 'execute': 'chardev-add', 'arguments': { 'id': %s,"
            " 'backend': { 'type': 'socket', 'data': {"
            " 'addr': { 'type': 'unix', 'data': { 'path': %s } },"
            " 'server': true, 'wait': false } } } }", ids[i], path);
    }
}

static QDict *add_compare(QTestState *s, const char *in0, const char *in1,
                          const char *out, const char *iothread)
{
    return qtest_qmp(s,
        "{ 'execute': 'object-add', 'arguments': {"
        " 'qom-type': 'colo-compare', 'id': 'compare0', 'primary_in': %s,"
        " 'secondary_in': %s, 'outdev': %s, 'iothread': %s } }",
        in0, in1, out, iothread);
}

static void test_colo(void)
{
    g_autofree char *dir = g_dir_make_tmp("iothread-holder-XXXXXX", NULL);
    QTestState *s = qtest_init(MACHINE TWO_IOTHREADS);
    QDict *rsp;

    add_chardevs(s, dir);

    /* completion fails at each step */
    assert_error(add_compare(s, "none", "in1", "out", "io0"), "none");
    assert_error(add_compare(s, "in0", "none", "out", "io0"), "none");
    assert_error(add_compare(s, "in0", "in1", "none", "io0"), "none");
    assert_error(add_compare(s, "in0", "in0", "out", "io0"), "same");
    assert_error(add_compare(s, "in0", "in1", "in0", "io0"), "same");
    assert_error(add_compare(s, "in0", "in1", "out", "io9"), "io9");
    assert_error(qtest_qmp(s,
        "{ 'execute': 'object-add', 'arguments': {"
        " 'qom-type': 'colo-compare', 'id': 'compare0', 'primary_in': 'in0',"
        " 'secondary_in': 'in1', 'outdev': 'out', 'iothread': 'io0',"
        " 'notify_dev': 'none' } }"), "none");
    assert_holders(s, "", "");

    for (int round = 0; round < 3; round++) {
        rsp = add_compare(s, "in0", "in1", "out", "io0");
        g_assert_true(qdict_haskey(rsp, "return"));
        qobject_unref(rsp);
        assert_holders(s, "/objects/compare0", "");
        assert_object_del_fails(s, "io0", "/objects/compare0");

        /* a second one fails while the first is in use */
        assert_error(qtest_qmp(s,
            "{ 'execute': 'object-add', 'arguments': {"
            " 'qom-type': 'colo-compare', 'id': 'compare1',"
            " 'primary_in': 'in0', 'secondary_in': 'in1', 'outdev': 'out',"
            " 'iothread': 'io1' } }"), "in0");
        assert_holders(s, "/objects/compare0", "");

        object_del(s, "compare0");
        assert_holders(s, "", "");
    }
    object_del(s, "io0");
    object_del(s, "io1");
    qtest_quit(s);
    rmdir(dir);
}

/* The same failure with a QEMU without this series takes it down */
static void test_colo_stock(void)
{
    if (dies_with_stock("*qemu_mutex*")) {
        QTestState *s = start_stock(MACHINE TWO_IOTHREADS);

        assert_error(add_compare(s, "none", "in1", "out", "io0"), "none");
        qtest_quit(s);
    }
}

#ifdef CONFIG_LINUX
static void set_iothread(QTestState *s, const char *node, const char *id)
{
    qtest_qmp_assert_success(s,
        "{ 'execute': 'x-blockdev-set-iothread', 'arguments': {"
        " 'node-name': %s, 'iothread': %s } }", node, id);
}

/* An abstract address: it leaves no file, not even when QEMU crashes */
static const char *nbd_address(void)
{
    static char *name;

    if (!name) {
        name = g_strdup_printf("iothread-holder-%d-%u", getpid(),
                               g_random_int());
    }
    return name;
}

static void add_export(QTestState *s, const char *iothread)
{
    qtest_qmp_assert_success(s,
        "{ 'execute': 'nbd-server-start', 'arguments': { 'addr': {"
        " 'type': 'unix', 'data': { 'path': %s, 'abstract': true } } } }",
        nbd_address());
    qtest_qmp_assert_success(s,
        "{ 'execute': 'block-export-add', 'arguments': {"
        " 'type': 'nbd', 'id': 'e0', 'node-name': 'n0', 'iothread': %s } }",
        iothread);
}

/* Nodes and exports hold; the iotest iothread-holders has all the cases */
static void test_block(void)
{
    QTestState *s = qtest_init(MACHINE TWO_IOTHREADS);

    add_node(s, "n0");
    add_node(s, "n1");
    add_export(s, "io0");
    set_iothread(s, "n1", "io1");
    assert_holders(s, "export/e0/n0 node/n0", "node/n1");
    assert_object_del_fails(s, "io0", "block export 'e0'");
    assert_object_del_fails(s, "io1", "block node 'n1'");
    qtest_quit(s);
}

/*
 * In stock QEMU the deletion succeeds and the thread ends, while the node, and
 * the export with it, go on using its AioContext.
 */
static void check_thread_ends(bool export)
{
    g_autofree char *task = NULL;
    QTestState *s = start_stock(MACHINE TWO_IOTHREADS);

    if (!s) {
        return;
    }
    task = task_of(s, "io0");
    add_node(s, "n0");
    if (export) {
        add_export(s, "io0");
    } else {
        set_iothread(s, "n0", "io0");
    }
    g_assert_true(g_file_test(task, G_FILE_TEST_EXISTS));
    object_del(s, "io0");
    g_assert_false(g_file_test(task, G_FILE_TEST_EXISTS));
    qtest_quit(s);
}

static void test_export_stock(void)
{
    check_thread_ends(true);
}

static void test_node_stock(void)
{
    check_thread_ends(false);
}

/* A client of the export of n0 that comes and goes */
static void visit_export(void)
{
    static const char request[] = "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\2n0";
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    char answer[18];

    pstrcpy(addr.sun_path + 1, sizeof(addr.sun_path) - 1, nbd_address());
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr,
                            offsetof(struct sockaddr_un, sun_path) + 1 +
                            strlen(nbd_address())), ==, 0);
    g_assert_cmpint(recv(fd, answer, 18, MSG_WAITALL), ==, 18);
    g_assert_cmpint(send(fd, request, sizeof(request) - 1, 0), ==,
                    sizeof(request) - 1);
    g_assert_cmpint(recv(fd, answer, 10, MSG_WAITALL), ==, 10);
    close(fd);
}

/* The export moves while the server is about to let go of its client */
static void move_export(QTestState *s, int rounds)
{
    add_node(s, "n0");
    add_export(s, "io0");
    for (int i = 0; i < rounds; i++) {
        visit_export();
        qtest_qmp_assert_success(s,
            "{ 'execute': 'x-blockdev-set-iothread', 'arguments': {"
            " 'node-name': 'n0', 'iothread': %s, 'force': true } }",
            i % 2 ? "io0" : "io1");
    }
    qtest_quit(s);
}

static void test_move_export(void)
{
    move_export(qtest_init(MACHINE TWO_IOTHREADS), 500);
}

static void test_move_export_stock(void)
{
    if (dies_with_stock("*client->recv_coroutine == NULL*")) {
        move_export(start_stock(MACHINE TWO_IOTHREADS), 10000);
    }
}
#endif /* CONFIG_LINUX */

static void assert_monitors(QTestState *s, const char *expected)
{
    g_autofree char *holders = query_holders(s, "mon_iothread");

    g_assert_cmpstr(holders, ==, expected);
}

/*
 * Monitors on sockets are read in the internal IOThread, whether or not they
 * negotiate out-of-band commands; HMP is not.
 */
static void test_monitors(void)
{
    g_autofree char *dir = g_dir_make_tmp("iothread-holder-XXXXXX", NULL);
    g_autofree char *args = g_strdup_printf(
        MACHINE TWO_IOTHREADS
        "-chardev socket,id=m1,path=%s/m1,server=on,wait=off "
        "-chardev socket,id=m2,path=%s/m2,server=on,wait=off "
        "-chardev socket,id=h1,path=%s/h1,server=on,wait=off "
        "-mon m1,mode=control -mon m2,mode=control -mon h1 ",
        dir, dir, dir);
    QTestState *s = qtest_init(args);
    QDict *rsp;

    assert_monitors(s, "monitor/char0 monitor/m1 monitor/m2");

    /* not in the list that clients count */
    rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads' }");
    g_assert_null(find_holders(rsp, "mon_iothread"));
    g_assert_nonnull(find_holders(rsp, "io0"));
    qobject_unref(rsp);
    rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads',"
                       " 'arguments': { 'internal': false } }");
    g_assert_null(find_holders(rsp, "mon_iothread"));
    qobject_unref(rsp);

    /* a monitor keeps the character device that it was made with */
    assert_error(qtest_qmp(s, "{ 'execute': 'chardev-change', 'arguments': {"
                              " 'id': 'm1', 'backend': {"
                              " 'type': 'null', 'data': {} } } }"), "");
    assert_monitors(s, "monitor/char0 monitor/m1 monitor/m2");

    /* the one way to make a monitor later: HMP, for a debugger */
    g_free(qtest_hmp(s, "gdbserver unix:%s/gdb,server=on,wait=off", dir));
    assert_monitors(s, "monitor/char0 monitor/m1 monitor/m2");
    g_free(qtest_hmp(s, "gdbserver none"));

    /* nor can it be deleted */
    assert_error(qtest_qmp(s, "{ 'execute': 'object-del',"
                              " 'arguments': { 'id': 'mon_iothread' } }"),
                 "not found");
    qtest_quit(s);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_machine("pc") || !qtest_has_device("virtio-balloon-pci")) {
        g_test_skip("no machine with virtio-balloon-pci");
        return 0;
    }

    qtest_add_func("/iothread-holder-users/balloon", test_balloon);
    qtest_add_func("/iothread-holder-users/balloon-stopped",
                   test_balloon_stopped);
    qtest_add_func("/iothread-holder-users/links", test_links);
    qtest_add_func("/iothread-holder-users/same-id", test_same_id);
    qtest_add_func("/iothread-holder-users/colo", test_colo);
    qtest_add_func("/iothread-holder-users/colo-stock", test_colo_stock);
#ifdef CONFIG_LINUX
    qtest_add_func("/iothread-holder-users/block", test_block);
    qtest_add_func("/iothread-holder-users/export-stock", test_export_stock);
    qtest_add_func("/iothread-holder-users/node-stock", test_node_stock);
    qtest_add_func("/iothread-holder-users/move-export", test_move_export);
    qtest_add_func("/iothread-holder-users/move-export-stock",
                   test_move_export_stock);
#endif
    qtest_add_func("/iothread-holder-users/monitors", test_monitors);

    return g_test_run();
}

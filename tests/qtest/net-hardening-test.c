/*
 * Peers of net filters and of colo-compare that send what none should, or
 * leave at once; filters that are refused, and a NIC that is unplugged
 *
 * Tests whose name ends in -stock show how the binary that
 * QTEST_QEMU_STOCK_BINARY names fails; they are skipped where it is not set.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include <sys/un.h>
#include "libqtest.h"
#include "qobject/qdict.h"
#include "stock-twin.h"

static char *dir;

static QTestState *start(const char *binary)
{
    g_autofree char *args = g_strdup_printf(
        "-machine none -nodefaults -object iothread,id=io0 "
        "-chardev socket,id=p,path=%s/p,server=on,wait=off "
        "-chardev socket,id=s,path=%s/s,server=on,wait=off "
        "-chardev socket,id=o,path=%s/o,server=on,wait=off", dir, dir, dir);

    return qtest_init_ext(binary, args, NULL, true);
}

static int connect_to(const char *name)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", dir, name);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    return fd;
}

static void add_compare(QTestState *s)
{
    qtest_qmp_assert_success(
        s, "{ 'execute': 'object-add', 'arguments': {"
        " 'qom-type': 'colo-compare', 'id': 'cc', 'primary_in': 'p',"
        " 'secondary_in': 's', 'outdev': 'o', 'iothread': 'io0' } }");
}

static void del_compare(QTestState *s)
{
    qtest_qmp_assert_success(s, "{ 'execute': 'object-del',"
                                " 'arguments': { 'id': 'cc' } }");
}

static void send_packet(int fd, const uint8_t *data, uint32_t size)
{
    uint32_t length = htonl(size);

    g_assert_cmpint(send(fd, &length, 4, 0), ==, 4);
    if (size) {
        g_assert_cmpint(send(fd, data, size, 0), ==, size);
    }
}

/* Packets that are shorter than what they say, of each length */
static void test_short(const char *binary)
{
    QTestState *s = start(binary);
    uint8_t packet[80] = {
        [12] = 0x08, 0x00, /* IPv4 */
        [14 + 20 + 12] = 0xf0, /* the longest header of TCP */
    };
    int p = connect_to("p"), c = connect_to("s");

    add_compare(s);
    for (int size = 0; size <= sizeof(packet); size++) {
        packet[14] = size % 2 ? 0x45 : 0x4f;
        packet[23] = size % 3 ? 6 : 17;
        send_packet(p, packet, size);
        send_packet(c, packet, size);
    }
    for (int i = 0; i < 10; i++) {
        qtest_qmp_assert_success(s, "{ 'execute': 'query-status' }");
        g_usleep(10 * 1000);
    }
    close(p);
    close(c);
    del_compare(s);
    qtest_quit(s);
}

static gpointer come_and_go(gpointer stop)
{
    while (!qatomic_read((bool *)stop)) {
        close(connect_to("p"));
        close(connect_to("s"));
    }
    return NULL;
}

/* Peers leave while the handlers are set in the IOThread */
static void test_churn(const char *binary)
{
    QTestState *s = start(binary);
    bool stop = false;
    GThread *thread = g_thread_new("peers", come_and_go, &stop);

    for (int i = 0; i < (binary ? 3000 : 300); i++) {
        add_compare(s);
        del_compare(s);
    }
    stop = true;
    g_thread_join(thread);
    qtest_quit(s);
}

/* A filter that is refused does not close what is not its own */
static void test_filter_refused(const char *binary)
{
    QTestState *s = start(binary);
    g_autofree char *path = g_strdup_printf("/proc/%d/fd/0", qtest_pid(s));
    g_autofree char *before = g_file_read_link(path, NULL);
    g_autofree char *after = NULL;
    QDict *rsp;

    g_assert_nonnull(before);
    rsp = qtest_qmp(s, "{ 'execute': 'object-add', 'arguments': {"
                       " 'qom-type': 'filter-dump', 'id': 'f',"
                       " 'netdev': 'none', 'file': '/dev/null' } }");
    g_assert_true(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
    rsp = qtest_qmp(s, "{ 'execute': 'qom-list-properties',"
                       " 'arguments': { 'typename': 'filter-rewriter' } }");
    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
    after = g_file_read_link(path, NULL);
    g_assert_cmpstr(before, ==, after);
    qtest_quit(s);
}

/* A NIC that is gone is not reset */
static void test_eepro100_unplug(const char *binary)
{
    QTestState *s = qtest_init_ext(binary, "-machine pc -nodefaults", NULL,
                                   true);

    for (int i = 0; i < 3; i++) {
        qtest_qmp_device_add(s, "i82559c", "nic", "{}");
        qtest_qmp_device_del_send(s, "nic");
        /* It completes the unplug */
        qtest_system_reset_nowait(s);
        qtest_qmp_eventwait(s, "DEVICE_DELETED");
        qtest_system_reset_nowait(s);
    }
    qtest_quit(s);
}

static void add(const char *name, StockTest *test)
{
    g_autofree char *path = g_strdup_printf("/net-hardening/%s", name);

    add_twins(path, test, run_stock);
}

int main(int argc, char **argv)
{
    int ret;

    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    dir = g_dir_make_tmp("net-hardening-XXXXXX", NULL);

    add("colo/short", test_short);
    add("colo/churn", test_churn);
    add("filter/refused", test_filter_refused);
    add("eepro100/unplug", test_eepro100_unplug);
    ret = g_test_run();

    rmdir(dir);
    g_free(dir);
    return ret;
}

/*
 * Xen's block devices as holders of IOThreads, without Xen
 *
 * QEMU is the real one, with the real device and its real data plane; the
 * libraries that talk to the hypervisor are replaced, see fake-xen.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "qemu/atomic.h"
#include "qemu/cutils.h"
#include "libqtest.h"
#include "iothread-holder-utils.h"
#include "fake-xen.h"
#include "hw/xen/xen_backend_ops.h"
#include "hw/block/xen_blkif.h"

#define DOMAIN "1"
#define BACKEND(disk) "/local/domain/0/backend/qdisk/" DOMAIN "/" disk
#define FRONTEND(disk) "/local/domain/" DOMAIN "/device/vbd/" disk
#define XVDA "51712"
#define XVDB "51728"

#define RING_REF 1
#define DATA_REF 2
#define PORT 7

#define TIMEOUT_S 30

typedef struct Guest {
    QTestState *s;
    FILE *control;
    char *memory;
    blkif_x86_64_front_ring_t ring;
} Guest;

G_GNUC_PRINTF(2, 3)
static char *ask(Guest *g, const char *fmt, ...)
{
    char *answer = NULL;
    size_t size = 0;
    va_list ap;
    char *line;
    ssize_t len;

    va_start(ap, fmt);
    line = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    dprintf(fileno(g->control), "%s\n", line);
    g_free(line);
    len = getline(&answer, &size, g->control);
    g_assert_cmpint(len, >, 0);
    answer[len - 1] = 0;
    return answer;
}

#define ask_ok(...) \
    do { \
        char *answer_ = ask(__VA_ARGS__); \
        g_assert_cmpstr(answer_, ==, "ok"); \
        free(answer_); \
    } while (0)

/* Wait until the condition holds, which becomes true of its own accord */
#define wait_until(condition) \
    do { \
        gint64 end_ = g_get_monotonic_time() + TIMEOUT_S * G_USEC_PER_SEC; \
        while (!(condition)) { \
            g_assert_cmpint(g_get_monotonic_time(), <, end_); \
            g_usleep(1000); \
        } \
    } while (0)

static bool has_value(Guest *g, const char *path, const char *expected)
{
    char *value = ask(g, "read %s", path);
    bool same = !strcmp(value, expected);

    free(value);
    return same;
}

static bool has_state(Guest *g, const char *path, enum xenbus_state expected)
{
    char *value = ask(g, "read %s/state", path);
    bool same = atoi(value) == expected;

    free(value);
    return same;
}

static void set_state(Guest *g, const char *path, enum xenbus_state state)
{
    ask_ok(g, "write %s/state %d", path, state);
}

/* Returns false when this QEMU, or this host, cannot do it */
static bool start(Guest *g)
{
    const char *fake = getenv("QTEST_FAKE_XEN");
    g_autofree char *command = NULL;
    g_autofree char *fd = NULL;
    int sockets[2];
    int memory;

    if (!fake) {
        g_test_skip("QTEST_FAKE_XEN does not name the module fake-xen");
        return false;
    }
    if (!qtest_has_machine("xenpv") || !qtest_has_accel("xen")) {
        g_test_skip("this QEMU has no machine xenpv with accelerator xen");
        return false;
    }

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), ==, 0);
    qemu_set_cloexec(sockets[0]);
    g->control = fdopen(sockets[0], "r");
    fd = g_strdup_printf("%d", sockets[1]);
    g_setenv(FAKE_XEN_CONTROL, fd, true);
    g_free(fd);

    memory = memfd_create("guest", 0);
    g_assert_cmpint(memory, >=, 0);
    g_assert_cmpint(ftruncate(memory, FAKE_XEN_PAGES * XEN_PAGE_SIZE), ==, 0);
    g->memory = mmap(NULL, FAKE_XEN_PAGES * XEN_PAGE_SIZE,
                     PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    g_assert_true(g->memory != MAP_FAILED);
    fd = g_strdup_printf("%d", memory);
    g_setenv(FAKE_XEN_MEMORY, fd, true);

    /*
     * The shell that starts QEMU does not get it.  AddressSanitizer wants to
     * be the first of the libraries, but need not.  The '#' keeps libqtest
     * from adding "-accel qtest": xenpv has an accelerator of its own.
     */
    command = g_strdup_printf("env LD_PRELOAD=%s ASAN_OPTIONS=$ASAN_OPTIONS:"
                              "verify_asan_link_order=0 %s", fake,
                              getenv("QTEST_QEMU_BINARY"));
    g_setenv("QTEST_QEMU_FAKE_XEN_BINARY", command, true);
    g->s = qtest_init_ext("QTEST_QEMU_FAKE_XEN_BINARY",
                          "-machine xenpv -xen-attach -xen-domid " DOMAIN
                          " -nodefaults " TWO_IOTHREADS "#", NULL, true);
    close(sockets[1]);
    close(memory);
    return true;
}

static void finish(Guest *g)
{
    qtest_quit(g->s);
    fclose(g->control);
    munmap(g->memory, FAKE_XEN_PAGES * XEN_PAGE_SIZE);
}

static void add_disk(Guest *g, const char *iothread)
{
    qtest_qmp_assert_success(g->s,
        "{ 'execute': 'device_add', 'arguments': { 'driver': 'xen-disk',"
        " 'id': 'disk0', 'vdev': 'xvda', 'drive': 'node0',"
        " 'iothread': %s } }", iothread);
}

/* The guest's driver finds the device */
static void connect_disk(Guest *g, unsigned int ring_ref)
{
    SHARED_RING_INIT((blkif_x86_64_sring_t *)(g->memory +
                                              RING_REF * XEN_PAGE_SIZE));
    FRONT_RING_INIT(&g->ring, (blkif_x86_64_sring_t *)
                              (g->memory + RING_REF * XEN_PAGE_SIZE),
                    XEN_PAGE_SIZE);
    ask_ok(g, "write " FRONTEND(XVDA) "/ring-ref %u", ring_ref);
    ask_ok(g, "write " FRONTEND(XVDA) "/event-channel %d", PORT);
    ask_ok(g, "write " FRONTEND(XVDA) "/protocol " XEN_IO_PROTO_ABI_X86_64);
    set_state(g, FRONTEND(XVDA), XenbusStateInitialised);
}

/* Read a sector, and say which thread served the request */
static int read_sector(Guest *g)
{
    char *data = g->memory + DATA_REF * XEN_PAGE_SIZE;
    blkif_x86_64_sring_t *shared = g->ring.sring;
    blkif_x86_64_request_t *req;
    int thread;
    char *answer;

    memset(data, 0xff, XEN_PAGE_SIZE);
    req = RING_GET_REQUEST(&g->ring, g->ring.req_prod_pvt);
    memset(req, 0, sizeof(*req));
    req->operation = BLKIF_OP_READ;
    req->id = 42;
    req->nr_segments = 1;
    req->seg[0].gref = DATA_REF;
    g->ring.req_prod_pvt++;
    RING_PUSH_REQUESTS(&g->ring);
    ask_ok(g, "kick %d", PORT);

    wait_until(qatomic_load_acquire(&shared->rsp_prod) ==
               g->ring.rsp_cons + 1);
    g_assert_cmpint(RING_GET_RESPONSE(&g->ring, g->ring.rsp_cons)->id, ==, 42);
    g_assert_cmpint(RING_GET_RESPONSE(&g->ring, g->ring.rsp_cons)->status,
                    ==, BLKIF_RSP_OKAY);
    g->ring.rsp_cons++;
    g_assert_true(buffer_is_zero(data, 512));
    g_assert_false(buffer_is_zero(data, XEN_PAGE_SIZE));

    answer = ask(g, "thread %d", PORT);
    thread = atoi(answer);
    free(answer);
    return thread;
}

static void assert_reads_in(Guest *g, const char *iothread)
{
    g_autofree char *task = task_of(g->s, iothread);
    g_autofree char *thread = g_strdup_printf("/%d", read_sector(g));

    g_assert_true(g_str_has_suffix(task, thread));
}

static void wait_deleted(Guest *g, const char *id)
{
    bool gone = false;

    while (!gone) {
        QDict *event = qtest_qmp_eventwait_ref(g->s, "DEVICE_DELETED");
        QDict *data = qdict_get_qdict(event, "data");

        gone = !g_strcmp0(qdict_get_try_str(data, "device"), id);
        qobject_unref(event);
    }
}

/* The driver comes, works, goes, comes back; then the device does */
static void test_disk(void)
{
    Guest g;

    if (!start(&g)) {
        return;
    }
    add_node(g.s, "node0");
    for (int i = 0; i < 2; i++) {
        const char *iothread = i ? "io1" : "io0";
        const char *idle = i ? "" : "disk0", *idle1 = i ? "disk0" : "";
        const char *busy = i ? "" : "disk0 node/node0";
        const char *busy1 = i ? "disk0 node/node0" : "";

        add_disk(&g, iothread);
        assert_holders(g.s, idle, idle1);
        assert_object_del_fails(g.s, iothread, "disk0");

        for (int j = 0; j < 2; j++) {
            connect_disk(&g, RING_REF);
            wait_until(has_state(&g, BACKEND(XVDA), XenbusStateConnected));
            assert_holders(g.s, busy, busy1);
            assert_object_del_fails(g.s, iothread, "disk0");
            assert_reads_in(&g, iothread);

            set_state(&g, FRONTEND(XVDA), XenbusStateClosing);
            wait_until(has_state(&g, BACKEND(XVDA), XenbusStateClosing));
            set_state(&g, FRONTEND(XVDA), XenbusStateClosed);
            wait_until(has_state(&g, BACKEND(XVDA), XenbusStateClosed));
            assert_holders(g.s, idle, idle1);
            assert_object_del_fails(g.s, iothread, "disk0");

            set_state(&g, FRONTEND(XVDA), XenbusStateInitialising);
            wait_until(has_state(&g, BACKEND(XVDA), XenbusStateInitWait));
        }

        /* Unplug while the driver is there, and lets go of its own accord */
        connect_disk(&g, RING_REF);
        wait_until(has_state(&g, BACKEND(XVDA), XenbusStateConnected));
        qtest_qmp_device_del_send(g.s, "disk0");
        wait_until(has_state(&g, BACKEND(XVDA), XenbusStateClosing));
        assert_holders(g.s, busy, busy1);
        assert_object_del_fails(g.s, iothread, "disk0");
        set_state(&g, FRONTEND(XVDA), XenbusStateClosed);
        wait_deleted(&g, "disk0");
        assert_holders(g.s, "", "");
        object_del(g.s, iothread);
        object_add(g.s, iothread);
    }
    finish(&g);
}

static void test_no_iothread(void)
{
    Guest g;
    int thread;

    if (!start(&g)) {
        return;
    }
    add_node(g.s, "node0");
    qtest_qmp_assert_success(g.s,
        "{ 'execute': 'device_add', 'arguments': { 'driver': 'xen-disk',"
        " 'id': 'disk0', 'vdev': 'xvda', 'drive': 'node0' } }");
    connect_disk(&g, RING_REF);
    wait_until(has_state(&g, BACKEND(XVDA), XenbusStateConnected));
    assert_holders(g.s, "", "");
    thread = read_sector(&g);
    g_assert_cmpint(thread, ==, qtest_pid(g.s));
    finish(&g);
}

/* QEMU ends while the driver uses the disk */
static void test_quit(void)
{
    Guest g;

    if (!start(&g)) {
        return;
    }
    add_node(g.s, "node0");
    add_disk(&g, "io0");
    connect_disk(&g, RING_REF);
    wait_until(has_state(&g, BACKEND(XVDA), XenbusStateConnected));
    assert_holders(g.s, "disk0 node/node0", "");
    assert_reads_in(&g, "io0");
    finish(&g);
}

static void test_failure(void)
{
    Guest g;

    if (!start(&g)) {
        return;
    }
    add_node(g.s, "node0");
    for (int i = 0; i < 2; i++) {
        assert_error(qtest_qmp(g.s,
            "{ 'execute': 'device_add', 'arguments': { 'driver': 'xen-disk',"
            " 'id': 'disk0', 'vdev': 'xvda', 'iothread': 'io0' } }"),
            "drive property not set");
        assert_holders(g.s, "", "");
        assert_error(qtest_qmp(g.s,
            "{ 'execute': 'device_add', 'arguments': { 'driver': 'xen-disk',"
            " 'id': 'disk0', 'vdev': 'xvda', 'drive': 'node0',"
            " 'iothread': 'io0', 'logical_block_size': 4096,"
            " 'physical_block_size': 512 } }"),
            "logical_block_size");
        assert_holders(g.s, "", "");
        assert_error(qtest_qmp(g.s,
            "{ 'execute': 'device_add', 'arguments': { 'driver': 'xen-disk',"
            " 'id': 'disk0', 'vdev': 'xvda', 'drive': 'node0',"
            " 'iothread': 'io0', 'frontend-id': 65000 } }"),
            "invalid frontend-id");
        assert_holders(g.s, "", "");
    }
    object_del(g.s, "io0");
    object_add(g.s, "io0");

    /* A driver that offers nonsense, and then comes to its senses */
    add_disk(&g, "io0");
    connect_disk(&g, FAKE_XEN_PAGES);
    assert_holders(g.s, "disk0", "");
    set_state(&g, FRONTEND(XVDA), XenbusStateClosed);
    wait_until(has_state(&g, BACKEND(XVDA), XenbusStateClosed));
    assert_holders(g.s, "disk0", "");
    connect_disk(&g, RING_REF);
    wait_until(has_state(&g, BACKEND(XVDA), XenbusStateConnected));
    assert_holders(g.s, "disk0 node/node0", "");
    assert_reads_in(&g, "io0");
    finish(&g);
}

/* A disk that the toolstack orders comes with an IOThread of its own */
static void test_toolstack(void)
{
    g_autofree char *image = NULL;
    g_autofree char *holders = NULL;
    Guest g;
    int fd;

    if (!start(&g)) {
        return;
    }
    fd = g_file_open_tmp("xen-disk-XXXXXX", &image, NULL);
    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, 1024 * 1024), ==, 0);
    close(fd);

    for (int i = 0; i < 2; i++) {
        g_autofree char *none = query_holders(g.s, "xvdb");
        char *gone;

        g_assert_null(none);
        ask_ok(&g, "write " BACKEND(XVDB) "/params %s", image);
        ask_ok(&g, "write " BACKEND(XVDB) "/mode w");
        ask_ok(&g, "write " BACKEND(XVDB) "/dev xvdb");
        ask_ok(&g, "write " BACKEND(XVDB) "/device-type disk");
        ask_ok(&g, "write " BACKEND(XVDB) "/online 1");
        set_state(&g, FRONTEND(XVDB), XenbusStateInitialising);
        set_state(&g, BACKEND(XVDB), XenbusStateInitialising);
        wait_until(has_state(&g, BACKEND(XVDB), XenbusStateInitWait));

        g_free(holders);
        holders = query_holders(g.s, "xvdb");
        g_assert_true(g_str_has_prefix(holders, "/machine/unattached/"));
        assert_object_del_fails(g.s, "xvdb", holders);
        assert_holders(g.s, "", "");

        set_state(&g, BACKEND(XVDB), XenbusStateClosing);
        wait_until(has_state(&g, BACKEND(XVDB), XenbusStateClosed));
        ask_ok(&g, "write " BACKEND(XVDB) "/online 0");
        wait_until(has_value(&g, BACKEND(XVDB) "/state", ""));
        wait_until(!(gone = query_holders(g.s, "xvdb")) || (g_free(gone), 0));
    }
    finish(&g);
    g_unlink(image);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("/iothread-holder-xen/disk", test_disk);
    qtest_add_func("/iothread-holder-xen/no-iothread", test_no_iothread);
    qtest_add_func("/iothread-holder-xen/quit", test_quit);
    qtest_add_func("/iothread-holder-xen/failure", test_failure);
    qtest_add_func("/iothread-holder-xen/toolstack", test_toolstack);
    return g_test_run();
}

/*
 * Statistics of event loops: IOThreads and the main loop
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/libqos-malloc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "qemu/units.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_ring.h"

#define MACHINE "-machine pc -m 64M -nodefaults "
#define IOTHREADS "-object iothread,id=io0 -object iothread,id=io1 "
#define DISK "-blockdev null-co,node-name=n0,read-zeroes=on " \
             "-device virtio-blk-pci,id=d0,drive=n0,iothread=io0,addr=4 "

enum {
    INTERVAL_MS = 300,
    ATTEMPTS = 10,
};

static const char *const stat_names[] = {
    "busy-time", "poll-hit-time", "poll-miss-time", "blocked-time",
    "cpu-time", "iterations", "events", "wakeups",
};

enum {
    BUSY, HIT, MISS, BLOCKED, CPU, ITERATIONS, EVENTS, WAKEUPS, NUM_STATS,
};

QEMU_BUILD_BUG_ON(ARRAY_SIZE(stat_names) != NUM_STATS);

/* query-stats for @filter, which is JSON; the caller owns the list */
static QList *query(QTestState *s, const char *filter)
{
    g_autofree char *command = g_strdup_printf(
        "{ 'execute': 'query-stats', 'arguments': %s }", filter);
    QDict *rsp = qtest_qmp(s, "%p", qobject_from_json(command, &error_abort));
    QList *list;

    g_assert_true(qdict_haskey(rsp, "return"));
    list = qobject_ref(qdict_get_qlist(rsp, "return"));
    qobject_unref(rsp);
    return list;
}

/* The result for @path, or, if that is NULL, for an object without path */
static QDict *find_result(QList *list, const char *path)
{
    const QListEntry *entry;
    QDict *found = NULL;

    QLIST_FOREACH_ENTRY(list, entry) {
        QDict *result = qobject_to(QDict, qlist_entry_obj(entry));

        if (!g_strcmp0(qdict_get_str(result, "provider"), "event-loop") &&
            !g_strcmp0(qdict_get_try_str(result, "qom-path"), path)) {
            g_assert_null(found);
            found = result;
        }
    }
    return found;
}

/* All figures of one result, which are in the order of the schema */
static void get_figures(QDict *result, uint64_t figures[NUM_STATS])
{
    const QListEntry *entry;
    int i = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(result, "stats"), entry) {
        QDict *stat = qobject_to(QDict, qlist_entry_obj(entry));
        QNum *value = qobject_to(QNum, qdict_get(stat, "value"));

        if (i == CPU && strcmp(qdict_get_str(stat, "name"), "cpu-time")) {
            /* the host does not tell */
            figures[i++] = 0;
        }
        g_assert_cmpint(i, <, NUM_STATS);
        g_assert_cmpstr(qdict_get_str(stat, "name"), ==, stat_names[i]);
        figures[i++] = qnum_get_uint(value);
    }
    g_assert_cmpint(i, ==, NUM_STATS);
}

static void query_iothread(QTestState *s, const char *path,
                           uint64_t figures[NUM_STATS])
{
    g_autofree char *filter = g_strdup_printf(
        "{ 'target': 'iothread', 'iothreads': [ '%s' ] }", path);
    QList *list = query(s, filter);

    g_assert_cmpuint(qlist_size(list), ==, 1);
    get_figures(find_result(list, path), figures);
    qobject_unref(list);
}

static void query_main_loop(QTestState *s, uint64_t figures[NUM_STATS])
{
    QList *list = query(s, "{ 'target': 'vm' }");

    get_figures(find_result(list, NULL), figures);
    qobject_unref(list);
}

static int64_t now_ns(void)
{
    return g_get_monotonic_time() * 1000;
}

/*
 * What changed while @work ran: times in percent, the rest as it is.  The sum
 * is checked.  A loaded host makes a single interval worthless, but not all.
 */
static void measure(QTestState *s, const char *path, void (*work)(void *),
                    void *opaque, double shares[NUM_STATS])
{
    double sum = 0;

    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        uint64_t a[NUM_STATS], b[NUM_STATS];
        int64_t before, start, end, after;

        /* the reading is somewhere in the time that the query takes */
        before = now_ns();
        path ? query_iothread(s, path, a) : query_main_loop(s, a);
        start = (before + now_ns()) / 2;
        if (work) {
            work(opaque);
        } else {
            g_usleep(INTERVAL_MS * 1000);
        }
        after = now_ns();
        path ? query_iothread(s, path, b) : query_main_loop(s, b);
        end = (after + now_ns()) / 2;

        sum = 0;
        for (int i = 0; i < NUM_STATS; i++) {
            g_assert_cmpuint(b[i], >=, a[i]);
            shares[i] = b[i] - a[i];
            if (i <= CPU) {
                shares[i] *= 100.0 / (end - start);
            }
            if (i <= BLOCKED) {
                sum += shares[i];
            }
        }
        if (sum >= 98 && sum <= 102) {
            g_test_message("busy %.2f, hit %.2f, miss %.2f, blocked %.2f, "
                           "CPU %.2f %%; %.0f iterations, %.0f events, "
                           "%.0f wakeups", shares[BUSY], shares[HIT],
                           shares[MISS], shares[BLOCKED], shares[CPU],
                           shares[ITERATIONS], shares[EVENTS],
                           shares[WAKEUPS]);
            return;
        }
        g_test_message("the times add up to %.2f %%", sum);
    }
    g_error("the times never add up, last to %.2f %%", sum);
}

/* --- A driver of the disk: one request, as often as needed --- */

typedef struct {
    QTestState *s;
    QGuestAllocator alloc;
    QPCIBus *bus;
    QVirtioPCIDevice *dev;
    QVirtQueue *vq;
    uint16_t index;
} Driver;

static void driver_start(Driver *d, QTestState *s)
{
    QPCIAddress address = { .devfn = QPCI_DEVFN(4, 0) };
    struct virtio_blk_outhdr header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    uint64_t features, request, data;
    uint32_t head;

    d->s = s;
    alloc_init(&d->alloc, ALLOC_NO_FLAGS, MiB, 64 * MiB, 4096);
    d->bus = qpci_new_pc(s, &d->alloc);
    d->dev = virtio_pci_new(d->bus, &address);
    g_assert_nonnull(d->dev);
    qvirtio_pci_device_enable(d->dev);
    qvirtio_start_device(&d->dev->vdev);
    features = qvirtio_get_features(&d->dev->vdev);
    features &= ~(QVIRTIO_F_BAD_FEATURE | 1ull << VIRTIO_RING_F_EVENT_IDX |
                  1ull << VIRTIO_RING_F_INDIRECT_DESC);
    qvirtio_set_features(&d->dev->vdev, features);
    d->vq = qvirtqueue_setup(&d->dev->vdev, &d->alloc, 0);
    qvirtio_set_driver_ok(&d->dev->vdev);

    request = guest_alloc(&d->alloc, sizeof(header) + 1);
    data = guest_alloc(&d->alloc, 512);
    qtest_memwrite(s, request, &header, sizeof(header));
    head = qvirtqueue_add(s, d->vq, request, sizeof(header), false, true);
    qvirtqueue_add(s, d->vq, data, 512, true, true);
    qvirtqueue_add(s, d->vq, request + sizeof(header), 1, true, false);
    for (int i = 0; i < d->vq->size; i++) {
        qtest_writew(s, d->vq->avail + 4 + 2 * i, head);
    }
    d->index = 0;
}

/*
 * Wait until all requests are done.  As a driver does: while the device polls
 * it wants no kicks, and they would end its polling.
 */
static void driver_submit(Driver *d, int requests)
{
    d->index += requests;
    qvirtqueue_set_avail_idx(d->s, &d->dev->vdev, d->vq, d->index);
    if (!(qtest_readw(d->s, d->vq->used) & VRING_USED_F_NO_NOTIFY)) {
        d->dev->vdev.bus->virtqueue_kick(&d->dev->vdev, d->vq);
    }
    while (qtest_readw(d->s, d->vq->used + 2) != d->index) {
        g_usleep(20);
    }
}

static void driver_end(Driver *d)
{
    qvirtqueue_cleanup(d->dev->vdev.bus, d->vq, &d->alloc);
    qvirtio_reset(&d->dev->vdev);
    g_free(d->dev->pdev);
    g_free(d->dev);
    qpci_free_pc(d->bus);
    alloc_destroy(&d->alloc);
}

/* --- Tests --- */

/* Every member of the schema, for both targets */
static void test_schema(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS);
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'query-stats-schemas',"
                           " 'arguments': { 'provider': 'event-loop' } }");
    QList *schemas = qdict_get_qlist(rsp, "return");
    const QListEntry *entry, *stat_entry;
    bool vm = false, iothread = false;

    g_assert_cmpuint(qlist_size(schemas), ==, 2);
    QLIST_FOREACH_ENTRY(schemas, entry) {
        QDict *schema = qobject_to(QDict, qlist_entry_obj(entry));
        const char *target = qdict_get_str(schema, "target");
        int i = 0;

        g_assert_cmpstr(qdict_get_str(schema, "provider"), ==, "event-loop");
        vm |= g_str_equal(target, "vm");
        iothread |= g_str_equal(target, "iothread");
        QLIST_FOREACH_ENTRY(qdict_get_qlist(schema, "stats"), stat_entry) {
            QDict *stat = qobject_to(QDict, qlist_entry_obj(stat_entry));
            const char *name = qdict_get_str(stat, "name");

            if (i == CPU && strcmp(name, "cpu-time")) {
                i++;
            }
            g_assert_cmpint(i, <, NUM_STATS);
            g_assert_cmpstr(name, ==, stat_names[i]);
            g_assert_cmpstr(qdict_get_str(stat, "type"), ==, "cumulative");
            g_assert_false(qdict_haskey(stat, "bucket-size"));
            if (i <= CPU) {
                g_assert_true(qdict_haskey(stat, "unit"));
                g_assert_true(qdict_haskey(stat, "base"));
                g_assert_cmpstr(qdict_get_str(stat, "unit"), ==, "seconds");
                g_assert_cmpint(qdict_get_int(stat, "base"), ==, 10);
                g_assert_cmpint(qdict_get_int(stat, "exponent"), ==, -9);
            } else {
                g_assert_false(qdict_haskey(stat, "unit"));
                g_assert_false(qdict_haskey(stat, "base"));
                g_assert_cmpint(qdict_get_int(stat, "exponent"), ==, 0);
            }
            i++;
        }
        g_assert_cmpint(i, ==, NUM_STATS);
    }
    g_assert_true(vm && iothread);
    qobject_unref(rsp);
    qtest_quit(s);
}

static void assert_size(QTestState *s, const char *filter, size_t size)
{
    QList *list = query(s, filter);

    g_assert_cmpuint(qlist_size(list), ==, size);
    qobject_unref(list);
}

#define IO0 "'iothreads': [ '/objects/io0' ]"
#define PROVIDER "'providers': [ { 'provider': 'event-loop' } ]"
#define NAMES(names) "{ 'target': 'iothread', " IO0 ", 'providers': " \
                     "[ { 'provider': 'event-loop', 'names': " names " } ] }"

static void assert_names(QTestState *s, const char *filter, const char *names)
{
    QList *list = query(s, filter);
    QDict *result = find_result(list, "/objects/io0");
    g_autoptr(GString) got = g_string_new("");
    const QListEntry *entry;

    if (result) {
        QLIST_FOREACH_ENTRY(qdict_get_qlist(result, "stats"), entry) {
            QDict *stat = qobject_to(QDict, qlist_entry_obj(entry));

            g_string_append_printf(got, "%s ", qdict_get_str(stat, "name"));
        }
    }
    g_assert_cmpstr(got->str, ==, names);
    qobject_unref(list);
}

static void test_filters(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS);
    QList *list;
    QDict *rsp;

    /* by path */
    list = query(s, "{ 'target': 'iothread' }");
    g_assert_cmpuint(qlist_size(list), >=, 2);
    g_assert_nonnull(find_result(list, "/objects/io0"));
    g_assert_nonnull(find_result(list, "/objects/io1"));
    qobject_unref(list);
    assert_size(s, "{ 'target': 'iothread', " IO0 " }", 1);
    assert_size(s, "{ 'target': 'iothread', 'iothreads': [] }", 0);
    assert_size(s, "{ 'target': 'iothread', 'iothreads':"
                   " [ '/objects/io9', 'io0', '', '/objects', '/machine' ] }",
                0);
    assert_size(s, "{ 'target': 'iothread', 'iothreads':"
                   " [ '/objects/io0', '/objects/io1', '/objects/io0' ] }", 2);
    rsp = qtest_qmp(s, "{ 'execute': 'query-stats', 'arguments':"
                       " { 'target': 'vm', 'iothreads': [] } }");
    g_assert_true(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);

    /* by provider */
    assert_size(s, "{ 'target': 'iothread', " IO0 ", " PROVIDER " }", 1);
    assert_size(s, "{ 'target': 'iothread', " IO0 ", 'providers': [] }", 0);
    assert_size(s, "{ 'target': 'iothread', " IO0 ", 'providers':"
                   " [ { 'provider': 'cryptodev' } ] }", 0);
    assert_size(s, "{ 'target': 'vcpu', " PROVIDER " }", 0);
    assert_size(s, "{ 'target': 'cryptodev', " PROVIDER " }", 0);
    assert_size(s, "{ 'target': 'vm', " PROVIDER " }", 1);

    /* by name */
    assert_names(s, NAMES("[ 'events' ]"), "events ");
    assert_names(s, NAMES("[ 'wakeups', 'busy-time', 'wakeups' ]"),
                 "busy-time wakeups ");
    assert_size(s, NAMES("[ 'exits' ]"), 0);
    assert_names(s, NAMES("[]"), "");
    assert_names(s, NAMES("[ 'busy', '', 'exits' ]"), "");
    assert_names(s, NAMES("[ 'exits', 'iterations' ]"), "iterations ");
    qtest_quit(s);
}

/* The results have the order of query-iothreads */
static void test_order(void)
{
    g_autoptr(GString) args = g_string_new(MACHINE);
    const QListEntry *entry;
    QTestState *s;
    QList *list;
    QDict *rsp;

    for (int i = 0; i < 20; i++) {
        g_string_append_printf(args, "-object iothread,id=t%d ", i);
    }
    s = qtest_init(args->str);
    list = query(s, "{ 'target': 'iothread' }");
    rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads' }");
    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));
        g_autofree char *path = g_strdup_printf(
            "/objects/%s", qdict_get_str(info, "id"));
        QDict *result = qobject_to(QDict, qlist_pop(list));

        g_assert_cmpstr(qdict_get_str(result, "qom-path"), ==, path);
        qobject_unref(result);
    }
    qobject_unref(rsp);
    qobject_unref(list);
    qtest_quit(s);
}

static void test_idle(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS DISK);
    double shares[NUM_STATS];

    measure(s, "/objects/io0", NULL, NULL, shares);
    g_assert_cmpfloat(shares[BLOCKED], >=, 95);
    g_assert_cmpfloat(shares[BUSY], <=, 3);
    g_assert_cmpfloat(shares[HIT] + shares[MISS], ==, 0);
    g_assert_cmpfloat(shares[CPU], <=, 3);

    /* somebody asks all the time, the main loop has little else to do */
    measure(s, NULL, NULL, NULL, shares);
    g_assert_cmpfloat(shares[BLOCKED], >=, 80);
    g_assert_cmpfloat(shares[HIT] + shares[MISS], ==, 0);
    qtest_quit(s);
}

static void make_load(void *opaque)
{
    Driver *d = opaque;
    int64_t end = now_ns() + INTERVAL_MS * 1000000ll;

    while (now_ns() < end) {
        driver_submit(d, d->vq->size - 1);
    }
}

/* Many requests at a time keep it busy */
static void test_load(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS
        "-blockdev null-co,node-name=n0,read-zeroes=on "
        "-device virtio-blk-pci,id=d0,drive=n0,iothread=io0,addr=4,"
        "queue-size=1024 ");
    double shares[NUM_STATS];
    Driver d;

    driver_start(&d, s);
    measure(s, "/objects/io0", make_load, &d, shares);
    g_assert_cmpfloat(shares[BUSY], >=, 25);
    /* a loaded host may take the CPU away while the thread is busy */
    g_assert_cmpfloat(shares[CPU], >=, 2);
    g_assert_cmpfloat(shares[EVENTS], >=, 10);
    g_assert_cmpfloat(shares[ITERATIONS], >=, 10);

    measure(s, "/objects/io1", make_load, &d, shares);
    g_assert_cmpfloat(shares[BLOCKED], >=, 95);
    driver_end(&d);
    qtest_quit(s);
}

enum { POLL_MS = 60 };

static void kick_rarely(void *opaque)
{
    /* each makes the IOThread poll for the whole time, in vain, then wait */
    for (int i = 0; i < 4; i++) {
        driver_submit(opaque, 1);
        g_usleep((POLL_MS + 20) * 1000);
    }
}

static void qom_set_poll(QTestState *s, const char *property, int64_t value)
{
    qtest_qmp_assert_success(s, "{ 'execute': 'qom-set', 'arguments': {"
                             " 'path': '/objects/io0', 'property': %s,"
                             " 'value': %" PRId64 " } }", property, value);
}

static void driver_start_polling(Driver *d, QTestState *s)
{
    driver_start(d, s);
    qom_set_poll(s, "poll-max-ns", POLL_MS * 1000000ll);
    /* at once to the maximum, and never less */
    qom_set_poll(s, "poll-grow", 1000000);
    qom_set_poll(s, "poll-shrink", 1);
}

/* Burns a CPU, but is not busy */
static void test_poll_miss(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS DISK);
    double shares[NUM_STATS];
    Driver d;

    driver_start_polling(&d, s);
    for (int i = 0; i < 10; i++) {
        driver_submit(&d, 1);
    }
    g_usleep((POLL_MS + 20) * 1000);

    measure(s, "/objects/io0", kick_rarely, &d, shares);
    g_assert_cmpfloat(shares[MISS], >=, 50);
    g_assert_cmpfloat(shares[BUSY], <=, 5);
    g_assert_cmpfloat(shares[HIT], <=, 10);
    driver_end(&d);
    qtest_quit(s);
}

/*
 * Polling is under way at each reading, and does not count yet: long enough for
 * that to be little, however slow the host is to answer.
 */
static void kick_often(void *opaque)
{
    int64_t end = now_ns() + 6 * INTERVAL_MS * 1000000ll;

    while (now_ns() < end) {
        driver_submit(opaque, 1);
        g_usleep(200);
    }
}

/* Polls until the next request comes */
static void test_poll_hit(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS DISK);
    double shares[NUM_STATS];
    Driver d;

    driver_start_polling(&d, s);
    kick_often(&d);

    measure(s, "/objects/io0", kick_often, &d, shares);
    g_assert_cmpfloat(shares[HIT], >=, 50);
    g_assert_cmpfloat(shares[MISS], <=, 25);
    driver_end(&d);
    qtest_quit(s);
}

static void assert_grows(QTestState *s, uint64_t last[NUM_STATS])
{
    uint64_t figures[NUM_STATS];

    query_iothread(s, "/objects/io0", figures);
    for (int i = 0; i < NUM_STATS; i++) {
        g_assert_cmpuint(figures[i], >=, last[i]);
        last[i] = figures[i];
    }
}

/* The parts of the device go first, with events of their own */
static void wait_deleted(QTestState *s, const char *id)
{
    bool gone = false;

    while (!gone) {
        QDict *event = qtest_qmp_eventwait_ref(s, "DEVICE_DELETED");
        QDict *data = qdict_get_qdict(event, "data");

        gone = !g_strcmp0(qdict_get_try_str(data, "device"), id);
        qobject_unref(event);
    }
}

/* Nothing that the user does makes a figure smaller */
static void test_never_back(void)
{
    QTestState *s = qtest_init(
        MACHINE IOTHREADS "-blockdev null-co,node-name=n0,read-zeroes=on ");
    uint64_t last[NUM_STATS] = { };

    for (int round = 0; round < 5; round++) {
        Driver d;

        qtest_qmp_assert_success(s,
            "{ 'execute': 'device_add', 'arguments': { 'id': 'd0',"
            " 'driver': 'virtio-blk-pci', 'drive': 'n0', 'iothread': 'io0',"
            " 'addr': '4' } }");
        assert_grows(s, last);
        driver_start(&d, s);
        for (int i = 0; i < 20; i++) {
            qom_set_poll(s, "poll-max-ns", i % 3 * 1000000);
            assert_grows(s, last);
            driver_submit(&d, 1);
            assert_grows(s, last);
        }
        driver_end(&d);
        qtest_qmp_device_del_send(s, "d0");
        assert_grows(s, last);
        qtest_system_reset_nowait(s);
        wait_deleted(s, "d0");
        assert_grows(s, last);
    }
    g_assert_cmpuint(last[EVENTS], >, 0);
    qtest_quit(s);
}

static int64_t thread_id(QTestState *s, const char *id)
{
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads' }");
    const QListEntry *entry;
    int64_t found = -1;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));

        if (g_str_equal(qdict_get_str(info, "id"), id)) {
            found = qdict_get_int(info, "thread-id");
        }
    }
    qobject_unref(rsp);
    return found;
}

/* An IOThread under the id of an earlier one has nothing of it */
static void test_recreate(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS);
    uint64_t old[NUM_STATS], new[NUM_STATS];
    int64_t tid = thread_id(s, "io0");
    int64_t start;

    g_usleep(INTERVAL_MS * 1000);
    query_iothread(s, "/objects/io0", old);
    g_assert_cmpuint(old[BLOCKED], >=, INTERVAL_MS * 1000000ull / 2);

    qtest_qmp_assert_success(s, "{ 'execute': 'object-del',"
                                " 'arguments': { 'id': 'io0' } }");
    assert_size(s, "{ 'target': 'iothread', " IO0 " }", 0);
    start = now_ns();
    qtest_qmp_assert_success(s,
        "{ 'execute': 'object-add',"
        " 'arguments': { 'qom-type': 'iothread', 'id': 'io0' } }");
    query_iothread(s, "/objects/io0", new);
    g_assert_cmpuint(new[BUSY] + new[HIT] + new[MISS] + new[BLOCKED], <=,
                     now_ns() - start + 1000000);
    g_assert_cmpint(thread_id(s, "io0"), !=, tid);
    qtest_quit(s);
}

/*
 * The IOThread of monitors runs a GMainContext.  libqtest's own monitor is one
 * of those that can do out-of-band execution, so each command wakes it.
 */
static void ask(void *opaque)
{
    int64_t end = now_ns() + INTERVAL_MS * 1000000ll;

    while (now_ns() < end) {
        qtest_qmp_assert_success(opaque, "{ 'execute': 'query-name' }");
        g_usleep(5000);
    }
}

static void test_internal(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS);
    double shares[NUM_STATS];

    measure(s, "/internal/mon_iothread", ask, s, shares);
    g_assert_cmpfloat(shares[BLOCKED], >=, 50);
    g_assert_cmpfloat(shares[BUSY], >, 0);
    g_assert_cmpfloat(shares[ITERATIONS], >, 10);
    qtest_quit(s);
}

static size_t count(const char *text, const char *what)
{
    size_t n = 0;

    for (; (text = strstr(text, what)); text++) {
        n++;
    }
    return n;
}

static void test_hmp(void)
{
    QTestState *s = qtest_init(MACHINE IOTHREADS);
    g_autofree char *all = qtest_hmp(s, "info stats iothread");
    g_autofree char *vm = qtest_hmp(s, "info stats vm * event-loop");
    g_autofree char *named = qtest_hmp(s,
        "info stats iothread events,blocked-time event-loop");
    g_autofree char *bad = qtest_hmp(s, "info stats nonsense");

    g_assert_cmpuint(count(all, "/objects/io0:\r\n"
                                "provider: event-loop\r\n"
                                "    busy-time (cumulative, ns): "), ==, 1);
    g_assert_cmpuint(count(all, "/objects/io1:\r\n"), ==, 1);
    g_assert_cmpuint(count(all, "/internal/mon_iothread:\r\n"), ==, 1);
    g_assert_cmpuint(count(all, "    wakeups (cumulative): "), ==, 3);

    g_assert_cmpuint(count(vm, "    busy-time (cumulative, ns): "), ==, 1);
    g_assert_cmpuint(count(vm, "    iterations (cumulative): "), ==, 1);
    g_assert_cmpuint(count(vm, "/"), ==, 0);

    g_assert_cmpuint(count(named, "/objects/io0:\r\n"
                           "    blocked-time (cumulative, ns): "), ==, 1);
    g_assert_cmpuint(count(named, "    events (cumulative): "), ==, 3);
    g_assert_cmpuint(count(named, "busy-time"), ==, 0);
    g_assert_cmpuint(count(bad, "invalid stats target"), ==, 1);
    qtest_quit(s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    qtest_add_func("event-loop-stats/schema", test_schema);
    qtest_add_func("event-loop-stats/filters", test_filters);
    qtest_add_func("event-loop-stats/order", test_order);
    qtest_add_func("event-loop-stats/idle", test_idle);
    qtest_add_func("event-loop-stats/load", test_load);
    qtest_add_func("event-loop-stats/poll-miss", test_poll_miss);
    qtest_add_func("event-loop-stats/poll-hit", test_poll_hit);
    qtest_add_func("event-loop-stats/never-back", test_never_back);
    qtest_add_func("event-loop-stats/recreate", test_recreate);
    qtest_add_func("event-loop-stats/internal", test_internal);
    qtest_add_func("event-loop-stats/hmp", test_hmp);
    return g_test_run();
}

/*
 * Holders of IOThreads: who they are, from realize to unrealize
 *
 * Some tests also show what a QEMU without holders does.  They run the binary
 * that QTEST_QEMU_STOCK_BINARY names, and are skipped where it is not set.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "iothread-holder-utils.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"

/* The two ways to map four virtqueues to two IOThreads */
#define ROUND_ROBIN "[ { 'iothread': 'io0' }, { 'iothread': 'io1' } ]"
#define EXPLICIT "[ { 'iothread': 'io0', 'vqs': [ 3, 0 ] }, " \
                 "{ 'iothread': 'io1', 'vqs': [ 1, 2 ] } ]"

/* Start a QEMU with the IOThreads io0 and io1, and the block node n0 */
static QTestState *start(void)
{
    QTestState *s = qtest_init(MACHINE TWO_IOTHREADS);

    add_node(s, "n0");
    return s;
}

/*
 * device_add a disk.  @id and @node may hold any character; @options is JSON
 * with further properties, which starts with a comma unless empty.
 */
static QDict *device_add(QTestState *s, const char *driver, const char *id,
                         const char *node, const char *options)
{
    g_autofree char *json = g_strdup_printf(
        "{ 'driver': '%s'%s }", driver, options);
    QDict *args = qobject_to(QDict, qobject_from_json(json, &error_abort));

    qdict_put_str(args, "id", id);
    qdict_put_str(args, "drive", node);
    return qtest_qmp(s, "{ 'execute': 'device_add', 'arguments': %p }", args);
}

static void add_disk(QTestState *s, const char *id, const char *node,
                     const char *options)
{
    QDict *rsp = device_add(s, "virtio-blk-pci", id, node, options);

    g_assert_true(qdict_haskey(rsp, "return"));
    qobject_unref(rsp);
}

static void assert_disk_fails(QTestState *s, const char *options,
                              const char *error)
{
    assert_error(device_add(s, "virtio-blk-pci", "bad", "n0", options), error);
}

/* Every member of the answer, and the same in HMP */
static void test_realize(void)
{
    QTestState *s = qtest_init(
        MACHINE TWO_IOTHREADS
        "-blockdev null-co,node-name=n0 "
        "-device virtio-blk-pci,id=d0,drive=n0,iothread=io0,num-queues=3");
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads' }");
    QObject *expected = qobject_from_json(
        "[ { 'type': 'qom-object', 'device': 'd0', 'vqs': [ 0, 1, 2 ],"
        " 'qom-path': '/machine/peripheral/d0/virtio-backend' } ]",
        &error_abort);
    g_autofree char *hmp = NULL;

    g_assert_true(qobject_is_equal(QOBJECT(find_holders(rsp, "io0")),
                                   expected));
    g_assert_true(qlist_empty(find_holders(rsp, "io1")));

    hmp = qtest_hmp(s, "info iothreads");
    g_assert_nonnull(strstr(hmp,
        "  holders:\r\n"
        "    type=qom-object qom-path=/machine/peripheral/d0/virtio-backend"
        " device=d0 vqs=0,1,2\r\n"));
    g_assert_nonnull(strstr(hmp, "  holders: none\r\n"));

    qobject_unref(expected);
    qobject_unref(rsp);
    qtest_quit(s);
}

/* No id: the path is all that there is to tell */
static void test_anonymous(void)
{
    QTestState *s = qtest_init(
        MACHINE TWO_IOTHREADS "-blockdev null-co,node-name=n0 "
        "-device virtio-blk-pci,drive=n0,iothread=io0");

    assert_holders(s, "/machine/peripheral-anon/device[0]/virtio-backend:0",
                   "");
    assert_object_del_fails(
        s, "io0", "held by /machine/peripheral-anon/device[0]/virtio-backend");
    qtest_quit(s);
}

static void test_hotplug(void)
{
    QTestState *s = start();

    assert_holders(s, "", "");
    for (int round = 0; round < 3; round++) {
        add_disk(s, "d0", "n0", ", 'iothread': 'io0', 'num-queues': 2");
        assert_holders(s, "d0:0,1", "");
        qtest_system_reset(s);
        assert_holders(s, "d0:0,1", "");
        unplug(s, "d0");
        assert_holders(s, "", "");
    }
    qtest_quit(s);
}

static void test_failed_realize(void)
{
    QTestState *s = start();

    /* before the IOThread is taken */
    assert_disk_fails(s, ", 'iothread': 'io0', 'queue-size': 3",
                      "queue-size");
    assert_disk_fails(s, ", 'iothread': 'io0', 'ioeventfd': false",
                      "ioeventfd is required for iothread");
    assert_disk_fails(s, ", 'iothread': 'io0', 'iothread-vq-mapping': "
                      ROUND_ROBIN, "cannot be set at the same time");
    assert_holders(s, "", "");

    /* after it was taken: the transport refuses what the device offers */
    assert_disk_fails(s, ", 'iothread': 'io0', 'iommu_platform': true,"
                      " 'disable-legacy': 'off'", "VIRTIO_F_IOMMU_PLATFORM");
    assert_holders(s, "", "");
    assert_disk_fails(s, ", 'num-queues': 4, 'iommu_platform': true,"
                      " 'disable-legacy': 'off', 'iothread-vq-mapping': "
                      EXPLICIT, "VIRTIO_F_IOMMU_PLATFORM");
    assert_holders(s, "", "");

    /* none of it left anything behind */
    add_disk(s, "d0", "n0", ", 'iothread': 'io0'");
    assert_holders(s, "d0:0", "");
    unplug(s, "d0");
    object_del(s, "io0");
    object_del(s, "io1");
    qtest_quit(s);
}

static void test_mapping(void)
{
    QTestState *s = start();

    add_disk(s, "d0", "n0", ", 'num-queues': 4, 'iothread-vq-mapping': "
             EXPLICIT);
    assert_holders(s, "d0:3,0", "d0:1,2");
    unplug(s, "d0");
    assert_holders(s, "", "");

    add_disk(s, "d0", "n0", ", 'num-queues': 5, 'iothread-vq-mapping': "
             ROUND_ROBIN);
    assert_holders(s, "d0:0,2,4", "d0:1,3");
    unplug(s, "d0");
    assert_holders(s, "", "");

    /* an IOThread for which no virtqueue is left is held all the same */
    add_disk(s, "d0", "n0", ", 'num-queues': 1, 'iothread-vq-mapping': "
             ROUND_ROBIN);
    assert_holders(s, "d0:0", "d0");
    assert_object_del_fails(s, "io1", "device 'd0'");
    unplug(s, "d0");
    assert_holders(s, "", "");

    qtest_quit(s);
}

static void test_bad_mapping(void)
{
    static const struct {
        const char *mapping;
        const char *error;
    } bad[] = {
        { "[ { 'iothread': 'io0' }, { 'iothread': 'io9' } ]",
          "IOThread \"io9\" object does not exist" },
        { "[ { 'iothread': 'io0' }, { 'iothread': 'mem0' } ]",
          "IOThread \"mem0\" object does not exist" },
        { "[ { 'iothread': 'io0' }, { 'iothread': 'io0' } ]",
          "duplicate IOThread name \"io0\"" },
        { "[ { 'iothread': 'io0', 'vqs': [ 0 ] }, { 'iothread': 'io1' } ]",
          "either all items" },
        { "[ { 'iothread': 'io0', 'vqs': [ 0 ] },"
          " { 'iothread': 'io1', 'vqs': [ 0 ] } ]", "already assigned" },
        { "[ { 'iothread': 'io0', 'vqs': [ 0 ] },"
          " { 'iothread': 'io1', 'vqs': [ 2 ] } ]", "less than num_queues" },
        { "[ { 'iothread': 'io0', 'vqs': [ 0 ] } ]", "missing vq 1" },
        { "[ { 'iothread': '' } ]", "does not exist" },
    };
    QTestState *s = start();

    qtest_qmp_assert_success(s,
        "{ 'execute': 'object-add', 'arguments': {"
        " 'qom-type': 'memory-backend-ram', 'id': 'mem0', 'size': 65536 } }");
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        g_autofree char *options = g_strdup_printf(
            ", 'num-queues': 2, 'iothread-vq-mapping': %s", bad[i].mapping);

        assert_disk_fails(s, options, bad[i].error);
        assert_holders(s, "", "");
    }
    qtest_quit(s);
}

static void test_bad_iothread(void)
{
    QTestState *s = start();

    qtest_qmp_assert_success(s,
        "{ 'execute': 'object-add', 'arguments': {"
        " 'qom-type': 'memory-backend-ram', 'id': 'mem0', 'size': 65536 } }");
    assert_disk_fails(s, ", 'iothread': 'io9'", "io9");
    assert_disk_fails(s, ", 'iothread': 'mem0'", "expected: iothread");
    assert_disk_fails(s, ", 'iothread': '/machine'", "expected: iothread");
    assert_holders(s, "", "");
    qtest_quit(s);
}

/* One IOThread under two names, which the check for duplicates lets pass */
static void test_same_twice(void)
{
    QTestState *s = start();

    add_disk(s, "d0", "n0", ", 'num-queues': 4, 'iothread-vq-mapping': "
             "[ { 'iothread': 'io0' }, { 'iothread': '/objects/io0' } ]");
    assert_holders(s, "d0:0,2 d0:1,3", "");
    assert_object_del_fails(s, "io0", "held by device 'd0' (");
    unplug(s, "d0");
    assert_holders(s, "", "");
    object_del(s, "io0");
    qtest_quit(s);
}

/* Attached in this order, and gone in another one */
static void test_many(void)
{
    enum { DISKS = 20 };
    QTestState *s = start();
    g_autoptr(GString) expected = g_string_new("");

    for (int i = 0; i < DISKS; i++) {
        g_autofree char *id = g_strdup_printf("d%d", i);
        g_autofree char *node = g_strdup_printf("node%d", i);

        add_node(s, node);
        add_disk(s, id, node, ", 'iothread': 'io0'");
        g_string_append_printf(expected, "%s%s:0", i ? " " : "", id);
        assert_holders(s, expected->str, "");
    }
    assert_object_del_fails(
        s, "io0", "device 'd7' (/machine/peripheral/d7/virtio-backend)"
        " and 12 more");

    for (int i = 0; i < DISKS; i++) {
        /* 7 is coprime to their number, so that every disk has its turn */
        g_autofree char *id = g_strdup_printf("d%d", (i + 1) * 7 % DISKS);
        g_autofree char *word = g_strdup_printf("%s:0", id);
        char **words = g_strsplit(expected->str, " ", -1);

        unplug(s, id);
        g_string_assign(expected, "");
        for (char **w = words; *w; w++) {
            if (strcmp(*w, word)) {
                g_string_append_printf(expected, "%s%s",
                                       expected->len ? " " : "", *w);
            }
        }
        g_strfreev(words);
        assert_holders(s, expected->str, "");
    }
    g_assert_cmpuint(expected->len, ==, 0);
    object_del(s, "io0");
    qtest_quit(s);
}

static void test_object_del(void)
{
    QTestState *s = start();

    add_node(s, "n1");
    add_disk(s, "d0", "n0", ", 'iothread': 'io0'");
    add_disk(s, "d1", "n1", ", 'num-queues': 2, 'iothread-vq-mapping': "
             ROUND_ROBIN);

    assert_object_del_fails(
        s, "io0", "object 'io0' is in use, can not be deleted: it is held by "
        "device 'd0' (/machine/peripheral/d0/virtio-backend) and "
        "device 'd1' (/machine/peripheral/d1/virtio-backend)");
    assert_object_del_fails(s, "io1", "device 'd1'");
    assert_holders(s, "d0:0 d1:0", "d1:1");

    /* the unplug was requested, but the guest has not done its part */
    qtest_qmp_device_del_send(s, "d1");
    assert_object_del_fails(s, "io1", "device 'd1'");
    assert_holders(s, "d0:0 d1:0", "d1:1");
    complete_unplug(s, "d1");
    assert_holders(s, "d0:0", "");
    object_del(s, "io1");
    assert_holders(s, "d0:0", NULL);

    assert_object_del_fails(s, "io0", "device 'd0'");
    unplug(s, "d0");
    object_del(s, "io0");
    assert_holders(s, NULL, NULL);

    /* the ids are free again */
    object_add(s, "io0");
    add_disk(s, "d0", "n0", ", 'iothread': 'io0'");
    assert_holders(s, "d0:0", NULL);
    assert_object_del_fails(s, "io0", "device 'd0'");
    qtest_quit(s);
}

/* Without holders the deletion succeeds, and the thread runs on unseen */
static void test_object_del_stock(void)
{
    QTestState *s = start_stock(MACHINE TWO_IOTHREADS);
    g_autofree char *task = NULL;

    if (!s) {
        return;
    }
    task = task_of(s, "io0");
    add_node(s, "n0");
    add_disk(s, "d0", "n0", ", 'iothread': 'io0'");
    object_del(s, "io0");
    g_assert_false(has_iothread(s, "io0"));
#ifdef CONFIG_LINUX
    g_assert_true(g_file_test(task, G_FILE_TEST_EXISTS));
#endif
    qtest_quit(s);
}

/* Any character that device_add takes comes out as it went in */
static void test_odd_id(void)
{
    static const char *const ids[] = {
        "a b", "\"quoted\"", "%s%n", "back\\slash", "\xc3\xa4\xe2\x82\xac",
        "'", "a:b,c=d", "two\nlines",
    };
    QTestState *s = start();

    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        g_autofree char *word = g_strdup_printf("%s:0", ids[i]);
        g_autofree char *error = g_strdup_printf("device '%s'", ids[i]);
        g_autofree char *hmp = NULL;

        add_disk(s, ids[i], "n0", ", 'iothread': 'io0'");
        assert_holders(s, word, "");
        assert_object_del_fails(s, "io0", error);
        hmp = qtest_hmp(s, "info iothreads");
        g_assert_null(strstr(hmp, "two\r"));
        unplug(s, ids[i]);
        assert_holders(s, "", "");
    }
    qtest_quit(s);
}

/* 1000 holds: each of 250 disks takes io0 under the four names that it has */
static void test_thousand(void)
{
    enum { DISKS = 250, PER_BRIDGE = 125 };
    g_autoptr(GString) args = g_string_new(MACHINE TWO_IOTHREADS);
    QTestState *s;
    QDict *rsp;

    for (int i = 0; i < DISKS; i++) {
        int bridge = i / PER_BRIDGE;
        int n = i % PER_BRIDGE;

        if (n == 0) {
            g_string_append_printf(args,
                "-device pci-bridge,id=br%d,chassis_nr=%d,shpc=off ",
                bridge, bridge + 1);
        }
        g_string_append_printf(args,
            "-blockdev null-co,node-name=n%d "
            "-device '{ \"driver\": \"virtio-blk-pci\", \"id\": \"d%d\","
            " \"drive\": \"n%d\", \"bus\": \"br%d\", \"vectors\": 0,"
            " \"addr\": \"%x.%x\", \"multifunction\": true,"
            " \"num-queues\": 4, \"iothread-vq-mapping\": ["
            " { \"iothread\": \"io0\" }, { \"iothread\": \"/objects/io0\" },"
            " { \"iothread\": \"objects/io0\" },"
            " { \"iothread\": \"//objects/io0\" } ] }' ",
            i, i, i, bridge, n / 8 + 1, n % 8);
    }
    s = qtest_init(args->str);

    rsp = qtest_qmp(s, "{ 'execute': 'query-iothreads' }");
    g_assert_cmpuint(qlist_size(find_holders(rsp, "io0")), ==, 4 * DISKS);
    qobject_unref(rsp);
    assert_object_del_fails(s, "io0", " and 242 more");
    qtest_quit(s);
}

static void test_preconfig(void)
{
    QTestState *s = qtest_init("-preconfig -machine pc " TWO_IOTHREADS);

    assert_holders(s, "", "");
    object_del(s, "io1");
    assert_holders(s, "", NULL);
    qtest_qmp_assert_success(s, "{ 'execute': 'x-exit-preconfig' }");
    assert_holders(s, "", NULL);
    qtest_quit(s);
}

/* Every round gives back what it took, so that the threads end with theirs */
static void test_rounds(void)
{
    enum { ROUNDS = 1000 };
    QTestState *s = start();
    g_autofree char *task0 = task_of(s, "io0");
    g_autofree char *task1 = task_of(s, "io1");

    for (int i = 0; i < ROUNDS; i++) {
        add_disk(s, "d0", "n0", i % 2
                 ? ", 'iothread': 'io0'"
                 : ", 'num-queues': 2, 'iothread-vq-mapping': " ROUND_ROBIN);
        unplug(s, "d0");
    }
    assert_holders(s, "", "");
#ifdef CONFIG_LINUX
    g_assert_true(g_file_test(task0, G_FILE_TEST_EXISTS));
    g_assert_true(g_file_test(task1, G_FILE_TEST_EXISTS));
#endif
    object_del(s, "io0");
    object_del(s, "io1");
    g_assert_false(g_file_test(task0, G_FILE_TEST_EXISTS));
    g_assert_false(g_file_test(task1, G_FILE_TEST_EXISTS));
    qtest_quit(s);
}

static QDict *add_hba(QTestState *s, const char *options)
{
    g_autofree char *json = g_strdup_printf(
        "{ 'driver': 'virtio-scsi-pci', 'id': 'hba0'%s }", options);

    return qtest_qmp(s, "{ 'execute': 'device_add', 'arguments': %p }",
                     qobject_from_json(json, &error_abort));
}

static void test_virtio_scsi(void)
{
    QTestState *s = qtest_init(
        MACHINE TWO_IOTHREADS
        "-device virtio-scsi-pci,id=hba0,iothread=io0,num_queues=2");

    assert_holders(s, "hba0:0,1", "");
    qtest_system_reset(s);
    assert_holders(s, "hba0:0,1", "");
    unplug(s, "hba0");
    assert_holders(s, "", "");

    for (int round = 0; round < 3; round++) {
        qobject_unref(add_hba(s, ", 'num_queues': 4, 'iothread-vq-mapping': "
                              EXPLICIT));
        assert_holders(s, "hba0:3,0", "hba0:1,2");
        assert_object_del_fails(s, "io1", "device 'hba0'");
        qtest_system_reset(s);
        assert_holders(s, "hba0:3,0", "hba0:1,2");
        unplug(s, "hba0");
        assert_holders(s, "", "");
    }
    qtest_quit(s);
}

/* Disks move to the first IOThread of their HBA, and back */
static void test_scsi_disks(void)
{
    QTestState *s = start();

    add_node(s, "n1");
    qobject_unref(add_hba(s, ", 'iothread': 'io0'"));
    for (int round = 0; round < 3; round++) {
        qobject_unref(device_add(s, "scsi-hd", "d0", "n0",
                                 ", 'bus': 'hba0.0', 'lun': 1"));
        assert_holders(s, "hba0:0 node/n0", "");
        qtest_system_reset(s);
        assert_holders(s, "hba0:0 node/n0", "");
        qobject_unref(device_add(s, "scsi-hd", "d1", "n1",
                                 ", 'bus': 'hba0.0', 'lun': 2"));
        assert_holders(s, "hba0:0 node/n0 node/n1", "");
        assert_error(device_add(s, "scsi-hd", "bad", "n1",
                                ", 'bus': 'hba0.0', 'lun': 3"), "");
        assert_holders(s, "hba0:0 node/n0 node/n1", "");

        /* what the bus does not let the guest decide goes at once */
        qtest_qmp_device_del(s, "d0");
        assert_holders(s, "hba0:0 node/n1", "");
        qtest_qmp_device_del(s, "d1");
        assert_holders(s, "hba0:0", "");
    }

    /* the HBA takes its disks along */
    qobject_unref(device_add(s, "scsi-hd", "d0", "n0", ", 'bus': 'hba0.0'"));
    assert_holders(s, "hba0:0 node/n0", "");
    unplug(s, "hba0");
    assert_holders(s, "", "");
    object_del(s, "io0");
    qtest_quit(s);
}

#define BAD_MAPPING "[ { 'iothread': 'io0' }, { 'iothread': 'io9' } ]"

/* Whatever the step at which it fails, nothing is held and nothing hangs on */
static void test_scsi_failed_realize(void)
{
    QTestState *s = start();

    for (int round = 0; round < 3; round++) {
        assert_error(add_hba(s, ", 'iothread': 'io0', 'virtqueue_size': 1"),
                     "virtqueue_size");
        assert_error(add_hba(s, ", 'iothread': 'io0', 'num_queues': 0"),
                     "number of queues");
        assert_error(add_hba(s, ", 'iothread': 'io0', 'ioeventfd': false"),
                     "ioeventfd is required");
        assert_error(add_hba(s, ", 'iothread': 'io0', 'iothread-vq-mapping': "
                             ROUND_ROBIN), "same time");
        assert_error(add_hba(s, ", 'num_queues': 2, 'iothread-vq-mapping': "
                             BAD_MAPPING), "io9");
        assert_error(add_hba(s, ", 'iothread': 'io0', 'iommu_platform': true,"
                             " 'disable-legacy': 'off'"),
                     "VIRTIO_F_IOMMU_PLATFORM");
        assert_holders(s, "", "");
    }

    /* what listens to the state of the machine is gone too */
    qtest_qmp_assert_success(s, "{ 'execute': 'stop' }");
    qtest_qmp_assert_success(s, "{ 'execute': 'cont' }");
    qobject_unref(add_hba(s, ", 'iothread': 'io0'"));
    assert_holders(s, "hba0:0", "");
    unplug(s, "hba0");
    object_del(s, "io0");
    qtest_quit(s);
}

/* In stock QEMU the HBA that failed still listens after it was freed */
static void test_scsi_failed_realize_stock(void)
{
    if (dies_with_stock("*signal 11*")) {
        QTestState *s = start_stock(MACHINE TWO_IOTHREADS);

        assert_error(add_hba(s, ", 'num_queues': 2, 'iothread-vq-mapping': "
                             BAD_MAPPING), "io9");
        qtest_qmp_assert_success(s, "{ 'execute': 'stop' }");
        qtest_quit(s);
    }
}

/*
 * Delete the IOThread of a mapping, give its id to another one, and unplug
 * the device
 */
static void test_reused_id(void)
{
    QTestState *s = start();

    add_disk(s, "d0", "n0", ", 'num-queues': 2, 'iothread-vq-mapping': "
             ROUND_ROBIN);
    assert_object_del_fails(s, "io0", "device 'd0'");
    assert_error(qtest_qmp(s, "{ 'execute': 'object-add', 'arguments': {"
                              " 'qom-type': 'iothread', 'id': 'io0' } }"),
                 "attempt to add duplicate property");
    unplug(s, "d0");
    assert_holders(s, "", "");
    qtest_quit(s);
}

/* The same with a QEMU that has no holders: it aborts */
static void test_reused_id_stock(void)
{
    if (dies_with_stock("*obj->parent == NULL*")) {
        QTestState *s = start_stock(MACHINE TWO_IOTHREADS);

        add_node(s, "n0");
        add_disk(s, "d0", "n0", ", 'num-queues': 2, 'iothread-vq-mapping': "
                 ROUND_ROBIN);
        object_del(s, "io0");
        object_add(s, "io0");
        unplug(s, "d0");
        qtest_quit(s);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_machine("pc") || !qtest_has_device("virtio-blk-pci") ||
        !qtest_has_device("virtio-scsi-pci")) {
        g_test_skip("no machine with virtio-blk-pci and virtio-scsi-pci");
        return 0;
    }

    qtest_add_func("/iothread-holder/realize", test_realize);
    qtest_add_func("/iothread-holder/anonymous", test_anonymous);
    qtest_add_func("/iothread-holder/hotplug", test_hotplug);
    qtest_add_func("/iothread-holder/failed-realize", test_failed_realize);
    qtest_add_func("/iothread-holder/mapping", test_mapping);
    qtest_add_func("/iothread-holder/bad-mapping", test_bad_mapping);
    qtest_add_func("/iothread-holder/bad-iothread", test_bad_iothread);
    qtest_add_func("/iothread-holder/same-twice", test_same_twice);
    qtest_add_func("/iothread-holder/many", test_many);
    qtest_add_func("/iothread-holder/object-del", test_object_del);
    qtest_add_func("/iothread-holder/object-del-stock", test_object_del_stock);
    qtest_add_func("/iothread-holder/odd-id", test_odd_id);
    qtest_add_func("/iothread-holder/thousand", test_thousand);
    qtest_add_func("/iothread-holder/preconfig", test_preconfig);
    qtest_add_func("/iothread-holder/rounds", test_rounds);
    qtest_add_func("/iothread-holder/virtio-scsi", test_virtio_scsi);
    qtest_add_func("/iothread-holder/scsi-disks", test_scsi_disks);
    qtest_add_func("/iothread-holder/scsi-failed-realize",
                   test_scsi_failed_realize);
    qtest_add_func("/iothread-holder/scsi-failed-realize-stock",
                   test_scsi_failed_realize_stock);
    qtest_add_func("/iothread-holder/reused-id", test_reused_id);
    qtest_add_func("/iothread-holder/reused-id-stock", test_reused_id_stock);

    return g_test_run();
}

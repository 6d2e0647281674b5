/*
 * What a hostile guest does to virtio devices, and what must not happen then
 *
 * The test is the guest's driver: it writes rings and registers itself, as no
 * correct driver would. Tests whose name ends in -stock do the same to the
 * binary that QTEST_QEMU_STOCK_BINARY names, and show how it fails; they are
 * skipped where that is not set.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include <sys/socket.h>
#include "libqos/libqos.h"
#include "libqos/pci-pc.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_balloon.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_gpu.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "standard-headers/linux/virtio_net.h"
#include "hw/pci/pci_regs.h"
#include "stock-twin.h"
#include "virtio-driver.h"
#include "virtio-program.h"

/* --- How stock fails ----------------------------------------------------- */

/* Seconds after which a QEMU that does not answer counts as hung */
#define HANG 3

static void too_long(int signal)
{
    kill(qemu_pid, SIGKILL);
    _exit(1);
}

static void run_stock_hangs(gconstpointer func)
{
    StockTest *test = func;

    if (dies_with_stock()) {
        struct sigaction action = { .sa_handler = too_long };

        sigaction(SIGALRM, &action, NULL);
        alarm(HANG);
        test(STOCK_BINARY);
    }
}

static void add_both(const char *name, StockTest *test,
                     void (*stock_run)(gconstpointer))
{
    g_autofree char *path = g_strdup_printf("/virtio-hardening/%s", name);

    add_twins(path, test, stock_run);
}

static void add(const char *name, StockTest *test)
{
    add_both(name, test, run_stock);
}

/* --- virtio-scsi --------------------------------------------------------- */

#define SCSI_IOTHREAD "-device virtio-scsi-pci,id=scsi,addr=4,num_queues=1," \
                      "iothread=io0,disable-legacy=on "
#define SCSI_DISK "-device scsi-hd,id=disk,drive=n,bus=scsi.0,scsi-id=1 "
#define CTRL 0
#define CMD 2
#define CDB_SIZE 24 /* in the configuration */
#define SCSI_STATUS 10 /* in the answer */

typedef struct QEMU_PACKED ScsiCmd {
    uint8_t lun[8];
    uint64_t tag;
    uint8_t attr, prio, crn;
    uint8_t cdb[32];
} ScsiCmd;

static const ScsiCmd test_unit_ready = {
    .lun = { 1, 1, 0x40 },
    .tag = 7,
};

static Dev *scsi_new(const char *binary, const char *args)
{
    Dev *d = dev_new(binary, args);

    start_driver(d, 0);
    for (int i = 0; i < 3; i++) {
        setup_queue(d, i, 256);
    }
    return d;
}

/* A vCPU changes the size of CDBs while an IOThread takes requests */
static void test_scsi_cdb_size(const char *binary)
{
    Dev *d = scsi_new(binary, SCSI_IOTHREAD SCSI_DISK);
    uint64_t cdb_size = d->pci->device_cfg_offset + CDB_SIZE;
    gint64 end = g_get_monotonic_time() + (binary ? 15 : 4) * G_USEC_PER_SEC;
    Buffer chain[] = {
        { BUFFERS, 19 + 255, 0 },
        { BUFFERS + PAGE, 200, VRING_DESC_F_WRITE },
    };
    QPCIDevice *pdev = d->pci->pdev;

    driver_ok(d);
    qtest_memset(d->s, BUFFERS, 'A', PAGE);
    qtest_memwrite(d->s, BUFFERS, &test_unit_ready, sizeof(test_unit_ready));
    for (int i = 0; i < 126; i++) {
        write_chain(d, CMD, 2 * i, chain, 2);
    }
    qpci_io_writel(pdev, d->pci->bar, cdb_size, 32);

    do {
        Queue *q = &d->q[CMD];

        for (int i = 0; i < 126; i++) {
            qtest_writew(d->s, q->avail + 4 + 2 * (q->next++ % q->size), 2 * i);
        }
        qtest_writew(d->s, q->avail + 2, q->next);
        kick(d, CMD);
        for (int i = 0; i < 24; i++) {
            qpci_io_writel(pdev, d->pci->bar, cdb_size, 255);
            qpci_io_writel(pdev, d->pci->bar, cdb_size, 32);
        }
        wait_used(d, CMD, q->next);
    } while (g_get_monotonic_time() < end);
    assert_alive(d);
    dev_free(d);
}

/* Memory that QEMU has, in KiB */
static unsigned long resident(Dev *d)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/statm", qtest_pid(d->s));
    g_autofree char *statm = NULL;
    unsigned long pages;

    g_assert_true(g_file_get_contents(path, &statm, NULL, NULL));
    g_assert_cmpint(sscanf(statm, "%*u %lu", &pages), ==, 1);
    return pages * (qemu_real_host_page_size() / 1024);
}

/* Good commands that come with a bad one are not leaked */
static void test_scsi_leak(const char *binary)
{
    Dev *d = scsi_new(binary, SCSI_IOTHREAD SCSI_DISK);
    Buffer good[] = {
        { BUFFERS, sizeof(ScsiCmd), 0 },
        { BUFFERS + PAGE, 200, VRING_DESC_F_WRITE },
    };
    Buffer bad[] = {
        { BUFFERS, 4, 0 },
        { BUFFERS + PAGE, 200, VRING_DESC_F_WRITE },
    };
    uint16_t ring[200] = { 0 };
    unsigned long before = 0;

    ring[ARRAY_SIZE(ring) - 1] = cpu_to_le16(2);
    qtest_memwrite(d->s, BUFFERS, &test_unit_ready, sizeof(test_unit_ready));
    for (int i = 0; i < 60; i++) {
        driver_ok(d);
        write_chain(d, CMD, 0, good, 2);
        write_chain(d, CMD, 2, bad, 2);
        qtest_memwrite(d->s, d->q[CMD].avail + 4, ring, sizeof(ring));
        qtest_writew(d->s, d->q[CMD].avail + 2, ARRAY_SIZE(ring));
        kick(d, CMD);
        wait_status(d, VIRTIO_CONFIG_S_NEEDS_RESET);

        start_driver(d, 0);
        for (int k = 0; k < 3; k++) {
            setup_queue(d, k, 256);
        }
        if (i == 9) {
            before = resident(d);
        }
    }
    /* 50 batches of 199, of more than 600 bytes each */
    g_assert_cmpint(resident(d), <, before + 2 * 1024);
    dev_free(d);
}

/* QEMU can open @count further descriptors; -1: as many as before */
static void limit_descriptors(Dev *d, int count)
{
    struct rlimit limits;
    int n;

    g_assert_cmpint(prlimit(qtest_pid(d->s), RLIMIT_NOFILE, NULL, &limits),
                    ==, 0);
    for (n = 0; count >= 0; n++) {
        g_autofree char *path = g_strdup_printf("/proc/%d/fd/%d",
                                                qtest_pid(d->s), n);

        if (!g_file_test(path, G_FILE_TEST_IS_SYMLINK) && count-- == 0) {
            break;
        }
    }
    limits.rlim_cur = n ? n : limits.rlim_max;
    g_assert_cmpint(prlimit(qtest_pid(d->s), RLIMIT_NOFILE, &limits, NULL),
                    ==, 0);
}

/* CPU time of QEMU, in clock ticks */
static unsigned long cpu_time(Dev *d)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/stat", qtest_pid(d->s));
    g_autofree char *stat = NULL;
    unsigned long user, system;

    g_assert_true(g_file_get_contents(path, &stat, NULL, NULL));
    g_assert_cmpint(sscanf(strrchr(stat, ')') + 1, " %*c %*d %*d %*d %*d %*d "
                           "%*u %*u %*u %*u %*u %lu %lu", &user, &system),
                    ==, 2);
    return user + system;
}

/* The data plane cannot start; then a drained section, and a reset */
static void test_scsi_no_ioeventfd(const char *binary)
{
    Dev *d = scsi_new(binary, SCSI_IOTHREAD SCSI_DISK);
    unsigned long before;

    /* enough for guest notifiers, but not for all host notifiers */
    limit_descriptors(d, 5);
    driver_ok(d);
    limit_descriptors(d, -1);

    /* this drains */
    qtest_qmp_assert_success(
        d->s, "{ 'execute': 'block_set_io_throttle', 'arguments': {"
        " 'id': 'disk', 'bps': 0, 'bps_rd': 0, 'bps_wr': 0,"
        " 'iops': 1000, 'iops_rd': 0, 'iops_wr': 0 } }");
    before = cpu_time(d);
    g_usleep(500 * 1000);
    g_assert_cmpint(cpu_time(d) - before, <, 25 * sysconf(_SC_CLK_TCK) / 100);

    /* it starts at the next attempt, and stops */
    for (int i = 0; i < 2; i++) {
        start_driver(d, 0);
        for (int k = 0; k < 3; k++) {
            setup_queue(d, k, 256);
        }
        driver_ok(d);
    }
    assert_alive(d);
    dev_free(d);
}

typedef struct QEMU_PACKED ScsiTmf {
    uint32_t type, subtype;
    uint8_t lun[8];
    uint64_t tag;
} ScsiTmf;

/* A TMF for all queues is answered with an interrupt without ioeventfd */
static void test_scsi_tmf_no_ioeventfd(const char *binary)
{
    Dev *d = scsi_new(binary, SCSI_IOTHREAD SCSI_DISK);
    ScsiTmf tmf = {
        .subtype = cpu_to_le32(1), /* ABORT_TASK_SET */
        .lun = { 1, 1, 0x40 },
    };
    Buffer chain[] = {
        { BUFFERS, sizeof(tmf), 0 },
        { BUFFERS + PAGE, 1, VRING_DESC_F_WRITE },
    };

    setup_msix(d, CTRL);
    limit_descriptors(d, 0);
    driver_ok(d);
    limit_descriptors(d, -1);

    qtest_memwrite(d->s, BUFFERS, &tmf, sizeof(tmf));
    write_chain(d, CTRL, 0, chain, 2);
    for (int i = 0; i < 200; i++) {
        int tries = 0;

        qtest_writel(d->s, MSI + 4 * CTRL, 0);
        qtest_writeb(d->s, BUFFERS + PAGE, 0xff);
        make_available(d, CTRL, 0);
        kick(d, CTRL);
        while (!qtest_readl(d->s, MSI + 4 * CTRL) && tries++ < 300) {
            g_usleep(10 * 1000);
        }
        g_assert_cmpint(qtest_readl(d->s, MSI + 4 * CTRL), ==, 1 + CTRL);
        g_assert_cmpint(used_idx(d, CTRL), ==, i + 1);
        g_assert_cmpint(qtest_readb(d->s, BUFFERS + PAGE), ==, 0);
    }
    dev_free(d);
}

/* --- virtio-blk ---------------------------------------------------------- */

#define BLK "-device virtio-blk-pci,id=blk,addr=4,drive=n,disable-legacy=on"

typedef struct QEMU_PACKED BlkHeader {
    uint32_t type, ioprio;
    uint64_t sector;
} BlkHeader;

/* An answer of 16 bytes, for which there is one: the last of RAM */
static void test_blk_scsi_cmd(const char *binary)
{
    Dev *d = dev_new(binary, BLK);
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_SCSI_CMD) };
    Buffer chain[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS, 16, 0 },
        { BUFFERS + PAGE, 96, VRING_DESC_F_WRITE },
        { RAM_SIZE - 1, 1, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    start_driver(d, 0);
    setup_queue(d, 0, 256);
    driver_ok(d);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    qtest_writeb(d->s, BUFFERS + 2 * PAGE, 0xff);
    write_chain(d, 0, 0, chain, 5);
    make_available(d, 0, 0);
    kick(d, 0);
    wait_used(d, 0, 1);
    g_assert_cmpint(qtest_readb(d->s, BUFFERS + 2 * PAGE), ==,
                    VIRTIO_BLK_S_IOERR);
    dev_free(d);
}

/*
 * The VM stops when a request is done, but its IOThread has not raised the
 * interrupt yet: a library that is preloaded to QEMU makes that last.
 */
static void test_last_interrupt(const char *binary)
{
    const char *preload = getenv("QTEST_SLOW_NOTIFIER");
    g_autofree char *image = NULL;
    g_autofree char *args = NULL;
    g_autofree char *flag = NULL;
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    Buffer chain[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 512 * 1024, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * 1024 * 1024, 1, VRING_DESC_F_WRITE },
    };
    int fd = g_file_open_tmp("virtio-hardening-XXXXXX", &image, NULL);
    bool lost = false;
    Dev *d;

    if (!preload) {
        g_test_skip("QTEST_SLOW_NOTIFIER is not set");
        return;
    }
    g_assert_cmpint(ftruncate(fd, 1024 * 1024), ==, 0);
    close(fd);
    args = g_strdup_printf(
        "-blockdev file,node-name=file,filename=%s,aio=threads -device "
        "virtio-blk-pci,addr=4,drive=file,disable-legacy=on,iothread=io0",
        image);
    /* QEMU's own notifiers are fast, those for the device are not */
    flag = g_strconcat(image, ".slow", NULL);
    g_setenv("SLOW_NOTIFIER", flag, true);
    g_setenv("LD_PRELOAD", preload, true);
    d = dev_new(binary, args);
    g_unsetenv("LD_PRELOAD");
    g_assert_true(g_file_set_contents(flag, "", 0, NULL));

    start_driver(d, EVENT_IDX);
    setup_queue(d, 0, 256);
    setup_msix(d, 0);
    driver_ok(d);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    write_chain(d, 0, 0, chain, 3);

    /* Stock does not lose each of them */
    for (int i = 0; i < (g_test_subprocess() ? 60 : 2) && !lost; i++) {
        qtest_writel(d->s, MSI, 0);
        for (int k = 0; k < 80; k++) {
            make_available(d, 0, 0);
        }
        /* one interrupt, for the last request */
        qtest_writew(d->s, d->q[0].avail + 4 + 2 * d->q[0].size,
                     d->q[0].next - 1);
        kick(d, 0);
        qtest_qmp_assert_success(d->s, "{ 'execute': 'stop' }");
        g_assert_cmpint(used_idx(d, 0), ==, d->q[0].next);
        lost |= qtest_readl(d->s, MSI) != 1;
        qtest_qmp_assert_success(d->s, "{ 'execute': 'cont' }");
    }
    dev_free(d);
    unlink(image);
    unlink(flag);
    g_assert_false(lost);
}

static Dev *packed_new(const char *binary, const char *more, uint64_t features,
                       int size)
{
    g_autofree char *args = g_strdup_printf(BLK ",packed=on%s", more);
    Dev *d = dev_new(binary, args);

    start_driver(d, PACKED | features);
    setup_queue(d, 0, size);
    driver_ok(d);
    return d;
}

/* A request that is too short, and another behind it */
static void bad_packed(const char *binary, const char *more)
{
    Dev *d = packed_new(binary, more, 0, 0);

    for (int i = 0; i < 2; i++) {
        write_packed(d, 0, i, BUFFERS, 4, i, PACKED_AVAIL);
    }
    kick(d, 0);
    wait_status(d, VIRTIO_CONFIG_S_NEEDS_RESET);
    qtest_qmp_assert_success(d->s, "{ 'execute': 'stop' }");
    dev_free(d);
}

static void test_packed_bad(const char *binary)
{
    bad_packed(binary, "");
}

static void test_packed_bad_iothread(const char *binary)
{
    bad_packed(binary, ",iothread=io0");
}

static void test_packed_empty_table(const char *binary)
{
    Dev *d = packed_new(binary, "", INDIRECT, 0);

    write_packed(d, 0, 0, BUFFERS, 0, 0, PACKED_AVAIL | VRING_DESC_F_INDIRECT);
    kick(d, 0);
    wait_status(d, VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_alive(d);
    dev_free(d);
}

/* GET_ID, from the header at BUFFERS */
static void add_packed_get_id(Dev *d, int i, bool wrap)
{
    uint16_t avail = wrap ? PACKED_AVAIL : 1 << VRING_PACKED_DESC_F_USED;

    write_packed(d, 0, i + 2, BUFFERS + PAGE, 21, i,
                 avail | VRING_DESC_F_WRITE);
    write_packed(d, 0, i + 1, BUFFERS + PAGE, 20, i,
                 avail | VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    write_packed(d, 0, i, BUFFERS, 16, i, avail | VRING_DESC_F_NEXT);
}

static void write_get_id(Dev *d)
{
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_GET_ID) };

    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
}

static uint16_t packed_flags(Dev *d, int i)
{
    return qtest_readw(d->s, d->q[0].desc + i * 16 + 14);
}

/* The ring becomes smaller than what the device has used of it */
static void test_packed_shrink(const char *binary)
{
    Dev *d = packed_new(binary, "", 0, 64);

    write_get_id(d);
    for (int i = 0; i < 30; i += 3) {
        add_packed_get_id(d, i, true);
    }
    kick(d, 0);
    for (int i = 0; i < 500 && packed_flags(d, 27) !=
         (PACKED_AVAIL | 1 << VRING_PACKED_DESC_F_USED); i++) {
        g_usleep(10 * 1000);
    }
    write16(d, COMMON(queue_select), 0);
    write16(d, COMMON(queue_size), 4);
    kick(d, 0);
    assert_alive(d);
    dev_free(d);
}

/* A chain goes on into descriptors that are still in use */
static void test_packed_in_use(const char *binary)
{
    Dev *d = packed_new(binary, "", 0, 4);
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };

    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    write_packed(d, 0, 3, BUFFERS, 16, 1, PACKED_AVAIL | VRING_DESC_F_NEXT);
    write_packed(d, 0, 2, BUFFERS + 2 * PAGE, 1, 0,
                 PACKED_AVAIL | VRING_DESC_F_WRITE);
    write_packed(d, 0, 1, BUFFERS + PAGE, 512, 0,
                 PACKED_AVAIL | VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    write_packed(d, 0, 0, BUFFERS, 16, 0, PACKED_AVAIL | VRING_DESC_F_NEXT);
    kick(d, 0);
    wait_status(d, VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_alive(d);
    dev_free(d);
}

/* What is dropped, as the link is down, has no end */
static void test_packed_drop(const char *binary)
{
    Dev *d = dev_new(binary, "-netdev hubport,id=net,hubid=0 "
                     "-device virtio-net-pci,id=nic,netdev=net,addr=4,"
                     "packed=on,disable-legacy=on");

    start_driver(d, PACKED);
    setup_queue(d, 1, 4);
    driver_ok(d);
    qtest_qmp_assert_success(d->s, "{ 'execute': 'set_link', 'arguments': "
                                   "{ 'name': 'nic', 'up': false } }");
    for (int i = 3; i >= 0; i--) {
        write_packed(d, 1, i, BUFFERS, 16, 0,
                     PACKED_AVAIL | VRING_DESC_F_NEXT);
    }
    kick(d, 1);
    wait_status(d, VIRTIO_CONFIG_S_NEEDS_RESET);
    assert_alive(d);
    dev_free(d);
}

/* As many requests as the ring takes, which is larger than the device's */
static void test_in_order_large(const char *binary)
{
    Dev *d = dev_new(binary,
                     BLK ",in_order=on,queue-size=4,seg-max-adjust=off");
    Buffer chain[] = {
        { BUFFERS, sizeof(BlkHeader), 0 },
        { BUFFERS + PAGE, 20, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    start_driver(d, IN_ORDER);
    setup_queue(d, 0, 1024);
    driver_ok(d);
    write_get_id(d);
    write_chain(d, 0, 0, chain, 3);
    for (int round = 0; round < 4; round++) {
        /* all of them start at descriptor 0 */
        d->q[0].next += 300;
        qtest_writew(d->s, d->q[0].avail + 2, d->q[0].next);
        kick(d, 0);
        wait_used(d, 0, d->q[0].next);
    }
    assert_alive(d);
    dev_free(d);
}

/* All that a ring can hold is in flight */
static void test_in_order_full(const char *binary)
{
    Dev *d = dev_new(binary, BLK ",in_order=on");
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    Queue *q = &d->q[0];

    start_driver(d, IN_ORDER | INDIRECT);
    setup_queue(d, 0, 4);
    driver_ok(d);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    for (int i = 0; i < 4; i++) {
        uint64_t table = BUFFERS + (8 + i) * PAGE;
        Buffer head = { table, 3 * sizeof(struct vring_desc),
                        VRING_DESC_F_INDIRECT };
        Buffer chain[] = {
            { BUFFERS, sizeof(header), 0 },
            { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE },
            { BUFFERS + 2 * PAGE + i, 1, VRING_DESC_F_WRITE },
        };

        write_chain(d, 0, i, &head, 1);
        q->desc = table;
        write_chain(d, 0, 0, chain, 3);
        q->desc = RINGS;
        qtest_writew(d->s, q->avail + 4 + 2 * i, i);
    }
    qtest_writew(d->s, q->avail + 2, 4);
    kick(d, 0);
    wait_used(d, 0, 4);
    dev_free(d);
}

/*
 * The driver takes FEATURES_OK and DRIVER_OK back without a reset, and chooses
 * other @features.
 */
static void change_features(Dev *d, uint64_t features)
{
    write8(d, COMMON(device_status), VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                     VIRTIO_CONFIG_S_DRIVER);
    features |= 1ull << VIRTIO_F_VERSION_1;
    for (int i = 0; i < 2; i++) {
        write32(d, COMMON(guest_feature_select), i);
        write32(d, COMMON(guest_feature), features >> (32 * i));
    }
    write8(d, COMMON(device_status), VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                     VIRTIO_CONFIG_S_DRIVER |
                                     VIRTIO_CONFIG_S_FEATURES_OK);
    driver_ok(d);
}

/* A split ring, where a packed one was set up; without a request before */
static void test_layout(const char *binary)
{
    Dev *d = packed_new(binary, "", 0, 8);
    Buffer chain[] = {
        { BUFFERS, sizeof(BlkHeader), 0 },
        { BUFFERS + PAGE, 20, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    write_get_id(d);
    write_chain(d, 0, 0, chain, 3);
    change_features(d, 0);
    for (int i = 0; i < 4; i++) {
        make_available(d, 0, 0);
        kick(d, 0);
        wait_used(d, 0, i + 1);
    }
    assert_alive(d);
    dev_free(d);
}

/* A packed ring where a split one is used, at an index that only that has */
static void test_layout_in_use(const char *binary)
{
    Dev *d = dev_new(binary,
                     "-blockdev null-co,node-name=slow,read-zeroes=on,"
                     "latency-ns=300000000 "
                     "-device virtio-blk-pci,drive=slow,addr=4,packed=on,"
                     "in_order=on,ioeventfd=off,queue-size=1024,"
                     "disable-legacy=on");
    BlkHeader header = { .type = cpu_to_le32(77) };
    Buffer chain[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };
    Queue *q = &d->q[0];

    start_driver(d, IN_ORDER);
    setup_queue(d, 0, 1024);
    driver_ok(d);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    write_chain(d, 0, 0, chain, 3);
    while (q->next < 65530) {
        /* all of them start at descriptor 0 */
        q->next = MIN(q->next + 1000, 65530);
        qtest_writew(d->s, q->avail + 2, q->next);
        kick(d, 0);
        wait_used(d, 0, q->next);
    }
    header.type = cpu_to_le32(VIRTIO_BLK_T_IN);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    q->next += 100;
    qtest_writew(d->s, q->avail + 2, q->next);
    kick(d, 0);
    change_features(d, PACKED | IN_ORDER);
    wait_used(d, 0, q->next);
    assert_alive(d);

    /* After a reset the driver may choose again */
    start_driver(d, PACKED | IN_ORDER);
    setup_queue(d, 0, 8);
    driver_ok(d);
    write_get_id(d);
    add_packed_get_id(d, 0, true);
    kick(d, 0);
    for (int i = 0; i < 500 && !(packed_flags(d, 0) &
                                 1 << VRING_PACKED_DESC_F_USED); i++) {
        g_usleep(10 * 1000);
    }
    g_assert_cmphex(packed_flags(d, 0), ==,
                    PACKED_AVAIL | 1 << VRING_PACKED_DESC_F_USED);
    dev_free(d);
}

/* What a queue costs that has no packed ring and is not used in order */
static void test_queue_memory(const char *binary)
{
    unsigned long size[2];

    for (int i = 0; i < 2; i++) {
        g_autofree char *args = g_strdup_printf(
            BLK ",queue-size=128,num-queues=%d", i ? 256 : 1);
        Dev *d = dev_new(binary, args);

        start_driver(d, 0);
        size[i] = resident(d);
        dev_free(d);
    }
    g_test_message("%lu KiB, %lu KiB", size[0], size[1]);
    g_assert_cmpint(size[1], <, size[0] + 4 * 1024);
}

/* --- Devices that are refused -------------------------------------------- */

static void device_add_fails(QTestState *s, const char *json)
{
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'device_add', 'arguments': %p }",
                           qdict_from_jsonf_nofail(json, NULL));

    g_assert_true(qdict_haskey(rsp, "error"));
    qobject_unref(rsp);
}

static bool can_delete_node(QTestState *s)
{
    for (int i = 0; i < 200; i++) {
        QDict *rsp = qtest_qmp(s, "{ 'execute': 'blockdev-del',"
                                  " 'arguments': { 'node-name': 'n' } }");
        bool gone = qdict_haskey(rsp, "return");

        qobject_unref(rsp);
        if (gone) {
            return true;
        }
        g_usleep(10 * 1000);
    }
    return false;
}

static QTestState *start(const char *binary)
{
    return qtest_init_ext(binary, "-machine pc -m 64M -nodefaults "
                          "-blockdev null-co,node-name=n", NULL, true);
}

static void test_refused_modes(const char *binary)
{
    QTestState *s = start(binary);

    device_add_fails(s, "{ 'driver': 'virtio-blk-pci', 'drive': 'n',"
                        " 'disable-legacy': 'on', 'disable-modern': true }");
    g_assert_true(can_delete_node(s));
    qtest_quit(s);
}

/* The address spaces of refused devices go, and with them the devices */
static void test_refused_queue_size(const char *binary)
{
    QTestState *s = start(binary);
    bool there = true;

    for (int i = 0; i < 3; i++) {
        device_add_fails(s, "{ 'driver': 'virtio-blk-pci', 'drive': 'n',"
                            " 'queue-size': 3, 'modern-pio-notify': true }");
    }
    for (int i = 0; i < 100 && there; i++) {
        g_autofree char *spaces = qtest_hmp(s, "info mtree");

        there = strstr(spaces, "virtio-pci-cfg");
        g_usleep(10 * 1000);
    }
    g_assert_false(there);
    g_assert_true(can_delete_node(s));
    qtest_quit(s);
}

/* It is refused when it has been plugged already */
static void test_refused_iommu(const char *binary)
{
    QTestState *s = start(binary);

    device_add_fails(s, "{ 'driver': 'virtio-blk-pci', 'drive': 'n',"
                        " 'disable-legacy': 'off', 'iommu_platform': true }");
    g_assert_true(can_delete_node(s));
    qtest_quit(s);
}

static void test_unplug_pio_notify(const char *binary)
{
    QTestState *s = start(binary);

    qtest_qmp_device_add(s, "virtio-rng-pci", "rng",
                         "{ 'disable-modern': true,"
                         " 'modern-pio-notify': true }");
    qtest_qmp_device_del_send(s, "rng");
    qtest_system_reset_nowait(s);
    qtest_qmp_eventwait(s, "DEVICE_DELETED");
    qtest_qmp_assert_success(s, "{ 'execute': 'query-status' }");
    qtest_quit(s);
}

static void test_too_many_queues(const char *binary)
{
    QTestState *s = start(binary);

    device_add_fails(s, "{ 'driver': 'virtio-blk-pci', 'drive': 'n',"
                        " 'num-queues': 2000 }");
    g_assert_true(can_delete_node(s));
    qtest_quit(s);
}

static void test_too_large_queues(const char *binary)
{
    QTestState *s = start(binary);

    device_add_fails(s, "{ 'driver': 'virtio-scsi-pci',"
                        " 'virtqueue_size': 5000 }");
    qtest_quit(s);
}

/* A reset completes the unplug of a device with a reset handler */
static void test_reset_unplugs_balloon(const char *binary)
{
    QTestState *s = start(binary);

    for (int i = 0; i < 3; i++) {
        qtest_qmp_device_add(s, "virtio-balloon-pci", "balloon", "{}");
        qtest_qmp_device_del_send(s, "balloon");
        qtest_system_reset_nowait(s);
        qtest_qmp_eventwait(s, "DEVICE_DELETED");
    }
    qtest_quit(s);
}

/* --- What is in use ------------------------------------------------------ */

/* A queue that is enabled again keeps its ring */
static void test_enable_again(const char *binary)
{
    Dev *d = dev_new(binary, "-device virtio-blk-pci,id=b,addr=4,drive=n,"
                     "disable-legacy=on,iothread=io0");
    QDict *answer, *status;

    start_driver(d, 0);
    setup_queue(d, 0, 256);
    driver_ok(d);
    write16(d, COMMON(queue_select), 0);
    write64(d, COMMON(queue_desc_lo), BUFFERS);
    write16(d, COMMON(queue_enable), 1);
    answer = qtest_qmp(
        d->s, "{ 'execute': 'x-query-virtio-queue-status', 'arguments': {"
        "  'path': '/machine/peripheral/b/virtio-backend', 'queue': 0 } }");
    status = qdict_get_qdict(answer, "return");
    g_assert_cmphex(qdict_get_int(status, "vring-desc"), ==, d->q[0].desc);
    qobject_unref(answer);
    dev_free(d);
}

/*
 * A legacy driver changes features while an IOThread works on the rings.  Those
 * that change a ring do not count, and the others do: there are drivers that
 * set features only now.
 */
static void test_legacy_features(const char *binary)
{
    enum { IO = 0xc000 };
    const uint32_t config = 0x80000000 | QPCI_DEVFN(4, 0) << 8;
    const uint32_t features = 1u << VIRTIO_BLK_F_FLUSH;
    const uint32_t more = features | 1u << VIRTIO_BLK_F_BLK_SIZE;
    Dev *d = dev_start(binary, "-device virtio-blk-pci,addr=4,drive=n,"
                       "iothread=io0,disable-modern=on");

    qtest_outl(d->s, 0xcf8, config | PCI_BASE_ADDRESS_0);
    qtest_outl(d->s, 0xcfc, IO);
    qtest_outl(d->s, 0xcf8, config | PCI_COMMAND);
    qtest_outw(d->s, 0xcfc, PCI_COMMAND_IO | PCI_COMMAND_MASTER);

    for (int i = 0; i < 2; i++) {
        qtest_outb(d->s, IO + VIRTIO_PCI_STATUS, 0);
        qtest_outb(d->s, IO + VIRTIO_PCI_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                                 VIRTIO_CONFIG_S_DRIVER);
        qtest_outl(d->s, IO + VIRTIO_PCI_GUEST_FEATURES, features | EVENT_IDX);
        qtest_outl(d->s, IO + VIRTIO_PCI_GUEST_FEATURES, features);
        qtest_outw(d->s, IO + VIRTIO_PCI_QUEUE_SEL, 0);
        qtest_outl(d->s, IO + VIRTIO_PCI_QUEUE_PFN, RINGS >> 12);
        qtest_outb(d->s, IO + VIRTIO_PCI_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                                 VIRTIO_CONFIG_S_DRIVER |
                                                 VIRTIO_CONFIG_S_DRIVER_OK);
        g_assert_cmphex(qtest_inl(d->s, IO + VIRTIO_PCI_GUEST_FEATURES), ==,
                        features);
        qtest_outl(d->s, IO + VIRTIO_PCI_GUEST_FEATURES, features | EVENT_IDX);
        g_assert_cmphex(qtest_inl(d->s, IO + VIRTIO_PCI_GUEST_FEATURES), ==,
                        features);
        qtest_outl(d->s, IO + VIRTIO_PCI_GUEST_FEATURES, more);
        g_assert_cmphex(qtest_inl(d->s, IO + VIRTIO_PCI_GUEST_FEATURES), ==,
                        more);
    }
    assert_alive(d);
    qtest_quit(d->s);
    qpci_free_pc(d->bus);
    g_free(d);
}

static int64_t mmio_queue_size(QTestState *s)
{
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'x-query-virtio' }");
    QDict *dev = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp, "return")));
    g_autofree char *path = g_strdup(qdict_get_str(dev, "path"));
    int64_t num;

    qobject_unref(rsp);
    rsp = qtest_qmp(s, "{ 'execute': 'x-query-virtio-queue-status',"
                       " 'arguments': { 'path': %s, 'queue': 0 } }", path);
    num = qdict_get_int(qdict_get_qdict(rsp, "return"), "vring-num");
    qobject_unref(rsp);
    return num;
}

/* A legacy driver changes the size of a queue of virtio-mmio in use */
static void test_legacy_mmio(const char *binary)
{
    QTestState *s = qtest_init_ext(binary,
        "-machine microvm -m 64M -nodefaults -object iothread,id=io0 "
        "-global virtio-mmio.force-legacy=on "
        "-blockdev null-co,node-name=n,size=1048576 "
        "-device virtio-blk-device,drive=n,iothread=io0", NULL, true);
    uint64_t base = 0xfeb00000;

    while (qtest_readl(s, base + VIRTIO_MMIO_DEVICE_ID) != VIRTIO_ID_BLOCK) {
        base += 512;
        g_assert_cmphex(base, <, 0xfeb04000);
    }
    g_assert_cmpint(qtest_readl(s, base + VIRTIO_MMIO_VERSION), ==, 1);
    qtest_writel(s, base + VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                               VIRTIO_CONFIG_S_DRIVER);
    qtest_writel(s, base + VIRTIO_MMIO_GUEST_PAGE_SIZE, PAGE);
    qtest_writel(s, base + VIRTIO_MMIO_QUEUE_SEL, 0);
    qtest_writel(s, base + VIRTIO_MMIO_QUEUE_NUM, 64);
    qtest_writel(s, base + VIRTIO_MMIO_QUEUE_ALIGN, PAGE);
    qtest_writel(s, base + VIRTIO_MMIO_QUEUE_PFN, RINGS / PAGE);
    qtest_writel(s, base + VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                               VIRTIO_CONFIG_S_DRIVER |
                                               VIRTIO_CONFIG_S_DRIVER_OK);
    g_assert_cmpint(mmio_queue_size(s), ==, 64);
    qtest_writel(s, base + VIRTIO_MMIO_QUEUE_NUM, 1024);
    g_assert_cmpint(mmio_queue_size(s), ==, 64);
    qtest_quit(s);
}

/* A packet is too long for a buffer of two descriptors, the next is not */
static void test_unpop_packed(const char *binary)
{
    g_autofree char *args = NULL;
    char data[4 + 1000] = { [2] = 1000 >> 8, [3] = 1000 & 0xff };
    int fd[2];
    Dev *d;

    g_assert_cmpint(socketpair(PF_UNIX, SOCK_STREAM, 0, fd), ==, 0);
    args = g_strdup_printf("-netdev socket,fd=%d,id=net -device "
                           "virtio-net-pci,netdev=net,addr=4,packed=on,"
                           "mrg_rxbuf=off,disable-legacy=on", fd[1]);
    d = dev_new(binary, args);
    close(fd[1]);
    start_driver(d, PACKED);
    setup_queue(d, 0, 64);
    write_packed(d, 0, 1, BUFFERS + PAGE, 100, 5,
                 PACKED_AVAIL | VRING_DESC_F_WRITE);
    write_packed(d, 0, 0, BUFFERS, 112, 5,
                 PACKED_AVAIL | VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    driver_ok(d);
    kick(d, 0);

    g_assert_cmpint(send(fd[0], data, 1004, 0), ==, 1004);
    data[2] = 0;
    data[3] = 180;
    memset(data + 4, 0xff, 6);
    g_assert_cmpint(send(fd[0], data, 184, 0), ==, 184);
    for (int i = 0; i < 500 && packed_flags(d, 0) ==
         (PACKED_AVAIL | VRING_DESC_F_WRITE | VRING_DESC_F_NEXT); i++) {
        g_usleep(10 * 1000);
    }
    g_assert_cmphex(packed_flags(d, 0) & 1 << VRING_PACKED_DESC_F_USED, !=, 0);
    g_assert_cmphex(packed_flags(d, 1), ==, PACKED_AVAIL | VRING_DESC_F_WRITE);
    g_assert_cmphex(get_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    close(fd[0]);
    dev_free(d);
}

/* --- DMA that does not go to RAM ----------------------------------------- */

#define IOAPIC 0xfec00000
#define HPET_CFG 0xfed00010
#define SLOW "-blockdev null-co,node-name=slow,read-zeroes=on," \
             "latency-ns=10000000 "
#define BLK_IOTHREAD SLOW "-device virtio-blk-pci,addr=4,drive=slow," \
                     "disable-legacy=on,iothread=io0"

/*
 * Requests whose buffer is not in RAM, while the VM stops, continues and is
 * reset: what has the BQL must not wait for an IOThread that waits for it.
 * Stock only hangs when it meets the moment, so it gets as long as it takes.
 */
static void dma_and_stop(Dev *d, uint64_t features, int index,
                         const Buffer *chain, int n)
{
    bool stock = g_test_subprocess();

    for (int round = 0; stock || round < 25; round++) {
        if (stock) {
            alarm(HANG);
        }
        start_driver(d, features);
        setup_queue(d, index, 256);
        driver_ok(d);
        write_chain(d, index, 0, chain, n);
        for (int i = 0; i < 250; i++) {
            make_available(d, index, 0);
        }
        kick(d, index);
        if (round % 5) {
            qtest_qmp_assert_success(d->s, "{ 'execute': 'stop' }");
            qtest_qmp_assert_success(d->s, "{ 'execute': 'cont' }");
        }
        write8(d, COMMON(device_status), 0);
    }
    assert_alive(d);
    dev_free(d);
}

static void blk_dma_and_stop(const char *binary, const char *args,
                             uint32_t type, const Buffer *data)
{
    Dev *d = dev_new(binary, args);
    BlkHeader header = { .type = cpu_to_le32(type) };
    Buffer chain[] = {
        { BUFFERS, sizeof(header), 0 },
        *data,
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    dma_and_stop(d, 0, 0, chain, 3);
}

static void test_dma_blk_read(const char *binary)
{
    Buffer data = { IOAPIC, 512, VRING_DESC_F_WRITE };

    blk_dma_and_stop(binary, BLK_IOTHREAD, VIRTIO_BLK_T_IN, &data);
}

static void test_dma_blk_write(const char *binary)
{
    Buffer data = { IOAPIC, 512, 0 };

    blk_dma_and_stop(binary, BLK_IOTHREAD, VIRTIO_BLK_T_OUT, &data);
}

/* Its registers are accessed without the BQL, but some of them take it */
static void test_dma_hpet(const char *binary)
{
    Dev *d = dev_new(binary, "-device virtio-blk-pci,addr=4,drive=n,iothread="
                     "io0,disable-legacy=on,serial=AAAABBBBAAAABBBBAAAA");
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_GET_ID) };
    Buffer chain[7] = { { BUFFERS, sizeof(header), 0 } };

    for (int i = 1; i < 6; i++) {
        chain[i] = (Buffer) { HPET_CFG, 4, VRING_DESC_F_WRITE };
    }
    chain[6] = (Buffer) { BUFFERS + PAGE, 1, VRING_DESC_F_WRITE };
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    dma_and_stop(d, 0, 0, chain, 7);
}

static void test_dma_blk_indirect(const char *binary)
{
    Dev *d = dev_new(binary, BLK_IOTHREAD);
    Buffer chain = { IOAPIC, 512, VRING_DESC_F_INDIRECT };

    dma_and_stop(d, INDIRECT, 0, &chain, 1);
}

static void test_dma_scsi(const char *binary)
{
    Dev *d = dev_new(binary, SLOW SCSI_IOTHREAD
                     "-device scsi-hd,drive=slow,bus=scsi.0,scsi-id=1");
    static const ScsiCmd read_10 = {
        .lun = { 1, 1, 0x40 },
        .cdb = { 0x28, [8] = 1 },
    };
    Buffer chain[] = {
        { BUFFERS, 51, 0 },
        { BUFFERS + PAGE, 108, VRING_DESC_F_WRITE },
        { IOAPIC, 512, VRING_DESC_F_WRITE },
    };

    qtest_memwrite(d->s, BUFFERS, &read_10, sizeof(read_10));
    dma_and_stop(d, 0, CMD, chain, 3);
}

static int64_t scsi_in_use(Dev *d)
{
    QDict *rsp = qtest_qmp(
        d->s, "{ 'execute': 'x-query-virtio-queue-status', 'arguments': {"
        "  'path': '/machine/peripheral/scsi/virtio-backend', 'queue': 2 } }");
    int64_t inuse = qdict_get_int(qdict_get_qdict(rsp, "return"), "inuse");

    qobject_unref(rsp);
    return inuse;
}

static void write_pam(Dev *d, uint8_t value)
{
    qtest_outl(d->s, 0xcf8, 0x80000000 | 0x5c);
    qtest_outb(d->s, 0xcfc, value);
}

/* The command is in the first buffer */
static void send_scsi(Dev *d, const ScsiCmd *cmd, const Buffer *chain, int n)
{
    qtest_memwrite(d->s, BUFFERS, cmd, sizeof(*cmd));
    write_chain(d, CMD, 0, chain, n);
    make_available(d, CMD, 0);
    kick(d, CMD);
}

/*
 * A read that flushes first, which takes a while.  Meanwhile its buffer at
 * 0xd0000 is RAM no more: the read fails, and nobody waits for the RAM.
 */
static void test_dma_not_ram_any_more(const char *binary)
{
    Dev *d = scsi_new(binary, "-blockdev null-co,node-name=slow,"
                      "read-zeroes=on,latency-ns=3000000000 " SCSI_IOTHREAD
                      "-device scsi-hd,drive=slow,bus=scsi.0,scsi-id=1");
    static const ScsiCmd write_10 = {
        .lun = { 1, 1, 0x40 },
        .cdb = { 0x2a, [8] = 1 },
    };
    static const ScsiCmd read_10_fua = {
        .lun = { 1, 1, 0x40 },
        .cdb = { 0x28, 0x08, [8] = 1 },
    };
    Buffer out[] = {
        { BUFFERS, 51, 0 },
        { BUFFERS + 2 * PAGE, 512, 0 },
        { BUFFERS + PAGE, 108, VRING_DESC_F_WRITE },
    };
    Buffer in[] = {
        { BUFFERS, 51, 0 },
        { BUFFERS + PAGE, 108, VRING_DESC_F_WRITE },
        { 0xd0000, 512, VRING_DESC_F_WRITE },
    };

    driver_ok(d);
    /* The first command only gets to know that the device is new */
    send_scsi(d, &test_unit_ready, in, 2);
    wait_used(d, CMD, 1);
    /* There must be something to flush */
    send_scsi(d, &write_10, out, 3);
    wait_used(d, CMD, 2);
    g_assert_cmpint(qtest_readb(d->s, BUFFERS + PAGE + SCSI_STATUS), ==, 0);

    write_pam(d, 0x33);
    send_scsi(d, &read_10_fua, in, 3);
    for (int i = 0; i < 500 && !scsi_in_use(d); i++) {
        g_usleep(1000);
    }
    write_pam(d, 0);
    wait_used(d, CMD, 3);
    g_assert_cmphex(get_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    /* CHECK CONDITION */
    g_assert_cmpint(qtest_readb(d->s, BUFFERS + PAGE + SCSI_STATUS), ==, 2);
    qtest_qmp_assert_success(d->s, "{ 'execute': 'stop' }");
    dev_free(d);
}

static void test_dma_balloon(const char *binary)
{
    Dev *d = dev_new(binary, "-device virtio-balloon-pci,id=b,addr=4,"
                     "free-page-hint=on,iothread=io0,disable-legacy=on");
    Buffer chain = { IOAPIC, 4, 0 };

    dma_and_stop(d, 1ull << VIRTIO_BALLOON_F_FREE_PAGE_HINT, 3, &chain, 1);
}

/* A ring that is not in RAM: what the device writes to it is lost */
static void test_dma_ring(const char *binary)
{
    Dev *d = dev_new(binary, BLK_IOTHREAD);
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    Buffer chain[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    start_driver(d, 0);
    setup_queue(d, 0, 256);
    write16(d, COMMON(queue_select), 0);
    write64(d, COMMON(queue_used_lo), IOAPIC);
    write16(d, COMMON(queue_enable), 1);
    driver_ok(d);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    write_chain(d, 0, 0, chain, 3);
    for (int round = 0; round < 10; round++) {
        qtest_writeb(d->s, BUFFERS + 2 * PAGE, 0xff);
        make_available(d, 0, 0);
        kick(d, 0);
        qtest_qmp_assert_success(d->s, "{ 'execute': 'stop' }");
        qtest_qmp_assert_success(d->s, "{ 'execute': 'cont' }");
        for (int i = 0; i < 500; i++) {
            if (qtest_readb(d->s, BUFFERS + 2 * PAGE) == VIRTIO_BLK_S_OK) {
                break;
            }
            g_usleep(10 * 1000);
        }
        g_assert_cmpint(qtest_readb(d->s, BUFFERS + 2 * PAGE), ==,
                        VIRTIO_BLK_S_OK);
    }
    dev_free(d);
}

/* What is read from a disk goes to the registers of the disk */
static void dma_to_itself(const char *binary, const char *args)
{
    Dev *d = dev_new(binary, args);
    Buffer data = {
        d->pci->bar.addr + d->pci->common_cfg_offset, 512, VRING_DESC_F_WRITE
    };

    g_assert_false(d->pci->bar.is_io);
    dev_free(d);
    blk_dma_and_stop(binary, args, VIRTIO_BLK_T_IN, &data);
}

static void test_dma_to_itself_iothread(const char *binary)
{
    dma_to_itself(binary, BLK_IOTHREAD);
}

static void test_dma_to_itself(const char *binary)
{
    dma_to_itself(binary, SLOW "-device virtio-blk-pci,addr=4,drive=slow,"
                  "disable-legacy=on");
}

/* Queue @index of @d reads a sector: @len bytes from 256 on go to @addr */
static void read_to(Dev *d, int index, uint64_t addr, uint32_t len)
{
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    Buffer chain[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 256, VRING_DESC_F_WRITE },
        { addr, len, VRING_DESC_F_WRITE },
        { BUFFERS + PAGE, 256 - len, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    write_chain(d, index, 0, chain, ARRAY_SIZE(chain));
    make_available(d, index, 0);
    kick(d, index);
}

static void reset_machine(Dev *d)
{
    qtest_qmp_assert_success(d->s, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(d->s, "RESET");
}

/*
 * What is read from a disk resets another one.  That cannot wait for all
 * requests: one of them is the one that does it.
 */
static void test_dma_to_other(const char *binary)
{
    Dev *d = dev_new(binary, SLOW
                     "-device virtio-blk-pci,addr=4,drive=slow,"
                     "disable-legacy=on "
                     "-device virtio-blk-pci,addr=5,drive=n,num-queues=2,"
                     "disable-legacy=on");
    Dev other = *d;
    uint8_t status;

    dev_find(&other, QPCI_DEVFN(5, 0));
    start_driver(&other, 0);
    setup_queue(&other, 1, 256);
    driver_ok(&other);
    status = get_status(&other);

    start_driver(d, 0);
    setup_queue(d, 0, 256);
    driver_ok(d);
    read_to(d, 0, other.pci->bar.addr + other.pci->common_cfg_offset +
            COMMON(device_status), 1);
    wait_used(d, 0, 1);
    g_assert_cmphex(get_status(&other), ==, status);
    reset_machine(d);
    assert_alive(d);
    dev_free_pci(&other);
    dev_free(d);
}

/* An NVMe controller with a read in flight; returns the address of CC */
static uint64_t nvme_read(Dev *d, int slot, uint64_t mem)
{
    uint64_t admin = mem, admin_done = mem + PAGE, queue = mem + 2 * PAGE;
    uint32_t create_cq[16] = {
        [0] = cpu_to_le32(0x05 | 1 << 16),
        [6] = cpu_to_le32(mem + 3 * PAGE),
        [10] = cpu_to_le32(1 | 31 << 16), [11] = cpu_to_le32(1),
    };
    uint32_t create_sq[16] = {
        [0] = cpu_to_le32(0x01 | 2 << 16),
        [6] = cpu_to_le32(queue),
        [10] = cpu_to_le32(1 | 31 << 16), [11] = cpu_to_le32(1 | 1 << 16),
    };
    uint32_t read[16] = {
        [0] = cpu_to_le32(0x02 | 3 << 16), [1] = cpu_to_le32(1),
        [6] = cpu_to_le32(mem + 4 * PAGE),
    };
    QPCIDevice *pdev = qpci_device_find(d->bus, QPCI_DEVFN(slot, 0));
    QPCIBar bar;

    g_assert_nonnull(pdev);
    qpci_device_enable(pdev);
    bar = qpci_iomap(pdev, 0, NULL);
    qtest_memset(d->s, mem, 0, 5 * PAGE);
    qpci_io_writel(pdev, bar, 0x24, 31 | 31 << 16);     /* AQA */
    qpci_io_writeq(pdev, bar, 0x28, admin);             /* ASQ */
    qpci_io_writeq(pdev, bar, 0x30, admin_done);        /* ACQ */
    qpci_io_writel(pdev, bar, 0x14, 0x460001);          /* CC */
    g_assert_cmphex(qpci_io_readl(pdev, bar, 0x1c) & 1, ==, 1);

    qtest_memwrite(d->s, admin, create_cq, sizeof(create_cq));
    qtest_memwrite(d->s, admin + 64, create_sq, sizeof(create_sq));
    qpci_io_writel(pdev, bar, 0x1000, 2);
    for (int i = 0; i < 500 && !qtest_readl(d->s, admin_done + 28); i++) {
        g_usleep(10 * 1000);
    }
    g_assert_cmphex(qtest_readl(d->s, admin_done + 28), ==, 2 | 1 << 16);
    qtest_memwrite(d->s, queue, read, sizeof(read));
    qpci_io_writel(pdev, bar, 0x1008, 1);
    g_free(pdev);
    return bar.addr + 0x14;
}

#define DISK(name, latency) \
    "-blockdev null-co,node-name=" name ",read-zeroes=on,size=1048576," \
    "latency-ns=" latency "000000 "

/*
 * What two disks read resets two controllers, which wait for requests. The
 * requests of the disks are not done in the order in which they began to wait.
 */
static void test_dma_waits(const char *binary)
{
    Dev *d = dev_new(binary,
                     DISK("a", "100") DISK("b", "500")
                     DISK("c", "200") DISK("d", "800")
                     "-device virtio-blk-pci,addr=4,drive=a,num-queues=2,"
                     "disable-legacy=on "
                     "-device virtio-blk-pci,addr=5,drive=c,num-queues=2,"
                     "disable-legacy=on "
                     "-device nvme,addr=6,serial=b,drive=b "
                     "-device nvme,addr=7,serial=d,drive=d");
    Dev other = *d;
    uint64_t cc[2];

    dev_find(&other, QPCI_DEVFN(5, 0));
    start_driver(d, 0);
    setup_queue(d, 0, 256);
    driver_ok(d);
    start_driver(&other, 0);
    setup_queue(&other, 1, 256);
    driver_ok(&other);
    cc[0] = nvme_read(d, 6, BUFFERS + 16 * PAGE);
    cc[1] = nvme_read(d, 7, BUFFERS + 32 * PAGE);
    read_to(d, 0, cc[0], 4);
    read_to(&other, 1, cc[1], 4);
    wait_used(d, 0, 1);
    wait_used(&other, 1, 1);
    g_assert_cmphex(qtest_readl(d->s, cc[0]), ==, 0);
    g_assert_cmphex(qtest_readl(d->s, cc[1]), ==, 0);
    reset_machine(d);
    reset_machine(d);

    /* Reset while they wait */
    dev_free_pci(d);
    dev_free_pci(&other);
    dev_find(d, QPCI_DEVFN(4, 0));
    start_driver(d, 0);
    setup_queue(d, 0, 256);
    driver_ok(d);
    cc[0] = nvme_read(d, 6, BUFFERS + 16 * PAGE);
    read_to(d, 0, cc[0], 4);
    g_usleep(200 * 1000);
    reset_machine(d);
    dev_free_pci(d);
    dev_find(d, QPCI_DEVFN(4, 0));
    g_assert_cmphex(get_status(d), ==, 0);
    dev_free(d);
}

/* Commands that fail, with an answer of 24 bytes to @answer */
static void gpu_commands(Dev *d, uint64_t answer, uint64_t fence)
{
    struct virtio_gpu_resource_unref cmd = {
        .hdr.type = cpu_to_le32(VIRTIO_GPU_CMD_RESOURCE_UNREF),
        .hdr.flags = cpu_to_le32(VIRTIO_GPU_FLAG_FENCE),
        .hdr.fence_id = cpu_to_le64(fence),
    };
    Buffer chain[] = {
        { BUFFERS, sizeof(cmd), 0 },
        { answer, sizeof(cmd.hdr), VRING_DESC_F_WRITE },
    };

    start_driver(d, 0);
    setup_queue(d, 0, 64);
    driver_ok(d);
    qtest_memwrite(d->s, BUFFERS, &cmd, sizeof(cmd));
    write_chain(d, 0, 0, chain, 2);
    for (int i = 0; i < 32; i++) {
        make_available(d, 0, 0);
    }
    kick(d, 0);
}

/* A fence is the value that makes the port above reset the device */
static void test_dma_gpu_port(const char *binary)
{
    const uint64_t ecam = 0xb0000000;
    const int port = QPCI_DEVFN(5, 0);
    const uint32_t config = 0x80000000 | port << 8;
    Dev *d;

    if (!qtest_has_device("virtio-gpu-pci")) {
        g_test_skip("no virtio-gpu-pci");
        return;
    }
    d = dev_start(binary, "-machine q35 "
                  "-device pcie-root-port,id=rp,addr=5,chassis=1,slot=1 "
                  "-device virtio-gpu-pci,bus=rp");
    qtest_outl(d->s, 0xcf8, config | PCI_PRIMARY_BUS);
    qtest_outl(d->s, 0xcfc, 0x00010100);
    qtest_outl(d->s, 0xcf8, config | PCI_MEMORY_BASE);
    qtest_outl(d->s, 0xcfc, 0xeff0e000);
    qtest_outl(d->s, 0xcf8, config | PCI_PREF_MEMORY_BASE);
    qtest_outl(d->s, 0xcfc, 0x0000fff0);
    qtest_outl(d->s, 0xcf8, config | PCI_COMMAND);
    qtest_outw(d->s, 0xcfc, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    /* the configuration space of all devices in memory */
    qtest_outl(d->s, 0xcf8, 0x80000060);
    qtest_outl(d->s, 0xcfc, ecam | 1);
    g_assert_cmphex(qtest_readl(d->s, ecam + (port << 12) + PCI_PRIMARY_BUS),
                    ==, 0x00010100);

    dev_find(d, 1 << 8);
    gpu_commands(d, ecam + (port << 12) + PCI_INTERRUPT_LINE -
                 offsetof(struct virtio_gpu_ctrl_hdr, fence_id),
                 PCI_BRIDGE_CTL_BUS_RESET << 16);
    for (int i = 0; i < 3; i++) {
        qtest_system_reset(d->s);
        assert_alive(d);
    }
    dev_free(d);
}

/* A disk in an IOThread makes a fault, which is told by an NMI */
static void test_dma_intel_iommu(const char *binary)
{
    const uint64_t iommu = 0xfed90000;
    const struct {
        uint32_t reg, value;
    } setup[] = {
        { 0x3c, 0x400 }, { 0x40, 0xfee00000 }, { 0x44, 0 }, { 0x38, 0 },
        /* a table of roots that has none */
        { 0x20, BUFFERS }, { 0x24, 0 }, { 0x18, 1 << 30 }, { 0x18, 1u << 31 },
    };
    Dev *d = dev_new(binary, "-machine q35 -device intel-iommu,intremap=off "
                     "-device virtio-blk-pci,addr=4,drive=n,iothread=io0,"
                     "disable-legacy=on,iommu_platform=on");

    start_driver(d, 1ull << VIRTIO_F_ACCESS_PLATFORM);
    setup_queue(d, 0, 64);
    driver_ok(d);
    qtest_memset(d->s, BUFFERS, 0, PAGE);
    for (int i = 0; i < ARRAY_SIZE(setup); i++) {
        qtest_writel(d->s, iommu + setup[i].reg, setup[i].value);
    }
    kick(d, 0);
    while (!qtest_readl(d->s, iommu + 0x34)) {
        g_usleep(1000);
    }
    assert_alive(d);
    dev_free(d);
}

/*
 * A disk in an IOThread is the first to meet that it is passed through, while
 * registers are written
 */
static void test_dma_intel_iommu_pt(const char *binary)
{
    const uint64_t iommu = 0xfed90000, root = BUFFERS + 0x100000;
    const uint64_t entry = root + PAGE + 16 * QPCI_DEVFN(4, 0);
    bool stock = g_test_subprocess();
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    Buffer chain[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };
    Dev *d = dev_new(binary, "-machine q35 -device intel-iommu,intremap=off "
                     "-device virtio-blk-pci,addr=4,drive=n,iothread=io0,"
                     "disable-legacy=on,iommu_platform=on");

    /* It does not look at the ring unless it is kicked */
    qtest_qmp_assert_success(d->s, "{ 'execute': 'qom-set', 'arguments': {"
        " 'path': '/objects/io0', 'property': 'poll-max-ns', 'value': 0 } }");
    start_driver(d, 1ull << VIRTIO_F_ACCESS_PLATFORM);
    setup_queue(d, 0, 64);
    driver_ok(d);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    write_chain(d, 0, 0, chain, 3);
    qtest_memset(d->s, root, 0, 2 * PAGE);
    qtest_writeq(d->s, root, (root + PAGE) | 1);
    qtest_writeq(d->s, iommu + 0x20, root);
    qtest_writel(d->s, iommu + 0x18, 1 << 30);
    qtest_writel(d->s, iommu + 0x18, 1u << 31);

    for (int round = 0; stock || round < 100; round++) {
        if (stock) {
            alarm(HANG);
        }
        qtest_memset(d->s, entry, 0, 16);
        qtest_writeq(d->s, iommu + 0x28, 5ull << 61);
        qtest_writeq(d->s, entry + 8, 1 << 8 | 2);
        qtest_writeq(d->s, entry, 2 << 2 | 1);
        make_available(d, 0, 0);
        kick(d, 0);
        for (int i = 0; i < 20; i++) {
            qtest_writeq(d->s, iommu + 0x28, 5ull << 61);
        }
        wait_used(d, 0, round + 1);
        g_usleep(1000);
    }
    g_assert_cmphex(get_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    assert_alive(d);
    dev_free(d);
}

static void config_write(Dev *d, int bus, int reg, uint32_t value)
{
    qtest_outl(d->s, 0xcf8, 0x80000000 | bus << 16 | reg);
    if (reg == PCI_COMMAND) {
        qtest_outw(d->s, 0xcfc, value);
    } else {
        qtest_outl(d->s, 0xcfc, value);
    }
}

/* A disk in an IOThread reads to memory that is behind a window */
static void test_dma_cxl(void)
{
    const uint64_t bars = 0xd0000000, caps = bars + PAGE;
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    g_autofree char *mtree = NULL;
    uint64_t window, decoders = 0;
    const char *line;
    Dev *d;

    if (!qtest_has_device("cxl-type3")) {
        g_test_skip("no cxl-type3");
        return;
    }
    d = dev_new(NULL, "-machine q35,cxl=on,cxl-fmw.0.targets.0=cxl,"
                "cxl-fmw.0.size=256M -device pxb-cxl,id=cxl,bus_nr=12 "
                "-device cxl-rp,id=rp,bus=cxl,port=0,chassis=0,slot=2 "
                "-object memory-backend-ram,id=ram,size=256M "
                "-device cxl-type3,bus=rp,volatile-memdev=ram "
                "-device virtio-blk-pci,bus=pcie.0,addr=4,drive=n,iothread=io0,"
                "disable-legacy=on");
    config_write(d, 12, PCI_PRIMARY_BUS, 12 | 13 << 8 | 13 << 16);
    config_write(d, 12, PCI_MEMORY_BASE, bars >> 16 | (bars + MiB));
    config_write(d, 12, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    for (int i = 0; i < 2; i++) {
        config_write(d, 13, PCI_BASE_ADDRESS_0 + 8 * i, bars + i * MiB / 2);
        config_write(d, 13, PCI_BASE_ADDRESS_0 + 8 * i + 4, 0);
    }
    config_write(d, 13, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);

    mtree = qtest_hmp(d->s, "info mtree");
    line = strstr(mtree, "cxl-fixed-memory");
    g_assert_nonnull(line);
    while (line[-1] != '\n') {
        line--;
    }
    window = g_ascii_strtoull(line, NULL, 16);
    for (int i = qtest_readl(d->s, caps) >> 24; i > 0; i--) {
        uint32_t cap = qtest_readl(d->s, caps + 4 * i);

        if ((cap & 0xffff) == 5) {
            decoders = caps + (cap >> 20);
        }
    }
    g_assert_cmphex(decoders, !=, 0);
    qtest_writel(d->s, decoders + 0x10, window);
    qtest_writel(d->s, decoders + 0x14, window >> 32);
    qtest_writel(d->s, decoders + 0x18, 256 * MiB);
    qtest_writel(d->s, decoders + 0x1c, 0);
    qtest_writel(d->s, decoders + 0x20, 1 << 9);
    qtest_writel(d->s, decoders + 4, 2);
    qtest_writeq(d->s, window + PAGE, 1);
    g_assert_cmphex(qtest_readq(d->s, window + PAGE), ==, 1);

    start_driver(d, 0);
    setup_queue(d, 0, 64);
    driver_ok(d);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    qtest_writeb(d->s, BUFFERS + PAGE, 0xff);
    write_chain(d, 0, 0, (Buffer[]) {
        { BUFFERS, sizeof(header), 0 },
        { window + PAGE, 512, VRING_DESC_F_WRITE },
        { BUFFERS + PAGE, 1, VRING_DESC_F_WRITE },
    }, 3);
    make_available(d, 0, 0);
    kick(d, 0);
    wait_used(d, 0, 1);
    g_assert_cmphex(qtest_readb(d->s, BUFFERS + PAGE), ==, 0);
    g_assert_cmphex(qtest_readq(d->s, window + PAGE), ==, 0);
    assert_alive(d);
    dev_free(d);
}

/* --- amd-iommu ----------------------------------------------------------- */

#define AMDVI_ARGS "-machine q35 -device AMDVI-PCI,id=pci,addr=6 " \
                   "-device amd-iommu,pci-id=pci,dma-remap=on "
#define AMDVI_BLK "-device virtio-blk-pci,addr=4,drive=slow,iothread=io0," \
                  "disable-legacy=on,iommu_platform=on "

/* Registers, and bits of CONTROL */
#define AMDVI 0xfed80000
#define AMDVI_DEVICES (AMDVI + 0x00)
#define AMDVI_COMMANDS (AMDVI + 0x08)
#define AMDVI_LOG (AMDVI + 0x10)
#define AMDVI_CONTROL (AMDVI + 0x18)
#define AMDVI_COMMAND_HEAD (AMDVI + 0x2000)
#define AMDVI_COMMAND_TAIL (AMDVI + 0x2008)
#define AMDVI_LOG_TAIL (AMDVI + 0x2018)
#define AMDVI_ON (1 << 0)
#define AMDVI_LOG_ON (1 << 2)
#define AMDVI_LOG_INTERRUPT (1 << 3)
#define AMDVI_COMMANDS_ON (1 << 12)

/* The size of commands and of events, and the largest buffer of them */
#define AMDVI_ENTRY 16
#define AMDVI_ENTRIES (1 << 15)
#define AMDVI_LARGEST (15ull << 56)

/* Guest physical addresses */
#define AMDVI_TABLES (BUFFERS + 0x100000)
#define AMDVI_COMMAND_BUFFER (BUFFERS + 0x200000)
#define AMDVI_LOG_BUFFER (BUFFERS + 0x300000)

/* Present, may be read and written; with tables below, of @level */
#define AMDVI_PTE(level) (1 | (level) << 9 | 3ull << 61)

/* Map the device in slot 4 to what is there, but for the page at @hole */
static void amdvi_map(Dev *d, uint64_t hole)
{
    const uint64_t root = AMDVI_TABLES + 2 * PAGE, leaf = root + PAGE;
    const int devid = QPCI_DEVFN(4, 0);

    qtest_memset(d->s, AMDVI_TABLES, 0, 4 * PAGE);
    for (uint64_t i = 0; i < 512; i++) {
        qtest_writeq(d->s, root + 8 * i, AMDVI_PTE(0) | i << 21);
        qtest_writeq(d->s, leaf + 8 * i, AMDVI_PTE(0) | i << 12);
    }
    qtest_writeq(d->s, root, AMDVI_PTE(1) | leaf);
    g_assert_cmphex(hole, <, 1 << 21);
    qtest_writeq(d->s, leaf + hole / PAGE * 8, 0);
    qtest_writeq(d->s, AMDVI_TABLES + 32 * devid, AMDVI_PTE(2) | 2 | root);

    qtest_writeq(d->s, AMDVI_DEVICES, AMDVI_TABLES);
    qtest_writeq(d->s, AMDVI_COMMANDS, AMDVI_COMMAND_BUFFER | AMDVI_LARGEST);
    qtest_writeq(d->s, AMDVI_LOG, AMDVI_LOG_BUFFER | AMDVI_LARGEST);
    qtest_writeq(d->s, AMDVI_CONTROL, AMDVI_ON | AMDVI_LOG_ON |
                 AMDVI_LOG_INTERRUPT | AMDVI_COMMANDS_ON);

    /* INVALIDATE_DEVTAB_ENTRY */
    qtest_writeq(d->s, AMDVI_COMMAND_BUFFER, 2ull << 60 | devid);
    qtest_writeq(d->s, AMDVI_COMMAND_BUFFER + 8, 0);
    qtest_writeq(d->s, AMDVI_COMMAND_TAIL, AMDVI_ENTRY);
}

/* Its interrupt is an NMI */
static void amdvi_enable_msi(Dev *d)
{
    QPCIDevice *pdev = qpci_device_find(d->bus, QPCI_DEVFN(6, 0));
    uint8_t msi = qpci_find_capability(pdev, PCI_CAP_ID_MSI, 0);

    qpci_config_writel(pdev, msi + PCI_MSI_ADDRESS_LO, 0xfee00000);
    qpci_config_writel(pdev, msi + PCI_MSI_ADDRESS_HI, 0);
    qpci_config_writew(pdev, msi + PCI_MSI_DATA_64, 0x400);
    qpci_config_writew(pdev, msi + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE);
    g_free(pdev);
}

/* A disk of which requests take @ms, with one to write, at descriptor 0 */
static Dev *amdvi_new(const char *binary, int ms)
{
    g_autofree char *args = g_strdup_printf(
        AMDVI_ARGS "-blockdev null-co,node-name=slow,size=1048576,"
        "read-zeroes=on,latency-ns=%d000000 " AMDVI_BLK, ms);
    Dev *d = dev_new(binary, args);
    BlkHeader header = { .type = cpu_to_le32(VIRTIO_BLK_T_OUT) };
    Buffer chain[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 2 * PAGE, 0 },
        { BUFFERS + 3 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    start_driver(d, 1ull << VIRTIO_F_ACCESS_PLATFORM);
    setup_queue(d, 0, 64);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    write_chain(d, 0, 0, chain, ARRAY_SIZE(chain));
    return d;
}

/* An IOThread meets a fault while the main thread waits for it */
static void test_amdvi_fault(const char *binary)
{
    Dev *d = amdvi_new(binary, 500);

    amdvi_enable_msi(d);
    amdvi_map(d, d->q[0].used);
    driver_ok(d);
    make_available(d, 0, 0);
    kick(d, 0);
    while (!qtest_readq(d->s, AMDVI_LOG_TAIL)) {
        g_usleep(1000);
    }
    g_assert_cmphex(qtest_readq(d->s, AMDVI_LOG_BUFFER) >> 60, ==, 2);
    if (!binary) {
        g_assert_cmphex(qtest_readq(d->s, AMDVI_LOG_BUFFER + 8) & -PAGE, ==,
                        d->q[0].used);
    }
    qtest_qmp_assert_success(d->s, "{ 'execute': 'stop' }");
    assert_alive(d);
    dev_free(d);
}

/* The guest invalidates what an IOThread looks up */
static void test_amdvi_iotlb(const char *binary)
{
    gint64 end = g_get_monotonic_time() + (binary ? 10 : 3) * G_USEC_PER_SEC;
    Dev *d = amdvi_new(binary, 0);
    Queue *q = &d->q[0];

    amdvi_map(d, 0);
    driver_ok(d);
    for (int i = 0; i < AMDVI_ENTRIES - 1; i++) {
        /* INVALIDATE_IOMMU_PAGES of domain 0 */
        uint64_t command[2] = { cpu_to_le64(3ull << 60) };

        qtest_memwrite(d->s, AMDVI_COMMAND_BUFFER + AMDVI_ENTRY * i, command,
                       sizeof(command));
    }
    qtest_writeq(d->s, AMDVI_COMMAND_TAIL, AMDVI_ENTRY * (AMDVI_ENTRIES - 1));
    do {
        q->next += q->size;
        qtest_writew(d->s, q->avail + 2, q->next);
        kick(d, 0);
        qtest_writeq(d->s, AMDVI_COMMAND_HEAD, 0);
        wait_used(d, 0, q->next);
    } while (g_get_monotonic_time() < end);
    assert_alive(d);
    dev_free(d);
}

/* Commands up to a place that the buffer does not have */
static void test_amdvi_tail(const char *binary)
{
    Dev *d = dev_start(binary, AMDVI_ARGS);

    qtest_writeq(d->s, AMDVI_COMMANDS, AMDVI_COMMAND_BUFFER);
    qtest_writeq(d->s, AMDVI_CONTROL, AMDVI_ON | AMDVI_COMMANDS_ON);
    qtest_writeq(d->s, AMDVI_COMMAND_TAIL, 2 * AMDVI_ENTRY);
    assert_alive(d);
    dev_free(d);
}

/* An event for a log that is on, but has no place */
static void test_amdvi_no_log(const char *binary)
{
    Dev *d = dev_start(binary, AMDVI_ARGS);

    qtest_writeq(d->s, AMDVI_COMMANDS, AMDVI_COMMAND_BUFFER | AMDVI_LARGEST);
    qtest_writeq(d->s, AMDVI_CONTROL,
                 AMDVI_ON | AMDVI_LOG_ON | AMDVI_COMMANDS_ON);
    qtest_memset(d->s, AMDVI_COMMAND_BUFFER, 0, AMDVI_ENTRY);
    qtest_writeq(d->s, AMDVI_COMMAND_TAIL, AMDVI_ENTRY);
    assert_alive(d);
    dev_free(d);
}

/* --- Random drivers ------------------------------------------------------ */

/* Seconds for each device; longer than this where it is stress */
#define RANDOM_SECONDS "2"
#define RANDOM_SECONDS_ENV "QTEST_VIRTIO_RANDOM_SECONDS"

static void let_it_work(Dev *d, uint8_t how)
{
    if (how < 8) {
        qtest_qmp_assert_success(d->s, "{ 'execute': 'stop' }");
        qtest_qmp_assert_success(d->s, "{ 'execute': 'cont' }");
    } else if (how < 64) {
        qtest_clock_step(d->s, 1000 * 1000);
    } else {
        g_usleep(how * 4);
    }
}

static void test_random(gconstpointer opaque)
{
    const VirtioTarget *target = opaque;
    const char *seconds = getenv(RANDOM_SECONDS_ENV) ?: RANDOM_SECONDS;
    struct sigaction action = { .sa_handler = too_long };
    gint64 end = g_get_monotonic_time() + atoi(seconds) * G_USEC_PER_SEC;
    int programs = 0;
    Dev *d;

    if (!strcmp(target->name, "gpu-blob")) {
        g_autofree char *preload = g_canonicalize_filename(
            g_test_get_filename(G_TEST_BUILT, "fake-udmabuf.so", NULL), NULL);

        if (!g_file_test(preload, G_FILE_TEST_EXISTS)) {
            g_test_skip("fake-udmabuf.so is not built");
            return;
        }
        g_setenv("LD_PRELOAD", preload, true);
    }
    d = dev_new(NULL, target->args);
    g_unsetenv("LD_PRELOAD");

    sigaction(SIGALRM, &action, NULL);
    for (; g_get_monotonic_time() < end; programs++) {
        uint8_t data[600];
        int size = g_test_rand_int_range(1, sizeof(data));

        for (int i = 0; i < size; i++) {
            data[i] = g_test_rand_int();
        }
        alarm(60);
        virtio_program_run(d, target, data, size, let_it_work);
        if (programs % 64 == 0) {
            reset_machine(d);
            dev_free_pci(d);
            qpci_free_pc(d->bus);
            d->bus = qpci_new_pc(d->s, NULL);
            dev_find(d, QPCI_DEVFN(4, 0));
        }
    }
    assert_alive(d);
    alarm(0);
    dev_free(d);
    g_test_message("%d programs", programs);
}

/* --- Features ------------------------------------------------------------ */

/* A guest acknowledges a filter of VLANs that is not offered */
static void test_masked_features(const char *binary)
{
    Dev *d = dev_new(binary, "-netdev hubport,id=net,hubid=0 "
                     "-device virtio-net-pci,id=nic,netdev=net,addr=4,"
                     "ctrl_vlan=off,disable-legacy=on");
    uint64_t features;
    QDict *rsp, *filter;

    write8(d, COMMON(device_status), 0);
    write8(d, COMMON(device_status), VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                     VIRTIO_CONFIG_S_DRIVER);
    features = get_features(d);
    g_assert_cmphex(features & 1ull << VIRTIO_NET_F_CTRL_VLAN, ==, 0);
    features |= 1ull << VIRTIO_NET_F_CTRL_VLAN;
    for (int i = 0; i < 2; i++) {
        write32(d, COMMON(guest_feature_select), i);
        write32(d, COMMON(guest_feature), features >> (32 * i));
    }

    rsp = qtest_qmp(d->s, "{ 'execute': 'query-rx-filter' }");
    filter = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp, "return")));
    /* without the feature every VLAN passes */
    g_assert_cmpint(qlist_size(qdict_get_qlist(filter, "vlan-table")), ==,
                    4096);
    qobject_unref(rsp);
    dev_free(d);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    add("scsi/cdb-size", test_scsi_cdb_size);
    add("scsi/leak", test_scsi_leak);
    add("scsi/no-ioeventfd", test_scsi_no_ioeventfd);
    add("scsi/tmf-no-ioeventfd", test_scsi_tmf_no_ioeventfd);
    add("blk/scsi-cmd", test_blk_scsi_cmd);
    add("blk/last-interrupt", test_last_interrupt);
    add_both("packed/bad", test_packed_bad, run_stock_hangs);
    add_both("packed/bad-iothread", test_packed_bad_iothread, run_stock_hangs);
    add("packed/empty-table", test_packed_empty_table);
    add("packed/shrink", test_packed_shrink);
    add("packed/in-use", test_packed_in_use);
    add_both("packed/drop", test_packed_drop, run_stock_hangs);
    add("in-order/large", test_in_order_large);
    add("in-order/full", test_in_order_full);
    add("in-use/layout", test_layout);
    add("in-use/layout-index", test_layout_in_use);
    qtest_add_data_func("/virtio-hardening/in-use/memory", test_queue_memory,
                        run_test);
    add("refused/modes", test_refused_modes);
    add("refused/queue-size", test_refused_queue_size);
    qtest_add_data_func("/virtio-hardening/refused/iommu", test_refused_iommu,
                        run_test);
    add("refused/queues", test_too_many_queues);
    add("refused/virtqueue-size", test_too_large_queues);
    add("unplug/pio-notify", test_unplug_pio_notify);
    add("unplug/reset-balloon", test_reset_unplugs_balloon);
    add("in-use/enable-again", test_enable_again);
    add("in-use/legacy-features", test_legacy_features);
    if (qtest_has_machine("microvm")) {
        add("in-use/legacy-mmio", test_legacy_mmio);
    }
    add("packed/unpop", test_unpop_packed);
    add_both("dma/blk-read", test_dma_blk_read, run_stock_hangs);
    add_both("dma/blk-write", test_dma_blk_write, run_stock_hangs);
    add_both("dma/blk-indirect", test_dma_blk_indirect, run_stock_hangs);
    add_both("dma/hpet", test_dma_hpet, run_stock_hangs);
    add_both("dma/scsi", test_dma_scsi, run_stock_hangs);
    qtest_add_data_func("/virtio-hardening/dma/not-ram-any-more",
                        test_dma_not_ram_any_more, run_test);
    add_both("dma/balloon", test_dma_balloon, run_stock_hangs);
    add_both("dma/ring", test_dma_ring, run_stock_hangs);
    add_both("dma/to-itself-iothread", test_dma_to_itself_iothread,
             run_stock_hangs);
    add_both("dma/to-itself", test_dma_to_itself, run_stock_hangs);
    add_both("dma/to-other", test_dma_to_other, run_stock_hangs);
    qtest_add_data_func("/virtio-hardening/dma/waits", test_dma_waits,
                        run_test);
    add_both("dma/gpu-port", test_dma_gpu_port, run_stock_hangs);
    add("dma/intel-iommu", test_dma_intel_iommu);
    add_both("dma/intel-iommu-pt", test_dma_intel_iommu_pt, run_stock_hangs);
    qtest_add_func("/virtio-hardening/dma/cxl", test_dma_cxl);
    add_both("amd-iommu/fault", test_amdvi_fault, run_stock_hangs);
    add("amd-iommu/iotlb", test_amdvi_iotlb);
    add_both("amd-iommu/tail", test_amdvi_tail, run_stock_hangs);
    add("amd-iommu/no-log", test_amdvi_no_log);
    add("features/masked", test_masked_features);
    for (const VirtioTarget *t = virtio_targets; t->name; t++) {
        g_autofree char *path = g_strdup_printf("/virtio-hardening/random/%s",
                                                t->name);

        qtest_add_data_func(path, t, test_random);
    }

    return g_test_run();
}

/*
 * Lengths and register writes of a guest that virtio devices must bound
 *
 * The test is the guest's driver. Tests whose name ends in -stock do the same
 * to the binary that QTEST_QEMU_STOCK_BINARY names, and show that it fails;
 * they are skipped where that is not set.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "libqos/libqos.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_crypto.h"
#include "standard-headers/linux/virtio_ids.h"
#include "standard-headers/linux/virtio_mmio.h"
#include "standard-headers/linux/virtio_snd.h"
#include "stock-twin.h"
#include "virtio-driver.h"

/* A library for QEMU that makes a zoned disk of a file; may be unset */
#define FAKE_ZONED "QTEST_FAKE_ZONED"

/* Of an indirect table */
#define TABLE 0x700000

/* Up to DRIVER_OK, with queues of 32 */
static void start(Dev *d, uint64_t features, int queues)
{
    start_driver(d, features);
    for (int i = 0; i < queues; i++) {
        setup_queue(d, i, 32);
    }
    driver_ok(d);
}

static void finish(Dev *d)
{
    assert_alive(d);
    dev_free(d);
}

/* One message of @n buffers, in an indirect table */
static void send_message(Dev *d, int index, const Buffer *b, int n)
{
    Queue *q = &d->q[index];
    Buffer table = { TABLE, n * sizeof(struct vring_desc),
                     VRING_DESC_F_INDIRECT };

    write_table(d, TABLE, 0, b, n);
    write_desc(d, q->desc, &table, 0);
    make_available(d, index, 0);
    kick(d, index);
}

static void wait_answered(Dev *d, int index, uint16_t idx)
{
    wait_used(d, index, idx);
    g_assert_cmphex(get_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
}

/* @first, and then as many buffers as there can be, of all the RAM each */
static void send_large(Dev *d, int index, Buffer first, int n, uint16_t flags)
{
    g_autofree Buffer *b = g_new(Buffer, n);

    b[0] = first;
    for (int i = 1; i < n; i++) {
        b[i] = (Buffer) { 16 * MiB, RAM_SIZE - 16 * MiB, flags };
    }
    send_message(d, index, b, n);
}

/* QEMU can have 512 MiB of address space more than it has now */
static void limit_memory(Dev *d)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/statm", qtest_pid(d->s));
    g_autofree char *statm = NULL;
    struct rlimit limits;
    unsigned long pages;

    g_assert_true(g_file_get_contents(path, &statm, NULL, NULL));
    g_assert_cmpint(sscanf(statm, "%lu", &pages), ==, 1);
    g_assert_cmpint(prlimit(qtest_pid(d->s), RLIMIT_AS, NULL, &limits), ==, 0);
    limits.rlim_cur = pages * qemu_real_host_page_size() + 512 * MiB;
    g_assert_cmpint(prlimit(qtest_pid(d->s), RLIMIT_AS, &limits, NULL), ==, 0);
}

/* --- Messages that are larger than what QEMU can allocate ---------------- */

static void test_serial(const char *binary)
{
    enum { CONTROL_OUT = 3 };
    Dev *d = dev_new(binary, "-device virtio-serial-pci,addr=4,max_ports=2,"
                     "disable-legacy=on");

    start(d, 1 << 1 /* MULTIPORT */ | INDIRECT, 4);
    limit_memory(d);
    send_large(d, CONTROL_OUT, (Buffer) { BUFFERS, 8, 0 }, 1022, 0);
    wait_answered(d, CONTROL_OUT, 1);
    finish(d);
}

#define SND_CTRL 0
#define SND_TX 2
#define SND_RX 3

static Dev *snd_new(const char *binary, const char *backend)
{
    g_autofree char *args = g_strdup_printf(
        "-audiodev %s,id=a,timer-period=10000 "
        "-device virtio-sound-pci,addr=4,audiodev=a", backend);
    Dev *d = dev_new(binary, args);

    start(d, INDIRECT, 4);
    return d;
}

static void snd_start(Dev *d, uint32_t stream)
{
    struct virtio_snd_pcm_hdr start = {
        .hdr.code = cpu_to_le32(VIRTIO_SND_R_PCM_START),
        .stream_id = cpu_to_le32(stream),
    };
    Buffer b[] = {
        { BUFFERS, sizeof(start), 0 },
        { BUFFERS + PAGE, 4, VRING_DESC_F_WRITE },
    };

    qtest_memwrite(d->s, BUFFERS, &start, sizeof(start));
    send_message(d, SND_CTRL, b, 2);
    wait_answered(d, SND_CTRL, d->q[SND_CTRL].next);
    g_assert_cmphex(qtest_readl(d->s, BUFFERS + PAGE), ==, VIRTIO_SND_S_OK);
}

static void test_snd_tx(const char *binary)
{
    Dev *d = snd_new(binary, "none");

    limit_memory(d);
    qtest_writel(d->s, BUFFERS, 0);
    send_large(d, SND_TX, (Buffer) { BUFFERS, 4, 0 }, 1022, 0);
    snd_start(d, 0);
    qtest_clock_step(d->s, 100 * 1000 * 1000);
    finish(d);
}

static void test_snd_rx(const char *binary)
{
    Dev *d = snd_new(binary, "none");

    limit_memory(d);
    qtest_writel(d->s, BUFFERS, 1);
    send_large(d, SND_RX, (Buffer) { BUFFERS, 4, 0 }, 1022,
               VRING_DESC_F_WRITE);
    snd_start(d, 1);
    for (int i = 0; i < 20; i++) {
        qtest_clock_step(d->s, 10 * 1000 * 1000);
    }
    /* a period of silence, and the status */
    wait_answered(d, SND_RX, 1);
    g_assert_cmpint(qtest_readl(d->s, d->q[SND_RX].used + 8), ==, 2048 + 8);
    g_assert_cmphex(qtest_readl(d->s, 16 * MiB + 2048), ==, VIRTIO_SND_S_OK);
    finish(d);
}

/* There is no room for the status of what is recorded */
static void test_snd_short_rx(const char *binary)
{
    Dev *d = snd_new(binary, "none");
    Buffer b[] = {
        { BUFFERS, 4, 0 },
        { BUFFERS + PAGE, 4, VRING_DESC_F_WRITE },
    };

    qtest_writel(d->s, BUFFERS, 1);
    send_message(d, SND_RX, b, 2);
    wait_answered(d, SND_RX, 1);
    g_assert_cmphex(qtest_readl(d->s, BUFFERS + PAGE), ==,
                    VIRTIO_SND_S_BAD_MSG);
    finish(d);
}

/* What is played is what the messages have, whatever their size */
static void test_snd_play(void)
{
    static const int sizes[] = { 2048, 4, 20000, 3000, 4096 };
    enum { HEADER = 44, SIZE = 2048 + 4 + 20000 + 3000 + 4096 };
    g_autofree char *path = NULL;
    g_autofree char *backend = NULL;
    g_autofree char *wav = NULL;
    g_autofree uint8_t *data = g_malloc(SIZE);
    uint64_t addr = BUFFERS + 2 * PAGE;
    uint8_t *played;
    gsize len;
    Dev *d;
    int fd = g_file_open_tmp("virtio-limits-XXXXXX", &path, NULL);

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    backend = g_strdup_printf("wav,path=%s,out.frequency=48000", path);
    d = snd_new(NULL, backend);
    for (int i = 0; i < SIZE; i++) {
        data[i] = (i / 2 * 7919 + 1) >> (i % 2 ? 8 : 0);
    }
    qtest_memwrite(d->s, addr, data, SIZE);
    snd_start(d, 0);
    qtest_writel(d->s, BUFFERS, 0);
    for (int i = 0; i < ARRAY_SIZE(sizes); i++) {
        Buffer b[] = {
            { BUFFERS, 4, 0 },
            { addr, sizes[i] / 4 * 2, 0 },
            { addr + sizes[i] / 4 * 2, sizes[i] - sizes[i] / 4 * 2, 0 },
            { BUFFERS + PAGE, 8, VRING_DESC_F_WRITE },
        };

        send_message(d, SND_TX, b, 4);
        for (int k = 0; k < 50 && used_idx(d, SND_TX) != i + 1; k++) {
            qtest_clock_step(d->s, 10 * 1000 * 1000);
        }
        g_assert_cmpint(used_idx(d, SND_TX), ==, i + 1);
        addr += sizes[i];
    }
    for (int i = 0; i < 20; i++) {
        qtest_clock_step(d->s, 10 * 1000 * 1000);
    }
    finish(d);

    g_assert_true(g_file_get_contents(path, &wav, &len, NULL));
    unlink(path);
    /* silence comes before it, and where messages come late between them */
    played = (uint8_t *)wav + HEADER;
    for (int i = 0; i < SIZE; i += 4) {
        while (memcmp(played, data + i, 4)) {
            g_assert_cmphex(ldl_le_p(played), ==, 0);
            played += 4;
            g_assert_true(played + 4 <= (uint8_t *)wav + len);
        }
        played += 4;
    }
}

/* The key of a session has 4 GiB, but its message does not */
static void test_crypto(const char *binary)
{
    Dev *d = dev_new(binary, "-object cryptodev-backend-builtin,id=c "
                     "-device virtio-crypto-pci,addr=4,cryptodev=c");
    struct virtio_crypto_op_ctrl_req req = {
        .header.opcode = cpu_to_le32(VIRTIO_CRYPTO_AKCIPHER_CREATE_SESSION),
        .u.akcipher_create_session.para.keytype =
            cpu_to_le32(VIRTIO_CRYPTO_AKCIPHER_KEY_TYPE_PUBLIC),
        .u.akcipher_create_session.para.keylen = cpu_to_le32(UINT32_MAX),
    };
    Buffer b[] = {
        { BUFFERS, sizeof(req), 0 },
        { BUFFERS + PAGE, sizeof(struct virtio_crypto_session_input),
          VRING_DESC_F_WRITE },
    };

    start(d, INDIRECT, 2);
    limit_memory(d);
    qtest_memwrite(d->s, BUFFERS, &req, sizeof(req));
    send_message(d, 1, b, 2);
    wait_answered(d, 1, 1);
    g_assert_cmpint(qtest_readl(d->s, BUFFERS + PAGE + 8), ==,
                    VIRTIO_CRYPTO_ERR);
    finish(d);
}

/* Requests of a session that there is not, which wait for a limit */
static void test_crypto_throttled(const char *binary)
{
    enum { REQUESTS = 4 };
    Dev *d = dev_new(binary,
                     "-object cryptodev-backend-builtin,id=c,throttle-ops=20 "
                     "-device virtio-crypto-pci,addr=4,cryptodev=c");
    struct virtio_crypto_op_data_req req = {
        .header.opcode = cpu_to_le32(VIRTIO_CRYPTO_CIPHER_ENCRYPT),
        .header.session_id = cpu_to_le64(1),
        .u.sym_req.op_type = cpu_to_le32(VIRTIO_CRYPTO_SYM_OP_CIPHER),
        .u.sym_req.u.cipher.para.src_data_len = cpu_to_le32(16),
        .u.sym_req.u.cipher.para.dst_data_len = cpu_to_le32(16),
    };
    Buffer b[] = {
        { BUFFERS, sizeof(req) + 16, 0 },
        { BUFFERS + PAGE, 16 + 1, VRING_DESC_F_WRITE },
    };

    for (int reset = 0; reset < 2; reset++) {
        start(d, INDIRECT, 1);
        qtest_memwrite(d->s, BUFFERS, &req, sizeof(req));
        for (int i = 0; i < REQUESTS; i++) {
            write_chain(d, 0, 2 * i, b, 2);
            make_available(d, 0, 2 * i);
        }
        kick(d, 0);
        while (used_idx(d, 0) == 0) {
            g_usleep(1000);
        }
        if (reset) {
            /* Their memory is the driver's again */
            write8(d, COMMON(device_status), 0);
            qtest_memset(d->s, BUFFERS + PAGE, 0xee, 17);
            g_usleep(REQUESTS * G_USEC_PER_SEC / 20);
            g_assert_cmphex(qtest_readb(d->s, BUFFERS + PAGE + 16), ==, 0xee);
        } else {
            wait_used(d, 0, REQUESTS);
        }
    }
    finish(d);
}

static void test_rng(const char *binary)
{
    Dev *d = dev_new(binary, "-device virtio-rng-pci,addr=4,disable-legacy=on");

    start(d, INDIRECT, 1);
    limit_memory(d);
    send_large(d, 0, (Buffer) { 16 * MiB, 4 * MiB, VRING_DESC_F_WRITE }, 80,
               VRING_DESC_F_WRITE);
    wait_answered(d, 0, 1);
    g_assert_cmpint(qtest_readl(d->s, d->q[0].used + 8), ==, 1 * MiB);
    finish(d);
}

/* A guest asks for 800 million zones of a disk that has 8 */
static void test_zone_report(const char *binary)
{
    g_autofree char *path = NULL;
    g_autofree char *args = NULL;
    struct virtio_blk_outhdr header = {
        .type = cpu_to_le32(VIRTIO_BLK_T_ZONE_REPORT),
    };
    int fd = g_file_open_tmp("virtio-limits-XXXXXX.zoned", &path, NULL);
    Dev *d;

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, 16 * MiB), ==, 0);
    close(fd);
    args = g_strdup_printf(
        "-blockdev host_device,node-name=zoned,filename=%s,cache.direct=on,"
        "locking=off -device virtio-blk-pci,addr=4,drive=zoned,"
        "disable-legacy=on", path);
    g_setenv("LD_PRELOAD", getenv(FAKE_ZONED), true);
    d = dev_new(binary, args);
    g_unsetenv("LD_PRELOAD");

    start(d, 1ull << VIRTIO_BLK_F_ZONED | INDIRECT, 1);
    limit_memory(d);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    qtest_writeb(d->s, RAM_SIZE - 1, 0xff);
    send_large(d, 0, (Buffer) { BUFFERS, sizeof(header), 0 }, 1022,
               VRING_DESC_F_WRITE);
    wait_answered(d, 0, 1);
    g_assert_cmpint(qtest_readb(d->s, RAM_SIZE - 1), ==, VIRTIO_BLK_S_OK);
    g_assert_cmpint(qtest_readq(d->s, 16 * MiB), ==, 8);
    /* the start of the last one, in sectors */
    g_assert_cmpint(qtest_readq(d->s, 16 * MiB + 64 + 7 * 64 + 8), ==,
                    7 * 4096);

    /* An append of nothing behind the last zone */
    header.type = cpu_to_le32(VIRTIO_BLK_T_ZONE_APPEND);
    header.sector = cpu_to_le64(8 * 4096);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    send_message(d, 0, (Buffer[]) {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 9, VRING_DESC_F_WRITE },
    }, 2);
    wait_answered(d, 0, 2);
    g_assert_cmpint(qtest_readb(d->s, BUFFERS + PAGE + 8), ==,
                    VIRTIO_BLK_S_ZONE_INVALID_CMD);
    finish(d);
    unlink(path);
}

/* --- Queues that are reset, with requests in flight ----------------------- */

#define QUEUE_RESET offsetof(struct virtio_pci_modern_common_cfg, queue_reset)

#define SLOW "-blockdev null-co,node-name=slow,read-zeroes=on,size=1048576," \
             "latency-ns=20000000 "
#define BLK "-device virtio-blk-pci,addr=4,drive=slow,disable-legacy=on,"
#define SCSI "-device scsi-hd,drive=slow,bus=scsi.0,scsi-id=1,lun=0"

static void reset_queue(Dev *d, int index)
{
    write16(d, COMMON(queue_select), index);
    write16(d, QUEUE_RESET, 1);
    g_assert_cmpint(read16(d, QUEUE_RESET), ==, 0);
    g_assert_cmpint(read16(d, COMMON(queue_enable)), ==, 0);
}

/*
 * Reads of a sector, all with the same buffers: @n of @b, of which @done
 * becomes 0 when a request is done
 */
static void reset_in_flight(Dev *d, int index, const Buffer *b, int n,
                            uint64_t done)
{
    Queue *q = &d->q[index];

    for (int round = 0; round < 20; round++) {
        write_chain(d, index, 0, b, n);
        qtest_writew(d->s, q->avail + 2, q->next = 30);
        kick(d, index);
        if (round % 2) {
            g_usleep(1000);
        }
        reset_queue(d, index);
        /* Nothing is written to what was given before */
        qtest_writeb(d->s, done, 0xff);
        setup_queue(d, index, 32);
        g_usleep(25 * 1000);
        g_assert_cmphex(qtest_readb(d->s, done), ==, 0xff);
        g_assert_cmpint(used_idx(d, index), ==, 0);

        write_chain(d, index, 0, b, n);
        qtest_writew(d->s, q->avail + 2, q->next = 2);
        kick(d, index);
        wait_answered(d, index, 2);
        g_assert_cmphex(qtest_readb(d->s, done), ==, 0);
        reset_queue(d, index);
        setup_queue(d, index, 32);
    }
    finish(d);
}

static void reset_blk(const char *binary, const char *more)
{
    g_autofree char *args = g_strdup_printf(SLOW BLK "%s", more);
    Dev *d = dev_new(binary, args);
    struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_IN };
    Buffer b[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    start(d, RING_RESET, 1);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    reset_in_flight(d, 0, b, 3, BUFFERS + 2 * PAGE);
}

static void test_reset_blk(const char *binary)
{
    reset_blk(binary, "ioeventfd=off");
}

static void test_reset_blk_iothread(const char *binary)
{
    reset_blk(binary, "iothread=io0");
}

/* A request that waits to be tried again goes with its queue */
static void test_reset_blk_retry(const char *binary)
{
    Dev *d = dev_new(binary, SLOW "-blockdev driver=blkdebug,node-name=bad,"
                     "image=slow,inject-error.0.event=read_aio,"
                     "inject-error.0.once=on,inject-error.0.sector=8,"
                     "inject-error.0.errno=28 "
                     "-blockdev raw,node-name=raw,file=bad "
                     "-device virtio-blk-pci,addr=4,drive=raw,rerror=stop,"
                     "iothread=io0,disable-legacy=on");
    struct virtio_blk_outhdr header = {
        .type = VIRTIO_BLK_T_IN,
        .sector = cpu_to_le64(8),
    };
    Buffer b[] = {
        { BUFFERS, sizeof(header), 0 },
        { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    start(d, INDIRECT | RING_RESET, 1);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    qtest_memset(d->s, BUFFERS + PAGE, 0xff, 512);
    send_message(d, 0, b, 3);
    qtest_qmp_eventwait(d->s, "STOP");
    reset_queue(d, 0);
    setup_queue(d, 0, 32);
    qtest_qmp_assert_success(d->s, "{ 'execute': 'cont' }");
    g_usleep(100 * 1000);
    g_assert_cmphex(qtest_readq(d->s, BUFFERS + PAGE), ==, UINT64_MAX);
    g_assert_cmpint(used_idx(d, 0), ==, 0);

    send_message(d, 0, b, 3);
    wait_answered(d, 0, 1);
    g_assert_cmphex(qtest_readq(d->s, BUFFERS + PAGE), ==, 0);
    finish(d);
}

static void reset_scsi(const char *binary, const char *more)
{
    g_autofree char *args = g_strdup_printf(
        SLOW "-device virtio-scsi-pci,id=scsi,addr=4,num_queues=1,"
        "disable-legacy=on,%s " SCSI, more);
    Dev *d = dev_new(binary, args);
    static const uint8_t cmd[51] = {
        1, 1, 0x40, [19] = 0x28 /* READ(10) */, [19 + 8] = 1,
    };
    Buffer b[] = {
        { BUFFERS, sizeof(cmd), 0 },
        { BUFFERS + 2 * PAGE, 108, VRING_DESC_F_WRITE },
        { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE },
    };

    start(d, RING_RESET, 3);
    /* the first command only tells of the reset of the bus */
    qtest_memset(d->s, BUFFERS, 0, PAGE);
    qtest_memwrite(d->s, BUFFERS, cmd, 3);
    send_message(d, 2, b, 2);
    wait_answered(d, 2, 1);
    reset_queue(d, 2);
    setup_queue(d, 2, 32);
    qtest_memwrite(d->s, BUFFERS, cmd, sizeof(cmd));
    reset_in_flight(d, 2, b, 3, BUFFERS + 2 * PAGE);
}

static void test_reset_scsi(const char *binary)
{
    reset_scsi(binary, "ioeventfd=off");
}

static void test_reset_scsi_iothread(const char *binary)
{
    reset_scsi(binary, "iothread=io0");
}

/* A disk that is stuck, elsewhere in the machine, is waited for at the end */
static void test_reset_scsi_stuck(gconstpointer more)
{
    g_autofree char *args = g_strdup_printf(
        SLOW "-device virtio-scsi-pci,id=scsi,addr=4,num_queues=1,"
        "disable-legacy=on,%s " SCSI " -blockdev null-co,node-name=stuck,"
        "size=1048576,latency-ns=3000000000 "
        "-device virtio-blk-pci,id=stuck,drive=stuck",
        (const char *)more);
    Dev *d = dev_new(NULL, args);
    int64_t start_us;

    start(d, RING_RESET, 3);
    g_free(qtest_hmp(d->s, "qemu-io -d stuck \"aio_write 0 512\""));
    start_us = g_get_monotonic_time();
    reset_queue(d, 2);
    g_assert_cmpint(g_get_monotonic_time() - start_us, <, 2 * 1000 * 1000);
    finish(d);
}

/* What a device still has then is not given back to the next queue */
static void test_reset_snd(const char *binary)
{
    Dev *d = snd_new(binary, "none");
    Buffer b[] = {
        { BUFFERS, 4, 0 },
        { BUFFERS + PAGE, 8, VRING_DESC_F_WRITE },
    };

    qtest_writel(d->s, BUFFERS, 1);
    for (int i = 0; i < 8; i++) {
        send_message(d, SND_RX, b, 2);
    }
    reset_queue(d, SND_RX);
    setup_queue(d, SND_RX, 32);
    snd_start(d, 1);
    for (int i = 0; i < 20; i++) {
        qtest_clock_step(d->s, 10 * 1000 * 1000);
    }
    g_assert_cmpint(used_idx(d, SND_RX), ==, 0);

    qtest_writel(d->s, BUFFERS, 1);
    send_message(d, SND_RX, b, 2);
    for (int i = 0; i < 20; i++) {
        qtest_clock_step(d->s, 10 * 1000 * 1000);
    }
    wait_answered(d, SND_RX, 1);
    finish(d);
}

/* Nothing is recorded into memory of a driver that was there before */
static void test_reset_snd_recording(const char *binary)
{
    enum { SIZE = 2048 + 8 };
    Dev *d = snd_new(binary, "none");
    uint8_t want[SIZE], data[SIZE];
    Buffer b[] = {
        { BUFFERS + 2 * PAGE, 4, 0 },
        { 16 * MiB, SIZE, VRING_DESC_F_WRITE },
    };

    memset(want, 0xee, sizeof(want));
    for (int queue_only = 0; queue_only < 2; queue_only++) {
        snd_start(d, 1);
        qtest_writel(d->s, BUFFERS + 2 * PAGE, 1);
        for (int i = 0; i < 8; i++) {
            send_message(d, SND_RX, b, 2);
        }
        if (queue_only) {
            reset_queue(d, SND_RX);
        } else {
            write8(d, COMMON(device_status), 0);
        }
        qtest_memwrite(d->s, 16 * MiB, want, sizeof(want));
        if (queue_only) {
            setup_queue(d, SND_RX, 32);
        } else {
            start(d, INDIRECT | RING_RESET, 4);
            snd_start(d, 1);
        }
        for (int i = 0; i < 20; i++) {
            qtest_clock_step(d->s, 10 * 1000 * 1000);
        }
        qtest_memread(d->s, 16 * MiB, data, sizeof(data));
        g_assert_cmpmem(data, sizeof(data), want, sizeof(want));
    }
    finish(d);
}

/* --- A device that goes with its request at a source of entropy ----------- */

static void test_rng_unplug(const char *binary)
{
    uint8_t request[2], entropy[64] = { 0 };
    Buffer b[] = { { BUFFERS, sizeof(entropy), VRING_DESC_F_WRITE } };
    g_autofree char *args = NULL;
    int fds[2];
    Dev *d;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    args = g_strdup_printf(
        "-chardev socket,id=source,fd=%d -object rng-egd,id=rng,chardev=source "
        "-device virtio-rng-pci,id=dev,addr=4,rng=rng,disable-legacy=on",
        fds[1]);
    /* Memory that is freed does not stay as it was */
    g_setenv("MALLOC_PERTURB_", "85", true);
    d = dev_new(binary, args);
    g_unsetenv("MALLOC_PERTURB_");
    close(fds[1]);

    start(d, INDIRECT, 1);
    send_message(d, 0, b, 1);
    /* QEMU asks for as much; the device is unplugged before an answer */
    g_assert_cmpint(recv(fds[0], request, sizeof(request), MSG_WAITALL), ==, 2);
    g_assert_cmpint(request[0], ==, 2);
    g_assert_cmpint(request[1], ==, sizeof(entropy));
    qtest_qmp_assert_success(d->s, "{ 'execute': 'device_del',"
                                   " 'arguments': { 'id': 'dev' } }");
    qtest_qmp_assert_success(d->s, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(d->s, "DEVICE_DELETED");
    g_assert_cmpint(write(fds[0], entropy, sizeof(entropy)), ==,
                    sizeof(entropy));
    for (int i = 0; i < 10; i++) {
        g_usleep(10 * 1000);
        assert_alive(d);
    }
    close(fds[0]);
    finish(d);
}

/* --- Packets that wait for a backend, and that are dropped ---------------- */

/* Nothing is attached to the hub but the NIC: what it sends waits */
#define NET_HUB "-netdev hubport,id=net,hubid=0 "
#define NET_NIC "-device virtio-net-pci,id=dev,netdev=net,addr=4,romfile=," \
                "disable-legacy=on"
#define TX 1

static Dev *net_waits(const char *binary)
{
    Buffer b = { BUFFERS, 80, 0 };
    Dev *d;

    /* Memory that is freed does not stay as it was */
    g_setenv("MALLOC_PERTURB_", "85", true);
    d = dev_new(binary, NET_HUB NET_NIC);
    g_unsetenv("MALLOC_PERTURB_");

    start(d, RING_RESET, 2);
    write_chain(d, TX, 0, &b, 1);
    for (int i = 0; i < 3; i++) {
        make_available(d, TX, 0);
    }
    kick(d, TX);
    for (int i = 0; i < 10; i++) {
        g_usleep(5 * 1000);
        assert_alive(d);
    }
    g_assert_cmpint(used_idx(d, TX), ==, 0);
    return d;
}

/* The packet goes with its NIC */
static void test_net_unplug(const char *binary)
{
    Dev *d = net_waits(binary);

    qtest_qmp_assert_success(d->s, "{ 'execute': 'device_del',"
                                   " 'arguments': { 'id': 'dev' } }");
    /* The guest ejects slot 4; a reset would empty the queue before */
    qtest_outl(d->s, 0xae10, 0);
    qtest_outl(d->s, 0xae08, 1 << 4);
    qtest_qmp_eventwait(d->s, "DEVICE_DELETED");
    qtest_qmp_device_add(d->s, "virtio-net-pci", "dev",
                         "{ 'netdev': 'net', 'romfile': '' }");
    /* That looks at all queues */
    qtest_qmp_assert_success(d->s, "{ 'execute': 'stop' }");
    qtest_qmp_assert_success(d->s, "{ 'execute': 'cont' }");
    finish(d);
}

/* A filter does not pass on what a NIC has sent that is gone */
static void test_net_filter(const char *binary)
{
    Buffer b = { BUFFERS, 80, 0 };
    Dev *d;

    /* Memory that is freed does not stay as it was, nor is it used again */
    g_setenv("GLIBC_TUNABLES",
             "glibc.malloc.perturb=85:glibc.malloc.tcache_count=0", true);
    d = dev_new(binary, "-netdev hubport,id=other,hubid=0 "
                        "-object filter-buffer,id=filter,netdev=net,"
                        "interval=1000000 " NET_HUB NET_NIC);
    g_unsetenv("GLIBC_TUNABLES");

    start(d, 0, 2);
    write_chain(d, TX, 0, &b, 1);
    for (int i = 0; i < 3; i++) {
        make_available(d, TX, 0);
    }
    kick(d, TX);
    wait_answered(d, TX, 3);
    qtest_qmp_assert_success(d->s, "{ 'execute': 'device_del',"
                                   " 'arguments': { 'id': 'dev' } }");
    qtest_outl(d->s, 0xae10, 0);
    qtest_outl(d->s, 0xae08, 1 << 4);
    qtest_qmp_eventwait(d->s, "DEVICE_DELETED");
    qtest_clock_step(d->s, 2000 * 1000 * 1000);
    finish(d);
}

static void test_net_reset(const char *binary)
{
    Dev *d = net_waits(binary);

    reset_queue(d, 0);
    assert_alive(d);
    reset_queue(d, TX);
    g_assert_cmpint(used_idx(d, TX), ==, 0);
    setup_queue(d, 0, 32);
    setup_queue(d, TX, 32);
    finish(d);
}

static void set_link(Dev *d, bool up)
{
    qtest_qmp_assert_success(d->s, "{ 'execute': 'set_link', 'arguments': "
                                   "{ 'name': 'dev', 'up': %i } }", up);
}

/* Packets are given back, in order too, while the link is down and after */
static void test_net_link(const char *binary)
{
    Buffer b = { BUFFERS, 80, 0 };
    Dev *d = dev_new(binary, "-netdev hubport,id=other,hubid=0 "
                             NET_HUB NET_NIC ",in_order=on");

    start(d, IN_ORDER, 2);
    write_chain(d, TX, 0, &b, 1);
    set_link(d, false);
    for (int i = 0; i < 3; i++) {
        make_available(d, TX, 0);
    }
    kick(d, TX);
    wait_answered(d, TX, 3);
    set_link(d, true);
    make_available(d, TX, 0);
    kick(d, TX);
    wait_answered(d, TX, 4);
    finish(d);
}

/* What is used at @i is @id; it has neither or both of the flags then */
static void wait_packed(Dev *d, int index, int i, uint16_t id)
{
    uint64_t desc = d->q[index].desc + i * sizeof(struct vring_packed_desc);
    uint16_t used = 1 << VRING_PACKED_DESC_F_USED;

    for (int j = 0; j < 500; j++) {
        if (qtest_readw(d->s, desc + 14) & used) {
            break;
        }
        g_usleep(10 * 1000);
    }
    g_assert_cmphex(qtest_readw(d->s, desc + 14) & used, ==, used);
    g_assert_cmpint(qtest_readw(d->s, desc + 12), ==, id);
}

static void test_net_link_packed(const char *binary)
{
    Dev *d = dev_new(binary, "-netdev hubport,id=other,hubid=0 "
                             NET_HUB NET_NIC ",packed=on,in_order=on");

    start(d, PACKED | IN_ORDER, 2);
    set_link(d, false);
    /* It is the last descriptor that tells the identifier */
    write_packed(d, TX, 1, BUFFERS, 80, 7, PACKED_AVAIL);
    write_packed(d, TX, 0, BUFFERS, 12, 3, PACKED_AVAIL | VRING_DESC_F_NEXT);
    kick(d, TX);
    wait_packed(d, TX, 0, 7);
    set_link(d, true);
    write_packed(d, TX, 2, BUFFERS, 80, 5, PACKED_AVAIL);
    kick(d, TX);
    wait_packed(d, TX, 2, 5);
    finish(d);
}

/* --- Frames that are sent in part ----------------------------------------- */

#define FRAME 60000
#define SHORT_FRAME 64
#define NET_HEADER 12

static void start_net(Dev *d, uint8_t byte, int size)
{
    Buffer b = { BUFFERS, NET_HEADER + size, 0 };

    write8(d, COMMON(device_status), 0);
    start(d, 0, 2);
    qtest_memset(d->s, BUFFERS, 0, NET_HEADER);
    qtest_memset(d->s, BUFFERS + NET_HEADER, byte, size);
    write_chain(d, TX, 0, &b, 1);
}

/* Sends frames until one is not taken, as the peer does not read */
static void fill_socket(Dev *d)
{
    start_net(d, 'l', FRAME);
    for (int i = 1, waits = 0; waits < 20; i++) {
        g_assert_cmpint(i, <, 1000);
        make_available(d, TX, 0);
        kick(d, TX);
        for (waits = 0; used_idx(d, TX) != i && waits < 20; waits++) {
            g_usleep(10 * 1000);
        }
    }
}

static void send_short_frame(Dev *d)
{
    start_net(d, 's', SHORT_FRAME);
    make_available(d, TX, 0);
    kick(d, TX);
}

/* All frames are whole, up to the short one */
static void read_frames(int fd)
{
    struct timeval timeout = { .tv_sec = 10 };
    uint8_t data[FRAME];
    uint32_t size;

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    do {
        g_assert_cmpint(recv(fd, &size, sizeof(size), MSG_WAITALL), ==,
                        sizeof(size));
        size = be32_to_cpu(size);
        g_assert_true(size == FRAME || size == SHORT_FRAME);
        g_assert_cmpint(recv(fd, data, size, MSG_WAITALL), ==, size);
        for (int i = 0; i < size; i++) {
            g_assert_cmphex(data[i], ==, size == FRAME ? 'l' : 's');
        }
    } while (size == FRAME);
}

/* The NIC is reset when a frame is sent in part */
static void reset_in_frame(const char *binary, const char *netdev)
{
    g_autofree char *args = NULL;
    int fds[2];
    Dev *d;

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    args = g_strdup_printf("-netdev %s%d,id=net " NET_NIC, netdev, fds[1]);
    d = dev_new(binary, args);
    close(fds[1]);
    fill_socket(d);
    send_short_frame(d);
    read_frames(fds[0]);
    close(fds[0]);
    finish(d);
}

static void test_reset_net_socket(const char *binary)
{
    reset_in_frame(binary, "socket,fd=");
}

static void test_reset_net_stream(const char *binary)
{
    reset_in_frame(binary, "stream,addr.type=fd,addr.str=");
}

static int connect_unix(const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    g_strlcpy(addr.sun_path, path, sizeof(addr.sun_path));
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    return fd;
}

/* The peer leaves within a frame; the next one gets whole frames */
static void test_net_reconnect(const char *binary)
{
    g_autofree char *dir = g_dir_make_tmp("virtio-limits-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "net", NULL);
    g_autofree char *args = g_strdup_printf(
        "-netdev stream,id=net,server=on,addr.type=unix,addr.path=%s " NET_NIC,
        path);
    Dev *d = dev_new(binary, args);
    int fd = connect_unix(path);

    qtest_qmp_eventwait(d->s, "NETDEV_STREAM_CONNECTED");
    fill_socket(d);
    close(fd);
    qtest_qmp_eventwait(d->s, "NETDEV_STREAM_DISCONNECTED");
    /* Frames are not kept for a peer that has gone */
    wait_answered(d, TX, d->q[TX].next);

    fd = connect_unix(path);
    qtest_qmp_eventwait(d->s, "NETDEV_STREAM_CONNECTED");
    send_short_frame(d);
    read_frames(fd);
    close(fd);
    finish(d);
    unlink(path);
    rmdir(dir);
}

/* --- Modern virtio-mmio --------------------------------------------------- */

static uint64_t mmio_base;

static void mmio_write(QTestState *s, int reg, uint32_t value)
{
    qtest_writel(s, mmio_base + reg, value);
}

static uint32_t mmio_read(QTestState *s, int reg)
{
    return qtest_readl(s, mmio_base + reg);
}

/* What the device has for queue 0 */
static int64_t mmio_queue(QTestState *s, const char *what)
{
    QDict *rsp = qtest_qmp(s, "{ 'execute': 'x-query-virtio' }");
    QDict *dev = qobject_to(QDict, qlist_peek(qdict_get_qlist(rsp, "return")));
    g_autofree char *path = g_strdup(qdict_get_str(dev, "path"));
    int64_t value;

    qobject_unref(rsp);
    rsp = qtest_qmp(s, "{ 'execute': 'x-query-virtio-queue-status',"
                       " 'arguments': { 'path': %s, 'queue': 0 } }", path);
    value = qdict_get_int(qdict_get_qdict(rsp, "return"), what);
    qobject_unref(rsp);
    return value;
}

/* As Linux does it: the queue must not be ready before */
static void mmio_setup(QTestState *s, int size)
{
    qtest_memset(s, RINGS, 0, RING_SIZE);
    mmio_write(s, VIRTIO_MMIO_QUEUE_SEL, 0);
    g_assert_cmpint(mmio_read(s, VIRTIO_MMIO_QUEUE_READY), ==, 0);
    mmio_write(s, VIRTIO_MMIO_QUEUE_NUM, size);
    mmio_write(s, VIRTIO_MMIO_QUEUE_DESC_LOW, RINGS);
    mmio_write(s, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
    mmio_write(s, VIRTIO_MMIO_QUEUE_AVAIL_LOW, RINGS + 4 * PAGE);
    mmio_write(s, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0);
    mmio_write(s, VIRTIO_MMIO_QUEUE_USED_LOW, RINGS + 8 * PAGE);
    mmio_write(s, VIRTIO_MMIO_QUEUE_USED_HIGH, 0);
    mmio_write(s, VIRTIO_MMIO_QUEUE_READY, 1);
    g_assert_cmpint(mmio_read(s, VIRTIO_MMIO_QUEUE_READY), ==, 1);
}

static void mmio_start(QTestState *s, int size)
{
    mmio_write(s, VIRTIO_MMIO_STATUS, 0);
    mmio_write(s, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                      VIRTIO_CONFIG_S_DRIVER);
    mmio_write(s, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    mmio_write(s, VIRTIO_MMIO_DRIVER_FEATURES, 0);
    mmio_write(s, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    mmio_write(s, VIRTIO_MMIO_DRIVER_FEATURES, 1);
    mmio_write(s, VIRTIO_MMIO_STATUS, DRIVER_READY);
    mmio_setup(s, size);
    mmio_write(s, VIRTIO_MMIO_STATUS, DRIVER_READY | VIRTIO_CONFIG_S_DRIVER_OK);
}

/* Makes @n reads available, and all of them use the same descriptors */
static void mmio_reads(QTestState *s, int n)
{
    struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_IN };
    Dev d = { .s = s };
    Buffer b[] = {
        { BUFFERS, sizeof(header), VRING_DESC_F_NEXT },
        { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT },
        { BUFFERS + 2 * PAGE, 1, VRING_DESC_F_WRITE },
    };

    qtest_memwrite(s, BUFFERS, &header, sizeof(header));
    for (int i = 0; i < 3; i++) {
        write_desc(&d, RINGS + i * sizeof(struct vring_desc), &b[i], i + 1);
    }
    qtest_writew(s, RINGS + 4 * PAGE + 2, n);
    mmio_write(s, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
}

static void mmio_wait_used(QTestState *s, int idx)
{
    for (int i = 0; i < 500 && qtest_readw(s, RINGS + 8 * PAGE + 2) != idx;
         i++) {
        g_usleep(10 * 1000);
    }
    g_assert_cmpint(qtest_readw(s, RINGS + 8 * PAGE + 2), ==, idx);
}

static void test_mmio_ready(const char *binary)
{
    QTestState *s = qtest_init_ext(binary,
        "-machine microvm -m 64M -nodefaults "
        "-global virtio-mmio.force-legacy=false "
        "-object iothread,id=io0 " SLOW
        "-device virtio-blk-device,drive=slow,iothread=io0", NULL, true);

    mmio_base = 0xfeb00000;
    while (mmio_read(s, VIRTIO_MMIO_DEVICE_ID) != VIRTIO_ID_BLOCK) {
        mmio_base += 512;
        g_assert_cmphex(mmio_base, <, 0xfeb04000);
    }
    g_assert_cmpint(mmio_read(s, VIRTIO_MMIO_VERSION), ==, 2);

    for (int round = 0; round < 5; round++) {
        mmio_start(s, 64);
        mmio_reads(s, 60);
        /* Neither the size nor the place of a ring in use changes */
        mmio_write(s, VIRTIO_MMIO_QUEUE_NUM, 1024);
        mmio_write(s, VIRTIO_MMIO_QUEUE_DESC_LOW, RINGS + PAGE);
        mmio_write(s, VIRTIO_MMIO_QUEUE_READY, 1);
        g_assert_cmpint(mmio_queue(s, "vring-num"), ==, 64);
        g_assert_cmphex(mmio_queue(s, "vring-desc"), ==, RINGS);
        mmio_wait_used(s, 60);

        /* The device has nothing to do with a queue that is not ready */
        mmio_reads(s, 120);
        mmio_write(s, VIRTIO_MMIO_QUEUE_READY, 0);
        g_assert_cmpint(mmio_read(s, VIRTIO_MMIO_QUEUE_READY), ==, 0);
        g_assert_cmphex(mmio_queue(s, "vring-desc"), ==, 0);
        g_assert_cmpint(mmio_queue(s, "inuse"), ==, 0);
        mmio_write(s, VIRTIO_MMIO_QUEUE_NUM, 1024);
        g_assert_cmpint(mmio_queue(s, "vring-num"), ==, 256);
        mmio_write(s, VIRTIO_MMIO_QUEUE_NOTIFY, 0);

        /* It can be set up again, for 1024 is what the device has offered */
        mmio_setup(s, 1024);
        g_assert_cmpint(mmio_queue(s, "vring-num"), ==, 1024);
        mmio_reads(s, 200);
        mmio_wait_used(s, 200);
        g_assert_cmphex(mmio_read(s, VIRTIO_MMIO_STATUS), ==,
                        DRIVER_READY | VIRTIO_CONFIG_S_DRIVER_OK);

        /* As the driver of Linux goes: a reset, and no queue is ready */
        mmio_write(s, VIRTIO_MMIO_STATUS, 0);
        mmio_write(s, VIRTIO_MMIO_QUEUE_SEL, 0);
        mmio_write(s, VIRTIO_MMIO_QUEUE_READY, 0);
        g_assert_cmpint(mmio_read(s, VIRTIO_MMIO_QUEUE_READY), ==, 0);
    }
    /* Before the device works on it a queue can be changed */
    mmio_start(s, 64);
    mmio_write(s, VIRTIO_MMIO_STATUS, 0);
    mmio_write(s, VIRTIO_MMIO_STATUS, DRIVER_READY);
    mmio_setup(s, 8);
    mmio_write(s, VIRTIO_MMIO_QUEUE_READY, 0);
    mmio_setup(s, 16);
    g_assert_cmpint(mmio_queue(s, "vring-num"), ==, 16);
    qtest_quit(s);
}

/* --- Migration streams ---------------------------------------------------- */

typedef enum Field {
    CONFIG_SIZE, QUEUES, RING_SIZE_NOW, AVAIL_INDEX, IN_USE, RING_SIZE_BEFORE,
} Field;

/* Where a stream has @field of the device, whose queue 0 has 32 elements */
static char *find_field(char *stream, gsize len, Field field)
{
    uint64_t desc = cpu_to_be64(RINGS);
    const char *section = field == RING_SIZE_BEFORE ? "virtio/ringsize" :
                          field == AVAIL_INDEX || field == IN_USE ?
                          "virtio/packed_virtqueues" : NULL;
    char *at = stream, *queues;

    if (section) {
        /* its version, and then the fields of queue 0 */
        at = memmem(stream, len, section, strlen(section));
        g_assert_nonnull(at);
        return at + strlen(section) + 4 + (field == IN_USE ? 6 : 0);
    }
    for (;; at++) {
        at = memmem(at, stream + len - at, &desc, sizeof(desc));
        g_assert_nonnull(at);
        if (at - stream > 1024 && ldl_be_p(at - 4) == 32) {
            break;
        }
    }
    /* the configuration, with its size; number of queues; size of ring 0 */
    queues = at - 8;
    switch (field) {
    case QUEUES:
        return queues;
    case RING_SIZE_NOW:
        return at - 4;
    default:
        for (int size = 8; size < 1024; size++) {
            if (ldl_be_p(queues - size - 4) == size) {
                return queues - size - 4;
            }
        }
        g_assert_not_reached();
    }
}

static char *wait_migrated(QTestState *s)
{
    for (;;) {
        QDict *rsp = qtest_qmp_assert_success_ref(
            s, "{ 'execute': 'query-migrate' }");
        g_autofree char *status = g_strdup(qdict_get_try_str(rsp, "status"));

        qobject_unref(rsp);
        if (!g_strcmp0(status, "completed") || !g_strcmp0(status, "failed")) {
            return g_steal_pointer(&status);
        }
        g_usleep(10 * 1000);
    }
}

/* A read, with the descriptors from @i on */
static void read_packed(Dev *d, int i)
{
    struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_IN };

    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    write_packed(d, 0, i + 2, BUFFERS + 2 * PAGE, 1, i,
                 PACKED_AVAIL | VRING_DESC_F_WRITE);
    write_packed(d, 0, i + 1, BUFFERS + PAGE, 512, i,
                 PACKED_AVAIL | VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
    write_packed(d, 0, i, BUFFERS, sizeof(header), i,
                 PACKED_AVAIL | VRING_DESC_F_NEXT);
    kick(d, 0);
}

/* What a packed ring is loaded from was wrong in @field */
static void try_packed(Dev *d, Queue q, Field field)
{
    dev_find(d, QPCI_DEVFN(4, 0));
    d->q[0] = q;
    if (field == AVAIL_INDEX) {
        /* It is the driver who has made its ring smaller */
        g_assert_cmphex(get_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET, !=, 0);
        start(d, PACKED, 1);
    }
    read_packed(d, 0);
    wait_packed(d, 0, 0, 0);
    read_packed(d, 3);
    wait_packed(d, 0, 3, 3);
    g_assert_cmphex(get_status(d) & VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
}

/*
 * A stream that has @value for @field is refused, or loads what a packed ring
 * can do with. Once it is shown that one as it was loads.
 */
static void load_stream(const char *binary, const char *args,
                        uint64_t features, int queues, Field field,
                        uint32_t value)
{
    g_autofree char *incoming = g_strdup_printf("%s -incoming defer", args);
    g_autofree char *path = NULL;
    g_autofree char *uri = NULL;
    g_autofree char *stream = NULL;
    gsize len;
    int fd = g_file_open_tmp("virtio-limits-XXXXXX", &path, NULL);
    Dev *d = dev_new(binary, args);
    bool packed = field == AVAIL_INDEX || field == IN_USE;
    Queue q;

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    uri = g_strdup_printf("file:%s", path);
    start(d, features, queues);
    q = d->q[0];
    qtest_qmp_assert_success(d->s, "{ 'execute': 'migrate',"
                                   " 'arguments': { 'uri': %s } }", uri);
    g_free(wait_migrated(d->s));
    dev_free(d);
    g_assert_true(g_file_get_contents(path, &stream, &len, NULL));

    for (int bad = field != CONFIG_SIZE; bad < 2; bad++) {
        g_autofree char *status = NULL;

        if (bad) {
            char *at = find_field(stream, len, field);

            if (field == AVAIL_INDEX) {
                stw_be_p(at, value);
            } else {
                stl_be_p(at, value);
            }
            g_assert_true(g_file_set_contents(path, stream, len, NULL));
        }
        d = dev_start(binary, incoming);
        qtest_qmp_assert_success(d->s, "{ 'execute': 'migrate-incoming',"
            " 'arguments': { 'uri': %s, 'exit-on-error': false } }", uri);
        status = wait_migrated(d->s);
        g_assert_cmpstr(status, ==,
                        bad && !packed ? "failed" : "completed");
        if (bad && packed) {
            qtest_qmp_assert_success(d->s, "{ 'execute': 'cont' }");
            try_packed(d, q, field);
        }
        finish(d);
    }
    unlink(path);
}

#define STREAM_BLK "-device virtio-blk-pci,addr=4,drive=n,disable-legacy=on"
#define STREAM_NET "-netdev hubport,id=net,hubid=0 -device virtio-net-pci," \
                   "netdev=net,addr=4,disable-legacy=on,romfile="

/* QEMU would read the rest of the configuration for ever */
static void test_stream_config(const char *binary)
{
    load_stream(binary, STREAM_BLK, 0, 1, CONFIG_SIZE, 0x80000000);
}

static void test_stream_size(const char *binary)
{
    load_stream(binary, STREAM_BLK, 0, 1, RING_SIZE_NOW, 0x10000000);
}

static void test_stream_no_size(const char *binary)
{
    load_stream(binary, STREAM_BLK, 0, 1, RING_SIZE_NOW, 0);
}

static void test_stream_default_size(const char *binary)
{
    load_stream(binary, STREAM_BLK, 0, 1, RING_SIZE_BEFORE, 0x10000000);
}

static void test_stream_packed(const char *binary)
{
    load_stream(binary, STREAM_BLK ",packed=on", 1ull << VIRTIO_F_RING_PACKED,
                1, AVAIL_INDEX, 0x7fff);
}

/* Two descriptors were dropped while the link was down */
static void test_stream_packed_in_use(const char *binary)
{
    load_stream(binary, STREAM_BLK ",packed=on", 1ull << VIRTIO_F_RING_PACKED,
                1, IN_USE, -2);
}

static void test_stream_queues(const char *binary)
{
    load_stream(binary, STREAM_NET, 0, 3, QUEUES, 1001);
}

#define ORDER_ERROR ",inject-error.0.event=none,inject-error.0.iotype=read," \
                    "inject-error.0.once=off"

static Dev *order_start(const char *binary, const char *error, bool packed,
                        const char *more)
{
    g_autofree char *args = g_strdup_printf(
        "-blockdev driver=blkdebug,node-name=bad,image=n%s "
        "-device virtio-blk-pci,addr=4,drive=bad,rerror=stop,in_order=on,"
        "disable-legacy=on%s %s", error, packed ? ",packed=on" : "", more);

    return dev_start(binary, args);
}

/* Requests that wait for a retry are done after migration */
static void load_in_order(const char *binary, uint64_t features)
{
    g_autofree char *path = NULL;
    g_autofree char *uri = NULL;
    g_autofree char *status = NULL;
    struct virtio_blk_outhdr header = { .type = VIRTIO_BLK_T_IN };
    int fd = g_file_open_tmp("virtio-limits-XXXXXX", &path, NULL);
    Dev *d = order_start(binary, ORDER_ERROR, features, "");
    Queue q;

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    uri = g_strdup_printf("file:%s", path);
    dev_find(d, QPCI_DEVFN(4, 0));
    start(d, IN_ORDER | features, 1);
    qtest_memwrite(d->s, BUFFERS, &header, sizeof(header));
    for (int i = 0; i < 3; i++) {
        Buffer b[] = {
            { BUFFERS, sizeof(header), 0 },
            { BUFFERS + PAGE, 512, VRING_DESC_F_WRITE },
            { BUFFERS + 2 * PAGE + i, 1, VRING_DESC_F_WRITE },
        };

        qtest_writeb(d->s, b[2].addr, 0xff);
        if (!features) {
            write_chain(d, 0, 3 * i, b, 3);
            make_available(d, 0, 3 * i);
            continue;
        }
        for (int j = 2; j >= 0; j--) {
            write_packed(d, 0, 3 * i + j, b[j].addr, b[j].len, 10 + i,
                         b[j].flags | PACKED_AVAIL |
                         (j < 2 ? VRING_DESC_F_NEXT : 0));
        }
    }
    kick(d, 0);
    qtest_qmp_eventwait(d->s, "STOP");
    qtest_qmp_assert_success(d->s, "{ 'execute': 'migrate',"
                                   " 'arguments': { 'uri': %s } }", uri);
    g_free(wait_migrated(d->s));
    q = d->q[0];
    dev_free(d);

    d = order_start(binary, "", features, "-incoming defer");
    d->q[0] = q;
    qtest_qmp_assert_success(d->s, "{ 'execute': 'migrate-incoming',"
        " 'arguments': { 'uri': %s, 'exit-on-error': false } }", uri);
    status = wait_migrated(d->s);
    g_assert_cmpstr(status, ==, "completed");
    qtest_qmp_assert_success(d->s, "{ 'execute': 'cont' }");
    if (!features) {
        wait_used(d, 0, 3);
    }
    for (int i = 0; i < 3; i++) {
        if (features) {
            wait_packed(d, 0, 3 * i, 10 + i);
        }
        g_assert_cmphex(qtest_readb(d->s, BUFFERS + 2 * PAGE + i), ==, 0);
    }
    finish(d);
    unlink(path);
}

static void test_stream_order(const char *binary)
{
    load_in_order(binary, 0);
}

static void test_stream_order_packed(const char *binary)
{
    load_in_order(binary, PACKED);
}

static void add(const char *name, StockTest *test)
{
    g_autofree char *path = g_strdup_printf("/virtio-limits/%s", name);

    add_twins(path, test, run_stock);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (qtest_has_device("virtio-serial-pci")) {
        add("large/serial", test_serial);
    }
    if (qtest_has_device("virtio-sound-pci")) {
        add("large/snd-tx", test_snd_tx);
        add("large/snd-rx", test_snd_rx);
        add("large/snd-short-rx", test_snd_short_rx);
        qtest_add_func("/virtio-limits/snd-play", test_snd_play);
    }
    if (qtest_has_device("virtio-crypto-pci")) {
        add("large/crypto-key", test_crypto);
        add("crypto/throttled", test_crypto_throttled);
    }
    if (qtest_has_device("virtio-rng-pci")) {
        add("large/rng", test_rng);
        add("unplug/rng", test_rng_unplug);
    }

    if (qtest_has_device("virtio-blk-pci")) {
        if (getenv(FAKE_ZONED)) {
            add("large/zone-report", test_zone_report);
        }
        qtest_add_data_func("/virtio-limits/stream/config",
                            test_stream_config, run_test);
        add("stream/size", test_stream_size);
        add("stream/no-size", test_stream_no_size);
        qtest_add_data_func("/virtio-limits/stream/default-size",
                            test_stream_default_size, run_test);
        add("stream/packed", test_stream_packed);
        qtest_add_data_func("/virtio-limits/stream/packed-in-use",
                            test_stream_packed_in_use, run_test);
        add("stream/in-order", test_stream_order);
        add("stream/in-order-packed", test_stream_order_packed);
        add("reset/blk", test_reset_blk);
        add("reset/blk-iothread", test_reset_blk_iothread);
        add("reset/blk-retry", test_reset_blk_retry);
    }
    if (qtest_has_device("virtio-net-pci")) {
        add("stream/queues", test_stream_queues);
        add("unplug/net", test_net_unplug);
        add("unplug/net-filter", test_net_filter);
        add("reset/net", test_net_reset);
        add("link/net", test_net_link);
        add("link/net-packed", test_net_link_packed);
        add("reset/net-socket", test_reset_net_socket);
        add("reset/net-stream", test_reset_net_stream);
        add("reconnect/net", test_net_reconnect);
    }
    if (qtest_has_device("virtio-scsi-pci")) {
        add("reset/scsi", test_reset_scsi);
        add("reset/scsi-iothread", test_reset_scsi_iothread);
        qtest_add_data_func("/virtio-limits/reset/scsi-stuck",
                            "ioeventfd=off", test_reset_scsi_stuck);
        qtest_add_data_func("/virtio-limits/reset/scsi-stuck-iothread",
                            "iothread=io0", test_reset_scsi_stuck);
    }
    if (qtest_has_device("virtio-sound-pci")) {
        add("reset/snd", test_reset_snd);
        add("reset/snd-recording", test_reset_snd_recording);
    }
    if (qtest_has_machine("microvm")) {
        add("mmio/ready", test_mmio_ready);
    }

    return g_test_run();
}

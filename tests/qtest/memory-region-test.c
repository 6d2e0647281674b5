/*
 * Memory regions go when nobody uses them any more, and then they do go
 *
 * RAM that the guest sees through a device is taken away while something
 * else still refers to it. `info ramblock` tells when it has gone.
 *
 * Tests whose name ends in -stock show how the binary that
 * QTEST_QEMU_STOCK_BINARY names fails there. They are skipped where that is
 * not set.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/libqos.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio.h"
#include "libqos/virtio-pci.h"
#include "qemu/bswap.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_ring.h"

#define STOCK "QTEST_QEMU_STOCK_BINARY"
#define RAM_SLOT 5
#define DISK_SLOT 6
#define RAM_BAR 2

/* How long the disk takes for a request */
#define LATENCY_MS 300

typedef struct Machine {
    QTestState *s;
    QPCIBus *bus;
    QGuestAllocator alloc;
    /* Where the guest sees the RAM of the device */
    uint64_t ram;
} Machine;

static void start(Machine *m, const char *binary, const char *iothread)
{
    g_autofree char *args = g_strdup_printf(
        "-machine pc -nodefaults "
        "-object memory-backend-ram,id=shared,size=1M "
        "-device ivshmem-plain,id=ram,memdev=shared,addr=%d "
        "-object iothread,id=io0 "
        "-blockdev null-co,node-name=slow,size=1048576,latency-ns=%d "
        "-device virtio-blk-pci,drive=slow,addr=%d%s",
        RAM_SLOT, LATENCY_MS * 1000 * 1000, DISK_SLOT, iothread);
    QPCIDevice *dev;

    m->s = qtest_init_ext(binary, args, NULL, true);
    m->bus = qpci_new_pc(m->s, NULL);
    pc_alloc_init(&m->alloc, m->s, 0);

    dev = qpci_device_find(m->bus, QPCI_DEVFN(RAM_SLOT, 0));
    g_assert_nonnull(dev);
    m->ram = qpci_iomap(dev, RAM_BAR, NULL).addr;
    qpci_device_enable(dev);
    g_free(dev);
    qtest_writel(m->s, m->ram, 0x12345678);
    g_assert_cmphex(qtest_readl(m->s, m->ram), ==, 0x12345678);
}

static void end(Machine *m)
{
    alloc_destroy(&m->alloc);
    qpci_free_pc(m->bus);
    qtest_quit(m->s);
}

/* Unplugs the device and deletes its memory */
static void take_away(Machine *m)
{
    qpci_unplug_acpi_device_test(m->s, "ram", RAM_SLOT);
    qtest_qmp_assert_success(m->s, "{ 'execute': 'object-del',"
                                   " 'arguments': { 'id': 'shared' } }");
}

static bool is_there(Machine *m)
{
    g_autofree char *blocks = qtest_hmp(m->s, "info ramblock");

    return strstr(blocks, "shared");
}

static bool goes_within(Machine *m, unsigned ms)
{
    for (; ms && is_there(m); ms--) {
        g_usleep(1000);
    }
    return !is_there(m);
}

/* The disk reads a sector into the RAM of the device */
static void start_dma(Machine *m, QVirtioPCIDevice **disk, QVirtQueue **vq)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(DISK_SLOT, 0) };
    struct virtio_blk_outhdr header = { .type = cpu_to_le32(VIRTIO_BLK_T_IN) };
    uint64_t request = guest_alloc(&m->alloc, sizeof(header) + 1);
    QVirtioPCIDevice *dev = virtio_pci_new(m->bus, &addr);
    uint32_t head;

    g_assert_nonnull(dev);
    qvirtio_pci_device_enable(dev);
    qvirtio_start_device(&dev->vdev);
    qvirtio_set_features(&dev->vdev, qvirtio_get_features(&dev->vdev) &
                         ~(QVIRTIO_F_BAD_FEATURE |
                           1u << VIRTIO_RING_F_INDIRECT_DESC |
                           1u << VIRTIO_RING_F_EVENT_IDX));
    *vq = qvirtqueue_setup(&dev->vdev, &m->alloc, 0);
    qvirtio_set_driver_ok(&dev->vdev);

    qtest_memwrite(m->s, request, &header, sizeof(header));
    head = qvirtqueue_add(m->s, *vq, request, sizeof(header), false, true);
    qvirtqueue_add(m->s, *vq, m->ram, 512, true, true);
    qvirtqueue_add(m->s, *vq, request + sizeof(header), 1, true, false);
    qvirtqueue_kick(m->s, &dev->vdev, *vq, head);
    *disk = dev;
}

/* The RAM goes while a disk does DMA into it, and is freed when that is over */
static void dma(const char *binary, const char *iothread)
{
    Machine m;
    QVirtioPCIDevice *disk;
    QVirtQueue *vq;
    gint64 begin;

    start(&m, binary, iothread);
    begin = g_get_monotonic_time();
    start_dma(&m, &disk, &vq);
    take_away(&m);
    if (g_get_monotonic_time() - begin < LATENCY_MS * 1000 / 2) {
        g_assert_true(is_there(&m));
    }
    qvirtio_wait_used_elem(m.s, &disk->vdev, vq, 0, NULL, 10 * G_USEC_PER_SEC);
    g_assert_true(goes_within(&m, 10000));

    qvirtqueue_cleanup(disk->vdev.bus, vq, &m.alloc);
    qvirtio_pci_device_disable(disk);
    qos_object_destroy(&disk->obj);
    end(&m);
}

static void test_dma(void)
{
    dma(NULL, ",ioeventfd=off");
}

static void test_dma_iothread(void)
{
    dma(NULL, ",iothread=io0");
}

static void test_dma_iothread_stock(void)
{
    if (g_test_subprocess()) {
        /* On a busy host the disk may be done before its RAM goes */
        for (int i = 0; i < 5; i++) {
            dma(STOCK, ",iothread=io0");
        }
        return;
    }
    if (!getenv(STOCK)) {
        g_test_skip(STOCK " is not set");
        return;
    }
    g_test_trap_subprocess(NULL, 60 * G_USEC_PER_SEC, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr("*Assertion `bql_locked()' failed*");
}

static bool goes_after_mtree(const char *binary)
{
    Machine m;
    bool gone;

    start(&m, binary, "");
    g_free(qtest_hmp(m.s, "info mtree -f"));
    take_away(&m);
    gone = goes_within(&m, binary ? 1000 : 10000);
    end(&m);
    return gone;
}

static void test_mtree(void)
{
    g_assert_true(goes_after_mtree(NULL));
}

static void test_mtree_stock(void)
{
    if (!getenv(STOCK)) {
        g_test_skip(STOCK " is not set");
        return;
    }
    g_assert_false(goes_after_mtree(STOCK));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/memory-region/dma", test_dma);
    qtest_add_func("/memory-region/dma-iothread", test_dma_iothread);
    qtest_add_func("/memory-region/dma-iothread-stock",
                   test_dma_iothread_stock);
    qtest_add_func("/memory-region/mtree", test_mtree);
    qtest_add_func("/memory-region/mtree-stock", test_mtree_stock);
    return g_test_run();
}

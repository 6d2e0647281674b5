/*
 * A driver of modern virtio-pci that does what a test tells it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqos/pci-pc.h"
#include "qemu/bswap.h"
#include "virtio-driver.h"
#include "hw/pci/pci_regs.h"

pid_t qemu_pid;

void write8(Dev *d, uint64_t field, uint8_t value)
{
    qpci_io_writeb(d->pci->pdev, d->pci->bar,
                   d->pci->common_cfg_offset + field, value);
}

void write16(Dev *d, uint64_t field, uint16_t value)
{
    qpci_io_writew(d->pci->pdev, d->pci->bar,
                   d->pci->common_cfg_offset + field, value);
}

void write32(Dev *d, uint64_t field, uint32_t value)
{
    qpci_io_writel(d->pci->pdev, d->pci->bar,
                   d->pci->common_cfg_offset + field, value);
}

void write64(Dev *d, uint64_t field, uint64_t value)
{
    write32(d, field, value);
    write32(d, field + 4, value >> 32);
}

uint16_t read16(Dev *d, uint64_t field)
{
    return qpci_io_readw(d->pci->pdev, d->pci->bar,
                         d->pci->common_cfg_offset + field);
}

uint8_t get_status(Dev *d)
{
    return qpci_io_readb(d->pci->pdev, d->pci->bar,
                         d->pci->common_cfg_offset + COMMON(device_status));
}

uint64_t get_features(Dev *d)
{
    uint64_t features = 0;

    for (int i = 0; i < 2; i++) {
        write32(d, COMMON(device_feature_select), i);
        features |= (uint64_t)qpci_io_readl(
            d->pci->pdev, d->pci->bar,
            d->pci->common_cfg_offset + COMMON(device_feature)) << (32 * i);
    }
    return features;
}

void start_driver(Dev *d, uint64_t want)
{
    uint64_t features;

    write8(d, COMMON(device_status), 0);
    write8(d, COMMON(device_status), VIRTIO_CONFIG_S_ACKNOWLEDGE |
                                     VIRTIO_CONFIG_S_DRIVER);
    features = get_features(d) & (want | 1ull << VIRTIO_F_VERSION_1);
    g_assert_cmphex(want & ~features, ==, 0);
    for (int i = 0; i < 2; i++) {
        write32(d, COMMON(guest_feature_select), i);
        write32(d, COMMON(guest_feature), features >> (32 * i));
    }
    write8(d, COMMON(device_status), DRIVER_READY);
    g_assert_cmphex(get_status(d) & VIRTIO_CONFIG_S_FEATURES_OK, !=, 0);
}

void setup_queue(Dev *d, int index, int size)
{
    Queue *q = &d->q[index];
    uint16_t off;

    q->desc = RINGS + index * RING_SIZE;
    q->avail = q->desc + 4 * PAGE;
    q->used = q->desc + 8 * PAGE;
    q->next = 0;
    qtest_memset(d->s, q->desc, 0, RING_SIZE);

    write16(d, COMMON(queue_select), index);
    if (size) {
        write16(d, COMMON(queue_size), size);
    }
    q->size = read16(d, COMMON(queue_size));
    if (!size) {
        /* The transport only knows what has been written */
        write16(d, COMMON(queue_size), q->size);
    }
    write64(d, COMMON(queue_desc_lo), q->desc);
    write64(d, COMMON(queue_avail_lo), q->avail);
    write64(d, COMMON(queue_used_lo), q->used);
    off = read16(d, COMMON(queue_notify_off));
    write16(d, COMMON(queue_enable), 1);
    q->kick = d->pci->notify_cfg_offset + off * d->pci->notify_off_multiplier;
}

void driver_ok(Dev *d)
{
    write8(d, COMMON(device_status), DRIVER_READY | VIRTIO_CONFIG_S_DRIVER_OK);
}

void setup_msix(Dev *d, int index)
{
    QPCIDevice *pdev = d->pci->pdev;
    uint64_t entry;

    if (!pdev->msix_enabled) {
        qpci_msix_enable(pdev);
    }
    entry = pdev->msix_table_off + index * PCI_MSIX_ENTRY_SIZE;
    qpci_io_writel(pdev, pdev->msix_table_bar,
                   entry + PCI_MSIX_ENTRY_LOWER_ADDR, MSI + 4 * index);
    qpci_io_writel(pdev, pdev->msix_table_bar,
                   entry + PCI_MSIX_ENTRY_UPPER_ADDR, 0);
    qpci_io_writel(pdev, pdev->msix_table_bar,
                   entry + PCI_MSIX_ENTRY_DATA, 1 + index);
    qpci_io_writel(pdev, pdev->msix_table_bar,
                   entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
    qtest_writel(d->s, MSI + 4 * index, 0);
    write16(d, COMMON(queue_select), index);
    write16(d, COMMON(queue_msix_vector), index);
}

void kick(Dev *d, int index)
{
    qpci_io_writew(d->pci->pdev, d->pci->bar, d->q[index].kick, index);
}

Dev *dev_start(const char *binary, const char *args)
{
    g_autofree char *full = g_strdup_printf(DEV_ARGS "%s", args);
    Dev *d = g_new0(Dev, 1);

    d->s = qtest_init_ext(binary, full, NULL, true);
    qemu_pid = qtest_pid(d->s);
    d->bus = qpci_new_pc(d->s, NULL);
    return d;
}

void dev_find(Dev *d, int devfn)
{
    QPCIAddress addr = { .devfn = devfn };

    d->pci = virtio_pci_new(d->bus, &addr);
    g_assert_nonnull(d->pci);
    qvirtio_pci_device_enable(d->pci);
}

Dev *dev_new(const char *binary, const char *args)
{
    Dev *d = dev_start(binary, args);

    dev_find(d, QPCI_DEVFN(4, 0));
    return d;
}

void dev_free_pci(Dev *d)
{
    g_free(d->pci->pdev);
    g_free(d->pci);
}

void dev_free(Dev *d)
{
    qtest_quit(d->s);
    if (d->pci) {
        dev_free_pci(d);
    }
    qpci_free_pc(d->bus);
    g_free(d);
}

void assert_alive(Dev *d)
{
    qtest_qmp_assert_success(d->s, "{ 'execute': 'query-status' }");
}

void wait_status(Dev *d, uint8_t bit)
{
    for (int i = 0; i < 5000 && !(get_status(d) & bit); i++) {
        g_usleep(1000);
    }
    g_assert_cmphex(get_status(d) & bit, !=, 0);
}

void write_desc(Dev *d, uint64_t addr, const Buffer *b, uint16_t next)
{
    struct vring_desc desc = {
        .addr = cpu_to_le64(b->addr),
        .len = cpu_to_le32(b->len),
        .flags = cpu_to_le16(b->flags),
        .next = cpu_to_le16(next),
    };

    qtest_memwrite(d->s, addr, &desc, sizeof(desc));
}

void write_table(Dev *d, uint64_t table, int head, const Buffer *b, int n)
{
    for (int i = 0; i < n; i++) {
        Buffer one = b[i];

        one.flags |= i + 1 < n ? VRING_DESC_F_NEXT : 0;
        write_desc(d, table + (head + i) * sizeof(struct vring_desc), &one,
                   head + i + 1);
    }
}

void write_chain(Dev *d, int index, int head, const Buffer *b, int n)
{
    write_table(d, d->q[index].desc, head, b, n);
}

void make_available(Dev *d, int index, int head)
{
    Queue *q = &d->q[index];

    qtest_writew(d->s, q->avail + 4 + 2 * (q->next % q->size), head);
    qtest_writew(d->s, q->avail + 2, ++q->next);
}

uint16_t used_idx(Dev *d, int index)
{
    return qtest_readw(d->s, d->q[index].used + 2);
}

void wait_used(Dev *d, int index, uint16_t idx)
{
    for (int i = 0; i < 500 && used_idx(d, index) != idx; i++) {
        g_usleep(10 * 1000);
    }
    g_assert_cmpint(used_idx(d, index), ==, idx);
}

void write_packed(Dev *d, int index, int i, uint64_t addr, uint32_t len,
                  uint16_t id, uint16_t flags)
{
    struct vring_packed_desc desc = {
        .addr = cpu_to_le64(addr),
        .len = cpu_to_le32(len),
        .id = cpu_to_le16(id),
        .flags = cpu_to_le16(flags),
    };

    qtest_memwrite(d->s, d->q[index].desc + i * sizeof(desc), &desc,
                   sizeof(desc));
}

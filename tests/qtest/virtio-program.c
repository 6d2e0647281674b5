/*
 * Drivers of virtio devices that are a string of bytes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "standard-headers/linux/virtio_balloon.h"
#include "virtio-program.h"
#include "hw/pci/pci_regs.h"

/* Of an indirect table */
#define TABLE 0x700000

enum {
    MAX_OPS = 64,               /* of a program */
    MAX_BUFFERS = 8,            /* of a request */
};

struct VirtioTemplate {
    int words;
    uint32_t word[32];
};

static const VirtioTemplate blk_templates[] = {
    { 4, { 0 /* IN */ } },
    { 4, { 1 /* OUT */ } },
    { 4, { 2 /* SCSI_CMD */ } },
    { 4, { 4 /* FLUSH */ } },
    { 4, { 8 /* GET_ID */ } },
    { 8, { 11 /* DISCARD */, 0, 0, 0, 8, 0, 8 } },
    { 8, { 13 /* WRITE_ZEROES */, 0, 0, 0, 8, 0, 8 } },
    { 8, { 14 /* SECURE_ERASE */, 0, 0, 0, 8, 0, 8 } },
    { 4, { 16 /* ZONE_REPORT */ } },
    { 0 },
};

/* A command of virtio-scsi: 19 bytes, of which 3 say which disk, and a CDB */
#define SCSI(...) { 13, { 0x00400101, 0, 0, 0, __VA_ARGS__ } }

static const VirtioTemplate scsi_templates[] = {
    SCSI(0x00000000) /* TEST UNIT READY */,
    SCSI(0x12000000, 0xff000000) /* INQUIRY */,
    SCSI(0x12000000, 0xff000001) /* INQUIRY, page 0 */,
    SCSI(0x28000000, 0, 0x01000008) /* READ(10) */,
    SCSI(0x2a000000, 0, 0x01000008) /* WRITE(10) */,
    SCSI(0x25000000) /* READ CAPACITY(10) */,
    SCSI(0x1a000000, 0xff003f00) /* MODE SENSE(6) */,
    SCSI(0x15000000, 0x1c000010) /* MODE SELECT(6) */,
    SCSI(0x41000000, 0, 0x01000008) /* WRITE SAME(10) */,
    SCSI(0x42000000, 0, 0x18000000) /* UNMAP */,
    SCSI(0xa0000000, 0, 0, 0x00000010) /* REPORT LUNS */,
    { 6, { 0, 5 /* I_T NEXUS RESET */, 0x00400101 } },
    { 6, { 0, 1 /* ABORT TASK SET */, 0x00400101 } },
    { 4, { 2 /* AN_SUBSCRIBE */, 0x00400101 } },
    { 0 },
};

/* A header, and @n words behind it */
#define GPU(n, type, fence, ...) \
    { 6 + (n), { type, fence, 1, 0, 0, 0, __VA_ARGS__ } }

static const VirtioTemplate gpu_templates[] = {
    GPU(0, 0x100 /* GET_DISPLAY_INFO */, 0),
    GPU(4, 0x101 /* RESOURCE_CREATE_2D */, 1, 1, 1, 64, 64),
    GPU(2, 0x102 /* RESOURCE_UNREF */, 0, 1),
    GPU(6, 0x103 /* SET_SCANOUT */, 0, 0, 0, 64, 64, 0, 1),
    GPU(6, 0x104 /* RESOURCE_FLUSH */, 1, 0, 0, 64, 64, 1),
    GPU(8, 0x105 /* TRANSFER_TO_HOST_2D */, 0, 0, 0, 64, 64, 0, 0, 1),
    GPU(6, 0x106 /* ATTACH_BACKING */, 0, 1, 1, BUFFERS, 0, 0x4000),
    GPU(2, 0x107 /* DETACH_BACKING */, 0, 1),
    GPU(2, 0x108 /* GET_CAPSET_INFO */, 0),
    GPU(2, 0x10a /* GET_EDID */, 0),
    GPU(2, 0x10b /* RESOURCE_ASSIGN_UUID */, 0, 1),
    GPU(12, 0x10c /* CREATE_BLOB */, 0, 1, 1, 1, 1, 0, 0, 0x4000, 0,
        BUFFERS, 0, 0x4000),
    GPU(18, 0x10d /* SET_SCANOUT_BLOB */, 0, 0, 0, 64, 64, 0, 1, 64, 64, 1, 0,
        256),
    GPU(8, 0x300 /* UPDATE_CURSOR */, 0, 0, 8, 8, 0, 1),
    GPU(8, 0x301 /* MOVE_CURSOR */, 0, 0, 8, 8),
    { 0 },
};

static const VirtioTemplate balloon_templates[] = {
    { 4, { 0x400, 0x401, 0x800, 0x402 } },
    { 1, { VIRTIO_BALLOON_CMD_ID_STOP } },
    { 1, { 0x80000000 } },
    { 5, { 0x00010000, 0, 0x00020000, 0, 0 } },
    { 0 },
};

#define DISK "-blockdev null-co,node-name=slow,read-zeroes=on,size=1048576," \
             "latency-ns=200000 "
#define MODES ",packed=on,in_order=on,disable-legacy=on"
#define BLK DISK "-device virtio-blk-pci,addr=4,drive=slow,rerror=report," \
            "werror=report" MODES
#define SCSI_DISK "-device scsi-hd,drive=slow,bus=scsi.0,scsi-id=1,lun=0"
#define SCSI_PCI \
    DISK "-device virtio-scsi-pci,id=scsi,addr=4,num_queues=1" MODES

const VirtioTarget virtio_targets[] = {
    { "blk", BLK, 1, 0, blk_templates },
    { "blk-iothread", BLK ",iothread=io0", 1, 0, blk_templates },
    { "scsi", SCSI_PCI " " SCSI_DISK, 3, 0, scsi_templates },
    { "scsi-iothread", SCSI_PCI ",iothread=io0 " SCSI_DISK, 3, 0,
      scsi_templates },
    { "gpu", "-device virtio-gpu-pci,addr=4" MODES, 2, 0, gpu_templates },
    { "gpu-blob", "-machine memory-backend=ram "
                  "-object memory-backend-memfd,id=ram,size=64M,share=on "
                  "-device virtio-gpu-pci,addr=4,blob=on" MODES, 2, 0,
      gpu_templates },
    { "balloon", "-device virtio-balloon-pci,addr=4,free-page-hint=on,"
                 "free-page-reporting=on,deflate-on-oom=on,iothread=io0" MODES,
      4, 1ull << VIRTIO_BALLOON_F_FREE_PAGE_HINT, balloon_templates },
    { NULL },
};

typedef struct Program {
    const uint8_t *data;
    size_t left;
    Dev *d;
    const VirtioTarget *target;
    bool packed;
    /* Where the next descriptor of each queue goes */
    uint16_t pos[4];
    bool wrap[4];
} Program;

/* The next byte; 0 after the end */
static uint8_t get8(Program *p)
{
    if (!p->left) {
        return 0;
    }
    p->left--;
    return *p->data++;
}

static uint32_t get32(Program *p)
{
    uint32_t value = get8(p);

    value |= get8(p) << 8;
    value |= get8(p) << 16;
    return value | (uint32_t)get8(p) << 24;
}

static int get_queue(Program *p)
{
    return get8(p) % p->target->queues;
}

/* Mostly a buffer of its own, else where something else is */
static uint64_t get_addr(Program *p, int i)
{
    uint64_t bar = p->d->pci->bar.addr;
    const uint64_t strange[] = {
        RAM_SIZE - 1, RAM_SIZE - 16, RINGS, TABLE, 0, ~0ull,
        0xfec00000 /* I/O APIC */, 0xfed00000 /* HPET */, 0xfffc0000 /* ROM */,
        bar + p->d->pci->common_cfg_offset, bar + p->d->pci->notify_cfg_offset,
        bar + p->d->pci->device_cfg_offset, 1ull << 40, 0x3ffffff000,
    };
    uint8_t how = get8(p);

    if (how < 240) {
        return BUFFERS + i * 4 * PAGE + (how & 8 ? how : 0);
    }
    return strange[how % ARRAY_SIZE(strange)];
}

static uint32_t get_len(Program *p, uint32_t usual)
{
    static const uint32_t lens[] = {
        0, 1, 2, 4, 8, 16, 24, 51, 96, 108, 255, 512, 4096, 0x4000, 0x100000,
        0xffffffff,
    };
    uint8_t how = get8(p);

    if (how < 224) {
        return usual;
    }
    return how < 230 ? get32(p) : lens[how % ARRAY_SIZE(lens)];
}

static void setup_queues(Program *p)
{
    for (int i = 0; i < p->target->queues; i++) {
        setup_queue(p->d, i, 8 << get8(p) % 5);
        p->pos[i] = 0;
        p->wrap[i] = true;
    }
}

static void restart(Program *p)
{
    uint8_t how = get8(p);
    Dev *d = p->d;
    uint64_t offered, features;

    qpci_config_writew(d->pci->pdev, PCI_COMMAND, PCI_COMMAND_MEMORY |
                       PCI_COMMAND_MASTER);
    write8(d, COMMON(device_status), 0);
    offered = get_features(d);
    /* Everything that is special about the device, or nothing */
    features = how & 0x40 ? offered & ((1 << 24) - 1) : 0;
    features |= p->target->features | INDIRECT;
    features |= how & 1 ? PACKED : 0;
    features |= how & 2 ? IN_ORDER : 0;
    features |= how & 4 ? EVENT_IDX : 0;
    features |= how & 8 ? RING_RESET : 0;
    features &= offered;
    if (how & 0x10) {
        features &= ~INDIRECT;
    }
    p->packed = features & PACKED;
    start_driver(d, features);
    setup_queues(p);
    if (how & 0x20) {
        setup_msix(d, p->target->queues - 1);
    }
    driver_ok(d);
}

/* The descriptors of @b in the ring of queue @index, available if @publish */
static void put_packed(Program *p, int index, const Buffer *b, int n)
{
    Queue *q = &p->d->q[index];
    uint16_t first = p->pos[index];
    bool first_wrap = p->wrap[index];

    p->pos[index] = (first + n) % q->size;
    p->wrap[index] ^= first + n >= q->size;
    /* The first at last: the device may run already */
    for (int i = n - 1; i >= 0; i--) {
        bool wrap = first_wrap ^ (first + i >= q->size);
        uint16_t flags = wrap ? PACKED_AVAIL : 1 << VRING_PACKED_DESC_F_USED;

        flags |= b[i].flags | (i + 1 < n ? VRING_DESC_F_NEXT : 0);
        write_packed(p->d, index, (first + i) % q->size, b[i].addr, b[i].len,
                     first, flags);
    }
}

static void put_split(Program *p, int index, const Buffer *b, int n)
{
    Queue *q = &p->d->q[index];
    uint16_t first = p->pos[index];

    for (int i = 0; i < n; i++) {
        Buffer one = b[i];

        one.flags |= i + 1 < n ? VRING_DESC_F_NEXT : 0;
        write_desc(p->d, q->desc + (first + i) % q->size *
                   sizeof(struct vring_desc), &one,
                   (first + i + 1) % q->size);
    }
    p->pos[index] = (first + n) % q->size;
    make_available(p->d, index, first);
}

static void put_table(Program *p, const Buffer *b, int n)
{
    for (int i = 0; i < n; i++) {
        uint64_t addr = TABLE + i * sizeof(struct vring_desc);

        if (p->packed) {
            qtest_writeq(p->d->s, addr, b[i].addr);
            qtest_writel(p->d->s, addr + 8, b[i].len);
            qtest_writel(p->d->s, addr + 12, b[i].flags << 16);
        } else {
            Buffer one = b[i];

            one.flags |= i + 1 < n ? VRING_DESC_F_NEXT : 0;
            write_desc(p->d, addr, &one, i + 1);
        }
    }
}

/* A request as one of the templates; the program changes it here and there */
static void request(Program *p)
{
    uint8_t status = get_status(p->d);
    int index = get_queue(p);
    const VirtioTemplate *t = p->target->templates;
    int templates = 0, outs, ins, n = 0;
    uint8_t how, content[sizeof(t->word)] = { 0 };
    Buffer b[MAX_BUFFERS];
    uint64_t at;
    int done = 0;

    /* What was wrong before mostly does not matter any more */
    if ((status & VIRTIO_CONFIG_S_NEEDS_RESET ||
         !(status & VIRTIO_CONFIG_S_DRIVER_OK)) && get8(p) < 224) {
        restart(p);
    }
    while (t[templates].words) {
        templates++;
    }
    t += get8(p) % templates;
    for (int i = 0; i < t->words; i++) {
        stl_le_p(content + 4 * i, t->word[i]);
    }
    for (int i = get8(p) % 8 - 3; i > 0; i--) {
        uint8_t offset = get8(p), value = get8(p);

        /* Some values are small, as many that matter are */
        content[offset % (t->words * 4)] ^= offset & 0x80 ? value & 7 : value;
    }

    how = get8(p);
    outs = 1 + how % 3;
    ins = (how >> 2) % 4;
    for (int i = 0; i < outs; i++) {
        uint32_t len = get_len(p, i ? 512 : how & 0x10 ? 16 : t->words * 4);

        b[n++] = (Buffer) { get_addr(p, i), len, 0 };
    }
    for (int i = 0; i < ins; i++) {
        uint32_t len = get_len(p, i + 1 < ins ? 512 : how & 0x20 ? 1 : 108);

        b[n++] = (Buffer) { get_addr(p, outs + i), len, VRING_DESC_F_WRITE };
    }
    if (how == 0xff) {
        /* Nothing that a driver may do: out behind in */
        b[0].flags ^= VRING_DESC_F_WRITE;
    }
    at = b[0].addr;
    for (int i = 0; i < outs && done < t->words * 4; i++) {
        int len = MIN(b[i].len, t->words * 4 - done);

        at = b[i].addr;
        if (at >= BUFFERS && at < RAM_SIZE - PAGE) {
            qtest_memwrite(p->d->s, at, content + done, len);
        }
        done += len;
    }

    if (how & 0x40) {
        Buffer table = { TABLE, get_len(p, n * sizeof(struct vring_desc)),
                         VRING_DESC_F_INDIRECT };

        put_table(p, b, n);
        b[0] = table;
        n = 1;
    }
    if (p->packed) {
        put_packed(p, index, b, n);
    } else {
        put_split(p, index, b, n);
    }
    if (!(how & 0x80)) {
        kick(p->d, index);
    }
}

/* A descriptor that is wrong in any way */
static void bad_descriptor(Program *p)
{
    int index = get_queue(p);
    Queue *q = &p->d->q[index];
    uint64_t table = get8(p) & 1 ? TABLE : q->desc;
    uint64_t addr = table + get8(p) % q->size * sizeof(struct vring_desc);

    qtest_writeq(p->d->s, addr, get_addr(p, 0));
    qtest_writel(p->d->s, addr + 8, get_len(p, 512));
    qtest_writel(p->d->s, addr + 12, get32(p));
}

/* Up to 4 bytes of the rings, or of what the device may work on */
static void write_memory(Program *p)
{
    int index = get_queue(p);
    Queue *q = &p->d->q[index];
    uint64_t where[] = {
        q->desc, q->avail, q->used, TABLE, BUFFERS, BUFFERS + 4 * PAGE,
    };
    uint64_t addr = where[get8(p) % ARRAY_SIZE(where)] + get8(p);
    uint32_t value = get32(p);

    qtest_memwrite(p->d->s, addr, &value, 1 + get8(p) % 4);
}

static void write_register(Program *p, uint64_t base, unsigned size)
{
    QVirtioPCIDevice *pci = p->d->pci;
    uint64_t addr = base + get8(p) % size;
    int width = get8(p) % 3;
    uint32_t value = get32(p);

    switch (width) {
    case 0:
        qpci_io_writeb(pci->pdev, pci->bar, addr, value);
        break;
    case 1:
        qpci_io_writew(pci->pdev, pci->bar, addr & ~1, value);
        break;
    default:
        qpci_io_writel(pci->pdev, pci->bar, addr & ~3, value);
        break;
    }
}

static void reset_queue(Program *p)
{
    int index = get_queue(p);

    write16(p->d, COMMON(queue_select), index);
    write16(p->d, offsetof(struct virtio_pci_modern_common_cfg, queue_reset),
            1);
    if (get8(p) & 1) {
        setup_queue(p->d, index, 8 << get8(p) % 5);
        p->pos[index] = 0;
        p->wrap[index] = true;
    }
}

void virtio_program_run(Dev *d, const VirtioTarget *target,
                        const uint8_t *data, size_t size,
                        void (*pause)(Dev *d, uint8_t how))
{
    Program p = { .data = data, .left = size, .d = d, .target = target };
    QVirtioPCIDevice *pci = d->pci;

    restart(&p);
    for (int i = 0; i < MAX_OPS && p.left; i++) {
        switch (get8(&p) % 24) {
        case 0:
            bad_descriptor(&p);
            break;
        case 1:
            write_memory(&p);
            break;
        case 2:
            kick(d, get_queue(&p));
            break;
        case 3:
            write_register(&p, pci->device_cfg_offset, 64);
            break;
        case 4:
            write_register(&p, pci->common_cfg_offset,
                           sizeof(struct virtio_pci_modern_common_cfg));
            break;
        case 5:
            restart(&p);
            break;
        case 6:
            reset_queue(&p);
            break;
        case 7:
            qpci_config_writew(pci->pdev, PCI_COMMAND, PCI_COMMAND_MEMORY |
                               (get8(&p) & 1 ? PCI_COMMAND_MASTER : 0));
            break;
        case 8:
            write_register(&p, pci->notify_cfg_offset, 64);
            break;
        case 9:
            setup_msix(d, get_queue(&p));
            break;
        case 10:
        case 11:
            pause(d, get8(&p));
            break;
        default:
            request(&p);
            break;
        }
    }
    qpci_config_writew(pci->pdev, PCI_COMMAND, PCI_COMMAND_MEMORY |
                       PCI_COMMAND_MASTER);
    pause(d, 0);
}

/*
 * Virtio GPU: blobs in the host visible window, with the real virglrenderer
 *
 * QEMU runs on an X server of ours and with OpenGL in software. The test is
 * the guest's driver: it shares the guest's memory, where it writes commands
 * and finds answers. A library that is preloaded to QEMU tells what is mapped
 * in the renderer, and lets it fail.
 *
 * Tests whose name ends in -stock run the test before them with the binary
 * that QTEST_QEMU_STOCK_BINARY names, and show how it fails there. They are
 * skipped where that is not set.
 *
 * The random test takes VIRTIO_GPU_BLOB_SEED, _COUNT (of commands and resets)
 * and _STEPS. Where it fails it says them, and with them it does the same
 * again.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include <sys/prctl.h>
#include "libqtest.h"
#include "libqos/libqos.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "qemu/atomic.h"
#include "qemu/bitops.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "qobject/qlist.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_balloon.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_gpu.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ring.h"
#include "virtio-gpu-blob-shim.h"

#define RAM_SIZE (64 * MiB)
#define WINDOW_SIZE (64 * MiB)
#define BLOB_SIZE (64 * KiB)

/* Guest physical addresses */
#define MAILBOX 0x10000
#define BALLOON_RING 0x20000
#define RING 0x30000
#define DISK_RING 0x40000
#define SLOTS_BASE 0x100000

/* A ring takes three pages, a slot two: the request and the answer */
#define PAGE 0x1000
#define SLOTS 64

/*
 * The firmware. A vCPU that runs does what the mailbox says: a write of 8
 * (op 1) or 16 (op 2) bits to an address, one of 8 bits to another unless
 * that is 0, then it waits, and does nothing else, until a 16-bit word has a
 * value; then op becomes 0.
 *
 *    start: cli                         // 16 bit, cs base 0xffff0000
 *           lgdtl %cs:(gdtr - start)
 *           movl %cr0, %eax
 *           orb $1, %al
 *           movl %eax, %cr0
 *           ljmpl $8, $(0xffff0000 + flat - start)
 *    flat:  movw $16, %ax               // 32 bit
 *           movw %ax, %ds
 *           movl $MAILBOX, %ebx
 *    idle:  movl (%ebx), %eax           // op
 *           testl %eax, %eax
 *           jz idle
 *           movl 4(%ebx), %edi          // address
 *           movl 8(%ebx), %ecx          // value
 *           decl %eax
 *           jz byte
 *           movw %cx, (%edi)
 *           jmp wait
 *    byte:  movb %cl, (%edi)
 *    wait:  movl 24(%ebx), %edi         // the other address
 *           testl %edi, %edi
 *           jz look
 *           movl 28(%ebx), %ecx         // and what to write there
 *           movb %cl, (%edi)
 *    look:  movl 12(%ebx), %esi         // watched address
 *           movl 16(%ebx), %edx         // value to wait for
 *    watch: cmpw %dx, (%esi)
 *           jne watch
 *           movl $0, (%ebx)
 *           jmp idle
 *    gdt:   .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
 *    gdtr:  .word gdtr - gdt - 1
 *           .long 0xffff0000 + gdt - start
 */
static const uint8_t firmware[] = {
    0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x70, 0x00, 0x0f, 0x20, 0xc0, 0x0c,
    0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x18, 0x00, 0xff, 0xff, 0x08, 0x00,
    0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0xbb, 0x00, 0x00, 0x01, 0x00, 0x8b,
    0x03, 0x85, 0xc0, 0x74, 0xfa, 0x8b, 0x7b, 0x04, 0x8b, 0x4b, 0x08, 0x48,
    0x74, 0x05, 0x66, 0x89, 0x0f, 0xeb, 0x02, 0x88, 0x0f, 0x8b, 0x7b, 0x18,
    0x85, 0xff, 0x74, 0x05, 0x8b, 0x4b, 0x1c, 0x88, 0x0f, 0x8b, 0x73, 0x0c,
    0x8b, 0x53, 0x10, 0x66, 0x39, 0x16, 0x75, 0xfb, 0xc7, 0x03, 0x00, 0x00,
    0x00, 0x00, 0xeb, 0xcb, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00,
    0x00, 0x93, 0xcf, 0x00, 0x17, 0x00, 0x58, 0x00, 0xff, 0xff,
};

#define FIRMWARE_SIZE (64 * KiB)
#define RESET_VECTOR 0xfff0
/* jmp to the start of the segment */
static const uint8_t reset_vector[] = { 0xe9, 0x0d, 0x00 };

typedef struct Mailbox {
    uint32_t op;
    uint32_t address;
    uint32_t value;
    uint32_t watch;
    uint32_t until;
    uint32_t zero;
    uint32_t then_address;
    uint32_t then_value;
} Mailbox;

typedef struct Slot {
    bool pending;
    bool answered;
    /* How many commands were answered before, since the driver started */
    unsigned when;
} Slot;

typedef struct Gpu {
    QTestState *s;
    QPCIBus *bus;
    QGuestAllocator alloc;
    QVirtioPCIDevice *dev;
    QVirtioPCIDevice *balloon;
    /* of the main loop, and of an IOThread */
    QVirtioPCIDevice *disk[2];
    bool vcpu;
    uint8_t *ram;
    BlobShim *shim;
    char *ram_path, *shim_path, *firmware_path;
    uint64_t window;
    uint64_t notify;
    uint64_t fence;
    uint64_t blob_id;
    uint16_t avail, used;
    unsigned answers;
    Slot slot[SLOTS];
} Gpu;

/* How long anything may take: a stock binary is known to hang */
static int patience_s = 60;

/* --- QEMU ---------------------------------------------------------------- */

static char *shared_file(const char *what, size_t size, void **map)
{
    g_autofree char *template = g_strdup_printf("virtio-gpu-%s-XXXXXX", what);
    char *path;
    int fd = g_file_open_tmp(template, &path, NULL);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    g_assert_true(*map != MAP_FAILED);
    close(fd);
    return path;
}

static void remove_file(char **path)
{
    unlink(*path);
    g_clear_pointer(path, g_free);
}

static char *firmware_file(void)
{
    void *map;
    char *path = shared_file("firmware", FIRMWARE_SIZE, &map);

    memcpy(map, firmware, sizeof(firmware));
    memcpy(map + RESET_VECTOR, reset_vector, sizeof(reset_vector));
    munmap(map, FIRMWARE_SIZE);
    return path;
}

static QVirtioPCIDevice *find_device(QPCIBus *bus, int slot)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(slot, 0) };
    QVirtioPCIDevice *dev = virtio_pci_new(bus, &addr);

    qvirtio_pci_device_enable(dev);
    return dev;
}

static void find_others(Gpu *g)
{
    g->balloon = find_device(g->bus, 5);
    for (int i = 0; i < ARRAY_SIZE(g->disk); i++) {
        g->disk[i] = find_device(g->bus, 8 + i);
    }
}

static void free_others(Gpu *g)
{
    g_free(g->balloon->pdev);
    g_free(g->balloon);
    for (int i = 0; i < ARRAY_SIZE(g->disk); i++) {
        g_free(g->disk[i]->pdev);
        g_free(g->disk[i]);
    }
}

static void start_driver(Gpu *g);

#define PORT QPCI_DEVFN(6, 0)

/* Of the switch's ports and of what is behind it: the bus, then the device */
#define BEHIND_PORT 0x100
#define BEHIND_UPSTREAM 0x200
#define BEHIND_SWITCH 0x300

/* As firmware does it, for what libqos knows nothing about */
static void setup_bridge(QPCIBus *bus, int devfn, uint32_t numbers)
{
    QPCIDevice *bridge = qpci_device_find(bus, devfn);

    g_assert_nonnull(bridge);
    qpci_config_writel(bridge, PCI_PRIMARY_BUS, numbers);
    qpci_config_writel(bridge, PCI_MEMORY_BASE, 0xfbf0e000);
    qpci_config_writel(bridge, PCI_PREF_MEMORY_BASE, 0x0000fff0);
    qpci_config_writew(bridge, PCI_COMMAND,
                       PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    g_free(bridge);
}

static Gpu *gpu_new_at(bool vcpu, bool behind_switch)
{
    g_autofree char *preload = g_canonicalize_filename(
        g_test_get_filename(G_TEST_BUILT, "virtio-gpu-blob-shim.so", NULL),
        NULL);
    g_autofree char *args = NULL;
    Gpu *g = g_new0(Gpu, 1);
    uint64_t size;
    void *map;

    g->vcpu = vcpu;
    g->ram_path = shared_file("ram", RAM_SIZE, &map);
    g->ram = map;
    g->shim_path = shared_file("shim", sizeof(BlobShim), &map);
    g->shim = map;
    g->firmware_path = firmware_file();
    args = g_strdup_printf(
        "%s -machine %s,memory-backend=ram -m 64M -nodefaults -vga none "
        "-object memory-backend-file,id=ram,size=64M,share=on,mem-path=%s "
        "-bios %s -global apic-common.vapic=off -display sdl,gl=on %s"
        "-device virtio-gpu-gl-pci,id=gpu,%s,hostmem=64M,blob=on "
        "-device virtio-balloon-pci,id=balloon,addr=5,disable-legacy=on,"
        "ioeventfd=off -object iothread,id=io -blockdev null-co,node-name=null,"
        "size=1048576,read-zeroes=on,latency-ns=5000000 "
        "-device virtio-blk-pci,drive=null,addr=8,"
        "disable-legacy=on,ioeventfd=off "
        "-blockdev null-co,node-name=null-io,"
        "size=1048576,read-zeroes=on,latency-ns=5000000 "
        "-device virtio-blk-pci,drive=null-io,iothread=io,addr=9,"
        "disable-legacy=on", vcpu ? "-accel tcg" : "",
        behind_switch ? "q35" : "pc", g->ram_path, g->firmware_path,
        behind_switch ?
        "-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off "
        "-device pcie-root-port,id=rp,addr=6,chassis=1,slot=1 "
        "-device x3130-upstream,id=up,bus=rp "
        "-device xio3130-downstream,id=down,bus=up,chassis=2,slot=2 " : "",
        behind_switch ? "bus=down" : "addr=4");

    g_assert_true(g_file_test(preload, G_FILE_TEST_EXISTS));
    g_setenv(BLOB_SHIM_ENV, g->shim_path, true);
    g_setenv("LD_PRELOAD", preload, true);
    g->s = qtest_init(args);
    g_unsetenv("LD_PRELOAD");
    remove_file(&g->ram_path);
    remove_file(&g->firmware_path);

    alloc_init(&g->alloc, ALLOC_NO_FLAGS, MiB, RAM_SIZE, PAGE);
    g->bus = qpci_new_pc(g->s, &g->alloc);
    if (behind_switch) {
        QPCIAddress addr = { .devfn = BEHIND_SWITCH };

        setup_bridge(g->bus, PORT, 0x030100);
        setup_bridge(g->bus, BEHIND_PORT, 0x030201);
        setup_bridge(g->bus, BEHIND_UPSTREAM, 0x030302);
        g->dev = virtio_pci_new(g->bus, &addr);
        qvirtio_pci_device_enable(g->dev);
    } else {
        g->dev = find_device(g->bus, 4);
    }
    find_others(g);
    g->window = qpci_iomap(g->dev->pdev, 4, &size).addr;
    g_assert_cmphex(size, ==, WINDOW_SIZE);

    start_driver(g);
    return g;
}

/* @vcpu: there is one, and it runs the firmware above */
static Gpu *gpu_new(bool vcpu)
{
    return gpu_new_at(vcpu, false);
}

static void gpu_free(Gpu *g)
{
    g_assert_cmpint(g->shim->other_thread, ==, 0);
    free_others(g);
    g_free(g->dev->pdev);
    g_free(g->dev);
    qpci_free_pc(g->bus);
    alloc_destroy(&g->alloc);
    qtest_quit(g->s);
    remove_file(&g->shim_path);
    munmap(g->shim, sizeof(BlobShim));
    munmap(g->ram, RAM_SIZE);
    g_free(g);
}

/* Gives QEMU's main loop and its clock some time */
static void step(Gpu *g)
{
    if (g->vcpu) {
        g_usleep(1000);
    } else {
        qtest_clock_step(g->s, 10 * 1000 * 1000);
    }
}

/* Enough for what is going to happen by itself to have happened */
static void settle(Gpu *g)
{
    for (int i = 0; i < 30; i++) {
        step(g);
        g_usleep(1000);
    }
}

static gint64 deadline(void)
{
    return g_get_monotonic_time() + patience_s * G_USEC_PER_SEC;
}

/* Regions of blobs that the device has */
static int regions(Gpu *g)
{
    QDict *rsp = qtest_qmp(
        g->s, "{ 'execute': 'qom-list', 'arguments': "
        "{ 'path': '/machine/peripheral/gpu/virtio-backend' } }");
    QListEntry *entry;
    int count = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *property = qobject_to(QDict, qlist_entry_obj(entry));

        count += g_str_has_prefix(qdict_get_str(property, "name"), "blob[");
    }
    qobject_unref(rsp);
    return count;
}

/* --- Virtio -------------------------------------------------------------- */

#define COMMON(field) offsetof(struct virtio_pci_common_cfg, field)

static void write8(QVirtioPCIDevice *dev, uint64_t field, uint8_t value)
{
    qpci_io_writeb(dev->pdev, dev->bar, dev->common_cfg_offset + field,
                   value);
}

static void write16(QVirtioPCIDevice *dev, uint64_t field, uint16_t value)
{
    qpci_io_writew(dev->pdev, dev->bar, dev->common_cfg_offset + field,
                   value);
}

static void write64(QVirtioPCIDevice *dev, uint64_t field, uint64_t value)
{
    qpci_io_writel(dev->pdev, dev->bar, dev->common_cfg_offset + field,
                   value);
    qpci_io_writel(dev->pdev, dev->bar, dev->common_cfg_offset + field + 4,
                   value >> 32);
}

/* Returns: the address that kicks it */
static uint64_t setup_queue(QVirtioPCIDevice *dev, int index, int size,
                            uint64_t ring)
{
    uint16_t off;

    write16(dev, COMMON(queue_select), index);
    write16(dev, COMMON(queue_size), size);
    write64(dev, COMMON(queue_desc_lo), ring);
    write64(dev, COMMON(queue_avail_lo), ring + PAGE);
    write64(dev, COMMON(queue_used_lo), ring + 2 * PAGE);
    off = qpci_io_readw(dev->pdev, dev->bar, dev->common_cfg_offset +
                        COMMON(queue_notify_off));
    write16(dev, COMMON(queue_enable), 1);
    return dev->bar.addr + dev->notify_cfg_offset +
           off * dev->notify_off_multiplier;
}

static void set_status(QVirtioPCIDevice *dev, uint8_t status)
{
    write8(dev, COMMON(device_status), status);
}

static void acknowledge(QVirtioPCIDevice *dev, uint64_t features)
{
    set_status(dev, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set_status(dev, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
    features |= BIT_ULL(VIRTIO_F_VERSION_1);
    g_assert_cmphex(dev->vdev.bus->get_features(&dev->vdev) & features, ==,
                    features);
    dev->vdev.bus->set_features(&dev->vdev, features);
    set_status(dev, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
               VIRTIO_CONFIG_S_FEATURES_OK);
}

static void driver_ok(QVirtioPCIDevice *dev)
{
    set_status(dev, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER |
               VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
}

static void write_desc(Gpu *g, uint64_t ring, int index, uint64_t addr,
                       uint32_t len, uint16_t flags, uint16_t next)
{
    uint8_t *desc = g->ram + ring + index * sizeof(struct vring_desc);

    stq_le_p(desc, addr);
    stl_le_p(desc + 8, len);
    stw_le_p(desc + 12, flags);
    stw_le_p(desc + 14, next);
}

/* The guest puts the device back, and no longer waits for anything */
static void reset(Gpu *g)
{
    set_status(g->dev, 0);
    g_assert_cmpint(g->dev->vdev.bus->get_status(&g->dev->vdev), ==, 0);
    memset(g->slot, 0, sizeof(g->slot));
}

static void init_cmd(void *cmd, uint32_t type)
{
    struct virtio_gpu_ctrl_hdr *hdr = cmd;

    hdr->type = cpu_to_le32(type);
}

static void fence_cmd(Gpu *g, void *cmd)
{
    struct virtio_gpu_ctrl_hdr *hdr = cmd;

    hdr->flags = cpu_to_le32(VIRTIO_GPU_FLAG_FENCE);
    hdr->fence_id = cpu_to_le64(++g->fence);
}

/* Returns: the command's slot, to be given to wait_answer() */
static int submit(Gpu *g, const void *cmd, size_t size)
{
    uint8_t *avail = g->ram + RING + PAGE;
    int i;

    for (i = 0; g->slot[i].pending; i++) {
        g_assert_cmpint(i, <, SLOTS - 1);
    }
    g->slot[i] = (Slot) { .pending = true };
    g_assert_cmpint(size, <=, PAGE);
    memcpy(g->ram + SLOTS_BASE + i * 2 * PAGE, cmd, size);
    memset(g->ram + SLOTS_BASE + i * 2 * PAGE + PAGE, 0, PAGE);
    write_desc(g, RING, 2 * i, SLOTS_BASE + i * 2 * PAGE, size,
               VRING_DESC_F_NEXT, 2 * i + 1);
    write_desc(g, RING, 2 * i + 1, SLOTS_BASE + i * 2 * PAGE + PAGE, PAGE,
               VRING_DESC_F_WRITE, 0);
    stw_le_p(avail + 4 + 2 * (g->avail % (2 * SLOTS)), 2 * i);
    /* The command before its index */
    smp_wmb();
    stw_le_p(avail + 2, ++g->avail);
    return i;
}

static void kick(Gpu *g)
{
    qtest_writew(g->s, g->notify, 0);
}

static void look_for_answers(Gpu *g)
{
    uint8_t *used = g->ram + RING + 2 * PAGE;

    while (g->used != lduw_le_p(used + 2)) {
        uint32_t id;

        /* The index before the answer */
        smp_rmb();
        id = ldl_le_p(used + 4 + 8 * (g->used++ % (2 * SLOTS))) / 2;
        g_assert_cmpint(id, <, SLOTS);
        /* once, and only what was asked */
        g_assert_true(g->slot[id].pending);
        g_assert_false(g->slot[id].answered);
        g->slot[id].answered = true;
        g->slot[id].when = g->answers++;
    }
}

static bool answered(Gpu *g, int slot)
{
    look_for_answers(g);
    g_assert_true(g->slot[slot].pending);
    return g->slot[slot].answered;
}

static const void *answer(Gpu *g, int slot)
{
    return g->ram + SLOTS_BASE + slot * 2 * PAGE + PAGE;
}

/* Returns: the type of the answer */
static uint32_t wait_answer(Gpu *g, int slot)
{
    gint64 end = deadline();

    while (!answered(g, slot)) {
        if (g_get_monotonic_time() > end) {
            g_error("command 0x%x is not answered",
                    ldl_le_p(g->ram + SLOTS_BASE + slot * 2 * PAGE));
        }
        step(g);
    }
    g->slot[slot].pending = false;
    return ldl_le_p(answer(g, slot));
}

#define assert_answer(got, wanted) g_assert_cmphex(got, ==, wanted)

/* --- Commands ------------------------------------------------------------ */

#define CTX 1

static int submit_capset(Gpu *g)
{
    struct virtio_gpu_get_capset cmd = {
        .capset_id = cpu_to_le32(VIRTIO_GPU_CAPSET_VIRGL2),
        .capset_version = cpu_to_le32(2),
    };

    init_cmd(&cmd, VIRTIO_GPU_CMD_GET_CAPSET);
    return submit(g, &cmd, sizeof(cmd));
}

static int submit_display_info(Gpu *g, bool fence)
{
    struct virtio_gpu_ctrl_hdr cmd = { 0 };

    init_cmd(&cmd, VIRTIO_GPU_CMD_GET_DISPLAY_INFO);
    if (fence) {
        fence_cmd(g, &cmd);
    }
    return submit(g, &cmd, sizeof(cmd));
}

static int submit_context(Gpu *g)
{
    struct virtio_gpu_ctx_create cmd = { .nlen = cpu_to_le32(4) };

    init_cmd(&cmd, VIRTIO_GPU_CMD_CTX_CREATE);
    cmd.hdr.ctx_id = cpu_to_le32(CTX);
    strcpy(cmd.debug_name, "test");
    return submit(g, &cmd, sizeof(cmd));
}

/* The buffer on the GL side that becomes the next blob */
static int submit_buffer(Gpu *g, uint32_t size)
{
    enum { PIPE_RESOURCE_CREATE = 48, R8_UNORM = 64, VERTEX_BUFFER = 1 << 4,
           MAP_PERSISTENT = 1 << 1, MAP_COHERENT = 1 << 2 };
    struct {
        struct virtio_gpu_cmd_submit cmd;
        uint32_t virgl[12];
    } cmd = { .cmd.size = cpu_to_le32(sizeof(cmd.virgl)) };
    const uint32_t virgl[] = {
        PIPE_RESOURCE_CREATE | 11 << 16, 0 /* a buffer */, R8_UNORM,
        VERTEX_BUFFER, size, 1, 1, 1, 0, 0, MAP_PERSISTENT | MAP_COHERENT,
        ++g->blob_id,
    };

    init_cmd(&cmd, VIRTIO_GPU_CMD_SUBMIT_3D);
    cmd.cmd.hdr.ctx_id = cpu_to_le32(CTX);
    for (int i = 0; i < ARRAY_SIZE(virgl); i++) {
        cmd.virgl[i] = cpu_to_le32(virgl[i]);
    }
    return submit(g, &cmd, sizeof(cmd));
}

static int submit_create(Gpu *g, uint32_t id, uint64_t size, bool fence)
{
    struct virtio_gpu_resource_create_blob cmd = {
        .resource_id = cpu_to_le32(id),
        .blob_mem = cpu_to_le32(VIRTIO_GPU_BLOB_MEM_HOST3D),
        .blob_flags = cpu_to_le32(VIRTIO_GPU_BLOB_FLAG_USE_MAPPABLE),
        .blob_id = cpu_to_le64(g->blob_id),
        .size = cpu_to_le64(size),
    };

    init_cmd(&cmd, VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB);
    cmd.hdr.ctx_id = cpu_to_le32(CTX);
    if (fence) {
        fence_cmd(g, &cmd);
        cmd.hdr.ctx_id = cpu_to_le32(CTX);
    }
    return submit(g, &cmd, sizeof(cmd));
}

static int submit_map(Gpu *g, uint32_t id, uint64_t offset, bool fence)
{
    struct virtio_gpu_resource_map_blob cmd = {
        .resource_id = cpu_to_le32(id),
        .offset = cpu_to_le64(offset),
    };

    init_cmd(&cmd, VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB);
    if (fence) {
        fence_cmd(g, &cmd);
    }
    return submit(g, &cmd, sizeof(cmd));
}

/* A resource that is no blob, and for which no context is needed */
static int submit_create_2d(Gpu *g, uint32_t id)
{
    struct virtio_gpu_resource_create_2d cmd = {
        .resource_id = cpu_to_le32(id),
        .format = cpu_to_le32(VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM),
        .width = cpu_to_le32(32),
        .height = cpu_to_le32(32),
    };

    init_cmd(&cmd, VIRTIO_GPU_CMD_RESOURCE_CREATE_2D);
    return submit(g, &cmd, sizeof(cmd));
}

/* A page of the window as the memory of a resource */
static int submit_backing(Gpu *g, uint32_t id, uint64_t offset)
{
    struct {
        struct virtio_gpu_resource_attach_backing cmd;
        struct virtio_gpu_mem_entry entry;
    } cmd = {
        .cmd.resource_id = cpu_to_le32(id),
        .cmd.nr_entries = cpu_to_le32(1),
        .entry.addr = cpu_to_le64(g->window + offset),
        .entry.length = cpu_to_le32(PAGE),
    };

    init_cmd(&cmd, VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING);
    return submit(g, &cmd, sizeof(cmd));
}

static int submit_scanout(Gpu *g, uint32_t id)
{
    struct virtio_gpu_set_scanout cmd = {
        .resource_id = cpu_to_le32(id),
        .r.width = cpu_to_le32(32),
        .r.height = cpu_to_le32(32),
    };

    init_cmd(&cmd, VIRTIO_GPU_CMD_SET_SCANOUT);
    return submit(g, &cmd, sizeof(cmd));
}

/* UNMAP_BLOB and RESOURCE_UNREF look the same */
static int submit_release(Gpu *g, uint32_t type, uint32_t id, bool fence)
{
    struct virtio_gpu_resource_unmap_blob cmd = {
        .resource_id = cpu_to_le32(id),
    };

    init_cmd(&cmd, type);
    if (fence) {
        fence_cmd(g, &cmd);
    }
    return submit(g, &cmd, sizeof(cmd));
}

#define UNMAP VIRTIO_GPU_CMD_RESOURCE_UNMAP_BLOB
#define UNREF VIRTIO_GPU_CMD_RESOURCE_UNREF

static uint32_t release(Gpu *g, uint32_t type, uint32_t id)
{
    int slot = submit_release(g, type, id, false);

    kick(g);
    return wait_answer(g, slot);
}

static uint32_t map(Gpu *g, uint32_t id, uint64_t offset)
{
    int slot = submit_map(g, id, offset, false);

    kick(g);
    return wait_answer(g, slot);
}

static void create(Gpu *g, uint32_t id, uint64_t size)
{
    int buffer = submit_buffer(g, size);
    int blob = submit_create(g, id, size, false);

    kick(g);
    assert_answer(wait_answer(g, buffer), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(wait_answer(g, blob), VIRTIO_GPU_RESP_OK_NODATA);
}

static void create_mapped(Gpu *g, uint32_t id, uint64_t offset)
{
    create(g, id, BLOB_SIZE);
    assert_answer(map(g, id, offset), VIRTIO_GPU_RESP_OK_MAP_INFO);
}

/* --- The guest's driver -------------------------------------------------- */

static void setup_ring(Gpu *g)
{
    memset(g->ram + RING, 0, 3 * PAGE);
    g->avail = g->used = g->answers = 0;
    g->notify = setup_queue(g->dev, 0, 2 * SLOTS, RING);
}

static void setup_driver(Gpu *g)
{
    acknowledge(g->dev, BIT_ULL(VIRTIO_GPU_F_VIRGL) |
                BIT_ULL(VIRTIO_GPU_F_RESOURCE_BLOB) |
                BIT_ULL(VIRTIO_GPU_F_CONTEXT_INIT));
    g->fence = 0;
    setup_ring(g);
    driver_ok(g->dev);
}

/* Of struct virtio_pci_modern_common_cfg */
#define QUEUE_RESET 58

static void reset_queue(Gpu *g)
{
    write16(g->dev, COMMON(queue_select), 0);
    write16(g->dev, QUEUE_RESET, 1);
    memset(g->slot, 0, sizeof(g->slot));
    setup_ring(g);
}

static void setup_context(Gpu *g)
{
    int capset = submit_capset(g);
    int context = submit_context(g);

    kick(g);
    assert_answer(wait_answer(g, capset), VIRTIO_GPU_RESP_OK_CAPSET);
    assert_answer(wait_answer(g, context), VIRTIO_GPU_RESP_OK_NODATA);
}

static void start_driver(Gpu *g)
{
    reset(g);
    setup_driver(g);
    setup_context(g);
}

/* Through the window, as the guest's CPU sees it */
static void assert_window(Gpu *g, uint64_t offset, uint32_t wanted)
{
    g_assert_cmphex(qtest_readl(g->s, g->window + offset), ==, wanted);
}

static void write_window(Gpu *g, uint64_t offset, uint32_t value)
{
    qtest_writel(g->s, g->window + offset, value);
    assert_window(g, offset, value);
}

#define NOTHING_THERE 0

/* All that the device can do still works, and nothing is left over */
static void assert_works(Gpu *g)
{
    int before = g->shim->live;

    for (int i = 0; i < 2; i++) {
        create_mapped(g, 1000, 16 * MiB);
        write_window(g, 16 * MiB + 64, 0x600df00d);
        assert_answer(release(g, UNMAP, 1000), VIRTIO_GPU_RESP_OK_NODATA);
        assert_window(g, 16 * MiB + 64, NOTHING_THERE);
        assert_answer(release(g, UNREF, 1000), VIRTIO_GPU_RESP_OK_NODATA);
    }
    g_assert_cmpint(g->shim->live, ==, before);
}

static void assert_all_gone(Gpu *g)
{
    g_assert_cmpint(g->shim->live, ==, 0);
    g_assert_cmpint(g->shim->lost, ==, 0);
    g_assert_cmpint(regions(g), ==, 0);
}

/*
 * DMA to a place in the window that takes until let_go(): the balloon maps
 * the buffer for its statistics, and returns it when it is asked for new ones
 */
static void hold(Gpu *g, uint64_t offset)
{
    uint8_t *avail = g->ram + BALLOON_RING + PAGE;
    uint64_t notify;

    set_status(g->balloon, 0);
    acknowledge(g->balloon, BIT_ULL(VIRTIO_BALLOON_F_STATS_VQ));
    memset(g->ram + BALLOON_RING, 0, 3 * PAGE);
    notify = setup_queue(g->balloon, 2, 4, BALLOON_RING);
    driver_ok(g->balloon);
    write_desc(g, BALLOON_RING, 0, g->window + offset, 64, 0, 0);
    stw_le_p(avail + 2, 1);
    qtest_writew(g->s, notify, 2);
}

static void let_go(Gpu *g)
{
    set_status(g->balloon, 0);
}

/*
 * A disk reads to a place in the window, which takes it some milliseconds;
 * what it was doing before is ended
 */
static void disk_read(Gpu *g, int which, uint64_t offset)
{
    QVirtioPCIDevice *dev = g->disk[which];
    uint64_t ring = DISK_RING + which * 4 * PAGE;
    uint64_t header = ring + 3 * PAGE;
    uint64_t status = header + sizeof(struct virtio_blk_outhdr);
    uint64_t notify;

    set_status(dev, 0);
    acknowledge(dev, 0);
    memset(g->ram + ring, 0, 4 * PAGE);
    stl_le_p(g->ram + header, VIRTIO_BLK_T_IN);
    notify = setup_queue(dev, 0, 4, ring);
    driver_ok(dev);
    write_desc(g, ring, 0, header, sizeof(struct virtio_blk_outhdr),
               VRING_DESC_F_NEXT, 1);
    write_desc(g, ring, 1, g->window + offset, PAGE,
               VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 2);
    write_desc(g, ring, 2, status, 1, VRING_DESC_F_WRITE, 0);
    stw_le_p(g->ram + ring + PAGE + 2, 1);
    qtest_writew(g->s, notify, 0);
}

/* --- The vCPU ------------------------------------------------------------ */

static Mailbox *mailbox(Gpu *g)
{
    return (Mailbox *)(g->ram + MAILBOX);
}

/* The vCPU writes, and goes on when the word at @watch is @until */
static void vcpu_start(Gpu *g, int op, uint64_t address, uint32_t value,
                       uint32_t watch, uint16_t until)
{
    Mailbox *m = mailbox(g);

    g_assert_true(g->vcpu);
    m->address = address;
    m->value = value;
    m->watch = watch;
    m->until = until;
    /* op is what the vCPU looks at first */
    qatomic_store_release(&m->op, op);
}

static bool vcpu_idle(Gpu *g)
{
    return g->vcpu && !qatomic_read(&mailbox(g)->op);
}

static void vcpu_wait(Gpu *g)
{
    gint64 end = deadline();

    while (!vcpu_idle(g)) {
        if (g_get_monotonic_time() > end) {
            g_error("the vCPU does not come back");
        }
        g_usleep(50);
    }
}

static void vcpu_kick(Gpu *g)
{
    vcpu_start(g, 2, g->notify, 0, MAILBOX + offsetof(Mailbox, zero), 0);
    vcpu_wait(g);
}

static uint64_t status_address(Gpu *g)
{
    return g->dev->bar.addr + g->dev->common_cfg_offset +
           COMMON(device_status);
}

static void vcpu_reset(Gpu *g)
{
    vcpu_start(g, 1, status_address(g), 0, MAILBOX + offsetof(Mailbox, zero),
               0);
    vcpu_wait(g);
    memset(g->slot, 0, sizeof(g->slot));
}

/* At once, so that the device sees the kick during the reset */
static void vcpu_kick_and_reset(Gpu *g)
{
    mailbox(g)->then_address = status_address(g);
    vcpu_kick(g);
    mailbox(g)->then_address = 0;
    memset(g->slot, 0, sizeof(g->slot));
}

/* --- Tests --------------------------------------------------------------- */

static void test_map(void)
{
    Gpu *g = gpu_new(false);

    create(g, 1, BLOB_SIZE);
    create(g, 2, BLOB_SIZE);
    assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_OK_MAP_INFO);
    assert_answer(map(g, 2, WINDOW_SIZE - BLOB_SIZE),
                  VIRTIO_GPU_RESP_OK_MAP_INFO);
    g_assert_cmpint(regions(g), ==, 2);

    write_window(g, 0, 0x11111111);
    write_window(g, BLOB_SIZE - 4, 0x22222222);
    write_window(g, WINDOW_SIZE - 4, 0x33333333);
    assert_window(g, BLOB_SIZE, NOTHING_THERE);

    /* the same memory, elsewhere */
    assert_answer(release(g, UNMAP, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_window(g, 0, NOTHING_THERE);
    assert_answer(map(g, 1, MiB), VIRTIO_GPU_RESP_OK_MAP_INFO);
    assert_window(g, MiB, 0x11111111);
    assert_window(g, MiB + BLOB_SIZE - 4, 0x22222222);
    assert_window(g, WINDOW_SIZE - 4, 0x33333333);

    /* unref while mapped */
    assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_window(g, MiB, NOTHING_THERE);
    assert_answer(release(g, UNREF, 2), VIRTIO_GPU_RESP_OK_NODATA);
    g_assert_cmpint(g->shim->maps, ==, 3);
    g_assert_cmpint(g->shim->unmaps, ==, 3);
    assert_all_gone(g);
    gpu_free(g);
}

static void test_many(void)
{
    Gpu *g = gpu_new(false);
    int slot[SLOTS];

    for (int i = 0; i < SLOTS; i++) {
        create_mapped(g, i + 1, i * BLOB_SIZE);
        write_window(g, i * BLOB_SIZE, 0xb10b0000 + i);
    }
    for (int i = 0; i < SLOTS; i++) {
        assert_window(g, i * BLOB_SIZE, 0xb10b0000 + i);
    }
    g_assert_cmpint(g->shim->live, ==, SLOTS);

    /* all of them in flight one after the other, with a single kick */
    for (int i = 0; i < SLOTS; i++) {
        slot[i] = submit_release(g, i % 2 ? UNMAP : UNREF, i + 1, i % 3);
    }
    kick(g);
    for (int i = 0; i < SLOTS; i++) {
        assert_answer(wait_answer(g, slot[i]), VIRTIO_GPU_RESP_OK_NODATA);
        assert_window(g, i * BLOB_SIZE, NOTHING_THERE);
    }
    assert_all_gone(g);
    g_assert_cmpint(g->shim->unmaps, ==, SLOTS);
    gpu_free(g);
}

static void test_bad_ids(void)
{
    Gpu *g = gpu_new(false);
    const uint32_t bad[] = { 0, 7, 0x7fffffff, 0xffffffff };

    create_mapped(g, 1, 0);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_answer(map(g, bad[i], MiB),
                      VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
        assert_answer(release(g, UNMAP, bad[i]),
                      VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
        assert_answer(release(g, UNREF, bad[i]),
                      VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
    }
    assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
    assert_answer(release(g, UNMAP, 1),
                  VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
    assert_answer(release(g, UNREF, 1),
                  VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
    assert_all_gone(g);
    gpu_free(g);
}

/* Outside of the window, around its end, and around the end of numbers */
static void test_bad_offset(void)
{
    Gpu *g = gpu_new(false);
    const uint64_t bad[] = {
        WINDOW_SIZE - BLOB_SIZE + PAGE, WINDOW_SIZE, WINDOW_SIZE + BLOB_SIZE,
        1ULL << 32, 1ULL << 63, -(uint64_t)BLOB_SIZE, -(uint64_t)PAGE,
    };

    create(g, 1, BLOB_SIZE);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_answer(map(g, 1, bad[i]),
                      VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
        assert_all_gone(g);
    }
    assert_answer(map(g, 1, WINDOW_SIZE - BLOB_SIZE),
                  VIRTIO_GPU_RESP_OK_MAP_INFO);
    write_window(g, WINDOW_SIZE - 4, 0x12345678);

    /* what is mapped stays where it is */
    assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    assert_answer(map(g, 1, WINDOW_SIZE - BLOB_SIZE),
                  VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    assert_window(g, 0, NOTHING_THERE);
    assert_window(g, WINDOW_SIZE - 4, 0x12345678);

    /* nothing to unmap is no error, as ever */
    assert_answer(release(g, UNMAP, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(release(g, UNMAP, 1), VIRTIO_GPU_RESP_OK_NODATA);
    g_assert_cmpint(g->shim->unmaps, ==, ARRAY_SIZE(bad) + 1);
    assert_all_gone(g);
    gpu_free(g);
}

static void do_fenced(uint32_t type)
{
    Gpu *g = gpu_new(false);
    int slot, later;

    create_mapped(g, 1, 0);
    create_mapped(g, 2, MiB);
    write_window(g, 0, 0xfeedbeef);

    slot = submit_release(g, type, 1, true);
    kick(g);
    assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_OK_NODATA);
    g_assert_cmpint(g->shim->unmaps, ==, 1);
    assert_window(g, 0, NOTHING_THERE);

    /* held up, it holds up what comes later */
    hold(g, MiB);
    slot = submit_release(g, type, 2, true);
    later = submit_display_info(g, true);
    kick(g);
    settle(g);
    g_assert_false(answered(g, slot));
    g_assert_false(answered(g, later));
    g_assert_cmpint(g->shim->unmaps, ==, 1);
    assert_window(g, MiB, NOTHING_THERE);
    let_go(g);
    assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_OK_NODATA);
    g_assert_cmpint(g->shim->unmaps, ==, 2);
    assert_answer(wait_answer(g, later), VIRTIO_GPU_RESP_OK_DISPLAY_INFO);
    settle(g);
    g_assert_cmpint(g->answers, ==, 2 + 6 + 3);
    assert_all_gone(g);
    gpu_free(g);
}

static void test_fenced_unmap(void)
{
    do_fenced(UNMAP);
}

static void test_fenced_unref(void)
{
    do_fenced(UNREF);
}

/* A later fence must not answer for an unmap that has not happened */
static void test_fence_order(void)
{
    Gpu *g = gpu_new(false);
    int slot[6];

    create_mapped(g, 1, 0);
    slot[0] = submit_release(g, UNMAP, 1, true);
    slot[1] = submit_buffer(g, BLOB_SIZE);
    slot[2] = submit_create(g, 2, BLOB_SIZE, true);
    kick(g);
    assert_answer(wait_answer(g, slot[1]), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(wait_answer(g, slot[2]), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(wait_answer(g, slot[0]), VIRTIO_GPU_RESP_OK_NODATA);
    g_assert_cmpint(g->shim->unmaps, ==, 1);

    assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_OK_MAP_INFO);
    assert_answer(map(g, 2, MiB), VIRTIO_GPU_RESP_OK_MAP_INFO);
    hold(g, MiB);
    slot[0] = submit_release(g, UNMAP, 1, true);
    slot[1] = submit_map(g, 1, 2 * MiB, false);
    slot[2] = submit_release(g, UNMAP, 2, true);
    slot[3] = submit_release(g, UNREF, 2, true);
    slot[4] = submit_release(g, UNREF, 2, true);
    slot[5] = submit_release(g, UNREF, 1, true);
    kick(g);
    assert_answer(wait_answer(g, slot[0]), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(wait_answer(g, slot[1]), VIRTIO_GPU_RESP_OK_MAP_INFO);
    settle(g);
    for (int i = 2; i < 6; i++) {
        g_assert_false(answered(g, slot[i]));
    }
    g_assert_cmpint(g->shim->live, ==, 2);
    let_go(g);
    assert_answer(wait_answer(g, slot[2]), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(wait_answer(g, slot[3]), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(wait_answer(g, slot[4]),
                  VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
    assert_answer(wait_answer(g, slot[5]), VIRTIO_GPU_RESP_OK_NODATA);
    g_assert_cmpint(g->slot[slot[0]].when, <, g->slot[slot[2]].when);
    g_assert_cmpint(g->slot[slot[2]].when, <, g->slot[slot[3]].when);
    g_assert_cmpint(g->slot[slot[3]].when, <, g->slot[slot[5]].when);
    g_assert_cmpint(g->shim->unmaps, ==, 4);
    assert_all_gone(g);
    gpu_free(g);
}

/* Unmaps of the same blob, and its unref, while it is in use */
static void test_unmap_in_flight(void)
{
    Gpu *g = gpu_new(false);
    int slot[4];

    create_mapped(g, 1, 0);
    hold(g, 64);
    for (int i = 0; i < 4; i++) {
        slot[i] = submit_release(g, i < 3 ? UNMAP : UNREF, 1, false);
        kick(g);
    }
    settle(g);
    g_assert_false(answered(g, slot[0]));
    assert_window(g, 0, NOTHING_THERE);
    let_go(g);
    for (int i = 0; i < 4; i++) {
        assert_answer(wait_answer(g, slot[i]), VIRTIO_GPU_RESP_OK_NODATA);
    }
    g_assert_cmpint(g->shim->unmaps, ==, 1);
    assert_all_gone(g);
    assert_works(g);
    gpu_free(g);
}

/* The renderer refuses to unmap: all that follows has to know it */
static void test_refused(void)
{
    Gpu *g = gpu_new(false);
    int slot;

    create_mapped(g, 1, 0);
    g->shim->refuse = 4;
    assert_answer(release(g, UNMAP, 1), VIRTIO_GPU_RESP_ERR_UNSPEC);
    assert_answer(release(g, UNMAP, 1), VIRTIO_GPU_RESP_ERR_UNSPEC);
    assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_ERR_UNSPEC);
    slot = submit_release(g, UNMAP, 1, true);
    kick(g);
    assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_ERR_UNSPEC);
    assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    g_assert_cmpint(g->shim->live, ==, 1);

    /* it has changed its mind */
    assert_answer(release(g, UNMAP, 1), VIRTIO_GPU_RESP_OK_NODATA);
    g_assert_cmpint(g->shim->live, ==, 0);
    assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_OK_MAP_INFO);
    g->shim->refuse = 1;
    assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_ERR_UNSPEC);
    assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(release(g, UNREF, 1),
                  VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
    assert_all_gone(g);
    gpu_free(g);
}

/* Stock frees the live resource, and the next one gets its memory */
static void test_same_id(void)
{
    Gpu *g = gpu_new(false);

    create(g, 1, BLOB_SIZE);
    for (int i = 0; i < 3; i++) {
        int slot = submit_create(g, 1, BLOB_SIZE, false);

        kick(g);
        assert_answer(wait_answer(g, slot),
                      VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
    }
    create(g, 2, BLOB_SIZE);
    assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_OK_MAP_INFO);
    assert_answer(map(g, 2, MiB), VIRTIO_GPU_RESP_OK_MAP_INFO);
    assert_answer(release(g, UNREF, 2), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_all_gone(g);
    gpu_free(g);
}

/* The guest loses sight of the host's memory at once */
static void test_reset_hides(void)
{
    Gpu *g = gpu_new(false);
    int resets;

    for (int i = 0; i < 4; i++) {
        create_mapped(g, i + 1, i * MiB);
        write_window(g, i * MiB + 8, 0x5ec4e700);
    }
    reset(g);
    for (int i = 0; i < 4; i++) {
        assert_window(g, i * MiB + 8, NOTHING_THERE);
    }
    settle(g);
    assert_all_gone(g);
    g_assert_cmpint(g->shim->unmaps, ==, 4);

    /* nothing to wait for, not even for a kick */
    start_driver(g);
    create(g, 1, BLOB_SIZE);
    resets = g->shim->resets;
    reset(g);
    settle(g);
    g_assert_cmpint(g->shim->resets, ==, resets + 1);
    gpu_free(g);
}

/* ... and the same ids can be used again */
static void test_reset_reuse(void)
{
    Gpu *g = gpu_new(false);

    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++) {
            create_mapped(g, i + 1, i * MiB);
        }
        start_driver(g);
        g_assert_cmpint(g->shim->live, ==, 0);
    }
    assert_works(g);
    assert_all_gone(g);
    gpu_free(g);
}

/* The renderer keeps its memory as long as anybody uses the region */
static void test_reset_waits(void)
{
    Gpu *g = gpu_new(false);
    int capset, context;

    create_mapped(g, 1, 0);
    create_mapped(g, 2, MiB);
    hold(g, 0);
    reset(g);
    assert_window(g, 0, NOTHING_THERE);
    assert_window(g, MiB, NOTHING_THERE);
    setup_driver(g);
    capset = submit_capset(g);
    context = submit_context(g);
    kick(g);
    settle(g);
    g_assert_cmpint(g->shim->lost, ==, 0);
    g_assert_cmpint(g->shim->live, ==, 2);
    g_assert_false(answered(g, capset));
    g_assert_false(answered(g, context));

    /* no kick from here on */
    let_go(g);
    assert_answer(wait_answer(g, capset), VIRTIO_GPU_RESP_OK_CAPSET);
    assert_answer(wait_answer(g, context), VIRTIO_GPU_RESP_OK_NODATA);
    g_assert_cmpint(g->shim->unmaps, ==, 2);
    assert_all_gone(g);
    assert_works(g);
    gpu_free(g);
}

/* In every phase of a blob's life, once, twice, and with it in use or not */
static void test_reset_phases(void)
{
    Gpu *g = gpu_new(false);

    for (int phase = 0; phase < 8; phase++) {
        for (int how = 0; how < 4; how++) {
            bool held = how & 1, twice = how & 2;

            if (phase > 0) {
                create(g, 1, BLOB_SIZE);
            }
            if (phase > 1) {
                assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_OK_MAP_INFO);
                if (held) {
                    hold(g, 0);
                }
            }
            switch (phase) {
            case 3:
                submit_release(g, UNMAP, 1, false);
                break;
            case 4:
                submit_release(g, UNMAP, 1, true);
                break;
            case 5:
                submit_release(g, UNREF, 1, false);
                submit_release(g, UNMAP, 1, false);
                break;
            case 6:
                submit_release(g, UNREF, 1, true);
                break;
            case 7:
                submit_release(g, UNMAP, 1, true);
                submit_map(g, 1, MiB, false);
                submit_release(g, UNMAP, 1, true);
                break;
            }
            kick(g);
            if (phase == 6) {
                settle(g);
            }
            reset(g);
            if (twice) {
                setup_driver(g);
                submit_display_info(g, false);
                kick(g);
                reset(g);
            }
            assert_window(g, 0, NOTHING_THERE);
            setup_driver(g);
            let_go(g);
            setup_context(g);
            assert_all_gone(g);
            assert_works(g);
            assert_all_gone(g);
        }
    }
    g_assert_cmpint(g->shim->unmaps, ==, g->shim->maps);
    gpu_free(g);
}

/*
 * A reset lets go of the pages behind resources. These are none: QEMU has a
 * copy instead, and there is room for one of them only.
 */
static void test_reset_backing(void)
{
    Gpu *g = gpu_new(false);
    struct {
        struct virtio_gpu_resource_attach_backing cmd;
        struct virtio_gpu_mem_entry entry;
    } attach = {
        .cmd.resource_id = cpu_to_le32(1),
        .cmd.nr_entries = cpu_to_le32(1),
        .entry.addr = cpu_to_le64(g->window + WINDOW_SIZE - PAGE),
        .entry.length = cpu_to_le32(PAGE),
    };

    init_cmd(&attach, VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING);
    for (int round = 0; round < 3; round++) {
        int create = submit_create_2d(g, 1);
        int backing = submit(g, &attach, sizeof(attach));

        kick(g);
        assert_answer(wait_answer(g, create), VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(wait_answer(g, backing), VIRTIO_GPU_RESP_OK_NODATA);
        start_driver(g);
    }
    assert_works(g);
    gpu_free(g);
}

/* Resets by the machine: nobody sets the device up again at once */
static void test_system_reset(void)
{
    Gpu *g = gpu_new(false);

    for (int i = 0; i < 3; i++) {
        create_mapped(g, 1, 0);
        create_mapped(g, 2, MiB);
        qtest_system_reset(g->s);
        settle(g);
        assert_all_gone(g);

        /* the BARs are where they were, when they are put there again */
        memset(g->slot, 0, sizeof(g->slot));
        g_free(g->dev->pdev);
        g_free(g->dev);
        free_others(g);
        qpci_free_pc(g->bus);
        g->bus = qpci_new_pc(g->s, &g->alloc);
        g->dev = find_device(g->bus, 4);
        find_others(g);
        g->window = qpci_iomap(g->dev->pdev, 4, NULL).addr;
        start_driver(g);
    }
    assert_works(g);
    gpu_free(g);
}

/* The renderer and GL belong to the main thread, whoever asks for a reset */
static void test_vcpu_reset(void)
{
    Gpu *g = gpu_new(true);

    for (int round = 0; round < 10; round++) {
        create_mapped(g, 1, 0);
        create_mapped(g, 2, MiB);
        if (round % 2) {
            submit_release(g, UNMAP, 1, round % 4 == 1);
            vcpu_kick(g);
        }
        vcpu_reset(g);
        assert_window(g, 0, NOTHING_THERE);
        assert_window(g, MiB, NOTHING_THERE);
        g_assert_cmpint(g->shim->other_thread, ==, 0);
        setup_driver(g);
        setup_context(g);
        assert_all_gone(g);
    }
    assert_works(g);
    assert_all_gone(g);
    gpu_free(g);
}

/* The vCPU comes back though a region is in use, which it cannot change */
static void test_vcpu_reset_waits(void)
{
    Gpu *g = gpu_new(true);
    int capset, context;

    create_mapped(g, 1, 0);
    hold(g, 0);
    submit_release(g, UNMAP, 1, true);
    vcpu_kick(g);
    vcpu_reset(g);
    vcpu_reset(g);
    setup_driver(g);
    capset = submit_capset(g);
    context = submit_context(g);
    vcpu_kick(g);
    settle(g);
    g_assert_cmpint(g->shim->lost, ==, 0);
    g_assert_false(answered(g, capset));
    let_go(g);
    assert_answer(wait_answer(g, capset), VIRTIO_GPU_RESP_OK_CAPSET);
    assert_answer(wait_answer(g, context), VIRTIO_GPU_RESP_OK_NODATA);
    assert_all_gone(g);
    assert_works(g);
    gpu_free(g);
}

/* Commands from before the reset are not for the device after it */
static void test_vcpu_kick_and_reset(void)
{
    Gpu *g = gpu_new(true);

    for (int round = 0; round < 50; round++) {
        int slot;

        submit_create_2d(g, 2);
        vcpu_kick_and_reset(g);
        setup_driver(g);
        setup_context(g);
        slot = submit_create_2d(g, 2);
        kick(g);
        assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_OK_NODATA);
    }
    assert_works(g);
    gpu_free(g);
}

/* A page of the guest has to be a page of the host, and of one blob */
static void test_page_offset(void)
{
    Gpu *g = gpu_new(true);
    const uint64_t bad[] = { 1, 0x800, PAGE + 0x800, MiB - 4 };

    create(g, 1, BLOB_SIZE);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_answer(map(g, 1, bad[i]),
                      VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
        assert_window(g, 0, NOTHING_THERE);
    }
    assert_answer(map(g, 1, PAGE), VIRTIO_GPU_RESP_OK_MAP_INFO);
    vcpu_start(g, 2, g->window + PAGE, 0x1234,
               MAILBOX + offsetof(Mailbox, zero), 0);
    vcpu_wait(g);
    g_assert_cmphex(qtest_readw(g->s, g->window + PAGE), ==, 0x1234);
    assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_all_gone(g);
    gpu_free(g);
}

static void test_overlap(void)
{
    Gpu *g = gpu_new(false);
    const uint64_t bad[] = {
        MiB - BLOB_SIZE + PAGE, MiB - PAGE, MiB, MiB + PAGE,
        MiB + BLOB_SIZE - PAGE,
    };

    create_mapped(g, 1, MiB);
    write_window(g, MiB, 0x11111111);
    create(g, 2, BLOB_SIZE);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_answer(map(g, 2, bad[i]),
                      VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
        assert_window(g, MiB, 0x11111111);
    }
    g_assert_cmpint(g->shim->live, ==, 1);

    /* next to it, and where it was */
    assert_answer(map(g, 2, MiB + BLOB_SIZE), VIRTIO_GPU_RESP_OK_MAP_INFO);
    assert_answer(release(g, UNMAP, 2), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(map(g, 2, MiB - BLOB_SIZE), VIRTIO_GPU_RESP_OK_MAP_INFO);
    assert_answer(release(g, UNMAP, 2), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(release(g, UNMAP, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(map(g, 2, MiB), VIRTIO_GPU_RESP_OK_MAP_INFO);
    assert_answer(release(g, UNREF, 2), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_OK_NODATA);
    assert_all_gone(g);
    gpu_free(g);
}

/* A command of the old ring is not answered into the new one */
static void test_queue_reset(void)
{
    Gpu *g = gpu_new(false);
    int slot, capset;

    for (int round = 0; round < 3; round++) {
        create_mapped(g, 1, 0);
        hold(g, 0);
        slot = submit_release(g, round ? UNREF : UNMAP, 1, round == 2);
        submit_display_info(g, false);
        kick(g);
        settle(g);
        g_assert_false(answered(g, slot));

        reset_queue(g);
        capset = submit_capset(g);
        kick(g);
        settle(g);
        g_assert_false(answered(g, capset));
        let_go(g);
        assert_answer(wait_answer(g, capset), VIRTIO_GPU_RESP_OK_CAPSET);
        settle(g);
        g_assert_cmpint(g->answers, ==, 1);

        assert_answer(release(g, UNMAP, 1), VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(release(g, UNREF, 1), VIRTIO_GPU_RESP_OK_NODATA);
        assert_all_gone(g);
    }
    g_assert_cmpint(g->dev->vdev.bus->get_status(&g->dev->vdev) &
                    VIRTIO_CONFIG_S_NEEDS_RESET, ==, 0);
    assert_works(g);
    gpu_free(g);
}

/* Where the renderer makes no fence, nothing would answer the command */
static void test_no_fence(void)
{
    Gpu *g = gpu_new(false);
    struct virtio_gpu_resource_create_2d cmd = {
        .resource_id = cpu_to_le32(1),
        .format = cpu_to_le32(VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM),
        .width = cpu_to_le32(32),
        .height = cpu_to_le32(32),
    };
    int slot;

    init_cmd(&cmd, VIRTIO_GPU_CMD_RESOURCE_CREATE_2D);
    fence_cmd(g, &cmd);
    cmd.hdr.flags |= cpu_to_le32(VIRTIO_GPU_FLAG_INFO_RING_IDX);
    cmd.hdr.ctx_id = cpu_to_le32(77);
    slot = submit(g, &cmd, sizeof(cmd));
    kick(g);
    assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_ERR_UNSPEC);

    cmd.hdr.ctx_id = cpu_to_le32(CTX);
    cmd.hdr.ring_idx = 63;
    cmd.resource_id = cpu_to_le32(2);
    slot = submit(g, &cmd, sizeof(cmd));
    kick(g);
    wait_answer(g, slot);
    assert_works(g);
    gpu_free(g);
}

static void test_submit_error(void)
{
    Gpu *g = gpu_new(false);
    struct {
        struct virtio_gpu_cmd_submit cmd;
        uint32_t virgl[4];
    } cmd = { .cmd.size = cpu_to_le32(sizeof(cmd.virgl)) };
    int slot;

    memset(cmd.virgl, 0xff, sizeof(cmd.virgl));
    init_cmd(&cmd, VIRTIO_GPU_CMD_SUBMIT_3D);

    /* a context that is not there, and garbage, each with a fence, too */
    for (int i = 0; i < 4; i++) {
        if (i % 2) {
            fence_cmd(g, &cmd);
        } else {
            cmd.cmd.hdr.flags = 0;
        }
        cmd.cmd.hdr.ctx_id = cpu_to_le32(i < 2 ? 77 : CTX);
        slot = submit(g, &cmd, sizeof(cmd));
        kick(g);
        assert_answer(wait_answer(g, slot),
                      VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    }

    /* more than there is */
    cmd.cmd.hdr.flags = 0;
    cmd.cmd.size = cpu_to_le32(0xfffffff0);
    slot = submit(g, &cmd, sizeof(cmd));
    kick(g);
    assert_answer(wait_answer(g, slot),
                  VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    start_driver(g);
    assert_works(g);
    gpu_free(g);
}

/* A resource that is not there, or has no memory, or less than that */
static int submit_transfer(Gpu *g, uint32_t type, uint32_t id, bool fence)
{
    union {
        struct virtio_gpu_ctrl_hdr hdr;
        struct virtio_gpu_transfer_to_host_2d to_2d;
        struct virtio_gpu_transfer_host_3d on_3d;
    } cmd = { 0 };

    init_cmd(&cmd, type);
    if (fence) {
        fence_cmd(g, &cmd);
    }
    if (type == VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D) {
        cmd.to_2d.resource_id = cpu_to_le32(id);
        cmd.to_2d.r.width = cmd.to_2d.r.height = cpu_to_le32(64);
        return submit(g, &cmd, sizeof(cmd.to_2d));
    }
    cmd.hdr.ctx_id = cpu_to_le32(CTX);
    cmd.on_3d.resource_id = cpu_to_le32(id);
    cmd.on_3d.box.w = cmd.on_3d.box.h = cmd.on_3d.box.d = cpu_to_le32(64);
    return submit(g, &cmd, sizeof(cmd.on_3d));
}

/* What the renderer refuses is not answered with success */
static void test_renderer_error(void)
{
    const uint32_t transfers[] = {
        VIRTIO_GPU_CMD_TRANSFER_TO_HOST_2D, VIRTIO_GPU_CMD_TRANSFER_TO_HOST_3D,
        VIRTIO_GPU_CMD_TRANSFER_FROM_HOST_3D,
    };
    struct virtio_gpu_resource_create_2d empty = {
        .resource_id = cpu_to_le32(1),
        .format = cpu_to_le32(VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM),
    };
    struct virtio_gpu_ctx_create context = { 0 };
    struct virtio_gpu_resource_create_3d cmd = {
        .resource_id = cpu_to_le32(1),
        .target = cpu_to_le32(77),
        .format = cpu_to_le32(VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM),
        .width = cpu_to_le32(32),
        .height = cpu_to_le32(32),
        .depth = cpu_to_le32(1),
        .array_size = cpu_to_le32(1),
    };
    Gpu *g = gpu_new(false);
    int slot;

    init_cmd(&cmd, VIRTIO_GPU_CMD_RESOURCE_CREATE_3D);
    slot = submit(g, &cmd, sizeof(cmd));
    kick(g);
    assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_ERR_UNSPEC);

    init_cmd(&empty, VIRTIO_GPU_CMD_RESOURCE_CREATE_2D);
    slot = submit(g, &empty, sizeof(empty));
    kick(g);
    assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_ERR_UNSPEC);

    /* neither is there, and the id is free */
    assert_answer(release(g, UNREF, 1),
                  VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID);
    slot = submit_create_2d(g, 1);
    kick(g);
    assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_OK_NODATA);

    for (int i = 0; i < ARRAY_SIZE(transfers); i++) {
        for (uint32_t id = 1; id < 3; id++) {
            slot = submit_transfer(g, transfers[i], id, false);
            kick(g);
            assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_ERR_UNSPEC);
        }
    }

    /* the renderer's own */
    init_cmd(&context, VIRTIO_GPU_CMD_CTX_CREATE);
    slot = submit(g, &context, sizeof(context));
    kick(g);
    assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_ERR_UNSPEC);

    /* The renderer takes no more from this context */
    start_driver(g);

    /* an error is no sign that what was asked before has been done */
    for (int i = 0; i < 2; i++) {
        int buffer = submit_buffer(g, BLOB_SIZE);
        int before = submit_create(g, 2 + i, BLOB_SIZE, true);
        int bad = i ? submit_release(g, UNREF, 99, true) :
                      submit_transfer(g, transfers[0], 99, true);

        kick(g);
        assert_answer(wait_answer(g, buffer), VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(wait_answer(g, before), VIRTIO_GPU_RESP_OK_NODATA);
        g_assert_cmphex(wait_answer(g, bad), >=, VIRTIO_GPU_RESP_ERR_UNSPEC);
        g_assert_cmpint(g->slot[before].when, <, g->slot[bad].when);
    }
    assert_works(g);
    gpu_free(g);
}

static void test_short(void)
{
    Gpu *g = gpu_new(false);
    struct virtio_gpu_resource_unref cmd = { 0 };
    int slot;

    init_cmd(&cmd, VIRTIO_GPU_CMD_RESOURCE_UNREF);
    for (int size = 4; size < sizeof(cmd); size += 4) {
        slot = submit(g, &cmd, size);
        kick(g);
        assert_answer(wait_answer(g, slot),
                      VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    }
    assert_works(g);
    gpu_free(g);
}

/* Returns: how often QEMU has the file open that stands for a resource */
static int dmabufs(Gpu *g)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd",
                                            (int)qtest_pid(g->s));
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;
    int count = 0;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *link = g_strconcat(path, "/", name, NULL);
        g_autofree char *file = g_file_read_link(link, NULL);

        count += file && strstr(file, BLOB_SHIM_DMABUF);
    }
    g_dir_close(dir);
    return count;
}

/* What a display was given ends when the display shows something else */
static void test_release_dmabuf(void)
{
    Gpu *g = gpu_new(false);
    struct virtio_gpu_set_scanout_blob cmd = {
        .resource_id = cpu_to_le32(1),
        .r.width = cpu_to_le32(128),
        .r.height = cpu_to_le32(128),
        .width = cpu_to_le32(128),
        .height = cpu_to_le32(128),
        .format = cpu_to_le32(VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM),
        .strides[0] = cpu_to_le32(512),
    };

    init_cmd(&cmd, VIRTIO_GPU_CMD_SET_SCANOUT_BLOB);
    g->shim->dmabuf = true;
    for (int round = 0; round < 3; round++) {
        int slot;

        create(g, 1, BLOB_SIZE);
        g_assert_cmpint(dmabufs(g), ==, 1);
        slot = submit(g, &cmd, sizeof(cmd));
        kick(g);
        assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_OK_NODATA);
        g_assert_cmpint(dmabufs(g), ==, 2);
        switch (round) {
        case 0:
            slot = submit_scanout(g, 0);
            kick(g);
            assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_OK_NODATA);
            break;
        case 1:
            submit_create_2d(g, 2);
            slot = submit_scanout(g, 2);
            kick(g);
            assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_OK_NODATA);
            break;
        case 2:
            start_driver(g);
            break;
        }
        g_assert_cmpint(dmabufs(g), ==, 1);
        start_driver(g);
    }
    assert_works(g);
    gpu_free(g);
}

/* What the device itself has of a blob does not keep a reset from ending */
static void test_reset_own_backing(void)
{
    Gpu *g = gpu_new(false);

    for (int round = 0; round < 3; round++) {
        int create, backing;

        create_mapped(g, 1, 0);
        create = submit_create_2d(g, 2);
        backing = submit_backing(g, 2, 0);
        kick(g);
        assert_answer(wait_answer(g, create), VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(wait_answer(g, backing), VIRTIO_GPU_RESP_OK_NODATA);
        if (round == 1) {
            /* waits for the backing, which waits behind it */
            submit_release(g, UNMAP, 1, false);
            submit_release(g, UNREF, 2, false);
            kick(g);
            settle(g);
        }
        start_driver(g);
        assert_all_gone(g);
    }
    assert_works(g);
    gpu_free(g);
}

/* ... and neither do buffers of commands that are never answered */
static void test_reset_own_buffer(void)
{
    Gpu *g = gpu_new(false);

    for (int round = 0; round < 3; round++) {
        int slot;

        create_mapped(g, 1, 0);
        switch (round) {
        case 0:
            slot = submit_release(g, UNMAP, 1, false);
            break;
        case 1:
            slot = submit_release(g, UNREF, 1, true);
            break;
        default:
            submit_buffer(g, BLOB_SIZE);
            slot = submit_create(g, 2, BLOB_SIZE, true);
            break;
        }
        write_desc(g, RING, 2 * slot + 1, g->window + PAGE, PAGE,
                   VRING_DESC_F_WRITE, 0);
        kick(g);
        if (round < 2) {
            settle(g);
        }
        start_driver(g);
        assert_all_gone(g);
    }
    assert_works(g);
    gpu_free(g);
}

static pid_t qemu_pid;

static void does_not_answer(int sig)
{
    static const char text[] = "QMP does not answer\n";

    /* Nor does it end when it is told to */
    kill(qemu_pid, SIGKILL);
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0) {
        _exit(1);
    }
    abort();
}

/* A reset by a vCPU that is about to be stopped */
static void test_vcpu_reset_stop(void)
{
    Gpu *g = gpu_new(true);

    qemu_pid = qtest_pid(g->s);
    sigaction(SIGALRM, &(struct sigaction) { .sa_handler = does_not_answer },
              NULL);
    for (int round = 0; round < 400; round++) {
        if (round % 100 == 0) {
            start_driver(g);
            create_mapped(g, 1, 0);
        }
        alarm(patience_s);
        vcpu_start(g, 1, status_address(g), 0,
                   MAILBOX + offsetof(Mailbox, zero), 0);
        qtest_qmp_assert_success(g->s, "{ 'execute': 'stop' }");
        qtest_qmp_assert_success(g->s, "{ 'execute': 'cont' }");
        vcpu_wait(g);
        memset(g->slot, 0, sizeof(g->slot));
    }
    alarm(0);
    assert_window(g, 0, NOTHING_THERE);
    start_driver(g);
    assert_all_gone(g);
    assert_works(g);
    gpu_free(g);
}

/*
 * The switch that the device is behind goes, and the device with it, while
 * blobs are mapped, on their way out, and in use
 */
static void test_unplug(void)
{
    Gpu *g = gpu_new_at(false, true);
    QPCIDevice *port = qpci_device_find(g->bus, PORT);
    uint8_t cap = qpci_find_capability(port, PCI_CAP_ID_EXP, 0);

    for (int i = 0; i < 3; i++) {
        create_mapped(g, i + 1, i * MiB);
        write_window(g, i * MiB, 0xb10b0000 + i);
    }
    hold(g, MiB);
    submit_release(g, UNMAP, 3, true);
    kick(g);

    qpci_config_writew(port, cap + PCI_EXP_SLTCTL, PCI_EXP_SLTCTL_PWR_IND_ON);
    qpci_config_writew(port, cap + PCI_EXP_SLTCTL,
                       PCI_EXP_SLTCTL_PWR_IND_OFF | PCI_EXP_SLTCTL_PCC);
    qtest_qmp_eventwait(g->s, "DEVICE_DELETED");
    settle(g);
    assert_window(g, 0, NOTHING_THERE);
    let_go(g);
    settle(g);
    qtest_qmp_assert_success(g->s, "{ 'execute': 'query-status' }");
    g_free(port);
    gpu_free(g);
}

/* A reset takes away thousands of blobs as one */
static void test_reset_many(void)
{
    Gpu *g = gpu_new(false);
    int blobs = 400;
    gint64 start, map_us = 0, reset_us;

    for (int i = 0; i < blobs; i++) {
        create(g, i + 1, BLOB_SIZE);
        start = g_get_monotonic_time();
        assert_answer(map(g, i + 1, i * BLOB_SIZE),
                      VIRTIO_GPU_RESP_OK_MAP_INFO);
        map_us += g_get_monotonic_time() - start;
    }
    start = g_get_monotonic_time();
    reset(g);
    reset_us = g_get_monotonic_time() - start;
    g_test_message("%d blobs: mapped in %.1f ms, reset in %.1f ms", blobs,
                   map_us / 1000.0, reset_us / 1000.0);
    start_driver(g);
    assert_all_gone(g);
    /* What it takes for each depends on the host: one by one it is as much */
    g_assert_cmpint(reset_us, <, map_us / 4);
    gpu_free(g);
}

static int compare(const void *a, const void *b)
{
    gint64 x = *(const gint64 *)a, y = *(const gint64 *)b;

    return x < y ? -1 : x > y;
}

/* A guest that kicks, then polls for the answer and does nothing else */
static void test_latency(void)
{
    Gpu *g = gpu_new(true);
    int rounds = g_test_slow() ? 500 : 100;
    g_autofree gint64 *us = g_new(gint64, rounds);

    create(g, 1, BLOB_SIZE);
    for (int i = 0; i < rounds; i++) {
        gint64 start;
        int slot;

        assert_answer(map(g, 1, 0), VIRTIO_GPU_RESP_OK_MAP_INFO);
        slot = submit_release(g, UNMAP, 1, false);
        start = g_get_monotonic_time();
        vcpu_start(g, 2, g->notify, 0, RING + 2 * PAGE + 2, g->avail);
        vcpu_wait(g);
        us[i] = g_get_monotonic_time() - start;
        assert_answer(wait_answer(g, slot), VIRTIO_GPU_RESP_OK_NODATA);
    }
    qsort(us, rounds, sizeof(*us), compare);
    g_test_message("unmap of %d blobs: median %.1f ms, 99%% within %.1f ms, "
                   "longest %.1f ms", rounds, us[rounds / 2] / 1000.0,
                   us[rounds * 99 / 100] / 1000.0, us[rounds - 1] / 1000.0);
    /* A busy host disturbs many of them, but not the quickest tenth */
    g_assert_cmpint(us[rounds / 10], <, 20 * 1000);
    gpu_free(g);
}

/* --- Random -------------------------------------------------------------- */

#define RANDOM_IDS 6
#define RANDOM_PENDING 40

typedef struct Expected {
    int slot;
    uint32_t type;
} Expected;

/* What the answers have to be, since commands are processed in order */
typedef struct Random {
    Gpu *g;
    GRand *rand;
    bool exists[RANDOM_IDS];
    bool mapped[RANDOM_IDS];
    bool held;
    /* The vCPU reads this blob until it goes, or is zero there; or -1 */
    int watched;
    /* There is an image, which is shown */
    bool image;
    Expected expected[RANDOM_PENDING];
    int pending;
    unsigned commands, resets;
    unsigned step;
    const char *steps;
} Random;

static int pick(Random *r, int n)
{
    return g_rand_int_range(r->rand, 0, n);
}

static void expect(Random *r, int slot, uint32_t type)
{
    g_assert_cmpint(r->pending, <, RANDOM_PENDING);
    r->expected[r->pending++] = (Expected) { slot, type };
    r->commands++;
}

static void random_let_go(Random *r)
{
    if (r->held) {
        let_go(r->g);
        r->held = false;
    }
}

/* Where in a blob nobody else writes */
#define WATCHED (32 * KiB)
#define DMA (48 * KiB)
#define IMAGE 50

static void random_kick(Random *r)
{
    if (vcpu_idle(r->g) && pick(r, 2)) {
        vcpu_kick(r->g);
    } else {
        kick(r->g);
    }
}

static void random_wait(Random *r)
{
    random_let_go(r);
    for (int i = 0; i < r->pending; i++) {
        assert_answer(wait_answer(r->g, r->expected[i].slot),
                      r->expected[i].type);
    }
    r->pending = 0;
}

static void random_context(Random *r)
{
    expect(r, submit_capset(r->g), VIRTIO_GPU_RESP_OK_CAPSET);
    expect(r, submit_context(r->g), VIRTIO_GPU_RESP_OK_NODATA);
    random_kick(r);
}

static void random_unwatch(Random *r)
{
    if (r->watched < 0) {
        return;
    }
    random_wait(r);
    if (r->mapped[r->watched]) {
        qtest_writel(r->g->s, r->g->window + r->watched * MiB + WATCHED, 0);
    }
    vcpu_wait(r->g);
    r->watched = -1;
}

static void random_reset(Random *r)
{
    if (vcpu_idle(r->g) && pick(r, 2)) {
        /* by the vCPU, and maybe from elsewhere as well */
        vcpu_start(r->g, 1, status_address(r->g), 0,
                   MAILBOX + offsetof(Mailbox, zero), 0);
        if (pick(r, 2)) {
            reset(r->g);
        }
        vcpu_wait(r->g);
        memset(r->g->slot, 0, sizeof(r->g->slot));
    } else {
        reset(r->g);
    }
    r->resets++;
    r->pending = 0;
    r->image = false;
    for (int i = 0; i < RANDOM_IDS; i++) {
        if (r->mapped[i]) {
            assert_window(r->g, i * MiB, NOTHING_THERE);
        }
        r->exists[i] = r->mapped[i] = false;
    }
    setup_driver(r->g);
    random_context(r);
}

static void random_command(Random *r)
{
    Gpu *g = r->g;
    int i = pick(r, RANDOM_IDS);
    uint32_t id = i + 1;
    bool fence = pick(r, 3) == 0;
    uint32_t ok = VIRTIO_GPU_RESP_OK_NODATA;
    uint32_t none = VIRTIO_GPU_RESP_ERR_INVALID_RESOURCE_ID;

    switch (pick(r, 10)) {
    case 0:
    case 1:
        if (!r->exists[i]) {
            expect(r, submit_buffer(g, BLOB_SIZE), ok);
        }
        expect(r, submit_create(g, id, BLOB_SIZE, fence),
               r->exists[i] ? none : ok);
        r->exists[i] = true;
        break;
    case 2:
    case 3:
    case 4:
    case 5:
        if (pick(r, 10) == 0) {
            expect(r, submit_map(g, id, WINDOW_SIZE - PAGE, fence),
                   r->exists[i] ? VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER :
                   none);
            break;
        }
        expect(r, submit_map(g, id, i * MiB, fence),
               !r->exists[i] ? none : r->mapped[i] ?
               VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER :
               VIRTIO_GPU_RESP_OK_MAP_INFO);
        r->mapped[i] = r->exists[i];
        break;
    case 6:
    case 7:
        expect(r, submit_release(g, UNMAP, id, fence),
               r->exists[i] ? ok : none);
        r->mapped[i] = false;
        break;
    case 8:
        expect(r, submit_release(g, UNREF, id, fence),
               r->exists[i] ? ok : none);
        r->exists[i] = r->mapped[i] = false;
        break;
    case 9:
        expect(r, submit_display_info(g, fence),
               VIRTIO_GPU_RESP_OK_DISPLAY_INFO);
        break;
    }
}

/* With nothing pending, all can be compared */
static void random_check(Random *r)
{
    int mapped = 0;

    random_wait(r);
    for (int i = 0; i < RANDOM_IDS; i++) {
        if (r->mapped[i]) {
            write_window(r->g, i * MiB, g_rand_int(r->rand));
        } else {
            assert_window(r->g, i * MiB, NOTHING_THERE);
        }
        mapped += r->mapped[i];
    }
    g_assert_cmpint(r->g->shim->live, ==, mapped);
    g_assert_cmpint(r->g->shim->lost, ==, 0);
}

/* Returns: a blob that is mapped, or -1 */
static int random_mapped(Random *r)
{
    int first = pick(r, RANDOM_IDS);

    random_wait(r);
    for (int i = 0; i < RANDOM_IDS; i++) {
        if (r->mapped[(first + i) % RANDOM_IDS]) {
            return (first + i) % RANDOM_IDS;
        }
    }
    return -1;
}

/* What else there is in a machine */
static void random_other(Random *r)
{
    Gpu *g = r->g;
    int i = random_mapped(r);
    int what = pick(r, 8);

    switch (what) {
    case 0:
    case 1:
        if (i >= 0) {
            disk_read(g, what, i * MiB + DMA);
        }
        break;
    case 2:
        random_unwatch(r);
        if (i >= 0 && g->vcpu) {
            write_window(g, i * MiB + WATCHED, 0xffffffff);
            vcpu_start(g, 2, g->window + i * MiB + WATCHED + 64, 1,
                       g->window + i * MiB + WATCHED, 0);
            r->watched = i;
        }
        break;
    case 3:
        /* The image has its memory in a blob; only a reset ends an unmap */
        if (i >= 0 && !r->image) {
            expect(r, submit_create_2d(g, IMAGE), VIRTIO_GPU_RESP_OK_NODATA);
            expect(r, submit_backing(g, IMAGE, i * MiB + DMA),
                   VIRTIO_GPU_RESP_OK_NODATA);
            random_kick(r);
            random_wait(r);
            if (pick(r, 2)) {
                submit_release(g, pick(r, 2) ? UNMAP : UNREF, i + 1,
                               pick(r, 2));
                random_kick(r);
            }
            random_reset(r);
        }
        break;
    case 4:
        if (i >= 0) {
            hold(g, i * MiB + 128);
            submit_release(g, UNMAP, i + 1, pick(r, 2));
            random_kick(r);
            step(g);
            reset_queue(g);
            /* It may have been dropped before it was looked at */
            expect(r, submit_release(g, UNMAP, i + 1, pick(r, 2)),
                   VIRTIO_GPU_RESP_OK_NODATA);
            r->mapped[i] = false;
            r->held = true;
            random_kick(r);
        }
        break;
    case 5:
        qtest_qmp_assert_success(g->s, "{ 'execute': 'stop' }");
        qtest_qmp_assert_success(g->s, "{ 'execute': 'cont' }");
        break;
    case 6:
        g_free(qtest_hmp(g->s, "info mtree -f"));
        break;
    case 7:
        if (r->image) {
            expect(r, submit_release(g, UNREF, IMAGE, pick(r, 2)),
                   VIRTIO_GPU_RESP_OK_NODATA);
        } else {
            expect(r, submit_create_2d(g, IMAGE), VIRTIO_GPU_RESP_OK_NODATA);
            expect(r, submit_scanout(g, IMAGE), VIRTIO_GPU_RESP_OK_NODATA);
        }
        r->image = !r->image;
        random_kick(r);
        /* of OpenGL there may be nothing that can be saved */
        qobject_unref(qtest_qmp(
            g->s, "{ 'execute': 'screendump', 'arguments': "
            "{ 'filename': '/dev/null', 'device': 'gpu' } }"));
        break;
    }
}

static void random_step(Random *r)
{
    int what = pick(r, 110);

    if (what >= 100) {
        random_other(r);
        return;
    }
    if (what < 4) {
        random_reset(r);
        return;
    }
    if (what < 24) {
        random_check(r);
        for (int i = 0; what < 14 && i < RANDOM_IDS; i++) {
            if (r->mapped[i]) {
                hold(r->g, i * MiB + 128);
                r->held = true;
                break;
            }
        }
        return;
    }
    if (what < 30) {
        random_let_go(r);
        return;
    }
    if (r->pending > RANDOM_PENDING - 12) {
        random_wait(r);
    }
    for (int n = pick(r, 5); n >= 0; n--) {
        random_command(r);
        if (pick(r, 2)) {
            random_kick(r);
        }
    }
    random_kick(r);
}

static uint32_t number(const char *name, uint32_t otherwise)
{
    const char *value = getenv(name);
    unsigned result = otherwise;

    if (value) {
        g_assert_cmpint(qemu_strtoui(value, NULL, 0, &result), ==, 0);
    }
    return result;
}

static uint32_t random_seed;

static void tell_seed(void *opaque)
{
    Random *r = opaque;

    fprintf(stderr, "# failed in step %u; to see it again: "
            "VIRTIO_GPU_BLOB_SEED=%u VIRTIO_GPU_BLOB_STEPS=%s\n", r->step,
            random_seed, r->steps);
}

/*
 * A step depends on the seed and on its number only, so that the others can
 * be left out, to find those that a failure takes.
 */
static void random_numbered_step(Random *r, unsigned step)
{
    r->step = step;
    g_rand_set_seed(r->rand, random_seed + step * 2654435761u);
    random_step(r);
}

/* The steps are as "0-17,20"; @count commands and resets are enough */
static void random_steps(Random *r, uint32_t count)
{
    g_auto(GStrv) parts = g_strsplit(r->steps, ",", 0);

    for (int i = 0; parts[i]; i++) {
        unsigned from, to;
        int n = sscanf(parts[i], "%u-%u", &from, &to);

        g_assert_cmpint(n, >=, 1);
        to = n == 2 ? to : from;
        for (; from <= to && r->commands + r->resets < count; from++) {
            random_numbered_step(r, from);
        }
    }
}

static void random_run(bool vcpu, uint32_t count)
{
    Random r = {
        .g = gpu_new(vcpu),
        .watched = -1,
        .steps = getenv("VIRTIO_GPU_BLOB_STEPS") ?: "0-1000000",
    };

    random_seed = number("VIRTIO_GPU_BLOB_SEED", g_test_rand_int());
    r.rand = g_rand_new_with_seed(random_seed);
    qtest_add_abrt_handler(tell_seed, &r);
    random_steps(&r, count);
    random_unwatch(&r);
    random_check(&r);
    random_reset(&r);
    random_wait(&r);
    assert_all_gone(r.g);
    assert_works(r.g);
    qtest_remove_abrt_handler(&r);
    g_test_message("seed %u: %u commands, %u resets, %d maps", random_seed,
                   r.commands, r.resets, r.g->shim->maps);
    g_assert_cmpint(r.g->shim->maps, ==, r.g->shim->unmaps);
    g_rand_free(r.rand);
    gpu_free(r.g);
}

static void test_random(void)
{
    random_run(false, number("VIRTIO_GPU_BLOB_COUNT",
                             g_test_slow() ? 50000 : 3000));
}

static void test_vcpu_random(void)
{
    random_run(true, number("VIRTIO_GPU_BLOB_COUNT",
                            g_test_slow() ? 20000 : 1000));
}

/* --- What it takes ------------------------------------------------------- */

/* Returns: the display of an X server that ends with us, or NULL */
static char *start_xserver(void)
{
    char number[16] = "";
    size_t length = 0;
    int fd[2];
    pid_t parent = getpid();
    pid_t pid;

    if (pipe(fd)) {
        return NULL;
    }
    pid = fork();
    if (!pid) {
        g_autofree char *out = g_strdup_printf("%d", fd[1]);
        int null = open("/dev/null", O_RDWR);

        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        close(fd[0]);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() == parent) {
            execlp("Xvfb", "Xvfb", "-displayfd", out, "-screen", "0",
                   "1280x1024x24", "-nolisten", "tcp", "-noreset", NULL);
        }
        _exit(1);
    }
    close(fd[1]);
    while (pid > 0 && !strchr(number, '\n') && length < sizeof(number) - 1 &&
           read(fd[0], &number[length], 1) == 1) {
        length++;
    }
    close(fd[0]);
    if (!strchr(number, '\n')) {
        return NULL;
    }
    return g_strdup_printf(":%d", atoi(number));
}

/*
 * Returns: what QEMU says when it has not got what the tests need, or NULL.
 * Any other reason not to start is a failure.
 */
static char *why_not(void)
{
    const char *const reasons[] = {
        "OpenGL", "SDL", "'virtio-gpu-gl-pci' is not a valid device",
        "old virglrenderer", "does not accept value 'sdl'",
    };
    g_autofree char *bios = firmware_file();
    g_autofree char *line = g_strdup_printf(
        "/bin/sh -c 'echo quit | \"$QTEST_QEMU_BINARY\" -accel qtest "
        "-nodefaults -monitor stdio -display sdl,gl=on -machine pc -vga none "
        "-bios %s -global apic-common.vapic=off "
        "-device virtio-gpu-gl-pci,hostmem=64M,blob=on'", bios);
    g_autofree char *out = NULL;
    char *err = NULL;
    int status;

    if (!g_spawn_command_line_sync(line, &out, &err, &status, NULL)) {
        g_error("QEMU cannot be run");
    }
    unlink(bios);
    if (!status) {
        g_clear_pointer(&err, g_free);
        return NULL;
    }
    for (int i = 0; i < ARRAY_SIZE(reasons); i++) {
        if (strstr(err, reasons[i])) {
            return err;
        }
    }
    g_error("QEMU does not start: %s", err);
}

typedef struct Test {
    const char *name;
    void (*func)(void);
    /* What it says when it fails with stock; NULL where it does not fail */
    const char *stock;
} Test;

static const Test tests[] = {
    { "map", test_map },
    { "many", test_many },
    { "bad-ids", test_bad_ids },
    { "bad-offset", test_bad_offset, "*test_bad_offset*" },
    { "fenced-unmap", test_fenced_unmap, "*0x209 is not answered*" },
    { "fenced-unref", test_fenced_unref, "*0x102 is not answered*" },
    { "fence-order", test_fence_order, "*test_fence_order*" },
    { "unmap-in-flight", test_unmap_in_flight },
    { "refused", test_refused, "*test_refused*" },
    { "same-id", test_same_id, "*test_same_id*" },
    { "reset-hides", test_reset_hides, "*assert_window*5ec4e700*" },
    { "reset-reuse", test_reset_reuse, "*duplicate property*" },
    { "reset-waits", test_reset_waits, "*shim->lost == 0*" },
    { "reset-phases", test_reset_phases, "*shim->lost == 0*" },
    { "reset-backing", test_reset_backing, "*test_reset_backing*" },
    { "system-reset", test_system_reset, "*assert_all_gone*" },
    { "vcpu-reset", test_vcpu_reset, "*shim->other_thread == 0*" },
    { "vcpu-reset-waits", test_vcpu_reset_waits, "*shim->lost == 0*" },
    { "vcpu-kick-and-reset", test_vcpu_kick_and_reset,
      "*test_vcpu_kick_and_reset*" },
    { "page-offset", test_page_offset, "*test_page_offset*" },
    { "overlap", test_overlap, "*test_overlap*" },
    { "queue-reset", test_queue_reset, "*ERROR*" },
    { "no-fence", test_no_fence, "*0x101 is not answered*" },
    { "submit-error", test_submit_error, "*test_submit_error*" },
    { "renderer-error", test_renderer_error, "*test_renderer_error*" },
    { "short", test_short, "*is not answered*" },
    { "release-dmabuf", test_release_dmabuf, "*test_release_dmabuf*" },
    { "reset-own-backing", test_reset_own_backing },
    { "reset-own-buffer", test_reset_own_buffer },
    { "vcpu-reset-stop", test_vcpu_reset_stop, "*QMP does not answer*" },
    { "reset-many", test_reset_many },
    { "unplug", test_unplug },
    /* How long stock takes depends on the host */
    { "latency", test_latency },
    /* Stock may well end in an endless loop: not for every day */
    { "random", test_random },
    { "vcpu-random", test_vcpu_random },
};

static void test_stock(const void *opaque)
{
    const Test *test = opaque;
    const char *binary = getenv("QTEST_QEMU_STOCK_BINARY");

    if (g_test_subprocess()) {
        g_setenv("QTEST_QEMU_BINARY", binary, true);
        patience_s = 5;
        test->func();
        return;
    }
    if (!binary) {
        g_test_skip("QTEST_QEMU_STOCK_BINARY is not set");
        return;
    }
    g_test_trap_subprocess(NULL, 120 * G_USEC_PER_SEC, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr(test->stock);
}

int main(int argc, char **argv)
{
    g_autofree char *why = NULL;
    g_autofree char *display = NULL;

    g_test_init(&argc, &argv, NULL);

    /* Subprocesses have inherited all of it */
    if (!g_test_subprocess()) {
        const char *asan = getenv("ASAN_OPTIONS");
        g_autofree char *options = g_strconcat(
            "detect_leaks=0:verify_asan_link_order=0", asan ? ":" : NULL,
            asan, NULL);

        /* Mesa and SDL leak, and the library comes before the sanitizer's */
        g_setenv("ASAN_OPTIONS", options, true);
        g_setenv("LIBGL_ALWAYS_SOFTWARE", "1", true);
        g_setenv("SDL_VIDEODRIVER", "x11", true);
        display = start_xserver();
        if (display) {
            g_setenv("DISPLAY", display, true);
            why = why_not();
        } else {
            why = g_strdup("Xvfb cannot be started");
        }
        if (why) {
            printf("1..0 # SKIP software OpenGL and virglrenderer 1.0 are "
                   "needed: %s\n", g_strdelimit(why, "\n", ' '));
            return 0;
        }
    }

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *name = g_strconcat("/virtio-gpu-blob/",
                                            tests[i].name, NULL);
        g_autofree char *stock = g_strconcat(name, "-stock", NULL);

        qtest_add_func(name, tests[i].func);
        if (tests[i].stock) {
            qtest_add_data_func(stock, &tests[i], test_stock);
        }
    }
    return g_test_run();
}

/*
 * Virtio GPU without a renderer: what a guest may not make it do
 *
 * Tests whose name ends in -stock run the test before them with the binary
 * that QTEST_QEMU_STOCK_BINARY names, and show that it fails there. They are
 * skipped where that is not set.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/libqos.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "standard-headers/linux/pci_regs.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_gpu.h"

#define SLOT 4

#define PAGE 0x1000
#define BUFFER_SIZE (4 * PAGE)

/* What guest memory is used for by blobs, away from what libqos allocates */
#define BLOB_BASE (32 * MiB)
#define RAM_SIZE (64 * MiB)

typedef struct Gpu {
    QTestState *s;
    QPCIBus *bus;
    QGuestAllocator alloc;
    QVirtioPCIDevice *dev;
    QVirtQueue *ctrl, *cursor;
    uint64_t buffer;
    int outputs;
    /* What commands for a scanout, and looks at it, are about */
    int scanout;
} Gpu;

/* What stock QEMU leaves unanswered, it leaves so for ever */
static int patience_us = 30 * 1000 * 1000;

/* @binary is what qtest_init_ext() takes */
static QTestState *qemu_new(const char *binary, const char *device,
                            int outputs, const char *more)
{
    g_autofree char *preload = g_canonicalize_filename(
        g_test_get_filename(G_TEST_BUILT, "fake-udmabuf.so", NULL), NULL);
    g_autofree char *args = g_strdup_printf(
        "-machine pc,memory-backend=ram -nodefaults -vga none "
        "-object memory-backend-memfd,id=ram,size=64M,share=on "
        "-device %s,id=gpu,addr=%d,blob=on,max_outputs=%d %s",
        device, SLOT, outputs, more);
    QTestState *s;

    g_assert_true(g_file_test(preload, G_FILE_TEST_EXISTS));
    g_setenv("LD_PRELOAD", preload, true);
    s = qtest_init_ext(binary, args, NULL, true);
    g_unsetenv("LD_PRELOAD");
    return s;
}

static void start_driver(Gpu *g)
{
    qvirtio_start_device(&g->dev->vdev);
    qvirtio_set_features(
        &g->dev->vdev, qvirtio_get_features(&g->dev->vdev) &
        (1ULL << VIRTIO_F_VERSION_1 | 1ULL << VIRTIO_GPU_F_RESOURCE_BLOB));
    g->ctrl = qvirtqueue_setup(&g->dev->vdev, &g->alloc, 0);
    g->cursor = qvirtqueue_setup(&g->dev->vdev, &g->alloc, 1);
    qvirtio_set_driver_ok(&g->dev->vdev);
}

static Gpu *gpu_new_device(const char *binary, const char *device,
                           int outputs)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(SLOT, 0) };
    Gpu *g = g_new0(Gpu, 1);

    g->outputs = outputs;
    g->s = qemu_new(binary, device, outputs, "");

    alloc_init(&g->alloc, ALLOC_NO_FLAGS, MiB, BLOB_BASE, PAGE);
    g->bus = qpci_new_pc(g->s, &g->alloc);
    g->dev = virtio_pci_new(g->bus, &addr);
    qvirtio_pci_device_enable(g->dev);
    start_driver(g);
    g->buffer = guest_alloc(&g->alloc, 2 * BUFFER_SIZE);
    return g;
}

static Gpu *gpu_new_outputs(const char *binary, int outputs)
{
    return gpu_new_device(binary, "virtio-gpu-pci", outputs);
}

static Gpu *gpu_new(void)
{
    return gpu_new_outputs(NULL, 1);
}

static void gpu_free(Gpu *g)
{
    /* It is still there, and so are its displays */
    qtest_qmp_assert_success(g->s, "{ 'execute': 'query-status' }");
    qtest_quit(g->s);
    qvirtqueue_cleanup(g->dev->vdev.bus, g->ctrl, &g->alloc);
    qvirtqueue_cleanup(g->dev->vdev.bus, g->cursor, &g->alloc);
    guest_free(&g->alloc, g->buffer);
    alloc_destroy(&g->alloc);
    g_free(g->dev->pdev);
    g_free(g->dev);
    qpci_free_pc(g->bus);
    g_free(g);
}

/* Returns: the type of the answer */
static uint32_t command(Gpu *g, uint32_t type, void *cmd, size_t size)
{
    struct virtio_gpu_ctrl_hdr *hdr = cmd;
    uint64_t answer = g->buffer + BUFFER_SIZE;
    uint32_t head;

    if (size >= sizeof(hdr->type)) {
        hdr->type = cpu_to_le32(type);
    }
    qtest_memwrite(g->s, g->buffer, cmd, size);
    qtest_memset(g->s, answer, 0, PAGE);
    head = qvirtqueue_add(g->s, g->ctrl, g->buffer, size, false, true);
    qvirtqueue_add(g->s, g->ctrl, answer, PAGE, true, false);
    qvirtqueue_kick(g->s, &g->dev->vdev, g->ctrl, head);
    qvirtio_wait_used_elem(g->s, &g->dev->vdev, g->ctrl, head, NULL,
                           patience_us);
    return le32_to_cpu(qtest_readl(g->s, answer));
}

#define assert_answer(got, wanted) g_assert_cmphex(got, ==, wanted)

static uint32_t create_2d(Gpu *g, uint32_t id, uint32_t width,
                          uint32_t height)
{
    struct virtio_gpu_resource_create_2d cmd = {
        .resource_id = cpu_to_le32(id),
        .format = cpu_to_le32(VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM),
        .width = cpu_to_le32(width),
        .height = cpu_to_le32(height),
    };

    return command(g, VIRTIO_GPU_CMD_RESOURCE_CREATE_2D, &cmd, sizeof(cmd));
}

static uint32_t set_scanout(Gpu *g, uint32_t id, uint32_t width,
                            uint32_t height)
{
    struct virtio_gpu_set_scanout cmd = {
        .scanout_id = cpu_to_le32(g->scanout),
        .resource_id = cpu_to_le32(id),
        .r.width = cpu_to_le32(width),
        .r.height = cpu_to_le32(height),
    };

    return command(g, VIRTIO_GPU_CMD_SET_SCANOUT, &cmd, sizeof(cmd));
}

/* With @length bytes of memory behind it, in two pieces */
static uint32_t create_blob(Gpu *g, uint32_t id, uint64_t size,
                            uint32_t length)
{
    struct {
        struct virtio_gpu_resource_create_blob cmd;
        struct virtio_gpu_mem_entry entry[2];
    } cmd = {
        .cmd.resource_id = cpu_to_le32(id),
        .cmd.blob_mem = cpu_to_le32(VIRTIO_GPU_BLOB_MEM_GUEST),
        .cmd.blob_flags = cpu_to_le32(VIRTIO_GPU_BLOB_FLAG_USE_SHAREABLE),
        .cmd.nr_entries = cpu_to_le32(2),
        .cmd.size = cpu_to_le64(size),
        .entry[0].addr = cpu_to_le64(BLOB_BASE),
        .entry[0].length = cpu_to_le32(length / 2),
        .entry[1].addr = cpu_to_le64(BLOB_BASE + 8 * MiB),
        .entry[1].length = cpu_to_le32(length / 2),
    };

    return command(g, VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB, &cmd, sizeof(cmd));
}

static uint32_t attach(Gpu *g, uint32_t id, uint64_t addr, uint32_t length)
{
    struct {
        struct virtio_gpu_resource_attach_backing cmd;
        struct virtio_gpu_mem_entry entry;
    } cmd = {
        .cmd.resource_id = cpu_to_le32(id),
        .cmd.nr_entries = cpu_to_le32(1),
        .entry.addr = cpu_to_le64(addr),
        .entry.length = cpu_to_le32(length),
    };

    return command(g, VIRTIO_GPU_CMD_RESOURCE_ATTACH_BACKING, &cmd,
                   sizeof(cmd));
}

static uint32_t detach(Gpu *g, uint32_t id)
{
    struct virtio_gpu_resource_detach_backing cmd = {
        .resource_id = cpu_to_le32(id),
    };

    return command(g, VIRTIO_GPU_CMD_RESOURCE_DETACH_BACKING, &cmd,
                   sizeof(cmd));
}

typedef struct Scanout {
    uint32_t x, y, r_width, r_height, width, height, stride, offset;
} Scanout;

static uint32_t set_scanout_blob(Gpu *g, uint32_t id, const Scanout *s)
{
    struct virtio_gpu_set_scanout_blob cmd = {
        .scanout_id = cpu_to_le32(g->scanout),
        .resource_id = cpu_to_le32(id),
        .r.x = cpu_to_le32(s->x),
        .r.y = cpu_to_le32(s->y),
        .r.width = cpu_to_le32(s->r_width),
        .r.height = cpu_to_le32(s->r_height),
        .width = cpu_to_le32(s->width),
        .height = cpu_to_le32(s->height),
        .format = cpu_to_le32(VIRTIO_GPU_FORMAT_B8G8R8X8_UNORM),
        .strides[0] = cpu_to_le32(s->stride),
        .offsets[0] = cpu_to_le32(s->offset),
    };

    return command(g, VIRTIO_GPU_CMD_SET_SCANOUT_BLOB, &cmd, sizeof(cmd));
}

static void update_cursor(Gpu *g, uint32_t id)
{
    struct virtio_gpu_update_cursor cmd = {
        .hdr.type = cpu_to_le32(VIRTIO_GPU_CMD_UPDATE_CURSOR),
        .resource_id = cpu_to_le32(id),
    };
    uint32_t head;

    qtest_memwrite(g->s, g->buffer, &cmd, sizeof(cmd));
    head = qvirtqueue_add(g->s, g->cursor, g->buffer, sizeof(cmd), false,
                          false);
    qvirtqueue_kick(g->s, &g->dev->vdev, g->cursor, head);
    qvirtio_wait_used_elem(g->s, &g->dev->vdev, g->cursor, head, NULL,
                           patience_us);
}

static char *temporary_file(void)
{
    char *path = NULL;
    int fd = g_file_open_tmp("virtio-gpu-2d-XXXXXX", &path, NULL);

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    return path;
}

/* The display looks at what is shown; returns its width */
static int look(Gpu *g)
{
    g_autofree char *path = temporary_file();
    g_autofree char *image = NULL;
    int width;

    qtest_qmp_assert_success(
        g->s, "{ 'execute': 'screendump', 'arguments': "
        "{ 'filename': %s, 'device': 'gpu', 'head': %d } }", path,
        g->scanout);
    g_assert_true(g_file_get_contents(path, &image, NULL, NULL));
    g_assert_cmpint(sscanf(image, "P6 %d ", &width), ==, 1);
    unlink(path);
    return width;
}

/* All that the device can do still works */
static void assert_works(Gpu *g)
{
    const Scanout whole = { 0, 0, 640, 480, 640, 480, 2560, 0 };

    assert_answer(create_2d(g, 1001, 640, 480), VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(attach(g, 1001, BLOB_BASE, 2 * MiB),
                  VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(set_scanout(g, 1001, 640, 480), VIRTIO_GPU_RESP_OK_NODATA);
    look(g);
    assert_answer(create_blob(g, 1002, 2 * MiB, 2 * MiB),
                  VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(set_scanout_blob(g, 1002, &whole),
                  VIRTIO_GPU_RESP_OK_NODATA);
    look(g);
}

/* Sizes that wrap at 32 bits, in a row and in all rows */
static void test_size(void)
{
    const uint32_t bad[][2] = {
        { 65536, 16440 }, { 0x40000001, 4 }, { 0x8000001, 4 },
        { 0x8000001, 0x8000001 }, { 0x20000000, 1 }, { 0xffffffff, 1 },
        { 1, 0xffffffff }, { 0xffffffff, 0xffffffff },
    };
    Gpu *g = gpu_new();

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_answer(create_2d(g, i + 1, bad[i][0], bad[i][1]),
                      VIRTIO_GPU_RESP_ERR_OUT_OF_MEMORY);
    }
    assert_works(g);
    gpu_free(g);
}

static void test_blob_size(void)
{
    Gpu *g = gpu_new();

    assert_answer(create_blob(g, 1, 2 * MiB + 1, 2 * MiB),
                  VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    assert_answer(create_blob(g, 1, 1ULL << 40, 2 * MiB),
                  VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    assert_answer(create_blob(g, 1, 0, 2 * MiB),
                  VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    update_cursor(g, 1);
    assert_works(g);
    gpu_free(g);
}

static void test_detach(void)
{
    const Scanout whole = { 0, 0, 640, 480, 640, 480, 2560, 0 };
    Gpu *g = gpu_new();

    assert_answer(create_blob(g, 1, 4 * MiB, 4 * MiB),
                  VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(set_scanout_blob(g, 1, &whole), VIRTIO_GPU_RESP_OK_NODATA);
    look(g);
    assert_answer(detach(g, 1), VIRTIO_GPU_RESP_OK_NODATA);
    look(g);
    assert_answer(set_scanout_blob(g, 1, &whole), VIRTIO_GPU_RESP_ERR_UNSPEC);

    /* what is attached has to be enough, and is what is shown */
    assert_answer(attach(g, 1, BLOB_BASE, 4 * MiB - PAGE),
                  VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    assert_answer(set_scanout_blob(g, 1, &whole), VIRTIO_GPU_RESP_ERR_UNSPEC);
    assert_answer(attach(g, 1, BLOB_BASE, 4 * MiB),
                  VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(set_scanout_blob(g, 1, &whole), VIRTIO_GPU_RESP_OK_NODATA);
    look(g);
    assert_works(g);
    gpu_free(g);
}

static void test_frame_buffer(void)
{
    const Scanout bad[] = {
        /* rows that do not fit into the stride */
        { 0, 0, 16384, 64, 16384, 64, 64, 0 },
        { 0, 0, 640, 480, 640, 480, 2556, 0 },
        { 0, 0, 640, 480, 640, 480, 0, 0 },
        /* what pixman does not take */
        { 0, 0, 640, 480, 640, 480, 2561, 0 },
        { 0, 0, 640, 16, 640, 16, 0x90000000, 0 },
        /* sums that wrap */
        { 0xfffffff0, 0, 640, 480, 640, 480, 2560, 0 },
        { 0, 0xfffffff0, 640, 480, 640, 480, 2560, 0 },
        { 16, 0, 0xfffffff0, 480, 0xffffffff, 480, 2560, 0 },
        { 0, 1, 640, 479, 640, 480, 2560, 0xfffff600 },
        { 0, 0, 640, 480, 0x40000000, 480, 2560, 0 },
        /* one row too many */
        { 0, 0, 640, 480, 640, 480, 2560, 4 * MiB - 479 * 2560 },
    };
    Gpu *g = gpu_new();

    assert_answer(create_blob(g, 1, 4 * MiB, 4 * MiB),
                  VIRTIO_GPU_RESP_OK_NODATA);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        assert_answer(set_scanout_blob(g, 1, &bad[i]),
                      VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
        look(g);
    }
    assert_works(g);
    gpu_free(g);
}

static void test_blob_is_no_image(void)
{
    Gpu *g = gpu_new();

    assert_answer(create_blob(g, 1, 4 * MiB, 4 * MiB),
                  VIRTIO_GPU_RESP_OK_NODATA);
    assert_answer(set_scanout(g, 1, 640, 480),
                  VIRTIO_GPU_RESP_ERR_INVALID_PARAMETER);
    assert_answer(detach(g, 1), VIRTIO_GPU_RESP_OK_NODATA);
    update_cursor(g, 1);
    assert_works(g);
    gpu_free(g);
}

/* --- The VGA that has the same display ----------------------------------- */

static void vga_write(Gpu *g, uint16_t port, uint8_t index, uint8_t value)
{
    qtest_outb(g->s, port, index);
    qtest_outb(g->s, port + 1, value);
}

/* Either columns and rows of text, or pixels of a picture of four bits */
static void vga_mode(Gpu *g, bool text, int columns, int lines)
{
    int end = lines * (text ? 16 : 1) - 1;

    qtest_outb(g->s, 0x3c2, 1); /* the registers at 0x3d4 */
    vga_write(g, 0x3d4, 1, columns / (text ? 1 : 8) - 1);
    vga_write(g, 0x3d4, 7, (end >> 7 & 2) | (end >> 3 & 0x40));
    vga_write(g, 0x3d4, 9, text ? 15 : 0);
    vga_write(g, 0x3d4, 0x12, end);
    vga_write(g, 0x3d4, 0x13, 80);
    vga_write(g, 0x3d4, 0x17, 3);
    vga_write(g, 0x3ce, 6, !text);
    qtest_inb(g->s, 0x3da);
    qtest_outb(g->s, 0x3c0, 0x20);
}

/* All that is shown has another colour */
static void vga_palette(Gpu *g, uint8_t red)
{
    qtest_outb(g->s, 0x3c8, 0);
    qtest_outb(g->s, 0x3c9, red);
    qtest_outb(g->s, 0x3c9, 0);
    qtest_outb(g->s, 0x3c9, 0);
}

static void vga_blank(Gpu *g)
{
    qtest_inb(g->s, 0x3da);
    qtest_outb(g->s, 0x3c0, 0);
}

/* VGA does not draw into what the device has shown, which may be smaller */
static void test_vga_after_reset(void)
{
    static const struct {
        bool text;
        int columns, lines, width;
    } modes[] = {
        { true, 80, 25, 720 },
        { false, 640, 480, 640 },
    };
    Gpu *g = gpu_new_device(NULL, "virtio-vga", 1);

    for (int i = 0; i < 2 * ARRAY_SIZE(modes); i++) {
        int mode = i / 2;

        vga_mode(g, modes[mode].text, modes[mode].columns, modes[mode].lines);
        g_assert_cmpint(look(g), ==, modes[mode].width);
        assert_answer(create_2d(g, 1, 16, 16), VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(attach(g, 1, BLOB_BASE, 1024),
                      VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(set_scanout(g, 1, 16, 16), VIRTIO_GPU_RESP_OK_NODATA);
        g_assert_cmpint(look(g), ==, 16);
        if (i % 2) {
            vga_blank(g);
        } else {
            vga_palette(g, i + 1);
        }
        qvirtqueue_cleanup(g->dev->vdev.bus, g->ctrl, &g->alloc);
        qvirtqueue_cleanup(g->dev->vdev.bus, g->cursor, &g->alloc);
        start_driver(g);
        g_assert_cmpint(look(g), ==, modes[mode].width);
    }
    gpu_free(g);
}

/* A picture that has as many pixels as the text has characters */
static void test_vga_modes(void)
{
    Gpu *g = gpu_new_device(NULL, "virtio-vga", 1);

    for (int i = 0; i < 3; i++) {
        vga_mode(g, true, 128, 64);
        g_assert_cmpint(look(g), ==, 128 * 9);
        vga_mode(g, false, 128, 64);
        g_assert_cmpint(look(g), ==, 128);
    }
    gpu_free(g);
}

/* --- Migration ----------------------------------------------------------- */

#define STOCK_BINARY "QTEST_QEMU_STOCK_BINARY"

static bool wait_migrated(QTestState *s)
{
    for (;;) {
        QDict *rsp = qtest_qmp_assert_success_ref(
            s, "{ 'execute': 'query-migrate' }");
        g_autofree char *status = g_strdup(qdict_get_try_str(rsp, "status"));

        qobject_unref(rsp);
        if (!g_strcmp0(status, "completed") || !g_strcmp0(status, "failed")) {
            return status[0] == 'c';
        }
        g_usleep(10 * 1000);
    }
}

/* The driver goes on at QEMU @binary; returns: whether it could be loaded */
static bool move_to(Gpu *g, const char *binary)
{
    g_autofree char *path = temporary_file();
    g_autofree char *uri = g_strdup_printf("file:%s", path);
    bool loaded;

    qtest_qmp_assert_success(g->s, "{ 'execute': 'migrate', 'arguments': "
                                   "{ 'uri': %s } }", uri);
    g_assert_true(wait_migrated(g->s));
    qtest_quit(g->s);

    g->s = qemu_new(binary, "virtio-gpu-pci", g->outputs, "-incoming defer");
    g->bus->qts = g->s;
    qtest_qmp_assert_success(
        g->s, "{ 'execute': 'migrate-incoming', 'arguments': "
        "{ 'uri': %s, 'exit-on-error': false } }", uri);
    loaded = wait_migrated(g->s);
    if (loaded) {
        qtest_qmp_assert_success(g->s, "{ 'execute': 'cont' }");
    }
    unlink(path);
    return loaded;
}

/* Each of @outputs shows something, and does so after migrations */
static bool show_and_migrate(const char *const *binaries, int n, int outputs,
                             bool blob)
{
    const Scanout whole = { 0, 0, 320, 240, 320, 240, 1280, 0 };
    Gpu *g = gpu_new_outputs(binaries[0], outputs);
    bool loaded = true;

    for (int i = 0; i < outputs; i++) {
        g->scanout = i;
        if (blob) {
            assert_answer(create_blob(g, i + 1, 2 * MiB, 2 * MiB),
                          VIRTIO_GPU_RESP_OK_NODATA);
            assert_answer(set_scanout_blob(g, i + 1, &whole),
                          VIRTIO_GPU_RESP_OK_NODATA);
        } else {
            assert_answer(create_2d(g, i + 1, 320, 240),
                          VIRTIO_GPU_RESP_OK_NODATA);
            assert_answer(attach(g, i + 1, BLOB_BASE, 2 * MiB),
                          VIRTIO_GPU_RESP_OK_NODATA);
            assert_answer(set_scanout(g, i + 1, 320, 240),
                          VIRTIO_GPU_RESP_OK_NODATA);
        }
    }
    for (int step = 1; step < n && loaded; step++) {
        loaded = move_to(g, binaries[step]);
        for (int i = 0; i < outputs && loaded; i++) {
            g->scanout = i;
            g_assert_cmpint(look(g), ==, 320);
        }
    }
    g->scanout = 0;
    gpu_free(g);
    return loaded;
}

static void test_migrate(void)
{
    const char *const binaries[2] = { NULL };

    g_assert_true(show_and_migrate(binaries, 2, 4, false));
    g_assert_true(show_and_migrate(binaries, 2, 4, true));
}

static void test_migrate_detached(void)
{
    const Scanout whole = { 0, 0, 320, 240, 320, 240, 1280, 0 };
    const char *stock = getenv(STOCK_BINARY) ? STOCK_BINARY : NULL;

    /* Stock goes on to show a blob that is detached */
    for (int from_stock = 0; from_stock <= !!stock; from_stock++) {
        Gpu *g = gpu_new_outputs(from_stock ? stock : NULL, 1);

        assert_answer(create_blob(g, 1, 4 * MiB, 4 * MiB),
                      VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(set_scanout_blob(g, 1, &whole),
                      VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(detach(g, 1), VIRTIO_GPU_RESP_OK_NODATA);
        g_assert_true(move_to(g, NULL));
        g_assert_cmpint(look(g), !=, 320);
        assert_answer(set_scanout_blob(g, 1, &whole),
                      VIRTIO_GPU_RESP_ERR_UNSPEC);
        assert_answer(attach(g, 1, BLOB_BASE, 4 * MiB),
                      VIRTIO_GPU_RESP_OK_NODATA);
        assert_answer(set_scanout_blob(g, 1, &whole),
                      VIRTIO_GPU_RESP_OK_NODATA);
        g_assert_cmpint(look(g), ==, 320);
        g_assert_true(move_to(g, NULL));
        g_assert_cmpint(look(g), ==, 320);
        assert_works(g);
        gpu_free(g);
    }
}

/* To stock, and from it */
static void test_migrate_stock(void)
{
    const char *const chain[] = { STOCK_BINARY, NULL, STOCK_BINARY, NULL };

    if (!getenv(STOCK_BINARY)) {
        g_test_skip(STOCK_BINARY " is not set");
        return;
    }
    /* Of a blob that the third output shows, stock has no frame buffer */
    for (int blob = 0; blob < 2; blob++) {
        bool loaded = false;

        /* Stock takes a format from a pointer, which may be wrong */
        for (int try = 0; try < 10 && !loaded; try++) {
            loaded = show_and_migrate(chain, ARRAY_SIZE(chain), 3 - blob,
                                      blob);
        }
        g_assert_true(loaded);
    }
}

/* --- What the guest's slot does ------------------------------------------ */

static uint32_t config_read(QTestState *s, int bus, int devfn, int offset)
{
    qtest_outl(s, 0xcf8, 0x80000000 | bus << 16 | devfn << 8 | offset);
    return qtest_inl(s, 0xcfc);
}

static void config_write16(QTestState *s, int devfn, int offset, uint16_t v)
{
    qtest_outl(s, 0xcf8, 0x80000000 | devfn << 8 | (offset & ~3));
    qtest_outw(s, 0xcfc + (offset & 2), v);
}

/* The guest switches a slot off and on whose device cannot be unplugged */
static void test_slot_power(void)
{
    const int port = QPCI_DEVFN(5, 0);
    QTestState *s = qtest_init(
        "-machine q35 -nodefaults -vga none "
        "-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off "
        "-device pcie-root-port,id=rp,addr=5,chassis=1,slot=1 "
        "-device virtio-gpu-pci,id=gpu,bus=rp");
    uint8_t cap = config_read(s, 0, port, PCI_CAPABILITY_LIST);
    uint16_t on = 1 << 8 /* indicator */;
    uint16_t off = 3 << 8 | PCI_EXP_SLTCTL_PCC;

    while ((config_read(s, 0, port, cap) & 0xff) != PCI_CAP_ID_EXP) {
        cap = config_read(s, 0, port, cap) >> 8;
    }
    /* bus numbers */
    qtest_outl(s, 0xcf8, 0x80000000 | port << 8 | PCI_PRIMARY_BUS);
    qtest_outl(s, 0xcfc, 0x00010100);

    for (int i = 0; i < 3; i++) {
        config_write16(s, port, cap + PCI_EXP_SLTCTL, on);
        g_assert_cmphex(config_read(s, 1, 0, 0), ==, 0x10501af4);
        config_write16(s, port, cap + PCI_EXP_SLTCTL, off);
        g_assert_cmphex(config_read(s, 1, 0, 0), ==, 0xffffffff);
        /* presence */
        g_assert_true(config_read(s, 0, port, cap + PCI_EXP_SLTCTL) >> 16 &
                      PCI_EXP_SLTSTA_PDS);
        qtest_qmp_assert_success(
            s, "{ 'execute': 'qom-get', 'arguments': "
            "{ 'path': '/machine/peripheral/gpu', 'property': 'addr' } }");
    }
    qtest_quit(s);
}

typedef struct Test {
    const char *name;
    void (*func)(void);
    /* What it says when it fails with stock; NULL: it does not */
    const char *stock;
} Test;

static const Test tests[] = {
    { "size", test_size, "*test_size*0x00001100 == *" },
    { "blob-size", test_blob_size, "*test_blob_size*0x00001100 == *" },
    { "detach", test_detach, "*QEMU death*" },
    { "frame-buffer", test_frame_buffer,
      "*test_frame_buffer*0x00001100 == *" },
    { "blob-is-no-image", test_blob_is_no_image, "*QEMU death*" },
    /* QEMU dies, or goes on with what it has overwritten */
    { "vga-after-reset", test_vga_after_reset, "*tests/qtest/*" },
    { "vga-modes", test_vga_modes, "*tests/qtest/*" },
    { "migrate", test_migrate, "*test_migrate*" },
    { "migrate-detached", test_migrate_detached, NULL },
    { "migrate-to-stock", test_migrate_stock, NULL },
    { "slot-power", test_slot_power, "*test_slot_power*" },
};

static void test_stock(const void *opaque)
{
    const Test *test = opaque;
    const char *binary = getenv(STOCK_BINARY);

    if (g_test_subprocess()) {
        g_setenv("QTEST_QEMU_BINARY", binary, true);
        patience_us = 5 * 1000 * 1000;
        test->func();
        return;
    }
    if (!binary) {
        g_test_skip("QTEST_QEMU_STOCK_BINARY is not set");
        return;
    }
    g_test_trap_subprocess(NULL, 60 * G_USEC_PER_SEC, 0);
    g_test_trap_assert_failed();
    g_test_trap_assert_stderr(test->stock);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_device("virtio-gpu-pci")) {
        g_test_skip("no virtio-gpu-pci");
        return 0;
    }
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *name = g_strconcat("/virtio-gpu-2d/", tests[i].name,
                                            NULL);
        g_autofree char *stock = g_strconcat(name, "-stock", NULL);

        qtest_add_func(name, tests[i].func);
        if (tests[i].stock) {
            qtest_add_data_func(stock, &tests[i], test_stock);
        }
    }
    return g_test_run();
}

/*
 * IDE requests while the monitor drains the disk, and requests that fail
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qemu/units.h"

/* The primary channel of -machine pc, and where its bus master is put */
#define COMMAND_BLOCK   0x1f0
#define ALT_STATUS      0x3f6
#define BUS_MASTER      0xc000
#define IDE_FUNCTION    (0x80000000 | 1 << 11 | 1 << 8)

/* Guest memory */
#define PRD_TABLE       0x100000
#define BUFFER          0x200000

#define STATUS_BUSY     0x80
#define STATUS_DRQ      0x08
#define STATUS_ERR      0x01

#define CMD_DSM         0x06
#define CMD_READ        0x20
#define CMD_WRITE       0x30
#define CMD_READ_DMA    0xc8
#define FEATURE_TRIM    1

/* 64 ranges each */
#define TRIM_SECTORS    96
#define TRIM_BYTES      (TRIM_SECTORS * 512)

#define DISK_SIZE       (64 * MiB)
#define TIMEOUT_S       20

static QTestState *start(const char *args)
{
    QTestState *s = qtest_initf("-machine pc -m 64M -nodefaults %s", args);

    qtest_outl(s, 0xcf8, IDE_FUNCTION | 0x20);
    qtest_outl(s, 0xcfc, BUS_MASTER);
    qtest_outl(s, 0xcf8, IDE_FUNCTION | 0x04);
    qtest_outl(s, 0xcfc, 5);
    return s;
}

static void command(QTestState *s, int unit, uint8_t cmd, uint8_t feature,
                    uint8_t count)
{
    qtest_outb(s, COMMAND_BLOCK + 6, 0xe0 | unit << 4);
    qtest_outb(s, COMMAND_BLOCK + 1, feature);
    qtest_outb(s, COMMAND_BLOCK + 2, count);
    qtest_outb(s, COMMAND_BLOCK + 3, 0);
    qtest_outb(s, COMMAND_BLOCK + 4, 0);
    qtest_outb(s, COMMAND_BLOCK + 5, 0);
    qtest_outb(s, COMMAND_BLOCK + 7, cmd);
}

static void start_dma(QTestState *s, uint32_t size, bool to_device)
{
    uint32_t offset, chunk;
    int n = 0;

    for (offset = 0; offset < size; offset += chunk) {
        chunk = MIN(size - offset, 32 * KiB);
        qtest_writel(s, PRD_TABLE + n * 8, BUFFER + offset);
        qtest_writel(s, PRD_TABLE + n * 8 + 4,
                     chunk | (offset + chunk == size ? 0x80000000 : 0));
        n++;
    }
    /* Only a change of the start bit counts */
    qtest_outb(s, BUS_MASTER, 0);
    qtest_outl(s, BUS_MASTER + 4, PRD_TABLE);
    qtest_outb(s, BUS_MASTER + 2, 6);
    qtest_outb(s, BUS_MASTER, to_device ? 1 : 9);
}

/* Wait until none of the bits @mask are set in the status, and return it */
static uint8_t wait_clear(QTestState *s, uint8_t mask)
{
    int64_t end = g_get_monotonic_time() + TIMEOUT_S * G_USEC_PER_SEC;
    uint8_t status;

    while ((status = qtest_inb(s, ALT_STATUS)) & mask) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
    return status;
}

/* Wait until a command is done, without an error */
static void wait_done(QTestState *s)
{
    g_assert_cmpint(wait_clear(s, STATUS_BUSY | STATUS_DRQ) & STATUS_ERR,
                    ==, 0);
}

/* Send a TRIM of many ranges */
static void trim(QTestState *s)
{
    g_autofree uint64_t *ranges = g_malloc(TRIM_BYTES);
    int i;

    for (i = 0; i < TRIM_BYTES / 8; i++) {
        ranges[i] = cpu_to_le64((i * 16 % (DISK_SIZE / 512)) | 8ULL << 48);
    }
    qtest_memwrite(s, BUFFER, ranges, TRIM_BYTES);
    command(s, 0, CMD_DSM, FEATURE_TRIM, TRIM_SECTORS);
    start_dma(s, TRIM_BYTES, true);
}

static QTestState *start_with_file(char **path)
{
    int fd = g_file_open_tmp("ide-drain-XXXXXX", path, NULL);
    g_autofree char *args = NULL;

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, DISK_SIZE), ==, 0);
    close(fd);

    args = g_strdup_printf(
        "-blockdev file,node-name=file,filename=%s,discard=unmap "
        "-blockdev raw,node-name=disk,file=file,discard=unmap "
        "-device ide-hd,drive=disk,bus=ide.0,unit=0", *path);
    return start(args);
}

static void end_with_file(QTestState *s, char *path)
{
    qtest_quit(s);
    unlink(path);
    g_free(path);
}

/* Run a QMP command while a TRIM is under way, some times */
static void meet(const char *cmd, const char *cmd2)
{
    char *path;
    QTestState *s = start_with_file(&path);
    int i;

    for (i = 0; i < 3; i++) {
        trim(s);
        qtest_qmp_assert_success(s, "%p", qobject_from_json(cmd, &error_abort));
        if (cmd2) {
            qtest_qmp_assert_success(s, "%p",
                                     qobject_from_json(cmd2, &error_abort));
        }
        wait_done(s);
    }
    end_with_file(s, path);
}

static void test_stop(void)
{
    meet("{ 'execute': 'stop' }", "{ 'execute': 'cont' }");
}

static void test_resize(void)
{
    meet("{ 'execute': 'block_resize', 'arguments': "
         "{ 'node-name': 'disk', 'size': 67108864 } }", NULL);
}

/* Nothing of the TRIM is left for later once the VM has stopped */
static void test_stop_completes(void)
{
    char *path;
    QTestState *s = start_with_file(&path);

    trim(s);
    g_assert_cmpint(qtest_inb(s, ALT_STATUS) & STATUS_DRQ, !=, 0);
    qtest_qmp_assert_success(s, "{ 'execute': 'stop' }");
    g_assert_cmpint(qtest_inb(s, ALT_STATUS) & STATUS_DRQ, ==, 0);
    end_with_file(s, path);
}

/* The guest takes the bus master from the TRIM */
static void test_cancel(void)
{
    char *path;
    QTestState *s = start_with_file(&path);
    int i;

    for (i = 0; i < 3; i++) {
        trim(s);
        qtest_outb(s, BUS_MASTER, 0);
        wait_done(s);
    }
    end_with_file(s, path);
}

static void test_reset(void)
{
    char *path;
    QTestState *s = start_with_file(&path);

    trim(s);
    qtest_qmp_assert_success(s, "{ 'execute': 'system_reset' }");
    qtest_qmp_eventwait(s, "RESET");
    wait_done(s);
    end_with_file(s, path);
}

/* A PIO command fails once, and is done again when the VM goes on */
static void pio_error(int unit, uint8_t cmd, bool dma_first)
{
    QTestState *s;
    /* With a geometry given, nothing reads the disk to guess it */
    g_autofree char *args = g_strdup_printf(
        "-blockdev null-co,node-name=other,read-zeroes=on,size=1048576 "
        "-blockdev null-co,node-name=null,read-zeroes=on,size=1048576 "
        "-blockdev \"{'driver': 'blkdebug', 'node-name': 'bad', "
        "'image': 'null', 'inject-error': [{ 'event': 'none', "
        "'iotype': '%s', 'once': true }]}\" "
        "-device ide-hd,drive=other,bus=ide.0,unit=%d "
        "-device ide-hd,drive=bad,bus=ide.0,unit=%d,rerror=stop,werror=stop,"
        "cyls=2,heads=16,secs=63",
        cmd == CMD_READ ? "read" : "write", !unit, unit);
    int i;

    s = start(args);
    if (dma_first) {
        /* A DMA command that works leaves nothing to retry behind */
        command(s, !unit, CMD_READ_DMA, 0, 1);
        start_dma(s, 512, false);
        wait_done(s);
        qtest_outb(s, BUS_MASTER, 0);
    }

    command(s, unit, cmd, 0, 1);
    if (cmd == CMD_WRITE) {
        g_assert_cmpint(wait_clear(s, STATUS_BUSY) & STATUS_DRQ, !=, 0);
        for (i = 0; i < 256; i++) {
            qtest_outw(s, COMMAND_BLOCK, 0);
        }
    }
    qtest_qmp_eventwait(s, "STOP");
    qtest_qmp_assert_success(s, "{ 'execute': 'cont' }");
    qtest_qmp_eventwait(s, "RESUME");

    if (cmd == CMD_READ) {
        int64_t end = g_get_monotonic_time() + TIMEOUT_S * G_USEC_PER_SEC;

        while (!(qtest_inb(s, ALT_STATUS) & STATUS_DRQ)) {
            g_assert_cmpint(g_get_monotonic_time(), <, end);
        }
        for (i = 0; i < 256; i++) {
            g_assert_cmpint(qtest_inw(s, COMMAND_BLOCK), ==, 0);
        }
    }
    wait_done(s);
    qtest_quit(s);
}

static void test_pio_error(void)
{
    pio_error(0, CMD_READ, true);
    pio_error(0, CMD_WRITE, true);
    pio_error(1, CMD_READ, false);
    pio_error(1, CMD_WRITE, false);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_device("ide-hd") || !qtest_has_machine("pc")) {
        g_test_skip("no IDE disk on machine pc");
        return g_test_run();
    }

    qtest_add_func("/ide-drain/stop", test_stop);
    qtest_add_func("/ide-drain/stop-completes", test_stop_completes);
    qtest_add_func("/ide-drain/resize", test_resize);
    qtest_add_func("/ide-drain/cancel", test_cancel);
    qtest_add_func("/ide-drain/reset", test_reset);
    qtest_add_func("/ide-drain/pio-error", test_pio_error);
    return g_test_run();
}

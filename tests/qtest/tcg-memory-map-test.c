/*
 * TCG: vCPUs access I/O while the memory map changes under them
 *
 * A test whose name ends in -stock runs the test before it with the binary
 * that QTEST_QEMU_STOCK_BINARY names, and shows how it fails there. It is
 * skipped where that is not set.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "hw/pci/pci_regs.h"
#include "qemu/units.h"
#include "qobject/qdict.h"

/*
 * The firmware. The first vCPU starts the others and halts. The second one
 * selects register 0x10 of the I/O APIC and asks again and again, with
 * pauses, which one is selected. The others do locked increments of a word in
 * the window of the VGA, which is I/O. Each counts, in RAM, what it did, and
 * the second one also the wrong answers.
 *
 *    start:  cli                         // 16 bit, cs base 0xffff0000,
 *            lgdtl %cs:(gdtr - start)    // or 0xf0000 for the others
 *            movl %cr0, %eax
 *            orb $1, %al
 *            movl %eax, %cr0
 *            movw $8, %bx
 *            movw %bx, %ds               // keeps its limit of 4 GiB
 *            andb $0xfe, %al
 *            movl %eax, %cr0
 *            movl $0xfee00000, %ebx
 *            movl 0x20(%ebx), %eax
 *            shrl $24, %eax              // the number of this vCPU
 *            leal COUNTERS(,%eax,8), %edi
 *            jz first
 *            decl %eax
 *            jz reader
 *            movl $0xa0000, %esi
 *    locker: lock incl (%esi)
 *            incl (%edi)
 *            jmp locker
 *    reader: movl $0xfec00000, %esi
 *            movb $0x10, (%esi)
 *    again:  movl $5000, %ecx
 *    delay:  decl %ecx
 *            jnz delay
 *            movl (%esi), %eax
 *            cmpl $0x10, %eax
 *            je right
 *            incl 4(%edi)
 *    right:  incl (%edi)
 *            jmp again
 *    first:  movl $0xc46f0, 0x300(%ebx)  // SIPI to all others, to 0xf0000
 *    idle:   hlt
 *            jmp idle
 *            .balign 8, 0
 *    gdt:    .quad 0, 0x00cf93000000ffff
 *    gdtr:   .word gdtr - gdt - 1
 *            .long 0xffff0000 + gdt - start
 */
static const uint8_t firmware[] = {
    0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x98, 0x00, 0x0f, 0x20, 0xc0, 0x0c,
    0x01, 0x0f, 0x22, 0xc0, 0xbb, 0x08, 0x00, 0x8e, 0xdb, 0x24, 0xfe, 0x0f,
    0x22, 0xc0, 0x66, 0xbb, 0x00, 0x00, 0xe0, 0xfe, 0x67, 0x66, 0x8b, 0x43,
    0x20, 0x66, 0xc1, 0xe8, 0x18, 0x67, 0x66, 0x8d, 0x3c, 0xc5, 0x00, 0x10,
    0x00, 0x00, 0x74, 0x3e, 0x66, 0x48, 0x74, 0x11, 0x66, 0xbe, 0x00, 0x00,
    0x0a, 0x00, 0x67, 0x66, 0xf0, 0xff, 0x06, 0x67, 0x66, 0xff, 0x07, 0xeb,
    0xf5, 0x66, 0xbe, 0x00, 0x00, 0xc0, 0xfe, 0x67, 0xc6, 0x06, 0x10, 0x66,
    0xb9, 0x88, 0x13, 0x00, 0x00, 0x66, 0x49, 0x75, 0xfc, 0x67, 0x66, 0x8b,
    0x06, 0x66, 0x83, 0xf8, 0x10, 0x74, 0x05, 0x67, 0x66, 0xff, 0x47, 0x04,
    0x67, 0x66, 0xff, 0x07, 0xeb, 0xe1, 0x67, 0x66, 0xc7, 0x83, 0x00, 0x03,
    0x00, 0x00, 0xf0, 0x46, 0x0c, 0x00, 0xf4, 0xeb, 0xfd, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00, 0x0f, 0x00, 0x88, 0x00,
    0xff, 0xff,
};

#define FIRMWARE_SIZE (64 * KiB)
#define RESET_VECTOR 0xfff0
/* jmp to the start of the segment */
static const uint8_t reset_vector[] = { 0xe9, 0x0d, 0x00 };

/* Two words of each vCPU: accesses, and those that went wrong */
#define COUNTERS 0x1000
#define READER 1
#define FIRST_LOCKER 2

#define VGA_DEVFN 0x10
#define VGA_FRAMEBUFFER 0xe0000000
#define VGA_REGISTERS 0xe2000000

#define SECONDS 3

static uint32_t accesses(QTestState *s, int cpu)
{
    return qtest_readl(s, COUNTERS + cpu * 8);
}

static uint32_t wrong_answers(QTestState *s)
{
    return qtest_readl(s, COUNTERS + READER * 8 + 4);
}

static void pci_select(QTestState *s, uint8_t reg)
{
    qtest_outl(s, 0xcf8, 1u << 31 | VGA_DEVFN << 8 | reg);
}

static QTestState *start(const char *variable, int cpus)
{
    g_autofree char *rom = g_malloc0(FIRMWARE_SIZE);
    g_autofree char *path = NULL;
    g_autofree char *args = NULL;
    QTestState *s;
    int cpu, fd;

    memcpy(rom, firmware, sizeof(firmware));
    memcpy(rom + RESET_VECTOR, reset_vector, sizeof(reset_vector));
    fd = g_file_open_tmp("tcg-memory-map-XXXXXX", &path, NULL);
    g_assert_cmpint(fd, >=, 0);
    close(fd);
    g_assert_true(g_file_set_contents(path, rom, FIRMWARE_SIZE, NULL));

    args = g_strdup_printf("-accel tcg,thread=multi -machine pc -smp %d "
                           "-nodefaults -vga std -bios %s", cpus, path);
    s = qtest_init_ext(variable, args, NULL, true);
    unlink(path);

    pci_select(s, PCI_BASE_ADDRESS_0);
    qtest_outl(s, 0xcfc, VGA_FRAMEBUFFER);
    pci_select(s, PCI_BASE_ADDRESS_2);
    qtest_outl(s, 0xcfc, VGA_REGISTERS);
    pci_select(s, PCI_COMMAND);
    for (cpu = READER; cpu < cpus; cpu++) {
        while (!accesses(s, cpu)) {
            g_usleep(1000);
        }
    }
    return s;
}

/*
 * The BARs of the VGA come and go, on the main thread: all that is above them
 * gets another number in the memory map, and the old map is freed.
 */
static void change_map(QTestState *s)
{
    qtest_outw(s, 0xcfc, PCI_COMMAND_MEMORY);
    qtest_outw(s, 0xcfc, 0);
}

/* A device that fails, as its slot is taken: QEMU waits for RCU then */
static void free_old_maps(QTestState *s)
{
    QDict *error = qtest_qmp_assert_failure_ref(s, "{ 'execute': 'device_add',"
        " 'arguments': { 'driver': 'pci-testdev', 'addr': '2.0' } }");

    qobject_unref(error);
}

static void test_read(void)
{
    g_autoptr(GTimer) timer = g_timer_new();
    QTestState *s = start(NULL, READER + 1);
    uint32_t before = accesses(s, READER);

    g_timer_start(timer);
    while (g_timer_elapsed(timer, NULL) < SECONDS) {
        change_map(s);
        g_assert_cmpuint(wrong_answers(s), ==, 0);
    }
    g_assert_cmpuint(accesses(s, READER), !=, before);
    qtest_quit(s);
}

/* A wrong answer, or QEMU finds no section there and dies */
static void test_read_stock(void)
{
    const char *variable = "QTEST_QEMU_STOCK_BINARY";
    g_autoptr(GTimer) timer = g_timer_new();
    QTestState *s;

    if (!getenv(variable)) {
        g_test_skip("QTEST_QEMU_STOCK_BINARY is not set");
        return;
    }
    if (!g_test_subprocess()) {
        g_test_trap_subprocess(NULL, 0, 0);
        g_test_trap_assert_failed();
        return;
    }
    s = start(variable, READER + 1);
    while (g_timer_elapsed(timer, NULL) < 60) {
        change_map(s);
        g_assert_cmpuint(wrong_answers(s), ==, 0);
    }
    qtest_quit(s);
}

/* A locked increment of I/O stops all vCPUs, and runs alone then */
static void test_locked(void)
{
    g_autoptr(GTimer) timer = g_timer_new();
    QTestState *s = start(NULL, FIRST_LOCKER + 2);
    uint32_t before = accesses(s, FIRST_LOCKER);

    g_timer_start(timer);
    while (g_timer_elapsed(timer, NULL) < SECONDS) {
        change_map(s);
        free_old_maps(s);
    }
    g_assert_cmpuint(wrong_answers(s), ==, 0);
    g_assert_cmpuint(accesses(s, FIRST_LOCKER), !=, before);
    qtest_quit(s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    if (!qtest_has_accel("tcg")) {
        g_test_skip("TCG is not available");
        return g_test_run();
    }

    /* What is freed is not to look as if it were still there */
    g_setenv("MALLOC_PERTURB_", "165", true);

    qtest_add_func("/tcg-memory-map/read", test_read);
    qtest_add_func("/tcg-memory-map/read-stock", test_read_stock);
    qtest_add_func("/tcg-memory-map/locked", test_locked);
    return g_test_run();
}

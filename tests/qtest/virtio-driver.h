/*
 * A driver of modern virtio-pci that does what a test tells it
 *
 * It writes rings and registers itself, as no correct driver would.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VIRTIO_DRIVER_H
#define VIRTIO_DRIVER_H

#include "libqtest.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ring.h"

#define RAM_SIZE (64 * 1024 * 1024)
#define PAGE 0x1000

/* Guest physical addresses */
#define RINGS 0x100000
#define RING_SIZE 0x10000
#define BUFFERS 0x800000
#define MSI 0x1000

#define PACKED (1ull << VIRTIO_F_RING_PACKED)
#define IN_ORDER (1ull << VIRTIO_F_IN_ORDER)
#define INDIRECT (1ull << VIRTIO_RING_F_INDIRECT_DESC)
#define EVENT_IDX (1ull << VIRTIO_RING_F_EVENT_IDX)
#define RING_RESET (1ull << VIRTIO_F_RING_RESET)

#define PACKED_AVAIL (1 << VRING_PACKED_DESC_F_AVAIL)

/* The status of a driver before DRIVER_OK */
#define DRIVER_READY (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | \
                      VIRTIO_CONFIG_S_FEATURES_OK)

/* Registers, for the functions below */
#define COMMON(field) offsetof(struct virtio_pci_common_cfg, field)

typedef struct Queue {
    uint64_t desc, avail, used;
    uint64_t kick;
    uint16_t size;
    uint16_t next;      /* avail index of a split ring */
} Queue;

typedef struct Dev {
    QTestState *s;
    QPCIBus *bus;
    QVirtioPCIDevice *pci;
    Queue q[4];
} Dev;

typedef struct Buffer {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
} Buffer;

/* The QEMU that was started last */
extern pid_t qemu_pid;

/* Of the common configuration */
void write8(Dev *d, uint64_t field, uint8_t value);
void write16(Dev *d, uint64_t field, uint16_t value);
void write32(Dev *d, uint64_t field, uint32_t value);
void write64(Dev *d, uint64_t field, uint64_t value);
uint16_t read16(Dev *d, uint64_t field);

uint8_t get_status(Dev *d);
uint64_t get_features(Dev *d);
void wait_status(Dev *d, uint8_t bit);

/* Up to FEATURES_OK, with VERSION_1 and what of @want is offered */
void start_driver(Dev *d, uint64_t want);

/* A split ring of @size; 0: as large as the device has it */
void setup_queue(Dev *d, int index, int size);

/* Queue @index interrupts by a write of 1 + @index to MSI + 4 * @index */
void setup_msix(Dev *d, int index);

void driver_ok(Dev *d);
void kick(Dev *d, int index);

/* IOThread io0, and node n, which is a disk of 1 MiB */
#define DEV_ARGS "-machine pc -m 64M -nodefaults -object iothread,id=io0 " \
                 "-blockdev null-co,node-name=n,size=1048576,read-zeroes=on "

/* QEMU with DEV_ARGS and @args; @binary is as in qtest_init_ext() */
Dev *dev_start(const char *binary, const char *args);

/* @devfn has the number of the bus in bits 8 and up */
void dev_find(Dev *d, int devfn);

/* Both; the device is in slot 4 */
Dev *dev_new(const char *binary, const char *args);

void dev_free_pci(Dev *d);
void dev_free(Dev *d);

/* QEMU answers, and has not been hurt */
void assert_alive(Dev *d);

/* A descriptor at @addr */
void write_desc(Dev *d, uint64_t addr, const Buffer *b, uint16_t next);

/* A chain of descriptors @head and up in @table */
void write_table(Dev *d, uint64_t table, int head, const Buffer *b, int n);

/* A chain of a split ring at descriptor @head, not yet available */
void write_chain(Dev *d, int index, int head, const Buffer *b, int n);
void make_available(Dev *d, int index, int head);

uint16_t used_idx(Dev *d, int index);
void wait_used(Dev *d, int index, uint16_t idx);

/* Descriptor @i of a packed ring */
void write_packed(Dev *d, int index, int i, uint64_t addr, uint32_t len,
                  uint16_t id, uint16_t flags);

#endif

/*
 * Drivers of virtio devices that are a string of bytes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VIRTIO_PROGRAM_H
#define VIRTIO_PROGRAM_H

#include "virtio-driver.h"

typedef struct VirtioTemplate VirtioTemplate;

/* A device that programs are run for */
typedef struct VirtioTarget {
    const char *name;
    const char *args;           /* the device has addr=4 */
    int queues;
    uint64_t features;          /* that are always wanted if they are offered */
    const VirtioTemplate *templates;    /* requests; up to one without a size */
} VirtioTarget;

/* Up to one without a name */
extern const VirtioTarget virtio_targets[];

/*
 * Runs the program @data of @size bytes, each string of which is one: it sets
 * features and queues up, puts requests into rings, sound ones and others, and
 * writes to registers, configuration, rings and buffers. What the device makes
 * of it does not matter as long as it lives. Some steps are left to @pause,
 * which gets a byte of the program: to let the device work.
 *
 * @d has been found, and may be in any state.
 */
void virtio_program_run(Dev *d, const VirtioTarget *target,
                        const uint8_t *data, size_t size,
                        void (*pause)(Dev *d, uint8_t how));

#endif

/*
 * Virtio GPU: a model of the device around the states of blob mappings
 *
 * A queue whose head may be suspended, a renderer that can be blocked by
 * others and can refuse to unmap, regions that are freed whenever somebody
 * else says so, and resets.  What must hold at any time is asserted after
 * each event.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VIRTIO_GPU_MAPPING_MODEL_H
#define VIRTIO_GPU_MAPPING_MODEL_H

#include "../../hw/display/virtio-gpu-mapping.h"

enum {
    MODEL_MAX_BLOBS = 4,
    MODEL_MAX_EVENTS = 64,
};

/* What happens to one blob... */
enum {
    EV_MAP,         /* the guest creates it where it is not there, and maps */
    EV_UNMAP,       /* the guest unmaps it */
    EV_UNREF,       /* the guest destroys it */
    EV_FREED,       /* nobody uses its region any more */
    EV_PER_BLOB,
};

/* ... and to the device */
enum {
    EV_RESET,
    EV_BLOCK,       /* the display blocks the renderer... */
    EV_UNBLOCK,     /* ... and no longer */
    EV_REFUSE,      /* the renderer will refuse the next unmap */
    EV_GLOBAL,
};

typedef struct ModelBlob {
    VirtIOGPUMappingState state;
    bool exists;
    bool in_renderer;   /* the renderer has it mapped */
    bool in_guest;      /* the region is visible to the guest */
    bool in_use;        /* the region is there, visible or not */
} ModelBlob;

typedef struct ModelCommand {
    uint8_t event;
    uint8_t blob;
    uint8_t answers;
} ModelCommand;

typedef struct Model {
    int blobs;
    ModelBlob blob[MODEL_MAX_BLOBS];
    ModelCommand queue[MODEL_MAX_EVENTS];
    int head, tail;
    int blocked;        /* renderer_blocked */
    int others;         /* who of these is the display */
    bool reset;         /* waits for the renderer */
    bool refuse;
} Model;

/* How many events there are: EV_PER_BLOB for each blob, then EV_GLOBAL */
int model_events(const Model *m);

/*
 * Let @event, below model_events(), happen; at most MODEL_MAX_EVENTS times.
 *
 * Returns: false where it cannot happen now, and did not
 */
bool model_happen(Model *m, int event);

/*
 * Everybody lets go of everything: then all must be answered, and the device
 * can be used.
 */
void model_come_to_rest(Model m);

#endif

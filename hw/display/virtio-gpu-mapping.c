/*
 * Virtio GPU: where a blob is on its way into the guest and out of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "virtio-gpu-mapping.h"

static const char *const names[] = {
    [VIRTIO_GPU_MAPPING_NONE] = "none",
    [VIRTIO_GPU_MAPPING_MAPPED] = "mapped",
    [VIRTIO_GPU_MAPPING_UNMAP_STARTED] = "unmap-started",
    [VIRTIO_GPU_MAPPING_UNMAP_COMPLETED] = "unmap-completed",
};

const char *virtio_gpu_mapping_state_str(VirtIOGPUMappingState state)
{
    return (unsigned)state < ARRAY_SIZE(names) ? names[state] : "invalid";
}

static void change(VirtIOGPUMappingState *state, VirtIOGPUMappingState from,
                   VirtIOGPUMappingState to)
{
    if (*state != from) {
        error_report("virtio-gpu: a blob mapping cannot become '%s' while "
                     "it is '%s'", virtio_gpu_mapping_state_str(to),
                     virtio_gpu_mapping_state_str(*state));
        abort();
    }
    *state = to;
}

bool virtio_gpu_mapping_may_map(VirtIOGPUMappingState state)
{
    return state == VIRTIO_GPU_MAPPING_NONE;
}

void virtio_gpu_mapping_mapped(VirtIOGPUMappingState *state)
{
    change(state, VIRTIO_GPU_MAPPING_NONE, VIRTIO_GPU_MAPPING_MAPPED);
}

VirtIOGPUUnmapStep virtio_gpu_mapping_unmap(VirtIOGPUMappingState *state)
{
    switch (*state) {
    case VIRTIO_GPU_MAPPING_NONE:
        return VIRTIO_GPU_UNMAP_NOTHING;
    case VIRTIO_GPU_MAPPING_MAPPED:
        change(state, VIRTIO_GPU_MAPPING_MAPPED,
               VIRTIO_GPU_MAPPING_UNMAP_STARTED);
        return VIRTIO_GPU_UNMAP_START;
    case VIRTIO_GPU_MAPPING_UNMAP_STARTED:
        return VIRTIO_GPU_UNMAP_WAIT;
    case VIRTIO_GPU_MAPPING_UNMAP_COMPLETED:
        return VIRTIO_GPU_UNMAP_FINISH;
    }
    abort();
}

void virtio_gpu_mapping_region_freed(VirtIOGPUMappingState *state)
{
    change(state, VIRTIO_GPU_MAPPING_UNMAP_STARTED,
           VIRTIO_GPU_MAPPING_UNMAP_COMPLETED);
}

void virtio_gpu_mapping_unmapped(VirtIOGPUMappingState *state)
{
    change(state, VIRTIO_GPU_MAPPING_UNMAP_COMPLETED,
           VIRTIO_GPU_MAPPING_NONE);
}

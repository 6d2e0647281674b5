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

static bool change(VirtIOGPUMappingState *state, VirtIOGPUMappingState from,
                   VirtIOGPUMappingState to)
{
    if (*state != from) {
        error_report("virtio-gpu: a blob mapping cannot become '%s' while "
                     "it is '%s'", virtio_gpu_mapping_state_str(to),
                     virtio_gpu_mapping_state_str(*state));
        return false;
    }
    *state = to;
    return true;
}

bool virtio_gpu_mapping_may_map(VirtIOGPUMappingState state)
{
    return state == VIRTIO_GPU_MAPPING_NONE;
}

bool virtio_gpu_mapping_mapped(VirtIOGPUMappingState *state)
{
    return change(state, VIRTIO_GPU_MAPPING_NONE, VIRTIO_GPU_MAPPING_MAPPED);
}

VirtIOGPUUnmapStep virtio_gpu_mapping_unmap(VirtIOGPUMappingState *state)
{
    switch (*state) {
    case VIRTIO_GPU_MAPPING_NONE:
        break;
    case VIRTIO_GPU_MAPPING_MAPPED:
        *state = VIRTIO_GPU_MAPPING_UNMAP_STARTED;
        return VIRTIO_GPU_UNMAP_START;
    case VIRTIO_GPU_MAPPING_UNMAP_STARTED:
        return VIRTIO_GPU_UNMAP_WAIT;
    case VIRTIO_GPU_MAPPING_UNMAP_COMPLETED:
        return VIRTIO_GPU_UNMAP_FINISH;
    }
    return VIRTIO_GPU_UNMAP_NOTHING;
}

bool virtio_gpu_mapping_region_freed(VirtIOGPUMappingState *state)
{
    return change(state, VIRTIO_GPU_MAPPING_UNMAP_STARTED,
                  VIRTIO_GPU_MAPPING_UNMAP_COMPLETED);
}

bool virtio_gpu_mapping_unmapped(VirtIOGPUMappingState *state)
{
    return change(state, VIRTIO_GPU_MAPPING_UNMAP_COMPLETED,
                  VIRTIO_GPU_MAPPING_NONE);
}

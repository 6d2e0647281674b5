/*
 * Virtio GPU: where a blob is on its way into the guest and out of it
 *
 * Taking a blob out of the guest is asynchronous: whoever uses the memory
 * region (RCU readers, devices that do DMA) has to let go of it before the
 * renderer may have its memory back. What a command or a reset may do
 * depends on how far that is:
 *
 *               map                 unmap
 *      (none) --------> mapped ----------------> unmap started
 *        ^                                             |
 *        |  the renderer has its memory                | region freed
 *        +-------------------------- unmap completed <-+
 *
 * This file only knows the order of things, it touches neither regions nor
 * the renderer. All functions are called with the BQL held; the states
 * belong to the caller. A transition that is not in the picture is reported
 * and not made, and the function returns false: then the device cannot be
 * trusted with blobs any more.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VIRTIO_GPU_MAPPING_H
#define VIRTIO_GPU_MAPPING_H

typedef enum VirtIOGPUMappingState {
    VIRTIO_GPU_MAPPING_NONE,
    VIRTIO_GPU_MAPPING_MAPPED,
    VIRTIO_GPU_MAPPING_UNMAP_STARTED,
    VIRTIO_GPU_MAPPING_UNMAP_COMPLETED,
} VirtIOGPUMappingState;

/* What is left to do for who wants a blob to be unmapped */
typedef enum VirtIOGPUUnmapStep {
    /* Nothing is mapped */
    VIRTIO_GPU_UNMAP_NOTHING,
    /* Block the renderer, take the region away, suspend */
    VIRTIO_GPU_UNMAP_START,
    /* The region is still in use: suspend */
    VIRTIO_GPU_UNMAP_WAIT,
    /* Give the memory back to the renderer */
    VIRTIO_GPU_UNMAP_FINISH,
} VirtIOGPUUnmapStep;

/* Returns: the name of @state, for traces and messages; never freed */
const char *virtio_gpu_mapping_state_str(VirtIOGPUMappingState state);

/* Returns: whether the blob may be mapped, that is, is not mapped at all */
bool virtio_gpu_mapping_may_map(VirtIOGPUMappingState state);

/* The blob's region is in place. Only where it may be mapped. */
bool virtio_gpu_mapping_mapped(VirtIOGPUMappingState *state);

/*
 * Unmap: to be asked by each command and reset that needs the blob unmapped,
 * and again when it is resumed. It says START exactly once per mapping: that
 * one starts the unmap, whoever comes later waits for the same region.
 *
 * Returns: what the caller is to do now
 */
VirtIOGPUUnmapStep virtio_gpu_mapping_unmap(VirtIOGPUMappingState *state);

/* Nobody uses the region any more. Once, after an unmap was started. */
bool virtio_gpu_mapping_region_freed(VirtIOGPUMappingState *state);

/*
 * The renderer has its memory back. Not to be called where it refused it:
 * then the next unmap has to ask it again.
 */
bool virtio_gpu_mapping_unmapped(VirtIOGPUMappingState *state);

#endif

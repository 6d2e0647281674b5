/*
 * What virtio-gpu-blob-test and the library that it preloads share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VIRTIO_GPU_BLOB_SHIM_H
#define VIRTIO_GPU_BLOB_SHIM_H

/* Names the file that holds it */
#define BLOB_SHIM_ENV "VIRTIO_GPU_BLOB_SHIM"

#define BLOB_SHIM_IDS 4096

/*
 * In a file that both processes map. The library counts, the test looks on;
 * ids from BLOB_SHIM_IDS on are counted, but not told apart.
 */
typedef struct BlobShim {
    /* Blobs that are mapped now, and which */
    int live;
    bool mapped[BLOB_SHIM_IDS];
    /* Successful calls so far */
    int maps;
    int unmaps;
    int resets;
    /* Mapped blobs whose memory was freed without an unmap */
    int lost;
    /* Calls of the renderer or of GL from a thread other than the main one */
    int other_thread;
    /* The test sets it: the next so many unmaps fail */
    int refuse;
    /* The test sets it: resources can be shown as a file, with this name */
    bool dmabuf;
} BlobShim;

#define BLOB_SHIM_DMABUF "blob-shim-dmabuf"

/* Of virglrenderer.h and SDL_video.h: neither has to be there */
int virgl_renderer_resource_map(uint32_t id, void **map, uint64_t *size);
int virgl_renderer_resource_unmap(uint32_t id);
void virgl_renderer_resource_unref(uint32_t id);
int virgl_renderer_resource_get_info(int id, void *info);
void virgl_renderer_reset(void);
void virgl_renderer_poll(void);
void virgl_renderer_force_ctx_0(void);
void virgl_renderer_fill_caps(uint32_t set, uint32_t version, void *caps);
int SDL_GL_MakeCurrent(void *window, void *context);

#endif

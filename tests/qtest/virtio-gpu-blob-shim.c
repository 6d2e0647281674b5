/*
 * Stands between QEMU and virglrenderer, for virtio-gpu-blob-test
 *
 * It is preloaded. It passes everything on, counts what is mapped and lets
 * an unmap fail when the test wants that.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include "virtio-gpu-blob-shim.h"

static BlobShim *shim(void)
{
    static BlobShim *there;
    static BlobShim nowhere;
    const char *path = getenv(BLOB_SHIM_ENV);
    int fd;

    if (there) {
        return there;
    }
    fd = path ? open(path, O_RDWR) : -1;
    if (fd >= 0) {
        void *map = mmap(NULL, sizeof(BlobShim), PROT_READ | PROT_WRITE,
                         MAP_SHARED, fd, 0);

        close(fd);
        if (map != MAP_FAILED) {
            there = map;
            return there;
        }
    }
    return &nowhere;
}

static void *next(const char *name)
{
    /* Device and display may be modules: only they see their libraries */
    static const char *const libs[] = {
        "libvirglrenderer.so.1", "libSDL2-2.0.so.0",
    };
    void *sym = dlsym(RTLD_NEXT, name);

    for (int i = 0; !sym && i < ARRAY_SIZE(libs); i++) {
        void *lib = dlopen(libs[i], RTLD_NOW | RTLD_NOLOAD);

        sym = lib ? dlsym(lib, name) : NULL;
    }
    if (!sym) {
        abort();
    }
    if (syscall(SYS_gettid) != getpid()) {
        shim()->other_thread++;
    }
    return sym;
}

#define NEXT(name) ((typeof(&name))next(#name))

int virgl_renderer_resource_map(uint32_t id, void **map, uint64_t *size)
{
    int ret = NEXT(virgl_renderer_resource_map)(id, map, size);

    if (!ret) {
        shim()->live++;
        shim()->maps++;
        if (id < BLOB_SHIM_IDS) {
            shim()->mapped[id] = true;
        }
    }
    return ret;
}

int virgl_renderer_resource_unmap(uint32_t id)
{
    int ret;

    if (shim()->refuse > 0) {
        shim()->refuse--;
        return -EIO;
    }
    ret = NEXT(virgl_renderer_resource_unmap)(id);
    if (!ret) {
        shim()->live--;
        shim()->unmaps++;
        if (id < BLOB_SHIM_IDS) {
            shim()->mapped[id] = false;
        }
    }
    return ret;
}

void virgl_renderer_resource_unref(uint32_t id)
{
    if (id < BLOB_SHIM_IDS && shim()->mapped[id]) {
        shim()->mapped[id] = false;
        shim()->live--;
        shim()->lost++;
    }
    NEXT(virgl_renderer_resource_unref)(id);
}

/* The beginning of what the renderer tells of a resource */
typedef struct ResourceInfo {
    uint32_t other[9];
    int fd;
} ResourceInfo;

int virgl_renderer_resource_get_info(int id, void *info)
{
    static int fd = -1;
    int ret = NEXT(virgl_renderer_resource_get_info)(id, info);

    if (!ret && shim()->dmabuf) {
        if (fd < 0) {
            fd = memfd_create(BLOB_SHIM_DMABUF, 0);
        }
        ((ResourceInfo *)info)->fd = fd;
    }
    return ret;
}

void virgl_renderer_reset(void)
{
    shim()->lost += shim()->live;
    shim()->live = 0;
    shim()->resets++;
    memset(shim()->mapped, 0, sizeof(shim()->mapped));
    NEXT(virgl_renderer_reset)();
}

void virgl_renderer_poll(void)
{
    NEXT(virgl_renderer_poll)();
}

void virgl_renderer_force_ctx_0(void)
{
    NEXT(virgl_renderer_force_ctx_0)();
}

void virgl_renderer_fill_caps(uint32_t set, uint32_t version, void *caps)
{
    NEXT(virgl_renderer_fill_caps)(set, version, caps);
}

int SDL_GL_MakeCurrent(void *window, void *context)
{
    return NEXT(SDL_GL_MakeCurrent)(window, context);
}

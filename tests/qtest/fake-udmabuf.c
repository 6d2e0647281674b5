/*
 * A /dev/udmabuf for QEMU under test, where there may be none
 *
 * It is preloaded. What it makes is memory of the right size, of its own.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/* Or the headers make one of open() and open64() */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct List {
    uint32_t flags;
    uint32_t count;
    struct {
        uint32_t memfd;
        uint32_t unused;
        uint64_t offset;
        uint64_t size;
    } item[];
} List;

static int device = -1;

static int do_open(const char *name, const char *path, int flags, mode_t mode)
{
    int (*next)(const char *path, int flags, ...);

    if (!strcmp(path, "/dev/udmabuf")) {
        device = memfd_create("fake-udmabuf", MFD_CLOEXEC);
        return device;
    }
    *(void **)&next = dlsym(RTLD_NEXT, name);
    return next(path, flags, mode);
}

static mode_t mode_of(int flags, va_list ap)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list ap;
    mode_t mode;

    va_start(ap, flags);
    mode = mode_of(flags, ap);
    va_end(ap);
    return do_open("open", path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list ap;
    mode_t mode;

    va_start(ap, flags);
    mode = mode_of(flags, ap);
    va_end(ap);
    return do_open("open64", path, flags, mode);
}

int ioctl(int fd, unsigned long request, ...)
{
    int (*next)(int fd, unsigned long request, ...);
    va_list ap;
    void *arg;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);
    if (fd >= 0 && fd == device) {
        List *list = arg;
        uint64_t size = 0;
        int buf = memfd_create("fake-dmabuf", MFD_CLOEXEC);

        for (uint32_t i = 0; i < list->count; i++) {
            size += list->item[i].size;
        }
        if (buf >= 0 && ftruncate(buf, size)) {
            close(buf);
            buf = -1;
        }
        return buf;
    }
    *(void **)&next = dlsym(RTLD_NEXT, "ioctl");
    return next(fd, request, arg);
}

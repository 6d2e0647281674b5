/*
 * A zoned block device for QEMU under test, where there is none
 *
 * It is preloaded. A file whose name ends in .zoned is the device then.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/* Or the headers make one of open() and open64() */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/blkzoned.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum {
    MAJOR = 240,                /* of those for local use */
    MINOR = 77,
    ZONES = 8,
    ZONE_SECTORS = 4096,
};

static const char sysfs[] = "/sys/dev/block/240:77/queue/";

static const struct {
    const char *name, *value;
} attributes[] = {
    { "zoned", "host-managed\n" },
    { "max_open_zones", "4\n" },
    { "max_active_zones", "4\n" },
    { "chunk_sectors", "4096\n" },
    { "nr_zones", "8\n" },
    { "zone_append_max_bytes", "65536\n" },
    { "physical_block_size", "4096\n" },
};

static int ends_in_zoned(const char *path, ssize_t len)
{
    return len > 6 && !memcmp(path + len - 6, ".zoned", 6);
}

static int is_zoned(int fd)
{
    char link[64], path[4096];
    ssize_t len;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof(path));
    return ends_in_zoned(path, len);
}

static int do_open(const char *name, const char *path, int flags, mode_t mode)
{
    int (*next)(const char *path, int flags, ...);

    for (int i = 0; i < sizeof(attributes) / sizeof(attributes[0]); i++) {
        if (!strncmp(path, sysfs, strlen(sysfs)) &&
            !strcmp(path + strlen(sysfs), attributes[i].name)) {
            const char *value = attributes[i].value;
            int fd = memfd_create("fake-zoned", MFD_CLOEXEC);

            if (pwrite(fd, value, strlen(value), 0) < 0) {
                return -1;
            }
            return fd;
        }
    }
    if (ends_in_zoned(path, strlen(path))) {
        /* The file system may not have it */
        flags &= ~O_DIRECT;
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

int fstat64(int fd, struct stat64 *st)
{
    int (*next)(int fd, struct stat64 *st);
    int ret;

    *(void **)&next = dlsym(RTLD_NEXT, "fstat64");
    ret = next(fd, st);
    if (!ret && is_zoned(fd)) {
        st->st_mode = S_IFBLK | 0600;
        st->st_rdev = makedev(MAJOR, MINOR);
    }
    return ret;
}

static int report_zones(struct blk_zone_report *report)
{
    int first = report->sector / ZONE_SECTORS, n = 0;

    for (; first + n < ZONES && n < report->nr_zones; n++) {
        report->zones[n] = (struct blk_zone) {
            .start = (first + n) * ZONE_SECTORS,
            .len = ZONE_SECTORS,
            .wp = (first + n) * ZONE_SECTORS,
            .type = BLK_ZONE_TYPE_SEQWRITE_REQ,
            .cond = BLK_ZONE_COND_EMPTY,
        };
    }
    report->nr_zones = n;
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    int (*next)(int fd, unsigned long request, ...);
    va_list ap;
    void *arg;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);
    if (is_zoned(fd)) {
        switch (request) {
        case BLKGETSIZE64:
            *(uint64_t *)arg = (uint64_t)ZONES * ZONE_SECTORS * 512;
            return 0;
        case BLKROGET:
            *(int *)arg = 0;
            return 0;
        case BLKSSZGET:
            *(int *)arg = 512;
            return 0;
        case BLKPBSZGET:
            *(int *)arg = 4096;
            return 0;
        case BLKREPORTZONE:
            return report_zones(arg);
        }
    }
    *(void **)&next = dlsym(RTLD_NEXT, "ioctl");
    return next(fd, request, arg);
}

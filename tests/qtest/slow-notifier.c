/*
 * Preloaded to QEMU: other threads than the main one take their time to set an
 * EventNotifier that was made while the file $SLOW_NOTIFIER existed, so that a
 * test can be there first
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FDS 1024

static bool slow[FDS];

int eventfd(unsigned int count, int flags)
{
    int fd = syscall(SYS_eventfd2, count, flags);
    const char *path = getenv("SLOW_NOTIFIER");

    if (fd >= 0 && fd < FDS) {
        slow[fd] = path && access(path, F_OK) == 0;
    }
    return fd;
}

ssize_t write(int fd, const void *buf, size_t count)
{
    if (count == sizeof(uint64_t) && fd >= 0 && fd < FDS && slow[fd] &&
        syscall(SYS_gettid) != getpid()) {
        usleep(300 * 1000);
    }
    return syscall(SYS_write, fd, buf, count);
}

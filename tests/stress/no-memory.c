/*
 * Memory that runs out where a program is ready for that
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * To be preloaded.  The file $STRESS_NO_MEMORY has two numbers of 32 bits:
 * how many of 1,000 allocations fail, and how many have failed.  Only such
 * fail as may: glib has g_try_malloc() and so on for that, and QEMU
 * qemu_try_memalign(), which is told from qemu_memalign() by who called:
 * $STRESS_MEMALIGN has start and size of both.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile uint32_t *shared;
static __thread int busy;

typedef struct {
    uintptr_t start, size;
} Range;

/* qemu_try_memalign() and qemu_memalign(), relative to the program */
static Range may_fail, may_not;
static uintptr_t base;

static int inside(void *p, const Range *range)
{
    return (uintptr_t)p - base - range->start < range->size;
}

static int first(struct dl_phdr_info *info, size_t size, void *opaque)
{
    base = info->dlpi_addr;
    return 1;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("STRESS_NO_MEMORY");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    const char *where = getenv("STRESS_MEMALIGN");
    void *frame[1];

    dl_iterate_phdr(first, NULL);
    backtrace(frame, 1); /* allocates the first time */
    if (where) {
        sscanf(where, "%lx %lx %lx %lx", &may_fail.start, &may_fail.size,
               &may_not.start, &may_not.size);
    }
    if (fd >= 0) {
        void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

        if (p != MAP_FAILED) {
            shared = p;
        }
        close(fd);
    }
}

static int fails(void)
{
    static uint32_t state;
    uint32_t x;

    if (!shared || !shared[0]) {
        return 0;
    }
    /* The n-th one has the same fate each time */
    x = __atomic_add_fetch(&state, 1, __ATOMIC_RELAXED) * 2654435761u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    if (x % 1000 >= shared[0]) {
        return 0;
    }
    __atomic_add_fetch(&shared[1], 1, __ATOMIC_RELAXED);
    return 1;
}

/* Whether who asks for aligned memory dies without it */
static int vital(void)
{
    void *frames[4];
    int n = backtrace(frames, 4);

    return n < 4 || !inside(frames[2], &may_fail) ||
        inside(frames[3], &may_not);
}

int posix_memalign(void **p, size_t alignment, size_t size)
{
    static int (*real)(void **, size_t, size_t);

    if (!real) {
        real = (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT,
                                                       "posix_memalign");
    }
    if (!busy && shared && shared[0]) {
        int fail;

        busy = 1;
        fail = !vital() && fails();
        busy = 0;
        if (fail) {
            return ENOMEM;
        }
    }
    return real(p, alignment, size);
}

#define TRY(name, parameters, arguments)                                \
    void *name parameters                                               \
    {                                                                   \
        static void *(*real) parameters;                                \
                                                                        \
        if (!real) {                                                    \
            real = (void *(*) parameters)dlsym(RTLD_NEXT, #name);       \
        }                                                               \
        return fails() ? NULL : real arguments;                         \
    }

TRY(g_try_malloc, (size_t size), (size))
TRY(g_try_malloc0, (size_t size), (size))
TRY(g_try_realloc, (void *p, size_t size), (p, size))
TRY(g_try_malloc_n, (size_t n, size_t size), (n, size))
TRY(g_try_malloc0_n, (size_t n, size_t size), (n, size))
TRY(g_try_realloc_n, (void *p, size_t n, size_t size), (p, n, size))

/*
 * Stand-in for QEMU's thread.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_THREAD_H
#define QEMU_THREAD_H

#include <pthread.h>

typedef struct QemuMutex {
    pthread_mutex_t lock;
} QemuMutex;

static inline void qemu_mutex_init(QemuMutex *mutex)
{
    pthread_mutex_init(&mutex->lock, NULL);
}

static inline void qemu_mutex_lock_impl(QemuMutex *mutex, const char *file,
                                        int line)
{
    pthread_mutex_lock(&mutex->lock);
}

static inline void qemu_mutex_unlock_impl(QemuMutex *mutex, const char *file,
                                          int line)
{
    pthread_mutex_unlock(&mutex->lock);
}

#endif

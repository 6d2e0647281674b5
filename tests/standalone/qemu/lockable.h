/*
 * Stand-in for QEMU's lockable.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_LOCKABLE_H
#define QEMU_LOCKABLE_H

#include <pthread.h>

typedef struct QemuMutex {
    pthread_mutex_t lock;
} QemuMutex;

static inline void qemu_mutex_init(QemuMutex *mutex)
{
    pthread_mutex_init(&mutex->lock, NULL);
}

static inline pthread_mutex_t *lock_for_scope(QemuMutex *mutex)
{
    pthread_mutex_lock(&mutex->lock);
    return &mutex->lock;
}

static inline void unlock_after_scope(pthread_mutex_t **lock)
{
    pthread_mutex_unlock(*lock);
}

#define SCOPED_LOCK(mutex, name) \
    pthread_mutex_t *name __attribute__((cleanup(unlock_after_scope))) = \
        lock_for_scope(mutex)

#define QEMU_LOCK_GUARD(mutex) SCOPED_LOCK(mutex, scope_lock)
#define WITH_QEMU_LOCK_GUARD(mutex) \
    for (bool once = true; once;) \
        for (SCOPED_LOCK(mutex, scope_lock); once; once = false)

#endif

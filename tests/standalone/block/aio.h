/*
 * Stand-in for QEMU's aio.h where the units are built without QEMU
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_AIO_H
#define QEMU_AIO_H

#include "qapi/error.h"

/* An event loop that nobody runs */
struct AioContext {
    int unused;
};

static inline AioContext *aio_context_new(Error **errp)
{
    return g_new0(AioContext, 1);
}

static inline void aio_context_unref(AioContext *ctx)
{
    g_free(ctx);
}

#endif

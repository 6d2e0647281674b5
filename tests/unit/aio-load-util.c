/*
 * What test-aio-load needs of headers that are not valid C++
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "aio-load-util.h"
#include "io/channel-file.h"
#include "util/aio-posix.h"

bool fdmon_is_poll(AioContext *ctx)
{
    return ctx->fdmon_ops == &fdmon_poll_ops;
}

void fdmon_forget_io_uring(AioContext *ctx)
{
#ifdef CONFIG_LINUX_IO_URING
    if (!fdmon_is_poll(ctx)) {
        fdmon_io_uring_destroy(ctx);
        fdmon_epoll_setup(ctx);
    }
#endif
}

void fdmon_set_polling(AioContext *ctx, int64_t ns)
{
    AioHandler *node;

    QLIST_FOREACH(node, &ctx->aio_handlers, node) {
        node->poll.ns = ns;
        if (node->io_poll && !QLIST_IS_INSERTED(node, node_poll)) {
            QLIST_INSERT_HEAD(&ctx->poll_aio_handlers, node, node_poll);
        }
    }
}

static gboolean read_byte(QIOChannel *ioc, GIOCondition condition,
                          gpointer opaque)
{
    char byte;

    g_assert_cmpint(qio_channel_read(ioc, &byte, 1, &error_abort), ==, 1);
    return G_SOURCE_CONTINUE;
}

guint watch_channel(int fd)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_channel_file_new_fd(fd));
    guint source = qio_channel_add_watch(ioc, G_IO_IN, read_byte, NULL, NULL);

    object_unref(OBJECT(ioc));
    return source;
}

/*
 * What test-aio-load needs of headers that are not valid C++
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef AIO_LOAD_UTIL_H
#define AIO_LOAD_UTIL_H

#include "block/aio.h"

/* Returns: whether @ctx waits with ppoll() */
bool fdmon_is_poll(AioContext *ctx);

/* Let @ctx, which does not run yet, wait with ppoll() or epoll */
void fdmon_forget_io_uring(AioContext *ctx);

/*
 * In the thread of @ctx: poll as long as the loop would come to when events
 * follow each other fast.
 */
void fdmon_set_polling(AioContext *ctx, int64_t ns);

/* Read what comes from @fd, which the source owns, as character devices do */
guint watch_channel(int fd);

#endif

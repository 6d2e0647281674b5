/*
 * What debug builds check of an AioContext
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_AIO_CHECK_H
#define BLOCK_AIO_CHECK_H

/**
 * aio_context_is_unused:
 * @ctx: the aio context
 *
 * Find out whether nobody but @ctx itself has handlers there.  Bottom halves
 * are not looked at: those that are left abort when @ctx goes.  Nor are timers:
 * a coroutine that has been told to end takes its timer away when it runs.
 *
 * Context: any thread, while no other gives @ctx work.
 */
bool aio_context_is_unused(AioContext *ctx);

#endif /* BLOCK_AIO_CHECK_H */

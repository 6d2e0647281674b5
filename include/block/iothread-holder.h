/*
 * Block nodes and block exports as holders of IOThreads
 *
 * Context of all functions: the main thread.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_IOTHREAD_HOLDER_H
#define BLOCK_IOTHREAD_HOLDER_H

#include "block/export.h"
#include "system/iothread-holder.h"

/**
 * bdrv_follow_aio_context:
 * @bs: a node
 * @ctx: where its requests run from now on; NULL for nowhere
 *
 * Hold the IOThread of @ctx, if it is one, for @bs, and give back the one that
 * @bs held.  Tools that have no IOThreads use a stub.
 */
void bdrv_follow_aio_context(BlockDriverState *bs, AioContext *ctx);

/**
 * blk_exp_new_iothread_holder:
 *
 * Returns: a holder for the export that is to be made from @options, owned by
 * the caller.
 */
IOThreadHolderState *
blk_exp_new_iothread_holder(const BlockExportOptions *options);

/**
 * blk_exp_start_following:
 * @exp: an export that runs
 * @holder: its holder, which @exp now owns
 *
 * From now on @holder holds the IOThread in which @exp really runs, if it is
 * one, also when its node moves elsewhere and takes the export with it.
 */
void blk_exp_start_following(BlockExport *exp, IOThreadHolderState *holder);

/**
 * blk_exp_stop_following:
 * @exp: an export of which nothing runs any more
 *
 * Give back the IOThread, and free the holder.
 */
void blk_exp_stop_following(BlockExport *exp);

#endif /* BLOCK_IOTHREAD_HOLDER_H */

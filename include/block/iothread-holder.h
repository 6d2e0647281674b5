/*
 * Block nodes, block exports and jobs as holders of IOThreads
 *
 * Context of all functions: the main thread, or one that holds the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_IOTHREAD_HOLDER_H
#define BLOCK_IOTHREAD_HOLDER_H

#include "block/export.h"
#include "qemu/job.h"
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
 * bdrv_choose_aio_context:
 * @bs: a node that the user has moved
 * @ctx: where to
 *
 * While @bs is in @ctx, it stays there though nothing uses it.
 */
void bdrv_choose_aio_context(BlockDriverState *bs, AioContext *ctx);

/**
 * bdrv_forget_aio_context:
 * @ctx: the AioContext of an IOThread that may go
 *
 * Forget for which nodes @ctx was chosen, but for those that are there.
 */
void bdrv_forget_aio_context(AioContext *ctx);

/**
 * bdrv_may_go_home:
 * @bs: a node that has moved, or that a user may just have left
 *
 * If @bs is in an IOThread, have bdrv_send_home() called for all IOThreads
 * when what runs now has returned to the main loop.  Tools that have no
 * IOThreads use a stub.
 */
void bdrv_may_go_home(BlockDriverState *bs);

/**
 * bdrv_send_home:
 * @ctx: the AioContext of an IOThread; NULL for those of all
 *
 * Move nodes that nothing needs in @ctx to the main loop: a command that moved
 * them there may have failed, or what used them may have gone.  Needed are
 * nodes with a device, an export or a job, those with requests in flight,
 * those that the user put there, and all that are connected with one of these.
 *
 * It waits for no requests, as it leaves nodes alone that have any.
 *
 * Context: not in a coroutine, and not where the graph
 * is locked.
 */
void bdrv_send_home(AioContext *ctx);

/**
 * job_follow_aio_context:
 * @job: a job that was made, or has moved
 *
 * Hold the IOThread in which @job runs, if it is one, and give back the one
 * that it held.  Tools that have no IOThreads use a stub.
 *
 * Context: the lock of the jobs may be held.
 */
void job_follow_aio_context(Job *job);

/**
 * job_stop_following:
 * @job: a job of which nothing runs any more
 *
 * Give back the IOThread that @job holds, if any, unless @job still has block
 * nodes: these cannot leave the IOThread before it.
 *
 * Context: the lock of the jobs may be held.
 */
void job_stop_following(Job *job);

/**
 * blk_exp_new_iothread_holder:
 *
 * Returns: a holder for the export that is to be made from @options, owned by
 * the caller.
 */
IOThreadHolderState *
blk_exp_new_iothread_holder(const BlockExportOptions *options);

/**
 * blk_exp_update_holders:
 * @holders: what iothread_query_holders() has returned
 *
 * Tell the nodes that exports export now.
 */
void blk_exp_update_holders(IOThreadHolderList *holders);

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

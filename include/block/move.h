/*
 * Moving the nodes of a device to another AioContext, while it is in use
 *
 * bdrv_try_change_aio_context() drains all nodes there are.  What is here
 * drains no others than those that move.
 *
 * Context of all functions: the main thread, or one that holds the BQL.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_MOVE_H
#define BLOCK_MOVE_H

#include "block/graph-lock.h"
#include "system/block-backend.h"

/**
 * bdrv_try_change_aio_contexts_locked:
 * @bs: the nodes
 * @num_bs: their number
 * @ctx: where to
 * @visited: a set.  Edges that are in it are not followed; those that are
 *     followed are added.
 * @dry_run: only find out whether it can be done, and fill @visited
 * @errp: says who does not move along
 *
 * Move @bs, and all nodes and parents that can only move with them, to @ctx:
 * all of them, or none.  Unless it is a dry run, they are drained.
 *
 * Returns: 0 on success, -EPERM on failure
 */
int GRAPH_RDLOCK
bdrv_try_change_aio_contexts_locked(BlockDriverState **bs, size_t num_bs,
                                    AioContext *ctx, GHashTable *visited,
                                    bool dry_run, Error **errp);

/**
 * blk_has_queued_requests:
 *
 * Returns: whether @blk has requests that wait for the end of a drained
 * section.  They go on in the AioContext in which they came.
 */
bool blk_has_queued_requests(BlockBackend *blk);

/**
 * blk_has_requests_in_flight:
 *
 * Returns: whether @blk has requests that have not ended.  Those that wait for
 * the end of a drained section do not count.
 */
bool blk_has_requests_in_flight(BlockBackend *blk);

/**
 * blk_set_user:
 * @user: what messages call the user of @blk, where it is no device; copied
 */
void blk_set_user(BlockBackend *blk, const char *user);

typedef struct BlkMove BlkMove;

/**
 * blk_move_new:
 * @ctx: where the nodes are to move; NULL for nowhere
 *
 * Returns: a move of no BlockBackends so far; free it with blk_move_free().
 */
BlkMove *blk_move_new(AioContext *ctx);

/**
 * blk_move_add:
 * @blk: one of the device's; the move takes a reference
 *
 * To be called before all that follows.
 */
void blk_move_add(BlkMove *move, BlockBackend *blk);

/**
 * blk_move_check:
 *
 * Returns: whether everything that would have to move can do so.  Otherwise
 * false, and @errp says who does not.
 */
bool GRAPH_UNLOCKED blk_move_check(BlkMove *move, Error **errp);

/**
 * blk_move_begin:
 * @finish_steps: the device sends no requests any more, and those that consist
 *     of several steps come to their end.  Otherwise requests are held, as in
 *     other drained sections, also those in the middle.
 *
 * Begin drained sections of the nodes that move, and of no others, until
 * blk_move_end().  Does not wait: requests may be in flight.  At most once for
 * each move.
 */
void GRAPH_UNLOCKED blk_move_begin(BlkMove *move, bool finish_steps);

/**
 * blk_move_is_busy:
 *
 * Returns: whether requests are in flight for what is drained.  It does not
 * look for nodes that have come since.
 */
bool GRAPH_UNLOCKED blk_move_is_busy(BlkMove *move);

/**
 * blk_move_wait:
 * @ns: how long to wait, in nanoseconds
 *
 * Wait until no requests are in flight.  Nodes that have come are drained too.
 * It runs the event loop, and whatever is due in it, as drained sections do.
 *
 * Returns: true if no requests are in flight, and false if some still are or
 * somebody has called blk_move_end() meanwhile.
 */
bool GRAPH_UNLOCKED blk_move_wait(BlkMove *move, int64_t ns);

/**
 * blk_move_is_same:
 *
 * Returns: whether @a and @b move the same BlockBackends to the same place.
 */
bool blk_move_is_same(const BlkMove *a, const BlkMove *b);

/**
 * blk_move_commit:
 *
 * Move all BlockBackends with their nodes, or none.  blk_move_wait() has
 * returned true, and nothing has run since.  It fails where the drained
 * section of somebody else holds back requests, as these would go on where
 * they came from.
 *
 * Returns: true on success.  Otherwise false, and sets @errp.
 */
bool GRAPH_UNLOCKED blk_move_commit(BlkMove *move, Error **errp);

/**
 * blk_move_end:
 *
 * End the drained sections, if they have begun.  Does not wait, and may be
 * called wherever drained sections may end, such as while others wait.
 */
void GRAPH_UNLOCKED blk_move_end(BlkMove *move);

/**
 * blk_move_free:
 *
 * Implies blk_move_end().  @move may be NULL.
 */
void GRAPH_UNLOCKED blk_move_free(BlkMove *move);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(BlkMove, blk_move_free)

#endif /* BLOCK_MOVE_H */

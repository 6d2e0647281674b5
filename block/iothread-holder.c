/*
 * Block nodes and block exports as holders of IOThreads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/iothread-holder.h"
#include "qapi/qapi-types-block-export.h"
#include "qapi/qapi-types-iothread.h"
#include "system/block-backend.h"

void bdrv_follow_aio_context(BlockDriverState *bs, AioContext *ctx)
{
    IOThreadHolderState *holder = NULL;

    GLOBAL_STATE_CODE();

    if (iothread_is_ctx(ctx)) {
        holder = iothread_holder_new_block_node(bdrv_get_node_name(bs));
        iothread_holder_follow(holder, ctx);
    }
    iothread_holder_drop(bs->iothread_holder);
    bs->iothread_holder = holder;
}

static void update_node_name(IOThreadHolder *holder)
{
    BlockExport *exp = blk_exp_find(holder->u.block_export.id);
    BlockDriverState *bs = exp ? blk_bs(exp->blk) : NULL;

    if (bs) {
        g_free(holder->u.block_export.node_name);
        holder->u.block_export.node_name = g_strdup(bdrv_get_node_name(bs));
    }
}

IOThreadHolderState *
blk_exp_new_iothread_holder(const BlockExportOptions *options)
{
    return iothread_holder_new_block_export(options->id, options->node_name,
                                            update_node_name);
}

static void attached_aio_context(AioContext *ctx, void *opaque)
{
    BlockExport *exp = opaque;

    iothread_holder_follow(exp->iothread_holder, ctx);
}

static void detach_aio_context(void *opaque)
{
    BlockExport *exp = opaque;

    iothread_holder_follow(exp->iothread_holder, NULL);
}

void blk_exp_start_following(BlockExport *exp, IOThreadHolderState *holder)
{
    exp->iothread_holder = holder;
    iothread_holder_follow(holder, blk_get_aio_context(exp->blk));
    blk_add_aio_context_notifier(exp->blk, attached_aio_context,
                                 detach_aio_context, exp);
}

void blk_exp_stop_following(BlockExport *exp)
{
    blk_remove_aio_context_notifier(exp->blk, attached_aio_context,
                                    detach_aio_context, exp);
    iothread_holder_drop(exp->iothread_holder);
}

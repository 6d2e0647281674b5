/*
 * Block nodes, block exports and jobs as holders of IOThreads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int.h"
#include "block/blockjob_int.h"
#include "block/iothread-holder.h"
#include "qemu/main-loop.h"
#include "qapi/qapi-types-block-export.h"
#include "qapi/qapi-types-iothread.h"
#include "system/block-backend.h"

/* What the user put into an IOThread: BlockDriverState to its AioContext */
static GHashTable *chosen;

/* Job to its IOThreadHolderState, for jobs that run in an IOThread */
static GHashTable *job_holders;

static bool home_scheduled;

static void __attribute__((__constructor__)) init_tables(void)
{
    chosen = g_hash_table_new(NULL, NULL);
    job_holders = g_hash_table_new_full(
        NULL, NULL, NULL, (GDestroyNotify)iothread_holder_drop);
}

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
    if (!ctx) {
        g_hash_table_remove(chosen, bs);
    }
    bdrv_may_go_home(bs);
}

void bdrv_choose_aio_context(BlockDriverState *bs, AioContext *ctx)
{
    GLOBAL_STATE_CODE();

    if (iothread_is_ctx(ctx)) {
        g_hash_table_insert(chosen, bs, ctx);
    } else {
        g_hash_table_remove(chosen, bs);
    }
}

/* A BlockBackend that has a name but no user, such as -drive without device */
static bool is_unused_backend(BdrvChild *c)
{
    const char *name = c->klass->get_name ? c->klass->get_name(c) : "";
    BlockBackend *blk = *name ? blk_by_name(name) : NULL;

    return blk && !blk_get_attached_dev(blk);
}

/* Whether something needs @bs, itself and not its neighbours, where it is */
static bool GRAPH_RDLOCK is_needed(BlockDriverState *bs)
{
    BdrvChild *c;

    if (g_hash_table_lookup(chosen, bs) == bs->aio_context ||
        qatomic_read(&bs->in_flight) > 0) {
        return true;
    }
    QLIST_FOREACH(c, &bs->parents, next_parent) {
        if (!c->klass->parent_is_bds && !is_unused_backend(c)) {
            return true;
        }
    }
    return false;
}

/* A job without nodes of its own, such as x-blockdev-amend */
static bool has_plain_job(AioContext *ctx)
{
    JOB_LOCK_GUARD();

    for (Job *job = job_next_locked(NULL); job; job = job_next_locked(job)) {
        if (job->aio_context == ctx && job->driver->free != block_job_free &&
            !job_is_completed_locked(job)) {
            return true;
        }
    }
    return false;
}

/*
 * Append @bs and all the nodes that can only move together with it to @group,
 * and add them to @seen.  Returns whether any of them is needed where it is.
 */
static bool GRAPH_RDLOCK find_group(BlockDriverState *bs, GHashTable *seen,
                                    GPtrArray *group)
{
    bool needed = has_plain_job(bs->aio_context);

    g_hash_table_add(seen, bs);
    g_ptr_array_add(group, bs);
    for (guint i = 0; i < group->len; i++) {
        BlockDriverState *member = g_ptr_array_index(group, i);
        BdrvChild *c;

        needed |= is_needed(member);
        QLIST_FOREACH(c, &member->parents, next_parent) {
            if (c->klass->parent_is_bds && g_hash_table_add(seen, c->opaque)) {
                g_ptr_array_add(group, c->opaque);
            }
        }
        QLIST_FOREACH(c, &member->children, next) {
            if (g_hash_table_add(seen, c->bs)) {
                g_ptr_array_add(group, c->bs);
            }
        }
    }
    return needed;
}

static bool GRAPH_RDLOCK is_group_drained(const GPtrArray *group)
{
    for (guint i = 0; i < group->len; i++) {
        BlockDriverState *bs = g_ptr_array_index(group, i);

        if (!bs->quiesce_counter) {
            return false;
        }
    }
    return true;
}

/* Move a group of nodes that nobody needs where they are */
static void move_home(GPtrArray *group)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    g_autoptr(GPtrArray) again = g_ptr_array_new();

    /* of these alone: requests of others may take long */
    for (guint i = 0; i < group->len; i++) {
        bdrv_drained_begin(g_ptr_array_index(group, i));
    }

    /* a drain may run something that changes the graph */
    bdrv_graph_rdlock_main_loop();
    if (!find_group(g_ptr_array_index(group, 0), seen, again) &&
        is_group_drained(again)) {
        bdrv_try_change_aio_context_locked(g_ptr_array_index(group, 0),
                                           qemu_get_aio_context(), NULL, NULL);
    }
    bdrv_graph_rdunlock_main_loop();

    for (guint i = 0; i < group->len; i++) {
        bdrv_drained_end(g_ptr_array_index(group, i));
    }
}

static void free_group(gpointer opaque)
{
    GPtrArray *group = opaque;

    for (guint i = 0; i < group->len; i++) {
        bdrv_unref(g_ptr_array_index(group, i));
    }
    g_ptr_array_unref(group);
}

/* Of the nodes in IOThreads, or in @ctx alone, those that nobody needs there */
static GPtrArray * GRAPH_RDLOCK find_unneeded(AioContext *ctx)
{
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    GPtrArray *groups = g_ptr_array_new_with_free_func(free_group);
    BlockDriverState *bs = NULL;

    while ((bs = bdrv_next_all_states(bs))) {
        if (bs->iothread_holder && (!ctx || bs->aio_context == ctx) &&
            !g_hash_table_contains(seen, bs)) {
            GPtrArray *group = g_ptr_array_new();

            if (find_group(bs, seen, group)) {
                g_ptr_array_unref(group);
            } else {
                /* Moving another group may take nodes away */
                for (guint i = 0; i < group->len; i++) {
                    bdrv_ref(g_ptr_array_index(group, i));
                }
                g_ptr_array_add(groups, group);
            }
        }
    }
    return groups;
}

/* Whether the coroutine of a paused job is leaving the thread it was in */
static bool is_job_on_its_way(void)
{
    JOB_LOCK_GUARD();

    for (Job *job = job_next_locked(NULL); job; job = job_next_locked(job)) {
        if (job->busy && job->paused && job->pause_count > 0) {
            return true;
        }
    }
    return false;
}

void bdrv_send_home(AioContext *ctx)
{
    g_autoptr(GPtrArray) groups = NULL;

    GLOBAL_STATE_CODE();

    if (ctx) {
        /* It takes two turns of an event loop */
        AIO_WAIT_WHILE_UNLOCKED(NULL, is_job_on_its_way());
    }

    bdrv_graph_rdlock_main_loop();
    groups = find_unneeded(ctx);
    bdrv_graph_rdunlock_main_loop();

    for (guint i = 0; i < groups->len; i++) {
        move_home(g_ptr_array_index(groups, i));
    }
}

static void send_home_bh(void *opaque)
{
    home_scheduled = false;
    bdrv_send_home(NULL);
}

void bdrv_may_go_home(BlockDriverState *bs)
{
    GLOBAL_STATE_CODE();

    /*
     * What polls in the middle of a command or of a job's end does not run
     * the bottom halves of this context, so these find a graph that is whole.
     */
    if (bs->iothread_holder && !home_scheduled) {
        home_scheduled = true;
        aio_bh_schedule_oneshot(iohandler_get_aio_context(), send_home_bh,
                                NULL);
    }
}

static gboolean is_elsewhere(gpointer bs, gpointer ctx, gpointer opaque)
{
    return ctx == opaque && bdrv_get_aio_context(bs) != ctx;
}

void bdrv_forget_aio_context(AioContext *ctx)
{
    GLOBAL_STATE_CODE();

    g_hash_table_foreach_remove(chosen, is_elsewhere, ctx);
}

void job_follow_aio_context(Job *job)
{
    IOThreadHolderState *holder = g_hash_table_lookup(job_holders, job);

    GLOBAL_STATE_CODE();

    if (!iothread_is_ctx(job->aio_context)) {
        g_hash_table_remove(job_holders, job);
    } else if (job->id) {
        if (!holder) {
            holder = iothread_holder_new_job(job->id);
            g_hash_table_insert(job_holders, job, holder);
        }
        iothread_holder_follow(holder, job->aio_context);
    }
}

void job_stop_following(Job *job)
{
    GLOBAL_STATE_CODE();

    if (job->driver->free != block_job_free ||
        !container_of(job, BlockJob, job)->nodes) {
        g_hash_table_remove(job_holders, job);
    }
}

IOThreadHolderState *
blk_exp_new_iothread_holder(const BlockExportOptions *options)
{
    return iothread_holder_new_block_export(options->id, options->node_name);
}

void blk_exp_update_holders(IOThreadHolderList *holders)
{
    for (; holders; holders = holders->next) {
        IOThreadHolderBlockExport *told = &holders->value->u.block_export;

        if (holders->value->type == IO_THREAD_HOLDER_TYPE_BLOCK_EXPORT) {
            BlockExport *exp = blk_exp_find(told->id);
            BlockDriverState *bs = exp ? blk_bs(exp->blk) : NULL;

            if (bs) {
                g_free(told->node_name);
                told->node_name = g_strdup(bdrv_get_node_name(bs));
            }
        }
    }
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

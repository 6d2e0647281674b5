/*
 * Moving the nodes of a device to another AioContext, while it is in use
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "block/block_int.h"
#include "block/move.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"

struct BlkMove {
    AioContext *ctx;
    GPtrArray *blks;
    /* of @blks, those whose requests are not held in the drained section */
    GPtrArray *unqueued;
    /* nodes, with a reference to each */
    GPtrArray *drained;
    /* between blk_move_begin() and blk_move_end() */
    bool begun;
};

static void unref_node(gpointer bs)
{
    bdrv_unref(bs);
}

BlkMove *blk_move_new(AioContext *ctx)
{
    BlkMove *move = g_new(BlkMove, 1);

    GLOBAL_STATE_CODE();

    *move = (BlkMove) {
        .ctx = ctx,
        .blks = g_ptr_array_new_with_free_func((GDestroyNotify)blk_unref),
        .unqueued = g_ptr_array_new(),
        .drained = g_ptr_array_new_with_free_func(unref_node),
    };
    return move;
}

void blk_move_add(BlkMove *move, BlockBackend *blk)
{
    GLOBAL_STATE_CODE();

    blk_ref(blk);
    g_ptr_array_add(move->blks, blk);
}

/* The nodes that the BlockBackends have now */
static GPtrArray *get_roots(BlkMove *move)
{
    GPtrArray *roots = g_ptr_array_new();

    for (guint i = 0; i < move->blks->len; i++) {
        BlockDriverState *bs = blk_bs(g_ptr_array_index(move->blks, i));

        if (bs) {
            g_ptr_array_add(roots, bs);
        }
    }
    return roots;
}

static bool GRAPH_RDLOCK
try_change(BlkMove *move, GHashTable *visited, bool dry_run, Error **errp)
{
    g_autoptr(GPtrArray) roots = get_roots(move);
    int ret;

    for (guint i = 0; i < move->blks->len; i++) {
        blk_set_allow_aio_context_change(g_ptr_array_index(move->blks, i),
                                         true);
    }
    ret = bdrv_try_change_aio_contexts_locked(
        (BlockDriverState **)roots->pdata, roots->len, move->ctx, visited,
        dry_run, errp);
    for (guint i = 0; i < move->blks->len; i++) {
        blk_set_allow_aio_context_change(g_ptr_array_index(move->blks, i),
                                         false);
    }
    return ret == 0;
}

bool blk_move_check(BlkMove *move, Error **errp)
{
    g_autoptr(GHashTable) visited = g_hash_table_new(NULL, NULL);
    bool ret;

    GLOBAL_STATE_CODE();

    if (!move->ctx) {
        return true;
    }
    bdrv_graph_rdlock_main_loop();
    ret = try_change(move, visited, true, errp);
    bdrv_graph_rdunlock_main_loop();
    return ret;
}

static void add_node(GPtrArray *nodes, const GPtrArray *not_these,
                     BlockDriverState *bs)
{
    if (!g_ptr_array_find((GPtrArray *)not_these, bs, NULL) &&
        !g_ptr_array_find(nodes, bs, NULL)) {
        bdrv_ref(bs);
        g_ptr_array_add(nodes, bs);
    }
}

/* What moves and is not drained yet, with a reference to each */
static GPtrArray *find_undrained(BlkMove *move)
{
    g_autoptr(GHashTable) visited = g_hash_table_new(NULL, NULL);
    g_autoptr(GPtrArray) roots = get_roots(move);
    GPtrArray *nodes = g_ptr_array_new_with_free_func(unref_node);

    for (guint i = 0; i < roots->len; i++) {
        add_node(nodes, move->drained, g_ptr_array_index(roots, i));
    }
    if (move->ctx) {
        GHashTableIter iter;
        BdrvChild *c;

        bdrv_graph_rdlock_main_loop();
        try_change(move, visited, true, NULL);
        g_hash_table_iter_init(&iter, visited);
        while (g_hash_table_iter_next(&iter, (gpointer *)&c, NULL)) {
            add_node(nodes, move->drained, c->bs);
            if (c->klass->parent_is_bds) {
                add_node(nodes, move->drained, c->opaque);
            }
        }
        bdrv_graph_rdunlock_main_loop();
    }
    return nodes;
}

/* Begin the drained sections of nodes that lack them.  Are there any? */
static bool quiesce_what_moves(BlkMove *move)
{
    g_autoptr(GPtrArray) nodes = find_undrained(move);

    for (guint i = 0; i < nodes->len; i++) {
        BlockDriverState *bs = g_ptr_array_index(nodes, i);

        bdrv_ref(bs);
        g_ptr_array_add(move->drained, bs);
        bdrv_do_drained_begin_quiesce(bs, NULL);
    }
    return nodes->len > 0;
}

void blk_move_begin(BlkMove *move, bool finish_steps)
{
    GLOBAL_STATE_CODE();

    assert(!move->begun);
    move->begun = true;
    for (guint i = 0; finish_steps && i < move->blks->len; i++) {
        BlockBackend *blk = g_ptr_array_index(move->blks, i);

        /*
         * In the drained section of somebody else the requests stay where
         * they are.  Otherwise they end: the next step of a request that was
         * held would run in the AioContext that the device is to leave.
         */
        if (!blk_in_drain(blk)) {
            blk_set_disable_request_queuing(blk, true);
            g_ptr_array_add(move->unqueued, blk);
        }
    }
    quiesce_what_moves(move);
}

bool blk_move_is_busy(BlkMove *move)
{
    GLOBAL_STATE_CODE();
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (!move->begun) {
        return false;
    }
    for (guint i = 0; i < move->drained->len; i++) {
        if (bdrv_drain_poll(g_ptr_array_index(move->drained, i), NULL, false)) {
            return true;
        }
    }
    for (guint i = 0; i < move->blks->len; i++) {
        /* Those without a medium too */
        if (blk_has_requests_in_flight(g_ptr_array_index(move->blks, i))) {
            return true;
        }
    }
    return false;
}

static void end_wait(void *opaque)
{
    /* The wait looks at the clock */
}

bool blk_move_wait(BlkMove *move, int64_t ns)
{
    int64_t end = qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + ns;
    QEMUTimer timer;

    GLOBAL_STATE_CODE();

    aio_timer_init(qemu_get_aio_context(), &timer, QEMU_CLOCK_REALTIME,
                   SCALE_NS, end_wait, NULL);
    if (ns) {
        timer_mod(&timer, end);
    }
    /* A wait may let something run that changes the graph: until none does */
    do {
        AIO_WAIT_WHILE_UNLOCKED(
            NULL, blk_move_is_busy(move) &&
                  qemu_clock_get_ns(QEMU_CLOCK_REALTIME) < end);
    } while (!blk_move_is_busy(move) && move->begun &&
             quiesce_what_moves(move));
    timer_del(&timer);
    return move->begun && !blk_move_is_busy(move);
}

bool blk_move_commit(BlkMove *move, Error **errp)
{
    g_autoptr(GHashTable) visited = g_hash_table_new(NULL, NULL);
    bool ret;

    GLOBAL_STATE_CODE();

    for (guint i = 0; i < move->blks->len; i++) {
        if (blk_has_queued_requests(g_ptr_array_index(move->blks, i))) {
            error_setg(errp, "Requests are held back by a drained section, as "
                       "of a job that is ending");
            return false;
        }
    }
    if (!move->ctx) {
        return true;
    }
    bdrv_graph_rdlock_main_loop();
    ret = try_change(move, visited, false, errp);
    bdrv_graph_rdunlock_main_loop();

    for (guint i = 0; ret && i < move->blks->len; i++) {
        BlockBackend *blk = g_ptr_array_index(move->blks, i);

        if (!blk_bs(blk)) {
            blk_set_aio_context(blk, move->ctx, &error_abort);
        }
    }
    return ret;
}

bool blk_move_is_same(const BlkMove *a, const BlkMove *b)
{
    if (a->ctx != b->ctx || a->blks->len != b->blks->len) {
        return false;
    }
    for (guint i = 0; i < a->blks->len; i++) {
        if (g_ptr_array_index(a->blks, i) != g_ptr_array_index(b->blks, i)) {
            return false;
        }
    }
    return true;
}

void blk_move_end(BlkMove *move)
{
    GLOBAL_STATE_CODE();

    if (!move->begun) {
        return;
    }
    move->begun = false;
    for (guint i = 0; i < move->unqueued->len; i++) {
        blk_set_disable_request_queuing(g_ptr_array_index(move->unqueued, i),
                                        false);
    }
    for (guint i = 0; i < move->drained->len; i++) {
        bdrv_drained_end(g_ptr_array_index(move->drained, i));
    }
}

void blk_move_free(BlkMove *move)
{
    GLOBAL_STATE_CODE();

    if (!move) {
        return;
    }
    blk_move_end(move);
    g_ptr_array_unref(move->drained);
    g_ptr_array_unref(move->unqueued);
    g_ptr_array_unref(move->blks);
    g_free(move);
}

/*
 * A limit to how long storage may delay the end of the process
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "block/block_int.h"
#include "block/exit-limit.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"

/* How long storage may take once the process was told twice to end */
#define LIMIT_MS 8000

/*
 * What comes sooner after the first is one way of saying it: some send SIGTERM
 * and SIGHUP together.
 */
#define AGAIN_MS 1000

static QEMUBH *again_bh;
static QEMUTimer *limit_timer;

/* Only the main thread gets signals, so it does not need to be atomic */
static volatile int64_t told_ms; /* when the end was asked for; 0 if never */

static bool busy(BlockDriverState *bs)
{
    return qatomic_read(&bs->in_flight) > 0;
}

/* Is it @bs that others wait for, or does it wait for one of its children? */
static bool is_last_busy(BlockDriverState *bs)
{
    BdrvChild *child;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    QLIST_FOREACH(child, &bs->children, next) {
        if (busy(child->bs)) {
            return false;
        }
    }
    return busy(bs);
}

static void give_up(void *opaque)
{
    BlockDriverState *bs = NULL;

    while ((bs = bdrv_next_all_states(bs))) {
        if (is_last_busy(bs)) {
            error_report("Block node '%s' (%s) does not answer: what was "
                         "written to it may be lost",
                         bdrv_get_node_name(bs), bdrv_get_format_name(bs));
        }
    }
    error_report("Terminated before everything was closed");

    /* Exit handlers may wait for the same */
    _exit(EXIT_FAILURE);
}

static void told_again(void *opaque)
{
    if (!timer_pending(limit_timer)) {
        error_report("Told to terminate again: not waiting for storage for "
                     "longer than %d seconds", LIMIT_MS / 1000);
        timer_mod(limit_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + LIMIT_MS);
    }
}

void bdrv_exit_limit_init(void)
{
    /* Both run in every poll in which the main thread waits for storage */
    limit_timer = aio_timer_new(qemu_get_aio_context(), QEMU_CLOCK_REALTIME,
                                SCALE_MS, give_up, NULL);
    again_bh = qemu_bh_new(told_again, NULL);
}

void bdrv_exit_begins(void)
{
    if (!told_ms) {
        told_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    }
}

void bdrv_exit_signal(void)
{
    if (!told_ms) {
        bdrv_exit_begins();
    } else if (again_bh && qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - told_ms >=
                           AGAIN_MS) {
        qemu_bh_schedule(again_bh);
    }
}

/*
 * The end of the QMP dispatcher
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "monitor-internal.h"
#include "qemu/main-loop.h"

/*
 * It ends in three steps:
 *
 * monitor_qmp_stop() is for when all is still there.  No command begins from
 * then on, and the one that was begun is executed, unless it is a coroutine
 * that has to wait.
 *
 * monitor_qmp_finish() waits for that one.  It comes when the guest, exports
 * and migration have been stopped, which must not go on for as long as a
 * command waits, and before the block devices are closed.
 *
 * monitor_qmp_end() lets the dispatcher send its answer.  Nothing may follow
 * the answer to quit, so that the events of what is torn down come before it.
 *
 * The waits are ordinary turns of the main loop.  The dispatcher is a coroutine
 * that only the main thread runs: in iohandler_ctx or, for a coroutine command,
 * in qemu_aio_context.  Other threads wake it for a new request, but do so
 * under monitor_lock, and never once qmp_dispatcher_co_shutdown is set.  What
 * it waits for from then on is something that the main loop serves: either
 * context, a timer or a file descriptor.
 */
static bool parked; /* the dispatcher has an answer; main thread only */

void coroutine_fn monitor_qmp_park(void)
{
    if (qmp_dispatcher_co_shutdown) {
        parked = true;
        qemu_coroutine_yield();
        parked = false;
    }
}

/* Is a command being executed, or about to be? */
static bool executing(void)
{
    return qmp_dispatcher_co && !parked;
}

void monitor_qmp_stop(void)
{
    GLOBAL_STATE_CODE();

    qmp_dispatcher_co_stop();
    while (executing() && !monitor_cur_of(qmp_dispatcher_co)) {
        main_loop_wait(false);
    }
}

void monitor_qmp_finish(void)
{
    monitor_qmp_stop();

    while (executing()) {
        /* Requests that are being drained do not wait for a throttle */
        bdrv_drain_all();
        main_loop_wait(false);
    }
}

void monitor_qmp_end(void)
{
    monitor_qmp_finish();

    if (parked) {
        /* It does not yield any more: no request is left to be taken */
        qemu_coroutine_enter(qmp_dispatcher_co);
    }
    assert(!qmp_dispatcher_co);
}

/*
 * The end of the QMP dispatcher
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio-wait.h"
#include "monitor-internal.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"

/*
 * It ends in two steps.  monitor_qmp_stop() is for when all is still there: the
 * command that was begun is executed, and no other one from then on.  Its
 * answer waits for monitor_qmp_end(), as it always came last: clients know
 * that nothing follows the answer to quit.
 *
 * Why the waits of both end
 *
 * The dispatcher is a coroutine that only the main thread runs, either in
 * iohandler_ctx or, while it executes a coroutine command, in
 * qemu_aio_context.  Only the main thread sleeps, and only in the blocking
 * poll of qemu_aio_context, which does not see what happens in
 * iohandler_ctx.
 *
 * The main thread, in this order:
 * M1. sets qmp_dispatcher_co_shutdown, from when on the dispatcher takes no
 *     request out of a queue
 * M2. wakes the dispatcher, as for a new request, so that it looks at the
 *     flag if it was idle
 * M3. raises global_aio_wait.num_waiters
 * M4. polls iohandler_ctx once without blocking; if the dispatcher has
 *     ended or is parked, the wait is over
 * M5. polls qemu_aio_context, and sleeps there if nothing is ready; goes on
 *     with M4
 *
 * Until it has ended, the dispatcher always is in one of these states:
 * D1. It has a bottom half in iohandler_ctx: it was woken, or its command
 *     (which is not a coroutine) is to be run or has just been run.  Whoever
 *     scheduled the bottom half calls aio_wait_kick() after that.  Either
 *     this happens before M3, then the next M4 runs the bottom half.  Or it
 *     sees the waiter and puts a bottom half into qemu_aio_context, then M5
 *     does not sleep, and the next M4 runs the bottom half.
 * D2. It waits for somebody who has set qmp_dispatcher_co_busy, and is about
 *     to schedule it and to kick.  Then it is in D1.  The thread in question
 *     (the monitors' IOThread) waits for nothing on its way there.
 * D3. It executes a coroutine command.  That makes progress in M5, as after
 *     M5 always comes M4, no kick is needed for the way back to
 *     iohandler_ctx: then it is in D1.
 * D4. It is idle, with qmp_dispatcher_co_busy false.  This can not be after
 *     M2, which made it D1 or found it in D1 or D2, and the next thing that
 *     it does after each of D1 to D3 is to see the flag and to end.
 * D5. It is parked with an answer.  Then monitor_qmp_stop() is over, and
 *     monitor_qmp_end() has made it D1 before it waits.
 *
 * One pass of M4 is one step of the dispatcher.  It is not repeated until
 * nothing is ready in iohandler_ctx: a descriptor there may always be.
 *
 * Before it ends the dispatcher sets qmp_dispatcher_co_busy for good, so that
 * nobody wakes it any more, and waits for whoever was faster: a coroutine
 * that has ended is never woken, whatever the other threads do.
 *
 * tests/unit/test-qmp-shutdown-model.c tries all interleavings of this.
 */
static bool parked; /* the dispatcher has an answer; main thread only */

/* Wait until the dispatcher has ended or, if that will do, is parked */
static void wait_for_dispatcher(bool parked_will_do)
{
    AIO_WAIT_WHILE_UNLOCKED(NULL,
                   (aio_poll(iohandler_get_aio_context(), false),
                    qatomic_read(&qmp_dispatcher_co) &&
                    !(parked && parked_will_do)));
}

void coroutine_fn monitor_qmp_park(void)
{
    /* Nobody else wakes us: qmp_dispatcher_co_busy is true */
    if (qmp_dispatcher_co_shutdown) {
        parked = true;
        qemu_coroutine_yield();
        parked = false;
    }
}

void monitor_qmp_stop(void)
{
    GLOBAL_STATE_CODE();

    if (!qatomic_read(&qmp_dispatcher_co) || parked) {
        return;
    }

    WITH_QEMU_LOCK_GUARD(&monitor_lock) {
        qmp_dispatcher_co_shutdown = true;
    }
    qmp_dispatcher_co_wake();
    wait_for_dispatcher(true);
}

void monitor_qmp_end(void)
{
    monitor_qmp_stop();

    if (parked) {
        aio_co_wake(qmp_dispatcher_co);
        wait_for_dispatcher(false);
    }
}

/*
 * Who holds which IOThread
 *
 * A holder is a user of IOThreads.  A hold is one holder using one IOThread,
 * from get to put.  A holder may hold several IOThreads, an IOThread may have
 * several holders, and a holder may hold the same IOThread more than once; it
 * then puts it as often.
 *
 * A user of an IOThread makes a holder with one of the functions here, takes
 * the IOThread with iothread_get_aio_context(), gives it back with
 * iothread_put_aio_context(), and frees the holder with iothread_holder_drop(),
 * which gives back what it still holds.  Who the holder is gets recorded when
 * it is made, and is not looked up again.
 *
 * Context of all functions, unless they say otherwise: the thread that holds
 * the BQL, which need not be the main thread: vCPUs unplug devices, and RCU's
 * thread frees them.  In programs without the BQL it is the main thread.
 *
 * What is recorded has one lock, which orders all and is held for a few
 * instructions, except by the functions that walk a list.  A call that breaks
 * the contract below is a programming error: it prints who broke it and aborts.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_IOTHREAD_HOLDER_H
#define SYSTEM_IOTHREAD_HOLDER_H

typedef struct IOThread IOThread;
/* A holder: who it is, and what it holds now */
typedef struct IOThreadHolderState IOThreadHolderState;
typedef struct IOThreadHolder IOThreadHolder;           /* a QAPI type */
typedef struct IOThreadHolderList IOThreadHolderList;   /* a QAPI type */

/**
 * iothread_holder_new_qom_object:
 * @obj: the object, which must have a place in the QOM tree
 * @device: the ID that the user gave to the device; NULL where there is none
 *
 * Devices use qdev_new_iothread_holder(), which finds out @device.
 *
 * Returns: a holder, owned by the caller.
 */
IOThreadHolderState *iothread_holder_new_qom_object(Object *obj,
                                                    const char *device);

/**
 * iothread_holder_new_block_export:
 * @id: the export's ID
 * @node_name: the node that it exports; as jobs may change that, who asks for
 *     the holders looks it up again, see blk_exp_update_holders()
 *
 * Returns: a holder, owned by the caller.
 */
IOThreadHolderState *iothread_holder_new_block_export(const char *id,
                                                      const char *node_name);

/**
 * iothread_holder_new_block_node:
 *
 * Returns: a holder, owned by the caller.
 */
IOThreadHolderState *iothread_holder_new_block_node(const char *node_name);

/**
 * iothread_holder_new_job:
 *
 * Returns: a holder, owned by the caller.
 */
IOThreadHolderState *iothread_holder_new_job(const char *id);

/**
 * iothread_holder_new_monitor:
 * @id: the ID of the monitor's character device
 *
 * Returns: a holder, owned by the caller.
 */
IOThreadHolderState *iothread_holder_new_monitor(const char *id);

/**
 * iothread_check_running:
 * @iothread: an IOThread that a property links to
 *
 * An IOThread that nothing holds can be deleted, and its thread then ends,
 * though a device that is not realized links to it.  Realize asks before it
 * takes the IOThread.
 *
 * Returns: true if @iothread can be taken.  Otherwise false, and sets @errp.
 */
bool iothread_check_running(IOThread *iothread, Error **errp);

/**
 * iothread_get_aio_context:
 * @iothread: the IOThread to use
 * @holder: who is going to use it
 *
 * Take @iothread for @holder, until iothread_put_aio_context().  The IOThread
 * stays alive and cannot be deleted by the user meanwhile, and the monitor
 * tells who holds it.  It must be running.
 *
 * Where something of the IOThread is used otherwise, it is on top of a hold:
 * iothread_get_g_main_context() asks for one, and jobs and nodes follow what
 * holds.  The fields of IOThread are not for its users.
 *
 * A holder may hold several IOThreads, and one IOThread more than once.
 * Reading the AioContext again takes no second hold: remember it.
 *
 * Returns: the AioContext, which belongs to @iothread.
 */
AioContext *iothread_get_aio_context(IOThread *iothread,
                                     IOThreadHolderState *holder);

/**
 * iothread_get_aio_context_vqs:
 * @vqs: the virtqueues that run in @iothread; copied
 * @num_vqs: their number, which may be 0
 *
 * The same as iothread_get_aio_context() for a device that assigns its
 * virtqueues to IOThreads.
 */
AioContext *iothread_get_aio_context_vqs(IOThread *iothread,
                                         IOThreadHolderState *holder,
                                         const uint16_t *vqs, size_t num_vqs);

/**
 * iothread_put_aio_context:
 * @iothread: the IOThread that was taken
 * @holder: the holder that took it
 *
 * Give back the latest hold of @holder on @iothread.  Nothing of the holder
 * may run in the IOThread any more.  A put without its get aborts, and names
 * the holder.  So does, with --enable-debug-mutex, the last put of an IOThread
 * in which handlers are left.
 */
void iothread_put_aio_context(IOThread *iothread, IOThreadHolderState *holder);

/**
 * iothread_holder_drop:
 * @holder: a holder, or NULL
 *
 * Give back every IOThread that @holder holds, and free @holder.  It works
 * from what was recorded when they were taken: the IOThreads' names may be
 * gone by now, or name other IOThreads.
 */
void iothread_holder_drop(IOThreadHolderState *holder);

/**
 * iothread_holder_follow:
 * @holder: one that holds at most one IOThread
 * @ctx: where the holder runs from now on; NULL for nowhere
 *
 * Hold the IOThread that runs @ctx instead of the one that @holder holds now;
 * none where @ctx is not that of an IOThread.  For users that do not choose
 * where they run but are moved there.
 */
void iothread_holder_follow(IOThreadHolderState *holder, AioContext *ctx);

/**
 * iothread_is_ctx:
 *
 * Context: any thread.
 * Returns: whether an IOThread runs @ctx, which may be NULL.
 */
bool iothread_is_ctx(AioContext *ctx);

/**
 * iothread_is_held:
 *
 * Context: any thread.
 * Returns: whether @iothread has a holder.
 */
bool iothread_is_held(const IOThread *iothread);

/**
 * iothread_is_held_by:
 *
 * Context: any thread.
 * Returns: whether @holder holds @iothread.
 */
bool iothread_is_held_by(const IOThread *iothread,
                         const IOThreadHolderState *holder);

/**
 * iothread_query_holders:
 *
 * Context: any thread.
 * Returns: the holds in the order in which they were taken, owned by the
 * caller; NULL, which is an empty list, when there are none.
 */
IOThreadHolderList *iothread_query_holders(const IOThread *iothread);

/**
 * iothread_describe_holders:
 * @max: how many holders to name at most
 *
 * Context: any thread.
 * Returns: the names of the holders, each once, in the order in which they
 * took their first hold, but nodes after all others and those without a name
 * of the user's as a number, as in "a, b, 3 more and 2 implicit block nodes";
 * an empty string when there are none.  The caller frees it with g_free().
 */
char *iothread_describe_holders(const IOThread *iothread, size_t max);

/**
 * iothread_started:
 *
 * For iothread.c: @iothread has its AioContext now.
 */
void iothread_started(IOThread *iothread);

/**
 * iothread_stopped:
 *
 * For iothread.c: the AioContext of @iothread is about to go.  It need not
 * have one.
 *
 * Context: any thread that drops the last reference.
 */
void iothread_stopped(IOThread *iothread);

#endif /* SYSTEM_IOTHREAD_HOLDER_H */

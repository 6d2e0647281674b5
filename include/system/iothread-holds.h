/*
 * Who holds which IOThread: the registry of holds
 *
 * A holder is a user of IOThreads.  A hold is one holder using one IOThread,
 * from get to put.  A holder may hold several IOThreads, an IOThread may have
 * several holders, and a holder may hold the same IOThread more than once; it
 * then puts it as often.
 *
 * This is the C ABI of iothread.cc.  It knows no QOM, AIO or block types.
 * Devices, exports and so on do not call iothread_holds_*(): they take and
 * give back a hold with iothread_get_aio_context() and
 * iothread_put_aio_context(), see "system/iothread.h".
 *
 * Threads: every function here may be called from any thread; one lock, inside
 * the registry, orders all of them.  It is held for a few instructions, except
 * by the functions that walk a list.
 *
 * Failure: a call that breaks the contract below is a programming error.  It
 * prints who broke it and aborts.  So does a failing allocation.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef SYSTEM_IOTHREAD_HOLDS_H
#define SYSTEM_IOTHREAD_HOLDS_H

#ifdef __cplusplus
#define IOTHREAD_HOLDS_NOEXCEPT noexcept
extern "C" {
#else
#define IOTHREAD_HOLDS_NOEXCEPT
#endif

/* A holder: who it is, and what it holds now. */
typedef struct IOThreadHolderState IOThreadHolderState;

/* The holds on one IOThread, in the order in which they were taken. */
typedef struct IOThreadHolds IOThreadHolds;

/**
 * iothread_holder_new:
 * @name: what messages call the holder; copied
 * @info: what the caller knows of the holder; opaque here
 * @free_info: called with @info by iothread_holder_free(); may be NULL
 *
 * Returns: a holder that holds nothing.  The caller owns it, and it owns
 * @info.  Free it with iothread_holder_free().
 */
IOThreadHolderState *iothread_holder_new(const char *name, void *info,
                                         void (*free_info)(void *info))
    IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holder_free:
 * @holder: a holder, or NULL
 *
 * It must have put all that it got.
 */
void iothread_holder_free(IOThreadHolderState *holder)
    IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holder_name:
 *
 * Returns: the name given to iothread_holder_new().  The holder owns it.
 */
const char *iothread_holder_name(const IOThreadHolderState *holder)
    IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holder_set_minor:
 * @holder: a holder that holds nothing yet
 * @sum: what messages call one of its kind, of which they tell only the
 *     number; NULL for a holder that is named.  Not copied
 *
 * Say that @holder is there because of others: iothread_holds_describe() names
 * it after them.
 */
void iothread_holder_set_minor(IOThreadHolderState *holder, const char *sum)
    IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holder_any:
 *
 * Returns: the @owner (see iothread_holds_new()) of any one of the lists in
 * which @holder has a hold, NULL when it has none.  It is the way to put
 * everything that a holder got without remembering what that was.
 */
void *iothread_holder_any(const IOThreadHolderState *holder)
    IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holder_holds:
 *
 * Returns: whether @holder has a hold in @holds.
 */
bool iothread_holder_holds(const IOThreadHolderState *holder,
                           const IOThreadHolds *holds) IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holds_new:
 * @owner: the IOThread; opaque here
 *
 * Returns: an empty list.  The caller owns it.
 */
IOThreadHolds *iothread_holds_new(void *owner) IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holds_free:
 * @holds: a list, or NULL
 *
 * The list must be empty.
 */
void iothread_holds_free(IOThreadHolds *holds) IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holds_get:
 * @holds: the list of the IOThread that is taken
 * @holder: who takes it; stays valid until the matching iothread_holds_put()
 * @vqs: the virtqueues that are to run in the IOThread; copied
 * @num_vqs: their number
 * @has_vqs: false when the holder has no virtqueues to tell of
 *
 * Record one hold, at the end of the list.  Takes constant time whatever the
 * number of holds.
 */
void iothread_holds_get(IOThreadHolds *holds, IOThreadHolderState *holder,
                        bool has_vqs, const uint16_t *vqs, size_t num_vqs)
    IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holds_put:
 * @holds: the list that was given to iothread_holds_get()
 * @holder: the holder that was given to iothread_holds_get()
 *
 * Forget the latest hold of @holder in @holds; there must be one.  Takes
 * constant time whatever the number of holds.
 */
void iothread_holds_put(IOThreadHolds *holds, IOThreadHolderState *holder)
    IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holds_count:
 *
 * Returns: the number of holds in the list.
 */
size_t iothread_holds_count(const IOThreadHolds *holds)
    IOTHREAD_HOLDS_NOEXCEPT;

/**
 * IOThreadHoldFunc:
 * @info: as given to iothread_holder_new()
 *
 * The other arguments are those of the iothread_holds_get() that took the
 * hold, except for @opaque.  All are valid for the length of the call only.
 * The function must not call back into the registry.
 */
typedef void IOThreadHoldFunc(const void *info, bool has_vqs,
                              const uint16_t *vqs, size_t num_vqs,
                              void *opaque);

/**
 * iothread_holds_foreach:
 *
 * Call @func for every hold in the order in which they were taken.
 */
void iothread_holds_foreach(const IOThreadHolds *holds, IOThreadHoldFunc *func,
                            void *opaque) IOTHREAD_HOLDS_NOEXCEPT;

/**
 * iothread_holds_describe:
 * @max: how many holders to name at most
 *
 * Returns: the names of the holders, each once, in the order in which they
 * took their first hold, but minor ones after all others, as in "a, b, 3 more
 * and 2 implicit nodes"; an empty string when there are none.  The caller
 * frees it with g_free().
 */
char *iothread_holds_describe(const IOThreadHolds *holds, size_t max)
    IOTHREAD_HOLDS_NOEXCEPT;

#ifdef __cplusplus
}
#endif

#endif /* SYSTEM_IOTHREAD_HOLDS_H */

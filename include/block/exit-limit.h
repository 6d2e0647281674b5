/*
 * A limit to how long storage may delay the end of the process
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_EXIT_LIMIT_H
#define BLOCK_EXIT_LIMIT_H

/**
 * bdrv_exit_limit_init:
 * Let bdrv_exit_signal() have an effect.  Main thread only, once, when the
 * main loop is there.
 */
void bdrv_exit_limit_init(void);

/**
 * bdrv_exit_begins:
 * The process is about to end for another reason than a signal: the next
 * signal is the second time that it is told to.  Main thread only.
 */
void bdrv_exit_begins(void);

/**
 * bdrv_exit_signal:
 * A signal tells the process to end.  If that is not the first time, and at
 * least a second after it, it ends within eight seconds even if storage does
 * not answer: it reports the nodes that do not, and exits with EXIT_FAILURE
 * without closing anything.
 *
 * The main thread must get as far as polling its AioContext, as it does
 * wherever it waits for requests.  Callable from a signal handler.
 */
void bdrv_exit_signal(void);

#endif /* BLOCK_EXIT_LIMIT_H */

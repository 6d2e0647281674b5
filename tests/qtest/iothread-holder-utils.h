/*
 * What tests of the holders of IOThreads share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IOTHREAD_HOLDER_UTILS_H
#define IOTHREAD_HOLDER_UTILS_H

#include "libqtest.h"
#include "qobject/qdict.h"

/* Names a QEMU without holders, to show what it does; may be unset */
#define STOCK_BINARY "QTEST_QEMU_STOCK_BINARY"

#define MACHINE "-machine pc -nodefaults "
#define TWO_IOTHREADS "-object iothread,id=io0 -object iothread,id=io1 "

/* blockdev-add of a null-co node */
void add_node(QTestState *s, const char *name);

void object_add(QTestState *s, const char *id);
void object_del(QTestState *s, const char *id);
void assert_object_del_fails(QTestState *s, const char *id, const char *error);

/* @rsp, which is freed, is an error whose text contains @text */
void assert_error(QDict *rsp, const char *text);

/* Nobody runs in the guest: a reset completes the pending unplug */
void complete_unplug(QTestState *s, const char *id);
void unplug(QTestState *s, const char *id);

/* The holders of @iothread in @rsp; NULL when there is no such IOThread */
QList *find_holders(QDict *rsp, const char *iothread);

/*
 * The holders of @iothread as words, in their order; NULL when there is no
 * such IOThread.  The words are "DEVICE:VQS" or "PATH", "export/ID/NODE",
 * "node/NAME", "job/ID" and "monitor/ID".
 */
char *query_holders(QTestState *s, const char *iothread);

/* What query_holders() returns for the IOThreads io0 and io1 */
void assert_holders(QTestState *s, const char *io0, const char *io1);

/* Is @iothread in the list of query-iothreads? */
bool has_iothread(QTestState *s, const char *iothread);

/* Where Linux shows the thread of @iothread, as long as it runs */
char *task_of(QTestState *s, const char *iothread);

/* A QEMU without holders; NULL, and the test is skipped, when none is named */
QTestState *start_stock(const char *args);

/*
 * Returns true in a subprocess that is to take a QEMU without holders to its
 * death.  In the test itself, runs that subprocess, checks that it writes
 * @message to stderr and fails, and returns false.
 */
bool dies_with_stock(const char *message);

#endif /* IOTHREAD_HOLDER_UTILS_H */

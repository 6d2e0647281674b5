/*
 * What fake-xen.c and a test that preloads it agree upon
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef FAKE_XEN_H
#define FAKE_XEN_H

/*
 * Environment: a stream socket.  The test writes lines, one at a time, and
 * reads one line of answer to each:
 *
 *   write PATH VALUE    ok
 *   read PATH           the value; empty when there is no such node
 *   kick PORT           ok, or none when nobody has bound the port
 *   thread PORT         the thread ID of who handled the last event; 0 for
 *                       nobody
 */
#define FAKE_XEN_CONTROL "FAKE_XEN_CONTROL"

/* Environment: the guest's memory, with as many pages as can be granted */
#define FAKE_XEN_MEMORY "FAKE_XEN_MEMORY"
#define FAKE_XEN_PAGES 4

#endif /* FAKE_XEN_H */

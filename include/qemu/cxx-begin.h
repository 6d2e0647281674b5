/*
 * QEMU's C headers in C++: the way in
 *
 * A C++ file includes this header instead of "qemu/osdep.h", then the C headers
 * that it needs, then "qemu/cxx-end.h", and after that what is C++:
 *
 *     #include "qemu/cxx-begin.h"
 *     #include "block/aio.h"
 *     #include "qom/object.h"
 *     #include "qemu/cxx-end.h"
 *
 * In between everything is extern "C".  So a header that C and C++ share is a
 * plain C header, without a word about C++.  Members whose names are keywords
 * of C++ get an underscore at their end: object->class_.
 *
 * What to know of C headers in C++:
 * - g_new(), g_autoptr(), QEMU_LOCK_GUARD(), WITH_QEMU_LOCK_GUARD(), QAPI's
 *   lists and QAPI_CLONE() work.  ARRAY_SIZE() and others that need tricks with
 *   C's types do not.
 * - An empty struct has a size in C++.  tests/unit/test-cxx-layout.c compares
 *   the types that C++ code looks into; add yours.
 * - Nothing may need the C++ run-time library: no containers, no "throw", no
 *   global new and delete.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/* No include guard: there may be several such blocks */

/* These contain C++, and must not be read as C: QEMU's headers include them */
#include <new>
#include <atomic>
#include <type_traits>
#include "qemu/osdep.h"
#include <glib-object.h>
#ifdef CONFIG_LINUX_IO_URING
#include <liburing.h>
#endif

/* What C has, and C++ spells otherwise */
#define _Static_assert static_assert
#define typeof_strip_qual(expr) std::remove_cvref_t<decltype(expr)>

#define class class_
#define delete delete_
#define export export_
#define new new_
#define private private_
#define restrict __restrict
#define typename typename_

/* Of what is right in C and that C++ compilers warn of */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"
#pragma GCC diagnostic ignored "-Wpointer-arith"
#pragma GCC diagnostic ignored "-Wsign-compare"
#ifdef __clang__
#pragma GCC diagnostic ignored "-Wc++11-narrowing"
#pragma GCC diagnostic ignored "-Wextern-c-compat"
#else
#pragma GCC diagnostic ignored "-Wnarrowing"
#endif

extern "C" {

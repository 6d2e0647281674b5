/*
 * The layout of types as C++ sees it, and what macros do in C++
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/cxx-begin.h"
#include "cxx-layout.h"

/* here, where C++'s keywords are names as well */
const CxxLayout cxx_layout[] = LAYOUT_TABLE;
#include "qemu/cxx-end.h"

void cxx_guards(QemuMutex *mutex, void (*locked)(void))
{
    {
        QEMU_LOCK_GUARD(mutex);
        locked();
    }
    WITH_QEMU_LOCK_GUARD(mutex) {
        locked();
    }
    WITH_QEMU_LOCK_GUARD(mutex) {
        break;
    }
    WITH_QEMU_LOCK_GUARD(mutex) {
        locked();
        return;
    }
}

uint16List *cxx_list(void)
{
    uint16List *list = NULL, **tail = &list;

    QAPI_LIST_APPEND(tail, 2);
    QAPI_LIST_APPEND(tail, 3);
    QAPI_LIST_PREPEND(list, 1);
    return list;
}

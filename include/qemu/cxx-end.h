/*
 * QEMU's C headers in C++: the way out; see "qemu/cxx-begin.h"
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

} /* extern "C" */

#pragma GCC diagnostic pop

#undef class
#undef delete
#undef export
#undef new
#undef private
#undef restrict
#undef typename

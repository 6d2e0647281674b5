/*
 * For programs that contain the block layer but no IOThreads
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/iothread-holder.h"

void bdrv_follow_aio_context(BlockDriverState *bs, AioContext *ctx)
{
}

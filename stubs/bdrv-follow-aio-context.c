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

void bdrv_may_go_home(BlockDriverState *bs)
{
}

void job_follow_aio_context(Job *job)
{
}

void job_stop_following(Job *job)
{
}

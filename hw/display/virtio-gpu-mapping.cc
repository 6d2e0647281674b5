/*
 * Virtio GPU: where a blob is on its way into the guest and out of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/cxx-begin.h"
#include "qemu/error-report.h"
#include "virtio-gpu-mapping.h"
#include "qemu/cxx-end.h"

namespace {

using State = VirtIOGPUMappingState;
using Step = VirtIOGPUUnmapStep;

enum class Event { mapped, unmap_wanted, region_freed, unmapped };

struct Row {
    const char *name;
    /* What is left to do for who wants the blob unmapped */
    Step step;
    /* Where each event leads; to NO where it cannot happen */
    int to[4];
};

constexpr int NO = -1;
constexpr int NONE = VIRTIO_GPU_MAPPING_NONE;
constexpr int MAPPED = VIRTIO_GPU_MAPPING_MAPPED;
constexpr int STARTED = VIRTIO_GPU_MAPPING_UNMAP_STARTED;
constexpr int COMPLETED = VIRTIO_GPU_MAPPING_UNMAP_COMPLETED;

constexpr Row rows[] = {
    /* mapped, unmap wanted, region freed, unmapped */
    {"none", VIRTIO_GPU_UNMAP_NOTHING, {MAPPED, NONE, NO, NO}},
    {"mapped", VIRTIO_GPU_UNMAP_START, {NO, STARTED, NO, NO}},
    {"unmap-started", VIRTIO_GPU_UNMAP_WAIT, {NO, STARTED, COMPLETED, NO}},
    {"unmap-completed", VIRTIO_GPU_UNMAP_FINISH, {NO, COMPLETED, NO, NONE}},
    {"invalid", VIRTIO_GPU_UNMAP_NOTHING, {NO, NO, NO, NO}},
};

constexpr const Row &row(unsigned state)
{
    return rows[state <= COMPLETED ? state : COMPLETED + 1];
}

constexpr int after(unsigned state, Event event)
{
    return row(state).to[int(event)];
}

/* The same, told by what has happened to the blob since nothing was mapped */
struct History {
    bool mapped, unmap_started, region_freed;

    constexpr Step step() const
    {
        return !mapped          ? VIRTIO_GPU_UNMAP_NOTHING
               : !unmap_started ? VIRTIO_GPU_UNMAP_START
               : !region_freed  ? VIRTIO_GPU_UNMAP_WAIT
                                : VIRTIO_GPU_UNMAP_FINISH;
    }

    constexpr bool can_happen(Event event) const
    {
        return event == Event::mapped         ? !mapped
               : event == Event::unmap_wanted ? true
               : event == Event::region_freed ? unmap_started && !region_freed
                                              : region_freed;
    }

    constexpr History after(Event event) const
    {
        return event == Event::unmapped
                   ? History{}
                   : History{mapped || event == Event::mapped,
                             unmap_started ||
                                 (mapped && event == Event::unmap_wanted),
                             region_freed || event == Event::region_freed};
    }
};

/* Whether the table and the history agree for all sequences of events */
constexpr bool agree(int state, History history, int length)
{
    if (row(state).step != history.step()) {
        return false;
    }
    for (int i = 0; length > 0 && i < 4; i++) {
        const Event event = Event(i);
        const int to = after(state, event);

        if ((to != NO) != history.can_happen(event)) {
            return false;
        }
        if (to != NO && !agree(to, history.after(event), length - 1)) {
            return false;
        }
    }
    return true;
}

static_assert(agree(NONE, History{}, 10));

bool happen(State *state, Event event)
{
    const int to = after(*state, event);

    if (to == NO) {
        static constexpr const char *names[] = {"mapped", "unmapped", "freed",
                                                "returned"};

        error_report("virtio-gpu: a blob mapping cannot be %s while it is "
                     "'%s'",
                     names[int(event)], row(*state).name);
        return false;
    }
    *state = State(to);
    return true;
}

} /* namespace */

const char *virtio_gpu_mapping_state_str(VirtIOGPUMappingState state)
{
    return row(state).name;
}

bool virtio_gpu_mapping_may_map(VirtIOGPUMappingState state)
{
    return after(state, Event::mapped) != NO;
}

bool virtio_gpu_mapping_mapped(VirtIOGPUMappingState *state)
{
    return happen(state, Event::mapped);
}

VirtIOGPUUnmapStep virtio_gpu_mapping_unmap(VirtIOGPUMappingState *state)
{
    const Step step = row(*state).step;

    return happen(state, Event::unmap_wanted) ? step : VIRTIO_GPU_UNMAP_NOTHING;
}

bool virtio_gpu_mapping_region_freed(VirtIOGPUMappingState *state)
{
    return happen(state, Event::region_freed);
}

bool virtio_gpu_mapping_unmapped(VirtIOGPUMappingState *state)
{
    return happen(state, Event::unmapped);
}

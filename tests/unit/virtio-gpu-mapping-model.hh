/*
 * Virtio GPU: a model of the device around the states of blob mappings
 *
 * A queue whose head may be suspended, a renderer that can be blocked by
 * others and can refuse to unmap, regions that are freed whenever somebody
 * else says so, and resets.  What must hold at any time is asserted after
 * each event.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VIRTIO_GPU_MAPPING_MODEL_HH
#define VIRTIO_GPU_MAPPING_MODEL_HH

#include "qemu/cxx-begin.h"
#include "../../hw/display/virtio-gpu-mapping.h"
#include "qemu/cxx-end.h"

#include <span>
#include <utility>

class Model {
public:
    /* It is copied for each event of a test, so it allocates nothing */
    static constexpr int MAX_BLOBS = 4, MAX_EVENTS = 64;

    explicit Model(int num_blobs) : num_blobs(num_blobs) {}

    /* How many events there are: PER_BLOB for each blob, then GLOBAL */
    int events() const
    {
        return global(GLOBAL);
    }

    /*
     * Let @event, below events(), happen; at most MAX_EVENTS times.
     *
     * Returns: false where it cannot happen now, and did not
     */
    bool happen(int event)
    {
        const bool happened =
            event < global(0)
                ? happen_to_blob(event % PER_BLOB, event / PER_BLOB)
                : happen_to_device(event - global(0));

        if (happened) {
            run();
            check();
        }
        return happened;
    }

    /*
     * Everybody lets go of everything: then all must be answered, and the
     * device can be used.
     */
    void come_to_rest()
    {
        while (others) {
            happen(global(UNBLOCK));
        }
        while (blocked) {
            g_assert_true(free_regions());
        }
        g_assert_cmpint(head, ==, tail);

        refuse = false;
        head = tail = 0;
        happen(global(RESET));
        free_regions();
        happen(MAP);
        g_assert_true(blob[0].in_guest);
    }

private:
    /* What happens to one blob... */
    enum {
        MAP,   /* the guest creates it where it is not there, and maps */
        UNMAP, /* the guest unmaps it */
        UNREF, /* the guest destroys it */
        FREED, /* nobody uses its region any more */
        PER_BLOB,
    };

    /* ... and to the device */
    enum {
        RESET,
        BLOCK,   /* the display blocks the renderer... */
        UNBLOCK, /* ... and no longer */
        REFUSE,  /* the renderer will refuse the next unmap */
        GLOBAL,
    };

    enum class Result { done, failed, suspended };

    struct Blob {
        VirtIOGPUMappingState state = VIRTIO_GPU_MAPPING_NONE;
        bool exists = false;
        bool in_renderer = false; /* the renderer has it mapped */
        bool in_guest = false;    /* the region is visible to the guest */
        bool in_use = false;      /* the region is there, visible or not */
    };

    struct Command {
        uint8_t event, blob, answers;
    };

    int global(int event) const
    {
        return num_blobs * PER_BLOB + event;
    }

    std::span<Blob> blobs()
    {
        return {blob, size_t(num_blobs)};
    }

    /* The device's part of an unmap */
    Result unmap(Blob &b)
    {
        switch (virtio_gpu_mapping_unmap(&b.state)) {
        case VIRTIO_GPU_UNMAP_NOTHING:
            return Result::done;
        case VIRTIO_GPU_UNMAP_START:
            /* once per mapping: the guest cannot lose it twice */
            g_assert_true(std::exchange(b.in_guest, false));
            blocked++;
            return Result::suspended;
        case VIRTIO_GPU_UNMAP_WAIT:
            return Result::suspended;
        case VIRTIO_GPU_UNMAP_FINISH:
            /* never under somebody who uses it, and once per mapping */
            g_assert_false(b.in_use);
            if (std::exchange(refuse, false)) {
                return Result::failed;
            }
            g_assert_true(std::exchange(b.in_renderer, false));
            g_assert_true(virtio_gpu_mapping_unmapped(&b.state));
            return Result::done;
        }
        g_assert_not_reached();
    }

    static void destroy(Blob &b)
    {
        /* The renderer frees the memory */
        g_assert_false(b.in_use);
        b = {};
    }

    /* Returns: whether the command is done, well or not */
    bool execute(const Command &command)
    {
        Blob &b = blob[command.blob];

        if (command.event == MAP) {
            b.exists = true;
            if (virtio_gpu_mapping_may_map(b.state)) {
                g_assert_false(b.in_renderer || b.in_use);
                b.in_renderer = b.in_guest = b.in_use = true;
                g_assert_true(virtio_gpu_mapping_mapped(&b.state));
            }
        } else if (b.exists) {
            const Result result = unmap(b);

            if (command.event == UNREF && result == Result::done) {
                destroy(b);
            }
            return result != Result::suspended;
        }
        return true;
    }

    /* The main loop, until it has nothing to do */
    void run()
    {
        if (reset && !blocked) {
            for (Blob &b : blobs()) {
                g_assert_true(unmap(b) != Result::suspended);
                destroy(b);
            }
            reset = false;
        }
        while (!reset && !blocked && head < tail && execute(queue[head])) {
            queue[head++].answers++;
        }
    }

    void check()
    {
        int in_flight = 0;

        for (const Blob &b : blobs()) {
            const bool started = b.state == VIRTIO_GPU_MAPPING_UNMAP_STARTED;

            g_assert_cmpint(b.in_guest, ==,
                            b.state == VIRTIO_GPU_MAPPING_MAPPED);
            g_assert_cmpint(b.in_use, ==, b.in_guest || started);
            g_assert_cmpint(b.in_renderer, ==,
                            b.state != VIRTIO_GPU_MAPPING_NONE);
            g_assert_true(b.exists || !b.in_renderer);
            g_assert_false(reset && b.in_guest);
            in_flight += started;
        }
        g_assert_cmpint(blocked, ==, others + in_flight);
        for (int i = 0; i < tail; i++) {
            g_assert_cmpint(queue[i].answers, ==, i < head);
        }
        if (!blocked) {
            /* nothing is left lying */
            g_assert_false(reset);
            g_assert_cmpint(head, ==, tail);
        }
    }

    bool happen_to_blob(int event, int which)
    {
        Blob &b = blob[which];

        if (event != FREED) {
            g_assert_cmpint(tail, <, MAX_EVENTS);
            queue[tail++] = {uint8_t(event), uint8_t(which), 0};
        } else if (!b.in_use || b.in_guest) {
            return false;
        } else {
            b.in_use = false;
            g_assert_true(virtio_gpu_mapping_region_freed(&b.state));
            blocked--;
        }
        return true;
    }

    bool happen_to_device(int event)
    {
        switch (event) {
        case RESET:
            for (Blob &b : blobs()) {
                if (b.state == VIRTIO_GPU_MAPPING_MAPPED) {
                    unmap(b);
                }
            }
            /* Nobody waits for these answers any more */
            tail = head;
            reset = true;
            return true;
        case BLOCK:
            blocked++;
            others++;
            return true;
        case UNBLOCK:
            if (!others) {
                return false;
            }
            blocked--;
            others--;
            return true;
        case REFUSE:
            return !std::exchange(refuse, true);
        }
        g_assert_not_reached();
    }

    bool free_regions()
    {
        bool any = false;

        for (int i = 0; i < num_blobs; i++) {
            any |= happen(i * PER_BLOB + FREED);
        }
        return any;
    }

    int num_blobs;
    Blob blob[MAX_BLOBS] = {};
    Command queue[MAX_EVENTS] = {};
    int head = 0, tail = 0;
    int blocked = 0;    /* renderer_blocked */
    int others = 0;     /* who of these is the display */
    bool reset = false; /* waits for the renderer */
    bool refuse = false;
};

#endif

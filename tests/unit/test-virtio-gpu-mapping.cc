/*
 * Virtio GPU: every order in which blobs are mapped, unmapped and reset
 *
 * All sequences of events up to a length are run on a model of the device,
 * each of them to the point where everything has come to rest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/cxx-begin.h"
#include "../../hw/display/virtio-gpu-mapping.h"
#include "qemu/cxx-end.h"

#include "virtio-gpu-mapping-model.hh"

#include <vector>

namespace {

/* What happens in the sequence that is being tried */
std::vector<int> path;

/* Returns: how many sequences of up to @length more events it tried */
unsigned long explore(const Model &from, int length)
{
    unsigned long sequences = 1;

    Model(from).come_to_rest();
    for (int event = 0; length > 0 && event < from.events(); event++) {
        Model model = from;

        path.push_back(event);
        if (model.happen(event)) {
            sequences += explore(model, length - 1);
        }
        path.pop_back();
    }
    return sequences;
}

/* Where an assertion fails: how it came about */
void tell_path(int)
{
    for (int event : path) {
        fprintf(stderr, " %d", event);
    }
    fputs(" were the events\n", stderr);
}

template <int blobs, int length> void test_orders()
{
    const int longest = length + g_test_slow();
    struct sigaction tell = {}, before;
    unsigned long sequences;

    tell.sa_handler = tell_path;
    tell.sa_flags = SA_RESETHAND;
    sigaction(SIGABRT, &tell, &before);
    sequences = explore(Model(blobs), longest);
    sigaction(SIGABRT, &before, nullptr);
    g_test_message("%lu sequences of up to %d events", sequences, longest);
    g_assert_cmpuint(sequences, >, 10000);
}

/* The picture in the header, and that there is no other arrow */
void test_picture()
{
    const struct {
        VirtIOGPUMappingState from;
        const char *name;
        VirtIOGPUUnmapStep step;
        VirtIOGPUMappingState unmapping;
        /* the one other event that can happen, and where it leads */
        bool (*event)(VirtIOGPUMappingState *state);
        VirtIOGPUMappingState to;
    } picture[] = {
        {VIRTIO_GPU_MAPPING_NONE, "none", VIRTIO_GPU_UNMAP_NOTHING,
         VIRTIO_GPU_MAPPING_NONE, virtio_gpu_mapping_mapped,
         VIRTIO_GPU_MAPPING_MAPPED},
        {VIRTIO_GPU_MAPPING_MAPPED,
         "mapped",
         VIRTIO_GPU_UNMAP_START,
         VIRTIO_GPU_MAPPING_UNMAP_STARTED,
         nullptr,
         {}},
        {VIRTIO_GPU_MAPPING_UNMAP_STARTED, "unmap-started",
         VIRTIO_GPU_UNMAP_WAIT, VIRTIO_GPU_MAPPING_UNMAP_STARTED,
         virtio_gpu_mapping_region_freed, VIRTIO_GPU_MAPPING_UNMAP_COMPLETED},
        /* where the renderer refuses, it is asked again */
        {VIRTIO_GPU_MAPPING_UNMAP_COMPLETED, "unmap-completed",
         VIRTIO_GPU_UNMAP_FINISH, VIRTIO_GPU_MAPPING_UNMAP_COMPLETED,
         virtio_gpu_mapping_unmapped, VIRTIO_GPU_MAPPING_NONE},
    };

    for (const auto &row : picture) {
        VirtIOGPUMappingState state = row.from;

        g_assert_cmpstr(virtio_gpu_mapping_state_str(state), ==, row.name);
        g_assert_cmpint(virtio_gpu_mapping_may_map(state), ==,
                        state == VIRTIO_GPU_MAPPING_NONE);
        g_assert_cmpint(virtio_gpu_mapping_unmap(&state), ==, row.step);
        g_assert_cmpint(state, ==, row.unmapping);
        for (auto event :
             {virtio_gpu_mapping_mapped, virtio_gpu_mapping_region_freed,
              virtio_gpu_mapping_unmapped}) {
            state = row.from;
            g_assert_cmpint(event(&state), ==, event == row.event);
            g_assert_cmpint(state, ==, event == row.event ? row.to : row.from);
        }
    }
}

} /* namespace */

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, nullptr);
    g_test_add_func("/virtio-gpu-mapping/picture", test_picture);
    g_test_add_func("/virtio-gpu-mapping/orders/one-blob", test_orders<1, 8>);
    g_test_add_func("/virtio-gpu-mapping/orders/two-blobs", test_orders<2, 7>);
    return g_test_run();
}

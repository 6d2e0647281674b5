/*
 * Virtio GPU: every order in which blobs are mapped, unmapped and reset
 *
 * All sequences of events up to a length are run on a model of the device,
 * each of them to the point where everything has come to rest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "virtio-gpu-mapping-model.h"

#define MAX_DEPTH 9

static int depth;
static unsigned long sequences;
static int path[MAX_DEPTH];

static void explore(const Model *from, int length)
{
    model_come_to_rest(*from);
    sequences++;
    if (length == depth) {
        return;
    }
    for (int event = 0; event < model_events(from); event++) {
        Model m = *from;

        path[length] = event;
        if (model_happen(&m, event)) {
            explore(&m, length + 1);
        }
    }
}

/* Where an assertion fails: how it came about */
static void tell_path(int sig)
{
    for (int i = 0; i < depth; i++) {
        fprintf(stderr, "%s%d", i ? " " : "# events: ", path[i]);
    }
    fputc('\n', stderr);
}

static void test_orders(int blobs, int length)
{
    struct sigaction tell = { .sa_handler = tell_path,
                              .sa_flags = SA_RESETHAND };
    struct sigaction before;
    Model m = { .blobs = blobs };

    depth = length;
    sequences = 0;
    sigaction(SIGABRT, &tell, &before);
    explore(&m, 0);
    sigaction(SIGABRT, &before, NULL);
    g_test_message("%lu sequences of up to %d events", sequences, depth);
    g_assert_cmpuint(sequences, >, 10000);
}

static void test_one_blob(void)
{
    test_orders(1, g_test_slow() ? 9 : 8);
}

static void test_two_blobs(void)
{
    test_orders(2, g_test_slow() ? 8 : 7);
}

/* The picture in the header, and that there is no other arrow */
static void test_transitions(void)
{
    VirtIOGPUMappingState s = VIRTIO_GPU_MAPPING_NONE;

    g_assert_true(virtio_gpu_mapping_may_map(s));
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==,
                    VIRTIO_GPU_UNMAP_NOTHING);
    g_assert_cmpstr(virtio_gpu_mapping_state_str(s), ==, "none");
    g_assert_true(virtio_gpu_mapping_mapped(&s));
    g_assert_false(virtio_gpu_mapping_may_map(s));
    g_assert_cmpstr(virtio_gpu_mapping_state_str(s), ==, "mapped");
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==, VIRTIO_GPU_UNMAP_START);
    g_assert_false(virtio_gpu_mapping_may_map(s));
    g_assert_cmpstr(virtio_gpu_mapping_state_str(s), ==, "unmap-started");
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==, VIRTIO_GPU_UNMAP_WAIT);
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==, VIRTIO_GPU_UNMAP_WAIT);
    g_assert_true(virtio_gpu_mapping_region_freed(&s));
    g_assert_false(virtio_gpu_mapping_may_map(s));
    g_assert_cmpstr(virtio_gpu_mapping_state_str(s), ==, "unmap-completed");
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==,
                    VIRTIO_GPU_UNMAP_FINISH);
    /* the renderer refused: it is asked again */
    g_assert_cmpint(virtio_gpu_mapping_unmap(&s), ==,
                    VIRTIO_GPU_UNMAP_FINISH);
    g_assert_true(virtio_gpu_mapping_unmapped(&s));
    g_assert_cmpint(s, ==, VIRTIO_GPU_MAPPING_NONE);
}

/* Whatever is not in the picture is refused, and changes nothing */
static void test_impossible(void)
{
    static const struct {
        bool (*event)(VirtIOGPUMappingState *state);
        VirtIOGPUMappingState from, to;
    } possible[] = {
        { virtio_gpu_mapping_mapped, VIRTIO_GPU_MAPPING_NONE,
          VIRTIO_GPU_MAPPING_MAPPED },
        { virtio_gpu_mapping_region_freed, VIRTIO_GPU_MAPPING_UNMAP_STARTED,
          VIRTIO_GPU_MAPPING_UNMAP_COMPLETED },
        { virtio_gpu_mapping_unmapped, VIRTIO_GPU_MAPPING_UNMAP_COMPLETED,
          VIRTIO_GPU_MAPPING_NONE },
    };

    for (size_t i = 0; i < ARRAY_SIZE(possible); i++) {
        for (int from = VIRTIO_GPU_MAPPING_NONE;
             from <= VIRTIO_GPU_MAPPING_UNMAP_COMPLETED; from++) {
            VirtIOGPUMappingState state = from;
            bool ok = from == (int)possible[i].from;

            g_assert_cmpint(possible[i].event(&state), ==, ok);
            g_assert_cmpint(state, ==, ok ? (int)possible[i].to : from);
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/virtio-gpu-mapping/transitions", test_transitions);
    g_test_add_func("/virtio-gpu-mapping/impossible", test_impossible);
    g_test_add_func("/virtio-gpu-mapping/orders/one-blob", test_one_blob);
    g_test_add_func("/virtio-gpu-mapping/orders/two-blobs", test_two_blobs);
    return g_test_run();
}
